//! Which files the guard may put back by itself, and what is told of those that it put back.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::alerts::MAX_LISTED;
use super::revisions::InForce;
use super::worker::Worker;
use crate::config::Mode;
use crate::converge::{Outcome, RunReport, Validated};
use crate::guard::{Arming, Declared, Permit, Repaired};
use crate::resource::{Desired, Ensure, Names, OnDrift, Resource, ResourceId, Snapshot};
use crate::spool::OutgoingBody;

impl Worker {
    /// Guards the files that a run saw in sync, and that nothing and nobody says to leave alone.
    pub(super) fn arm_guard(&self, permit: Permit, in_force: &InForce, report: &RunReport) {
        // The guard records on its own, and what it displaced must not be forgotten.
        if self.settings.mode != Mode::Enforce || report.interrupted || !self.record.is_durable() {
            return;
        }
        let mut snapshot = Snapshot::new();
        let validated =
            if in_force.state.has_validators() { Validated::recall(&self.record) } else { Validated::default() };
        let declared = report
            .resources
            .iter()
            .filter(|entry| matches!(entry.outcome, Outcome::Unchanged | Outcome::Changed { .. }))
            .filter_map(|entry| in_force.state.get(&entry.resource))
            .filter(|resource| !self.is_paused(&resource.id))
            // What was found in place may be wrong; what was never looked at is not put back without a look.
            .filter(|resource| validated.covers(&in_force.state, resource))
            .filter_map(|resource| self.declared(resource, &mut snapshot))
            .collect::<Vec<_>>();
        let arming = if report.full { Arming::Only } else { Arming::Besides };
        if arming == Arming::Only || !declared.is_empty() {
            self.guard.arm(permit, &report.revision, declared, arming);
        }
    }

    fn is_paused(&self, resource: &ResourceId) -> bool {
        self.known_pauses.values().any(|pause| pause.only.is_empty() || pause.only.contains(resource))
    }

    /// What the guard has to know of a resource; `None` for what it cannot guard.
    fn declared(&self, resource: &Resource, snapshot: &mut Snapshot) -> Option<Declared> {
        let Desired::File(file) = &resource.desired else { return None };
        let Ensure::Present(spec) = &file.ensure else { return None };
        if resource.on_drift != OnDrift::Repair || !spec.care.is_simple(spec) {
            return None;
        }
        // A run that is owed is made durable before the change, which takes an ordinary run.
        if self.in_force.as_ref().is_some_and(|policy| !policy.state.owes_runs(&resource.id).is_empty()) {
            return None;
        }
        // Whoever cannot be looked up now is left to ordinary runs, which say why.
        let names = Names::resolve(&self.host, snapshot, &spec.ownership).ok()?;
        Some(Declared {
            resource: resource.id.clone(),
            path: file.path.clone(),
            spec: spec.clone(),
            names,
            notifies: resource.notifies.to_vec(),
        })
    }

    /// Takes note of what the guard put back, and tells people.
    pub(super) fn take_repairs(&mut self, repairs: &[Repaired]) {
        let now = Timestamp::now();
        self.n_repairs = self.n_repairs.saturating_add(u64::try_from(repairs.len()).unwrap_or(0));
        repairs.iter().for_each(|repaired| self.shared.numbers.by_guard.add(repaired.took_us));
        self.note_own_drift(repairs.iter().map(|repaired| &repaired.resource));
        // Each is told: what comes in a burst was not one run's doing, whose report would say the same.
        for some in repairs.chunks(MAX_LISTED) {
            if let Some(alert) = self.speaker().put_back(some, now) {
                self.enqueue(OutgoingBody::Alert(alert));
            }
        }
        for repaired in repairs.iter().filter(|repaired| repaired.step.is_none()) {
            self.record.owe_unsaved(&repaired.notifies, &repaired.resource);
        }
        let resources: BTreeSet<&ResourceId> = repairs.iter().map(|repaired| &repaired.resource).collect();
        for resource in resources {
            self.verdicts.put_back(resource);
        }
        let steps: Vec<i64> = repairs.iter().filter_map(|repaired| repaired.step).collect();
        self.note_told(&steps);
        self.look_at_reserve();
    }
}
