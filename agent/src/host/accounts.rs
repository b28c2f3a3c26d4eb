//! Local users and groups: read from the databases themselves, written by shadow-utils.

pub mod fake;
pub mod shadow;

use crate::resource::{AbsPath, GroupName, UserName};

/// One consistent reading of /etc/passwd, /etc/shadow and /etc/group. Lines that cannot be parsed are kept out and counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountDb {
    /// Users in file order.
    pub users: Vec<UserEntry>,
    /// Groups in file order.
    pub groups: Vec<GroupEntry>,
    /// How many lines could not be parsed.
    pub n_unparsed: usize,
    /// Why nobody's password is known, where that is for others to read.
    pub hashes_unread: Option<String>,
}

/// A row of /etc/passwd, with its shadow hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserEntry {
    /// Name as written; may be one that rekindle itself would refuse to create.
    pub name: String,
    /// Numeric id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// GECOS.
    pub comment: String,
    /// Home directory as written.
    pub home: String,
    /// Login shell as written.
    pub shell: String,
    /// The hash field of /etc/shadow; `None` when there is no row. Never printed.
    pub hash: Option<Hash>,
}

/// A password field of /etc/shadow. `Debug` masks it.
#[derive(Clone, PartialEq, Eq)]
pub struct Hash(pub String);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.starts_with('!') { "Hash(locked)" } else { "Hash(masked)" })
    }
}

/// A row of /etc/group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupEntry {
    /// Name.
    pub name: String,
    /// Numeric id.
    pub gid: u32,
    /// Supplementary members.
    pub members: Vec<String>,
}

impl AccountDb {
    /// The user of this name.
    pub fn user(&self, name: &str) -> Option<&UserEntry> {
        self.users.iter().find(|u| u.name == name)
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&GroupEntry> {
        self.groups.iter().find(|g| g.name == name)
    }
}

/// A user to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    /// Name.
    pub name: UserName,
    /// Numeric id, or the host's choice.
    pub uid: Option<u32>,
    /// Primary group by name or number; a group of the same name is made when `None`.
    pub group: Option<String>,
    /// Supplementary groups.
    pub groups: Vec<GroupName>,
    /// Login shell.
    pub shell: Option<AbsPath>,
    /// Home directory; made from the skeleton when it does not exist.
    pub home: Option<AbsPath>,
    /// GECOS.
    pub comment: Option<String>,
    /// A system user: no home is made unless one is named.
    pub system: bool,
}

/// Changes to an existing user; `None` leaves an attribute as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserChange {
    /// Numeric id.
    pub uid: Option<u32>,
    /// Primary group by name or number.
    pub group: Option<String>,
    /// All supplementary groups after the change (complete list).
    pub groups: Option<Vec<GroupName>>,
    /// Login shell.
    pub shell: Option<AbsPath>,
    /// Home directory field; the directory itself is not moved.
    pub home: Option<AbsPath>,
    /// GECOS.
    pub comment: Option<String>,
    /// Password change.
    pub password: Option<PasswordChange>,
}

/// A change of the shadow hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordChange {
    /// Lock, keeping the hash.
    Lock,
    /// Set this hash, through standard input so that no other process sees it.
    Set(Hash),
}

/// An operation on the account databases that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// A database could not be read.
    #[error("cannot read `{path}`")]
    Read {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool refused; its standard error says why.
    #[error("`{program}` for `{subject}` exited with {status}: {stderr}")]
    Tool {
        /// The program, such as `useradd`.
        program: &'static str,
        /// The user or group.
        subject: String,
        /// Exit status in words.
        status: String,
        /// Bounded, escaped standard error.
        stderr: String,
    },
    /// A tool could not be run.
    #[error("cannot run `{program}`")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: super::exec::ExecError,
    },
    /// This host's accounts cannot be changed from here.
    #[error("accounts cannot be managed here: {why}")]
    Unsupported {
        /// Why not.
        why: String,
    },
}

/// Local users and groups of one host.
pub trait Accounts: std::fmt::Debug + Send {
    /// Reads the databases now.
    fn read(&self) -> Result<AccountDb, AccountError>;
    /// Creates a group.
    fn create_group(&mut self, name: &GroupName, gid: Option<u32>, system: bool) -> Result<(), AccountError>;
    /// Gives a group another id.
    fn change_group(&mut self, name: &GroupName, gid: u32) -> Result<(), AccountError>;
    /// Removes a group.
    fn remove_group(&mut self, name: &GroupName) -> Result<(), AccountError>;
    /// Creates a user.
    fn create_user(&mut self, user: &NewUser) -> Result<(), AccountError>;
    /// Changes a user.
    fn change_user(&mut self, name: &UserName, change: &UserChange) -> Result<(), AccountError>;
    /// Removes a user, leaving its home directory where it is.
    fn remove_user(&mut self, name: &UserName) -> Result<(), AccountError>;
}

/// Accounts of a tree that is no host: a sandbox of files. Everything is refused.
#[derive(Debug, Clone)]
pub struct NoAccounts {
    why: String,
}

impl NoAccounts {
    /// Takes the reason that every refusal gives.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }

    fn refuse<T>(&self) -> Result<T, AccountError> {
        Err(AccountError::Unsupported { why: self.why.clone() })
    }
}

impl Accounts for NoAccounts {
    fn read(&self) -> Result<AccountDb, AccountError> {
        self.refuse()
    }

    fn create_group(&mut self, _name: &GroupName, _gid: Option<u32>, _system: bool) -> Result<(), AccountError> {
        self.refuse()
    }

    fn change_group(&mut self, _name: &GroupName, _gid: u32) -> Result<(), AccountError> {
        self.refuse()
    }

    fn remove_group(&mut self, _name: &GroupName) -> Result<(), AccountError> {
        self.refuse()
    }

    fn create_user(&mut self, _user: &NewUser) -> Result<(), AccountError> {
        self.refuse()
    }

    fn change_user(&mut self, _name: &UserName, _change: &UserChange) -> Result<(), AccountError> {
        self.refuse()
    }

    fn remove_user(&mut self, _name: &UserName) -> Result<(), AccountError> {
        self.refuse()
    }
}
