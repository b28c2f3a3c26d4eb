//! The root directory handle: every path of the managed host is resolved beneath it.
//!
//! Nothing here opens a path from `/` by string: each operation resolves the parent directory to a descriptor and acts on
//! the last component relative to it, so what was checked is what is acted on. The last component is never followed.
//! A file is replaced whole or not at all: no reader ever sees a part of it, and after a power cut there is either the old
//! or the new one. The one exception is a file that something is mounted on, which nothing can replace.

mod attributes;
mod follow;
mod labels;
mod metadata;
pub(in crate::host) mod resolve;
mod ruling;
mod temporary;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, OFlags, Uid};
use rustix::io::Errno;

pub use attributes::{Extras, Mislabel, Noteworthy, noteworthy};
pub(in crate::host) use attributes::{hand_on, succeed};
pub use metadata::{FileType, Flags, Metadata, Permissions};
pub use ruling::Ruling;
pub(in crate::host) use ruling::clear_flags_at;
pub(crate) use temporary::is_temporary;

use super::selinux::Labels;
use crate::resource::{AbsPath, Mode};
use attributes::Inode;
pub(crate) use labels::is_labelled_like;
pub(crate) use metadata::{metadata_at, metadata_of_open, mount_of, stat_at, stat_of};
use metadata::{metadata_of_path, open_again, open_path, through};
use resolve::Place;
use temporary::Temporary;

/// The root of a managed file system: `/` in production, a temporary directory in tests, an image tree when baking.
///
/// No operation leaves it through a symbolic link or `..`. A symbolic link among the *parents* of a path is followed,
/// beneath the root, only when it and its directory belong to root (or to the agent's own user) and nobody else may write
/// there or replace a directory above; otherwise the operation fails. The last component is never followed.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
    /// What the labels of paths should be, where somebody says so.
    labels: Option<Labels>,
    /// Whose everything is that nobody is named for.
    owner: (u32, u32),
}

/// What a replacement takes over from the file that it replaces, besides its label and `user.*` attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: the mode is declared.
    Nothing,
    /// An access control list: nobody declared who may do what, so it stays as it is.
    AccessList,
}

/// How a file was put where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// A new inode took its name, in one step.
    Replaced,
    /// The inode was written to, because something is mounted on it.
    InPlace,
}

impl Root {
    /// Opens a root directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = std::fs::canonicalize(path)?;
        let dir = rustix::fs::open(
            &path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        Ok(Self { dir, path, labels: None, owner: super::current_ids() })
    }

    /// Has it belong to another user and group than this process from now on, whatever nobody is named for.
    #[must_use]
    pub fn with_owner(mut self, owner: (u32, u32)) -> Self {
        self.owner = owner;
        self
    }

    /// The user and group whose everything is that nobody is named for: those of this process, which applies a policy, unless
    /// somebody else is going to.
    pub fn owner(&self) -> (u32, u32) {
        self.owner
    }

    /// Where it was opened, for messages and for tools that take a root themselves.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An `O_PATH` descriptor of it.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Whether this is the running system's own root.
    pub fn is_live(&self) -> bool {
        self.path == Path::new("/")
    }

