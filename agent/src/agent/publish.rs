//! From what the worker knows to what `rekindle status` shows.

use super::status::{Counts, FailureStatus, HealthStatus, LastRun, PauseStatus, PolicyStatus};
use super::verdicts::Verdict;
use super::worker::Worker;
use crate::config;
use crate::converge::RunReport;
use crate::converge::health::Health;
use crate::record::Pause;
use crate::spool;

/// Orphans that `status` lists; the others are only counted.
const MOST_ORPHANS: usize = 100;

impl Worker {
    /// Publishes the status.
    pub(super) fn publish(&self) {
        let mut status = self.shared.status();
        status.mode = match self.settings.mode {
            config::Mode::Enforce => "enforce".to_owned(),
            config::Mode::Noop => "noop".to_owned(),
        };
        status.host.clone_from(&self.facts.fqdn);
        status.policy = self.in_force.as_ref().map(|p| PolicyStatus {
            name: p.state.name().to_owned(),
            revision: p.state.revision().as_str().to_owned(),
            since: self.revisions.in_force_since,
            signer: p.signer.clone(),
            last_good: self.revisions.last_good.as_ref().map(|r| r.as_str().to_owned()),
        });
        status.refused.clone_from(&self.revisions.refused);
        status.health = health_status(&self.health);
        let mut counts =
            Counts { total: self.in_force.as_ref().map_or(0, |p| p.state.resources().len()), ..Counts::default() };
        status.out_of_sync.clear();
        counts.in_sync = self.verdicts.n_in_sync(counts.total);
        for (id, verdict) in self.verdicts.out_of_sync() {
            let (count, why) = match verdict {
                Verdict::Waived(why) => (&mut counts.waived, why.clone()),
                Verdict::Left(why) => (&mut counts.drifted, format!("drifted, left: {why}")),
                Verdict::Failed(error) => (&mut counts.failed, format!("failed: {error}")),
                Verdict::Indeterminate(why) => (&mut counts.indeterminate, format!("could not be told: {why}")),
                Verdict::Skipped(why) => (&mut counts.skipped, format!("skipped: {why}")),
            };
            *count += 1;
            status.out_of_sync.insert(id.clone(), why);
        }
        status.resources = counts;
        status.debts.clone_from(&self.debts);
        status.pauses = self.known_pauses.values().map(pause_status).collect();
        status.n_orphans = self.orphans.len();
        status.orphans = self.orphans.iter().take(MOST_ORPHANS).cloned().collect();
        status.n_repairs = self.n_repairs;
        status.verified = self.verdicts.verified();
        let waiting = self.outbox.list().unwrap_or_default();
        status.outbox = waiting.len();
        status.outbox_oldest = waiting.first().and_then(|id| spool::queued_at(id));
    }

    pub(super) fn note_last_run(&self, report: &RunReport) {
        self.shared.status().last_run = Some(LastRun {
            started: report.started,
            duration_us: report.duration_us,
            full: report.full,
            changed: report.changed().count(),
            failed: report.failed().count(),
        });
    }
}

/// The health as `status` shows it.
pub(super) fn health_status(health: &Health) -> HealthStatus {
    HealthStatus {
        state: health.word().to_owned(),
        since: health.since,
        failing: health
            .failing
            .iter()
            .map(|(id, f)| (id.clone(), FailureStatus { since: f.since, attempts: f.attempts, error: f.error.clone() }))
            .collect(),
        request: health.request().map(|r| r.id.clone()),
        damage: health.damage.as_ref().map(|damage| damage.summary.clone()),
    }
}

/// A pause as `status` shows it.
pub(super) fn pause_status(pause: &Pause) -> PauseStatus {
    PauseStatus {
        id: pause.id,
        until: pause.until,
        by: pause.by.clone(),
        reason: pause.reason.clone(),
        only: pause.only.clone(),
    }
}
