//! What the outcome of runs means for the host: retry, go back to the last good revision, ask for a reimage, withdraw.
//!
//! Pure: [`Health::next`] takes one input and the time, and returns the next state and the effects as data. The caller
//! persists the state *before* it carries out an effect, so that a request is on disk before it is sent and has one id for
//! its life. The policy is the first suspect, the host the last: a revision that never converged here is backed out before
//! the host is blamed. Nothing that could not be *told* (an indeterminate resource) ever leads to a request.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

mod escalate;
mod report;

pub use escalate::{Contested, Damage};

use super::RunReport;
use crate::config::HealthSettings;
use crate::policy::Revision;
use crate::resource::ResourceId;

/// The health of the host under the policy in force, and everything needed to go on after a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The state.
    pub state: State,
    /// Since when.
    pub since: Timestamp,
    /// What fails, with how often and since when.
    pub failing: BTreeMap<ResourceId, Failure>,
    /// The revision that the failures belong to.
    pub revision: Option<Revision>,
    /// No request is made before this time: a cool-down, or the endpoint said so.
    pub not_before: Option<Timestamp>,
    /// A file system that reported damage, about which nobody could be asked yet.
    #[serde(default)]
    pub damage: Option<Damage>,
    /// When something that the agent itself is made of last drifted.
    #[serde(default)]
    pub own_drift: Option<Timestamp>,
}

/// One failing resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// When it first failed.
    pub since: Timestamp,
    /// Attempts so far.
    pub attempts: u32,
    /// The last error, in full.
    pub error: String,
    /// Equal for equal causes on other hosts.
    pub signature: String,
    /// Whether it could only not be observed; such a failure never leads to a request.
    pub indeterminate: bool,
    /// When it was last seen to be fought over, if that is the failure: it ends with the fight, not with a repair.
    #[serde(default)]
    pub contested_at: Option<Timestamp>,
    /// Whether it was there, for the same cause, before the agent ended unasked and was started again.
    #[serde(default)]
    pub outlived_restart: bool,
}

/// Where the host stands. Each variant says who enters it and who leaves it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "name")]
pub enum State {
    /// No full run has ended under the revision in force. Entered at start and by a new revision; left by the first full run.
    Unknown,
    /// Everything is in sync. Entered by a full run without failures; left by the first failure.
    Converged,
    /// Something fails and is retried. Left when it no longer fails, or when both give-up limits have passed.
    Degraded,
    /// The newest revision fails here, the last good one is in force and holds. Left by a newer revision, or by failing as well.
    OnLastGood {
        /// The revision that failed.
        bad: Revision,
    },
    /// Given up, and not asking (again) before `not_before`. Also entered by a fight that does not end and by a damaged file
    /// system while nobody may be asked. Left by convergence or by asking.
    Failing,
    /// A reimage has been asked for. Left by the endpoint's answer, or by convergence (withdrawn).
    Requested(Request),
    /// The endpoint granted it; one more full run decides whether it is still needed.
    Granted(Request),
    /// Drain hooks run. Left when they end. Nothing is withdrawn here: the grant ends by itself.
    Draining(Request),
    /// The endpoint has been told that the host is ready. Left only by the endpoint's refusal; success ends this incarnation.
    HandedOver(Request),
}

/// The words for all states, as [`Health::word`] gives them.
pub const WORDS: [&str; 9] =
    ["unknown", "converged", "degraded", "on_last_good", "failing", "requested", "granted", "draining", "handed_over"];

/// An open reimage request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen here, one for its life.
    pub id: String,
    /// Why.
    pub reason: Reason,
    /// One sentence for a person.
    pub summary: String,
}

/// Why a reimage is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Convergence failed past both give-up limits.
    Failed,
    /// A resource with `on_drift = "reimage"` drifted.
    Tampered,
    /// A resource is fought over and the fight does not end.
    Flapping,
    /// A file system reported damage.
    FileSystem,
    /// A person asked.
    Operator,
}