    /// Metadata of what is at `path`; `None` when the path or one of its parents does not exist.
    pub fn metadata(&self, path: &AbsPath) -> io::Result<Option<Metadata>> {
        match self.place(path)? {
            None => Ok(None),
            Some(Place::Root) => self.inspect(&self.dir, OsStr::new("."), &self.dir).map(Some),
            Some(Place::Entry { dir, name }) => match open_path(&dir, &name) {
                Ok(target) => self.inspect(&dir, &name, &target).map(Some),
                Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Everything about what an `O_PATH` descriptor is open on; `dir` and `name` are where it was found.
    fn inspect(&self, dir: &OwnedFd, name: &OsStr, target: &OwnedFd) -> io::Result<Metadata> {
        let mut metadata = metadata_of_path(dir, name, target)?;
        self.add_mislabel(&mut metadata, dir, name, &Inode::behind(target))?;
        Ok(metadata)
    }

    /// Everything about a file or directory that is open for reading; `dir` and `name` are where it was found.
    pub(in crate::host) fn inspect_open(&self, dir: &OwnedFd, name: &OsStr, file: &impl AsFd) -> io::Result<Metadata> {
        let mut metadata = metadata_of_open(file)?;
        self.add_mislabel(&mut metadata, dir, name, &Inode::Open(file.as_fd()))?;
        Ok(metadata)
    }

    /// Reads a regular file of at most `limit` bytes, with the metadata of the very inode that was read. `None` when absent;
    /// an error of kind `InvalidInput` when it is no regular file, `FileTooLarge` when it is longer.
    pub fn read(&self, path: &AbsPath, limit: u64) -> io::Result<Option<(Vec<u8>, Metadata)>> {
        let (dir, name) = match self.place(path)? {
            None => return Ok(None),
            Some(Place::Root) => return Err(not_a_regular_file(FileType::Directory)),
            Some(Place::Entry { dir, name }) => (dir, name),
        };
        // Looked at before it is opened, because opening a device can act on it.
        match stat_at(&dir, &name)? {
            None => return Ok(None),
            Some(Metadata { file_type: FileType::File, .. }) => {}
            Some(other) => return Err(not_a_regular_file(other.file_type)),
        }
        let Some(file) = open_regular(&dir, &name)? else { return Ok(None) };
        let metadata = self.inspect_open(&dir, &name, &file)?;
        if metadata.file_type != FileType::File {
            return Err(not_a_regular_file(metadata.file_type));
        }
        let mut content = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut content)?;
        if u64::try_from(content.len()).is_ok_and(|length| length <= limit) {
            Ok(Some((content, metadata)))
        } else {
            Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {limit} bytes")))
        }
    }

    /// Reads at most the last `limit` bytes of a regular file, such as a log; `None` when it is absent.
    pub fn read_end(&self, path: &AbsPath, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(Place::Entry { dir, name }) = self.place(path)? else { return Ok(None) };
        // Looked at before it is opened, because opening a device can act on it.
        match stat_at(&dir, &name)? {
            None => return Ok(None),
            Some(Metadata { file_type: FileType::File, .. }) => {}
            Some(other) => return Err(not_a_regular_file(other.file_type)),
        }
        let Some(mut file) = open_regular(&dir, &name)? else { return Ok(None) };
        let length = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut content = Vec::new();
        file.take(limit).read_to_end(&mut content)?;
        Ok(Some(content))
    }

    /// Reads a symbolic link's target; `None` when absent, `InvalidInput` when it is no link.
    pub fn read_link(&self, path: &AbsPath) -> io::Result<Option<PathBuf>> {
        let no_link = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a symbolic link");
        let (dir, name) = match self.place(path)? {
            None => return Ok(None),
            Some(Place::Root) => return Err(no_link()),
            Some(Place::Entry { dir, name }) => (dir, name),
        };
        match rustix::fs::readlinkat(&dir, &name, Vec::new()) {
            Ok(target) => Ok(Some(PathBuf::from(OsStr::from_bytes(target.to_bytes())))),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::INVAL) => Err(no_link()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lists the names in a directory, sorted, without `.` and `..`; `None` when absent, `InvalidInput` when it holds more
    /// than `limit` names, `NotADirectory` when it is something else.
    pub fn list_names(&self, path: &AbsPath, limit: usize) -> io::Result<Option<Vec<OsString>>> {
        let Some(dir) = self.directory(path.as_path())? else {
            return match self.metadata(path)? {
                None => Ok(None),
                Some(_) => Err(Errno::NOTDIR.into()),
            };
        };
        let mut names = names_in(&dir, limit)?;
        names.sort();
        Ok(Some(names))
    }

    /// Puts a regular file with this content and these permissions at `path`, atomically and durably: written to a temporary
    /// name in the same directory, owner before mode, fsync, rename, fsync of the directory. Replaces a file, link or special
    /// file; a directory there is an error (`IsADirectory`). The `user.*` attributes of a replaced regular file are carried
    /// over, and its label where the host's policy names none; an access control list and file capabilities are not: what is
    /// declared has neither.
    ///
    /// A regular file that something is mounted on cannot be replaced: it is written in place instead, which is not atomic.
    pub fn replace_file(&self, path: &AbsPath, content: &[u8], permissions: Permissions) -> io::Result<Put> {
        self.replace_file_keeping(path, content, permissions, Keep::Nothing)
    }

    /// As [`Root::replace_file`], with what else is kept.
    pub fn replace_file_keeping(
        &self,
        path: &AbsPath,
        content: &[u8],
        permissions: Permissions,
        keep: Keep,
    ) -> io::Result<Put> {
        let (dir, name) = self.writable_place(path)?;
        let old = match stat_at(&dir, &name)? {
            Some(Metadata { file_type: FileType::Directory, .. }) => return Err(Errno::ISDIR.into()),
            Some(Metadata { file_type: FileType::File, is_mount: true, .. }) => {
                let written = self.write_in_place(&dir, &name, content, permissions, keep);
                return written.map_err(|error| explain(&dir, Some(&name), path, error));
            }
            Some(Metadata { file_type: FileType::File, .. }) => open_regular(&dir, &name)?,
            Some(Metadata { file_type: FileType::Symlink | FileType::Special, .. }) | None => None,
        };
        let (temporary, mut file) = Temporary::file(&dir).map_err(|error| explain(&dir, None, path, error))?;
        // Before there is anything to protect, and so before it is visible.
        let label = self.label_of_new(&dir, &name, FileType::File, old.as_ref())?;
        succeed(old.as_ref(), &file, label.as_deref(), keep)?;
        file.write_all(content)?;
        change_owner(&file, permissions)?;
        // After the owner, because a change of owner strips the set-user-id bit.
        rustix::fs::fchmod(&file, kernel_mode(permissions.mode))?;
        file.sync_all()?;
        match temporary.rename_to(&name) {
            Ok(()) => {}
            // Mounted there meanwhile, or the kernel does not tell of mounts.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && old.is_some() => {
                return self
                    .write_in_place(&dir, &name, content, permissions, keep)
                    .map_err(|error| explain(&dir, Some(&name), path, error));
            }
            Err(error) => return Err(explain(&dir, Some(&name), path, error)),
        }
        sync_directory(&dir)?;
        Ok(Put::Replaced)
    }

    /// Writes a file that cannot be replaced. A reader, and whoever comes after a power cut, may see both contents mixed; the
    /// length is right last, so that what was there is not cut off before what should be there is.
    fn write_in_place(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        content: &[u8],
        permissions: Permissions,
        keep: Keep,
    ) -> io::Result<Put> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty())?);
        let metadata = self.inspect_open(dir, name, &file)?;
        if metadata.file_type != FileType::File {
            return Err(not_a_regular_file(metadata.file_type));
        }
        // What comes may be for fewer eyes than what was there.
        change_owner(&file, permissions)?;
        rustix::fs::fchmod(&file, kernel_mode(permissions.mode))?;
        let inode = Inode::Open(file.as_fd());
        if let Some(label) = &metadata.extras.label {
            inode.set_label(&label.wanted)?;
        }
        match keep {
            Keep::Nothing => inode.remove_extras()?,
            Keep::AccessList => {}
        }
        file.write_all_at(content, 0)?;
        file.set_len(u64::try_from(content.len()).map_err(io::Error::other)?)?;
        // Both the list's removal and the writing may have changed it.
        rustix::fs::fchmod(&file, kernel_mode(permissions.mode))?;
        file.sync_all()?;
        Ok(Put::InPlace)
    }

