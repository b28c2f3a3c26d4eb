//! What is written to the journal, and written again from the reserve when there was no room.

use std::io;

use rusqlite::ErrorCode;
use serde::Serialize;

use super::{Intent, Note, Record, RecordError, Repair, RunInfo, StepOutcome};

impl RecordError {
    /// Whether there is no room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::File { source, .. } => is_full(source),
            Self::Database { source, .. } => source.sqlite_error_code() == Some(ErrorCode::DiskFull),
            Self::Value { .. }
            | Self::Lost { .. }
            | Self::Unread { .. }
            | Self::Damaged { .. }
            | Self::NoBackupStore => false,
        }
    }
}

impl RecordError {
    /// The number of the error of the system, where it was one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::File { source, .. } => source.raw_os_error(),
            Self::Database { .. }
            | Self::Value { .. }
            | Self::Lost { .. }
            | Self::Unread { .. }
            | Self::Damaged { .. }
            | Self::NoBackupStore => None,
        }
    }
}

/// Whether an error says that there is no room, or none for this user.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Record {
    fn with_room<T>(&mut self, mut write: impl FnMut(&mut Self) -> Result<T, RecordError>) -> Result<T, RecordError> {
        match write(self) {
            Err(error)
                if error.is_full()
                    && self.reserve.as_ref().is_some_and(|reserve| reserve.release_for("the journal")) =>
            {
                write(self)
            }
            written => written,
        }
    }

    /// Makes durable what some steps are about to do and what they will owe, in one transaction. Returns their history ids.
    pub fn begin_steps(&mut self, run: &mut RunInfo, intents: &[Intent<'_>]) -> Result<Vec<i64>, RecordError> {
        self.with_room(|record| record.try_begin_steps(run, intents))
    }

    /// Makes durable what came of some steps, in one transaction.
    pub fn finish_steps(&mut self, outcomes: &[StepOutcome]) -> Result<(), RecordError> {
        self.with_room(|record| record.try_finish_steps(outcomes))
    }

    /// Records steps that are done, with what they owe, in one transaction. Returns their history ids.
    pub fn record_repairs(&mut self, run: &RunInfo, repairs: &[Repair<'_>]) -> Result<Vec<i64>, RecordError> {
        self.with_room(|record| record.try_record_repairs(run, repairs))
    }

    /// Takes note durably that alerts in the outbox tell of some steps, or that they need none.
    pub fn told(&mut self, steps: &[i64]) -> Result<(), RecordError> {
        self.with_room(|record| record.try_told(steps))
    }

    /// Records something that was left alone, unless the newest entry about the resource says the same already: a full scan
    /// every half hour must not fill the history with one standing drift. Returns the id of the entry.
    pub fn note(&mut self, run: &mut RunInfo, note: &Note<'_>) -> Result<i64, RecordError> {
        self.with_room(|record| record.try_note(run, note))
    }

    /// Writes a small value durably.
    pub fn save<T: Serialize>(&mut self, key: &str, value: &T) -> Result<(), RecordError> {
        self.with_room(|record| record.try_save(key, value))
    }
}
