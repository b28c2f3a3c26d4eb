//! Steps that would close the last way in: put off while anything else is to be done, then refused.

use super::{Run, left_alone, only_told, report};
use crate::converge::lockout::{self, After, Cleared};
use crate::converge::{Outcome, ResourceReport};
use crate::resource::{self, Desired, Drift, Resource, Sighting, Verdict};

impl Run<'_, '_> {
    /// Whether a resource comes after one that was put off.
    pub(super) fn waits_for_postponed(&self, resource: &Resource) -> bool {
        if self.is_last || self.postponed.is_empty() {
            return false;
        }
        let owed_by =
            if let Desired::Command(command) = &resource.desired { &*command.owed_by } else { Default::default() };
        resource.requires.iter().chain(owed_by).any(|id| self.postponed.contains(id))
    }

    /// Whether a step for it has to be looked at, because it may close a way in.
    pub(super) fn may_lock_out(&mut self, resource: &Resource) -> bool {
        let request = self.request;
        let record = &*self.context.record;
        let cleared = self.cleared.get_or_insert_with(|| Cleared::recall(record));
        cleared.wants_a_look(request.desired.lock_out(), request.cause, request.desired.revision(), resource)
    }

    /// Why a step must not be taken now, if it would close the last way in. The host is looked at as it is by now.
    pub(super) fn locks_out(&mut self, resource: &Resource, sighting: &Sighting, verdict: &Verdict) -> Option<String> {
        let Verdict::Drift(drift) = verdict else { return None };
        let is_left = only_told(drift).is_some()
            || left_alone(self.request, resource).is_some()
            || resource::excess(&resource.desired, sighting).is_some();
        if is_left || !self.may_lock_out(resource) {
            return None;
        }
        let rule = self.request.desired.lock_out();
        let step = (resource, sighting);
        lockout::refuses(self.context.host, &mut self.snapshot, rule, &mut After::default(), step)
    }

    /// Leaves a step out, and says why.
    pub(super) fn refuse(&mut self, resource: &Resource, verdict: Verdict, error: String) -> ResourceReport {
        let Verdict::Drift(drift) = verdict else { return report(&resource.id, None, Outcome::Unchanged) };
        let who = self.who(resource);
        tracing::warn!(resource = %resource.id, error = %error, "step refused");
        let step = self.note(resource, "failed", Some(&drift), &error, who.as_deref());
        // Validators have seen it in its place.
        self.forget_approvals();
        let Drift { changes, .. } = drift;
        let outcome = Outcome::Failed { changes, error, signature: lockout::SIGNATURE.to_owned() };
        ResourceReport { who, ..report(&resource.id, step, outcome) }
    }

    /// Remembers what is as it should be: its repair is not questioned again.
    pub(super) fn remember_cleared(&mut self) {
        let desired = self.request.desired;
        let is_in_sync = |outcome: &Outcome| matches!(outcome, Outcome::Unchanged | Outcome::Changed { .. });
        let in_sync = self.reports.iter().filter(|report| is_in_sync(&report.outcome));
        let in_sync = in_sync.filter_map(|report| desired.get(&report.resource));
        Cleared::add(self.context.record, desired.revision(), in_sync);
    }
}
