//! Rows of hosts, join tokens and bearer tokens.

use jiff::Timestamp;
use rekindle_protocol::{BootId, CheckIn, EnrollRequest, HostId, MachineFacts, ReimageId};
use sqlx::FromRow;

use super::{Tx, optional_time, parsed, signed, time, unsigned};
use crate::StoreError;
use crate::error::query;

/// A slot and the system in it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) group: String,
    pub(crate) incarnation: u64,
    pub(crate) hostname: String,
    pub(crate) machine: MachineFacts,
    pub(crate) enrolled_at: Timestamp,
    pub(crate) checked_in_at: Option<Timestamp>,
    pub(crate) boot_id: Option<String>,
    pub(crate) seq: Option<u64>,
    pub(crate) checkin: Option<CheckIn>,
}

#[derive(Debug, FromRow)]
struct HostRow {
    id: String,
    grp: String,
    incarnation: i64,
    hostname: String,
    machine: String,
    enrolled_at: i64,
    checked_in_at: Option<i64>,
    boot_id: Option<String>,
    seq: Option<i64>,
    checkin: Option<String>,
}

impl TryFrom<HostRow> for Host {
    type Error = StoreError;

    fn try_from(row: HostRow) -> Result<Self, StoreError> {
        let json = |source: serde_json::Error| StoreError::Corrupt { what: format!("host `{}`: {source}", row.id) };
        Ok(Self {
            incarnation: unsigned(row.incarnation, "incarnation")?,
            machine: serde_json::from_str(&row.machine).map_err(json)?,
            enrolled_at: time(row.enrolled_at)?,
            checked_in_at: optional_time(row.checked_in_at)?,
            boot_id: row.boot_id,
            seq: row.seq.map(|seq| unsigned(seq, "sequence number")).transpose()?,
            checkin: row.checkin.as_deref().map(serde_json::from_str).transpose().map_err(json)?,
            id: parsed(row.id, "host id")?,
            group: row.grp,
            hostname: row.hostname,
        })
    }
}

/// Returns a host.
pub(crate) async fn find(tx: &mut Tx, id: &HostId) -> Result<Option<Host>, StoreError> {
    let row: Option<HostRow> = sqlx::query_as("SELECT * FROM hosts WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(query("read a host"))?;
    row.map(Host::try_from).transpose()
}

/// Returns all hosts by name.
pub(crate) async fn list(tx: &mut Tx) -> Result<Vec<Host>, StoreError> {
    let rows: Vec<HostRow> = sqlx::query_as("SELECT * FROM hosts ORDER BY id")
        .fetch_all(&mut **tx)
        .await
        .map_err(query("list the hosts"))?;
    rows.into_iter().map(Host::try_from).collect()
}

/// Writes a new incarnation, which has not checked in yet.
pub(crate) async fn put_incarnation(
    tx: &mut Tx,
    request: &EnrollRequest,
    group: &str,
    incarnation: u64,
    now: Timestamp,
) -> Result<(), StoreError> {
    let machine = serde_json::json!(request.machine).to_string();
    sqlx::query(
        "INSERT INTO hosts (id, grp, incarnation, hostname, machine, enrolled_at) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (id) DO UPDATE SET grp = excluded.grp, incarnation = excluded.incarnation,
             hostname = excluded.hostname, machine = excluded.machine, enrolled_at = excluded.enrolled_at,
             checked_in_at = NULL, boot_id = NULL, seq = NULL, checkin = NULL",
    )
    .bind(request.host_id.as_str())
    .bind(group)
    .bind(signed(incarnation, "incarnation")?)
    .bind(&request.hostname)
    .bind(machine)
    .bind(now.as_millisecond())
    .execute(&mut **tx)
    .await
    .map_err(query("write a host"))?;
    Ok(())
}

/// Writes a check-in of the present incarnation.
pub(crate) async fn put_checkin(tx: &mut Tx, checkin: &CheckIn, now: Timestamp) -> Result<(), StoreError> {
    sqlx::query("UPDATE hosts SET checked_in_at = $2, boot_id = $3, seq = $4, checkin = $5 WHERE id = $1")
        .bind(checkin.host_id.as_str())
        .bind(now.as_millisecond())
        .bind(checkin.boot_id.as_str())
        .bind(signed(checkin.seq, "sequence number")?)
        .bind(serde_json::json!(checkin).to_string())
        .execute(&mut **tx)
        .await
        .map_err(query("write a check-in"))?;
    Ok(())
}

/// What a join token permits.
#[derive(Debug, Clone)]
pub(crate) struct JoinToken {
    pub(crate) group: String,
    pub(crate) host: Option<HostId>,
    pub(crate) reimage: Option<ReimageId>,
    pub(crate) uses_left: u64,
    pub(crate) expires_at: Timestamp,
}

/// Writes a join token.
pub(crate) async fn put_join_token(tx: &mut Tx, hash: &str, token: &JoinToken) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO join_tokens (hash, grp, host, reimage, uses_left, expires_at) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(hash)
    .bind(&token.group)
    .bind(token.host.as_ref().map(HostId::as_str))
    .bind(token.reimage.as_ref().map(ReimageId::as_str))
    .bind(signed(token.uses_left, "number of uses")?)
    .bind(token.expires_at.as_millisecond())
    .execute(&mut **tx)
    .await
    .map_err(query("write a join token"))?;
    Ok(())
}

