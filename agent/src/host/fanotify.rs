//! The kernel's fanotify interface, as far as the watcher needs it: inode marks on directories, and who did it.
//!
//! - It never asks for permission events, which make the writers of the whole host wait for this process.
//! - The queue is bounded: what does not fit becomes one overflow event, and the caller looks everywhere.
//! - Bytes of the kernel are taken apart in [`records`], which is safe code and holds no descriptor.
//!
//! Raw calls, because rustix has no fanotify, and nix 0.31 drops the records that name the directory and the writer.

#![expect(unsafe_code, reason = "no crate in use has these system calls with their records")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::fs::fstatvfs;
use rustix::io::Errno;

pub mod records;

use records::Records;

/// Reports the error behind a negative descriptor. Since Linux 6.13; not in libc yet.
const FAN_REPORT_FD_ERROR: libc::c_uint = 0x0000_2000;

/// What every group is opened with.
const BASE: libc::c_uint = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_REPORT_DFID_NAME;

/// Names in a directory. Never OPEN or ACCESS: reading must cost nothing. RENAME would say once more what MOVED_FROM and
/// MOVED_TO say.
const ENTRIES: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_MODIFY
    | libc::FAN_EVENT_ON_CHILD
    | ITSELF;

/// A directory itself.
const ITSELF: u64 = libc::FAN_ATTRIB | libc::FAN_DELETE_SELF | libc::FAN_MOVE_SELF | libc::FAN_ONDIR;

/// What a mark on a directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Names in it, and the directory itself.
    Entries,
    /// The directory itself.
    Itself,
}

impl Mark {
    fn mask(self) -> u64 {
        match self {
            Self::Entries => ENTRIES,
            Self::Itself => ITSELF,
        }
    }
}

/// Names an inode of a file system: the bytes with which events name it.
#[derive(Debug, Clone, Copy)]
pub struct Handle {
    bytes: [u8; Self::HEAD + Self::MAX],
    length: usize,
}

impl Handle {
    /// File system id, length and type.
    const HEAD: usize = 16;
    /// The kernel's own limit.
    const MAX: usize = 128;

    /// To be compared with [`Event::directory`].
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

/// One event.
#[derive(Debug)]
pub struct Event<'a> {
    /// `FAN_*`. An overflow says that events were lost, or could not be understood.
    pub mask: u64,
    /// The bytes of the [`Handle`] of the marked directory; empty for an overflow.
    pub directory: &'a [u8],
    /// The name in it; empty when the event is about the directory itself.
    pub name: &'a [u8],
    /// The process that caused it, as this process's namespace numbers it; 0 when it has no number there. The number may
    /// belong to another process by now, unless there is a `pidfd`.
    pub pid: u32,
    /// The process that caused it; `None` when it was gone at the time of reading, or the kernel cannot tell.
    pub pidfd: Option<OwnedFd>,
}

/// A fanotify group: a queue of events, and marks that feed it.
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
    handle_flags: libc::c_int,
}

impl Group {
    /// Opens a group that reports as much as kernel and privilege allow; which that is, is found out by trying.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` or `ENOSYS` before Linux 5.9, `EMFILE` when no group is left.
    pub fn open() -> io::Result<Self> {
        let mut last = io::Error::from(Errno::INVAL);
        for more in [libc::FAN_REPORT_PIDFD | FAN_REPORT_FD_ERROR, libc::FAN_REPORT_PIDFD, 0] {
            let event_flags = (libc::O_RDONLY | libc::O_CLOEXEC).cast_unsigned();
            // SAFETY: the call takes no pointer.
            let fd = unsafe { libc::fanotify_init(BASE | more, event_flags) };
            if fd >= 0 {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                return Ok(Self { fd, handle_flags: handle_flags() });
            }
            last = io::Error::last_os_error();
            // The kernel refuses flags that it does not know with EINVAL, and only with it.
            if last.raw_os_error() != Some(libc::EINVAL) {
                break;
            }
        }
        Err(last)
    }

    /// Adds to what a directory is marked for.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when no mark is left; `EOPNOTSUPP`, `ENODEV` or `EXDEV` where the file system cannot name its inodes.
    pub fn mark(&self, directory: BorrowedFd<'_>, mark: Mark) -> io::Result<()> {
        self.change(libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR, mark.mask(), directory)
    }

    /// Removes the mark of a directory.
    pub fn unmark(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        self.change(libc::FAN_MARK_REMOVE | libc::FAN_MARK_ONLYDIR, ENTRIES, directory)
    }

