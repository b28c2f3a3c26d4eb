//! Decides about reimage requests, each decision in one transaction with its audit entry.
//!
//! Never calls an engine: [`ready`] commits the intent and hands it to the dispatcher.

use jiff::Timestamp;
use rekindle_protocol::{
    EvidenceAnswer, Failure, Reason, ReimageAsk, ReimageEvent, ReimageId, ReimageState, ReimageStatus, Token,
};
use serde_json::json;

use crate::config::{Approval, Group};
use crate::engine::Dispatch;
use crate::hosts::{self, Identity};
use crate::hub::Hub;
use crate::secret::{self, Kind};
use crate::store::hosts::JoinToken;
use crate::store::reimages::{Reimage, Step};
use crate::store::{self, Tx, audit};
use crate::{CallError, StoreError};

/// A host reimaged within this many hours needs a person, whatever its group says: reimaging it again did not help once.
const MIN_INTERVAL_HOURS: i64 = 24;

const GRANT_ENDED: &str = "the grant ended before the host was ready";

/// Whether a call made something, or found it made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    Now,
    Before,
}

/// Opens a request, or returns the one that is open.
pub(crate) async fn ask(
    hub: &Hub,
    identity: &Identity,
    ask: &ReimageAsk,
    now: Timestamp,
) -> Result<(Made, ReimageStatus), CallError> {
    if ask.evidence.as_ref().is_some_and(|digest| !is_sha256(digest)) {
        return Err(CallError::refused(Reason::Malformed, "`evidence` is not 64 lower-case hexadecimal digits"));
    }
    if ask.incarnation != identity.incarnation {
        let detail =
            format!("the request names incarnation {}, and {} is present", ask.incarnation, identity.incarnation);
        return Err(CallError::refused(Reason::StaleIncarnation, detail));
    }
    let mut tx = hub.store.begin().await?;
    let earlier = store::reimages::list(&mut tx, Some(&identity.host)).await?;
    if let Some(same) = earlier.iter().find(|reimage| reimage.request == ask.request) {
        return Ok((Made::Before, same.status()));
    }
    if let Some(open) = earlier.iter().find(|reimage| !reimage.state.is_terminal()) {
        if open.incarnation == identity.incarnation {
            return Ok((Made::Before, open.status()));
        }
        // The host that was just born asks to be reborn: that is the outcome of the request it was born from.
        let mut open = open.clone();
        let step = Step::new(ReimageEvent::Fail(Failure::DeadOnArrival), "hub").because(
            Reason::DeadOnArrival,
            format!("the new incarnation asked to be reimaged: {}", hosts::tidy(&ask.summary)),
        );
        store::reimages::advance(&mut tx, &mut open, step, now).await?;
        store::commit(tx).await?;
        hub.announce();
        return Err(awaiting_release(&open));
    }
    if let Err(refusal) = eligible(hub, &mut tx, identity, &earlier, now).await {
        audit_refusal(&mut tx, identity, &refusal, now).await?;
        store::commit(tx).await?;
        return Err(refusal);
    }
    let group = store::hosts::find(&mut tx, &identity.host).await?.map(|host| host.group).unwrap_or_default();
    let mut reimage = Reimage {
        id: secret::new_reimage_id(now)?,
        request: ask.request.clone(),
        host: identity.host.clone(),
        incarnation: identity.incarnation,
        state: ReimageState::Requested,
        why: ask.reason,
        summary: hosts::tidy(&ask.summary),
        policy: ask.policy.as_deref().map(hosts::tidy),
        evidence: ask.evidence.clone(),
        code: Some(Reason::ApprovalPending),
        reason: Some(format!("waiting for a person in group `{group}`")),
        group,
        retry_after: None,
        grant_ends: None,
        deadline: None,
        version: 1,
        requested_at: now,
        updated_at: now,
        dispatched_at: None,
        released_at: None,
    };
    let group = hub.group(&reimage.group);
    let recent = earlier
        .iter()
        .find(|reimage| reimage.dispatched_at.is_some_and(|at| now.duration_since(at).as_hours() < MIN_INTERVAL_HOURS));
    if let (Approval::Auto, Some(recent)) = (group.approval, recent) {
        reimage.code = Some(Reason::MinInterval);
        reimage.reason =
            Some(format!("reimaged as `{}` within the last {MIN_INTERVAL_HOURS} h: a person decides", recent.id));
    }
    store::reimages::insert(&mut tx, &reimage).await?;
    let detail = json!({
        "host": reimage.host, "incarnation": reimage.incarnation, "group": reimage.group, "request": reimage.request,
        "why": reimage.why, "summary": reimage.summary, "policy": reimage.policy, "evidence": reimage.evidence,
        "code": reimage.code,
    });
    audit::append(&mut tx, now, &identity.actor(), "reimage.requested", reimage.id.as_str(), detail).await?;
    if group.approval == Approval::Auto && recent.is_none() {
        grant(hub, &mut tx, &mut reimage, "hub", now).await?;
    }
    store::commit(tx).await?;
    hub.announce();
    tracing::warn!(host = %reimage.host, reimage = %reimage.id, state = reimage.state.word(), "reimage requested");
    Ok((Made::Now, reimage.status()))
}

