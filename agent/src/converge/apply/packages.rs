//! Packages change together: one transaction for all that are out of sync and may be changed now, then, if that fails, each
//! alone, so that the failure carries the right name and the others are not held back by it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use jiff::Timestamp;

use super::{Run, blocks, left_alone, report};
use crate::actor::Actor;
use crate::converge::{Outcome, ResourceReport};
use crate::host::packages::Transaction;
use crate::record::Intent;
use crate::resource::{self, ApplyError, Desired, Drift, Observed, Resource, Sighting, Verdict, package};

/// One package of a batch.
struct Member<'a> {
    resource: &'a Resource,
    sighting: Sighting,
    drift: Drift,
}

impl<'a> Run<'a, '_> {
    /// Puts a package in sync, together with all other packages whose requirements are met. Returns its own outcome and keeps
    /// the others' until their turn comes.
    pub(super) fn package_steps(&mut self, first: &'a Resource, sighting: Sighting, drift: Drift) -> ResourceReport {
        let clock = Instant::now();
        let members = self.gather(Member { resource: first, sighting, drift });
        let time = Timestamp::now();
        let who: Vec<Option<Box<Actor>>> = members.iter().map(|member| self.who(member.resource)).collect();
        let intents: Vec<Intent<'_>> = members
            .iter()
            .zip(&who)
            .map(|(member, who)| Intent {
                resource: &member.resource.id,
                action: member.drift.action,
                changes: &member.drift.changes,
                backup: None,
                notifies: &member.resource.notifies,
                who: who.as_deref(),
                before: &[],
                confirm: None,
                time,
            })
            .collect();
        let steps = self.intend(&intents);
        let results = self.change_packages(&members);
        let mut reports = Vec::new();
        for (index, ((member, result), who)) in members.into_iter().zip(results).zip(who).enumerate() {
            let outcome = match result {
                Some(result) => self.verify(member.resource, &member.sighting, member.drift, result).0,
                // The run ends before its turn comes, so this reaches the journal alone.
                None => Outcome::Failed {
                    changes: member.drift.changes,
                    error: "not attempted: the agent was asked to stop".to_owned(),
                    signature: "stopped".to_owned(),
                },
            };
            reports.push(ResourceReport { who, ..report(&member.resource.id, steps.get(index).copied(), outcome) });
        }
        let concluded = reports.iter().map(|report| (report.step, &report.outcome, Vec::new())).collect();
        self.conclude(concluded, clock);
        self.ahead.extend(reports.into_iter().map(|report| (report.resource.clone(), report)));
        self.ahead.remove(&first.id).unwrap_or_else(|| report(&first.id, None, Outcome::Unchanged))
    }

    /// The first package and every later one that is out of sync, may be changed, and requires nothing that is still to come.
    fn gather(&mut self, first: Member<'a>) -> Vec<Member<'a>> {
        let first_id = &first.resource.id;
        let mut members = vec![first];
        let desired = self.request.desired;
        for resource in desired.resources() {
            let is_candidate = matches!(resource.desired, Desired::Package(_))
                && resource.id != *first_id
                && !self.done.contains_key(&resource.id)
                && self.selected.as_ref().is_none_or(|selected| selected.contains(&resource.id));
            if !is_candidate || left_alone(self.request, resource).is_some() || self.may_lock_out(resource) {
                continue;
            }
            let ready = resource.requires.iter().all(|id| {
                self.outcome(id).is_some_and(|outcome| !blocks(outcome)) || members.iter().any(|m| m.resource.id == *id)
            });
            if !ready {
                continue;
            }
            if let (sighting, Verdict::Drift(drift)) = self.look(resource) {
                members.push(Member { resource, sighting, drift });
            }
        }
        members
    }

    /// Changes all at once, then what is left one by one. `None` for a package that a shutdown left unattempted.
    fn change_packages(&mut self, members: &[Member<'a>]) -> Vec<Option<Result<(), ApplyError>>> {
        let mut transaction = Transaction::default();
        let refused: Vec<Result<(), ApplyError>> =
            members.iter().map(|member| member.plan_into(&mut transaction)).collect();
        if transaction == Transaction::default() {
            return refused.into_iter().map(Some).collect();
        }
        let n_attempted = refused.iter().filter(|refusal| refusal.is_ok()).count();
        let together = self.context.host.packages.transact(&transaction);
        self.snapshot.forget_packages();
        self.epoch += 1;
        self.forget_validations();
        let error = match together {
            Ok(()) => return refused.into_iter().map(Some).collect(),
            Err(error) => error,
        };
        if n_attempted == 1 {
            let mut error = Some(error);
            return refused
                .into_iter()
                .map(|refusal| match refusal {
                    Ok(()) => Some(error.take().map_or(Ok(()), |error| Err(ApplyError::from(error)))),
                    Err(refusal) => Some(Err(refusal)),
                })
                .collect();
        }
        tracing::warn!(error = %resource::chain(&error), n_packages = n_attempted, "the packages could not be changed together");
        let mut results = Vec::with_capacity(members.len());
        for (member, refusal) in members.iter().zip(refused) {
            results.push(match refusal {
                Err(refusal) => Some(Err(refusal)),
                Ok(()) => self.change_alone(member),
            });
        }
        results
    }

    fn change_alone(&mut self, member: &Member<'a>) -> Option<Result<(), ApplyError>> {
        let (sighting, verdict) = self.look(member.resource);
        if verdict == Verdict::InSync {
            return Some(Ok(()));
        }
        // The first attempt was the step in hand.
        if self.context.stop.load(Ordering::SeqCst) {
            return None;
        }
        let result = resource::apply(self.context.host, &mut self.snapshot, &member.resource.desired, &sighting);
        self.epoch += 1;
        self.forget_validations();
        Some(result)
    }
}

impl Member<'_> {
    fn plan_into(&self, transaction: &mut Transaction) -> Result<(), ApplyError> {
        let (Desired::Package(desired), Observed::Package(observation)) =
            (&self.resource.desired, &self.sighting.observed)
        else {
            return Ok(());
        };
        package::plan_into(transaction, desired, observation)
    }
}
