//! The guard against real files: what each way of changing a guarded file comes to.

#![expect(clippy::disallowed_methods, reason = "tests change files as others do")]

#[path = "guard_common/attributes.rs"]
mod attributes;
mod guard_common;
#[path = "guard_common/writes.rs"]
mod writes;

use std::fs;
use std::io::{Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use guard_common::{GOOD, Sandbox, declared, id, interest, is_good};
use rekindle::guard::{Arming, Withdrawn};
use rekindle::policy::Revision;
use rekindle::resource::{Action, Notify, UnitName};

#[test]
fn case_01_a_rename_over_is_put_back_and_so_is_the_next() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    for n in 1..=5 {
        sandbox.expect_ready(1);
        fs::write(sandbox.at("/d/new"), format!("evil {n}")).unwrap();
        fs::rename(sandbox.at("/d/new"), sandbox.at("/d/t")).unwrap();
        sandbox.expect_good("/d/t");
    }
    let repairs = sandbox.expect_repairs(5);
    assert!(repairs.iter().all(|repair| repair.action == Action::Update && repair.step.is_some()));
    let history = sandbox.history();
    assert_eq!(history.len(), 5);
    for (n, entry) in (1..).zip(history) {
        assert_eq!(entry.outcome, "changed");
        assert_eq!(sandbox.kept(&entry.backup.unwrap()), format!("evil {n}").into_bytes());
    }
    assert_eq!(sandbox.hints(), None, "nothing is left to an ordinary run");
}

#[test]
fn case_02_writes_in_place_are_put_back() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    for n in 0..200 {
        sandbox.expect_ready(1);
        let mut file = fs::OpenOptions::new().write(true).open(sandbox.at("/d/t")).unwrap();
        write!(file, "evil {n}").unwrap();
        drop(file);
        sandbox.expect_good("/d/t");
    }
    assert!(is_good(&sandbox.at("/d/t")));
}

#[test]
fn case_03_a_writer_that_keeps_writing_writes_beside_the_path() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    let mut file = fs::OpenOptions::new().write(true).open(sandbox.at("/d/t")).unwrap();
    file.write_all(b"first").unwrap();
    sandbox.expect_good("/d/t");
    for n in 0..200 {
        file.rewind().unwrap();
        write!(file, "later {n}").unwrap();
        assert!(is_good(&sandbox.at("/d/t")), "what is written to the displaced inode shows at the path");
    }
}

#[test]
fn case_04_another_file_linked_into_its_place_is_put_back() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    fs::create_dir(sandbox.at("/elsewhere")).unwrap();
    fs::write(sandbox.at("/elsewhere/evil"), "evil").unwrap();
    fs::remove_file(sandbox.at("/d/t")).unwrap();
    drop(fs::hard_link(sandbox.at("/elsewhere/evil"), sandbox.at("/d/t")));
    sandbox.expect_good("/d/t");
    assert_eq!(fs::read_to_string(sandbox.at("/elsewhere/evil")).unwrap(), "evil", "the other name is left alone");
}

#[test]
fn case_05_a_symlink_in_its_place_is_put_back_and_its_target_left_alone() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    fs::write(sandbox.at("/secret"), "secret").unwrap();
    fs::set_permissions(sandbox.at("/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let before = fs::metadata(sandbox.at("/secret")).unwrap();
    symlink(sandbox.at("/secret"), sandbox.at("/d/link")).unwrap();
    fs::rename(sandbox.at("/d/link"), sandbox.at("/d/t")).unwrap();
    sandbox.expect_good("/d/t");
    let after = fs::metadata(sandbox.at("/secret")).unwrap();
    assert_eq!((before.ino(), before.ctime_nsec(), before.mode()), (after.ino(), after.ctime_nsec(), after.mode()));
    let kept = sandbox.expect_repairs(1).pop().unwrap();
    assert!(kept.changes.iter().any(|change| change.attribute == "type"), "{:?}", kept.changes);
}

#[test]
fn case_06_a_fifo_in_its_place_is_put_back_without_hanging() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    nix::unistd::mkfifo(&sandbox.at("/d/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::rename(sandbox.at("/d/fifo"), sandbox.at("/d/t")).unwrap();
    sandbox.expect_good("/d/t");
}

#[test]
fn case_06_a_directory_in_its_place_is_left_to_an_ordinary_run() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    sandbox.guard.disarm();
    fs::remove_file(sandbox.at("/d/t")).unwrap();
    fs::create_dir(sandbox.at("/d/t")).unwrap();
    fs::write(sandbox.at("/d/t/work"), "somebody's").unwrap();
    sandbox.expect_hint();
    sandbox.arm_as(vec![declared("/d/t", GOOD, &[])], 1);
    fs::set_permissions(sandbox.at("/d/t"), fs::Permissions::from_mode(0o700)).unwrap();
    sandbox.expect_hint();
    assert_eq!(fs::read_to_string(sandbox.at("/d/t/work")).unwrap(), "somebody's");
}

#[test]
fn a_removed_file_is_put_back() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    fs::remove_file(sandbox.at("/d/t")).unwrap();
    sandbox.expect_good("/d/t");
    assert_eq!(sandbox.expect_repairs(1).pop().unwrap().action, Action::Create);
}