/// Says whether a host may ask at all.
async fn eligible(
    hub: &Hub,
    tx: &mut Tx,
    identity: &Identity,
    earlier: &[Reimage],
    now: Timestamp,
) -> Result<(), CallError> {
    let host = store::hosts::find(tx, &identity.host)
        .await?
        .ok_or_else(|| StoreError::Corrupt { what: format!("a bearer token of no host `{}`", identity.host) })?;
    let group = hub.group(&host.group);
    if !group.opted_in {
        let detail = format!(
            "group `{0}` has not opted in to reimages; an operator sets `opted_in = true` under [groups.{0}]",
            host.group
        );
        return Err(CallError::refused(Reason::NotOptedIn, detail));
    }
    bound_engine(group, &host.group)?;
    let stuck = earlier.iter().find(|reimage| {
        matches!(reimage.state, ReimageState::Failed | ReimageState::Quarantined) && reimage.released_at.is_none()
    });
    if let Some(stuck) = stuck {
        return Err(awaiting_release(stuck));
    }
    let denied = earlier.iter().find(|reimage| reimage.retry_after.is_some_and(|retry_after| retry_after > now));
    if let Some(denied) = denied {
        let detail = format!(
            "reimage `{}` was denied, and this host may not ask again before {}",
            denied.id,
            denied.retry_after.unwrap_or(now)
        );
        return Err(CallError::refused(Reason::Operator, detail));
    }
    Ok(())
}

fn bound_engine<'a>(group: &'a Group, name: &str) -> Result<&'a crate::config::Engine, CallError> {
    group.engine.as_ref().ok_or_else(|| {
        let detail = format!("group `{name}` has no engine; an operator sets `engine` under [groups.{name}]");
        CallError::refused(Reason::EngineUnbound, detail)
    })
}

fn awaiting_release(stuck: &Reimage) -> CallError {
    let detail = format!(
        "reimage `{id}` of this host ended as {state}; a person looks at the host and then frees it with \
         `rekindle-hub release {id}`",
        id = stuck.id,
        state = stuck.state.word()
    );
    CallError::refused(Reason::AwaitingRelease, detail)
}

/// Records a refusal once, not each time that the host asks again.
async fn audit_refusal(
    tx: &mut Tx,
    identity: &Identity,
    refusal: &CallError,
    now: Timestamp,
) -> Result<(), StoreError> {
    let CallError::Refused(problem) = refusal else { return Ok(()) };
    let detail = json!({ "reason": problem.reason, "detail": problem.detail });
    if !audit::is_repeated(tx, "reimage.refused", identity.host.as_str(), &detail).await? {
        audit::append(tx, now, &identity.actor(), "reimage.refused", identity.host.as_str(), detail).await?;
    }
    Ok(())
}

/// Approves a request and offers the host its grant.
async fn grant(hub: &Hub, tx: &mut Tx, reimage: &mut Reimage, actor: &str, now: Timestamp) -> Result<(), CallError> {
    store::reimages::advance(tx, reimage, Step::new(ReimageEvent::Approve, actor), now).await?;
    let ends = hub.after(now, hub.group(&reimage.group).grant);
    reimage.grant_ends = Some(ends);
    store::reimages::advance(tx, reimage, Step::new(ReimageEvent::Offer, "hub").until(ends), now).await
}

