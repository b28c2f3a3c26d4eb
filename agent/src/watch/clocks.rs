//! What the clocks say about time in which the watcher could not watch. Pure: times come as arguments.
//!
//! It costs no wake-up: the clocks are read where the watcher wakes anyway.

use std::time::Duration;

/// Said when the wall clock was set to an earlier time: time stamps that were trusted may come again.
const CLOCK_SET_BACK: &str = "the clock was set back";
/// Said when the wall clock was set to a later time.
const CLOCK_SET_FORWARD: &str = "the clock was set forward";
const CLOCK_SET: &str = "the clock was set";
const SLEPT: &str = "the host slept";
const STOPPED: &str = "the watcher could not run for a while";

/// Less than this is no gap: a busy host is late by as much.
const GAP: Duration = Duration::from_secs(2);

/// The clocks at one moment, each since its own beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// The wall clock, which can be set.
    pub(super) real: Duration,
    /// Goes on while the host sleeps.
    pub(super) boot: Duration,
    /// Stands still while the host sleeps.
    pub(super) monotonic: Duration,
}

impl Times {
    /// How much the wall clock is ahead of the one that cannot be set. It never began before that.
    fn ahead(self) -> Duration {
        self.real.saturating_sub(self.boot)
    }

    fn slept(self) -> Duration {
        self.boot.saturating_sub(self.monotonic)
    }
}

/// What to say after the kernel said that the wall clock was set, without saying how.
pub(super) fn how_set(before: Times, after: Times) -> &'static str {
    // Smaller differences come from adjusting its speed.
    let tolerance = Duration::from_millis(1);
    if after.ahead() + tolerance < before.ahead() {
        CLOCK_SET_BACK
    } else if before.ahead() + tolerance < after.ahead() {
        CLOCK_SET_FORWARD
    } else {
        // As after a sleep.
        CLOCK_SET
    }
}

/// What to say after a wait, if it took longer than it should have: at most `timeout`, where there was one.
pub(super) fn gap(before: Times, after: Times, timeout: Option<Duration>) -> Option<&'static str> {
    let waited = after.monotonic.saturating_sub(before.monotonic);
    if after.slept() > before.slept() + GAP {
        Some(SLEPT)
    } else if timeout.is_some_and(|timeout| waited > timeout + GAP) {
        Some(STOPPED)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(real: u64, boot: u64, monotonic: u64) -> Times {
        Times {
            real: Duration::from_secs(real),
            boot: Duration::from_secs(boot),
            monotonic: Duration::from_secs(monotonic),
        }
    }

    #[test]
    fn a_clock_set_back_is_told_from_one_set_forward() {
        let before = times(1_000_000, 1000, 900);
        assert_eq!(how_set(before, times(1_000_010 - 3600, 1010, 910)), CLOCK_SET_BACK);
        assert_eq!(how_set(before, times(1_000_010 + 3600, 1010, 910)), CLOCK_SET_FORWARD);
        assert_eq!(
            how_set(before, times(1_000_010, 1010, 900)),
            CLOCK_SET,
            "asleep for 10 s, with the right time after"
        );
        assert_eq!(how_set(before, times(0, 1010, 910)), CLOCK_SET_BACK, "before the host booted");
        let slewed = Times { real: Duration::from_micros(1_000_009_999_500), ..times(0, 1010, 910) };
        assert_eq!(how_set(before, slewed), CLOCK_SET);
    }

    #[test]
    fn a_wait_that_took_too_long_is_a_gap() {
        let before = times(0, 1000, 900);
        let timeout = Some(Duration::from_secs(60));
        assert_eq!(gap(before, times(0, 1061, 961), timeout), None, "late, as on a busy host");
        assert_eq!(gap(before, times(0, 1063, 963), timeout), Some(STOPPED));
        assert_eq!(gap(before, times(0, 9000, 8900), None), None, "nobody said when it should wake");
        assert_eq!(gap(before, times(0, 1010, 905), timeout), Some(SLEPT));
        assert_eq!(gap(before, times(0, 1010, 905), None), Some(SLEPT));
        assert_eq!(gap(before, times(0, 1010, 909), timeout), None, "a sleep of a second");
    }
}
