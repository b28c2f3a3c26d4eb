//! One copy of what many resources of a policy have in common: contents and ownerships.
//!
//! A hundred thousand files may have sixteen contents. Equal bytes become one allocation, whichever way they came into the
//! policy.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::resource::Content;
use crate::resource::place::Ownership;

/// What was seen so far in one compilation.
#[derive(Debug, Default)]
pub(super) struct Shared<'v> {
    contents: HashMap<[u8; 32], Content>,
    /// By the file of the policy, so that one that many resources have as their source is hashed once.
    sources: HashMap<&'v str, Content>,
    ownerships: HashSet<Arc<Ownership>>,
}

impl<'v> Shared<'v> {
    /// The one copy of these bytes.
    pub(super) fn content(&mut self, bytes: &[u8]) -> Content {
        let digest = Sha256::digest(bytes).into();
        self.contents.entry(digest).or_insert_with(|| Content::with_digest(bytes, digest)).clone()
    }

    /// The one copy of the bytes of a file of the policy.
    pub(super) fn source(&mut self, path: &'v str, bytes: &[u8]) -> Content {
        if let Some(known) = self.sources.get(path) {
            return known.clone();
        }
        let content = self.content(bytes);
        self.sources.insert(path, content.clone());
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
        assert!(inline.is_shared_with(&shared.source("files/a", b"same")));
        assert!(inline.is_shared_with(&shared.source("files/b", b"same")));
        assert!(!inline.is_shared_with(&shared.content(b"other")));
        let ownership =
            |mode| Ownership { owner: Principal::Agent, group: Principal::Id(4), mode: Mode::from_bits(mode) };
        let first = shared.ownership(ownership(0o640));
        assert!(Arc::ptr_eq(&first, &shared.ownership(ownership(0o640))));
        assert!(!Arc::ptr_eq(&first, &shared.ownership(ownership(0o600))));
    }
}
