//! Runs and steps: what was about to be done, what came of it, and how to look it up.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::database::{VERSION_WITH_ACTOR, version};
use super::{Arming, Record, RecordError, confirmations, database, debts, from_micros, micros, places};
use crate::actor::Actor;
use crate::converge::Cause;
use crate::policy::Revision;
use crate::resource::{AbsPath, Action, Change, Notify, ResourceId, Stood, UnitName};

/// Most steps kept.
const MAX_STEPS: i64 = 100_000;
/// Longest time that a step is kept.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Most bytes that the database may fill before the oldest quarter of the steps goes.
const MAX_BYTES: i64 = 64 * 1024 * 1024;
/// Steps between two looks at the limits.
const PRUNE_EVERY: u32 = 1000;
/// Longest stored list of changes, in bytes; a longer one keeps only the attributes.
const MAX_CHANGES: usize = 64 * 1024;

/// What identifies a run. It becomes a row when its first step is recorded, so that a run that finds nothing writes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// History id, once there is a row.
    pub id: Option<i64>,
    /// When it began.
    pub started: Timestamp,
    /// What it converges to.
    pub revision: Revision,
    /// Why.
    pub cause: Cause,
    /// Whether everything is looked at.
    pub full: bool,
}

/// What a step is about to do.
#[derive(Debug)]
pub struct Intent<'a> {
    /// To what.
    pub resource: &'a ResourceId,
    /// The verb.
    pub action: Action,
    /// Every difference.
    pub changes: &'a [Change],
    /// Name of the backup of what it replaces.
    pub backup: Option<&'a str>,
    /// What it will owe.
    pub notifies: &'a [(Notify, UnitName)],
    /// Who made the difference, as far as that is known.
    pub who: Option<&'a Actor>,
    /// What stands at the paths that it may change.
    pub before: &'a [(AbsPath, Stood)],
    /// What has to prove it, if anything: armed with the step.
    pub confirm: Option<Arming<'a>>,
    /// When.
    pub time: Timestamp,
}

/// A step that was taken at once, without being announced: told when it is done.
#[derive(Debug)]
pub struct Repair<'a> {
    /// To what.
    pub resource: &'a ResourceId,
    /// The verb.
    pub action: Action,
    /// Every difference.
    pub changes: &'a [Change],
    /// Name of the backup of what it replaced.
    pub backup: Option<&'a str>,
    /// What it owes.
    pub notifies: &'a [(Notify, UnitName)],
    /// Who made the difference, as far as that is known.
    pub who: Option<&'a Actor>,
    /// What stood at the path before and after, where that is known.
    pub place: Option<(&'a AbsPath, &'a Stood, &'a Stood)>,
    /// When.
    pub time: Timestamp,
    /// How long it took, in microseconds.
    pub duration_us: u64,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepOutcome {
    /// Its history id.
    pub step: i64,
    /// `None` when it succeeded.
    pub error: Option<String>,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// What stands at its paths now.
    pub after: Vec<(AbsPath, Stood)>,
}

/// Something seen and not acted upon.
#[derive(Debug)]
pub struct Note<'a> {
    /// About what.
    pub resource: &'a ResourceId,
    /// `reported`, `indeterminate`, `failed`, `contested`, `confirmed` or `orphaned`.
    pub outcome: &'static str,
    /// What a step would have done.
    pub action: Option<Action>,
    /// Every difference.
    pub changes: &'a [Change],
    /// Why nothing was done.
    pub error: &'a str,
    /// Who made the difference, as far as that is known.
    pub who: Option<&'a Actor>,
    /// When.
    pub time: Timestamp,
}

/// Which part of the history is wanted. Newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryFilter {
    /// Not before this.
    pub since: Option<Timestamp>,
    /// This entry alone.
    pub id: Option<i64>,
    /// About this resource alone.
    pub resource: Option<ResourceId>,
    /// At most this many.
    pub limit: usize,
}

