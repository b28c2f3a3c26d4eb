//! The self-test of the watches: a file is touched once in a while, and every source of events has to tell of it in time, and
//! of the right process.
//!
//! Nothing else notices that a watch, a mark or a whole queue silently stopped to work. Pure: it decides when to touch and what an
//! event, or its absence, means; the reader does the rest.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{By, SelfTest};

/// What the reader has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Order {
    /// Nothing.
    None,
    /// Touch the file.
    Touch,
    /// The test failed: arm everything anew, the canary included, and have everything looked at.
    Renew,
}

/// What an event about the canary says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sighting {
    /// It was touched, by this very process as far as the source tells.
    Seen(By),
    /// It was touched, and the source names another process.
    Mistaken(By),
    /// The kernel stopped watching it, and nothing that was done to it explains why.
    Lost(By),
    /// Its directory is gone.
    Gone,
}

/// Whether everything that was to be read is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backlog {
    /// It is.
    None,
    /// There may be more.
    Some,
}

/// The state of the test.
#[derive(Debug)]
pub(super) struct Canary {
    every: Duration,
    patience: Duration,
    armed: BTreeSet<By>,
    state: State,
    n_missed: u64,
    failing: Option<String>,
}

/// Between two tests, in one, or at the end of a failed one.
#[derive(Debug)]
enum State {
    /// The next test begins at `at`. Entered after a test; left by [`Canary::tick`].
    Waiting { at: Instant },
    /// The file was touched, and `missing` have not told of it. Left when all have, or when patience is at an end.
    Out { since: Instant, missing: BTreeSet<By> },
    /// Somebody told something wrong. Left by the next [`Canary::tick`].
    Failed { why: String },
}

impl Canary {
    pub(super) fn new(test: &SelfTest, now: Instant) -> Self {
        Self {
            every: test.every,
            patience: test.patience,
            armed: BTreeSet::new(),
            state: State::Waiting { at: now + test.every },
            n_missed: 0,
            failing: None,
        }
    }

    /// The sources that the canary was armed with. Without any there is nothing to test.
    pub(super) fn armed(&mut self, sources: BTreeSet<By>) {
        self.armed = sources;
    }

