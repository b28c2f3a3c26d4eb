//! What should be: bytes to trusted desired state.
//!
//! This module never looks at the host: facts come in as a value, and nothing here opens a path outside the policy.
//! The chain is `Candidate → Verified → DesiredState`, each made by exactly one function.

use std::collections::BTreeMap;
use std::fmt;

use crate::resource::{Argv, Desired, Mask, Resource, ResourceId, UserName};

pub mod blame;
pub mod candidate;
pub mod compile;
pub mod compiled;
pub mod diagnostic;
pub mod edit;
pub mod facts;
pub mod schema;
pub mod secret;
pub mod template;
pub mod trust;

pub use schema::json_schema;

/// Identifies the policy in force: a git commit id, or for a plain directory `dir-` and the digest of its content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Revision(String);

impl Revision {
    /// Wraps an id that [`candidate`] computed, or that was recorded earlier.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve characters, for people.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What becomes of resources that a policy declares no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Orphans {
    /// They are told of, and left as they are.
    #[default]
    Report,
    /// They return to what was there before, as far as that is known.
    Remove,
}

/// What a policy says about steps that would leave nobody who can log in and become root.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct LockOut {
    /// Whether such steps are meant, and taken.
    pub is_meant: bool,
    /// Accounts of which one has to keep its way in; any account will do when there are none.
    pub break_glass: Vec<UserName>,
}

/// The compiled, acyclic graph of resources of one verified revision. Made by [`compile::compile`], or
/// by [`compiled::load`] from what that made.
#[derive(Debug, Clone)]
pub struct DesiredState {
    revision: Revision,
    name: String,
    resources: Box<[Resource]>,
    /// Indices into `resources`, in order of id. Searching costs a microsecond; a hash table would cost as much memory as
    /// the resources of a long policy.
    by_id: Box<[u32]>,
    orphans: Orphans,
    lock_out: LockOut,
    /// What looks at the candidates of the few resources that say so.
    validators: BTreeMap<ResourceId, Argv>,
    /// What hides its secrets.
    mask: Mask,
    /// The commands that are owed a run by the change of a resource.
    runs: BTreeMap<ResourceId, Vec<ResourceId>>,
}

impl DesiredState {
    /// Called by [`compile`] and [`compiled`] alone, with resources in an order in which every requirement comes first.
    pub(crate) fn new(revision: Revision, name: String, resources: Vec<Resource>) -> Self {
        let mut by_id: Box<[u32]> =
            (0..u32::try_from(resources.len()).expect("a policy has bounded resources")).collect();
        by_id.sort_unstable_by_key(|i| id_at(&resources, *i));
        let mut runs: BTreeMap<ResourceId, Vec<ResourceId>> = BTreeMap::new();
        for resource in &resources {
            if let Desired::Command(command) = &resource.desired {
                for input in &command.owed_by {
                    runs.entry(input.clone()).or_default().push(resource.id.clone());
                }
            }
        }
        Self {
            revision,
            name,
            resources: resources.into_boxed_slice(),
            by_id,
            orphans: Orphans::Report,
            lock_out: LockOut::default(),
            validators: BTreeMap::new(),
            mask: Mask::default(),
            runs,
        }
    }

    /// The same, with a rule for what it leaves out.
    pub(crate) fn with_orphans(self, orphans: Orphans) -> Self {
        Self { orphans, ..self }
    }

    /// What becomes of what it leaves out.
    pub fn orphans(&self) -> Orphans {
        self.orphans
    }

    /// The same, with a rule for steps that would lock everybody out.
    pub(crate) fn with_lock_out(self, lock_out: LockOut) -> Self {
        Self { lock_out, ..self }
    }

    /// What it says about steps that would lock everybody out.
    pub fn lock_out(&self) -> &LockOut {
        &self.lock_out
    }

    /// Has these look at what the resources are to become, before they do.
    #[must_use]
    pub(crate) fn with_validators(mut self, validators: BTreeMap<ResourceId, Argv>) -> Self {
        self.validators = validators;
        self
    }

    /// The same, with what hides its secrets.
    pub(crate) fn with_mask(self, mask: Mask) -> Self {
        Self { mask, ..self }
    }

    /// What hides its secrets in what programs print.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// The revision that this was compiled from.
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// Whether it holds anything secret. Such a state is made anew from the policy each time, and lies on no disk.
    pub fn holds_secrets(&self) -> bool {
        self.resources.iter().any(|resource| resource.desired.is_secret())
    }

    /// The policy's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every resource, requirements before what requires them.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// What looks at the candidate of a resource before it is put in place, if anything does.
    pub fn validator(&self, id: &ResourceId) -> Option<&Argv> {
        self.validators.get(id)
    }

    /// The commands that are owed a run when a resource changes.
    pub fn owes_runs(&self, id: &ResourceId) -> &[ResourceId] {
        self.runs.get(id).map_or(&[], Vec::as_slice)
    }

    /// Whether anything is looked at before it is put in place.
    pub fn has_validators(&self) -> bool {
        !self.validators.is_empty()
    }

    /// One resource.
    pub fn get(&self, id: &ResourceId) -> Option<&Resource> {
        self.resources.get(usize::try_from(self.index_of(id)?).ok()?)
    }

    /// The place of a resource among [`DesiredState::resources`].
    pub(crate) fn index_of(&self, id: &ResourceId) -> Option<u32> {
        let found = self.by_id.binary_search_by_key(&Some(id), |i| id_at(&self.resources, *i)).ok()?;
        self.by_id.get(found).copied()
    }
}

fn id_at(resources: &[Resource], index: u32) -> Option<&ResourceId> {
    resources.get(usize::try_from(index).ok()?).map(|resource| &resource.id)
}
