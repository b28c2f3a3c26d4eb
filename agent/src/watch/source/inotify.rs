//! The kernel's inotify interface: one instance, counted watches, events read in large batches.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::{ArmError, Event, Flags, Purpose, Wd};

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

/// The instance and its watches.
#[derive(Debug)]
pub(super) struct Inotify {
    instance: Result<OwnedFd, Errno>,
    /// Which instance it is: each numbers its watches from one.
    number: u32,
    buffer: Vec<MaybeUninit<u8>>,
    held: HashSet<Wd>,
    /// Scratch for the path of a descriptor.
    link: String,
}

impl Inotify {
    /// Opens the instance. Without one every arming fails and says why.
    pub(super) fn open() -> Self {
        let instance = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        let buffer = vec![MaybeUninit::uninit(); BUFFER];
        Self { instance, number: 0, buffer, held: HashSet::new(), link: String::new() }
    }

    /// Tries again to get an instance, if there is none.
    pub(super) fn reopen(&mut self) {
        if self.instance.is_err() {
            self.instance = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        }
    }

    /// Begins anew with another instance. The old one goes first: there may be no second.
    pub(super) fn renew(&mut self) {
        self.instance = Err(Errno::MFILE);
        self.number += 1;
        self.held.clear();
        self.reopen();
    }

    /// What to poll for events.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.instance.as_ref().ok().map(AsFd::as_fd)
    }

    /// Watches held now.
    pub(super) fn n_watches(&self) -> usize {
        self.held.len()
    }

    /// Watches the inode behind `target`, if it is watched already or there is `room` for one more.
    pub(super) fn arm(&mut self, target: BorrowedFd<'_>, purpose: Purpose, room: usize) -> Result<Wd, ArmError> {
        let instance = self.instance.as_ref().map_err(|errno| ArmError::NoInstance(*errno))?;
        let flags = match purpose {
            Purpose::Entries => DIRECTORY,
            Purpose::DirectoryItself => DIRECTORY_ITSELF,
            Purpose::FileItself => FILE_ITSELF,
        };
        self.link.clear();
        write!(self.link, "/proc/self/fd/{}", target.as_raw_fd()).expect("writing to a String cannot fail");
        let number = match inotify::add_watch(instance, self.link.as_str(), flags | WatchFlags::MASK_ADD) {
            Ok(number) => number,
            Err(Errno::NOSPC | Errno::NOMEM) => return Err(ArmError::NoWatches),
            Err(errno) => return Err(ArmError::Refused(errno)),
        };
        let wd = Wd::inotify(self.number, number);
        if !self.held.contains(&wd) && room == 0 {
            remove(instance, number);
            return Err(ArmError::NoWatches);
        }
        self.held.insert(wd);
        Ok(wd)
    }

    /// Gives a watch back.
    pub(super) fn disarm(&mut self, wd: Wd) {
        if self.held.remove(&wd)
            && let Some(number) = wd.within(self.number)
            && let Ok(instance) = &self.instance
        {
            remove(instance, number);
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
                    let wd = Wd::inotify(self.number, event.wd());
                    on_event(&Event::new(wd, flags(event.events()), name, None));
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

fn flags(events: ReadFlags) -> Flags {
    let mut flags = Flags::from_kernel(events.bits());
    if events.contains(ReadFlags::UNMOUNT) {
        flags = flags.union(Flags::UNMOUNT);
    }
    if events.contains(ReadFlags::IGNORED) {
        flags = flags.union(Flags::IGNORED);
    }
    flags
}

/// A watch that is already gone is not an error: the kernel removes it when its inode goes.
fn remove(instance: &OwnedFd, number: i32) {
    if let Err(errno) = inotify::remove_watch(instance, number)
        && errno != Errno::INVAL
    {
        tracing::debug!(number, %errno, "cannot remove an inotify watch");
    }
}
