//! What the policy once declared and declares no longer. It stays as it is, and is told of until somebody decides.

use jiff::Timestamp;
use rusqlite::params;

use super::{Record, RecordError, database, from_micros, micros};
use crate::resource::ResourceId;

/// A resource that was left out.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Orphan {
    /// Which.
    pub resource: ResourceId,
    /// What it was, in a few words; empty when its name says all.
    pub what: String,
    /// Where it had been declared: file and line.
    pub declared: String,
    /// The revision that left it out.
    pub left_out_by: String,
    /// Since when.
    pub since: Timestamp,
    /// Since when its account is locked, on the way to its removal.
    pub locked: Option<Timestamp>,
    /// Why it is still there, where it was to be removed.
    pub note: String,
}

impl Record {
    /// Everything that was left out, by name.
    pub fn orphans(&self) -> Result<Vec<Orphan>, RecordError> {
        if !self.has_table("orphan")? {
            return Ok(Vec::new());
        }
        let read = || -> Result<Vec<(String, Orphan)>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "SELECT resource, what, declared, left_out_by, since, locked, note FROM orphan ORDER BY resource",
            )?;
            let rows = statement.query_map([], |row| {
                let orphan = Orphan {
                    resource: ResourceId::new(crate::resource::Kind::File, ""),
                    what: row.get(1)?,
                    declared: row.get(2)?,
                    left_out_by: row.get(3)?,
                    since: from_micros(row.get(4)?),
                    locked: row.get::<_, Option<i64>>(5)?.map(from_micros),
                    note: row.get(6)?,
                };
                Ok((row.get(0)?, orphan))
            })?;
            rows.collect()
        };
        let rows = read().map_err(database("read what was left out"))?;
        // A name that another version wrote is left out rather than hiding all others.
        Ok(rows
            .into_iter()
            .filter_map(|(resource, orphan)| Some(Orphan { resource: resource.parse().ok()?, ..orphan }))
            .collect())
    }

    /// Adds, replaces and removes orphans in one transaction.
    pub fn change_orphans(&mut self, put: &[Orphan], gone: &[ResourceId]) -> Result<(), RecordError> {
        if put.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let write = |transaction: &rusqlite::Transaction<'_>| -> Result<(), rusqlite::Error> {
            for id in gone {
                transaction.prepare_cached("DELETE FROM orphan WHERE resource = ?1")?.execute([id.to_string()])?;
            }
            for orphan in put {
                transaction
                    .prepare_cached(
                        "INSERT OR REPLACE INTO orphan (resource, what, declared, left_out_by, since, locked, note)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )?
                    .execute(params![
                        orphan.resource.to_string(),
                        orphan.what,
                        orphan.declared,
                        orphan.left_out_by,
                        micros(orphan.since),
                        orphan.locked.map(micros),
                        orphan.note,
                    ])?;
            }
            Ok(())
        };
        self.connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .and_then(|transaction| {
                write(&transaction)?;
                transaction.commit()
            })
            .map_err(database("record what was left out"))
    }
}
