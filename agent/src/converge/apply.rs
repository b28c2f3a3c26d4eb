//! Carrying a plan out, one resource at a time, requirements first: which resources, in which order, and whether each may be
//! touched now. How one is put in sync is `step`.
//!
//! For each: observe; leave it when it is in sync, unknown, blocked or held; otherwise take its step.
//!
//! A failing journal never stops a convergence. This module never decides what a failure means: that is [`super::health`].

mod commands;
mod files;
mod lockout;
mod packages;
mod pay;
mod purge;
mod step;
pub(super) mod strays;
mod validate;

pub use validate::Validated;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::Instant;

use jiff::Timestamp;

use super::lockout::Cleared;
use super::secrets::{SecretPaths, Sight};
use super::{Cause, Claimed, Context, Outcome, Request, ResourceReport, RunReport, Scope};
use crate::actor::Actor;
use crate::config::Mode;
use crate::host::exec;
use crate::host::packages::provenance;
use crate::policy::DesiredState;
use crate::record::{Note, RunInfo};
use crate::resource::{
    self, Action, ChangeDetail, Desired, Drift, Kind, OnDrift, Resource, ResourceId, Sighting, Snapshot, Verdict,
};

/// What a run remembers of a look, so that nothing is read twice while nothing changes.
struct Look {
    /// How many steps had been applied by then.
    epoch: u64,
    /// `None` for what is in sync: its content is not worth the memory.
    sighting: Option<Sighting>,
    verdict: Verdict,
}

/// One run under way.
struct Run<'a, 'c> {
    context: &'a mut Context<'c>,
    request: &'a Request<'a>,
    info: RunInfo,
    snapshot: Snapshot,
    /// What the scope means; `None` for everything.
    selected: Option<BTreeSet<ResourceId>>,
    /// Steps applied so far; a look from an earlier epoch is not trusted any more.
    epoch: u64,
    looks: HashMap<ResourceId, Look>,
    verified: files::Verified<'a>,
    looked: validate::Looked,
    secrets: SecretPaths,
    reports: Vec<ResourceReport>,
    /// Index into `reports`.
    done: HashMap<ResourceId, usize>,
    /// What would have closed the last way in, and waits until everything else is done.
    postponed: BTreeSet<ResourceId>,
    /// Whether everything else is done.
    is_last: bool,
    /// Read when it is first asked for.
    cleared: Option<Cleared>,
    /// Outcomes of packages that were changed together with an earlier one.
    ahead: HashMap<ResourceId, ResourceReport>,
}

/// Converges once.
pub(super) fn run(context: &mut Context<'_>, request: &Request<'_>) -> RunReport {
    exec::set_mask(request.desired.mask());
    let secrets = SecretPaths::recall(context.record);
    let clock = Instant::now();
    let started = Timestamp::now();
    let info = RunInfo {
        id: None,
        started,
        revision: request.desired.revision().clone(),
        cause: request.cause,
        full: request.scope == Scope::Everything,
    };
    let full = info.full;
    let mut run = Run {
        context,
        request,
        info,
        snapshot: Snapshot::new(),
        selected: None,
        epoch: 0,
        looks: HashMap::new(),
        verified: files::Verified::default(),
        looked: validate::Looked::default(),
        secrets,
        reports: Vec::new(),
        done: HashMap::new(),
        postponed: BTreeSet::new(),
        is_last: false,
        cleared: None,
        ahead: HashMap::new(),
    };
    if request.mode == Mode::Enforce {
        run.remove_leftovers();
    }
    run.remove_strays();
    let interrupted = run.visit_all();
    run.remember_cleared();
    run.settle_secrets(interrupted);
    let debts = run.pay_debts(interrupted);
    // What the changes owed has been paid: from now on a proof says something.
    if let Err(e) = run.context.record.open_windows(Timestamp::now()) {
        run.context.record.note_trouble(&e);
    }
    RunReport {
        run: run.info.id.unwrap_or(0),
        revision: run.info.revision,
        cause: run.info.cause,
        full,
        started,
        duration_us: elapsed_us(clock),
        resources: run.reports,
        debts,
        interrupted,
    }
}

