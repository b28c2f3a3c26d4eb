//! Marks on directories, by the handles that events name them with.
//!
//! Unlike inotify, the kernel says nothing when a mark goes with its file system, and a mark can only be removed through its
//! directory. So arming marks again even what is marked already, and what can no longer be found stays marked until there is so
//! much of it that a new group is worth it. No descriptor of a directory is kept: it would keep its file system from being
//! unmounted.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::{Event, Flags, Purpose, Wd, Writer};
use crate::host::fanotify::{Group, Handle, Mark};

/// Size of the read buffer. Each event of it may open a descriptor, 64 bytes an event at least: together they must stay far
/// below the limit of open files, or the rest of the agent could open none.
const BUFFER: usize = 16 * 1024;

/// Marks that could not be removed; beyond them the group is renewed.
const MAX_LITTER: usize = 64;

/// The group and its marks.
#[derive(Debug)]
pub(super) struct Fanotify {
    group: Group,
    buffer: Vec<u8>,
    by_handle: HashMap<Box<[u8]>, Wd>,
    marks: HashMap<Wd, Marked>,
    next: u64,
    n_litter: usize,
}

#[derive(Debug)]
struct Marked {
    handle: Box<[u8]>,
    /// Where it was when it was marked, for finding it again.
    path: Option<PathBuf>,
}

impl Fanotify {
    pub(super) fn open() -> io::Result<Self> {
        let group = Group::open()?;
        Ok(Self {
            group,
            buffer: vec![0; BUFFER],
            by_handle: HashMap::new(),
            marks: HashMap::new(),
            next: 0,
            n_litter: 0,
        })
    }

    pub(super) fn n_watches(&self) -> usize {
        self.marks.len()
    }

    pub(super) fn is_littered(&self) -> bool {
        self.n_litter > MAX_LITTER
    }

    /// `None` when it is for another source: not a directory, or refused for any reason.
    pub(super) fn arm(&mut self, target: BorrowedFd<'_>, purpose: Purpose, room: usize) -> Option<Wd> {
        let mark = match purpose {
            Purpose::Entries => Mark::Entries,
            Purpose::DirectoryItself => Mark::Itself,
            Purpose::FileItself => return None,
        };
        let handle = self.group.handle(target).ok()?;
        let known = self.by_handle.get(handle.as_bytes()).copied();
        if known.is_none() && room == 0 {
            return None;
        }
        // Even if it is known: the kernel may have dropped the mark, and says so to nobody.
        if self.group.mark(target, mark).is_err() {
            return None;
        }
        Some(known.unwrap_or_else(|| self.insert(target, &handle)))
    }

    fn insert(&mut self, target: BorrowedFd<'_>, handle: &Handle) -> Wd {
        let wd = Wd::fanotify(self.next);
        self.next += 1;
        let handle: Box<[u8]> = handle.as_bytes().into();
        let path = std::fs::read_link(format!("/proc/self/fd/{}", target.as_raw_fd())).ok();
        self.by_handle.insert(handle.clone(), wd);
        self.marks.insert(wd, Marked { handle, path });
        wd
    }

    pub(super) fn disarm(&mut self, wd: Wd) {
        if let Some(marked) = self.remove(wd)
            && self.unmark(&marked).is_err()
        {
            self.n_litter += 1;
        }
    }

    pub(super) fn forget(&mut self, wd: Wd) {
        self.remove(wd);
    }

    fn remove(&mut self, wd: Wd) -> Option<Marked> {
        let marked = self.marks.remove(&wd)?;
        self.by_handle.remove(&marked.handle);
        Some(marked)
    }

    fn unmark(&self, marked: &Marked) -> io::Result<()> {
        let path = marked.path.as_ref().ok_or(Errno::NOENT)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        if self.group.handle(directory.as_fd())?.as_bytes() != &*marked.handle {
            return Err(Errno::STALE.into());
        }
        match self.group.unmark(directory.as_fd()) {
            // The kernel was faster.
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
            result => result,
        }
    }

    /// Reads one buffer full of events. Returns how many.
    pub(super) fn read(&mut self, mut on_event: impl FnMut(&Event<'_>)) -> Result<u64, Errno> {
        let Self { group, buffer, by_handle, .. } = self;
        let result = group.read(buffer, |event| {
            // The flags that are asked for fit into half of it.
            let mut flags = Flags::from_kernel(u32::try_from(event.mask & u64::from(u32::MAX)).unwrap_or(0));
            if event.directory.is_empty() {
                // Lost events, or an inode that the kernel could not name.
                flags = Flags::OVERFLOW;
            }
            if flags.intersects(Flags::OVERFLOW) {
                on_event(&Event::new(Wd::fanotify(u64::MAX), flags, &[], None));
                return;
            }
            // Of a directory that is wanted no longer, or of one in a watched directory.
            let Some(wd) = by_handle.get(event.directory) else { return };
            if flags.intersects(Flags::DELETE_SELF) {
                // The kernel removes the mark together with the inode.
                flags = flags.union(Flags::IGNORED);
            }
            let writer = Writer { pid: event.pid, pidfd: event.pidfd };
            on_event(&Event::new(*wd, flags, event.name, Some(writer)));
        });
        result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

impl AsFd for Fanotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}
