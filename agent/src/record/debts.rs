//! Restarts, reloads and runs that are owed, until they are paid.

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::{Record, RecordError, database, from_micros, micros};
use crate::resource::{Notify, ResourceId, UnitName};

/// A restart or reload that a unit is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt {
    /// The unit.
    pub unit: UnitName,
    /// What it is owed. A restart supersedes a reload.
    pub notify: Notify,
    /// The resource whose change owes it.
    pub because_of: ResourceId,
    /// Since when, at the latest.
    pub since: Timestamp,
    /// Why the last attempt to pay did not succeed; empty before the first.
    pub error: String,
}

/// A run that a command is owed. It lies in the table of debts, in the place of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedRun {
    /// The command.
    pub command: ResourceId,
    /// The resource whose change owes it.
    pub because_of: ResourceId,
    /// Since when, at the latest.
    pub since: Timestamp,
}

/// Adds a debt, or turns an owed reload into a restart.
pub(super) fn insert(
    connection: &Connection,
    notify: Notify,
    unit: &UnitName,
    because_of: &ResourceId,
    since: Timestamp,
) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "INSERT INTO debt (unit, because_of, notify, since, error) VALUES (?1, ?2, ?3, ?4, '')
             ON CONFLICT (unit, because_of) DO UPDATE SET
                 notify = CASE WHEN notify = 'restart' THEN notify ELSE excluded.notify END,
                 since = max(since, excluded.since)",
        )?
        .execute(params![unit.as_str(), because_of.to_string(), notify_word(notify), micros(since)])
        .map(drop)
}

/// Adds a run that is owed.
pub(super) fn insert_run(
    connection: &Connection,
    command: &ResourceId,
    because_of: &ResourceId,
    since: Timestamp,
) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "INSERT INTO debt (unit, because_of, notify, since, error) VALUES (?1, ?2, 'run', ?3, '')
             ON CONFLICT (unit, because_of) DO UPDATE SET since = max(since, excluded.since)",
        )?
        .execute(params![command.to_string(), because_of.to_string(), micros(since)])
        .map(drop)
}

