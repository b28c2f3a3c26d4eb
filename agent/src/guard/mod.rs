//! Puts declared files back by itself, on the watcher's thread, in microseconds.
//!
//! An ordinary run makes a plan, writes what it is about to do to the journal, and only then changes anything: milliseconds,
//! most of them spent waiting for the disk. For a file that was in sync a moment ago all of that can be done beforehand. So
//! for each such file a copy lies on the [stage](crate::host::stage), synced, and when an event says that the file was
//! touched the [`reflex`] looks at it and, when it differs, exchanges the two names: one system call, atomic, nothing lost.
//! What is left, the [`keeper`] does on a thread of its own: make it durable, keep what was displaced, write the history, owe
//! what is owed, lay out a new copy, tell.
//!
//! - Only what the worker arms is guarded: files of the policy in force that it saw in sync, that policy says to repair, that
//!   nobody paused and nobody fights over. Whoever calls [`Guard::disarm`] or [`Guard::withdraw`] can rely on it at once.
//! - The guard never decides more than "as declared or not". Whatever is odd (a directory in the way, no copy left, another
//!   mount, a link among the parents, an error) it leaves to an ordinary run.
//! - A repair is told only when it is on the disk and in the journal. A kill at any point leaves what was displaced on the
//!   stage, where the next start finds it.

mod keeper;
mod left;
mod look;
mod plan;
mod reflex;
pub mod scan;
mod stages;
mod table;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::actor::Actor;
use crate::host::root::Root;
use crate::host::stage::Stage;
use crate::policy::Revision;
use crate::record::Record;
use crate::resource::{AbsPath, Action, Change, Names, Notify, ResourceId, UnitName, file};

pub use reflex::Reflex;
use table::Table;

/// A file that may be put back at once.
#[derive(Debug, Clone)]
pub struct Declared {
    /// Which.
    pub resource: ResourceId,
    /// Where.
    pub path: AbsPath,
    /// What it is.
    pub spec: file::Spec,
    /// The ids of its owner and group.
    pub names: Names,
    /// Services that are owed something when it had to be put back.
    pub notifies: Vec<(Notify, UnitName)>,
}

/// Which of the files that were guarded before stay so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arming {
    /// None but those named.
    Only,
    /// All of them.
    Besides,
}

/// Whether a file that is withdrawn was guarded until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Withdrawn {
    /// The guard may have put it back a moment ago.
    WasGuarded,
    /// The guard had no part in it.
    WasNot,
}

/// A file that was put back, durably.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// Which.
    pub resource: ResourceId,
    /// Its entry in the history; `None` when the journal could not be written.
    pub step: Option<i64>,
    /// What differed.
    pub changes: Vec<Change>,
    /// The verb.
    pub action: Action,
    /// Name of the backup of what was displaced, which is the SHA-256 of its content.
    pub backup: Option<String>,
    /// What is owed because of it.
    pub notifies: Vec<(Notify, UnitName)>,
    /// Who made it necessary, as far as that is known.
    pub actor: Option<Actor>,
    /// From the moment that the event was read to the moment that the right file was in place, in microseconds.
    pub took_us: u64,
}

/// What the guard has ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Files that would be put back at once.
    pub n_guarded: usize,
    /// Copies on the stage.
    pub n_copies: usize,
}

/// Where the guard works.
#[derive(Debug)]
pub struct Places {
    /// The managed root.
    pub root: Root,
    /// The state directory; the stage of its mount is in it.
    pub state: PathBuf,
}

/// Handle of the guard. Dropping it ends and joins the keeper, after what is under way.
#[derive(Debug)]
pub struct Guard {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
    keeper: Option<JoinHandle<()>>,
}

/// What the watcher's thread, the worker and the keeper share. Held only for moments: the watcher's thread waits for it.
#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    /// Deeds that the keeper has not finished.
    n_open: AtomicUsize,
    /// Deeds of which the keeper has not yet found out who it was.
    n_unidentified: AtomicUsize,
    /// See [`Guard::set_patience`].
    patience: AtomicU32,
    /// Counts disarmings: what was to be armed before one must not be armed after it.
    generation: AtomicU64,
}

