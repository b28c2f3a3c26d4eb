//! Pauses: times in which drift is seen and recorded but not repaired. A pause always ends.

use jiff::Timestamp;
use rusqlite::params;

use super::{Record, RecordError, database, from_micros, micros};
use crate::resource::ResourceId;

/// A pause to be made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPause {
    /// When it begins.
    pub from: Timestamp,
    /// When it ends.
    pub until: Timestamp,
    /// Why, in the words of who made it.
    pub reason: String,
    /// Who made it.
    pub by: String,
    /// What is paused; empty means everything.
    pub only: Vec<ResourceId>,
}

/// A pause.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pause {
    /// Its id.
    pub id: i64,
    /// When it begins.
    pub from: Timestamp,
    /// When it ends.
    pub until: Timestamp,
    /// Why.
    pub reason: String,
    /// Who made it.
    pub by: String,
    /// What is paused; empty means everything.
    pub only: Vec<ResourceId>,
}

impl Pause {
    /// Whether a resource is paused by this.
    pub fn covers(&self, resource: &ResourceId) -> bool {
        self.only.is_empty() || self.only.contains(resource)
    }
}

impl Record {
    /// The pauses in force at a time, the one that ends first first.
    pub fn pauses(&self, now: Timestamp) -> Result<Vec<Pause>, RecordError> {
        let mut pauses = self.all_pauses()?;
        pauses.retain(|pause| pause.from <= now && now < pause.until);
        Ok(pauses)
    }

    /// Makes a pause, durably.
    pub fn pause(&mut self, pause: NewPause) -> Result<Pause, RecordError> {
        let only = serde_json::to_string(&pause.only)
            .map_err(|source| RecordError::Value { what: "pause".to_owned(), source })?;
        self.connection
            .execute(
                "INSERT INTO pause (begins, ends, reason, by, only) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![micros(pause.from), micros(pause.until), pause.reason, pause.by, only],
            )
            .map_err(database("record a pause"))?;
        let NewPause { from, until, reason, by, only } = pause;
        // As it was stored, so that what is returned here equals what is read later.
        let stored = |time| from_micros(micros(time));
        let id = self.connection.last_insert_rowid();
        Ok(Pause { id, from: stored(from), until: stored(until), reason, by, only })
    }

    /// Ends one pause, or all of them. Returns those that were ended.
    pub fn resume(&mut self, id: Option<i64>) -> Result<Vec<Pause>, RecordError> {
        let ended: Vec<Pause> = self.all_pauses()?.into_iter().filter(|p| id.is_none_or(|id| p.id == id)).collect();
        self.remove_pauses(&ended)?;
        Ok(ended)
    }

    /// Forgets the pauses that have run out. Returns them, so that each is announced once.
    pub fn end_expired_pauses(&mut self, now: Timestamp) -> Result<Vec<Pause>, RecordError> {
        let ended: Vec<Pause> = self.all_pauses()?.into_iter().filter(|p| p.until <= now).collect();
        self.remove_pauses(&ended)?;
        Ok(ended)
    }

    fn remove_pauses(&mut self, pauses: &[Pause]) -> Result<(), RecordError> {
        for pause in pauses {
            self.connection.execute("DELETE FROM pause WHERE id = ?1", [pause.id]).map_err(database("end a pause"))?;
        }
        Ok(())
    }

    fn all_pauses(&self) -> Result<Vec<Pause>, RecordError> {
        let read = || -> Result<Vec<(Pause, String)>, rusqlite::Error> {
            let mut statement = self
                .connection
                .prepare_cached("SELECT id, begins, ends, reason, by, only FROM pause ORDER BY ends, id")?;
            let rows = statement.query_map([], |row| {
                let pause = Pause {
                    id: row.get(0)?,
                    from: from_micros(row.get(1)?),
                    until: from_micros(row.get(2)?),
                    reason: row.get(3)?,
                    by: row.get(4)?,
                    only: Vec::new(),
                };
                Ok((pause, row.get(5)?))
            })?;
            rows.collect()
        };
        read()
            .map_err(database("read the pauses"))?
            .into_iter()
            .map(|(pause, only)| {
                // A list that cannot be read must not become "everything".
                let only = serde_json::from_str(&only)
                    .map_err(|source| RecordError::Value { what: format!("pause {}", pause.id), source })?;
                Ok(Pause { only, ..pause })
            })
            .collect()
    }
}
