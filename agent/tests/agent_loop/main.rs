//! The whole agent, on a root directory of its own: watcher, guard, runs, health, alerts and metrics together.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod beside;
mod confirm;
mod contents;
mod damage;
mod fights;
mod gives_up;
mod metrics;
mod operator;
mod orphans;
mod policies;
mod record;
mod secrets;
mod support;
mod trees;
mod who;
