//! What the process keeps of the memory that it has used and no longer needs.
//!
//! Loading a policy of 100,000 files takes several times the memory that the policy then stays in. Left to itself glibc keeps
//! most of the difference: scattered over one heap for each thread, and as ever larger blocks that it no longer maps for
//! themselves. And a start runs through most of the program, of which little is needed while nothing drifts. Nothing here is
//! needed for anything to be right; without glibc it does nothing.

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

/// Does something on a thread of its own, and waits for it. glibc keeps some blocks of each size for each thread, and with each a
/// page from going back: after much was allocated and freed, megabytes. They go with the thread.
pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let mut work = Some(work);
    let mut result = None;
    let mut run = || result = work.take().map(|work| work());
    let is_done = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("aside".to_owned()).spawn_scoped(scope, &mut run);
        match thread.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(())) => true,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => false,
        }
    });
    if !is_done {
        // There is no thread to be had. It is only about memory.
        run();
    }
    result.expect("it was run once")
}

/// Gives unused memory back to the kernel. It takes milliseconds for each hundred megabytes in use, during which other
/// threads wait when they allocate: for moments at which nothing is under way.
#[expect(unsafe_code, reason = "nothing wraps malloc_trim")]
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        let n_bytes = program::unmap();
        tracing::debug!(n_bytes, "the program's own pages are mapped again when they are needed");
        // SAFETY: malloc_trim takes a number and touches only memory that is free, under the locks of the heaps.
        let gave_back = unsafe { libc::malloc_trim(0) };
        tracing::debug!(gave_back, "unused memory was offered to the kernel");
    }
}

/// The program itself, as it is mapped.
#[cfg(target_env = "gnu")]
mod program {
    use std::ffi::{c_int, c_void};

    /// Takes the program's code and constants out of this process's page table. They stay in the page cache, for as long as the
    /// kernel has room for them; whatever is run next maps what it needs again, sixteen pages at a time, in a microsecond.
    /// Returns how many bytes the program is long.
    #[expect(unsafe_code, reason = "nothing wraps dl_iterate_phdr")]
    pub(super) fn unmap() -> usize {
        let mut n_bytes = 0_usize;
        // SAFETY: `unmap_first` is called before this returns, with the address that it gets here.
        unsafe { libc::dl_iterate_phdr(Some(unmap_first), (&raw mut n_bytes).cast::<c_void>()) };
        n_bytes
    }

    /// Is called with the program itself first, and asks for no other: libraries are shared by most processes.
    #[expect(unsafe_code, reason = "the loader hands out addresses")]
    unsafe extern "C" fn unmap_first(info: *mut libc::dl_phdr_info, _size: usize, n_bytes: *mut c_void) -> c_int {
        // SAFETY: the loader gives the address of a description that is valid during the call, with so many headers.
        let (base, headers) = unsafe {
            let info = &*info;
            (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
        };
        // SAFETY: sysconf takes a number.
        let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return 1 };
        let mut unmapped = 0;
        for header in headers {
            // What was never writable is as it is in the file. That is not so for what the loader wrote addresses into and only
            // then protected.
            if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
                continue;
            }
            let bounds = (usize::try_from(base + header.p_vaddr), usize::try_from(header.p_memsz));
            let (Ok(start), Ok(length)) = bounds else { continue };
            // Whole pages of it alone.
            let (start, end) = (start.next_multiple_of(page), (start + length) / page * page);
            let Some(length) = end.checked_sub(start).filter(|length| *length > 0) else { continue };
            let start: *mut c_void = std::ptr::with_exposed_provenance_mut(start);
            // SAFETY: these pages are private mappings of a file that were never written to. Taken out of the page table, they
            // come back with the same bytes when they are next touched.
            if unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) } == 0 {
                unmapped += length;
            }
        }
        // SAFETY: it is the address of the number that `unmap` waits for.
        unsafe { *n_bytes.cast::<usize>() = unmapped };
        1
    }
}

#[cfg(test)]
mod tests {
    /// Bytes of the program's code that are mapped, from /proc/self/smaps.
    fn mapped() -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let mut is_code = false;
        let mut n_kib = 0;
        for line in smaps.lines() {
            if line.contains(" r-xp ") {
                is_code = line.ends_with(program.to_str().unwrap());
            } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| is_code) {
                n_kib += rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
                is_code = false;
            }
        }
        n_kib * 1024
    }

    #[test]
    fn the_program_goes_on_after_it_gave_its_memory_back() {
        let words: Vec<String> = (0..1000).map(|n| format!("{n:x}")).collect();
        let before = mapped();
        assert!(before > 0);
        super::give_back();
        // Other tests run meanwhile.
        assert!(mapped() < before, "{} of {before} bytes are mapped", mapped());
        assert!(words.iter().enumerate().all(|(n, word)| usize::from_str_radix(word, 16) == Ok(n)));
    }
}
