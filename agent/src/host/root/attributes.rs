//! Extended attributes and inode flags: what an inode grants or refuses beyond owner, group and mode, and what of it a
//! replacement takes over.
//!
//! A policy declares the mode, and an access control list grants more than the mode says; file capabilities make a program
//! more than it was declared to be. So neither belongs on what is declared: both are drift, and neither is handed on to a
//! replacement. (A list that is wanted will be declared.) A label other than the policy of the host names is drift as well.
//! Left alone: the *default* list of a directory, which says what new entries get and grants nothing itself; `user.*`, which
//! is carried over to a replacement, as is the label where nothing says what it should be; `trusted.*`, the file system's
//! own. Not carried over: `security.ima` and `security.evm`, signatures of other content.
//!
//! A file system without extended attributes has none of this.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{IFlags, XattrFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::Keep;
use super::metadata::Flags;

const ACL: &str = "system.posix_acl_access";
const CAPABILITIES: &str = "security.capability";
const LABEL: &str = "security.selinux";
/// The kernel's own limits: a list of names, and one value.
const MAX_LIST: usize = 64 * 1024;
const MAX_VALUE: usize = 64 * 1024;
/// Longest list shown; there may be eight thousand entries.
const MAX_ENTRIES: usize = 8;

/// What an inode grants beyond its owner, group and mode. Nothing, for what is in sync.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extras {
    /// The entries of an access control list that are no mode bits, such as `user:1000:rw-`.
    pub acl: Option<Box<str>>,
    /// File capabilities, such as `cap_net_raw=ep`.
    pub capabilities: Option<Box<str>>,
    /// A label that should be another.
    pub label: Option<Box<Mislabel>>,
}

/// A wrong SELinux label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mislabel {
    /// What it is; `None` where there is none.
    pub found: Option<String>,
    /// What will be set.
    pub wanted: String,
}

impl Extras {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads them from the inode that was looked at: one system call where there are none.
    pub(super) fn of(inode: &Inode<'_>) -> io::Result<Self> {
        inode.list(|names| {
            let Noteworthy { acl, capabilities } = noteworthy(names);
            let mut extras = Self::default();
            if acl {
                extras.acl = inode.get(ACL)?.map(|value| acl_text(&value).into());
            }
            if capabilities {
                extras.capabilities = inode.get(CAPABILITIES)?.map(|value| capabilities_text(&value).into());
            }
            Ok(extras)
        })
    }
}

/// Which attributes in a list of names grant something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Noteworthy {
    /// An access control list.
    pub acl: bool,
    /// File capabilities.
    pub capabilities: bool,
}

/// Reads a list of names as `listxattr` gives it. Pure.
pub fn noteworthy(names: &[u8]) -> Noteworthy {
    let mut found = Noteworthy::default();
    for name in names.split(|byte| *byte == 0) {
        found.acl |= name == ACL.as_bytes();
        found.capabilities |= name == CAPABILITIES.as_bytes();
    }
    found
}

/// A way to an inode's attributes.
pub(super) enum Inode<'a> {
    /// Open for reading.
    Open(BorrowedFd<'a>),
    /// The name in /proc of an `O_PATH` descriptor, which must outlive this.
    Path(String),
}