#[test]
fn case_10_a_mode_is_put_back_on_the_same_inode() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    let before = fs::metadata(sandbox.at("/d/t")).unwrap().ino();
    fs::set_permissions(sandbox.at("/d/t"), fs::Permissions::from_mode(0o777)).unwrap();
    sandbox.expect_good("/d/t");
    assert_eq!(fs::metadata(sandbox.at("/d/t")).unwrap().ino(), before);
    let repair = sandbox.expect_repairs(1).pop().unwrap();
    assert_eq!(repair.changes.iter().map(|c| c.attribute.as_str()).collect::<Vec<_>>(), ["mode"]);
}

#[test]
fn case_12_an_edit_with_its_time_put_back_is_put_back() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    let modified = fs::metadata(sandbox.at("/d/t")).unwrap().modified().unwrap();
    let mut file = fs::OpenOptions::new().write(true).open(sandbox.at("/d/t")).unwrap();
    file.write_all(&GOOD.to_uppercase().into_bytes()).unwrap();
    file.set_modified(modified).unwrap();
    drop(file);
    sandbox.expect_good("/d/t");
}

#[test]
fn case_29_one_drift_is_one_repair_and_then_silence() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    let before = sandbox.watcher.stats().n_events;
    fs::write(sandbox.at("/d/t"), "evil").unwrap();
    sandbox.expect_repairs(1);
    sandbox.expect_good("/d/t");
    // The copy is laid out beside what is watched, so events end when the repair does.
    let after = sandbox.watcher.stats().n_events;
    assert!(after - before <= 8, "{} events for one drift", after - before);
    assert_eq!(sandbox.watcher.stats().n_events, after);
    assert_eq!(sandbox.n_repairs(), 1);
    assert_eq!(sandbox.hints(), None);
}

#[test]
fn case_32_touching_without_changing_is_no_drift() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    for _ in 0..100 {
        let file = fs::OpenOptions::new().write(true).open(sandbox.at("/d/t")).unwrap();
        file.set_modified(std::time::SystemTime::now()).unwrap();
    }
    assert_eq!(sandbox.hints(), None, "no run is asked for");
    assert_eq!(sandbox.n_repairs(), 0);
}

#[test]
fn case_39_a_poisoned_copy_is_not_used() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    sandbox.wait("all copies", || sandbox.guard.readiness().n_copies == 256);
    for entry in fs::read_dir(sandbox.stage()).unwrap() {
        let path = entry.unwrap().path();
        fs::write(&path, "poison").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    fs::write(sandbox.at("/d/t"), "evil").unwrap();
    sandbox.expect_hint();
    assert_eq!(fs::read_to_string(sandbox.at("/d/t")).unwrap(), "evil", "no poisoned copy was swapped in");
    // What an ordinary run would do; from then on there are sound copies again.
    sandbox.arm(&["/d/t"]);
    fs::write(sandbox.at("/d/t"), "evil again").unwrap();
    sandbox.expect_good("/d/t");
}

#[test]
fn case_43_a_thousand_files_at_once_are_all_put_back() {
    let paths: Vec<String> = (0..1000).map(|n| format!("/d{}/t{n}", n % 10)).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let sandbox = Sandbox::guard(&[]);
    for path in &paths {
        fs::create_dir_all(sandbox.at(path).parent().unwrap()).unwrap();
        fs::write(sandbox.at(path), format!("good {path}")).unwrap();
        fs::set_permissions(sandbox.at(path), fs::Permissions::from_mode(0o644)).unwrap();
    }
    sandbox.watcher.set_interests(paths.iter().map(|path| interest(path)).collect());
    sandbox.arm_as(paths.iter().map(|path| declared(path, &format!("good {path}"), &[])).collect(), paths.len());
    for path in &paths {
        fs::write(sandbox.at(path), "evil").unwrap();
    }
    sandbox.wait("all files to be put back", || {
        paths.iter().all(|path| fs::read_to_string(sandbox.at(path)).unwrap() == format!("good {path}"))
    });
    sandbox.expect_repairs(paths.len());
    assert_eq!(sandbox.history().len(), paths.len());
}

