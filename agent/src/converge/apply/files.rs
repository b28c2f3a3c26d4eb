//! Looking at many files at once, before anything is done.
//!
//! The engine only says which files are in sync, and by the same rules as an ordinary observation. Whatever else it says, and
//! everything after the first step, is observed in the ordinary way: a step can change what any path leads to.

use std::borrow::Borrow;
use std::collections::HashSet;

use super::{Run, targets};
use crate::host::verify::{self, Answer, Entry, Method};
use crate::resource::{Desired, Names, Resource, ResourceId};

/// For fewer files it is not worth while.
const FEWEST: usize = 16;

/// The files that the engine found in sync.
#[derive(Debug, Default)]
pub(super) struct Verified<'a> {
    epoch: u64,
    in_sync: HashSet<&'a ResourceId>,
}

impl Verified<'_> {
    /// Whether nothing was done since.
    pub(super) fn is_of(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }
}

struct File<'a> {
    id: &'a ResourceId,
    entry: Entry,
}

impl Borrow<Entry> for File<'_> {
    fn borrow(&self) -> &Entry {
        &self.entry
    }
}

impl<'a> Run<'a, '_> {
    /// Verifies the files that the scope means, if there are many.
    pub(super) fn verify_files(&mut self) {
        let request = self.request;
        let targets = targets(&request.scope);
        if targets.is_some_and(|targets| targets.len() < FEWEST) {
            return;
        }
        let is_target = |resource: &&Resource| targets.is_none_or(|targets| targets.contains(&resource.id));
        let resources = request.desired.resources().iter().filter(is_target);
        let mut files: Vec<File<'a>> = resources.filter_map(|resource| self.file(resource)).collect();
        if files.len() < FEWEST {
            return;
        }
        verify::sort(&mut files);
        let mut in_sync = HashSet::with_capacity(files.len());
        verify::pass_with(&self.context.host.root, &files, Method::Auto, &mut |index, answer| match answer {
            Answer::InSync(_) => in_sync.extend(files.get(index).map(|file| file.id)),
            Answer::Differs | Answer::Unknown(_) => {}
        });
        tracing::debug!(n_files = files.len(), n_in_sync = in_sync.len(), "verified files");
        self.verified = Verified { epoch: self.epoch, in_sync };
    }

    /// Whether the engine found it in sync and nothing was done since.
    pub(super) fn is_verified(&self, id: &ResourceId) -> bool {
        self.verified.epoch == self.epoch && self.verified.in_sync.contains(id)
    }

    fn file(&mut self, resource: &'a Resource) -> Option<File<'a>> {
        let Desired::File(file) = &resource.desired else { return None };
        let spec = file.ensure.present()?;
        // With the same view of the accounts as the rest of the run. Whoever cannot be told now is told of there.
        let names = Names::resolve(self.context.host, &mut self.snapshot, &spec.ownership).ok()?;
        Some(File { id: &resource.id, entry: file.entry(names)? })
    }
}
