//! The last verdict on each resource: kept for what is not in sync, and counted for the rest, because of 100,000 files next to
//! all are in sync next to always.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::converge::{Outcome, RunReport};
use crate::resource::{Action, Change, ResourceId};

/// The last verdict on a resource that is not in sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Left(String),
    /// Out of sync, and accepted for a while.
    Waived(String),
    Failed(String),
    Indeterminate(String),
    Skipped(String),
}

/// What was looked at since the policy came into force.
#[derive(Debug)]
enum LookedAt {
    Only(BTreeSet<ResourceId>),
    /// All of it, last by a run that began then.
    Everything(Timestamp),
}

/// The verdicts under one policy.
#[derive(Debug)]
pub(super) struct Verdicts {
    out_of_sync: BTreeMap<ResourceId, Verdict>,
    /// What was left alone and not shown, because it may be a secret.
    concealed: BTreeSet<ResourceId>,
    looked_at: LookedAt,
}

impl Default for Verdicts {
    fn default() -> Self {
        let concealed = BTreeSet::new();
        Self { out_of_sync: BTreeMap::new(), concealed, looked_at: LookedAt::Only(BTreeSet::new()) }
    }
}

impl Verdicts {
    /// Takes in what a run found; returns the resources whose drift is newly left alone.
    pub(super) fn update(&mut self, report: &RunReport) -> Vec<ResourceId> {
        let mut fresh = Vec::new();
        let before = if report.full && !report.interrupted {
            self.looked_at = LookedAt::Everything(report.started);
            std::mem::take(&mut self.out_of_sync)
        } else {
            BTreeMap::new()
        };
        for entry in &report.resources {
            let id = &entry.resource;
            if let LookedAt::Only(looked_at) = &mut self.looked_at
                && !looked_at.contains(id)
            {
                looked_at.insert(id.clone());
            }
            let verdict = match &entry.outcome {
                Outcome::Unchanged | Outcome::Changed { .. } => {
                    self.out_of_sync.remove(id);
                    self.concealed.remove(id);
                    continue;
                }
                Outcome::Reported { why, action: Action::Waive, .. } => Verdict::Waived(why.clone()),
                Outcome::Reported { why, .. } => Verdict::Left(why.clone()),
                Outcome::Failed { error, .. } => Verdict::Failed(error.clone()),
                Outcome::Indeterminate { reason } => Verdict::Indeterminate(reason.clone()),
                Outcome::Skipped { blocked_by } => Verdict::Skipped(format!("blocked by {blocked_by}")),
            };
            let last = before.get(id).or_else(|| self.out_of_sync.get(id));
            let is_left = matches!(verdict, Verdict::Left(_) | Verdict::Waived(_));
            let is_concealed =
                matches!(&entry.outcome, Outcome::Reported { changes, .. } if changes.iter().any(Change::is_concealed));
            let was_concealed = match is_concealed {
                true => !self.concealed.insert(id.clone()),
                false => is_left && self.concealed.remove(id),
            };
            // The end of a waiver is news, and so is what can be shown at last.
            if is_left
                && (was_concealed && !is_concealed
                    || last.map(std::mem::discriminant) != Some(std::mem::discriminant(&verdict)))
            {
                fresh.push(id.clone());
            }
            self.out_of_sync.insert(id.clone(), verdict);
        }
        fresh
    }

    /// Takes note that something was put right outside a run.
    pub(super) fn put_back(&mut self, id: &ResourceId) {
        self.out_of_sync.remove(id);
    }

    /// What is not in sync, and why.
    pub(super) fn out_of_sync(&self) -> impl Iterator<Item = (&ResourceId, &Verdict)> {
        self.out_of_sync.iter()
    }

    /// When a run over everything began that came to its end: everything that happened before was seen.
    pub(super) fn verified(&self) -> Option<Timestamp> {
        match self.looked_at {
            LookedAt::Only(_) => None,
            LookedAt::Everything(at) => Some(at),
        }
    }

