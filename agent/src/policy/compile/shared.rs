//! One copy of what many resources of a policy have in common: contents and ownerships.
//!
//! A hundred thousand files may have sixteen contents. Equal bytes become one allocation, whichever way they came into the
//! policy, and whoever compares or keeps them later can go by their address.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::resource::place::Ownership;

/// What was seen so far in one compilation.
#[derive(Debug, Default)]
pub(super) struct Shared<'v> {
    contents: HashSet<Arc<[u8]>>,
    /// By the file of the policy, so that one that many resources have as their source is hashed once.
    sources: HashMap<&'v str, Arc<[u8]>>,
    ownerships: HashSet<Arc<Ownership>>,
}

impl<'v> Shared<'v> {
    /// The one copy of these bytes.
    pub(super) fn content(&mut self, bytes: &[u8]) -> Arc<[u8]> {
        match self.contents.get(bytes) {
            Some(known) => Arc::clone(known),
            None => {
                let content: Arc<[u8]> = bytes.into();
                self.contents.insert(Arc::clone(&content));
                content
            }
        }
    }

    /// The one copy of the bytes of a file of the policy.
    pub(super) fn source(&mut self, path: &'v str, bytes: &[u8]) -> Arc<[u8]> {
        if let Some(known) = self.sources.get(path) {
            return Arc::clone(known);
        }
        let content = self.content(bytes);
        self.sources.insert(path, Arc::clone(&content));
        content
    }

    /// The one copy of this ownership.
    pub(super) fn ownership(&mut self, ownership: Ownership) -> Arc<Ownership> {
        match self.ownerships.get(&ownership) {
            Some(known) => Arc::clone(known),
            None => {
                let ownership = Arc::new(ownership);
                self.ownerships.insert(Arc::clone(&ownership));
                ownership
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Mode, Principal};

    #[test]
    fn equal_things_are_one_thing() {
        let mut shared = Shared::default();
        let inline = shared.content(b"same");
        assert!(Arc::ptr_eq(&inline, &shared.source("files/a", b"same")));
        assert!(Arc::ptr_eq(&inline, &shared.source("files/b", b"same")));
        assert!(!Arc::ptr_eq(&inline, &shared.content(b"other")));
        let ownership =
            |mode| Ownership { owner: Principal::Agent, group: Principal::Id(4), mode: Mode::from_bits(mode) };
        let first = shared.ownership(ownership(0o640));
        assert!(Arc::ptr_eq(&first, &shared.ownership(ownership(0o640))));
        assert!(!Arc::ptr_eq(&first, &shared.ownership(ownership(0o600))));
    }
}
