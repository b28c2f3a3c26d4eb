//! What the endpoint's answers change: in what is remembered, in what the agent is told, and in when to try again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rekindle_protocol::{CheckInAnswer, Directive, EnrollAnswer, Reason, ReimageState, ReimageStatus};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::super::backoff::{random, wait};
use super::super::http::chain;
use super::super::queue::Queue;
use super::calls::{CallError, Polled};
use super::memory::{Evidence, Identity, Memory, Open};
use super::{Call, Endpoint, EndpointDone, FIRST_WAIT, POLL_GAP, Spools};
use crate::spool::{CheckInState, ReimageReply};

/// Bounds of what an endpoint may ask for as time between check-ins: a wild number is no reason to fall silent.
const CHECKIN_BOUNDS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));

/// Highest number that is taken over from an endpoint: what follows must still fit.
const MAX_SEQ: u64 = u64::MAX / 2;

impl Endpoint {
    /// Takes the end of a call.
    pub(in super::super) fn finish(&mut self, done: EndpointDone, queue: &mut Queue, spools: Spools<'_>) {
        let result = match done {
            EndpointDone::Polled { n_calls, started, result } => return self.polled(n_calls, started, result, spools),
            EndpointDone::Enrolled(result) => result.and_then(|answer| self.enrolled(answer, spools)),
            EndpointDone::CheckedIn { state, result } => self.heard(state, result, spools),
            EndpointDone::Asked { message, request, result } => self.asked(&message, &request, result, queue, spools),
            EndpointDone::EvidenceSent { result } => self.evidence_sent(result),
            EndpointDone::Called { message, what, result } => self.called(&message, &what, result, queue, spools),
        };
        self.busy = false;
        match result.and_then(|()| self.store(spools).map_err(|why| CallError::Later { why, after: None })) {
            Ok(()) => self.succeeded(),
            Err(error) => {
                self.failed(&error);
                if let CallError::Superseded { .. } = error {
                    self.store(spools).unwrap_or_else(|why| error!(why, "cannot remember that it was superseded"));
                }
            }
        }
    }

    fn enrolled(&mut self, answer: EnrollAnswer, spools: Spools<'_>) -> Result<(), CallError> {
        let identity =
            Identity { version: 1, host_id: answer.host_id, incarnation: answer.incarnation, token: answer.token };
        self.memory =
            Memory { seq: self.memory.seq, birth: answer.reimage.map(|status| status.id), ..Memory::default() };
        // Until it is stored, the next attempt enrols again: the endpoint allows that before the first check-in.
        spools.own.write_slot(&identity).map_err(|error| CallError::Later { why: chain(&error), after: None })?;
        info!(host = %identity.host_id, incarnation = identity.incarnation, "enrolled");
        self.identity = Some(identity);
        Ok(())
    }

    fn heard(
        &mut self,
        state: CheckInState,
        result: Result<CheckInAnswer, CallError>,
        spools: Spools<'_>,
    ) -> Result<(), CallError> {
        let answer = match result {
            // Our memory is older than the endpoint's: go on from there.
            Err(CallError::Refused { reason: Reason::StaleSequence, last_seq: Some(last), why, after }) => {
                self.memory.seq = self.memory.seq.max(last.min(MAX_SEQ));
                return Err(CallError::Later { why, after });
            }
            result => result?,
        };
        let asked = match answer.next_checkin_s {
            0 => self.settings.checkin,
            seconds => Duration::from_secs(seconds),
        };
        let asked = asked.clamp(CHECKIN_BOUNDS.0, CHECKIN_BOUNDS.1);
        // An even spread of a tenth keeps a fleet that started together from staying together.
        let jitter = asked.mul_f64(f64::from(u32::try_from(random() % 1000).unwrap_or(0)) / 10_000.0);
        self.checkin_at = Some(Instant::now() + asked.saturating_sub(jitter));
        if answer.policy_revision.is_some() && answer.policy_revision != state.revision {
            self.hint = answer.policy_revision;
        }
        match answer.reimage {
            Some(status) => {
                let ours = state.request.as_deref() == Some(status.request.as_str());
                match &self.memory.open {
                    Some(open) if open.id == status.id => self.saw(&open.request.clone(), status, spools),
                    // Learnt again after our memory was lost: the evidence was sent, or will be asked for.
                    Some(_) | None if ours => {
                        self.memory.open = Some(Open {
                            request: status.request.to_string(),
                            id: status.id.clone(),
                            evidence: Evidence::Owed,
                            ended: false,
                        });
                        self.saw(&status.request.to_string(), status, spools);
                    }
                    Some(_) | None if status.state == ReimageState::Verifying => self.memory.birth = Some(status.id),
                    Some(_) | None => {}
                }
            }
            None if answer.directive == Directive::Abort => self.abandoned(spools),
            None => {}
        }
        self.checked_in = Some((state, Instant::now()));
        Ok(())
    }

