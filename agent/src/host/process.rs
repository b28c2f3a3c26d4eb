//! Looks at the process that changed something, without ever taking another process for it.
//!
//! A pid is a number that the kernel gives away again; a pidfd is not. So whatever is read of `/proc/PID` counts only when the
//! pidfd says, *after* that directory was opened, that its process has not been waited for: until then the number could not
//! have been given away. A directory of `/proc` itself stays bound to its process.
//!
//! - [`witness`] is for the hot path, before the repair: one `ioctl`, half a microsecond. It asks for no link of `/proc`, which
//!   would take as long as the repair itself (4 µs).
//! - [`identify`] is for later: everything else, from what is still there. The sooner it is called the more it finds.
//!
//! Nothing here waits, and nothing here signals or traces a process.

mod units;

use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};

use crate::actor::{Actor, Confidence, command};

pub use units::UnitMap;
pub(in crate::host) use units::passwd_name;

/// Longest file of `/proc` that is read; what is longer is cut.
const MAX_READ: u64 = 8192;

/// Who was seen at the time of an event. Holds a descriptor: identify it and let it go soon.
#[derive(Debug)]
pub struct Witness {
    /// The process id that the event named; `None` when it has none here, being in another pid namespace. It may be another
    /// process's number by now: only [`identify`] says whose it is.
    pub pid: Option<u32>,
    /// Refers to the process and to no other, however long it is kept; `None` when it was gone before the event was read, or
    /// where the kernel does not tell.
    pub pidfd: Option<OwnedFd>,
    /// What the kernel said of it at once; `None` where it cannot (before Linux 6.13), or when it kept nothing.
    pub info: Option<PidInfo>,
}

/// What the kernel says of a process by its pidfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidInfo {
    /// Its id as the agent sees it; `None` when it has been waited for, so that the number is free.
    pub pid: Option<u32>,
    /// Its real user; `None` when it has been waited for.
    pub uid: Option<u32>,
    /// Its control group in the unified hierarchy: the inode number of the directory.
    pub cgroup_id: Option<u64>,
}

/// Takes down who did something, at the time of the event. `pid` is only believed as far as `pidfd` confirms it.
pub fn witness(pid: Option<u32>, pidfd: Option<OwnedFd>) -> Witness {
    let info = pidfd.as_ref().and_then(|pidfd| info(pidfd.as_fd()));
    Witness { pid, pidfd, info }
}

/// As [`witness`], for a source that has no pidfds (before Linux 5.15). The process that has the number now is taken for the one
/// of the event only if it was running before the event: `ticks` is a time before the event, at which it had not happened yet, in
/// clock ticks since boot, see [`now_in_ticks`].
pub fn witness_since(pid: u32, ticks: u64) -> Witness {
    let nobody = Witness { pid: None, pidfd: None, info: None };
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let Some(raw) = raw else { return nobody };
    let Ok(pidfd) = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) else { return nobody };
    let found = witness(Some(pid), Some(pidfd));
    let is_older = proc_directory(&found)
        .and_then(|(_, proc)| read(proc.as_fd(), "stat"))
        .and_then(|stat| start_ticks(&stat))
        .is_some_and(|started| started < ticks);
    if is_older { found } else { nobody }
}

/// The time since boot in the unit in which the kernel keeps the start of a process.
pub fn now_in_ticks() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    // Zero is before every process: nobody is believed.
    let now = now.unwrap_or_default();
    now.as_secs() * per_second + u64::from(now.subsec_nanos()) * per_second / 1_000_000_000
}

impl Witness {
    /// Whether it is the agent itself.
    pub fn is_self(&self) -> bool {
        self.pid == Some(std::process::id())
    }
}

/// Finds out what can still be known of a witness. Reads about eight small files, which takes about 40 µs.
pub fn identify(witness: &Witness, units: &mut UnitMap) -> Actor {
    let mut actor = Actor::default();
    let proc = proc_directory(witness);
    if let Some((_, proc)) = &proc {
        read_process(proc.as_fd(), &mut actor);
    }
    // The kernel's own word at the time of the event is proof as well; little more than the number may be left to tell.
    let proven = witness.info.and_then(|info| info.pid).filter(|pid| witness.pid == Some(*pid));
    actor.pid = proc.as_ref().map(|(pid, _)| *pid).or(proven);
    if actor.pid.is_some() {
        actor.confidence = Confidence::Exact;
    }
    let cgroup = witness.info.and_then(|info| info.cgroup_id).and_then(|id| units.path(id));
    let from_proc = proc.as_ref().and_then(|(_, proc)| read(proc.as_fd(), "cgroup"));
    let place = best_place(cgroup, from_proc.as_deref());
    if let Some(info) = witness.info {
        actor.uid = actor.uid.or(info.uid);
    }
    if let Some(place) = place {
        actor.put_in(&place);
        if actor.confidence == Confidence::Unknown && place != "/" {
            actor.confidence = Confidence::Unit;
        }
    }
    actor.user = actor.uid.and_then(|uid| units.user(uid));
    actor.login_user = actor.login_uid.and_then(|uid| units.user(uid));
    actor
}

