//! Case 38: the power goes at any moment of a repair. Afterwards a declared path has what it had or what is declared: never
//! nothing, never a part, never a mixture; and once a repair was reported, it has what is declared.
//!
//! Needs root, loop devices and FUSE. Shown for ext4 and xfs, on a disk that writes blocks of 4 KiB whole and may keep any of
//! those that were not flushed; a disk that lies about flushes, or writes half a block, is not shown.

#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test plays the foreign writer")]

#[expect(dead_code, reason = "shared with other test programs")]
mod guard_common;
mod power_cut_disk;

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guard_common::{Sandbox, declared};
use power_cut_disk::{Chance, Disk, run};
use rekindle::host::root::{Permissions, Root};
use rekindle::resource::{AbsPath, Mode};

/// How a file system is made, mounted, and mounted again after a cut.
struct Kind {
    make: &'static [&'static str],
    megabytes: u64,
    options: &'static str,
}

const EXT4: Kind = Kind {
    // Nothing that is done in the background later.
    make: &["mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    megabytes: 32,
    options: "noatime",
};
/// Without the heuristics that save those who forget to sync.
const EXT4_STRICT: Kind = Kind { options: "noatime,noauto_da_alloc", ..EXT4 };
const XFS: Kind = Kind { make: &["mkfs.xfs", "-q"], megabytes: 320, options: "noatime" };

/// Most cuts for one test: each mounts a file system.
const MOST_CUTS: usize = 100;
const N_REPAIRS: usize = 6;

/// Held by the test that runs: a program that another one starts would hold what this one has open until it is executed, and so
/// keep it from unmounting.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// `None` when the test may not go on; what it mounts, nobody else sees.
fn with_own_mounts() -> Option<MutexGuard<'static, ()>> {
    let is_root = rekindle::host::current_ids().0 == 0;
    assert!(is_root || std::env::var_os("CI").is_none(), "this test needs root");
    if !is_root {
        eprintln!("not run: it needs root");
        return None;
    }
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    run(&["mount", "--make-rprivate", "/"]);
    Some(alone)
}

/// One repair: which events were its own, and what was there before.
struct Repair {
    events: Range<usize>,
    old: String,
}

/// Cuts the power at many moments of the repairs, and returns what was at `path` when it was neither old nor new.
fn cut_power(disk: &Disk, kind: &Kind, repairs: &[Repair], path: &str, new: &str, seed: u64) -> Vec<String> {
    let mut chance = Chance(seed);
    let mut cuts = Vec::new();
    for (index, repair) in repairs.iter().enumerate() {
        assert!(repair.events.len() > 2, "a repair that wrote nothing");
        cuts.extend(disk.cuts(repair.events.clone(), &mut chance).into_iter().map(|cut| (index, cut)));
    }
    let n_possible = cuts.len();
    let cuts = chance.sample(cuts, MOST_CUTS);
    let (mut n_old, mut n_new, mut wrong) = (0, 0, Vec::new());
    for (index, cut) in &cuts {
        let repair = &repairs[*index];
        let found = disk.after(cut, kind.options, |mount| fs::read_to_string(mount.join(path)));
        let is_reported = cut.at == repair.events.end;
        match found {
            Ok(content) if content == new => n_new += 1,
            Ok(content) if content == repair.old && !is_reported => n_old += 1,
            Ok(content) => wrong.push(format!("{} bytes {:.40?} after {cut:?}", content.len(), content)),
            Err(e) => wrong.push(format!("{e} after {cut:?}")),
        }
    }
    println!("{} of {n_possible} cuts: {n_old} old, {n_new} new, {} wrong", cuts.len(), wrong.len());
    assert!(!wrong.is_empty() || n_old > 0 && n_new > 0, "cuts before and after the moment: {n_old} and {n_new}");
    wrong
}

fn content(word: &str, n: usize) -> String {
    // More than a block, so that a part or a mixture would show.
    format!("{word} {n}\n").repeat(1500)
}

/// Drifts and repairs a file on a recorded disk with `repair`, which gets the mount.
fn record(disk: &Disk, new: &str, repair: impl Fn(&Path, &str)) -> Vec<Repair> {
    let etc = disk.mount().join("etc");
    fs::create_dir(&etc).unwrap();
    (0..N_REPAIRS)
        .map(|n| {
            let old = content("drifted and of another length", n);
            fs::write(etc.join("drift"), &old).unwrap();
            fs::rename(etc.join("drift"), etc.join("f")).unwrap();
            let start = disk.settle();
            repair(&disk.mount(), new);
            Repair { events: start..disk.n_events(), old }
        })
        .collect()
}

