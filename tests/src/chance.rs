//! Seeded chance: a failed test prints its seed, and the same seed makes the same choices.

use std::time::Duration;

use anyhow::{Context, Result};

/// A source of choices (SplitMix64).
#[derive(Debug, Clone)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// Seeds from `REKINDLE_TEST_SEED`, or from the clock, and prints the seed.
    pub fn seeded() -> Result<Self> {
        let seed = match std::env::var("REKINDLE_TEST_SEED") {
            Ok(seed) => seed.parse().with_context(|| format!("REKINDLE_TEST_SEED=`{seed}` is no number"))?,
            Err(_) => jiff::Timestamp::now().as_microsecond().unsigned_abs(),
        };
        println!("REKINDLE_TEST_SEED={seed}");
        Ok(Self { state: seed })
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }

    /// A time shorter than `limit`.
    pub fn moment(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)))
    }
}
