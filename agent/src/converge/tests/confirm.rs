//! Changes that have to be confirmed: armed before they are made, put back whole.

use std::time::Duration;

use super::*;
use crate::converge::confirm::{self, Known};
use crate::record::Confirmation;
use crate::resource::{Confirm, Notes, Proof};

fn world() -> World {
    let world = World::new();
    world.fakes.units.add("ssh.service", "active", "enabled");
    world.write("/sshd_config", "old\n");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(world.path("/sshd_config"), std::fs::Permissions::from_mode(0o600)).unwrap();
    world
}

fn confirmed(mut resource: Resource) -> Resource {
    let confirm = Confirm { within: Duration::from_secs(60), by: Proof::Command(vec!["/bin/false".to_owned()]) };
    resource.notes = Some(Box::new(Notes { confirm: Some(confirm), ..Notes::default() }));
    resource
}

fn sshd() -> DesiredState {
    desired(vec![confirmed(a_file("/sshd_config", "new\n").notifies(Notify::Restart, "ssh.service"))])
}

fn converge_for(world: &mut World, desired: &DesiredState, cause: Cause) -> RunReport {
    world.converge_with(&Request {
        desired,
        scope: Scope::Everything,
        cause,
        mode: Mode::Enforce,
        hold: &hold_nothing,
        claim: &crate::converge::claim_from_nobody,
        seen: &crate::converge::nobody_seen,
    })
}

fn waiting(world: &World) -> Vec<Confirmation> {
    world.record.confirmations().unwrap()
}

fn put_back(world: &mut World, one: &Confirmation) {
    confirm::put_back(&mut world.host, &mut world.record, world.state.path(), one, "no proof came").unwrap();
}

#[test]
fn what_is_not_confirmed_comes_back_with_its_mode_and_its_service_is_restarted_again() {
    let mut world = world();
    let report = converge_for(&mut world, &sshd(), Cause::NewRevision);
    assert!(report.converged(), "{report:?}");
    let [one] = &waiting(&world)[..] else { panic!("{:?}", waiting(&world)) };
    assert!(one.until.is_some_and(|until| until > one.armed));
    assert!(!confirm::is_proven(&world.host, one, Known::default()));
    put_back(&mut world, one);
    assert_eq!((world.read("/sshd_config").as_str(), world.mode("/sshd_config")), ("old\n", 0o600));
    assert_eq!(world.fakes.units.log(), ["try-restart ssh.service", "try-restart ssh.service"]);
    assert_eq!(waiting(&world), []);
    let never = world.record.never_confirmed(&Revision::new("r1")).unwrap();
    assert_eq!(never, [(one.resource.clone(), "no proof came".to_owned())]);
    let entries = world.record.history(&crate::record::HistoryFilter::default()).unwrap();
    assert_eq!(entries[0].outcome, "undone");
    // Another revision starts anew.
    world.record.forget_never_confirmed(&Revision::new("r2")).unwrap();
    assert_eq!(world.record.never_confirmed(&Revision::new("r1")).unwrap(), []);
}

#[test]
fn a_service_that_fell_with_the_change_is_started_again() {
    let mut world = world();
    converge_for(&mut world, &sshd(), Cause::NewRevision).converged();
    world.fakes.units.edit("ssh.service", |status| status.active_state = "failed".to_owned());
    let one = waiting(&world).remove(0);
    put_back(&mut world, &one);
    assert!(
        world.fakes.units.log().ends_with(&["reset-failed ssh.service".to_owned(), "start ssh.service".to_owned()])
    );
}

#[test]
fn a_kill_at_any_moment_of_the_step_leaves_something_armed() {
    let mut world = world();
    let desired = sshd();
    // The step is announced; the file may or may not have been replaced.
    let resource = desired.resources().first().unwrap();
    let before = crate::resource::stood::look_at_places(&world.host.root, resource);
    world.record.keep(b"old\n").unwrap();
    let mut info = crate::record::RunInfo {
        id: None,
        started: jiff::Timestamp::now(),
        revision: Revision::new("r1"),
        cause: Cause::NewRevision,
        full: true,
    };
    let intent = crate::record::Intent {
        resource: &resource.id,
        action: crate::resource::Action::Update,
        changes: &[],
        backup: None,
        notifies: &resource.notifies,
        who: None,
        before: &before,
        confirm: resource.confirm().map(|confirm| crate::record::Arming { confirm, unit: None }),
        time: jiff::Timestamp::now(),
    };
    world.record.begin_steps(&mut info, &[intent]).unwrap();
    for content in ["old\n", "new\n"] {
        world.write("/sshd_config", content);
        world.reopen();
        let one = waiting(&world).remove(0);
        assert_eq!(one.until, None);
        confirm::put_back(&mut world.host, &mut world.record, world.state.path(), &one, "killed").unwrap();
        assert_eq!(world.read("/sshd_config"), "old\n");
        assert_eq!(waiting(&world), []);
        // For the second round, as if the kill had come before that was recorded.
        world.record.rearm(one.step).unwrap();
    }
}

#[test]
fn a_repair_needs_no_proof_and_what_could_not_be_put_back_is_not_done() {
    let mut world = world();
    assert!(converge_for(&mut world, &sshd(), Cause::Drift).converged());
    assert_eq!(waiting(&world), []);

    let fifo = desired(vec![confirmed(a_file("/fifo", "x"))]);
    nix::unistd::mkfifo(&world.path("/fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let report = converge_for(&mut world, &fifo, Cause::NewRevision);
    let (error, _) = error_of(&report, 0);
    assert!(error.ends_with("there is a special file at `/fifo`, which cannot be kept"), "{error}");
    assert!(std::fs::symlink_metadata(world.path("/fifo")).is_ok_and(|m| !m.is_file()));
}

#[test]
fn a_unit_returns_to_what_it_did() {
    let mut world = world();
    let stopped = a_service("ssh", Some(service::Enablement::Disabled), Some(service::RunState::Stopped));
    assert!(converge_for(&mut world, &desired(vec![confirmed(stopped)]), Cause::NewRevision).converged());
    let one = waiting(&world).remove(0);
    put_back(&mut world, &one);
    let status = world.host.units.status(&UnitName::new("ssh.service").unwrap()).unwrap();
    assert_eq!((status.active_state.as_str(), status.unit_file_state.as_str()), ("active", "enabled"));
}

#[test]
fn a_record_in_memory_arms_nothing() {
    let mut world = world();
    world.record = Record::stand_in(world.state.path()).unwrap();
    let report = converge_for(&mut world, &sshd(), Cause::NewRevision);
    let Outcome::Failed { error, .. } = &report.resources[0].outcome else { panic!("{report:?}") };
    assert!(error.ends_with("what is recorded now would not survive a kill"), "{error}");
    assert_eq!(world.read("/sshd_config"), "old\n");
}
