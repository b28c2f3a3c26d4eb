//! The watcher against real directories: what each way of changing a declared path makes it say.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests change files as others do, and fail at once"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

mod watch_common;
use rekindle::watch::Sources;
use watch_common::{Guard, for_each_source};

/// Whether `act` on `/d/t`, which exists, is announced, and announced again when it is done a second time.
#[track_caller]
fn check(sources: Sources, act: impl Fn(&Path)) {
    let guard = Guard::new(sources, &["/d/t"], |root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::create_dir(root.join("elsewhere")).unwrap();
        fs::write(root.join("d/t"), "good").unwrap();
    });
    for _ in 0..2 {
        guard.settle();
        act(guard.dir.path());
        guard.expect("/d/t");
        if guard.at("/d/t").symlink_metadata().is_ok_and(|m| m.is_dir()) {
            fs::remove_dir(guard.at("/d/t")).unwrap();
        } else if guard.at("/d/t").symlink_metadata().is_ok() {
            fs::remove_file(guard.at("/d/t")).unwrap();
        }
        fs::create_dir_all(guard.at("/d")).unwrap();
        fs::write(guard.at("/d/t"), "good").unwrap();
    }
}

fn write(path: impl AsRef<Path>, content: &str) {
    fs::write(path, content).unwrap();
}

#[test]
fn whatever_comes_in_a_directory_is_announced_to_who_cares_for_all_of_it() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/d/", "/d/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
            write(root.join("d/t"), "good");
        });
        let announced = |act: &dyn Fn(&Path)| {
            guard.settle();
            act(guard.dir.path());
            guard.expect("/d/");
        };
        announced(&|root| write(root.join("d/new"), ""));
        announced(&|root| fs::hard_link(root.join("d/t"), root.join("d/second")).unwrap());
        announced(&|root| fs::rename(root.join("d/new"), root.join("d/renamed")).unwrap());
        announced(&|root| symlink("x", root.join("d/link")).unwrap());
        announced(&|root| fs::create_dir(root.join("d/sub")).unwrap());
        // The directory is another one.
        announced(&|root| {
            fs::rename(root.join("d"), root.join("gone")).unwrap();
            fs::create_dir(root.join("d")).unwrap();
            write(root.join("d/other"), "");
        });
        guard.settle();
        write(guard.at("/d/other"), "changed");
        write(guard.at("/d/.rekindle-0123456789abcdef.tmp"), "ours");
        guard.expect_silence();
        // A name that somebody cares for by itself is theirs.
        write(guard.at("/d/t"), "good");
        guard.expect_hints(|hint| {
            let rekindle::watch::Hint::Look(look) = hint else { return true };
            assert!(!look.contains(&watch_common::id("/d/")), "{look:?}");
            look.contains(&watch_common::id("/d/t"))
        });
    });
}

#[test]
fn a_write_in_place_is_announced() {
    for_each_source(|sources| {
        check(sources, |root| write(root.join("d/t"), "evil"));
    });
}

#[test]
fn a_write_is_announced_before_the_writer_closes() {
    for_each_source(|sources| {
        check(sources, |root| {
            use std::io::Write;
            let mut file = fs::OpenOptions::new().append(true).open(root.join("d/t")).unwrap();
            file.write_all(b"evil").unwrap();
            std::mem::forget(file);
        });
    });
}

#[test]
fn a_rename_over_is_announced_each_time() {
    for_each_source(|sources| {
        check(sources, |root| {
            write(root.join("elsewhere/new"), "evil");
            fs::rename(root.join("elsewhere/new"), root.join("d/t")).unwrap();
        });
    });
}

#[test]
fn an_exchange_is_announced() {
    for_each_source(|sources| {
        check(sources, |root| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            write(root.join("d/other"), "evil");
            renameat_with(CWD, root.join("d/other"), CWD, root.join("d/t"), RenameFlags::EXCHANGE).unwrap();
        });
    });
}

