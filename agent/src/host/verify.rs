//! Whether many declared files are exactly as declared, found out with as few system calls as the kernel allows.
//!
//! A file is in sync only when it was read, now, and all of it was equal: a regular file, every byte, owner, group, mode, no
//! access control list, no file capability, the label that the host names where it names one, and no flag that would keep it from being
//! repaired. What could not be told is [`Answer::Unknown`], which is never in sync.
//!
//! - Paths are resolved beneath the [`Root`], by its rules for links, one directory at a time; the last component is never
//!   followed, and nothing but a regular file is ever opened.
//! - [`Seen`] is taken before the first byte is read, so a change that comes later makes another one.
//! - Nothing here writes, remembers or decides what an answer means.
//!
//! ```no_run
//! # use rekindle::host::{root::Root, verify::{self, Entry, Method}};
//! # fn f(entries: &mut Vec<Entry>) -> std::io::Result<()> {
//! let root = Root::open(std::path::Path::new("/"))?;
//! verify::sort(entries);
//! let answers = verify::pass(&root, entries, Method::Auto);
//! # Ok(()) }
//! ```

mod many;
mod one;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{Statx, StatxAttributes};
pub use rustix::io::Errno;

use super::root::Root;
use super::uring::Ring;
use crate::resource::{AbsPath, Content, Mode};

pub use one::{Buffers, Verifier, verify_at};

/// What a regular file is to be, with every name resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: AbsPath,
    /// Every byte.
    pub content: Content,
    /// Owner id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits.
    pub mode: Mode,
}

impl Entry {
    /// The directory and the name in it.
    fn split(&self) -> (&[u8], &[u8]) {
        let path = self.path.as_path().as_os_str().as_bytes();
        let slash = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let (directory, name) = path.split_at(slash);
        (directory, name.get(1..).unwrap_or_default())
    }
}

/// What identifies the state of a file without its content: whatever changes the file changes this, but for what
/// `guard::scan` says about writes through a mapping and a clock that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The mount.
    pub mnt_id: u64,
    /// The device.
    pub dev: u64,
    /// The inode.
    pub ino: u64,
    /// Change time: seconds since the epoch.
    pub ctime_s: i64,
    /// Change time: nanoseconds of the second.
    pub ctime_ns: u32,
    /// Length in bytes.
    pub size: u64,
    /// Type and permission bits.
    pub mode: u16,
    /// Owner id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Number of names.
    pub n_links: u32,
    /// The kernel's attribute flags (`STATX_ATTR_*`), such as immutable.
    pub attributes: u64,
}

impl From<&Statx> for Seen {
    fn from(statx: &Statx) -> Self {
        Self {
            mnt_id: statx.stx_mnt_id,
            dev: rustix::fs::makedev(statx.stx_dev_major, statx.stx_dev_minor),
            ino: statx.stx_ino,
            ctime_s: statx.stx_ctime.tv_sec,
            ctime_ns: statx.stx_ctime.tv_nsec,
            size: statx.stx_size,
            mode: statx.stx_mode,
            uid: statx.stx_uid,
            gid: statx.stx_gid,
            n_links: statx.stx_nlink,
            attributes: statx.stx_attributes.bits(),
        }
    }
}

impl Seen {
    /// Whether it is a regular file with the length, owner, group and mode of `entry` and no flag in the way: all that can be
    /// told without opening it.
    fn may_be(&self, entry: &Entry) -> bool {
        let bits = u32::from(self.mode);
        let flags = (StatxAttributes::IMMUTABLE | StatxAttributes::APPEND).bits();
        rustix::fs::FileType::from_raw_mode(bits) == rustix::fs::FileType::RegularFile
            && Mode::from_bits(bits) == entry.mode
            && u64::try_from(entry.content.len()) == Ok(self.size)
            && self.uid == entry.uid
            && self.gid == entry.gid
            && self.attributes & flags == 0
    }
}

