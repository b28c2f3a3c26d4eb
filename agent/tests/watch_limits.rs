//! The watcher under pressure: queues that overflow, watches that run out, interests that change, trees that churn.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests change files as others do, and fail at once"
)]

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rekindle::watch::{DirtySet, Hint, How, Options, SelfTest, Sources, WatchError, Watcher};

mod watch_common;
use watch_common::{DEADLINE, Guard, for_each_source, interest};

fn write(path: impl AsRef<Path>, content: &str) {
    fs::write(path, content).unwrap();
}

/// A callback that blocks until it is let go.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let is_open = self.is_open.lock().unwrap();
        drop(self.opened.wait_while(is_open, |is_open| !*is_open).unwrap());
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// Files that it takes to overflow the queue of either source: fanotify merges all that happens to one of them.
fn storm(directory: &Path) {
    let limits = ["/proc/sys/fs/inotify/max_queued_events", "/proc/sys/fs/fanotify/max_queued_events"];
    let limit = limits.iter().filter_map(|path| fs::read_to_string(path).ok()).map(|text| text.trim().parse().unwrap());
    let n_files: usize = limit.max().unwrap_or(16384) + 1000;
    write(directory.join("f"), "x");
    for i in 0..n_files {
        fs::rename(
            directory.join(if i == 0 { "f".into() } else { format!("f{i}") }),
            directory.join(format!("f{}", i + 1)),
        )
        .unwrap();
    }
}

#[test]
fn case_21_an_overflow_means_everything_and_what_came_meanwhile_is_watched() {
    for_each_source(|sources| {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let gate = Arc::new(Gate::default());
        let hints = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let watcher = Watcher::start_with(dir.path().to_owned(), Options { sources, ..Options::default() }, {
            let (gate, hints) = (Arc::clone(&gate), Arc::clone(&hints));
            move |hint: Result<Hint, WatchError>| {
                gate.pass();
                hints.0.lock().unwrap().push(hint.unwrap());
                hints.1.notify_all();
            }
        })
        .unwrap();
        watcher.set_interests(vec![interest("/d/t"), interest("/new/t")]);
        // The watcher's thread is stopped in the middle of this one.
        write(dir.path().join("d/t"), "x");
        storm(&dir.path().join("d"));
        // Nobody is told of this one.
        fs::create_dir(dir.path().join("new")).unwrap();
        gate.open();
        let wait_for = |is_expected: &dyn Fn(&Hint) -> bool| {
            let heard = hints.0.lock().unwrap();
            let (mut heard, timeout) =
                hints.1.wait_timeout_while(heard, DEADLINE, |heard| !heard.iter().any(is_expected)).unwrap();
            assert!(!timeout.timed_out(), "{heard:?}");
            heard.clear();
        };
        wait_for(&|hint| matches!(hint, Hint::Everything { why } if why.contains("overflow")));
        assert!(watcher.stats().n_overflows >= 1);
        write(dir.path().join("new/t"), "in a directory that came while the queue was full");
        wait_for(&|hint| matches!(hint, Hint::Look(look) if look.contains(&watch_common::id("/new/t"))));
    });
}

#[test]
fn case_22_where_watches_run_out_paths_are_polled_and_coverage_says_so() {
    for_each_source(|sources| {
        // The root takes the only one.
        let guard = Guard::with(Options { sources, max_watches: 1, ..Options::default() }, &["/top", "/d/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
            write(root.join("d/t"), "good");
        });
        let coverage = guard.watcher.coverage();
        let n_watched = coverage.n_fanotify + coverage.n_inotify;
        assert_eq!((n_watched, coverage.n_polled, coverage.n_blind), (1, 1, 0));
        let [complaint] = &coverage.complaints[..] else { panic!("{coverage:?}") };
        assert_eq!(complaint.interest, interest("/d/t"));
        assert!(matches!(&complaint.how, How::Polled { why } if why.contains("max_user_watches")), "{complaint:?}");
        assert_eq!(guard.watcher.stats().n_watches, 1);
        let start = Instant::now();
        write(guard.at("/d/t"), "evil");
        guard.expect("/d/t");
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
        fs::set_permissions(guard.at("/d/t"), fs::Permissions::from_mode(0o777)).unwrap();
        guard.expect("/d/t");
        fs::remove_dir_all(guard.at("/d")).unwrap();
        guard.expect("/d/t");
    });
}

