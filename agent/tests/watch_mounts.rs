//! The watcher and mounts. Needs root: each test mounts in a mount namespace of its own thread, which the watcher inherits.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]

use std::fs;
use std::path::Path;

mod watch_common;
use rekindle::watch::Sources;
use watch_common::{Guard, for_each_source};

/// Runs a test where it may mount, and says so where it may not.
fn where_mounts_are_private(test: fn(Sources)) {
    let root = nix::unistd::geteuid().is_root();
    if !root || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_err() {
        eprintln!("not run: it needs root and the right to mount");
        return;
    }
    mount(&["--make-rprivate", "/"]);
    for_each_source(test);
}

fn mount(args: &[&str]) {
    run("mount", args);
}

#[expect(clippy::disallowed_methods, reason = "the test plays the administrator")]
fn run(program: &str, args: &[&str]) {
    let status = std::process::Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_is_mounted_over_a_directory_is_watched_and_what_it_hides_again_afterwards() {
    where_mounts_are_private(|sources| {
        let guard = Guard::new(sources, &["/d/t", "/other/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
            fs::create_dir(root.join("other")).unwrap();
        });
        let d = text(&guard.at("/d"));
        fs::create_dir(guard.at("/nobody")).unwrap();
        mount(&["-t", "tmpfs", "none", &text(&guard.at("/nobody"))]);
        guard.expect_silence();
        mount(&["-t", "tmpfs", "none", &d]);
        guard.expect_hints(|hint| {
            assert_eq!(hint, rekindle::watch::Hint::Look([watch_common::id("/d/t")].into()), "and nothing else");
            true
        });
        guard.settle();
        fs::rename(seed(guard.dir.path()), guard.at("/other/t")).unwrap();
        guard.expect("/other/t");
        run("touch", &[&format!("{d}/t")]);
        guard.expect("/d/t");
        guard.settle();
        run("umount", &[&d]);
        guard.expect("/d/t");
        guard.settle();
        run("touch", &[&format!("{d}/t")]);
        guard.expect("/d/t");
    });
}

fn seed(root: &Path) -> std::path::PathBuf {
    let path = root.join("seed");
    drop(fs::File::create_new(&path).unwrap());
    path
}

#[test]
fn a_lazy_unmount_leaves_nothing_behind() {
    where_mounts_are_private(|sources| {
        let guard = Guard::new(sources, &["/d/e/t"], |root| fs::create_dir_all(root.join("d/e")).unwrap());
        let baseline = guard.watcher.stats().n_watches;
        let d = text(&guard.at("/d"));
        mount(&["-t", "tmpfs", "none", &d]);
        guard.expect("/d/e/t");
        run("mkdir", &[&format!("{d}/e")]);
        guard.expect("/d/e/t");
        let _busy = fs::File::open(guard.at("/d")).unwrap();
        run("umount", &["--lazy", &d]);
        guard.expect("/d/e/t");
        guard.settle();
        assert_eq!(guard.watcher.stats().n_watches, baseline);
        run("touch", &[&format!("{d}/e/t")]);
        guard.expect("/d/e/t");
    });
}

#[test]
fn a_file_mounted_over_a_file_is_watched_where_it_comes_from() {
    where_mounts_are_private(|sources| {
        let guard = Guard::new(sources, &["/d/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
            fs::create_dir(root.join("elsewhere")).unwrap();
            fs::File::create_new(root.join("d/t")).unwrap();
            fs::File::create_new(root.join("elsewhere/t")).unwrap();
        });
        mount(&["--bind", &text(&guard.at("/elsewhere/t")), &text(&guard.at("/d/t"))]);
        guard.expect("/d/t");
        guard.settle();
        run("sh", &["-c", &format!("echo evil > {}", text(&guard.at("/elsewhere/t")))]);
        guard.expect("/d/t");
    });
}

#[test]
fn two_mounts_of_one_directory_share_a_watch() {
    where_mounts_are_private(|sources| {
        let guard = Guard::new(sources, &[], |root| {
            fs::create_dir(root.join("one")).unwrap();
            fs::create_dir(root.join("two")).unwrap();
        });
        mount(&["--bind", &text(&guard.at("/one")), &text(&guard.at("/two"))]);
        guard.watcher.set_interests(vec![watch_common::interest("/one/t"), watch_common::interest("/two/t")]);
        run("touch", &[&text(&guard.at("/one/t"))]);
        guard.expect_all(&["/one/t", "/two/t"]);
        guard.watcher.set_interests(vec![watch_common::interest("/two/t")]);
        guard.settle();
        run("touch", &[&text(&guard.at("/one/t"))]);
        guard.expect("/two/t");
    });
}
