//! `service`: a systemd unit's enablement and run state, as systemd means them.
//!
//! - A unit that is `static`, `indirect`, `alias`, `generated`, `linked` or `transient` can be neither enabled nor disabled:
//!   what its unit file says is not drift, whichever is desired.
//! - `masked` is not `disabled`: it keeps others from starting the unit. A masked unit that should run is unmasked first.
//! - With `state = "masked"` enablement is not looked at, because a masked unit has none.
//! - A unit that is `activating` is on its way to running, and one that is `deactivating` is on its way to stopped: neither is
//!   drift, except where systemd only waits to restart a service that keeps dying.
//! - A unit that systemd does not know satisfies "disabled" and "stopped" and cannot satisfy the others.

use super::{Action, ApplyError, Change, Drift, Observation, UnitName, Verdict, error};
use crate::host::Host;
use crate::host::units::{UnitStatus, UnitVerb};

/// What a unit should be. A unit is never created or deleted by this kind.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// The unit, with suffix.
    pub unit: UnitName,
    /// Started at boot, not started at boot, or not looked at.
    pub enabled: Option<Enablement>,
    /// Run state, or not looked at.
    pub state: Option<RunState>,
}

impl Desired {
    /// Whether the unit is not to run.
    pub fn stops(&self) -> bool {
        match self.state {
            Some(RunState::Stopped | RunState::Masked) => true,
            Some(RunState::Running) | None => false,
        }
    }
}

/// Whether a unit starts at boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Enablement {
    /// `systemctl enable`.
    Enabled,
    /// `systemctl disable`.
    Disabled,
}

/// What a unit should be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RunState {
    /// Active.
    Running,
    /// Inactive.
    Stopped,
    /// Stopped and linked to /dev/null, so that nothing starts it.
    Masked,
}

/// What systemd says.
pub type Observed = UnitStatus;

/// Asks systemd.
pub fn observe(host: &Host, desired: &Desired) -> Observation<Observed> {
    match host.units.status(&desired.unit) {
        Err(e) => Observation::Unknown(error::chain(&e)),
        Ok(status) if status.load_state == "not-found" => Observation::Absent,
        Ok(status) => Observation::Present(status),
    }
}

/// What must be done to one unit, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needed {
    unmask: bool,
    enablement: Option<Enablement>,
    state: Option<RunState>,
}

fn needed(desired: &Desired, status: Option<&UnitStatus>) -> Needed {
    let file_state = status.map_or("", |s| s.unit_file_state.as_str());
    let masked = matches!(file_state, "masked" | "masked-runtime") || status.is_some_and(|s| s.load_state == "masked");
    let want_masked = desired.state == Some(RunState::Masked);
    let enablement = match desired.enabled {
        None => None,
        Some(_) if want_masked => None,
        Some(Enablement::Enabled) => {
            let needs = match file_state {
                "enabled" | "static" | "indirect" | "alias" | "generated" | "linked" | "linked-runtime"
                | "transient" => false,
                // Disabled, masked, enabled only until the next boot, bad, or a word that systemd invents later.
                _ => true,
            };
            needs.then_some(Enablement::Enabled)
        }
        Some(Enablement::Disabled) => {
            matches!(file_state, "enabled" | "enabled-runtime").then_some(Enablement::Disabled)
        }
    };
    let state = match desired.state {
        None => None,
        Some(RunState::Running) => (!status.is_some_and(runs)).then_some(RunState::Running),
        Some(RunState::Stopped) => status.is_some_and(|s| !stopped(s)).then_some(RunState::Stopped),
        Some(RunState::Masked) => {
            let done = file_state == "masked" && status.is_none_or(stopped);
            (!done).then_some(RunState::Masked)
        }
    };
    let unmask = masked
        && !want_masked
        && (desired.enabled == Some(Enablement::Enabled) || desired.state == Some(RunState::Running));
    Needed { unmask, enablement, state }
}

