//! The watcher when something takes from it what it needs: limits, its watches, its time.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests change files as others do, and fail at once"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rekindle::watch::{Hint, How, Options, SelfTest, Sources, Watcher};

#[path = "watch_common/storm.rs"]
mod storm;
mod watch_common;
use storm::storm;
use watch_common::{DEADLINE, Guard, for_each_source, interest};

fn write(path: impl AsRef<Path>, content: &str) {
    fs::write(path, content).unwrap();
}

/// Runs the test of this name again, in a user namespace of its own in which `limit` was written to the file `sysctl`.
fn with_limit(test: &str, sysctl: &str, limit: &str, inner: fn()) {
    const IS_INNER: &str = "REKINDLE_TEST_HAS_LIMIT";
    if std::env::var_os(IS_INNER).is_some() {
        return inner();
    }
    let script = format!("echo {limit} > /proc/sys/user/{sysctl} && exec \"$0\" --exact {test} --nocapture");
    let output = Command::new("unshare")
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
        let deadline = Instant::now() + DEADLINE;
        // The file may be made again between its removal and that of the directory.
        while fs::remove_dir_all(&canary).is_err() {
            assert!(Instant::now() < deadline, "it cannot be removed");
        }
        let n_watches = if sources == Sources::All { 2 } else { 1 };
        while !canary.is_dir() || kernel_watches(&canary).len() != n_watches {
            assert!(Instant::now() < deadline, "{:?}", guard.watcher.coverage());
            guard.watcher.stats();
        }
        let coverage = guard.watcher.coverage();
        assert_eq!((coverage.n_failed_tests, coverage.self_test), (0, None));
        guard.expect_silence();
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

/// Says what it is told, on its standard output, for as long as it runs.
fn watch_and_tell(root: &Path, sources: Sources) {
    let self_test = SelfTest {
        directory: root.join("canary"),
        every: Duration::from_millis(100),
        patience: Duration::from_secs(10),
    };
    let options = Options { sources, self_test: Some(self_test), ..Options::default() };
    let watcher =
        Watcher::start_with(root.to_owned(), options, |hint: Result<Hint, _>| println!("{:?}", hint.unwrap())).unwrap();
    watcher.set_interests(vec![interest("/d/t"), interest("/new/t")]);
    // It is not to be stopped in the middle of something, but while it waits.
    watcher.stats();
    println!("armed");
    // Until its parent has seen enough.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn case_21_a_storm_while_it_is_stopped_means_everything_and_nothing_stays_unwatched() {
    const INNER: &str = "REKINDLE_TEST_WATCH_AND_TELL";
    let name = "case_21_a_storm_while_it_is_stopped_means_everything_and_nothing_stays_unwatched";
    if let Some(root) = std::env::var_os(INNER) {
        let sources = if std::env::var_os("INOTIFY_ONLY").is_some() { Sources::InotifyOnly } else { Sources::All };
        return watch_and_tell(Path::new(&root), sources);
    }
    for_each_source(|sources| {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env(INNER, dir.path());
        if sources == Sources::InotifyOnly {
            command.env("INOTIFY_ONLY", "1");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let (said, lines) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || out.lines().try_for_each(|line| said.send(line.unwrap())));
        // What is still missing of `what` at the deadline.
        let heard = |what: &[&'static str], deadline: Instant| {
            let mut missing = what.to_vec();
            while !missing.is_empty() {
                let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) else { break };
                missing.retain(|what| !line.contains(what));
            }
            missing
        };
        let stop_for = |span: Duration, meanwhile: &dyn Fn()| {
            kill(pid, Signal::SIGSTOP).unwrap();
            // Until then it may still wake from its wait, by what happens meanwhile.
            assert!(matches!(waitpid(pid, Some(WaitPidFlag::WUNTRACED)), Ok(WaitStatus::Stopped(..))));
            let until = Instant::now() + span;
            meanwhile();
            while let left = until.saturating_duration_since(Instant::now())
                && !left.is_zero()
            {
                assert_ne!(lines.recv_timeout(left).unwrap_err(), RecvTimeoutError::Disconnected);
            }
            kill(pid, Signal::SIGCONT).unwrap();
        };
        assert!(heard(&["armed"], Instant::now() + DEADLINE).is_empty());
        // It counts as a gap after two seconds more than it meant to wait.
        let span = Duration::from_millis(2500);
        stop_for(span, &|| {
            storm(&dir.path().join("d"));
            fs::create_dir(dir.path().join("new")).unwrap();
        });
        let missing = heard(&["overflowed", "could not run"], Instant::now() + DEADLINE / 4);
        assert!(!missing.contains(&"overflowed"), "it never said that the queue overflowed");
        // A stop that met it while it worked, instead of waiting, goes unnoticed, and may: the kernel kept what happened.
        let mut n_more = 0;
        while !missing.is_empty() && n_more < 5 {
            stop_for(span, &|| ());
            if heard(&missing, Instant::now() + DEADLINE / 4).is_empty() {
                break;
            }
            n_more += 1;
        }
        assert!(n_more < 5, "it never said {missing:?}");
        write(dir.path().join("new/t"), "in a directory that came while nobody could look");
        assert!(heard(&["/new/t"], Instant::now() + DEADLINE).is_empty());
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        reader.join().unwrap().unwrap_or_default();
    });
}
