//! A reimage request and its life, as a pure state machine.
//!
//! ```text
//! requested ─▶ approved ─▶ awaiting_ready ─▶ dispatching ─▶ engine_running ─▶ awaiting_checkin ─▶ verifying ─▶ succeeded
//!     │  ▲                      │                 │               │
//!     ▼  │ approve              │                 └─ result lost ─┴─▶ held ─▶ (a person: dispatch again, or give up)
//!    held                       ▼
//!              denied · cancelled · expired · failed · quarantined
//! ```
//!
//! No engine's success means done: only a new incarnation that checks in with the bound token and converges is success.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Reason, ReimageId, RequestKey};

/// Body of `POST /v1/reimages`. The host is the one that the bearer token names, and no other can be named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReimageAsk {
    /// The agent's idempotency key, repeated in the `Idempotency-Key` header.
    pub request: RequestKey,
    /// Why.
    pub reason: Why,
    /// One sentence for a person.
    pub summary: String,
    /// The incarnation that asks; 409 with [`Reason::StaleIncarnation`] if it is not the present one.
    pub incarnation: u64,
    /// The revision in force, as hexadecimal, if any.
    #[serde(default)]
    pub policy: Option<String>,
    /// SHA-256, as 64 hexadecimal digits, of evidence that will follow. Once announced it is required before `ready`.
    #[serde(default)]
    pub evidence: Option<String>,
}

/// Why a host asks to be reimaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It cannot converge.
    Failed,
    /// A resource that may not drift has drifted.
    Tampered,
    /// The same drift comes back faster than policy allows.
    Flapping,
    /// It has reached its greatest age.
    Expired,
    /// A person on the host asked.
    Operator,
}

impl Why {
    /// Returns the reason that a word names.
    pub fn from_word(word: &str) -> Option<Self> {
        serde_json::from_value(serde_json::Value::String(word.to_owned())).ok()
    }

    /// Returns the word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Tampered => "tampered",
            Self::Flapping => "flapping",
            Self::Expired => "expired",
            Self::Operator => "operator",
        }
    }
}

/// Body of `POST /v1/reimages/{id}/cancel`; an empty body is accepted as well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CancelRequest {
    /// One sentence for a person.
    pub why: String,
}

/// Answer to `PUT /v1/reimages/{id}/evidence`, with 201.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EvidenceAnswer {
    /// SHA-256 of what is stored, as hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What the endpoint says about one request: the answer to every call under `/v1/reimages`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReimageStatus {
    /// The endpoint's name for it.
    pub id: ReimageId,
    /// The agent's name for it.
    pub request: RequestKey,
    /// Where it stands.
    pub state: ReimageState,
    /// The reason of a hold, a denial or a failure, for programs.
    #[serde(default)]
    pub code: Option<Reason>,
    /// The same, as a sentence for a person.
    #[serde(default)]
    pub reason: Option<String>,
    /// Not to ask again before this time.
    #[serde(default)]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub retry_after: Option<Timestamp>,
    /// When the grant ends: `ready` must come before.
    #[serde(default)]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub grant_ends: Option<Timestamp>,
}

/// Where a reimage request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReimageState {
    /// Entered by the agent's ask; left by a decision of the endpoint or a person.
    Requested,
    /// Entered when something forbids it for now, or when it is not known whether the engine acted; left by a person, or by
    /// the endpoint when the obstacle is gone.
    Held,
    /// Entered by a decision; left at once when the host is offered its grant.
    Approved,
    /// Entered with the grant; left by the host's `ready`, its `cancel`, or the end of the grant.
    AwaitingReady,
    /// Entered when the intent is committed, before the engine is called. From here on the old incarnation is fenced off.
    Dispatching,
    /// Entered when the engine was called; left by its result.
    EngineRunning,
    /// Entered when the engine says done, which is not success; left by the new incarnation's enrolment.
    AwaitingCheckin,
    /// Entered when the new incarnation enrolled; left when it has converged, or has not in time.
    Verifying,
    /// The new incarnation converged.
    Succeeded,
    /// A person or a rule said no.
    Denied,
    /// The host converged after all, before anything was dispatched.
    Cancelled,
    /// The grant ended before the host was ready.
    Expired,
    /// It went wrong after dispatch; the slot stays taken until a person releases it.
    Failed,
    /// Reimaging does not help this host; a person must look at it.
    Quarantined,
    /// A word of a newer version: nothing may be done because of it.
    #[serde(other)]
    Unknown,
}

/// How a dispatched request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The engine reported a failure.
    Engine,
    /// The engine, or the new incarnation, took too long.
    Timeout,
    /// The new incarnation came up broken.
    DeadOnArrival,
    /// The new incarnation was made from another image.
    WrongImage,
    /// The new incarnation did not converge.
    Verify,
}

impl Failure {
    /// Returns the reason that a status gives for it.
    pub fn reason(self) -> Reason {
        match self {
            Self::Engine => Reason::EngineFailed,
            Self::Timeout => Reason::Timeout,
            Self::DeadOnArrival => Reason::DeadOnArrival,
            Self::WrongImage => Reason::WrongImage,
            Self::Verify => Reason::VerifyFailed,
        }
    }
}