/// Returns a request of the host itself; another host's does not exist for it.
pub(crate) async fn own(tx: &mut Tx, identity: &Identity, id: &str) -> Result<Reimage, CallError> {
    match store::reimages::find(tx, id).await? {
        Some(reimage) if reimage.host == identity.host => Ok(reimage),
        Some(_) | None => Err(CallError::refused(Reason::NotFound, "this host has no such reimage request")),
    }
}

/// Returns a request of the incarnation that asks, not of the one before.
async fn own_of_this_incarnation(tx: &mut Tx, identity: &Identity, id: &str) -> Result<Reimage, CallError> {
    let reimage = own(tx, identity, id).await?;
    if reimage.incarnation != identity.incarnation {
        let detail = format!("reimage `{id}` is of incarnation {}", reimage.incarnation);
        return Err(CallError::refused(Reason::StaleIncarnation, detail));
    }
    Ok(reimage)
}

/// Returns a request and its version.
pub(crate) async fn status(hub: &Hub, identity: &Identity, id: &str) -> Result<(u64, ReimageStatus), CallError> {
    let mut tx = hub.store.read().await?;
    let reimage = own(&mut tx, identity, id).await?;
    Ok((reimage.version, reimage.status()))
}

/// Stores the dossier of a request that is not dispatched yet.
pub(crate) async fn put_evidence(
    hub: &Hub,
    identity: &Identity,
    id: &str,
    sha256: &str,
    body: &[u8],
    now: Timestamp,
) -> Result<EvidenceAnswer, CallError> {
    let found = secret::sha256(body);
    if found != sha256 {
        let detail = format!("the body's SHA-256 is {found}, and the header says {sha256}");
        return Err(CallError::refused(Reason::DigestMismatch, detail));
    }
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        return Err(CallError::refused(Reason::Malformed, format!("the evidence is not JSON: {error}")));
    }
    let mut tx = hub.store.begin().await?;
    let reimage = own_of_this_incarnation(&mut tx, identity, id).await?;
    let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
    let answer = EvidenceAnswer { sha256: found, size };
    if store::reimages::evidence_digest(&mut tx, &reimage.id).await?.as_deref() == Some(sha256) {
        return Ok(answer);
    }
    if reimage.state.is_terminal() {
        let detail = format!("reimage `{id}` is {}", reimage.state.word());
        return Err(CallError::refused(Reason::IllegalState, detail));
    }
    if reimage.evidence.as_ref().is_some_and(|announced| announced != sha256) {
        return Err(CallError::refused(Reason::DigestMismatch, "the request announced evidence with another digest"));
    }
    store::reimages::put_evidence(&mut tx, &reimage.id, sha256, body, now).await?;
    let detail = json!({ "sha256": sha256, "size": size });
    audit::append(&mut tx, now, &identity.actor(), "reimage.evidence", id, detail).await?;
    store::commit(tx).await?;
    hub.announce();
    Ok(answer)
}

/// Commits the intent to re-create the host, fences off its present incarnation, and hands the intent to the dispatcher.
pub(crate) async fn ready(
    hub: &Hub,
    identity: &Identity,
    id: &str,
    now: Timestamp,
) -> Result<ReimageStatus, CallError> {
    let mut tx = hub.store.begin().await?;
    let mut reimage = own_of_this_incarnation(&mut tx, identity, id).await?;
    if reimage.state == ReimageState::AwaitingReady && reimage.grant_ends.is_none_or(|ends| ends <= now) {
        let step = Step::new(ReimageEvent::Expire, "hub").because(Reason::GrantExpired, GRANT_ENDED);
        store::reimages::advance(&mut tx, &mut reimage, step, now).await?;
        store::commit(tx).await?;
        hub.announce();
        return Err(CallError::refused(Reason::GrantExpired, GRANT_ENDED));
    }
    if reimage.state == ReimageState::Expired {
        return Err(CallError::refused(Reason::GrantExpired, GRANT_ENDED));
    }
    if let Some(announced) = &reimage.evidence
        && store::reimages::evidence_digest(&mut tx, &reimage.id).await?.as_ref() != Some(announced)
    {
        let detail = format!("the evidence with SHA-256 {announced} was announced and is not here; PUT it first");
        return Err(CallError::refused(Reason::EvidenceMissing, detail));
    }
    let dispatch = commit_intent(hub, &mut tx, &mut reimage, ReimageEvent::Ready, &identity.actor(), now).await?;
    store::commit(tx).await?;
    hub.announce();
    hub.dispatch(dispatch);
    Ok(reimage.status())
}

