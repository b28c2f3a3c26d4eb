//! The record itself, on a disk that fails at each operation in turn: what was there is lost nowhere, a convergence does not wait
//! for its journal, and when the disk works again nobody has to do anything.

use std::collections::BTreeMap;
use std::io;

use nix::errno::Errno;

use super::super::*;
use super::disk::{Disk, Fault, MOUNTED_ON, Made};
use super::{NEW, run, text, unmount, with_own_mounts};
use crate::record::{HistoryFilter, kept};
use crate::resource::digest;

const UNIT: &str = "one.service";
/// What became of a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Went {
    /// Nobody noticed that something failed.
    Well,
    /// It was made, and is not, or not wholly, in the journal, which was said.
    Unrecorded,
    /// It was not made, because what it would have replaced could not be kept.
    KeptBack,
}

/// A host whose state is on a disk that can fail.
struct Scene {
    disk: Disk,
    world: World,
    desired: DesiredState,
}

impl Scene {
    fn new() -> Self {
        let disk = Disk::mount();
        disk.reset_to(&[("/state.db-shm", Made::File(""))]);
        let mut world = World::new();
        let memory = world.state.path().join("memory");
        std::fs::File::create_new(&memory).unwrap();
        // What SQLite shares between processes is memory in all but name.
        run("mount", &["--bind", text(&memory), text(&disk.path().join(MOUNTED_ON))]);
        world.record = Record::open(disk.path()).unwrap().record;
        world.fakes.units.add(UNIT, "active", "enabled");
        let desired = desired(vec![a_file("/f", NEW).notifies(Notify::Restart, UNIT)]);
        assert!(world.converge(&desired).converged());
        Self { disk, world, desired }
    }

    /// How many operations on the disk something takes.
    fn count(&mut self, act: impl FnOnce(&mut Self)) -> usize {
        self.disk.fail(None);
        act(self);
        let n_operations = self.disk.n_operations();
        assert!(n_operations > 10, "it takes more than {n_operations} operations");
        n_operations
    }

    fn n_restarts(&self) -> usize {
        self.world.fakes.units.log().iter().filter(|line| line.contains("restart")).count()
    }

    /// Drift that the disk of the record fails at.
    fn check(&mut self, fault: Fault) -> Went {
        let Self { disk, world, desired } = self;
        let drift = format!("drift {fault:?}\n");
        world.write("/f", &drift);
        let n_restarts = world.fakes.units.log().len();
        disk.fail(Some(fault));
        let report = world.converge(desired);
        let failed = disk.failed();
        let trouble = world.record.take_trouble();
        disk.fail(None);
        let context = format!("{fault:?} at {failed:?}: {report:?} {trouble:?}");
        let content = world.read("/f");
        let went = match &report.resources[0].outcome {
            Outcome::Changed { .. } => {
                assert_eq!(content, NEW, "{context}");
                let kept = kept(disk.path(), &digest(drift.as_bytes())).unwrap();
                assert_eq!(kept.as_deref(), Some(drift.as_bytes()), "{context}");
                assert!(report.resources[0].step.is_some() || trouble.is_some(), "it is not in the journal: {context}");
                if trouble.is_some() { Went::Unrecorded } else { Went::Well }
            }
            Outcome::Failed { error, signature, .. } => {
                assert_eq!(signature, &format!("back up: errno {}", fault.errno), "{context}");
                assert!(error.contains(&io::Error::from_raw_os_error(fault.errno).to_string()), "{context}");
                assert_eq!(content, drift, "{context}");
                Went::KeptBack
            }
            Outcome::Unchanged | Outcome::Reported { .. } | Outcome::Indeterminate { .. } | Outcome::Skipped { .. } => {
                panic!("{context}")
            }
        };
        let again = world.converge(desired);
        assert!(again.converged(), "{again:?} after {context}");
        assert_eq!(world.record.take_trouble(), None, "after {context}");
        assert_eq!(world.read("/f"), NEW, "{context}");
        assert!(world.record.debts().unwrap().is_empty(), "{context}");
        assert!(world.fakes.units.log().len() > n_restarts, "the unit was never restarted: {context}");
        went
    }

    /// Puts aside what is remembered, and opens it again as the next process does.
    fn open(&mut self) -> Result<crate::record::Opened, crate::record::RecordError> {
        // The process before is gone.
        self.world.record = Record::volatile().unwrap();
        Record::open(self.disk.path())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.world.record = Record::volatile().unwrap();
        unmount(&self.disk.path().join(MOUNTED_ON));
    }
}

fn check_journal(errno: Errno) {
    if !with_own_mounts() {
        return;
    }
    let mut scene = Scene::new();
    let n_operations = scene.count(|scene| {
        scene.world.write("/f", "drifted\n");
        assert!(scene.world.converge(&scene.desired).converged());
    });
    let mut went = BTreeMap::new();
    for first in 1..=n_operations {
        for last in [first, usize::MAX] {
            *went.entry(scene.check(Fault { first, last, errno: errno as i32 })).or_insert(0_usize) += 1;
        }
    }
    let often = |how| went.get(&how).is_some_and(|n| *n > 3);
    assert!(often(Went::Unrecorded) && often(Went::KeptBack), "{went:?} of {n_operations} operations");
    assert!(scene.n_restarts() > n_operations);
    let n_history = scene.world.n_history();
    assert!(n_history > n_operations, "only {n_history} entries");
    let opened = scene.open().unwrap();
    assert_eq!(opened.set_aside, None);
    assert!(opened.record.history(&HistoryFilter { limit: 1, ..HistoryFilter::default() }).unwrap().len() == 1);
}

#[test]
fn a_journal_on_a_failing_disk_stops_no_repair_and_loses_no_byte() {
    check_journal(Errno::EIO);
}

#[test]
fn a_journal_on_a_read_only_disk_stops_no_repair_and_loses_no_byte() {
    check_journal(Errno::EROFS);
}

#[test]
fn a_disk_that_fails_is_not_taken_for_a_damaged_record() {
    if !with_own_mounts() {
        return;
    }
    let mut scene = Scene::new();
    scene.world.write("/f", "drifted\n");
    assert!(scene.world.converge(&scene.desired).converged());
    let n_history = scene.world.n_history();
    let n_operations = scene.count(|scene| drop(scene.open().unwrap()));
    let mut outcomes = BTreeMap::new();
    for errno in [Errno::EIO, Errno::EROFS] {
        for first in 1..=n_operations {
            for last in [first, usize::MAX] {
                let fault = Fault { first, last, errno: errno as i32 };
                scene.disk.fail(Some(fault));
                let opened = scene.open();
                let context = format!("{fault:?} at {:?}: {opened:?}", scene.disk.failed());
                *outcomes.entry(opened.is_ok()).or_insert(0_usize) += 1;
                match &opened {
                    Ok(opened) => assert_eq!(opened.set_aside, None, "{context}"),
                    Err(error) => assert!(!crate::resource::chain(error).contains("File exists"), "{context}"),
                }
                drop(opened);
                scene.disk.fail(None);
                let opened =
                    scene.open().unwrap_or_else(|error| panic!("{} after {context}", crate::resource::chain(&error)));
                assert_eq!(opened.set_aside, None, "{context}");
                let filter = HistoryFilter { limit: 10_000, ..HistoryFilter::default() };
                assert_eq!(opened.record.history(&filter).unwrap().len(), n_history, "{context}");
            }
        }
    }
    assert!(outcomes.get(&false).is_some_and(|n_refused| *n_refused > 10), "{outcomes:?}");
}
