//! The verbs: observe → plan → apply → verify, as separate steps, one run at a time, on one thread.
//!
//! - [`plan`] is pure: observations and desired state in, [`plan::Plan`] out.
//! - [`apply`] carries a plan out step by step: record the intent, back up, apply, observe again, record the outcome;
//!   what depends on a failure is skipped and names it.
//! - [`health`] is pure: what a run's outcome means for the host.

pub mod apply;
pub mod health;
pub mod plan;
pub mod report;

pub use report::{Cause, DebtReport, Outcome, ResourceReport, RunReport, Scope};
