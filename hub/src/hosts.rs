//! Decides who may speak: enrolment, bearer tokens, check-ins.
//!
//! Never takes a host's word for which host or incarnation it is: the bearer token says so.

use jiff::Timestamp;
use rekindle_protocol::{
    CheckIn, CheckInAnswer, Directive, EnrollAnswer, EnrollRequest, Failing, Hold, HostId, MAX_LISTED, MachineFacts,
    Problem, Reason, ReimageEvent, ReimageState,
};
use serde_json::json;

use crate::hub::Hub;
use crate::secret::{self, Kind};
use crate::store::reimages::{Reimage, Step};
use crate::store::{self, Tx, audit};
use crate::{CallError, StoreError};

/// Most characters that are kept of a text field that a host sends.
const MAX_TEXT: usize = 1024;

/// Time between check-ins while a request is open, in seconds: somebody is waiting.
const BUSY_CHECKIN_S: u64 = 10;

/// A host that proved who it is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) host: HostId,
    pub(crate) incarnation: u64,
}

impl Identity {
    /// Returns the name in the audit log.
    pub(crate) fn actor(&self) -> String {
        format!("host:{}#{}", self.host, self.incarnation)
    }
}

/// Returns whom a bearer token names, or 401 for one that was never given out and 410 for one that was revoked.
pub(crate) async fn authenticate(hub: &Hub, token: &str) -> Result<Identity, CallError> {
    let mut tx = hub.store.read().await?;
    match store::hosts::find_bearer(&mut tx, &secret::sha256(token)).await? {
        None => Err(CallError::refused(Reason::Unauthenticated, "the bearer token is not known here; enrol first")),
        Some(bearer) if bearer.revoked_at.is_some() => Err(CallError::refused(
            Reason::Superseded,
            format!("incarnation {} of host `{}` was superseded", bearer.incarnation, bearer.host),
        )),
        Some(bearer) => Ok(Identity { host: bearer.host, incarnation: bearer.incarnation }),
    }
}

