//! A record in memory, for an agent that cannot open the real one now: on a file system that is read-only, full or failing.
//!
//! It begins with what can be read of the real one. What cannot be read is in doubt, as in the place of a database that was lost.
//! Content still goes to the backup store on the disk or is not replaced. Once the real record can be opened again it is handed
//! what happened meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, ToSql, params_from_iter};

use super::backup::BackupStore;
use super::reserve::Reserve;
use super::{LOST, Record, RecordError, database, micros};

/// Newest steps that are taken over, besides those that something waits for.
const MOST_STEPS: i64 = 1000;

/// What was taken over of the real record.
#[derive(Debug)]
pub(super) struct Base {
    /// When.
    at: i64,
    /// The newest step.
    step: i64,
    values: BTreeMap<String, String>,
}

impl Record {
    /// A record in memory that stands in for the one in a state directory.
    ///
    /// # Errors
    ///
    /// When there is no memory for it.
    pub fn stand_in(state: &Path) -> Result<Self, RecordError> {
        let taken = match Self::open_if_any(state) {
            Ok(None) => Ok((database::open_in_memory(|| false)?, None)),
            Ok(Some(real)) => take_over(&real.connection).map(|(connection, base)| (connection, Some(base))),
            Err(error) => Err(error),
        };
        let (connection, base) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                tracing::error!("the record cannot be read either: {}", crate::resource::chain(&error));
                (database::open_in_memory(|| true)?, None)
            }
        };
        let backups = BackupStore::open_beside(&state.join(database::BACKUPS));
        let mut record =
            Self { backups: Some(backups), reserve: Some(Reserve::of(state)), base, ..Self::new(connection) };
        record.mark_interrupted()?;
        record.is_claimed = true;
        Ok(record)
    }

    /// Hands what happened since this stood in to the real record: steps with what they did, what is owed, and small values.
    ///
    /// # Errors
    ///
    /// When it cannot be written down there; then nothing was.
    pub fn hand_over(&self, real: &mut Self) -> Result<(), RecordError> {
        let failed = super::database("take up what was recorded in memory");
        let transaction = real.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate);
        transaction
            .and_then(|transaction| {
                self.hand_over_steps(&transaction)?;
                self.hand_over_debts(&transaction)?;
                if self.base.is_none() {
                    doubt(&transaction)?;
                }
                if let Some(base) = &self.base {
                    self.hand_over_values(base, &transaction)?;
                    // Nothing is armed by a record that forgets; what was armed may have been settled.
                    transaction.execute("DELETE FROM confirmation WHERE step <= ?1", [base.step])?;
                    let select = format!("SELECT * FROM confirmation WHERE step <= {}", base.step);
                    copy(&self.connection, &transaction, &select, "confirmation", |_| Ok(()))?;
                }
                transaction.commit()
            })
            .map_err(failed)
    }

    fn hand_over_steps(&self, real: &Connection) -> Result<(), rusqlite::Error> {
        let base = self.base.as_ref().map_or(0, |base| base.step);
        // Others may have recorded something there since, so each gets a new number.
        let mut runs: HashMap<i64, i64> = HashMap::new();
        let mut steps: HashMap<i64, i64> = HashMap::new();
        let select = format!("SELECT * FROM step WHERE id > {base} ORDER BY id");
        copy(&self.connection, real, &select, "step", |row| {
            let (old_step, old_run) = (number(row.first()), number(row.get(1)));
            let new_run = match runs.get(&old_run) {
                Some(new) => *new,
                None => {
                    let select = format!("SELECT * FROM run WHERE id = {old_run}");
                    let mut new = 0;
                    copy(&self.connection, real, &select, "run", |run| {
                        new = renumber(real, "run", run)?;
                        Ok(())
                    })?;
                    runs.insert(old_run, new);
                    new
                }
            };
            if let Some(run) = row.get_mut(1) {
                *run = Value::Integer(new_run);
            }
            steps.insert(old_step, renumber(real, "step", row)?);
            Ok(())
        })?;
        for table in ["place", "untold"] {
            let select = format!("SELECT * FROM {table} WHERE step > {base}");
            copy(&self.connection, real, &select, table, |row| {
                if let Some(step) = row.first_mut() {
                    *step = Value::Integer(steps.get(&number(Some(step))).copied().unwrap_or_default());
                }
                Ok(())
            })?;
        }
        copy(&self.connection, real, "SELECT * FROM origin", "origin", |_| Ok(()))
    }

    fn hand_over_debts(&self, real: &Connection) -> Result<(), rusqlite::Error> {
        if let Some(base) = &self.base {
            // What was paid. A command may have owed something since.
            real.execute("DELETE FROM debt WHERE since <= ?1", [base.at])?;
        }
        copy(&self.connection, real, "SELECT * FROM debt", "debt", |_| Ok(()))?;
        for debt in &self.unsaved {
            super::debts::insert(real, debt.notify, &debt.unit, &debt.because_of, debt.since)?;
        }
        for owed in &self.unsaved_runs {
            super::debts::insert_run(real, &owed.command, &owed.because_of, owed.since)?;
        }
        Ok(())
    }

    /// What others changed meanwhile stays as they left it, and is in doubt.
    fn hand_over_values(&self, base: &Base, real: &Connection) -> Result<(), rusqlite::Error> {
        let (mine, theirs) = (values(&self.connection)?, values(real)?);
        for (key, value) in mine.iter().filter(|(key, value)| base.values.get(*key) != Some(value) && *key != LOST) {
            if theirs.get(key) == base.values.get(key) {
                real.execute("INSERT OR REPLACE INTO value (key, value) VALUES (?1, ?2)", [key, value])?;
            } else {
                doubt(real)?;
            }
        }
        Ok(())
    }
}

