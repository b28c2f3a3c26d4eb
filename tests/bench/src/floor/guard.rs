//! A guard in one thread: raw inotify, look, put back a replica that lies ready.
//!
//! Every replica is made and on the disk before the first drift, one for each drift to come: making the next one is no part
//! of the floor. With [`Guarded::durable`] a second thread makes each repair durable and the next replica, as a product must.

use std::collections::HashMap;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::mpsc;

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MlockAllFlags, mlockall};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, RenameFlags, fchmod, fstat, fsync, mkdir, open, openat, renameat_with, syncfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::clock::{self, Stamp};
use crate::foreign::Kind;
use crate::process::{answer, read_spec, say_ready};
use crate::tree;

/// What to guard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Guarded {
    /// The files, and the number of the content of each. They are there and as declared.
    pub files: Vec<(PathBuf, usize)>,
    /// The one kind of drift that is noticed.
    pub kind: Kind,
    /// Replicas to make of each file beforehand.
    pub n_replicas: usize,
    /// A directory to make, for the replicas: on the same file system.
    pub pool: PathBuf,
    /// Whether each repair is made durable, and a replica made for the one used up.
    pub durable: bool,
}

/// What the guard did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarding {
    /// When the system call of each repair had returned.
    pub repaired: Vec<Stamp>,
    /// When each repair was durable, in the same order; empty unless asked for.
    pub durable: Vec<Stamp>,
}

/// A guarded file.
struct Entry {
    directory: usize,
    name: CString,
    content: Vec<u8>,
    replicas: Vec<CString>,
}

struct Guard {
    directories: Vec<OwnedFd>,
    entries: Vec<Entry>,
    /// By watch and name.
    by_event: HashMap<(i32, Vec<u8>), usize>,
    pool: OwnedFd,
    inotify: OwnedFd,
    buffer: Vec<u8>,
}

/// Guards until its input ends; answers with a [`Guarding`].
pub fn main() -> Result<()> {
    let spec: Guarded = read_spec()?;
    let mut guard = Guard::new(&spec)?;
    // Only the privileged may lock memory without bound; the floor is then what it is.
    mlockall(MlockAllFlags::MCL_CURRENT).ok();
    let (used, to_do) = mpsc::channel();
    let keeper = spec.durable.then(|| Keeper::new(&guard)).transpose()?;
    let keeper = keeper.map(|keeper| std::thread::spawn(move || keeper.run(&to_do)));
    say_ready()?;
    let mut repaired = Vec::with_capacity(spec.files.len() * spec.n_replicas);
    guard.run(&mut |repair, entry, replica| {
        repaired.push(repair);
        // Without a keeper nobody listens.
        drop(used.send((entry, replica)));
    })?;
    drop(used);
    let durable = match keeper {
        Some(keeper) => keeper.join().map_err(|_panic| anyhow::anyhow!("the keeper panicked"))??,
        None => Vec::new(),
    };
    answer(&Guarding { repaired, durable })
}

impl Guard {
    fn new(spec: &Guarded) -> Result<Self> {
        mkdir(&spec.pool, Mode::RWXU).context("cannot make the pool of replicas")?;
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let pool = open(&spec.pool, directory, Mode::empty())?;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("cannot open inotify")?;
        let mut guard = Self {
            directories: Vec::new(),
            entries: Vec::new(),
            by_event: HashMap::new(),
            pool,
            inotify,
            buffer: vec![0; 2 * tree::SIZE],
        };
        let mask = match spec.kind {
            Kind::Content => WatchFlags::CLOSE_WRITE,
            Kind::Mode => WatchFlags::ATTRIB,
            Kind::Delete => WatchFlags::DELETE,
            Kind::RenameOver => WatchFlags::MOVED_TO,
        };
        let mut known: HashMap<PathBuf, (usize, i32)> = HashMap::new();
        for (index, (path, class)) in spec.files.iter().enumerate() {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { bail!("no file: {path:?}") };
            let (directory, watch) = match known.get(parent) {
                Some(known) => *known,
                None => {
                    let watch = inotify::add_watch(&guard.inotify, parent, mask)?;
                    guard.directories.push(open(parent, directory, Mode::empty())?);
                    let found = (guard.directories.len() - 1, watch);
                    known.insert(parent.to_owned(), found);
                    found
                }
            };
            let content = tree::content(*class);
            let replicas = (0..spec.n_replicas)
                .map(|n| {
                    let name = CString::new(format!("{index}.{n}"))?;
                    write_replica(&guard.pool, &name, &content)?;
                    Ok(name)
                })
                .collect::<Result<Vec<CString>>>()?;
            guard.by_event.insert((watch, name.as_bytes().to_vec()), guard.entries.len());
            guard.entries.push(Entry { directory, name: CString::new(name.as_bytes())?, content, replicas });
        }
        syncfs(&guard.pool).context("cannot bring the replicas to the disk")?;
        Ok(guard)
    }