fn elapsed_us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Which resources a scope means, without looking at the host: `None` for all.
pub(super) fn targets(scope: &Scope) -> Option<&BTreeSet<ResourceId>> {
    match scope {
        Scope::Everything => None,
        Scope::Only(set) => Some(set),
    }
}

/// Adds everything that a resource requires, however far.
pub(super) fn add_requirements(desired: &DesiredState, resource: &Resource, selected: &mut BTreeSet<ResourceId>) {
    let mut open: Vec<&ResourceId> = resource.requires.iter().collect();
    while let Some(id) = open.pop() {
        if selected.insert(id.clone()) {
            open.extend(desired.get(id).into_iter().flat_map(|required| &required.requires));
        }
    }
}

/// Looks at one resource and compares. Parents that the policy declares are not the step's own to make.
pub(super) fn look(
    host: &crate::host::Host,
    snapshot: &mut Snapshot,
    desired: &DesiredState,
    resource: &Resource,
) -> (Sighting, Verdict) {
    let mut sighting = resource::observe(host, snapshot, &resource.desired);
    sighting
        .missing_parents
        .retain(|path| desired.get(&ResourceId::new(resource::Kind::Directory, path.to_string())).is_none());
    let verdict = resource::diff(&resource.desired, &sighting);
    (sighting, verdict)
}

/// Why a resource that is out of sync is to be left as it is, if so.
pub(super) fn left_alone(request: &Request<'_>, resource: &Resource) -> Option<String> {
    if request.mode == Mode::Noop {
        return Some("noop".to_owned());
    }
    if let Some(why) = (request.hold)(&resource.id) {
        return Some(why);
    }
    // `on_drift` speaks of drift: what a new revision or a person asks for is done.
    match (request.cause, resource.on_drift) {
        (Cause::Drift, OnDrift::Report) => Some("on_drift = \"report\"".to_owned()),
        (Cause::Drift, OnDrift::Reimage) => Some("on_drift = \"reimage\"".to_owned()),
        (Cause::Drift, OnDrift::Repair) | (Cause::NewRevision | Cause::Operator, _) => None,
    }
}

/// Why drift that no step of ours would mend is left, if it is such: the failure of a check.
pub(super) fn only_told(drift: &Drift) -> Option<String> {
    let waiver = drift.changes.iter().find(|change| change.attribute == "waiver");
    match (drift.action, waiver.map(|change| &change.detail)) {
        (Action::Waive, Some(ChangeDetail::Value { from: Some(waiver), .. })) => Some(waiver.clone()),
        (Action::Report | Action::Waive, _) => Some("it is only told of".to_owned()),
        (Action::Create | Action::Update | Action::Remove | Action::Run, _) => None,
    }
}