impl Default for HistoryFilter {
    fn default() -> Self {
        Self { since: None, id: None, resource: None, limit: 100 }
    }
}

/// One entry of the history.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HistoryEntry {
    /// Its id.
    pub id: i64,
    /// The run that it belongs to.
    pub run: i64,
    /// When it began.
    pub time: Timestamp,
    /// About what.
    pub resource: ResourceId,
    /// Why.
    pub cause: Cause,
    /// The verb, when there was a difference.
    pub action: Option<Action>,
    /// `changed`, `failed`, `reported`, `indeterminate`, `contested`, `confirmed`, `orphaned`, `undone` or `interrupted`; `started` while it is under way.
    pub outcome: String,
    /// Every difference, with secrets masked.
    pub changes: Vec<Change>,
    /// What went wrong, or why nothing was done.
    pub error: Option<String>,
    /// How long it took, in microseconds.
    pub duration_us: Option<u64>,
    /// Name of the backup of what it replaced.
    pub backup: Option<String>,
    /// Who made the difference, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
}

impl Record {
    /// Makes durable what some steps are about to do and what they will owe, in one transaction. Returns their history ids.
    pub(super) fn try_begin_steps(
        &mut self,
        run: &mut RunInfo,
        intents: &[Intent<'_>],
    ) -> Result<Vec<i64>, RecordError> {
        let write = |transaction: &Transaction<'_>| -> Result<(i64, Vec<i64>), rusqlite::Error> {
            let run_id = run_row(transaction, run)?;
            let mut ids = Vec::with_capacity(intents.len());
            for intent in intents {
                let Intent { resource, action, changes, backup, who, time, .. } = *intent;
                let row = StepRow { resource, action, changes, backup, who, time, took_us: None };
                let step = row.insert(transaction, run_id, run.cause)?;
                ids.push(step);
                places::insert(transaction, step, run.cause, intent)?;
                confirmations::insert(transaction, step, &run.revision, intent)?;
                for (notify, unit) in intent.notifies {
                    debts::insert(transaction, *notify, unit, intent.resource, intent.time)?;
                }
            }
            Ok((run_id, ids))
        };
        let (run_id, ids) = self
            .connection
            .transaction()
            .and_then(|transaction| {
                let written = write(&transaction)?;
                transaction.commit()?;
                Ok(written)
            })
            .map_err(database("record what a step will do"))?;
        run.id = Some(run_id);
        Ok(ids)
    }