    /// Writes to the regular file that is at `path`, for who wants all of its names to show the same. Not atomic.
    pub fn overwrite_file(&self, path: &AbsPath, content: &[u8], permissions: Permissions) -> io::Result<()> {
        let (dir, name) = self.writable_place(path)?;
        self.write_in_place(&dir, &name, content, permissions, Keep::Nothing)
            .map(drop)
            .map_err(|error| explain(&dir, Some(&name), path, error))
    }

    /// Puts a symbolic link at `path`, atomically and durably. A directory there is an error.
    pub fn replace_symlink(&self, path: &AbsPath, target: &str) -> io::Result<()> {
        let (dir, name) = self.writable_place(path)?;
        if let Some(Metadata { file_type: FileType::Directory, .. }) = stat_at(&dir, &name)? {
            return Err(Errno::ISDIR.into());
        }
        let temporary = Temporary::symlink(&dir, target).map_err(|error| explain(&dir, None, path, error))?;
        if let Some(label) = self.label_of_new(&dir, &name, FileType::Symlink, None)? {
            Inode::behind(&open_path(&dir, temporary.name())?).set_label(&label)?;
        }
        temporary.rename_to(&name).map_err(|error| explain(&dir, Some(&name), path, error))?;
        sync_directory(&dir)
    }

