//! The root directory handle: every path of the managed host is resolved beneath it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::resource::{AbsPath, Mode};

/// The root of a managed file system: `/` in production, a temporary directory in tests, an image tree when baking.
///
/// No operation leaves it through a symbolic link or `..`. A symbolic link among the *parents* of a path is followed,
/// beneath the root, only when it and its directory belong to root (or to the agent's own user) and nobody else may write
/// there; otherwise the operation fails. The last component is never followed.
#[derive(Debug)]
pub struct Root {
    #[expect(dead_code, reason = "written next")]
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

impl Root {
    /// Opens a root directory.
    pub fn open(_path: &std::path::Path) -> io::Result<Self> {
        unimplemented!()
    }

    /// Where it was opened, for messages and for tools that take a root themselves.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Whether this is the running system's own root.
    pub fn is_live(&self) -> bool {
        self.path == std::path::Path::new("/")
    }

    /// Metadata of what is at `path`; `None` when the path or one of its parents does not exist.
    pub fn metadata(&self, _path: &AbsPath) -> io::Result<Option<Metadata>> {
        unimplemented!()
    }

    /// Reads a regular file of at most `limit` bytes, with the metadata of the very inode that was read. `None` when absent;
    /// an error of kind `InvalidInput` when it is no regular file, `FileTooLarge` when it is longer.
    pub fn read(&self, _path: &AbsPath, _limit: u64) -> io::Result<Option<(Vec<u8>, Metadata)>> {
        unimplemented!()
    }

    /// Reads a symbolic link's target; `None` when absent, `InvalidInput` when it is no link.
    pub fn read_link(&self, _path: &AbsPath) -> io::Result<Option<PathBuf>> {
        unimplemented!()
    }

    /// Puts a regular file with this content and these permissions at `path`, atomically and durably: written to a temporary
    /// name in the same directory, owner before mode, fsync, rename, fsync of the directory. Replaces a file, link or special
    /// file; a directory there is an error (`IsADirectory`). Extended attributes of a replaced regular file are carried over.
    pub fn replace_file(&self, _path: &AbsPath, _content: &[u8], _permissions: Permissions) -> io::Result<()> {
        unimplemented!()
    }

    /// Puts a symbolic link at `path`, atomically and durably. A directory there is an error.
    pub fn replace_symlink(&self, _path: &AbsPath, _target: &str) -> io::Result<()> {
        unimplemented!()
    }

    /// Makes a directory, with its permissions from the first moment; its parent must exist.
    pub fn create_directory(&self, _path: &AbsPath, _permissions: Permissions) -> io::Result<()> {
        unimplemented!()
    }

    /// Sets owner and group, then mode, of a file or directory (never of a link's target); only what differs is touched.
    pub fn set_permissions(&self, _path: &AbsPath, _permissions: Permissions) -> io::Result<()> {
        unimplemented!()
    }

    /// Removes a file, link or special file durably. `false` when there was nothing.
    pub fn remove_file(&self, _path: &AbsPath) -> io::Result<bool> {
        unimplemented!()
    }

    /// Removes an empty directory durably. `false` when there was nothing.
    pub fn remove_directory(&self, _path: &AbsPath) -> io::Result<bool> {
        unimplemented!()
    }

    /// Removes temporary files that a killed run left beside `path`. Returns how many.
    pub fn remove_leftovers(&self, _path: &AbsPath) -> io::Result<usize> {
        unimplemented!()
    }
}
