//! The kernel's inotify interface: one instance, counted watches, events read in large batches.
//!
//! Watches are armed through a descriptor that was opened without following a link, so that what is watched is exactly
//! what was looked at, whatever happens to its name meanwhile.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// Identifies a watched inode within the instance. The kernel does not reuse numbers.
pub(super) type Wd = i32;

/// Size of the read buffer: thousands of events at once.
const BUFFER: usize = 256 * 1024;

/// What is armed on a directory that a spine runs through. Never OPEN or ACCESS: reading must cost nothing.
const DIRECTORY: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// What is armed on a directory for its own sake.
const DIRECTORY_ITSELF: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// What is armed on a regular file that can be changed through a name in an unwatched directory.
const FILE_ITSELF: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// What a watch is for; it selects the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Names in a directory.
    Entries,
    /// A directory's own attributes.
    DirectoryItself,
    /// A regular file's own content and attributes.
    FileItself,
}

/// One event. The name is empty when it concerns the watched inode itself.
#[derive(Debug)]
pub(super) struct Event<'a> {
    pub(super) wd: Wd,
    pub(super) flags: ReadFlags,
    pub(super) name: &'a [u8],
}

/// Why a watch could not be armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArmError {
    /// No instance could be had.
    NoInstance(Errno),
    /// No more watches can be had.
    NoWatches,
    /// The kernel refused this one.
    Refused(Errno),
}

impl std::fmt::Display for ArmError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoInstance(Errno::MFILE) => {
                f.write_str("no inotify instance left; raise fs.inotify.max_user_instances")
            }
            Self::NoInstance(errno) => write!(f, "no inotify instance: {errno}"),
            Self::NoWatches => f.write_str("no inotify watch left; raise fs.inotify.max_user_watches"),
            Self::Refused(errno) => write!(f, "inotify refuses: {errno}"),
        }
    }
}

/// The instance and its watches.
#[derive(Debug)]
pub(super) struct Source {
    instance: Result<OwnedFd, Errno>,
    buffer: Vec<MaybeUninit<u8>>,
    held: HashSet<Wd>,
    max_watches: usize,
    /// Scratch for the path of a descriptor.
    link: String,
}

impl Source {
    /// Opens the instance. Without one every arming fails and says why.
    pub(super) fn open(max_watches: usize) -> Self {
        let instance = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        let buffer = vec![MaybeUninit::uninit(); BUFFER];
        Self { instance, buffer, held: HashSet::new(), max_watches, link: String::new() }
    }

    /// Tries again to get an instance, if there is none.
    pub(super) fn reopen(&mut self) {
        if self.instance.is_err() {
            self.instance = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        }
    }

    /// What to poll for events.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.instance.as_ref().ok().map(AsFd::as_fd)
    }

    /// Watches held now.
    pub(super) fn n_watches(&self) -> usize {
        self.held.len()
    }

    /// Watches the inode behind `target`, in addition to what it is already watched for. Idempotent.
    pub(super) fn arm(&mut self, target: BorrowedFd<'_>, purpose: Purpose) -> Result<Wd, ArmError> {
        let instance = self.instance.as_ref().map_err(|errno| ArmError::NoInstance(*errno))?;
        let flags = match purpose {
            Purpose::Entries => DIRECTORY,
            Purpose::DirectoryItself => DIRECTORY_ITSELF,
            Purpose::FileItself => FILE_ITSELF,
        };
        self.link.clear();
        write!(self.link, "/proc/self/fd/{}", target.as_raw_fd()).expect("writing to a String cannot fail");
        let wd = match inotify::add_watch(instance, self.link.as_str(), flags | WatchFlags::MASK_ADD) {
            Ok(wd) => wd,
            Err(Errno::NOSPC | Errno::NOMEM) => return Err(ArmError::NoWatches),
            Err(errno) => return Err(ArmError::Refused(errno)),
        };
        if !self.held.contains(&wd) && self.held.len() >= self.max_watches {
            remove(instance, wd);
            return Err(ArmError::NoWatches);
        }
        self.held.insert(wd);
        Ok(wd)
    }

    /// Gives a watch back.
    pub(super) fn disarm(&mut self, wd: Wd) {
        if self.held.remove(&wd)
            && let Ok(instance) = &self.instance
        {
            remove(instance, wd);
        }
    }

    /// Forgets a watch that the kernel has removed.
    pub(super) fn forget(&mut self, wd: Wd) {
        self.held.remove(&wd);
    }

    /// Reads one buffer full of events. Returns how many.
    pub(super) fn read(&mut self, mut on_event: impl FnMut(&Event<'_>)) -> Result<u64, Errno> {
        let Ok(instance) = &self.instance else { return Ok(0) };
        let mut events = inotify::Reader::new(instance, &mut self.buffer);
        let mut n = 0;
        loop {
            match events.next() {
                Ok(event) => {
                    let name = event.file_name().map_or(&[][..], std::ffi::CStr::to_bytes);
                    on_event(&Event { wd: event.wd(), flags: event.events(), name });
                    n += 1;
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(n),
                Err(errno) => return Err(errno),
            }
            if events.is_buffer_empty() {
                return Ok(n);
            }
        }
    }
}

/// A watch that is already gone is not an error: the kernel removes it when its inode goes.
fn remove(instance: &OwnedFd, wd: Wd) {
    if let Err(errno) = inotify::remove_watch(instance, wd)
        && errno != Errno::INVAL
    {
        tracing::debug!(wd, %errno, "cannot remove an inotify watch");
    }
}