    /// When [`Canary::tick`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { at } => Some(*at),
            State::Out { since, .. } => Some(*since + self.patience),
            State::Failed { .. } => None,
        }
    }

    /// How often the test failed.
    pub(super) fn n_missed(&self) -> u64 {
        self.n_missed
    }

    /// What is wrong now, in words.
    pub(super) fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    /// An event came.
    pub(super) fn saw(&mut self, sighting: Sighting, now: Instant) {
        match sighting {
            Sighting::Seen(by) => {
                let State::Out { missing, .. } = &mut self.state else { return };
                missing.remove(&by);
                if missing.is_empty() {
                    self.failing = None;
                    self.state = State::Waiting { at: now + self.every };
                }
            }
            Sighting::Mistaken(by) => {
                self.state = State::Failed { why: format!("{} named the wrong process for a test event", by.name()) };
            }
            // Somebody removed it; the watch itself works.
            Sighting::Gone => {}
            Sighting::Lost(by) => {
                self.state = State::Failed { why: format!("{} lost the watch for test events", by.name()) };
            }
        }
    }

    /// Events were lost, and everything is looked at for that reason: those that did not come prove nothing.
    pub(super) fn excuse(&mut self, now: Instant) {
        if let State::Out { .. } = self.state {
            self.state = State::Waiting { at: now + self.every };
        }
    }

    /// The file could not be touched, or not be armed.
    pub(super) fn impossible(&mut self, why: String, now: Instant) {
        self.failing = Some(why);
        self.state = State::Waiting { at: now + self.every };
    }

    /// What to do now. To be called after everything that was there was read.
    pub(super) fn tick(&mut self, backlog: Backlog, now: Instant) -> Order {
        match &self.state {
            State::Waiting { at } if *at <= now => {
                if self.armed.is_empty() {
                    self.state = State::Waiting { at: now + self.every };
                    return Order::None;
                }
                self.state = State::Out { since: now, missing: self.armed.clone() };
                Order::Touch
            }
            State::Out { since, missing } if *since + self.patience <= now => {
                // What is still in the queue may contain it; but a queue that never ends is no excuse for ever.
                if backlog == Backlog::Some && now < *since + self.patience * 10 {
                    return Order::None;
                }
                let names: Vec<&str> = missing.iter().map(|by| by.name()).collect();
                let why = format!(
                    "a test event did not come within {} ms from {}",
                    self.patience.as_millis(),
                    names.join(" and ")
                );
                self.fail(why, now)
            }
            State::Failed { why } => {
                let why = why.clone();
                self.fail(why, now)
            }
            State::Waiting { .. } | State::Out { .. } => Order::None,
        }
    }

    fn fail(&mut self, why: String, now: Instant) -> Order {
        // After the first failure the new watches are tested at once; if they fail as well, at the usual times.
        let next = if self.failing.is_none() { now } else { now + self.every };
        self.state = State::Waiting { at: next };
        self.n_missed += 1;
        self.failing = Some(why);
        Order::Renew
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Test {
        canary: Canary,
        start: Instant,
    }

    impl Test {
        fn new(sources: &[By]) -> Self {
            let start = Instant::now();
            let test = SelfTest {
                directory: "/nest".into(),
                every: Duration::from_secs(60),
                patience: Duration::from_secs(1),
            };
            let mut canary = Canary::new(&test, start);
            canary.armed(sources.iter().copied().collect());
            Self { canary, start }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        #[track_caller]
        fn tick(&mut self, millis: u64, order: Order) {
            assert_eq!(self.canary.tick(Backlog::None, self.at(millis)), order, "after {millis} ms");
        }

        fn saw(&mut self, millis: u64, sighting: Sighting) {
            self.canary.saw(sighting, self.at(millis));
        }
    }

    const BOTH: &[By] = &[By::Fanotify, By::Inotify];

    #[test]
    fn case_45_each_source_has_to_tell_in_time() {
        let mut test = Test::new(BOTH);
        test.tick(0, Order::None);
        test.tick(60_000, Order::Touch);
        test.saw(60_001, Sighting::Seen(By::Inotify));
        test.tick(60_999, Order::None);
        assert_eq!(test.canary.failing(), None);
        test.tick(61_000, Order::Renew);
        assert_eq!(test.canary.failing(), Some("a test event did not come within 1000 ms from fanotify"));
        assert_eq!(test.canary.n_missed(), 1);
        // The new watches are tested at once.
        test.tick(61_001, Order::Touch);
        test.saw(61_002, Sighting::Seen(By::Inotify));
        test.saw(61_002, Sighting::Seen(By::Fanotify));
        assert_eq!((test.canary.failing(), test.canary.n_missed()), (None, 1));
        test.tick(61_003, Order::None);
        assert_eq!(test.canary.due(), Some(test.at(121_002)));
    }

    #[test]
    fn case_45_what_keeps_failing_is_armed_anew_once_a_minute() {
        let mut test = Test::new(&[By::Inotify]);
        let mut orders = Vec::new();
        for millis in (0..600_000).step_by(100) {
            orders.push(test.canary.tick(Backlog::None, test.at(millis)));
        }
        assert_eq!(orders.iter().filter(|order| **order == Order::Renew).count(), 10, "in ten minutes");
        assert_eq!(test.canary.n_missed(), 10);
    }

    #[test]
    fn case_45_the_wrong_process_is_as_bad_as_no_event() {
        let mut test = Test::new(BOTH);
        test.tick(60_000, Order::Touch);
        test.saw(60_001, Sighting::Mistaken(By::Fanotify));
        test.tick(60_001, Order::Renew);
        assert_eq!(test.canary.failing(), Some("fanotify named the wrong process for a test event"));
    }

    #[test]
    fn case_45_a_watch_that_the_kernel_dropped_is_noticed_between_tests() {
        let mut test = Test::new(BOTH);
        test.saw(10, Sighting::Lost(By::Inotify));
        test.tick(10, Order::Renew);
    }

    #[test]
    fn what_is_still_to_be_read_may_contain_it() {
        let mut test = Test::new(BOTH);
        test.tick(60_000, Order::Touch);
        assert_eq!(test.canary.tick(Backlog::Some, test.at(65_000)), Order::None);
        assert_eq!(test.canary.tick(Backlog::Some, test.at(70_000)), Order::Renew, "but not for ever");
    }

    #[test]
    fn lost_events_and_missing_sources_prove_nothing() {
        let mut test = Test::new(BOTH);
        test.tick(60_000, Order::Touch);
        test.canary.excuse(test.at(60_500));
        test.tick(61_000, Order::None);
        let mut none = Test::new(&[]);
        none.tick(60_000, Order::None);
        assert!(none.canary.due() > Some(none.at(60_000)), "and it must not wake for it");
        let mut broken = Test::new(BOTH);
        broken.tick(60_000, Order::Touch);
        broken.canary.impossible("cannot touch it".to_owned(), broken.at(60_000));
        broken.tick(61_000, Order::None);
        assert_eq!((broken.canary.failing(), broken.canary.n_missed()), (Some("cannot touch it"), 0));
    }
}
