//! The rolling scans: what no event tells is found by looking, again and again, at almost no cost.
//!
//! - The *quick* scan looks at every declared file's metadata and reads what does not look as it did when it was last read.
//! - The *rolling* scan reads a part of all files each time, whatever they look like, so that each is read once a round.
//!
//! What was in sync is remembered as a keyed hash of its [`Seen`], in memory only: a restart knows nothing. The kernel changes
//! the change time with every change but three, and each has an answer here:
//!
//! - A store through a mapping, to a page that is dirty already. The kernel writes the page back after half a minute, and
//!   notices the next store then. So a file whose change time is younger than that when it is read stays *unsettled*, and is
//!   read by each quick scan until it is older. On a file system in memory nothing is ever written back, and files never
//!   settle.
//! - A clock that is set, so that a change gets the time of an earlier one. After [`Scan::forget`] the next scan reads all.
//! - A raw write to the disk, or a kernel that lies: not found here, and by the rolling scan only when the file is read from
//!   the disk again.
//!
//! Nothing here judges or repairs: a finding is a resource to look at. What was found and still looks the same is not found
//! again by the quick scan, only by the rolling one, because whoever was told has its own reasons and retries.

mod thread;

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use thread::{Pace, Scanner};

use crate::host::root::Root;
use crate::host::verify::{self, Answer, Entry, Seen, Verifier};
use crate::resource::{Kind, ResourceId};

/// What is known of one file from when it was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing: read it.
    Nothing,
    /// It was in sync and looked like this.
    InSync { print: Print, settled: Settled },
    /// It was not, looked like this (`None`: nothing was there, or it could not be looked at), and that was told.
    Told { print: Option<Print>, settled: Settled },
}

/// A keyed hash of a [`Seen`]: eight bytes instead of seventy, for each of 100,000 files. Never zero, so that none costs nothing.
type Print = NonZeroU64;

fn print(key: &RandomState, seen: &Seen) -> Print {
    NonZeroU64::new(key.hash_one(seen)).unwrap_or(NonZeroU64::MIN)
}

/// Whether the kernel would change the change time with the next change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Yes,
    NotYet,
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Found {
    /// Resources to look at.
    pub look: BTreeSet<ResourceId>,
    /// Files whose metadata was looked at.
    pub n_looked: usize,
    /// Files that were read.
    pub n_read: usize,
}

impl Found {
    /// Adds what a later scan found.
    pub fn add(&mut self, later: Self) {
        self.look.extend(later.look);
        self.n_looked += later.n_looked;
        self.n_read += later.n_read;
    }
}

/// What the scans know. Time is an argument: of each scan, the time on the clock at which it begins.
#[derive(Debug)]
pub struct Scan {
    entries: Vec<Entry>,
    /// One for each entry.
    known: Vec<Known>,
    key: RandomState,
    settles_after: Duration,
    /// Whether files of a device ever settle.
    devices: HashMap<u64, Settled>,
    /// The entry that the rolling scan reads next.
    next: usize,
}

impl Scan {
    /// Knows no files yet. A file settles when its change time is older than `settles_after`, which is at least
    /// [`crate::host::background::longest_writeback`].
    pub fn new(settles_after: Duration) -> Self {
        Self {
            entries: Vec::new(),
            known: Vec::new(),
            key: RandomState::new(),
            settles_after,
            devices: HashMap::new(),
            next: 0,
        }
    }