fn replaced(kind: &Kind, seed: u64) {
    let Some(_alone) = with_own_mounts() else { return };
    let mut disk = Disk::new(kind.make, kind.megabytes, kind.options);
    let new = content("declared", 0);
    let repairs = record(&disk, &new, |mount, new| {
        let (uid, gid) = rekindle::host::current_ids();
        let permissions = Permissions { uid, gid, mode: Mode::from_bits(0o644) };
        let root = Root::open(mount).unwrap();
        root.replace_file(&AbsPath::new("/etc/f").unwrap(), new.as_bytes(), permissions).unwrap();
    });
    disk.stop();
    let wrong = cut_power(&disk, kind, &repairs, "etc/f", &new, seed);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn exchanged(kind: &Kind, seed: u64) {
    let Some(_alone) = with_own_mounts() else { return };
    let mut disk = Disk::new(kind.make, kind.megabytes, kind.options);
    let sandbox = Sandbox::new(tempfile::tempdir_in(disk.mount()).unwrap());
    sandbox.arm(&["/etc/f"]);
    let new = content("declared", 0);
    let name = sandbox.dir.path().file_name().unwrap().to_str().unwrap().to_owned();
    let repairs: Vec<Repair> = (0..N_REPAIRS)
        .map(|n| {
            // The drift is on the disk before the guard is told of it, so that there is an old content to go back to.
            sandbox.guard.disarm();
            let old = content("drifted", n);
            fs::write(sandbox.at("/etc/drift"), &old).unwrap();
            fs::rename(sandbox.at("/etc/drift"), sandbox.at("/etc/f")).unwrap();
            sandbox.expect_hint();
            sandbox.arm_as(vec![declared("/etc/f", &new, &[])], 1);
            let start = disk.settle();
            let touched = fs::File::open(sandbox.at("/etc/f")).unwrap();
            touched.set_modified(std::time::SystemTime::now()).unwrap();
            sandbox
                .wait("the file to be put back", || fs::read_to_string(sandbox.at("/etc/f")).is_ok_and(|f| f == new));
            sandbox.expect_repairs(n + 1);
            Repair { events: start..disk.n_events(), old }
        })
        .collect();
    // Removed with the disk; while it is there the cuts can be looked at.
    let Sandbox { watcher, guard, dir, .. } = sandbox;
    drop((watcher, guard));
    let _kept = dir.keep();
    disk.stop();
    let wrong = cut_power(&disk, kind, &repairs, &format!("{name}/root/etc/f"), &new, seed);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn case_38_a_replacement_on_ext4() {
    replaced(&EXT4, 0x9e37_79b9_7f4a_7c15);
}

#[test]
fn case_38_a_replacement_on_ext4_without_its_heuristics() {
    replaced(&EXT4_STRICT, 0xbf58_476d_1ce4_e5b9);
}

#[test]
fn case_38_a_replacement_on_xfs() {
    replaced(&XFS, 0x94d0_49bb_1331_11eb);
}

#[test]
fn case_38_an_exchange_on_ext4() {
    exchanged(&EXT4, 0x2545_f491_4f6c_dd1d);
}

#[test]
fn case_38_an_exchange_on_ext4_without_its_heuristics() {
    exchanged(&EXT4_STRICT, 0xd134_2543_de82_ef95);
}

#[test]
fn case_38_an_exchange_on_xfs() {
    exchanged(&XFS, 0xaf25_1af3_b0f0_25b5);
}

/// What is looked for can be found: a replacement that does not sync what it writes leaves an empty file.
#[test]
fn a_repair_that_forgets_to_sync_is_caught() {
    let Some(_alone) = with_own_mounts() else { return };
    let kind = &EXT4_STRICT;
    let mut disk = Disk::new(kind.make, kind.megabytes, kind.options);
    let new = content("declared", 0);
    let repairs = record(&disk, &new, |mount, new| {
        let etc = mount.join("etc");
        fs::write(etc.join("new"), new).unwrap();
        fs::rename(etc.join("new"), etc.join("f")).unwrap();
        fs::File::open(etc).unwrap().sync_all().unwrap();
    });
    disk.stop();
    let wrong = cut_power(&disk, kind, &repairs, "etc/f", &new, 0x5851_f42d_4c95_7f2d);
    assert!(wrong.iter().any(|wrong| wrong.starts_with("0 bytes")), "{wrong:#?}");
}
