//! Programs that an earlier process of the agent started, and that still run: they outlive a kill of the agent on purpose.
//!
//! A named program carries its name in its environment, so it is found whoever its parent is now, without a file that could be
//! stale. Only the leader of a session counts: what it started ends with it, or is none of ours.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags};

/// The variable that names a program.
pub(super) const MARK: &str = "REKINDLE_RUN";

/// Longest environment that is searched, in bytes. The mark is among the first variables.
const MAX_ENVIRONMENT: u64 = 1024 * 1024;

/// How often what is to be killed is looked for again.
const MAX_ROUNDS: u32 = 100;

/// How often it is looked again whether a program still runs.
const INTERVAL: Duration = Duration::from_secs(1);

/// What came of waiting for a survivor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Waited {
    /// There was none.
    NoneRan,
    /// It ran, and has ended.
    Ended,
    /// It still runs.
    StillRuns(u32),
}

/// Waits until no program of this name runs that belongs to root or to `uid`.
pub fn wait(name: &str, uid: u32, deadline: Duration) -> Waited {
    let ends = Instant::now() + deadline;
    let mut waited = Waited::NoneRan;
    while let Some(pid) = find(name, uid) {
        let left = ends.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Waited::StillRuns(u32::try_from(pid.as_raw_nonzero().get()).unwrap_or_default());
        }
        waited = Waited::Ended;
        if let Err(error) = wait_for(pid, left.min(INTERVAL)) {
            tracing::debug!(%error, "cannot wait for a process");
        }
    }
    waited
}

fn wait_for(pid: Pid, timeout: Duration) -> io::Result<()> {
    let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        result => result?,
    };
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout)?;
    Ok(())
}

fn find(name: &str, uid: u32) -> Option<Pid> {
    let mark = format!("{MARK}={name}");
    let ours = std::fs::read_link("/proc/self/ns/pid").ok();
    let entries = std::fs::read_dir("/proc").ok()?;
    entries.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let directory = entry.path();
        let owner = entry.metadata().ok()?.uid();
        // Anybody can call a program of theirs whatever they like.
        let is_candidate = (owner == uid || owner == 0)
            && has_mark(&directory, mark.as_bytes())
            && session(&directory) == Some(pid)
            // Another host in a container has an agent of its own.
            && std::fs::read_link(directory.join("ns/pid")).ok() == ours;
        if is_candidate { Pid::from_raw(pid) } else { None }
    })
}

/// Kills everything that has this name in its environment, in a session of its own or not: only for a name that nothing else has.
/// What has cleared its environment is not found.
pub(super) fn kill_all(name: &str) {
    let mark = format!("{MARK}={name}");
    until_none_is_found(|| kill_found(mark.as_bytes()));
}

/// Looks until nothing was found twice: what is killed may have started something meanwhile, and the environment of a process reads
/// as empty while it becomes another program. But not for ever.
fn until_none_is_found(mut look: impl FnMut() -> usize) {
    let mut n_empty = 0;
    for _ in 0..MAX_ROUNDS {
        n_empty = if look() == 0 { n_empty + 1 } else { 0 };
        if n_empty == 2 {
            return;
        }
    }
}

/// Kills what has a mark now; returns how many.
pub(super) fn kill_found(mark: &[u8]) -> usize {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let mut n_killed = 0;
    let mut killed = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        // A number may be given to another process, a descriptor is not.
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if has_mark(&entry.path(), mark)
            && rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL).is_ok()
        {
            n_killed += 1;
            killed.push(process);
        }
    }
    // Until they have ended they would be found again.
    for process in killed {
        let timeout = PollTimeout::try_from(INTERVAL).unwrap_or(PollTimeout::MAX);
        if let Err(error) = poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            tracing::debug!(%error, "cannot wait for a process");
        }
    }
    n_killed
}

fn has_mark(process: &Path, mark: &[u8]) -> bool {
    let mut environment = Vec::new();
    let read = std::fs::File::open(process.join("environ"))
        .and_then(|file| file.take(MAX_ENVIRONMENT).read_to_end(&mut environment));
    read.is_ok() && environment.split(|b| *b == 0).any(|variable| variable == mark)
}

