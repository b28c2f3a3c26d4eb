//! `symlink`: a symbolic link with exactly this target.

use super::{AbsPath, Ensure};

/// What a symbolic link should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Where the link is.
    pub path: AbsPath,
    /// There, pointing to this target text (which need not exist), or not there.
    pub ensure: Ensure<String>,
}