impl Inode<'_> {
    /// The inode behind an `O_PATH` descriptor.
    pub(super) fn behind(target: &OwnedFd) -> Self {
        Self::Path(format!("/proc/self/fd/{}", target.as_raw_fd()))
    }

    /// Changes the mode.
    pub(super) fn change_mode(&self, mode: rustix::fs::Mode) -> io::Result<()> {
        match self {
            Self::Open(file) => rustix::fs::fchmod(file, mode),
            Self::Path(path) => rustix::fs::chmod(path, mode),
        }
        .map_err(io::Error::from)
    }

    /// The SELinux label. `Ok(None)` where there is none, `Err` of kind `Unsupported` where there can be none.
    pub(super) fn label(&self) -> io::Result<Option<String>> {
        let Some(mut value) = self.get(LABEL)? else { return Ok(None) };
        if value.last() == Some(&0) {
            value.pop();
        }
        String::from_utf8(value).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Sets the SELinux label. Does nothing where there can be none.
    pub(super) fn set_label(&self, label: &str) -> io::Result<()> {
        // With the zero byte, as the library itself writes it.
        let mut value = label.as_bytes().to_vec();
        value.push(0);
        let set = match self {
            Self::Open(file) => rustix::fs::fsetxattr(file, LABEL, &value, XattrFlags::empty()),
            Self::Path(path) => rustix::fs::setxattr(path, LABEL, &value, XattrFlags::empty()),
        };
        match set {
            Ok(()) | Err(Errno::NOTSUP) => Ok(()),
            Err(error) => {
                Err(io::Error::new(io::Error::from(error).kind(), format!("the label `{label}` was refused: {error}")))
            }
        }
    }

    /// Removes what grants more than the mode does. Not an error where there is nothing.
    pub(super) fn remove_extras(&self) -> io::Result<()> {
        self.remove(ACL)?;
        self.remove(CAPABILITIES)
    }

    /// Hands the list of names on. It is empty where the file system has no attributes.
    fn list<T>(&self, read: impl FnOnce(&[u8]) -> io::Result<T>) -> io::Result<T> {
        let list = |buffer: &mut [u8]| match self {
            Self::Open(file) => rustix::fs::flistxattr(file, buffer),
            Self::Path(path) => rustix::fs::listxattr(path, buffer),
        };
        let mut short = [0_u8; 512];
        match list(&mut short) {
            Ok(length) => read(short.get(..length).unwrap_or_default()),
            Err(Errno::NOTSUP) => read(&[]),
            Err(Errno::RANGE) => {
                let mut long = vec![0_u8; MAX_LIST];
                let length = list(&mut long)?;
                read(long.get(..length).unwrap_or_default())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// `None` when it has gone since it was listed.
    fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0_u8; MAX_VALUE];
        let length = match self {
            Self::Open(file) => rustix::fs::fgetxattr(file, name, buffer.as_mut_slice()),
            Self::Path(path) => rustix::fs::getxattr(path, name, buffer.as_mut_slice()),
        };
        match length {
            Ok(length) => {
                buffer.truncate(length);
                Ok(Some(buffer))
            }
            Err(Errno::NODATA) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = match self {
            Self::Open(file) => rustix::fs::fremovexattr(file, name),
            Self::Path(path) => rustix::fs::removexattr(path, name),
        };
        match removed {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Gives a new file its label and what it takes over from the one that it replaces, and takes from it what it inherited from
/// its directory. Without a label of its own it takes over that too.
pub(in crate::host) fn succeed(old: Option<&File>, new: &File, label: Option<&str>, keep: Keep) -> io::Result<()> {
    let inode = Inode::Open(new.as_fd());
    if let Some(label) = label {
        inode.set_label(label)?;
    }
    inode.remove(ACL)?;
    match old {
        Some(old) => carry(old, new, |name| {
            name.starts_with("user.") || label.is_none() && name == LABEL || keep == Keep::AccessList && name == ACL
        }),
        None => Ok(()),
    }
}

/// Gives a file that has taken another's place what the other one hands on besides its label.
pub(in crate::host) fn hand_on(old: &File, new: &File) -> io::Result<()> {
    carry(old, new, |name| name.starts_with("user."))
}

fn carry(old: &File, new: &File, is_carried: impl Fn(&str) -> bool) -> io::Result<()> {
    let (old, new_inode) = (Inode::Open(old.as_fd()), Inode::Open(new.as_fd()));
    old.list(|names| {
        // A name that is not UTF-8 is a `user.*` one; it is carried by no tool that we know, and neither here.
        let names = names.split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
        for name in names.filter(|name| is_carried(name)) {
            let Some(value) = old.get(name)? else { continue };
            let is_label = name == LABEL;
            if is_label && new_inode.get(name).is_ok_and(|current| current.as_ref() == Some(&value)) {
                continue;
            }
            match rustix::fs::fsetxattr(new, name, &value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::NOTSUP) if is_label => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
}

/// Clears the flags that refuse changes, of a file or directory that is open for reading. Returns those that were set.
/// `PermissionDenied` without the capability to do so.
pub(super) fn clear_flags(file: &impl AsFd) -> io::Result<Flags> {
    let flags = match rustix::fs::ioctl_getflags(file) {
        Ok(flags) => flags,
        // The file system has no flags.
        Err(Errno::NOTTY | Errno::NOTSUP | Errno::NOSYS | Errno::INVAL) => return Ok(Flags::default()),
        Err(error) => return Err(error.into()),
    };
    let refusing = IFlags::IMMUTABLE | IFlags::APPEND;
    if flags.intersects(refusing) {
        rustix::fs::ioctl_setflags(file, flags.difference(refusing))?;
    }
    Ok(Flags { immutable: flags.contains(IFlags::IMMUTABLE), append_only: flags.contains(IFlags::APPEND) })
}

/// The entries of a `system.posix_acl_access` value that are not the mode's, as `getfacl --numeric` words them.
fn acl_text(list: &[u8]) -> String {
    const VERSION: [u8; 4] = [2, 0, 0, 0];
    let Some((entries, [])) = list.strip_prefix(&VERSION).map(<[u8]>::as_chunks::<8>) else {
        return "of an unknown form".to_owned();
    };
    let mut shown = Vec::new();
    for &[tag_low, tag_high, low, high, id @ ..] in entries {
        let id = u32::from_le_bytes(id);
        let whom = match u16::from_le_bytes([tag_low, tag_high]) {
            // The owner's and the others' entries are the mode's own bits.
            0x01 | 0x20 => continue,
            0x02 => format!("user:{id}"),
            0x04 => "group:".to_owned(),
            0x08 => format!("group:{id}"),
            0x10 => "mask:".to_owned(),
            tag => format!("tag {tag:#x}:{id}"),
        };
        let bits = u16::from_le_bytes([low, high]);
        let letter = |bit, letter| if bits & bit != 0 { letter } else { '-' };
        shown.push(format!("{whom}:{}{}{}", letter(4, 'r'), letter(2, 'w'), letter(1, 'x')));
    }
    let n_more = shown.len().saturating_sub(MAX_ENTRIES);
    shown.truncate(MAX_ENTRIES);
    if n_more > 0 {
        shown.push(format!("and {n_more} more"));
    }
    shown.join(" ")
}

/// A `security.capability` value as `getcap` words it, with a line for each of the sets that are alike.
fn capabilities_text(value: &[u8]) -> String {
    const EFFECTIVE: u32 = 1;
    let (words, rest) = value.as_chunks::<4>();
    let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
    let (Some(magic), []) = (words.next(), rest) else { return "of an unknown form".to_owned() };
    // Version 1 has one pair of words, 2 and 3 have two; 3 adds the user that is root where they count.
    let (mut permitted, mut inheritable) = (0_u64, 0_u64);
    let n_pairs = if magic >> 24 == 1 { 1 } else { 2 };
    for pair in 0..n_pairs {
        permitted |= u64::from(words.next().unwrap_or(0)) << (32 * pair);
        inheritable |= u64::from(words.next().unwrap_or(0)) << (32 * pair);
    }
    let mut text = String::new();
    let mut show = |set: u64, letters: &str| {
        if set == 0 {
            return;
        }
        let set = CapabilitySet::from_bits_retain(set);
        let mut names: Vec<String> =
            set.iter_names().map(|(name, _)| format!("cap_{}", name.to_ascii_lowercase())).collect();
        let unnamed = set.iter_names().fold(set, |left, (_, named)| left.difference(named));
        if !unnamed.is_empty() {
            names.push(format!("{:#x}", unnamed.bits()));
        }
        let space = if text.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        write!(text, "{space}{}={letters}", names.join(",")).ok();
    };
    let effective = if magic & EFFECTIVE != 0 { "e" } else { "" };
    show(permitted & inheritable, &format!("{effective}ip"));
    show(permitted & !inheritable, &format!("{effective}p"));
    show(inheritable & !permitted, "i");
    if text.is_empty() { "none, which drops those of whoever runs it".to_owned() } else { text }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A `system.posix_acl_access` value of (tag, permissions, id) entries.
    pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    pub(crate) const NOBODY: u32 = u32::MAX;

    #[test]
    fn a_list_is_shown_without_the_entries_that_are_the_mode() {
        #[track_caller]
        fn check(entries: &[(u16, u16, u32)], expected: &str) {
            assert_eq!(acl_text(&acl(entries)), expected);
        }
        check(&[(1, 6, NOBODY), (4, 4, NOBODY), (0x20, 4, NOBODY)], "group::r--");
        check(
            &[(1, 6, NOBODY), (2, 7, 1000), (4, 4, NOBODY), (8, 2, 50), (0x10, 6, NOBODY), (0x20, 4, NOBODY)],
            "user:1000:rwx group::r-- group:50:-w- mask::rw-",
        );
        let many: Vec<_> = (0..20).map(|id| (2, 4, id)).collect();
        assert!(acl_text(&acl(&many)).ends_with("user:7:r-- and 12 more"));
        for broken in [&[][..], &[2, 0, 0, 0, 1], &[1, 0, 0, 0]] {
            assert_eq!(acl_text(broken), "of an unknown form");
        }
    }

    #[test]
    fn capabilities_are_shown_as_getcap_does() {
        #[track_caller]
        fn check(words: &[u32], expected: &str) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(capabilities_text(&bytes), expected);
        }
        check(&[0x0200_0001, 1 << 13, 0, 0, 0], "cap_net_raw=ep");
        check(&[0x0300_0000, 0b11, 0b10, 0, 1 << 30, 1000], "cap_dac_override=ip cap_chown=p 0x4000000000000000=i");
        check(&[0x0100_0001, 1, 0], "cap_chown=ep");
        check(&[0x0200_0000, 0, 0, 1 << 8, 0], "cap_checkpoint_restore=p");
        check(&[0x0200_0000, 0, 0, 0, 0], "none, which drops those of whoever runs it");
        check(&[], "of an unknown form");
    }

    #[test]
    fn only_what_grants_something_is_noteworthy() {
        #[track_caller]
        fn check(names: &str, acl: bool, capabilities: bool) {
            assert_eq!(noteworthy(names.as_bytes()), Noteworthy { acl, capabilities });
        }
        check("", false, false);
        check("user.a\0security.selinux\0system.posix_acl_default\0", false, false);
        check("user.a\0system.posix_acl_access\0", true, false);
        check("security.capability\0user.system.posix_acl_access\0", false, true);
    }
}
