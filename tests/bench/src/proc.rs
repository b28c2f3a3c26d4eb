//! What the kernel says about a process: time, wake-ups, memory, descriptors, watches, scheduling.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// How a thread is scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// `SCHED_FIFO` priority; 0 is not real-time.
    pub fifo: u8,
    /// Niceness.
    pub nice: i8,
    /// The processor that it is bound to, if it is.
    pub cpu: Option<usize>,
}

/// Like most programs.
pub const NORMAL: Scheduling = Scheduling { fifo: 0, nice: 0, cpu: None };

/// Descriptors and watches that a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Open descriptors.
    pub descriptors: usize,
    /// inotify watches and fanotify marks.
    pub watches: usize,
}

/// Time and wake-ups so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// User and system time of the process, of all its threads.
    pub cpu: Duration,
    /// How often its threads gave up the processor by themselves: each time they woke.
    pub wakeups: u64,
}

/// Proportional set size in bytes: what is shared counts by its share.
pub fn pss(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("smaps_rollup has no Pss")?;
    Ok(kib.trim().trim_end_matches(" kB").parse::<u64>().context("Pss is no number")? * 1024)
}

/// Counts descriptors and watches.
pub fn held(pid: Pid) -> Result<Held> {
    let directory = format!("/proc/{pid}/fdinfo");
    let mut held = Held { descriptors: 0, watches: 0 };
    for entry in std::fs::read_dir(&directory).with_context(|| format!("cannot list `{directory}`"))? {
        held.descriptors += 1;
        // A descriptor may be closed while it is looked at.
        let Ok(info) = std::fs::read_to_string(entry?.path()) else { continue };
        held.watches += count_watches(&info);
    }
    Ok(held)
}

fn count_watches(fdinfo: &str) -> usize {
    fdinfo.lines().filter(|line| line.starts_with("inotify wd:") || line.starts_with("fanotify ino:")).count()
}

/// Reads time and wake-ups.
pub fn usage(pid: Pid) -> Result<Usage> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
    let ticks = field(&stat, 14)?.parse::<u64>()? + field(&stat, 15)?.parse::<u64>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    let mut wakeups = 0;
    for task in tasks(pid)? {
        // A thread may end meanwhile.
        let Ok(status) = std::fs::read_to_string(task.join("status")) else { continue };
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        wakeups += switches.context("no voluntary_ctxt_switches")?.trim().parse::<u64>()?;
    }
    Ok(Usage { cpu: Duration::from_millis(ticks * 1000 / u64::try_from(per_second)?), wakeups })
}

/// Binds the thread of this name to one processor.
pub fn bind(pid: Pid, thread: &str, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).context("there is no such processor")?;
    for task in tasks(pid)? {
        let Ok(stat) = std::fs::read_to_string(task.join("stat")) else { continue };
        if name(&stat) == Some(thread) {
            let tid = task.file_name().and_then(|tid| tid.to_str()).context("a thread has a number")?.parse()?;
            sched_setaffinity(Pid::from_raw(tid), &cpus).context("cannot bind a thread to a processor")?;
        }
    }
    Ok(())
}

/// How the thread of this name is scheduled; `None` when there is none.
pub fn scheduling(pid: Pid, thread: &str) -> Result<Option<Scheduling>> {
    for task in tasks(pid)? {
        let Ok(stat) = std::fs::read_to_string(task.join("stat")) else { continue };
        if name(&stat) == Some(thread) {
            return parse_scheduling(&stat).map(Some);
        }
    }
    Ok(None)
}

fn parse_scheduling(stat: &str) -> Result<Scheduling> {
    let nice = field(stat, 19)?.parse()?;
    let (priority, policy) = (field(stat, 40)?.parse()?, field(stat, 41)?);
    // SCHED_FIFO is 1; the bit for "children start over" is not in this field.
    Ok(Scheduling { fifo: if policy == "1" { priority } else { 0 }, nice, cpu: None })
}

/// Type of the file system and the place that it is mounted from.
pub fn file_system(path: &Path) -> Result<String> {
    let path = std::fs::canonicalize(path).with_context(|| format!("cannot resolve `{}`", path.display()))?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let best = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (source, target, kind) = (words.next()?, words.next()?, words.next()?);
            path.starts_with(target).then_some((target.len(), format!("{kind} on {source}")))
        })
        .max_by_key(|(length, _)| *length);
    Ok(best.map_or_else(|| "unknown file system".to_owned(), |(_, text)| text))
}

fn tasks(pid: Pid) -> Result<Vec<PathBuf>> {
    let directory = format!("/proc/{pid}/task");
    let entries = std::fs::read_dir(&directory).with_context(|| format!("cannot list `{directory}`"))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The name between the first and the last parenthesis: it may hold both.
fn name(stat: &str) -> Option<&str> {
    let (start, end) = (stat.find('(')?, stat.rfind(')')?);
    stat.get(start + 1..end)
}

/// Field `n` of proc_pid_stat(5), from 3 on.
fn field(stat: &str, n: usize) -> Result<&str> {
    let end = stat.rfind(')').context("a stat without a name")?;
    ensure!(n >= 3, "the first two fields are not for this function");
    let rest = stat.get(end + 1..).unwrap_or_default();
    rest.split_whitespace().nth(n - 3).with_context(|| format!("a stat without field {n}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "77 (a b) c) S 1 77 77 0 -1 4194304 1 2 3 4 50 60 7 8 -11 -5 3 0 99 1000 200 18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 10 1 0 0 0 0";

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        assert_eq!(name(STAT), Some("a b) c"));
        assert_eq!(field(STAT, 3).unwrap(), "S");
        assert_eq!(field(STAT, 14).unwrap(), "50");
        assert_eq!(parse_scheduling(STAT).unwrap(), Scheduling { fifo: 10, nice: -5, cpu: None });
    }

    #[test]
    fn watches_of_both_kinds_are_counted() {
        let info = "pos:\t0\nflags:\t02000\nmnt_id:\t15\nino:\t1\ninotify wd:2 ino:1 sdev:2 mask:3\n\
                    fanotify flags:10 event-flags:0\nfanotify ino:50016 sdev:800013 mflags:0 mask:3b\n";
        assert_eq!(count_watches(info), 2);
    }

    #[test]
    fn this_process_can_be_read() {
        let me = Pid::this();
        assert!(pss(me).unwrap() > 100_000);
        assert!(held(me).unwrap().descriptors >= 3);
        assert!(usage(me).is_ok());
        assert!(scheduling(me, "no such thread").unwrap().is_none());
        assert!(!file_system(Path::new("/proc")).unwrap().is_empty());
    }
}
