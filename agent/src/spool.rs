//! What crosses between the agent (root, no network) and the courier (network, no privilege): files in two directories.
//!
//! `outbox/` holds queued messages from the agent, one a file, each deleted by the courier when every receiver has it, and
//! a few *slots*, files of a fixed name of which only the newest content matters. `inbox/` holds slots only, written by the
//! courier. A reader takes nothing on trust: size is bounded before a byte is parsed, unknown keys are refused, symbolic
//! links and other file types are refused, and a file that does not parse is set aside, reported and never retried.
//!
//! Every write goes to a temporary name first, is fsynced, and is then renamed; the directory is fsynced after.
//!
//! [`Spool`] is the one reader and writer of such a directory, for both sides; this file holds the types that cross.

mod directory;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use directory::{Enqueued, MAX_QUEUED, Slot, Spool, SpoolError, new_id};

use crate::actor::Actor;
use crate::resource::{Change, ResourceId};

/// Largest file that a reader accepts, in bytes. A dossier is the largest message.
pub const MAX_MESSAGE: u64 = 8 * 1024 * 1024;

/// A queued message from the agent. The file name is `<id>.json`; ids sort by creation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outgoing {
    /// Format version, 1.
    pub version: u32,
    /// Unique and sortable: thirteen digits of Unix milliseconds, `-`, sixteen hexadecimal digits of chance.
    pub id: String,
    /// What it is.
    pub body: OutgoingBody,
}

/// When the message with this id was queued; `None` for what is no id.
pub fn queued_at(id: &str) -> Option<Timestamp> {
    let (milliseconds, _) = id.split_once('-')?;
    Timestamp::from_millisecond(milliseconds.parse().ok()?).ok()
}

/// The kinds of queued messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OutgoingBody {
    /// To every webhook whose `events` match.
    Alert(Alert),
    /// To the endpoint.
    Reimage(ReimageCall),
}

/// What the agent asks of the endpoint about one reimage request, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ReimageCall {
    /// Ask. Repeated until answered; `request` is the idempotency key.
    Request {
        /// Chosen by the agent, one for the life of the request.
        request: String,
        /// `failed`, `tampered`, `flapping`, `expired` or `operator`.
        reason: String,
        /// One sentence for a person.
        summary: String,
        /// The evidence, as JSON; secrets are already masked.
        dossier: serde_json::Value,
    },
    /// Drained: the last point of no return.
    Ready {
        /// Which request.
        request: String,
    },
    /// Converged after all.
    Cancel {
        /// Which request.
        request: String,
        /// One sentence for a person.
        why: String,
    },
    /// The new incarnation has converged.
    Complete,
}

/// Something that happened, for people and their tools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// Format version, 1.
    pub version: u32,
    /// When it happened.
    pub time: Timestamp,
    /// The host's name.
    pub host: String,
    /// Such as `drift.repaired`; see [`Event`].
    pub event: Event,
    /// The revision in force, if any.
    pub revision: Option<String>,
    /// One sentence for a person.
    pub summary: String,
    /// What it is about; bursts are grouped.
    pub resources: Vec<AlertResource>,
}

/// One resource of an alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertResource {
    /// Which.
    pub resource: ResourceId,
    /// `intentional` or `corrective`.
    pub cause: String,
    /// The word for its outcome: `changed`, `failed`, `reported`, `skipped`, `indeterminate`, `contested`.
    pub outcome: String,
    /// The error, when there is one.
    pub error: Option<String>,
    /// Bounded differences with secrets masked.
    pub changes: Vec<Change>,
    /// Id in `rekindle history`.
    pub history: Option<i64>,
    /// Who made the difference; absent when nothing is known of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<Actor>,
}

