//! The root directory handle: every path of the managed host is resolved beneath it.
//!
//! Nothing here opens a path from `/` by string: each operation resolves the parent directory to a descriptor and acts on
//! the last component relative to it, so what was checked is what is acted on. The last component is never followed.
//! A file is replaced whole or not at all: no reader ever sees a part of it, and after a power cut there is either the old
//! or the new one.

mod attributes;
mod resolve;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, OFlags, RenameFlags, Statx, StatxAttributes, StatxFlags, Uid};
use rustix::io::Errno;

use crate::resource::{AbsPath, Mode};
use resolve::Place;

/// The root of a managed file system: `/` in production, a temporary directory in tests, an image tree when baking.
///
/// No operation leaves it through a symbolic link or `..`. A symbolic link among the *parents* of a path is followed,
/// beneath the root, only when it and its directory belong to root (or to the agent's own user) and nobody else may write
/// there or replace a directory above; otherwise the operation fails. The last component is never followed.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
}

/// What kind of thing is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or FIFO.
    Special,
}

/// Metadata of what is at a path, never following a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Kind.
    pub file_type: FileType,
    /// Permission bits.
    pub mode: Mode,
    /// Owner id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Number of names.
    pub n_links: u64,
    /// Device and inode.
    pub identity: (u64, u64),
    /// Change time, in nanoseconds since the epoch.
    pub ctime_ns: i128,
    /// Whether the immutable or append-only flag is set.
    pub immutable: bool,
}

/// Owner, group and mode to give to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    /// Owner id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits.
    pub mode: Mode,
}

/// Names of our own temporary files: `.rekindle-<16 hexadecimal digits>.tmp`.
const TEMPORARY_PREFIX: &str = ".rekindle-";
const TEMPORARY_SUFFIX: &str = ".tmp";

impl Root {
    /// Opens a root directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = std::fs::canonicalize(path)?;
        let dir = rustix::fs::open(
            &path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        Ok(Self { dir, path })
    }

    /// Where it was opened, for messages and for tools that take a root themselves.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the running system's own root.
    pub fn is_live(&self) -> bool {
        self.path == Path::new("/")
    }

    /// Metadata of what is at `path`; `None` when the path or one of its parents does not exist.
    pub fn metadata(&self, path: &AbsPath) -> io::Result<Option<Metadata>> {
        match self.place(path)? {
            None => Ok(None),
            Some(Place::Root) => metadata_of(&self.dir).map(Some),
            Some(Place::Entry { dir, name }) => metadata_at(&dir, &name),
        }
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
        match metadata_at(&dir, &name)? {
            None => return Ok(None),
            Some(Metadata { file_type: FileType::File, .. }) => {}
            Some(other) => return Err(not_a_regular_file(other.file_type)),
        }
        let Some(file) = open_regular(&dir, &name)? else { return Ok(None) };
        let metadata = metadata_of(&file)?;
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
    /// file; a directory there is an error (`IsADirectory`). The access control list, the label and the `user.*` attributes
    /// of a replaced regular file are carried over; file capabilities are not, because they were given to other content.
    pub fn replace_file(&self, path: &AbsPath, content: &[u8], permissions: Permissions) -> io::Result<()> {
        let (dir, name) = self.writable_place(path)?;
        let old = match metadata_at(&dir, &name)? {
            Some(Metadata { file_type: FileType::Directory, .. }) => return Err(Errno::ISDIR.into()),
            Some(Metadata { file_type: FileType::File, .. }) => open_regular(&dir, &name)?,
            Some(Metadata { file_type: FileType::Symlink | FileType::Special, .. }) | None => None,
        };
        let (temporary, mut file) = Temporary::file(&dir).map_err(|error| explain(&dir, None, path, error))?;
        file.write_all(content)?;
        change_owner(&file, permissions)?;
        if let Some(old) = &old {
            attributes::carry_over(old, &file, permissions.mode)?;
        }
        // After the owner, because a change of owner strips the set-user-id bit.
        rustix::fs::fchmod(&file, kernel_mode(permissions.mode))?;
        file.sync_all()?;
        temporary.rename_to(&name).map_err(|error| explain(&dir, Some(&name), path, error))?;
        sync_directory(&dir)
    }

    /// Puts a symbolic link at `path`, atomically and durably. A directory there is an error.
    pub fn replace_symlink(&self, path: &AbsPath, target: &str) -> io::Result<()> {
        let (dir, name) = self.writable_place(path)?;
        if let Some(Metadata { file_type: FileType::Directory, .. }) = metadata_at(&dir, &name)? {
            return Err(Errno::ISDIR.into());
        }
        let temporary = Temporary::symlink(&dir, target).map_err(|error| explain(&dir, None, path, error))?;
        temporary.rename_to(&name).map_err(|error| explain(&dir, Some(&name), path, error))?;
        sync_directory(&dir)
    }

    /// Makes a directory, with its permissions from the first moment; its parent must exist and nothing may be there yet
    /// (`AlreadyExists`).
    pub fn create_directory(&self, path: &AbsPath, permissions: Permissions) -> io::Result<()> {
        let (dir, name) = self.writable_place(path)?;
        let (temporary, made) = Temporary::directory(&dir).map_err(|error| explain(&dir, None, path, error))?;
        change_owner(&made, permissions)?;
        rustix::fs::fchmod(&made, kernel_mode(permissions.mode))?;
        temporary.rename_to_new(&name).map_err(|error| explain(&dir, Some(&name), path, error))?;
        sync_directory(&dir)
    }

    /// Sets owner and group, then mode, of a file or directory (never of a link's target); only what differs is touched.
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
        let target = rustix::fs::openat(
            &dir,
            &name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let metadata = metadata_of(&target)?;
        match metadata.file_type {
            FileType::File | FileType::Directory => {}
            FileType::Symlink | FileType::Special => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a directory"));
            }
        }
        let owner_differs = metadata.uid != permissions.uid || metadata.gid != permissions.gid;
        if owner_differs {
            // Whoever may write here may have put another's file here under a second name.
            if metadata.file_type == FileType::File
                && metadata.n_links > 1
                && !resolve::only_we_may_write(&metadata_of(&dir)?)
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
            .map_err(|error| explain(&dir, Some(&name), path, error.into()))?;
        }
        let stripped = owner_differs && permissions.mode.bits() & 0o6000 != 0;
        if stripped || metadata.mode != permissions.mode {
            change_mode(&dir, &name, &target, permissions.mode)
                .map_err(|error| explain(&dir, Some(&name), path, error))?;
        }
        Ok(())
    }

