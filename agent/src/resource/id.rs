//! The name of a resource: `kind[name]`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Declares the kinds once: what each is, and its word.
macro_rules! kinds {
    ($($(#[$doc:meta])+ $kind:ident = $word:literal,)+) => {
        /// The closed set of resource kinds.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum Kind {
            $($(#[$doc])+ $kind,)+
        }

        impl Kind {
            /// Every kind, in the order of the schema.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$kind),+];

            /// The word used in policies and output.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)+
                }
            }
        }
    };
}

kinds! {
    /// A regular file.
    File = "file",
    /// A directory.
    Directory = "directory",
    /// A symbolic link.
    Symlink = "symlink",
    /// A local user.
    User = "user",
    /// A local group.
    Group = "group",
    /// A package.
    Package = "package",
    /// Where packages come from.
    Repository = "repository",
    /// A systemd unit.
    Service = "service",
    /// Keys or lines inside a file.
    Setting = "setting",
    /// A setting of the kernel.
    Sysctl = "sysctl",
    /// A kernel module.
    KernelModule = "kernel_module",
    /// Something that is mounted.
    Mount = "mount",
    /// A program that is run when needed.
    Command = "command",
    /// A program that only says whether all is well.
    Check = "check",
    /// A rule over whole trees.
    Sweep = "sweep",
}

impl Kind {
    /// The words for all of them, for people.
    pub fn words() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    /// Whether its name is a path and it is what stands there.
    pub fn is_place(self) -> bool {
        match self {
            Self::File | Self::Directory | Self::Symlink => true,
            Self::User
            | Self::Group
            | Self::Package
            | Self::Repository
            | Self::Service
            | Self::Setting
            | Self::Sysctl
            | Self::KernelModule
            | Self::Mount
            | Self::Command
            | Self::Check
            | Self::Sweep => false,
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
