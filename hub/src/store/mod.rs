//! The tables. Nothing here decides anything.
//!
//! Every decision is one `BEGIN IMMEDIATE` transaction with its audit entry inside; `synchronous=FULL` makes a committed one
//! survive a power cut. An advisory lock beside the file keeps a second hub away from it.

pub(crate) mod audit;
pub(crate) mod hosts;
pub(crate) mod reimages;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, Transaction};

use crate::StoreError;
use crate::error::query;

/// A transaction that holds the write lock.
pub(crate) type Tx = Transaction<'static, Sqlite>;

/// The database.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) pool: SqlitePool,
    /// Held, not read: the lock ends with the descriptor.
    _lock: File,
}

impl Store {
    /// Opens the database, makes it when it does not exist, and brings its tables up to date.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let mut private = OpenOptions::new();
        private.create(true).truncate(false).write(true).mode(0o600);
        let lock = private.open(&lock_path).map_err(open)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Locked { path: path.to_owned() })?;
        // SQLite gives its side files the mode of the database, so that evidence stays private in all of them.
        drop(private.open(path).map_err(open)?);
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(options)
            .await
            .map_err(|source| StoreError::Connect { path: path.to_owned(), source })?;
        sqlx::migrate!("./migrations")
            .run(&pool)
            .await
            .map_err(|source| StoreError::Migrate { path: path.to_owned(), source })?;
        Ok(Self { pool, _lock: lock })
    }

    /// Begins a transaction that holds the write lock from its start, so that what it reads stays true until it commits.
    pub(crate) async fn begin(&self) -> Result<Tx, StoreError> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(query("begin a transaction"))
    }

    /// Begins a transaction that only reads.
    pub(crate) async fn read(&self) -> Result<Tx, StoreError> {
        self.pool.begin().await.map_err(query("begin to read"))
    }

    /// Returns the epoch of this database.
    pub(crate) async fn epoch(&self) -> Result<u64, StoreError> {
        let epoch: i64 =
            sqlx::query_scalar("SELECT epoch FROM hub").fetch_one(&self.pool).await.map_err(query("read the epoch"))?;
        unsigned(epoch, "epoch")
    }
}

/// Commits a transaction.
pub(crate) async fn commit(tx: Tx) -> Result<(), StoreError> {
    tx.commit().await.map_err(query("commit"))
}

/// Returns a number as the database stores it.
pub(crate) fn signed(value: u64, what: &str) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Corrupt { what: format!("a {what} beyond its range: {value}") })
}

/// Returns a number that the database stored.
pub(crate) fn unsigned(value: i64, what: &str) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| StoreError::Corrupt { what: format!("a negative {what}: {value}") })
}

/// Returns a time that the database stored.
pub(crate) fn time(value: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(value).map_err(|_| StoreError::Corrupt { what: format!("an impossible time: {value}") })
}

/// Returns an optional time that the database stored.
pub(crate) fn optional_time(value: Option<i64>) -> Result<Option<Timestamp>, StoreError> {
    value.map(time).transpose()
}

/// Returns a stored text as what it names.
pub(crate) fn parsed<T>(text: String, what: &str) -> Result<T, StoreError>
where
    T: TryFrom<String>,
    T::Error: std::fmt::Display,
{
    T::try_from(text).map_err(|error| StoreError::Corrupt { what: format!("a wrong {what}: {error}") })
}