/// Exchanges a join token for an identity.
pub(crate) async fn enroll(hub: &Hub, request: &EnrollRequest, now: Timestamp) -> Result<EnrollAnswer, CallError> {
    let request = &EnrollRequest {
        hostname: tidy(&request.hostname),
        machine: MachineFacts {
            os: tidy(&request.machine.os),
            arch: tidy(&request.machine.arch),
            kernel: tidy(&request.machine.kernel),
            agent: tidy(&request.machine.agent),
        },
        ..request.clone()
    };
    let invalid = |why: &str| {
        CallError::refused(Reason::TokenInvalid, format!("{why}; ask an operator for `rekindle-hub token create`"))
    };
    let hash = secret::sha256(request.token.reveal());
    let host_id = &request.host_id;
    let mut tx = hub.store.begin().await?;
    let Some(token) = store::hosts::find_join_token(&mut tx, &hash).await? else {
        return Err(invalid("the join token is not known here"));
    };
    if token.expires_at <= now {
        return Err(invalid("the join token has expired"));
    }
    if token.host.as_ref().is_some_and(|bound| bound != host_id) {
        return Err(invalid("the join token is bound to another host"));
    }
    let bearer = secret::new_token(Kind::Bearer)?;
    let issued_for = (hash.as_str(), &request.boot_id);

    // The answer to the first attempt was lost: nothing is decided anew.
    if let Some(incarnation) = store::hosts::take_unused_bearer(&mut tx, host_id, issued_for).await? {
        let identity = Identity { host: host_id.clone(), incarnation };
        store::hosts::put_bearer(&mut tx, &secret::sha256(bearer.reveal()), (host_id, incarnation), issued_for).await?;
        let detail = json!({ "incarnation": incarnation });
        audit::append(&mut tx, now, &identity.actor(), "host.enrolled_again", host_id.as_str(), detail).await?;
        let reimage = concerning(&mut tx, &identity).await?.map(|reimage| reimage.status());
        store::commit(tx).await?;
        return Ok(EnrollAnswer { host_id: host_id.clone(), incarnation, token: bearer, reimage });
    }

    if token.uses_left == 0 {
        return Err(invalid("the join token is used up"));
    }
    let host = store::hosts::find(&mut tx, host_id).await?;
    let mut reimage = None;
    let incarnation = match (&host, &token.reimage) {
        (None, None) => 1,
        (Some(host), Some(id)) => {
            let mut born_from = store::reimages::find(&mut tx, id.as_str())
                .await?
                .ok_or_else(|| StoreError::Corrupt { what: format!("a join token for no reimage `{id}`") })?;
            if born_from.incarnation != host.incarnation {
                return Err(invalid("the join token belongs to an earlier reimage"));
            }
            let incarnation = host.incarnation.saturating_add(1);
            let actor = Identity { host: host_id.clone(), incarnation }.actor();
            let step = Step::new(ReimageEvent::Born, &actor).until(hub.after(now, hub.group(&born_from.group).verify));
            store::reimages::advance(&mut tx, &mut born_from, step, now).await?;
            reimage = Some(born_from.status());
            incarnation
        }
        (Some(host), None) if token.host.is_some() => {
            end_for_reenrolment(&mut tx, host_id, now).await?;
            host.incarnation.saturating_add(1)
        }
        (Some(_), None) => {
            return Err(CallError::refused(
                Reason::AlreadyEnrolled,
                format!(
                    "host `{host_id}` is enrolled already; if it was installed anew by hand, an operator makes a token for \
                     it with `rekindle-hub token create --group {} --host {host_id}`",
                    token.group
                ),
            ));
        }
        (None, Some(id)) => {
            return Err(StoreError::Corrupt { what: format!("a join token for reimage `{id}` of no host") }.into());
        }
    };
    // Before the new one is written: what is revoked here are the tokens of earlier incarnations.
    store::hosts::revoke_bearers(&mut tx, host_id, now).await?;
    store::hosts::use_join_token(&mut tx, &hash).await?;
    store::hosts::put_incarnation(&mut tx, request, &token.group, incarnation, now).await?;
    store::hosts::put_bearer(&mut tx, &secret::sha256(bearer.reveal()), (host_id, incarnation), issued_for).await?;
    let actor = Identity { host: host_id.clone(), incarnation }.actor();
    let detail = json!({
        "incarnation": incarnation, "group": token.group, "hostname": request.hostname, "reimage": token.reimage,
        "boot_id": request.boot_id,
    });
    audit::append(&mut tx, now, &actor, "host.enrolled", host_id.as_str(), detail).await?;
    store::commit(tx).await?;
    hub.announce();
    tracing::info!(host = %host_id, incarnation, group = token.group, "host enrolled");
    Ok(EnrollAnswer { host_id: host_id.clone(), incarnation, token: bearer, reimage })
}

/// Ends what the former incarnation had asked for, now that an operator lets the host enrol anew.
async fn end_for_reenrolment(tx: &mut Tx, host: &HostId, now: Timestamp) -> Result<(), CallError> {
    for mut reimage in store::reimages::list(tx, Some(host)).await? {
        if reimage.state.is_terminal() {
            continue;
        }
        if reimage.dispatched_at.is_some() {
            return Err(CallError::refused(
                Reason::IllegalState,
                format!(
                    "reimage `{id}` of this host is under way; an operator gives it up with `rekindle-hub release {id}`",
                    id = reimage.id
                ),
            ));
        }
        let step = Step::new(ReimageEvent::Cancel, "hub").because(Reason::StaleIncarnation, "the host enrolled anew");
        store::reimages::advance(tx, &mut reimage, step, now).await?;
    }
    Ok(())
}

