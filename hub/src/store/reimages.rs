//! Rows of reimage requests, their evidence and the calls to engines.
//!
//! [`advance`] is the only function that changes a request's state.

use jiff::Timestamp;
use rekindle_protocol::{HostId, Reason, ReimageEvent, ReimageId, ReimageState, ReimageStatus, RequestKey, Why};
use serde_json::json;
use sqlx::FromRow;

use super::{Tx, audit, optional_time, parsed, signed, time, unsigned};
use crate::error::query;
use crate::{CallError, StoreError};

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Reimage {
    pub(crate) id: ReimageId,
    pub(crate) request: RequestKey,
    pub(crate) host: HostId,
    pub(crate) incarnation: u64,
    pub(crate) group: String,
    pub(crate) state: ReimageState,
    pub(crate) why: Why,
    pub(crate) summary: String,
    pub(crate) policy: Option<String>,
    /// SHA-256 of the evidence that the host announced.
    pub(crate) evidence: Option<String>,
    pub(crate) code: Option<Reason>,
    pub(crate) reason: Option<String>,
    pub(crate) retry_after: Option<Timestamp>,
    pub(crate) grant_ends: Option<Timestamp>,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) version: u64,
    pub(crate) requested_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) dispatched_at: Option<Timestamp>,
    pub(crate) released_at: Option<Timestamp>,
}

impl Reimage {
    /// Returns what the host is told.
    pub(crate) fn status(&self) -> ReimageStatus {
        ReimageStatus {
            id: self.id.clone(),
            request: self.request.clone(),
            state: self.state,
            code: self.code,
            reason: self.reason.clone(),
            retry_after: self.retry_after,
            grant_ends: self.grant_ends,
        }
    }
}

#[derive(Debug, FromRow)]
struct Row {
    id: String,
    request: String,
    host: String,
    incarnation: i64,
    grp: String,
    state: String,
    why: String,
    summary: String,
    policy: Option<String>,
    evidence: Option<String>,
    code: Option<String>,
    reason: Option<String>,
    retry_after: Option<i64>,
    grant_ends: Option<i64>,
    deadline: Option<i64>,
    version: i64,
    requested_at: i64,
    updated_at: i64,
    dispatched_at: Option<i64>,
    released_at: Option<i64>,
}

impl TryFrom<Row> for Reimage {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let wrong = |what: &str, text: &str| StoreError::Corrupt { what: format!("a reimage with {what} `{text}`") };
        Ok(Self {
            id: parsed(row.id, "reimage id")?,
            request: parsed(row.request, "request key")?,
            host: parsed(row.host, "host id")?,
            incarnation: unsigned(row.incarnation, "incarnation")?,
            group: row.grp,
            state: ReimageState::from_word(&row.state).ok_or_else(|| wrong("state", &row.state))?,
            why: Why::from_word(&row.why).ok_or_else(|| wrong("reason", &row.why))?,
            summary: row.summary,
            policy: row.policy,
            evidence: row.evidence,
            code: row.code.as_deref().map(Reason::from_word),
            reason: row.reason,
            retry_after: optional_time(row.retry_after)?,
            grant_ends: optional_time(row.grant_ends)?,
            deadline: optional_time(row.deadline)?,
            version: unsigned(row.version, "version")?,
            requested_at: time(row.requested_at)?,
            updated_at: time(row.updated_at)?,
            dispatched_at: optional_time(row.dispatched_at)?,
            released_at: optional_time(row.released_at)?,
        })
    }
}

fn all(rows: Vec<Row>) -> Result<Vec<Reimage>, StoreError> {
    rows.into_iter().map(Reimage::try_from).collect()
}

/// Returns a request.
pub(crate) async fn find(tx: &mut Tx, id: &str) -> Result<Option<Reimage>, StoreError> {
    let row: Option<Row> = sqlx::query_as("SELECT * FROM reimages WHERE id = $1")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(query("read a reimage"))?;
    row.map(Reimage::try_from).transpose()
}

/// Returns all requests of a host, the newest first; all hosts' when none is named.
pub(crate) async fn list(tx: &mut Tx, host: Option<&HostId>) -> Result<Vec<Reimage>, StoreError> {
    let rows =
        sqlx::query_as("SELECT * FROM reimages WHERE $1 IS NULL OR host = $1 ORDER BY requested_at DESC, id DESC")
            .bind(host.map(HostId::as_str))
            .fetch_all(&mut **tx)
            .await
            .map_err(query("list the reimages"))?;
    all(rows)
}

