//! Units in memory: what is started runs at the next look.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{UnitError, UnitStatus, UnitVerb, Units};
use crate::resource::UnitName;

/// Units in memory. Clones share one state, so that a test keeps one while the host owns another.
#[derive(Debug, Clone, Default)]
pub struct FakeUnits {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    units: BTreeMap<String, UnitStatus>,
    /// Unit files that systemd has not read yet.
    unread: BTreeMap<String, UnitStatus>,
    failing: BTreeSet<String>,
    reads_fail: bool,
    log: Vec<String>,
    n_looks: usize,
}

impl FakeUnits {
    /// A host whose systemd knows no unit.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a unit, such as ("ssh.service", "inactive", "disabled").
    pub fn add(&self, unit: &str, active_state: &str, unit_file_state: &str) {
        self.lock().units.insert(unit.to_owned(), status(active_state, unit_file_state));
    }

    /// Adds an inactive, disabled unit whose file systemd will only read at the next daemon reload.
    pub fn add_unread(&self, unit: &str) {
        self.lock().unread.insert(unit.to_owned(), status("inactive", "disabled"));
    }

    /// Changes a unit behind the back of whoever manages it, as a person on the host would.
    pub fn edit(&self, unit: &str, change: impl FnOnce(&mut UnitStatus)) {
        if let Some(status) = self.lock().units.get_mut(unit) {
            change(status);
        }
    }

    /// Makes every start and restart of a unit fail from now on.
    pub fn fail_starts(&self, unit: &str) {
        self.lock().failing.insert(unit.to_owned());
    }

    /// Lets a unit start again.
    pub fn let_start(&self, unit: &str) {
        self.lock().failing.remove(unit);
    }

    /// Makes every look fail from now on, or succeed again.
    pub fn fail_reads(&self, fail: bool) {
        self.lock().reads_fail = fail;
    }

    /// What was carried out, in order: "start ssh.service", "daemon-reload".
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    /// How often somebody asked about a unit.
    pub fn n_looks(&self) -> usize {
        self.lock().n_looks
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn status(active_state: &str, unit_file_state: &str) -> UnitStatus {
    let mut status = UnitStatus {
        load_state: if unit_file_state == "masked" { "masked" } else { "loaded" }.to_owned(),
        unit_file_state: unit_file_state.to_owned(),
        ..UnitStatus::default()
    };
    set_active(&mut status, active_state);
    status
}

fn set_active(status: &mut UnitStatus, active_state: &str) {
    active_state.clone_into(&mut status.active_state);
    let sub_state = match active_state {
        "active" => "running",
        "inactive" => "dead",
        other => other,
    };
    sub_state.clone_into(&mut status.sub_state);
}

impl Units for FakeUnits {
    fn status(&self, unit: &UnitName) -> Result<UnitStatus, UnitError> {
        let mut state = self.lock();
        state.n_looks += 1;
        if state.reads_fail {
            return Err(UnitError::Connect { reason: "made to fail".to_owned() });
        }
        let not_found = || UnitStatus { load_state: "not-found".to_owned(), ..status("inactive", "") };
        Ok(state.units.get(unit.as_str()).cloned().unwrap_or_else(not_found))
    }

    fn carry_out(&mut self, unit: &UnitName, verb: UnitVerb) -> Result<(), UnitError> {
        let mut state = self.lock();
        state.log.push(format!("{} {unit}", verb.as_str()));
        let fails = state.failing.contains(unit.as_str());
        let call_error =
            |reason: &str| UnitError::Call { verb: verb.as_str(), unit: unit.to_string(), reason: reason.to_owned() };
        let Some(status) = state.units.get_mut(unit.as_str()) else {
            return match verb {
                UnitVerb::Stop | UnitVerb::ResetFailed => Ok(()),
                UnitVerb::Mask => {
                    state.units.insert(unit.to_string(), self::status("inactive", "masked"));
                    Ok(())
                }
                UnitVerb::Start
                | UnitVerb::TryRestart
                | UnitVerb::ReloadOrTryRestart
                | UnitVerb::Enable
                | UnitVerb::Disable
                | UnitVerb::Unmask => Err(call_error("Unit not found.")),
            };
        };
        match verb {
            UnitVerb::Start | UnitVerb::TryRestart | UnitVerb::ReloadOrTryRestart => {
                if status.unit_file_state == "masked" {
                    return Err(call_error("Unit is masked."));
                }
                if verb != UnitVerb::Start && status.active_state != "active" {
                    return Ok(());
                }
                if fails {
                    set_active(status, "failed");
                    let (verb, unit, result) = (verb.as_str(), unit.to_string(), "failed".to_owned());
                    return Err(UnitError::Job { verb, unit, result, journal: "made to fail".to_owned() });
                }
                set_active(status, "active");
            }
            UnitVerb::Stop => set_active(status, "inactive"),
            UnitVerb::Enable if status.unit_file_state == "masked" => return Err(call_error("Unit is masked.")),
            UnitVerb::Enable => "enabled".clone_into(&mut status.unit_file_state),
            UnitVerb::Disable => "disabled".clone_into(&mut status.unit_file_state),
            UnitVerb::Mask => {
                "masked".clone_into(&mut status.unit_file_state);
                "masked".clone_into(&mut status.load_state);
            }
            UnitVerb::Unmask => {
                "disabled".clone_into(&mut status.unit_file_state);
                "loaded".clone_into(&mut status.load_state);
            }
            UnitVerb::ResetFailed if status.active_state == "failed" => set_active(status, "inactive"),
            UnitVerb::ResetFailed => {}
        }
        Ok(())
    }

    fn daemon_reload(&mut self) -> Result<(), UnitError> {
        let mut state = self.lock();
        state.log.push("daemon-reload".to_owned());
        let unread = std::mem::take(&mut state.unread);
        state.units.extend(unread);
        state.units.values_mut().for_each(|status| status.need_daemon_reload = false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_can_be_seen() {
        let fake = FakeUnits::new();
        fake.add_unread("ssh.service");
        let mut units = fake.clone();
        let unit = UnitName::new("ssh.service").unwrap();
        assert_eq!(fake.status(&unit).unwrap().load_state, "not-found");
        units.daemon_reload().unwrap();
        let steps = [
            (UnitVerb::TryRestart, "inactive", "disabled"),
            (UnitVerb::Enable, "inactive", "enabled"),
            (UnitVerb::Start, "active", "enabled"),
            (UnitVerb::Stop, "inactive", "enabled"),
            (UnitVerb::Mask, "inactive", "masked"),
            (UnitVerb::Unmask, "inactive", "disabled"),
        ];
        for (verb, active_state, unit_file_state) in steps {
            units.carry_out(&unit, verb).unwrap();
            let seen = fake.status(&unit).unwrap();
            assert_eq!((seen.active_state.as_str(), seen.unit_file_state.as_str()), (active_state, unit_file_state));
        }
        fake.fail_starts("ssh.service");
        assert!(matches!(units.carry_out(&unit, UnitVerb::Start), Err(UnitError::Job { .. })));
        assert_eq!(fake.status(&unit).unwrap().active_state, "failed");
        fake.fail_reads(true);
        assert!(fake.status(&unit).is_err());
        assert_eq!(fake.log().len(), 8);
    }
}
