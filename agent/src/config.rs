//! The agent's own configuration: drop-ins to validated, inert [`Settings`].
//!
//! `/usr/lib/rekindle/agent.toml.d/*.toml`, then `/run/rekindle/agent.toml.d/*.toml`, then `/etc/rekindle/agent.toml` and
//! `/etc/rekindle/agent.toml.d/*.toml`: a file shadows one of the same name in an earlier directory, a later key wins over an
//! earlier one. An unknown key, an unreadable file, or a file that anyone but root may write stops the service with a
//! sentence that says what, where and how to mend it.

use std::path::PathBuf;
use std::time::Duration;

use crate::spool::Event;

/// Everything the two services need to know. Constructing it touches nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Whether drift is repaired or only reported.
    pub mode: Mode,
    /// Roles of this host, as policies see them.
    pub roles: Vec<String>,
    /// Where the policy comes from; `None` when this host has none configured yet.
    pub policy: Option<PolicySettings>,
    /// When and how thoroughly to look.
    pub converge: ConvergeSettings,
    /// When to give up.
    pub health: HealthSettings,
    /// The central endpoint, if there is one.
    pub reimage: Option<ReimageSettings>,
    /// Receivers of alerts.
    pub webhooks: Vec<WebhookSettings>,
    /// Directories, overridable for sandboxes and tests.
    pub paths: Paths,
}

/// Whether drift is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Repair it.
    #[default]
    Enforce,
    /// Compute and report the plan; change nothing.
    Noop,
}

/// `[policy]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySettings {
    /// `https`, `ssh` or `file` URL of a git repository. `ssh` also as `user@host:path`.
    pub url: String,
    /// Branch; default `main`.
    pub branch: String,
    /// Time between pulls; default 1 min. The first is spread by a hash of the machine id.
    pub interval: Duration,
    /// Whose signatures count.
    pub trust: TrustSettings,
    /// PEM file of the certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Private key for `ssh`.
    pub ssh_key: Option<PathBuf>,
    /// Known hosts for `ssh`; unknown hosts are refused.
    pub known_hosts: Option<PathBuf>,
    /// File with a bearer token for `https`.
    pub token_file: Option<PathBuf>,
    /// Deadline of one pull; default 2 min.
    pub timeout: Duration,
}

/// Whose signatures count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustSettings {
    /// An OpenSSH allowed_signers file.
    AllowedSigners(PathBuf),
    /// `trust = "none"`, written out: any commit of the branch is accepted.
    None,
}

/// `[converge]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvergeSettings {
    /// Time between observations of everything; default 30 min.
    pub full_scan: Duration,
    /// Wait after the last event on a path; default 0.
    pub settle: Duration,
    /// Longest wait for a writer that never stops; default 2 s.
    pub settle_max: Duration,
}

/// `[health]`.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthSettings {
    /// First retry delay; default 1 s. It doubles, with jitter.
    pub retry_first: Duration,
    /// Longest retry delay; default 5 min.
    pub retry_max: Duration,
    /// Attempts before giving up; default 5. Never 0.
    pub give_up_attempts: u32,
    /// Time before giving up; default 15 min. Both must have passed.
    pub give_up_after: Duration,
    /// Repairs of one resource within `flapping_within` that count as flapping; default 5.
    pub flapping_repairs: u32,
    /// See `flapping_repairs`; default 10 min.
    pub flapping_within: Duration,
    /// After a withdrawn or denied request, not to ask again before; default 1 h.
    pub cool_down: Duration,
}

/// `[reimage]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ReimageSettings {
    /// Base URL of the endpoint, `https`.
    pub endpoint: String,
    /// PEM file of the certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// File with the join token for enrolment; read once, when there is no identity yet.
    pub join_token_file: Option<PathBuf>,
    /// File with this host's bearer token, when it was enrolled by other means.
    pub token_file: Option<PathBuf>,
    /// The slot's name; default from the DMI UUID or the host name.
    pub host_id: Option<String>,
    /// Time between check-ins; default 5 min, or as the endpoint says.
    pub checkin: Duration,
    /// Directories of drain hooks, run in order after a grant.
    pub drain: Vec<PathBuf>,
    /// Longest time for all drain hooks together; default 10 min.
    pub drain_timeout: Duration,
    /// What this host itself must do after the hand-over; usually nothing.
    pub local_command: Vec<String>,
}

/// `[[webhook]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookSettings {
    /// Receiver.
    pub url: String,
    /// File with the Standard Webhooks secret (`whsec_…` or raw); unsigned when absent.
    pub secret_file: Option<PathBuf>,
    /// PEM file of the certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Which events; empty means all.
    pub events: Vec<EventFilter>,
}

/// A word in a webhook's `events`: a whole event, or the part before its dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventFilter {
    /// `drift.repaired`.
    Exactly(Event),
    /// `drift`, `policy`, `reimage`, `pause`, `watch`, `agent`; `failed` is another name of `convergence`.
    Family(String),
}

/// Directories that the services use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Root of the managed host; `/`.
    pub root: PathBuf,
    /// Durable state; `/var/lib/rekindle`.
    pub state: PathBuf,
    /// Control socket and lock; `/run/rekindle`.
    pub runtime: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { root: "/".into(), state: "/var/lib/rekindle".into(), runtime: "/run/rekindle".into() }
    }
}

impl Paths {
    /// `outbox/`.
    pub fn outbox(&self) -> PathBuf {
        self.state.join("outbox")
    }

    /// `inbox/`.
    pub fn inbox(&self) -> PathBuf {
        self.state.join("inbox")
    }

    /// The courier's own directory.
    pub fn courier(&self) -> PathBuf {
        self.state.join("courier")
    }

    /// The bare repository that the courier fetches into.
    pub fn repository(&self) -> PathBuf {
        self.courier().join("policy.git")
    }

    /// Verified policy trees.
    pub fn policies(&self) -> PathBuf {
        self.state.join("policy")
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }
}