    /// The endpoint says that a request it once knew is no more.
    fn abandoned(&mut self, spools: Spools<'_>) {
        let Some(open) = self.memory.open.as_mut().filter(|open| !open.ended) else { return };
        open.ended = true;
        let reply = ReimageReply {
            version: 1,
            request: open.request.clone(),
            state: ReimageState::Expired.word().to_owned(),
            reason: Some("the endpoint no longer knows this request".to_owned()),
            retry_after: None,
            grant_ends: None,
        };
        self.reply(reply, spools);
    }

    fn asked(
        &mut self,
        message: &str,
        request: &str,
        result: Result<ReimageStatus, CallError>,
        queue: &mut Queue,
        spools: Spools<'_>,
    ) -> Result<(), CallError> {
        match result {
            Ok(status) => {
                info!(request, id = %status.id, state = status.state.word(), "asked for a reimage");
                let open =
                    Open { request: request.to_owned(), id: status.id.clone(), evidence: Evidence::Owed, ended: false };
                self.memory.open = Some(open);
                self.mark = None;
                self.saw(request, status, spools);
                Ok(())
            }
            Err(CallError::Refused { reason, why, after, .. }) => {
                warn!(request, reason = reason.word(), why, "the endpoint refuses to reimage this host");
                let until = |after| Timestamp::now().checked_add(SignedDuration::try_from(after).ok()?).ok();
                let reply = ReimageReply {
                    version: 1,
                    request: request.to_owned(),
                    state: ReimageState::Denied.word().to_owned(),
                    reason: Some(why),
                    retry_after: after.and_then(until),
                    grant_ends: None,
                };
                self.reply(reply, spools);
                queue.remove(spools.outbox, message);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn evidence_sent(&mut self, result: Result<(), CallError>) -> Result<(), CallError> {
        match result {
            Ok(()) => {}
            // It will not change its mind about these bytes; whether it can do without them is the endpoint's decision.
            Err(CallError::Refused { why, .. }) => error!(why, "the endpoint refuses the evidence"),
            Err(error) => return Err(error),
        }
        if let Some(open) = &mut self.memory.open {
            open.evidence = Evidence::Settled;
        }
        Ok(())
    }

    fn called(
        &mut self,
        message: &str,
        what: &Call,
        result: Result<ReimageStatus, CallError>,
        queue: &mut Queue,
        spools: Spools<'_>,
    ) -> Result<(), CallError> {
        match (what, result) {
            (Call::Ready { request } | Call::Cancel { request }, Ok(status)) => {
                self.saw(&request.clone(), status, spools)
            }
            (Call::Complete, Ok(status)) => info!(state = status.state.word(), "the reimage is complete"),
            // It has to hear first that the host converged.
            (Call::Complete, Err(CallError::Refused { reason: Reason::NotConverged, why, after, .. })) => {
                self.checkin_at = None;
                self.checked_in = None;
                return Err(CallError::Later { why, after });
            }
            (_, Err(CallError::Refused { why, .. })) => error!(call = ?what, why, "the endpoint refuses a call"),
            (_, Err(error)) => return Err(error),
        }
        queue.remove(spools.outbox, message);
        Ok(())
    }

    fn polled(&mut self, n_calls: u64, started: Instant, result: Result<Polled, CallError>, spools: Spools<'_>) {
        self.polling = false;
        let gap = match result {
            Ok(answer) => {
                self.poll_failures = 0;
                self.contact = Some(Timestamp::now());
                if let Polled::State { status, mark } = answer
                    && n_calls == self.n_calls
                    && let Some(open) = self.memory.open.clone().filter(|open| open.id == status.id)
                {
                    self.mark = mark;
                    self.saw(&open.request, status, spools);
                    self.store(spools).unwrap_or_else(|why| warn!(why, "cannot remember a request's state"));
                }
                // The endpoint holds its answer back while nothing changes; one that does not is not to be flooded.
                POLL_GAP.saturating_sub(started.elapsed())
            }
            Err(error @ CallError::Superseded { .. }) => {
                self.failed(&error);
                self.store(spools).unwrap_or_else(|why| error!(why, "cannot remember that it was superseded"));
                return;
            }
            Err(error) => {
                self.poll_failures = self.poll_failures.saturating_add(1);
                self.mark = None;
                error.after().unwrap_or_default().max(wait(self.poll_failures, POLL_GAP, random()))
            }
        };
        self.poll_not_before = Some(Instant::now() + gap);
    }

    /// Takes the endpoint's word on a request to the agent.
    fn saw(&mut self, request: &str, status: ReimageStatus, spools: Spools<'_>) {
        // A word of a newer version permits nothing, so it is not passed on.
        if status.state == ReimageState::Unknown {
            warn!(request, "the endpoint names a state that this version does not know");
            return;
        }
        if let Some(open) = self.memory.open.as_mut().filter(|open| open.request == request) {
            open.ended = status.state.is_terminal();
        }
        let reason = status.reason.or_else(|| status.code.map(|code| code.title().to_owned()));
        let reply = ReimageReply {
            version: 1,
            request: request.to_owned(),
            state: status.state.word().to_owned(),
            reason,
            retry_after: status.retry_after,
            grant_ends: status.grant_ends,
        };
        self.reply(reply, spools);
    }

    pub(super) fn reply(&mut self, reply: ReimageReply, spools: Spools<'_>) {
        if self.replied.as_ref() == Some(&reply) {
            return;
        }
        match spools.inbox.write_slot(&reply) {
            Ok(()) => {
                info!(request = reply.request, state = reply.state, "the request's state changed");
                self.replied = Some(reply);
            }
            // The next poll or check-in brings it again.
            Err(error) => error!(error = %chain(&error), "cannot pass the endpoint's answer on"),
        }
    }

    fn succeeded(&mut self) {
        if self.error.take().is_some() {
            info!("the endpoint is reached again");
        }
        self.failures = 0;
        self.not_before = None;
        self.retry_at = None;
        self.contact = Some(Timestamp::now());
    }

    pub(super) fn failed(&mut self, error: &CallError) {
        let why = error.why().to_owned();
        if let CallError::Superseded { .. } = error {
            error!(why, "the endpoint has replaced this incarnation; no further calls are made");
            self.memory.superseded = Some(why);
            return;
        }
        // Certificate authorities and tokens may have changed; both are read again.
        self.client = None;
        if self.settings.token_file.is_some() {
            self.identity = None;
        }
        self.failures = self.failures.saturating_add(1);
        let delay = error.after().unwrap_or_default().max(wait(self.failures, FIRST_WAIT, random()));
        if self.error.as_ref() != Some(&why) {
            warn!(why, wait = ?delay, "cannot reach the endpoint");
        }
        self.error = Some(why);
        self.not_before = Some(Instant::now() + delay);
        self.retry_at = SignedDuration::try_from(delay).ok().and_then(|delay| Timestamp::now().checked_add(delay).ok());
    }
}
