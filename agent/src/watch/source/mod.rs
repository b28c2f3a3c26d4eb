//! Where events come from: the kernel's inotify, and its fanotify where that can be had.
//!
//! Both feed one kind of [`Event`]. Directories are armed with fanotify where kernel, privilege and file system allow, which is
//! found out by trying: it says who did it, and its limits are not shared with every other program of root. Everything else
//! is armed with inotify. What is armed is always behind a descriptor that was opened without following a link, so that what
//! is watched is exactly what was looked at, whatever happens to its name meanwhile.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use self::fanotify::Fanotify;
use self::inotify::Inotify;
use super::canary::Sighting;
use super::{By, Options, Sources};
use crate::host::nest;
use crate::host::process::{Witness, witness};

mod fanotify;
mod inotify;

/// Identifies a watched inode. Numbers are not reused while the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Wd(u64);

impl Wd {
    const FANOTIFY: u64 = 1 << 63;

    pub(super) fn inotify(instance: u32, wd: i32) -> Self {
        Self(u64::from(instance & 0x7FFF_FFFF) << 32 | u64::from(wd.cast_unsigned()))
    }

    fn fanotify(number: u64) -> Self {
        Self(Self::FANOTIFY | number)
    }

    /// Who guards it.
    pub(super) fn by(self) -> By {
        if self.0 & Self::FANOTIFY == 0 { By::Inotify } else { By::Fanotify }
    }

    /// The number that the kernel knows it by within an inotify instance, if it is of that one.
    fn within(self, instance: u32) -> Option<i32> {
        let Self(number) = self;
        let of = Self::inotify(instance, 0).0;
        u32::try_from(number.checked_sub(of)?).ok().map(u32::cast_signed)
    }
}

/// What happened, as far as any source tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags(u32);

impl Flags {
    /// Content changed.
    pub(super) const MODIFY: Self = Self(0x0002);
    /// Metadata changed, the number of links included.
    pub(super) const ATTRIB: Self = Self(0x0004);
    /// A writer closed it.
    pub(super) const CLOSE_WRITE: Self = Self(0x0008);
    /// The name went elsewhere.
    pub(super) const MOVED_FROM: Self = Self(0x0040);
    /// The name came from elsewhere.
    pub(super) const MOVED_TO: Self = Self(0x0080);
    /// The name was made.
    pub(super) const CREATE: Self = Self(0x0100);
    /// The name was removed.
    pub(super) const DELETE: Self = Self(0x0200);
    /// The watched inode is gone.
    pub(super) const DELETE_SELF: Self = Self(0x0400);
    /// The watched inode has another name.
    pub(super) const MOVE_SELF: Self = Self(0x0800);
    /// The file system of the watched inode was unmounted.
    pub(super) const UNMOUNT: Self = Self(0x2000);
    /// Events were lost.
    pub(super) const OVERFLOW: Self = Self(0x4000);
    /// The kernel watches the inode no longer.
    pub(super) const IGNORED: Self = Self(0x8000);

    pub(super) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// From a number in which the kernel gives these flags the same bits in both interfaces.
    fn from_kernel(bits: u32) -> Self {
        Self(bits & Self::KERNEL)
    }

    const KERNEL: u32 = Self::MODIFY.0
        | Self::ATTRIB.0
        | Self::CLOSE_WRITE.0
        | Self::MOVED_FROM.0
        | Self::MOVED_TO.0
        | Self::CREATE.0
        | Self::DELETE.0
        | Self::DELETE_SELF.0
        | Self::MOVE_SELF.0
        | Self::OVERFLOW.0;
}

/// What a watch is for; it selects the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Names in a directory.
    Entries,
    /// A directory's own attributes.
    DirectoryItself,
    /// A regular file's own content and attributes.
    FileItself,
}

/// Whether everything that is known of a witness says that it is this very process.
fn is_myself(witness: &Witness) -> bool {
    witness.is_self() && witness.info.is_none_or(|info| info.pid == witness.pid)
}