/// Returns a join token.
pub(crate) async fn find_join_token(tx: &mut Tx, hash: &str) -> Result<Option<JoinToken>, StoreError> {
    type Row = (String, Option<String>, Option<String>, i64, i64);
    let row: Option<Row> =
        sqlx::query_as("SELECT grp, host, reimage, uses_left, expires_at FROM join_tokens WHERE hash = $1")
            .bind(hash)
            .fetch_optional(&mut **tx)
            .await
            .map_err(query("read a join token"))?;
    row.map(|(group, host, reimage, uses_left, expires_at)| {
        Ok(JoinToken {
            group,
            host: host.map(|host| parsed(host, "host id")).transpose()?,
            reimage: reimage.map(|id| parsed(id, "reimage id")).transpose()?,
            uses_left: unsigned(uses_left, "number of uses")?,
            expires_at: time(expires_at)?,
        })
    })
    .transpose()
}

/// Takes one use from a join token.
pub(crate) async fn use_join_token(tx: &mut Tx, hash: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE join_tokens SET uses_left = uses_left - 1 WHERE hash = $1 AND uses_left > 0")
        .bind(hash)
        .execute(&mut **tx)
        .await
        .map_err(query("use a join token"))?;
    Ok(())
}

/// Forgets the tokens that were bound to a reimage, and those that expired over a day ago.
pub(crate) async fn drop_join_tokens(tx: &mut Tx, reimage: &ReimageId, now: Timestamp) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM join_tokens WHERE reimage = $1 OR expires_at < $2")
        .bind(reimage.as_str())
        .bind(now.as_millisecond().saturating_sub(24 * 3600 * 1000))
        .execute(&mut **tx)
        .await
        .map_err(query("forget join tokens"))?;
    Ok(())
}

/// Who a bearer token names.
#[derive(Debug, Clone)]
pub(crate) struct Bearer {
    pub(crate) host: HostId,
    pub(crate) incarnation: u64,
    pub(crate) revoked_at: Option<Timestamp>,
}

/// Returns whom a bearer token names.
pub(crate) async fn find_bearer(tx: &mut Tx, hash: &str) -> Result<Option<Bearer>, StoreError> {
    let row: Option<(String, i64, Option<i64>)> =
        sqlx::query_as("SELECT host, incarnation, revoked_at FROM bearers WHERE hash = $1")
            .bind(hash)
            .fetch_optional(&mut **tx)
            .await
            .map_err(query("read a bearer token"))?;
    row.map(|(host, incarnation, revoked_at)| {
        Ok(Bearer {
            host: parsed(host, "host id")?,
            incarnation: unsigned(incarnation, "incarnation")?,
            revoked_at: optional_time(revoked_at)?,
        })
    })
    .transpose()
}

/// Writes a bearer token.
pub(crate) async fn put_bearer(
    tx: &mut Tx,
    hash: &str,
    bearer: (&HostId, u64),
    issued_for: (&str, &BootId),
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO bearers (hash, host, incarnation, issued_for, boot_id) VALUES ($1, $2, $3, $4, $5)")
        .bind(hash)
        .bind(bearer.0.as_str())
        .bind(signed(bearer.1, "incarnation")?)
        .bind(issued_for.0)
        .bind(issued_for.1.as_str())
        .execute(&mut **tx)
        .await
        .map_err(query("write a bearer token"))?;
    Ok(())
}

/// Forgets a bearer token that was issued for the same join token and boot and never used, and returns its incarnation.
pub(crate) async fn take_unused_bearer(
    tx: &mut Tx,
    host: &HostId,
    issued_for: (&str, &BootId),
) -> Result<Option<u64>, StoreError> {
    let incarnation: Option<i64> = sqlx::query_scalar(
        "DELETE FROM bearers WHERE host = $1 AND issued_for = $2 AND boot_id = $3 AND used = 0 AND revoked_at IS NULL
         RETURNING incarnation",
    )
    .bind(host.as_str())
    .bind(issued_for.0)
    .bind(issued_for.1.as_str())
    .fetch_optional(&mut **tx)
    .await
    .map_err(query("replace an unused bearer token"))?;
    incarnation.map(|incarnation| unsigned(incarnation, "incarnation")).transpose()
}

/// Marks the bearer tokens of an incarnation as used: its enrolment can no longer be repeated.
pub(crate) async fn mark_bearers_used(tx: &mut Tx, host: &HostId, incarnation: u64) -> Result<(), StoreError> {
    sqlx::query("UPDATE bearers SET used = 1 WHERE host = $1 AND incarnation = $2 AND used = 0")
        .bind(host.as_str())
        .bind(signed(incarnation, "incarnation")?)
        .execute(&mut **tx)
        .await
        .map_err(query("mark a bearer token as used"))?;
    Ok(())
}

/// Revokes every bearer token of a host: from now on they are answered with 410.
pub(crate) async fn revoke_bearers(tx: &mut Tx, host: &HostId, now: Timestamp) -> Result<(), StoreError> {
    sqlx::query("UPDATE bearers SET revoked_at = $2 WHERE host = $1 AND revoked_at IS NULL")
        .bind(host.as_str())
        .bind(now.as_millisecond())
        .execute(&mut **tx)
        .await
        .map_err(query("revoke bearer tokens"))?;
    Ok(())
}
