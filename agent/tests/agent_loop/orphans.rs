//! What a policy declares no longer: told, left, given back only when the policy says so.

use std::os::unix::fs::PermissionsExt;

use rekindle::spool::Event;

use crate::policies::Policies;
use crate::support::{Host, Running, write};

fn world(policy: &str) -> (Policies, Running) {
    let mut host = Host::new();
    std::fs::create_dir_all(host.at("/etc")).unwrap();
    // What was there before any policy.
    write(&host.at("/etc/motd"), "the distribution's\n");
    std::fs::set_permissions(host.at("/etc/motd"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let policies = Policies::of(&mut host);
    let commit = policies.commit("ada", policy);
    let agent = host.start();
    in_force(&agent, &commit);
    (policies, agent)
}

fn in_force(agent: &Running, commit: &str) {
    agent.wait("the revision to converge", |status| {
        let policy = status.policy.as_ref();
        status.health.state == "converged" && policy.is_some_and(|p| p.last_good.as_deref() == Some(commit))
    });
}

fn names(agent: &Running) -> Vec<String> {
    let mut names = Vec::new();
    agent.wait("a status", |status| {
        names = status.orphans.iter().map(|orphan| orphan.resource.to_string()).collect();
        true
    });
    names
}

const ALL: &str = r#"[policy]
name = "acme"
[file."/etc/motd"]
content = "ours\n"
[file."/etc/new"]
content = "ours\n"
[directory."/etc/sub"]
[file."/etc/sub/x"]
content = "x\n"
[symlink."/etc/link"]
target = "motd"
[file."/etc/gone"]
state = "absent"
"#;

#[test]
fn what_is_left_out_is_told_and_stays_and_what_comes_back_is_no_orphan() {
    let (policies, agent) = world(ALL);
    let commit = policies.commit("bob", "[policy]\nname = \"acme\"\n[symlink.\"/etc/link\"]\ntarget = \"motd\"\n");
    in_force(&agent, &commit);
    let left = ["directory[/etc/sub]", "file[/etc/motd]", "file[/etc/new]", "file[/etc/sub/x]"];
    assert_eq!(names(&agent), left);
    assert_eq!(std::fs::read_to_string(agent.at("/etc/motd")).unwrap(), "ours\n");
    let alerts = agent.alerts();
    let alert = alerts.iter().rev().find(|alert| alert.event == Event::PolicyAccepted).unwrap();
    assert!(alert.summary.contains("it leaves out 4 resources, which stay as they are"), "{}", alert.summary);
    assert_eq!(alert.resources.len(), 4);
    let text = agent.host().cli(&["status"]).1;
    assert!(
        text.contains("orphan     file[/etc/motd] left out by ") && text.contains("(was in policy.toml:3)"),
        "{text}"
    );

    // Durable, and not told again.
    let agent = agent.stop().start();
    agent.wait("the orphans after a restart", |status| status.n_orphans == 4);
    let commit = policies.commit("bob", "[policy]\nname = \"acme\"\n[file.\"/etc/new\"]\ncontent = \"ours\\n\"\n");
    in_force(&agent, &commit);
    assert_eq!(names(&agent), ["directory[/etc/sub]", "file[/etc/motd]", "file[/etc/sub/x]", "symlink[/etc/link]"]);
}

#[test]
fn what_is_reaped_returns_to_what_was_there_before_the_policy() {
    let module = "[kernel_module.usb-storage]\nstate = \"blocked\"\n";
    let (policies, agent) = world(&format!("{ALL}{module}"));
    let blocked = agent.at("/etc/modprobe.d/60-rekindle-usb_storage.conf");
    assert!(blocked.exists());
    let id = |path: &str| agent.history().iter().filter(|entry| &*entry.resource.name == path).count();
    // A drift in between is not what was there first.
    write(&agent.at("/etc/motd"), "somebody's\n");
    agent.wait("the drift to be put back", |_| id("/etc/motd") == 2);
    write(&agent.at("/etc/kept"), "mine\n");
    let commit = policies.commit("bob", &format!("[policy]\nname = \"acme\"\norphans = \"remove\"\n{module}"));
    in_force(&agent, &commit);
    agent.wait("the orphans to go", |status| status.n_orphans == 0);
    assert_eq!(std::fs::read_to_string(agent.at("/etc/motd")).unwrap(), "the distribution's\n");
    let mode = std::fs::metadata(agent.at("/etc/motd")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    // What is declared still is no orphan's business, its file neither.
    assert!(blocked.exists());
    assert_eq!(id("usb_storage"), 1);
    let mut left: Vec<String> = std::fs::read_dir(agent.at("/etc"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.retain(|name| name != "rekindle");
    left.sort();
    assert_eq!(left, ["kept", "modprobe.d", "motd"]);
}

#[test]
fn what_cannot_be_given_back_is_left_with_the_reason() {
    let rest = "[kernel_module.usb-storage]\nstate = \"blocked\"\n";
    let (policies, agent) = world(&format!("{ALL}{rest}"));
    write(&agent.at("/etc/sub/theirs"), "not ours\n");
    std::fs::remove_dir_all(agent.settings().paths.state.join("backup")).unwrap();
    std::fs::create_dir(agent.settings().paths.state.join("backup")).unwrap();
    let commit = policies.commit("bob", "[policy]\nname = \"acme\"\norphans = \"remove\"\n");
    in_force(&agent, &commit);
    let status = agent.wait("the rest to be left", |status| {
        status.n_orphans == 3 && status.orphans.iter().all(|orphan| !orphan.note.is_empty())
    });
    let notes: Vec<String> =
        status.orphans.iter().map(|orphan| format!("{}: {}", orphan.resource, orphan.note)).collect();
    assert!(
        notes[0].starts_with("directory[/etc/sub]: cannot remove `/etc/sub`: the directory is not empty"),
        "{notes:?}"
    );
    assert_eq!(notes[1], "file[/etc/motd]: the backup of what was there before was dropped: it is left as it is");
    assert_eq!(notes[2], "kernel_module[usb_storage]: it stays as it is until the next boot, and its file is removed");
    assert!(!agent.at("/etc/modprobe.d/60-rekindle-usb_storage.conf").exists());
    assert_eq!(std::fs::read_to_string(agent.at("/etc/motd")).unwrap(), "ours\n");
}

#[test]
fn a_plan_says_what_becomes_of_what_it_leaves_out() {
    let kept = "[policy]\nname = \"acme\"\n[file.\"/etc/new\"]\ncontent = \"ours\\n\"\n";
    let more = "[symlink.\"/etc/link\"]\ntarget = \"motd\"\n[sysctl]\n\"net.ipv4.ip_forward\" = { value = 0 }\n";
    let (_policies, agent) = world(&format!("{kept}{more}"));
    let other = agent.host().beside("other");
    std::fs::create_dir_all(&other).unwrap();
    write(&other.join("policy.toml"), kept);
    let (code, plan, _) = agent.host().cli(&["plan", "--policy", other.to_str().unwrap()]);
    // To remove the file is a step.
    assert_eq!(code, Some(2), "{plan}");
    for left_out in [
        "symlink[/etc/link]  (the policy in force declares it; it stays as it is)",
        "sysctl[net.ipv4.ip_forward]  (the policy in force declares it; it stays as it is until the next boot, and its file is removed)",
    ] {
        assert!(plan.contains(left_out), "{plan}");
    }
}
