//! What the process keeps of the memory that it has used and no longer needs.
//!
//! Loading a policy of 100,000 files takes several times the memory that the policy then stays in. Left to itself glibc keeps
//! most of the difference: scattered over one heap for each thread, and as ever larger blocks that it no longer maps for
//! themselves. Nothing here is needed for anything to be right; without glibc it does nothing.

/// Sets up the allocator for a process with little to allocate at a time. To be called before the first thread is started.
#[expect(unsafe_code, reason = "nothing wraps the settings of the allocator")]
pub fn be_frugal() {
    #[cfg(target_env = "gnu")]
    {
        // One heap for the threads that wait for nobody, one for the others: with more, each keeps what it once needed.
        const HEAPS: libc::c_int = 2;
        // Larger blocks are mapped by themselves and go back whole. Named, because otherwise glibc raises it to the size of
        // the largest block that was ever freed.
        const MAPPED: libc::c_int = 256 * 1024;
        // SAFETY: mallopt takes two numbers and keeps no pointer; glibc guards it with the lock of its main heap.
        let (heaps, mapped) =
            unsafe { (libc::mallopt(libc::M_ARENA_MAX, HEAPS), libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED)) };
        if heaps == 0 || mapped == 0 {
            tracing::debug!("the allocator keeps its settings");
        }
    }
}

/// Gives unused memory back to the kernel. It takes milliseconds for each hundred megabytes in use, during which other
/// threads wait when they allocate: for moments at which nothing is under way.
#[expect(unsafe_code, reason = "nothing wraps malloc_trim")]
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim takes a number and touches only memory that is free, under the locks of the heaps.
        let gave_back = unsafe { libc::malloc_trim(0) };
        tracing::debug!(gave_back, "unused memory was offered to the kernel");
    }
}
