//! Errors on the wire: RFC 9457 problem documents with a reason of bounded vocabulary.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Body of every answer of 400 and above, as `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `urn:rekindle:problem:` and the reason.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The reason as a short phrase.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened here, and what would mend it.
    #[serde(default)]
    pub detail: Option<String>,
    /// The reason, for programs.
    #[serde(default)]
    pub reason: Reason,
    /// With [`Reason::StaleSequence`]: the highest sequence number seen of this boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
}

impl Problem {
    /// Returns a problem for a reason, with its usual status.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:rekindle:problem:{}", reason.word()),
            title: reason.title().to_owned(),
            status: reason.status(),
            detail: Some(detail.into()),
            reason,
            last_seq: None,
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident $word:literal $status:literal $title:literal;)*) => {
        /// Why something is refused, held or failed.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum Reason {
            $($(#[$doc])* #[serde(rename = $word)] $name,)*
            /// A word of a newer version.
            #[default]
            #[serde(other, rename = "unknown")]
            Unknown,
        }

        impl Reason {
            /// Returns every reason that has a word of its own.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the word on the wire.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* Self::Unknown => "unknown" }
            }

            /// Returns the reason that a word names, and `Unknown` for any other text.
            pub fn from_word(word: &str) -> Self {
                match word { $($word => Self::$name,)* _ => Self::Unknown }
            }

            /// Returns the HTTP status of a problem with this reason.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* Self::Unknown => 500 }
            }

            /// Returns the reason as a short phrase.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* Self::Unknown => "unknown reason" }
            }
        }
    };
}

reasons! {
    /// The group has used up what it may have in progress.
    BudgetGroup "budget_group" 403 "the group's budget is used up";
    /// The fleet has used up what it may have in progress.
    BudgetFleet "budget_fleet" 403 "the fleet's budget is used up";
    /// A breaker opened and waits for a person.
    BreakerOpen "breaker_open" 403 "a breaker is open";
    /// Outside the hours in which reimages are allowed.
    WindowClosed "window_closed" 403 "outside the window";
    /// A person has paused reimages.
    Paused "paused" 403 "paused";
    /// Many hosts fail since the same policy change.
    SuspectPolicy "suspect_policy" 403 "the policy is the suspect";
    /// This host was reimaged too recently.
    MinInterval "min_interval" 403 "reimaged too recently";
    /// A retry of the same problem failed as well.
    LineageExhausted "lineage_exhausted" 403 "reimaging this host did not help before";
    /// Too few healthy members are left.
    MinHealthy "min_healthy" 403 "too few healthy hosts";
    /// The host declared data that must not be lost.
    DataGuard "data_guard" 403 "the host guards data";
    /// The host's group has not opted in to reimages.
    NotOptedIn "not_opted_in" 403 "the group has not opted in";
    /// The host is on the list of those that are never reimaged.
    NeverReimage "never_reimage" 403 "on the never-reimage list";
    /// The request names an incarnation that is not the present one.
    StaleIncarnation "stale_incarnation" 409 "stale incarnation";
    /// The group has no engine.
    EngineUnbound "engine_unbound" 403 "the group has no engine";
    /// A person must approve.
    ApprovalPending "approval_pending" 403 "waiting for a person's approval";
    /// An earlier reimage of this host failed, and a person must release it first.
    AwaitingRelease "awaiting_release" 403 "an earlier reimage awaits a person's release";
    /// The body or a header cannot be understood.
    Malformed "malformed" 422 "malformed";
    /// No bearer token, or one that was never given out.
    Unauthenticated "unauthenticated" 401 "not authenticated";
    /// The bearer token belongs to an incarnation that was replaced. It will never be valid again.
    Superseded "superseded" 410 "this incarnation was superseded";
    /// The object does not exist, or is another host's.
    NotFound "not_found" 404 "not found";
    /// The path exists, with other methods.
    MethodNotAllowed "method_not_allowed" 405 "method not allowed";
    /// The join token is unknown, expired, used up, or bound to another host.
    TokenInvalid "token_invalid" 403 "the token is not valid";
    /// A host of this name is enrolled already.
    AlreadyEnrolled "already_enrolled" 409 "already enrolled";
    /// A check-in whose sequence number is not higher than the last.
    StaleSequence "stale_sequence" 409 "stale sequence number";
    /// The call does not fit the request's state.
    IllegalState "illegal_state" 409 "not possible in this state";
    /// The grant ended before `ready`.
    GrantExpired "grant_expired" 409 "the grant has expired";
    /// The engine has been called; there is no way back.
    AlreadyDispatched "already_dispatched" 409 "already dispatched";
    /// The request announced evidence that was not stored.
    EvidenceMissing "evidence_missing" 409 "the evidence is missing";
    /// The evidence does not match its digest.
    DigestMismatch "digest_mismatch" 422 "the digest does not match";
    /// The body is larger than the endpoint accepts.
    TooLarge "too_large" 413 "too large";
    /// `complete` before a check-in that says converged.
    NotConverged "not_converged" 409 "not converged yet";
    /// The endpoint is busy; Retry-After says when to come back.
    Busy "busy" 503 "busy";
    /// The endpoint failed.
    Internal "internal" 500 "internal error";
    /// A person said so.
    Operator "operator" 403 "a person decided";
    /// The engine reported a failure.
    EngineFailed "engine_failed" 502 "the engine failed";
    /// Something did not happen in time.
    Timeout "timeout" 504 "timed out";
    /// Whether the engine acted is not known; a person must look.
    EngineUnknown "engine_unknown" 502 "whether the engine acted is not known";
    /// The new incarnation came up broken.
    DeadOnArrival "dead_on_arrival" 409 "dead on arrival";
    /// The new incarnation was made from another image.
    WrongImage "wrong_image" 409 "wrong image";
    /// The new incarnation did not converge.
    VerifyFailed "verify_failed" 409 "verification failed";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_unknown_ones_are_kept_apart() {
        for &reason in Reason::ALL {
            let json = serde_json::to_string(&reason).unwrap();
            assert_eq!(json, format!("{:?}", reason.word()));
            assert_eq!(serde_json::from_str::<Reason>(&json).unwrap(), reason);
            assert_eq!(Reason::from_word(reason.word()), reason);
            assert!((400..600).contains(&reason.status()), "{reason:?}");
        }
        assert_eq!(serde_json::from_str::<Reason>("\"full_moon\"").unwrap(), Reason::Unknown);
    }
}