impl Reason {
    /// The wire name.
    pub fn as_str(self) -> &'static str {
        match self {
            // The protocol has no word of its own for a damaged file system; the summary says it.
            Self::Failed | Self::FileSystem => "failed",
            Self::Tampered => "tampered",
            Self::Flapping => "flapping",
            Self::Operator => "operator",
        }
    }

    /// Whether convergence makes the request pointless. A host that was tampered with stays suspect, what a damaged file
    /// system holds can no longer be told, and a person meant it.
    fn ends_with_convergence(self) -> bool {
        match self {
            Self::Failed | Self::Flapping => true,
            Self::Tampered | Self::FileSystem | Self::Operator => false,
        }
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A run ended.
    Report {
        /// What it did.
        report: &'a RunReport,
        /// Resources with `on_drift = "reimage"` that drifted in it.
        tampered: Vec<ResourceId>,
        /// The last revision that converged here, if any.
        last_good: Option<&'a Revision>,
        /// Whether a request may be made at all now: an endpoint is configured, nothing is paused, the mode is `enforce`.
        may_ask: MayAsk,
    },
    /// What is fought over now, and what no longer is.
    Fights {
        /// Under way.
        fights: &'a [Contested],
        /// Over since the last time.
        ended: &'a [ResourceId],
        /// Whether a request may be made.
        may_ask: MayAsk,
    },
    /// A file system reported damage.
    FileSystemError {
        /// The device's name, such as `vda1`.
        device: &'a str,
        /// One sentence for a person.
        what: &'a str,
        /// Whether a request may be made.
        may_ask: MayAsk,
    },
    /// A file system reports no damage, or none any more.
    FileSystemSound {
        /// The device's name.
        device: &'a str,
    },
    /// Something that the agent itself is made of drifted and was put back.
    OwnDrift {
        /// What, at least one.
        resources: &'a [ResourceId],
        /// Whether a request may be made.
        may_ask: MayAsk,
    },
    /// The agent ended unasked and was started again, under the same kernel.
    Restarted,
    /// A change of the revision in force was not confirmed, and was put back.
    Unconfirmed {
        /// The revision.
        revision: &'a Revision,
        /// The last revision that converged here, if any.
        last_good: Option<&'a Revision>,
        /// What, and why, for a person.
        summary: String,
    },
    /// Another revision is in force.
    NewRevision(&'a Revision),
    /// The endpoint answered about the request with this id.
    Answer {
        /// Of which request.
        request: &'a str,
        /// What it said.
        answer: Answer,
    },
    /// A person asked for a reimage.
    Operator {
        /// Their reason.
        reason: String,
    },
    /// All drain hooks have ended well.
    Drained,
    /// A drain hook failed or took too long; the hand-over is called off.
    DrainFailed {
        /// Which, and how.
        error: String,
    },
}

/// Whether a request may be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayAsk {
    /// Yes.
    Yes,
    /// No endpoint, a pause, or noop.
    No,
}

/// What the endpoint says of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Known, undecided.
    Open,
    /// Granted: drain now.
    Granted,
    /// Denied, expired, failed, or anything else that ends it without a reimage.
    Ended {
        /// The endpoint's words.
        why: String,
        /// Not to ask again before.
        retry_after: Option<Timestamp>,
    },
}

/// What the caller is to do, after persisting the new state.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Effect {
    /// Put the last good revision in force; alert that `bad` fails here.
    RollBack {
        /// The revision that fails.
        bad: Revision,
        /// What of it fails, for a person.
        because: String,
    },
    /// Send the request, with a dossier.
    Ask(Request),
    /// Tell the endpoint that the request is withdrawn.
    Withdraw {
        /// Which.
        request: Request,
        /// Why.
        why: String,
    },
    /// Observe and converge everything once more, now.
    RunEverything,
    /// Run the drain hooks and report [`Input::Drained`] or [`Input::DrainFailed`].
    Drain(Request),
    /// Tell the endpoint that the host is ready to be replaced.
    HandOver(Request),
    /// These resources began to fail.
    AlertFailed(Vec<ResourceId>),
    /// The host is not well for another reason than a failed step.
    AlertUnhealthy(String),
    /// Nothing fails any more.
    AlertRestored,
    /// The endpoint granted the request.
    AlertGranted(Request),
    /// The request ended without a reimage.
    AlertDenied {
        /// Which.
        request: Request,
        /// The endpoint's words.
        why: String,
    },
}

impl Health {
    /// The health of a host of which nothing is known yet.
    pub fn unknown(now: Timestamp) -> Self {
        Self {
            state: State::Unknown,
            since: now,
            failing: BTreeMap::new(),
            revision: None,
            not_before: None,
            damage: None,
            own_drift: None,
        }
    }

