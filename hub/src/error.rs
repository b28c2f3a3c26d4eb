//! What can go wrong, by operation and object.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use rekindle_protocol::{Problem, Reason};

/// Why a hub does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The configuration cannot be read.
    #[error("cannot read `{path}`")]
    ReadConfig {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The configuration is wrong.
    #[error("`{path}` is not a valid configuration")]
    ParseConfig {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The configuration is well-formed and makes no sense.
    #[error("{what}\nhint: {hint}")]
    Settings {
        /// What is wrong.
        what: String,
        /// How to mend it.
        hint: &'static str,
    },
    /// A certificate or key cannot be read or used.
    #[error("cannot use the TLS {what}")]
    Tls {
        /// Which of the two, and from where.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on `{addr}`")]
    Listen {
        /// Which address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The control socket cannot be made.
    #[error("cannot make the control socket `{path}`")]
    Control {
        /// Which path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database cannot be used.
    #[error("cannot use the database")]
    Store(#[source] StoreError),
    /// A part of the hub ended although it was not told to.
    #[error("a part of the hub ended unexpectedly")]
    Died,
}

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be made or opened.
    #[error("cannot open `{path}`")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another hub uses the database.
    #[error("`{path}` is in use by another hub\nhint: stop it first; two hubs on one database would both decide")]
    Locked {
        /// Which file.
        path: PathBuf,
    },
    /// The file is not a database, or cannot be read.
    #[error("cannot connect to `{path}`")]
    Connect {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The tables cannot be brought up to date.
    #[error("cannot bring the tables of `{path}` up to date")]
    Migrate {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed.
    #[error("cannot {operation}")]
    Query {
        /// What was being done.
        operation: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A row holds what this program never writes.
    #[error("the database holds {what}")]
    Corrupt {
        /// What, and where.
        what: String,
    },
}

impl StoreError {
    /// Returns whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        // 5 is SQLITE_BUSY, 6 is SQLITE_LOCKED; extended codes keep them in the low byte.
        let is_busy = |code: &str| code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6));
        match self {
            Self::Query { source: sqlx::Error::PoolTimedOut, .. } => true,
            Self::Query { source, .. } => {
                source.as_database_error().and_then(|e| e.code()).is_some_and(|c| is_busy(&c))
            }
            Self::Open { .. }
            | Self::Locked { .. }
            | Self::Connect { .. }
            | Self::Migrate { .. }
            | Self::Corrupt { .. } => false,
        }
    }
}

/// Returns what turns a statement's error into a [`StoreError`] that names the operation.
pub(crate) fn query(operation: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Query { operation, source }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was refused; nothing was changed by it but the audit log.
    #[error("{}", .0.detail.as_deref().unwrap_or(&.0.title))]
    Refused(Box<Problem>),
    /// The database failed; nothing was changed.
    #[error("cannot decide")]
    Store(#[source] StoreError),
    /// No randomness was to be had for a token.
    #[error("cannot make a token: the system's random number generator failed")]
    Random,
}

impl CallError {
    /// Returns a refusal.
    pub(crate) fn refused(reason: Reason, detail: impl Into<String>) -> Self {
        Self::Refused(Box::new(Problem::new(reason, detail)))
    }
}

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
