//! What is watched and for whom: spines, targets and the watches that they share.
//!
//! A *spine* is the way from the root to one declared directory: every directory and link hop on it, missing ones
//! included. A *target* is a name at the end of a spine. Watches are keyed by the kernel's number for an inode, so two paths
//! to one directory share a watch, and it is given back when its last user is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::hash::RandomState;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;

use super::canary::Sighting;
use super::coverage::{self, Coverage, Guarded, How};
use super::rounds::{Piece, Rounds, Slice, Ticket};
use super::source::{ArmError, Flags, Source, Wd};
use super::targets::{Seen, Targets};
use super::walk::{self, Directory, End, Glance, Walker};
use super::{By, Hint, Interest, Interests, Options, Sink, Stats, Touch, Touched, Witness};
use crate::resource::ResourceId;

mod batch;
mod holds;

use batch::{Batch, Inode, dispatch};
use holds::Watch;

/// Time between looks where watches could not be had.
const POLL: Duration = Duration::from_secs(1);

/// Time between looks on file systems that report only some changes.
const POLL_SILENT: Duration = Duration::from_secs(5);

/// Most bytes of events that are read one by one: some five thousand. Each costs the kernel a descriptor of its process and us
/// a look at its name; to arm a thousand directories anew costs less.
const MOST_PENDING: u64 = 128 * 1024;

/// Walks the way alone.
const NO_NAMES: Range<usize> = 0..0;

/// Most targets that are shown to the sink at once, at some microseconds each.
const MOST_SHOWN: usize = 20_000;

pub(super) type SpineId = u64;

#[derive(Debug)]
struct Spine {
    parent: PathBuf,
    /// What it holds: watches with the name looked up in them; `None` for the directory that it ends at.
    holds: HashSet<(Wd, Option<OsString>)>,
    targets: Targets,
    /// The directory that it led to at the last walk, to look at a touched name through. Kept open only on the mount of the
    /// root: an open descriptor would keep any other mount from being unmounted.
    directory: Option<Directory>,
    guarded: Guarded,
    /// A target, by its place, that could not be given a mark of its own.
    unmarked: Option<(usize, ArmError)>,
}

