//! systemd units, over D-Bus.

pub mod captured;
pub mod fake;
pub mod systemctl;
pub mod systemd;

use std::path::Path;

use crate::resource::UnitName;

/// What systemd says about a unit. The strings are systemd's own words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnitStatus {
    /// `LoadState`: `loaded`, `not-found`, `masked`, `bad-setting`, …
    pub load_state: String,
    /// `ActiveState`: `active`, `inactive`, `failed`, `activating`, …; `offline` for every unit of an image.
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

impl UnitVerb {
    /// The verb as `systemctl` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::TryRestart => "try-restart",
            Self::ReloadOrTryRestart => "try-reload-or-restart",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Mask => "mask",
            Self::Unmask => "unmask",
            Self::ResetFailed => "reset-failed",
        }
    }
}

/// An operation on a unit that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// systemd could not be reached.
    #[error("cannot reach systemd: {reason}")]
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
    /// What was captured of a host does not tell.
    #[error("whether `{unit}` is enabled cannot be told: {why}")]
    Untold {
        /// The unit.
        unit: String,
        /// Why not.
        why: String,
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

/// A host without systemd, or a tree that is no host. Everything is refused.
#[derive(Debug, Clone)]
pub struct NoUnits {
    why: String,
}

impl NoUnits {
    /// Takes the reason that every refusal gives.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

impl Units for NoUnits {
    fn status(&self, _unit: &UnitName) -> Result<UnitStatus, UnitError> {
        Err(UnitError::Unsupported { why: self.why.clone() })
    }

    fn carry_out(&mut self, _unit: &UnitName, _verb: UnitVerb) -> Result<(), UnitError> {
        Err(UnitError::Unsupported { why: self.why.clone() })
    }

    fn daemon_reload(&mut self) -> Result<(), UnitError> {
        Err(UnitError::Unsupported { why: self.why.clone() })
    }
}

/// Finds what tells of the units of a captured host, unpacked at `root`.
pub fn detect_captured(root: &Path) -> std::io::Result<Box<dyn Units>> {
    let tree = crate::host::root::Root::open(root)?;
    // Only beneath the capture: a link in it leads nowhere else.
    let has_units = |path: &str| {
        let path = crate::resource::AbsPath::new(path).ok()?;
        tree.metadata(&path).ok().flatten().filter(|found| found.file_type == crate::host::root::FileType::Directory)
    };
    let is_whole = ["/usr/lib/systemd/system", "/lib/systemd/system"].into_iter().any(|path| has_units(path).is_some());
    if is_whole {
        return Ok(Box::new(systemctl::Systemctl::image(root)));
    }
    Ok(Box::new(captured::Captured::new(root)?))
}

/// Finds the service manager of the host or image at `root`.
pub fn detect(root: &Path) -> Box<dyn Units> {
    if root == Path::new("/") {
        if !Path::new("/run/systemd/system").is_dir() {
            return Box::new(NoUnits::new("systemd does not run here"));
        }
        match systemd::Systemd::new() {
            Ok(systemd) => Box::new(systemd),
            Err(error) => Box::new(NoUnits::new(format!("the connection to systemd cannot be prepared: {error}"))),
        }
    } else if root.join("usr/lib/systemd/systemd").exists() || root.join("lib/systemd/systemd").exists() {
        Box::new(systemctl::Systemctl::image(root))
    } else {
        Box::new(NoUnits::new("no systemd is installed there"))
    }
}
