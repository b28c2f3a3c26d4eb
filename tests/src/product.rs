//! rekindle as its users have it: the package, installed by apt, and the commands of the installed agent.
//!
//! Nothing here reaches into the agent: what is known about it comes from its commands, its unit and the host.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::apt::AptRepository;
use crate::certificates::Authority;
use crate::git::{GitServer, Signature};
use crate::image::{cache_dir, lock, workspace};
use crate::machine::Machine;
use crate::receiver::Receiver;
use crate::run::{Invocation, put, require, wait_for};

/// The agent's unit.
pub const AGENT: &str = "rekindle-agent.service";

/// The courier's unit.
pub const COURIER: &str = "rekindle-courier.service";

/// Enough for a first convergence with packages on a busy build machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the package and the hub are made of: when one of these is newer, they are built again.
const SOURCES: &[&str] = &["Cargo.toml", "Cargo.lock", "agent", "hub", "protocol", "packaging", "systemd", "README.md"];

/// What one test run installs.
#[derive(Debug)]
pub struct Build {
    /// The agent's Debian package.
    pub package: PathBuf,
    /// The endpoint's program.
    pub hub: PathBuf,
}

/// Settings of an agent, as text for its configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Keys before the first table, such as `roles = ["web"]`.
    pub top: String,
    /// Keys of `[health]`.
    pub health: String,
    /// Whole tables.
    pub tables: String,
}

/// A host with the servers around it, all of them real.
#[derive(Debug)]
pub struct Estate {
    /// The host. First, so that it is gone before the servers.
    pub machine: Machine,
    /// Where its packages come from.
    pub apt: AptRepository,
    /// Where its policy comes from.
    pub git: GitServer,
    /// Where its alerts go.
    pub receiver: Receiver,
    /// Who vouches for the servers.
    pub authority: Authority,
}

/// One entry of the agent's history.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its number.
    pub id: i64,
    /// `kind[name]`.
    pub resource: String,
    /// `new_revision`, `drift` or `operator`.
    pub cause: String,
    /// `changed`, `failed`, …
    pub outcome: String,
    /// What differed.
    pub changes: Vec<Value>,
}

impl Default for Settings {
    /// Tests drift the same resource again and again: that is no fight to be given up.
    fn default() -> Self {
        Self {
            top: String::new(),
            health: "flapping = { repairs = 1000000, within = \"1m\" }\n".to_owned(),
            tables: String::new(),
        }
    }
}

/// Builds the package and the hub, once for all tests of a run. `REKINDLE_TEST_PROFILE` names another Cargo profile than
/// `dev`.
pub fn build() -> Result<&'static Build> {
    static BUILD: OnceLock<Build> = OnceLock::new();
    if let Some(build) = BUILD.get() {
        return Ok(build);
    }
    let build = build_now()?;
    Ok(BUILD.get_or_init(|| build))
}

fn build_now() -> Result<Build> {
    let profile = std::env::var("REKINDLE_TEST_PROFILE").unwrap_or_else(|_| "dev".to_owned());
    let _lock = lock("build")?;
    let out = cache_dir()?.join("packages").join(&profile);
    let newest = SOURCES.iter().filter_map(|source| newest(&workspace().join(source))).max();
    let built = |package: &Path| std::fs::metadata(package).and_then(|package| package.modified()).ok();
    if package_in(&out).is_none_or(|package| built(&package) < newest) {
        Invocation::new("packaging/build")
            .arg(&out)
            .args(["--profile", &profile, "--only", "deb"])
            .dir(workspace())
            .ok()
            .context("cannot build the package under test")?;
    }
    let target = if profile == "dev" { "debug" } else { &profile };
    Ok(Build {
        package: package_in(&out)
            .with_context(|| format!("`packaging/build` made no package in `{}`", out.display()))?,
        hub: cache_dir()?.join("..").join(target).join("rekindle-hub"),
    })
}

/// The agent's package in a directory, if there is one.
fn package_in(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?;
    let mut packages: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("rekindle_") && name.ends_with(".deb")
        })
        .collect();
    packages.sort();
    packages.pop()
}

/// The time of the newest file below a path.
fn newest(path: &Path) -> Option<SystemTime> {
    let metadata = path.symlink_metadata().ok()?;
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    below.filter_map(|entry| newest(&entry.path())).chain(metadata.modified().ok()).max()
}

impl Estate {
    /// Starts the servers, boots the host and installs the package, which starts nothing there.
    pub fn new() -> Result<Self> {
        require()?;
        let authority = Authority::new()?;
        let (git, receiver) = (GitServer::start(&authority)?, Receiver::start(&authority)?);
        let apt = AptRepository::new()?;
        apt.add_file(&build()?.package)?;
        let machine = Machine::boot()?;
        let estate = Self { machine, apt, git, receiver, authority };
        estate.apt.publish_to(&estate.machine)?;
        estate.install()?;
        for unit in [AGENT, COURIER] {
            ensure!(!estate.machine.is_active(unit)?, "{unit} runs on a host that has no configuration");
        }
        Ok(estate)
    }

    /// Installs the package on the host.
    pub fn install(&self) -> Result<()> {
        self.machine.run("apt-get").args(["--quiet", "--yes", "install", "rekindle"]).ok()?;
        Ok(())
    }

    /// Writes the configuration, with the policy from [`Self::git`] and the alerts to [`Self::receiver`].
    pub fn configure(&self, settings: &Settings) -> Result<()> {
        self.configure_below(&self.machine.root(), settings)?;
        self.machine.sh("chown root:rekindle /etc/rekindle/*.key && chmod 0640 /etc/rekindle/*.key")?;
        Ok(())
    }

