//! Disks that lie: no room, no quota, no luck, nothing but reading; and files that cannot be replaced.

mod disk;
mod kinds;
mod record;

use std::io;
use std::sync::atomic::Ordering;

use super::attributes::{as_root, inode, repaired};
use super::*;
use crate::host::root::{Permissions, Root};
use disk::{Disk, Fault, WITNESSED};

const NEW: &str = "the declared content, which is longer than what was there before\n";
const OLD: &str = "drifted\n";

/// Runs a program that only root may, and which a test cannot do without.
#[expect(clippy::disallowed_methods, reason = "the test plays the administrator")]
pub(super) fn run(program: &str, args: &[&str]) {
    let output = std::process::Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Gives this thread mounts of its own. Whether the test may go on.
pub(super) fn with_own_mounts() -> bool {
    if !as_root() {
        return false;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    run("mount", &["--make-rprivate", "/"]);
    true
}

/// Takes a mount away at once: a program that another test is about to start may still hold what was opened there.
pub(super) fn unmount(path: &Path) {
    run("umount", &["--lazy", text(path)]);
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The witnessed file, declared, on a disk.
fn on(disk: &Disk) -> (World, DesiredState) {
    let mut world = World::new();
    world.host.root = Root::open(disk.path()).unwrap();
    (world, desired(vec![a_file(&format!("/{WITNESSED}"), NEW)]))
}

/// Fails operations of a repair, and then none: whatever failed, nobody ever saw anything but the old or the new content, the
/// error says what the disk said, and the next run puts everything right and leaves nothing behind.
fn check_faults(disk: &Disk, world: &mut World, desired: &DesiredState, fault: Fault) {
    disk.reset(OLD.as_bytes());
    disk.fail(Some(fault));
    let report = world.converge(desired);
    let failed = disk.failed().expect("something was to fail");
    let context = format!("{fault:?} at {failed}: {report:?}");
    match &report.resources[0].outcome {
        Outcome::Failed { error, signature, .. } => {
            let expected = io::Error::from_raw_os_error(fault.errno);
            let says_so = signature.ends_with(&format!("errno {}", fault.errno)) || signature.starts_with("verify: ");
            assert!(says_so && error.contains(&expected.to_string()), "{context}");
        }
        Outcome::Indeterminate { reason } => {
            assert!(reason.contains(&io::Error::from_raw_os_error(fault.errno).to_string()), "{context}");
        }
        // Closing a file, say: what counts was done before, and was found to be.
        Outcome::Changed { .. } => assert_eq!(disk.seen().last(), Some(&Some(NEW.into())), "{context}"),
        Outcome::Unchanged | Outcome::Reported { .. } | Outcome::Skipped { .. } => panic!("{context}"),
    }
    for seen in disk.seen() {
        let seen = seen.as_deref();
        assert!(seen == Some(OLD.as_bytes()) || seen == Some(NEW.as_bytes()), "{seen:?} was visible: {context}");
    }
    disk.fail(None);
    let again = world.converge(desired);
    assert!(again.converged(), "{again:?} after {context}");
    assert_eq!(disk.seen().last(), Some(&Some(NEW.into())), "{context}");
    assert_eq!(disk.names(), [WITNESSED], "{context}");
}

/// One way of failing: each operation of a repair in turn, alone or with all that follow.
fn case_37(errno: nix::errno::Errno) {
    if !with_own_mounts() {
        return;
    }
    let disk = Disk::mount();
    let (mut world, desired) = on(&disk);
    disk.reset(OLD.as_bytes());
    disk.fail(None);
    assert!(world.converge(&desired).converged());
    let n_operations = disk.n_operations();
    assert!(n_operations > 15, "a repair is more than {n_operations} operations");
    for first in 1..=n_operations {
        for last in [first, usize::MAX] {
            check_faults(&disk, &mut world, &desired, Fault { first, last, errno: errno as i32 });
        }
    }
}

#[test]
fn case_37_no_room_at_any_step_of_a_repair() {
    case_37(nix::errno::Errno::ENOSPC);
}

#[test]
fn case_37_no_quota_at_any_step_of_a_repair() {
    case_37(nix::errno::Errno::EDQUOT);
}

#[test]
fn case_37_a_failing_disk_at_any_step_of_a_repair() {
    case_37(nix::errno::Errno::EIO);
}

#[test]
fn case_37_a_read_only_file_system_at_any_step_of_a_repair() {
    case_37(nix::errno::Errno::EROFS);
}

/// A real file system, and what makes it full, until it is unmounted.
#[expect(clippy::disallowed_methods, reason = "a test plays the foreign writer")]
pub(super) fn fill(directory: &Path) -> PathBuf {
    let filler = directory.join("filler");
    std::fs::write(&filler, "").unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&filler).unwrap();
    for size in [64 * 1024, 4096, 1024, 1] {
        while io::Write::write_all(&mut file, &vec![b'x'; size]).and_then(|()| file.sync_all()).is_ok() {}
    }
    filler
}

fn check_full(world: &mut World) {
    let desired = desired(vec![a_file("/mnt/f", &"declared\n".repeat(10_000))]);
    world.write("/mnt/f", OLD);
    let filler = fill(&world.path("/mnt"));
    for _ in 0..3 {
        let report = world.converge(&desired);
        let (error, signature) = error_of(&report, 0);
        assert_eq!(signature, "replace: errno 28", "{error}");
        assert!(error.contains("make room"), "{error}");
        assert_eq!(world.read("/mnt/f"), OLD);
        let names = world.host.root.list_names(&abs("/mnt"), 100).unwrap().unwrap();
        assert!(names.iter().all(|name| !name.to_str().unwrap().starts_with(".rekindle")), "{names:?}");
    }
    std::fs::remove_file(filler).unwrap();
    assert!(world.converge(&desired).converged());
    assert_eq!(world.read("/mnt/f"), "declared\n".repeat(10_000));
}

#[test]
fn case_37_a_full_tmpfs_keeps_what_is_there_until_there_is_room() {
    if !with_own_mounts() {
        return;
    }
    let mut world = World::new();
    std::fs::create_dir(world.path("/mnt")).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=128k", "none", text(&world.path("/mnt"))]);
    check_full(&mut world);
    unmount(&world.path("/mnt"));
}

#[test]
fn case_37_a_full_ext4_keeps_what_is_there_until_there_is_room() {
    if !with_own_mounts() {
        return;
    }
    let mut world = World::new();
    std::fs::create_dir(world.path("/mnt")).unwrap();
    let image = world.path("/image");
    run("truncate", &["-s", "4M", text(&image)]);
    run("mkfs.ext4", &["-q", "-m", "0", text(&image)]);
    run("mount", &["-o", "loop", text(&image), text(&world.path("/mnt"))]);
    check_full(&mut world);
    unmount(&world.path("/mnt"));
}

#[test]
fn case_37_a_file_system_that_becomes_read_only_is_repaired_when_it_is_writable_again() {
    if !with_own_mounts() {
        return;
    }
    let mut world = World::new();
    std::fs::create_dir(world.path("/mnt")).unwrap();
    let mount = world.path("/mnt");
    run("mount", &["-t", "tmpfs", "none", text(&mount)]);
    world.write("/mnt/f", OLD);
    run("mount", &["-o", "remount,ro", text(&mount)]);
    let desired = desired(vec![a_file("/mnt/f", NEW)]);
    let report = world.converge(&desired);
    let (error, signature) = error_of(&report, 0);
    assert_eq!(signature, "replace: errno 30");
    assert!(error.contains("the file system is read-only"), "{error}");
    assert_eq!(world.read("/mnt/f"), OLD);
    run("mount", &["-o", "remount,rw", text(&mount)]);
    assert!(world.converge(&desired).converged());
    assert_eq!(world.read("/mnt/f"), NEW);
    unmount(&mount);
}

#[test]
fn case_40_a_file_that_is_mounted_there_is_written_in_place_and_says_so() {
    if !with_own_mounts() {
        return;
    }
    let mut world = World::new();
    let desired = desired(vec![a_file("/etc/hosts", NEW)]);
    assert!(world.converge(&desired).converged());
    world.write("/container/hosts", "a much longer content than what is declared\n".repeat(9).as_str());
    std::fs::hard_link(world.path("/container/hosts"), world.path("/container/other")).unwrap();
    let hosts = world.path("/etc/hosts");
    let beneath = inode(&hosts);
    run("mount", &["--bind", text(&world.path("/container/hosts")), text(&hosts)]);
    let mounted = inode(&hosts);
    assert_ne!(mounted, beneath);
    let lines = repaired(&mut world, &desired);
    assert_eq!(lines.last().unwrap(), "method: (none) → in place, not at once: something is mounted on it");
    assert_eq!((world.read("/etc/hosts").as_str(), inode(&hosts)), (NEW, mounted));
    assert_eq!(world.read("/container/hosts"), NEW, "it is one and the same file");
    // Its mode alone is set as on any other.
    super::paths::chmod(&world, "/etc/hosts", 0o666);
    assert_eq!(repaired(&mut world, &desired), ["mode: 0666 → 0644"]);
    unmount(&hosts);
    assert_eq!((world.read("/etc/hosts").as_str(), inode(&hosts)), (NEW, beneath));
    // Something that is no file and mounted there cannot be mended, and is said to be in the way.
    run("mount", &["--bind", "/dev/null", text(&hosts)]);
    let report = world.converge(&desired);
    let (error, _) = error_of(&report, 0);
    assert!(error.contains("something is mounted on it"), "{error}");
    unmount(&hosts);
}

#[test]
fn case_47_readers_never_find_the_file_absent_empty_or_in_part() {
    const REPAIRS: usize = 2000;
    // In memory, where syncing costs nothing: how names change is the kernel's own part of every file system.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let root = Root::open(dir.path()).unwrap();
    let (uid, gid) = crate::host::current_ids();
    let permissions = Permissions { uid, gid, mode: Permission::from_bits(0o644) };
    // Longer than a page, so that a part of it could be read.
    let (good, evil) = ("declared\n".repeat(3000), "drifted and longer\n".repeat(4000));
    let put = |path: &str, content: &str| root.replace_file(&abs(path), content.as_bytes(), permissions).unwrap();
    put("/f", &good);
    let path = dir.path().join("f");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = || {
            let mut n_read = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let content = std::fs::read_to_string(&path).expect("it is always there");
                assert!(content == good || content == evil, "{} bytes", content.len());
                n_read += 1;
            }
            n_read
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for _ in 0..REPAIRS / 20 {
            // The drift is a rename as well: what is looked for is a gap of the repair's making.
            put("/evil", &evil);
            std::fs::rename(dir.path().join("evil"), &path).unwrap();
            for _ in 0..20 {
                put("/f", &good);
            }
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 10);
        }
    });
    assert_eq!(std::fs::read_to_string(&path).unwrap(), good);
}