#[test]
fn case_46_reloads_in_a_storm_of_drift_miss_nothing_and_leak_nothing() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    let kept = || vec![interest("/d/t")];
    let more: Vec<String> = (0..1000).map(|n| format!("/more{}/t{n}", n % 50)).collect();
    for n in 0..50 {
        fs::create_dir_all(sandbox.at(&format!("/more{n}"))).unwrap();
    }
    let before = (sandbox.watcher.stats().n_watches, n_descriptors());
    for n in 0..40 {
        sandbox.watcher.set_interests(kept().into_iter().chain(more.iter().map(|path| interest(path))).collect());
        sandbox.expect_ready(1);
        fs::write(sandbox.at("/d/t"), format!("evil {n}")).unwrap();
        sandbox.watcher.set_interests(kept());
        sandbox.expect_good("/d/t");
    }
    sandbox.expect_repairs(40);
    sandbox.expect_ready(1);
    assert_eq!((sandbox.watcher.stats().n_watches, n_descriptors()), before);
    assert_eq!(sandbox.hints(), None, "nothing was left to an ordinary run");
}

/// Open descriptors of this process on this test's directories: other tests of this program run beside this one.
fn n_descriptors() -> usize {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy().contains("/more"))
        .count()
}

#[test]
fn what_is_owed_is_recorded_with_the_repair() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    let unit = UnitName::new("ssh.service").unwrap();
    sandbox.arm_as(vec![declared("/d/t", GOOD, &[(Notify::Restart, unit.clone())])], 1);
    fs::write(sandbox.at("/d/t"), "evil").unwrap();
    sandbox.expect_good("/d/t");
    sandbox.expect_repairs(1);
    let record = rekindle::record::Record::open_read_only(&sandbox.dir.path().join("state")).unwrap();
    let debts = record.debts().unwrap();
    assert_eq!(debts.iter().map(|debt| (&debt.unit, &debt.because_of)).collect::<Vec<_>>(), [(&unit, &id("/d/t"))]);
}

#[test]
fn a_disarmed_guard_leaves_everything_alone() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    let permit = sandbox.guard.permit();
    sandbox.guard.disarm();
    // What was permitted before must not be armed after.
    let stale = vec![declared("/d/t", GOOD, &[])];
    sandbox.guard.arm(permit, &rekindle::policy::Revision::new("r1"), stale, rekindle::guard::Arming::Only);
    fs::write(sandbox.at("/d/t"), "edited in a pause").unwrap();
    sandbox.expect_hint();
    sandbox.watcher.stats();
    assert_eq!(fs::read_to_string(sandbox.at("/d/t")).unwrap(), "edited in a pause");
    assert_eq!(sandbox.guard.readiness().n_guarded, 0);
}

#[test]
fn a_withdrawn_file_is_left_alone_and_the_others_are_not() {
    let sandbox = Sandbox::guard(&["/d/t", "/d/u"]);
    assert_eq!(sandbox.guard.withdraw(&id("/d/t")), Withdrawn::WasGuarded);
    assert_eq!(sandbox.guard.withdraw(&id("/d/t")), Withdrawn::WasNot);
    fs::write(sandbox.at("/d/t"), "worked on").unwrap();
    fs::write(sandbox.at("/d/u"), "evil").unwrap();
    sandbox.expect_good("/d/u");
    sandbox.expect_hint();
    assert_eq!(fs::read_to_string(sandbox.at("/d/t")).unwrap(), "worked on");
}

#[test]
fn a_file_that_drifts_again_and_again_gets_more_copies() {
    let sandbox = Sandbox::guard(&[]);
    fs::create_dir(sandbox.at("/d")).unwrap();
    fs::write(sandbox.at("/d/t"), GOOD).unwrap();
    fs::set_permissions(sandbox.at("/d/t"), fs::Permissions::from_mode(0o644)).unwrap();
    sandbox.watcher.set_interests(vec![interest("/d/t")]);
    // With so many files, each has a few copies, and room for more.
    let others = (0..199).map(|n| declared(&format!("/d/other{n}"), &format!("good {n}"), &[]));
    sandbox.arm_as(others.chain([declared("/d/t", GOOD, &[])]).collect(), 200);
    sandbox.wait("all copies", || sandbox.guard.readiness().n_copies == 200 * 5);
    let mut n = 0;
    let mut drift = || {
        n += 1;
        sandbox.expect_ready(200);
        fs::write(sandbox.at("/d/t"), format!("evil {n}")).expect("the file can be written");
        sandbox.expect_good("/d/t");
        sandbox.guard.readiness().n_copies
    };
    // A busy machine may take a pause in the middle of a burst, which is then no burst.
    sandbox.wait("more copies", || drift() > 200 * 5);
    assert_eq!(sandbox.expect_repairs(n).len(), n, "each is told once");
}