#[test]
fn an_unlink_is_announced() {
    for_each_source(|sources| {
        check(sources, |root| fs::remove_file(root.join("d/t")).unwrap());
    });
}

#[test]
fn an_unlink_of_an_open_file_is_announced() {
    for_each_source(|sources| {
        check(sources, |root| {
            std::mem::forget(fs::File::open(root.join("d/t")).unwrap());
            fs::remove_file(root.join("d/t")).unwrap();
        });
    });
}

#[test]
fn a_hard_link_put_in_its_place_is_announced() {
    for_each_source(|sources| {
        check(sources, |root| {
            write(root.join("elsewhere/evil"), "evil");
            fs::remove_file(root.join("d/t")).unwrap();
            fs::hard_link(root.join("elsewhere/evil"), root.join("d/t")).unwrap();
        });
    });
}

#[test]
fn a_symlink_put_in_its_place_is_announced() {
    for_each_source(|sources| {
        check(sources, |root| {
            fs::remove_file(root.join("d/t")).unwrap();
            symlink("/etc/shadow", root.join("d/t")).unwrap();
        });
    });
}

#[test]
fn a_fifo_put_in_its_place_is_announced_without_hanging() {
    for_each_source(|sources| {
        check(sources, |root| {
            fs::remove_file(root.join("d/t")).unwrap();
            nix::unistd::mkfifo(&root.join("d/t"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        });
    });
}

#[test]
fn a_directory_put_in_its_place_is_announced() {
    for_each_source(|sources| {
        check(sources, |root| {
            fs::remove_file(root.join("d/t")).unwrap();
            fs::create_dir(root.join("d/t")).unwrap();
        });
    });
}

#[test]
fn a_chmod_is_announced() {
    for_each_source(|sources| {
        check(sources, |root| fs::set_permissions(root.join("d/t"), fs::Permissions::from_mode(0o777)).unwrap());
    });
}

#[test]
fn an_edit_with_its_time_restored_is_announced() {
    for_each_source(|sources| {
        check(sources, |root| {
            let path = root.join("d/t");
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            write(&path, "evil");
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        });
    });
}

#[test]
fn case_16_removal_of_the_parent_and_its_return_are_announced() {
    for_each_source(|sources| {
        check(sources, |root| fs::remove_dir_all(root.join("d")).unwrap());
    });
}

#[test]
fn case_16_after_the_parent_came_back_the_file_in_it_is_watched() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/d/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
            write(root.join("d/t"), "good");
        });
        for _ in 0..50 {
            fs::remove_dir_all(guard.at("/d")).unwrap();
            fs::create_dir(guard.at("/d")).unwrap();
            write(guard.at("/d/t"), "good");
            guard.settle();
            write(guard.at("/d/t"), "evil");
            guard.expect("/d/t");
        }
    });
}

#[test]
fn case_15_a_renamed_parent_is_left_and_its_successor_watched() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/d/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
            write(root.join("d/t"), "good");
        });
        fs::rename(guard.at("/d"), guard.at("/away")).unwrap();
        guard.expect("/d/t");
        fs::create_dir(guard.at("/d")).unwrap();
        write(guard.at("/d/t"), "evil");
        guard.expect("/d/t");
        guard.settle();
        write(guard.at("/away/t"), "nobody's business");
        guard.expect_silence();
        write(guard.at("/d/t"), "evil again");
        guard.expect("/d/t");
    });
}

#[test]
fn case_14_a_missing_file_in_missing_directories_is_announced_when_it_comes() {
    for_each_source(|sources| {
        for _ in 0..100 {
            let guard = Guard::new(sources, &["/a/b/c/f"], |_| {});
            fs::create_dir_all(guard.at("/a/b/c")).unwrap();
            write(guard.at("/a/b/c/f"), "new");
            // What was hinted may be of any moment after `mkdir a`; a later write proves that all of the way is watched.
            guard.expect("/a/b/c/f");
            guard.settle();
            write(guard.at("/a/b/c/f"), "newer");
            guard.expect("/a/b/c/f");
        }
    });
}

