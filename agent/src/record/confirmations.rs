//! Steps that wait for a proof that an operator can still get in, and those that never got it.
//!
//! A row is made in the transaction that announces the step, so that a crash or a power cut at any moment after it finds what
//! is to be put back. Whoever holds the lock and finds a row that it did not make itself knows that its maker is gone.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};

use super::journal::Intent;
use super::{Record, RecordError, database, from_micros, micros};
use crate::policy::Revision;
use crate::resource::{Confirm, Notify, ResourceId, UnitName};

/// A step that waits for its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmation {
    /// History id of the step.
    pub step: i64,
    /// What was changed.
    pub resource: ResourceId,
    /// The revision that asked for it.
    pub revision: Revision,
    /// What proves it, and within which time.
    pub confirm: Confirm,
    /// When the step was announced.
    pub armed: Timestamp,
    /// Until when the proof must have come; `None` while the run is not over.
    pub until: Option<Timestamp>,
    /// The unit's state before, of a service: whether it ran, and whether it was enabled.
    pub unit: Option<UnitBefore>,
    /// What is owed a restart or reload when it is put back.
    pub notifies: Vec<(Notify, UnitName)>,
}

/// What a unit did before a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitBefore {
    /// Which.
    pub unit: UnitName,
    /// Whether it ran.
    pub ran: bool,
    /// Whether it was enabled.
    pub enabled: bool,
}

/// What arms a confirmation.
#[derive(Debug, Clone)]
pub struct Arming<'a> {
    /// What proves it, and within which time.
    pub confirm: &'a Confirm,
    /// The unit's state now, of a service.
    pub unit: Option<UnitBefore>,
}

impl Confirmation {
    /// From when on something counts as a proof.
    pub fn since(&self) -> Timestamp {
        let within = SignedDuration::try_from(self.confirm.within).unwrap_or(SignedDuration::ZERO);
        self.until.and_then(|until| until.checked_sub(within).ok()).unwrap_or(self.armed)
    }
}

/// Arms a confirmation with the step that it is about.
pub(super) fn insert(
    connection: &Connection,
    step: i64,
    revision: &Revision,
    intent: &Intent<'_>,
) -> Result<(), rusqlite::Error> {
    let Some(Arming { confirm, unit }) = &intent.confirm else { return Ok(()) };
    let unit = unit.as_ref().map(|before| (before.unit.as_str(), before.ran, before.enabled));
    let notifies: Vec<(bool, &str)> =
        intent.notifies.iter().map(|(notify, unit)| (*notify == Notify::Restart, unit.as_str())).collect();
    // None of these can fail: they have no maps with odd keys.
    let text = |result: Result<String, serde_json::Error>| result.unwrap_or_default();
    connection
        .prepare_cached(
            "INSERT INTO confirmation (step, resource, revision, confirm, armed, unit, notifies) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            step,
            intent.resource.to_string(),
            revision.as_str(),
            text(serde_json::to_string(confirm)),
            micros(intent.time),
            unit.map(|unit| text(serde_json::to_string(&unit))),
            text(serde_json::to_string(&notifies)),
        ])
        .map(drop)
}

