//! systemd units, over D-Bus.

use crate::resource::UnitName;

/// What systemd says about a unit. The strings are systemd's own words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnitStatus {
    /// `LoadState`: `loaded`, `not-found`, `masked`, `bad-setting`, …
    pub load_state: String,
    /// `ActiveState`: `active`, `inactive`, `failed`, `activating`, …
    pub active_state: String,
    /// `SubState`.
    pub sub_state: String,
    /// `UnitFileState`: `enabled`, `disabled`, `static`, `masked`, `indirect`, `alias`, `generated`, … or empty.
    pub unit_file_state: String,
    /// Whether the unit file changed on disk since systemd read it.
    pub need_daemon_reload: bool,
}

/// A verb for a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitVerb {
    /// Start it and wait for the job.
    Start,
    /// Stop it and wait for the job.
    Stop,
    /// Restart it if it runs (`TryRestart`).
    TryRestart,
    /// Reload it, or restart if it cannot reload; only if it runs (`ReloadOrTryRestart`).
    ReloadOrTryRestart,
    /// Enable it.
    Enable,
    /// Disable it.
    Disable,
    /// Mask it.
    Mask,
    /// Unmask it.
    Unmask,
    /// Forget a failed state and the start limit.
    ResetFailed,
}

/// An operation on a unit that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// systemd could not be reached.
    #[error("cannot reach systemd")]
    Connect {
        /// Why, in full.
        reason: String,
    },
    /// systemd refused a call.
    #[error("cannot {verb} `{unit}`: {reason}")]
    Call {
        /// The verb in words.
        verb: &'static str,
        /// The unit.
        unit: String,
        /// systemd's words.
        reason: String,
    },
    /// A job ended in another way than `done`. The last lines of the unit's journal are attached.
    #[error("cannot {verb} `{unit}`: the job ended as `{result}`{}", if .journal.is_empty() { String::new() } else { format!("\n{}", .journal) })]
    Job {
        /// The verb in words.
        verb: &'static str,
        /// The unit.
        unit: String,
        /// The job's result.
        result: String,
        /// Bounded, escaped journal lines.
        journal: String,
    },
    /// No systemd runs here.
    #[error("services cannot be managed here: {why}")]
    Unsupported {
        /// Why not.
        why: String,
    },
}

/// The service manager of one host.
pub trait Units: std::fmt::Debug + Send {
    /// Asks for a unit's state now. A unit without a file is `load_state = "not-found"`, not an error.
    fn status(&self, unit: &UnitName) -> Result<UnitStatus, UnitError>;
    /// Carries out one verb and waits until its job has ended.
    fn carry_out(&mut self, unit: &UnitName, verb: UnitVerb) -> Result<(), UnitError>;
    /// Makes systemd read unit files again.
    fn daemon_reload(&mut self) -> Result<(), UnitError>;
}