/// Opens the directory of `/proc` of a witness, proven to be its own. `None` when it has been waited for.
fn proc_directory(witness: &Witness) -> Option<(u32, OwnedFd)> {
    let (pid, pidfd) = (witness.pid?, witness.pidfd.as_ref()?);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
    // What the pidfd's process is called in this very /proc, and whether it is still called so.
    let status = read(CWD, &format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let now = status.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse::<u32>().ok()?;
    (now == pid).then_some((pid, directory))
}

/// Reads what is still there; of a process that has ended but was not waited for that is only some of it.
fn read_process(proc: BorrowedFd<'_>, actor: &mut Actor) {
    actor.exe = link(proc, "exe");
    actor.command = read_bytes(proc, "cmdline").and_then(|arguments| command::line(&arguments));
    actor.name = read(proc, "comm").map(|name| command::escaped(name.trim_end_matches('\n'), command::MAX_LENGTH));
    // The largest number stands for nobody having logged in.
    actor.login_uid = read(proc, "loginuid").and_then(|text| text.trim().parse().ok()).filter(|uid| *uid != u32::MAX);
    actor.uid = read(proc, "status").and_then(|status| real_uid(&status));
}

/// The control group that says most: one that names a unit, before one that does not, before none.
fn best_place(unified: Option<String>, proc: Option<&str>) -> Option<String> {
    let names_unit = |path: &str| crate::actor::place::of_cgroup(path).unit.is_some();
    if unified.as_deref().is_some_and(names_unit) {
        return unified;
    }
    let listed = || proc.into_iter().flat_map(str::lines).filter_map(managed_hierarchy);
    listed().find(|path| names_unit(path)).map(str::to_owned).or(unified).or_else(|| listed().next().map(str::to_owned))
}

/// The path in a line of `/proc/PID/cgroup`, if the hierarchy is one in which systemd keeps its units: the unified one, or
/// its own on a host that uses the first version.
fn managed_hierarchy(line: &str) -> Option<&str> {
    let (number, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let is_managed = number == "0" && controllers.is_empty() || controllers == "name=systemd";
    // Written behind a group that was removed while the process was in it.
    is_managed.then(|| path.strip_suffix(" (deleted)").unwrap_or(path))
}

/// `Uid:` of `/proc/PID/status`: real, effective, saved, file system.
fn real_uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// The start of a process in `/proc/PID/stat`. The name, in parentheses, may hold anything, parentheses included.
fn start_ticks(stat: &str) -> Option<u64> {
    // Field 22; what follows the name begins with field 3.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn read(directory: impl AsFd, name: &str) -> Option<String> {
    read_bytes(directory, name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn read_bytes(directory: impl AsFd, name: &str) -> Option<Vec<u8>> {
    let file = openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(MAX_READ).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn link(directory: impl AsFd, name: &str) -> Option<String> {
    let target = readlinkat(directory, name, Vec::with_capacity(256)).ok()?;
    Some(command::escaped(&target.to_string_lossy(), command::MAX_LENGTH))
}

/// Asks the kernel about the process of a pidfd. `None` on a kernel that does not answer, or when nothing was kept of it.
fn info(pidfd: BorrowedFd<'_>) -> Option<PidInfo> {
    let raw = get_info(pidfd)?;
    let has = |bit: libc::c_uint| raw.mask & u64::from(bit) != 0;
    Some(PidInfo {
        pid: has(libc::PIDFD_INFO_PID).then_some(raw.tgid),
        uid: has(libc::PIDFD_INFO_CREDS).then_some(raw.ruid),
        cgroup_id: has(libc::PIDFD_INFO_CGROUPID).then_some(raw.cgroupid),
    })
}

/// The structure is that of the first kernel that has this; later ones take it, and fill in no more than it holds.
#[expect(unsafe_code, reason = "no crate here has this ioctl")]
fn get_info(pidfd: BorrowedFd<'_>) -> Option<libc::pidfd_info> {
    let mut raw = std::mem::MaybeUninit::<libc::pidfd_info>::zeroed();
    // SAFETY: it consists of integers, for which zero is a value.
    let info = unsafe { raw.assume_init_mut() };
    // What the kernel kept of a process that has been waited for is asked for as well (since 6.15; before that the call fails).
    let wanted = libc::PIDFD_INFO_PID | libc::PIDFD_INFO_CREDS | libc::PIDFD_INFO_CGROUPID | libc::PIDFD_INFO_EXIT;
    info.mask = u64::from(wanted);
    // SAFETY: the kernel writes at most the size that is part of the request's number, which is that of this structure; it
    // outlives the call, as does the descriptor.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, std::ptr::from_mut(info)) };
    (result == 0).then_some(*info)
}

#[cfg(test)]
mod tests;