    /// How many of the policy's resources were in sync when they were last looked at.
    pub(super) fn n_in_sync(&self, n_resources: usize) -> usize {
        let n_looked_at = match &self.looked_at {
            LookedAt::Only(looked_at) => looked_at.len(),
            LookedAt::Everything(_) => n_resources,
        };
        n_looked_at.saturating_sub(self.out_of_sync.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::converge::{Cause, ResourceReport};
    use crate::policy::Revision;
    use crate::resource::Kind;

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Scope {
        Full,
        Part,
    }

    fn id(name: &str) -> ResourceId {
        ResourceId::new(Kind::File, name)
    }

    fn report(scope: Scope, outcomes: &[(&str, Outcome)]) -> RunReport {
        let resources = outcomes.iter().map(|(name, outcome)| ResourceReport {
            resource: id(name),
            step: None,
            overtaken: false,
            displaced: None,
            who: None,
            outcome: outcome.clone(),
        });
        RunReport {
            run: 0,
            revision: Revision::new("r"),
            cause: Cause::Drift,
            full: scope == Scope::Full,
            started: jiff::Timestamp::UNIX_EPOCH,
            duration_us: 1,
            resources: resources.collect(),
            debts: Vec::new(),
            interrupted: false,
        }
    }

    fn left() -> Outcome {
        Outcome::Reported { changes: Vec::new(), action: Action::Update, why: "paused".to_owned() }
    }

    #[test]
    fn what_is_in_sync_is_counted_only_once_it_was_looked_at() {
        let mut verdicts = Verdicts::default();
        assert_eq!(verdicts.n_in_sync(3), 0);
        verdicts.update(&report(Scope::Part, &[("/a", Outcome::Unchanged), ("/b", left())]));
        verdicts.update(&report(Scope::Part, &[("/a", Outcome::Unchanged)]));
        assert_eq!(verdicts.n_in_sync(3), 1);
        let all = [("/a", Outcome::Unchanged), ("/b", left()), ("/c", Outcome::Unchanged)];
        verdicts.update(&report(Scope::Full, &all));
        assert_eq!(verdicts.n_in_sync(3), 2);
        assert_eq!(verdicts.out_of_sync().map(|(id, _)| id).collect::<Vec<_>>(), [&id("/b")]);
        verdicts.put_back(&id("/b"));
        assert_eq!(verdicts.n_in_sync(3), 3);
    }

    #[test]
    fn everything_is_verified_only_by_a_full_run_that_comes_to_its_end() {
        let mut verdicts = Verdicts::default();
        verdicts.update(&report(Scope::Part, &[("/a", Outcome::Unchanged)]));
        assert_eq!(verdicts.verified(), None);
        verdicts.update(&RunReport { interrupted: true, ..report(Scope::Full, &[("/a", Outcome::Unchanged)]) });
        assert_eq!(verdicts.verified(), None);
        let at = |second| Timestamp::from_second(second).unwrap();
        verdicts.update(&RunReport { started: at(1), ..report(Scope::Full, &[("/a", left())]) });
        verdicts.update(&RunReport { started: at(2), ..report(Scope::Part, &[("/a", left())]) });
        assert_eq!(verdicts.verified(), Some(at(1)));
    }

    #[test]
    fn drift_is_newly_left_once() {
        let mut verdicts = Verdicts::default();
        assert_eq!(verdicts.update(&report(Scope::Part, &[("/a", left())])), [id("/a")]);
        assert_eq!(verdicts.update(&report(Scope::Part, &[("/a", left())])), []);
        assert_eq!(verdicts.update(&report(Scope::Full, &[("/a", left()), ("/b", left())])), [id("/b")]);
        verdicts.update(&report(Scope::Part, &[("/a", Outcome::Unchanged)]));
        assert_eq!(verdicts.update(&report(Scope::Full, &[("/a", left())])), [id("/a")]);
    }

    #[test]
    fn drift_that_could_not_be_shown_is_told_again_once_it_can_be() {
        let shown = Change::value("UMASK", Some("022".to_owned()), Some("027".to_owned()));
        let mut concealed = shown.clone();
        concealed.conceal(crate::resource::Concealed::InDoubt);
        let left = |change: &Change| {
            let why = "paused".to_owned();
            [("/a", Outcome::Reported { changes: vec![change.clone()], action: Action::Update, why })]
        };
        let mut verdicts = Verdicts::default();
        let mut update = |change: &Change| verdicts.update(&report(Scope::Full, &left(change)));
        assert_eq!((update(&concealed), update(&concealed)), (vec![id("/a")], vec![]));
        assert_eq!((update(&shown), update(&shown)), (vec![id("/a")], vec![]));
    }

    #[test]
    fn a_full_run_forgets_what_it_did_not_see() {
        let mut verdicts = Verdicts::default();
        verdicts.update(&report(Scope::Part, &[("/gone", left())]));
        verdicts.update(&report(Scope::Full, &[("/a", Outcome::Unchanged)]));
        assert_eq!(verdicts.out_of_sync().count(), 0);
    }
}