fn runs(status: &UnitStatus) -> bool {
    match status.active_state.as_str() {
        // In an image nothing runs; what is enabled runs on every host that boots from it.
        "active" | "reloading" | "refreshing" | "offline" => true,
        "activating" => status.sub_state != "auto-restart" && status.sub_state != "auto-restart-queued",
        _ => false,
    }
}

fn stopped(status: &UnitStatus) -> bool {
    matches!(status.active_state.as_str(), "inactive" | "failed" | "deactivating" | "offline")
}

/// Compares.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    let status = match observation {
        Observation::Unknown(why) => return Verdict::Indeterminate(why.clone()),
        Observation::Absent => None,
        Observation::Present(status) => Some(status),
    };
    let needed = needed(desired, status);
    let mut changes = Vec::new();
    let file_state = status.map_or("not found", |s| s.unit_file_state.as_str());
    if let Some(enablement) = needed.enablement {
        let to = match enablement {
            Enablement::Enabled => "enabled",
            Enablement::Disabled => "disabled",
        };
        changes.push(Change::value("enabled", Some(file_state.to_owned()), Some(to.to_owned())));
    } else if needed.unmask {
        changes.push(Change::value("enabled", Some(file_state.to_owned()), Some("unmasked".to_owned())));
    }
    if let Some(state) = needed.state {
        let from = status.map_or_else(|| "not found".to_owned(), |s| format!("{} ({})", s.active_state, s.sub_state));
        let to = match state {
            RunState::Running => "running",
            RunState::Stopped => "stopped",
            RunState::Masked => "masked",
        };
        changes.push(Change::value("state", Some(from), Some(to.to_owned())));
    }
    if changes.is_empty() { Verdict::InSync } else { Verdict::Drift(Drift { action: Action::Update, changes }) }
}

/// Puts the unit in sync with what was desired, starting from what was observed.
pub fn apply(host: &mut Host, desired: &Desired, observation: &Observation<Observed>) -> Result<(), ApplyError> {
    let unit = &desired.unit;
    let mut observation = observation.clone();
    let stale = match &observation {
        // A unit file that came with an earlier step may not have been read yet.
        Observation::Absent => true,
        Observation::Present(status) => status.need_daemon_reload,
        Observation::Unknown(_) => false,
    };
    // Reloading clears the mark on every unit, so this happens at most once for a batch of new unit files.
    if stale {
        host.units.daemon_reload()?;
        observation = observe(host, desired);
    }
    let status = match &observation {
        Observation::Unknown(why) => {
            return Err(ApplyError::Vanished { what: unit.to_string(), why: why.clone() });
        }
        Observation::Absent if desired.state == Some(RunState::Masked) => None,
        Observation::Absent => return Err(ApplyError::NoSuchUnit { unit: unit.to_string() }),
        Observation::Present(status) => Some(status),
    };
    let needed = needed(desired, status);
    if needed.unmask {
        host.units.carry_out(unit, UnitVerb::Unmask)?;
    }
    match needed.enablement {
        None => {}
        Some(Enablement::Enabled) => host.units.carry_out(unit, UnitVerb::Enable)?,
        Some(Enablement::Disabled) => host.units.carry_out(unit, UnitVerb::Disable)?,
    }
    match needed.state {
        None => {}
        Some(RunState::Running) => {
            // A unit that hit its start limit refuses to start until the failure is forgotten.
            if status.is_some_and(|s| s.active_state == "failed") {
                host.units.carry_out(unit, UnitVerb::ResetFailed)?;
            }
            host.units.carry_out(unit, UnitVerb::Start)?;
        }
        Some(RunState::Stopped) => host.units.carry_out(unit, UnitVerb::Stop)?,
        Some(RunState::Masked) => {
            // Masked before it is stopped, so that nothing can start it in between.
            if status.is_none_or(|s| s.unit_file_state != "masked") {
                host.units.carry_out(unit, UnitVerb::Mask)?;
            }
            if status.is_some_and(|s| !stopped(s)) {
                host.units.carry_out(unit, UnitVerb::Stop)?;
            }
        }
    }
    Ok(())
}
