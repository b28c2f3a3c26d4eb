//! `directory`: a directory with this owner, group and mode. Its entries are not its concern.

use super::{AbsPath, Ensure, Mode, Principal};

/// What a directory should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Where.
    pub path: AbsPath,
    /// There with this specification, or not there. Only an empty directory is ever removed.
    pub ensure: Ensure<Spec>,
}

/// The specification of a present directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Owner; [`Principal::Agent`] when the policy names none.
    pub owner: Principal,
    /// Group; [`Principal::Agent`] when the policy names none.
    pub group: Principal,
    /// Permission bits; `0755` when the policy names none.
    pub mode: Mode,
}
