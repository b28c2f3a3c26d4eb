//! A guard and its watcher over a temporary root, and waiting for what they do.

#![expect(unreachable_pub, clippy::unwrap_used, clippy::disallowed_methods, reason = "shared by several test programs")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rekindle::guard::{Arming, Declared, Guard, Places, Repaired};
use rekindle::host::root::Root;
use rekindle::policy::Revision;
use rekindle::record::Record;
use rekindle::resource::place::Ownership;
use rekindle::resource::{AbsPath, Content, Kind, Mode, Names, Notify, Principal, ResourceId, UnitName, file};
use rekindle::watch::{DirtySet, Hint, Interest, WatchError, Watcher};

/// Longer than any busy machine needs; reached only by a test that fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The content that every file of [`Sandbox::guard`] is declared with.
pub const GOOD: &str = "the declared content\n";

/// Repairs of one file that are told together: as many as there are.
pub const PATIENCE: u32 = u32::MAX;

type Shared<T> = Arc<(Mutex<T>, Condvar)>;

/// A guarded root. The state directory is beside it.
pub struct Sandbox {
    pub watcher: Watcher,
    pub guard: Guard,
    pub dir: tempfile::TempDir,
    repaired: Shared<Vec<Repaired>>,
    dirty: Shared<DirtySet>,
}

impl Sandbox {
    /// Prepares a root and declares `paths`, which are made as declared, and waits until they are guarded.
    pub fn guard(paths: &[&str]) -> Self {
        let sandbox = Self::new(tempfile::tempdir().unwrap());
        sandbox.arm(paths);
        sandbox
    }

    /// Starts the guard of a directory, with nothing guarded yet.
    pub fn new(dir: tempfile::TempDir) -> Self {
        Self::with_root(dir, |root| root)
    }

    /// As [`Self::new`], with a root that knows more than its path.
    pub fn with_root(dir: tempfile::TempDir, equip: impl FnOnce(Root) -> Root) -> Self {
        let root = dir.path().join("root");
        let state = dir.path().join("state");
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&state).unwrap();
        drop(Record::open(&state).unwrap());
        let record = Record::open_beside(&state).unwrap();
        let repaired: Shared<Vec<Repaired>> = Arc::default();
        let tell = {
            let repaired = Arc::clone(&repaired);
            move |repairs: Vec<Repaired>| {
                repaired.0.lock().unwrap().extend(repairs);
                repaired.1.notify_all();
            }
        };
        let places = Places { root: equip(Root::open(&root).unwrap()), state };
        let guard = Guard::start(places, record, PATIENCE, tell).unwrap();
        let dirty: Shared<DirtySet> = Arc::default();
        let sink = {
            let dirty = Arc::clone(&dirty);
            guard.reflex(move |hint: Result<Hint, WatchError>| {
                dirty.0.lock().unwrap().add(hint.unwrap());
                dirty.1.notify_all();
            })
        };
        let watcher = Watcher::start(root, sink).unwrap();
        Self { watcher, guard, dir, repaired, dirty }
    }

    /// Makes `paths` as declared and guards exactly them.
    pub fn arm(&self, paths: &[&str]) {
        for path in paths {
            let place = self.at(path);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(&place, GOOD).unwrap();
            fs::set_permissions(&place, fs::Permissions::from_mode(0o644)).unwrap();
        }
        self.watcher.set_interests(paths.iter().copied().map(interest).collect());
        let declared = paths.iter().map(|path| declared(path, GOOD, &[])).collect();
        self.arm_as(declared, paths.len());
    }

    /// Guards what is declared, and waits until `n` of it are ready.
    pub fn arm_as(&self, declared: Vec<Declared>, n: usize) {
        self.guard.disarm();
        self.guard.arm(self.guard.permit(), &Revision::new("r1"), declared, Arming::Only);
        self.wait("the files to be guarded", || self.guard.readiness().n_guarded == n);
    }

    /// Waits until every file has a copy again: drift that comes faster than the disk is left to ordinary runs, and here are none.
    #[track_caller]
    pub fn expect_ready(&self, n: usize) {
        self.wait("a copy for each file", || self.guard.readiness().n_guarded == n);
    }

    /// Where a path of the guarded host is.
    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path.trim_start_matches('/'))
    }

    pub fn stage(&self) -> PathBuf {
        self.dir.path().join("state/stage")
    }

    /// Waits until a file is as declared.
    #[track_caller]
    pub fn expect_good(&self, path: &str) {
        let place = self.at(path);
        self.wait(path, || is_good(&place));
    }

    /// Waits for a condition.
    #[track_caller]
    pub fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain for: {what}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Waits until `n` repairs were told, and returns all of them.
    #[track_caller]
    pub fn expect_repairs(&self, n: usize) -> Vec<Repaired> {
        let deadline = Instant::now() + DEADLINE;
        let mut repaired = self.repaired.0.lock().unwrap();
        while repaired.len() < n {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {n} repairs were told", repaired.len());
            repaired = self.repaired.1.wait_timeout(repaired, left).unwrap().0;
        }
        repaired.clone()
    }

    /// Repairs told so far.
    pub fn n_repairs(&self) -> usize {
        self.repaired.0.lock().unwrap().len()
    }

    /// Waits until the watcher has passed on all that happened so far, and takes what it left to ordinary runs.
    pub fn hints(&self) -> Option<Hint> {
        self.watcher.stats();
        self.dirty.0.lock().unwrap().take()
    }

    /// Waits until an ordinary run is asked for.
    #[track_caller]
    pub fn expect_hint(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut dirty = self.dirty.0.lock().unwrap();
        while dirty.take().is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no ordinary run was asked for");
            dirty = self.dirty.1.wait_timeout(dirty, left).unwrap().0;
        }
    }

    /// The history, oldest first.
    pub fn history(&self) -> Vec<rekindle::record::HistoryEntry> {
        let record = Record::open_read_only(&self.dir.path().join("state")).unwrap();
        let mut history = record
            .history(&rekindle::record::HistoryFilter { limit: 100_000, ..rekindle::record::HistoryFilter::default() })
            .unwrap();
        history.reverse();
        history
    }

    /// What was kept under a name.
    pub fn kept(&self, name: &str) -> Vec<u8> {
        rekindle::record::kept(&self.dir.path().join("state"), name).unwrap().unwrap()
    }
}

/// Whether a file has the declared content, mode and type.
pub fn is_good(place: &Path) -> bool {
    fs::symlink_metadata(place).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o7777 == 0o644)
        && fs::read(place).is_ok_and(|content| content == GOOD.as_bytes())
}

pub fn id(path: &str) -> ResourceId {
    ResourceId::new(Kind::File, path)
}

pub fn interest(path: &str) -> Interest {
    Interest { path: path.into(), resource: id(path) }
}

/// A file of the current user with mode 0644.
pub fn declared(path: &str, content: &str, notifies: &[(Notify, UnitName)]) -> Declared {
    let (uid, gid) = rekindle::host::current_ids();
    Declared {
        resource: id(path),
        path: AbsPath::new(path).unwrap(),
        spec: file::Spec {
            content: Content::new(content.as_bytes()),
            ownership: Arc::new(Ownership {
                owner: Principal::Agent,
                group: Principal::Agent,
                mode: Mode::from_bits(0o644),
            }),
            care: file::Care::default(),
        },
        names: Names { uid: Some(uid), gid: Some(gid) },
        notifies: notifies.to_vec(),
    }
}
