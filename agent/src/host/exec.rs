//! Child processes: the only module that starts one.
//!
//! A foreign program never inherits our environment, our terminal or our descriptors, always has valid descriptors 0, 1 and
//! 2 (rpm corrupts its database without), and never outlives its deadline.
//!
//! Output goes to anonymous files in memory instead of pipes. So nothing needs to drain them, a grandchild that keeps one
//! open delays nobody, and above all a program that survives the agent can go on writing: dpkg would abort half-way at a
//! broken pipe.

pub mod survivor;
#[cfg(test)]
mod tests;
pub mod view;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use crate::actor::command;
use crate::resource::Mask;
use nix::unistd::{Gid, Uid};
use rustix::fs::{FallocateFlags, MemfdFlags, OFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};

/// As many files as a child may open without asking for more: what every program may expect.
const OPEN_FILES: u64 = 1024;

/// A foreign program to run.
#[derive(Debug, Clone)]
pub struct Command {
    /// Absolute path of the program, or a bare name looked up in the fixed path `/usr/sbin:/usr/bin:/sbin:/bin`.
    pub program: OsString,
    /// Arguments.
    pub args: Vec<OsString>,
    /// The whole environment, besides `PATH`, `LANG=C.UTF-8` and `HOME=/root`.
    pub env: Vec<(OsString, OsString)>,
    /// Standard input; empty means /dev/null.
    pub stdin: Vec<u8>,
    /// After this long everything that it started is killed: all of its unit where systemd runs it, its process group otherwise.
    pub deadline: Duration,
    /// The directory that it starts in.
    pub directory: PathBuf,
    /// Whom it runs as; `None` for the agent's own user.
    pub user: Option<RunAs>,
    /// A name under which a later process finds it; `None` for one that nobody can foretell. Letters, digits and `-_.` only.
    pub name: Option<String>,
    /// Whether what it leaves running is killed when it has ended. So it always is as a systemd unit; as a child of the agent
    /// only if asked, because a package's script may start its daemon. Then its name must be nobody else's, and what cleared its
    /// environment in a session of its own is not found.
    pub is_alone: bool,
}

/// An account that a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
    /// Its home directory, for the variable `HOME`.
    pub home: String,
}

/// What came of a program that ran to its end.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; `None` when a signal or the deadline ended it.
    pub code: Option<i32>,
    /// The end in words: `exit status 1`, `signal 9`, `killed after 600 s`.
    pub status: String,
    /// At most [`MAX_OUTPUT`] last bytes.
    pub stdout: Vec<u8>,
    /// At most [`MAX_OUTPUT`] last bytes.
    pub stderr: Vec<u8>,
}

/// How much of each stream is kept, in bytes.
pub const MAX_OUTPUT: usize = 64 * 1024;