    /// Makes a directory, with its permissions from the first moment; its parent must exist and nothing may be there yet
    /// (`AlreadyExists`).
    pub fn create_directory(&self, path: &AbsPath, permissions: Permissions) -> io::Result<()> {
        let (dir, name) = self.writable_place(path)?;
        let (temporary, made) = Temporary::directory(&dir).map_err(|error| explain(&dir, None, path, error))?;
        if let Some(label) = self.label_of_new(&dir, &name, FileType::Directory, None)? {
            Inode::Open(made.as_fd()).set_label(&label)?;
        }
        Inode::Open(made.as_fd()).remove_extras()?;
        change_owner(&made, permissions)?;
        rustix::fs::fchmod(&made, kernel_mode(permissions.mode))?;
        temporary.rename_to_new(&name).map_err(|error| explain(&dir, Some(&name), path, error))?;
        sync_directory(&dir)
    }

    /// Sets owner and group, then mode, of a file or directory (never of a link's target), and removes what refuses or grants
    /// more than these: the immutable and append-only flags first, an access control list and capabilities last. A wrong label
    /// is set. Only what differs is touched.
    pub fn set_permissions(&self, path: &AbsPath, permissions: Permissions) -> io::Result<()> {
        let open_root;
        let (dir, name) = match self.place(path)? {
            None => return Err(Errno::NOENT.into()),
            Some(Place::Root) => {
                open_root = self.dir.try_clone()?;
                (open_root, OsString::from("."))
            }
            Some(Place::Entry { dir, name }) => (dir, name),
        };
        // Everything below acts on this descriptor, so a link that is swapped in meanwhile changes nothing.
        let target = open_path(&dir, &name)?;
        let explain = |error| explain(&dir, Some(&name), path, error);
        let metadata = self.inspect(&dir, &name, &target)?;
        match metadata.file_type {
            FileType::File | FileType::Directory => {}
            FileType::Symlink | FileType::Special => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a directory"));
            }
        }
        if !metadata.flags.is_empty() {
            attributes::clear_flags(&open_again(&dir, &name, &target)?).map_err(explain)?;
        }
        let owner_differs = metadata.uid != permissions.uid || metadata.gid != permissions.gid;
        if owner_differs {
            // Whoever may write here may have put another's file here under a second name.
            if metadata.file_type == FileType::File
                && metadata.n_links > 1
                && !resolve::only_we_may_write(&stat_of(&dir)?)
            {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "it has several names and others may write to its directory, so its owner is not changed",
                ));
            }
            rustix::fs::chownat(
                &target,
                "",
                Some(Uid::from_raw(permissions.uid)),
                Some(Gid::from_raw(permissions.gid)),
                AtFlags::EMPTY_PATH,
            )
            .map_err(|error| explain(error.into()))?;
        }
        let stripped = owner_differs && permissions.mode.bits() & 0o6000 != 0;
        let mode = kernel_mode(permissions.mode);
        if stripped || metadata.mode != permissions.mode {
            through(&dir, &name, &target, |inode| inode.change_mode(mode)).map_err(explain)?;
        }
        if let Some(label) = &metadata.extras.label {
            through(&dir, &name, &target, |inode| inode.set_label(&label.wanted)).map_err(explain)?;
        }
        if metadata.extras.acl.is_some() || metadata.extras.capabilities.is_some() {
            through(&dir, &name, &target, |inode| inode.remove_extras()).map_err(explain)?;
            // While there was a list, the group's bits were its mask. Set before it went, so that nobody was granted more
            // meanwhile, and again in case that the file system put the bits of its group entry there.
            if stat_of(&target)?.mode != permissions.mode {
                through(&dir, &name, &target, |inode| inode.change_mode(mode)).map_err(explain)?;
            }
        }
        Ok(())
    }

    /// Clears the immutable and append-only flags of a file or directory, so that it can be changed, replaced or removed.
    /// Returns those that were set; none for a link or special file, or where there is nothing.
    pub fn clear_flags(&self, path: &AbsPath) -> io::Result<Flags> {
        let Some(Place::Entry { dir, name }) = self.place(path)? else { return Ok(Flags::default()) };
        let Some(metadata) = stat_at(&dir, &name)? else { return Ok(Flags::default()) };
        match metadata.file_type {
            FileType::File | FileType::Directory if !metadata.flags.is_empty() => {
                let target = open_path(&dir, &name)?;
                attributes::clear_flags(&open_again(&dir, &name, &target)?)
                    .map_err(|error| explain(&dir, Some(&name), path, error))
            }
            FileType::File | FileType::Directory | FileType::Symlink | FileType::Special => Ok(Flags::default()),
        }
    }

    /// Removes a file, link or special file durably. `false` when there was nothing.
    pub fn remove_file(&self, path: &AbsPath) -> io::Result<bool> {
        self.remove(path, AtFlags::empty())
    }

    /// Removes an empty directory durably. `false` when there was nothing.
    pub fn remove_directory(&self, path: &AbsPath) -> io::Result<bool> {
        self.remove(path, AtFlags::REMOVEDIR)
    }

    /// Removes temporary files that a killed run left beside `path`, or beside the first of its parents that is missing: that one
    /// was being made. Returns how many.
    pub fn remove_leftovers(&self, path: &AbsPath) -> io::Result<usize> {
        let mut first_missing = Some(path.clone());
        let dir = loop {
            let Some(path) = first_missing else { return Ok(0) };
            match self.place(&path)? {
                Some(Place::Entry { dir, .. }) => break dir,
                Some(Place::Root) => return Ok(0),
                None => first_missing = path.parent(),
            }
        };
        let mut n_removed = 0;
        for name in names_in(&dir, usize::MAX)?.iter().filter(|name| is_temporary(name)) {
            let removed = match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR),
                result => result,
            };
            match removed {
                Ok(()) => n_removed += 1,
                // A directory with something in it is none of ours: ours are renamed before anything is put in them.
                Err(Errno::NOENT | Errno::NOTEMPTY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if n_removed > 0 {
            sync_directory(&dir)?;
        }
        Ok(n_removed)
    }

    fn remove(&self, path: &AbsPath, flags: AtFlags) -> io::Result<bool> {
        let (dir, name) = match self.place(path)? {
            None => return Ok(false),
            Some(Place::Root) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is the root")),
            Some(Place::Entry { dir, name }) => (dir, name),
        };
        match rustix::fs::unlinkat(&dir, &name, flags) {
            Ok(()) => sync_directory(&dir).map(|()| true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(explain(&dir, Some(&name), path, error.into())),
        }
    }

    fn writable_place(&self, path: &AbsPath) -> io::Result<(OwnedFd, OsString)> {
        match self.place(path)? {
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("the directory of `{path}` does not exist"))),
            Some(Place::Root) => Err(Errno::ISDIR.into()),
            Some(Place::Entry { dir, name }) => Ok((dir, name)),
        }
    }
}