impl Record {
    /// Everything owed, oldest first, with what could not be written down.
    pub fn debts(&self) -> Result<Vec<Debt>, RecordError> {
        let read = || -> Result<Vec<Option<Debt>>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "SELECT unit, because_of, notify, since, error FROM debt WHERE notify <> 'run' ORDER BY since, unit, because_of",
            )?;
            statement.query_map([], read_debt)?.collect()
        };
        let rows = read().map_err(database("read the debts"))?;
        let mut debts: Vec<Debt> = rows.into_iter().flatten().collect();
        for debt in &self.unsaved {
            if !debts.iter().any(|d| d.unit == debt.unit && d.because_of == debt.because_of) {
                debts.push(debt.clone());
            }
        }
        Ok(debts)
    }

    /// Records a debt durably.
    pub fn owe(&mut self, notify: Notify, unit: &UnitName, because_of: &ResourceId) -> Result<(), RecordError> {
        insert(&self.connection, notify, unit, because_of, Timestamp::now()).map_err(database("record a debt"))
    }

    /// Remembers debts that could not be written, so that this process pays them nevertheless.
    pub(crate) fn owe_unsaved(&mut self, notifies: &[(Notify, UnitName)], because_of: &ResourceId) {
        for (notify, unit) in notifies {
            self.unsaved.push(Debt {
                unit: unit.clone(),
                notify: *notify,
                because_of: because_of.clone(),
                since: Timestamp::now(),
                error: String::new(),
            });
        }
    }

    /// What is owed and known in memory alone; it must be paid even when the database cannot be read.
    pub(crate) fn unsaved_debts(&self) -> Vec<Debt> {
        self.unsaved.clone()
    }

    /// Forgets what was owed to a unit at a time, durably: it was paid from then on. What the guard put back while the unit was
    /// restarting is still owed.
    pub fn settle(&mut self, unit: &UnitName, at: Timestamp) -> Result<(), RecordError> {
        self.unsaved.retain(|debt| debt.unit != *unit || debt.since > at);
        self.connection
            .execute("DELETE FROM debt WHERE unit = ?1 AND since <= ?2", params![unit.as_str(), micros(at)])
            .map(drop)
            .map_err(database("settle a debt"))
    }

    /// Every run that a command is owed, oldest first, with what could not be written down.
    pub fn owed_runs(&self) -> Result<Vec<OwedRun>, RecordError> {
        let read = || -> Result<Vec<(String, String, i64)>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "SELECT unit, because_of, since FROM debt WHERE notify = 'run' ORDER BY since, unit, because_of",
            )?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        };
        let rows = read().map_err(database("read the debts"))?;
        // Names that no version of rekindle writes are left out.
        let owed = rows.into_iter().filter_map(|(command, because_of, since)| {
            Some(OwedRun {
                command: command.parse().ok()?,
                because_of: because_of.parse().ok()?,
                since: from_micros(since),
            })
        });
        Ok(owed.chain(self.unsaved_runs.iter().cloned()).collect())
    }

    /// Records durably that a command is owed a run.
    pub fn owe_run(
        &mut self,
        command: &ResourceId,
        because_of: &ResourceId,
        since: Timestamp,
    ) -> Result<(), RecordError> {
        insert_run(&self.connection, command, because_of, since).map_err(database("record a debt"))
    }

    /// Remembers one that could not be written, so that this process pays it nevertheless.
    pub(crate) fn owe_run_unsaved(&mut self, command: &ResourceId, because_of: &ResourceId) {
        let (command, because_of) = (command.clone(), because_of.clone());
        self.unsaved_runs.push(OwedRun { command, because_of, since: Timestamp::now() });
    }

    /// The runs that are owed and known in memory alone.
    pub(crate) fn unsaved_runs(&self) -> Vec<OwedRun> {
        self.unsaved_runs.clone()
    }

    /// Forgets what a command was owed at a time, durably: it was run from then on.
    pub fn settle_run(&mut self, command: &ResourceId, at: Timestamp) -> Result<(), RecordError> {
        self.unsaved_runs.retain(|owed| owed.command != *command || owed.since > at);
        self.connection
            .execute(
                "DELETE FROM debt WHERE unit = ?1 AND notify = 'run' AND since <= ?2",
                params![command.to_string(), micros(at)],
            )
            .map(drop)
            .map_err(database("settle a debt"))
    }

    /// Keeps a debt with the reason why it could not be paid.
    pub fn keep_owing(&mut self, unit: &UnitName, error: &str) -> Result<(), RecordError> {
        for debt in self.unsaved.iter_mut().filter(|debt| debt.unit == *unit) {
            error.clone_into(&mut debt.error);
        }
        self.connection
            .execute("UPDATE debt SET error = ?2 WHERE unit = ?1 AND error <> ?2", params![unit.as_str(), error])
            .map(drop)
            .map_err(database("record why a debt stands"))
    }
}

/// `None` for names that no version of rekindle writes.
fn read_debt(row: &Row<'_>) -> Result<Option<Debt>, rusqlite::Error> {
    let (unit, because_of, notify): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let (since, error) = (from_micros(row.get(3)?), row.get(4)?);
    let notify = parse_notify(&notify);
    let (Ok(unit), Ok(because_of)) = (UnitName::new(&unit), because_of.parse()) else { return Ok(None) };
    Ok(Some(Debt { unit, notify, because_of, since, error }))
}

fn notify_word(notify: Notify) -> &'static str {
    match notify {
        Notify::Reload => "reload",
        Notify::Restart => "restart",
    }
}

/// A word that is not known is read as the stronger one.
fn parse_notify(word: &str) -> Notify {
    if word == "reload" { Notify::Reload } else { Notify::Restart }
}
