//! Validated names: each is checked once, where it enters, and trusted afterwards.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A name that is not allowed, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} `{text}`: {why}")]
pub struct InvalidName {
    /// What kind of name it was to be.
    pub what: &'static str,
    /// The text as given.
    pub text: String,
    /// Why it is refused.
    pub why: &'static str,
}

fn invalid(what: &'static str, text: &str, why: &'static str) -> InvalidName {
    InvalidName { what, text: text.to_owned(), why }
}

/// An absolute, normalised path on the managed host: no `.`, no `..`, no empty component, no trailing slash, no NUL.
///
/// Cheap to clone, and without a copy of its own where it is the name of a resource: see [`AbsPath::from_shared`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AbsPath(Arc<str>);

impl AbsPath {
    /// Validates a path.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }

    /// Validates a path and shares its text with whoever else holds it.
    pub fn from_shared(text: &Arc<str>) -> Result<Self, InvalidName> {
        Self::check(text)?;
        Ok(Self(Arc::clone(text)))
    }

    fn check(text: &str) -> Result<(), InvalidName> {
        let what = "path";
        let rest = text.strip_prefix('/').ok_or_else(|| invalid(what, text, "it must be absolute"))?;
        if text.contains('\0') {
            return Err(invalid(what, text, "it contains a NUL byte"));
        }
        if text.len() > 4095 {
            return Err(invalid(what, text, "it is longer than 4095 bytes"));
        }
        if !rest.is_empty() {
            for part in rest.split('/') {
                match part {
                    "" => {
                        return Err(invalid(what, text, "it has an empty component or a trailing slash"));
                    }
                    "." | ".." => {
                        return Err(invalid(what, text, "it must not contain `.` or `..`"));
                    }
                    part if part.len() > 255 => {
                        return Err(invalid(what, text, "a component is longer than 255 bytes"));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The path as the host spells it.
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.0)
    }

    /// The text, for whoever keeps it as well.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// The containing directory; `None` for `/`.
    pub fn parent(&self) -> Option<AbsPath> {
        let (parent, name) = self.0.rsplit_once('/')?;
        match (parent, name) {
            ("", "") => None,
            ("", _) => Some(Self("/".into())),
            (parent, _) => Some(Self(parent.into())),
        }
    }

    /// A child of this directory.
    pub fn join(&self, name: &str) -> Result<Self, InvalidName> {
        if &*self.0 == "/" { Self::new(&format!("/{name}")) } else { Self::new(&format!("{self}/{name}")) }
    }
}

impl fmt::Display for AbsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for AbsPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for AbsPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// Permission bits, `0000` to `7777`.
#[derive(serde::Serialize, serde::Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mode(u32);

impl Mode {
    /// Takes permission bits; anything above `7777` is dropped.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & 0o7777)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Reads exactly four octal digits, such as `"0644"`.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        if text.len() == 4
            && text.bytes().all(|b| (b'0'..=b'7').contains(&b))
            && let Ok(bits) = u32::from_str_radix(text, 8)
        {
            return Ok(Self(bits));
        }
        Err(invalid("mode", text, "expected four octal digits, such as \"0644\""))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mode({:04o})", self.0)
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Box<str>);

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(&text)
            }
        }

        impl $name {
            /// Validates a name.
            pub fn new(text: &str) -> Result<Self, InvalidName> {
                let check: fn(&str) -> Result<(), &'static str> = $check;
                check(text).map_err(|why| invalid($what, text, why))?;
                Ok(Self(text.into()))
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// The portable rule of shadow-utils, without its `$` ending; Debian's useradd itself accepts far more.
fn check_account_name(text: &str) -> Result<(), &'static str> {
    let mut bytes = text.bytes();
    match bytes.next() {
        Some(b'a'..=b'z' | b'_') => {}
        _ => return Err("it must begin with a lower-case letter or `_`"),
    }
    if text.len() > 32 {
        return Err("it is longer than 32 characters");
    }
    if bytes.all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.')) {
        Ok(())
    } else {
        Err("only lower-case letters, digits, `_`, `-` and `.` are allowed")
    }
}

name_type!(
    /// The name of a local user.
    UserName, "user name", check_account_name
);
name_type!(
    /// The name of a local group.
    GroupName, "group name", check_account_name
);
name_type!(
    /// The name of a package, `name` or `name:arch`; the union of what dpkg and rpm allow.
    PackageName, "package name", |text| {
        match text.bytes().next() {
            Some(b) if b.is_ascii_alphanumeric() => {}
            _ => return Err("it must begin with a letter or digit"),
        }
        if text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.' | b'_' | b':')) {
            Ok(())
        } else {
            Err("only letters, digits, `+`, `-`, `.`, `_` and `:` are allowed")
        }
    }
);
name_type!(
    /// The name of something that the policy alone knows, such as a command.
    RuleName, "name", |text| {
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || text.len() > 128 {
            return Err("it must begin with a letter or digit and have at most 128 bytes");
        }
        if text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'@' | b'+')) {
            Ok(())
        } else {
            Err("only letters, digits and `-_.:@+` are allowed")
        }
    }
);
name_type!(
    /// The full name of a systemd unit, with its suffix: `ssh.service`, `apt-daily.timer`.
    UnitName, "unit name", |text| {
        let Some((stem, suffix)) = text.rsplit_once('.') else { return Err("it has no suffix such as `.service`") };
        if stem.is_empty() || text.len() > 255 {
            return Err("it is empty or longer than 255 characters");
        }
        if !matches!(suffix, "service" | "socket" | "timer" | "path" | "mount" | "automount" | "swap" | "target" | "slice") {
            return Err("its suffix is none of service, socket, timer, path, mount, automount, swap, target, slice");
        }
        if stem.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'_' | b'.' | b'-' | b'\\' | b'@')) && !stem.starts_with('-') {
            Ok(())
        } else {
            Err("only letters, digits and `:_.-\\@` are allowed, and it must not begin with `-`")
        }
    }
);

impl UnitName {
    /// Validates a unit name, adding `.service` when it has no known suffix, as `systemctl` does.
    pub fn with_default_suffix(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
            .or_else(|_| Self::new(&format!("{text}.service")).map_err(|e| invalid("unit name", text, e.why)))
    }
}

/// A user or group as a policy names it for ownership.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Principal {
    /// The user (or group) that the agent runs as: root on a real host. This is the default owner.
    Agent,
    /// By numeric id.
    Id(u32),
    /// By name, looked up on the host when the resource is observed.
    Name(String),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent => f.write_str("the agent's own user"),
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_of_paths() {
        let check = |path: &str, parent: Option<&str>| {
            let found = AbsPath::new(path).unwrap().parent();
            assert_eq!(found.as_ref().map(AbsPath::as_path), parent.map(Path::new), "{path}");
        };
        check("/", None);
        check("/etc", Some("/"));
        check("/etc/ssh", Some("/etc"));
        check("/etc/ssh/sshd_config", Some("/etc/ssh"));
    }

    #[test]
    fn the_path_of_a_resource_is_its_name_and_no_copy() {
        let name: Arc<str> = "/etc/motd".into();
        let path = AbsPath::from_shared(&name).unwrap();
        assert!(Arc::ptr_eq(&name, &path.0));
        assert!(AbsPath::from_shared(&"etc/motd".into()).is_err());
    }
}
