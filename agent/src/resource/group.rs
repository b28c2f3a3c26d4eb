//! `group`: a local group.

use super::{Ensure, GroupName};

/// What a group should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Its name.
    pub name: GroupName,
    /// There with this specification, or not there.
    pub ensure: Ensure<Spec>,
}

/// The specification of a present group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Numeric id; whatever the host chooses when `None`.
    pub gid: Option<u32>,
    /// A group below the system maximum.
    pub system: bool,
}
