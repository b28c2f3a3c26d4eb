//! The kinds that are held by a path and are no whole file, on a disk that fails at each operation in turn.

use std::collections::BTreeMap;
use std::io;

use nix::errno::Errno;

use super::super::settings::{a_setting, entries};
use super::super::trees::purged;
use super::super::*;
use super::disk::{Disk, Fault, Made};
use super::with_own_mounts;
use crate::host::kernel::Module;
use crate::host::root::Root;
use crate::resource::directory::Depth;
use crate::resource::kernel_module;
use crate::resource::repository::Form;
use crate::resource::setting::Edits;

const SYSCTL: &str = "/etc/sysctl.d/60-rekindle-net.ipv4.ip_forward.conf";
const BLOCKS: &str = "/etc/modprobe.d/60-rekindle-usb_storage.conf";
const LOADS: &str = "/etc/modules-load.d/60-rekindle-usb_storage.conf";
const KEY: &str = "/etc/apt/keyrings/rekindle-internal.asc";
const SOURCES: &str = "/etc/apt/sources.list.d/internal.sources";

type Tree = BTreeMap<String, String>;

/// A step, and what must hold of the disk however it goes.
struct Case {
    before: &'static [(&'static str, Made)],
    resource: Resource,
    /// Whether nothing is lost and nothing is there in part: asked after every run.
    is_whole: fn(&Tree) -> bool,
    /// Whether it is as declared: asked after a run in which nothing failed.
    is_done: fn(&Tree) -> bool,
}

/// Whether something stands at a path.
fn is(tree: &Tree, path: &str, line: &str) -> bool {
    tree.get(path).is_some_and(|found| found == line)
}

/// Whether a file of the agent's own stands at a path, whole.
fn is_written(tree: &Tree, path: &str) -> bool {
    tree.get(path).is_some_and(|found| found.starts_with("0644 # Written by rekindle for ") && found.ends_with('\n'))
}

/// Names that only a step under way has. The attic is for people.
fn has_leftovers(tree: &Tree) -> bool {
    tree.keys().any(|path| path.contains(".rekindle") && !path.starts_with("/.rekindle-attic"))
}

fn check(disk: &Disk, world: &mut World, case: &Case, fault: Fault) {
    let desired = desired(vec![case.resource.clone()]);
    disk.reset_to(case.before);
    forget_backups(world);
    disk.fail(Some(fault));
    let report = world.converge(&desired);
    let failed = disk.failed();
    let tree = disk.tree();
    let context = format!("{fault:?} at {failed:?}: {report:?} {tree:?}");
    let says = io::Error::from_raw_os_error(fault.errno).to_string();
    match &report.resources[0].outcome {
        Outcome::Failed { error, signature, .. } => {
            let is_class = signature.ends_with(&format!("errno {}", fault.errno)) || signature.starts_with("verify: ");
            assert!(is_class && error.contains(&says), "{context}");
        }
        Outcome::Indeterminate { reason } => assert!(reason.contains(&says), "{context}"),
        // What failed did not matter, or was done in another way.
        Outcome::Changed { .. } => assert!((case.is_done)(&tree), "{context}"),
        Outcome::Unchanged | Outcome::Reported { .. } | Outcome::Skipped { .. } => panic!("{context}"),
    }
    assert!((case.is_whole)(&tree), "{context}");
    assert_nothing_lost(case, world, &tree, &context);
    disk.fail(None);
    let again = world.converge(&desired);
    let tree = disk.tree();
    assert!(again.converged() && (case.is_done)(&tree) && (case.is_whole)(&tree), "{again:?} {tree:?} after {context}");
    assert!(!has_leftovers(&tree), "{tree:?} after {context}");
    assert_nothing_lost(case, world, &tree, &context);
}