#[test]
fn case_22_no_watch_at_all_is_no_reason_to_stop() {
    for_each_source(|sources| {
        let guard = Guard::with(Options { sources, max_watches: 0, ..Options::default() }, &["/d/t"], |_| {});
        fs::create_dir(guard.at("/d")).unwrap();
        write(guard.at("/d/t"), "new");
        guard.expect("/d/t");
        assert_eq!(guard.watcher.stats().n_watches, 0);
    });
}

/// Runs the test of this name again, in a user namespace of its own in which `limit` was written to the file `sysctl`.
fn with_limit(test: &str, sysctl: &str, limit: &str, inner: fn()) {
    const IS_INNER: &str = "REKINDLE_TEST_HAS_LIMIT";
    if std::env::var_os(IS_INNER).is_some() {
        return inner();
    }
    let script = format!("echo {limit} > /proc/sys/user/{sysctl} && exec \"$0\" --exact {test} --nocapture");
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(IS_INNER, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("unshare failed") && std::env::var_os("CI").is_none() {
        eprintln!("not run: {said}");
        return;
    }
    assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn case_22_exhausted_watches_mean_polling() {
    let name = "case_22_exhausted_watches_mean_polling";
    with_limit(name, "max_inotify_watches", "10", || {
        let paths: Vec<String> = (0..20).map(|i| format!("/d{i}/t")).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let guard = Guard::new(Sources::All, &paths, |root| {
            for i in 0..20 {
                fs::create_dir(root.join(format!("d{i}"))).unwrap();
            }
        });
        // One is the root's.
        let coverage = guard.watcher.coverage();
        assert_eq!((coverage.n_fanotify, coverage.n_inotify, coverage.n_polled), (0, 9, 11));
        let is_said = |how: &How| matches!(how, How::Polled { why } if why.contains("max_user_watches"));
        assert!(coverage.complaints.iter().all(|complaint| is_said(&complaint.how)), "{coverage:?}");
        for i in 0..20 {
            write(guard.at(&format!("/d{i}/t")), "new");
        }
        guard.expect_all(&paths);
    });
}

#[test]
fn case_23_exhausted_instances_mean_polling() {
    let name = "case_23_exhausted_instances_mean_polling";
    with_limit(name, "max_inotify_instances", "0", || {
        let guard = Guard::new(Sources::All, &["/d/t"], |root| fs::create_dir(root.join("d")).unwrap());
        let coverage = guard.watcher.coverage();
        assert_eq!(coverage.n_polled, 1);
        let [complaint] = &coverage.complaints[..] else { panic!("{coverage:?}") };
        assert!(matches!(&complaint.how, How::Polled { why } if why.contains("max_user_instances")), "{complaint:?}");
        write(guard.at("/d/t"), "new");
        guard.expect("/d/t");
    });
}

/// The descriptors by which this process watches the directory `path`, with the number of the watch for those of inotify.
fn kernel_watches(path: &Path) -> Vec<(OwnedFd, Option<i32>)> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    use std::os::unix::fs::MetadataExt;
    let inode = format!("ino:{:x} ", fs::metadata(path).unwrap().ino());
    let me = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
        // A descriptor of another test may be closed by now.
        let Ok(info) = fs::read_to_string(entry.path()) else { continue };
        let line = info.lines().find(|line| line.contains("notify ") && line.contains(&inode));
        let Some(line) = line else { continue };
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        let fd = pidfd_getfd(&me, number, PidfdGetfdFlags::empty()).unwrap();
        let wd = line.split("wd:").nth(1).and_then(|rest| rest.split(' ').next());
        found.push((fd, wd.map(|wd| i32::from_str_radix(wd, 16).unwrap())));
    }
    found
}

/// How many marks a group of fanotify has.
fn n_marks(fd: &OwnedFd) -> usize {
    use std::os::fd::AsRawFd;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    info.lines().filter(|line| line.starts_with("fanotify ino:")).count()
}

fn self_testing(sources: Sources, directory: &Path) -> Options {
    let self_test = SelfTest {
        directory: directory.to_owned(),
        every: Duration::from_millis(50),
        patience: Duration::from_secs(1),
    };
    Options { sources, self_test: Some(self_test), ..Options::default() }
}

