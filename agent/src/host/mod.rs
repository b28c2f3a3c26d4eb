//! The only door to the operating system.
//!
//! Everything that reads or changes the managed host goes through [`Host`]: paths through [`root::Root`], which cannot be
//! led outside by a symbolic link or `..`; accounts, packages and units through three small traits with one real and one
//! stateful fake implementation each; child processes through [`exec`] alone.

pub mod accounts;
pub mod exec;
pub mod facts;
pub mod packages;
pub mod root;
pub mod units;

use accounts::Accounts;
use packages::PackageManager;
use root::Root;
use units::Units;

/// One managed host.
#[derive(Debug)]
pub struct Host {
    /// Its file system.
    pub root: Root,
    /// Its local users and groups.
    pub accounts: Box<dyn Accounts>,
    /// Its package manager.
    pub packages: Box<dyn PackageManager>,
    /// Its service manager.
    pub units: Box<dyn Units>,
}

/// Sixteen hexadecimal digits that nobody can foretell, for temporary names.
fn random_hex() -> String {
    use std::hash::{BuildHasher, Hasher};
    // The standard library keys this hasher from the kernel's random numbers.
    format!("{:016x}", std::hash::RandomState::new().build_hasher().finish())
}

/// The user and group that the agent runs as.
pub fn current_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}