/// Everything that is watched.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// Id of the mount that the root is on, if the kernel tells.
    root_mount: Option<u64>,
    source: Source,
    /// Key of the digests of what was seen.
    key: RandomState,
    spines: BTreeMap<SpineId, Spine>,
    by_parent: HashMap<PathBuf, SpineId>,
    /// When to look next where events are not enough, and how often.
    polled: HashMap<SpineId, (Instant, Duration)>,
    watches: HashMap<Wd, Watch>,
    rounds: Rounds,
    refused: Vec<Interest>,
    /// Whom mounts concern.
    of_mounts: BTreeSet<ResourceId>,
    next_id: SpineId,
    n_events: u64,
    n_overflows: u64,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, options: &Options) -> Self {
        Self {
            root_mount: walk::mount_of(&root),
            root,
            source: Source::open(options),
            key: RandomState::new(),
            spines: BTreeMap::new(),
            by_parent: HashMap::new(),
            polled: HashMap::new(),
            watches: HashMap::new(),
            rounds: Rounds::default(),
            refused: Vec::new(),
            of_mounts: BTreeSet::new(),
            next_id: 0,
            n_events: 0,
            n_overflows: 0,
        }
    }

    pub(super) fn fds(&self) -> [Option<BorrowedFd<'_>>; 2] {
        self.source.fds()
    }

    /// Makes this the whole of what is watched. What is in both the old and the new set stays armed throughout. When the ticket
    /// has come every way is armed; the names are looked at after that.
    pub(super) fn set_interests(&mut self, interests: Interests) -> Ticket {
        let Interests { wanted, refused, of_mounts } = interests;
        self.refused = refused;
        self.of_mounts = of_mounts;
        let mut kept = HashSet::new();
        let mut wanted = wanted.into_iter().peekable();
        while let Some(first) = wanted.next() {
            let parent = first.path.split().0.to_owned();
            let of_parent = std::iter::from_fn(|| wanted.next_if(|next| next.path.split().0 == parent));
            let interests: Vec<Interest> = std::iter::once(first).chain(of_parent).collect();
            let id = self.spine_for(PathBuf::from(parent));
            kept.insert(id);
            let Some(spine) = self.spines.get_mut(&id) else { continue };
            let replaced = spine.targets.replace(interests);
            spine.guarded.count(&spine.targets);
            spine.unmarked = None;
            if spine.holds.is_empty() {
                self.rounds.add_way(id);
            }
            if spine.holds.is_empty() || replaced.has_new {
                self.rounds.add_names(id);
            }
            self.rounds.renamed(id);
            for (wd, path) in replaced.released {
                self.release_mark(wd, id, path.split().1);
            }
        }
        let dropped: Vec<SpineId> = self.spines.keys().copied().filter(|id| !kept.contains(id)).collect();
        for id in dropped {
            self.remove_spine(id);
        }
        self.rounds.ticket_of_ways()
    }

    /// Reads one batch of events: what they touched goes to the sink at once, and what that leaves open is hinted. Returns how
    /// many events there were.
    pub(super) fn read(&mut self, now: Instant, sink: &mut dyn Sink) -> Result<u64, Errno> {
        let mut batch = Batch::default();
        let Self { source, spines, watches, .. } = self;
        let mut ignored = Vec::new();
        let n_events = source.read(|event| {
            if event.flags.intersects(Flags::IGNORED) {
                ignored.push(event.wd);
            }
            dispatch(event, watches, spines, &mut batch);
        })?;
        self.n_events += n_events;
        for wd in ignored {
            self.source.forget(wd);
            self.watches.remove(&wd);
        }
        if batch.overflowed {
            self.n_overflows += 1;
            tracing::warn!(n_overflows = self.n_overflows, "the kernel's event queue overflowed; looking everywhere");
            self.walk_all(now);
            self.touch_all(sink);
            sink.hint(Hint::Everything { why: "the kernel's event queue overflowed" });
            return Ok(n_events);
        }
        // Whatever came by a way that may no longer be the way is looked at by the new one, below.
        batch.touched.retain(|(id, _), _| !batch.rebuild.contains_key(id));
        let mut look = BTreeSet::new();
        for ((id, index), happened) in &batch.touched {
            self.touch(*id, *index, happened.by.as_ref(), sink, &mut look);
        }
        // Told before anything else is done: the looks below take longer than these.
        if !look.is_empty() {
            sink.hint(Hint::Look(std::mem::take(&mut look)));
        }
        let mut walker = Walker::default();
        for (id, by) in &batch.rebuild {
            self.look(*id, self.all(*id), &mut walker, now);
            for index in self.all(*id) {
                self.touch(*id, index, by.as_ref(), sink, &mut look);
            }
        }
        for ((id, index), happened) in &batch.touched {
            // A change between the event and the arming of a new mark would have gone unnoticed.
            if happened.inode == Inode::PerhapsAnother && !self.recheck(*id, *index, now).is_empty() {
                self.touch(*id, *index, happened.by.as_ref(), sink, &mut look);
            }
        }
        if !look.is_empty() {
            sink.hint(Hint::Look(look));
        }
        Ok(n_events)
    }

    /// Whether so many events wait that looking everywhere takes less time than reading them.
    pub(super) fn is_flooded(&self) -> bool {
        self.source.n_pending_bytes() > MOST_PENDING
    }

    /// Gives up the events that wait, arms everything anew and shows everything to the sink. Everything else has to be looked
    /// at after that, and the canary armed.
    pub(super) fn give_up_flood(&mut self, now: Instant, sink: &mut dyn Sink) {
        self.n_overflows += 1;
        tracing::warn!(n_overflows = self.n_overflows, "too many events to read one by one; looking everywhere");
        self.renew(now);
        self.touch_all(sink);
    }

    /// Shows every target to the sink, unless there are so many that events would wait too long. What it leaves open needs no
    /// hint of its own: everything is looked at after this.
    fn touch_all(&self, sink: &mut dyn Sink) {
        let n_targets: usize = self.spines.values().map(|spine| spine.targets.len()).sum();
        if n_targets > MOST_SHOWN {
            return;
        }
        let mut left = BTreeSet::new();
        for id in self.spines.keys() {
            for index in self.all(*id) {
                self.touch(*id, index, None, sink, &mut left);
            }
        }
    }

    /// Shows a target to the sink; adds its resources to `look` when the sink leaves it open.
    fn touch(
        &self,
        id: SpineId,
        index: usize,
        by: Option<&Arc<Witness>>,
        sink: &mut dyn Sink,
        look: &mut BTreeSet<ResourceId>,
    ) {
        let Some(spine) = self.spines.get(&id) else { return };
        let Some(target) = spine.targets.at(index) else { return };
        let opened;
        let directory = match &spine.directory {
            Some(directory) => Some(directory),
            None => {
                opened = walk::open(&self.root, walk::components(&spine.parent).unwrap_or_default());
                opened.as_ref()
            }
        };
        let touched = directory.map(|directory| {
            sink.touched(&Touch {
                directory: directory.as_fd(),
                mount: directory.mount(),
                name: target.name(),
                resources: target.resources(),
                by,
            })
        });
        match touched {
            Some(Touched::Settled) => {}
            Some(Touched::Look) | None => look.extend(target.resources().iter().cloned()),
        }
    }

    /// The places of all targets of a spine.
    fn all(&self, id: SpineId) -> Range<usize> {
        0..self.spines.get(&id).map_or(0, |spine| spine.targets.len())
    }

    /// Every way is to be walked and every name looked at again, as after mounts changed; what is another thing than before is
    /// passed on. Mounts come and go with every service that has credentials, so this must not mean "look at everything".
    pub(super) fn refresh(&mut self) {
        for id in self.spines.keys() {
            self.rounds.add_names(*id);
        }
    }

    /// Comes when everything that is to be done now is done.
    pub(super) fn ticket(&self) -> Ticket {
        self.rounds.ticket()
    }

    /// Whether everything is done that was to be done when the ticket was drawn.
    pub(super) fn has_come(&self, ticket: Ticket) -> bool {
        self.rounds.has_come(ticket)
    }

    /// Whether there is something to walk or to look at.
    pub(super) fn has_work(&self) -> bool {
        !self.rounds.is_empty()
    }

    /// Walks and looks for a fraction of a millisecond, and passes on the targets that differ from the last look.
    pub(super) fn work(&mut self, now: Instant, sink: &mut dyn Sink) {
        let (mut slice, mut walker) = (Slice::new(), Walker::default());
        let mut look = BTreeSet::new();
        loop {
            let n_names = |id| self.spines.get(&id).map_or(0, |spine: &Spine| spine.targets.len());
            let Some(piece) = self.rounds.next(&mut slice, n_names) else { break };
            match piece {
                Piece::Way(id) => {
                    self.look(id, NO_NAMES, &mut walker, now);
                }
                Piece::Names(id, names) => self.compare(id, names, &mut walker, now, &mut look),
            }
        }
        if !look.is_empty() {
            sink.hint(Hint::Look(look));
        }
    }

    /// Hints whom mounts concern: something was mounted, unmounted or mounted in another way.
    pub(super) fn mounts_changed(&self, sink: &mut dyn Sink) {
        if !self.of_mounts.is_empty() {
            sink.hint(Hint::Look(self.of_mounts.clone()));
        }
    }

    /// Gives every watch back and arms every way anew. Everything has to be looked at after that, and the canary armed.
    pub(super) fn renew(&mut self, now: Instant) {
        self.source.renew();
        self.walk_all(now);
    }

    /// Watches the directory of the canary. Returns by which sources.
    pub(super) fn arm_canary(&mut self, directory: &OwnedFd) -> BTreeSet<By> {
        self.source.arm_canary(directory.as_fd())
    }

    /// What was seen of the canary since the last call.
    pub(super) fn sightings(&mut self) -> Vec<Sighting> {
        self.source.sightings()
    }

    /// Whether so much is watched that is no longer wanted that it is time for [`Tree::renew`].
    pub(super) fn is_littered(&self) -> bool {
        self.source.is_littered()
    }

    /// The polled spines that are due are to be looked at.
    pub(super) fn poll(&mut self, now: Instant) {
        let mut any = false;
        for (id, (at, interval)) in self.polled.iter_mut().filter(|(_, (at, _))| *at <= now) {
            *at = now + *interval;
            self.rounds.add_names(*id);
            any = true;
        }
        if any {
            self.source.reopen();
        }
    }

    /// When [`Tree::poll`] has something to do.
    pub(super) fn next_poll(&self) -> Option<Instant> {
        self.polled.values().map(|(at, _)| *at).min()
    }

    pub(super) fn coverage(&self) -> Coverage {
        coverage::survey(self.spines.values().map(|spine| (&spine.guarded, &spine.targets)), &self.refused)
    }

    pub(super) fn stats(&self) -> Stats {
        Stats { n_watches: self.source.n_watches(), n_events: self.n_events, n_overflows: self.n_overflows }
    }

    fn spine_for(&mut self, parent: PathBuf) -> SpineId {
        if let Some(id) = self.by_parent.get(&parent) {
            return *id;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.by_parent.insert(parent.clone(), id);
        let spine = Spine {
            parent,
            holds: HashSet::new(),
            targets: Targets::default(),
            directory: None,
            guarded: Guarded::new(),
            unmarked: None,
        };
        self.spines.insert(id, spine);
        id
    }

    fn remove_spine(&mut self, id: SpineId) {
        let Some(spine) = self.spines.remove(&id) else { return };
        self.polled.remove(&id);
        self.by_parent.remove(&spine.parent);
        for target in spine.targets.iter() {
            if let Some(wd) = target.mark() {
                self.release_mark(wd, id, target.name());
            }
        }
        for hold in &spine.holds {
            self.release(id, hold);
        }
    }

    fn resources(&self, id: SpineId) -> BTreeSet<ResourceId> {
        let targets = self.spines.get(&id).into_iter().flat_map(|spine| spine.targets.iter());
        targets.flat_map(|target| target.resources().iter().cloned()).collect()
    }

    /// Walks every way at once, because nobody is heard of until then. The names come later.
    fn walk_all(&mut self, now: Instant) {
        let ids: Vec<SpineId> = self.spines.keys().copied().collect();
        let mut walker = Walker::default();
        for id in ids {
            self.look(id, NO_NAMES, &mut walker, now);
            self.rounds.add_names(id);
        }
    }

    /// Walks a spine again and adds the resources of the targets that differ from the last look: all, when the way does.
    fn compare(
        &mut self,
        id: SpineId,
        names: Range<usize>,
        walker: &mut Walker,
        now: Instant,
        look: &mut BTreeSet<ResourceId>,
    ) {
        let Some(before) = self.spines.get(&id).map(|spine| spine.holds.clone()) else { return };
        let differing = self.look(id, names, walker, now).differing;
        let is_same_way = self.spines.get(&id).is_none_or(|spine| spine.holds == before);
        if is_same_way {
            look.extend(differing);
        } else {
            look.extend(self.resources(id));
        }
    }

    /// Looks again at one target. Returns its resources when it had to be armed anew.
    fn recheck(&mut self, id: SpineId, index: usize, now: Instant) -> BTreeSet<ResourceId> {
        let Some(spine) = self.spines.get(&id) else { return BTreeSet::new() };
        let Some(target) = spine.targets.at(index) else { return BTreeSet::new() };
        let Some(directory) = &spine.directory else { return self.look_at(id, index, now).armed };
        // The way here has not changed, or the whole spine would be walked again.
        let (seen, armed) = walk::glance(directory, target.name(), target.tells(), &mut self.source);
        let mut looked = Looked::default();
        match armed {
            Some(Err(_)) => return self.look_at(id, index, now).armed,
            Some(Ok(wd)) => self.seen(id, index, &seen, Some(wd), &mut looked),
            None => self.seen(id, index, &seen, None, &mut looked),
        }
        looked.armed
    }

    fn look_at(&mut self, id: SpineId, index: usize, now: Instant) -> Looked {
        self.look(id, index..index + 1, &mut Walker::default(), now)
    }

    /// Walks a spine again, arms what it needs, gives back what it no longer needs, and looks at some of its targets.
    fn look(&mut self, id: SpineId, indices: Range<usize>, walker: &mut Walker, now: Instant) -> Looked {
        let mut looked = Looked::default();
        let Some(parent) = self.spines.get(&id).map(|spine| spine.parent.clone()) else { return looked };
        // Only validated paths become spines, so there always are components.
        let components = walk::components(&parent).unwrap_or_default();
        let walk = walker.walk(&self.root, components, Some(&mut self.source));
        let mut nearest = walk.steps.last().map(|(wd, _)| *wd);
        let mut holds: HashSet<(Wd, Option<OsString>)> =
            walk.steps.into_iter().map(|(wd, name)| (wd, Some(name))).collect();
        if let End::Directory(Directory { wd: Some(wd), .. }) = &walk.end {
            holds.insert((*wd, None));
            nearest = Some(*wd);
        }
        self.hold(id, holds);
        let mut unmarked = None;
        for index in indices.clone() {
            let Some(target) = self.spines.get(&id).and_then(|spine| spine.targets.at(index)) else { break };
            let (seen, armed) = match &walk.end {
                End::Directory(directory) => walk::glance(directory, target.name(), target.tells(), &mut self.source),
                End::Missing => (Glance::Absent, None),
                End::Unreadable(errno) => (Glance::Unreadable(*errno), None),
            };
            let mark = match armed {
                Some(Ok(wd)) => Some(wd),
                Some(Err(error)) => {
                    unmarked.get_or_insert((index, error));
                    None
                }
                None => None,
            };
            self.seen(id, index, &seen, mark, &mut looked);
        }
        let Some(spine) = self.spines.get_mut(&id) else { return looked };
        if unmarked.is_some() || spine.unmarked.is_some_and(|(index, _)| indices.contains(&index)) {
            spine.unmarked = unmarked;
        }
        spine.guarded.guarded_by(nearest);
        spine.directory = match walk.end {
            End::Directory(directory) if Some(directory.mount()) == self.root_mount => Some(directory),
            End::Directory(_) | End::Missing | End::Unreadable(_) => None,
        };
        let failed = walk.failed.or(spine.unmarked.map(|(_, error)| error));
        self.cover(id, failed, walk.silent, now);
        looked
    }

    /// Records one look at a target.
    fn seen(&mut self, id: SpineId, index: usize, seen: &Glance, mark: Option<Wd>, looked: &mut Looked) {
        let Some(spine) = self.spines.get_mut(&id) else { return };
        let Some(target) = spine.targets.at_mut(index) else { return };
        let seen = Seen::new(seen, &self.key, SystemTime::now());
        if target.seen.differs_from(seen) {
            looked.differing.extend(target.resources().iter().cloned());
        }
        let n_unreadable = coverage::n_unreadable(target);
        target.seen = seen;
        spine.guarded.recount(n_unreadable, target);
        let before = target.set_mark(mark);
        if before == mark {
            return;
        }
        looked.armed.extend(target.resources().iter().cloned());
        let path = target.path();
        let name = path.split().1;
        if let Some(wd) = mark {
            self.watches.entry(wd).or_default().marks.insert((id, name.to_owned()));
        }
        if let Some(wd) = before {
            self.release_mark(wd, id, name);
        }
    }

    /// Records how a spine is guarded, and when it is to be polled.
    fn cover(&mut self, id: SpineId, failed: Option<ArmError>, silent: Option<&'static str>, now: Instant) {
        let Some(spine) = self.spines.get_mut(&id) else { return };
        let (how, interval) = match (failed, silent) {
            (Some(error), _) => (How::Polled { why: error.to_string() }, Some(POLL)),
            (None, Some(why)) => (How::Polled { why: why.to_owned() }, Some(POLL_SILENT)),
            (None, None) if spine.guarded.has_unreadable() => (How::Watched, Some(POLL_SILENT)),
            (None, None) => (How::Watched, None),
        };
        match interval {
            Some(interval) => self.polled.insert(id, (now + interval, interval)),
            None => self.polled.remove(&id),
        };
        if spine.guarded.how != how {
            match &how {
                How::Polled { why } | How::Blind { why } => {
                    tracing::warn!(path = %spine.parent.display(), why, "polling instead of watching");
                }
                How::Watched => tracing::info!(path = %spine.parent.display(), "watching again"),
            }
            spine.guarded.how = how;
        }
    }
}

/// What a look at targets found.
#[derive(Debug, Default)]
struct Looked {
    differing: BTreeSet<ResourceId>,
    armed: BTreeSet<ResourceId>,
}