impl Record {
    /// What waits for its proof, or was armed and never got so far. Oldest first.
    pub fn confirmations(&self) -> Result<Vec<Confirmation>, RecordError> {
        if !self.has_table("confirmation")? {
            return Ok(Vec::new());
        }
        type Row = (i64, String, String, String, i64, Option<i64>, Option<String>, String);
        let read = || -> Result<Vec<Row>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "SELECT step, resource, revision, confirm, armed, until, unit, notifies FROM confirmation
                 WHERE failed IS NULL ORDER BY step",
            )?;
            let rows = statement.query_map([], |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                    row.get(5)?,
                    row.get(6)?,
                    row.get(7)?,
                ))
            })?;
            rows.collect()
        };
        let rows = read().map_err(database("read what waits to be confirmed"))?;
        Ok(rows.into_iter().filter_map(parse).collect())
    }

    /// Begins the time in which the proofs of a run that is over must come. Returns what waits for them.
    pub fn open_windows(&mut self, now: Timestamp) -> Result<Vec<Confirmation>, RecordError> {
        let mut waiting = self.confirmations()?;
        for one in waiting.iter_mut().filter(|one| one.until.is_none()) {
            let within = SignedDuration::try_from(one.confirm.within).unwrap_or(SignedDuration::ZERO);
            // As it is stored, so that what is returned here equals what is read later.
            let until = from_micros(micros(now.checked_add(within).unwrap_or(now)));
            self.set_until(one.step, until)?;
            one.until = Some(until);
        }
        Ok(waiting)
    }

    /// Has a step put back at the next look: it failed.
    pub fn give_no_time(&mut self, step: i64, now: Timestamp) -> Result<(), RecordError> {
        self.set_until(step, now)
    }

    fn set_until(&mut self, step: i64, until: Timestamp) -> Result<(), RecordError> {
        self.connection
            .execute("UPDATE confirmation SET until = ?2 WHERE step = ?1", params![step, micros(until)])
            .map(drop)
            .map_err(database("record until when a proof must come"))
    }

    /// The proof came.
    pub fn confirmed(&mut self, step: i64) -> Result<(), RecordError> {
        self.connection
            .execute("DELETE FROM confirmation WHERE step = ?1", [step])
            .map(drop)
            .map_err(database("record a confirmation"))
    }

    /// The proof did not come, and what the step replaced was put back. The revision does not get a second chance.
    pub fn unconfirmed(&mut self, step: i64, why: &str) -> Result<(), RecordError> {
        self.connection
            .execute("UPDATE confirmation SET failed = ?2 WHERE step = ?1", params![step, why])
            .map(drop)
            .map_err(database("record that a confirmation did not come"))
    }

    /// As if a proof had not been waited for yet.
    #[cfg(test)]
    pub(crate) fn rearm(&mut self, step: i64) -> Result<(), RecordError> {
        self.connection
            .execute("UPDATE confirmation SET failed = NULL WHERE step = ?1", [step])
            .map(drop)
            .map_err(database("arm again"))
    }

    /// Resources that a revision changed without ever being confirmed, and why each is left alone.
    pub fn never_confirmed(&self, revision: &Revision) -> Result<Vec<(ResourceId, String)>, RecordError> {
        if !self.has_table("confirmation")? {
            return Ok(Vec::new());
        }
        let read = || -> Result<Vec<(String, String)>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "SELECT resource, failed FROM confirmation WHERE revision = ?1 AND failed IS NOT NULL ORDER BY step",
            )?;
            statement.query_map([revision.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        let rows = read().map_err(database("read what was not confirmed"))?;
        Ok(rows.into_iter().filter_map(|(resource, why)| Some((resource.parse().ok()?, why))).collect())
    }

    /// Forgets what other revisions than this one were not confirmed in.
    pub fn forget_never_confirmed(&mut self, but: &Revision) -> Result<(), RecordError> {
        self.connection
            .execute("DELETE FROM confirmation WHERE failed IS NOT NULL AND revision <> ?1", [but.as_str()])
            .map(drop)
            .map_err(database("forget what was not confirmed"))
    }
}

/// `None` for a row that no version up to this one writes.
fn parse(row: (i64, String, String, String, i64, Option<i64>, Option<String>, String)) -> Option<Confirmation> {
    let (step, resource, revision, confirm, armed, until, unit, notifies) = row;
    let unit = match unit {
        None => None,
        Some(text) => {
            let (unit, ran, enabled): (String, bool, bool) = serde_json::from_str(&text).ok()?;
            Some(UnitBefore { unit: UnitName::new(&unit).ok()?, ran, enabled })
        }
    };
    let notifies: Vec<(bool, String)> = serde_json::from_str(&notifies).ok()?;
    let notify = |restart| if restart { Notify::Restart } else { Notify::Reload };
    Some(Confirmation {
        step,
        resource: resource.parse().ok()?,
        revision: Revision::new(revision),
        confirm: serde_json::from_str(&confirm).ok()?,
        armed: from_micros(armed),
        until: until.map(from_micros),
        unit,
        notifies: notifies
            .into_iter()
            .map(|(restart, unit)| Some((notify(restart), UnitName::new(&unit).ok()?)))
            .collect::<Option<_>>()?,
    })
}
