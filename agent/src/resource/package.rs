//! `package`: a package of the host's own package manager.

use super::{Ensure, PackageName};

/// What a package should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Its name.
    pub name: PackageName,
    /// Installed at this version, or not installed (configuration files may remain).
    pub ensure: Ensure<Version>,
}

/// Which version should be installed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Version {
    /// Whichever is installed, or the manager's candidate.
    #[default]
    Any,
    /// Exactly this version string.
    Exact(String),
}
