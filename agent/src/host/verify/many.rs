//! Many files in flight at once, through the ring.
//!
//! What the ring cannot tell for certain is verified one by one, so the answers are those of [`super::one`] by construction.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

use super::one::{self, At, Buffers};
use super::{Answer, Entry, Root, Seen, WARM};
use crate::host::root::resolve::{DIRECTORY_FLAGS, DIRECTORY_RESOLVE};
use crate::host::uring::{ARENA, DEPTH, Ring, Stuck};

/// Opens a name only to look at it; a link is not followed, and nothing is done to a device.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Directories that are open at once.
const MAX_DIRECTORIES: usize = 64;

/// Longer content is read by itself: a large file keeps the disk busy alone.
const LARGE: usize = 64 * 1024;

/// After so long a look at one batch, the disk is asked after all.
const LONGEST_LOOK: Duration = Duration::from_millis(1);

/// Whether the last batch had to wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    IsAsked,
    IsNotAsked,
}

/// One file of a batch.
struct Item<'a> {
    index: usize,
    entry: &'a Entry,
    dir: BorrowedFd<'a>,
    name: &'a [u8],
}

impl Item<'_> {
    /// Bytes to ask for: one more than there should be.
    fn length(&self) -> usize {
        self.entry.content.len().saturating_add(1)
    }

    fn is_large(&self) -> bool {
        self.length() > LARGE
    }
}

/// Verifies all entries; `first` is the index of the first.
pub(super) fn verify<E: Borrow<Entry>>(
    root: &Root,
    ring: &mut Ring,
    entries: &[E],
    first: usize,
    each: &mut dyn FnMut(usize, Answer),
) {
    let mut buffers = Buffers::new();
    let mut disk = Disk::IsAsked;
    let mut rest = entries;
    let mut first = first;
    while !rest.is_empty() {
        let (paths, length) = directories(rest);
        let (group, later) = rest.split_at(length);
        let dirs = open_directories(root, ring, &paths);
        let mut items = Vec::with_capacity(group.len());
        let mut here = paths.iter().zip(&dirs).peekable();
        for (offset, entry) in group.iter().enumerate() {
            let entry = entry.borrow();
            let (directory, name) = entry.split();
            // In the order of the entries, as they were collected.
            while here.next_if(|(path, _)| **path != directory).is_some() {}
            match here.peek().map(|(_, dir)| *dir) {
                Some(At::Open(dir)) => items.push(Item { index: first + offset, entry, dir: dir.as_fd(), name }),
                Some(At::Nothing) => each(first + offset, Answer::Differs),
                Some(At::Unknown(errno)) => each(first + offset, Answer::Unknown(*errno)),
                None => each(first + offset, Answer::Unknown(Errno::CANCELED)),
            }
        }
        let mut items = items.as_slice();
        while !items.is_empty() {
            let (batch, others) = items.split_at(batch_length(items));
            items = others;
            let answers = answer(ring, batch, &mut disk, &mut buffers);
            // What is left without an answer is what the ring could not tell, or all of it when the ring is stuck.
            let answers = answers.into_iter().flatten().chain(std::iter::repeat(None));
            for (item, answer) in batch.iter().zip(answers) {
                each(item.index, answer.unwrap_or_else(|| alone(item, &mut buffers)));
            }
        }
        rest = later;
        first += length;
    }
}

/// The directories of the first entries, at most [`MAX_DIRECTORIES`], and how many entries these are.
fn directories<E: Borrow<Entry>>(entries: &[E]) -> (Vec<&[u8]>, usize) {
    let mut paths: Vec<&[u8]> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let (directory, _) = entry.borrow().split();
        if paths.last() != Some(&directory) {
            if paths.len() == MAX_DIRECTORIES {
                return (paths, index);
            }
            paths.push(directory);
        }
    }
    (paths, entries.len())
}