/// Returns requests whose engine was being called: after a restart nobody knows what became of it.
pub(crate) async fn in_dispatch(tx: &mut Tx) -> Result<Vec<Reimage>, StoreError> {
    let rows = sqlx::query_as("SELECT * FROM reimages WHERE state IN ('dispatching', 'engine_running')")
        .fetch_all(&mut **tx)
        .await
        .map_err(query("list the reimages in dispatch"))?;
    all(rows)
}

/// Returns requests whose present state has outlived its deadline.
pub(crate) async fn overdue(tx: &mut Tx, now: Timestamp) -> Result<Vec<Reimage>, StoreError> {
    let rows = sqlx::query_as("SELECT * FROM reimages WHERE deadline IS NOT NULL AND deadline <= $1")
        .bind(now.as_millisecond())
        .fetch_all(&mut **tx)
        .await
        .map_err(query("list the overdue reimages"))?;
    all(rows)
}

/// Writes a new request.
pub(crate) async fn insert(tx: &mut Tx, reimage: &Reimage) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO reimages (id, request, host, incarnation, grp, state, why, summary, policy, evidence, code, reason,
             version, requested_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
    )
    .bind(reimage.id.as_str())
    .bind(reimage.request.as_str())
    .bind(reimage.host.as_str())
    .bind(signed(reimage.incarnation, "incarnation")?)
    .bind(&reimage.group)
    .bind(reimage.state.word())
    .bind(reimage.why.word())
    .bind(&reimage.summary)
    .bind(&reimage.policy)
    .bind(&reimage.evidence)
    .bind(reimage.code.map(Reason::word))
    .bind(&reimage.reason)
    .bind(signed(reimage.version, "version")?)
    .bind(reimage.requested_at.as_millisecond())
    .bind(reimage.updated_at.as_millisecond())
    .execute(&mut **tx)
    .await
    .map_err(query("write a reimage"))?;
    Ok(())
}

/// What moves a request, and what it is to say afterwards.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    pub(crate) event: ReimageEvent,
    pub(crate) actor: &'a str,
    pub(crate) code: Option<Reason>,
    pub(crate) reason: Option<String>,
    /// When the new state is left by itself.
    pub(crate) deadline: Option<Timestamp>,
}

impl<'a> Step<'a> {
    /// Returns a step that leaves no reason and no deadline behind.
    pub(crate) fn new(event: ReimageEvent, actor: &'a str) -> Self {
        Self { event, actor, code: None, reason: None, deadline: None }
    }

    /// Gives the reason.
    pub(crate) fn because(self, code: Reason, reason: impl Into<String>) -> Self {
        Self { code: Some(code), reason: Some(reason.into()), ..self }
    }

    /// Sets the deadline of the new state.
    pub(crate) fn until(self, deadline: Timestamp) -> Self {
        Self { deadline: Some(deadline), ..self }
    }
}

/// Moves a request by one event, writes it with whatever else the caller changed in it, and records both in the audit log.
pub(crate) async fn advance(
    tx: &mut Tx,
    reimage: &mut Reimage,
    step: Step<'_>,
    now: Timestamp,
) -> Result<(), CallError> {
    let from = reimage.state;
    reimage.state = from
        .next(step.event)
        .map_err(|illegal| CallError::refused(Reason::IllegalState, format!("reimage `{}`: {illegal}", reimage.id)))?;
    reimage.code = step.code;
    reimage.reason = step.reason;
    reimage.deadline = step.deadline;
    reimage.version = reimage.version.saturating_add(1);
    reimage.updated_at = now;
    sqlx::query(
        "UPDATE reimages SET state = $2, code = $3, reason = $4, retry_after = $5, grant_ends = $6, deadline = $7,
             version = $8, updated_at = $9, dispatched_at = $10 WHERE id = $1",
    )
    .bind(reimage.id.as_str())
    .bind(reimage.state.word())
    .bind(reimage.code.map(Reason::word))
    .bind(&reimage.reason)
    .bind(reimage.retry_after.map(Timestamp::as_millisecond))
    .bind(reimage.grant_ends.map(Timestamp::as_millisecond))
    .bind(reimage.deadline.map(Timestamp::as_millisecond))
    .bind(signed(reimage.version, "version")?)
    .bind(now.as_millisecond())
    .bind(reimage.dispatched_at.map(Timestamp::as_millisecond))
    .execute(&mut **tx)
    .await
    .map_err(query("move a reimage"))?;
    let detail = json!({
        "event": format!("{:?}", step.event), "from": from, "to": reimage.state, "host": reimage.host,
        "incarnation": reimage.incarnation, "group": reimage.group, "code": reimage.code, "reason": reimage.reason,
        "deadline": reimage.deadline,
    });
    audit::append(tx, now, step.actor, &format!("reimage.{}", reimage.state.word()), reimage.id.as_str(), detail)
        .await?;
    Ok(())
}

