//! io_uring for one purpose: many files opened and read at once, so that a cold disk serves them side by side.
//!
//! Every call submits what it is given and returns when the kernel has finished all of it, so nothing is in flight between
//! calls. All memory that the kernel is given belongs to the [`Ring`]; should a call ever end with requests in flight, that
//! memory is leaked rather than freed under the kernel's hands, and the ring answers [`Stuck`] from then on.
//! Nothing here writes to a file.
#![expect(unsafe_code, reason = "the kernel is given addresses; each use says why they stay valid")]

use std::ffi::c_char;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use io_uring::squeue::Entry as Submission;
use io_uring::{IoUring, Probe, opcode, types};
use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

/// Requests in flight at most. Twice as many are a little faster on a cold disk and slower on a warm one, measured.
pub(super) const DEPTH: usize = 128;

/// Bytes that one call of [`Ring::read_all`] may ask for in total.
pub(super) const ARENA: usize = 1024 * 1024;

/// Kernel threads that may wait for the disk on behalf of the ring. The default, four for each processor, is less than a disk
/// can take.
const MAX_WORKERS: u32 = 32;

/// Times that the kernel may be too busy before it is given up.
const PATIENCE: u32 = 10_000;

/// A ring, with the memory that it lends to the kernel.
pub(super) struct Ring {
    io: ManuallyDrop<IoUring>,
    memory: ManuallyDrop<Memory>,
    in_flight: usize,
    stuck: bool,
}

/// The ring cannot be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("io_uring takes no more requests")]
pub(super) struct Stuck;

struct Memory {
    names: Vec<Vec<u8>>,
    how: Box<types::OpenHow>,
    arena: Box<[u8]>,
    results: Vec<i32>,
}

impl Ring {
    /// Sets a ring up. Fails where the kernel, a sysctl or a filter does not allow it, or does not know the requests.
    pub(super) fn open() -> io::Result<Self> {
        let depth = u32::try_from(DEPTH).unwrap_or(u32::MAX);
        let io = IoUring::new(depth)?;
        let mut probe = Probe::new();
        io.submitter().register_probe(&mut probe)?;
        for code in [opcode::OpenAt2::CODE, opcode::Read::CODE] {
            if !probe.is_supported(code) {
                return Err(io::ErrorKind::Unsupported.into());
            }
        }
        if let Err(error) = io.submitter().register_iowq_max_workers(&mut [MAX_WORKERS, 0]) {
            // Since Linux 5.15; without it the ring is slower on a cold disk, and that is all.
            tracing::debug!(%error, "cannot have more workers for io_uring");
        }
        let memory = Memory {
            names: vec![Vec::new(); DEPTH],
            how: Box::new(types::OpenHow::new()),
            arena: vec![0; ARENA].into_boxed_slice(),
            results: vec![0; DEPTH],
        };
        Ok(Self { io: ManuallyDrop::new(io), memory: ManuallyDrop::new(memory), in_flight: 0, stuck: false })
    }

