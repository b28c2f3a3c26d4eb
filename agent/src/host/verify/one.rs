//! One file at a time.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode as KernelMode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::{Answer, Entry, Root, Seen};
use crate::host::root::{Noteworthy, noteworthy};
use crate::resource::Content;

/// Bytes that are read at once.
pub(super) const CHUNK: usize = 128 * 1024;

/// The kernel's limit of a list of attribute names.
const MAX_NAMES: usize = 64 * 1024;

const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID);

/// Never waits, never follows, never becomes a controlling terminal, and leaves no trace in the access time.
pub(super) const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::NOATIME)
    .union(OFlags::CLOEXEC);

/// Verifies one file after the other, keeping the last directory open and reusing its buffers.
///
/// It is to be dropped at the end of a pass: a directory that it keeps open may be replaced meanwhile.
#[derive(Debug)]
pub struct Verifier<'a> {
    root: &'a Root,
    here: Option<Directory>,
    buffers: Buffers,
}

impl<'a> Verifier<'a> {
    /// Opens nothing yet.
    pub fn new(root: &'a Root) -> Self {
        Self { root, here: None, buffers: Buffers::new() }
    }

    /// Reads what is at the entry's path and compares it.
    pub fn verify(&mut self, entry: &Entry) -> Answer {
        let (directory, name) = entry.split();
        let here = Directory::enter(&mut self.here, self.root, directory);
        match &here.at {
            At::Open(dir) => {
                let answer = verify_at(dir.as_fd(), OsStr::from_bytes(name), entry, &mut self.buffers);
                super::with_label(self.root, entry, answer)
            }
            At::Nothing => Answer::Differs,
            At::Unknown(errno) => Answer::Unknown(*errno),
        }
    }

    /// Looks at the entry's path without opening what is there; `None` when nothing is.
    pub fn look(&mut self, entry: &Entry) -> Result<Option<Seen>, Errno> {
        let (directory, name) = entry.split();
        let here = Directory::enter(&mut self.here, self.root, directory);
        match &here.at {
            At::Open(dir) => match look_at(dir.as_fd(), OsStr::from_bytes(name)) {
                Ok(seen) => Ok(Some(seen)),
                Err(Errno::NOENT) => Ok(None),
                Err(errno) => Err(errno),
            },
            At::Nothing => Ok(None),
            At::Unknown(errno) => Err(*errno),
        }
    }

    /// Whether the last entry's directory is on a file system that keeps everything in memory, and so never writes anything
    /// back. Unless that is certain it is not.
    pub(crate) fn is_in_memory(&self) -> bool {
        const TMPFS: i64 = 0x0102_1994;
        const RAMFS: i64 = 0x8584_58f6;
        match self.here.as_ref().map(|here| &here.at) {
            Some(At::Open(dir)) => rustix::fs::fstatfs(dir).is_ok_and(|found| [TMPFS, RAMFS].contains(&found.f_type)),
            Some(At::Nothing | At::Unknown(_)) | None => false,
        }
    }
}

/// Memory that is used again for each file.
#[derive(Debug)]
pub struct Buffers {
    content: Vec<u8>,
    names: Vec<u8>,
}

impl Buffers {
    /// The kernel gives pages of it only as they are used.
    pub fn new() -> Self {
        Self { content: vec![0; CHUNK], names: vec![0; MAX_NAMES] }
    }
}

impl Buffers {
    pub(super) fn only_declared(&mut self, file: &OwnedFd) -> Result<bool, Errno> {
        has_only_declared_attributes(file, &mut self.names)
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self::new()
    }
}

/// Verifies the name `name` in a directory that is open already. What the host's policy says of labels is left out: only a
/// [`Verifier`] knows it.
pub fn verify_at(dir: BorrowedFd<'_>, name: &OsStr, entry: &Entry, buffers: &mut Buffers) -> Answer {
    // Looked at before it is opened, because opening a device can act on it.
    match look_at(dir, name) {
        Ok(seen) if seen.may_be(entry) => {}
        Ok(_) => return Answer::Differs,
        Err(errno) => return absent_or_unknown(errno),
    }
    match open(dir, name) {
        Ok(file) => verify_open(&file, entry, buffers),
        Err(errno) => absent_or_unknown(errno),
    }
}