    /// The word for the state.
    pub fn word(&self) -> &'static str {
        match self.state {
            State::Unknown => "unknown",
            State::Converged => "converged",
            State::Degraded => "degraded",
            State::OnLastGood { .. } => "on_last_good",
            State::Failing => "failing",
            State::Requested(_) => "requested",
            State::Granted(_) => "granted",
            State::Draining(_) => "draining",
            State::HandedOver(_) => "handed_over",
        }
    }

    /// The open request, if any.
    pub fn request(&self) -> Option<&Request> {
        match &self.state {
            State::Requested(r) | State::Granted(r) | State::Draining(r) | State::HandedOver(r) => Some(r),
            State::Unknown | State::Converged | State::Degraded | State::OnLastGood { .. } | State::Failing => None,
        }
    }

    /// Takes one input. `new_id` makes the id of a request, should one be made.
    pub fn next(
        mut self,
        input: Input<'_>,
        settings: &HealthSettings,
        now: Timestamp,
        new_id: impl FnOnce() -> String,
    ) -> (Self, Vec<Effect>) {
        let mut effects = Vec::new();
        match input {
            Input::NewRevision(revision) => self.take_revision(revision, now),
            Input::Unconfirmed { revision, last_good, summary } => match last_good {
                Some(good) if good != revision && self.request().is_none() => {
                    self.back_out(revision.clone(), good, summary, now, &mut effects);
                }
                Some(_) | None => effects.push(Effect::AlertUnhealthy(summary)),
            },
            Input::Fights { fights, ended, may_ask } => {
                self.take_fights((fights, ended), may_ask, settings, now, new_id, &mut effects);
            }
            Input::FileSystemError { device, what, may_ask } => {
                self.take_damage((device, what), may_ask, now, new_id, &mut effects);
            }
            Input::FileSystemSound { device } => {
                self.damage.take_if(|damage| damage.device == device);
            }
            Input::OwnDrift { resources, may_ask } => {
                self.take_own_drift(resources, may_ask, now, new_id, &mut effects);
            }
            Input::Restarted => self.failing.values_mut().for_each(|failure| failure.outlived_restart = true),
            Input::Report { report, tampered, last_good, may_ask } => {
                self.take_report(report, now, &mut effects);
                self.decide(report, &tampered, last_good, may_ask, settings, now, new_id, &mut effects);
            }
            Input::Answer { request, answer } => self.take_answer(request, answer, settings, now, &mut effects),
            Input::Operator { reason } => {
                if self.request().is_none() {
                    let request = Request { id: new_id(), reason: Reason::Operator, summary: reason };
                    self.ask(request, now, &mut effects);
                }
            }
            Input::Drained => {
                if let State::Draining(request) = &self.state {
                    let request = request.clone();
                    self.enter(State::HandedOver(request.clone()), now);
                    effects.push(Effect::HandOver(request));
                }
            }
            Input::DrainFailed { error } => {
                if let State::Draining(request) = &self.state {
                    let request = request.clone();
                    self.not_before = Some(later(now, settings.cool_down));
                    self.enter(State::Failing, now);
                    effects.push(Effect::Withdraw { request, why: format!("the drain failed: {error}") });
                }
            }
        }
        (self, effects)
    }

    fn enter(&mut self, state: State, now: Timestamp) {
        self.state = state;
        self.since = now;
    }

    /// Failures belong to a revision: a new one starts with none. An open request outlives it.
    fn take_revision(&mut self, revision: &Revision, now: Timestamp) {
        if self.revision.as_ref() == Some(revision) {
            return;
        }
        self.revision = Some(revision.clone());
        self.failing.clear();
        match self.state {
            State::Unknown | State::Converged | State::Degraded | State::OnLastGood { .. } | State::Failing => {
                self.enter(State::Unknown, now);
            }
            State::Requested(_) | State::Granted(_) | State::Draining(_) | State::HandedOver(_) => {}
        }
    }

    fn ask(&mut self, request: Request, now: Timestamp, effects: &mut Vec<Effect>) {
        self.enter(State::Requested(request.clone()), now);
        effects.push(Effect::Ask(request));
    }

    fn withdraw(&mut self, request: Request, settings: &HealthSettings, now: Timestamp, effects: &mut Vec<Effect>) {
        self.not_before = Some(later(now, settings.cool_down));
        self.enter(State::Converged, now);
        let why = match request.reason {
            Reason::Flapping => "nobody fights over it any more",
            Reason::Failed | Reason::Tampered | Reason::FileSystem | Reason::Operator => "the host converged after all",
        };
        effects.push(Effect::Withdraw { request, why: why.to_owned() });
        effects.push(Effect::AlertRestored);
    }

    /// An answer about another request than the open one is ignored: the endpoint's replies are not trusted to be fresh.
    fn take_answer(
        &mut self,
        about: &str,
        answer: Answer,
        settings: &HealthSettings,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(request) = self.request().filter(|r| r.id == about).cloned() else { return };
        match answer {
            Answer::Open => {}
            Answer::Granted => {
                if matches!(self.state, State::Requested(_)) {
                    self.enter(State::Granted(request.clone()), now);
                    effects.push(Effect::AlertGranted(request));
                    effects.push(Effect::RunEverything);
                }
            }
            Answer::Ended { why, retry_after } => {
                self.not_before = Some(retry_after.unwrap_or_else(|| later(now, settings.cool_down)));
                let state = if self.failing.is_empty() { State::Unknown } else { State::Failing };
                self.enter(state, now);
                effects.push(Effect::AlertDenied { request, why });
                effects.push(Effect::RunEverything);
            }
        }
    }
}

/// `time + span`, saturating.
fn later(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| time.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