    /// Removes a file, link or special file durably. `false` when there was nothing.
    pub fn remove_file(&self, path: &AbsPath) -> io::Result<bool> {
        self.remove(path, AtFlags::empty())
    }

    /// Removes an empty directory durably. `false` when there was nothing.
    pub fn remove_directory(&self, path: &AbsPath) -> io::Result<bool> {
        self.remove(path, AtFlags::REMOVEDIR)
    }

    /// Removes temporary files that a killed run left beside `path`. Returns how many.
    pub fn remove_leftovers(&self, path: &AbsPath) -> io::Result<usize> {
        let Some(Place::Entry { dir, .. }) = self.place(path)? else { return Ok(0) };
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

/// A temporary name in the target's own directory (the same file system, the same protection), removed unless it was renamed.
struct Temporary<'a> {
    dir: &'a OwnedFd,
    name: String,
    flags: AtFlags,
    renamed: bool,
}

impl<'a> Temporary<'a> {
    fn file(dir: &'a OwnedFd) -> io::Result<(Self, File)> {
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

    fn symlink(dir: &'a OwnedFd, target: &str) -> io::Result<Self> {
        let name = temporary_name();
        rustix::fs::symlinkat(target, dir, &name)?;
        Ok(Self { dir, name, flags: AtFlags::empty(), renamed: false })
    }

    fn directory(dir: &'a OwnedFd) -> io::Result<(Self, OwnedFd)> {
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
        let ours = metadata_of(&made)?.uid == rustix::process::geteuid().as_raw();
        if ours && names_in(&made, 1).is_ok_and(|names| names.is_empty()) {
            Ok((temporary, made))
        } else {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "someone else replaced the new directory meanwhile"))
        }
    }

    fn rename_to(mut self, name: &OsStr) -> io::Result<()> {
        rustix::fs::renameat(self.dir, &self.name, self.dir, name)?;
        self.renamed = true;
        Ok(())
    }

