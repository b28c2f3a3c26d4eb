//! The harness of the end-to-end tests: booted Debian hosts and the real servers that a host of rekindle talks to.
//!
//! A test takes what it needs and drives it from outside, as an operator would:
//!
//! - [`Machine`]: a Debian 12 root booted with systemd-nspawn on a throwaway overlay ([`BaseImage`] is what lies below);
//! - [`AptRepository`]: signed, with packages made for the test;
//! - [`GitServer`]: git over https by nginx, under the test's own certificate [`Authority`], with signed commits;
//! - [`Receiver`]: of webhooks, which verifies Standard Webhooks signatures;
//! - [`Hub`]: the real `rekindle-hub`, with an engine that hands each request to the test;
//! - [`product`]: the package, built once, and what is asked of an installed agent.
//!
//! Invariants: everything is gone when its value is dropped, or when the test process dies in whatever way; nothing sleeps
//! outside [`wait_for`]; two tests may run at once; a missing tool or right is a failure with a sentence, never a skip.

mod apt;
mod certificates;
mod chance;
mod git;
mod hub;
mod image;
mod machine;
pub mod product;
mod receiver;
mod run;

pub use apt::{AptRepository, TestPackage};
pub use certificates::{Authority, Certificate};
pub use chance::Chance;
pub use git::{GitServer, Signature};
pub use hub::Hub;
pub use image::BaseImage;
pub use machine::Machine;
pub use receiver::{Message, Receiver};
pub use run::{Daemon, Invocation, Output, free_port, measure, put, require, wait_for};
