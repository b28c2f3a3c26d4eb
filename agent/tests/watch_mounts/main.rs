//! The watcher and mounts. Needs root: each test mounts in a mount namespace of its own thread, which the watcher inherits.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]

use std::fs;
use std::path::Path;

mod fuse;
#[path = "../watch_common/mod.rs"]
mod watch_common;
use rekindle::watch::{How, Sources};
use watch_common::{Guard, for_each_source};

/// Runs a test where it may mount, and says so where it may not.
fn where_mounts_are_private(test: fn(Sources)) {
    let is_root = nix::unistd::geteuid().is_root();
    let may_mount = is_root && nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok();
    assert!(may_mount || std::env::var_os("CI").is_none(), "this needs root and the right to mount");
    if !may_mount {
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
fn case_17_what_is_mounted_over_a_directory_is_watched_and_what_it_hides_again_afterwards() {
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
fn case_18_a_lazy_unmount_leaves_nothing_behind() {
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
fn case_20_two_mounts_of_one_directory_share_a_watch() {
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

#[test]
fn case_25_on_an_overlay_directories_are_watched() {
    where_mounts_are_private(|sources| {
        let layers = tempfile::tempdir().unwrap();
        for layer in ["lower/d", "upper", "work"] {
            fs::create_dir_all(layers.path().join(layer)).unwrap();
        }
        fs::rename(seed(layers.path()), layers.path().join("lower/d/t")).unwrap();
        let guard = Guard::new(sources, &["/d/t"], |root| {
            let at = |layer: &str| text(&layers.path().join(layer));
            let layers = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
            mount(&["-t", "overlay", "-o", &layers, "test", &text(root)]);
        });
        let coverage = guard.watcher.coverage();
        assert_eq!((coverage.n_fanotify + coverage.n_inotify, coverage.complaints), (1, Vec::new()));
        let t = text(&guard.at("/d/t"));
        for script in [
            // The first write copies the file up, the second does not.
            format!("echo evil > {t}"),
            format!("echo evil again > {t}"),
            format!("chmod 777 {t}"),
            format!("echo evil > {t}.new && mv {t}.new {t}"),
            format!("rm {t}"),
            format!("echo new > {t}"),
            format!("rm -r {}", text(&guard.at("/d"))),
            format!("mkdir {} && echo new > {t}", text(&guard.at("/d"))),
            format!("echo evil > {t}"),
        ] {
            guard.settle();
            run("sh", &["-c", &script]);
            guard.expect("/d/t");
        }
        run("umount", &["--lazy", &text(guard.dir.path())]);
    });
}

#[test]
fn case_27_what_changes_on_the_other_side_of_fuse_is_found_by_polling() {
    where_mounts_are_private(|sources| {
        let mut size = None;
        let guard = Guard::new(sources, &["/m/t"], |root| {
            fs::create_dir(root.join("m")).unwrap();
            size = Some(fuse::serve(&root.join("m")));
        });
        let coverage = guard.watcher.coverage();
        assert_eq!(coverage.n_polled, 1, "{coverage:?}");
        let [complaint] = &coverage.complaints[..] else { panic!("{coverage:?}") };
        assert!(matches!(&complaint.how, How::Polled { why } if why.contains("FUSE")), "{complaint:?}");
        for new_size in [10, 20] {
            guard.settle();
            size.as_ref().unwrap().store(new_size, std::sync::atomic::Ordering::SeqCst);
            guard.expect("/m/t");
        }
        run("umount", &["--lazy", &text(&guard.at("/m"))]);
    });
}