#[test]
fn case_45_watches_that_silently_stopped_are_armed_anew() {
    use rustix::fs::inotify::{WatchFlags, add_watch};
    for_each_source(|sources| {
        let runtime = tempfile::tempdir().unwrap();
        let canary = runtime.path().join("canary");
        let guard = Guard::with(self_testing(sources, &canary), &["/d/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
        });
        let watches = kernel_watches(&canary);
        assert_eq!(watches.len(), if sources == Sources::All { 2 } else { 1 });
        let coverage = guard.watcher.coverage();
        assert_eq!((coverage.n_failed_tests, coverage.self_test), (0, None));
        for (fd, wd) in watches {
            match wd {
                // Watched for something else, which no event announces.
                Some(_) => {
                    for directory in [&canary, &guard.at("/d"), &guard.at("/")] {
                        add_watch(&fd, directory, WatchFlags::DELETE_SELF).unwrap();
                    }
                }
                None => rekindle::host::fanotify::Group::from(fd).flush().unwrap(),
            }
        }
        guard.expect_hints(|hint| matches!(hint, Hint::Everything { why } if why.contains("self-test")));
        let deadline = Instant::now() + DEADLINE;
        while guard.watcher.coverage().self_test.is_some() {
            assert!(Instant::now() < deadline, "{:?}", guard.watcher.coverage());
        }
        assert!(guard.watcher.coverage().n_failed_tests >= 1);
        guard.settle();
        write(guard.at("/d/t"), "evil");
        guard.expect("/d/t");
    });
}

#[test]
fn case_45_a_watch_that_the_kernel_dropped_is_armed_again() {
    use rustix::fs::inotify::remove_watch;
    let guard = Guard::new(Sources::InotifyOnly, &["/d/t"], |root| fs::create_dir(root.join("d")).unwrap());
    for (fd, wd) in kernel_watches(&guard.at("/d")) {
        remove_watch(&fd, wd.unwrap()).unwrap();
    }
    guard.expect("/d/t");
    guard.settle();
    write(guard.at("/d/t"), "evil");
    guard.expect("/d/t");
}

#[test]
fn case_45_a_directory_for_tests_that_is_removed_is_no_failure() {
    for_each_source(|sources| {
        let runtime = tempfile::tempdir().unwrap();
        let canary = runtime.path().join("canary");
        let guard = Guard::with(self_testing(sources, &canary), &["/d/t"], |_| {});
        fs::remove_dir_all(&canary).unwrap();
        let deadline = Instant::now() + DEADLINE;
        let n_watches = if sources == Sources::All { 2 } else { 1 };
        while !canary.is_dir() || kernel_watches(&canary).len() != n_watches {
            assert!(Instant::now() < deadline, "{:?}", guard.watcher.coverage());
            guard.watcher.stats();
        }
        let coverage = guard.watcher.coverage();
        assert_eq!((coverage.n_failed_tests, coverage.self_test), (0, None));
    });
}

/// A mark can be removed only through its directory, and these went where the watcher does not look.
#[test]
fn marks_of_directories_that_went_elsewhere_do_not_pile_up() {
    let guard = Guard::new(Sources::All, &["/d/t"], |root| fs::create_dir(root.join("away")).unwrap());
    for i in 0..300 {
        fs::create_dir(guard.at("/d")).unwrap();
        guard.watcher.stats();
        fs::rename(guard.at("/d"), guard.at(&format!("/away/{i}"))).unwrap();
        guard.watcher.stats();
    }
    assert_eq!(guard.watcher.stats().n_watches, 1);
    for (fd, wd) in kernel_watches(guard.dir.path()) {
        if wd.is_none() {
            assert!(n_marks(&fd) < 100, "{} marks for one directory", n_marks(&fd));
        }
    }
    fs::create_dir(guard.at("/d")).unwrap();
    guard.settle();
    write(guard.at("/d/t"), "new");
    guard.expect("/d/t");
}

#[test]
fn watches_that_come_free_are_taken() {
    for_each_source(|sources| {
        let guard = Guard::with(Options { sources, max_watches: 2, ..Options::default() }, &["/a/t", "/b/t"], |root| {
            fs::create_dir(root.join("a")).unwrap();
            fs::create_dir(root.join("b")).unwrap();
        });
        let polled = || guard.watcher.coverage().n_polled;
        assert_eq!(polled(), 1);
        guard.watcher.set_interests(vec![interest("/b/t")]);
        guard.watcher.refresh();
        assert_eq!(polled(), 0);
        write(guard.at("/b/t"), "new");
        guard.expect("/b/t");
    });
}

