//! What is watched and for whom: spines, targets and the watches that they share.
//!
//! A *spine* is the way from the root to one declared directory: every directory and link hop on it, missing ones
//! included. A *target* is a name at the end of a spine. Watches are keyed by the kernel's number for an inode, so two paths
//! to one directory share a watch, and it is given back when its last user is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::RandomState;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;

use super::canary::Sighting;
use super::coverage::{self, Coverage, Guarded, How};
use super::source::{ArmError, Event, Flags, Source, Wd};
use super::targets::{self, Seen, Targets};
use super::walk::{self, Directory, End, Glance};
use super::{By, Hint, Interest, Options, Sink, Stats, Touch, Touched, Witness};
use crate::resource::ResourceId;

/// Time between looks where watches could not be had.
const POLL: Duration = Duration::from_secs(1);

/// Time between looks on file systems that report only some changes.
const POLL_SILENT: Duration = Duration::from_secs(5);

/// Events after which a name may mean something else than before.
const STRUCTURE: Flags =
    Flags::CREATE.union(Flags::DELETE).union(Flags::MOVED_FROM).union(Flags::MOVED_TO).union(Flags::ATTRIB);

/// Events after which a watched inode is no longer where it was.
const GONE: Flags = Flags::IGNORED.union(Flags::UNMOUNT).union(Flags::DELETE_SELF).union(Flags::MOVE_SELF);

/// Most bytes of events that are read one by one: some five thousand. Each costs the kernel a descriptor of its process and us
/// a look at its name; to arm a thousand directories anew costs less.
const MOST_PENDING: u64 = 128 * 1024;

/// Most targets that are shown to the sink at once, at some microseconds each.
const MOST_SHOWN: usize = 20_000;

type SpineId = u64;

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
}

/// The users of one watched inode.
#[derive(Debug, Default)]
struct Watch {
    /// Spines that look a name up here.
    steps: HashMap<OsString, BTreeSet<SpineId>>,
    /// Spines that end here.
    ends: BTreeSet<SpineId>,
    /// Targets that are this inode.
    marks: BTreeSet<(SpineId, OsString)>,
}

impl Watch {
    fn is_unused(&self) -> bool {
        self.steps.is_empty() && self.ends.is_empty() && self.marks.is_empty()
    }
}

/// What a batch of events asks for.
#[derive(Debug, Default)]
struct Batch {
    /// Targets that something happened to, by their place in the spine.
    touched: BTreeMap<(SpineId, usize), Happened>,
    /// Spines whose way may have changed, and who changed it.
    rebuild: BTreeMap<SpineId, Option<Arc<Witness>>>,
    overflowed: bool,
}

/// What happened to a name.
#[derive(Debug)]
struct Happened {
    inode: Inode,
    /// Who did the last of it.
    by: Option<Arc<Witness>>,
}

