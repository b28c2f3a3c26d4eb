//! The agent as its users have it: the real binary on a root of its own, a policy in a git repository, the courier that
//! pulls it, and the commands that say how it is.
//!
//! Two things differ from an installed host, and both are said in its configuration: a commit needs no signature, and
//! drifting one file a thousand times is no fight to be given up.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use rekindle::agent::control::{Answer, Request};
use rekindle::agent::status::Status;
use rekindle_tests::{Invocation, put, wait_for};
use serde_json::Value;
use tempfile::TempDir;

use crate::Bench;
use crate::process::{Background, command};

/// Longest time that a start or a convergence takes: a hundred thousand files on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// A root, a policy repository, and where the agent keeps its state.
#[derive(Debug)]
pub struct Sandbox {
    directory: TempDir,
    root: PathBuf,
    rekindle: PathBuf,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    process: Background,
    /// From the start of the process to the arrival of READY.
    pub ready_after: Duration,
    /// When it was started.
    pub started: Instant,
}

impl Sandbox {
    /// Makes one whose root is a new directory.
    pub fn new(bench: &Bench) -> Result<Self> {
        let directory = directory(bench)?;
        let root = directory.path().join("root");
        Self::with_root(bench, directory, root)
    }

    /// Makes one whose root is elsewhere, such as on a file system of its own.
    pub fn on(bench: &Bench, root: PathBuf) -> Result<Self> {
        Self::with_root(bench, directory(bench)?, root)
    }

    fn with_root(bench: &Bench, directory: TempDir, root: PathBuf) -> Result<Self> {
        let home = directory.path();
        for name in ["state/outbox", "state/inbox", "state/courier", "state/policy", "run", "policy"] {
            make(&home.join(name))?;
        }
        make(&root.join("etc"))?;
        let (home_shown, root_shown) = (home.display(), root.display());
        let config = format!(
            "[policy]\nurl = \"file://{home_shown}/policy\"\ntrust = \"none\"\n\n\
             [health]\nflapping = {{ repairs = 1000000, within = \"1m\" }}\n\n\
             [paths]\nroot = \"{root_shown}\"\nstate = \"{home_shown}/state\"\nruntime = \"{home_shown}/run\"\n"
        );
        let sandbox = Self { root, rekindle: bench.rekindle.clone(), directory };
        put(sandbox.config(), config)?;
        std::fs::set_permissions(sandbox.config(), std::fs::Permissions::from_mode(0o600))?;
        sandbox.git(&["init", "-q", "-b", "main"])?;
        Ok(sandbox)
    }

