//! Begins to write a file to the disk without waiting for it.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Asks the kernel to start writing the dirty pages of a file. A hint: what must be on the disk is still to be synced, and an
/// error here comes back from that.
#[expect(unsafe_code, reason = "no safe wrapper of sync_file_range exists among our dependencies")]
pub(super) fn begin(file: &File) {
    // SAFETY: the descriptor is open for the duration of the call, which touches no memory of this process.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result != 0 {
        tracing::trace!(error = %std::io::Error::last_os_error(), "cannot begin to write a file back");
    }
}