/// Records a check-in and says what is wanted.
pub(crate) async fn check_in(
    hub: &Hub,
    identity: &Identity,
    checkin: &CheckIn,
    now: Timestamp,
) -> Result<CheckInAnswer, CallError> {
    if checkin.host_id != identity.host || checkin.incarnation != identity.incarnation {
        return Err(CallError::refused(
            Reason::StaleIncarnation,
            format!(
                "the bearer token names incarnation {} of host `{}`, not incarnation {} of host `{}`",
                identity.incarnation, identity.host, checkin.incarnation, checkin.host_id
            ),
        ));
    }
    if checkin.failing.len() > MAX_LISTED || checkin.holds.len() > MAX_LISTED {
        let detail = format!("`failing` and `holds` may list at most {MAX_LISTED} each");
        return Err(CallError::refused(Reason::Malformed, detail));
    }
    let checkin = &tidied(checkin);
    let mut tx = hub.store.begin().await?;
    let host = store::hosts::find(&mut tx, &identity.host)
        .await?
        .ok_or_else(|| StoreError::Corrupt { what: format!("a bearer token of no host `{}`", identity.host) })?;
    if host.boot_id.as_deref() == Some(checkin.boot_id.as_str())
        && let Some(last_seq) = host.seq
        && checkin.seq <= last_seq
    {
        let detail = format!("sequence number {} is not above {last_seq}, the last of this boot", checkin.seq);
        let problem = Problem { last_seq: Some(last_seq), ..Problem::new(Reason::StaleSequence, detail) };
        return Err(CallError::Refused(Box::new(problem)));
    }
    store::hosts::put_checkin(&mut tx, checkin, now).await?;
    store::hosts::mark_bearers_used(&mut tx, &identity.host, identity.incarnation).await?;
    let reimage = concerning(&mut tx, identity).await?;
    store::commit(tx).await?;

    let open = reimage.as_ref().is_some_and(|reimage| !reimage.state.is_terminal());
    let next_checkin_s = if open { hub.checkin.as_secs().min(BUSY_CHECKIN_S) } else { hub.checkin.as_secs() }.max(1);
    Ok(CheckInAnswer {
        next_checkin_s,
        lease_end: hub.after(now, std::time::Duration::from_secs(next_checkin_s.saturating_mul(3))),
        directive: reimage.as_ref().map_or(Directive::None, |reimage| directive(reimage, checkin)),
        policy_revision: None,
        epoch: hub.epoch,
        reimage: reimage.map(|reimage| reimage.status()),
    })
}

/// Returns the request that concerns an incarnation: the open one, its own last one, or the one that it was born from.
pub(crate) async fn concerning(tx: &mut Tx, identity: &Identity) -> Result<Option<Reimage>, StoreError> {
    let all = store::reimages::list(tx, Some(&identity.host)).await?;
    let own = |reimage: &Reimage| {
        reimage.incarnation == identity.incarnation
            || (reimage.incarnation.saturating_add(1) == identity.incarnation && reimage.dispatched_at.is_some())
    };
    // The list is sorted, the newest first; an open one is always the newest.
    Ok(all.into_iter().find(|reimage| !reimage.state.is_terminal() || own(reimage)))
}

/// Returns what a request's state asks of the host that checked in.
fn directive(reimage: &Reimage, checkin: &CheckIn) -> Directive {
    match reimage.state {
        ReimageState::AwaitingReady => Directive::Drain,
        ReimageState::Requested | ReimageState::Held | ReimageState::Approved => Directive::Hold,
        ReimageState::Denied
        | ReimageState::Cancelled
        | ReimageState::Expired
        | ReimageState::Failed
        | ReimageState::Quarantined
            if checkin.reimage.as_ref() == Some(&reimage.request) =>
        {
            Directive::Abort
        }
        ReimageState::Denied
        | ReimageState::Cancelled
        | ReimageState::Expired
        | ReimageState::Failed
        | ReimageState::Quarantined
        | ReimageState::Dispatching
        | ReimageState::EngineRunning
        | ReimageState::AwaitingCheckin
        | ReimageState::Verifying
        | ReimageState::Succeeded
        | ReimageState::Unknown => Directive::None,
    }
}

fn tidied(checkin: &CheckIn) -> CheckIn {
    let failing = checkin.failing.iter().map(|failing| Failing {
        resource: tidy(&failing.resource),
        signature: tidy(&failing.signature),
        class: failing.class.as_deref().map(tidy),
    });
    let holds = checkin.holds.iter().map(|hold| Hold {
        reason: tidy(&hold.reason),
        owner: tidy(&hold.owner),
        until: hold.until,
    });
    CheckIn {
        agent: tidy(&checkin.agent),
        policy: checkin.policy.as_deref().map(tidy),
        image: checkin.image.as_deref().map(tidy),
        failing: failing.collect(),
        holds: holds.collect(),
        ..checkin.clone()
    }
}

/// Cuts a text that is for people to a length, and takes out what would reach their terminals as control characters.
///
/// Refusing it instead would make a host with an odd error message fall silent.
pub(crate) fn tidy(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Returns whether the last check-in of an incarnation said that it has converged since its birth.
pub(crate) fn has_converged(host: &store::hosts::Host) -> bool {
    host.checkin.as_ref().is_some_and(|checkin| {
        checkin.incarnation == host.incarnation
            && checkin.born_converged
            && checkin.health == rekindle_protocol::Health::Converged
    })
}