    fn run(&mut self, on_repair: &mut dyn FnMut(Stamp, usize, CString)) -> Result<()> {
        let stdin = std::io::stdin();
        let mut events = [MaybeUninit::uninit(); 64 * 1024];
        let inotify = self.inotify.try_clone()?;
        let mut key = (0, Vec::with_capacity(256));
        loop {
            let mut ready =
                [PollFd::new(inotify.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
            poll(&mut ready, PollTimeout::NONE)?;
            let [has_events, has_input] = ready.map(|fd| fd.any().unwrap_or(true));
            if has_events {
                let mut reader = inotify::Reader::new(&inotify, &mut events);
                loop {
                    let event = match reader.next() {
                        Ok(event) => event,
                        Err(Errno::AGAIN) => break,
                        Err(error) => return Err(error).context("cannot read events"),
                    };
                    let Some(name) = event.file_name() else { continue };
                    key.0 = event.wd();
                    key.1.clear();
                    key.1.extend_from_slice(name.to_bytes());
                    if let Some(entry) = self.by_event.get(&key).copied()
                        && let Some((repaired, replica)) = self.look(entry)?
                    {
                        on_repair(repaired, entry, replica);
                    }
                }
            } else if has_input {
                return Ok(());
            }
        }
    }

    /// Looks at one file and restores it. Returns when that was done, and the replica that was used up.
    fn look(&mut self, entry: usize) -> Result<Option<(Stamp, CString)>> {
        let entry = self.entries.get_mut(entry).context("an entry that was made")?;
        let directory = self.directories.get(entry.directory).context("a directory that was opened")?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let how = match openat(directory, &*entry.name, flags, Mode::empty()) {
            Err(Errno::NOENT) => RenameFlags::NOREPLACE,
            Err(error) => return Err(error).context("cannot open a guarded file"),
            Ok(file) => {
                let mode = fstat(&file)?.st_mode & 0o7777;
                let n = rustix::io::read(&file, &mut *self.buffer)?;
                if self.buffer.get(..n) != Some(&entry.content) {
                    RenameFlags::EXCHANGE
                } else if mode != tree::MODE {
                    fchmod(&file, Mode::from_raw_mode(tree::MODE))?;
                    return Ok(Some((clock::now()?, CString::default())));
                } else {
                    return Ok(None);
                }
            }
        };
        let replica = entry.replicas.pop().context("no replica is left")?;
        renameat_with(&self.pool, &*replica, directory, &*entry.name, how).context("cannot put a replica in place")?;
        Ok(Some((clock::now()?, replica)))
    }
}

/// Makes durable what was repaired.
struct Keeper {
    directories: Vec<OwnedFd>,
    pool: OwnedFd,
    /// Directory and content of each entry.
    entries: Vec<(usize, Vec<u8>)>,
}

impl Keeper {
    fn new(guard: &Guard) -> Result<Self> {
        let directories = guard.directories.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?;
        let entries = guard.entries.iter().map(|entry| (entry.directory, entry.content.clone())).collect();
        Ok(Self { directories, pool: guard.pool.try_clone()?, entries })
    }

    fn run(self, to_do: &mpsc::Receiver<(usize, CString)>) -> Result<Vec<Stamp>> {
        let mut durable = Vec::new();
        while let Ok(first) = to_do.recv() {
            // One flush for everything that has come meanwhile.
            let batch: Vec<(usize, CString)> = std::iter::once(first).chain(to_do.try_iter()).collect();
            let mut dirty: Vec<usize> =
                batch.iter().filter_map(|(entry, _)| Some(self.entries.get(*entry)?.0)).collect();
            dirty.sort_unstable();
            dirty.dedup();
            for directory in dirty.iter().filter_map(|directory| self.directories.get(*directory)) {
                fsync(directory).context("cannot make a repair durable")?;
            }
            let now = clock::now()?;
            durable.extend(batch.iter().map(|_| now));
            for (entry, replica) in &batch {
                let Some((_, content)) = self.entries.get(*entry) else { continue };
                if !replica.is_empty() {
                    let name = CString::new([replica.as_bytes(), b".next"].concat())?;
                    fsync(&write_replica(&self.pool, &name, content)?).context("cannot make a replica durable")?;
                }
            }
        }
        Ok(durable)
    }
}

fn write_replica(pool: &OwnedFd, name: &CString, content: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(pool, &**name, flags, Mode::RUSR | Mode::WUSR).context("cannot make a replica")?;
    ensure!(rustix::io::write(&file, content)? == content.len(), "a replica was written in part");
    fchmod(&file, Mode::from_raw_mode(tree::MODE))?;
    Ok(file)
}
