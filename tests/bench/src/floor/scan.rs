//! Scans of a tree: metadata alone, or the BLAKE3 hash of every content; one file after the other, on several threads, or
//! through io_uring.
//!
//! Nothing is compared and nothing is kept: what comes out is one number that every byte had a part in.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, fstat, open, openat, statx};

use super::uring;
use crate::tree;

/// Ways to scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `statx` relative to the directory, on one thread.
    Stat,
    /// Open, fstat, read, hash, on one thread.
    Hash,
    /// The same on as many threads as there are processors.
    HashThreads,
    /// Open, read and close through io_uring, hash on one thread.
    HashUring,
}

impl Method {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::Stat, Self::Hash, Self::HashThreads, Self::HashUring];

    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Stat => "statx, 1 thread",
            Self::Hash => "BLAKE3, 1 thread",
            Self::HashThreads => "BLAKE3, all threads",
            Self::HashUring => "BLAKE3, io_uring",
        }
    }
}

/// Whether this kernel lets this program scan that way: io_uring is often forbidden in containers.
pub fn is_available(method: Method) -> bool {
    match method {
        Method::Stat | Method::Hash | Method::HashThreads => true,
        Method::HashUring => uring::is_available(),
    }
}

/// A directory and names in it, sorted.
#[derive(Debug, Clone)]
pub struct Group {
    /// The directory.
    pub directory: PathBuf,
    /// The files.
    pub names: Vec<CString>,
}

/// The files of a tree below a root, by directory.
pub fn groups(tree: &tree::Tree, root: &Path) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for place in tree.places(root) {
        let (Some(directory), Some(name)) = (place.parent(), place.file_name()) else { bail!("no file: {place:?}") };
        let name = CString::new(name.as_bytes())?;
        match groups.last_mut().filter(|group| group.directory == directory) {
            Some(group) => group.names.push(name),
            None => groups.push(Group { directory: directory.to_owned(), names: vec![name] }),
        }
    }
    Ok(groups)
}

/// Scans all of it; returns how long that took.
pub fn pass(groups: &[Group], method: Method) -> Result<Duration> {
    let started = Instant::now();
    let scanned = match method {
        Method::Stat => stat(groups)?,
        Method::Hash => hash(groups)?,
        Method::HashThreads => {
            let n_threads = std::thread::available_parallelism().context("cannot count processors")?.get();
            let share = groups.len().div_ceil(n_threads).max(1);
            std::thread::scope(|scope| {
                let threads: Vec<_> = groups.chunks(share).map(|share| scope.spawn(|| hash(share))).collect();
                threads.into_iter().try_fold(Scanned::default(), |sum, thread| {
                    let one = thread.join().map_err(|_panic| anyhow::anyhow!("a scan panicked"))??;
                    Ok::<_, anyhow::Error>(Scanned { n_files: sum.n_files + one.n_files, mixed: sum.mixed ^ one.mixed })
                })
            })?
        }
        Method::HashUring => uring::hash(groups)?,
    };
    let took = started.elapsed();
    let expected: usize = groups.iter().map(|group| group.names.len()).sum();
    ensure!(scanned.n_files == expected, "{} of {expected} files were scanned", scanned.n_files);
    std::hint::black_box(scanned.mixed);
    Ok(took)
}

/// What was scanned, so that nothing of it is optimised away.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Scanned {
    pub(super) n_files: usize,
    pub(super) mixed: u64,
}

impl Scanned {
    pub(super) fn add(&mut self, content: &[u8]) {
        self.n_files += 1;
        self.mixed ^= blake3::hash(content).as_bytes().first().copied().map_or(0, u64::from);
    }
}

pub(super) fn open_directory(group: &Group) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(&group.directory, flags, Mode::empty()).with_context(|| format!("cannot open `{}`", group.directory.display()))
}

fn stat(groups: &[Group]) -> Result<Scanned> {
    let mut scanned = Scanned::default();
    for group in groups {
        let directory = open_directory(group)?;
        for name in &group.names {
            let found = statx(&directory, &**name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
            scanned.n_files += 1;
            scanned.mixed ^= found.stx_ino;
        }
    }
    Ok(scanned)
}

fn hash(groups: &[Group]) -> Result<Scanned> {
    let mut scanned = Scanned::default();
    let mut buffer = vec![0; 2 * tree::SIZE];
    for group in groups {
        let directory = open_directory(group)?;
        for name in &group.names {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = openat(&directory, &**name, flags, Mode::empty())?;
            let size = fstat(&file)?.st_size;
            let n = rustix::io::read(&file, &mut *buffer)?;
            ensure!(i64::try_from(n) == Ok(size), "{name:?} was read in part");
            scanned.add(buffer.get(..n).unwrap_or_default());
        }
    }
    Ok(scanned)
}