/// What fanotify said about the process that caused an event.
#[derive(Debug)]
struct Writer {
    pid: u32,
    pidfd: Option<OwnedFd>,
}

/// One event.
#[derive(Debug)]
pub(super) struct Event<'a> {
    pub(super) wd: Wd,
    pub(super) flags: Flags,
    /// Empty when it concerns the watched inode itself.
    pub(super) name: &'a [u8],
    writer: RefCell<Option<Writer>>,
    witness: OnceCell<Option<Arc<Witness>>>,
}

impl<'a> Event<'a> {
    fn new(wd: Wd, flags: Flags, name: &'a [u8], writer: Option<Writer>) -> Self {
        Self { wd, flags, name, writer: RefCell::new(writer), witness: OnceCell::new() }
    }

    /// Who did it; `None` where the source cannot tell. Costs a microsecond the first time, so ask only about what matters; ask
    /// at once, because short-lived processes are forgotten soon.
    pub(super) fn witness(&self) -> Option<Arc<Witness>> {
        let resolve = || {
            let Writer { pid, pidfd } = self.writer.take()?;
            Some(Arc::new(witness((pid != 0).then_some(pid), pidfd)))
        };
        self.witness.get_or_init(resolve).clone()
    }
}

/// Why a watch could not be armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArmError {
    /// No instance could be had.
    NoInstance(Errno),
    /// No more watches can be had.
    NoWatches,
    /// The kernel refused this one.
    Refused(Errno),
}

impl std::fmt::Display for ArmError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoInstance(Errno::MFILE) => {
                f.write_str("no inotify instance left; raise fs.inotify.max_user_instances")
            }
            Self::NoInstance(errno) => write!(f, "no inotify instance: {errno}"),
            Self::NoWatches => f.write_str("no inotify watch left; raise fs.inotify.max_user_watches"),
            Self::Refused(errno) => write!(f, "inotify refuses: {errno}"),
        }
    }
}

/// All sources, and their watches.
#[derive(Debug)]
pub(super) struct Source {
    inotify: Inotify,
    fanotify: Option<Fanotify>,
    sources: Sources,
    max_watches: usize,
    canary: Vec<Egg>,
    sightings: Vec<Sighting>,
}

/// A watch of the canary.
#[derive(Debug)]
struct Egg {
    wd: Wd,
    /// Something happened that explains why the kernel stops watching it.
    is_gone: bool,
}

impl Source {
    /// Opens what can be had. Where nothing can, every arming fails and says why.
    pub(super) fn open(options: &Options) -> Self {
        // First thing: instances are few, and every daemon of root takes from the same.
        let inotify = Inotify::open();
        let fanotify = open_fanotify(options.sources);
        Self {
            inotify,
            fanotify,
            sources: options.sources,
            max_watches: options.max_watches,
            canary: Vec::new(),
            sightings: Vec::new(),
        }
    }

    /// Tries again to get what could not be had.
    pub(super) fn reopen(&mut self) {
        self.inotify.reopen();
    }

    /// Gives every watch back and begins anew. What happens until everything is armed again goes unseen: look at everything
    /// after that.
    pub(super) fn renew(&mut self) {
        self.inotify.renew();
        // The old one first: groups are few as well.
        self.fanotify = None;
        self.fanotify = open_fanotify(self.sources);
        self.canary.clear();
    }

    /// Watches the directory of the canary with every source that can be had. Returns which these are.
    pub(super) fn arm_canary(&mut self, directory: BorrowedFd<'_>) -> BTreeSet<By> {
        let fanotify = self.fanotify.as_mut().and_then(|source| source.arm(directory, Purpose::Entries, usize::MAX));
        let inotify = self.inotify.arm(directory, Purpose::Entries, usize::MAX).ok();
        self.canary = fanotify.into_iter().chain(inotify).map(|wd| Egg { wd, is_gone: false }).collect();
        self.canary.iter().map(|egg| egg.wd.by()).collect()
    }

