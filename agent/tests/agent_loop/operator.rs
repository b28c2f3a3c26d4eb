//! What an operator asks of a running agent at the command line: why, undo, adopt, pause.

use std::os::unix::fs::PermissionsExt;

use rekindle::spool::Event;

use crate::policies::Policies;
use crate::support::{Host, Running, tool, write};

const POLICY: &str = r#"[policy]
name = "acme"

# Says who owns the host.
[file."/etc/motd"]
content = "good\n" # short
mode    = "0644"

[file."/etc/hosts.d"]
source = "files/hosts"

[directory."/etc/app"]
[file."/etc/app/conf"]
template = "conf.j2"
requires = ["file[/etc/motd]"]
"#;

fn world() -> (Policies, Running) {
    let mut host = Host::new();
    std::fs::create_dir_all(host.at("/etc")).unwrap();
    std::fs::create_dir_all(host.at("/run")).unwrap();
    let policies = Policies::of(&mut host);
    std::fs::create_dir_all(policies.directory().join("files")).unwrap();
    write(&policies.directory().join("files/hosts"), "one\n");
    write(&policies.directory().join("conf.j2"), "host {{ facts.os }}\n");
    policies.commit("ada", &POLICY.replace("short", "the first"));
    let commit = policies.commit("bob", POLICY);
    let agent = host.start();
    agent.wait("the policy to converge", |status| {
        status.health.state == "converged" && status.policy.as_ref().is_some_and(|p| p.revision == commit)
    });
    (policies, agent)
}

/// Has somebody change a file, waits until it is put back, and returns the entry's id.
#[track_caller]
fn drift(agent: &Running, path: &str, content: &str) -> String {
    let before = agent.history().last().map_or(0, |entry| entry.id);
    // At once: a file that is truncated before it is written may be put back in between.
    let other = agent.host().beside("drifted");
    write(&other, content);
    std::fs::rename(other, agent.at(path)).unwrap();
    let mut id = 0;
    agent.wait("the drift to be put back", |_| {
        let entries = agent.history();
        let found = entries.iter().find(|e| e.id > before && &*e.resource.name == path && e.outcome == "changed");
        id = found.map_or(0, |entry| entry.id);
        id != 0
    });
    id.to_string()
}

fn read(agent: &Running, path: &str) -> String {
    std::fs::read_to_string(agent.at(path)).unwrap()
}