/// Writes everything that must be durable before an engine is called.
pub(crate) async fn commit_intent(
    hub: &Hub,
    tx: &mut Tx,
    reimage: &mut Reimage,
    event: ReimageEvent,
    actor: &str,
    now: Timestamp,
) -> Result<Dispatch, CallError> {
    let host = store::hosts::find(tx, &reimage.host)
        .await?
        .ok_or_else(|| StoreError::Corrupt { what: format!("a reimage of no host `{}`", reimage.host) })?;
    if host.incarnation != reimage.incarnation {
        let detail =
            format!("incarnation {} is present, and the request is of {}", host.incarnation, reimage.incarnation);
        return Err(CallError::refused(Reason::StaleIncarnation, detail));
    }
    let group = hub.group(&reimage.group);
    if !group.opted_in {
        // It may have opted out since the grant; that is the big red switch of this version.
        let detail = format!("group `{}` has not opted in to reimages", reimage.group);
        return Err(CallError::refused(Reason::NotOptedIn, detail));
    }
    let engine = bound_engine(group, &reimage.group)?.clone();
    let token = secret::new_token(Kind::Reimage)?;
    // The dispatcher's own deadline comes first; this one catches a result that could not be recorded.
    let lost_at = hub.after(now, engine.timeout.saturating_add(std::time::Duration::from_secs(300)));
    reimage.dispatched_at = Some(now);
    store::reimages::advance(tx, reimage, Step::new(event, actor).until(lost_at), now).await?;
    let call = store::reimages::put_intent(tx, &reimage.id, &json!(engine.exec).to_string(), now).await?;
    bind_token(hub, tx, reimage, &token, now).await?;
    store::hosts::revoke_bearers(tx, &reimage.host, now).await?;
    Ok(Dispatch { reimage: reimage.clone(), call, token, engine })
}

async fn bind_token(hub: &Hub, tx: &mut Tx, reimage: &Reimage, token: &Token, now: Timestamp) -> Result<(), CallError> {
    store::hosts::drop_join_tokens(tx, &reimage.id, now).await?;
    let group = hub.group(&reimage.group);
    let life = group.engine.as_ref().map(|engine| engine.timeout).unwrap_or_default().saturating_add(group.birth);
    let bound = JoinToken {
        group: reimage.group.clone(),
        host: Some(reimage.host.clone()),
        reimage: Some(reimage.id.clone()),
        uses_left: 1,
        expires_at: hub.after(now, life),
    };
    store::hosts::put_join_token(tx, &secret::sha256(token.reveal()), &bound).await?;
    Ok(())
}

/// Withdraws a request that is not dispatched yet.
pub(crate) async fn cancel(
    hub: &Hub,
    identity: &Identity,
    id: &str,
    why: &str,
    now: Timestamp,
) -> Result<ReimageStatus, CallError> {
    let mut tx = hub.store.begin().await?;
    let mut reimage = own_of_this_incarnation(&mut tx, identity, id).await?;
    if reimage.state == ReimageState::Cancelled {
        return Ok(reimage.status());
    }
    if reimage.dispatched_at.is_some() {
        return Err(CallError::refused(Reason::AlreadyDispatched, "the engine was called; there is no way back"));
    }
    let actor = identity.actor();
    let mut step = Step::new(ReimageEvent::Cancel, &actor);
    step.reason = (!why.is_empty()).then(|| hosts::tidy(why));
    store::reimages::advance(&mut tx, &mut reimage, step, now).await?;
    store::commit(tx).await?;
    hub.announce();
    tracing::info!(host = %reimage.host, reimage = %reimage.id, "reimage cancelled");
    Ok(reimage.status())
}