    /// As [`Self::configure`], on a disk that is not booted: the owner of the keys is still to be set.
    pub fn configure_below(&self, root: &Path, settings: &Settings) -> Result<()> {
        let etc = root.join("etc/rekindle");
        put(etc.join("ca.pem"), self.authority.pem())?;
        put(etc.join("allowed_signers"), self.git.allowed_signers()?)?;
        put(etc.join("webhook.key"), self.receiver.secret())?;
        let Settings { top, health, tables } = settings;
        let (git, receiver) = (self.git.url(), self.receiver.url());
        let text = format!(
            "{top}
[policy]
url = \"{git}\"
interval = \"5s\"
trust = \"/etc/rekindle/allowed_signers\"
ca = \"/etc/rekindle/ca.pem\"

[health]
{health}
[[webhook]]
url = \"{receiver}\"
secret_file = \"/etc/rekindle/webhook.key\"
ca = \"/etc/rekindle/ca.pem\"

{tables}"
        );
        put(etc.join("agent.toml"), text)
    }

    /// Starts both services and waits until they say that they are ready.
    pub fn start(&self) -> Result<()> {
        self.machine.run("systemctl").args(["start", AGENT, COURIER]).ok()?;
        Ok(())
    }

    /// Commits what was written to the policy, signed, and has the host pull it.
    pub fn push(&self, message: &str) -> Result<String> {
        let revision = self.git.commit(message, Signature::Trusted)?;
        self.fetch()?;
        Ok(revision)
    }

    /// Has the host pull its policy now.
    pub fn fetch(&self) -> Result<()> {
        self.rekindle(&["fetch"])?.ok()?;
        Ok(())
    }

    /// Runs a command of the installed agent.
    pub fn rekindle(&self, args: &[&str]) -> Result<crate::Output> {
        self.machine.run("rekindle").args(args).output()
    }

    /// What `rekindle status` says. Its exit code says whether all is well, which is for the caller to judge.
    pub fn status(&self) -> Result<Value> {
        let said = self.rekindle(&["status", "--json"])?;
        serde_json::from_str(&said.stdout).with_context(|| format!("`rekindle status --json` said {said:?}"))
    }

    /// What `rekindle history` says, oldest first.
    pub fn history(&self) -> Result<Vec<Entry>> {
        let json = self.machine.run("rekindle").args(["history", "--json", "--limit", "100000"]).ok()?;
        let json: Value = serde_json::from_str(&json).context("`rekindle history --json` printed no JSON")?;
        let entries = json["entries"].as_array().with_context(|| format!("no entries in {json}"))?;
        let mut entries: Vec<Entry> = entries.iter().map(Entry::read).collect::<Result<_>>()?;
        entries.sort_by_key(|entry| entry.id);
        Ok(entries)
    }

    /// Waits until this revision is in force and everything is in sync; returns the status.
    pub fn wait_converged(&self, revision: &str) -> Result<Value> {
        let mut last = Value::Null;
        wait_for("convergence", PATIENCE, || {
            // An agent that is being restarted does not answer.
            let Ok(status) = self.status() else { return Ok(None) };
            last = status;
            Ok(is_converged(&last, revision).then(|| last.clone()))
        })
        .with_context(|| format!("revision {revision} is to be in force; the last status is {last:#}"))
    }

    /// Waits for the alert about one entry of the history.
    pub fn wait_alert(&self, entry: &Entry) -> Result<()> {
        let what = format!("an alert about {} (history {})", entry.resource, entry.id);
        let message = self.receiver.wait_for(&what, PATIENCE, |message| alerted(&message.body).contains(&entry.id))?;
        ensure!(message.verified == Ok(()), "{what} carries no valid signature: {:?}", message.verified);
        Ok(())
    }
}

impl Entry {
    fn read(json: &Value) -> Result<Self> {
        let text = |key: &str| json[key].as_str().map(str::to_owned).with_context(|| format!("no `{key}` in {json}"));
        Ok(Self {
            id: json["id"].as_i64().with_context(|| format!("no `id` in {json}"))?,
            resource: text("resource")?,
            cause: text("cause")?,
            outcome: text("outcome")?,
            changes: json["changes"].as_array().cloned().unwrap_or_default(),
        })
    }

    /// Whether it is a repair of drift.
    pub fn is_repair(&self) -> bool {
        self.cause == "drift" && self.outcome == "changed"
    }
}

/// Whether a status says that this revision is in force and nothing is left to do.
pub fn is_converged(status: &Value, revision: &str) -> bool {
    status["policy"]["revision"] == revision
        && status["health"]["state"] == "converged"
        && status["out_of_sync"].as_object().is_some_and(serde_json::Map::is_empty)
        && status["debts"].as_array().is_some_and(Vec::is_empty)
}

/// The event that a webhook's body is about, such as `drift.repaired`.
pub fn event(body: &Value) -> &str {
    body["type"].as_str().unwrap_or_default()
}

/// The resources of an alert.
pub fn resources(body: &Value) -> Vec<&str> {
    let resources = body["data"]["resources"].as_array().into_iter().flatten();
    resources.filter_map(|resource| resource["resource"].as_str()).collect()
}

/// The entries of the history that an alert tells of.
pub fn alerted(body: &Value) -> Vec<i64> {
    let resources = body["data"]["resources"].as_array().into_iter().flatten();
    resources.filter_map(|resource| resource["history"].as_i64()).collect()
}
