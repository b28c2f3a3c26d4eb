//! The stage: a directory of root's own in which copies of declared files lie ready to be swapped in.
//!
//! A copy is a whole inode: content, owner, mode and label are written and synced before it gets the name under which it is
//! used, so that one exchange of names puts a file in place that is already on the disk. What was displaced takes the copy's
//! name, and nothing of it is lost.
//!
//! - A stage serves one mount, because a rename never crosses mounts. No descriptor on any mount but the root's is kept open:
//!   it would keep the mount from being unmounted.
//! - Names: `new-…` while a copy is being written, which the next start removes; any other name is a copy or something that was
//!   displaced, and only a look at the content tells which.
//! - It is never on a file system on which an exchange across directories may lose the file in a power cut: see [`Unfit`].

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode as KernelMode, OFlags, RenameFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::root::{
    FileType, Keep, Metadata, Permissions, Root, hand_on, is_labelled_like, metadata_at, metadata_of_open, mount_of,
    stat_at, stat_of, succeed, sync_directory,
};
use crate::resource::Content;

/// Name of the stage of a mount that the state directory is not on, in the mount's own root.
pub const FOREIGN_STAGE: &str = ".rekindle-stage";

/// Prefix of what is being written.
const UNFINISHED: &str = "new-";

/// btrfs replays its log name by name: after a power cut an exchange across directories can be half done, with the declared
/// name gone.
const BTRFS: i64 = 0x9123_683E;

/// Why a mount gets no stage.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Something about it could not be done.
    #[error("cannot {operation}")]
    Io {
        /// The operation in words.
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An exchange of names across directories is not safe there.
    #[error("btrfs can lose an exchange of names in a power cut")]
    Btrfs,
    /// Two names cannot be exchanged there.
    #[error("the file system cannot exchange two names")]
    NoExchange,
    /// The directory is not one that only the agent's user can write to.
    #[error("`{0}` is not a directory of the agent's own")]
    NotOurs(PathBuf),
}

fn io_error(operation: &'static str) -> impl FnOnce(io::Error) -> Unfit {
    move |source| Unfit::Io { operation, source }
}

/// What a copy is to be.
#[derive(Debug, Clone, Copy)]
pub struct Copy<'a> {
    /// Name in the stage.
    pub name: &'a str,
    /// The whole content.
    pub content: &'a Content,
    /// Owner, group and mode.
    pub permissions: Permissions,
    /// The SELinux label, where one is named.
    pub label: Option<&'a str>,
}

/// One stage.
#[derive(Debug)]
pub struct Stage {
    path: PathBuf,
    mount: u64,
    /// Kept open only on the mount of the root.
    dir: Option<OwnedFd>,
}

impl Stage {
    /// Makes or opens the stage for the mount that `directory` is on: `home` when that is on the same mount, otherwise a
    /// directory in the mount's root, beneath `root`. Two names are exchanged there to see whether that works.
    pub fn open(root: &Root, home: &Path, directory: BorrowedFd<'_>) -> Result<Self, Unfit> {
        let file_system =
            rustix::fs::fstatfs(directory).map_err(io::Error::from).map_err(io_error("look at the mount"))?;
        if file_system.f_type == BTRFS {
            return Err(Unfit::Btrfs);
        }
        let mount = mount_of(directory).map_err(io_error("look at the mount"))?;
        let path = match place_at_home(home, mount)? {
            Some(path) => path,
            None => {
                top_of_mount(root, directory, mount).map_err(io_error("find the mount's root"))?.join(FOREIGN_STAGE)
            }
        };
        make_private(&path)?;
        let dir = open_directory(&path).map_err(io_error("open the stage"))?;
        if mount_of(dir.as_fd()).map_err(io_error("look at the stage"))? != mount {
            return Err(Unfit::NotOurs(path));
        }
        let metadata = stat_of(&dir).map_err(io_error("look at the stage"))?;
        if metadata.uid != super::current_ids().0 || metadata.mode.bits() & 0o077 != 0 {
            return Err(Unfit::NotOurs(path));
        }
        probe(&dir)?;
        let keep = mount_of(root.as_fd()).is_ok_and(|root| root == mount);
        Ok(Self { path, mount, dir: keep.then_some(dir) })
    }

    /// Id of the mount that it serves.
    pub fn mount(&self) -> u64 {
        self.mount
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it for some operations. An error when another mount is there by now.
    pub fn enter(&self) -> io::Result<Entered<'_>> {
        if let Some(dir) = &self.dir {
            return Ok(Entered { dir: Dir::Held(dir.as_fd()) });
        }
        let dir = open_directory(&self.path)?;
        if mount_of(dir.as_fd())? != self.mount {
            return Err(io::Error::new(io::ErrorKind::NotFound, "another file system is mounted there now"));
        }
        Ok(Entered { dir: Dir::Opened(dir) })
    }
}

