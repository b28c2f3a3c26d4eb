//! Changes that have to be confirmed, in the whole agent: proofs of each kind, none, a stop and a kill in between.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rekindle::spool::{CourierState, Event, ReceiverState, Spool};

use crate::policies::Policies;
use crate::support::{Host, Running, pause, write};

fn policy(content: &str, confirm: &str) -> String {
    format!(
        "[policy]\nname = \"acme\"\n[file.\"/etc/sshd_config\"]\ncontent = \"{content}\\n\"\nmode = \"0600\"\n{confirm}\n"
    )
}

/// A host on which a first revision has converged.
fn world() -> (Policies, Running, String) {
    let mut host = Host::new();
    std::fs::create_dir_all(host.at("/etc")).unwrap();
    let policies = Policies::of(&mut host);
    let good = policies.commit("ada", &policy("old", ""));
    let agent = host.start();
    is_last_good(&agent, &good);
    (policies, agent, good)
}

fn is_last_good(agent: &Running, commit: &str) {
    agent.wait("the revision to be the last good one", |status| {
        status.policy.as_ref().is_some_and(|policy| policy.last_good.as_deref() == Some(commit))
    });
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn each_proof_confirms_and_only_then_is_the_revision_good() {
    let (policies, agent, _) = world();
    let marker = agent.host().beside("proof");
    let command = format!("confirm = {{ within = \"50s\", by = [\"/usr/bin/test\", \"-e\", {marker:?}] }}");
    let ssh = "confirm = { within = \"50s\", by = \"ssh\" }".to_owned();
    let endpoint = "confirm = { within = \"50s\", by = \"endpoint\" }".to_owned();
    for (content, confirm) in [("one", command), ("two", ssh), ("three", endpoint)] {
        let commit = policies.commit("bob", &policy(content, &confirm));
        let status = agent.wait("it to wait for its proof", |status| !status.confirmations.is_empty());
        assert_eq!(read(&agent.at("/etc/sshd_config")), format!("{content}\n"));
        let policy = status.policy.unwrap();
        assert!(policy.revision == commit && policy.last_good.as_deref() != Some(&commit), "{policy:?}");
        let text = agent.host().cli(&["status"]).1;
        assert!(text.contains("confirm    file[/etc/sshd_config] waits until "), "{text}");
        match content {
            "one" => write(&marker, ""),
            "two" => {
                let sessions = agent.at("/run/systemd/sessions");
                std::fs::create_dir_all(&sessions).unwrap();
                let at = Timestamp::now().as_microsecond() + 1;
                let text = format!("SERVICE=sshd\nREMOTE=1\nREMOTE_HOST=192.0.2.1\nCLASS=user\nREALTIME={at}\n");
                write(&sessions.join("7"), &text);
            }
            _ => {
                let now = Timestamp::now() + jiff::SignedDuration::from_millis(1);
                let endpoint =
                    ReceiverState { name: "endpoint".into(), delivered: Some(now), error: None, retry_at: None };
                let receivers = vec![endpoint];
                let state =
                    CourierState { version: 1, at: now, queued: 0, receivers, host_id: None, incarnation: None };
                Spool::open(&agent.settings().paths.inbox()).unwrap().write_slot(&state).unwrap();
            }
        }
        is_last_good(&agent, &commit);
        let history = agent.history();
        assert!(history.iter().rev().any(|entry| entry.outcome == "confirmed"), "{history:?}");
    }
}

#[test]
fn without_a_proof_the_change_is_put_back_and_the_revision_backed_out() {
    let (policies, agent, good) = world();
    let confirm = "confirm = { within = \"1s\", by = \"ssh\" }";
    let bad = policies.commit("bob", &policy("locked out", confirm));
    agent.wait("the last good revision", |status| {
        status.health.state == "on_last_good" && status.policy.as_ref().is_some_and(|p| p.revision == good)
    });
    agent.wait("everything in sync", |status| status.resources.in_sync == 1 && status.confirmations.is_empty());
    assert_eq!(read(&agent.at("/etc/sshd_config")), "old\n");
    let alerts = agent.alerts();
    let alert = alerts.iter().find(|alert| alert.event == Event::PolicyRolledBack).expect("it was told");
    for part in [&bad[..12], &good[..12], "file[/etc/sshd_config] was put back", "did not come within 1 s"] {
        assert!(alert.summary.contains(part), "no `{part}` in {}", alert.summary);
    }
    // It is not taken up again.
    let agent = agent.stop().start();
    agent.wait("the last good revision after a restart", |status| {
        status.policy.as_ref().is_some_and(|p| p.revision == good) && status.resources.in_sync == 1
    });
    assert_eq!(read(&agent.at("/etc/sshd_config")), "old\n");
}

#[test]
fn with_nothing_to_go_back_to_the_resource_is_left_as_it_was() {
    let mut host = Host::new();
    std::fs::create_dir_all(host.at("/etc")).unwrap();
    write(&host.at("/etc/sshd_config"), "the distribution's\n");
    let policies = Policies::of(&mut host);
    policies.commit("ada", &policy("ours", "confirm = { within = \"1s\", by = \"ssh\" }"));
    let agent = host.start();
    let status = agent.wait("it to be put back and left", |status| {
        status.out_of_sync.values().any(|why| why.contains("put back, because a new login over ssh did not come"))
    });
    assert_eq!(status.policy.unwrap().last_good, None);
    assert_eq!(read(&agent.at("/etc/sshd_config")), "the distribution's\n");
}

#[test]
fn a_stop_in_the_time_for_the_proof_puts_it_back_at_the_next_start() {
    let (policies, agent, good) = world();
    policies.commit("bob", &policy("new", "confirm = { within = \"1h\", by = \"ssh\" }"));
    agent.wait("it to wait for its proof", |status| !status.confirmations.is_empty());
    let agent = agent.stop().start();
    agent.wait("the last good revision", |status| {
        status.policy.as_ref().is_some_and(|p| p.revision == good) && status.resources.in_sync == 1
    });
    assert_eq!(read(&agent.at("/etc/sshd_config")), "old\n");
}

#[test]
fn a_kill_in_the_time_for_the_proof_puts_it_back_at_the_next_start() {
    let mut host = Host::new();
    std::fs::create_dir_all(host.at("/etc")).unwrap();
    let policies = Policies::of(&mut host);
    let good = policies.commit("ada", &policy("old", ""));
    let mut agent = spawn(&host);
    let status = |host: &Host| -> serde_json::Value {
        serde_json::from_str(&host.cli(&["--json", "status"]).1).unwrap_or_default()
    };
    let wait = |host: &Host, what: &str, enough: &dyn Fn(&serde_json::Value) -> bool| {
        let ends = std::time::Instant::now() + Duration::from_secs(60);
        while !enough(&status(host)) {
            assert!(std::time::Instant::now() < ends, "waited in vain for {what}: {:#}", status(host));
            pause(Duration::from_millis(20));
        }
    };
    wait(&host, "the first revision", &|status| status["policy"]["last_good"] == good.as_str());
    policies.commit("bob", &policy("new", "confirm = { within = \"1h\", by = \"ssh\" }"));
    wait(&host, "it to wait for its proof", &|status| {
        status["confirmations"].as_array().is_some_and(|c| !c.is_empty())
    });
    assert_eq!(read(&host.at("/etc/sshd_config")), "new\n");
    agent.kill().unwrap();
    agent.wait().unwrap();
    let mut agent = spawn(&host);
    wait(&host, "the last good revision", &|status| {
        status["policy"]["revision"] == good.as_str() && status["resources"]["in_sync"] == 1
    });
    assert_eq!(read(&host.at("/etc/sshd_config")), "old\n");
    agent.kill().unwrap();
    agent.wait().unwrap();
}

/// The program itself as the agent of a host, so that it can be killed.
#[expect(clippy::disallowed_methods, reason = "it has to be killed, which ends a child of the test and nothing else")]
fn spawn(host: &Host) -> std::process::Child {
    let config: PathBuf = host.configure();
    std::process::Command::new(env!("CARGO_BIN_EXE_rekindle"))
        .args(["--config", config.to_str().unwrap(), "agent"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}
