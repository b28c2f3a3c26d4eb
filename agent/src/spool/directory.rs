//! Reads and writes one spool directory, by directory handle and never by path, synchronously.
//!
//! It never follows a symbolic link, never opens anything but a regular file, never reads more than
//! [`MAX_MESSAGE`] bytes, and never shows a partial file under its final name. A message that cannot be used is renamed to
//! `<id>.bad`, once, and reported; it never blocks the messages behind it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    Alert, CheckInState, CourierState, Event, FetchNow, FetchResult, MAX_MESSAGE, Outgoing, OutgoingBody, ReimageReply,
};

#[cfg(test)]
mod tests;

/// Most alerts that wait in an outbox; beyond it, the oldest repairs are merged.
pub const MAX_QUEUED: usize = 10_000;

/// Directory entries looked at before a directory is declared flooded.
const MAX_ENTRIES: usize = 200_000;

/// Messages that could not be used and are kept for a person to look at.
const MAX_BAD: usize = 100;

/// Age after which a temporary file is a leftover of a killed writer.
const LEFTOVER_SECONDS: i64 = 600;

/// One spool directory.
#[derive(Debug)]
pub struct Spool {
    dir: OwnedFd,
    path: PathBuf,
    gid: u32,
    max_queued: usize,
    memory: Mutex<Memory>,
}

/// What a writer remembers between messages.
#[derive(Debug, Default)]
struct Memory {
    /// Milliseconds of the newest id that was given out.
    last_ms: i64,
    /// Upper bound of the number of queued messages; the other side only ever lowers the true number.
    n_at_most: Option<usize>,
}

/// A file of a fixed name of which only the newest content matters.
pub trait Slot: Serialize + DeserializeOwned {
    /// Its file name.
    const NAME: &'static str;
    /// Its permission bits.
    const MODE: u32 = 0o640;
    /// The format version that the content claims; only 1 is read.
    fn version(&self) -> u32;
}

macro_rules! slots {
    ($($type:ty => $name:literal),+ $(,)?) => {
        $(impl Slot for $type {
            const NAME: &'static str = $name;
            fn version(&self) -> u32 {
                self.version
            }
        })+
    };
}

slots! {
    CheckInState => "checkin.json",
    FetchNow => "fetch.json",
    FetchResult => "fetch.json",
    ReimageReply => "reimage.json",
    CourierState => "courier.json",
}

/// What [`Spool::enqueue`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Enqueued {
    /// The message is durable.
    Stored,
    /// The message is durable, and the outbox was full: this many older alerts were merged into one or dropped.
    StoredAfterMerging {
        /// Alerts that no receiver will see one by one.
        n_alerts: usize,
    },
}