/// Frees the slot of a request that went wrong.
pub(crate) async fn release(tx: &mut Tx, reimage: &mut Reimage, now: Timestamp) -> Result<(), StoreError> {
    reimage.released_at = Some(now);
    sqlx::query("UPDATE reimages SET released_at = $2, version = version + 1 WHERE id = $1")
        .bind(reimage.id.as_str())
        .bind(now.as_millisecond())
        .execute(&mut **tx)
        .await
        .map_err(query("release a reimage"))?;
    Ok(())
}

/// Stores evidence, in place of what was stored before.
pub(crate) async fn put_evidence(
    tx: &mut Tx,
    id: &ReimageId,
    sha256: &str,
    body: &[u8],
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO evidence (reimage, sha256, body, stored_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (reimage) DO UPDATE SET sha256 = excluded.sha256, body = excluded.body,
             stored_at = excluded.stored_at",
    )
    .bind(id.as_str())
    .bind(sha256)
    .bind(body)
    .bind(now.as_millisecond())
    .execute(&mut **tx)
    .await
    .map_err(query("store evidence"))?;
    Ok(())
}

/// Returns the digest of the stored evidence.
pub(crate) async fn evidence_digest(tx: &mut Tx, id: &ReimageId) -> Result<Option<String>, StoreError> {
    sqlx::query_scalar("SELECT sha256 FROM evidence WHERE reimage = $1")
        .bind(id.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(query("read the digest of evidence"))
}

/// Returns the stored evidence.
pub(crate) async fn evidence(tx: &mut Tx, id: &ReimageId) -> Result<Option<Vec<u8>>, StoreError> {
    sqlx::query_scalar("SELECT body FROM evidence WHERE reimage = $1")
        .bind(id.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(query("read evidence"))
}

/// A call to an engine.
#[derive(Debug, FromRow)]
pub(crate) struct EngineCallRow {
    pub(crate) engine: String,
    pub(crate) intent_at: i64,
    pub(crate) ended_at: Option<i64>,
    pub(crate) outcome: Option<String>,
    pub(crate) output: Option<String>,
}

/// Writes the intent to call an engine and returns its number.
pub(crate) async fn put_intent(tx: &mut Tx, id: &ReimageId, engine: &str, now: Timestamp) -> Result<i64, StoreError> {
    sqlx::query_scalar("INSERT INTO engine_calls (reimage, engine, intent_at) VALUES ($1, $2, $3) RETURNING id")
        .bind(id.as_str())
        .bind(engine)
        .bind(now.as_millisecond())
        .fetch_one(&mut **tx)
        .await
        .map_err(query("write the intent to call an engine"))
}

/// Writes what came of a call.
pub(crate) async fn put_result(
    tx: &mut Tx,
    call: i64,
    outcome: &str,
    output: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE engine_calls SET ended_at = $2, outcome = $3, output = $4 WHERE id = $1")
        .bind(call)
        .bind(now.as_millisecond())
        .bind(outcome)
        .bind(output)
        .execute(&mut **tx)
        .await
        .map_err(query("write the result of an engine"))?;
    Ok(())
}

/// Returns the calls that were made for a request.
pub(crate) async fn engine_calls(tx: &mut Tx, id: &ReimageId) -> Result<Vec<EngineCallRow>, StoreError> {
    sqlx::query_as(
        "SELECT engine, intent_at, ended_at, outcome, output FROM engine_calls WHERE reimage = $1 ORDER BY id",
    )
    .bind(id.as_str())
    .fetch_all(&mut **tx)
    .await
    .map_err(query("list the calls to engines"))
}
