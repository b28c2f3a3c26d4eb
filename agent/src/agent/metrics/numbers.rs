//! What is counted since the agent started and that no status shows: how often, and how long.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the buckets of a latency, in microseconds: 10 µs to 10 s.
pub const BOUNDS_US: [u64; 19] = [
    10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// How long something took, how often. Any thread may add.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDS_US.len()],
    n: AtomicU64,
    sum_us: AtomicU64,
}

/// A histogram as it stood at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// How many took no longer than each of [`BOUNDS_US`].
    pub at_most: [u64; BOUNDS_US.len()],
    /// How many there were.
    pub n: u64,
    /// How long they took together, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Adds one that took this long.
    pub fn add(&self, took_us: u64) {
        // What took longer than the last bound is in the total alone.
        if let Some(count) = BOUNDS_US.iter().position(|bound| took_us <= *bound).and_then(|i| self.counts.get(i)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
        self.n.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads it. What is added meanwhile may be missing from any part.
    pub fn tally(&self) -> Tally {
        let n = self.n.load(Ordering::Relaxed);
        let mut below = 0;
        let at_most = self.counts.each_ref().map(|count| {
            below += count.load(Ordering::Relaxed);
            below
        });
        // No bucket may hold more than all, whatever came meanwhile.
        Tally { at_most, n: n.max(below), sum_us: self.sum_us.load(Ordering::Relaxed) }
    }
}

/// Counters of one agent.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Repairs by the guard: from the reading of the event to the right file in place.
    pub by_guard: Histogram,
    /// Repairs by runs: each as long as the run that made it.
    pub by_run: Histogram,
    /// Drift that was newly found and left alone, by policy, mode, pause or because it is contested.
    pub n_left: AtomicU64,
    /// Runs over everything.
    pub n_full_runs: AtomicU64,
    /// Runs over what was hinted at or retried.
    pub n_partial_runs: AtomicU64,
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(u64::try_from(n).unwrap_or(0), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_in_every_bucket_that_is_wide_enough() {
        let histogram = Histogram::default();
        for took_us in [0, 10, 11, 999, 1000, 1001, 60_000_000] {
            histogram.add(took_us);
        }
        let tally = histogram.tally();
        let at_most = |bound: u64| {
            let index = BOUNDS_US.iter().position(|known| *known == bound).unwrap();
            tally.at_most[index]
        };
        assert_eq!((at_most(10), at_most(25), at_most(500), at_most(1000), at_most(2500)), (2, 3, 3, 5, 6));
        assert_eq!((at_most(10_000_000), tally.n, tally.sum_us), (6, 7, 60_003_021));
        assert!(tally.at_most.is_sorted());
    }
}
