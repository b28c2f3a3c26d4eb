//! What stood at the paths of steps, before and after them; and what stood there before any policy was.
//!
//! Of a step it is kept as long as the step is. What stood there first is kept until somebody takes it back: only what a
//! *declared* change replaced counts as that, because what a repair replaced is somebody's drift.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::journal::{Intent, RunInfo};
use super::{Record, RecordError, database, micros};
use crate::converge::Cause;
use crate::resource::{AbsPath, Action, Change, ResourceId, Stood};

/// What a step did to one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where.
    pub path: AbsPath,
    /// What stood there before.
    pub before: Stood,
    /// What the step left there; `None` when it was cut short, or could not be looked at.
    pub after: Option<Stood>,
}

/// Something that was put back as it was before a step.
#[derive(Debug)]
pub struct Undone<'a> {
    /// What the step was about.
    pub resource: &'a ResourceId,
    /// The verb.
    pub action: Action,
    /// Every difference, from what the step had left to what was put back.
    pub changes: &'a [Change],
    /// Name of the backup of what the step had left.
    pub backup: Option<&'a str>,
    /// Who asked for it, and which step it was.
    pub note: &'a str,
    /// What was done to which path.
    pub places: &'a [Place],
    /// When.
    pub time: Timestamp,
}

/// Writes down what stands at the paths of a step that begins.
pub(super) fn insert(
    connection: &Connection,
    step: i64,
    cause: Cause,
    intent: &Intent<'_>,
) -> Result<(), rusqlite::Error> {
    if intent.before.is_empty() {
        // An account or a package: whether it was there is all there is to know.
        let stood = if intent.action == Action::Create { Stood::Nothing } else { Stood::Special };
        insert_origin(connection, cause, &intent.resource.to_string(), &stood, intent.time)?;
    }
    // What may be a secret is never put back by itself.
    let is_concealed = intent.changes.iter().any(Change::conceals_found);
    for (path, stood) in intent.before {
        connection
            .prepare_cached("INSERT OR REPLACE INTO place (step, path, before) VALUES (?1, ?2, ?3)")?
            .execute(params![step, path.to_string(), stood.to_string()])?;
        let first = if is_concealed { stood.clone().hidden() } else { stood.clone() };
        insert_origin(connection, cause, &path.to_string(), &first, intent.time)?;
    }
    Ok(())
}

fn insert_origin(
    connection: &Connection,
    cause: Cause,
    name: &str,
    stood: &Stood,
    time: Timestamp,
) -> Result<(), rusqlite::Error> {
    match cause {
        Cause::NewRevision | Cause::Operator => connection
            .prepare_cached("INSERT OR IGNORE INTO origin (name, stood, time) VALUES (?1, ?2, ?3)")?
            .execute(params![name, stood.to_string(), micros(time)])
            .map(drop),
        Cause::Drift => Ok(()),
    }
}

/// Writes down both sides of a step that is done.
pub(super) fn insert_done(
    connection: &Connection,
    step: i64,
    path: &AbsPath,
    before: &Stood,
    after: &Stood,
) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO place (step, path, before, after) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![step, path.to_string(), before.to_string(), after.to_string()])
        .map(drop)
}

/// Writes down what a step left.
pub(super) fn finish(connection: &Connection, step: i64, after: &[(AbsPath, Stood)]) -> Result<(), rusqlite::Error> {
    for (path, stood) in after {
        connection.prepare_cached("UPDATE place SET after = ?3 WHERE step = ?1 AND path = ?2")?.execute(params![
            step,
            path.to_string(),
            stood.to_string()
        ])?;
    }
    Ok(())
}

impl Record {
    /// What a step did, path by path. None for steps of a version that did not keep it.
    pub fn places(&self, step: i64) -> Result<Vec<Place>, RecordError> {
        if !self.has_table("place")? {
            return Ok(Vec::new());
        }
        let read = || -> Result<Vec<(String, String, Option<String>)>, rusqlite::Error> {
            let mut statement = self
                .connection
                .prepare_cached("SELECT path, before, after FROM place WHERE step = ?1 ORDER BY path")?;
            statement.query_map([step], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        };
        let rows = read().map_err(database("read what a step replaced"))?;
        Ok(rows
            .into_iter()
            .filter_map(|(path, before, after)| {
                Some(Place {
                    path: AbsPath::new(&path).ok()?,
                    before: before.parse().ok()?,
                    after: after.and_then(|after| after.parse().ok()),
                })
            })
            .collect())
    }

    /// What stood at a path before a policy was first carried out there; of an account or package, by its id, nothing or
    /// something. `None` when that is not known.
    pub fn origin(&self, name: &str) -> Result<Option<Stood>, RecordError> {
        if !self.has_table("origin")? {
            return Ok(None);
        }
        let stood: Option<String> = self
            .connection
            .prepare_cached("SELECT stood FROM origin WHERE name = ?1")
            .and_then(|mut statement| statement.query_row([name], |row| row.get(0)).optional())
            .map_err(database("read what stood at a path first"))?;
        Ok(stood.and_then(|stood| stood.parse().ok()))
    }

    /// Forgets what stood at a path first: it stands there again, or no longer matters.
    pub fn forget_origin(&mut self, name: &str) -> Result<(), RecordError> {
        self.connection
            .execute("DELETE FROM origin WHERE name = ?1", [name])
            .map(drop)
            .map_err(database("forget what stood at a path first"))
    }

    /// Records that a step was undone. Returns the id of the entry.
    pub fn record_undone(&mut self, run: &RunInfo, undone: &Undone<'_>) -> Result<i64, RecordError> {
        let write = |transaction: &rusqlite::Transaction<'_>| -> Result<i64, rusqlite::Error> {
            let step = super::journal::insert_undone(transaction, run, undone)?;
            for place in undone.places {
                let after = place.after.as_ref().unwrap_or(&place.before);
                insert_done(transaction, step, &place.path, &place.before, after)?;
            }
            Ok(step)
        };
        self.connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .and_then(|transaction| {
                let step = write(&transaction)?;
                transaction.commit()?;
                Ok(step)
            })
            .map_err(database("record what was undone"))
    }

    /// Whether a table is there: a command that reads beside no agent may find a database of an earlier version.
    pub(super) fn has_table(&self, name: &str) -> Result<bool, RecordError> {
        self.connection
            .prepare_cached("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?1")
            .and_then(|mut statement| statement.query_row([name], |row| row.get::<_, i64>(0)))
            .map(|n| n > 0)
            .map_err(database("look for a table"))
    }
}