/// Changes one file again and again until a repair is told; returns after how many, and how many were told by then.
fn drift_until_told(sandbox: &Sandbox) -> (usize, usize) {
    let (mut n, mut n_told) = (0, 0);
    sandbox.wait("a repair to be told", || {
        n += 1;
        sandbox.expect_ready(1);
        fs::write(sandbox.at("/d/t"), format!("evil {n}")).expect("the file can be written");
        sandbox.expect_good("/d/t");
        n_told = sandbox.n_repairs();
        n_told > 0
    });
    assert_eq!(sandbox.expect_repairs(n).len(), n, "each is told once");
    (n, n_told)
}

#[test]
fn a_burst_that_does_not_end_is_told_all_the_same() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    let began = Instant::now();
    let (n, _) = drift_until_told(&sandbox);
    assert!(n < 1000 || began.elapsed() < Duration::from_secs(2), "the first of {n} repairs was told with the last");
}

#[test]
fn a_fight_is_told_before_it_has_gone_on_for_long() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    sandbox.guard.set_patience(3);
    // How many come until the disk has taken the first is the disk's business.
    let (_, n_told) = drift_until_told(&sandbox);
    assert!(n_told < 40, "{n_told} repairs of one file were told together");
}

#[test]
fn copies_are_limited_however_their_files_come_to_be_guarded() {
    let sandbox = Sandbox::guard(&[]);
    fs::create_dir(sandbox.at("/d")).unwrap();
    let file = |n: usize| declared(&format!("/d/{n}"), &n.to_string().repeat(1024 * 1024), &[]);
    // Eight copies of each of eight files of 1 MiB are as much as there may be.
    sandbox.arm_as((0..8).map(file).collect(), 8);
    sandbox.wait("all copies", || sandbox.guard.readiness().n_copies == 64);
    assert_eq!(sandbox.guard.withdraw(&id("/d/0")), Withdrawn::WasGuarded);
    let revision = Revision::new("r1");
    for n in [8, 0] {
        sandbox.guard.arm(sandbox.guard.permit(), &revision, vec![file(n)], Arming::Besides);
    }
    // The second order, which comes after the first, needs no copy that is not there.
    sandbox.wait("the withdrawn file to be guarded again", || sandbox.guard.readiness().n_guarded == 8);
    assert_eq!(sandbox.guard.readiness().n_copies, 64);
}

#[test]
fn a_held_file_is_left_alone_until_the_time_comes() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    sandbox.guard.hold(&id("/d/t"), Instant::now() + Duration::from_secs(3600));
    fs::write(sandbox.at("/d/t"), "fought over").unwrap();
    sandbox.expect_hint();
    assert_eq!(fs::read_to_string(sandbox.at("/d/t")).unwrap(), "fought over");
    sandbox.guard.hold(&id("/d/t"), Instant::now());
    fs::write(sandbox.at("/d/t"), "fought over again").unwrap();
    sandbox.expect_good("/d/t");
}

#[test]
fn what_a_kill_left_on_the_stage_is_kept_recorded_and_owed() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    let unit = UnitName::new("ssh.service").unwrap();
    sandbox.arm_as(vec![declared("/d/t", GOOD, &[(Notify::Restart, unit.clone())])], 1);
    // None is being written any more.
    sandbox.wait("all copies", || sandbox.guard.readiness().n_copies == 256);
    let copy = fs::read_dir(sandbox.stage()).unwrap().next().unwrap().unwrap().file_name();
    let dir = {
        let Sandbox { watcher, guard, dir, .. } = sandbox;
        drop(watcher);
        drop(guard);
        dir
    };
    // As after an exchange that nobody heard of.
    fs::write(dir.path().join("state/stage").join(&copy), "displaced").unwrap();
    let sandbox = Sandbox::new(dir);
    sandbox.arm_as(vec![declared("/d/t", GOOD, &[(Notify::Restart, unit)])], 1);
    let repairs = sandbox.expect_repairs(1);
    assert_eq!(repairs[0].resource, id("/d/t"));
    let entry = sandbox.history().pop().unwrap();
    assert_eq!(sandbox.kept(&entry.backup.unwrap()), b"displaced");
    let record = rekindle::record::Record::open_read_only(&sandbox.dir.path().join("state")).unwrap();
    assert_eq!(record.debts().unwrap().len(), 1);
    assert!(!sandbox.stage().join(&copy).exists(), "what was taken up is gone from the stage");
}