impl Shared {
    /// A poisoned lock cannot happen: a panic ends the process.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to guard what is known at the time.
#[derive(Debug, Clone, Copy)]
pub struct Permit {
    generation: u64,
}

/// When an order was given.
#[derive(Debug, Clone, Copy)]
struct Ordered {
    generation: u64,
    n_withdrawals: u64,
}

/// What the keeper is told.
#[derive(Debug)]
enum Order {
    Arm { revision: Revision, declared: Vec<Declared>, arming: Arming, ordered: Ordered },
    Deed(reflex::Deed),
    Unsound { stage: Arc<Stage>, name: String },
    Stop,
}

impl Guard {
    /// Starts the keeper. `record` is a record of its own, beside the worker's; for `patience` see [`Self::set_patience`]. `tell`
    /// is called on the keeper's thread.
    ///
    /// # Errors
    ///
    /// When the thread cannot be made.
    pub fn start(
        places: Places,
        record: Record,
        patience: u32,
        tell: impl Fn(Vec<Repaired>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { patience: AtomicU32::new(patience), ..Shared::default() });
        let (orders, received) = mpsc::channel();
        let keeper = std::thread::Builder::new().name("keeper".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || keeper::Keeper::new(places, record, shared, Box::new(tell)).run(&received)
        })?;
        Ok(Self { shared, orders, keeper: Some(keeper) })
    }

    /// The watcher's sink: settles what it can, and hands everything else to `hints`.
    pub fn reflex<H>(&self, hints: H) -> Reflex<H> {
        Reflex::new(Arc::clone(&self.shared), self.orders.clone(), hints)
    }

    /// How many repairs of one file may be told together: a burst is told at its end, but whoever decides about fights must hear
    /// of one before it has gone on for long.
    pub fn set_patience(&self, n_repairs: u32) {
        self.shared.patience.store(n_repairs, Ordering::Relaxed);
    }

    /// What has to be asked for before anything is looked up that says what may be guarded: pauses, the mode, the policy.
    pub fn permit(&self) -> Permit {
        Permit { generation: self.shared.generation.load(Ordering::SeqCst) }
    }

    /// Guards files, once their copies are ready. Nothing is guarded when the guard was disarmed since the permit was given.
    pub fn arm(&self, permit: Permit, revision: &Revision, declared: Vec<Declared>, arming: Arming) {
        let ordered = Ordered { generation: permit.generation, n_withdrawals: self.shared.table().n_withdrawals() };
        let order = Order::Arm { revision: revision.clone(), declared, arming, ordered };
        if self.orders.send(order).is_err() {
            tracing::debug!("the keeper is gone; nothing is armed");
        }
    }

    /// Guards nothing any more. When it returns, nothing is put back until files are armed again.
    pub fn disarm(&self) {
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.shared.table().live = false;
    }

    /// Leaves one file alone until it is armed again: somebody else is about to work on it. What they saw before may not be
    /// there any more when it was guarded until now.
    pub fn withdraw(&self, resource: &ResourceId) -> Withdrawn {
        self.shared.table().withdraw(resource)
    }

    /// Leaves one file alone until a time: somebody fights over it.
    pub fn hold(&self, resource: &ResourceId, until: Instant) {
        let now = Instant::now();
        let mut table = self.shared.table();
        table.held.retain(|_, until| *until > now);
        table.held.insert(resource.clone(), until);
    }

    /// Whether a file would be put back at once now.
    pub fn guards(&self, resource: &ResourceId) -> bool {
        self.shared.table().guards(resource)
    }

    /// What is ready now.
    pub fn readiness(&self) -> Readiness {
        self.shared.table().readiness()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take()
            && self.orders.send(Order::Stop).is_ok()
            && keeper.join().is_err()
        {
            tracing::error!("the keeper panicked");
        }
    }
}
