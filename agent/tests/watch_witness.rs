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
    fs::create_dir(dir.path().join("d")).unwrap();
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