fn not_a_regular_file(found: FileType) -> io::Error {
    let found = match found {
        FileType::File => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Special => "a device, socket or FIFO",
    };
    io::Error::new(io::ErrorKind::InvalidInput, format!("expected a regular file, found {found}"))
}

/// Opens what was seen to be a regular file, without waiting and without following; `None` when it has gone.
fn open_regular(dir: &OwnedFd, name: &OsStr) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty()) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::LOOP) => Err(not_a_regular_file(FileType::Symlink)),
        Err(Errno::NXIO) => Err(not_a_regular_file(FileType::Special)),
        Err(error) => Err(error.into()),
    }
}

/// Gives an open file its owner, group and mode, of which `before` says what they are.
pub(crate) fn give(file: &File, before: &Metadata, wanted: Permissions) -> Result<(), Errno> {
    if (before.uid, before.gid) != (wanted.uid, wanted.gid) {
        rustix::fs::fchown(file, Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)))?;
    }
    // A change of owner strips the set-user-id bit, so the mode comes last and always.
    rustix::fs::fchmod(file, kernel_mode(wanted.mode))
}

/// Skips what is already so, because an unprivileged process may not even change an owner to itself everywhere.
fn change_owner(file: &impl AsFd, permissions: Permissions) -> io::Result<()> {
    let metadata = stat_of(file)?;
    if metadata.uid == permissions.uid && metadata.gid == permissions.gid {
        return Ok(());
    }
    rustix::fs::fchown(file, Some(Uid::from_raw(permissions.uid)), Some(Gid::from_raw(permissions.gid)))
        .map_err(io::Error::from)
}