/// The session of a process that is no zombie.
fn session(process: &Path) -> Option<i32> {
    let stat = std::fs::read(process.join("stat")).ok()?;
    // The name of the program, in parentheses, may hold anything.
    let end = stat.iter().rposition(|b| *b == b')')?;
    let rest = OsStr::from_bytes(stat.get(end + 1..)?).to_str()?.to_owned();
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(2)?.parse().ok() }
}

/// The name of the program that carries out something named, such as `command-update-grub`: made of what a unit's name may hold,
/// and different for different names.
pub fn name_for(what: &str, name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let plain: String = name.chars().filter(|c| is_plain(*c)).take(64).collect();
    if plain == name {
        return format!("{what}-{plain}");
    }
    let digest = crate::resource::digest(name.as_bytes());
    format!("{what}-{plain}-{}", digest.get(..8).unwrap_or(&digest))
}

/// The program that this process runs, also when its file was replaced meanwhile, such as by an upgrade: what it starts of itself is
/// of its own version.
pub(super) fn own_program() -> PathBuf {
    PathBuf::from(format!("/proc/{}/exe", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::super::{Command, run_direct};
    use super::*;

    fn marked(name: &str, script: &str) -> Command {
        Command { name: Some(name.to_owned()), ..Command::new("/bin/sh").args(["-c", script]) }
    }

    #[test]
    fn what_still_runs_is_waited_for_and_nothing_else() {
        let name = format!("test-survivor-{}", std::process::id());
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(wait(&name, uid, Duration::from_secs(5)), Waited::NoneRan);
        let thread = std::thread::spawn({
            let name = name.clone();
            // Ends when its parent here says so, which is when the other has been seen.
            move || run_direct(&marked(&name, "exec sleep 600")).map(|output| output.status)
        });
        let started = Instant::now();
        let pid = loop {
            if let Some(pid) = find(&name, uid) {
                break pid;
            }
            assert!(started.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        };
        assert!(matches!(wait(&name, uid, Duration::ZERO), Waited::StillRuns(_)));
        assert_eq!(wait("test-survivor-of-another-name", uid, Duration::ZERO), Waited::NoneRan);
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let waited = wait(&name, uid, Duration::from_secs(20));
        assert!(matches!(waited, Waited::Ended | Waited::NoneRan), "{waited:?}");
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn everything_of_one_name_is_killed_whatever_session_it_made() {
        let name = format!("test-kill-{}", std::process::id());
        let others = format!("test-spared-{}", std::process::id());
        let start = |name: &str| {
            let command =
                marked(name, "setsid sh -c 'trap \"\" TERM; while :; do sleep 600; done' & setsid sleep 600 & wait");
            std::thread::spawn(move || run_direct(&command).map(|output| output.status))
        };
        let threads = [start(&name), start(&others)];
        let count = |name: &str| {
            let mark = format!("{MARK}={name}");
            let alive = |entry: &std::fs::DirEntry| {
                has_mark(&entry.path(), mark.as_bytes()) && session(&entry.path()).is_some()
            };
            std::fs::read_dir("/proc").unwrap().flatten().filter(alive).count()
        };
        let started = Instant::now();
        // The shell, the one in it, and what each of them waits for.
        while count(&name) < 4 || count(&others) < 4 {
            assert!(started.elapsed() < Duration::from_secs(20), "{} {}", count(&name), count(&others));
            std::thread::yield_now();
        }
        kill_all(&name);
        assert_eq!((count(&name), count(&others)), (0, 4));
        kill_all(&others);
        assert_eq!(count(&others), 0);
        for thread in threads {
            assert_eq!(thread.join().unwrap().unwrap(), "signal 9");
        }
    }

    #[test]
    fn what_is_not_seen_once_is_looked_for_again() {
        let check = |found: &[usize], expected: u32| {
            let mut n_looks = 0;
            let mut found = found.iter().copied();
            until_none_is_found(|| {
                n_looks += 1;
                found.next().unwrap_or(0)
            });
            assert_eq!(n_looks, expected);
        };
        check(&[], 2);
        check(&[3, 0, 1, 0, 0], 5);
        check(&[1; 1000], MAX_ROUNDS);
    }

    #[test]
    fn names_of_units_are_plain_and_differ() {
        let check = |name: &str, expected: &str| assert_eq!(name_for("command", name), expected);
        check("update-grub", "command-update-grub");
        check("a b", "command-ab-c8687a08");
        assert_ne!(name_for("command", "ab"), name_for("command", "a b"));
    }
}
