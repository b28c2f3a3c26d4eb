//! One step: refuse what must not be done, validate, back up what will be lost, make the intent and the debts durable, apply,
//! observe again, record the outcome.
//!
//! Only a fresh observation in sync counts as success. A failing journal never stops a step that needs no proof; a backup that
//! cannot be kept does, because what was there must not be lost.

use std::time::Instant;

use jiff::Timestamp;

use super::{Run, blocks, elapsed_us, only_told, report};
use crate::actor::Actor;
use crate::converge::{Cause, Outcome, ResourceReport, is_path};
use crate::record::{Arming, Intent, StepOutcome, UnitBefore};
use crate::resource::{
    self, AbsPath, Action, ApplyError, Change, Desired, Drift, Observation, Observed, Replaced, Resource, Sighting,
    Stood, Verdict, chain, stood,
};

/// A step that is over: its history id, what came of it, and what stands at its paths now.
type Concluded<'o> = (Option<i64>, &'o Outcome, Vec<(AbsPath, Stood)>);

impl Run<'_, '_> {
    /// Takes the step that a difference calls for, and says what came of it.
    pub(super) fn step(&mut self, resource: &Resource, sighting: &Sighting, mut drift: Drift) -> ResourceReport {
        let clock = Instant::now();
        let time = Timestamp::now();
        let who = self.who(resource);
        if let Some((error, word)) = resource::refusal(&resource.desired, sighting) {
            tracing::warn!(resource = %resource.id, error = %error, "step refused");
            let step = self.note(resource, "failed", Some(&drift), &error, who.as_deref());
            let outcome = Outcome::Failed { changes: drift.changes, error, signature: format!("refused: {word}") };
            return ResourceReport { who, ..report(&resource.id, step, outcome) };
        }
        let purged = resource::purges(&resource.desired, sighting);
        self.secrets.add(self.context.record, resource);
        let mut before = stood::places(&self.context.host.root, resource, sighting);
        if self.secrets.is_at(resource) {
            before = before.into_iter().map(|(path, stood)| (path, stood.hidden())).collect();
        }
        let arming = match (self.arming(resource, &before), purged) {
            (Ok(Some(_)), Some(_)) => Err("it removes what is in the directory".to_owned()),
            (arming, _) => arming,
        };
        let confirm = match arming {
            Ok(confirm) => confirm,
            Err(why) => return self.not_armed(resource, drift, &why, who),
        };
        let must_be_armed = confirm.is_some();
        let begin =
            |run: &Self| purged.map(|directory| run.begin_batch(directory).map(|batch| (directory, batch))).transpose();
        let allowed = self.validate(resource, &drift).and_then(|()| begin(self));
        let kept = allowed.and_then(|batch| self.back_up(resource, sighting).map(|backup| (backup, batch)));
        let (backup, batch) = match kept {
            Ok(kept) => kept,
            Err((error, signature)) => {
                let step = self.note(resource, "failed", Some(&drift), &error, who.as_deref());
                self.forget_approvals();
                let outcome = Outcome::Failed { changes: drift.changes, error, signature };
                return ResourceReport { who, ..report(&resource.id, step, outcome) };
            }
        };
        drift.changes.extend(batch.as_ref().and_then(|(_, batch)| self.kept(batch)));
        let steps = self.intend(&[Intent {
            resource: &resource.id,
            action: drift.action,
            changes: &drift.changes,
            backup: backup.as_deref(),
            notifies: &resource.notifies,
            who: who.as_deref(),
            before: &before,
            confirm,
            time,
        }]);
        let step = steps.first().copied();
        if must_be_armed && step.is_none() {
            return self.not_armed(resource, drift, "the journal cannot be written", who);
        }
        let mut result = resource::apply(self.context.host, &mut self.snapshot, &resource.desired, sighting);
        if let Some((directory, batch)) = batch {
            result = self.purge(directory, batch, result);
        }
        self.epoch += 1;
        if result.is_err() {
            self.context.record.note_interrupted(&resource.id);
        }
        let (outcome, overtaken) = self.verify(resource, sighting, drift, result);
        // Of a candidate that came to its place validators have seen no less.
        if !is_path(resource.id.kind) || blocks(&outcome) {
            self.forget_validations();
        }
        let mut after = stood::look_at_places(&self.context.host.root, resource);
        if blocks(&outcome) && self.secrets.is_at(resource) {
            after = after.into_iter().map(|(path, stood)| (path, stood.hidden())).collect();
        }
        if let (true, Some(step), Outcome::Failed { .. }) = (must_be_armed, step, &outcome)
            && let Err(e) = self.context.record.give_no_time(step, Timestamp::now())
        {
            self.context.record.note_trouble(&e);
        }
        self.conclude(vec![(step, &outcome, after)], clock);
        // A digest lets a guess be tested.
        let displaced = backup.filter(|_| !self.secrets.may_be_at(resource));
        ResourceReport { overtaken, displaced, who, ..report(&resource.id, step, outcome) }
    }

