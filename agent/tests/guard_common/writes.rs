//! Case 13: every system call that can change what is in a file is put back.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;

use rustix::fs::{FallocateFlags, copy_file_range, fallocate, ftruncate, sendfile};

use crate::guard_common::{GOOD, Sandbox};

/// Whether what `change` does to a guarded file, open for writing, is put back. `evil` is another file, with other content.
#[track_caller]
fn check(change: impl FnOnce(&File, &File)) {
    let sandbox = Sandbox::guard(&["/d/t"]);
    std::fs::write(sandbox.at("/evil"), GOOD.to_uppercase()).unwrap();
    let evil = File::open(sandbox.at("/evil")).unwrap();
    let file = OpenOptions::new().write(true).open(sandbox.at("/d/t")).unwrap();
    change(&file, &evil);
    drop(file);
    sandbox.expect_repairs(1);
    sandbox.expect_good("/d/t");
    // What came in was displaced, and is kept.
    let entry = sandbox.history().pop().unwrap();
    assert_ne!(sandbox.kept(&entry.backup.unwrap()), GOOD.as_bytes());
}

#[test]
fn case_13_truncate() {
    check(|file, _| ftruncate(file, 3).unwrap());
}

#[test]
fn case_13_truncate_to_a_greater_length() {
    check(|file, _| ftruncate(file, 1 << 20).unwrap());
}

#[test]
fn case_13_fallocate_of_a_hole() {
    check(|file, _| fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 2, 5).unwrap());
}

#[test]
fn case_13_copy_file_range() {
    check(|file, evil| assert_eq!(copy_file_range(evil, None, file, None, GOOD.len()).unwrap(), GOOD.len()));
}

#[test]
fn case_13_sendfile() {
    check(|file, evil| assert_eq!(sendfile(file, evil, None, GOOD.len()).unwrap(), GOOD.len()));
}

#[test]
#[expect(unsafe_code, reason = "splice has no safe wrapper among the features that the product needs")]
fn case_13_splice() {
    check(|file, _| {
        let (from, mut to) = std::io::pipe().unwrap();
        to.write_all(b"SPLICED").unwrap();
        let none = std::ptr::null_mut();
        // SAFETY: both descriptors are open, and null offsets mean the files' own.
        let n = unsafe { libc::splice(from.as_raw_fd(), none, file.as_raw_fd(), none, 7, 0) };
        assert_eq!(n, 7);
    });
}

#[test]
#[expect(unsafe_code, reason = "a ring takes pointers")]
fn case_13_a_write_through_a_ring() {
    check(|file, _| {
        // Where rings are forbidden nobody writes through one.
        let Ok(mut ring) = io_uring::IoUring::new(2) else {
            file.set_len(0).unwrap();
            return;
        };
        let evil = b"THROUGH A RING";
        let length = u32::try_from(evil.len()).unwrap();
        let entry = io_uring::opcode::Write::new(io_uring::types::Fd(file.as_raw_fd()), evil.as_ptr(), length).build();
        // SAFETY: the buffer and the descriptor outlive the operation, whose end is waited for.
        unsafe { ring.submission().push(&entry).unwrap() };
        ring.submit_and_wait(1).unwrap();
        assert_eq!(ring.completion().next().unwrap().result(), i32::try_from(evil.len()).unwrap());
    });
}
