//! The fast half, on the watcher's thread: look, and put back at once.
//!
//! It waits for nothing but the file system and takes no more than a name in a directory, which the watcher opened. Everything
//! that can wait is a [`Deed`] for the keeper.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use jiff::Timestamp;
use rustix::io::Errno;

use super::look::{self, Found};
use super::table::{self, Likeness, Pool, Table};
use super::{Order, Shared};
use crate::host::root::{self, Metadata, stat_of};
use crate::host::stage::Stage;
use crate::host::thread::most_open_files;
use crate::policy::Revision;
use crate::resource::ResourceId;
use crate::watch::{Hint, Sink, Touch, Touched, WatchError, Witness};

/// Most deeds that the keeper may have before it; beyond that ordinary runs repair, which cannot outrun the disk. Each holds a
/// descriptor, so it is no more than half of what the process may have open.
const MOST_OPEN: usize = 8192;

/// Most deeds for which a descriptor of their process is kept until the keeper has found out who it was.
const MOST_WITNESSES: usize = 512;

/// Something that was put back and is not yet durable, recorded or told.
#[derive(Debug)]
pub(super) struct Deed {
    pub(super) resource: ResourceId,
    /// The pool that is short of copies since.
    pub(super) short: Option<u32>,
    pub(super) revision: Option<Arc<Revision>>,
    /// What was declared.
    pub(super) likeness: Arc<Likeness>,
    pub(super) stage: Arc<Stage>,
    /// The directory of the file, to be synced.
    pub(super) directory: OwnedFd,
    pub(super) what: What,
    /// Who was seen to touch the file.
    pub(super) by: Option<Arc<Witness>>,
    pub(super) time: Timestamp,
    pub(super) took_us: u64,
}

/// What was done.
#[derive(Debug)]
pub(super) enum What {
    /// A copy took the place of something, which is now on the stage under this name.
    Exchanged(String),
    /// A copy took an empty place.
    Placed,
    /// Owner, group or mode were set; this is what they were.
    Permissions(File, Metadata),
}

/// The watcher's sink.
pub struct Reflex<H> {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
    hints: H,
    seen: Seen,
    buffer: Vec<u8>,
    /// See [`MOST_OPEN`].
    most_open: usize,
}

/// Told who was seen at resources that are left to ordinary runs.
type Seen = Box<dyn FnMut(&[ResourceId], &Arc<Witness>) + Send>;