/// Opens directories side by side; a path with a link in it is walked by the root itself.
fn open_directories(root: &Root, ring: &mut Ring, paths: &[&[u8]]) -> Vec<At> {
    let relative = |path: &&[u8]| match path.strip_prefix(b"/").unwrap_or(path) {
        [] => b".".as_slice().to_vec(),
        path => path.to_vec(),
    };
    let names: Vec<Vec<u8>> = paths.iter().map(relative).collect();
    let places: Vec<(BorrowedFd<'_>, &[u8])> = names.iter().map(|name| (root.as_fd(), name.as_slice())).collect();
    let opened = ring.open_all(&places, DIRECTORY_FLAGS, DIRECTORY_RESOLVE).unwrap_or_default();
    let opened = opened.into_iter().map(Result::ok).chain(std::iter::repeat_with(|| None));
    paths.iter().zip(opened).map(|(path, dir)| dir.map_or_else(|| At::open(root, path), At::Open)).collect()
}

/// How many of the items go together.
fn batch_length(items: &[Item<'_>]) -> usize {
    let mut n_bytes = 0;
    let fits = |item: &&Item<'_>| {
        n_bytes += if item.is_large() { 0 } else { item.length() };
        n_bytes <= ARENA
    };
    items.iter().take(DEPTH).take_while(fits).count().max(1)
}

fn alone(item: &Item<'_>, buffers: &mut Buffers) -> Answer {
    one::verify_at(item.dir, OsStr::from_bytes(item.name), item.entry, buffers)
}

/// Answers one batch; `None` for what the ring could not tell.
fn answer(
    ring: &mut Ring,
    batch: &[Item<'_>],
    disk: &mut Disk,
    buffers: &mut Buffers,
) -> Result<Vec<Option<Answer>>, Stuck> {
    let begun = Instant::now();
    let mut answers: Vec<Option<Answer>> = vec![None; batch.len()];
    let mut put = |place: usize, answer: Answer| {
        if let Some(slot) = answers.get_mut(place) {
            *slot = Some(answer);
        }
    };

    // As with one file: looked at before it is opened for reading, because that can act on a device.
    let found = look(ring, batch, *disk)?;
    let mut likely: Vec<(usize, &Item<'_>)> = Vec::with_capacity(batch.len());
    for (place, (item, found)) in batch.iter().zip(found).enumerate() {
        match found {
            Ok(seen) if seen.may_be(item.entry) => likely.push((place, item)),
            Ok(_) | Err(Errno::NOENT) => put(place, Answer::Differs),
            Err(_) => {}
        }
    }

    let places: Vec<(BorrowedFd<'_>, &[u8])> = likely.iter().map(|(_, item)| (item.dir, item.name)).collect();
    let opened = ring.open_all(&places, one::FLAGS, ResolveFlags::empty())?;
    let mut open: Vec<(usize, &Item<'_>, OwnedFd, Seen)> = Vec::with_capacity(likely.len());
    for ((place, item), file) in likely.into_iter().zip(opened) {
        let Ok(file) = file else { continue };
        if item.is_large() {
            put(place, one::verify_open(&file, item.entry, buffers));
            continue;
        }
        match one::seen_of(&file) {
            Ok(seen) if seen.may_be(item.entry) => open.push((place, item, file, seen)),
            Ok(_) => put(place, Answer::Differs),
            Err(_) => {}
        }
    }

    let files: Vec<(BorrowedFd<'_>, usize)> =
        open.iter().map(|(_, item, file, _)| (file.as_fd(), item.length())).collect();
    let read = ring.read_all(&files)?;
    for ((place, item, file, seen), content) in open.iter().zip(read) {
        // A short answer is read again by itself: only there it is known to be the whole file.
        match content {
            Ok(content) if item.entry.content.is(content) => match buffers.only_declared(file) {
                Ok(true) => put(*place, Answer::InSync(*seen)),
                Ok(false) => put(*place, Answer::Differs),
                Err(_) => {}
            },
            Ok(_) | Err(_) => put(*place, one::verify_open(file, item.entry, buffers)),
        }
    }
    let n_files = u32::try_from(batch.len()).unwrap_or(u32::MAX);
    *disk = if begun.elapsed() < WARM * n_files { Disk::IsNotAsked } else { Disk::IsAsked };
    Ok(answers)
}

/// Looks at the names of one batch. Where the disk is asked, through descriptors and not with requests to look, which the kernel
/// always hands to a thread of its own, even when it need not wait. Where it is not, one after the other, at half the cost.
fn look(ring: &mut Ring, batch: &[Item<'_>], disk: Disk) -> Result<Vec<Result<Seen, Errno>>, Stuck> {
    let begun = Instant::now();
    let mut found = Vec::with_capacity(batch.len());
    if disk == Disk::IsNotAsked {
        let in_memory = batch.iter().take_while(|_| begun.elapsed() < LONGEST_LOOK);
        found.extend(in_memory.map(|item| one::look_at(item.dir, OsStr::from_bytes(item.name))));
    }
    let rest = batch.get(found.len()..).unwrap_or_default();
    if !rest.is_empty() {
        let places: Vec<(BorrowedFd<'_>, &[u8])> = rest.iter().map(|item| (item.dir, item.name)).collect();
        let opened = ring.open_all(&places, LOOK, ResolveFlags::empty())?;
        found.extend(opened.into_iter().map(|opened| opened.and_then(|opened| one::seen_of(&opened))));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{AbsPath, Content, Mode};

    #[test]
    fn a_look_shows_the_same_whether_the_disk_is_asked_or_not() {
        let Ok(mut ring) = Ring::open() else {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to use io_uring");
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("file", directory.path().join("link")).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a fixture")]
        std::fs::write(directory.path().join("file"), "content").unwrap();
        let dir = std::fs::File::open(directory.path()).unwrap();
        let entry = |name: &str| Entry {
            path: AbsPath::new(&format!("/{name}")).unwrap(),
            content: Content::new(b"content"),
            uid: 0,
            gid: 0,
            mode: Mode::from_bits(0o644),
        };
        let entries = ["file", "link", "missing"].map(entry);
        let item = |(index, entry)| {
            let (_, name) = Entry::split(entry);
            Item { index, entry, dir: dir.as_fd(), name }
        };
        let batch: Vec<Item<'_>> = entries.iter().enumerate().map(item).collect();
        let asked = look(&mut ring, &batch, Disk::IsAsked).unwrap();
        assert_eq!(look(&mut ring, &batch, Disk::IsNotAsked).unwrap(), asked);
        assert_eq!(asked.iter().filter(|seen| seen.is_ok()).count(), 2);
        assert_eq!(asked[2], Err(Errno::NOENT));
    }
}
