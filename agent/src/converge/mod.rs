//! The verbs: observe → plan → apply → verify, as separate steps, one run at a time, on one thread.
//!
//! - [`plan`] is pure: observations and desired state in, [`plan::Plan`] out.
//! - [`apply`] carries a plan out step by step: record the intent, back up, apply, observe again, record the outcome;
//!   what depends on a failure is skipped and names it.
//! - [`health`] is pure: what a run's outcome means for the host.

use std::sync::atomic::AtomicBool;

use crate::actor::Actor;
use crate::config::Mode;
use crate::host::{Host, exec};
use crate::policy::DesiredState;
use crate::record::{Record, RecordError};
use crate::resource::{self, ResourceId, Snapshot, Verdict, chain};

mod access;
mod apply;
pub mod beside;
pub mod confirm;
mod first;
pub mod health;
mod lockout;
pub mod plan;
pub mod report;
mod secrets;

pub use apply::Validated;
pub use first::{free_paths, is_path};
pub use plan::Plan;
pub use report::{Cause, DebtReport, Outcome, ResourceReport, RunReport, Scope};
pub use secrets::SecretPaths;

/// What a run works on.
#[derive(Debug)]
pub struct Context<'a> {
    /// The managed host.
    pub host: &'a mut Host,
    /// The durable state.
    pub record: &'a mut Record,
    /// Set to end the run after the step in hand.
    pub stop: &'a AtomicBool,
}

/// What a run is asked to do.
pub struct Request<'a> {
    /// What should be.
    pub desired: &'a DesiredState,
    /// Where to look.
    pub scope: Scope,
    /// Why.
    pub cause: Cause,
    /// Whether drift is repaired.
    pub mode: Mode,
    /// Why a resource is to be reported rather than repaired now, if so: a pause, or the back-off of a fight.
    pub hold: &'a dyn Fn(&ResourceId) -> Option<String>,
    /// Makes sure that nobody else works on a resource until the run is over.
    pub claim: &'a dyn Fn(&ResourceId) -> Claimed,
    /// Who was seen at a resource since it was last looked at.
    pub seen: &'a dyn Fn(&ResourceId) -> Option<Actor>,
}

/// Whether somebody else may have worked on a resource until it was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Claimed {
    /// It has to be looked at again.
    FromAnother,
    /// Nobody did.
    FromNobody,
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("revision", self.desired.revision())
            .field("scope", &self.scope)
            .field("cause", &self.cause)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// What is remembered of a host, for whoever only plans.
#[derive(Debug, Clone, Copy)]
pub enum Memory<'a> {
    /// Nothing was ever recorded.
    Nothing,
    /// What the record says.
    Record(&'a Record),
    /// Something, which cannot be read.
    Unreadable(&'a RecordError),
}

/// Holds nothing.
pub fn hold_nothing(_resource: &ResourceId) -> Option<String> {
    None
}

/// Where no guard works beside the run.
pub fn claim_from_nobody(_resource: &ResourceId) -> Claimed {
    Claimed::FromNobody
}

/// Where nobody watches who does something.
pub fn nobody_seen(_resource: &ResourceId) -> Option<Actor> {
    None
}

/// Looks, compares and plans. Changes nothing, neither on the host nor in the record.
///
/// With [`Scope::Only`], what the named resources require is planned too where it is out of sync. Every resource is seen as
/// it is now, so a file of a user that an earlier step will make is shown with the owner that it will get.
pub fn observe_and_plan(host: &Host, memory: Memory<'_>, request: &Request<'_>) -> Plan {
    exec::set_mask(request.desired.mask());
    let secrets = secrets::SecretPaths::of(memory);
    let desired = request.desired;
    let mut snapshot = Snapshot::new();
    let targets = apply::targets(&request.scope);
    let selected = targets.map(|targets| {
        let mut selected = targets.clone();
        for resource in targets.iter().filter_map(|id| desired.get(id)) {
            apply::add_requirements(desired, resource, &mut selected);
        }
        selected
    });
    let mut findings = Vec::new();
    let cleared = lockout::Cleared::of(memory);
    let mut after = lockout::After::default();
    let mut postponed = Vec::new();
    for resource in desired.resources() {
        if selected.as_ref().is_some_and(|selected| !selected.contains(&resource.id)) {
            continue;
        }
        let (sighting, mut verdict) = apply::look(host, &mut snapshot, desired, resource);
        secrets.conceal(resource, &mut verdict);
        let is_target = targets.is_none_or(|targets| targets.contains(&resource.id));
        if !is_target && verdict == Verdict::InSync {
            continue;
        }
        // In noop everything is left alone; a plan that said so at each step would say nothing.
        let held = match request.mode {
            Mode::Noop => (request.hold)(&resource.id),
            Mode::Enforce => apply::left_alone(request, resource),
        };
        let told = match &verdict {
            Verdict::Drift(drift) => apply::only_told(drift),
            Verdict::InSync | Verdict::Indeterminate(_) => None,
        };
        let held = told.or(held).or_else(|| resource::excess(&resource.desired, &sighting));
        let refused = || resource::refusal(&resource.desired, &sighting).map(|(why, _)| why);
        let held = held.or_else(refused);
        let wants_a_look = matches!(verdict, Verdict::Drift(_))
            && held.is_none()
            && cleared.wants_a_look(desired.lock_out(), request.cause, desired.revision(), resource);
        let mut refuses =
            || lockout::refuses(host, &mut snapshot, desired.lock_out(), &mut after, (resource, &sighting));
        if wants_a_look && refuses().is_some() {
            postponed.push((findings.len(), resource, sighting));
        }
        findings.push(plan::Finding {
            resource,
            verdict,
            held,
            validator: desired.validator(&resource.id),
            runs: desired.owes_runs(&resource.id),
        });
    }
    for (index, resource, sighting) in postponed {
        let why = lockout::refuses(host, &mut snapshot, desired.lock_out(), &mut after, (resource, &sighting));
        if let Some(finding) = findings.get_mut(index) {
            finding.held = why;
        }
    }
    let debts = match memory {
        Memory::Nothing => Ok(Vec::new()),
        Memory::Record(record) => record.debts().map_err(|error| chain(&error)),
        Memory::Unreadable(error) => Err(chain(error)),
    };
    let looked_at = desired.resources().iter().filter(|r| targets.is_none_or(|targets| targets.contains(&r.id)));
    let beside = beside::look_at(&host.root, desired, looked_at);
    let concealed = secrets.doubt().map(str::to_owned);
    let mut plan = Plan { beside, ..Plan::new(desired.revision().clone(), request.cause, findings, debts, concealed) };
    // They go first.
    plan.steps.splice(0..0, apply::strays::steps(&host.root, request));
    plan
}

/// Converges once: observe → plan → apply → verify for each resource, requirements first, then pay what is owed.
///
/// A run that finds everything in sync writes nothing, and its report has run 0.
pub fn converge(context: &mut Context<'_>, request: &Request<'_>) -> RunReport {
    apply::run(context, request)
}

#[cfg(test)]
mod tests;
