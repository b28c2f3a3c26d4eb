//! The small durable state: journal, history, health, debts, pauses, revisions, and the backups of what was replaced.
//!
//! Everything here is safe to lose: a lost database costs history, never safety. So a corrupt one is set aside and a new one
//! made, and no method here may keep a convergence from going on: callers report an error and continue.
//!
//! - A run that changes nothing writes nothing.
//! - What a step is about to do, and the restarts it will owe, are durable in one transaction *before* the step; its outcome is
//!   one transaction after. A step without an outcome was cut short by a kill.
//! - The agent writes, with a record for the worker and one for the guard's keeper, or a command that holds the agent's lock.

mod backup;
mod confirmations;
mod database;
mod debts;
mod journal;
mod lock;
pub mod newest;
mod orphans;
mod pauses;
mod places;
pub mod reserve;
mod room;
mod stand_in;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use backup::BackupStore;
use reserve::Reserve;

use crate::resource::ResourceId;

pub use confirmations::{Arming, Confirmation, UnitBefore};
pub use debts::{Debt, OwedRun};
pub use journal::{HistoryEntry, HistoryFilter, Intent, Note, Repair, RunInfo, StepOutcome};
pub use lock::{LockError, RunLock};
pub use orphans::Orphan;
pub use pauses::{NewPause, Pause};
pub use places::{Place, Undone};
pub use room::is_full;

/// The durable state of one host.
#[derive(Debug)]
pub struct Record {
    connection: Connection,
    /// `None` where nothing may be written: read-only, or without a disk.
    backups: Option<BackupStore>,
    /// Debts that could not be written. They are paid like the others, and lost only with the process.
    unsaved: Vec<Debt>,
    /// The same for runs of commands.
    unsaved_runs: Vec<OwedRun>,
    steps_since_pruning: u32,
    /// Resources whose step a kill cut short.
    interrupted: Vec<ResourceId>,
    trouble: Option<String>,
    /// Given up when the journal finds no room.
    reserve: Option<Reserve>,
    /// Whether what is recorded is there when this process is not.
    is_durable: bool,
    /// Whether steps without an outcome are of this process.
    is_claimed: bool,
    /// What a record that stands in for another began with.
    base: Option<stand_in::Base>,
}

/// A record that was opened for writing.
#[derive(Debug)]
pub struct Opened {
    /// The record.
    pub record: Record,
    /// A corrupt database was found and moved here; the record is new and empty.
    pub set_aside: Option<PathBuf>,
}

/// An operation on the durable state that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A directory or file of the state could not be made or read.
    #[error("cannot {operation} `{path}`")]
    File {
        /// The operation in words.
        operation: &'static str,
        /// What it was about.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database refused.
    #[error("cannot {operation} in the state database")]
    Database {
        /// The operation in words.
        operation: &'static str,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A stored value is not what this version of rekindle writes.
    #[error("cannot read the stored {what}")]
    Value {
        /// Which value.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// There is no database, and there was one.
    #[error(
        "there is no `{}`, and there was one: what it knew is not known\n\
         hint: put it back, or start the agent, which makes a new one", path.display()
    )]
    Lost {
        /// Where it was.
        path: PathBuf,
    },
    /// What a killed agent wrote last can be read only where something can be written.
    #[error(
        "`{}` cannot be read without writing beside it, and holds what is not in the database yet\n\
         hint: make the file system writable again, or copy the database with everything beside it elsewhere", path.display()
    )]
    Unread {
        /// The journal of SQLite.
        path: PathBuf,
        /// Why it could not be read as it is.
        #[source]
        source: rusqlite::Error,
    },
    /// A damaged database, which somebody may be using.
    #[error(
        "`{}` is damaged\nhint: `systemctl restart rekindle-agent` sets it aside and makes a new one", path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// The state was opened for reading only, or lives in memory.
    #[error("cannot keep a backup: this record has no backup store")]
    NoBackupStore,
}