/// What moves a request from one state to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReimageEvent {
    /// Something forbids it for now.
    Hold,
    /// A person or the group's rule says yes.
    Approve,
    /// A person or a rule says no.
    Deny,
    /// The host is offered its grant.
    Offer,
    /// The host converged after all.
    Cancel,
    /// Its time ran out before dispatch.
    Expire,
    /// The host is drained and its evidence is stored: the intent is committed.
    Ready,
    /// The engine was called.
    EngineCalled,
    /// The engine says done.
    EngineDone,
    /// It is not known whether the engine acted.
    EngineLost,
    /// A person looked at the engine and wants it called once more.
    DispatchAgain,
    /// A new incarnation enrolled with the token bound to this request.
    Born,
    /// The new incarnation converged.
    Complete,
    /// It went wrong.
    Fail(Failure),
    /// Reimaging does not help this host.
    Quarantine,
}

/// An event that does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request that is `{}` cannot take the event {event:?}", from.word())]
pub struct IllegalTransition {
    /// The state it is in.
    pub from: ReimageState,
    /// What was to happen.
    pub event: ReimageEvent,
}

impl ReimageState {
    /// Every state that an endpoint can be in.
    pub const ALL: &[Self] = &[
        Self::Requested,
        Self::Held,
        Self::Approved,
        Self::AwaitingReady,
        Self::Dispatching,
        Self::EngineRunning,
        Self::AwaitingCheckin,
        Self::Verifying,
        Self::Succeeded,
        Self::Denied,
        Self::Cancelled,
        Self::Expired,
        Self::Failed,
        Self::Quarantined,
    ];

