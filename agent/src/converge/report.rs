//! What one run did: the last type of the pipeline.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::policy::Revision;
use crate::resource::{Action, Change, ResourceId};

/// Why a run happens. It becomes the cause of every step in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A revision new to this host: changes are intentional.
    NewRevision,
    /// The revision is unchanged: changes are corrective.
    Drift,
    /// A person ran `rekindle apply`.
    Operator,
}

/// Which resources a run looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Everything,
    /// These, and what is owed because of them.
    Only(BTreeSet<ResourceId>),
}

/// The outcome for one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// It was in sync.
    Unchanged,
    /// It was out of sync, a step was applied, and a fresh observation found it in sync.
    Changed {
        /// What differed.
        changes: Vec<Change>,
        /// The verb.
        action: Action,
    },
    /// It is out of sync and policy or mode says to leave it (`on_drift`, noop, a pause).
    Reported {
        /// What differs.
        changes: Vec<Change>,
        /// What a step would have done.
        action: Action,
        /// Why it was left, such as "on_drift = \"report\"" or "paused until 14:00 by ops".
        why: String,
    },
    /// It could not be put in sync.
    Failed {
        /// What differs.
        changes: Vec<Change>,
        /// The whole error chain.
        error: String,
        /// A short text that is equal for equal causes on other hosts: operation and error class, no ids.
        signature: String,
    },
    /// It could not be observed.
    Indeterminate {
        /// Why.
        reason: String,
    },
    /// Not attempted, because something that it requires is not in sync.
    Skipped {
        /// The resource that blocked it.
        blocked_by: ResourceId,
    },
}

/// One resource in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceReport {
    /// Which.
    pub resource: ResourceId,
    /// History id of the step, when one was recorded.
    pub step: Option<i64>,
    /// Whether somebody changed it again before the step could be verified: the step took effect, and another look is due.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overtaken: bool,
    /// SHA-256, in hexadecimal, of the content that the step replaced: its name in the backup store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub displaced: Option<String>,
    /// Who made the difference, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<Box<Actor>>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What one run did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct RunReport {
    /// History id of the run.
    pub run: i64,
    /// The revision converged to.
    pub revision: Revision,
    /// Why it ran.
    pub cause: Cause,
    /// Whether every resource was looked at.
    pub full: bool,
    /// When it began.
    pub started: Timestamp,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// Every resource looked at, in order, `Unchanged` ones included; before them what the agent wrote for others that are declared
    /// no longer.
    pub resources: Vec<ResourceReport>,
    /// Restarts and reloads still owed after the run, and why they were not paid.
    pub debts: Vec<DebtReport>,
    /// Whether the run was ended early by a shutdown: what was not reached is absent from `resources`.
    pub interrupted: bool,
}

/// A restart or reload that is still owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebtReport {
    /// The unit.
    pub unit: String,
    /// `restart` or `reload`.
    pub notify: String,
    /// The resource whose change owes it.
    pub because_of: ResourceId,
    /// Why it is still owed; empty when it has simply not come up yet.
    pub error: String,
}

impl RunReport {
    /// Resources that failed.
    pub fn failed(&self) -> impl Iterator<Item = &ResourceReport> {
        self.resources.iter().filter(|r| matches!(r.outcome, Outcome::Failed { .. }))
    }

    /// Resources that changed.
    pub fn changed(&self) -> impl Iterator<Item = &ResourceReport> {
        self.resources.iter().filter(|r| matches!(r.outcome, Outcome::Changed { .. }))
    }

    /// Whether nothing failed, was skipped or is owed; what policy says to leave alone does not count against the host.
    pub fn converged_but_reports(&self) -> bool {
        !self.interrupted
            && self.debts.is_empty()
            && self
                .resources
                .iter()
                .all(|r| matches!(r.outcome, Outcome::Unchanged | Outcome::Changed { .. } | Outcome::Reported { .. }))
    }

    /// Whether everything looked at is in sync now and nothing is owed.
    pub fn converged(&self) -> bool {
        !self.interrupted
            && self.debts.is_empty()
            && self.resources.iter().all(|r| {
                matches!(
                    r.outcome,
                    Outcome::Unchanged | Outcome::Changed { .. } | Outcome::Reported { action: Action::Waive, .. }
                )
            })
    }
}
