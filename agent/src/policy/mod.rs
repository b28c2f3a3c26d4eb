//! What should be: bytes to trusted desired state.
//!
//! This module never looks at the host: facts come in as a value, and nothing here opens a path outside the policy.
//! The chain is `Candidate → Verified → DesiredState`, each made by exactly one function.

use std::collections::HashMap;
use std::fmt;

use crate::resource::{Resource, ResourceId};

pub mod candidate;
pub mod compile;
pub mod diagnostic;
pub mod facts;
pub mod schema;
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

/// The compiled, acyclic graph of resources of one verified revision. Made only by [`compile::compile`].
#[derive(Debug, Clone)]
pub struct DesiredState {
    revision: Revision,
    name: String,
    resources: Vec<Resource>,
    index: HashMap<ResourceId, usize>,
}

impl DesiredState {
    /// Called by [`compile`] alone, with resources in an order in which every requirement comes first.
    pub(crate) fn new(revision: Revision, name: String, resources: Vec<Resource>) -> Self {
        let index = resources.iter().enumerate().map(|(i, r)| (r.id.clone(), i)).collect();
        Self { revision, name, resources, index }
    }

    /// The revision that this was compiled from.
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// The policy's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every resource, requirements before what requires them.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// One resource.
    pub fn get(&self, id: &ResourceId) -> Option<&Resource> {
        self.index.get(id).and_then(|i| self.resources.get(*i))
    }
}
