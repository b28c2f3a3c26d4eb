//! `file`: a regular file with exactly these bytes, owner, group and mode.

use std::sync::Arc;

use super::{AbsPath, Ensure, Mode, Principal};

/// What a file should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Where.
    pub path: AbsPath,
    /// There with this specification, or not there.
    pub ensure: Ensure<Spec>,
}

/// The specification of a present file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The whole content, already rendered.
    pub content: Arc<[u8]>,
    /// Owner; [`Principal::Agent`] when the policy names none.
    pub owner: Principal,
    /// Group; [`Principal::Agent`] when the policy names none.
    pub group: Principal,
    /// Permission bits; `0644` when the policy names none.
    pub mode: Mode,
}
