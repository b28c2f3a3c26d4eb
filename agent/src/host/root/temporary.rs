//! Temporary names beside what they will replace.
//!
//! In the target's own directory: the same file system, the same protection. What is not renamed is removed.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;

use super::metadata::{stat_at, stat_of};
use super::names_in;

/// Names of our own temporary files: `.rekindle-<16 hexadecimal digits>.tmp`.
const TEMPORARY_PREFIX: &str = ".rekindle-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// A temporary name in the target's own directory (the same file system, the same protection), removed unless it was renamed.
pub(super) struct Temporary<'a> {
    dir: &'a OwnedFd,
    name: String,
    flags: AtFlags,
    renamed: bool,
}

impl<'a> Temporary<'a> {
    pub(super) fn file(dir: &'a OwnedFd) -> io::Result<(Self, File)> {
        let name = temporary_name();
        // Nobody else may read it until it has its own permissions.
        let file = rustix::fs::openat(
            dir,
            &name,
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            rustix::fs::Mode::from_raw_mode(0o600),
        )?;
        Ok((Self { dir, name, flags: AtFlags::empty(), renamed: false }, File::from(file)))
    }

    pub(super) fn symlink(dir: &'a OwnedFd, target: &str) -> io::Result<Self> {
        let name = temporary_name();
        rustix::fs::symlinkat(target, dir, &name)?;
        Ok(Self { dir, name, flags: AtFlags::empty(), renamed: false })
    }

    pub(super) fn directory(dir: &'a OwnedFd) -> io::Result<(Self, OwnedFd)> {
        let name = temporary_name();
        rustix::fs::mkdirat(dir, &name, rustix::fs::Mode::from_raw_mode(0o700))?;
        let temporary = Self { dir, name, flags: AtFlags::REMOVEDIR, renamed: false };
        let made = rustix::fs::openat(
            dir,
            &temporary.name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        // Whoever may write to `dir` may have swapped another directory in; its owner must not be changed.
        let ours = stat_of(&made)?.uid == rustix::process::geteuid().as_raw();
        let is_empty = match names_in(&made, 1) {
            Ok(names) => names.is_empty(),
            Err(error) if error.raw_os_error().is_some() => return Err(error),
            // More names than one.
            Err(_) => false,
        };
        if ours && is_empty {
            Ok((temporary, made))
        } else {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "someone else replaced the new directory meanwhile"))
        }
    }

    pub(super) fn name(&self) -> &OsStr {
        OsStr::new(&self.name)
    }

    pub(super) fn rename_to(mut self, name: &OsStr) -> io::Result<()> {
        rustix::fs::renameat(self.dir, &self.name, self.dir, name)?;
        self.renamed = true;
        Ok(())
    }

    pub(super) fn rename_to_new(mut self, name: &OsStr) -> io::Result<()> {
        match rustix::fs::renameat_with(self.dir, &self.name, self.dir, name, RenameFlags::NOREPLACE) {
            // The file system does not know the flag: look first. A race with another writer replaces at most an empty directory.
            Err(Errno::INVAL | Errno::NOSYS) => {
                if stat_at(self.dir, name)?.is_some() {
                    return Err(Errno::EXIST.into());
                }
                rustix::fs::renameat(self.dir, &self.name, self.dir, name)?;
            }
            result => result?,
        }
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed now is removed by `remove_leftovers` at the next run.
            rustix::fs::unlinkat(self.dir, &self.name, self.flags).ok();
        }
    }
}

fn temporary_name() -> String {
    format!("{TEMPORARY_PREFIX}{}{TEMPORARY_SUFFIX}", crate::host::random_hex())
}

/// Whether a name is one of our own temporary ones.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    name.to_str()
        .and_then(|name| name.strip_prefix(TEMPORARY_PREFIX)?.strip_suffix(TEMPORARY_SUFFIX))
        .is_some_and(|middle| middle.len() == 16 && middle.bytes().all(|b| b.is_ascii_hexdigit()))
}
