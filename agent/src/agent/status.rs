//! What `rekindle status` shows: one value, published by the worker after every change and answered from memory, so that
//! a run that takes minutes never keeps an operator waiting.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::converge::DebtReport;
use crate::converge::beside::Beside;
use crate::record::Orphan;
use crate::resource::ResourceId;
use crate::spool::{CourierState, FetchResult};

/// The state of the agent and its host. Its JSON is stable; fields are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Format version, 1.
    pub version: u32,
    /// Version of the agent.
    pub agent_version: String,
    /// Process id of the running agent; `None` when the state was read from disk.
    pub pid: Option<u32>,
    /// When the agent started.
    pub started: Option<Timestamp>,
    /// The host's name.
    pub host: String,
    /// `enforce` or `noop`.
    pub mode: String,
    /// The policy in force.
    pub policy: Option<PolicyStatus>,
    /// The newest revision that was refused, and why.
    pub refused: Option<Refused>,
    /// Health.
    pub health: HealthStatus,
    /// Resources by their last verdict.
    pub resources: Counts,
    /// Resources that are not in sync, with the reason.
    pub out_of_sync: BTreeMap<ResourceId, String>,
    /// Restarts and reloads owed.
    pub debts: Vec<DebtReport>,
    /// Pauses in force.
    pub pauses: Vec<PauseStatus>,
    /// Paths that are not watched by events, with the reason. Empty is good.
    pub degraded_watches: Vec<String>,
    /// Declared paths.
    pub n_watched: usize,
    /// The same paths, by how changes of them are noticed.
    #[serde(default)]
    pub watches: WatchCounts,
    /// Files that the guard puts back at once, now.
    #[serde(default)]
    pub n_guarded: usize,
    /// Directories with rules for what is beneath them that hold in subdirectories as well, where no event is looked for: full
    /// scans find what differs there.
    #[serde(default)]
    pub scanned_trees: Vec<ResourceId>,
    /// Directories whose recursive purge keeps things by name, wherever they are: full scans find what comes beside those in a
    /// directory that nobody declares.
    #[serde(default)]
    pub scanned_strays: Vec<ResourceId>,
    /// What the agent does right now; empty when idle.
    pub activity: String,
    /// The last run.
    pub last_run: Option<LastRun>,
    /// When everything that the policy in force declares was last looked at: when the last run over everything that came to its
    /// end began. `None` until there was one.
    #[serde(default)]
    pub verified: Option<Timestamp>,
    /// Repairs since the agent started.
    pub n_repairs: u64,
    /// Messages that wait for delivery.
    pub outbox: usize,
    /// When the oldest of them was queued.
    #[serde(default)]
    pub outbox_oldest: Option<Timestamp>,
    /// The last pull of the policy.
    pub fetch: Option<FetchResult>,
    /// Delivery, as the courier last reported it.
    pub courier: Option<CourierState>,
    /// Resources that somebody keeps changing: they are repaired ever more slowly.
    #[serde(default)]
    pub contested: Vec<ContestedStatus>,
    /// Changes that wait for a proof that an operator can still get in.
    #[serde(default)]
    pub confirmations: Vec<ConfirmationStatus>,
    /// How many resources an earlier revision declared and the one in force does not.
    #[serde(default)]
    pub n_orphans: usize,
    /// The first hundred of them.
    #[serde(default)]
    pub orphans: Vec<Orphan>,
    /// What a package manager laid beside declared files, as the last full scan saw it: the first hundred.
    #[serde(default)]
    pub beside: Vec<Beside>,
    /// Since when there is too much drift to follow change by change, so that everything is looked at in single passes.
    #[serde(default)]
    pub storm_since: Option<Timestamp>,
    /// Why the record is in memory alone, if it is: nothing is put back at once, no change is made that has to be confirmed, and
    /// nothing that was there is replaced unless it could be kept.
    #[serde(default)]
    pub record_in_memory: Option<String>,
    /// What went wrong inside the agent without stopping it, newest last.
    pub warnings: Vec<String>,
}

/// A change that waits for its proof.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfirmationStatus {
    /// What was changed.
    pub resource: ResourceId,
    /// Until when it may come; absent while the run is not over.
    pub until: Option<Timestamp>,
    /// What proves it, in words.
    pub by: String,
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Its name.
    pub name: String,
    /// Its revision.
    pub revision: String,
    /// When it was accepted.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Who signed it, when that was checked.
    pub signer: Option<String>,
    /// The last revision that converged here.
    pub last_good: Option<String>,
}

