//! Child processes, waiting, ports and files: the one home of everything that the rest of the harness may not do itself.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// Programs that the harness starts, and the Debian package that brings each.
const TOOLS: &[(&str, &str)] = &[
    ("systemd-nspawn", "systemd-container"),
    ("debootstrap", "debootstrap"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("nginx", "nginx-light"),
    ("fcgiwrap", "fcgiwrap"),
    ("git", "git"),
    ("dpkg-deb", "dpkg"),
    ("apt-ftparchive", "apt-utils"),
    ("gpg", "gnupg"),
    ("ssh-keygen", "openssh-client"),
    ("curl", "curl"),
];

/// How the variables begin that cargo and nextest set for the tests that they run.
const OF_CARGO: &[&str] = &["CARGO_BIN", "CARGO_CRATE", "CARGO_MANIFEST", "CARGO_PKG", "LD_LIBRARY_PATH", "NEXTEST"];

/// A child process to run to its end.
#[derive(Debug)]
#[must_use]
pub struct Invocation {
    command: Command,
    stdin: Vec<u8>,
}

/// What came of an [`Invocation`].
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A server or a machine in the background, in a process-id namespace of its own: when it is dropped, or when the thread
/// that started it ends in whatever way, the kernel kills everything that it started.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Invocation {
    /// Prepares a program that is looked up in `PATH`.
    #[expect(clippy::disallowed_methods, reason = "the home of child processes in the tests")]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // A cargo inside would take what the outer one sets for its tests for a reason to build the world again.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| OF_CARGO.iter().any(|prefix| name.starts_with(prefix))) {
                command.env_remove(name);
            }
        }
        Self { command, stdin: Vec::new() }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Empties the environment first, so that the build machine's settings cannot leak in.
    pub fn clean_env(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Gives it something to read.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = input.into();
        self
    }

    /// Runs it to its end, whatever that is.
    pub fn output(mut self) -> Result<Output> {
        let line = command_line(&self.command);
        self.command.stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        let mut child = self.command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends without reading its input is judged by its exit code.
            drop(stdin.write_all(&self.stdin));
        }
        let output = child.wait_with_output().with_context(|| format!("cannot wait for `{line}`"))?;
        Ok(Output {
            command: line,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it and returns its standard output; anything but success is an error that shows both streams.
    pub fn ok(self) -> Result<String> {
        self.output()?.ok()
    }
}

impl Output {
    /// Returns the standard output of a success; anything else is an error that shows both streams.
    pub fn ok(self) -> Result<String> {
        self.expect_code(0)
    }

    /// Returns the standard output when the exit code is this one; anything else is an error that shows both streams.
    pub fn expect_code(self, code: i32) -> Result<String> {
        if self.code == Some(code) {
            return Ok(self.stdout);
        }
        let found = self.code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
        bail!(
            "`{}` ended with {found} instead of {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

impl Daemon {
    /// Starts a program whose output goes to `log`.
    #[expect(clippy::disallowed_methods, reason = "the home of child processes and of the daemons' logs in the tests")]
    pub fn start(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>, log: &Path) -> Result<Self> {
        let output = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open the log `{}`", log.display()))?;
        let error = output.try_clone().context("cannot duplicate a log's descriptor")?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"])
            .args(["--mount-proc", "--propagation", "private", "--", program])
            .args(args)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(error);
        let line = command_line(&command);
        let child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        Ok(Self { child })
    }

    /// The host's process id of the program itself, once it runs.
    pub fn pid(&self) -> Option<u32> {
        children(self.child.id()).into_iter().next()
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("cannot ask for a daemon's end")?.is_some())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Child processes of a process, as the kernel lists them; empty when it is gone.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Polls until `probe` finds something, and fails at the deadline with what was waited for. The only place that sleeps.
pub fn wait_for<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().with_context(|| format!("while waiting for {what}"))? {
            return Ok(found);
        }
        ensure!(start.elapsed() < within, "waited {within:?} in vain for {what}");
        #[expect(clippy::disallowed_methods, reason = "the one polling interval of the tests")]
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Returns how long it takes until `done`, looking without a pause: for latencies below the polling interval.
pub fn measure(what: &str, within: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !done().with_context(|| format!("while waiting for {what}"))? {
        ensure!(start.elapsed() < within, "waited {within:?} in vain for {what}");
        std::thread::yield_now();
    }
    Ok(start.elapsed())
}

/// Fails, with everything that is missing and how to get it, unless the end-to-end tests can run here.
pub fn require() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the end-to-end tests boot machines with systemd-nspawn and need root: run `sudo tests/run`"
    );
    let path = search_path();
    let missing: Vec<String> = TOOLS
        .iter()
        .filter(|(tool, _)| !std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()))
        .map(|(tool, package)| format!("`{tool}` (Debian package {package})"))
        .collect();
    ensure!(
        missing.is_empty(),
        "the end-to-end tests need programs that are not installed: {}; `tests/run` installs them",
        missing.join(", ")
    );
    Ok(())
}

/// Returns a port of the loopback that nothing listens on, outside the range that the kernel gives to clients, so that it
/// stays free while the server on it is down.
pub fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from((std::process::id().wrapping_mul(97)) % u32::from(COUNT)).context("below COUNT")?;
    for _ in 0..COUNT {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(anyhow!("no free port between {FIRST} and {}", FIRST + COUNT))
}

/// Writes a file, making its parents.
#[expect(clippy::disallowed_methods, reason = "fixtures: nothing reads them while they are written")]
pub fn put(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make `{}`", parent.display()))?;
    }
    std::fs::write(path, content).with_context(|| format!("cannot write `{}`", path.display()))
}

/// `PATH`, with the directories of administration that a login may lack.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

fn command_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
