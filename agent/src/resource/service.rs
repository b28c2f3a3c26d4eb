//! `service`: a systemd unit's enablement and run state.

use super::UnitName;

/// What a unit should be. A unit is never created or deleted by this kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The unit, with suffix.
    pub unit: UnitName,
    /// Started at boot, not started at boot, or not looked at.
    pub enabled: Option<Enablement>,
    /// Run state, or not looked at.
    pub state: Option<RunState>,
}

/// Whether a unit starts at boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enablement {
    /// `systemctl enable`.
    Enabled,
    /// `systemctl disable`.
    Disabled,
}

/// What a unit should be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Active.
    Running,
    /// Inactive.
    Stopped,
    /// Stopped and linked to /dev/null, so that nothing starts it.
    Masked,
}
