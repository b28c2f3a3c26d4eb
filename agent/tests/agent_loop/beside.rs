//! What a package manager laid beside declared files, as the whole agent and an operator's commands tell of it.

use std::time::Duration;

use crate::policies::Policies;
use crate::support::{Host, write};

#[test]
fn the_packages_version_of_a_declared_file_is_told_where_an_operator_looks() {
    let host = Host::new();
    for directory in ["/etc/app", "/var/lib/dpkg/info"] {
        std::fs::create_dir_all(host.at(directory)).unwrap();
    }
    write(&host.at("/etc/login.defs"), "UMASK 027\n");
    write(&host.at("/etc/login.defs.dpkg-old"), "UMASK 022\n");
    write(&host.at("/etc/app/app.conf.dpkg-dist"), "the package's\n");
    write(&host.at("/var/lib/dpkg/info/app.list"), "/.\n/etc/app\n/etc/app/app.conf\n");
    write(&host.at("/var/lib/dpkg/info/app.conffiles"), "/etc/app/app.conf\n");
    let agent = host.run(
        "[file.\"/etc/app/app.conf\"]\ncontent = \"ours\\n\"\n\
         [setting.umask]\npath = \"/etc/login.defs\"\nformat = \"space\"\nvalues = { UMASK = \"027\" }\n",
    );
    let of_app = "/etc/app/app.conf.dpkg-dist is the package's version of it; it belongs to app (a conffile)";
    let of_umask = "/etc/login.defs.dpkg-old is what was there before the package's version; no package has it";
    agent.wait("both to be told", |status| {
        let told: Vec<String> = status.beside.iter().map(ToString::to_string).collect();
        told == [of_app, of_umask]
    });
    // Told, and in order all the same.
    let status = agent.ok(&["status"]);
    assert!(status.contains(&format!("beside     file[/etc/app/app.conf]: {of_app}\n")), "{status}");
    let plan = agent.ok(&["plan"]);
    assert!(plan.contains(&format!("beside file[/etc/app/app.conf]\n    {of_app}\n")), "{plan}");
    let why = agent.ok(&["why", "/etc/app/app.conf"]);
    assert!(why.contains("  package       app (a conffile)\n"), "{why}");
    assert!(why.contains(&format!("  beside        {of_app}\n")) && !why.contains("login.defs"), "{why}");
    let why = agent.ok(&["why", "setting[umask]"]);
    assert!(why.contains(&format!("  beside        {of_umask}\n")), "{why}");
    let why = agent.ok(&["why", "/etc/app/app.conf.dpkg-dist"]);
    assert!(why.contains("by no resource") && why.contains("none owns it"), "{why}");
    // Whoever has compared them and removes it hears no more of it.
    std::fs::remove_file(agent.at("/etc/app/app.conf.dpkg-dist")).unwrap();
    agent.look();
    agent.wait("it to be forgotten", |status| status.beside.len() == 1);
}

#[test]
fn an_upgrade_is_not_told_only_after_the_next_full_scan() {
    let mut host = Host::new();
    host.settings.health.retry_first = Duration::from_millis(20);
    host.settings.health.retry_max = Duration::from_millis(100);
    std::fs::create_dir_all(host.at("/etc")).unwrap();
    let policies = Policies::of(&mut host);
    // No package can be told of here, so it is looked at again and again: as it is while packages change.
    policies.commit("ada", "[policy]\nname = \"acme\"\n[package.app]\n[file.\"/etc/a\"]\ncontent = \"a\\n\"\n");
    let agent = host.start();
    // The next scan of everything is many minutes away.
    agent.wait("everything to be looked at", |status| status.verified.is_some() && !status.out_of_sync.is_empty());
    write(&agent.at("/etc/a.dpkg-dist"), "the package's\n");
    let status = agent.wait("it to be told", |status| !status.beside.is_empty());
    assert_eq!(status.beside.len(), 1);
}
