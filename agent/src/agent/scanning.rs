//! Which files the scans look at.

use std::hash::{BuildHasher, RandomState};

use tracing::info;

use super::revisions::InForce;
use super::worker::{Event, Worker};
use crate::converge::beside;
use crate::host::verify::Entry;
use crate::resource::{Desired, Names, Resource, Snapshot};

/// What `status` lists of what lies beside declared files.
const MOST_BESIDE: usize = 100;

/// The files that were declared to the scans last.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    key: RandomState,
    /// A keyed hash of the revision and of what its names stand for.
    print: Option<u64>,
}

impl Worker {
    /// Declares the files of a policy to the scans, unless they were before and its names stand for the same ids.
    pub(super) fn declare_files(&mut self, in_force: &InForce) {
        let mut snapshot = Snapshot::new();
        let ids: Vec<Names> =
            in_force.state.resources().iter().map(|resource| self.ids(resource, &mut snapshot)).collect();
        let print = self.scanned.key.hash_one((in_force.state.revision().as_str(), &ids));
        if self.scanned.print == Some(print) {
            return;
        }
        let mut entries: Vec<Entry> =
            in_force.state.resources().iter().zip(ids).filter_map(|(resource, names)| entry(resource, names)).collect();
        entries.shrink_to_fit();
        self.scanned.print = Some(print);
        self.tell(Event::Files(entries));
    }

    /// Looks for what a package manager laid beside declared files, and says what is new.
    pub(super) fn look_beside(&self, in_force: &InForce) {
        let mut found = beside::look(&self.host.root, &in_force.state);
        found.truncate(MOST_BESIDE);
        let before = std::mem::replace(&mut self.shared.status().beside, found.clone());
        for one in found.iter().filter(|one| !before.contains(one)) {
            info!(resource = %one.resource, "{one}");
        }
    }

    /// Has nothing scanned until files are declared again.
    pub(super) fn declare_no_files(&mut self) {
        self.scanned.print = None;
        self.shared.status().beside.clear();
        self.tell(Event::Files(Vec::new()));
    }

    /// Whoever cannot be looked up now is left to ordinary runs, which say why.
    fn ids(&self, resource: &Resource, snapshot: &mut Snapshot) -> Names {
        let Desired::File(file) = &resource.desired else { return Names::default() };
        let Some(spec) = file.ensure.present() else { return Names::default() };
        Names::resolve(&self.host, snapshot, &spec.ownership).unwrap_or_default()
    }
}

fn entry(resource: &Resource, names: Names) -> Option<Entry> {
    let Desired::File(file) = &resource.desired else { return None };
    file.entry(names)
}
