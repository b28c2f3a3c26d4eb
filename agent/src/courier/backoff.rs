//! When to try again: full jitter, so that a fleet that failed together does not return together.

use std::time::Duration;

/// Longest wait between two attempts, unless the other side asked for a longer one.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(300);

/// The wait before the attempt after `failures` failures: chosen evenly below `first` doubled for each further failure, at
/// most [`MAX_WAIT`], at least a quarter of a second.
pub(super) fn wait(failures: u32, first: Duration, random: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(20);
    let ceiling = first.saturating_mul(1 << doublings).min(MAX_WAIT);
    let ceiling_ms = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis((random % ceiling_ms).max(250))
}

/// Sixty-four bits of chance.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without chance the courier still works, only less evenly spread.
    aws_lc_rs::rand::fill(&mut bytes).ok();
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_no_further() {
        let first = Duration::from_secs(1);
        let check = |failures: u32, random: u64, expected_ms: u64| {
            assert_eq!(wait(failures, first, random), Duration::from_millis(expected_ms), "{failures} {random}");
        };
        check(1, 999, 999);
        check(1, 1000, 250);
        check(2, 1999, 1999);
        check(5, 15_999, 15_999);
        check(9, 255_999, 255_999);
        check(10, 299_999, 299_999);
        check(u32::MAX, 299_999, 299_999);
        check(0, 500, 500);
        for failures in 0..70 {
            for _ in 0..20 {
                let wait = wait(failures, first, random());
                assert!(wait <= MAX_WAIT && wait >= Duration::from_millis(250));
            }
        }
    }
}