/// What is no longer on the disk is in the backup store.
fn assert_nothing_lost(case: &Case, world: &World, tree: &Tree, context: &str) {
    for (path, made) in case.before {
        let Made::File(content) = made else { continue };
        let is_there = tree.values().any(|line| line == &format!("0644 {content}"));
        let kept = || crate::record::kept(world.state.path(), &crate::resource::digest(content.as_bytes())).unwrap();
        assert!(is_there || kept().is_some(), "what was at {path} is lost: {context}");
    }
}

/// Each run has to keep what it replaces itself.
fn forget_backups(world: &World) {
    for entry in std::fs::read_dir(world.state.path().join("backup")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

/// Each operation of a step fails in turn, alone or with all that follow.
fn check_all(case: &Case) {
    let faults = [Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::EROFS]
        .map(|errno| [(errno, Lasts::Once), (errno, Lasts::On)]);
    check_faults(World::new(), case, faults.as_flattened());
}

/// How long a disk fails.
#[derive(Debug, Clone, Copy)]
enum Lasts {
    Once,
    On,
}

/// The files that the agent has of its own: a failing disk fails here and there, a read-only one from then on.
fn check_own(world: World, case: &Case) {
    check_faults(world, case, &[(Errno::EIO, Lasts::Once), (Errno::EROFS, Lasts::On)]);
}

fn check_faults(mut world: World, case: &Case, faults: &[(Errno, Lasts)]) {
    if !with_own_mounts() {
        return;
    }
    let disk = Disk::mount();
    world.host.root = Root::open(disk.path()).unwrap();
    disk.reset_to(case.before);
    disk.fail(None);
    let report = world.converge(&desired(vec![case.resource.clone()]));
    assert!(report.converged() && (case.is_done)(&disk.tree()), "{report:?} {:?}", disk.tree());
    let n_operations = disk.n_operations();
    assert!(n_operations > 5, "a step is more than {n_operations} operations");
    for (errno, lasts) in faults {
        for first in 1..=n_operations {
            let last = match lasts {
                Lasts::Once => first,
                Lasts::On => usize::MAX,
            };
            check(&disk, &mut world, case, Fault { first, last, errno: *errno as i32 });
        }
    }
}

#[test]
fn a_setting_is_there_whole_or_as_it_was() {
    check_all(&Case {
        before: &[("/f", Made::File("a 1\n# kept\n"))],
        resource: a_setting("/f", "/f", Edits::Space(entries(&[("a", "2")]))),
        is_whole: |tree| is(tree, "/f", "0644 a 1\n# kept\n") || is(tree, "/f", "0644 a 2\n# kept\n"),
        is_done: |tree| is(tree, "/f", "0644 a 2\n# kept\n"),
    });
}

#[test]
fn a_directory_is_made_and_its_parents_too() {
    check_all(&Case {
        before: &[],
        resource: a_directory("/above/d"),
        is_whole: |_| true,
        is_done: |tree| is(tree, "/above/d", "0750"),
    });
}

#[test]
fn a_directory_keeps_what_is_in_it() {
    check_all(&Case {
        before: &[("/d", Made::Directory), ("/d/kept", Made::File("kept\n"))],
        resource: a_directory("/d"),
        is_whole: |tree| is(tree, "/d/kept", "0644 kept\n"),
        is_done: |tree| is(tree, "/d", "0750"),
    });
}

#[test]
fn an_empty_directory_is_removed() {
    check_all(&Case {
        before: &[("/d", Made::Directory)],
        resource: no_directory("/d"),
        is_whole: |_| true,
        is_done: |tree| !tree.contains_key("/d"),
    });
}

#[test]
fn a_link_leads_to_the_old_or_to_the_new() {
    check_all(&Case {
        before: &[("/l", Made::Link("old"))],
        resource: a_symlink("/l", "new"),
        is_whole: |tree| is(tree, "/l", "-> old") || is(tree, "/l", "-> new"),
        is_done: |tree| is(tree, "/l", "-> new"),
    });
}

#[test]
fn a_file_that_is_not_to_be_there_is_kept_or_gone() {
    let absent = Desired::File(file::Desired { path: abs("/f"), ensure: Ensure::Absent });
    check_all(&Case {
        before: &[("/f", Made::File("old\n"))],
        resource: resource(Kind::File, "/f", absent),
        is_whole: |tree| is(tree, "/f", "0644 old\n") || !tree.contains_key("/f"),
        is_done: |tree| !tree.contains_key("/f"),
    });
}

#[test]
fn what_a_purge_moves_is_in_its_place_or_in_the_attic() {
    check_all(&Case {
        before: &[
            ("/d", Made::Directory),
            ("/d/a", Made::File("stray a\n")),
            ("/d/b", Made::File("stray b\n")),
            ("/d/keep", Made::File("kept\n")),
        ],
        resource: purged("/d", Depth::Entries, &["keep"], &[]),
        is_whole: |tree| {
            let is_somewhere = |line: &str| tree.values().any(|found| found == line);
            is_somewhere("0644 stray a\n") && is_somewhere("0644 stray b\n") && is(tree, "/d/keep", "0644 kept\n")
        },
        is_done: |tree| !tree.contains_key("/d/a") && !tree.contains_key("/d/b"),
    });
}

#[test]
fn the_file_of_a_sysctl_is_the_old_or_the_new() {
    let world = World::new();
    world.fakes.kernel.put_sysctl("net/ipv4/ip_forward", "1");
    check_own(
        world,
        &Case {
            before: &[
                ("/etc", Made::Directory),
                ("/etc/sysctl.d", Made::Directory),
                (SYSCTL, Made::File("net.ipv4.ip_forward = 1\n")),
            ],
            resource: super::super::sysctls::forward(),
            is_whole: |tree| is(tree, SYSCTL, "0644 net.ipv4.ip_forward = 1\n") || is_written(tree, SYSCTL),
            is_done: |tree| is_written(tree, SYSCTL),
        },
    );
}

#[test]
fn the_files_of_a_module_are_the_old_or_the_new() {
    let world = World::new();
    world.fakes.kernel.put_module("usb_storage", Module::NotLoaded);
    check_own(
        world,
        &Case {
            before: &[
                ("/etc", Made::Directory),
                ("/etc/modprobe.d", Made::Directory),
                ("/etc/modules-load.d", Made::Directory),
                (BLOCKS, Made::File("# mine\n")),
                (LOADS, Made::File("usb_storage\n")),
            ],
            resource: super::super::modules::usb(kernel_module::State::Blocked).resources()[0].clone(),
            is_whole: |tree| {
                let blocks = is(tree, BLOCKS, "0644 # mine\n") || is_written(tree, BLOCKS);
                blocks && (is(tree, LOADS, "0644 usb_storage\n") || !tree.contains_key(LOADS))
            },
            is_done: |tree| is_written(tree, BLOCKS) && !tree.contains_key(LOADS),
        },
    );
}

#[test]
fn the_files_of_a_repository_are_the_old_or_the_new() {
    check_own(
        World::new(),
        &Case {
            before: &[
                ("/etc", Made::Directory),
                ("/etc/apt", Made::Directory),
                ("/etc/apt/keyrings", Made::Directory),
                ("/etc/apt/sources.list.d", Made::Directory),
                (KEY, Made::File("old key\n")),
                (SOURCES, Made::File("old source\n")),
            ],
            resource: super::super::repositories::internal(Form::Armored, None).resources()[0].clone(),
            is_whole: |tree| {
                let key = is(tree, KEY, "0644 old key\n") || is(tree, KEY, "0644 key\n");
                key && (is(tree, SOURCES, "0644 old source\n") || is_written(tree, SOURCES))
            },
            is_done: |tree| is(tree, KEY, "0644 key\n") && is_written(tree, SOURCES),
        },
    );
}
