//! Speaks to the central endpoint: enrols, checks in, and carries the agent's reimage calls there and the answers back.
//!
//! It never decides anything about the host. Losing the endpoint, errors and garbage lead to another attempt and to nothing
//! else; only a state that the endpoint named, in a word that this version knows, reaches the agent. Calls are made one at
//! a time and in the order in which the agent asked; waiting for a request's state to change runs beside them.

mod answers;
mod calls;
mod memory;

use std::time::Duration;

use jiff::Timestamp;
use rekindle_protocol::{
    CheckInAnswer, EnrollAnswer, EnrollRequest, Reason, ReimageAsk, ReimageId, ReimageState, ReimageStatus, RequestKey,
    Token, Why,
};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, warn};

use self::calls::{CallError, Caller, Polled};
use self::memory::{Evidence, Identity, Memory, boot_id, checkin, host_id, hostname, is_news, machine};
use super::Done;
use super::http::{chain, client, read_token};
use super::queue::{Kind, Queue};
use crate::config::ReimageSettings;
use crate::spool::{CheckInState, Outgoing, OutgoingBody, ReceiverState, ReimageCall, ReimageReply, Spool};

/// Deadline of one call.
const TIMEOUT: Duration = Duration::from_secs(30);

/// First wait after a failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Shortest time between two check-ins, however much there is to tell.
const CHECKIN_GAP: Duration = Duration::from_secs(1);

/// Time between polls of an endpoint that does not hold its answer back.
const POLL_GAP: Duration = Duration::from_secs(5);

/// The directories that the endpoint's side reads and writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spools<'a> {
    pub(super) outbox: &'a Spool,
    pub(super) inbox: &'a Spool,
    pub(super) own: &'a Spool,
}

/// How one call ended.
#[derive(Debug)]
pub(super) enum EndpointDone {
    Enrolled(Result<EnrollAnswer, CallError>),
    CheckedIn { state: CheckInState, result: Result<CheckInAnswer, CallError> },
    Asked { message: String, request: String, result: Result<ReimageStatus, CallError> },
    EvidenceSent { result: Result<(), CallError> },
    Called { message: String, what: Call, result: Result<ReimageStatus, CallError> },
    Polled { n_calls: u64, started: Instant, result: Result<Polled, CallError> },
}

impl From<EndpointDone> for Done {
    fn from(done: EndpointDone) -> Self {
        Self::Endpoint(Box::new(done))
    }
}

/// A call that is made once and then forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    Ready { request: String },
    Cancel { request: String },
    Complete,
}

/// What to do about the first queued message.
enum Step {
    /// Call.
    Make(Call, ReimageId),
    Ask,
    SendEvidence(ReimageId),
    /// Check in first: the endpoint may know what we do not.
    Locate,
    /// The agent's next state decides.
    Wait,
    /// Nothing is left to do about it.
    Forget {
        reply: Option<ReimageReply>,
    },
}

/// The endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    settings: ReimageSettings,
    identity: Option<Identity>,
    memory: Memory,
    client: Option<reqwest::Client>,
    busy: bool,
    polling: bool,
    failures: u32,
    not_before: Option<Instant>,
    poll_not_before: Option<Instant>,
    poll_failures: u32,
    mark: Option<String>,
    /// Counts calls that may have changed a request's state; a poll that began before one is out of date.
    n_calls: u64,
    checked_in: Option<(CheckInState, Instant)>,
    checkin_at: Option<Instant>,
    /// The message for which a check-in has already been made to learn the endpoint's name of its request.
    located: Option<String>,
    replied: Option<ReimageReply>,
    hint: Option<String>,
    contact: Option<Timestamp>,
    error: Option<String>,
    retry_at: Option<Timestamp>,
}

impl Endpoint {
    /// Reads what is remembered of the endpoint.
    pub(super) fn load(settings: &ReimageSettings, spools: Spools<'_>) -> Self {
        let identity = spools.own.read_slot::<Identity>().unwrap_or_else(|error| {
            error!(error = %chain(&error), "the identity cannot be read; this host must be enrolled again");
            None
        });
        let memory = spools.own.read_slot::<Memory>().unwrap_or_else(|error| {
            warn!(error = %chain(&error), "what was remembered of the endpoint is lost; it will be asked again");
            None
        });
        let memory = match (&identity, memory) {
            // Whoever removed the identity wants this host to begin anew, also after it was superseded.
            (None, Some(memory)) if settings.token_file.is_none() => Memory { seq: memory.seq, ..Memory::default() },
            (_, memory) => memory.unwrap_or_default(),
        };
        let replied = spools.inbox.read_slot::<ReimageReply>().unwrap_or_default();
        Self {
            settings: settings.clone(),
            identity,
            memory,
            client: None,
            busy: false,
            polling: false,
            failures: 0,
            not_before: None,
            poll_not_before: None,
            poll_failures: 0,
            mark: None,
            n_calls: 0,
            checked_in: None,
            checkin_at: None,
            located: None,
            replied,
            hint: None,
            contact: None,
            error: None,
            retry_at: None,
        }
    }

