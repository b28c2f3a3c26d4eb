//! Measures rekindle against the physical floor, in one run, and prints ratios.
//!
//! A figure without its floor says more about the machine than about the program. So each measurement here runs the real
//! agent and a minimal program of our own in turn, on the same file system, and prints both:
//!
//! - [`floor`] holds those programs: a guard of one file, and scans of a tree, with nothing around the system calls;
//! - [`sandbox`] is the agent as its users have it: the binary, a policy in a git repository, the courier, the commands;
//! - [`foreign`] is the other process, which drifts files and sees them restored;
//! - [`latency`], [`scan`], [`storm`], [`idle`], [`reload`], [`actors`] and [`compile`] measure; [`table`] prints.
//!
//! Nothing here reaches into the agent, but where a measurement says so: passes of its engine, and its watcher alone.

use std::path::PathBuf;

pub mod actors;
pub mod clock;
pub mod compile;
pub mod floor;
pub mod foreign;
pub mod idle;
pub mod image;
pub mod latency;
pub mod proc;
pub mod process;
pub mod reload;
pub mod sandbox;
pub mod scan;
pub mod stats;
pub mod storm;
pub mod table;
pub mod tree;

/// What every measurement needs to know.
#[derive(Debug, Clone)]
pub struct Bench {
    /// This program, which is also the other process and the floor.
    pub exe: PathBuf,
    /// The program under test.
    pub rekindle: PathBuf,
    /// Where everything is put that is written, on the file system to measure on.
    pub base: PathBuf,
}
