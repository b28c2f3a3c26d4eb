//! Runs that commands are owed: made durable before the change that owes them, paid when the command's turn comes, and only
//! when all that owes it is in sync.

use jiff::Timestamp;

use super::{Run, blocks};
use crate::converge::{DebtReport, Outcome};
use crate::record::{Intent, OwedRun};
use crate::resource::{Desired, Observed, Resource, ResourceId, Sighting, Verdict, command};

impl Run<'_, '_> {
    /// Everything that commands are owed.
    fn all_owed_runs(&mut self) -> Vec<OwedRun> {
        match self.context.record.owed_runs() {
            Ok(owed) => owed,
            Err(error) => {
                self.context.record.note_trouble(&error);
                self.context.record.unsaved_runs()
            }
        }
    }

    /// What owes a command a run; nothing for what is no command.
    pub(super) fn owed_runs(&mut self, resource: &Resource) -> Vec<ResourceId> {
        if !matches!(resource.desired, Desired::Command(_)) {
            return Vec::new();
        }
        let owed = self.all_owed_runs().into_iter().filter(|owed| owed.command == resource.id);
        owed.map(|owed| owed.because_of).collect()
    }

    /// Has a run that looks at a part only also look at the commands that are owed something already.
    pub(super) fn select_owed(&mut self) {
        if self.selected.is_some() {
            for owed in self.all_owed_runs() {
                self.select_command(&owed.command);
            }
        }
    }

    /// Makes durable what the steps will owe to commands.
    pub(super) fn owe_runs(&mut self, intents: &[Intent<'_>]) {
        let desired = self.request.desired;
        for intent in intents {
            for command in desired.owes_runs(intent.resource) {
                if let Err(error) = self.context.record.owe_run(command, intent.resource, intent.time) {
                    self.context.record.note_trouble(&error);
                    self.context.record.owe_run_unsaved(command, intent.resource);
                }
                self.select_command(command);
            }
        }
    }

    /// What is held is not even asked whether it should run.
    fn select_command(&mut self, command: &ResourceId) {
        if (self.request.hold)(command).is_none()
            && let Some(selected) = &mut self.selected
        {
            selected.insert(command.clone());
        }
    }

    /// What owes a command a run and is not in sync itself, if anything: a half-built configuration is not activated.
    pub(super) fn unsettled_input(&mut self, resource: &Resource, owed: &[ResourceId]) -> Option<ResourceId> {
        let Desired::Command(command) = &resource.desired else { return None };
        if owed.is_empty() {
            return None;
        }
        let desired = self.request.desired;
        command.owed_by.iter().find(|id| desired.get(id).is_some_and(|input| !self.settled(input))).cloned()
    }

    /// Forgets what was owed to a command when it had its turn.
    pub(super) fn settle_runs(
        &mut self,
        resource: &Resource,
        owed: &[ResourceId],
        outcome: &Outcome,
        began: Timestamp,
    ) {
        // Unchanged although something is owed: it must not run on this host.
        if !owed.is_empty()
            && matches!(outcome, Outcome::Changed { .. } | Outcome::Unchanged)
            && let Err(error) = self.context.record.settle_run(&resource.id, began)
        {
            self.context.record.note_trouble(&error);
        }
    }

    /// What commands are still owed.
    pub(super) fn report_runs(&mut self) -> Vec<DebtReport> {
        let mut reports = Vec::new();
        for OwedRun { command, because_of, .. } in self.all_owed_runs() {
            if self.request.desired.get(&command).is_none() {
                tracing::info!(%command, "it is no longer declared, so it is owed nothing");
                if let Err(error) = self.context.record.settle_run(&command, Timestamp::now()) {
                    self.context.record.note_trouble(&error);
                }
                continue;
            }
            // One that failed or was skipped says so itself.
            let error = match self.outcome(&command) {
                Some(outcome) if blocks(outcome) => String::new(),
                Some(_) | None => (self.request.hold)(&command).unwrap_or_default(),
            };
            reports.push(DebtReport { unit: command.to_string(), notify: "run".to_owned(), because_of, error });
        }
        reports
    }
}

/// The verdict on a resource, with regard to what it is owed.
pub(super) fn with_debt(resource: &Resource, sighting: &Sighting, verdict: Verdict, owed: &[ResourceId]) -> Verdict {
    match (&resource.desired, &sighting.observed) {
        (Desired::Command(desired), Observed::Command(observed)) => {
            command::with_debt(desired, observed, verdict, owed)
        }
        (_, _) => verdict,
    }
}
