//! What a thread asks of the kernel so that others do not notice it, and how long the kernel takes its time.

use std::io;
use std::time::Duration;

/// A dirty page is written back at the latest after this, unless the host is set to wait longer.
const USUAL_WRITEBACK: Duration = Duration::from_secs(35);

/// Lets the calling thread read from the disk only while nobody else does.
///
/// # Errors
///
/// When a filter of system calls refuses it. File systems and disks that know no priorities ignore it.
#[expect(unsafe_code, reason = "neither rustix nor nix has this call")]
pub fn read_when_idle() -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_IDLE: libc::c_int = 3;
    const CLASS_SHIFT: libc::c_int = 13;
    const THIS_THREAD: libc::c_int = 0;
    // SAFETY: the call takes three integers and no address.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, THIS_THREAD, CLASS_IDLE << CLASS_SHIFT) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The longest time from a write to a page of a file until the kernel notices the next one: a page that is mapped for writing
/// changes the file's time only when it is first written to after having been written back.
pub fn longest_writeback() -> Duration {
    let centiseconds = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/vm/{name}")).ok()?;
        text.trim().parse::<u64>().ok().map(|n| Duration::from_millis(n.saturating_mul(10)))
    };
    match (centiseconds("dirty_expire_centisecs"), centiseconds("dirty_writeback_centisecs")) {
        // No periodic writing back at all.
        (_, Some(Duration::ZERO)) => Duration::MAX,
        (Some(expire), Some(interval)) => expire.saturating_add(interval).max(USUAL_WRITEBACK),
        (None, _) | (_, None) => USUAL_WRITEBACK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_become_idle_to_the_disk() {
        std::thread::spawn(|| read_when_idle().unwrap()).join().unwrap();
    }

    #[test]
    fn writing_back_takes_at_least_what_it_usually_takes() {
        assert!(longest_writeback() >= USUAL_WRITEBACK);
    }
}