/// Ends a request with success, if the new incarnation's last check-in said that it has converged.
pub(crate) async fn complete(
    hub: &Hub,
    identity: &Identity,
    id: &str,
    now: Timestamp,
) -> Result<ReimageStatus, CallError> {
    let mut tx = hub.store.begin().await?;
    let mut reimage = own(&mut tx, identity, id).await?;
    if reimage.incarnation.saturating_add(1) != identity.incarnation {
        let detail = format!("only incarnation {} can complete it", reimage.incarnation.saturating_add(1));
        return Err(CallError::refused(Reason::StaleIncarnation, detail));
    }
    if reimage.state == ReimageState::Succeeded {
        return Ok(reimage.status());
    }
    let host = store::hosts::find(&mut tx, &identity.host).await?;
    if !host.as_ref().is_some_and(hosts::has_converged) {
        let detail = "the last check-in did not say `health = converged` and `born_converged = true`; check in first";
        return Err(CallError::refused(Reason::NotConverged, detail));
    }
    let actor = identity.actor();
    store::reimages::advance(&mut tx, &mut reimage, Step::new(ReimageEvent::Complete, &actor), now).await?;
    store::hosts::drop_join_tokens(&mut tx, &reimage.id, now).await?;
    store::commit(tx).await?;
    hub.announce();
    tracing::info!(host = %reimage.host, reimage = %reimage.id, "reimage succeeded");
    Ok(reimage.status())
}

/// Approves a request on behalf of a person.
pub(crate) async fn approve(hub: &Hub, id: &str, actor: &str, now: Timestamp) -> Result<ReimageStatus, CallError> {
    let mut tx = hub.store.begin().await?;
    let mut reimage = any(&mut tx, id).await?;
    refuse_after_dispatch(&reimage)?;
    bound_engine(hub.group(&reimage.group), &reimage.group)?;
    grant(hub, &mut tx, &mut reimage, actor, now).await?;
    store::commit(tx).await?;
    hub.announce();
    Ok(reimage.status())
}

/// Calls the engine once more on behalf of a person who has looked at it.
pub(crate) async fn dispatch_again(
    hub: &Hub,
    id: &str,
    actor: &str,
    now: Timestamp,
) -> Result<ReimageStatus, CallError> {
    let mut tx = hub.store.begin().await?;
    let mut reimage = any(&mut tx, id).await?;
    if reimage.state != ReimageState::Held || reimage.dispatched_at.is_none() {
        let detail = format!("reimage `{id}` is {}, not held after a lost engine result", reimage.state.word());
        return Err(CallError::refused(Reason::IllegalState, detail));
    }
    let dispatch = commit_intent(hub, &mut tx, &mut reimage, ReimageEvent::DispatchAgain, actor, now).await?;
    store::commit(tx).await?;
    hub.announce();
    hub.dispatch(dispatch);
    Ok(reimage.status())
}

/// Denies a request on behalf of a person.
pub(crate) async fn deny(
    hub: &Hub,
    id: &str,
    reason: &str,
    retry_after: Timestamp,
    actor: &str,
    now: Timestamp,
) -> Result<ReimageStatus, CallError> {
    let mut tx = hub.store.begin().await?;
    let mut reimage = any(&mut tx, id).await?;
    refuse_after_dispatch(&reimage)?;
    reimage.retry_after = Some(retry_after);
    let step = Step::new(ReimageEvent::Deny, actor).because(Reason::Operator, reason);
    store::reimages::advance(&mut tx, &mut reimage, step, now).await?;
    store::commit(tx).await?;
    hub.announce();
    Ok(reimage.status())
}

/// Gives up a held dispatch, and frees the slot of a request that went wrong, on behalf of a person.
pub(crate) async fn release(hub: &Hub, id: &str, actor: &str, now: Timestamp) -> Result<ReimageStatus, CallError> {
    let mut tx = hub.store.begin().await?;
    let mut reimage = any(&mut tx, id).await?;
    if reimage.state == ReimageState::Held && reimage.dispatched_at.is_some() {
        let step = Step::new(ReimageEvent::Fail(Failure::Engine), actor)
            .because(Reason::EngineUnknown, "a person gave it up after its engine result was lost");
        store::reimages::advance(&mut tx, &mut reimage, step, now).await?;
    }
    if !matches!(reimage.state, ReimageState::Failed | ReimageState::Quarantined) {
        let detail = format!(
            "reimage `{id}` is {}; only what failed, or is held after dispatch, is released",
            reimage.state.word()
        );
        return Err(CallError::refused(Reason::IllegalState, detail));
    }
    if reimage.released_at.is_none() {
        store::reimages::release(&mut tx, &mut reimage, now).await?;
        store::hosts::drop_join_tokens(&mut tx, &reimage.id, now).await?;
        audit::append(&mut tx, now, actor, "reimage.released", id, json!({ "host": reimage.host })).await?;
    }
    store::commit(tx).await?;
    hub.announce();
    Ok(reimage.status())
}