/// What was found at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// Exactly what is declared, and what it looked like just before it was read.
    InSync(Seen),
    /// Something else, or nothing.
    Differs,
    /// It could not be told. Never to be taken for either of the others.
    Unknown(Errno),
}

/// How a pass goes about it. The answers are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Whatever is fastest here: one thread while the files are in memory, the ring or threads while they are not.
    Auto,
    /// One file after the other, on the calling thread.
    OneThread,
    /// As many threads; the calling one waits.
    Threads(NonZeroUsize),
    /// io_uring, many files in flight, on the calling thread; [`MANY_THREADS`] threads where the kernel does not allow it.
    Ring,
}

/// Threads that stand in for the ring: they wait for the disk, not for a processor.
pub const MANY_THREADS: NonZeroUsize = NonZeroUsize::new(16).expect("sixteen is not zero");

/// Up to so many files are never worth more than one thread.
const FEW: usize = 64;

/// Files that a thread takes at once.
const STRIDE: usize = 32;

/// Files after which [`Method::Auto`] asks again whether they are in memory.
const STRETCH: usize = 1024;

/// More time than this for one file on one thread means that the disk is waited for.
const COLD: Duration = Duration::from_micros(50);

/// Less time than this for one file in flight means that nothing is waited for.
const WARM: Duration = Duration::from_micros(8);

/// Puts entries in the order in which a pass opens each directory once.
pub fn sort<E: Borrow<Entry>>(entries: &mut [E]) {
    entries.sort_unstable_by(|a, b| order(a.borrow(), b.borrow()));
}

/// The order of [`sort`].
pub fn order(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    a.split().cmp(&b.split())
}

/// Verifies all entries and returns the answers in their order. Entries should be in the order of [`sort`]; in any other the
/// answers are the same and take longer.
pub fn pass<E: Borrow<Entry> + Sync>(root: &Root, entries: &[E], method: Method) -> Vec<Answer> {
    let mut answers = vec![Answer::Unknown(Errno::CANCELED); entries.len()];
    pass_with(root, entries, method, &mut |index, answer| {
        if let Some(place) = answers.get_mut(index) {
            *place = answer;
        }
    });
    answers
}

/// As [`pass`], and hands each answer out as it is found, with its entry's index, once for each entry and in any order.
pub fn pass_with<E: Borrow<Entry> + Sync>(
    root: &Root,
    entries: &[E],
    method: Method,
    each: &mut dyn FnMut(usize, Answer),
) {
    match method {
        Method::OneThread => one_thread(root, entries, 0, each),
        Method::Threads(n) => threads(root, entries, n, 0, each),
        Method::Ring => Many::open().verify(root, entries, 0, each),
        Method::Auto => automatic(root, entries, each),
    }
}

/// Looks at each entry's path without opening it, on the calling thread, which is fastest for what is in memory: `Ok(None)`
/// means that nothing is there.
pub fn look_with<E: Borrow<Entry>>(
    root: &Root,
    entries: &[E],
    each: &mut dyn FnMut(usize, Result<Option<Seen>, Errno>),
) {
    let mut verifier = Verifier::new(root);
    for (index, entry) in entries.iter().enumerate() {
        each(index, verifier.look(entry.borrow()));
    }
}

fn one_thread<E: Borrow<Entry>>(root: &Root, entries: &[E], first: usize, each: &mut dyn FnMut(usize, Answer)) {
    let mut verifier = Verifier::new(root);
    for (index, entry) in entries.iter().enumerate() {
        each(first + index, verifier.verify(entry.borrow()));
    }
}

