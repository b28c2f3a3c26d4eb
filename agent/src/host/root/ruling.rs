//! Some of owner, group and mode: what a rule over a tree says of each entry.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Uid};

use super::metadata::{FileType, Flags, Metadata, open_again, open_path, stat_of, through};
use super::{attributes, kernel_mode, resolve};
use crate::resource::Mode;

/// What an entry should have; `None` is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ruling {
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permission bits.
    pub mode: Option<Mode>,
}

impl Ruling {
    /// Whether nothing has to be changed.
    pub fn holds_for(&self, metadata: &Metadata) -> bool {
        self.uid.is_none_or(|uid| uid == metadata.uid)
            && self.gid.is_none_or(|gid| gid == metadata.gid)
            && self.mode.is_none_or(|mode| mode == metadata.mode)
    }

    /// Gives an entry what it lacks, owner before mode, never through a link. Nothing happens when it has gone or become
    /// something else. A file that has another name, in a directory in which others may write, keeps its owner: it may be
    /// anybody's.
    pub fn give(&self, dir: BorrowedFd<'_>, name: &OsStr, expected: FileType) -> io::Result<()> {
        let target = match open_path(&dir, name) {
            Ok(target) => target,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // Everything below acts on this descriptor, so what is swapped in meanwhile is not touched.
        let metadata = stat_of(&target)?;
        if metadata.file_type != expected || self.holds_for(&metadata) {
            return Ok(());
        }
        if !metadata.flags.is_empty() {
            let cleared = attributes::clear_flags(&open_again(&dir, name, &target)?)?;
            tracing::warn!(name = %name.display(), flags = %cleared, "cleared flags that refuse changes");
        }
        let owner_differs =
            self.uid.is_some_and(|uid| uid != metadata.uid) || self.gid.is_some_and(|gid| gid != metadata.gid);
        if owner_differs {
            let may_be_anybodys = metadata.file_type == FileType::File && metadata.n_links > 1;
            if may_be_anybodys && !resolve::only_we_may_write(&stat_of(&dir)?) {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "it has several names and others may write to its directory, so its owner is not changed",
                ));
            }
            let (uid, gid) = (self.uid.map(Uid::from_raw), self.gid.map(Gid::from_raw));
            rustix::fs::chownat(&target, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        match self.mode {
            Some(mode) if mode != stat_of(&target)?.mode => {
                through(&dir, name, &target, |inode| inode.change_mode(kernel_mode(mode)))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Clears the flags that refuse changes, of a name in an open directory. Returns those that were set; none for what can have
/// none.
pub(in crate::host) fn clear_flags_at(dir: &OwnedFd, name: &OsStr) -> io::Result<Flags> {
    let target = open_path(dir, name)?;
    match stat_of(&target)?.file_type {
        FileType::File | FileType::Directory => attributes::clear_flags(&open_again(&dir.as_fd(), name, &target)?),
        FileType::Symlink | FileType::Special => Ok(Flags::default()),
    }
}