impl<H> std::fmt::Debug for Reflex<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reflex").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl<H> Reflex<H> {
    pub(super) fn new(shared: Arc<Shared>, orders: mpsc::Sender<Order>, hints: H) -> Self {
        let most_open = (most_open_files() / 2).min(MOST_OPEN);
        Self { shared, orders, hints, seen: Box::new(|_, _| ()), buffer: Vec::with_capacity(64 * 1024), most_open }
    }

    /// Also says who was seen at what is left to ordinary runs, just before the hint.
    pub fn telling(mut self, seen: impl FnMut(&[ResourceId], &Arc<Witness>) + Send + 'static) -> Self {
        self.seen = Box::new(seen);
        self
    }

    /// Who did it, to be remembered with a deed. Without a descriptor once there are many deeds: the keeper is busy, and then
    /// only what the kernel said at once is told.
    fn witness(&self, touch: &Touch<'_>) -> Option<Arc<Witness>> {
        let by = touch.by?;
        if self.shared.n_unidentified.load(Ordering::Relaxed) < MOST_WITNESSES {
            return Some(Arc::clone(by));
        }
        Some(Arc::new(Witness { pid: by.pid, pidfd: None, info: by.info }))
    }

    /// Puts a guarded file back. `None` when it is left to an ordinary run.
    fn put_back(&mut self, touch: &Touch<'_>) -> Option<()> {
        let began = Instant::now();
        // Whoever else is interested in the path has to look for themselves.
        let mut resources = touch.resources.iter();
        let (Some(resource), None) = (resources.next(), resources.next()) else { return None };
        let mut table = self.shared.table();
        let Table { live: true, revision, entries, pools, directories, held, .. } = &mut *table else {
            return None;
        };
        let index = table::find(entries, resource)?;
        let entry = entries.get(index)?;
        if held.get(resource).is_some_and(|until| *until > began) {
            return None;
        }
        let pool = pools.get_mut(usize::try_from(entry.pool).ok()?)?;
        let directory = directories.get(usize::try_from(entry.directory).ok()?)?;
        if pool.stage.mount() != touch.mount || stat_of(&touch.directory).ok()?.identity != *directory {
            return None;
        }
        let found = look::look(touch.directory, touch.name, &pool.likeness, &mut self.buffer);
        if matches!(found, Found::InSync) {
            return Some(());
        }
        if self.shared.n_open.load(Ordering::Relaxed) >= self.most_open {
            return None;
        }
        // Before anything is changed, so that nothing changed goes untold.
        let directory = touch.directory.try_clone_to_owned().ok()?;
        let what = match found {
            Found::InSync | Found::Odd => return None,
            Found::Permissions(..) if !pool.likeness.notifies.is_empty() => return None,
            Found::Permissions(file, before) => {
                root::give(&file, &before, pool.likeness.common.permissions).ok()?;
                What::Permissions(file, before)
            }
            Found::Other => swap(pool, touch, &mut self.buffer, Swap::Exchange, &self.orders)?,
            Found::Absent => swap(pool, touch, &mut self.buffer, Swap::Place, &self.orders)?,
        };
        let is_short = !matches!(what, What::Permissions(..)) && pool.is_short();
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let deed = Deed {
            resource: resource.clone(),
            short: is_short.then_some(entry.pool),
            revision: revision.clone(),
            likeness: Arc::clone(&pool.likeness),
            stage: Arc::clone(&pool.stage),
            directory,
            what,
            time: Timestamp::now(),
            took_us,
            by: self.witness(touch),
        };
        drop(table);
        self.shared.n_open.fetch_add(1, Ordering::Relaxed);
        self.shared.n_unidentified.fetch_add(1, Ordering::Relaxed);
        // The keeper ends only with the process.
        self.orders.send(Order::Deed(deed)).ok()
    }
}

/// Whether something is to be displaced.
#[derive(Debug, Clone, Copy)]
enum Swap {
    Exchange,
    Place,
}

/// Puts a sound copy in place.
fn swap(
    pool: &mut Pool,
    touch: &Touch<'_>,
    buffer: &mut Vec<u8>,
    swap: Swap,
    orders: &mpsc::Sender<Order>,
) -> Option<What> {
    let stage = Arc::clone(&pool.stage);
    let entered = stage.enter().ok()?;
    loop {
        let number = pool.ready.pop()?;
        let name = Pool::copy_name(pool.key, number);
        if !entered.is_sound(&pool.likeness.copy(&name), buffer).unwrap_or(false) {
            // The keeper ends only with the process.
            drop(orders.send(Order::Unsound { stage: Arc::clone(&stage), name }));
            continue;
        }
        let exchange = || entered.exchange(&name, touch.directory, touch.name).map(|()| Done::Exchanged);
        let place = || entered.place(&name, touch.directory, touch.name).map(|()| Done::Placed);
        // What is there may come or go between the look and now.
        let done = match swap {
            Swap::Exchange => exchange().or_else(|errno| if errno == Errno::NOENT { place() } else { Err(errno) }),
            Swap::Place => place().or_else(|errno| if errno == Errno::EXIST { exchange() } else { Err(errno) }),
        };
        return match done {
            Ok(Done::Exchanged) => Some(What::Exchanged(name)),
            Ok(Done::Placed) => Some(What::Placed),
            Err(_) => {
                pool.ready.push(number);
                None
            }
        };
    }
}

enum Done {
    Exchanged,
    Placed,
}

impl<H: FnMut(Result<Hint, WatchError>) + Send> Sink for Reflex<H> {
    fn touched(&mut self, touch: &Touch<'_>) -> Touched {
        match self.put_back(touch) {
            Some(()) => Touched::Settled,
            None => {
                if let Some(by) = touch.by {
                    (self.seen)(touch.resources, by);
                }
                Touched::Look
            }
        }
    }

    fn hint(&mut self, hint: Hint) {
        (self.hints)(Ok(hint));
    }

    fn ended(&mut self, error: WatchError) {
        (self.hints)(Err(error));
    }
}