fn kernel_mode(mode: Mode) -> rustix::fs::Mode {
    rustix::fs::Mode::from_raw_mode(mode.bits())
}

/// Makes a rename or an unlink durable, through any descriptor of the directory.
pub(crate) fn sync_directory(dir: &impl std::os::fd::AsFd) -> io::Result<()> {
    rustix::fs::fsync(&readable(dir)?).map_err(io::Error::from)
}

fn readable(dir: &impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .map_err(io::Error::from)
}

pub(in crate::host) fn names_in(dir: &OwnedFd, limit: usize) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(readable(dir)?)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if names.len() == limit {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it holds more than {limit} names")));
        }
        names.push(name.to_os_string());
    }
    Ok(names)
}

/// Says what the kernel's error alone does not: that a flag or a mount is in the way.
fn explain(dir: &OwnedFd, name: Option<&OsStr>, path: &AbsPath, error: io::Error) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => {
            let is_immutable =
                |metadata: io::Result<Option<Metadata>>| metadata.is_ok_and(|m| m.is_some_and(|m| !m.flags.is_empty()));
            if name.is_some_and(|name| is_immutable(stat_at(dir, name))) {
                let hint = "the immutable or append-only flag is set on it (`lsattr` shows it, `chattr -ia` clears it)";
                io::Error::new(error.kind(), hint)
            } else if is_immutable(stat_of(dir).map(Some)) {
                let parent = path.parent().map(|parent| parent.to_string()).unwrap_or_default();
                let hint = format!("the immutable or append-only flag is set on its directory `{parent}`");
                io::Error::new(error.kind(), hint)
            } else {
                error
            }
        }
        Some(Errno::TXTBSY) => {
            io::Error::new(error.kind(), "it is a program that runs: it can be replaced, but not written to")
        }
        Some(Errno::BUSY) => io::Error::new(error.kind(), "something is mounted on it, so it cannot be replaced"),
        Some(_) | None => error,
    }
}