/// Copies into memory what an agent works with.
fn take_over(real: &Connection) -> Result<(Connection, Base), RecordError> {
    if database::version(real)? != database::VERSION {
        return Err(RecordError::Database {
            operation: "take over another version",
            source: rusqlite::Error::InvalidQuery,
        });
    }
    let connection = database::open_in_memory(|| false)?;
    let take = || -> Result<Base, rusqlite::Error> {
        let at = micros(Timestamp::now());
        let newest: i64 = real.query_row("SELECT coalesce(max(id), 0) FROM step", [], |row| row.get(0))?;
        let steps = format!(
            "id > {} OR id IN (SELECT step FROM untold UNION SELECT step FROM confirmation)",
            newest.saturating_sub(MOST_STEPS)
        );
        for table in ["value", "debt", "pause", "orphan", "origin", "confirmation", "untold"] {
            copy(real, &connection, &format!("SELECT * FROM {table}"), table, |_| Ok(()))?;
        }
        copy(real, &connection, &format!("SELECT * FROM step WHERE {steps}"), "step", |_| Ok(()))?;
        let places = format!("SELECT * FROM place WHERE step IN (SELECT id FROM step WHERE {steps})");
        copy(real, &connection, &places, "place", |_| Ok(()))?;
        let runs = format!("SELECT * FROM run WHERE id IN (SELECT run FROM step WHERE {steps})");
        copy(real, &connection, &runs, "run", |_| Ok(()))?;
        Ok(Base { at, step: newest, values: values(&connection)? })
    };
    let base = take().map_err(super::database("take over the record"))?;
    Ok((connection, base))
}

/// Has a record know that it does not know everything.
fn doubt(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute("INSERT OR IGNORE INTO value (key, value) VALUES (?1, '[]')", [LOST]).map(drop)
}

fn values(connection: &Connection) -> Result<BTreeMap<String, String>, rusqlite::Error> {
    let mut statement = connection.prepare("SELECT key, value FROM value")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn number(value: Option<&Value>) -> i64 {
    match value {
        Some(Value::Integer(number)) => *number,
        Some(Value::Null | Value::Real(_) | Value::Text(_) | Value::Blob(_)) | None => 0,
    }
}

/// Copies rows into a table of the same name and columns, changed on the way. Rows that are there stay.
fn copy(
    from: &Connection,
    to: &Connection,
    select: &str,
    table: &str,
    mut change: impl FnMut(&mut Vec<Value>) -> Result<(), rusqlite::Error>,
) -> Result<(), rusqlite::Error> {
    let mut statement = from.prepare(select)?;
    let n_columns = statement.column_count();
    let marks = vec!["?"; n_columns].join(", ");
    let mut insert = to.prepare(&format!("INSERT OR IGNORE INTO {table} VALUES ({marks})"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let mut values = (0..n_columns).map(|column| row.get(column)).collect::<Result<Vec<Value>, _>>()?;
        change(&mut values)?;
        insert.execute(params_from_iter(values.iter().map(|value| value as &dyn ToSql)))?;
    }
    Ok(())
}

/// Gives a row the next number of a table. Returns it.
fn renumber(to: &Connection, table: &str, row: &mut [Value]) -> Result<i64, rusqlite::Error> {
    let newest: Option<i64> =
        to.query_row("SELECT seq FROM sqlite_sequence WHERE name = ?1", [table], |row| row.get(0)).optional()?;
    let next = newest.unwrap_or(0).saturating_add(1);
    if let Some(id) = row.first_mut() {
        *id = Value::Integer(next);
    }
    Ok(next)
}