#[test]
fn why_tells_where_by_whom_and_what_became_of_it() {
    let (_policies, agent) = world();
    drift(&agent, "/etc/motd", "bad\n");
    let text = agent.ok(&["why", "/etc/motd"]);
    for expected in [
        "file[/etc/motd]\n",
        "declared      policy.toml:5:7 of acme ",
        " by bob <bob@example.org>, ",
        "policy: Change by bob",
        "state         in sync",
        "changed after drift: content",
        "required by   file[/etc/app/conf]",
    ] {
        assert!(text.contains(expected), "no `{expected}` in:\n{text}");
    }
    // Bob touched the file, and not these declarations.
    for unchanged in ["file[/etc/hosts.d]", "/etc/app/conf"] {
        let text = agent.ok(&["why", unchanged]);
        assert!(text.contains(" by ada <ada@example.org>, "), "{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&agent.ok(&["--json", "why", "/etc/app/conf"])).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["requires"], serde_json::json!(["file[/etc/motd]", "directory[/etc/app]"]));

    let text = agent.ok(&["why", "/etc/app/other"]);
    assert!(text.contains("by no resource of acme") && text.contains("below         directory[/etc/app]"), "{text}");
    let complaint = agent.refused(1, &["why", "file[/etc/mtod]"]);
    assert!(complaint.contains("has no file[/etc/mtod]"), "{complaint}");
}

#[test]
fn what_is_undone_stays_until_its_pause_ends() {
    let (_policies, agent) = world();
    let id = drift(&agent, "/etc/motd", "bad\n");
    let text = agent.ok(&["undo", &id, "--for", "1h"]);
    assert!(text.contains(&format!("put back file[/etc/motd] as it was before #{id}")), "{text}");
    let status = agent.wait("the drift to be left", |status| status.resources.drifted == 1);
    assert_eq!(read(&agent, "/etc/motd"), "bad\n");
    let pause = &status.pauses[0];
    assert_eq!((pause.by.as_str(), pause.only.len()), ("ada", 1));
    let undone = agent.history().into_iter().find(|entry| entry.outcome == "undone").unwrap();
    assert_eq!(undone.error.as_deref(), Some(format!("undid #{id}, by ada").as_str()));

    // The same again has nothing to do, and the undoing can be undone.
    assert!(agent.ok(&["undo", &id]).contains("nothing to do"));
    agent.ok(&["undo", &undone.id.to_string()]);
    assert_eq!(read(&agent, "/etc/motd"), "good\n");

    // What is not as the step left it is nobody's to overwrite.
    write(&agent.at("/etc/motd"), "third\n");
    let complaint = agent.refused(4, &["undo", &id]);
    assert!(complaint.contains("`/etc/motd` has changed since") && complaint.contains("content"), "{complaint}");
    assert_eq!(read(&agent, "/etc/motd"), "third\n");

    agent.ok(&["resume"]);
    agent.wait("the policy to hold again", |status| status.resources.in_sync == 4 && status.pauses.is_empty());
    assert_eq!(read(&agent, "/etc/motd"), "good\n");
}

#[test]
fn undo_brings_back_owner_and_mode_and_says_why_it_cannot() {
    let (_policies, agent) = world();
    let before = agent.history().last().unwrap().id;
    std::fs::set_permissions(agent.at("/etc/motd"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut id = 0;
    agent.wait("the mode to be put back", |_| {
        id = agent.history().iter().find(|e| e.id > before && e.outcome == "changed").map_or(0, |e| e.id);
        id != 0
    });
    agent.ok(&["undo", &id.to_string()]);
    let mode = std::fs::metadata(agent.at("/etc/motd")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);

    let id = drift(&agent, "/etc/hosts.d", "drifted\n");
    for entry in std::fs::read_dir(agent.settings().paths.state.join("backup")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let complaint = agent.refused(4, &["undo", &id]);
    assert!(complaint.contains("there is no backup of what was at `/etc/hosts.d`"), "{complaint}");
    assert!(agent.refused(1, &["undo", "4711"]).contains("the history has no entry 4711"));
    // Nothing that was refused paused anything.
    agent.wait("one pause", |status| status.pauses.len() == 1);
}

#[test]
fn an_adopted_drift_is_policy_once_it_is_applied() {
    let (policies, agent) = world();
    let work = policies.directory().to_str().unwrap().to_owned();
    let motd = drift(&agent, "/etc/motd", "bad\nworse\n");
    let hosts = drift(&agent, "/etc/hosts.d", "two\n");
    for id in [&motd, &hosts] {
        let patch = agent.host().beside("patch");
        write(&patch, &agent.ok(&["adopt", id]));
        tool("git", &["-C", &work, "apply", "--index", patch.to_str().unwrap()]);
    }
    let policy = std::fs::read_to_string(policies.directory().join("policy.toml")).unwrap();
    assert!(policy.contains("# Says who owns the host.") && policy.contains("# short"), "{policy}");
    let commit = policies.commit_all("eve");
    agent.wait("the adopted policy", |status| {
        status.resources.in_sync == 4 && status.policy.as_ref().is_some_and(|p| p.revision == commit)
    });
    assert_eq!((read(&agent, "/etc/motd").as_str(), read(&agent, "/etc/hosts.d").as_str()), ("bad\nworse\n", "two\n"));
    assert!(agent.refused(4, &["adopt", &motd]).contains("declares file[/etc/motd] so already"));

    let conf = drift(&agent, "/etc/app/conf", "edited\n");
    let complaint = agent.refused(4, &["adopt", &conf]);
    assert!(complaint.contains("+edited") && complaint.contains("rendered from the template `conf.j2`"), "{complaint}");
}

#[test]
fn a_pause_is_shown_at_login_survives_a_restart_and_is_told_once() {
    let (_policies, agent) = world();
    let complaint = agent.refused(1, &["pause", "--for", "1h", "--reason", "x", "--only", "file[/etc/mtod]"]);
    assert!(complaint.contains("has no file[/etc/mtod]"), "{complaint}");
    agent.ok(&["pause", "--for", "1h", "--reason", "measuring"]);
    agent.wait("the pause", |status| status.pauses.len() == 1);
    let notice = agent.at("/run/motd.d/50-rekindle-pause");
    let text = agent.wait_for_file(&notice, |text| !text.is_empty());
    assert!(text.starts_with("rekindle does not repair everything on this host until "), "{text}");
    assert!(text.contains("ada paused it: measuring"), "{text}");
    write(&agent.at("/etc/motd"), "mine\n");
    agent.wait("the drift to be left", |status| status.resources.drifted == 1);

    let agent = agent.stop().start();
    agent.wait("the pause after a restart", |status| status.pauses.len() == 1 && status.resources.drifted == 1);
    assert_eq!(read(&agent, "/etc/motd"), "mine\n");
    agent.ok(&["resume"]);
    agent.wait("the policy to hold again", |status| status.resources.in_sync == 4);
    agent.wait("the notice to go", |_| !notice.exists());
    let count = |event| agent.alerts().iter().filter(|alert| alert.event == event).count();
    assert_eq!((count(Event::PauseStarted), count(Event::PauseEnded)), (1, 1));
}

#[test]
fn before_a_pause_ends_what_will_be_undone_is_told_with_its_diff() {
    let (_policies, agent) = world();
    // The notice goes out a tenth of its length before the end.
    agent.ok(&["pause", "--for", "10s", "--reason", "short"]);
    agent.wait("the pause", |status| status.pauses.len() == 1);
    write(&agent.at("/etc/motd"), "mine\n");
    agent.wait("the end of the pause", |status| status.pauses.is_empty() && status.resources.in_sync == 4);
    let alerts = agent.alerts();
    let expiring = alerts.iter().find(|alert| alert.event == Event::PauseExpiring).expect("it was told");
    assert!(expiring.summary.ends_with("drift in file[/etc/motd] is then undone"), "{}", expiring.summary);
    let diff = format!("{:?}", expiring.resources[0].changes);
    assert!(diff.contains("-mine") && diff.contains("+good"), "{diff}");
    let order: Vec<Event> = alerts.iter().map(|alert| alert.event).filter(|event| is_of_pauses(*event)).collect();
    assert_eq!(order, [Event::PauseStarted, Event::PauseExpiring, Event::PauseEnded]);
}

fn is_of_pauses(event: Event) -> bool {
    [Event::PauseStarted, Event::PauseExpiring, Event::PauseEnded].contains(&event)
}

#[test]
fn whoever_applies_another_policy_is_told_of_the_agent() {
    let (policies, agent) = world();
    let other = agent.host().beside("other");
    std::fs::create_dir(&other).unwrap();
    write(&other.join("policy.toml"), "[policy]\nname = 'acme'\n[file.'/etc/motd']\ncontent = 'other'\n");
    let apply = |policy: &std::path::Path| agent.host().cli(&["apply", "--policy", policy.to_str().unwrap()]);
    let (code, _, complaint) = apply(&other);
    assert_eq!(code, Some(0), "{complaint}");
    assert!(complaint.starts_with("warning: the agent runs and has revision"), "{complaint}");
    let host = agent.stop();
    let (code, _, complaint) = host.cli(&["apply", "--policy", policies.directory().to_str().unwrap()]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
}
