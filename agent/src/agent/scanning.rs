//! Which files the scans look at.

use std::hash::{BuildHasher, RandomState};

use super::revisions::InForce;
use super::worker::{Event, Worker};
use crate::host::verify::Entry;
use crate::resource::{Desired, Ensure, Names, Resource, Snapshot};

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

    /// Has nothing scanned until files are declared again.
    pub(super) fn declare_no_files(&mut self) {
        self.scanned.print = None;
        self.tell(Event::Files(Vec::new()));
    }

    /// Whoever cannot be looked up now is left to ordinary runs, which say why.
    fn ids(&self, resource: &Resource, snapshot: &mut Snapshot) -> Names {
        match &resource.desired {
            Desired::File(file) => match &file.ensure {
                Ensure::Present(spec) => Names::resolve(&self.host, snapshot, &spec.ownership).unwrap_or_default(),
                Ensure::Absent => Names::default(),
            },
            Desired::Directory(_)
            | Desired::Symlink(_)
            | Desired::User(_)
            | Desired::Group(_)
            | Desired::Package(_)
            | Desired::Repository(_)
            | Desired::Service(_)
            | Desired::Command(_)
            | Desired::Check(_)
            | Desired::Sweep(_)
            | Desired::Setting(_)
            | Desired::Sysctl(_)
            | Desired::KernelModule(_)
            | Desired::Mount(_) => Names::default(),
        }
    }
}

fn entry(resource: &Resource, names: Names) -> Option<Entry> {
    match &resource.desired {
        Desired::File(file) => file.entry(names),
        Desired::Directory(_)
        | Desired::Symlink(_)
        | Desired::User(_)
        | Desired::Group(_)
        | Desired::Package(_)
        | Desired::Repository(_)
        | Desired::Service(_)
        | Desired::Command(_)
        | Desired::Check(_)
        | Desired::Sweep(_)
        | Desired::Setting(_)
        | Desired::Sysctl(_)
        | Desired::KernelModule(_)
        | Desired::Mount(_) => None,
    }
}