/// A program that could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its output could not be collected.
    #[error("cannot wait for `{program}`")]
    Wait {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Where bare program names are looked up, whatever the agent's own environment says.
const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Between asking a program to end and killing it.
const GRACE: Duration = Duration::from_secs(10);
/// How often the output of a running program is cut down to what is kept.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);
/// How much of an output an error text shows.
const MAX_ESCAPED: usize = 2000;
/// Most lines that [`last_words`] keeps.
const MAX_LINES: usize = 12;
/// Longest of them, in characters.
const MAX_LINE: usize = 300;

impl Command {
    /// A program without arguments, with one minute to run.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: Vec::new(),
            deadline: Duration::from_secs(60),
            directory: PathBuf::from("/"),
            user: None,
            name: None,
            is_alone: false,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

impl Output {
    /// Whether it ended by itself with exit code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// Runs a program outside the agent's sandbox and cgroup: as a transient systemd unit where systemd runs, otherwise as a
/// child with a clean environment, a session of its own and a deadline. Blocks until it has ended.
///
/// Everything that changes the host is run this way, so that neither a restart nor a kill of the agent stops it half-way.
/// A unit costs about 60 ms where a child costs 4 (systemd 252, two processors); that buys more than it costs even for
/// `useradd`, which must not be cut off between two of its files.
pub fn run(command: &Command) -> Result<Output, ExecError> {
    let program = resolve(&command.program)?;
    match transient_units() {
        Some(systemd_run) => run_unit(&systemd_run, &program, command),
        None => run_resolved(&program, command),
    }
}

/// Runs a program as a child of the agent, in the agent's sandbox and cgroup. Only for short programs that change nothing,
/// such as `journalctl`: whatever ends the agent may end them.
pub fn run_direct(command: &Command) -> Result<Output, ExecError> {
    run_resolved(&resolve(&command.program)?, command)
}

/// Finds a program in the fixed search path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let is_program = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    SEARCH_PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| is_program(path))
}

/// Keeps these words out of every text that is made of what a program said, from now on. Of the process, not of a host: what a
/// unit wrote, or apt, may quote a secret as well as what a policy runs.
pub fn set_mask(mask: &Mask) {
    *MASK.write().unwrap_or_else(PoisonError::into_inner) = Some(mask.clone());
}

static MASK: RwLock<Option<Mask>> = RwLock::new(None);

/// Makes foreign output fit for an error text: the end of it, on one line, control characters escaped.
pub fn escape(bytes: &[u8]) -> String {
    escape_lines(bytes).join("; ")
}

/// As [`escape`], but keeps the lines apart. Empty lines are dropped.
pub fn escape_lines(bytes: &[u8]) -> Vec<String> {
    // Before it is cut: a part of a secret would not be known.
    let masked = match &*MASK.read().unwrap_or_else(PoisonError::into_inner) {
        Some(mask) => mask.apply(bytes.to_vec()),
        None => bytes.to_vec(),
    };
    let cut = masked.len().saturating_sub(MAX_ESCAPED);
    let end = masked.get(cut..).unwrap_or(&masked);
    String::from_utf8_lossy(end)
        .lines()
        .map(|line| line.trim().chars().flat_map(escape_char).collect::<String>())
        .filter(|line| !line.is_empty())
        .collect()
}

/// The last lines of what a program said, bounded, escaped and without what looks like a secret: for an error text.
pub fn last_words(output: &Output) -> String {
    let mut lines = escape_lines(&output.stderr);
    if lines.is_empty() {
        lines = escape_lines(&output.stdout);
    }
    let last = lines.iter().skip(lines.len().saturating_sub(MAX_LINES));
    let last = last.map(|line| command::escaped(&command::masked_text(line), MAX_LINE));
    last.collect::<Vec<_>>().join("; ")
}

fn escape_char(c: char) -> impl Iterator<Item = char> {
    // Bidirectional controls are not "control characters" to Unicode, but reorder what a person reads.
    let is_control =
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let escaped = if is_control { Some(c.escape_default()) } else { None };
    let plain = if is_control { None } else { Some(c) };
    escaped.into_iter().flatten().chain(plain)
}

/// `systemd-run`, if it can be used: systemd is process 1, D-Bus is there to pass descriptors over, and we are root.
fn transient_units() -> Option<PathBuf> {
    let usable = rustix::process::geteuid().is_root()
        && Path::new("/run/systemd/system").is_dir()
        // Connected, not looked at: the name outlives its daemon.
        && std::os::unix::net::UnixStream::connect("/run/dbus/system_bus_socket").is_ok();
    if usable { find_program("systemd-run") } else { None }
}

fn resolve(program: &OsStr) -> Result<PathBuf, ExecError> {
    let path = Path::new(program);
    let start_error = |source| ExecError::Start { program: program.display().to_string(), source };
    if path.is_absolute() {
        // systemd would only say that its own program failed.
        return std::fs::metadata(path).map(|_| path.to_path_buf()).map_err(start_error);
    }
    program
        .to_str()
        .filter(|name| !name.contains('/'))
        .and_then(find_program)
        .ok_or_else(|| start_error(io::Error::new(io::ErrorKind::NotFound, format!("it is not in {SEARCH_PATH}"))))
}

fn environment(command: &Command) -> Vec<(OsString, OsString)> {
    let home = command.user.as_ref().map_or("/root", |user| user.home.as_str());
    let fixed = [("PATH", SEARCH_PATH), ("LANG", "C.UTF-8"), ("HOME", home)];
    let user = command.user.iter().flat_map(|user| [("USER", user.name.as_str()), ("LOGNAME", user.name.as_str())]);
    let mark = command.name.iter().map(|name| (survivor::MARK, name.as_str()));
    let ours = fixed.into_iter().chain(user).chain(mark);
    ours.map(|(name, value)| (name.into(), value.into())).chain(command.env.iter().cloned()).collect()
}

fn run_unit(systemd_run: &Path, program: &Path, command: &Command) -> Result<Output, ExecError> {
    let unit = match &command.name {
        Some(name) => format!("rekindle-{name}"),
        None => {
            let base = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
            let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let base: String = base.chars().filter(is_plain).collect();
            format!("rekindle-{base}-{}", super::random_hex())
        }
    };
    let mut args: Vec<OsString> = [
        // `--wait` passes the exit code on, `--pipe` our own descriptors, `--collect` leaves no failed unit behind.
        "--quiet".into(),
        "--wait".into(),
        "--pipe".into(),
        "--collect".into(),
        "--no-ask-password".into(),
        "--service-type=exec".into(),
        format!("--unit={unit}"),
        format!("--property=RuntimeMaxSec={}ms", command.deadline.as_millis()),
        format!("--property=TimeoutStopSec={}s", GRACE.as_secs()),
    ]
    .map(OsString::from)
    .into();
    let mut directory = OsString::from("--working-directory=");
    directory.push(&command.directory);
    args.push(directory);
    args.extend(command.user.iter().map(|user| OsString::from(format!("--uid={}", user.name))));
    for (name, value) in environment(command) {
        let mut arg = OsString::from("--setenv=");
        arg.push(name);
        arg.push("=");
        arg.push(value);
        args.push(arg);
    }
    args.push("--".into());
    args.push(double_dollars(program.as_os_str()));
    args.extend(command.args.iter().map(|arg| double_dollars(arg)));
    // Two graces: one for systemd to stop the unit, one for its client to tell us.
    let client = Command {
        program: systemd_run.into(),
        args,
        stdin: command.stdin.clone(),
        deadline: command.deadline.saturating_add(GRACE.saturating_mul(2)),
        ..Command::new("")
    };
    let started = Instant::now();
    let mut output = run_resolved(systemd_run, &client)?;
    if output.code != Some(0) && started.elapsed() >= command.deadline {
        output.code = None;
        output.status = killed_after(command.deadline);
    } else if output.code == Some(255) {
        // systemd's client says the same for both.
        output.status = "exit status 255 or a signal".to_owned();
    }
    Ok(output)
}

/// systemd expands `$NAME` in the arguments of a transient unit; `$$` stands for a dollar sign.
fn double_dollars(arg: &OsStr) -> OsString {
    let mut doubled = Vec::with_capacity(arg.len());
    for byte in arg.as_bytes() {
        doubled.push(*byte);
        if *byte == b'$' {
            doubled.push(b'$');
        }
    }
    OsString::from_vec(doubled)
}

fn run_resolved(program: &Path, command: &Command) -> Result<Output, ExecError> {
    let start_error = |source| ExecError::Start { program: program.display().to_string(), source };
    let wait_error = |source| ExecError::Wait { program: program.display().to_string(), source };
    let stdout = output_file("rekindle-stdout").map_err(start_error)?;
    let stderr = output_file("rekindle-stderr").map_err(start_error)?;
    let child = start(program, command, &stdout, &stderr).map_err(start_error)?;
    let trim = || {
        trim(&stdout);
        trim(&stderr);
    };
    let end = wait(child, command, trim);
    // What left the group of what started it; whatever became of the wait.
    if let Some(name) = command.name.as_ref().filter(|_| command.is_alone) {
        survivor::kill_all(name);
    }
    let (code, status) = match end.map_err(wait_error)? {
        End::Exited(status) => (status.code(), in_words(status)),
        End::Deadline => (None, killed_after(command.deadline)),
    };
    let stdout = last_bytes(&stdout).map_err(wait_error)?;
    let stderr = last_bytes(&stderr).map_err(wait_error)?;
    Ok(Output { code, status, stdout, stderr })
}

#[expect(clippy::disallowed_methods, reason = "this is the module that bounds what it starts")]
#[expect(unsafe_code, reason = "leaving the terminal's session is only possible between fork and exec")]
fn start(program: &Path, command: &Command, stdout: &File, stderr: &File) -> io::Result<Child> {
    let stdin = if command.stdin.is_empty() {
        Stdio::null()
    } else {
        let mut file = memory_file("rekindle-stdin")?;
        file.write_all(&command.stdin)?;
        file.rewind()?;
        Stdio::from(file)
    };
    let mut process = std::process::Command::new(program);
    process
        .args(&command.args)
        .env_clear()
        .envs(environment(command))
        .current_dir(&command.directory)
        .stdin(stdin)
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let ids = command.user.as_ref().map(|user| {
        let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        (groups, Gid::from_raw(user.gid), Uid::from_raw(user.uid))
    });
    // SAFETY: the closure makes a few system calls, which are safe between fork and exec, and allocates nothing.
    unsafe {
        process.pre_exec(move || {
            // The agent's own mask is stricter than what maintainer scripts and account tools expect.
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
            // The agent takes all that it may have; but rpm and others close every descriptor that there could be.
            let limit = rustix::process::getrlimit(Resource::Nofile);
            let current = Some(limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES)));
            rustix::process::setrlimit(Resource::Nofile, Rlimit { current, ..limit })?;
            // Our own descriptors close at exec; what we were started with, such as a lock of the caller's, might not.
            // Kernels before 5.11 refuse it, and then it is as the caller made it.
            libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed());
            rustix::process::setsid()?;
            if let Some((groups, gid, uid)) = &ids {
                nix::unistd::setgroups(groups)?;
                nix::unistd::setgid(*gid)?;
                nix::unistd::setuid(*uid)?;
            }
            Ok(())
        });
    }
    process.spawn()
}