fn refuse_after_dispatch(reimage: &Reimage) -> Result<(), CallError> {
    if reimage.dispatched_at.is_none() {
        return Ok(());
    }
    let mut detail = format!("reimage `{}` was dispatched and is {}", reimage.id, reimage.state.word());
    if reimage.state == ReimageState::Held {
        detail.push_str(&format!(
            "; look at the engine, then either call it once more with `rekindle-hub approve {id} --dispatch-again` or give \
             up with `rekindle-hub release {id}`",
            id = reimage.id
        ));
    }
    Err(CallError::refused(Reason::AlreadyDispatched, detail))
}

/// Returns any request, for a person.
async fn any(tx: &mut Tx, id: &str) -> Result<Reimage, CallError> {
    store::reimages::find(tx, id).await?.ok_or_else(|| {
        CallError::refused(Reason::NotFound, format!("there is no reimage `{id}`; `rekindle-hub reimages` lists them"))
    })
}

/// Moves on what has outlived its deadline, and returns how many requests that were.
pub(crate) async fn sweep(hub: &Hub, now: Timestamp) -> Result<usize, CallError> {
    let overdue = store::reimages::overdue(&mut hub.store.read().await?, now).await?;
    for reimage in &overdue {
        let mut tx = hub.store.begin().await?;
        // Read again under the write lock: it may have moved on since.
        let Some(mut reimage) = store::reimages::find(&mut tx, reimage.id.as_str()).await? else { continue };
        if reimage.deadline.is_none_or(|deadline| deadline > now) {
            continue;
        }
        let (event, code, reason) = match reimage.state {
            ReimageState::AwaitingReady => (ReimageEvent::Expire, Reason::GrantExpired, GRANT_ENDED),
            ReimageState::Dispatching | ReimageState::EngineRunning => {
                (ReimageEvent::EngineLost, Reason::EngineUnknown, "the engine's result was not recorded in time")
            }
            ReimageState::AwaitingCheckin => {
                (ReimageEvent::Fail(Failure::Timeout), Reason::Timeout, "no new incarnation enrolled in time")
            }
            ReimageState::Verifying => (
                ReimageEvent::Fail(Failure::Verify),
                Reason::VerifyFailed,
                "the new incarnation did not converge in time",
            ),
            ReimageState::Requested
            | ReimageState::Held
            | ReimageState::Approved
            | ReimageState::Succeeded
            | ReimageState::Denied
            | ReimageState::Cancelled
            | ReimageState::Expired
            | ReimageState::Failed
            | ReimageState::Quarantined
            | ReimageState::Unknown => {
                let what = format!("a deadline on reimage `{}`, which is {}", reimage.id, reimage.state.word());
                return Err(StoreError::Corrupt { what }.into());
            }
        };
        store::reimages::advance(&mut tx, &mut reimage, Step::new(event, "hub").because(code, reason), now).await?;
        store::commit(tx).await?;
        tracing::error!(host = %reimage.host, reimage = %reimage.id, state = reimage.state.word(), reason, "reimage overdue");
        hub.announce();
    }
    Ok(overdue.len())
}

/// Holds every request whose engine was being called when the hub last ended: the engine is never called again blindly.
pub(crate) async fn recover(hub: &Hub, now: Timestamp) -> Result<Vec<ReimageId>, CallError> {
    let mut tx = hub.store.begin().await?;
    let mut held = Vec::new();
    for mut reimage in store::reimages::in_dispatch(&mut tx).await? {
        let reason = "the hub ended before the engine's result was recorded; look whether the engine acted";
        let step = Step::new(ReimageEvent::EngineLost, "hub").because(Reason::EngineUnknown, reason);
        store::reimages::advance(&mut tx, &mut reimage, step, now).await?;
        tracing::error!(host = %reimage.host, reimage = %reimage.id, "engine result unknown: held for a person");
        held.push(reimage.id);
    }
    store::commit(tx).await?;
    Ok(held)
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}
