//! Percentiles, ratios and how they are written.

use std::fmt;
use std::time::Duration;

/// What is kept of many durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// How many there were.
    pub n: usize,
    /// The median.
    pub p50: Duration,
    /// Nearest rank.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Summary {
    /// Summarises; `None` when there is nothing to summarise.
    pub fn of(mut durations: Vec<Duration>) -> Option<Self> {
        durations.sort_unstable();
        let at = |percent: usize| {
            // Nearest rank: the smallest value that so many percent are not above.
            let rank = (durations.len() * percent).div_ceil(100);
            durations.get(rank.saturating_sub(1)).copied()
        };
        Some(Self { n: durations.len(), p50: at(50)?, p99: at(99)?, max: at(100)? })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {}, p99 {}, max {}", show(self.p50), show(self.p99), show(self.max))
    }
}

/// The median; zero of nothing.
pub fn median(durations: &[Duration]) -> Duration {
    Summary::of(durations.to_vec()).map_or(Duration::ZERO, |summary| summary.p50)
}

/// How many times as long the first took.
pub fn ratio(of: Duration, to: Duration) -> f64 {
    of.as_secs_f64() / to.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// Three digits and a unit.
pub fn show(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let (value, unit) = if seconds >= 1.0 {
        (seconds, "s")
    } else if seconds >= 1e-3 {
        (seconds * 1e3, "ms")
    } else {
        (seconds * 1e6, "µs")
    };
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(values: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        values.into_iter().map(Duration::from_micros).collect()
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let check = |values: Vec<Duration>, p50: u64, p99: u64, max: u64| {
            let n = values.len();
            let [p50, p99, max] = [p50, p99, max].map(Duration::from_micros);
            assert_eq!(Summary::of(values), Some(Summary { n, p50, p99, max }));
        };
        check(micros([7]), 7, 7, 7);
        check(micros([3, 1, 2]), 2, 3, 3);
        check(micros((1..=100).rev()), 50, 99, 100);
        check(micros(1..=1000), 500, 990, 1000);
        assert_eq!(Summary::of(Vec::new()), None);
    }

    #[test]
    fn durations_are_shown_with_three_digits() {
        let check = |nanos: u64, shown: &str| assert_eq!(show(Duration::from_nanos(nanos)), shown);
        check(0, "0.00 µs");
        check(4_560, "4.56 µs");
        check(45_600, "45.6 µs");
        check(456_000, "456 µs");
        check(1_234_000, "1.23 ms");
        check(2_000_000_000, "2.00 s");
    }

    #[test]
    fn a_ratio_to_nothing_is_no_panic() {
        assert!((ratio(Duration::from_micros(3), Duration::from_micros(2)) - 1.5).abs() < 1e-9);
        assert!(ratio(Duration::from_micros(3), Duration::ZERO) > 1e9);
    }
}