    /// Makes durable what came of some steps, in one transaction.
    pub(super) fn try_finish_steps(&mut self, outcomes: &[StepOutcome]) -> Result<(), RecordError> {
        let write = |transaction: &Transaction<'_>| -> Result<(), rusqlite::Error> {
            for outcome in outcomes {
                let word = if outcome.error.is_some() { "failed" } else { "changed" };
                transaction
                    .prepare_cached("UPDATE step SET outcome = ?2, error = ?3, duration = ?4 WHERE id = ?1")?
                    .execute(params![
                        outcome.step,
                        word,
                        outcome.error,
                        i64::try_from(outcome.duration_us).unwrap_or(i64::MAX)
                    ])?;
                places::finish(transaction, outcome.step, &outcome.after)?;
            }
            Ok(())
        };
        self.connection
            .transaction()
            .and_then(|transaction| {
                write(&transaction)?;
                transaction.commit()
            })
            .map_err(database("record the outcome of a step"))?;
        self.prune_after(outcomes.len())
    }

    /// Counts steps, and drops old history once in a while.
    fn prune_after(&mut self, n_steps: usize) -> Result<(), RecordError> {
        self.steps_since_pruning = self.steps_since_pruning.saturating_add(u32::try_from(n_steps).unwrap_or(u32::MAX));
        if self.steps_since_pruning >= PRUNE_EVERY {
            self.steps_since_pruning = 0;
            self.prune(Timestamp::now())?;
        }
        Ok(())
    }

    /// Records steps that are done, with what they owe, in one transaction. Returns their history ids.
    pub(super) fn try_record_repairs(
        &mut self,
        run: &RunInfo,
        repairs: &[Repair<'_>],
    ) -> Result<Vec<i64>, RecordError> {
        let write = |transaction: &Transaction<'_>| -> Result<Vec<i64>, rusqlite::Error> {
            let run_id = run_row(transaction, run)?;
            let mut ids = Vec::with_capacity(repairs.len());
            for repair in repairs {
                let Repair { resource, action, changes, backup, who, time, duration_us, .. } = *repair;
                let row = StepRow { resource, action, changes, backup, who, time, took_us: Some(duration_us) };
                let step = row.insert(transaction, run_id, run.cause)?;
                ids.push(step);
                if let Some((path, before, after)) = repair.place {
                    places::insert_done(transaction, step, path, before, after)?;
                }
                for (notify, unit) in repair.notifies {
                    debts::insert(transaction, *notify, unit, repair.resource, repair.time)?;
                }
            }
            Ok(ids)
        };
        let ids = self
            .connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .and_then(|transaction| {
                let written = write(&transaction)?;
                transaction.commit()?;
                Ok(written)
            })
            .map_err(database("record repairs"))?;
        self.prune_after(repairs.len())?;
        Ok(ids)
    }

    /// Steps about drift that ended, or were cut short, and that no alert tells of yet. Oldest first.
    pub fn untold(&self) -> Result<Vec<HistoryEntry>, RecordError> {
        let mut entries = self.history_where(
            "id IN (SELECT step FROM untold) AND outcome IN ('changed', 'interrupted') ORDER BY id DESC LIMIT 1000",
            params![],
        )?;
        entries.reverse();
        Ok(entries)
    }

    /// Takes note durably that alerts in the outbox tell of some steps, or that they need none.
    pub(super) fn try_told(&mut self, steps: &[i64]) -> Result<(), RecordError> {
        let write = |transaction: &Transaction<'_>| -> Result<(), rusqlite::Error> {
            for step in steps {
                transaction.prepare_cached("DELETE FROM untold WHERE step = ?1")?.execute([step])?;
            }
            Ok(())
        };
        if steps.is_empty() {
            return Ok(());
        }
        self.connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .and_then(|transaction| {
                write(&transaction)?;
                transaction.commit()
            })
            .map_err(database("record what was told"))
    }

    /// Records something that was left alone, unless the newest entry about the resource says the same already: a full scan
    /// every half hour must not fill the history with one standing drift. Returns the id of the entry.
    pub(super) fn try_note(&mut self, run: &mut RunInfo, note: &Note<'_>) -> Result<i64, RecordError> {
        let changes = changes_text(note.changes);
        let resource = note.resource.to_string();
        let newest: Option<(i64, Option<String>, String, Option<String>)> = self
            .connection
            .prepare_cached(
                "SELECT id, outcome, changes, error FROM step WHERE resource = ?1 ORDER BY time DESC, id DESC LIMIT 1",
            )
            .and_then(|mut statement| {
                statement
                    .query_row([&resource], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
                    .optional()
            })
            .map_err(database("read the history"))?;
        if let Some((id, Some(outcome), stored, error)) = newest
            && outcome == note.outcome
            && stored == changes
            && error.as_deref() == Some(note.error)
        {
            return Ok(id);
        }
        let write = |transaction: &Transaction<'_>| -> Result<(i64, i64), rusqlite::Error> {
            let run_id = run_row(transaction, run)?;
            transaction
                .prepare_cached(
                    "INSERT INTO step (run, time, resource, cause, action, outcome, changes, error, actor)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                )?
                .execute(params![
                    run_id,
                    micros(note.time),
                    resource,
                    cause_word(run.cause),
                    note.action.map(action_word),
                    note.outcome,
                    changes,
                    note.error,
                    note.who.and_then(actor_text),
                ])?;
            Ok((run_id, transaction.last_insert_rowid()))
        };
        let (run_id, id) = self
            .connection
            .transaction()
            .and_then(|transaction| {
                let written = write(&transaction)?;
                transaction.commit()?;
                Ok(written)
            })
            .map_err(database("record what was seen"))?;
        run.id = Some(run_id);
        Ok(id)
    }

    /// Looks up the history, newest first.
    pub fn history(&self, filter: &HistoryFilter) -> Result<Vec<HistoryEntry>, RecordError> {
        self.history_where(
            "(?1 IS NULL OR time >= ?1) AND (?2 IS NULL OR id = ?2) AND (?3 IS NULL OR resource = ?3)
             ORDER BY id DESC LIMIT ?4",
            params![
                filter.since.map(micros),
                filter.id,
                filter.resource.as_ref().map(ToString::to_string),
                i64::try_from(filter.limit).unwrap_or(i64::MAX)
            ],
        )
    }

    fn history_where(&self, which: &str, params: impl rusqlite::Params) -> Result<Vec<HistoryEntry>, RecordError> {
        // A command that reads beside no agent may find the tables of the version before; only a writer brings them up to date.
        let is_older = version(&self.connection)? < VERSION_WITH_ACTOR;
        let actor = if is_older { "NULL" } else { "actor" };
        let read = || -> Result<Vec<(RawEntry, String, String)>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(&format!(
                "SELECT id, run, time, resource, cause, action, outcome, changes, error, duration, backup, {actor} FROM step
                 WHERE {which}"
            ))?;
            statement.query_map(params, RawEntry::read)?.collect()
        };
        let rows = read().map_err(database("read the history"))?;
        // A row that another version wrote is left out rather than hiding all others.
        Ok(rows.into_iter().filter_map(|(raw, resource, changes)| raw.parse(&resource, &changes)).collect())
    }

    /// How often a resource was repaired after drift since a time.
    pub fn repairs_since(&self, resource: &ResourceId, since: Timestamp) -> Result<u32, RecordError> {
        self.connection
            .prepare_cached(
                "SELECT count(*) FROM step WHERE resource = ?1 AND time >= ?2 AND outcome = 'changed' AND cause = 'drift'",
            )
            .and_then(|mut statement| statement.query_row(params![resource.to_string(), micros(since)], |row| row.get(0)))
            .map_err(database("count repairs"))
    }

    /// When the last change that rekindle itself made to a resource was done.
    pub fn last_change(&self, resource: &ResourceId) -> Result<Option<Timestamp>, RecordError> {
        let done: Option<i64> = self
            .connection
            .prepare_cached(
                "SELECT max(time + coalesce(duration, 0)) FROM step WHERE resource = ?1 AND outcome = 'changed'",
            )
            .and_then(|mut statement| statement.query_row([resource.to_string()], |row| row.get(0)))
            .map_err(database("read the history"))?;
        Ok(done.map(from_micros))
    }

    /// Marks the steps that a killed run left without an outcome.
    pub(super) fn mark_interrupted(&mut self) -> Result<(), RecordError> {
        let read = |connection: &rusqlite::Connection| -> Result<Vec<String>, rusqlite::Error> {
            let mut statement = connection.prepare("SELECT DISTINCT resource FROM step WHERE outcome IS NULL")?;
            statement.query_map([], |row| row.get(0))?.collect()
        };
        let open = read(&self.connection).map_err(database("read the history"))?;
        if !open.is_empty() {
            self.connection
                .execute("UPDATE step SET outcome = 'interrupted' WHERE outcome IS NULL", [])
                .map_err(database("mark interrupted steps"))?;
            tracing::warn!(
                n_resources = open.len(),
                "the last run was cut short; its open steps are marked interrupted"
            );
        }
        self.interrupted = open.iter().filter_map(|resource| resource.parse().ok()).collect();
        Ok(())
    }

    /// Drops what is too old or too much.
    pub(super) fn prune(&mut self, now: Timestamp) -> Result<(), RecordError> {
        let prune = |connection: &rusqlite::Connection| -> Result<(), rusqlite::Error> {
            let (oldest, newest, oldest_time): (Option<i64>, Option<i64>, Option<i64>) =
                connection.query_row("SELECT min(id), max(id), min(time) FROM step", [], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?;
            let (Some(oldest), Some(newest), Some(oldest_time)) = (oldest, newest, oldest_time) else { return Ok(()) };
            let too_old = micros(now.checked_sub(MAX_AGE).unwrap_or(Timestamp::UNIX_EPOCH));
            let pages: i64 = connection.query_row(
                "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
                [],
                |row| row.get(0),
            )?;
            let mut keep_from = newest.saturating_sub(MAX_STEPS).saturating_add(1);
            if pages > MAX_BYTES {
                keep_from = keep_from.max(oldest.saturating_add((newest - oldest) / 4 + 1));
            }
            if oldest >= keep_from && oldest_time >= too_old {
                return Ok(());
            }
            connection.execute("DELETE FROM step WHERE id < ?1 OR time < ?2", params![keep_from, too_old])?;
            connection.execute("DELETE FROM run WHERE id NOT IN (SELECT run FROM step)", [])?;
            connection.execute("DELETE FROM untold WHERE step NOT IN (SELECT id FROM step)", [])?;
            connection.execute("DELETE FROM place WHERE step NOT IN (SELECT id FROM step)", [])?;
            Ok(())
        };
        prune(&self.connection).map_err(database("drop old history"))
    }
}

