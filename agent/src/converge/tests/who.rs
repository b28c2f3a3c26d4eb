//! Who made a difference, in reports and in the history.

use super::*;
use crate::actor::{Actor, Confidence};
use crate::record::HistoryFilter;

fn anna() -> Actor {
    Actor { confidence: Confidence::Exact, pid: Some(7), command: Some("vim /f".to_owned()), ..Actor::default() }
}

fn dpkg() -> Actor {
    Actor { confidence: Confidence::Exact, pid: Some(8), exe: Some("/usr/bin/dpkg".to_owned()), ..Actor::default() }
}

fn run(world: &mut World, desired: &DesiredState, cause: Cause, mode: Mode, by: &Actor) -> RunReport {
    let seen = |_: &ResourceId| Some(by.clone());
    world.converge_with(&Request { cause, mode, seen: &seen, ..everything(desired) })
}

#[test]
fn whoever_was_seen_is_named_for_drift_that_is_repaired_or_left() {
    let desired = desired(vec![a_file("/f", "x")]);
    for mode in [Mode::Enforce, Mode::Noop] {
        let mut world = World::new();
        let report = run(&mut world, &desired, Cause::Drift, mode, &anna());
        assert_eq!(report.resources[0].who.as_deref(), Some(&anna()));
        let history = world.record.history(&HistoryFilter::default()).unwrap();
        assert_eq!(history[0].actor, Some(anna()));
        // In sync: whoever touched it made no difference.
        if mode == Mode::Enforce {
            assert_eq!(run(&mut world, &desired, Cause::Drift, mode, &anna()).resources[0].who, None);
        }
    }
}

#[test]
fn nobody_is_named_for_what_a_revision_or_a_person_asks_for() {
    let desired = desired(vec![a_file("/f", "x")]);
    for cause in [Cause::NewRevision, Cause::Operator] {
        let mut world = World::new();
        let report = run(&mut world, &desired, cause, Mode::Enforce, &anna());
        assert_eq!(outcomes(&report), ["changed file[/f]"]);
        assert_eq!(report.resources[0].who, None);
        assert_eq!(world.record.history(&HistoryFilter::default()).unwrap()[0].actor, None);
    }
}

#[test]
fn drift_of_a_package_names_the_transaction() {
    let mut world = World::new();
    world.fakes.packages.add_available("nginx", "2");
    let desired = desired(vec![a_package("nginx")]);
    world.write(
        "/var/log/apt/history.log",
        "Start-Date: 2020-01-02  03:04:05\nCommandline: apt-get remove nginx\nRequested-By: anna (1000)\n\
         Remove: nginx:amd64 (1)\nEnd-Date: 2020-01-02  03:04:06\n\n",
    );
    let report = world.converge(&desired);
    let who = report.resources[0].who.clone().unwrap();
    assert_eq!(who.to_string(), "`apt-get remove nginx` by anna (remove 1)");
    assert_eq!(world.record.history(&HistoryFilter::default()).unwrap()[0].actor.as_ref(), Some(&*who));
    // That transaction was before rekindle put it in sync: it is not what did it this time.
    world.fakes.packages.edit(|db| drop(db.packages.remove("nginx")));
    let report = world.converge(&desired);
    assert_eq!((outcomes(&report), &report.resources[0].who), (vec!["changed package[nginx]".to_owned()], &None));
}

#[test]
fn a_file_written_by_a_package_manager_names_the_transaction_under_way() {
    let desired = desired(vec![a_file("/f", "x")]);
    let running = "Start-Date: 2020-01-02  03:04:05\nCommandline: apt-get install nginx\n\
        Install: nginx:amd64 (1), nginx-common:amd64 (1, automatic)\n";
    for (by, log, expected) in [
        (dpkg(), running.to_owned(), "`apt-get install nginx` (install nginx:amd64 and 1 more)"),
        (dpkg(), format!("{running}End-Date: 2020-01-02  03:04:06\n"), "`/usr/bin/dpkg`"),
        (anna(), running.to_owned(), "`vim /f`"),
    ] {
        let mut world = World::new();
        world.write("/var/log/apt/history.log", &log);
        let report = run(&mut world, &desired, Cause::Drift, Mode::Enforce, &by);
        let who = report.resources[0].who.as_ref().unwrap();
        assert_eq!((who.to_string().as_str(), who.pid), (expected, by.pid));
    }
}
