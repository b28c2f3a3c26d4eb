//! What a run says of the host: which failures there are, and when they are reason enough to back out the revision, to ask for a
//! reimage, or to withdraw the request.

use jiff::Timestamp;

use super::{Effect, Failure, Health, MayAsk, Reason, Request, State, later};
use crate::config::HealthSettings;
use crate::converge::{DebtReport, Outcome, RunReport, lockout};
use crate::policy::Revision;
use crate::resource::{Kind, ResourceId};

/// Failing resources that are named when a revision is backed out.
const MOST_NAMED: usize = 3;

impl Health {
    /// Brings the table of failures up to date.
    pub(super) fn take_report(&mut self, report: &RunReport, now: Timestamp, effects: &mut Vec<Effect>) {
        let mut began = Vec::new();
        let mut fail = |id: &ResourceId, error: &str, signature: &str, indeterminate: bool| {
            let failure = self.failing.entry(id.clone()).or_insert_with(|| {
                began.push(id.clone());
                let (error, signature) = (String::new(), String::new());
                Failure {
                    since: now,
                    attempts: 0,
                    error,
                    signature,
                    indeterminate,
                    contested_at: None,
                    outlived_restart: false,
                }
            });
            if failure.contested_at.take().is_some() {
                (failure.since, failure.attempts) = (now, 0);
            }
            failure.attempts = failure.attempts.saturating_add(1);
            error.clone_into(&mut failure.error);
            failure.outlived_restart &= failure.signature == signature;
            signature.clone_into(&mut failure.signature);
            failure.indeterminate = indeterminate;
        };
        for resource in &report.resources {
            match &resource.outcome {
                Outcome::Failed { error, signature, .. } => fail(&resource.resource, error, signature, false),
                Outcome::Indeterminate { reason } => fail(&resource.resource, reason, "indeterminate", true),
                Outcome::Unchanged | Outcome::Changed { .. } | Outcome::Reported { .. } | Outcome::Skipped { .. } => {}
            }
        }
        let owed = |debt: &DebtReport| {
            let unit = || ResourceId::new(Kind::Service, debt.unit.strip_suffix(".service").unwrap_or(&debt.unit));
            debt.unit.parse().unwrap_or_else(|_| unit())
        };
        for debt in report.debts.iter().filter(|d| !d.error.is_empty()) {
            fail(&owed(debt), &debt.error, "debt", false);
        }
        let mended: Vec<ResourceId> = report
            .resources
            .iter()
            .filter(|r| match r.outcome {
                Outcome::Unchanged | Outcome::Changed { .. } | Outcome::Reported { .. } => true,
                Outcome::Failed { .. } | Outcome::Indeterminate { .. } | Outcome::Skipped { .. } => false,
            })
            .map(|r| r.resource.clone())
            .filter(|id| !report.debts.iter().any(|d| !d.error.is_empty() && owed(d) == *id))
            .collect();
        for id in mended {
            if self.failing.get(&id).is_some_and(|failure| failure.contested_at.is_none()) {
                self.failing.remove(&id);
            }
        }
        self.forget_fights(now);
        // A full run looked at everything that still exists: whatever it does not mention has left the policy.
        if report.full && !report.interrupted {
            let seen = |id: &ResourceId| {
                report.resources.iter().any(|r| r.resource == *id)
                    || report.debts.iter().any(|d| !d.error.is_empty() && owed(d) == *id)
            };
            self.failing.retain(|id, _| seen(id));
        }
        if !began.is_empty() {
            effects.push(Effect::AlertFailed(began));
        }
    }