    /// Replaces the files. What is known of one that is declared as before is kept.
    pub fn declare(&mut self, mut entries: Vec<Entry>) {
        verify::sort(&mut entries);
        let mut known = vec![Known::Nothing; entries.len()];
        let mut old = self.entries.iter().zip(&self.known).peekable();
        for (entry, place) in entries.iter().zip(&mut known) {
            while old.next_if(|(old, _)| verify::order(old, entry).is_lt()).is_some() {}
            if let Some((_, known)) = old.next_if(|(old, _)| *old == entry) {
                *place = *known;
            }
        }
        self.entries = entries;
        self.known = known;
        self.next = 0;
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets what files looked like: the next quick scan reads all. For when the clock was set.
    pub fn forget(&mut self) {
        self.known.fill(Known::Nothing);
        self.devices.clear();
    }

    /// The quick scan.
    pub fn quick(&mut self, root: &Root, now: SystemTime) -> Found {
        let mut found = Found::default();
        let mut verifier = Verifier::new(root);
        for (entry, known) in self.entries.iter().zip(&mut self.known) {
            let looks = match *known {
                // It is to be read whatever it looks like.
                Known::Nothing | Known::InSync { settled: Settled::NotYet, .. } => None,
                Known::InSync { .. } | Known::Told { .. } => {
                    found.n_looked += 1;
                    // What cannot be looked at is as good as not there: neither is in sync.
                    Some(verifier.look(entry).ok().flatten().map(|seen| print(&self.key, &seen)))
                }
            };
            let is_as_known = match (*known, looks) {
                (Known::InSync { print, .. }, Some(Some(looks))) => print == looks,
                (Known::Told { print, settled: Settled::Yes }, Some(looks)) => print == looks,
                (Known::Nothing | Known::InSync { .. } | Known::Told { .. }, _) => false,
            };
            if !is_as_known {
                let reader = Reader { key: &self.key, settles_after: self.settles_after, devices: &mut self.devices };
                reader.read(&mut verifier, entry, known, now, &mut found);
            }
        }
        found
    }

    /// The rolling scan: reads the next files, at most `n`, and begins again at the end.
    pub fn roll(&mut self, root: &Root, now: SystemTime, n: usize) -> Found {
        let mut found = Found::default();
        let mut verifier = Verifier::new(root);
        let end = self.next.saturating_add(n).min(self.entries.len());
        let part = self.next..end;
        let entries = self.entries.get(part.clone()).unwrap_or_default();
        let known = self.known.get_mut(part).unwrap_or_default();
        for (entry, known) in entries.iter().zip(known) {
            let reader = Reader { key: &self.key, settles_after: self.settles_after, devices: &mut self.devices };
            reader.read(&mut verifier, entry, known, now, &mut found);
        }
        self.next = if end == self.entries.len() { 0 } else { end };
        found
    }
}

/// What reading one file needs besides the file.
struct Reader<'a> {
    key: &'a RandomState,
    settles_after: Duration,
    devices: &'a mut HashMap<u64, Settled>,
}

impl Reader<'_> {
    fn read(
        mut self,
        verifier: &mut Verifier<'_>,
        entry: &Entry,
        known: &mut Known,
        now: SystemTime,
        found: &mut Found,
    ) {
        found.n_read += 1;
        *known = match verifier.verify(entry) {
            Answer::InSync(seen) => {
                Known::InSync { print: print(self.key, &seen), settled: self.settled(verifier, &seen, now) }
            }
            Answer::Differs | Answer::Unknown(_) => {
                found.look.insert(ResourceId::new(Kind::File, entry.path.to_string()));
                // Looked at after it was read: should it have changed in between, what is known is what nobody was told of,
                // unless it is unsettled, which a change in between makes it.
                let seen = verifier.look(entry).ok().flatten();
                Known::Told {
                    print: seen.map(|seen| print(self.key, &seen)),
                    settled: seen.map_or(Settled::Yes, |seen| self.settled(verifier, &seen, now)),
                }
            }
        };
    }

    fn settled(&mut self, verifier: &Verifier<'_>, seen: &Seen, now: SystemTime) -> Settled {
        let settles = *self
            .devices
            .entry(seen.dev)
            .or_insert_with(|| if verifier.is_in_memory() { Settled::NotYet } else { Settled::Yes });
        // A change time in the future is as young as can be.
        let is_old =
            changed_at(seen).and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age >= self.settles_after);
        if is_old { settles } else { Settled::NotYet }
    }
}

fn changed_at(seen: &Seen) -> Option<SystemTime> {
    let since_epoch = Duration::new(u64::try_from(seen.ctime_s).ok()?, seen.ctime_ns);
    UNIX_EPOCH.checked_add(since_epoch)
}
