//! What people do: list, look, decide. The command line and an embedding program use the same methods.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rekindle_protocol::{
    Health, HostId, MachineFacts, Reason, ReimageId, ReimageState, ReimageStatus, RequestKey, Token, Why,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::hub::Hub;
use crate::secret::{self, Kind};
use crate::store::hosts::JoinToken;
use crate::store::reimages::Reimage;
use crate::store::{self, audit};
use crate::{AuditCheck, AuditEntry, CallError, reimages};

/// Most audit entries in one answer.
const MAX_AUDIT: u32 = 10_000;

/// An operator at a hub.
#[derive(Debug, Clone)]
pub struct Admin {
    hub: Arc<Hub>,
    actor: String,
}

/// A join token to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// The group that its hosts land in.
    pub group: String,
    /// The only host that may use it; then it may also replace that host's present incarnation.
    pub host: Option<HostId>,
    /// How many hosts may use it.
    pub uses: u64,
    /// How long it lives.
    pub expires: Duration,
}

/// A join token, shown once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenCreated {
    /// The secret.
    pub token: Token,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A host in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostSummary {
    /// The slot's name.
    pub host_id: HostId,
    /// Its group.
    pub group: String,
    /// The host's own name.
    pub hostname: String,
    /// What it runs on.
    pub machine: MachineFacts,
    /// Installs on this slot.
    pub incarnation: u64,
    /// When this incarnation enrolled.
    pub enrolled_at: Timestamp,
    /// Its last check-in, if any.
    pub checked_in_at: Option<Timestamp>,
    /// What it said of itself then.
    pub health: Option<Health>,
    /// Failing resources at that time.
    pub failing: Vec<String>,
    /// The revision in force at that time.
    pub policy: Option<String>,
}

/// A request in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReimageSummary {
    /// The hub's name for it.
    pub id: ReimageId,
    /// The agent's name for it.
    pub request: RequestKey,
    /// Which host.
    pub host_id: HostId,
    /// Which incarnation of it.
    pub incarnation: u64,
    /// The host's group.
    pub group: String,
    /// Where it stands.
    pub state: ReimageState,
    /// Why it was asked.
    pub why: Why,
    /// The agent's sentence.
    pub summary: String,
    /// The revision in force when it was asked.
    pub policy: Option<String>,
    /// The reason of the state, for programs.
    pub code: Option<Reason>,
    /// The reason of the state.
    pub reason: Option<String>,
    /// When it was asked.
    pub requested_at: Timestamp,
    /// When it last moved.
    pub updated_at: Timestamp,
    /// When the grant ends.
    pub grant_ends: Option<Timestamp>,
    /// When the engine's intent was committed.
    pub dispatched_at: Option<Timestamp>,
    /// When a person freed the slot of one that went wrong.
    pub released_at: Option<Timestamp>,
}

/// One call to an engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineCall {
    /// Program and arguments.
    pub engine: Value,
    /// When the intent was committed.
    pub intent_at: Timestamp,
    /// When the result was recorded.
    pub ended_at: Option<Timestamp>,
    /// `done`, `failed`, `unknown`; nothing when no result was recorded.
    pub outcome: Option<String>,
    /// What it wrote, bounded.
    pub output: Option<String>,
}

/// All about one request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReimageDetail {
    /// The request.
    pub reimage: ReimageSummary,
    /// The dossier, if one was stored.
    pub evidence: Option<Value>,
    /// Calls to engines.
    pub engine_calls: Vec<EngineCall>,
    /// Its decisions.
    pub audit: Vec<AuditEntry>,
}

impl From<Reimage> for ReimageSummary {
    fn from(reimage: Reimage) -> Self {
        Self {
            id: reimage.id,
            request: reimage.request,
            host_id: reimage.host,
            incarnation: reimage.incarnation,
            group: reimage.group,
            state: reimage.state,
            why: reimage.why,
            summary: reimage.summary,
            policy: reimage.policy,
            code: reimage.code,
            reason: reimage.reason,
            requested_at: reimage.requested_at,
            updated_at: reimage.updated_at,
            grant_ends: reimage.grant_ends,
            dispatched_at: reimage.dispatched_at,
            released_at: reimage.released_at,
        }
    }
}

impl Admin {
    /// Returns an operator by the name that the audit log will show.
    pub(crate) fn new(hub: Arc<Hub>, actor: String) -> Self {
        Self { hub, actor }
    }

