//! Restarts and reloads that are owed.

use std::sync::atomic::Ordering;

use super::*;
use crate::record::{Intent, RunInfo};

fn world() -> World {
    let world = World::new();
    world.fakes.units.add("nginx.service", "active", "enabled");
    world
}

fn restarting(path: &str, content: &str) -> Resource {
    a_file(path, content).notifies(Notify::Restart, "nginx.service")
}

fn paid(world: &World) -> Vec<String> {
    world.fakes.units.log().into_iter().filter(|line| line.contains("restart") || line.contains("reload")).collect()
}

#[test]
fn a_change_is_paid_once_and_a_restart_supersedes_a_reload() {
    let mut world = world();
    let desired = desired(vec![
        a_file("/a", "x").notifies(Notify::Reload, "nginx.service"),
        restarting("/b", "x"),
        restarting("/c", "x"),
    ]);
    let report = world.converge(&desired);
    assert!(report.converged(), "{report:?}");
    assert_eq!(paid(&world), ["try-restart nginx.service"]);
    assert!(world.converge(&desired).converged());
    assert_eq!(paid(&world).len(), 1);
}

#[test]
fn a_stopped_unit_is_not_started() {
    let mut world = world();
    world.fakes.units.edit("nginx.service", |status| status.active_state = "inactive".to_owned());
    let report = world.converge(&desired(vec![restarting("/a", "x")]));
    assert!(report.converged(), "{report:?}");
    assert_eq!(world.fakes.units.log(), Vec::<String>::new());
}

#[test]
fn a_debt_that_cannot_be_paid_stands_until_it_can() {
    let mut world = world();
    let desired = desired(vec![restarting("/a", "x")]);
    world.fakes.units.fail_reads(true);
    let report = world.converge(&desired);
    assert_eq!(report.debts.len(), 1);
    assert!(report.debts[0].error.contains("cannot reach systemd"), "{report:?}");
    assert!(!report.converged());
    world.reopen();
    assert_eq!(world.converge(&desired).debts.len(), 1);
    world.fakes.units.fail_reads(false);
    assert!(world.converge(&desired).converged());
    assert_eq!(paid(&world), ["try-restart nginx.service"]);
    assert_eq!(world.record.debts().unwrap(), vec![]);
}

#[test]
fn a_half_built_configuration_is_not_activated() {
    let mut world = world();
    world.write("/bad/inside", "");
    let desired = desired(vec![restarting("/a", "x"), restarting("/bad", "x")]);
    let report = world.converge(&desired);
    assert_eq!(outcomes(&report), ["changed file[/a]", "failed file[/bad]"]);
    assert!(report.debts.iter().all(|debt| debt.error.contains("waits for file[/bad]")), "{report:?}");
    assert_eq!(paid(&world), Vec::<String>::new());
    // A run that looks elsewhere does not pay it either.
    let scope = Scope::Only([ResourceId::new(Kind::File, "/a")].into());
    let elsewhere = Request { scope, ..everything(&desired) };
    assert!(!world.converge_with(&elsewhere).debts.is_empty());
    assert_eq!(paid(&world), Vec::<String>::new());
    std::fs::remove_dir_all(world.path("/bad")).unwrap();
    assert!(world.converge(&desired).converged());
    assert_eq!(paid(&world), ["try-restart nginx.service"]);
}

#[test]
fn a_paused_service_is_left_running_as_it_is() {
    let mut world = world();
    let desired = desired(vec![restarting("/a", "x")]);
    let hold = |id: &ResourceId| (id.kind == Kind::Service).then(|| "paused".to_owned());
    let request = Request { hold: &hold, ..everything(&desired) };
    let report = world.converge_with(&request);
    assert_eq!(report.debts[0].error, "paused");
    assert_eq!(paid(&world), Vec::<String>::new());
}

#[test]
fn a_kill_after_the_intent_or_after_the_change_still_pays() {
    for applied in [false, true] {
        let mut world = world();
        let desired = desired(vec![restarting("/a", "x")]);
        let resource = &desired.resources()[0];
        let started = jiff::Timestamp::now();
        let mut info = RunInfo { id: None, started, revision: Revision::new("r1"), cause: Cause::Drift, full: true };
        let intent = Intent {
            resource: &resource.id,
            action: crate::resource::Action::Create,
            changes: &[],
            backup: None,
            notifies: &resource.notifies,
            who: None,
            before: &[],
            confirm: None,
            time: started,
        };
        world.record.begin_steps(&mut info, &[intent]).unwrap();
        if applied {
            world.write("/a", "x");
        } else {
            world.write("/.rekindle-0123456789abcdef.tmp", "half");
        }
        world.reopen();
        let report = world.converge(&desired);
        assert!(report.converged(), "{report:?}");
        assert_eq!(paid(&world), ["try-restart nginx.service"]);
    }
}

#[test]
fn a_stop_before_the_end_keeps_the_debt() {
    let mut world = world();
    let desired = desired(vec![restarting("/a", "x"), a_file("/b", "x")]);
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let hold = |_: &ResourceId| {
        stop.store(true, Ordering::SeqCst);
        None
    };
    let request = Request { hold: &hold, ..everything(&desired) };
    let mut context = Context { host: &mut world.host, record: &mut world.record, stop: &stop };
    let report = converge(&mut context, &request);
    assert_eq!((outcomes(&report).len(), report.interrupted, report.debts.len()), (1, true, 1));
    world.reopen();
    assert!(world.converge(&desired).converged());
    assert_eq!(paid(&world), ["try-restart nginx.service"]);
}
