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
fn base() {
    let on_debian = [
        "file[/etc/motd]",
        "group[operators]",
        "user[ops]",
        "package[sudo]",
        "package[openssh-server]",
        "file[/etc/sudoers.d/operators]",
        "directory[/etc/ssh/sshd_config.d]",
        "file[/etc/ssh/sshd_config.d/10-rekindle.conf]",
        "service[ssh]",
        "package[telnetd]",
        "package[rsh-server]",
        "file[/etc/hosts.equiv]",
        "user[guest]",
        "symlink[/etc/localtime]",
    ];
    check("example-base", "debian", &[], &on_debian);
    let elsewhere: Vec<&str> =
        on_debian.into_iter().filter(|id| !id.contains("10-") && *id != "service[ssh]").collect();
    check("example-base", "redhat", &[], &elsewhere);
}

#[test]
fn web() {
    let on_debian = [
        "package[nginx]",
        "group[web]",
        "user[web]",
        "directory[/srv/www]",
        "file[/srv/www/index.html]",
        "file[/etc/nginx/conf.d/site.conf]",
        "symlink[/etc/nginx/sites-enabled/default]",
        "service[nginx]",
    ];
    check("example-web", "debian", &["web"], &on_debian);
    check("example-web", "debian", &["web", "staging"], &on_debian);
    check("example-web", "debian", &["db"], &[]);
    let elsewhere: Vec<&str> = on_debian.into_iter().filter(|id| !id.contains("sites-enabled")).collect();
    check("example-web", "redhat", &["web"], &elsewhere);
}

/// Editors rely on it: a change is a change of the language.
#[test]
fn json_schema() {
    let schema = serde_json::to_string_pretty(&rekindle::policy::schema::json_schema()).unwrap();
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("json_schema", schema);
    });
}