    /// Makes a join token.
    pub async fn create_token(&self, new: NewToken) -> Result<TokenCreated, CallError> {
        if !self.hub.group_names().any(|name| name == new.group) {
            let names = self.hub.group_names().collect::<Vec<_>>().join(", ");
            let detail = format!("no group `{}` is configured; configured are: {names}", new.group);
            return Err(CallError::refused(Reason::NotFound, detail));
        }
        if new.uses == 0 || (new.host.is_some() && new.uses > 1) {
            let detail = "a token needs at least one use, and one that is bound to a host exactly one";
            return Err(CallError::refused(Reason::Malformed, detail));
        }
        let now = Timestamp::now();
        let token = secret::new_token(Kind::Join)?;
        let expires_at = self.hub.after(now, new.expires);
        let subject = new.host.as_ref().map_or_else(|| format!("group:{}", new.group), ToString::to_string);
        let detail = json!({ "group": new.group, "host": new.host, "uses": new.uses, "expires_at": expires_at });
        let row = JoinToken { group: new.group, host: new.host, reimage: None, uses_left: new.uses, expires_at };
        let mut tx = self.hub.store.begin().await?;
        store::hosts::put_join_token(&mut tx, &secret::sha256(token.reveal()), &row).await?;
        audit::append(&mut tx, now, &self.actor, "token.created", &subject, detail).await?;
        store::commit(tx).await?;
        Ok(TokenCreated { token, expires_at })
    }

    /// Returns all hosts by name.
    pub async fn list_hosts(&self) -> Result<Vec<HostSummary>, CallError> {
        let hosts = store::hosts::list(&mut self.hub.store.read().await?).await?;
        let summary = |host: store::hosts::Host| HostSummary {
            health: host.checkin.as_ref().map(|checkin| checkin.health),
            failing: host.checkin.iter().flat_map(|c| c.failing.iter().map(|f| f.resource.clone())).collect(),
            policy: host.checkin.and_then(|checkin| checkin.policy),
            host_id: host.id,
            group: host.group,
            hostname: host.hostname,
            machine: host.machine,
            incarnation: host.incarnation,
            enrolled_at: host.enrolled_at,
            checked_in_at: host.checked_in_at,
        };
        Ok(hosts.into_iter().map(summary).collect())
    }

    /// Returns all requests, the oldest first.
    pub async fn list_reimages(&self) -> Result<Vec<ReimageSummary>, CallError> {
        let reimages = store::reimages::list(&mut self.hub.store.read().await?, None).await?;
        Ok(reimages.into_iter().rev().map(ReimageSummary::from).collect())
    }

    /// Returns all about one request.
    pub async fn show(&self, id: &str) -> Result<ReimageDetail, CallError> {
        let mut tx = self.hub.store.read().await?;
        let reimage = store::reimages::find(&mut tx, id).await?.ok_or_else(|| {
            CallError::refused(
                Reason::NotFound,
                format!("there is no reimage `{id}`; `rekindle-hub reimages` lists them"),
            )
        })?;
        let evidence = store::reimages::evidence(&mut tx, &reimage.id).await?;
        let calls = store::reimages::engine_calls(&mut tx, &reimage.id).await?;
        drop(tx);
        let engine_calls = calls.into_iter().map(|call| {
            Ok(EngineCall {
                engine: serde_json::from_str(&call.engine).unwrap_or(Value::String(call.engine)),
                intent_at: store::time(call.intent_at)?,
                ended_at: store::optional_time(call.ended_at)?,
                outcome: call.outcome,
                output: call.output,
            })
        });
        Ok(ReimageDetail {
            engine_calls: engine_calls.collect::<Result<_, CallError>>()?,
            evidence: evidence.map(|body| serde_json::from_slice(&body).unwrap_or(Value::Null)),
            audit: audit::list(&self.hub.store, Some(id), MAX_AUDIT).await?,
            reimage: reimage.into(),
        })
    }

    /// Approves a request.
    pub async fn approve(&self, id: &str) -> Result<ReimageStatus, CallError> {
        reimages::approve(&self.hub, id, &self.actor, Timestamp::now()).await
    }

    /// Calls the engine once more for a request that is held because its engine's result was lost.
    pub async fn dispatch_again(&self, id: &str) -> Result<ReimageStatus, CallError> {
        reimages::dispatch_again(&self.hub, id, &self.actor, Timestamp::now()).await
    }

    /// Denies a request; the host may not ask again for a while.
    pub async fn deny(&self, id: &str, reason: &str, for_span: Duration) -> Result<ReimageStatus, CallError> {
        let now = Timestamp::now();
        reimages::deny(&self.hub, id, reason, self.hub.after(now, for_span), &self.actor, now).await
    }

    /// Frees the slot of a request that went wrong, or gives up one whose engine's result was lost.
    pub async fn release(&self, id: &str) -> Result<ReimageStatus, CallError> {
        reimages::release(&self.hub, id, &self.actor, Timestamp::now()).await
    }

    /// Returns the newest entries of the audit log, oldest first.
    pub async fn audit(&self, limit: u32) -> Result<Vec<AuditEntry>, CallError> {
        Ok(audit::list(&self.hub.store, None, limit.min(MAX_AUDIT)).await?)
    }

    /// Checks the whole audit log.
    pub async fn verify_audit(&self) -> Result<AuditCheck, CallError> {
        Ok(audit::verify(&self.hub.store).await?)
    }
}
