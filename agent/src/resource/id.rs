//! The name of a resource: `kind[name]`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The closed set of resource kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A local user.
    User,
    /// A local group.
    Group,
    /// A package.
    Package,
    /// Where packages come from.
    Repository,
    /// A systemd unit.
    Service,
    /// Keys or lines inside a file.
    Setting,
    /// A setting of the kernel.
    Sysctl,
    /// A kernel module.
    KernelModule,
    /// Something that is mounted.
    Mount,
    /// A program that is run when needed.
    Command,
    /// A program that only says whether all is well.
    Check,
    /// A rule over whole trees.
    Sweep,
}

impl Kind {
    /// Every kind, in the order of the schema.
    pub const ALL: [Self; 15] = [
        Self::File,
        Self::Directory,
        Self::Symlink,
        Self::User,
        Self::Group,
        Self::Package,
        Self::Repository,
        Self::Service,
        Self::Setting,
        Self::Sysctl,
        Self::KernelModule,
        Self::Mount,
        Self::Command,
        Self::Check,
        Self::Sweep,
    ];

    /// The words for all of them, for people.
    pub fn words() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    /// The word used in policies and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::User => "user",
            Self::Group => "group",
            Self::Package => "package",
            Self::Repository => "repository",
            Self::Service => "service",
            Self::Command => "command",
            Self::Check => "check",
            Self::Sweep => "sweep",
            Self::Setting => "setting",
            Self::Sysctl => "sysctl",
            Self::KernelModule => "kernel_module",
            Self::Mount => "mount",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names one resource, printed `kind[name]`, such as `file[/etc/ssh/sshd_config]`.
///
/// Cheap to clone: every table of a policy of 100,000 resources shares the one spelling of each name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId {
    /// What kind of thing it is.
    pub kind: Kind,
    /// Its name as the policy writes it; for a service without the `.service` suffix.
    pub name: Arc<str>,
}

impl ResourceId {
    /// Names a resource.
    pub fn new(kind: Kind, name: impl Into<Arc<str>>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.kind, self.name)
    }
}

/// A text that is not `kind[name]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a resource: expected `kind[name]`, such as `file[/etc/motd]`, with kind one of {}",
    Kind::words()
)]
pub struct InvalidResourceId {
    text: String,
}

impl FromStr for ResourceId {
    type Err = InvalidResourceId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidResourceId { text: text.to_owned() };
        let (kind, rest) = text.split_once('[').ok_or_else(invalid)?;
        let name = rest.strip_suffix(']').filter(|name| !name.is_empty()).ok_or_else(invalid)?;
        let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind).ok_or_else(invalid)?;
        Ok(Self::new(kind, name))
    }
}

impl serde::Serialize for ResourceId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ResourceId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
