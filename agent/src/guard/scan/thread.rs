//! The thread that scans: one timer, one descriptor to wake it, asleep in between.
//!
//! The timer is of the wall clock and is cancelled when that is set, so setting it back can neither hide a change nor put off a
//! scan.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::{Found, Scan};
use crate::host::background;
use crate::host::root::Root;
use crate::host::verify::Entry;
use crate::resource::ResourceId;

/// How often there are scans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From one quick scan to the next, a tenth more or less.
    pub quick: Duration,
    /// In this time the rolling scan reads every file.
    pub round: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { quick: Duration::from_secs(60), round: Duration::from_secs(3600) }
    }
}

impl Pace {
    /// How many of `n` files to read at each quick scan, so that a round ends in time even when every scan comes late.
    fn part_of(&self, n: usize) -> usize {
        let longest = self.quick + self.quick / 10;
        let n_parts = (self.round.as_millis() / longest.as_millis().max(1)).max(1);
        n.div_ceil(usize::try_from(n_parts).unwrap_or(usize::MAX))
    }
}

enum Order {
    Declare(Vec<Entry>),
    Look,
    Stop,
}

/// Handle of the scanning thread; dropping it stops and joins it.
#[derive(Debug)]
pub struct Scanner {
    orders: mpsc::Sender<Order>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Scanner {
    /// Starts the thread. `found` is called on it with what is to be looked at, and with the error when it cannot go on, which
    /// is its last word: the process should end and be restarted.
    ///
    /// # Errors
    ///
    /// When the thread or its descriptors cannot be made.
    pub fn start(
        root: Root,
        pace: Pace,
        found: impl Fn(io::Result<BTreeSet<ResourceId>>) + Send + 'static,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let alarm = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let (orders, received) = mpsc::channel();
        let thread = std::thread::Builder::new().name("scan".to_owned()).spawn({
            let wake = Arc::clone(&wake);
            move || {
                if let Err(error) = background::read_when_idle() {
                    tracing::debug!(%error, "the scan competes for the disk like everything else");
                }
                if let Err(error) = run(&root, pace, &received, &wake, &alarm, &|look| found(Ok(look))) {
                    found(Err(error));
                }
            }
        })?;
        Ok(Self { orders, wake, thread: Some(thread) })
    }

    /// Replaces the files that are scanned.
    pub fn declare(&self, entries: Vec<Entry>) {
        self.order(Order::Declare(entries));
    }

    /// Makes a quick scan now, because something may have been missed. Several that come at once make one.
    pub fn look_now(&self) {
        self.order(Order::Look);
    }

    fn order(&self, order: Order) {
        // Either fails only when the thread has ended, which its callback was told.
        if self.orders.send(order).is_err() || self.wake.write(1).is_err() {
            tracing::debug!("the scanning thread is gone");
        }
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.order(Order::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the scanning thread panicked");
        }
    }
}

/// After a scan that was asked for, the next may begin when it has rested so many times as long as that took.
const REST: u32 = 4;

fn run(
    root: &Root,
    pace: Pace,
    orders: &Receiver<Order>,
    wake: &EventFd,
    alarm: &TimerFd,
    found: &dyn Fn(BTreeSet<ResourceId>),
) -> io::Result<()> {
    let mut scan = Scan::new(background::longest_writeback());
    let tell = |found_now: Found, why: &str| {
        let Found { look, n_looked, n_read } = found_now;
        tracing::debug!(why, n_looked, n_read, n_found = look.len(), "scanned");
        if !look.is_empty() {
            tracing::info!(why, n_found = look.len(), "a scan found what no event told");
            found(look);
        }
    };
    arm(alarm, pace)?;
    let mut asked = false;
    let mut rest_until = Instant::now();
    loop {
        wait(wake, alarm, asked.then_some(rest_until))?;
        loop {
            match orders.try_recv() {
                Ok(Order::Declare(entries)) => scan.declare(entries),
                Ok(Order::Look) => asked = true,
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return Ok(()),
                Err(TryRecvError::Empty) => break,
            }
        }
        let now = SystemTime::now();
        match alarm.wait() {
            Ok(()) => {
                arm(alarm, pace)?;
                asked = false;
                let mut all = scan.quick(root, now);
                all.add(scan.roll(root, now, pace.part_of(scan.len())));
                tell(all, "periodic");
            }
            Err(Errno::ECANCELED) => {
                arm(alarm, pace)?;
                asked = false;
                // Set forward or back: whoever sets it can do both, and between the two write what looks old.
                scan.forget();
                tell(scan.quick(root, now), "the clock was set");
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let begun = Instant::now();
        if asked && begun >= rest_until {
            asked = false;
            tell(scan.quick(root, now), "something may have been missed");
            rest_until = Instant::now() + begun.elapsed() * REST;
        }
    }
}

/// Sets the alarm a tenth before or after its time, so that many hosts do not scan at once.
fn arm(alarm: &TimerFd, pace: Pace) -> io::Result<()> {
    // The standard library keys this hasher from the kernel's random numbers.
    let chance = RandomState::new().hash_one(pace.quick) % 1000;
    let spread = pace.quick / 5 * u32::try_from(chance).unwrap_or(0) / 1000;
    let at = SystemTime::now() + pace.quick - pace.quick / 10 + spread;
    let at = at.duration_since(UNIX_EPOCH).unwrap_or(pace.quick);
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    alarm.set(Expiration::OneShot(TimeSpec::from_duration(at)), flags)?;
    Ok(())
}

/// Sleeps until there is an order, the alarm, or `until`.
fn wait(wake: &EventFd, alarm: &TimerFd, until: Option<Instant>) -> io::Result<()> {
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        // One millisecond more, so that it is due when the wait is over.
        PollTimeout::try_from(until.saturating_duration_since(Instant::now()).as_millis() + 1)
            .unwrap_or(PollTimeout::MAX)
    });
    let mut fds = [PollFd::new(wake.as_fd(), PollFlags::POLLIN), PollFd::new(alarm.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    match wake.read() {
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_ends_in_time_even_when_every_scan_comes_late() {
        let pace = Pace::default();
        for n in [0, 1, 53, 54, 55, 10_000, 100_000] {
            let part = pace.part_of(n);
            let n_scans = u32::try_from(n.div_ceil(part.max(1))).unwrap();
            assert!(pace.quick * 11 / 10 * n_scans <= pace.round, "{n}");
            assert!(part <= n / 50 + 1, "{n}: {part} at once");
        }
        let fast = Pace { quick: Duration::from_secs(60), round: Duration::from_secs(1) };
        assert_eq!(fast.part_of(100), 100);
    }
}
