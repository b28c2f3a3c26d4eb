//! What is known of an inode besides its content, and when that is as declared.
//!
//! Reading it changes nothing and never waits: nothing is opened for reading that is not a regular file or a directory.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, OFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::attributes::{Extras, Inode};
use crate::resource::Mode;

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
    /// Permission bits. Where there is an access control list, those of the group are its mask.
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
    /// Whether something is mounted on the very path, as containers do with single files. `false` before Linux 5.8.
    pub is_mount: bool,
    /// Flags that refuse changes.
    pub flags: Flags,
    /// What grants more than owner, group and mode do. Of a link only the label is read, of a special file nothing.
    pub extras: Extras,
}

impl Metadata {
    /// Whether everything besides the content is as declared. This is the one definition of it: a file is in sync when its
    /// content is too, however it was looked at.
    pub fn is_as_declared(&self, permissions: Permissions) -> bool {
        self.uid == permissions.uid
            && self.gid == permissions.gid
            && self.mode == permissions.mode
            && self.flags.is_empty()
            && self.extras.is_empty()
    }
}

/// Inode flags that refuse changes even to root, until they are cleared: `chattr +i` and `+a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// Nothing may change.
    pub immutable: bool,
    /// A file may only grow, a directory only gain names.
    pub append_only: bool,
}

impl Flags {
    /// Whether none is set.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl std::fmt::Display for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match (self.immutable, self.append_only) {
            (false, false) => "none",
            (true, false) => "immutable",
            (false, true) => "append-only",
            (true, true) => "immutable, append-only",
        })
    }
}

/// Owner, group and mode to give to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permissions {
    /// Owner id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits.
    pub mode: Mode,
}

/// Looks at an open file or directory, without its extras.
pub(crate) fn stat_of(file: &impl AsFd) -> io::Result<Metadata> {
    Ok(to_metadata(&rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?))
}

/// Looks at a name, without its extras. One system call.
pub(crate) fn stat_at(dir: &impl AsFd, name: &OsStr) -> io::Result<Option<Metadata>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS) {
        Ok(statx) => Ok(Some(to_metadata(&statx))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Id of the mount that an open file is on.
pub(crate) fn mount_of(file: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// Everything but the label about a name.
pub(crate) fn metadata_at(dir: &impl AsFd, name: &OsStr) -> io::Result<Option<Metadata>> {
    match open_path(dir, name) {
        Ok(target) => metadata_of_path(dir, name, &target).map(Some),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Everything but the label about what an `O_PATH` descriptor is open on; `dir` and `name` are where it was found.
pub(super) fn metadata_of_path(dir: &impl AsFd, name: &OsStr, target: &OwnedFd) -> io::Result<Metadata> {
    let mut metadata = stat_of(target)?;
    match metadata.file_type {
        FileType::File | FileType::Directory => {
            metadata.extras = through(dir, name, target, Extras::of)?;
        }
        FileType::Symlink | FileType::Special => {}
    }
    Ok(metadata)
}

/// Everything but the label about a file or directory that is open for reading.
pub(crate) fn metadata_of_open(file: &impl AsFd) -> io::Result<Metadata> {
    let mut metadata = stat_of(file)?;
    metadata.extras = Extras::of(&Inode::Open(file.as_fd()))?;
    Ok(metadata)
}

/// Opens a name without opening what it names: neither a device nor a FIFO notices.
pub(super) fn open_path(dir: &impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty())
}

/// Does something with the inode behind an `O_PATH` descriptor that the kernel does only through a path: /proc names the
/// very inode. Where /proc is not mounted the file is opened again and compared.
pub(super) fn through<T>(
    dir: &impl AsFd,
    name: &OsStr,
    target: &OwnedFd,
    operation: impl Fn(&Inode<'_>) -> io::Result<T>,
) -> io::Result<T> {
    match operation(&Inode::behind(target)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            operation(&Inode::Open(open_again(dir, name, target)?.as_fd()))
        }
        result => result,
    }
}

/// Opens for reading what an `O_PATH` descriptor is open on; somebody else's thing that came there meanwhile is an error.
pub(super) fn open_again(dir: &impl AsFd, name: &OsStr, target: &OwnedFd) -> io::Result<OwnedFd> {
    let opened = rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    if stat_of(&opened)?.identity == stat_of(target)?.identity {
        Ok(opened)
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "it was replaced meanwhile"))
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
        is_mount: statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        flags: Flags {
            immutable: statx.stx_attributes.contains(StatxAttributes::IMMUTABLE),
            append_only: statx.stx_attributes.contains(StatxAttributes::APPEND),
        },
        extras: Extras::default(),
    }
}