    /// The revision that the endpoint expects, once for each time that it says so.
    pub(super) fn take_hint(&mut self) -> Option<String> {
        self.hint.take()
    }

    /// The slot's name and the incarnation, once enrolled.
    pub(super) fn identity(&self) -> Option<(String, u64)> {
        self.identity.as_ref().map(|identity| (identity.host_id.to_string(), identity.incarnation))
    }

    /// How contact goes, for `rekindle status`.
    pub(super) fn state(&self) -> ReceiverState {
        let superseded = self.memory.superseded.as_ref().map(|why| format!("this incarnation was superseded: {why}"));
        ReceiverState {
            name: "endpoint".to_owned(),
            delivered: self.contact,
            error: superseded.or_else(|| self.error.clone()),
            retry_at: self.retry_at,
        }
    }

    /// When something is due, if it waits for its time.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        if self.memory.superseded.is_some() {
            return None;
        }
        let calls = if self.busy { None } else { self.not_before.or(self.checkin_at) };
        let poll = if self.polling { None } else { self.poll_not_before };
        calls.into_iter().chain(poll).min()
    }

    /// Starts what is due: at most one call, and one wait for a change beside it.
    pub(super) fn look(
        &mut self,
        queue: &mut Queue,
        spools: Spools<'_>,
        calls: &mut JoinSet<Done>,
        polls: &mut JoinSet<Done>,
    ) {
        if self.memory.superseded.is_some() {
            return;
        }
        let now = Instant::now();
        if !self.busy && self.not_before.is_none_or(|time| time <= now) {
            self.not_before = None;
            if let Err(why) = self.call(now, queue, spools, calls) {
                self.failed(&CallError::Later { why, after: None });
            }
        }
        if !self.polling && self.poll_not_before.is_none_or(|time| time <= now) {
            self.poll_not_before = None;
            self.poll(now, polls);
        }
    }

    fn call(
        &mut self,
        now: Instant,
        queue: &mut Queue,
        spools: Spools<'_>,
        tasks: &mut JoinSet<Done>,
    ) -> Result<(), String> {
        let Some(identity) = self.identity.clone() else { return self.enroll(spools, tasks) };
        let caller = self.caller(Some(identity.token.clone()))?;
        let state = spools.outbox.read_slot::<CheckInState>().unwrap_or_else(|error| {
            warn!(error = %chain(&error), "cannot read the agent's state");
            None
        });
        while let Some((id, message)) = first_call(queue, spools.outbox) {
            match self.step(&id, &message) {
                Step::Forget { reply } => {
                    if let Some(reply) = reply {
                        // The agent speaks of one request at a time; an older one must not answer in its place.
                        self.memory.open = None;
                        self.n_calls += 1;
                        self.reply(reply, spools);
                    }
                    queue.remove(spools.outbox, &id);
                    if queue.iter().any(|(queued, _)| queued == id) {
                        return Err(format!("cannot remove message {id} from the outbox"));
                    }
                }
                // The call follows the check-in, unless the agent has not said yet how it is.
                Step::Locate => {
                    self.checkin_at = None;
                    self.checked_in = None;
                    self.located = Some(id);
                    break;
                }
                Step::Wait => break,
                step @ (Step::Make(..) | Step::Ask | Step::SendEvidence(_)) => {
                    self.make(step, id, message, caller, &identity, tasks);
                    return Ok(());
                }
            }
        }
        let Some(state) = state else {
            // The outbox wakes us when the agent has written it; this is for a slot that cannot be read.
            self.not_before = Some(now + POLL_GAP);
            return Ok(());
        };
        let due = match &self.checked_in {
            None => self.checkin_at.is_none_or(|time| time <= now),
            Some((told, when)) => {
                let gap_over = now.duration_since(*when) >= CHECKIN_GAP;
                let wanted = is_news(told, &state) || self.checkin_at.is_none_or(|time| time <= now);
                if wanted && !gap_over {
                    self.not_before = Some(*when + CHECKIN_GAP);
                }
                wanted && gap_over
            }
        };
        if due { self.checkin(state, &identity, caller, spools, tasks) } else { Ok(()) }
    }

    fn enroll(&mut self, spools: Spools<'_>, tasks: &mut JoinSet<Done>) -> Result<(), String> {
        let settings = &self.settings;
        let Some(name) = host_id(settings.host_id.as_deref()) else {
            return Err("this host has no usable name: set `host_id` in `[reimage]`".to_owned());
        };
        let read = |path: &std::path::Path| {
            let text = read_token(path).map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
            Token::try_from(text).map_err(|error| format!("cannot use `{}`: {error}", path.display()))
        };
        if let Some(path) = &settings.token_file {
            // Enrolled by other means: nothing is asked, and the endpoint counts no incarnations.
            self.identity = Some(Identity { version: 1, host_id: name, incarnation: 1, token: read(path)? });
            return self.call_again();
        }
        let Some(path) = &settings.join_token_file else {
            return Err("this host is not enrolled: set `join_token_file` or `token_file` in `[reimage]`".to_owned());
        };
        let boot_id = boot_id().ok_or("the kernel gives no boot id")?;
        let request =
            EnrollRequest { token: read(path)?, host_id: name, hostname: hostname(), boot_id, machine: machine() };
        // An identity that could not be stored would use up the token for nothing.
        self.store(spools)?;
        let caller = self.caller(None)?;
        self.busy = true;
        tasks.spawn(async move { Done::from(EndpointDone::Enrolled(caller.enroll(&request).await)) });
        Ok(())
    }

    fn call_again(&mut self) -> Result<(), String> {
        self.not_before = Some(Instant::now());
        Ok(())
    }

    fn checkin(
        &mut self,
        state: CheckInState,
        identity: &Identity,
        caller: Caller,
        spools: Spools<'_>,
        tasks: &mut JoinSet<Done>,
    ) -> Result<(), String> {
        let boot_id = boot_id().ok_or("the kernel gives no boot id")?;
        // Stored before it is used, so that no crash can use a number twice.
        self.memory.seq = self.memory.seq.saturating_add(1);
        self.store(spools)?;
        let request = checkin(identity, &boot_id, self.memory.seq, &state);
        self.busy = true;
        tasks.spawn(async move {
            let result = caller.checkin(&request).await;
            Done::from(EndpointDone::CheckedIn { state, result })
        });
        Ok(())
    }

    fn step(&self, id: &str, message: &ReimageCall) -> Step {
        let unknown = |request: &str| ReimageReply {
            version: 1,
            request: request.to_owned(),
            state: ReimageState::Expired.word().to_owned(),
            reason: Some("the endpoint does not know this request".to_owned()),
            retry_after: None,
            grant_ends: None,
        };
        let located = self.located.as_deref() == Some(id) && self.checked_in.is_some();
        match message {
            ReimageCall::Request { request, reason, .. } => match self.memory.open(request) {
                Some(open) if open.evidence == Evidence::Owed => Step::SendEvidence(open.id.clone()),
                Some(_) => Step::Forget { reply: None },
                None if RequestKey::try_from(request.clone()).is_err() || Why::from_word(reason).is_none() => {
                    error!(request, reason, "the agent's request is malformed and cannot be sent");
                    Step::Forget { reply: None }
                }
                None => Step::Ask,
            },
            ReimageCall::Ready { request } => match self.memory.open(request) {
                Some(open) => Step::Make(Call::Ready { request: request.clone() }, open.id.clone()),
                None if located => Step::Forget { reply: Some(unknown(request)) },
                None => Step::Locate,
            },
            ReimageCall::Cancel { request, .. } => match self.memory.open(request) {
                Some(open) if open.ended => Step::Forget { reply: None },
                Some(open) => Step::Make(Call::Cancel { request: request.clone() }, open.id.clone()),
                None if located => Step::Forget { reply: None },
                None => Step::Locate,
            },
            // The endpoint wants to have heard that this incarnation converged before it is told that it is complete.
            ReimageCall::Complete => match (&self.memory.birth, &self.checked_in) {
                (Some(birth), Some((told, _))) if told.born_converged => Step::Make(Call::Complete, birth.clone()),
                (Some(_), _) => Step::Wait,
                (None, _) if located => Step::Forget { reply: None },
                (None, _) => Step::Locate,
            },
        }
    }

    fn make(
        &mut self,
        step: Step,
        message: String,
        call: ReimageCall,
        caller: Caller,
        identity: &Identity,
        tasks: &mut JoinSet<Done>,
    ) {
        self.busy = true;
        self.n_calls += 1;
        let incarnation = identity.incarnation;
        tasks.spawn(async move {
            Done::from(match (step, call) {
                (Step::Ask, ReimageCall::Request { request, reason, summary, dossier }) => {
                    let result = ask(&caller, &request, &reason, summary, &dossier, incarnation).await;
                    EndpointDone::Asked { message, request, result }
                }
                (Step::SendEvidence(id), ReimageCall::Request { dossier, .. }) => {
                    EndpointDone::EvidenceSent { result: caller.evidence(&id, &dossier).await.map(|_| ()) }
                }
                (Step::Make(what, id), call) => {
                    let why = if let ReimageCall::Cancel { why, .. } = &call { why.as_str() } else { "" };
                    let result = match &what {
                        Call::Ready { .. } => caller.ready(&id).await,
                        Call::Cancel { .. } => caller.cancel(&id, why).await,
                        Call::Complete => caller.complete(&id).await,
                    };
                    // A refusal says that the request is elsewhere than we thought: look where.
                    let result = match result {
                        Err(CallError::Refused { reason, .. }) if has_moved(reason) => caller.status(&id).await,
                        result => result,
                    };
                    EndpointDone::Called { message, what, result }
                }
                (Step::Ask | Step::SendEvidence(_) | Step::Locate | Step::Wait | Step::Forget { .. }, _) => {
                    let why = "the message and its step do not match".to_owned();
                    EndpointDone::EvidenceSent { result: Err(CallError::Later { why, after: None }) }
                }
            })
        });
    }

    fn poll(&mut self, now: Instant, tasks: &mut JoinSet<Done>) {
        let Some(open) = self.memory.open.as_ref().filter(|open| !open.ended) else { return };
        let (id, mark, n_calls) = (open.id.clone(), self.mark.clone(), self.n_calls);
        let Some(token) = self.identity.as_ref().map(|identity| identity.token.clone()) else { return };
        // A fault of the way there is reported by the next call.
        let Ok(caller) = self.caller(Some(token)) else { return };
        self.polling = true;
        tasks.spawn(async move {
            let result = caller.poll(&id, mark.as_deref()).await;
            Done::from(EndpointDone::Polled { n_calls, started: now, result })
        });
    }

    fn caller(&mut self, token: Option<Token>) -> Result<Caller, String> {
        let base = self.settings.endpoint.trim_end_matches('/').to_owned();
        let url =
            reqwest::Url::parse(&base).map_err(|error| format!("`endpoint` of `[reimage]` is no URL: {error}"))?;
        let is_loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if url.scheme() != "https" && !is_loopback {
            return Err("`endpoint` of `[reimage]` must begin with https://: calls carry a token".to_owned());
        }
        let client = match &self.client {
            Some(client) => client.clone(),
            None => client(self.settings.ca.as_deref(), TIMEOUT).map_err(|error| chain(&error))?,
        };
        self.client = Some(client.clone());
        Ok(Caller { client, base, token })
    }

    fn store(&self, spools: Spools<'_>) -> Result<(), String> {
        spools.own.write_slot(&self.memory).map_err(|error| chain(&error))
    }
}

