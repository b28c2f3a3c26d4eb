//! The agent's own configuration: drop-ins to validated, inert [`Settings`].
//!
//! `/usr/lib/rekindle/agent.toml.d/*.toml`, then `/run/rekindle/agent.toml.d/*.toml`, then `/etc/rekindle/agent.toml` and
//! `/etc/rekindle/agent.toml.d/*.toml`: a file shadows one of the same name in an earlier directory, a later key wins over an
//! earlier one. An unknown key, an unreadable file, or a file that anyone but root may write stops the service with a
//! sentence that says what, where and how to mend it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::spool::Event;

mod document;
mod files;
mod settings;

pub use settings::is_role;
#[cfg(test)]
mod tests;
mod values;

/// Reads the configuration of the host whose root directory is `root`. A host without any gets [`Settings::default`], with
/// which both services wait for one.
pub fn load(root: &Path) -> Result<Settings, ConfigError> {
    files::of_host(root).and_then(|sources| settings::from_sources(&sources))
}

/// Reads one named file and its drop-ins, or the system's locations when none is named.
pub fn load_from(file: Option<&Path>) -> Result<Settings, ConfigError> {
    match file {
        Some(file) => load_file(file),
        None => load(Path::new("/")),
    }
}

/// Parses a whole number and a unit, such as `250ms`, `1m`, `30d`; the error says what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    values::duration(text)
}

/// Reads a file that says whom to trust, or that others than root must not decide: at most 1 MiB, written by root alone.
pub fn read_guarded(path: &Path) -> Result<Vec<u8>, ConfigError> {
    files::read_guarded(path)
}

/// Refuses a file that others than its owner may read.
pub fn refuse_readable(path: &Path) -> Result<(), ConfigError> {
    files::refuse_readable(path)
}

/// Reads one file, which must exist, and the drop-ins in the directory of its name with `.d` appended.
pub fn load_file(path: &Path) -> Result<Settings, ConfigError> {
    files::of_file(path).and_then(|sources| settings::from_sources(&sources))
}

/// A configuration that cannot be used. Nothing falls back to a default because of it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or directory could not be read.
    #[error("cannot read `{}`", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something that is no file of a reasonable size.
    #[error("`{}` is {found}, not a configuration file", .path.display())]
    NotAFile {
        /// Which.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Others than root could have written it.
    #[error("`{}` {found}, so others than root {may}\nhint: {hint}", .path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// In what way.
        found: String,
        /// What they may do.
        may: &'static str,
        /// A command that mends it.
        hint: String,
    },
    /// What it says is wrong. All that is wrong is named at once.
    #[error("{}", list(.problems))]
    Invalid {
        /// At least one.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What was expected and what was found.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

/// A place in a configuration file. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Place { file, line, column } = &self.place;
        write!(f, "{}:{line}:{column}: {}", file.display(), self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

fn list(problems: &[Problem]) -> String {
    let texts: Vec<String> = problems.iter().map(Problem::to_string).collect();
    texts.join("\n")
}

/// Everything the two services need to know. Constructing it touches nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// Whether drift is repaired or only reported.
    pub mode: Mode,
    /// Roles of this host, as policies see them.
    pub roles: Vec<String>,
    /// The file with this host's age key, for the secrets of policies; default `/etc/rekindle/age.key`.
    pub age_identity: Option<PathBuf>,
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
    /// Who may read metrics besides root.
    pub metrics: MetricsSettings,
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
    /// An OpenSSH allowed_signers file or an OpenPGP keyring; its content says which.
    Keys(PathBuf),
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
    /// A program that looks at what is to be put in place is killed after this long; default 60 s.
    pub validate_timeout: Duration,
}

impl Default for ConvergeSettings {
    fn default() -> Self {
        Self {
            full_scan: Duration::from_secs(30 * 60),
            settle: Duration::ZERO,
            settle_max: Duration::from_secs(2),
            validate_timeout: Duration::from_secs(60),
        }
    }
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
    /// Repairs of one resource within `flapping_within` beyond which it is contested; default 60. Never 0.
    pub flapping_repairs: u32,
    /// See `flapping_repairs`; default 1 min.
    pub flapping_within: Duration,
    /// How long a resource may be contested before the host counts as flapping; default 15 min.
    pub flapping_for: Duration,
    /// After a withdrawn or denied request, not to ask again before; default 1 h.
    pub cool_down: Duration,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(5 * 60),
            give_up_attempts: 5,
            give_up_after: Duration::from_secs(15 * 60),
            // One repair a second costs next to nothing, while every second of back-off leaves drift in place: somebody who
            // edits a file ten times must not win the eleventh.
            flapping_repairs: 60,
            flapping_within: Duration::from_secs(60),
            flapping_for: Duration::from_secs(15 * 60),
            cool_down: Duration::from_secs(60 * 60),
        }
    }
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

/// `[metrics]`. Root reads them from a socket, whatever is configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MetricsSettings {
    /// A file for the textfile collector of node_exporter, readable by everybody.
    pub textfile: Option<PathBuf>,
    /// A port of the loopback interface, on which the courier answers everybody on this host.
    pub port: Option<u16>,
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
    /// This very program, also when its file has been replaced; tests are another one.
    pub program: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            root: "/".into(),
            state: "/var/lib/rekindle".into(),
            runtime: "/run/rekindle".into(),
            program: "/proc/self/exe".into(),
        }
    }
}

impl Paths {
    /// The file with this host's age key.
    pub fn age_identity(&self, settings: &Settings) -> PathBuf {
        settings.age_identity.clone().unwrap_or_else(|| self.root.join("etc/rekindle/age.key"))
    }

    /// The newest revision that was ever accepted, outside the state so that it outlives it.
    pub fn newest(&self) -> PathBuf {
        self.root.join("etc/rekindle/newest-revision")
    }

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

    /// The socket for metrics.
    pub fn metrics_socket(&self) -> PathBuf {
        self.runtime.join("metrics.sock")
    }

    /// The metrics, for the courier.
    pub fn metrics_file(&self) -> PathBuf {
        self.runtime.join("metrics.prom")
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }
}
