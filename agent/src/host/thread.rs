//! How the kernel schedules one thread of the agent.
//!
//! The watcher's thread answers drift by itself, so the time until it runs is most of the time until the right file is back.
//! On a busy host an ordinary thread waits its turn for milliseconds; measured, this matters more than any code.

use std::io;

/// Priority of the watcher's thread among real-time threads: the lowest, since it only has to come before ordinary ones.
const REAL_TIME: i32 = 1;

/// What comes nearest to it where real time is refused.
const NICE: i32 = -15;

/// How a thread is scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Before every ordinary thread of the host.
    RealTime,
    /// With a large share among ordinary threads.
    Nice,
    /// As any other.
    Ordinary,
}

/// Schedules the calling thread, and reports what was granted. Processes that it makes are ordinary again.
#[expect(unsafe_code, reason = "neither nix nor rustix wraps the scheduling class of a thread")]
pub fn schedule_this(wanted: Urgency) -> Urgency {
    let class = |policy: i32, priority: i32| {
        let parameters = libc::sched_param { sched_priority: priority };
        // SAFETY: 0 names the calling thread, and `parameters` outlives the call, which only reads it.
        let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    match wanted {
        Urgency::RealTime => match class(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, REAL_TIME) {
            Ok(()) => Urgency::RealTime,
            Err(error) => {
                tracing::debug!("real-time scheduling is refused: {error}");
                schedule_this(Urgency::Nice)
            }
        },
        Urgency::Nice => {
            // On Linux the niceness belongs to the thread.
            match rustix::process::setpriority_process(None, NICE) {
                Ok(()) => Urgency::Nice,
                Err(errno) => {
                    tracing::debug!("a better niceness is refused: {errno}");
                    Urgency::Ordinary
                }
            }
        }
        Urgency::Ordinary => match class(libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK, 0) {
            Ok(()) => Urgency::Ordinary,
            Err(error) => {
                tracing::warn!("cannot give real-time scheduling back: {error}");
                Urgency::RealTime
            }
        },
    }
}

/// Lets this process have as many open files as the kernel allows it: a descriptor for each directory that holds a declared
/// file saves the walk to it.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!("cannot raise the limit of open files: {errno}");
    }
}

/// How many files this process may have open.
pub fn most_open_files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}