#[test]
fn case_20_two_paths_to_one_directory_share_a_watch_and_neither_takes_it_from_the_other() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/real/t", "/alias/t"], |root| {
            fs::create_dir(root.join("real")).unwrap();
            write(root.join("real/t"), "good");
            symlink("real", root.join("alias")).unwrap();
        });
        let n_watches = guard.watcher.stats().n_watches;
        write(guard.at("/real/t"), "evil");
        guard.expect_all(&["/real/t", "/alias/t"]);
        guard.watcher.set_interests(vec![interest("/real/t")]);
        assert_eq!(guard.watcher.stats().n_watches, n_watches);
        guard.settle();
        write(guard.at("/real/t"), "evil again");
        guard.expect("/real/t");
        guard.watcher.set_interests(vec![interest("/alias/t")]);
        guard.settle();
        write(guard.at("/real/t"), "and again");
        guard.expect("/alias/t");
        guard.watcher.set_interests(Vec::new());
        guard.settle();
        write(guard.at("/real/t"), "nobody's business");
        guard.expect_silence();
    });
}

#[test]
fn one_path_may_matter_to_many_resources() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &[], |root| {
            fs::create_dir(root.join("etc")).unwrap();
            write(root.join("etc/passwd"), "root:x:0:0");
        });
        let users: Vec<_> = (0..10)
            .map(|i| rekindle::watch::Interest {
                path: "/etc/passwd".into(),
                resource: rekindle::resource::ResourceId::new(rekindle::resource::Kind::User, format!("u{i}")),
            })
            .collect();
        guard.watcher.set_interests(users.clone());
        write(guard.at("/etc/passwd+"), "x");
        fs::rename(guard.at("/etc/passwd+"), guard.at("/etc/passwd")).unwrap();
        let mut missing: std::collections::BTreeSet<_> = users.into_iter().map(|user| user.resource).collect();
        guard.expect_hints(|hint| {
            if let Hint::Look(look) = hint {
                missing.retain(|id| !look.contains(id));
            }
            missing.is_empty()
        });
    });
}

#[test]
fn reloads_leak_no_watch_and_miss_no_change() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/keep/t"], |root| {
            for i in 0..100 {
                fs::create_dir_all(root.join(format!("many/{i}"))).unwrap();
            }
            fs::create_dir(root.join("keep")).unwrap();
            write(root.join("keep/t"), "good");
            fs::hard_link(root.join("keep/t"), root.join("many/link")).unwrap();
        });
        let baseline = guard.watcher.stats().n_watches;
        let more: Vec<_> = (0..1000)
            .map(|i| interest(&format!("/many/{}/f{i}", i % 100)))
            .chain([interest("/keep/t"), interest("/many/3"), interest("/missing/x")])
            .collect();
        for i in 0..50 {
            guard.watcher.set_interests(more.clone());
            assert!(guard.watcher.stats().n_watches > baseline + 90);
            guard.settle();
            write(guard.at("/keep/t"), &format!("evil {i}"));
            guard.watcher.set_interests(vec![interest("/keep/t")]);
            guard.expect("/keep/t");
            assert_eq!(guard.watcher.stats().n_watches, baseline, "after {i} reloads");
        }
    });
}

#[test]
fn ten_thousand_files_are_armed_quickly_with_a_watch_for_each_directory() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &[], |root| {
            for i in 0..100 {
                fs::create_dir_all(root.join(format!("d{i}"))).unwrap();
            }
        });
        let start = Instant::now();
        guard.watcher.set_interests((0..10_000).map(|i| interest(&format!("/d{}/f{i}", i % 100))).collect());
        let took = start.elapsed();
        assert_eq!(guard.watcher.stats().n_watches, 101);
        assert!(took.as_secs() < 5, "{took:?}");
    });
}

/// A small generator, so that a failure can be repeated.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn directory(&mut self) -> String {
        format!("a{}/b{}/c{}", self.below(4), self.below(3), self.below(3))
    }
}