#[derive(Debug)]
enum Dir<'a> {
    Held(BorrowedFd<'a>),
    Opened(OwnedFd),
}

/// A stage while it is open.
#[derive(Debug)]
pub struct Entered<'a> {
    dir: Dir<'a>,
}

impl Entered<'_> {
    fn dir(&self) -> BorrowedFd<'_> {
        match &self.dir {
            Dir::Held(dir) => *dir,
            Dir::Opened(dir) => dir.as_fd(),
        }
    }

    /// Swaps a copy with whatever is at `name` in `directory`, atomically.
    pub fn exchange(&self, copy: &str, directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        rustix::fs::renameat_with(self.dir(), copy, directory, name, RenameFlags::EXCHANGE)
    }

    /// Puts a copy at `name` in `directory`, where nothing may be.
    pub fn place(&self, copy: &str, directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        rustix::fs::renameat_with(self.dir(), copy, directory, name, RenameFlags::NOREPLACE)
    }

    /// Writes copies and syncs them all before the first gets its name. The writing of all is begun before the first is
    /// waited for, so that they share journal commits; nobody else's writes are waited for, as `syncfs` would.
    ///
    /// On an error none of them is there.
    pub fn write(&self, copies: &[Copy<'_>]) -> io::Result<()> {
        let mut files = Vec::with_capacity(copies.len());
        let result = copies
            .iter()
            .try_for_each(|copy| self.write_one(copy).map(|file| files.push((file, copy.name))))
            .and_then(|()| {
                for (file, _) in &files {
                    file.sync_all()?;
                }
                for (_, name) in &files {
                    rustix::fs::renameat(self.dir(), unfinished(name), self.dir(), *name)?;
                }
                Ok(())
            });
        if result.is_err() {
            for copy in copies {
                // What is not there was not made.
                self.remove(&unfinished(copy.name)).or_else(ignore_absence)?;
                self.remove(copy.name).or_else(ignore_absence)?;
            }
        }
        result
    }

    fn write_one(&self, copy: &Copy<'_>) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.dir(), unfinished(copy.name), flags, KernelMode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        // A copy has what is declared and nothing that the stage's own directory would hand down.
        succeed(None, &file, copy.label, Keep::Nothing)?;
        file.write_all(&copy.content.bytes()?)?;
        let made = stat_of(&file)?;
        let wanted = copy.permissions;
        if (made.uid, made.gid) != (wanted.uid, wanted.gid) {
            rustix::fs::fchown(&file, Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)))?;
        }
        // After the owner, because a change of owner strips the set-user-id bit.
        rustix::fs::fchmod(&file, KernelMode::from_raw_mode(wanted.mode.bits()))?;
        super::writeback::begin(&file);
        Ok(file)
    }

    /// Whether a copy is what it should be. A copy that somebody got at must not be swapped in.
    pub fn is_sound(&self, copy: &Copy<'_>, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(self.dir(), copy.name, flags, KernelMode::empty())?);
        let found = metadata_of_open(&file)?;
        if found.n_links != 1 || !found.is_as_declared(copy.permissions) {
            return Ok(false);
        }
        if let Some(label) = copy.label
            && !is_labelled_like(&file, label)?
        {
            return Ok(false);
        }
        buffer.clear();
        let limit = u64::try_from(copy.content.len()).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit).read_to_end(buffer)?;
        Ok(copy.content.is(buffer))
    }

    /// Metadata of what is at a name; `None` when nothing is.
    pub fn metadata(&self, name: &str) -> io::Result<Option<Metadata>> {
        metadata_at(&self.dir(), OsStr::new(name))
    }

    /// Gives the file at `target` in `directory` what the displaced one under `name` hands on to it: its `user.*` attributes.
    /// Does nothing where either is no regular file.
    pub fn hand_on(&self, name: &str, directory: BorrowedFd<'_>, target: &OsStr) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let is_file = |dir: BorrowedFd<'_>, name: &OsStr| -> io::Result<bool> {
            Ok(stat_at(&dir, name)?.is_some_and(|metadata| metadata.file_type == FileType::File))
        };
        if !is_file(self.dir(), OsStr::new(name))? || !is_file(directory, target)? {
            return Ok(());
        }
        let old = File::from(rustix::fs::openat(self.dir(), name, flags, KernelMode::empty())?);
        let new = File::from(rustix::fs::openat(directory, target, flags, KernelMode::empty())?);
        hand_on(&old, &new)
    }

    /// Reads a regular file in the stage; an error of kind `FileTooLarge` when it is longer than `limit`.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(self.dir(), name, flags, KernelMode::empty())?);
        let mut content = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut content)?;
        if u64::try_from(content.len()).is_ok_and(|length| length <= limit) {
            Ok(content)
        } else {
            Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {limit} bytes")))
        }
    }

    /// Reads a symbolic link in the stage.
    pub fn read_link(&self, name: &str) -> io::Result<PathBuf> {
        let target = rustix::fs::readlinkat(self.dir(), name, Vec::new())?;
        Ok(PathBuf::from(OsStr::from_bytes(target.to_bytes())))
    }

    /// Removes something that is no directory.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        rustix::fs::unlinkat(self.dir(), name, AtFlags::empty()).map_err(io::Error::from)
    }

    /// Removes a directory, which must be empty.
    pub fn remove_directory(&self, name: &str) -> io::Result<()> {
        rustix::fs::unlinkat(self.dir(), name, AtFlags::REMOVEDIR).map_err(io::Error::from)
    }

    /// What an earlier process left, unfinished copies excepted, which are removed.
    pub fn leftovers(&self) -> io::Result<Vec<String>> {
        let mut left = Vec::new();
        for entry in rustix::fs::Dir::read_from(self.dir())? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            // Every name that this module makes is text.
            let Some(name) = name.to_str().filter(|name| *name != "." && *name != "..") else { continue };
            if name.starts_with(UNFINISHED) {
                self.remove(name)?;
            } else {
                left.push(name.to_owned());
            }
        }
        Ok(left)
    }

    /// Makes what happened to names in the stage durable.
    pub fn sync(&self) -> io::Result<()> {
        sync_directory(&self.dir())
    }
}

