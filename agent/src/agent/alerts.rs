//! From what happened to what is said about it. Pure: nothing here sends anything.

use jiff::Timestamp;

use crate::converge::{Cause, Outcome, ResourceReport, RunReport};
use crate::guard::Repaired;
use crate::policy::Revision;
use crate::record::HistoryEntry;
use crate::resource::ResourceId;
use crate::spool::{Alert, AlertResource, Event};

/// How many resources one alert lists; of a run that changed more, the others are only counted.
pub const MAX_LISTED: usize = 100;

/// Who speaks: filled into every alert.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// The host's name.
    pub host: String,
    /// The revision in force.
    pub revision: Option<Revision>,
}

impl Speaker {
    /// An alert about resources, or about none.
    pub fn alert(&self, event: Event, summary: String, mut resources: Vec<AlertResource>, now: Timestamp) -> Alert {
        resources.truncate(MAX_LISTED);
        Alert {
            version: 1,
            time: now,
            host: self.host.clone(),
            event,
            revision: self.revision.as_ref().map(|r| r.as_str().to_owned()),
            summary,
            resources,
        }
    }

    /// The repairs of a run, in one alert; `None` when it repaired nothing. Intentional changes are no drift.
    pub fn repaired(&self, report: &RunReport, now: Timestamp) -> Option<Alert> {
        if report.cause == Cause::NewRevision {
            return None;
        }
        let repaired: Vec<AlertResource> = report.changed().map(|r| resource(r, report.cause)).collect();
        let summary = summarise("repaired", &repaired)?;
        Some(self.alert(Event::DriftRepaired, summary, repaired, now))
    }

    /// What the guard put back, in one alert; `None` when it is nothing.
    pub fn put_back(&self, repairs: &[Repaired], now: Timestamp) -> Option<Alert> {
        let repaired: Vec<AlertResource> = repairs
            .iter()
            .map(|repair| AlertResource {
                resource: repair.resource.clone(),
                cause: cause_word(Cause::Drift).to_owned(),
                outcome: "changed".to_owned(),
                error: None,
                changes: repair.changes.clone(),
                history: repair.step,
                who: repair.actor.clone(),
            })
            .collect();
        let summary = summarise("repaired", &repaired)?;
        Some(self.alert(Event::DriftRepaired, summary, repaired, now))
    }

    /// Drift that is left alone, for the resources in `fresh`; `None` when there is none.
    pub fn reported(&self, report: &RunReport, fresh: &[ResourceId], now: Timestamp) -> Option<Alert> {
        let left: Vec<AlertResource> = report
            .resources
            .iter()
            .filter(|r| fresh.contains(&r.resource))
            .map(|r| resource(r, report.cause))
            .collect();
        let summary = summarise("found drift, left as it is, in", &left)?;
        Some(self.alert(Event::DriftReported, summary, left, now))
    }

    /// Resources that began to fail.
    pub fn failed(&self, report: &RunReport, began: &[ResourceId], now: Timestamp) -> Option<Alert> {
        let mut failed: Vec<AlertResource> = report
            .resources
            .iter()
            .filter(|r| began.contains(&r.resource))
            .map(|r| resource(r, report.cause))
            .collect();
        for debt in report.debts.iter().filter(|d| !d.error.is_empty()) {
            failed.push(AlertResource {
                resource: debt.because_of.clone(),
                cause: cause_word(report.cause).to_owned(),
                outcome: "failed".to_owned(),
                error: Some(format!("{} of {} is owed: {}", debt.notify, debt.unit, debt.error)),
                changes: Vec::new(),
                history: None,
                who: None,
            });
        }
        let summary = summarise("cannot converge", &failed)?;
        Some(self.alert(Event::ConvergenceFailed, summary, failed, now))
    }

    /// Resources that somebody began to fight over, each with a sentence about who and what; `None` when there are none.
    pub fn contested(&self, fights: &[(ResourceId, String)], now: Timestamp) -> Option<Alert> {
        let (_, first) = fights.first()?;
        let summary = match fights.len() {
            1 => first.clone(),
            n => format!("{first}; and {} more", n.saturating_sub(1)),
        };
        let contested = fights
            .iter()
            .map(|(resource, sentence)| AlertResource {
                resource: resource.clone(),
                cause: cause_word(Cause::Drift).to_owned(),
                outcome: "contested".to_owned(),
                error: Some(sentence.clone()),
                changes: Vec::new(),
                history: None,
                who: None,
            })
            .collect();
        Some(self.alert(Event::DriftContested, summary, contested, now))
    }

    /// Repairs found in the history that were never told, because the agent was killed between the two.
    pub fn recovered(&self, entries: &[HistoryEntry], now: Timestamp) -> Option<Alert> {
        let repaired: Vec<AlertResource> = entries
            .iter()
            .map(|entry| AlertResource {
                resource: entry.resource.clone(),
                cause: cause_word(entry.cause).to_owned(),
                outcome: entry.outcome.clone(),
                error: entry.error.clone(),
                changes: entry.changes.clone(),
                history: Some(entry.id),
                who: entry.actor.clone(),
            })
            .collect();
        let summary = summarise("repaired (told late: the agent was stopped in between)", &repaired)?;
        Some(self.alert(Event::DriftRepaired, summary, repaired, now))
    }
}

/// `intentional` or `corrective`.
fn cause_word(cause: Cause) -> &'static str {
    match cause {
        Cause::NewRevision | Cause::Operator => "intentional",
        Cause::Drift => "corrective",
    }
}

fn summarise(verb: &str, resources: &[AlertResource]) -> Option<String> {
    let first = resources.first()?;
    Some(match resources.len() {
        1 => match &first.who {
            Some(who) => format!("{verb} {}, changed by {who}", first.resource),
            None => format!("{verb} {}", first.resource),
        },
        n => format!("{verb} {} and {} more", first.resource, n.saturating_sub(1)),
    })
}

fn resource(report: &ResourceReport, cause: Cause) -> AlertResource {
    let (outcome, error, changes) = match &report.outcome {
        Outcome::Unchanged => ("unchanged", None, Vec::new()),
        Outcome::Changed { changes, .. } => ("changed", None, changes.clone()),
        Outcome::Reported { changes, why, .. } => ("reported", Some(why.clone()), changes.clone()),
        Outcome::Failed { changes, error, .. } => ("failed", Some(error.clone()), changes.clone()),
        Outcome::Indeterminate { reason } => ("indeterminate", Some(reason.clone()), Vec::new()),
        Outcome::Skipped { blocked_by } => ("skipped", Some(format!("blocked by {blocked_by}")), Vec::new()),
    };
    AlertResource {
        resource: report.resource.clone(),
        cause: cause_word(cause).to_owned(),
        outcome: outcome.to_owned(),
        error,
        changes,
        history: report.step,
        who: report.who.as_deref().filter(|who| !who.is_unknown()).cloned(),
    }
}