#[test]
fn case_19_a_switched_link_on_the_way_is_followed() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/current/t"], |root| {
            for release in ["one", "two"] {
                fs::create_dir(root.join(release)).unwrap();
                write(root.join(release).join("t"), release);
            }
            // Absolute targets are meant beneath the root.
            symlink("/one", root.join("current")).unwrap();
        });
        write(guard.at("/one/t"), "evil");
        guard.expect("/current/t");
        symlink("two", guard.at("/next")).unwrap();
        fs::rename(guard.at("/next"), guard.at("/current")).unwrap();
        guard.expect("/current/t");
        guard.settle();
        write(guard.at("/one/t"), "nobody's business");
        guard.expect_silence();
        write(guard.at("/two/t"), "evil");
        guard.expect("/current/t");
    });
}

#[test]
fn links_through_dots_and_links_are_followed_and_each_hop_is_watched() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/a/t"], |root| {
            fs::create_dir_all(root.join("x/y")).unwrap();
            fs::create_dir(root.join("z")).unwrap();
            symlink("x/y/../hop", root.join("a")).unwrap();
            symlink("../../../z", root.join("x/hop")).unwrap();
        });
        write(guard.at("/z/t"), "new");
        guard.expect("/a/t");
        fs::remove_file(guard.at("/x/hop")).unwrap();
        guard.expect("/a/t");
    });
}

#[test]
fn a_loop_of_links_is_said_to_be_unreadable_and_announced_when_mended() {
    for_each_source(|sources| {
        use rekindle::watch::How;
        let guard = Guard::new(sources, &["/a/t"], |root| {
            symlink("b", root.join("a")).unwrap();
            symlink("a", root.join("b")).unwrap();
        });
        let complaint = &guard.watcher.coverage().complaints[0];
        assert!(matches!(complaint.how, How::Blind { .. }), "{complaint:?}");
        fs::remove_file(guard.at("/b")).unwrap();
        fs::create_dir(guard.at("/b")).unwrap();
        guard.expect("/a/t");
        guard.settle();
        assert_eq!(guard.watcher.coverage().complaints, []);
        write(guard.at("/b/t"), "new");
        guard.expect("/a/t");
    });
}

#[test]
fn case_07_a_write_through_a_hard_link_elsewhere_is_announced() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/d/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
            fs::create_dir(root.join("elsewhere")).unwrap();
            write(root.join("d/t"), "good");
            fs::hard_link(root.join("d/t"), root.join("elsewhere/t")).unwrap();
        });
        write(guard.at("/elsewhere/t"), "evil");
        guard.expect("/d/t");
    });
}

/// `link` announces itself only where the link is made, so the new name is found when the ways are walked again.
#[test]
fn a_hard_link_made_later_is_watched_after_a_refresh() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/d/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
            fs::create_dir(root.join("elsewhere")).unwrap();
            write(root.join("d/t"), "good");
        });
        fs::hard_link(guard.at("/d/t"), guard.at("/elsewhere/t")).unwrap();
        guard.watcher.refresh();
        guard.expect("/d/t");
        guard.settle();
        write(guard.at("/elsewhere/t"), "evil");
        guard.expect("/d/t");
    });
}

#[test]
fn a_declared_directory_is_announced_for_itself_and_not_for_its_content() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/d"], |root| fs::create_dir(root.join("d")).unwrap());
        write(guard.at("/d/anything"), "content");
        guard.expect_silence();
        fs::set_permissions(guard.at("/d"), fs::Permissions::from_mode(0o700)).unwrap();
        guard.expect("/d");
        fs::remove_dir_all(guard.at("/d")).unwrap();
        guard.expect("/d");
        fs::create_dir(guard.at("/d")).unwrap();
        guard.expect("/d");
    });
}

