//! Somebody else enforces something else.

use std::path::PathBuf;
use std::time::Duration;

use rekindle::spool::{Event, OutgoingBody, ReimageCall};

use crate::support::{GOOD, Host, pause, tool, write};

/// SHA-256 of `good` and `evil`, each with a newline, as far as it is shown.
const SHOWN: (&str, &str) = ("sha256 106675dc1490…", "sha256 886b67480dbe…");

/// Ends the other side when the test ends, also by a panic.
struct Stopped(PathBuf);

impl Drop for Stopped {
    fn drop(&mut self) {
        write(&self.0, "");
    }
}

#[test]
fn case_31_a_second_enforcer_is_named_with_both_values_and_after_a_while_a_reimage_is_asked_for() {
    let mut host = Host::new().with_endpoint();
    let health = &mut host.settings.health;
    (health.flapping_repairs, health.flapping_within) = (10, Duration::from_secs(600));
    health.flapping_for = Duration::from_secs(3);
    let agent = host.guard(&["/etc/motd", "/etc/issue"]);
    let motd = agent.at("/etc/motd");
    let stop = agent.at("/stop");
    std::thread::scope(|scope| {
        let _stopped = Stopped(stop.clone());
        // Another process, or the kernel would rightly say that the agent did it.
        scope.spawn(|| {
            let script = "while [ ! -e \"$1\" ]; do echo evil > \"$0\"; sleep 0.02; done";
            tool("sh", &["-c", script, motd.to_str().unwrap(), stop.to_str().unwrap()]);
        });
        let status = agent.wait("the fight to be noticed", |status| !status.contested.is_empty());
        let [fight] = status.contested.as_slice() else { panic!("{status:#?}") };
        assert_eq!(fight.resource.to_string(), "file[/etc/motd]");
        let (wanted, found) = SHOWN;
        let expected = format!("the policy wants {wanted}, it keeps coming back as {found}");
        assert!(fight.summary.ends_with(&expected), "{}", fight.summary);
        if status.watches.fanotify > 0 {
            // The shell stays, so it is known whenever it is looked at in time; it is never anybody else.
            let times = fight.actors.values().sum::<u32>();
            assert!(times * 2 > fight.n_repairs, "{:?} of {}", fight.actors, fight.n_repairs);
            assert_eq!(fight.actors.len(), 1, "{:?}", fight.actors);
        }
        let status = agent.wait("a request", |status| status.health.request.is_some());
        assert_eq!(status.health.state, "requested");
        // Ten are free in ten minutes; then 1, 2, 4 s, so the few seconds until now allow for few more.
        assert!(status.n_repairs <= 10 + 5, "{} repairs", status.n_repairs);
    });
    let (mut contested, mut asked) = (Vec::new(), Vec::new());
    for message in agent.outbox() {
        match message {
            OutgoingBody::Alert(alert) if alert.event == Event::DriftContested => contested.push(alert.summary),
            OutgoingBody::Reimage(ReimageCall::Request { reason, summary, .. }) => asked.push((reason, summary)),
            OutgoingBody::Alert(_) | OutgoingBody::Reimage(_) => {}
        }
    }
    assert_eq!(contested.len(), 1, "told once: {contested:?}");
    assert!(contested[0].starts_with("file[/etc/motd] is fought over"), "{contested:?}");
    assert!(matches!(asked.as_slice(), [(reason, _)] if reason == "flapping"), "{asked:?}");
    let history = agent.history();
    assert_eq!(history.iter().filter(|entry| entry.outcome == "contested").count(), 1);
    // The other side has stopped: it is put back when its time has come, and for good.
    agent.wait_for_file(&agent.at("/etc/motd"), |text| text == GOOD);
}

#[test]
fn a_storm_of_drift_is_repaired_and_told_of_once() {
    let names: Vec<String> = (0..300).map(|number| format!("/etc/many/{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let host = Host::new();
    std::fs::create_dir_all(host.at("/etc/many")).unwrap();
    for name in &names {
        write(&host.at(name), GOOD);
    }
    let agent = host.guard(&names);
    // However slow the machine is: drift goes on until there is too much of it.
    let mut next = names.iter().cycle();
    let status = agent.wait("the storm", |status| {
        for name in next.by_ref().take(20) {
            write(&agent.at(name), "evil\n");
        }
        status.storm_since.is_some()
    });
    assert!(status.n_repairs > 400, "{}", status.n_repairs);
    for name in &names {
        agent.wait_for_file(&agent.at(name), |text| text == GOOD);
    }
    let status = agent.wait("everything in sync", |status| status.resources.in_sync == names.len());
    assert!(status.contested.is_empty(), "each was changed a few times: {:?}", status.contested);
    let told = agent
        .outbox()
        .into_iter()
        .filter(|message| matches!(message, OutgoingBody::Alert(alert) if alert.event == Event::DriftStorm));
    assert_eq!(told.count(), 1);
}

#[test]
fn case_32_a_continuous_toucher_causes_no_repair() {
    let agent = Host::new().guard(&["/etc/motd"]);
    let before = agent.wait("the first state", |status| status.resources.in_sync == 1).n_repairs;
    let motd = std::fs::File::options().append(true).open(agent.at("/etc/motd")).unwrap();
    for _ in 0..500 {
        motd.set_modified(std::time::SystemTime::now()).unwrap();
        pause(Duration::from_millis(5));
    }
    // Every touch has been looked at once drift that came later has been put right.
    write(&agent.at("/etc/motd"), "evil\n");
    let status = agent.wait("the drift to be repaired", |status| status.n_repairs > before);
    assert_eq!(status.n_repairs, before + 1);
    assert!(status.contested.is_empty() && status.storm_since.is_none());
    assert_eq!(agent.history().iter().filter(|entry| entry.outcome == "changed").count(), 2, "{:?}", agent.history());
}
