//! The watcher's thread: waits for events, commands, mounts and clock steps, and never for anything else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::canary::Backlog;
use super::clocks::{self, Times};
use super::rounds::Ticket;
use super::self_test::Tester;
use super::tree::Tree;
use super::{Command, Coverage, Hint, Options, Sink, Sources, Stats, WatchError};
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
    let mounts = openat(CWD, "/proc/thread-self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .inspect_err(|errno| tracing::warn!(%errno, "cannot watch mounts; the full scan will find what they hide"))
        .ok();
    // Only inotify says itself when a file system goes.
    let sources = if mounts.is_some() { options.sources } else { Sources::InotifyOnly };
    let mut tree = Tree::new(root, &Options { sources, ..options.clone() });
    let clock = clock_steps()
        .inspect_err(|errno| tracing::warn!(%errno, "cannot watch the clock; steps of it go unnoticed"))
        .ok();
    let mut pace = Pace::new(options.urgency);
    let mut tester = options.self_test.map(|test| Tester::new(&test, &mut tree, Instant::now()));
    let mut last = times();
    let mut questions = Questions::default();
    loop {
        let due = tree.next_poll().into_iter().chain(tester.as_ref().and_then(Tester::due)).min();
        // With something to do there is no wait, but whatever came meanwhile comes first.
        let due = if tree.has_work() { Some(Instant::now()) } else { due };
        let timeout = due.map(|at| at.saturating_duration_since(Instant::now()));
        let before = times();
        let ready = wait(&tree, wake, mounts.as_ref(), clock.as_ref(), timeout)?;
        let mut backlog = Backlog::None;
        // Before the commands, whose answers come after what was to be done before them.
        if ready.mounts {
            tree.mounts_changed(sink);
            tree.refresh();
        }
        if ready.wake {
            clear(wake)?;
            if obey(&mut tree, &mut questions, commands, sink)? == Flow::Stop {
                return Ok(());
            }
        }
        let now = Instant::now();
        pace.waited(now);
        if ready.events && tree.is_flooded() {
            tree.give_up_flood(now, sink);
            tester.iter_mut().for_each(|tester| tester.arm(&mut tree, now));
            sink.hint(Hint::Everything { why: "the kernel's event queue overflowed, or was about to" });
        } else if ready.events && read(&mut tree, sink)? > 0 {
            backlog = Backlog::Some;
        }
        if tree.is_littered() {
            tree.renew(now);
            tester.iter_mut().for_each(|tester| tester.arm(&mut tree, now));
            sink.hint(Hint::Everything { why: "the watches were armed anew" });
        }
        // After the events: they are why the thread woke, and somebody waits for them.
        let after = times();
        if ready.clock
            && let Some(clock) = &clock
            && clock.wait() == Err(Errno::ECANCELED)
        {
            arm_clock(clock).map_err(|errno| WatchError::Wait(errno.into()))?;
            sink.hint(Hint::Everything { why: clocks::how_set(last, after) });
        }
        last = after;
        if let Some(why) = clocks::gap(before, after, timeout) {
            tracing::warn!(why, "looking everywhere");
            sink.hint(Hint::Everything { why });
        }
        if let Some(tester) = &mut tester {
            tester.run(backlog, &mut tree, now, sink);
        }
        tree.poll(now);
        tree.work(now, sink);
        questions.answer(&tree, tester.as_ref());
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

/// The clocks now. One that the kernel does not have stands still.
fn times() -> Times {
    let read = |clock| {
        let time = clock_gettime(clock).unwrap_or(TimeSpec::new(0, 0));
        Duration::new(time.tv_sec().try_into().unwrap_or(0), time.tv_nsec().try_into().unwrap_or(0))
    };
    Times {
        real: read(ClockId::CLOCK_REALTIME),
        boot: read(ClockId::CLOCK_BOOTTIME),
        monotonic: read(ClockId::CLOCK_MONOTONIC),
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
    timeout: Option<Duration>,
) -> Result<Ready, WatchError> {
    let timeout = match timeout {
        None => PollTimeout::NONE,
        // One millisecond more, so that it is due when the wait is over.
        Some(Duration::ZERO) => PollTimeout::ZERO,
        Some(timeout) => PollTimeout::try_from(timeout.as_millis() + 1).unwrap_or(PollTimeout::MAX),
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

/// Questions that are answered when what was to be done before them is done.
#[derive(Debug, Default)]
struct Questions(Vec<(Ticket, Question)>);

#[derive(Debug)]
enum Question {
    IsDone(SyncSender<()>),
    Coverage(SyncSender<Coverage>),
    Stats(SyncSender<Stats>),
}

impl Questions {
    fn answer(&mut self, tree: &Tree, tester: Option<&Tester>) {
        for (_, question) in self.0.extract_if(.., |(ticket, _)| tree.has_come(*ticket)) {
            match question {
                Question::IsDone(reply) => answer(&reply, ()),
                Question::Coverage(reply) => {
                    let mut coverage = tree.coverage();
                    if let Some(canary) = tester.map(Tester::canary) {
                        coverage.self_test = canary.failing().map(str::to_owned);
                        coverage.n_failed_tests = canary.n_missed();
                    }
                    answer(&reply, coverage);
                }
                Question::Stats(reply) => answer(&reply, tree.stats()),
            }
        }
    }
}

fn obey(
    tree: &mut Tree,
    questions: &mut Questions,
    commands: &Receiver<Command>,
    sink: &mut dyn Sink,
) -> Result<Flow, WatchError> {
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
        let question = match command {
            Ok(Command::SetInterests(interests, reply)) => (tree.set_interests(interests), Question::IsDone(reply)),
            Ok(Command::Refresh(reply)) => {
                tree.refresh();
                (tree.ticket(), Question::IsDone(reply))
            }
            Ok(Command::Coverage(reply)) => (tree.ticket(), Question::Coverage(reply)),
            Ok(Command::Stats(reply)) => (tree.ticket(), Question::Stats(reply)),
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Ok(Flow::Stop),
            Err(TryRecvError::Empty) => return Ok(Flow::Continue),
        };
        questions.0.push(question);
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
    let clock = TimerFd::new(timerfd::ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
    arm_clock(&clock)?;
    Ok(clock)
}

fn arm_clock(clock: &TimerFd) -> Result<(), Errno> {
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    clock.set(Expiration::OneShot(TimeSpec::new(NEVER, 0)), flags)
}