fn threads<E: Borrow<Entry> + Sync>(
    root: &Root,
    entries: &[E],
    n: NonZeroUsize,
    first: usize,
    each: &mut dyn FnMut(usize, Answer),
) {
    let next = AtomicUsize::new(0);
    let (found, answers) = mpsc::channel();
    let work = |found: mpsc::Sender<(usize, Vec<Answer>)>| {
        let mut verifier = Verifier::new(root);
        loop {
            let start = next.fetch_add(STRIDE, Ordering::Relaxed);
            let end = entries.len().min(start.saturating_add(STRIDE));
            let Some(mine) = entries.get(start..end).filter(|mine| !mine.is_empty()) else { return };
            let answers = mine.iter().map(|entry| verifier.verify(entry.borrow())).collect();
            // The receiver outlives the threads.
            drop(found.send((start, answers)));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..n.get().min(entries.len().div_ceil(STRIDE)) {
            let (work, found) = (&work, found.clone());
            let thread = std::thread::Builder::new().name("verify".to_owned()).stack_size(256 * 1024);
            if let Err(error) = thread.spawn_scoped(scope, move || work(found)) {
                tracing::warn!(%error, "cannot start a thread to verify files with");
                break;
            }
        }
        drop(found);
        for (start, answers) in answers {
            for (index, answer) in answers.into_iter().enumerate() {
                each(first + start + index, answer);
            }
        }
    });
    // What no thread took, because none could be started, is left to this one.
    let start = next.load(Ordering::Relaxed).min(entries.len());
    one_thread(root, entries.get(start..).unwrap_or_default(), first + start, each);
}

/// What an answer is worth where the host says what labels should be: asking that is the root's part, and slow.
fn with_label(root: &Root, entry: &Entry, answer: Answer) -> Answer {
    match answer {
        Answer::InSync(seen) if root.keeps_labels() => match root.metadata(&entry.path) {
            Ok(Some(metadata)) if metadata.identity == (seen.dev, seen.ino) && metadata.extras.label.is_none() => {
                answer
            }
            Ok(_) => Answer::Differs,
            Err(error) => Answer::Unknown(one::errno_of(&error)),
        },
        Answer::InSync(_) | Answer::Differs | Answer::Unknown(_) => answer,
    }
}

/// The ring, or what stands in for it.
enum Many {
    Ring(Box<Ring>),
    Threads,
}

impl Many {
    fn open() -> Self {
        match Ring::open() {
            Ok(ring) => Self::Ring(Box::new(ring)),
            Err(error) => {
                tracing::debug!(%error, "no io_uring: files are verified with threads");
                Self::Threads
            }
        }
    }

    fn verify<E: Borrow<Entry> + Sync>(
        &mut self,
        root: &Root,
        entries: &[E],
        first: usize,
        each: &mut dyn FnMut(usize, Answer),
    ) {
        match self {
            Self::Ring(ring) => many::verify(root, ring, entries, first, &mut |index, answer| {
                let entry = index.checked_sub(first).and_then(|index| entries.get(index));
                each(index, entry.map_or(answer, |entry| with_label(root, entry.borrow(), answer)));
            }),
            Self::Threads => threads(root, entries, MANY_THREADS, first, each),
        }
    }
}

/// One thread for as long as the files are in memory, which only the time that it takes can tell.
fn automatic<E: Borrow<Entry> + Sync>(root: &Root, entries: &[E], each: &mut dyn FnMut(usize, Answer)) {
    if entries.len() <= FEW {
        return one_thread(root, entries, 0, each);
    }
    let mut many = None;
    let mut verifier = Verifier::new(root);
    let mut cold = false;
    let mut start = 0;
    while start < entries.len() {
        let length = if cold { STRETCH } else { STRIDE };
        let end = entries.len().min(start + length);
        let stretch = entries.get(start..end).unwrap_or_default();
        let clock = Instant::now();
        if cold {
            many.get_or_insert_with(Many::open).verify(root, stretch, start, each);
        } else {
            for (index, entry) in stretch.iter().enumerate() {
                each(start + index, verifier.verify(entry.borrow()));
            }
        }
        let each_took = clock.elapsed() / u32::try_from(stretch.len()).unwrap_or(u32::MAX).max(1);
        cold = if cold { each_took >= WARM } else { each_took > COLD };
        start = end;
    }
}