    /// Opens names, each in its directory. At most [`DEPTH`].
    pub(super) fn open_all(
        &mut self,
        places: &[(BorrowedFd<'_>, &[u8])],
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> Result<Vec<Result<OwnedFd, Errno>>, Stuck> {
        if !self.stuck {
            *self.memory.how = types::OpenHow::new().flags(u64::from(flags.bits())).resolve(resolve.bits());
        }
        let how = std::ptr::from_ref(&*self.memory.how);
        self.run(places, |(dir, name), slot| {
            let path = slot.put_name(name);
            opcode::OpenAt2::new(types::Fd(dir.as_raw_fd()), path, how).build()
        })?;
        let answers = self.memory.results.iter().take(places.len());
        Ok(answers
            .map(|result| {
                // SAFETY: the kernel has just made this descriptor for this request, and nothing else knows of it.
                value(*result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
            })
            .collect())
    }

    /// Reads up to so many bytes from the start of each file. At most [`DEPTH`] files, and [`ARENA`] bytes in total.
    pub(super) fn read_all(&mut self, files: &[(BorrowedFd<'_>, usize)]) -> Result<Vec<Result<&[u8], Errno>>, Stuck> {
        let mut start = 0_usize;
        self.run(files, |(file, length), slot| {
            // What does not fit is not asked for, and the caller sees a short answer.
            let length = (*length).min(slot.arena.len().saturating_sub(start));
            let place = slot.arena.get_mut(start..start + length).unwrap_or_default();
            start += length;
            let length = u32::try_from(place.len()).unwrap_or(0);
            opcode::Read::new(types::Fd(file.as_raw_fd()), place.as_mut_ptr(), length).offset(0).build()
        })?;
        let mut start = 0_usize;
        let answers = self.memory.results.iter().zip(files).map(|(result, (_, length))| {
            let place = self.memory.arena.get(start..).unwrap_or_default();
            let place = place.get(..*length).unwrap_or(place);
            start = start.saturating_add(*length);
            let n_read = usize::try_from(value(*result)?).unwrap_or(0);
            Ok(place.get(..n_read).unwrap_or_default())
        });
        Ok(answers.collect())
    }

    /// Submits one request for each of `items` and waits until the kernel has answered all.
    ///
    /// `build` may give the kernel addresses within [`Memory`] only.
    fn run<T>(&mut self, items: &[T], mut build: impl FnMut(&T, &mut Slot<'_>) -> Submission) -> Result<(), Stuck> {
        if self.stuck || items.len() > DEPTH {
            return Err(Stuck);
        }
        let Memory { names, arena, .. } = &mut *self.memory;
        for (index, (item, name)) in items.iter().zip(names.iter_mut()).enumerate() {
            let request = build(item, &mut Slot { name, arena });
            let request = request.user_data(u64::try_from(index).unwrap_or(u64::MAX));
            // SAFETY: the addresses are within `self.memory`, which is neither changed nor freed before the kernel has answered:
            // this function returns only then, or marks the ring as stuck, after which the memory is never touched again. The
            // descriptors are borrowed for as long as this call.
            if unsafe { self.io.submission().push(&request) }.is_err() {
                self.stuck = true;
                return Err(Stuck);
            }
            self.in_flight += 1;
        }
        let mut patience = PATIENCE;
        while self.in_flight > 0 {
            if let Err(error) = self.io.submit_and_wait(self.in_flight) {
                let passing = matches!(Errno::from_io_error(&error), Some(Errno::INTR | Errno::AGAIN | Errno::BUSY));
                patience -= 1;
                if !passing || patience == 0 {
                    tracing::warn!(%error, in_flight = self.in_flight, "io_uring failed with requests in flight");
                    self.stuck = true;
                    return Err(Stuck);
                }
            }
            for answer in self.io.completion() {
                let slot = usize::try_from(answer.user_data()).ok();
                if let Some(place) = slot.and_then(|slot| self.memory.results.get_mut(slot)) {
                    *place = answer.result();
                }
                self.in_flight = self.in_flight.saturating_sub(1);
            }
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            return;
        }
        // SAFETY: neither is used again, and with nothing in flight the kernel holds no address in either.
        unsafe {
            ManuallyDrop::drop(&mut self.io);
            ManuallyDrop::drop(&mut self.memory);
        }
    }
}

/// The memory of one request.
struct Slot<'m> {
    name: &'m mut Vec<u8>,
    arena: &'m mut [u8],
}

impl Slot<'_> {
    /// Keeps a name, with the NUL that the kernel wants, where it will not move.
    fn put_name(&mut self, name: &[u8]) -> *const c_char {
        self.name.clear();
        self.name.extend_from_slice(name);
        self.name.push(0);
        self.name.as_ptr().cast()
    }
}

fn value(result: i32) -> Result<i32, Errno> {
    if result < 0 { Err(Errno::from_raw_os_error(result.saturating_neg())) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_ring_opens_and_reads_like_the_system_calls() {
        let Ok(mut ring) = Ring::open() else {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to use io_uring");
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("a", directory.path().join("link")).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a fixture")]
        std::fs::write(directory.path().join("a"), "content").unwrap();
        let dir = std::fs::File::open(directory.path()).unwrap();
        let places: Vec<(BorrowedFd<'_>, &[u8])> =
            [&b"a"[..], b"missing", b"link"].into_iter().map(|name| (dir.as_fd(), name)).collect();

        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let files = ring.open_all(&places, flags, ResolveFlags::empty()).unwrap();
        let kinds: Vec<Option<Errno>> = files.iter().map(|file| file.as_ref().err().copied()).collect();
        assert_eq!(kinds, [None, Some(Errno::NOENT), Some(Errno::LOOP)]);

        let file = files[0].as_ref().unwrap().as_fd();
        let read = ring.read_all(&[(file, 8), (file, 3), (dir.as_fd(), 8)]).unwrap();
        assert_eq!(read, [Ok(&b"content"[..]), Ok(&b"con"[..]), Err(Errno::ISDIR)]);
    }

    #[test]
    fn what_does_not_fit_is_refused_or_cut_short_and_never_written_elsewhere() {
        let Ok(mut ring) = Ring::open() else { return };
        let file = tempfile::tempfile().unwrap();
        file.set_len(u64::try_from(ARENA).unwrap()).unwrap();
        let read = ring.read_all(&[(file.as_fd(), ARENA - 2), (file.as_fd(), 8), (file.as_fd(), 8)]).unwrap();
        let lengths: Vec<usize> = read.iter().map(|read| read.unwrap().len()).collect();
        assert_eq!(lengths, [ARENA - 2, 2, 0]);
        let too_many = vec![(file.as_fd(), 1); DEPTH + 1];
        assert_eq!(ring.read_all(&too_many), Err(Stuck));
        assert!(ring.read_all(&[(file.as_fd(), 1)]).is_ok(), "a refused call must not spoil the ring");
    }
}