/// Whether a name still means the inode that it meant at the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Inode {
    Same,
    PerhapsAnother,
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
    refused: Vec<Interest>,
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
            refused: Vec::new(),
            next_id: 0,
            n_events: 0,
            n_overflows: 0,
        }
    }

    pub(super) fn fds(&self) -> [Option<BorrowedFd<'_>>; 2] {
        self.source.fds()
    }

    /// Makes `interests` the whole of what is watched. What is in both the old and the new set stays armed throughout.
    pub(super) fn set_interests(&mut self, interests: Vec<Interest>, now: Instant) {
        let (mut wanted, refused): (Vec<_>, _) =
            interests.into_iter().partition(|interest| walk::components(&interest.path).is_some());
        self.refused = refused;
        targets::sort(&mut wanted);
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
            if spine.holds.is_empty() || replaced.has_new {
                self.rebuild(id, now);
            }
            for (wd, path) in replaced.released {
                self.release_mark(wd, id, path.split().1);
            }
        }
        let dropped: Vec<SpineId> = self.spines.keys().copied().filter(|id| !kept.contains(id)).collect();
        for id in dropped {
            self.remove_spine(id);
        }
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
            self.rebuild_all(now);
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
        for (id, by) in &batch.rebuild {
            self.rebuild(*id, now);
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

    /// Walks every spine again, as after mounts changed, and passes on what is another thing than before. Mounts come and
    /// go with every service that has credentials, so this must not mean "look at everything".
    pub(super) fn compare_all(&mut self, now: Instant, sink: &mut dyn Sink) {
        let ids: Vec<SpineId> = self.spines.keys().copied().collect();
        self.compare(&ids, now, sink);
    }

    /// Gives every watch back and arms everything anew. Everything has to be looked at after that, and the canary armed.
    pub(super) fn renew(&mut self, now: Instant) {
        self.source.renew();
        self.rebuild_all(now);
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

    /// Looks at the polled spines that are due.
    pub(super) fn poll(&mut self, now: Instant, sink: &mut dyn Sink) {
        let due: Vec<SpineId> = self.polled.iter().filter(|(_, (at, _))| *at <= now).map(|(id, _)| *id).collect();
        if !due.is_empty() {
            self.source.reopen();
            self.compare(&due, now, sink);
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

    fn rebuild_all(&mut self, now: Instant) {
        let ids: Vec<SpineId> = self.spines.keys().copied().collect();
        for id in ids {
            self.rebuild(id, now);
        }
    }

    /// Walks spines again and passes on the targets that differ from the last look.
    fn compare(&mut self, ids: &[SpineId], now: Instant, sink: &mut dyn Sink) {
        let mut look = BTreeSet::new();
        for id in ids {
            let before: HashSet<(Wd, Option<OsString>)> =
                self.spines.get(id).map(|spine| spine.holds.clone()).unwrap_or_default();
            let differing = self.rebuild(*id, now);
            if self.spines.get(id).is_some_and(|spine| spine.holds != before) {
                look.extend(self.resources(*id));
            } else {
                look.extend(differing);
            }
        }
        if !look.is_empty() {
            sink.hint(Hint::Look(look));
        }
    }

    /// Walks a spine again, arms what it needs, gives back what it no longer needs, and looks at its targets. Returns the
    /// resources of those that differ from the last look.
    fn rebuild(&mut self, id: SpineId, now: Instant) -> BTreeSet<ResourceId> {
        self.look(id, self.all(id), now).differing
    }

    /// Looks again at one target. Returns its resources when it had to be armed anew.
    fn recheck(&mut self, id: SpineId, index: usize, now: Instant) -> BTreeSet<ResourceId> {
        let Some(spine) = self.spines.get(&id) else { return BTreeSet::new() };
        let Some(target) = spine.targets.at(index) else { return BTreeSet::new() };
        let Some(directory) = &spine.directory else { return self.look(id, index..index + 1, now).armed };
        // The way here has not changed, or the whole spine would be walked again.
        let (seen, armed) = walk::glance(directory, target.name(), &mut self.source);
        let mut looked = Looked::default();
        match armed {
            Some(Err(_)) => return self.look(id, index..index + 1, now).armed,
            Some(Ok(wd)) => self.seen(id, index, &seen, Some(wd), &mut looked),
            None => self.seen(id, index, &seen, None, &mut looked),
        }
        looked.armed
    }

    fn look(&mut self, id: SpineId, indices: Range<usize>, now: Instant) -> Looked {
        let mut looked = Looked::default();
        let Some(parent) = self.spines.get(&id).map(|spine| spine.parent.clone()) else { return looked };
        // Only validated paths become spines, so there always are components.
        let components = walk::components(&parent).unwrap_or_default();
        let mut walk = walk::walk(&self.root, components, Some(&mut self.source));
        let mut nearest = walk.steps.last().map(|(wd, _)| *wd);
        let mut holds: HashSet<(Wd, Option<OsString>)> =
            walk.steps.into_iter().map(|(wd, name)| (wd, Some(name))).collect();
        if let End::Directory(Directory { wd: Some(wd), .. }) = &walk.end {
            holds.insert((*wd, None));
            nearest = Some(*wd);
        }
        self.hold(id, holds);
        for index in indices {
            let Some(target) = self.spines.get(&id).and_then(|spine| spine.targets.at(index)) else { continue };
            let (seen, armed) = match &walk.end {
                End::Directory(directory) => walk::glance(directory, target.name(), &mut self.source),
                End::Missing => (Glance::Absent, None),
                End::Unreadable(errno) => (Glance::Unreadable(*errno), None),
            };
            let mark = match armed {
                Some(Ok(wd)) => Some(wd),
                Some(Err(error)) => {
                    walk.failed.get_or_insert(error);
                    None
                }
                None => None,
            };
            self.seen(id, index, &seen, mark, &mut looked);
        }
        self.cover(id, walk.failed, walk.silent, now);
        if let Some(spine) = self.spines.get_mut(&id) {
            spine.guarded.guarded_by(nearest);
            spine.directory = match walk.end {
                End::Directory(directory) if Some(directory.mount()) == self.root_mount => Some(directory),
                End::Directory(_) | End::Missing | End::Unreadable(_) => None,
            };
        }
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

    /// Takes what a spine holds now before giving back what it held before, so that nothing shared is disarmed between.
    fn hold(&mut self, id: SpineId, holds: HashSet<(Wd, Option<OsString>)>) {
        for (wd, name) in &holds {
            let watch = self.watches.entry(*wd).or_default();
            match name {
                Some(name) => watch.steps.entry(name.clone()).or_default().insert(id),
                None => watch.ends.insert(id),
            };
        }
        let Some(spine) = self.spines.get_mut(&id) else { return };
        let before = std::mem::replace(&mut spine.holds, holds);
        let gone: Vec<_> = before.into_iter().filter(|hold| !spine.holds.contains(hold)).collect();
        for hold in gone {
            self.release(id, &hold);
        }
    }

    fn release(&mut self, id: SpineId, (wd, name): &(Wd, Option<OsString>)) {
        let Some(watch) = self.watches.get_mut(wd) else { return };
        match name {
            Some(name) => {
                if let Some(spines) = watch.steps.get_mut(name) {
                    spines.remove(&id);
                    if spines.is_empty() {
                        watch.steps.remove(name);
                    }
                }
            }
            None => {
                watch.ends.remove(&id);
            }
        }
        self.disarm_if_unused(*wd);
    }

    fn release_mark(&mut self, wd: Wd, id: SpineId, name: &OsStr) {
        if let Some(watch) = self.watches.get_mut(&wd) {
            watch.marks.remove(&(id, name.to_owned()));
            self.disarm_if_unused(wd);
        }
    }

    fn disarm_if_unused(&mut self, wd: Wd) {
        if self.watches.get(&wd).is_some_and(Watch::is_unused) {
            self.watches.remove(&wd);
            self.source.disarm(wd);
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

/// Finds out whom an event concerns. For a name that is nobody's interest this is two lookups.
fn dispatch(event: &Event<'_>, watches: &HashMap<Wd, Watch>, spines: &BTreeMap<SpineId, Spine>, batch: &mut Batch) {
    if event.flags.intersects(Flags::OVERFLOW) {
        batch.overflowed = true;
        return;
    }
    let Some(watch) = watches.get(&event.wd) else { return };
    let changes_structure = event.flags.intersects(STRUCTURE);
    // Only what concerns somebody is asked about: asking costs more than all the rest here.
    let mut rebuild = |ids: &mut dyn Iterator<Item = &SpineId>| {
        for id in ids {
            note(batch.rebuild.entry(*id).or_default(), event);
        }
    };
    if event.flags.intersects(GONE) {
        rebuild(&mut watch.ends.iter().chain(watch.steps.values().flatten()));
    }
    let name = OsStr::from_bytes(event.name);
    if changes_structure && let Some(ids) = watch.steps.get(name) {
        rebuild(&mut ids.iter());
    }
    let inode = if changes_structure || event.flags.intersects(GONE) { Inode::PerhapsAnother } else { Inode::Same };
    let mut touched = |id: SpineId, name: &OsStr| {
        if let Some(index) = spines.get(&id).and_then(|spine| spine.targets.find(name)) {
            let unknown = Happened { inode, by: None };
            let happened = batch.touched.entry((id, index)).or_insert(unknown);
            happened.inode = inode.max(happened.inode);
            note(&mut happened.by, event);
        }
    };
    if event.name.is_empty() {
        for (id, name) in &watch.marks {
            touched(*id, name);
        }
    } else {
        for id in &watch.ends {
            touched(*id, name);
        }
    }
}

/// Remembers who caused an event, unless it was this very process: its own repairs are no drift.
fn note(by: &mut Option<Arc<Witness>>, event: &Event<'_>) {
    if let Some(witness) = event.witness()
        && (by.is_none() || !witness.is_self())
    {
        *by = Some(witness);
    }
}