/// A revision that was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Which.
    pub revision: String,
    /// Why, in full.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Health, for people and machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// The word for the state.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
    /// What fails.
    pub failing: BTreeMap<ResourceId, FailureStatus>,
    /// Id of the open reimage request.
    pub request: Option<String>,
    /// A file system that reported damage, about which nobody could be asked yet, in one sentence.
    #[serde(default)]
    pub damage: Option<String>,
}

/// One failing resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailureStatus {
    /// When it first failed.
    pub since: Timestamp,
    /// Attempts so far.
    pub attempts: u32,
    /// The last error, in full.
    pub error: String,
}

/// Resources by their last verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// In the policy.
    pub total: usize,
    /// In sync.
    pub in_sync: usize,
    /// Out of sync and left alone, by policy, mode or pause.
    pub drifted: usize,
    /// Out of sync, and accepted for a while.
    #[serde(default)]
    pub waived: usize,
    /// Could not be put in sync.
    pub failed: usize,
    /// Could not be observed.
    pub indeterminate: usize,
    /// Blocked by another.
    pub skipped: usize,
}

/// A resource that somebody keeps changing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContestedStatus {
    /// Which.
    pub resource: ResourceId,
    /// Since when its free repairs are used up.
    pub since: Timestamp,
    /// Time between two repairs, in seconds.
    pub every_s: u64,
    /// Repairs since it began to look like a fight.
    pub n_repairs: u32,
    /// Who was seen to change it, a unit or a program, and how often. At most 16.
    pub actors: BTreeMap<String, u32>,
    /// One sentence: who, what the policy wants, what it is changed to.
    pub summary: String,
}

/// Paths by how changes of them are noticed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchCounts {
    /// By events that say who did it.
    pub fanotify: usize,
    /// By events.
    pub inotify: usize,
    /// By looking every few seconds.
    pub polled: usize,
    /// Only by the full scan.
    pub blind: usize,
}

/// One pause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PauseStatus {
    /// Its number, for `rekindle resume`.
    pub id: i64,
    /// When it ends.
    pub until: Timestamp,
    /// Who asked.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Which resources; empty means all.
    pub only: Vec<ResourceId>,
}

/// The last run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastRun {
    /// When it began.
    pub started: Timestamp,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// Whether it looked at everything.
    pub full: bool,
    /// Resources that it changed.
    pub changed: usize,
    /// Resources that failed in it.
    pub failed: usize,
}

impl Status {
    /// Before anything is known.
    pub(super) fn first(settings: &Settings) -> Self {
        let now = Timestamp::now();
        Self {
            version: 1,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: Some(std::process::id()),
            started: Some(now),
            host: String::new(),
            mode: format!("{:?}", settings.mode).to_lowercase(),
            policy: None,
            refused: None,
            health: HealthStatus {
                state: "unknown".to_owned(),
                since: now,
                failing: BTreeMap::new(),
                request: None,
                damage: None,
            },
            resources: Counts::default(),
            out_of_sync: BTreeMap::new(),
            debts: Vec::new(),
            pauses: Vec::new(),
            degraded_watches: Vec::new(),
            n_watched: 0,
            watches: WatchCounts::default(),
            n_guarded: 0,
            scanned_trees: Vec::new(),
            scanned_strays: Vec::new(),
            activity: String::new(),
            last_run: None,
            verified: None,
            n_repairs: 0,
            outbox: 0,
            outbox_oldest: None,
            fetch: None,
            courier: None,
            contested: Vec::new(),
            confirmations: Vec::new(),
            n_orphans: 0,
            orphans: Vec::new(),
            beside: Vec::new(),
            storm_since: None,
            record_in_memory: None,
            warnings: Vec::new(),
        }
    }

    /// The line that `systemctl status` shows.
    pub(super) fn one_line(&self) -> String {
        match &self.policy {
            None => "no policy yet".to_owned(),
            Some(policy) => format!(
                "{}: {} of {} resources in sync under {} {}{}{}{}",
                self.health.state,
                self.resources.in_sync,
                self.resources.total,
                policy.name,
                policy.revision.get(..12).unwrap_or(&policy.revision),
                match self.contested.as_slice() {
                    [] => String::new(),
                    [one] => format!("; {}", one.summary),
                    several => format!("; {} resources are fought over", several.len()),
                },
                if self.storm_since.is_some() { "; a storm of drift" } else { "" },
                if self.record_in_memory.is_some() { "; its record is in memory alone" } else { "" },
            ),
        }
    }
}
