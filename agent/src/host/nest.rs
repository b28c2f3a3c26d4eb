//! A directory with one file in it that the agent touches, to see whether it is told of it.
//!
//! Nothing in it matters to anybody: it is made where it is missing, and never removed.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, openat, utimensat};
use rustix::io::Errno;

/// The name of the file.
pub const EGG: &str = "touched-to-test-the-watches";

/// The directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nest {
    path: PathBuf,
}

impl Nest {
    /// At an absolute path, as this process sees it. Nothing is made yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes directory and file where they are missing. Returns an `O_PATH` descriptor of the directory.
    pub fn open(&self) -> io::Result<OwnedFd> {
        match std::fs::DirBuilder::new().mode(0o700).create(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(CWD, &self.path, flags, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&directory, EGG, flags, Mode::RUSR | Mode::WUSR) {
            Ok(_) | Err(Errno::EXIST) => Ok(directory),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives the file the present time, which is one event.
    pub fn touch(&self) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        Ok(utimensat(CWD, self.path.join(EGG), &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}
