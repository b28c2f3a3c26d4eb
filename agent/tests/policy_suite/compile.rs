//! What policies mean, and the order that they are carried out in.

use crate::support::{compile, facts, host, policy};
use rekindle::policy::compile::Inputs;
use rekindle::resource::{Desired, Ensure, Mode, Notify, OnDrift, Principal, file};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ops@acme";

/// Compiles one policy.toml and returns the names in order.
fn order(toml: &str) -> Vec<String> {
    let compiled = compile(&policy(&[("policy.toml", toml)]), Some(&host())).expect("the policy is valid");
    compiled.state.resources().iter().map(|resource| resource.id.to_string()).collect()
}

fn check_order(toml: &str, expected: &[&str]) {
    assert_eq!(order(toml), expected, "of\n{toml}");
}

#[test]
fn requirements_come_first_and_the_rest_stays_as_written() {
    check_order("", &[]);
    check_order("[file.'/etc/b']\ncontent = ''\n[file.'/etc/a']\ncontent = ''\n", &["file[/etc/b]", "file[/etc/a]"]);
    check_order(
        "[file.'/etc/b']\ncontent = ''\nrequires = ['file[/etc/a]']\n[file.'/etc/a']\ncontent = ''\n",
        &["file[/etc/a]", "file[/etc/b]"],
    );
}

#[test]
fn automatic_edges() {
    // A path after its directory, its owner and its group; a user after its groups.
    check_order(
        "[file.'/srv/app/x/y']\ncontent = ''\nowner = 'app'\ngroup = 'web'\n[directory.'/srv/app']\n\
         [user.app]\ngroups = ['web']\n[group.web]\n",
        &["directory[/srv/app]", "group[web]", "user[app]", "file[/srv/app/x/y]"],
    );
    // The group that a user brings with it.
    check_order("[file.'/srv/x']\ncontent = ''\ngroup = 'app'\n[user.app]\n", &["user[app]", "file[/srv/x]"]);
    // A service after its package and what restarts it; configuration after its package.
    check_order(
        "[service.nginx]\nstate = 'running'\n[file.'/etc/nginx/nginx.conf']\ncontent = ''\n[package]\nnginx = {}\n\
         [file.'/etc/tls.pem']\ncontent = ''\nreloads = ['nginx.service']\n",
        &["package[nginx]", "file[/etc/tls.pem]", "service[nginx]", "file[/etc/nginx/nginx.conf]"],
    );
    // Removals the other way round.
    check_order(
        "[directory.'/srv/old']\nstate = 'absent'\n[file.'/srv/old/a']\nstate = 'absent'\n",
        &["file[/srv/old/a]", "directory[/srv/old]"],
    );
    check_order("[group.old]\nstate = 'absent'\n[user.old]\nstate = 'absent'\n", &["user[old]", "group[old]"]);
    check_order(
        "[package]\ntelnetd = { state = 'absent' }\n[service.telnetd]\nstate = 'stopped'\n",
        &["service[telnetd]", "package[telnetd]"],
    );
    // A setting as a file, by the path that it edits.
    check_order(
        "[setting.port]\npath = '/etc/nginx/a.conf'\nformat = 'equals'\nvalues = { A = 1 }\nowner = 'app'\n[package]\nnginx = {}\n\
         [directory.'/etc/nginx']\n[user.app]\n",
        &["package[nginx]", "directory[/etc/nginx]", "user[app]", "setting[port]"],
    );
    // What is in a mount comes after it, and so do a home, and the directory that is mounted there.
    check_order(
        "[file.'/srv/data/x']\ncontent = ''\n[directory.'/srv/data']\n[user.app]\nhome = '/srv/data/app'\n\
         [mount.'/srv/data']\n[directory.'/srv']\n",
        &["directory[/srv]", "mount[/srv/data]", "directory[/srv/data]", "file[/srv/data/x]", "user[app]"],
    );
    // A package after every repository, but not one that a repository needs.
    check_order(
        "[package]\ngit = {}\nca-certificates = {}\n[repository.a]\nstate = 'absent'\nrequires = ['package[ca-certificates]']\n\
         [repository.b]\nstate = 'absent'\n",
        &["package[ca-certificates]", "repository[a]", "repository[b]", "package[git]"],
    );
    // They yield to an explicit requirement.
    check_order(
        "[service.nginx]\nstate = 'running'\n[package.nginx]\nrequires = ['service[nginx]']\n",
        &["service[nginx]", "package[nginx]"],
    );
}

#[test]
fn every_attribute_arrives() {
    let toml = format!(
        "[policy]\nname = 'acme'\nrequires = '>=0.1'\n\
         [vars]\nport = 22\nnames = ['a', 'b']\n[vars.web]\nport = 80\n\
         [file.'/etc/x']\ntemplate = 'templates/x.j2'\nowner = 'root'\ngroup = 5\nmode = '0600'\nrestarts = ['ssh']\n\
         on_drift = 'reimage'\ndescription = 'd'\ntags = ['t']\n\
         [user.deploy]\nuid = 2001\nauthorized_keys = ['{KEY}']\nowner = 'ops'\n"
    );
    let files = [
        ("policy.toml", toml.as_str()),
        ("templates/x.j2", "{% include 'templates/y.j2' %}\n{% for n in vars.names %}\n{{ n }}\n{% endfor %}\n"),
        ("templates/y.j2", "{{ host.name }} {{ facts.os }} {{ vars.port }} {{ 'web' in roles }}\n"),
    ];
    let roles = ["web".to_owned()];
    let (facts, host) = (facts(), host());
    let inputs =
        Inputs { facts: &facts, roles: &roles, host: Some(&host), secrets: &rekindle::policy::secret::Secrets::Unread };
    let compiled = rekindle::policy::compile::compile(&policy(&files), &inputs).expect("the policy is valid");
    assert_eq!(compiled.state.name(), "acme");
    let file = compiled.state.get(&"file[/etc/x]".parse().unwrap()).unwrap();
    let Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) = &file.desired else {
        panic!("{:?}", file.desired)
    };
    assert_eq!(String::from_utf8_lossy(&spec.content.bytes().unwrap()), "web1 debian 80 true\na\nb\n");
    assert_eq!(spec.ownership.owner, Principal::Name("root".to_owned()));
    assert_eq!(spec.ownership.group, Principal::Id(5));
    assert_eq!(spec.ownership.mode, Mode::from_bits(0o600));
    assert_eq!(
        file.notifies.iter().map(|(n, u)| (*n, u.as_str())).collect::<Vec<_>>(),
        [(Notify::Restart, "ssh.service")]
    );
    assert_eq!(file.on_drift, OnDrift::Reimage);
    let notes = file.notes.as_deref().unwrap();
    assert_eq!((notes.description.as_deref(), notes.owner.as_deref()), (Some("d"), None));
    assert_eq!(notes.tags, ["t"]);
    assert_eq!((&*file.source.file, file.source.line, file.source.column), ("policy.toml", 9, 7));
    let user = compiled.state.get(&"user[deploy]".parse().unwrap()).unwrap();
    assert_eq!(user.notes.as_ref().unwrap().owner.as_deref(), Some("ops"));
}
