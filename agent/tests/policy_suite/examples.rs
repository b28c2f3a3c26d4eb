//! The policies that we ship are valid wherever they say that they are, without a warning.

use std::path::Path;

use rekindle::policy::candidate::from_directory;
use rekindle::policy::compile::{Inputs, compile};
use rekindle::policy::facts::Facts;
use rekindle::policy::secret::Secrets;
use rekindle::policy::trust::{Trust, verify};

use crate::support::host;

fn check(name: &str, os_family: &str, roles: &[&str], expected: &[&str]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name);
    let verified = verify(from_directory(&dir).unwrap(), &Trust::Operator, jiff::Timestamp::UNIX_EPOCH).unwrap();
    let roles: Vec<String> = roles.iter().map(|role| (*role).to_owned()).collect();
    let facts = Facts { os_family: os_family.to_owned(), fqdn: "web1.example.org".to_owned(), ..Facts::default() };
    let host = host();
    for host in [Some(&host), None] {
        let compiled = compile(&verified, &Inputs { facts: &facts, roles: &roles, host, secrets: &Secrets::Unread })
            .unwrap_or_else(|diagnostics| panic!("{}", diagnostics.render(false)));
        let warnings: Vec<String> = compiled.warnings.iter().map(ToString::to_string).collect();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(compiled.state.name(), name);
        let ids: Vec<String> = compiled.state.resources().iter().map(|resource| resource.id.to_string()).collect();
        assert_eq!(ids, expected);
    }
}

#[test]
fn ssh_hardening() {
    let on_debian = [
        "package[openssh-server]",
        "package[sudo]",
        "group[operators]",
        "user[ops]",
        "file[/etc/sudoers.d/operators]",
        "command[ed25519-host-key]",
        "file[/etc/ssh/ssh_host_rsa_key]",
        "file[/etc/ssh/ssh_host_rsa_key.pub]",
        "file[/etc/ssh/ssh_host_ecdsa_key]",
        "file[/etc/ssh/ssh_host_ecdsa_key.pub]",
        "file[/etc/ssh/ssh_host_dsa_key]",
        "file[/etc/ssh/ssh_host_dsa_key.pub]",
        "command[strong-moduli]",
        "file[/etc/ssh/sshd_config]",
        "service[ssh]",
        "file[/root/.ssh/authorized_keys]",
        "check[sshd-accepts-its-configuration]",
        "file[/etc/ssh/ssh_config.d/10-hardening.conf]",
    ];
    check("ssh-hardening", "debian", &[], &on_debian);
    let elsewhere: Vec<&str> =
        on_debian.into_iter().filter(|id| !id.ends_with("sshd_config]") && *id != "service[ssh]").collect();
    check("ssh-hardening", "redhat", &[], &elsewhere);
}

#[test]
fn web() {
    let on_debian = [
        "package[nginx]",
        "package[logrotate]",
        "package[sudo]",
        "group[deploy]",
        "user[deploy]",
        "file[/etc/sudoers.d/deploy]",
        "directory[/srv/www]",
        "directory[/srv/www/www.example.org]",
        "directory[/srv/www/docs.example.org]",
        "directory[/etc/nginx/tls]",
        "file[/etc/nginx/tls/example.org.crt]",
        "file[/etc/nginx/tls/example.org.key]",
        "file[/etc/nginx/nginx.conf]",
        "directory[/etc/nginx/conf.d]",
        "file[/etc/nginx/conf.d/sites.conf]",
        "directory[/etc/nginx/sites-enabled]",
        "sysctl[net.core.somaxconn]",
        "file[/etc/logrotate.d/nginx]",
        "service[nginx]",
    ];
    check("web", "debian", &["web"], &on_debian);
    check("web", "debian", &["web", "staging"], &on_debian);
    check("web", "debian", &["db"], &[]);
}

/// Editors rely on it: a change is a change of the language.
#[test]
fn json_schema() {
    let schema = serde_json::to_string_pretty(&rekindle::policy::schema::json_schema()).unwrap();
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("json_schema", schema);
    });
}