/// Whether a refusal with this reason says that a request is in another state than the call fits.
fn has_moved(reason: Reason) -> bool {
    matches!(reason, Reason::IllegalState | Reason::GrantExpired | Reason::AlreadyDispatched)
}

fn first_call(queue: &Queue, outbox: &Spool) -> Option<(String, ReimageCall)> {
    let (id, _) = queue.iter().find(|(_, kind)| *kind == Kind::Reimage)?;
    match outbox.read(id) {
        Ok(Some(Outgoing { body: OutgoingBody::Reimage(call), .. })) => Some((id.to_owned(), call)),
        Ok(Some(Outgoing { body: OutgoingBody::Alert(_), .. }) | None) => None,
        Err(error) => {
            error!(id, error = %chain(&error), "cannot read a reimage call");
            None
        }
    }
}

async fn ask(
    caller: &Caller,
    request: &str,
    reason: &str,
    summary: String,
    dossier: &serde_json::Value,
    incarnation: u64,
) -> Result<ReimageStatus, CallError> {
    let malformed = || CallError::Later { why: "the agent's request is malformed".to_owned(), after: None };
    let digest = Sha256::digest(calls::bytes(dossier)?);
    let ask = ReimageAsk {
        request: RequestKey::try_from(request.to_owned()).map_err(|_| malformed())?,
        reason: Why::from_word(reason).ok_or_else(malformed)?,
        summary,
        incarnation,
        policy: None,
        evidence: Some(digest.iter().map(|byte| format!("{byte:02x}")).collect()),
    };
    caller.ask(&ask).await
}
