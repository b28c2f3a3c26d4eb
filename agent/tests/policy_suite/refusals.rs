//! Every refusal of the language: that it is made, under which code, and how it reads.
//!
//! The codes stand in the tables here; the whole texts are in `snapshots/`, one file for each table.

use std::fmt::Write;

use crate::support::{compile, host, policy};
use rekindle::policy::diagnostic::{Diagnostic, Severity};
use rekindle::policy::facts::HostView;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ops@acme";

/// A policy.toml, and the codes of everything that is wrong with it.
pub(crate) type Case<'a> = (&'a str, &'a [&'a str]);

/// Other files that the cases may use.
const FILES: &[(&str, &str)] = &[
    ("files/motd", "hello\n"),
    ("templates/ok.j2", "{{ facts.os }}\n"),
    ("templates/unknown.j2", "first\n{{ vars.prot }}\n"),
    ("templates/empty.j2", "{% if false %}x{% endif %}"),
    ("files/empty", ""),
    ("templates/syntax.j2", "{% if %}\n"),
    ("templates/include.j2", "{% include 'templates/unknown.j2' %}\n"),
    ("templates/missing.j2", "{% include '../../etc/passwd' %}\n"),
    ("templates/loop.j2", "{% for a in range(1000) %}{% for b in range(1000) %}x{% endfor %}{% endfor %}"),
    ("templates/recursive.j2", "{% include 'templates/recursive.j2' %}"),
    ("templates/secret.j2", "{{ vars.token + 1 }}"),
    ("modules/a.toml", "[file.'/etc/motd']\ncontent = 'a'\n"),
    ("modules/b.toml", "[vars]\nx = 1\n[policy]\nname = 'b'\n"),
    ("modules/c.toml", "[file.'/etc/c']\ncontent = 'c'\nmoed = '0644'\n"),
    ("modules/bad.toml", "[file\n"),
    ("keys/acme.asc", include_str!("acme.asc")),
    ("keys/private.asc", "-----BEGIN PGP PRIVATE KEY BLOCK-----\n"),
    ("keys/binary.gpg", "\u{6}"),
];

fn diagnose(toml: &str, host: Option<&HostView>) -> Vec<Diagnostic> {
    let mut files = FILES.to_vec();
    files.push(("policy.toml", toml));
    match compile(&policy(&files), host) {
        Ok(compiled) => compiled.warnings,
        Err(diagnostics) => {
            assert!(diagnostics.iter().any(|d| d.severity() == Severity::Error), "an error without an error: {toml}");
            diagnostics.iter().cloned().collect()
        }
    }
}

