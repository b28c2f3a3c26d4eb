//! Paying what is owed, at the end of a run.
//!
//! - A unit is restarted or reloaded only when everything that notifies it is in sync (or left alone by policy): a half-built
//!   configuration must never be activated.
//! - A stopped unit is never started by a debt. It reads its configuration when it starts, so it is owed nothing.
//! - A debt is forgotten only after the job has succeeded; a kill in between means one restart too many, never one too few.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Run, blocks, left_alone};
use crate::config::Mode;
use crate::converge::DebtReport;
use crate::converge::plan::notify_word;
use crate::host::Host;
use crate::host::units::{UnitError, UnitStatus, UnitVerb};
use crate::record::Debt;
use crate::resource::{Kind, Notify, Resource, ResourceId, UnitName, Verdict, chain};

/// What became of what a unit is owed.
enum Payment {
    Paid,
    /// It cannot be paid yet; nothing went wrong.
    Waits(String),
    Failed(String),
}

impl Run<'_, '_> {
    /// Pays what can be paid. Returns what is still owed.
    pub(super) fn pay_debts(&mut self, interrupted: bool) -> Vec<DebtReport> {
        let debts = match self.context.record.debts() {
            Ok(debts) => debts,
            Err(e) => {
                self.context.record.note_trouble(&e);
                self.context.record.unsaved_debts()
            }
        };
        let mut by_unit: BTreeMap<UnitName, Vec<Debt>> = BTreeMap::new();
        for debt in debts {
            by_unit.entry(debt.unit.clone()).or_default().push(debt);
        }
        let mut reports = self.report_runs();
        for (unit, debts) in by_unit {
            let began = Timestamp::now();
            let payment = match self.withheld(&unit, &debts, interrupted) {
                Some(why) => Payment::Waits(why),
                None => self.pay(&unit, &debts),
            };
            let error = match payment {
                Payment::Paid => {
                    if let Err(e) = self.context.record.settle(&unit, began) {
                        self.context.record.note_trouble(&e);
                    }
                    continue;
                }
                Payment::Waits(why) => why,
                Payment::Failed(error) => {
                    tracing::warn!(unit = %unit, error = %error, "a debt could not be paid");
                    if let Err(e) = self.context.record.keep_owing(&unit, &error) {
                        self.context.record.note_trouble(&e);
                    }
                    error
                }
            };
            reports.extend(debts.into_iter().map(|debt| DebtReport {
                unit: debt.unit.to_string(),
                notify: notify_word(debt.notify).to_owned(),
                because_of: debt.because_of,
                error: error.clone(),
            }));
        }
        reports
    }

    /// Why nothing may be done to the unit now, if so.
    fn withheld(&mut self, unit: &UnitName, debts: &[Debt], interrupted: bool) -> Option<String> {
        if interrupted {
            return Some(String::new());
        }
        if self.request.mode == Mode::Noop {
            return Some("noop".to_owned());
        }
        let service = ResourceId::new(Kind::Service, unit.as_str().trim_end_matches(".service"));
        let held = debts.iter().map(|debt| &debt.because_of).chain([&service]).find_map(|id| (self.request.hold)(id));
        if held.is_some() {
            return held;
        }
        let desired = self.request.desired;
        let inputs = desired.resources().iter().filter(|r| r.notifies.iter().any(|(_, notified)| notified == unit));
        for input in inputs {
            if !self.settled(input) {
                return Some(format!("waits for {}, which is not in sync", input.id));
            }
        }
        None
    }

    /// Whether a resource is as it will stay: in sync, or left alone. One that this run did not visit is looked at now.
    pub(super) fn settled(&mut self, input: &Resource) -> bool {
        if let Some(outcome) = self.outcome(&input.id) {
            return !blocks(outcome);
        }
        match self.look(input).1 {
            // A command that is owed a run is as good as out of sync.
            Verdict::InSync => self.owed_runs(input).is_empty(),
            Verdict::Drift(_) => left_alone(self.request, input).is_some(),
            Verdict::Indeterminate(_) => false,
        }
    }

    fn pay(&mut self, unit: &UnitName, debts: &[Debt]) -> Payment {
        let verb = match debts.iter().map(|debt| debt.notify).max() {
            Some(Notify::Restart) => UnitVerb::TryRestart,
            Some(Notify::Reload) => UnitVerb::ReloadOrTryRestart,
            None => return Payment::Paid,
        };
        match carry_out(self.context.host, unit, verb) {
            Ok(After::Runs) => {
                tracing::info!(unit = %unit, verb = ?verb, "paid what the unit was owed");
                Payment::Paid
            }
            Ok(After::DidNotRun) => {
                tracing::debug!(unit = %unit, "the unit does not run, so it is owed nothing");
                Payment::Paid
            }
            Ok(After::Fell(status)) => Payment::Failed(format!(
                "`{unit}` is {} ({}) after it was restarted",
                status.active_state, status.sub_state
            )),
            Err(e) => Payment::Failed(chain(&e)),
        }
    }
}

/// A unit after its verb.
enum After {
    Runs,
    DidNotRun,
    Fell(UnitStatus),
}

fn carry_out(host: &mut Host, unit: &UnitName, verb: UnitVerb) -> Result<After, UnitError> {
    let before = host.units.status(unit)?;
    if !matches!(before.active_state.as_str(), "active" | "reloading" | "refreshing" | "activating") {
        return Ok(After::DidNotRun);
    }
    // Restarting with a unit file that systemd has not read would start the old one.
    if before.need_daemon_reload {
        host.units.daemon_reload()?;
    }
    host.units.carry_out(unit, verb)?;
    let after = host.units.status(unit)?;
    Ok(if after.active_state == "failed" { After::Fell(after) } else { After::Runs })
}