enum End {
    Exited(ExitStatus),
    Deadline,
}

/// Waits for the child; at the deadline it asks the whole process group to end, and after a grace kills it.
fn wait(mut child: Child, command: &Command, mut trim: impl FnMut()) -> io::Result<End> {
    let deadline = command.deadline;
    let pid = Pid::from_child(&child);
    let (ended, end) = mpsc::channel();
    // The thread does not reap the child, so its process id stays ours until the last signal has been sent.
    let waiter = std::thread::spawn(move || {
        let waited = loop {
            match rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result,
            }
        };
        // Nobody listens any more when the wait was given up.
        ended.send(waited).ok();
    });
    let started = Instant::now();
    let mut wait_until = |limit: Duration| loop {
        let left = limit.saturating_sub(started.elapsed());
        match end.recv_timeout(left.min(TRIM_INTERVAL)) {
            Ok(waited) => return waited.map(|_| true).map_err(io::Error::from),
            Err(mpsc::RecvTimeoutError::Timeout) if left.is_zero() => return Ok(false),
            Err(mpsc::RecvTimeoutError::Timeout) => trim(),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(io::Error::other("the waiting thread ended")),
        }
    };
    let in_time = wait_until(deadline)?;
    if !in_time {
        signal_group(pid, Signal::TERM);
        let asked = wait_until(deadline.saturating_add(GRACE))?;
        signal_group(pid, Signal::KILL);
        if !asked && !wait_until(deadline.saturating_add(GRACE.saturating_mul(2)))? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not end even when killed"));
        }
    } else if command.is_alone {
        // Before it is reaped: the group's number is still its own.
        signal_group(pid, Signal::KILL);
    }
    let status = child.wait()?;
    if waiter.join().is_err() {
        return Err(io::Error::other("the waiting thread panicked"));
    }
    Ok(if in_time { End::Exited(status) } else { End::Deadline })
}