/// Checks the codes of each case, and the texts of all against a snapshot.
pub(crate) fn check(name: &str, host: Option<&HostView>, cases: &[Case<'_>]) {
    let mut text = String::new();
    for (toml, expected) in cases {
        let diagnostics = diagnose(toml, host);
        let codes: Vec<&str> = diagnostics.iter().map(Diagnostic::code).collect();
        for diagnostic in &diagnostics {
            writeln!(text, "{}\n\n{diagnostic}\n", diagnostic.render(false)).unwrap();
        }
        text.push_str("--------------------------------\n");
        assert_eq!(codes, *expected, "codes of\n{toml}\n{text}");
    }
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

#[test]
fn syntax_keys_and_types() {
    check(
        "syntax_keys_and_types",
        Some(&host()),
        &[
            ("[file.'/etc/motd'\ncontent = 'x'\n[user.x\n", &["syntax", "syntax"]),
            ("[file.'/etc/motd']\nconent = 'x'\nmode = 644\nownr = 'root'\n", &["unknown-key", "type", "unknown-key"]),
            ("[fiel.'/etc/motd']\ncontent = 'x'\n", &["unknown-kind"]),
            ("[repositry.x]\n", &["unknown-kind"]),
            ("[zzz]\n", &["unknown-kind"]),
            ("[file.'/etc/motd']\ncontent = 'x'\nvalidate = ['true']\n", &["program"]),
            ("[file.'/etc/motd']\ncontent = 'x'\nvalidate = '/usr/sbin/sshd -t -f {}'\n", &["type"]),
            ("[file.'/etc/motd']\ncontent = 'x'\nvalidate = ['/usr/sbin/sshd -t -f {}']\n", &["program"]),
            ("[file.'/etc/motd']\ncontent = 'x'\nvalidate = ['/bin/cat', '{}', '|', '/bin/grep', 'x']\n", &["program"]),
            ("[file.'/etc/motd']\ncontent = 'x'\nvalidate = []\n", &["program"]),
            ("[directory.'/etc/x']\nvalidate = ['/bin/true']\n", &["unknown-key"]),
            ("[service.ssh]\nstate = 'runing'\n", &["unknown-value"]),
            ("[file.'/etc/motd']\ncontent = 'x'\non_drift = 'ignore'\n", &["unknown-value"]),
            ("file = 3\npolicy = 4\ninclude = 5\nvars = 6\n", &["type", "type", "type", "type"]),
            ("[file]\n'/etc/motd' = 'x'\n", &["type"]),
            (
                "include = [5, {}, { path = 'modules/a.toml', wehn = 'true' }]\n",
                &["type", "missing-key", "unknown-key"],
            ),
            ("[user.app]\nuid = -1\ngroups = ['adm', 5]\n[group.app]\ngid = 4294967295\n", &["type", "type", "type"]),
            ("[user.app]\npassword = { lokced = true }\n", &["unknown-key"]),
            ("[policy]\nname = ''\nrequires = '>=99'\n", &["value", "agent-version"]),
            ("[policy]\nrequires = 'new'\n", &["value"]),
            ("include = ['modules/b.toml']\n", &["misplaced", "misplaced"]),
            ("include = ['modules/bad.toml']\n", &["syntax"]),
            ("include = [{ path = 'modules/c.toml', when = 'false' }]\n", &["unknown-key"]),
            ("[policy]\ninclude = ['modules/c.toml', 7]\n", &["type", "unknown-key"]),
            ("[vars]\nport = 1\n[vars.web]\nprot = 2\n", &["unknown-variable"]),
            ("[vars]\nn = 0x8000000000000000\n", &["type"]),
        ],
    );
}

#[test]
fn duplicates_and_conflicts() {
    check(
        "duplicates_and_conflicts",
        Some(&host()),
        &[
            ("[file.'/etc/motd']\ncontent = 'x'\n\n[file.'/etc/motd']\ncontent = 'y'\n", &["duplicate"]),
            ("[file.'/etc/motd']\ncontent = 'x'\nmode = '0644'\ncontent = 'y'\n", &["duplicate"]),
            ("include = ['modules/a.toml']\n[file.'/etc/motd']\ncontent = 'x'\n", &["duplicate"]),
            ("[service]\nssh = { enabled = true }\n'ssh.service' = { state = 'running' }\n", &["duplicate"]),
            ("[file.'/etc/x']\ncontent = ''\n[directory.'/etc/x']\n", &["conflict"]),
            (
                "[user]\na = { uid = 2001 }\nb = { uid = 2001 }\n[group]\na = { gid = 2001 }\nc = { gid = 2001 }\n",
                &["conflict", "conflict"],
            ),
            ("[file.\"/srv/a\\nb\"]\ncontent = ''\n[symlink.\"/srv/\\u001b[31m\"]\ntarget = 'x'\n", &["path", "path"]),
            ("[symlink.'/srv/app']\ntarget = '/opt/app'\n[file.'/srv/app/conf/x']\ncontent = ''\n", &["path"]),
            ("[file.'/srv/app']\ncontent = ''\n[directory.'/srv/app/x']\n", &["path"]),
            ("[directory.'/srv/app']\nstate = 'absent'\n[directory.'/srv/app/x']\n", &["path"]),
            ("[directory.'/srv/app']\nstate = 'absent'\n[directory.'/srv/app/x']\nstate = 'absent'\n", &[]),
            ("[user.app]\nstate = 'absent'\n[file.'/srv/x']\ncontent = ''\nowner = 'app'\n", &["contradiction"]),
            ("[service.ssh]\nenabled = true\nstate = 'masked'\n", &["contradiction"]),
            ("[file.'/etc/x']\nstate = 'absent'\ncontent = ''\nmode = '0600'\ntags = ['t']\n", &["absent", "absent"]),
        ],
    );
}

#[test]
fn values() {
    let user = |attributes: &str| format!("[user.app]\n{attributes}\n");
    let keys = user(&format!(
        "authorized_keys = ['{KEY}', 'ssh-ed25519 AAAA', 'hello', 'from=\"10.0.0.1, 10.0.0.2\",command=\"a b\" {KEY}', \"{KEY}\\n{KEY}\"]"
    ));
    let hash = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/";
    let hashed = user(&format!("password = {{ hash = '{hash}' }}"));
    check(
        "values",
        Some(&host()),
        &[
            (
                "[file.'etc/motd']\ncontent = ''\n[directory.'/etc/../x']\n[symlink.'/etc/x/']\ntarget = 'y'\n",
                &["path", "path", "path"],
            ),
            ("[file.'/etc/motd']\ncontent = ''\nmode = '644'\n", &["mode"]),
            ("[file.'/etc/motd']\ncontent = ''\nmode = '0888'\n", &["mode"]),
            ("[file.'/etc/motd']\n", &["content"]),
            ("[file.'/etc/motd']\ncontent = ''\nsource = 'files/motd'\n", &["content"]),
            ("[file.'/etc/motd']\nsource = 'files/mtod'\n", &["missing-file"]),
            ("[file.'/etc/motd']\nsource = '../../etc/shadow'\n", &["missing-file"]),
            ("[file.'/etc/motd']\nsource = '/etc/shadow'\n", &["missing-file"]),
            ("[file.'/etc/motd']\ntemplate = 'templates/none.j2'\n", &["missing-file"]),
            ("include = ['modules/none.toml', '../x.toml']\n", &["missing-file", "missing-file"]),
            ("[symlink.'/etc/x']\n", &["missing-key"]),
            ("[symlink.'/etc/x']\ntarget = ''\n", &["value"]),
            ("[file.'/etc/x']\ncontent = ''\nowner = '0'\ngroup = 'a b'\n", &["name", "name"]),
            ("[user.App]\n[group.'a:b']\n[package.'-x']\n[service.'a b']\n", &["name", "name", "name", "name"]),
            (&user("shell = 'bash'\nhome = '/home/../x'\ncomment = 'a:b'"), &["path", "path", "value"]),
            (&user("password = { hash = 'hunter2' }"), &["password"]),
            (&user("password = { locked = false }"), &["password"]),
            (&user("password = {}"), &["password"]),
            (&user("password = 'hunter2'"), &["type"]),
            (&hashed, &[]),
            (&keys, &["authorized-key", "authorized-key", "authorized-key"]),
            (&user("authorized_keys_exact = true"), &["missing-key"]),
            ("[package]\nnginx = { version = '1.22.*' }\n", &["value"]),
            ("[service.ssh]\n", &["no-effect"]),
            ("[file.'/etc/x']\ncontent = ''\nrestarts = ['a b']\n", &["name"]),
        ],
    );
}

#[test]
fn templates_and_conditions() {
    let file =
        |template: &str| format!("[vars]\ntoken = 'hunter2'\n[file.'/etc/x']\ntemplate = 'templates/{template}'\n");
    let when = |when: &str| format!("[file.'/etc/x']\ncontent = ''\nwhen = \"{when}\"\n");
    check(
        "templates_and_conditions",
        Some(&host()),
        &[
            (&file("ok.j2"), &[]),
            (&file("unknown.j2"), &["template"]),
            (&file("syntax.j2"), &["template"]),
            (&file("include.j2"), &["template"]),
            (&file("missing.j2"), &["template"]),
            (&file("loop.j2"), &["template"]),
            (&file("recursive.j2"), &["template"]),
            (&file("secret.j2"), &["template"]),
            (&when("facts.os == 'debian'"), &[]),
            (&when("facts.os ="), &["when"]),
            (&when("facts.oss == 'debian'"), &["when"]),
            (&when("fact.os == 'debian'"), &["when"]),
            (&when("not vars.ipv6"), &["when"]),
            (&when("facts.os"), &["when"]),
            (&when("range(10000000)|list|length > 1"), &["when"]),
            ("include = [{ path = 'modules/a.toml', when = 'nope' }]\n", &["when"]),
        ],
    );
}

#[test]
fn references_and_cycles() {
    check(
        "references_and_cycles",
        Some(&host()),
        &[
            (
                "[file.'/etc/x']\ncontent = ''\nrequires = ['package[ngnix]', 'nginx', 'pkg[nginx]']\n[package]\nnginx = {}\n",
                &["reference", "reference", "reference"],
            ),
            (
                "[file.'/etc/x']\ncontent = ''\nrequires = ['package[nginx]']\n[package]\nnginx = { when = 'false' }\n",
                &["reference"],
            ),
            ("[file.'/etc/x']\ncontent = ''\nrequires = ['file[/etc/x]']\n", &["cycle"]),
            (
                "[file.'/etc/a']\ncontent = ''\nrequires = ['file[/etc/b]']\n[file.'/etc/b']\ncontent = ''\nrequires = ['file[/etc/c]']\n\
                 [file.'/etc/c']\ncontent = ''\nrequires = ['file[/etc/a]']\n",
                &["cycle"],
            ),
            (
                "[file.'/srv/x']\ncontent = ''\nowner = 'app'\n[user.app]\nrequires = ['package[app]']\n[package]\napp = { requires = ['file[/srv/x]'] }\n",
                &["cycle"],
            ),
        ],
    );
}

#[test]
fn accounts_and_protection() {
    check(
        "accounts_and_protection",
        Some(&host()),
        &[
            ("[file.'/etc/x']\ncontent = ''\nowner = 'www-dat'\ngroup = 'nginx'\n", &["account", "account"]),
            ("[file.'/etc/x']\ncontent = ''\nowner = 'www-data'\ngroup = 12\n", &[]),
            (
                "[file.'/etc/x']\ncontent = ''\nowner = 'nginx'\nrequires = ['package[nginx]']\n[package]\nnginx = {}\n",
                &[],
            ),
            ("[user.app]\ngroup = 'none'\ngroups = ['docker']\n", &["account", "account"]),
            (
                "[user.root]\ncomment = 'x'\n[user.root2]\nuid = 0\n[group.g]\ngid = 5\n[user.daemon]\n",
                &["protected", "protected", "protected", "protected"],
            ),
            (
                "[user.games]\nstate = 'absent'\nsystem = true\n[user.nobody]\nstate = 'absent'\nsystem = true\n",
                &["protected"],
            ),
            (
                "[package]\nlibc6 = { state = 'absent' }\n'e2fsprogs:amd64' = { state = 'absent' }\nrekindle = { state = 'absent' }\n",
                &["protected", "protected", "protected"],
            ),
            ("[service.rekindle-agent]\nstate = 'stopped'\n", &["protected"]),
            ("[directory.'/']\nstate = 'absent'\n", &["protected"]),
            (
                "[file.'/var/lib/rekindle/state.db']\ncontent = 'x'\n[directory.'/run/rekindle']\n[file.'/etc/rekindle/newest-revision']\nstate = 'absent'\n",
                &["protected"; 3],
            ),
            (
                "[file.'/usr/bin/rekindle']\nstate = 'absent'\n[file.'/bin/rekindle']\ncontent = ''\n[file.'/usr/lib/systemd/system/rekindle-agent.service']\nstate = 'absent'\n[symlink.'/etc/systemd/system/rekindle-courier.service']\ntarget = '/dev/null'\n",
                &["protected"; 4],
            ),
            (
                "[file.'/etc/rekindle/agent.toml']\nstate = 'absent'\n[file.'/dev/null']\ncontent = ''\n[file.'/proc/sys/vm/swappiness']\ncontent = '1'\n[file.'/sys/power/state']\ncontent = ''\n",
                &["protected"; 4],
            ),
            (
                "[symlink.'/bin']\ntarget = '/tmp'\n[file.'/etc']\ncontent = ''\n[directory.'/usr/lib']\nstate = 'absent'\n",
                &["protected"; 3],
            ),
            (
                "[symlink.'/bin']\ntarget = 'usr/bin'\n[directory.'/root']\nmode = '0700'\n[file.'/dev/shm/x']\ncontent = ''\n[file.'/usr/lib/rekindle/drain.d/10-lb']\ncontent = ''\n[file.'/etc/rekindle/agent.toml']\ncontent = ''\n[file.'/etc/systemd/system/rekindle-agent.service.d/memory.conf']\ncontent = ''\n[file.'/usr/bin/rekindled']\ncontent = ''\n[symlink.'/etc/systemd/system/rekindle-hub.service']\ntarget = '/dev/null'\n",
                &[],
            ),
        ],
    );
}

#[test]
fn lock_outs() {
    let admin = format!("[user.ops]\ngroups = ['sudo']\nauthorized_keys = ['{KEY}']\n");
    let with_admin = |toml: &str| format!("{admin}{toml}");
    let sudoers = "[file.'/etc/sudoers']\ncontent = 'root ALL=(ALL) ALL'\n";
    let by_name =
        format!("[user.ops]\nauthorized_keys = ['{KEY}']\n[file.'/etc/sudoers']\ncontent = 'ops ALL=(ALL) ALL'\n");
    check(
        "lock_outs",
        Some(&host()),
        &[
            ("[user.root]\nsystem = true\npassword = { locked = true }\n", &["lock-out"]),
            (&with_admin("[user.root]\nsystem = true\npassword = { locked = true }\n"), &[]),
            (sudoers, &["lock-out"]),
            (&with_admin(sudoers), &[]),
            (&by_name, &[]),
            ("[file.'/etc/ssh/sshd_config']\ncontent = 'AllowUsers deploy'\n[user.deploy]\n", &["lock-out"]),
            // Touches access without taking it: a warning.
            ("[file.'/etc/ssh/sshd_config']\ncontent = 'PermitRootLogin no'\n", &["lock-out"]),
            (&with_admin("[user.ops2]\nshell = '/usr/sbin/nologin'\n"), &[]),
            // It is meant, or somebody has to keep their way in.
            (&format!("[policy]\nlock_out = 'allow'\n{sudoers}"), &[]),
            ("[policy]\nlock_out = 'yes'\n", &["unknown-value"]),
            ("[policy]\nbreak_glass = ['ops', 'Not A Name']\n[user.ops]\nstate = 'absent'\n", &["value", "lock-out"]),
        ],
    );
}

#[test]
fn what_cuts_a_host_off() {
    let firewall = "[file.'/etc/nftables.conf']\ncontent = 'flush ruleset'\n";
    let confirm = "confirm = { within = '60s', by = 'ssh' }\n";
    check(
        "what_cuts_a_host_off",
        Some(&host()),
        &[
            (firewall, &["unconfirmed"]),
            (&format!("{firewall}{confirm}"), &[]),
            (
                &format!("{firewall}[service.nftables]\nenabled = true\n[directory.'/etc/network/interfaces.d']\n"),
                &["unconfirmed"],
            ),
            (&format!("[policy]\nlock_out = 'allow'\n{firewall}"), &[]),
            ("[directory.'/etc/netplan']\npurge = true\n", &["purge"]),
            (
                "[file.'/etc/nftables.conf.bak']\ncontent = 'x'\n[file.'/etc/networks']\ncontent = 'loopback 127.0.0.0'\n",
                &[],
            ),
        ],
    );
}

#[test]
fn without_a_host_its_accounts_are_not_judged() {
    check(
        "without_a_host",
        None,
        &[
            (
                "[file.'/etc/x']\ncontent = ''\nowner = 'www-data'\ngroup = 'acme'\n[file.'/etc/y']\ncontent = ''\ngroup = 'acme'\n",
                &["account"],
            ),
            ("[user.app]\nuid = 999\n", &["protected"]),
            ("[package]\ne2fsprogs = { state = 'absent' }\n", &[]),
        ],
    );
}

#[test]
fn a_policy_without_policy_toml() {
    let diagnostics = compile(&policy(&[("x", "")]), None).expect_err("there is no policy.toml");
    assert_eq!(
        diagnostics.to_string(),
        "error[missing-file]: the policy has no `policy.toml` at its root; hint: create `policy.toml`, beginning with [policy] and a name"
    );
}

#[test]
fn secrets_stay_out_of_every_form_of_output() {
    for toml in [
        "[user.app]\npassword = { hash = 'hunter2' }\n",
        "[user.app]\npassword = 'hunter2'\n",
        "[user.app]\npassword = { hash = 'hunter2', lokced = true }\n",
        "[user.app.password]\nhash = 'hunter2'\n",
    ] {
        for diagnostic in diagnose(toml, None) {
            for text in [
                diagnostic.render(false),
                diagnostic.render(true),
                diagnostic.to_string(),
                diagnostic.to_json().to_string(),
            ] {
                assert!(!text.contains("hunter2"), "{text}");
            }
        }
    }
}
