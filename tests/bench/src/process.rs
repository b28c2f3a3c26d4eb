//! Child processes and pauses: the one home of what the rest of this crate may not do itself.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rekindle_tests::wait_for;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::proc::Scheduling;

/// Longest time that a service takes to stop.
const STOP: Duration = Duration::from_secs(60);

/// A program in the background, ended when it is dropped.
#[derive(Debug)]
pub struct Background {
    what: String,
    child: Child,
}

/// This program in one of its other parts: it reads what it is to do as a line of JSON, works until its input ends, and
/// answers with a line of JSON.
#[derive(Debug)]
pub struct Helper {
    process: Background,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// Prepares a program that is looked up in `PATH`.
#[expect(clippy::disallowed_methods, reason = "the home of child processes in the measurements")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// Waits: the time between two drifts, and the time over which an idle agent is watched, are what is measured.
#[expect(clippy::disallowed_methods, reason = "the pause is part of what is measured")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

impl Background {
    /// Starts it with its output in `log`.
    pub fn start(what: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open the log `{}`", log.display()))?;
        let error = output.try_clone().context("cannot duplicate a log's descriptor")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(error)
            .spawn()
            .with_context(|| format!("cannot start the {what}"))?;
        Ok(Self { what: what.to_owned(), child })
    }

    /// Its process id.
    pub fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id()).context("a process id is an int")?))
    }

    /// Fails when it has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        let ended = self.child.try_wait().with_context(|| format!("cannot ask for the end of the {}", self.what))?;
        ensure!(ended.is_none(), "the {} ended by itself: {ended:?}", self.what);
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid()?, signal).with_context(|| format!("cannot send {signal} to the {}", self.what))
    }

    /// Ends it as systemd would, and waits for it.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let what = format!("the {} to stop", self.what);
        let status = wait_for(&what, STOP, || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "the {} stopped with {status}", self.what);
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Helper {
    /// Starts this program (`exe`) as `role`, scheduled like this.
    pub fn start(exe: &Path, role: &str, spec: &impl Serialize, scheduling: Scheduling) -> Result<Self> {
        let mut command = scheduled(exe, scheduling);
        command.arg(role).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().with_context(|| format!("cannot start `{}` {role}", exe.display()))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a helper has an output")?;
        let process = Background { what: role.to_owned(), child };
        let mut helper = Self { process, stdin, stdout: BufReader::new(stdout) };
        let mut line = serde_json::to_vec(spec)?;
        line.push(b'\n');
        let stdin = helper.stdin.as_mut().context("a helper has an input")?;
        stdin
            .write_all(&line)
            .and_then(|()| stdin.flush())
            .with_context(|| format!("cannot tell {role} what to do"))?;
        Ok(helper)
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).with_context(|| format!("cannot hear {}", self.process.what))?;
        ensure!(line == "ready\n", "{} said `{}` instead of being ready", self.process.what, line.trim());
        Ok(())
    }

    /// Its process.
    pub fn process(&self) -> &Background {
        &self.process
    }

    /// Ends its input and reads its answer.
    pub fn finish<T: DeserializeOwned>(mut self) -> Result<T> {
        self.stdin = None;
        let mut answer = String::new();
        self.stdout.read_to_string(&mut answer).with_context(|| format!("cannot hear {}", self.process.what))?;
        let status = self.process.child.wait().with_context(|| format!("cannot wait for {}", self.process.what))?;
        ensure!(status.success(), "{} ended with {status}", self.process.what);
        serde_json::from_str(&answer).with_context(|| format!("{} answered `{answer:.200}`", self.process.what))
    }
}

/// Reads what a helper is to do.
pub fn read_spec<T: DeserializeOwned>() -> Result<T> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read what to do")?;
    serde_json::from_str(&line).context("cannot understand what to do")
}

/// Says that a helper is ready.
pub fn say_ready() -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(b"ready\n").and_then(|()| out.flush()).context("cannot say that all is ready")
}

/// Says what came of it.
pub fn answer(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    std::io::stdout().lock().write_all(&text).context("cannot answer")
}

fn scheduled(exe: &Path, scheduling: Scheduling) -> Command {
    let Scheduling { fifo, nice, cpu } = scheduling;
    let mut words = Vec::new();
    if let Some(cpu) = cpu {
        words.extend(["taskset".to_owned(), "--cpu-list".to_owned(), cpu.to_string()]);
    }
    if fifo > 0 {
        words.extend(["chrt".to_owned(), "--fifo".to_owned(), fifo.to_string()]);
    } else if nice != 0 {
        words.extend(["nice".to_owned(), "-n".to_owned(), nice.to_string()]);
    }
    match words.split_first() {
        Some((program, arguments)) => {
            let mut command = command(program);
            command.args(arguments).arg(exe);
            command
        }
        None => command(exe),
    }
}