    /// What has to prove this step, if anything. A repair needs no proof: what it restores was confirmed when it was new, and
    /// to put back what it replaced would bring somebody's drift back. Nor does an image, which nobody logs in to.
    ///
    /// An error says why the step could not be put back, and so must not be taken.
    fn arming<'r>(&self, resource: &'r Resource, before: &[(AbsPath, Stood)]) -> Result<Option<Arming<'r>>, String> {
        let is_asked = match self.request.cause {
            Cause::NewRevision => true,
            Cause::Operator => self.context.host.root.is_live(),
            Cause::Drift => false,
        };
        let Some(confirm) = resource.confirm().filter(|_| is_asked) else { return Ok(None) };
        if !self.context.record.is_durable() {
            return Err("what is recorded now would not survive a kill".to_owned());
        }
        if let Desired::Service(service) = &resource.desired {
            let status = self.context.host.units.status(&service.unit).map_err(|e| chain(&e))?;
            let unit = UnitBefore {
                unit: service.unit.clone(),
                ran: matches!(status.active_state.as_str(), "active" | "activating" | "reloading"),
                enabled: status.unit_file_state.starts_with("enabled"),
            };
            return Ok(Some(Arming { confirm, unit: Some(unit) }));
        }
        match before {
            [] => Err("what it replaces cannot be looked at".to_owned()),
            places => match places.iter().find(|(_, stood)| stood.content_is_lost()) {
                Some((path, stood)) => Err(if let Stood::Hidden { .. } = stood {
                    format!("there is a secret at `{path}`, and secrets are not kept")
                } else {
                    format!("there is {} at `{path}`, which cannot be kept", stood.word())
                }),
                None if !self.context.record.keeps_backups() => Err("nothing can be kept here".to_owned()),
                None => Ok(Some(Arming { confirm, unit: None })),
            },
        }
    }

    /// A step that has to be confirmed, and could not be put back if it were not.
    fn not_armed(&mut self, resource: &Resource, drift: Drift, why: &str, who: Option<Box<Actor>>) -> ResourceReport {
        let error = format!("refused, because it has to be confirmed and could not be put back: {why}");
        let step = self.note(resource, "failed", Some(&drift), &error, who.as_deref());
        let outcome = Outcome::Failed { changes: drift.changes, error, signature: "confirm: not armed".to_owned() };
        ResourceReport { who, ..report(&resource.id, step, outcome) }
    }

    /// Keeps what the step will overwrite. The error comes with its signature.
    fn back_up(&mut self, resource: &Resource, sighting: &Sighting) -> Result<Option<String>, (String, String)> {
        if self.secrets.is_at(resource) {
            return Ok(None);
        }
        match resource::replaced(&self.context.host.root, &resource.desired, sighting) {
            Replaced::Nothing => Ok(None),
            Replaced::TooLong => {
                tracing::warn!(resource = %resource.id, "what is replaced is too long to keep a backup of");
                Ok(None)
            }
            Replaced::Unread { path, source } => {
                let class = source.raw_os_error().map(|errno| format!(": errno {errno}")).unwrap_or_default();
                Err((format!("cannot read `{path}`, which is to be replaced: {source}"), format!("back up{class}")))
            }
            Replaced::Contents(contents) => {
                let mut names = Vec::new();
                for content in contents {
                    names.extend(self.keep(&content)?);
                }
                Ok(names.into_iter().next())
            }
        }
    }

    /// Keeps one content; `None` where nothing is kept. The error comes with its signature.
    pub(super) fn keep(&mut self, content: &[u8]) -> Result<Option<String>, (String, String)> {
        if !self.context.record.keeps_backups() {
            return Ok(None);
        }
        self.context.record.keep(content).map(Some).map_err(|e| {
            let class = e.errno().map(|errno| format!(": errno {errno}")).unwrap_or_default();
            (format!("cannot keep a backup of what is replaced: {}", chain(&e)), format!("back up{class}"))
        })
    }

    /// Makes intents and debts durable. Returns no ids when the journal cannot be written; the debts are then kept in memory.
    pub(super) fn intend(&mut self, intents: &[Intent<'_>]) -> Vec<i64> {
        self.owe_runs(intents);
        match self.context.record.begin_steps(&mut self.info, intents) {
            Ok(steps) => steps,
            Err(e) => {
                self.context.record.note_trouble(&e);
                for intent in intents {
                    self.context.record.owe_unsaved(intent.notifies, intent.resource);
                }
                Vec::new()
            }
        }
    }

    /// Observes again after a step: the tool's word for its success is not enough. Also returns whether the step took effect
    /// and somebody has changed the resource again since, which is no failure of the step.
    pub(super) fn verify(
        &mut self,
        resource: &Resource,
        before: &Sighting,
        drift: Drift,
        result: Result<(), ApplyError>,
    ) -> (Outcome, bool) {
        let Drift { action, changes } = drift;
        if let Err(e) = result {
            let (error, signature) = (e.chain(), e.signature());
            tracing::warn!(resource = %resource.id, error = %error, "step failed");
            return (Outcome::Failed { changes, error, signature }, false);
        }
        let (after, verdict) = self.look(resource);
        let outcome = match verdict {
            Verdict::Drift(_) if took_effect(before, &after) => {
                tracing::info!(resource = %resource.id, action = ?action, "put in sync, and changed again since");
                return (Outcome::Changed { changes, action }, true);
            }
            Verdict::InSync => {
                tracing::info!(resource = %resource.id, cause = ?self.request.cause, action = ?action, "put in sync");
                Outcome::Changed { changes, action }
            }
            Verdict::Indeterminate(reason) => Outcome::Failed {
                changes,
                error: format!("the step was applied, but its result cannot be observed: {reason}"),
                signature: "verify: cannot observe".to_owned(),
            },
            // No step of ours mends that: the step itself did what it should.
            Verdict::Drift(left) if only_told(&left).is_some() => Outcome::Changed { changes, action },
            Verdict::Drift(left) if left.action == Action::Run => {
                let guard = left.changes.iter().find(|change| change.attribute != "run");
                let guard = guard.map_or_else(String::new, |change| change.attribute.clone());
                Outcome::Failed {
                    changes,
                    error: format!("it ran and ended well, but `{guard}` still says that it has to run"),
                    signature: format!("verify: {guard}"),
                }
            }
            Verdict::Drift(left) => {
                let attributes = attributes(&left.changes);
                tracing::warn!(resource = %resource.id, attributes = %attributes, "still out of sync after its step");
                Outcome::Failed {
                    changes,
                    error: format!("the step was applied, but the host still differs in: {attributes}"),
                    signature: format!("verify: {attributes}"),
                }
            }
        };
        (outcome, false)
    }

    /// Makes durable what came of steps.
    pub(super) fn conclude(&mut self, steps: Vec<Concluded<'_>>, clock: Instant) {
        let duration_us = elapsed_us(clock);
        let outcomes: Vec<StepOutcome> = steps
            .into_iter()
            .filter_map(|(step, outcome, after)| {
                let error = match outcome {
                    Outcome::Failed { error, .. } => Some(error.clone()),
                    Outcome::Unchanged
                    | Outcome::Changed { .. }
                    | Outcome::Reported { .. }
                    | Outcome::Indeterminate { .. }
                    | Outcome::Skipped { .. } => None,
                };
                step.map(|step| StepOutcome { step, error, duration_us, after })
            })
            .collect();
        if outcomes.is_empty() {
            return;
        }
        if let Err(e) = self.context.record.finish_steps(&outcomes) {
            self.context.record.note_trouble(&e);
        }
    }
}

/// Whether a step whose tools reported success changed anything. What stands at a path is put there by one system call, so only
/// the very same inode with the very same change time says that nothing was done.
fn took_effect(before: &Sighting, after: &Sighting) -> bool {
    match &after.observed {
        Observed::File(seen) | Observed::Symlink(seen) | Observed::Setting(seen) => {
            !matches!(seen, Observation::Present(_)) || before.observed != after.observed
        }
        Observed::Directory(seen) => !matches!(seen, Observation::Present(_)) || before.observed != after.observed,
        Observed::User(_) | Observed::Group(_) => before.observed != after.observed,
        // A package manager's or a service manager's success is only a claim: a unit may fail right after its start.
        Observed::Package(_)
        | Observed::Service(_)
        | Observed::Sysctl(_)
        | Observed::Repository(_)
        | Observed::KernelModule(_)
        | Observed::Mount(_)
        | Observed::Command(_)
        | Observed::Check(_)
        | Observed::Sweep(_) => false,
    }
}

fn attributes(changes: &[Change]) -> String {
    changes.iter().map(|change| change.attribute.as_str()).collect::<Vec<_>>().join(", ")
}