    /// What was seen of the canary since the last call.
    pub(super) fn sightings(&mut self) -> Vec<Sighting> {
        std::mem::take(&mut self.sightings)
    }

    /// Whether the kernel still watches so much that is no longer wanted that it is time to begin anew.
    pub(super) fn is_littered(&self) -> bool {
        self.fanotify.as_ref().is_some_and(Fanotify::is_littered)
    }

    /// What to poll for events.
    pub(super) fn fds(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [self.inotify.as_fd(), self.fanotify.as_ref().map(AsFd::as_fd)]
    }

    /// Bytes of events that wait to be read, of all sources.
    pub(super) fn n_pending_bytes(&self) -> u64 {
        self.fds().into_iter().flatten().filter_map(|fd| rustix::io::ioctl_fionread(fd).ok()).max().unwrap_or(0)
    }

    /// Watches held now.
    pub(super) fn n_watches(&self) -> usize {
        self.inotify.n_watches() + self.fanotify.as_ref().map_or(0, Fanotify::n_watches)
    }

    /// Watches the inode behind `target`, in addition to what it is already watched for. Idempotent; repeating it also arms
    /// again what the kernel has dropped without a word.
    pub(super) fn arm(&mut self, target: BorrowedFd<'_>, purpose: Purpose) -> Result<Wd, ArmError> {
        let room = self.max_watches.saturating_sub(self.n_watches());
        if let Some(fanotify) = &mut self.fanotify
            && let Some(wd) = fanotify.arm(target, purpose, room)
        {
            return Ok(wd);
        }
        self.inotify.arm(target, purpose, room)
    }

    /// Gives a watch back.
    pub(super) fn disarm(&mut self, wd: Wd) {
        match wd.by() {
            By::Inotify => self.inotify.disarm(wd),
            By::Fanotify => self.fanotify.iter_mut().for_each(|fanotify| fanotify.disarm(wd)),
        }
    }

    /// Forgets a watch that the kernel has removed.
    pub(super) fn forget(&mut self, wd: Wd) {
        match wd.by() {
            By::Inotify => self.inotify.forget(wd),
            By::Fanotify => self.fanotify.iter_mut().for_each(|fanotify| fanotify.forget(wd)),
        }
    }

    /// Reads one buffer full of events from each source. Returns how many.
    pub(super) fn read(&mut self, mut on_event: impl FnMut(&Event<'_>)) -> Result<u64, Errno> {
        let Self { inotify, fanotify, canary, sightings, .. } = self;
        let mut on_event = |event: &Event<'_>| {
            if let Some(egg) = canary.iter_mut().find(|egg| egg.wd == event.wd) {
                sightings.extend(egg.sighting(event));
            }
            on_event(event);
        };
        let mut n_events = 0;
        if let Some(fanotify) = fanotify {
            n_events += fanotify.read(&mut on_event)?;
        }
        n_events += inotify.read(&mut on_event)?;
        Ok(n_events)
    }
}

impl Egg {
    fn sighting(&mut self, event: &Event<'_>) -> Option<Sighting> {
        let by = self.wd.by();
        self.is_gone |= event.flags.intersects(Flags::DELETE_SELF.union(Flags::UNMOUNT));
        if event.flags.intersects(Flags::IGNORED) {
            return Some(if self.is_gone { Sighting::Gone } else { Sighting::Lost(by) });
        }
        if event.name != nest::EGG.as_bytes() {
            return None;
        }
        // Content, not arrival alone: a source that names the wrong process is worse than one that names none.
        let is_right = match by {
            By::Inotify => true,
            By::Fanotify => event.witness().is_some_and(|witness| is_myself(&witness)),
        };
        Some(if is_right { Sighting::Seen(by) } else { Sighting::Mistaken(by) })
    }
}

fn open_fanotify(sources: Sources) -> Option<Fanotify> {
    match sources {
        Sources::InotifyOnly => None,
        Sources::All => Fanotify::open()
            .inspect_err(|error| tracing::info!("no fanotify, so nobody will know who changed something: {error}"))
            .ok(),
    }
}
