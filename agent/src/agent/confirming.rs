//! Changes that wait for a proof that an operator can still get in, in the agent: asked about once a second while one waits,
//! and put back when the proof does not come, or when whoever waited for it is gone.

use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use super::worker::{Event, Worker};
use crate::converge::Cause;
use crate::converge::confirm::{self, Known};
use crate::converge::health::Input;
use crate::policy::Revision;
use crate::record::{Confirmation, Note, RunInfo, RunLock};
use crate::resource::chain;
use crate::spool::CourierState;

/// Time between two looks for a proof.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// When the endpoint last answered, as the courier says.
pub fn last_answer(courier: Option<&CourierState>) -> Option<Timestamp> {
    courier?.receivers.iter().find(|receiver| receiver.name == "endpoint")?.delivered
}

impl Worker {
    /// Takes note of what waits for a proof after a run of this process.
    pub(super) fn load_confirmations(&mut self) {
        match self.record.confirmations() {
            Ok(waiting) => self.waiting = waiting,
            Err(error) => self.warn(chain(&error)),
        }
        self.show_confirmations();
    }

    fn show_confirmations(&self) {
        let shown = self.waiting.iter().map(|one| super::status::ConfirmationStatus {
            resource: one.resource.clone(),
            until: one.until,
            by: confirm::words(&one.confirm.by),
        });
        self.shared.status().confirmations = shown.collect();
    }

    /// Looks whether proofs have come, and puts back what waited too long.
    pub(super) fn look_for_proof(&mut self) {
        let now = Timestamp::now();
        let courier = self.inbox.read_slot::<CourierState>().ok().flatten();
        let known = Known { answered: last_answer(courier.as_ref()) };
        let mut late = Vec::new();
        let n_waiting = self.waiting.len();
        for one in std::mem::take(&mut self.waiting) {
            if confirm::is_proven(&self.host, &one, known) {
                self.take_proof(&one);
            } else if one.until.is_none_or(|until| until <= now) {
                late.push(one);
            } else {
                self.waiting.push(one);
            }
        }
        if !late.is_empty() {
            self.take_back(late, None);
        } else if self.waiting.is_empty() && n_waiting > 0 {
            // Only now may the revision become the last good one.
            self.tell(Event::RunEverything);
        }
        self.show_confirmations();
        self.write_checkin();
    }

    fn take_proof(&mut self, one: &Confirmation) {
        info!(resource = %one.resource, "confirmed by {}", confirm::words(&one.confirm.by));
        if let Err(error) = self.record.confirmed(one.step) {
            self.warn(chain(&error));
        }
        let time = Timestamp::now();
        let mut run =
            RunInfo { id: None, started: time, revision: one.revision.clone(), cause: Cause::NewRevision, full: false };
        let why = format!("#{} was confirmed by {}", one.step, confirm::words(&one.confirm.by));
        let note = Note {
            resource: &one.resource,
            outcome: "confirmed",
            action: None,
            changes: &[],
            error: &why,
            who: None,
            time,
        };
        if let Err(error) = self.record.note(&mut run, &note) {
            self.record.note_trouble(&error);
        }
    }

    /// Puts back what a process that is gone had armed. Whoever holds the lock is not gone.
    pub(super) fn take_back_leftovers(&mut self) {
        let left = match self.record.confirmations() {
            Ok(all) => all.into_iter().filter(|one| self.waiting.iter().all(|mine| mine.step != one.step)),
            Err(error) => return self.warn(chain(&error)),
        };
        let left: Vec<Confirmation> = left.collect();
        if left.is_empty() {
            return;
        }
        match RunLock::acquire(&self.settings.paths.runtime, "agent", Duration::ZERO) {
            Ok(lock) => {
                drop(lock);
                self.take_back(left, Some("whoever waited for the proof was stopped"));
            }
            Err(error) => info!("a change waits to be confirmed elsewhere: {}", chain(&error)),
        }
    }

    /// Puts changes back, and holds their revision for failed here. What cannot be put back is tried again.
    fn take_back(&mut self, late: Vec<Confirmation>, cause: Option<&str>) {
        let lock = RunLock::wait(&self.settings.paths.runtime, "agent");
        let lock = match lock {
            Ok(lock) => lock,
            Err(error) => {
                self.waiting.extend(late);
                return self.warn(chain(&error));
            }
        };
        self.guard.disarm();
        let mut failed: Vec<(Revision, String)> = Vec::new();
        for one in late {
            let why = cause.map_or_else(
                || {
                    let (by, within) = (confirm::words(&one.confirm.by), one.confirm.within.as_secs());
                    format!("{by} did not come within {within} s")
                },
                str::to_owned,
            );
            warn!(resource = %one.resource, revision = one.revision.short(), "not confirmed, put back: {why}");
            match confirm::put_back(&mut self.host, &mut self.record, &self.settings.paths.state, &one, &why) {
                Ok(()) => failed.push((one.revision.clone(), format!("{} was put back, because {why}", one.resource))),
                // Its revision is held for failed all the same: the last good one says what should be there.
                Err(error) => {
                    let text = format!("{} was not confirmed ({why}) and cannot be put back: {error}", one.resource);
                    self.warn(text.clone());
                    if let Err(error) = self.record.unconfirmed(one.step, &why) {
                        self.record.note_trouble(&error);
                    }
                    failed.push((one.revision.clone(), text));
                }
            }
        }
        drop(lock);
        let Some((revision, _)) = failed.first().cloned() else { return };
        let what: Vec<String> = failed.into_iter().map(|(_, what)| what).collect();
        let last_good = self.revisions.last_good.clone();
        let summary = what.join("; ");
        if self.revisions.in_force.as_ref() == Some(&revision) {
            self.feed_health(Input::Unconfirmed { revision: &revision, last_good: last_good.as_ref(), summary });
        } else {
            self.announce(crate::spool::Event::ConvergenceFailed, summary);
        }
        self.tell(Event::RunEverything);
    }
}
