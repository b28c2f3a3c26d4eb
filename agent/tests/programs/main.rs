//! Programs that a policy names, run for real by the real binary on this machine: only what is beneath a temporary directory is
//! managed. They change mounts of their own and run as other users, so root runs them; anybody else's run says that it did not.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test's helpers fail as its body does")]

mod captured;
mod commands;
mod facts;
mod lockout;
mod onlookers;
mod record;
mod repositories;
mod support;
mod sweeps;
mod validate;
mod waivers;
