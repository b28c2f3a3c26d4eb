//! Who did it, from the event to the history and the alert.

use rekindle::config::Mode;
use rekindle::spool::{Event, OutgoingBody};

use crate::support::{GOOD, Host, tool, write};

#[test]
fn a_drift_names_who_made_it_whether_the_guard_repairs_it_or_a_run_reports_it() {
    for (mode, outcome, event) in
        [(Mode::Enforce, "changed", Event::DriftRepaired), (Mode::Noop, "reported", Event::DriftReported)]
    {
        let mut host = Host::new();
        host.settings.mode = mode;
        let motd = host.at("/etc/motd");
        std::fs::create_dir_all(motd.parent().unwrap()).unwrap();
        write(&motd, GOOD);
        let agent = host.guard(&["/etc/motd"]);
        let status = agent.wait("the first look", |status| status.resources.in_sync == 1);
        // It stays for a while, as an editor does; the shell itself writes.
        tool("sh", &["-c", "echo evil > \"$0\"; sleep 0.3", motd.to_str().unwrap()]);
        agent.wait("the drift to be told", |_| agent.history().iter().any(|entry| entry.outcome == outcome));
        let mut told = Vec::new();
        agent.wait("an alert", |_| {
            let alerts = agent.outbox().into_iter().filter_map(|message| match message {
                OutgoingBody::Alert(alert) if alert.event == event => Some(alert),
                OutgoingBody::Alert(_) | OutgoingBody::Reimage(_) => None,
            });
            told = alerts.collect();
            !told.is_empty()
        });
        if status.watches.fanotify == 0 {
            // Where the kernel does not tell, nobody is named.
            assert!(agent.history().iter().all(|entry| entry.actor.is_none()));
            continue;
        }
        let entries = agent.history();
        let entry = entries.iter().find(|entry| entry.outcome == outcome).unwrap();
        let actor = entry.actor.as_ref().unwrap_or_else(|| panic!("{mode:?}: {entry:?}"));
        let command = actor.command.as_deref().unwrap_or_default();
        assert!(command.contains("sh -c 'echo evil > "), "{mode:?}: {actor:?}");
        assert!(actor.pid.is_some_and(|pid| pid != std::process::id()), "{mode:?}: {actor:?}");
        let [alert] = told.as_slice() else { panic!("{mode:?}: {told:?}") };
        assert_eq!(alert.resources[0].who.as_ref(), Some(actor), "{mode:?}");
        assert!(alert.summary.ends_with(&format!(", changed by {actor}")), "{mode:?}: {}", alert.summary);
    }
}