fn signal_group(pid: Pid, signal: Signal) {
    // It may have ended meanwhile; that is what the signal is for.
    rustix::process::kill_process_group(pid, signal).ok();
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}

fn killed_after(deadline: Duration) -> String {
    format!("killed after {} s", deadline.as_secs())
}

fn output_file(name: &str) -> io::Result<File> {
    let file = memory_file(name)?;
    // Appending, so that a program that opens /dev/stderr again does not overwrite what is there.
    rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

fn memory_file(name: &str) -> io::Result<File> {
    // A hardened kernel refuses one without the seal, an old kernel (before 6.3) does not know it.
    match rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?.into()),
        result => Ok(result?.into()),
    }
}

/// Gives the memory of everything but the last bytes back. The size stays, so that writers notice nothing.
fn trim(file: &File) {
    let Some(excess) = file.metadata().ok().and_then(|m| m.len().checked_sub(MAX_OUTPUT as u64)) else { return };
    if excess > MAX_OUTPUT as u64 {
        // A bound on memory, not on correctness: it is tried again at the next tick.
        rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, excess).ok();
    }
}

fn last_bytes(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let kept = usize::try_from(length).map_or(MAX_OUTPUT, |length| length.min(MAX_OUTPUT));
    let mut bytes = vec![0; kept];
    let from = length.saturating_sub(MAX_OUTPUT as u64);
    let mut n_read = 0;
    while let Some(rest) = bytes.get_mut(n_read..).filter(|rest| !rest.is_empty()) {
        // A surviving grandchild may have truncated the file meanwhile.
        match file.read_at(rest, from + n_read as u64)? {
            0 => break,
            n => n_read += n,
        }
    }
    bytes.truncate(n_read);
    Ok(bytes)
}
