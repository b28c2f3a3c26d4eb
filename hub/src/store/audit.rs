//! The audit log: append-only, each entry's hash made over the entry and the hash before it.
//!
//! Whoever changes an entry must change every hash after it; whoever keeps one later hash elsewhere can tell.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::FromRow;

use super::{Store, Tx, time, unsigned};
use crate::StoreError;
use crate::error::query;
use crate::secret::sha256;

/// One decision, with its inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Counts from 1 without gaps.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who: `host:ID#INCARNATION`, `operator:uid:N` or `hub`.
    pub actor: String,
    /// What.
    pub action: String,
    /// Which reimage or host.
    pub subject: String,
    /// The inputs.
    pub detail: Value,
    /// Over this entry and the hash of the one before.
    pub hash: String,
}

/// What a check of the whole chain found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct AuditCheck {
    /// Entries that were checked.
    pub n_entries: u64,
    /// Hash of the last good entry: keep it elsewhere and compare.
    pub head: String,
    /// The first entry that does not fit, and how.
    pub broken: Option<String>,
}

#[derive(Debug, FromRow)]
struct Row {
    seq: i64,
    at: i64,
    actor: String,
    action: String,
    subject: String,
    detail: String,
    hash: String,
}

const GENESIS: &str = "";

fn chain(previous: &str, seq: i64, at: i64, texts: [&str; 4]) -> String {
    // JSON keeps the fields apart whatever they contain.
    sha256(serde_json::json!([previous, seq, at, texts]).to_string())
}

/// Appends an entry in the transaction that makes the decision.
pub(crate) async fn append(
    tx: &mut Tx,
    now: Timestamp,
    actor: &str,
    action: &str,
    subject: &str,
    detail: Value,
) -> Result<(), StoreError> {
    let last: Option<(i64, String)> = sqlx::query_as("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut **tx)
        .await
        .map_err(query("read the end of the audit log"))?;
    let (seq, previous) = last.map_or((1, GENESIS.to_owned()), |(seq, hash)| (seq.saturating_add(1), hash));
    let (at, detail) = (now.as_millisecond(), detail.to_string());
    let hash = chain(&previous, seq, at, [actor, action, subject, &detail]);
    sqlx::query(
        "INSERT INTO audit (seq, at, actor, action, subject, detail, hash) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(seq)
    .bind(at)
    .bind(actor)
    .bind(action)
    .bind(subject)
    .bind(&detail)
    .bind(hash)
    .execute(&mut **tx)
    .await
    .map_err(query("append to the audit log"))?;
    Ok(())
}

/// Returns whether the last entry about a subject says the same.
pub(crate) async fn is_repeated(tx: &mut Tx, action: &str, subject: &str, detail: &Value) -> Result<bool, StoreError> {
    let last: Option<(String, String)> =
        sqlx::query_as("SELECT action, detail FROM audit WHERE subject = $1 ORDER BY seq DESC LIMIT 1")
            .bind(subject)
            .fetch_optional(&mut **tx)
            .await
            .map_err(query("read the audit log"))?;
    let text = detail.to_string();
    Ok(last.is_some_and(|(last_action, last_detail)| last_action == action && last_detail == text))
}

/// Returns the newest entries, oldest first; those of one subject when one is named.
pub(crate) async fn list(store: &Store, subject: Option<&str>, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT * FROM (SELECT * FROM audit WHERE $1 IS NULL OR subject = $1 ORDER BY seq DESC LIMIT $2) ORDER BY seq",
    )
    .bind(subject)
    .bind(limit)
    .fetch_all(&store.pool)
    .await
    .map_err(query("read the audit log"))?;
    rows.into_iter()
        .map(|row| {
            Ok(AuditEntry {
                seq: unsigned(row.seq, "audit sequence")?,
                at: time(row.at)?,
                actor: row.actor,
                action: row.action,
                subject: row.subject,
                detail: serde_json::from_str(&row.detail).unwrap_or(Value::String(row.detail)),
                hash: row.hash,
            })
        })
        .collect()
}

/// Checks the whole chain, a page at a time.
pub(crate) async fn verify(store: &Store) -> Result<AuditCheck, StoreError> {
    let mut check = AuditCheck { n_entries: 0, head: GENESIS.to_owned(), broken: None };
    let mut last = 0_i64;
    loop {
        let rows: Vec<Row> = sqlx::query_as("SELECT * FROM audit WHERE seq > $1 ORDER BY seq LIMIT 1000")
            .bind(last)
            .fetch_all(&store.pool)
            .await
            .map_err(query("read the audit log"))?;
        if rows.is_empty() {
            return Ok(check);
        }
        for row in rows {
            if row.seq != last.saturating_add(1) {
                check.broken = Some(format!("entry {} is missing", last.saturating_add(1)));
                return Ok(check);
            }
            let hash = chain(&check.head, row.seq, row.at, [&row.actor, &row.action, &row.subject, &row.detail]);
            if hash != row.hash {
                check.broken = Some(format!("entry {} does not match its hash", row.seq));
                return Ok(check);
            }
            last = row.seq;
            check.head = hash;
            check.n_entries = check.n_entries.saturating_add(1);
        }
    }
}