fn ignore_absence(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn unfinished(name: &str) -> String {
    format!("{UNFINISHED}{name}")
}

/// `home`, when it is (or will be made) on the mount.
pub(super) fn place_at_home(home: &Path, mount: u64) -> Result<Option<PathBuf>, Unfit> {
    let parent = home.parent().unwrap_or(home);
    let parent = open_directory(parent).map_err(io_error("open the state directory"))?;
    let on_mount = mount_of(parent.as_fd()).map_err(io_error("look at the state directory"))? == mount;
    Ok(on_mount.then(|| home.to_path_buf()))
}

/// The topmost directory of the mount that `directory` is on, or the managed root when that comes first.
pub(super) fn top_of_mount(root: &Root, directory: BorrowedFd<'_>, mount: u64) -> io::Result<PathBuf> {
    let managed = stat_of(&root.as_fd())?.identity;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = rustix::fs::openat(directory, ".", flags, KernelMode::empty())?;
    loop {
        let identity = stat_of(&here)?.identity;
        let up = rustix::fs::openat(&here, "..", flags, KernelMode::empty())?;
        if identity == managed || mount_of(up.as_fd())? != mount || stat_of(&up)?.identity == identity {
            return super::path_of(here.as_fd());
        }
        here = up;
    }
}

/// Makes a directory that only the agent's user may enter, unless something is there.
pub(super) fn make_private(path: &Path) -> Result<(), Unfit> {
    match rustix::fs::mkdirat(CWD, path, KernelMode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(io_error("make the stage")(errno.into())),
    }
}

/// Opens a directory by a path of which no part may be a link.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(CWD, path, flags, KernelMode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Err(Errno::NOSYS | Errno::PERM) => {
            rustix::fs::openat(CWD, path, flags, KernelMode::empty()).map_err(io::Error::from)
        }
        result => result.map_err(io::Error::from),
    }
}

/// Exchanges two files, to see whether it can be done here. Kernels and file systems are asked, never looked up by version.
fn probe(dir: &OwnedFd) -> Result<(), Unfit> {
    let names = [format!("{UNFINISHED}probe-a"), format!("{UNFINISHED}probe-b")];
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for name in &names {
        rustix::fs::openat(dir, name.as_str(), flags, KernelMode::from_raw_mode(0o600))
            .map_err(io::Error::from)
            .map_err(io_error("write to the stage"))?;
    }
    let [a, b] = &names;
    let exchanged = rustix::fs::renameat_with(dir, a.as_str(), dir, b.as_str(), RenameFlags::EXCHANGE);
    for name in &names {
        rustix::fs::unlinkat(dir, name.as_str(), AtFlags::empty())
            .map_err(io::Error::from)
            .map_err(io_error("remove from the stage"))?;
    }
    exchanged.map_err(|_errno| Unfit::NoExchange)
}
