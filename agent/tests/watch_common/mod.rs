//! A watched root directory, and waiting for what the watcher says about it.

#![expect(unreachable_pub, clippy::unwrap_used, reason = "shared by several test programs")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rekindle::host::fanotify::Group;
use rekindle::resource::{Kind, ResourceId};
use rekindle::watch::{DirtySet, Hint, Interest, Options, Sources, Watcher};

/// Longer than any busy machine needs; reached only by a test that fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct Guard {
    pub watcher: Watcher,
    pub dir: tempfile::TempDir,
    dirty: Arc<(Mutex<DirtySet>, Condvar)>,
}

/// The resource that stands for a path.
pub fn id(path: &str) -> ResourceId {
    ResourceId::new(Kind::File, path)
}

pub fn interest(path: &str) -> Interest {
    Interest { path: path.into(), resource: id(path) }
}

/// Runs a test with every source of events that can be had, which for root is all of them.
pub fn for_each_source(test: impl Fn(Sources)) {
    eprintln!("with inotify only");
    test(Sources::InotifyOnly);
    match Group::open() {
        Ok(_) => {
            eprintln!("with fanotify");
            test(Sources::All);
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "fanotify must be tested: {error}");
            eprintln!("not run with fanotify: {error}");
        }
    }
}

impl Guard {
    /// Prepares a root, then watches `paths` beneath it.
    pub fn new(sources: Sources, paths: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        Self::with(Options { sources, ..Options::default() }, paths, prepare)
    }

    pub fn with(options: Options, paths: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let dirty = Arc::new((Mutex::new(DirtySet::default()), Condvar::new()));
        let on_hint = {
            let dirty = Arc::clone(&dirty);
            move |hint: Result<Hint, rekindle::watch::WatchError>| {
                dirty.0.lock().unwrap().add(hint.unwrap());
                dirty.1.notify_all();
            }
        };
        let watcher = Watcher::start_with(dir.path().to_owned(), options, on_hint).unwrap();
        watcher.set_interests(paths.iter().copied().map(interest).collect());
        // Everything else that was begun is done before this is answered: names are looked at after the ways are armed.
        watcher.stats();
        Self { watcher, dir, dirty }
    }

    /// Where a path of the watched host is.
    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    /// Waits until the watcher has said all about what happened so far, and forgets it.
    pub fn settle(&self) {
        self.watcher.stats();
        self.dirty.0.lock().unwrap().take();
    }

    /// Waits until `path` is hinted.
    #[track_caller]
    pub fn expect(&self, path: &str) {
        self.expect_all(&[path]);
    }

    /// Waits until all of `paths` are hinted.
    #[track_caller]
    pub fn expect_all(&self, paths: &[&str]) {
        let wanted: BTreeSet<ResourceId> = paths.iter().copied().map(id).collect();
        let mut seen = BTreeSet::new();
        self.expect_hints(|hint| {
            match hint {
                Hint::Everything { .. } => return true,
                Hint::Look(look) => seen.extend(look),
            }
            wanted.is_subset(&seen)
        });
    }

    /// Waits until a hint satisfies `enough`.
    #[track_caller]
    pub fn expect_hints(&self, mut enough: impl FnMut(Hint) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let mut dirty = self.dirty.0.lock().unwrap();
        loop {
            if let Some(hint) = dirty.take()
                && enough(hint)
            {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the hint did not come");
            dirty = self.dirty.1.wait_timeout(dirty, left).unwrap().0;
        }
    }

    /// Asserts that nothing that happened so far was hinted.
    #[track_caller]
    pub fn expect_silence(&self) {
        self.watcher.stats();
        assert_eq!(self.dirty.0.lock().unwrap().take(), None);
    }
}