    /// The managed root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A place for what a measurement writes, on the same file system as the agent's state and, mostly, the root.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("agent.toml")
    }

    fn git(&self, args: &[&str]) -> Result<String> {
        Invocation::new("git")
            .dir(self.directory.path().join("policy"))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .args(["-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0"])
            .args(args)
            .ok()
    }

    /// Commits exactly these files as the policy; returns the revision.
    pub fn commit(&self, files: &[(String, Vec<u8>)]) -> Result<String> {
        self.git(&["rm", "-q", "-r", "--ignore-unmatch", "."])?;
        for (name, content) in files {
            put(self.directory.path().join("policy").join(name), content)?;
        }
        self.git(&["add", "--all"])?;
        self.git(&["commit", "-q", "--allow-empty", "-m", "bench"])?;
        Ok(self.git(&["rev-parse", "HEAD"])?.trim().to_owned())
    }

    /// Starts the agent and waits until it says READY, as systemd would.
    pub fn start_agent(&self) -> Result<Agent> {
        let path = self.directory.path().join("run/notify");
        drop(std::fs::remove_file(&path));
        let socket = UnixDatagram::bind(&path).context("cannot make a notification socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut command = self.service("agent");
        command.env("NOTIFY_SOCKET", &path);
        let started = Instant::now();
        let mut process = Background::start("agent", &mut command, &self.log("agent"))?;
        let mut buffer = [0; 4096];
        loop {
            let n = match socket.recv(&mut buffer) {
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error).context("cannot hear the agent"),
            };
            let said = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default());
            if said.lines().any(|line| line == "READY=1") {
                // Heard to the end, as systemd would: an agent that is not heard has more to do.
                socket.set_read_timeout(None)?;
                std::thread::spawn(move || while socket.recv(&mut [0; 4096]).is_ok() {});
                return Ok(Agent { process, ready_after: started.elapsed(), started });
            }
            process.check().with_context(|| self.log_tail("agent"))?;
            ensure!(started.elapsed() < PATIENCE, "the agent was not ready within {PATIENCE:?}");
        }
    }

    /// Starts the courier.
    pub fn start_courier(&self) -> Result<Background> {
        Background::start("courier", &mut self.service("courier"), &self.log("courier"))
    }

    fn service(&self, name: &str) -> std::process::Command {
        let mut command = command(&self.rekindle);
        command.arg("--config").arg(self.config()).arg(name);
        command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM").env("REKINDLE_LOG", "warn");
        command
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.log"))
    }

    /// The end of a service's log.
    pub fn log_tail(&self, name: &str) -> String {
        let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "the {name}'s log ends:\n{}",
            lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n")
        )
    }

    /// Runs a command of rekindle, and returns the JSON that it prints.
    pub fn ask(&self, args: &[&str]) -> Result<Value> {
        let output =
            Invocation::new(&self.rekindle).arg("--json").arg("--config").arg(self.config()).args(args).output()?;
        serde_json::from_str(&output.stdout).with_context(|| format!("`{}` said {output:?}", args.join(" ")))
    }

    /// The entries of `rekindle history`, oldest first.
    pub fn history(&self, limit: usize) -> Result<Vec<Value>> {
        let mut answer = self.ask(&["history", "--limit", &limit.to_string()])?;
        let Some(Value::Array(mut entries)) = answer.get_mut("entries").map(Value::take) else {
            bail!("the history has no entries: {answer}")
        };
        entries.sort_by_key(|entry| entry.get("id").and_then(Value::as_i64));
        Ok(entries)
    }

    /// What `rekindle status` shows, asked of the agent without a process in between.
    pub fn status(&self) -> Result<Status> {
        match self.control(&Request::Status)? {
            Answer::Status(status) => Ok(*status),
            other @ (Answer::Done | Answer::Why(_) | Answer::Requested(_) | Answer::Refused(_)) => {
                bail!("the agent answered {other:?} when asked for its status")
            }
        }
    }

    /// Has the agent look at everything.
    pub fn look(&self) -> Result<()> {
        match self.control(&Request::Look)? {
            Answer::Done => Ok(()),
            other @ (Answer::Status(_) | Answer::Why(_) | Answer::Requested(_) | Answer::Refused(_)) => {
                bail!("the agent answered {other:?} when told to look")
            }
        }
    }

    fn control(&self, request: &Request) -> Result<Answer> {
        let path = self.directory.path().join("run/control.sock");
        let mut stream = UnixStream::connect(&path).context("the agent does not listen")?;
        stream.write_all(&serde_json::to_vec(request)?)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        serde_json::from_slice(&answer).context("cannot understand the agent")
    }

    /// Waits until this revision is in force and everything is as declared.
    pub fn wait_converged(&self, revision: &str) -> Result<Status> {
        let mut last = None;
        wait_for("convergence", PATIENCE, || {
            // An agent that starts does not answer yet.
            let Ok(status) = self.status() else { return Ok(None) };
            let in_force = status.policy.as_ref().is_some_and(|policy| policy.revision == revision);
            let good = in_force && status.health.state == "converged" && status.out_of_sync.is_empty();
            last = Some(status);
            Ok(if good { last.clone() } else { None })
        })
        .with_context(|| format!("the last status is {last:?}; {}", self.log_tail("agent")))
    }

    /// Starts both services and waits until the revision is in force.
    pub fn start(&self, revision: &str) -> Result<(Agent, Background)> {
        let agent = self.start_agent()?;
        let courier = self.start_courier()?;
        self.wait_converged(revision)?;
        self.wait_guarded()?;
        Ok((agent, courier))
    }

    /// Waits until the guard has laid out its copies, which takes the disk a moment after the first convergence.
    fn wait_guarded(&self) -> Result<()> {
        let (mut last, mut n_same) = (0, 0);
        wait_for("the copies of the guard", PATIENCE, || {
            let n_guarded = self.status()?.n_guarded;
            n_same = if n_guarded == last && n_guarded > 0 { n_same + 1 } else { 0 };
            last = n_guarded;
            Ok((n_same >= STEADY).then_some(()))
        })
    }
}

/// Looks at the guard that must show the same before it is taken for ready.
const STEADY: u32 = 100;

impl Agent {
    /// Its process id.
    pub fn pid(&self) -> Result<Pid> {
        self.process.pid()
    }

    /// The process.
    pub fn process(&self) -> &Background {
        &self.process
    }

    /// Ends it as systemd would.
    pub fn stop(self) -> Result<()> {
        self.process.stop()
    }
}

/// Makes a directory for what one measurement writes; it is gone with the value.
pub fn directory(bench: &Bench) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("rekindle-bench-")
        .tempdir_in(&bench.base)
        .with_context(|| format!("cannot make a directory in `{}`", bench.base.display()))
}

fn make(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make `{}`", path.display()))
}