/// The events that alerts are sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each variant is its wire name, described in README.md")]
pub enum Event {
    #[serde(rename = "drift.repaired")]
    DriftRepaired,
    #[serde(rename = "drift.reported")]
    DriftReported,
    #[serde(rename = "drift.contested")]
    DriftContested,
    #[serde(rename = "drift.storm")]
    DriftStorm,
    #[serde(rename = "convergence.failed")]
    ConvergenceFailed,
    #[serde(rename = "convergence.restored")]
    ConvergenceRestored,
    #[serde(rename = "policy.accepted")]
    PolicyAccepted,
    #[serde(rename = "policy.rejected")]
    PolicyRejected,
    #[serde(rename = "policy.rolled_back")]
    PolicyRolledBack,
    #[serde(rename = "reimage.requested")]
    ReimageRequested,
    #[serde(rename = "reimage.granted")]
    ReimageGranted,
    #[serde(rename = "reimage.denied")]
    ReimageDenied,
    #[serde(rename = "reimage.withdrawn")]
    ReimageWithdrawn,
    #[serde(rename = "pause.started")]
    PauseStarted,
    #[serde(rename = "pause.expiring")]
    PauseExpiring,
    #[serde(rename = "pause.ended")]
    PauseEnded,
    #[serde(rename = "watch.degraded")]
    WatchDegraded,
    #[serde(rename = "agent.started")]
    AgentStarted,
}

/// Slot `outbox/checkin.json`: the state that the courier reports at each check-in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckInState {
    /// Format version, 1.
    pub version: u32,
    /// The revision in force.
    pub revision: Option<String>,
    /// The word for the health state, such as `converged`.
    pub health: String,
    /// Since when.
    pub since: Timestamp,
    /// Failing resources: id and cause signature.
    pub failing: Vec<(ResourceId, String)>,
    /// Resources in the policy in force.
    pub n_resources: u32,
    /// Repairs since the agent started.
    pub n_repairs: u64,
    /// The open reimage request, if any.
    pub request: Option<String>,
    /// Whether a full convergence has succeeded since this incarnation was born.
    pub born_converged: bool,
    /// Until when a change waits for an answer of the endpoint, so that the courier does not wait with the next check-in.
    #[serde(default)]
    pub confirming: Option<Timestamp>,
}

/// Slot `outbox/fetch.json`: an operator wants the policy pulled now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchNow {
    /// Format version, 1.
    pub version: u32,
    /// When it was asked, which also names the request. A courier pulls once for each value.
    pub asked: Timestamp,
}

/// Slot `inbox/fetch.json`: what the last pull brought. A hint; the agent verifies everything itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchResult {
    /// Format version, 1.
    pub version: u32,
    /// When the pull ended.
    pub at: Timestamp,
    /// Head of the configured branch, as hexadecimal, after the last pull that succeeded.
    pub commit: Option<String>,
    /// Why the last pull failed, if it did.
    pub error: Option<String>,
    /// [`FetchNow::asked`] of the last request that a pull was begun for.
    #[serde(default)]
    pub answers: Option<Timestamp>,
}

/// Slot `inbox/reimage.json`: the endpoint's newest word on the open request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReimageReply {
    /// Format version, 1.
    pub version: u32,
    /// Which request of the agent's.
    pub request: String,
    /// The state's wire name in `rekindle_protocol::ReimageState`, such as `awaiting_ready`.
    pub state: String,
    /// The endpoint's reason, when it gave one.
    pub reason: Option<String>,
    /// Not to ask again before this time, when the endpoint said so.
    pub retry_after: Option<Timestamp>,
    /// When the grant ends, for `awaiting_ready`.
    pub grant_ends: Option<Timestamp>,
}

/// Slot `inbox/courier.json`: how delivery goes, for `rekindle status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CourierState {
    /// Format version, 1.
    pub version: u32,
    /// When this was written.
    pub at: Timestamp,
    /// Queued messages.
    pub queued: u32,
    /// Receivers by name: webhook URLs without query, and `endpoint`.
    pub receivers: Vec<ReceiverState>,
    /// The slot's name at the endpoint, once enrolled.
    pub host_id: Option<String>,
    /// OS installs on this slot, as the endpoint counts them.
    pub incarnation: Option<u64>,
}

/// How delivery to one receiver goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiverState {
    /// Who.
    pub name: String,
    /// Last success.
    pub delivered: Option<Timestamp>,
    /// Last error since the last success, in full.
    pub error: Option<String>,
    /// When it is tried again.
    pub retry_at: Option<Timestamp>,
}
