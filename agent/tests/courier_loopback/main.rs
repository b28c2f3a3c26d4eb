//! The courier against real servers on loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod delivery;
mod endpoint;
mod fetching;
mod hub;
mod metrics;
mod support;