/// Verifies a file that was opened for reading and not read yet.
pub(super) fn verify_open(file: &OwnedFd, entry: &Entry, buffers: &mut Buffers) -> Answer {
    let seen = match seen_of(file) {
        // It may have been replaced since it was looked at.
        Ok(seen) if seen.may_be(entry) => seen,
        Ok(_) => return Answer::Differs,
        Err(errno) => return Answer::Unknown(errno),
    };
    match has_content(file, &entry.content, &mut buffers.content)
        .and_then(|equal| if equal { has_only_declared_attributes(file, &mut buffers.names) } else { Ok(false) })
    {
        Ok(true) => Answer::InSync(seen),
        Ok(false) => Answer::Differs,
        Err(errno) => Answer::Unknown(errno),
    }
}

pub(super) fn seen_of(file: &OwnedFd) -> Result<Seen, Errno> {
    rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, WANTED).map(|statx| Seen::from(&statx))
}

/// Looks at a name without opening it.
pub(super) fn look_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Seen, Errno> {
    statx_at(dir, name).map(|statx| Seen::from(&statx))
}

/// Opens what was seen to be a regular file.
pub(super) fn open(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    match rustix::fs::openat(dir, name, FLAGS, KernelMode::empty()) {
        // Only the owner and a privileged process may leave the access time alone.
        Err(Errno::PERM) => rustix::fs::openat(dir, name, FLAGS - OFlags::NOATIME, KernelMode::empty()),
        result => result,
    }
}

/// What an error of looking or opening says about the name.
pub(super) fn absent_or_unknown(errno: Errno) -> Answer {
    match errno {
        // It is gone, or it has become a link, a socket or a device without a driver since it was looked at.
        Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NODEV => Answer::Differs,
        errno => Answer::Unknown(errno),
    }
}

fn statx_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Statx, Errno> {
    rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, WANTED)
}

/// Whether the file consists of exactly these bytes. One byte more than is left is asked for, so that a file that is longer
/// shows it and one that is not needs no second read.
fn has_content(file: &OwnedFd, content: &Content, buffer: &mut [u8]) -> Result<bool, Errno> {
    let mut comparison = content.compare();
    loop {
        let length = buffer.len().min(comparison.n_left().saturating_add(1));
        let asked = buffer.get_mut(..length).unwrap_or_default();
        let n_read = match rustix::io::read(file, asked) {
            Ok(n_read) => n_read,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        if !comparison.take(buffer.get(..n_read).unwrap_or_default()) {
            return Ok(false);
        }
        // A regular file gives less than was asked for only at its end.
        if n_read == 0 || (comparison.n_left() == 0 && n_read < length) {
            return Ok(comparison.is_equal());
        }
    }
}

/// Whether no attribute grants what is not declared.
fn has_only_declared_attributes(file: &OwnedFd, names: &mut [u8]) -> Result<bool, Errno> {
    let n_names = match rustix::fs::flistxattr(file, &mut *names) {
        Ok(n_names) => n_names,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno),
    };
    Ok(noteworthy(names.get(..n_names).unwrap_or_default()) == Noteworthy::default())
}

/// The directory of the last entry.
#[derive(Debug)]
pub(super) struct Directory {
    path: Vec<u8>,
    pub(super) at: At,
}

/// What a directory's path led to.
#[derive(Debug)]
pub(super) enum At {
    Open(OwnedFd),
    Nothing,
    Unknown(Errno),
}

impl Directory {
    fn enter<'d>(here: &'d mut Option<Self>, root: &Root, path: &[u8]) -> &'d Self {
        if here.as_ref().is_some_and(|here| here.path != path) {
            *here = None;
        }
        here.get_or_insert_with(|| Self { path: path.to_vec(), at: At::open(root, path) })
    }
}

impl At {
    /// Opens a directory by the rules of the root; the empty path is the root itself.
    pub(super) fn open(root: &Root, path: &[u8]) -> Self {
        match root.directory(Path::new(OsStr::from_bytes(path))) {
            Ok(Some(dir)) => Self::Open(dir),
            Ok(None) => Self::Nothing,
            Err(error) => Self::Unknown(errno_of(&error)),
        }
    }
}

pub(super) fn errno_of(error: &io::Error) -> Errno {
    // The root's own refusal to follow a link that others may change has no number.
    Errno::from_io_error(error).unwrap_or(Errno::LOOP)
}