#[test]
fn coverage_says_which_source_announces_changes() {
    for_each_source(|sources| {
        let guard =
            Guard::new(sources, &["/d/t", "/d/u", "/missing/t"], |root| fs::create_dir(root.join("d")).unwrap());
        let coverage = guard.watcher.coverage();
        let expected = match sources {
            Sources::All => (3, 0),
            Sources::InotifyOnly => (0, 3),
        };
        assert_eq!((coverage.n_fanotify, coverage.n_inotify), expected);
        assert_eq!((coverage.n_interests(), coverage.complaints), (3, Vec::new()));
    });
}

#[test]
fn the_root_itself_can_be_declared() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/"], |_| {});
        fs::set_permissions(guard.dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
        guard.expect("/");
    });
}

#[test]
fn case_30_other_names_and_readers_say_nothing() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/d/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
            write(root.join("d/t"), "good");
        });
        write(guard.at("/d/other"), "x");
        fs::remove_file(guard.at("/d/other")).unwrap();
        let before = guard.watcher.stats().n_events;
        for _ in 0..100 {
            fs::read(guard.at("/d/t")).unwrap();
            fs::read_dir(guard.at("/d")).unwrap().count();
        }
        for _ in 0..10 {
            let status = std::process::Command::new("cat").arg(guard.at("/d/t")).output().unwrap().status;
            assert!(status.success());
        }
        guard.expect_silence();
        assert_eq!(guard.watcher.stats().n_events, before, "reading must not wake the watcher");
    });
}

#[test]
fn case_35_what_a_package_manager_puts_in_its_place_is_announced() {
    for_each_source(|sources| {
        check(sources, |root| {
            let at = |name: &str| root.join("d").join(name);
            // As dpkg does it.
            write(at("t.dpkg-new"), "new");
            fs::hard_link(at("t"), at("t.dpkg-tmp")).unwrap();
            fs::rename(at("t.dpkg-new"), at("t")).unwrap();
            fs::remove_file(at("t.dpkg-tmp")).unwrap();
        });
        check(sources, |root| {
            // As rpm does it.
            write(root.join("d/t;5f3e"), "new");
            fs::rename(root.join("d/t;5f3e"), root.join("d/t")).unwrap();
        });
    });
}

#[test]
fn case_41_a_path_longer_than_the_kernel_takes_is_watched() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    for_each_source(|sources| {
        let name = "n".repeat(250);
        let path = format!("/{}", [&*name; 20].join("/"));
        assert!(path.len() > 4096);
        let mut directory = None;
        let guard = Guard::new(sources, &[&format!("{path}/t")], |root| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let mut here = openat(CWD, root, flags, Mode::empty()).unwrap();
            for _ in 0..20 {
                mkdirat(&here, &*name, Mode::RWXU).unwrap();
                here = openat(&here, &*name, flags, Mode::empty()).unwrap();
            }
            directory = Some(here);
        });
        assert_eq!(guard.watcher.coverage().complaints, []);
        let n_watches = guard.watcher.stats().n_watches;
        assert_eq!(n_watches, 21);
        let flags = OFlags::WRONLY | OFlags::CREATE;
        drop(openat(directory.as_ref().unwrap(), "t", flags, Mode::RUSR).unwrap());
        guard.expect(&format!("{path}/t"));
        guard.watcher.set_interests(Vec::new());
        assert_eq!(guard.watcher.stats().n_watches, 0);
    });
}

#[test]
fn case_41_names_that_are_no_text_are_bytes() {
    for_each_source(|sources| {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let name = OsStr::from_bytes(b"caf\xe9\xff");
        let guard = Guard::new(sources, &[], |root| fs::create_dir(root.join("d")).unwrap());
        guard.watcher.set_interests(vec![rekindle::watch::Interest {
            path: Path::new("/d").join(name).into(),
            resource: watch_common::id("/d/t"),
        }]);
        write(guard.at("/d").join(name), "x");
        guard.expect("/d/t");
    });
}
