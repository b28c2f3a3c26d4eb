//! One clock for all processes of a measurement.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// A point in time of the machine's monotonic clock, in nanoseconds. It means the same in every process.
pub type Stamp = u64;

/// Now.
pub fn now() -> Result<Stamp> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the monotonic clock")?;
    u64::try_from(Duration::from(time).as_nanos()).context("the machine has been up for centuries")
}

/// The time from one stamp to a later one; zero when they are the other way round.
pub fn between(earlier: Stamp, later: Stamp) -> Duration {
    Duration::from_nanos(later.saturating_sub(earlier))
}