/// A step that is announced, or done.
struct StepRow<'a> {
    resource: &'a ResourceId,
    action: Action,
    changes: &'a [Change],
    backup: Option<&'a str>,
    who: Option<&'a Actor>,
    time: Timestamp,
    /// In microseconds; `None` for what is only announced.
    took_us: Option<u64>,
}

impl StepRow<'_> {
    /// Returns its history id.
    fn insert(&self, transaction: &Transaction<'_>, run: i64, cause: Cause) -> Result<i64, rusqlite::Error> {
        transaction
            .prepare_cached(
                "INSERT INTO step (run, time, resource, cause, action, outcome, changes, backup, duration, actor)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                run,
                micros(self.time),
                self.resource.to_string(),
                cause_word(cause),
                action_word(self.action),
                self.took_us.map(|_| "changed"),
                changes_text(self.changes),
                self.backup,
                self.took_us.map(|us| i64::try_from(us).unwrap_or(i64::MAX)),
                self.who.and_then(actor_text),
            ])?;
        let id = transaction.last_insert_rowid();
        note_untold(transaction, cause)?;
        Ok(id)
    }
}

/// Remembers that nobody was told of the last step, unless it needs no telling: what somebody wanted is no drift.
fn note_untold(transaction: &Transaction<'_>, cause: Cause) -> Result<(), rusqlite::Error> {
    match cause {
        Cause::NewRevision | Cause::Operator => Ok(()),
        Cause::Drift => {
            transaction.prepare_cached("INSERT INTO untold (step) VALUES (last_insert_rowid())")?.execute([]).map(drop)
        }
    }
}

