//! rekindle keeps a host in the state that its policy declares, the moment it drifts,
//! and asks for the host to be reimaged when it cannot.
//!
//! # The map, in the order data flows
//!
//! ```text
//! Candidate ──verify──▶ Verified ──compile──▶ DesiredState ──▶ Observation ──▶ Plan ──▶ apply + verify ──▶ RunReport
//!  policy::candidate     policy::trust         policy::compile   resource        converge::plan  converge::apply
//! ```
//!
//! - [`policy`] turns untrusted bytes into trusted desired state and never looks at the host.
//! - [`resource`] holds the nouns: one file for each kind, with what is desired, what is observed, and their difference.
//! - [`converge`] holds the verbs: observe, plan, apply, verify; and [`converge::health`], which decides what a failure means.
//! - [`host`] is the only door to the operating system.
//! - [`actor`] says who: what is known of a process that changed something, and how sure that is.
//! - [`watch`] says where to look, never what happened; [`schedule`] says when; [`guard`] puts declared files back at once.
//! - [`record`] is the small durable state: journal, backups, debts, pauses. Losing it costs history, never safety.
//! - [`spool`] is what crosses between the agent, which is root and has no network, and the [`courier`], which has the network and no privilege.
//! - [`scrape`] is as much of HTTP as a collector of metrics needs.
//! - [`agent`] is the root event loop.
//! - [`fuzzing`] is no part of that: a door for `fuzz/` to what is private otherwise.
//!
//! # Invariants
//!
//! - Unknown is never absent: an [`resource::Observation::Unknown`] never leads to a destructive step.
//! - A plan is a value: `noop` stops before the executor; it is not a flag that the executor honours.
//! - Root never touches the network. `tests/layering.rs` reads the `use` lines and holds the modules to it.

pub mod actor;
pub mod agent;
pub mod cli;
pub mod config;
pub mod converge;
pub mod courier;
#[doc(hidden)]
pub mod fuzzing;
pub mod guard;
pub mod host;
pub mod policy;
pub mod record;
pub mod resource;
pub mod schedule;
pub mod scrape;
pub mod spool;
pub mod watch;