impl<'a> Run<'a, '_> {
    /// Visits what the scope means. Returns whether a shutdown ended it early.
    fn visit_all(&mut self) -> bool {
        let desired = self.request.desired;
        self.verify_files();
        self.selected = targets(&self.request.scope).map(|targets| self.select(targets));
        self.select_owed();
        // What may close the last way in comes last: by then it shows whether another one was opened.
        for is_last in [false, true] {
            self.is_last = is_last;
            let postponed = std::mem::take(&mut self.postponed);
            for resource in desired.resources() {
                let is_selected = self.selected.as_ref().is_none_or(|selected| selected.contains(&resource.id));
                if !is_selected || (is_last && !postponed.contains(&resource.id)) {
                    continue;
                }
                if self.context.stop.load(Ordering::SeqCst) {
                    return true;
                }
                match self.visit(resource) {
                    Some(report) => {
                        self.done.insert(resource.id.clone(), self.reports.len());
                        self.reports.push(report);
                    }
                    None => drop(self.postponed.insert(resource.id.clone())),
                }
            }
        }
        false
    }

    /// The targets, and for each that is out of sync whatever it requires.
    fn select(&mut self, targets: &BTreeSet<ResourceId>) -> BTreeSet<ResourceId> {
        let desired = self.request.desired;
        let mut selected = targets.clone();
        for resource in targets.iter().filter_map(|id| desired.get(id)) {
            if self.is_verified(&resource.id) {
                continue;
            }
            let (sighting, verdict) = self.look(resource);
            if verdict != Verdict::InSync {
                add_requirements(desired, resource, &mut selected);
            }
            let sighting = (verdict != Verdict::InSync).then_some(sighting);
            self.looks.insert(resource.id.clone(), Look { epoch: self.epoch, sighting, verdict });
        }
        selected
    }

    fn look(&mut self, resource: &Resource) -> (Sighting, Verdict) {
        let (sighting, mut verdict) = look(self.context.host, &mut self.snapshot, self.request.desired, resource);
        self.secrets.conceal(resource, &mut verdict);
        (sighting, verdict)
    }

    /// Remembers which of what was found, or put, in sync is secret.
    fn settle_secrets(&mut self, interrupted: bool) {
        let desired = self.request.desired;
        let is_in_sync = |outcome: &Outcome| matches!(outcome, Outcome::Unchanged | Outcome::Changed { .. });
        // A check that fails, or a package that cannot be told of, hides no secret.
        let may_hide = |report: &ResourceReport| desired.get(&report.resource).is_none_or(SecretPaths::looks_at);
        let all_in_sync =
            self.reports.iter().filter(|report| may_hide(report)).all(|report| is_in_sync(&report.outcome));
        // What an operator applies need not be the policy that the secrets belong to.
        let is_whole = self.info.full && self.info.cause != Cause::Operator && !interrupted && all_in_sync;
        let sight = if is_whole { Sight::Whole } else { Sight::Partial };
        let in_sync = self.reports.iter().filter(|report| is_in_sync(&report.outcome));
        self.secrets.settle(self.context.record, in_sync.filter_map(|report| desired.get(&report.resource)), sight);
    }

    /// `None` for what is put off until everything else is done.
    fn visit(&mut self, resource: &'a Resource) -> Option<ResourceReport> {
        if let Some(report) = self.ahead.remove(&resource.id) {
            return Some(report);
        }
        if self.waits_for_postponed(resource) {
            return None;
        }
        if let Some(blocked_by) = self.blocker(resource) {
            return Some(report(&resource.id, None, Outcome::Skipped { blocked_by }));
        }
        let owed = self.owed_runs(resource);
        if let Some(blocked_by) = self.unsettled_input(resource, &owed) {
            return Some(report(&resource.id, None, Outcome::Skipped { blocked_by }));
        }
        if self.is_verified(&resource.id) {
            return Some(report(&resource.id, None, Outcome::Unchanged));
        }
        let (sighting, verdict) = match self.looks.remove(&resource.id) {
            Some(Look { epoch, verdict: Verdict::InSync, .. }) if epoch == self.epoch && owed.is_empty() => {
                return Some(report(&resource.id, None, Outcome::Unchanged));
            }
            Some(Look { epoch, sighting: Some(sighting), verdict }) if epoch == self.epoch => (sighting, verdict),
            Some(_) | None => self.look(resource),
        };
        let (sighting, verdict) = self.claim(resource, sighting, verdict);
        let verdict = commands::with_debt(resource, &sighting, verdict, &owed);
        let began = Timestamp::now();
        let report = match self.locks_out(resource, &sighting, &verdict) {
            Some(_) if !self.is_last => return None,
            Some(why) => self.refuse(resource, verdict, why),
            None => self.act(resource, sighting, verdict),
        };
        self.settle_runs(resource, &owed, &report.outcome, began);
        Some(report)
    }

    /// Does what a verdict calls for.
    fn act(&mut self, resource: &'a Resource, sighting: Sighting, verdict: Verdict) -> ResourceReport {
        match verdict {
            Verdict::InSync => report(&resource.id, None, Outcome::Unchanged),
            Verdict::Indeterminate(reason) => {
                tracing::warn!(resource = %resource.id, reason = %reason, "could not be observed");
                let step = self.note(resource, "indeterminate", None, &reason, None);
                report(&resource.id, step, Outcome::Indeterminate { reason })
            }
            Verdict::Drift(drift) => {
                let why = only_told(&drift)
                    .or_else(|| left_alone(self.request, resource))
                    .or_else(|| resource::excess(&resource.desired, &sighting));
                match why {
                    Some(why) => {
                        let who = self.who(resource);
                        let step = self.note(resource, "reported", Some(&drift), &why, who.as_deref());
                        let Drift { action, changes } = drift;
                        ResourceReport { who, ..report(&resource.id, step, Outcome::Reported { changes, action, why }) }
                    }
                    None if resource.id.kind == Kind::Package => self.package_steps(resource, sighting, drift),
                    None => self.step(resource, &sighting, drift),
                }
            }
        }
    }

    /// Claims a file that is about to be worked on. The guard may have put it back since it was looked at.
    fn claim(&mut self, resource: &Resource, sighting: Sighting, verdict: Verdict) -> (Sighting, Verdict) {
        let is_due = matches!(verdict, Verdict::Drift(_)) && left_alone(self.request, resource).is_none();
        if is_due && matches!(resource.desired, Desired::File(_)) {
            match (self.request.claim)(&resource.id) {
                Claimed::FromNobody => {}
                Claimed::FromAnother => return self.look(resource),
            }
        }
        (sighting, verdict)
    }

    /// The requirement that keeps a resource from being attempted, if any.
    fn blocker(&self, resource: &Resource) -> Option<ResourceId> {
        resource.requires.iter().find(|id| self.outcome(id).is_some_and(blocks)).cloned()
    }

    fn outcome(&self, id: &ResourceId) -> Option<&Outcome> {
        self.done.get(id).and_then(|index| self.reports.get(*index)).map(|report| &report.outcome)
    }

    /// Removes the temporary files that a killed run, or a step that failed, left beside the paths it was working on.
    fn remove_leftovers(&mut self) {
        for id in self.context.record.take_interrupted() {
            let paths = self.request.desired.get(&id).map(|resource| resource.watched().paths).unwrap_or_default();
            for path in paths {
                match self.context.host.root.remove_leftovers(&path) {
                    Ok(0) => {}
                    Ok(n_removed) => tracing::info!(resource = %id, n_removed, "removed what an earlier run left"),
                    Err(e) => {
                        tracing::warn!(resource = %id, error = %e, "could not remove what an earlier run left");
                        self.context.record.note_interrupted(&id);
                    }
                }
            }
        }
    }

    /// Who made the difference. What a new revision or a person asks for is nobody's deed.
    fn who(&self, resource: &Resource) -> Option<Box<Actor>> {
        match self.request.cause {
            Cause::Drift => {}
            Cause::NewRevision | Cause::Operator => return None,
        }
        let mut actor = (self.request.seen)(&resource.id).unwrap_or_default();
        let root = &self.context.host.root;
        actor.transaction = if resource.id.kind == Kind::Package {
            // Whatever wrote to the database, the log says which transaction it was about.
            let since = self.context.record.last_change(&resource.id).unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot look up the last change");
                None
            });
            provenance::of_package(root, &resource.id.name, since)
        } else {
            provenance::of_actor(root, &actor, Timestamp::now())
        };
        (!actor.is_unknown()).then(|| Box::new(actor))
    }

    fn note(
        &mut self,
        resource: &Resource,
        outcome: &'static str,
        drift: Option<&Drift>,
        error: &str,
        who: Option<&Actor>,
    ) -> Option<i64> {
        let note = Note {
            resource: &resource.id,
            outcome,
            action: drift.map(|drift| drift.action),
            changes: drift.map_or(&[], |drift| &drift.changes),
            error,
            who,
            time: Timestamp::now(),
        };
        match self.context.record.note(&mut self.info, &note) {
            Ok(step) => Some(step),
            Err(e) => {
                self.context.record.note_trouble(&e);
                None
            }
        }
    }
}

/// Whether what requires a resource of this outcome must not be attempted. What policy says to leave alone does not block.
fn blocks(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Failed { .. } | Outcome::Indeterminate { .. } | Outcome::Skipped { .. } => true,
        Outcome::Unchanged | Outcome::Changed { .. } | Outcome::Reported { .. } => false,
    }
}

fn report(resource: &ResourceId, step: Option<i64>, outcome: Outcome) -> ResourceReport {
    ResourceReport { resource: resource.clone(), step, overtaken: false, displaced: None, who: None, outcome }
}