    /// Decides what the failures mean now.
    #[expect(clippy::too_many_arguments, reason = "one call, split off `next` only for its length")]
    pub(super) fn decide(
        &mut self,
        report: &RunReport,
        tampered: &[ResourceId],
        last_good: Option<&Revision>,
        may_ask: MayAsk,
        settings: &HealthSettings,
        now: Timestamp,
        new_id: impl FnOnce() -> String,
        effects: &mut Vec<Effect>,
    ) {
        let settled = report.full && !report.interrupted && self.failing.is_empty() && report.converged_but_reports();
        if let (Some(first), None, MayAsk::Yes) = (tampered.first(), self.request(), may_ask)
            && self.not_before.is_none_or(|t| t <= now)
        {
            let summary = format!("{first} drifted, and its policy says that the host is then no longer to be trusted");
            return self.ask(Request { id: new_id(), reason: Reason::Tampered, summary }, now, effects);
        }
        if self.damage.is_some() && self.can_ask(may_ask, now) {
            self.ask_because_of_damage(may_ask, now, new_id, effects);
            return;
        }
        match self.state.clone() {
            State::Unknown | State::Converged | State::Degraded | State::Failing => {
                if self.is_well() {
                    let was_failing = matches!(self.state, State::Degraded | State::Failing);
                    if settled || was_failing {
                        if !matches!(self.state, State::Converged) {
                            self.enter(State::Converged, now);
                        }
                        if was_failing {
                            effects.push(Effect::AlertRestored);
                            // What was skipped because of the failure has its turn now.
                            effects.push(Effect::RunEverything);
                        }
                    }
                    return;
                }
                if matches!(self.state, State::Unknown | State::Converged) {
                    self.enter(if self.damage.is_some() { State::Failing } else { State::Degraded }, now);
                }
                let Some(worst) = self.given_up(settings, now, |_| true) else { return };
                match last_good {
                    // No other revision makes room on a disk, or a file system writable.
                    Some(good) if *good != report.revision && !self.is_host_fault(&worst) => {
                        let failing: Vec<String> = self
                            .failing
                            .iter()
                            .take(MOST_NAMED)
                            .map(|(id, failure)| format!("{id}: {}", failure.error))
                            .collect();
                        let more = self.failing.len().saturating_sub(MOST_NAMED);
                        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
                        self.back_out(report.revision.clone(), good, failing.join("; ") + &more, now, effects);
                    }
                    Some(_) | None => match self.given_up_for_good(settings, now) {
                        Some(worst) => self.give_up(&worst, may_ask, now, new_id, effects),
                        None if matches!(self.state, State::Failing) => {}
                        None => self.enter(State::Failing, now),
                    },
                }
            }
            State::OnLastGood { .. } => {
                if let Some(worst) = self.given_up_for_good(settings, now) {
                    self.give_up(&worst, may_ask, now, new_id, effects);
                }
            }
            State::Requested(request) => {
                if request.reason.ends_with_convergence() && self.failing.is_empty() {
                    self.withdraw(request, settings, now, effects);
                }
            }
            State::Granted(request) => {
                if !report.full || report.interrupted {
                    return;
                }
                if request.reason.ends_with_convergence() && self.failing.is_empty() {
                    self.withdraw(request, settings, now, effects);
                } else {
                    self.enter(State::Draining(request.clone()), now);
                    effects.push(Effect::Drain(request));
                }
            }
            State::Draining(_) | State::HandedOver(_) => {}
        }
    }

    /// Goes back to the last good revision.
    pub(super) fn back_out(
        &mut self,
        bad: Revision,
        good: &Revision,
        because: String,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        self.failing.clear();
        self.revision = Some(good.clone());
        self.enter(State::OnLastGood { bad: bad.clone() }, now);
        effects.push(Effect::RollBack { bad, because });
    }

    /// The resource for which both limits have passed, if there is one among those that count, first such as the policy may be to
    /// blame for. What fails for the same cause after the agent was started anew is given up after as many attempts without
    /// waiting: neither time nor a restart has helped.
    fn given_up(
        &self,
        settings: &HealthSettings,
        now: Timestamp,
        counts: impl Fn(&Failure) -> bool,
    ) -> Option<ResourceId> {
        self.failing
            .iter()
            .filter(|(_, failure)| {
                counts(failure)
                    && !failure.indeterminate
                    && failure.contested_at.is_none()
                    && failure.attempts >= settings.give_up_attempts
                    && (failure.outlived_restart || later(failure.since, settings.give_up_after) <= now)
            })
            .min_by_key(|(_, failure)| is_host_fault(&failure.signature))
            .map(|(id, _)| id.clone())
    }

    /// The same, but for what a rebuilt host would refuse as well: to lock everybody out.
    fn given_up_for_good(&self, settings: &HealthSettings, now: Timestamp) -> Option<ResourceId> {
        self.given_up(settings, now, |failure| failure.signature != lockout::SIGNATURE)
    }

    fn is_host_fault(&self, resource: &ResourceId) -> bool {
        self.failing.get(resource).is_some_and(|failure| is_host_fault(&failure.signature))
    }

    fn give_up(
        &mut self,
        worst: &ResourceId,
        may_ask: MayAsk,
        now: Timestamp,
        new_id: impl FnOnce() -> String,
        effects: &mut Vec<Effect>,
    ) {
        if may_ask == MayAsk::No || self.not_before.is_some_and(|t| t > now) {
            if !matches!(self.state, State::Failing) {
                self.enter(State::Failing, now);
            }
            return;
        }
        let (attempts, error) =
            self.failing.get(worst).map_or((0, String::new()), |failure| (failure.attempts, failure.error.clone()));
        let blame = if self.is_host_fault(worst) { "a fault of the host: " } else { "" };
        let summary = format!("{blame}{worst} failed {attempts} times: {error}");
        self.ask(Request { id: new_id(), reason: Reason::Failed, summary }, now, effects);
    }
}

/// Whether a failure is the host's and no policy's: its disk is full, failing, damaged or read-only.
fn is_host_fault(signature: &str) -> bool {
    use rustix::io::Errno;
    let faults = [Errno::IO, Errno::NOSPC, Errno::ROFS, Errno::UCLEAN, Errno::DQUOT];
    signature
        .rsplit_once("errno ")
        .and_then(|(_, errno)| errno.parse().ok())
        .is_some_and(|errno: i32| faults.iter().any(|fault| fault.raw_os_error() == errno))
}