    /// Returns the word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Held => "held",
            Self::Approved => "approved",
            Self::AwaitingReady => "awaiting_ready",
            Self::Dispatching => "dispatching",
            Self::EngineRunning => "engine_running",
            Self::AwaitingCheckin => "awaiting_checkin",
            Self::Verifying => "verifying",
            Self::Succeeded => "succeeded",
            Self::Denied => "denied",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Quarantined => "quarantined",
            Self::Unknown => "unknown",
        }
    }

    /// Returns the state that a word names, and `None` for any other text.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|state| state.word() == word)
    }

    /// Returns whether nothing can change it any more. An unknown word is not terminal.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Succeeded | Self::Denied | Self::Cancelled | Self::Expired | Self::Failed | Self::Quarantined => true,
            Self::Requested
            | Self::Held
            | Self::Approved
            | Self::AwaitingReady
            | Self::Dispatching
            | Self::EngineRunning
            | Self::AwaitingCheckin
            | Self::Verifying
            | Self::Unknown => false,
        }
    }

    /// Returns the state after an event, or says that the event does not fit.
    ///
    /// `Held` serves before approval and after a lost engine result. What sets the two apart is a bound enrolment token,
    /// which exists only after dispatch; `Born` and `DispatchAgain` therefore cannot reach a request held before approval,
    /// and whoever records decisions refuses `Approve`, `Deny` and `Cancel` once an intent is on record.
    pub fn next(self, event: ReimageEvent) -> Result<Self, IllegalTransition> {
        use ReimageEvent as E;
        let to = match (self, event) {
            (Self::Requested, E::Hold) => Some(Self::Held),
            (Self::Requested | Self::Held, E::Approve) => Some(Self::Approved),
            (Self::Requested | Self::Held | Self::Approved | Self::AwaitingReady, E::Deny) => Some(Self::Denied),
            (Self::Requested | Self::Held | Self::Approved | Self::AwaitingReady, E::Cancel) => Some(Self::Cancelled),
            (Self::Requested | Self::Held | Self::Approved | Self::AwaitingReady, E::Expire) => Some(Self::Expired),
            (Self::Requested | Self::Held, E::Quarantine) => Some(Self::Quarantined),
            (Self::Approved, E::Offer) => Some(Self::AwaitingReady),
            (Self::AwaitingReady, E::Ready) | (Self::Held, E::DispatchAgain) => Some(Self::Dispatching),
            (Self::Dispatching, E::EngineCalled) => Some(Self::EngineRunning),
            (Self::EngineRunning, E::EngineDone) => Some(Self::AwaitingCheckin),
            (Self::Dispatching | Self::EngineRunning, E::EngineLost) => Some(Self::Held),
            // An engine may wait for the machine that it makes, so the machine can enrol before the engine is done; and a
            // birth settles what a lost result left open.
            (Self::Dispatching | Self::EngineRunning | Self::AwaitingCheckin | Self::Held, E::Born) => {
                Some(Self::Verifying)
            }
            (Self::Verifying, E::Complete) => Some(Self::Succeeded),
            (Self::Dispatching | Self::EngineRunning | Self::Held, E::Fail(Failure::Engine)) => Some(Self::Failed),
            (
                Self::Dispatching | Self::EngineRunning | Self::AwaitingCheckin | Self::Verifying,
                E::Fail(Failure::Timeout),
            ) => Some(Self::Failed),
            (Self::AwaitingCheckin | Self::Verifying, E::Fail(Failure::DeadOnArrival)) => Some(Self::Failed),
            (Self::Verifying, E::Fail(Failure::WrongImage | Failure::Verify)) => Some(Self::Failed),
            (
                Self::Requested
                | Self::Held
                | Self::Approved
                | Self::AwaitingReady
                | Self::Dispatching
                | Self::EngineRunning
                | Self::AwaitingCheckin
                | Self::Verifying
                | Self::Succeeded
                | Self::Denied
                | Self::Cancelled
                | Self::Expired
                | Self::Failed
                | Self::Quarantined
                | Self::Unknown,
                _,
            ) => None,
        };
        to.ok_or(IllegalTransition { from: self, event })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: &[ReimageEvent] = &[
        ReimageEvent::Hold,
        ReimageEvent::Approve,
        ReimageEvent::Deny,
        ReimageEvent::Offer,
        ReimageEvent::Cancel,
        ReimageEvent::Expire,
        ReimageEvent::Ready,
        ReimageEvent::EngineCalled,
        ReimageEvent::EngineDone,
        ReimageEvent::EngineLost,
        ReimageEvent::DispatchAgain,
        ReimageEvent::Born,
        ReimageEvent::Complete,
        ReimageEvent::Fail(Failure::Engine),
        ReimageEvent::Fail(Failure::Timeout),
        ReimageEvent::Fail(Failure::DeadOnArrival),
        ReimageEvent::Fail(Failure::WrongImage),
        ReimageEvent::Fail(Failure::Verify),
        ReimageEvent::Quarantine,
    ];

    /// Every legal transition, as text; whatever is not listed is illegal.
    const LEGAL: &str = "\
requested: Hold>held Approve>approved Deny>denied Cancel>cancelled Expire>expired Quarantine>quarantined
held: Approve>approved Deny>denied Cancel>cancelled Expire>expired DispatchAgain>dispatching Born>verifying Fail(Engine)>failed Quarantine>quarantined
approved: Deny>denied Offer>awaiting_ready Cancel>cancelled Expire>expired
awaiting_ready: Deny>denied Cancel>cancelled Expire>expired Ready>dispatching
dispatching: EngineCalled>engine_running EngineLost>held Born>verifying Fail(Engine)>failed Fail(Timeout)>failed
engine_running: EngineDone>awaiting_checkin EngineLost>held Born>verifying Fail(Engine)>failed Fail(Timeout)>failed
awaiting_checkin: Born>verifying Fail(Timeout)>failed Fail(DeadOnArrival)>failed
verifying: Complete>succeeded Fail(Timeout)>failed Fail(DeadOnArrival)>failed Fail(WrongImage)>failed Fail(Verify)>failed
succeeded:
denied:
cancelled:
expired:
failed:
quarantined:
";

    #[test]
    fn the_table_of_transitions() {
        let mut seen = String::new();
        for state in ReimageState::ALL {
            seen.push_str(state.word());
            seen.push(':');
            for &event in EVENTS {
                if let Ok(to) = state.next(event) {
                    seen.push_str(&format!(" {event:?}>{}", to.word()));
                }
            }
            seen.push('\n');
        }
        assert_eq!(seen, LEGAL);
    }

    #[test]
    fn an_unknown_state_permits_nothing() {
        let state: ReimageState = serde_json::from_str("\"ascended\"").unwrap();
        assert_eq!(state, ReimageState::Unknown);
        assert!(!state.is_terminal());
        assert!(EVENTS.iter().all(|&event| state.next(event).is_err()));
    }

    #[test]
    fn words_are_the_wire_names() {
        for state in ReimageState::ALL {
            assert_eq!(serde_json::to_string(state).unwrap(), format!("{:?}", state.word()));
            assert_eq!(ReimageState::from_word(state.word()), Some(*state));
        }
    }

    proptest! {
        /// However events arrive: no state leaves a terminal one, success follows only a birth, and nothing is cancelled
        /// or denied between dispatch and a lost engine result.
        #[test]
        fn walks_keep_the_laws(steps in prop::collection::vec(0..EVENTS.len(), 0..40)) {
            let (mut state, mut born) = (ReimageState::Requested, false);
            for step in steps {
                let event = EVENTS[step];
                let Ok(to) = state.next(event) else { continue };
                prop_assert!(!state.is_terminal());
                born |= event == ReimageEvent::Born;
                if to == ReimageState::Succeeded {
                    prop_assert!(born);
                }
                if matches!(to, ReimageState::Cancelled | ReimageState::Denied) {
                    prop_assert!(!matches!(
                        state,
                        ReimageState::Dispatching | ReimageState::EngineRunning | ReimageState::AwaitingCheckin | ReimageState::Verifying
                    ));
                }
                state = to;
            }
        }
    }
}