/// Writes an entry about a step that was undone, in the transaction of whoever writes more about it.
pub(super) fn insert_undone(
    transaction: &Transaction<'_>,
    run: &RunInfo,
    undone: &super::Undone<'_>,
) -> Result<i64, rusqlite::Error> {
    let run_id = run_row(transaction, run)?;
    transaction
        .prepare_cached(
            "INSERT INTO step (run, time, resource, cause, action, outcome, changes, error, backup)
             VALUES (?1, ?2, ?3, ?4, ?5, 'undone', ?6, ?7, ?8)",
        )?
        .execute(params![
            run_id,
            micros(undone.time),
            undone.resource.to_string(),
            cause_word(run.cause),
            action_word(undone.action),
            changes_text(undone.changes),
            undone.note,
            undone.backup,
        ])?;
    Ok(transaction.last_insert_rowid())
}

fn run_row(transaction: &Transaction<'_>, run: &RunInfo) -> Result<i64, rusqlite::Error> {
    if let Some(id) = run.id {
        return Ok(id);
    }
    transaction
        .prepare_cached("INSERT INTO run (started, revision, cause, full) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![micros(run.started), run.revision.as_str(), cause_word(run.cause), run.full])?;
    Ok(transaction.last_insert_rowid())
}

fn changes_text(changes: &[Change]) -> String {
    let text = serde_json::to_string(changes).unwrap_or_else(|_| "[]".to_owned());
    if text.len() <= MAX_CHANGES {
        return text;
    }
    let shorten = |change: &Change| match change.conceals_found() {
        // What is concealed is short, and has to stay known as that.
        true => change.clone(),
        false => Change::value(&change.attribute, None, None),
    };
    let short: Vec<Change> = changes.iter().map(shorten).collect();
    serde_json::to_string(&short).unwrap_or_else(|_| "[]".to_owned())
}

fn actor_text(actor: &Actor) -> Option<String> {
    if actor.is_unknown() { None } else { serde_json::to_string(actor).ok() }
}

/// A row before its words are understood.
struct RawEntry {
    id: i64,
    run: i64,
    time: i64,
    cause: String,
    action: Option<String>,
    outcome: Option<String>,
    error: Option<String>,
    duration: Option<i64>,
    backup: Option<String>,
    actor: Option<String>,
}

impl RawEntry {
    fn read(row: &Row<'_>) -> Result<(Self, String, String), rusqlite::Error> {
        let raw = Self {
            id: row.get(0)?,
            run: row.get(1)?,
            time: row.get(2)?,
            cause: row.get(4)?,
            action: row.get(5)?,
            outcome: row.get(6)?,
            error: row.get(8)?,
            duration: row.get(9)?,
            backup: row.get(10)?,
            actor: row.get(11)?,
        };
        Ok((raw, row.get(3)?, row.get(7)?))
    }

    fn parse(self, resource: &str, changes: &str) -> Option<HistoryEntry> {
        Some(HistoryEntry {
            id: self.id,
            run: self.run,
            time: from_micros(self.time),
            resource: resource.parse().ok()?,
            cause: parse_cause(&self.cause)?,
            action: match self.action.as_deref() {
                None => None,
                Some(word) => Some(parse_action(word)?),
            },
            outcome: self.outcome.unwrap_or_else(|| "started".to_owned()),
            changes: serde_json::from_str(changes).ok()?,
            error: self.error,
            duration_us: self.duration.and_then(|us| u64::try_from(us).ok()),
            backup: self.backup,
            // One that a later version wrote differently is not worth the entry.
            actor: self.actor.and_then(|text| serde_json::from_str(&text).ok()),
        })
    }
}

fn cause_word(cause: Cause) -> &'static str {
    match cause {
        Cause::NewRevision => "new_revision",
        Cause::Drift => "drift",
        Cause::Operator => "operator",
    }
}

fn parse_cause(word: &str) -> Option<Cause> {
    [Cause::NewRevision, Cause::Drift, Cause::Operator].into_iter().find(|cause| cause_word(*cause) == word)
}

fn action_word(action: Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Update => "update",
        Action::Remove => "remove",
        Action::Run => "run",
        Action::Report => "report",
        Action::Waive => "waive",
    }
}

fn parse_action(word: &str) -> Option<Action> {
    let all = [Action::Create, Action::Update, Action::Remove, Action::Run, Action::Report, Action::Waive];
    all.into_iter().find(|action| action_word(*action) == word)
}
