//! What `fuzz/` feeds hostile bytes to, where it is private otherwise. Nothing else calls it.
//!
//! Each function is one parser of text that a host, a network or a stranger wrote, and nothing beside it. It decides nothing and
//! holds no logic, so that what is fuzzed is what runs.

use std::collections::HashMap;
use std::path::Path;

use crate::host::accounts::{AccountDb, shadow};
use crate::host::kernel::{Mount, mounts};
use crate::host::packages::PackageDb;
use crate::host::packages::dpkg::Records;
use crate::host::units::{UnitStatus, systemctl};
use crate::policy::candidate::{self, Candidate, CandidateError};

/// The bytes of a commit object, with its signature taken out; without the files of its tree.
pub fn commit(data: &[u8]) -> Result<Candidate, CandidateError> {
    candidate::without_files(data)
}

/// /etc/passwd, /etc/shadow and /etc/group.
pub fn accounts(passwd: &str, shadow: &str, group: &str) -> AccountDb {
    shadow::parse(passwd, shadow, group)
}

/// The databases of dpkg: its status, and what changed since.
pub fn packages(files: &[&str]) -> Result<PackageDb, String> {
    let mut records = Records::default();
    files.iter().try_for_each(|file| records.add(file)).map_err(|error| error.to_string())?;
    records.finish().map_err(|error| error.to_string())
}

/// `/proc/self/mountinfo`.
pub fn mounts(table: &[u8]) -> Vec<Mount> {
    mounts::parse(table)
}

/// /etc/os-release.
pub fn os_release(text: &str) -> HashMap<String, String> {
    crate::host::facts::parse_os_release(text)
}

/// What `systemctl show` prints.
pub fn unit(text: &str) -> Option<UnitStatus> {
    systemctl::parse_show(text)
}

/// Unpacks a snapshot of a host, says what that gave, and removes it.
pub fn snapshot(path: &Path) -> Result<(), String> {
    crate::cli::against::unpack(path).map(drop).map_err(|error| error.to_string())
}
