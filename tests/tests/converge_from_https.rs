//! A policy in a git repository behind a real https server becomes the state of the host: fetched by the courier, verified
//! and converged by the agent.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Context, Result, ensure};
use rekindle_tests::TestPackage;
use rekindle_tests::product::{AGENT, COURIER, Estate, PATIENCE, Settings, event};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBk6OXwUt8V2Xb5Hk7KzV0l2ZC1qN6nQ0kq2VnTtT1xE deploy@example.org";

const POLICY: &str = r#"
include = ["modules/base.toml", { path = "modules/web.toml", when = "'web' in roles" }]

[policy]
name = "servers"

[vars]
greeting = "Kept by rekindle"
"#;

const BASE: &str = r#"
[directory."/etc/app"]
mode = "0750"
group = "deploy"

[file."/etc/app/plain.conf"]
content = "answer = 42\n"
mode = "0640"
owner = "deploy"
group = "deploy"

[file."/etc/app/motd"]
template = "templates/motd.j2"

[file."/etc/app/copied"]
source = "files/copied"

[symlink."/etc/app/current"]
target = "/etc/app/plain.conf"

[file."/etc/app/gone"]
state = "absent"

[group.deploy]
gid = 2001

[user.deploy]
uid = 2001
group = "deploy"
groups = ["adm"]
shell = "/bin/bash"
home = "/home/deploy"
password = { locked = true }
authorized_keys = ["AUTHORIZED KEY"]
"#;

const WEB: &str = r#"
[package]
rk-hello = {}

[file."/etc/rk-hello.conf"]
content = "first\n"
restarts = ["rk-hello"]

[service.rk-hello]
enabled = true
state = "running"
requires = ["package[rk-hello]"]
"#;

#[test]
fn a_policy_served_over_https_becomes_the_state_of_the_host() -> Result<()> {
    let estate = Estate::new()?;
    let machine = &estate.machine;
    estate.apt.add(&TestPackage::with_service("rk-hello", "1.0"))?;
    estate.apt.publish_to(machine)?;
    machine.sh("mkdir /etc/app && echo stale > /etc/app/gone")?;

    let git = &estate.git;
    git.write("policy.toml", POLICY)?;
    git.write("modules/base.toml", &BASE.replace("AUTHORIZED KEY", KEY))?;
    git.write("modules/web.toml", WEB)?;
    git.write("templates/motd.j2", "{{ vars.greeting }}, {{ facts.hostname }}\n")?;
    git.write("files/copied", "copied as it is: {{ no template }}\n")?;
    let first = git.commit("Declare the servers", rekindle_tests::Signature::Trusted)?;

    estate.configure(&Settings { top: "roles = [\"web\"]".to_owned(), ..Settings::default() })?;
    estate.start()?;
    let status = estate.wait_converged(&first)?;
    ensure!(status["policy"]["signer"].as_str().is_some_and(|signer| signer.contains("trusted@")), "{status:#}");
    ensure!(status["resources"]["failed"] == 0 && status["resources"]["indeterminate"] == 0, "{status:#}");

    // Files, with owners and modes.
    ensure!(machine.read("/etc/app/plain.conf")? == "answer = 42\n");
    let plain = std::fs::metadata(machine.path("/etc/app/plain.conf"))?;
    ensure!((plain.uid(), plain.gid(), plain.mode() & 0o7777) == (2001, 2001, 0o640), "{plain:?}");
    ensure!(machine.read("/etc/app/motd")? == format!("Kept by rekindle, {}\n", machine.name()));
    ensure!(machine.read("/etc/app/copied")? == "copied as it is: {{ no template }}\n");
    ensure!(machine.sh("readlink /etc/app/current")? == "/etc/app/plain.conf\n");
    ensure!(!machine.path("/etc/app/gone").exists());
    let dir = std::fs::metadata(machine.path("/etc/app"))?;
    ensure!(dir.is_dir() && dir.gid() == 2001 && dir.permissions().mode() & 0o7777 == 0o750, "{dir:?}");

    // The user, as the host sees it.
    ensure!(machine.sh("getent passwd deploy | cut -d: -f1,3,4,6,7")? == "deploy:2001:2001:/home/deploy:/bin/bash\n");
    ensure!(machine.sh("id -nG deploy")?.split_whitespace().any(|group| group == "adm"));
    ensure!(machine.sh("getent shadow deploy | cut -d: -f2")?.starts_with('!'), "the password is not locked");
    ensure!(machine.read("/home/deploy/.ssh/authorized_keys")?.lines().any(|line| line == KEY));
    let keys = machine.sh("stat -c '%U %a' /home/deploy /home/deploy/.ssh /home/deploy/.ssh/authorized_keys")?;
    for line in keys.lines() {
        let (owner, mode) = line.split_once(' ').context("owner and mode")?;
        ensure!(owner == "deploy" && u32::from_str_radix(mode, 8)? & 0o022 == 0, "sshd would refuse this: {keys}");
    }

    // The package and its service.
    ensure!(machine.sh("dpkg-query -W -f '${db:Status-Abbrev} ${Version}' rk-hello")? == "ii  1.0");
    ensure!(machine.is_active("rk-hello")?);
    ensure!(machine.sh("systemctl is-enabled rk-hello")?.trim() == "enabled");

    let accepted = estate.receiver.wait_for("the alert about the new policy", PATIENCE, |message| {
        event(&message.body) == "policy.accepted" && message.body.to_string().contains(&first)
    })?;
    ensure!(accepted.verified == Ok(()), "{accepted:?}");
    ensure!(machine.is_active(AGENT)? && machine.is_active(COURIER)?);

    // There is nothing to do any more, and a plan says so.
    estate.rekindle(&["plan"])?.expect_code(0)?;

    // A new revision restarts what it says, once.
    let before = machine.main_pid("rk-hello.service")?.context("rk-hello runs")?;
    git.write("modules/web.toml", &WEB.replace("first", "second"))?;
    let second = estate.push("Say something else")?;
    estate.wait_converged(&second)?;
    ensure!(machine.read("/etc/rk-hello.conf")? == "second\n");
    let after = machine.main_pid("rk-hello.service")?.context("rk-hello runs again")?;
    ensure!(before != after, "rk-hello was not restarted");
    let history = estate.history()?;
    ensure!(history.iter().all(|entry| entry.cause == "new_revision" && entry.outcome == "changed"), "{history:#?}");
    ensure!(
        history.iter().filter(|entry| entry.resource == "file[/etc/rk-hello.conf]").count() == 2,
        "created once and changed once: {history:#?}"
    );
    ensure!(
        !estate.receiver.messages().iter().any(|message| event(&message.body) == "drift.repaired"),
        "what a revision changes is no drift"
    );
    Ok(())
}
