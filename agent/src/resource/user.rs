//! `user`: a local user with its groups, password lock or hash, and authorized keys.

use super::{AbsPath, Ensure, GroupName, Principal, UserName};

/// What a user should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Its name.
    pub name: UserName,
    /// There with this specification, or not there.
    pub ensure: Ensure<Spec>,
}

/// The specification of a present user. `None` means "as it is; at creation what the host chooses".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Numeric id.
    pub uid: Option<u32>,
    /// Primary group, by name or id; a group of the user's own name is made when `None`.
    pub group: Option<Principal>,
    /// Supplementary groups.
    pub groups: Vec<GroupName>,
    /// Whether `groups` are the least or the exact membership.
    pub membership: Membership,
    /// Login shell.
    pub shell: Option<AbsPath>,
    /// Home directory; made at creation, never moved.
    pub home: Option<AbsPath>,
    /// The GECOS field.
    pub comment: Option<String>,
    /// Password state.
    pub password: Option<Password>,
    /// Lines of `~/.ssh/authorized_keys`.
    pub authorized_keys: Option<AuthorizedKeys>,
    /// A user below the system maximum.
    pub system: bool,
}

/// How declared supplementary groups compare with actual ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Membership {
    /// At least the declared ones.
    #[default]
    AtLeast,
    /// Exactly the declared ones.
    Exactly,
}

/// What the password should be. Never in clear.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// Locked: the hash kept behind a `!`, so that unlocking restores it.
    Locked,
    /// This crypt(3) hash.
    Hash(String),
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Locked => "Locked",
            Self::Hash(_) => "Hash(masked)",
        })
    }
}

/// Keys that may log in as the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizedKeys {
    /// Whole lines, in the order of the policy.
    pub keys: Vec<String>,
    /// Whether other lines are drift.
    pub exact: bool,
}
