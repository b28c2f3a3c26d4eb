//! The watcher's thread: waits for events, commands, mounts and clock steps, and never for anything else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::tree::Tree;
use super::{Command, Hint, Options, Sink, WatchError};
use crate::host::thread::{self, Urgency};

/// Far enough in the future never to come; the timer exists only to be cancelled when the clock is set.
const NEVER: i64 = 1 << 40;

/// Buffers of events to read before a command is obeyed.
const MAX_READS: u32 = 16;

/// Runs until told to stop.
pub(super) fn run(
    root: OwnedFd,
    options: Options,
    commands: &Receiver<Command>,
    wake: BorrowedFd<'_>,
    sink: &mut dyn Sink,
) -> Result<(), WatchError> {
    let mut tree = Tree::new(root, options);
    let mounts = openat(CWD, "/proc/thread-self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .inspect_err(|errno| tracing::warn!(%errno, "cannot watch mounts; the full scan will find what they hide"))
        .ok();
    let clock = clock_steps()
        .inspect_err(|errno| tracing::warn!(%errno, "cannot watch the clock; steps of it go unnoticed"))
        .ok();
    let mut pace = Pace::new(options.urgency);
    loop {
        let ready = wait(&tree, wake, mounts.as_ref(), clock.as_ref())?;
        if ready.wake {
            clear(wake)?;
            if obey(&mut tree, commands, sink)? == Flow::Stop {
                return Ok(());
            }
        }
        let now = Instant::now();
        pace.waited(now);
        if ready.events {
            read(&mut tree, sink)?;
            if tree.is_littered() {
                tree.renew("the watches were armed anew", now, sink);
            }
        }
        if ready.mounts {
            tree.compare_all(now, sink);
        }
        if ready.clock
            && let Some(clock) = &clock
            && clock.wait() == Err(Errno::ECANCELED)
        {
            arm_clock(clock).map_err(|errno| WatchError::Wait(errno.into()))?;
            sink.hint(Hint::Everything { why: "the clock was set" });
        }
        tree.poll(now, sink);
        pace.worked(Instant::now());
    }
}

/// Longest time that the thread works without a pause at a better priority than others. A repair takes microseconds; who
/// causes events without end must not keep the rest of the host from running.
const LONGEST_STRETCH: Duration = Duration::from_millis(50);

/// A wait that is shorter was no pause.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

/// Gives a better priority back while there is no end of work.
#[derive(Debug)]
struct Pace {
    wanted: Urgency,
    granted: Urgency,
    /// Since when there was no pause.
    since: Instant,
    /// When the last piece of work ended.
    ended: Instant,
}

impl Pace {
    fn new(wanted: Urgency) -> Self {
        let now = Instant::now();
        let granted = if wanted == Urgency::Ordinary { wanted } else { thread::schedule_this(wanted) };
        Self { wanted, granted, since: now, ended: now }
    }

    /// There is something to do again.
    fn waited(&mut self, now: Instant) {
        if now.saturating_duration_since(self.ended) < SHORTEST_PAUSE {
            return;
        }
        self.since = now;
        if self.granted == Urgency::Ordinary && self.wanted != Urgency::Ordinary {
            self.granted = thread::schedule_this(self.wanted);
        }
    }

    /// What there was to do is done.
    fn worked(&mut self, now: Instant) {
        self.ended = now;
        let is_long = now.saturating_duration_since(self.since) > LONGEST_STRETCH;
        // A nice thread shares with the others by itself.
        if is_long && self.granted == Urgency::RealTime {
            self.granted = thread::schedule_this(Urgency::Ordinary);
        }
    }
}

#[derive(Debug, Default)]
struct Ready {
    events: bool,
    wake: bool,
    mounts: bool,
    clock: bool,
}

fn wait(
    tree: &Tree,
    wake: BorrowedFd<'_>,
    mounts: Option<&OwnedFd>,
    clock: Option<&TimerFd>,
) -> Result<Ready, WatchError> {
    let timeout = match tree.next_poll() {
        None => PollTimeout::NONE,
        // One millisecond more, so that it is due when the wait is over.
        Some(at) => PollTimeout::try_from(at.saturating_duration_since(Instant::now()).as_millis() + 1)
            .unwrap_or(PollTimeout::MAX),
    };
    let [inotify, fanotify] = tree.fds();
    let sources = [
        (inotify, PollFlags::POLLIN),
        (fanotify, PollFlags::POLLIN),
        (Some(wake), PollFlags::POLLIN),
        (mounts.map(AsFd::as_fd), PollFlags::POLLPRI),
        (clock.map(AsFd::as_fd), PollFlags::POLLIN),
    ];
    let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(sources.len());
    let places = sources.map(|(fd, flags)| {
        fd.map(|fd| {
            fds.push(PollFd::new(fd, flags));
            fds.len() - 1
        })
    });
    match poll(&mut fds, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Ready::default()),
        Err(errno) => return Err(WatchError::Wait(errno.into())),
    }
    let [inotify, fanotify, wake, mounts, clock] =
        places.map(|place| place.and_then(|place| fds.get(place)).and_then(PollFd::any).unwrap_or(false));
    Ok(Ready { events: inotify || fanotify, wake, mounts, clock })
}

fn clear(wake: BorrowedFd<'_>) -> Result<(), WatchError> {
    let mut counter = [0; 8];
    match rustix::io::read(wake, &mut counter) {
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(WatchError::Wait(errno.into())),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

fn obey(tree: &mut Tree, commands: &Receiver<Command>, sink: &mut dyn Sink) -> Result<Flow, WatchError> {
    loop {
        let command = commands.try_recv();
        if command.is_ok() {
            // What happened before a call is hinted before it returns. The bound keeps a storm from delaying the answer.
            for _ in 0..MAX_READS {
                if read(tree, sink)? == 0 {
                    break;
                }
            }
        }
        match command {
            Ok(Command::SetInterests(interests, reply)) => {
                tree.set_interests(interests, Instant::now());
                answer(&reply, ());
            }
            Ok(Command::Refresh(reply)) => {
                tree.compare_all(Instant::now(), sink);
                answer(&reply, ());
            }
            Ok(Command::Coverage(reply)) => answer(&reply, tree.coverage()),
            Ok(Command::Stats(reply)) => answer(&reply, tree.stats()),
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Ok(Flow::Stop),
            Err(TryRecvError::Empty) => return Ok(Flow::Continue),
        }
    }
}

fn read(tree: &mut Tree, sink: &mut dyn Sink) -> Result<u64, WatchError> {
    tree.read(Instant::now(), sink).map_err(|errno| WatchError::Read(errno.into()))
}

fn answer<T>(reply: &SyncSender<T>, value: T) {
    // The asker waits for the answer, so it is gone only when its thread is.
    if reply.send(value).is_err() {
        tracing::debug!("nobody waits for the watcher's answer any more");
    }
}

fn clock_steps() -> Result<TimerFd, Errno> {
    let clock = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
    arm_clock(&clock)?;
    Ok(clock)
}

fn arm_clock(clock: &TimerFd) -> Result<(), Errno> {
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    clock.set(Expiration::OneShot(TimeSpec::new(NEVER, 0)), flags)
}
