//! Which spines and targets use a watch: it is given back when nobody does.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};

use super::{SpineId, Tree};
use crate::watch::source::Wd;

/// The users of one watched inode.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Spines that look a name up here.
    pub(super) steps: HashMap<OsString, BTreeSet<SpineId>>,
    /// Spines that end here.
    pub(super) ends: BTreeSet<SpineId>,
    /// Targets that are this inode.
    pub(super) marks: BTreeSet<(SpineId, OsString)>,
}

impl Watch {
    fn is_unused(&self) -> bool {
        self.steps.is_empty() && self.ends.is_empty() && self.marks.is_empty()
    }
}

impl Tree {
    /// Takes what a spine holds now before giving back what it held before, so that nothing shared is disarmed between.
    pub(super) fn hold(&mut self, id: SpineId, holds: HashSet<(Wd, Option<OsString>)>) {
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

    pub(super) fn release(&mut self, id: SpineId, (wd, name): &(Wd, Option<OsString>)) {
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

    pub(super) fn release_mark(&mut self, wd: Wd, id: SpineId, name: &OsStr) {
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
}