/// What went wrong in a spool directory.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The directory itself.
    #[error("cannot open spool directory `{}`", path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its entries.
    #[error("cannot list spool directory `{}`", path.display())]
    List {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file could not be read; it was left where it is.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file could not be written; nothing is visible under its name that was not there before.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file could not be removed.
    #[error("cannot remove `{}`", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A value that could not be turned into JSON, or is longer than [`MAX_MESSAGE`].
    #[error("cannot store `{}`: {why}", path.display())]
    Unstorable {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A file whose content or type is refused. A message has been set aside as `<id>.bad`; a slot stays until it is rewritten.
    #[error("refused `{}`: {why}", path.display())]
    Refused {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl SpoolError {
    /// Whether there is no room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Write { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Open { .. }
            | Self::List { .. }
            | Self::Read { .. }
            | Self::Remove { .. }
            | Self::Unstorable { .. }
            | Self::Refused { .. } => false,
        }
    }
}

/// Names a message: sortable by creation, unique by chance.
pub fn new_id(now: Timestamp, random: u64) -> String {
    let ms = now.as_millisecond().clamp(0, 9_999_999_999_999);
    format!("{ms:013}-{random:016x}")
}

/// Whether `id` has the form of a message id, and so is safe as part of a file name.
fn is_id(id: &str) -> bool {
    id.split_once('-').is_some_and(|(ms, chance)| {
        ms.len() == 13
            && ms.bytes().all(|b| b.is_ascii_digit())
            && chance.len() == 16
            && chance.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// What one look at a file found.
enum Found {
    Absent,
    Content(Vec<u8>),
    Refused(String),
}

impl Spool {
    /// Opens an existing directory, and removes temporary files that a killed writer left there long ago.
    pub fn open(path: &Path) -> Result<Self, SpoolError> {
        let failed = |errno: Errno| SpoolError::Open { path: path.to_owned(), source: errno.into() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let gid = rustix::fs::fstat(&dir).map_err(failed)?.st_gid;
        let spool = Self { dir, path: path.to_owned(), gid, max_queued: MAX_QUEUED, memory: Mutex::default() };
        spool.remove_leftovers()?;
        Ok(spool)
    }

    /// Where it was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names the next message so that it sorts behind every message that is queued, even when the clock stands or goes back.
    pub fn next_id(&self, now: Timestamp, random: u64) -> Result<String, SpoolError> {
        let mut memory = self.memory();
        if memory.n_at_most.is_none() {
            self.remember(&mut memory)?;
        }
        let ms = now.as_millisecond().max(memory.last_ms.saturating_add(1));
        memory.last_ms = ms;
        Ok(new_id(Timestamp::from_millisecond(ms).unwrap_or(now), random))
    }

    /// Queues a message durably. When [`MAX_QUEUED`] messages wait already, the oldest repairs among them are merged into
    /// one; calls about a reimage are never dropped.
    pub fn enqueue(&self, message: &Outgoing) -> Result<Enqueued, SpoolError> {
        let name = format!("{}.json", message.id);
        if !is_id(&message.id) {
            return Err(SpoolError::Unstorable { path: self.path.join(name), why: "its id is malformed".to_owned() });
        }
        let mut memory = self.memory();
        if memory.n_at_most.is_none_or(|n| n >= self.max_queued) {
            self.remember(&mut memory)?;
        }
        let n_alerts = match memory.n_at_most {
            Some(n) if n >= self.max_queued => {
                let n_alerts = self.make_room()?;
                self.remember(&mut memory)?;
                n_alerts
            }
            Some(_) | None => 0,
        };
        self.write(&name, 0o640, message)?;
        memory.n_at_most = memory.n_at_most.map(|n| n.saturating_add(1));
        Ok(if n_alerts == 0 { Enqueued::Stored } else { Enqueued::StoredAfterMerging { n_alerts } })
    }

    /// Ids of the queued messages, oldest first.
    pub fn list(&self) -> Result<Vec<String>, SpoolError> {
        let mut ids: Vec<String> = self
            .names()?
            .iter()
            .filter_map(|name| name.strip_suffix(".json"))
            .filter(|id| is_id(id))
            .map(str::to_owned)
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reads a queued message; `None` when it is gone. One that is refused is set aside first.
    pub fn read(&self, id: &str) -> Result<Option<Outgoing>, SpoolError> {
        if !is_id(id) {
            return Err(SpoolError::Refused { path: self.path.join(id), why: "its id is malformed".to_owned() });
        }
        let name = format!("{id}.json");
        let why = match self.content(&name)? {
            Found::Absent => return Ok(None),
            Found::Refused(why) => why,
            Found::Content(bytes) => match serde_json::from_slice::<Outgoing>(&bytes) {
                Ok(message) if message.version != 1 => format!("version {} is unknown", message.version),
                Ok(message) if message.id != id => "its id differs from its name".to_owned(),
                Ok(message) => return Ok(Some(message)),
                Err(error) => error.to_string(),
            },
        };
        self.set_aside(&name, &format!("{id}.bad"))?;
        Err(SpoolError::Refused { path: self.path.join(name), why })
    }

    /// Removes a queued message durably; `false` when it was gone already.
    pub fn remove(&self, id: &str) -> Result<bool, SpoolError> {
        if !is_id(id) {
            return Err(SpoolError::Refused { path: self.path.join(id), why: "its id is malformed".to_owned() });
        }
        let name = format!("{id}.json");
        let removed = self.unlink(&name)?;
        if removed {
            self.sync(|source| SpoolError::Remove { path: self.path.join(&name), source })?;
        }
        Ok(removed)
    }

    /// Replaces a slot atomically and durably.
    pub fn write_slot<T: Slot>(&self, slot: &T) -> Result<(), SpoolError> {
        self.write(T::NAME, T::MODE, slot)
    }

    /// Reads a slot; `None` when it was never written. A refused slot stays in place, to be replaced by its next writing.
    pub fn read_slot<T: Slot>(&self) -> Result<Option<T>, SpoolError> {
        let refused = |why| SpoolError::Refused { path: self.path.join(T::NAME), why };
        match self.content(T::NAME)? {
            Found::Absent => Ok(None),
            Found::Refused(why) => Err(refused(why)),
            Found::Content(bytes) => match serde_json::from_slice::<T>(&bytes) {
                Ok(slot) if slot.version() != 1 => Err(refused(format!("version {} is unknown", slot.version()))),
                Ok(slot) => Ok(Some(slot)),
                Err(error) => Err(refused(error.to_string())),
            },
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing under this lock leaves it half changed, so a poisoned one is as good as new.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, memory: &mut Memory) -> Result<(), SpoolError> {
        let ids = self.list()?;
        memory.n_at_most = Some(ids.len());
        // A planted name far in the future must not push our own ids out of their thirteen digits.
        let newest = ids.last().and_then(|id| id.get(..13)).and_then(|ms| ms.parse::<i64>().ok()).unwrap_or(0);
        memory.last_ms = memory.last_ms.max(newest.min(9_999_999_000_000));
        Ok(())
    }

    /// Frees a tenth of the outbox. Repairs go first, since the drift they tell of is gone; they are replaced by one alert
    /// that says so. Returns how many alerts were lost one by one.
    fn make_room(&self) -> Result<usize, SpoolError> {
        let wanted = (self.max_queued / 10).max(2);
        let mut repairs: Vec<(String, Alert)> = Vec::new();
        let mut others = Vec::new();
        for id in self.list()? {
            match self.read(&id) {
                Ok(Some(Outgoing { body: OutgoingBody::Alert(alert), .. })) => {
                    // A merged alert has no resources; merging it again would lose its count.
                    if alert.event == Event::DriftRepaired && !alert.resources.is_empty() {
                        repairs.push((id, Alert { resources: Vec::new(), ..alert }));
                    } else if others.len() < wanted {
                        others.push(id);
                    }
                }
                Ok(Some(Outgoing { body: OutgoingBody::Reimage(_), .. }) | None) => {}
                // Set aside or unreadable: it is out of the way, or not ours to judge.
                Err(error) => tracing::warn!(error = %error, "skipped a message of a full outbox"),
            }
            if repairs.len() >= wanted {
                break;
            }
        }
        let Some((last_id, last)) = repairs.last().filter(|_| repairs.len() > 1) else {
            // No repairs to merge: the bound still holds, at the price of the oldest alerts.
            for id in &others {
                self.unlink(&format!("{id}.json"))?;
            }
            self.sync(|source| SpoolError::Remove { path: self.path.clone(), source })?;
            return Ok(others.len());
        };
        let merged = Outgoing {
            version: 1,
            id: successor(last_id),
            body: OutgoingBody::Alert(Alert {
                summary: format!("{} repairs were not delivered one by one: the outbox was full", repairs.len()),
                ..last.clone()
            }),
        };
        // Stored before the originals go: a crash in between duplicates, it does not lose.
        self.write(&format!("{}.json", merged.id), 0o640, &merged)?;
        for (id, _) in &repairs {
            self.unlink(&format!("{id}.json"))?;
        }
        self.sync(|source| SpoolError::Remove { path: self.path.clone(), source })?;
        Ok(repairs.len())
    }

    fn content(&self, name: &str) -> Result<Found, SpoolError> {
        let failed = |source: io::Error| SpoolError::Read { path: self.path.join(name), source };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(Found::Absent),
            Err(Errno::LOOP) => return Ok(Found::Refused("it is a symbolic link".to_owned())),
            // What open(2) says of a socket.
            Err(Errno::NXIO) => return Ok(Found::Refused("it is no regular file".to_owned())),
            Err(errno) => return Err(failed(errno.into())),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|errno| failed(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Found::Refused("it is no regular file".to_owned()));
        }
        let too_long = || Found::Refused(format!("it is longer than {MAX_MESSAGE} bytes"));
        if size(&stat) > MAX_MESSAGE {
            return Ok(too_long());
        }
        let mut bytes = Vec::new();
        // The limit holds for a file that grows while it is read, too.
        File::from(fd).take(MAX_MESSAGE + 1).read_to_end(&mut bytes).map_err(failed)?;
        let fits = u64::try_from(bytes.len()).is_ok_and(|n| n <= MAX_MESSAGE);
        Ok(if fits { Found::Content(bytes) } else { too_long() })
    }

    fn write<T: Serialize>(&self, name: &str, mode: u32, value: &T) -> Result<(), SpoolError> {
        let path = || self.path.join(name);
        let bytes = serde_json::to_vec(value)
            .map_err(|error| SpoolError::Unstorable { path: path(), why: error.to_string() })?;
        if u64::try_from(bytes.len()).is_ok_and(|n| n > MAX_MESSAGE) {
            let why = format!("{} bytes, {MAX_MESSAGE} are the limit", bytes.len());
            return Err(SpoolError::Unstorable { path: path(), why });
        }
        let temporary = temporary_name();
        let result = self.write_temporary(&temporary, mode, &bytes).and_then(|()| {
            rustix::fs::renameat(&self.dir, &temporary, &self.dir, name).map_err(io::Error::from)?;
            rustix::fs::fsync(&self.dir).map_err(io::Error::from)
        });
        result.map_err(|source| {
            // Best effort: what stays is removed as a leftover later.
            rustix::fs::unlinkat(&self.dir, &temporary, AtFlags::empty()).ok();
            SpoolError::Write { path: path(), source }
        })
    }

    fn write_temporary(&self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.dir, name, flags, Mode::from_raw_mode(0o600))?);
        // The other side reads by group. Only root may always give a file away; another user's directory is its own group's.
        if rustix::fs::fstat(&file)?.st_gid != self.gid {
            let given = rustix::fs::fchown(&file, None, Some(rustix::fs::Gid::from_raw(self.gid)));
            if rustix::process::geteuid().is_root() {
                given?;
            }
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn unlink(&self, name: &str) -> Result<bool, SpoolError> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(SpoolError::Remove { path: self.path.join(name), source: errno.into() }),
        }
    }

    fn sync(&self, failed: impl FnOnce(io::Error) -> SpoolError) -> Result<(), SpoolError> {
        rustix::fs::fsync(&self.dir).map_err(|errno| failed(errno.into()))
    }

    fn set_aside(&self, name: &str, bad: &str) -> Result<(), SpoolError> {
        let mut kept: Vec<String> = self.names()?.into_iter().filter(|n| n.ends_with(".bad")).collect();
        kept.sort_unstable();
        for old in kept.iter().take((kept.len() + 1).saturating_sub(MAX_BAD)) {
            self.unlink(old)?;
        }
        match rustix::fs::renameat(&self.dir, name, &self.dir, bad) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(SpoolError::Remove { path: self.path.join(name), source: errno.into() }),
        }
    }

    fn remove_leftovers(&self) -> Result<(), SpoolError> {
        let now = Timestamp::now().as_second();
        for name in self.names()?.iter().filter(|name| name.starts_with(".new-")) {
            let Ok(stat) = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if now.saturating_sub(stat.st_mtime) > LEFTOVER_SECONDS {
                // It is in nobody's way, and the disk may let go of it another time.
                if let Err(error) = self.unlink(name) {
                    tracing::warn!("{}", crate::resource::chain(&error));
                }
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, SpoolError> {
        let failed = |errno: Errno| SpoolError::List { path: self.path.clone(), source: errno.into() };
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // Our own names are ASCII; anything else is none of ours.
            if let Ok(name) = entry.file_name().to_str() {
                names.push(name.to_owned());
            }
            if names.len() >= MAX_ENTRIES {
                tracing::error!(path = %self.path.display(), "spool directory is flooded; only a part of it is read");
                break;
            }
        }
        Ok(names)
    }
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(u64::MAX)
}

fn temporary_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    // Time besides the process id, since a restarted service may get the id of the killed one.
    format!(".new-{}-{}-{count}", std::process::id(), Timestamp::now().as_nanosecond())
}

/// An id that sorts right behind `id`.
fn successor(id: &str) -> String {
    let chance = id.get(14..).and_then(|chance| u64::from_str_radix(chance, 16).ok()).unwrap_or(0);
    match (id.get(..13), chance.checked_add(1)) {
        (Some(ms), Some(chance)) => format!("{ms}-{chance:016x}"),
        (Some(_), None) | (None, _) => id.to_owned(),
    }
}