    fn rename_to_new(mut self, name: &OsStr) -> io::Result<()> {
        match rustix::fs::renameat_with(self.dir, &self.name, self.dir, name, RenameFlags::NOREPLACE) {
            // The file system does not know the flag: look first. A race with another writer replaces at most an empty directory.
            Err(Errno::INVAL | Errno::NOSYS) => {
                if metadata_at(self.dir, name)?.is_some() {
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
    format!("{TEMPORARY_PREFIX}{}{TEMPORARY_SUFFIX}", super::random_hex())
}

fn is_temporary(name: &OsStr) -> bool {
    name.to_str()
        .and_then(|name| name.strip_prefix(TEMPORARY_PREFIX)?.strip_suffix(TEMPORARY_SUFFIX))
        .is_some_and(|middle| middle.len() == 16 && middle.bytes().all(|b| b.is_ascii_hexdigit()))
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

/// Skips what is already so, because an unprivileged process may not even change an owner to itself everywhere.
fn change_owner(file: &impl std::os::fd::AsFd, permissions: Permissions) -> io::Result<()> {
    let metadata = metadata_of(file)?;
    if metadata.uid == permissions.uid && metadata.gid == permissions.gid {
        return Ok(());
    }
    rustix::fs::fchown(file, Some(Uid::from_raw(permissions.uid)), Some(Gid::from_raw(permissions.gid)))
        .map_err(io::Error::from)
}

/// Changes the mode of the inode behind an `O_PATH` descriptor. `fchmod` refuses such a descriptor, and `fchmodat2` is too
/// new; /proc names the very inode. Where /proc is not mounted the file is opened again and compared.
fn change_mode(dir: &OwnedFd, name: &OsStr, target: &OwnedFd, mode: Mode) -> io::Result<()> {
    let by_descriptor = format!("/proc/self/fd/{}", target.as_raw_fd());
    match rustix::fs::chmod(&by_descriptor, kernel_mode(mode)) {
        Err(Errno::NOENT) => {
            let opened = rustix::fs::openat(
                dir,
                name,
                OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )?;
            if metadata_of(&opened)?.identity != metadata_of(target)?.identity {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it was replaced meanwhile"));
            }
            rustix::fs::fchmod(&opened, kernel_mode(mode)).map_err(io::Error::from)
        }
        result => result.map_err(io::Error::from),
    }
}

fn kernel_mode(mode: Mode) -> rustix::fs::Mode {
    rustix::fs::Mode::from_raw_mode(mode.bits())
}

/// Makes a rename or an unlink durable. Needs a descriptor that is open for reading.
fn sync_directory(dir: &OwnedFd) -> io::Result<()> {
    rustix::fs::fsync(&readable(dir)?).map_err(io::Error::from)
}

fn readable(dir: &OwnedFd) -> io::Result<OwnedFd> {
    rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .map_err(io::Error::from)
}

fn names_in(dir: &OwnedFd, limit: usize) -> io::Result<Vec<OsString>> {
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

fn metadata_of(file: &impl std::os::fd::AsFd) -> io::Result<Metadata> {
    Ok(to_metadata(&rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?))
}

fn metadata_at(dir: &OwnedFd, name: &OsStr) -> io::Result<Option<Metadata>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS) {
        Ok(statx) => Ok(Some(to_metadata(&statx))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn to_metadata(statx: &Statx) -> Metadata {
    let bits = u32::from(statx.stx_mode);
    let file_type = match rustix::fs::FileType::from_raw_mode(bits) {
        rustix::fs::FileType::RegularFile => FileType::File,
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo
        | rustix::fs::FileType::Socket
        | rustix::fs::FileType::CharacterDevice
        | rustix::fs::FileType::BlockDevice
        | rustix::fs::FileType::Unknown => FileType::Special,
    };
    Metadata {
        file_type,
        mode: Mode::from_bits(bits),
        uid: statx.stx_uid,
        gid: statx.stx_gid,
        size: statx.stx_size,
        n_links: u64::from(statx.stx_nlink),
        identity: (rustix::fs::makedev(statx.stx_dev_major, statx.stx_dev_minor), statx.stx_ino),
        ctime_ns: i128::from(statx.stx_ctime.tv_sec) * 1_000_000_000 + i128::from(statx.stx_ctime.tv_nsec),
        immutable: statx.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND),
    }
}

/// Says what the kernel's error alone does not: that a flag or a mount is in the way.
fn explain(dir: &OwnedFd, name: Option<&OsStr>, path: &AbsPath, error: io::Error) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => {
            let is_immutable =
                |metadata: io::Result<Option<Metadata>>| metadata.is_ok_and(|m| m.is_some_and(|m| m.immutable));
            if name.is_some_and(|name| is_immutable(metadata_at(dir, name))) {
                let hint = "the immutable or append-only flag is set on it (`lsattr` shows it, `chattr -ia` clears it)";
                io::Error::new(error.kind(), hint)
            } else if is_immutable(metadata_of(dir).map(Some)) {
                let parent = path.parent().map(|parent| parent.to_string()).unwrap_or_default();
                let hint = format!("the immutable or append-only flag is set on its directory `{parent}`");
                io::Error::new(error.kind(), hint)
            } else {
                error
            }
        }
        Some(Errno::BUSY) => io::Error::new(error.kind(), "something is mounted on it, so it cannot be replaced"),
        Some(_) | None => error,
    }
}
