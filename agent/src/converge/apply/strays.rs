//! Files of the agent's own whose resource has left the policy.
//!
//! Only a run over everything knows that nobody wants them any more. What they said to the running kernel stays: what it was
//! before is not known. A plan names each of them, as a run reports it.

use std::time::Instant;

use jiff::Timestamp;

use super::{Run, Scope, report};
use crate::config::Mode;
use crate::converge::plan::Step;
use crate::converge::{Outcome, Request, ResourceReport};
use crate::host::root::Root;
use crate::record::Intent;
use crate::resource::{self, Action, Change, Stray};

/// The steps that would remove them.
pub(in crate::converge) fn steps(root: &Root, request: &Request<'_>) -> Vec<Step> {
    let step = |stray: Stray| Step {
        changes: vec![change(&stray)],
        // In noop everything is left alone; a plan that said so at each step would say nothing.
        held: (request.hold)(&stray.resource),
        resource: stray.resource,
        action: Action::Remove,
        source: None,
        owes: Vec::new(),
        validator: None,
        confirm: None,
        runs: Vec::new(),
    };
    found(root, request).into_iter().map(step).collect()
}

fn found(root: &Root, request: &Request<'_>) -> Vec<Stray> {
    match request.scope {
        Scope::Everything => resource::strays(root, &|id| request.desired.get(id).is_some()),
        Scope::Only(_) => Vec::new(),
    }
}

fn change(stray: &Stray) -> Change {
    Change::value("file", Some(format!("{} (no longer declared)", stray.path)), None)
}

impl Run<'_, '_> {
    /// Removes them, each as a step of its own, with a backup.
    pub(super) fn remove_strays(&mut self) {
        for stray in found(&self.context.host.root, self.request) {
            let report = self.remove_stray(&stray);
            self.reports.push(report);
        }
    }

    fn remove_stray(&mut self, stray: &Stray) -> ResourceReport {
        let id = &stray.resource;
        let changes = vec![change(stray)];
        let noop = (self.request.mode == Mode::Noop).then(|| "noop".to_owned());
        if let Some(why) = noop.or_else(|| (self.request.hold)(id)) {
            return report(id, None, Outcome::Reported { changes, action: Action::Remove, why });
        }
        let clock = Instant::now();
        let backup = match self.keep(&stray.content) {
            Ok(backup) => backup,
            Err((error, signature)) => {
                tracing::warn!(resource = %id, error = %error, "a file that is no longer declared stays");
                return report(id, None, Outcome::Failed { changes, error, signature });
            }
        };
        let steps = self.intend(&[Intent {
            resource: id,
            action: Action::Remove,
            changes: &changes,
            backup: backup.as_deref(),
            notifies: &[],
            who: None,
            before: &[],
            confirm: None,
            time: Timestamp::now(),
        }]);
        let outcome = match resource::remove_stray(&self.context.host.root, stray) {
            Ok(()) => {
                tracing::info!(resource = %id, path = %stray.path, "removed the file of a resource that is no longer declared");
                Outcome::Changed { changes, action: Action::Remove }
            }
            Err(e) => {
                let (error, signature) = (e.chain(), e.signature());
                tracing::warn!(resource = %id, error = %error, "cannot remove the file of a resource that is no longer declared");
                Outcome::Failed { changes, error, signature }
            }
        };
        self.epoch += 1;
        let step = steps.first().copied();
        self.conclude(vec![(step, &outcome, Vec::new())], clock);
        ResourceReport { displaced: backup, ..report(id, step, outcome) }
    }
}
