//! Who did it, as the watcher tells its sink.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests change files as others do, and fail at once"
)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use rekindle::resource::{Kind, ResourceId};
use rekindle::watch::{Hint, Interest, Options, Sink, Sources, Touch, Touched, WatchError, Watcher, Witness};

type Seen = Arc<Mutex<Vec<Option<Arc<Witness>>>>>;

struct Recorder(Seen);

impl Sink for Recorder {
    fn touched(&mut self, touch: &Touch<'_>) -> Touched {
        self.0.lock().unwrap().push(touch.by.cloned());
        Touched::Settled
    }

    fn hint(&mut self, _hint: Hint) {}

    fn ended(&mut self, error: WatchError) {
        panic!("{error}");
    }
}

/// What a sink was told about what `act` did to `/d/t`.
fn witnesses(sources: Sources, act: impl FnOnce(&Path)) -> Vec<Option<Arc<Witness>>> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/t"), "good").unwrap();
    let seen = Seen::default();
    let options = Options { sources, ..Options::default() };
    let watcher = Watcher::start_with(dir.path().to_owned(), options, Recorder(Arc::clone(&seen))).unwrap();
    watcher.set_interests(vec![Interest { path: "/d/t".into(), resource: ResourceId::new(Kind::File, "/d/t") }]);
    act(&dir.path().join("d/t"));
    watcher.stats();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert!(!seen.is_empty(), "nothing was told");
    seen
}

fn has_fanotify() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    assert!(is_root || std::env::var_os("CI").is_none(), "this needs root");
    is_root
}

#[test]
fn a_writer_that_lives_is_known_by_number_and_descriptor() {
    if !has_fanotify() {
        return;
    }
    let seen = witnesses(Sources::All, |path| fs::write(path, "evil").unwrap());
    for witness in seen {
        let witness = witness.unwrap();
        assert_eq!(witness.pid, Some(std::process::id()));
        assert!(witness.pidfd.is_some());
        // Before Linux 6.13 the kernel does not tell more.
        if let Some(info) = &witness.info {
            assert_eq!((info.pid, info.uid), (Some(std::process::id()), Some(0)));
            assert!(info.cgroup_id.is_some());
        }
    }
}

#[test]
fn a_writer_that_is_gone_is_never_taken_for_another() {
    if !has_fanotify() {
        return;
    }
    for _ in 0..20 {
        let mut child = 0;
        let seen = witnesses(Sources::All, |path| {
            let script = "echo evil > \"$0\"";
            let mut shell = Command::new("sh").arg("-c").arg(script).arg(path).spawn().unwrap();
            child = shell.id();
            assert!(shell.wait().unwrap().success());
        });
        for witness in seen.into_iter().flatten() {
            assert_eq!(witness.pid, Some(child));
            if let Some(pid) = witness.info.and_then(|info| info.pid) {
                assert_eq!(pid, child);
            }
        }
    }
}

#[test]
fn where_the_source_cannot_tell_nobody_is_named() {
    let seen = witnesses(Sources::InotifyOnly, |path| fs::write(path, "evil").unwrap());
    assert!(seen.iter().all(Option::is_none), "{seen:?}");
}

/// Runs `test` on a thread that has no `CAP_SYS_ADMIN`.
fn without_privilege(test: impl FnOnce() + Send) {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| {
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::SYS_ADMIN);
            sets.permitted.remove(CapabilitySet::SYS_ADMIN);
            set_capabilities(None, sets).unwrap();
            test();
        });
        ended.join().unwrap();
    });
}

#[test]
fn case_24_without_privilege_inotify_serves_and_nobody_is_named() {
    without_privilege(|| {
        assert!(rekindle::host::fanotify::Group::open().is_err(), "the privilege is still there");
        for script in ["echo evil > \"$0\"", "mv \"$0\" \"$0.away\"", "chmod 777 \"$0\""] {
            let seen = witnesses(Sources::All, |path| {
                assert!(Command::new("sh").arg("-c").arg(script).arg(path).status().unwrap().success());
            });
            assert!(seen.iter().all(Option::is_none), "{script}: {seen:?}");
        }
    });
}

#[test]
fn case_26_a_writer_in_a_container_is_known_by_its_number_here() {
    if !has_fanotify() {
        return;
    }
    let script = "mkdir \"$1/m\" && mount --bind \"$1/d\" \"$1/m\" && echo evil > \"$1/m/t\"; echo $$";
    let mut container = 0;
    let seen = witnesses(Sources::All, |path| {
        let root = path.parent().and_then(Path::parent).unwrap();
        let options = ["--mount", "--pid", "--fork", "--mount-proc"];
        let mut unshare = Command::new("unshare");
        unshare.args(options).args(["sh", "-c", script, "sh"]).arg(root).stdout(std::process::Stdio::piped());
        let child = unshare.spawn().unwrap();
        container = child.id();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"1\n", "there it is the first process");
    });
    let numbers: Vec<u32> = seen.iter().flatten().filter_map(|witness| witness.pid).collect();
    assert!(!numbers.is_empty(), "{seen:?}");
    assert!(numbers.iter().all(|pid| *pid > container), "{numbers:?} are not the child of {container}");
}
