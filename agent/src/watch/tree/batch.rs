//! What a batch of events asks for: whom each concerns, and whose way may have changed.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::{Spine, SpineId, Watch};
use crate::host::root::is_temporary;
use crate::watch::Witness;
use crate::watch::source::{Event, Flags, Wd};

/// Events after which a name may mean something else than before.
const STRUCTURE: Flags =
    Flags::CREATE.union(Flags::DELETE).union(Flags::MOVED_FROM).union(Flags::MOVED_TO).union(Flags::ATTRIB);

/// Events that bring a name.
const COMES: Flags = Flags::CREATE.union(Flags::MOVED_TO);

/// Events after which a watched inode is no longer where it was.
const GONE: Flags = Flags::IGNORED.union(Flags::UNMOUNT).union(Flags::DELETE_SELF).union(Flags::MOVE_SELF);

/// What a batch of events asks for.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Targets that something happened to, by their place in the spine.
    pub(super) touched: BTreeMap<(SpineId, usize), Happened>,
    /// Spines whose way may have changed, and who changed it.
    pub(super) rebuild: BTreeMap<SpineId, Option<Arc<Witness>>>,
    pub(super) overflowed: bool,
}

/// What happened to a name.
#[derive(Debug)]
pub(super) struct Happened {
    pub(super) inode: Inode,
    /// Who did the last of it.
    pub(super) by: Option<Arc<Witness>>,
}

/// Whether a name still means the inode that it meant at the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Inode {
    Same,
    PerhapsAnother,
}

/// Finds out whom an event concerns. For a name that is nobody's interest this is two lookups.
pub(super) fn dispatch(
    event: &Event<'_>,
    watches: &HashMap<Wd, Watch>,
    spines: &BTreeMap<SpineId, Spine>,
    batch: &mut Batch,
) {
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
        let Some(spine) = spines.get(&id) else { return };
        // Whoever cares for all names of a directory is told of those that come, and nobody else speaks of.
        let of_all =
            || spine.targets.find(OsStr::new("")).filter(|_| event.flags.intersects(COMES) && !is_temporary(name));
        if let Some(index) = spine.targets.find(name).or_else(of_all) {
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
