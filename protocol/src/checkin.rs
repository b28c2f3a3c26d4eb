//! The check-in: the periodic report to the endpoint, and the only thing that a healthy host ever sends.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BootId, HostId, ReimageStatus, RequestKey};

/// Body of `POST /v1/checkin`; ordinarily under 1 KB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckIn {
    /// The slot's name; it must be the one that the bearer token names.
    pub host_id: HostId,
    /// Which install on that slot; it must be the one that the bearer token names.
    pub incarnation: u64,
    /// The kernel's boot id.
    pub boot_id: BootId,
    /// Strictly increasing within a boot. 409 with [`crate::Reason::StaleSequence`] names the last one seen.
    pub seq: u64,
    /// Version of the agent.
    pub agent: String,
    /// The revision in force, as hexadecimal, if any.
    #[serde(default)]
    pub policy: Option<String>,
    /// Which image this host was made from, when it knows.
    #[serde(default)]
    pub image: Option<String>,
    /// How it is.
    pub health: Health,
    /// Since when.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: Timestamp,
    /// Whether a full convergence has succeeded since this incarnation was born.
    pub born_converged: bool,
    /// Counts.
    pub counters: Counters,
    /// Failing resources, the first [`crate::MAX_LISTED`] of them.
    #[serde(default)]
    pub failing: Vec<Failing>,
    /// What forbids a reimage at the moment.
    #[serde(default)]
    pub holds: Vec<Hold>,
    /// How much of the host no policy explains, when it was measured.
    #[serde(default)]
    pub snowflake: Option<u32>,
    /// The agent's open reimage request, if any.
    #[serde(default)]
    pub reimage: Option<RequestKey>,
}

/// The health of a host, as the agent's own state machine names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing left to do.
    Converged,
    /// A step failed and is being retried.
    Degraded,
    /// The newest revision fails here; the last good one is in force.
    OnLastGood,
    /// It cannot converge, nor on the last good revision.
    Failing,
    /// It has asked to be reimaged.
    Requested,
    /// Its request was granted.
    Granted,
    /// Drain hooks are running.
    Draining,
    /// It is ready to be destroyed.
    HandedOver,
    /// A word of a newer version, or none yet: not known to be converged.
    #[serde(other)]
    Unknown,
}

impl Health {
    /// Returns the health that a word names, and [`Health::Unknown`] for any other text.
    pub fn from_word(word: &str) -> Self {
        serde_json::from_value(serde_json::Value::String(word.to_owned())).unwrap_or(Self::Unknown)
    }
}

/// Counts in a check-in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Counters {
    /// Resources in the policy in force.
    pub resources: u64,
    /// Repairs since the agent started.
    pub repairs: u64,
}

/// A failing resource in a check-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Failing {
    /// Such as `package[nginx]`.
    pub resource: String,
    /// A short text that is equal for equal causes on other hosts.
    pub signature: String,
    /// The class of the cause, when it was classified: `drift`, `policy`, `upstream`, `agent`.
    #[serde(default)]
    pub class: Option<String>,
}

/// Something that forbids a reimage for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Why.
    pub reason: String,
    /// Who set it.
    pub owner: String,
    /// When it ends.
    #[serde(default)]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub until: Option<Timestamp>,
}

/// Answer to `POST /v1/checkin`, with 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckInAnswer {
    /// Seconds until the next check-in. A client bounds it: a wild number is no reason to fall silent.
    pub next_checkin_s: u64,
    /// When the endpoint starts to count this host as silent.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub lease_end: Timestamp,
    /// What the endpoint wants of the host.
    #[serde(default)]
    pub directive: Directive,
    /// The policy revision that it expects: a hint to fetch now, never a reason to trust anything.
    #[serde(default)]
    pub policy_revision: Option<String>,
    /// Grows when the endpoint was restored from a backup; grants of older epochs are void.
    pub epoch: u64,
    /// The request that concerns this host: its own open or last one, or the one that it was born from.
    #[serde(default)]
    pub reimage: Option<ReimageStatus>,
}

/// What an endpoint wants of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Directive {
    /// Carry on.
    #[default]
    None,
    /// The open request is granted: drain, send evidence, then call `ready`.
    Drain,
    /// The open request waits; keep checking in.
    Hold,
    /// The request that the check-in names is over; stop what was begun for it. One that the endpoint has never heard of is
    /// not aborted: it may still be on its way.
    Abort,
    /// A word of a newer version: carry on.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_words_permit_nothing() {
        let directive: Directive = serde_json::from_str(r#"{"kind":"execute_local","grant":"x"}"#).unwrap();
        assert_eq!(directive, Directive::Unknown);
        assert_eq!(Health::from_word("on_last_good"), Health::OnLastGood);
        assert_eq!(Health::from_word("splendid"), Health::Unknown);
    }

    #[test]
    fn an_agent_ignores_unknown_keys_of_an_answer() {
        let text = r#"{"next_checkin_s":300,"lease_end":"2026-11-01T00:00:00Z","epoch":1,"weather":"fair"}"#;
        let answer: CheckInAnswer = serde_json::from_str(text).unwrap();
        assert_eq!(answer.directive, Directive::None);
    }
}