/// Wraps a database error.
fn database(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> RecordError {
    move |source| RecordError::Database { operation, source }
}

/// The name of a value that is there as long as something may have been forgotten because the database was lost. It begins as an
/// empty list.
pub const LOST: &str = "lost";

/// The name of the database in the state directory.
const DATABASE: &str = "state.db";

impl Record {
    /// Opens the record in a state directory for writing, making what is missing. Steps that a kill cut short are marked
    /// `interrupted`. A corrupt database is moved aside and a new one made. The lock is the caller's: whoever has it has no step in
    /// hand.
    pub fn open(state: &Path) -> Result<Opened, RecordError> {
        make_home(state)?;
        let path = state.join(DATABASE);
        let reserve = Reserve::of(state);
        let (connection, set_aside) = match database::open_or_replace(&path) {
            Err(error) if error.is_full() && reserve.release_for("the journal") => database::open_or_replace(&path)?,
            opened => opened?,
        };
        let mut record = Self { reserve: Some(reserve), is_durable: true, ..Self::new(connection) };
        record.claim(state)?;
        record.prune(Timestamp::now())?;
        Ok(Opened { record, set_aside })
    }

    /// Takes over from whoever had the record and the lock before, once: marks the steps that a kill cut short, and removes what
    /// it left in the backup store. The lock is the caller's.
    ///
    /// # Errors
    ///
    /// When that cannot be done; it is tried again the next time.
    pub fn claim(&mut self, state: &Path) -> Result<(), RecordError> {
        if !self.is_claimed {
            self.backups = Some(BackupStore::open(&state.join(database::BACKUPS))?);
            self.mark_interrupted()?;
            self.is_claimed = true;
        }
        Ok(())
    }

    /// Opens the record once more for writing, beside one of the same process that [`Record::open`] opened.
    pub fn open_beside(state: &Path) -> Result<Self, RecordError> {
        let connection = database::open_sound(&state.join(DATABASE))?;
        let backups = BackupStore::open_beside(&state.join(database::BACKUPS));
        let reserve = Some(Reserve::of(state));
        Ok(Self { backups: Some(backups), reserve, is_durable: true, ..Self::new(connection) })
    }

    /// Opens the record for writing beside whoever works on the host, who may have a step in hand: no step is marked interrupted,
    /// and a corrupt database stays where it is.
    pub fn open_for_operator(state: &Path) -> Result<Self, RecordError> {
        make_home(state)?;
        Self::open_beside(state)
    }

    /// Opens an existing record for reading beside a running agent.
    pub fn open_read_only(state: &Path) -> Result<Self, RecordError> {
        let connection = database::open_read_only(&state.join(DATABASE))?;
        Ok(Self::new(connection))
    }

    /// The same; `None` where nothing was ever recorded. One that is gone, and was there, is an error.
    pub fn open_if_any(state: &Path) -> Result<Option<Self>, RecordError> {
        let path = state.join(DATABASE);
        match rustix::fs::access(&path, rustix::fs::Access::READ_OK) {
            Ok(()) => Self::open_read_only(state).map(Some),
            Err(rustix::io::Errno::NOENT) if database::was_lost(&path) => Err(RecordError::Lost { path }),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(RecordError::File { operation: "read", path, source: errno.into() }),
        }
    }

    /// A new record that lives in memory alone.
    pub fn volatile() -> Result<Self, RecordError> {
        let connection = database::open_in_memory(|| false)?;
        Ok(Self::new(connection))
    }

    fn new(connection: Connection) -> Self {
        Self {
            connection,
            backups: None,
            unsaved: Vec::new(),
            unsaved_runs: Vec::new(),
            steps_since_pruning: 0,
            interrupted: Vec::new(),
            trouble: None,
            reserve: None,
            is_durable: false,
            is_claimed: false,
            base: None,
        }
    }

    /// Has a resource looked after at the next run: its step failed, and a disk that fails may not let go of temporary files.
    pub(crate) fn note_interrupted(&mut self, resource: &ResourceId) {
        if !self.interrupted.contains(resource) {
            self.interrupted.push(resource.clone());
        }
    }

    /// The resources whose step was cut short before this record was opened, or failed since, once.
    pub(crate) fn take_interrupted(&mut self) -> Vec<ResourceId> {
        std::mem::take(&mut self.interrupted)
    }

    /// Reads a small value.
    pub fn load<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, RecordError> {
        let text: Option<String> = self
            .connection
            .prepare_cached("SELECT value FROM value WHERE key = ?1")
            .and_then(|mut statement| statement.query_row([key], |row| row.get(0)).optional())
            .map_err(database("read a value"))?;
        text.map(|text| {
            serde_json::from_str(&text).map_err(|source| RecordError::Value { what: format!("`{key}`"), source })
        })
        .transpose()
    }

    /// Writes a small value durably.
    fn try_save<T: Serialize>(&mut self, key: &str, value: &T) -> Result<(), RecordError> {
        let text =
            serde_json::to_string(value).map_err(|source| RecordError::Value { what: format!("`{key}`"), source })?;
        self.connection
            .prepare_cached(
                "INSERT INTO value (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )
            .and_then(|mut statement| statement.execute(params![key, text]))
            .map(drop)
            .map_err(database("write a value"))
    }

    /// Removes a small value. `false` when there was none.
    pub fn forget(&mut self, key: &str) -> Result<bool, RecordError> {
        self.connection
            .execute("DELETE FROM value WHERE key = ?1", [key])
            .map(|n| n > 0)
            .map_err(database("remove a value"))
    }

    /// Keeps content in the backup store. Returns its name there, the SHA-256 in hexadecimal.
    pub fn keep(&mut self, content: &[u8]) -> Result<String, RecordError> {
        self.backups.as_mut().ok_or(RecordError::NoBackupStore)?.keep(content)
    }

    /// Whether what is recorded is there when this process is not.
    pub fn is_durable(&self) -> bool {
        self.is_durable
    }

    /// Whether [`Record::keep`] has anywhere to keep things.
    pub fn keeps_backups(&self) -> bool {
        self.backups.is_some()
    }

    /// Where things that are removed whole go, on the mount of the state directory; `None` when nothing is kept.
    pub fn attic(&self) -> Option<PathBuf> {
        self.backups.as_ref().map(BackupStore::attic)
    }

    /// The last write that did not succeed since this was last asked, for the log and `rekindle status`.
    pub fn take_trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    /// Remembers and logs an error that must not stop a convergence.
    pub(crate) fn note_trouble(&mut self, error: &RecordError) {
        let text = crate::resource::chain(error);
        tracing::error!(error = %text, "the journal could not be written; converging without it");
        self.trouble = Some(text);
    }
}

/// Makes the state directory, unless it is there.
///
/// # Errors
///
/// When it cannot be made.
pub fn make_home(state: &Path) -> Result<(), RecordError> {
    database::make_directory(state, 0o755)
}

/// Reads content that was kept, given a state directory; `None` when it has been dropped to make room.
pub fn kept(state: &Path, name: &str) -> Result<Option<Vec<u8>>, RecordError> {
    backup::read(&state.join(database::BACKUPS), name)
}

/// Microseconds since the epoch, as the database keeps time.
fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

/// The time of a stored number; the epoch when it is out of range, which only a damaged row can be.
fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