    /// Removes all marks of inodes. Events that are queued already stay.
    pub fn flush(&self) -> io::Result<()> {
        self.change(libc::FAN_MARK_FLUSH, 0, rustix::fs::CWD)
    }

    fn change(&self, flags: libc::c_uint, mask: u64, directory: BorrowedFd<'_>) -> io::Result<()> {
        // `.` and not no path at all, so that the descriptor may be one of O_PATH.
        // SAFETY: the path is a C string that outlives the call; both descriptors are open for as long.
        let result =
            unsafe { libc::fanotify_mark(self.fd.as_raw_fd(), flags, mask, directory.as_raw_fd(), c".".as_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// How events will name a directory.
    pub fn handle(&self, directory: BorrowedFd<'_>) -> io::Result<Handle> {
        let id = fstatvfs(directory)?.f_fsid;
        let mut raw = RawHandle::new();
        name_to_handle(directory.as_raw_fd(), c"", &mut raw, libc::AT_EMPTY_PATH | self.handle_flags)?;
        let mut handle = Handle { bytes: [0; Handle::HEAD + Handle::MAX], length: 0 };
        // The kernel's two 32-bit halves, the first of which rustix hands out as the lower one.
        let [low, high] = [id & u64::from(u32::MAX), id >> 32].map(|half| u32::try_from(half).unwrap_or(0));
        let parts: [&[u8]; 5] = [
            &low.to_ne_bytes(),
            &high.to_ne_bytes(),
            &raw.head.handle_bytes.to_ne_bytes(),
            &raw.head.handle_type.to_ne_bytes(),
            raw.space.get(..usize::try_from(raw.head.handle_bytes).unwrap_or(Handle::MAX)).unwrap_or(&raw.space),
        ];
        for part in parts {
            for byte in part {
                let place = handle.bytes.get_mut(handle.length).ok_or(Errno::OVERFLOW)?;
                *place = *byte;
                handle.length += 1;
            }
        }
        Ok(handle)
    }

    /// Reads as many events as fit into `buffer` and are there. Returns how many; none is not an error.
    ///
    /// Each event may open a descriptor, so the size of the buffer also bounds how many there are at a time: an event takes
    /// at least 64 bytes.
    pub fn read(&self, buffer: &mut [u8], mut on_event: impl FnMut(Event<'_>)) -> io::Result<u64> {
        let length = match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(errno) => return Err(errno.into()),
        };
        let mut n_events = 0;
        for record in Records::new(buffer.get(..length).unwrap_or_default()) {
            n_events += 1;
            let Ok(record) = record else {
                on_event(Event { mask: libc::FAN_Q_OVERFLOW, directory: &[], name: &[], pid: 0, pidfd: None });
                break;
            };
            let [pidfd, file] = [record.pidfd, record.fd].map(|fd| {
                // SAFETY: the kernel has made this descriptor for us in the read above, and it is named in one event only.
                (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
            });
            // A group that reports names opens no files.
            drop(file);
            on_event(Event {
                mask: record.mask,
                directory: record.directory,
                name: record.name,
                pid: u32::try_from(record.pid).unwrap_or(0),
                pidfd,
            });
        }
        Ok(n_events)
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A group that another descriptor leads to.
impl From<OwnedFd> for Group {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, handle_flags: handle_flags() }
    }
}

#[repr(C)]
struct RawHandle {
    head: libc::file_handle,
    space: [u8; Handle::MAX],
}

impl RawHandle {
    fn new() -> Self {
        let length = u32::try_from(Handle::MAX).expect("the limit is small");
        let head = libc::file_handle { handle_bytes: length, handle_type: 0, f_handle: [] };
        Self { head, space: [0; Handle::MAX] }
    }
}

/// Handles like those in events can be had since Linux 6.5. Before, they are the same wherever events can be had at all.
fn handle_flags() -> libc::c_int {
    let known = name_to_handle(libc::AT_FDCWD, c"/", &mut RawHandle::new(), libc::AT_HANDLE_FID);
    if known.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)) { 0 } else { libc::AT_HANDLE_FID }
}

fn name_to_handle(
    directory: libc::c_int,
    path: &std::ffi::CStr,
    raw: &mut RawHandle,
    flags: libc::c_int,
) -> io::Result<()> {
    let mut mount = 0;
    // SAFETY: `raw` is laid out as the kernel expects, with as much space behind its head as the head says; the path is a C
    // string; all outlive the call.
    let result =
        unsafe { libc::name_to_handle_at(directory, path.as_ptr(), ptr::from_mut(raw).cast(), &raw mut mount, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