/// One random change; most of them make ways come and go. Any of them may fail because of an earlier one.
fn churn(root: &Path, rng: &mut Rng, i: u32) -> std::io::Result<()> {
    match rng.below(10) {
        0..=4 => {
            let directory = root.join(rng.directory());
            fs::create_dir_all(&directory)?;
            fs::write(directory.join(format!("f{}", rng.below(3))), format!("{i}"))
        }
        5 => {
            let directory = root.join(rng.directory());
            fs::create_dir_all(&directory)?;
            fs::write(directory.join("tmp"), format!("{i}"))?;
            fs::rename(directory.join("tmp"), directory.join("f0"))
        }
        6 => fs::rename(root.join(format!("a{}", rng.below(4))), root.join(format!("a{}", rng.below(4)))),
        7 => fs::rename(root.join(rng.directory()), root.join(rng.directory())),
        8 => {
            let link = root.join(format!("a{}", rng.below(4)));
            if link.is_symlink() {
                fs::remove_file(&link)?;
            }
            symlink(format!("a{}", rng.below(4)), link)
        }
        _ => fs::remove_dir_all(root.join(format!("a{}", rng.below(4)))),
    }
}

/// Whoever looks exactly where the hints say ends up knowing what is there, whatever happened in between.
fn check_churn(sources: Sources, seed: u64) {
    let paths: Vec<String> =
        (0..4 * 3 * 3 * 3).map(|i| format!("/a{}/b{}/c{}/f{}", i / 27, i / 9 % 3, i / 3 % 3, i % 3)).collect();
    // In memory, where the changes come fastest.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let root = dir.path().to_owned();
    let dirty = Arc::new((Mutex::new(DirtySet::default()), Condvar::new()));
    let watcher = Watcher::start_with(root.clone(), Options { sources, ..Options::default() }, {
        let dirty = Arc::clone(&dirty);
        move |hint: Result<rekindle::watch::Hint, rekindle::watch::WatchError>| {
            if dirty.0.lock().unwrap().add(hint.unwrap()) {
                dirty.1.notify_all();
            }
        }
    })
    .unwrap();
    watcher.set_interests(paths.iter().map(|path| interest(path)).collect());
    let look = {
        let root = root.clone();
        move |path: &str| fs::read_to_string(root.join(path.trim_start_matches('/'))).ok()
    };
    let ended = Arc::new(AtomicBool::new(false));
    let observer = std::thread::spawn({
        let (dirty, ended, look, paths) = (Arc::clone(&dirty), Arc::clone(&ended), look.clone(), paths.clone());
        move || {
            let mut known: HashMap<String, Option<String>> = paths.iter().map(|path| (path.clone(), None)).collect();
            loop {
                let waiting = dirty.0.lock().unwrap();
                let hint = {
                    let mut waiting = dirty.1.wait_timeout(waiting, std::time::Duration::from_millis(1)).unwrap().0;
                    waiting.take()
                };
                match hint {
                    Some(Hint::Look(ids)) => {
                        known.extend(ids.into_iter().map(|id| (id.name.to_string(), look(&id.name))))
                    }
                    Some(Hint::Everything { .. }) => {
                        known.extend(paths.iter().map(|path| (path.clone(), look(path))));
                    }
                    None if ended.load(Ordering::SeqCst) => return known,
                    None => {}
                }
            }
        }
    });
    let mut rng = Rng(seed);
    let n_done = (0..4000).filter(|i| churn(&root, &mut rng, *i).is_ok()).count();
    assert!(n_done > 1000, "too little happened: {n_done}");
    // What happened before a call is hinted before it returns.
    watcher.stats();
    ended.store(true, Ordering::SeqCst);
    let known = observer.join().unwrap();
    let stale: Vec<_> = paths
        .iter()
        .filter_map(|path| {
            let truth = look(path);
            (known[path] != truth).then(|| (path.clone(), known[path].clone(), truth))
        })
        .collect();
    assert!(stale.is_empty(), "seed {seed}: {stale:?}");
    watcher.set_interests(Vec::new());
    assert_eq!(watcher.stats().n_watches, 0, "seed {seed}");
}

#[test]
fn after_any_churn_what_the_hints_showed_is_the_truth() {
    for_each_source(|sources| {
        for seed in [88_172_645_463_325_252, 1, 2, 3, 42, 1_234_567, 0xDEAD_BEEF, 987_654_321] {
            check_churn(sources, seed);
        }
    });
}
