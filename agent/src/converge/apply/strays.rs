//! Files of the agent's own whose resource has left the policy.
//!
//! Only a run over everything knows that nobody wants them any more. What they said to the running kernel stays: what it was
//! before is not known.

use std::time::Instant;

use jiff::Timestamp;

use super::{Run, Scope};
use crate::record::{Intent, StepOutcome};
use crate::resource::{self, Action, Change};

impl Run<'_, '_> {
    /// Removes them, each as a step of its own, with a backup.
    pub(super) fn remove_strays(&mut self) {
        if self.request.scope != Scope::Everything {
            return;
        }
        let desired = self.request.desired;
        for stray in resource::strays(&self.context.host.root, &|id| desired.get(id).is_some()) {
            if (self.request.hold)(&stray.resource).is_some() {
                continue;
            }
            let clock = Instant::now();
            let backup = if self.context.record.keeps_backups() {
                match self.context.record.keep(&stray.content) {
                    Ok(backup) => Some(backup),
                    Err(e) => {
                        tracing::warn!(resource = %stray.resource, error = %resource::chain(&e), "cannot keep a backup");
                        continue;
                    }
                }
            } else {
                None
            };
            let changes = [Change::value("file", Some(format!("{} (no longer declared)", stray.path)), None)];
            let steps = self.intend(&[Intent {
                resource: &stray.resource,
                action: Action::Remove,
                changes: &changes,
                backup: backup.as_deref(),
                notifies: &[],
                who: None,
                before: &[],
                confirm: None,
                time: Timestamp::now(),
            }]);
            let error = match resource::remove_stray(&self.context.host.root, &stray) {
                Ok(()) => {
                    tracing::info!(resource = %stray.resource, path = %stray.path, "removed the file of a resource that is no longer declared");
                    None
                }
                Err(e) => {
                    tracing::warn!(resource = %stray.resource, error = %e.chain(), "cannot remove the file of a resource that is no longer declared");
                    Some(e.chain())
                }
            };
            let duration_us = super::elapsed_us(clock);
            let outcomes: Vec<StepOutcome> = steps
                .iter()
                .map(|step| StepOutcome { step: *step, error: error.clone(), duration_us, after: Vec::new() })
                .collect();
            if !outcomes.is_empty()
                && let Err(e) = self.context.record.finish_steps(&outcomes)
            {
                self.context.record.note_trouble(&e);
            }
            self.epoch += 1;
        }
    }
}
