//! The same through io_uring: many files in flight, each an open, a read and a close.
//!
//! The one place of this crate with `unsafe`: the kernel is handed pointers, and gives them back with the completions.

#![expect(unsafe_code, reason = "io_uring takes pointers that must outlive what is submitted; see each SAFETY")]

use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result, bail, ensure};
use io_uring::{IoUring, opcode, squeue, types};

use super::scan::{Group, Scanned, open_directory};
use crate::tree;

/// Files in flight.
const DEPTH: usize = 128;

/// Whether the kernel allows it.
pub(super) fn is_available() -> bool {
    IoUring::new(1).is_ok()
}

/// Hashes every file.
pub(super) fn hash(groups: &[Group]) -> Result<Scanned> {
    let mut ring = IoUring::new(u32::try_from(DEPTH)?).context("cannot open io_uring")?;
    let mut buffers = vec![vec![0_u8; 2 * tree::SIZE]; DEPTH];
    let directories = groups.iter().map(open_directory).collect::<Result<Vec<_>>>()?;
    let files: Vec<(i32, &std::ffi::CStr)> = groups
        .iter()
        .zip(&directories)
        .flat_map(|(group, directory)| group.names.iter().map(|name| (directory.as_raw_fd(), name.as_c_str())))
        .collect();
    let mut scanned = Scanned::default();
    for batch in files.chunks(DEPTH) {
        let opens = batch.iter().map(|(directory, name)| {
            opcode::OpenAt::new(types::Fd(*directory), name.as_ptr())
                .flags(libc_flags::O_RDONLY | libc_flags::O_NOFOLLOW | libc_flags::O_CLOEXEC)
                .build()
        });
        // SAFETY: the names are borrowed from `groups` and the descriptors from `directories`, which outlive this call.
        let descriptors = unsafe { complete(&mut ring, opens)? };
        let reads = descriptors.iter().zip(&mut buffers).map(|(descriptor, buffer)| {
            let length = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
            opcode::Read::new(types::Fd(*descriptor), buffer.as_mut_ptr(), length).build()
        });
        // SAFETY: each buffer is given to one read, and not touched before all have completed.
        let lengths = unsafe { complete(&mut ring, reads)? };
        for (length, buffer) in lengths.iter().zip(&buffers) {
            let length = usize::try_from(*length).context("a length that is not negative")?;
            ensure!(length == tree::SIZE, "a file was read in part");
            scanned.add(buffer.get(..length).unwrap_or_default());
        }
        let closes = descriptors.iter().map(|descriptor| opcode::Close::new(types::Fd(*descriptor)).build());
        // SAFETY: the descriptors came from the opens above and nobody else knows them.
        unsafe { complete(&mut ring, closes)? };
    }
    Ok(scanned)
}

/// Submits everything, at most [`DEPTH`] entries, and waits for all; returns the results in the order of the entries.
///
/// # Safety
///
/// What the entries point to must be valid, and nobody else's, until this returns.
unsafe fn complete(ring: &mut IoUring, entries: impl Iterator<Item = squeue::Entry>) -> Result<Vec<i32>> {
    let mut n = 0;
    for (index, entry) in entries.enumerate() {
        let entry = entry.user_data(u64::try_from(index)?);
        // SAFETY: passed on to the caller.
        if unsafe { ring.submission().push(&entry) }.is_err() {
            bail!("the ring is full");
        }
        n += 1;
    }
    let mut results = vec![0; n];
    let mut n_completed = 0;
    while n_completed < n {
        if let Err(error) = ring.submit_and_wait(n - n_completed)
            && error.kind() != std::io::ErrorKind::Interrupted
        {
            // Returning would free what the kernel may still write to.
            eprintln!("cannot submit to io_uring: {error}");
            std::process::abort();
        }
        for completed in ring.completion() {
            n_completed += 1;
            let index = usize::try_from(completed.user_data())?;
            if let Some(result) = results.get_mut(index) {
                *result = completed.result();
            }
        }
    }
    match results.iter().find(|result| **result < 0) {
        Some(error) => Err(std::io::Error::from_raw_os_error(-error)).context("an operation of io_uring failed"),
        None => Ok(results),
    }
}

/// Flags of open(2), which io_uring takes as the kernel's numbers.
mod libc_flags {
    use rustix::fs::OFlags;

    pub(super) const O_RDONLY: i32 = OFlags::RDONLY.bits().cast_signed();
    pub(super) const O_NOFOLLOW: i32 = OFlags::NOFOLLOW.bits().cast_signed();
    pub(super) const O_CLOEXEC: i32 = OFlags::CLOEXEC.bits().cast_signed();
}
