//! What the kernel tells about a process behind a descriptor, in one call, even when the process has ended meanwhile.

#![expect(unsafe_code, reason = "rustix does not have this call")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A process, as the kernel knew it at the time of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Number of its control group: the inode of the directory in the unified hierarchy.
    pub cgroup: Option<u64>,
    /// Its numbers and owners; `None` when it was waited for already.
    pub identity: Option<Identity>,
}

/// A process that has not been waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its number, in this process's namespace.
    pub pid: u32,
    /// The number of its parent.
    pub parent: u32,
    /// The user that it is.
    pub uid: u32,
    /// The user that it acts as.
    pub effective_uid: u32,
}

/// Asks about a process. It takes about a microsecond.
///
/// # Errors
///
/// `ENOTTY` before Linux 6.13; `ESRCH` before 6.15 when the process was waited for already.
pub fn look_at(pidfd: BorrowedFd<'_>) -> io::Result<Process> {
    let mut info = MaybeUninit::<libc::pidfd_info>::zeroed();
    let wanted = libc::PIDFD_INFO_PID | libc::PIDFD_INFO_CREDS | libc::PIDFD_INFO_CGROUPID | libc::PIDFD_INFO_EXIT;
    // SAFETY: the structure consists of integers, so zeros are a value of it.
    let info = unsafe { info.assume_init_mut() };
    info.mask = u64::from(wanted);
    // SAFETY: the request encodes the size of the structure, so the kernel writes no more than that; it outlives the call.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut *info) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let has = |what: libc::c_uint| info.mask & u64::from(what) != 0;
    Ok(Process {
        cgroup: has(libc::PIDFD_INFO_CGROUPID).then_some(info.cgroupid),
        identity: (has(libc::PIDFD_INFO_PID) && has(libc::PIDFD_INFO_CREDS)).then_some(Identity {
            pid: info.pid,
            parent: info.ppid,
            uid: info.ruid,
            effective_uid: info.euid,
        }),
    })
}
