//! Programs of this host that the demo runs, each to its end, each killed with the demo.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::super::narration::PATIENCE;

/// Where programs are, for people whose own search path lacks the directories of administration.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Lines of a failed program's output that an error shows.
const LINES: usize = 20;

/// Returns where a program is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(PATH).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Prepares a program. Ctrl-C on the terminal is for the demo alone, which then ends the program.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", PATH).env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    command
}

/// A program with processes and mounts of its own, which all end with it, and which ends with the demo. Dropping it kills
/// it; [`Contained::end`] also waits.
#[derive(Debug)]
pub(super) struct Contained(Child);

impl Contained {
    /// Starts it, with what it writes in a file.
    pub(super) fn start<A: AsRef<OsStr>>(program: &str, args: &[A], log: &Path) -> anyhow::Result<Self> {
        let open = || std::fs::OpenOptions::new().create(true).append(true).open(log);
        let log = open().with_context(|| format!("cannot open `{}`", log.display()))?;
        let child = command("setpriv")
            .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"])
            .args(["--mount-proc", "--propagation", "private", "--", program])
            .args(args)
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()
            .with_context(|| format!("cannot start `{program}`"))?;
        Ok(Self(child))
    }

    /// Waits until it ends by itself.
    pub(super) async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.0.wait().await?)
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)) | Err(_))
    }

    /// The process of the program itself, once it runs.
    pub(super) fn process(&self) -> Option<u32> {
        children(self.0.id()?).into_iter().next()
    }

    /// Kills it, and waits until no process of it is left.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        // The kernel ends all processes of a namespace with its first, before the parent of that one hears of it.
        let killed = match self.process().and_then(|pid| i32::try_from(pid).ok()) {
            Some(pid) => kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(std::io::Error::from),
            None => self.0.start_kill(),
        };
        if let Err(error) = killed
            && !self.has_ended()
        {
            return Err(error).context("cannot kill what the demo has started");
        }
        let ended = tokio::time::timeout(PATIENCE, self.0.wait()).await;
        ended.map_err(|_elapsed| anyhow::anyhow!("what the demo has started does not end"))??;
        Ok(())
    }
}

/// Child processes of a process, as the kernel lists them; empty when it is gone.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Runs a program and returns what it wrote; anything but success is an error that shows the end of it.
pub(super) async fn run(command: &mut Command) -> anyhow::Result<String> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.output().await.with_context(|| format!("cannot run `{name}`"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let args: Vec<_> = command.as_std().get_args().map(|arg| arg.to_string_lossy()).collect();
    let all = text(&output.stdout) + &text(&output.stderr);
    anyhow::bail!("`{name} {}` ended with {}:\n{}", args.join(" "), output.status, tail(&all))
}

/// The last lines of a text.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
}
