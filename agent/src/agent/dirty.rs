//! What other threads tell the loop to look at, on its way there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::who::Arrivals;
use crate::resource::ResourceId;
use crate::watch::{DirtySet, Hint, Witness};

/// Hints on their way from other threads to the loop, merged so that a storm takes no more memory than the policy has
/// resources.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    set: Mutex<DirtySet>,
    arrivals: Mutex<Arrivals>,
    changed: Notify,
}

impl Dirty {
    fn set(&self) -> MutexGuard<'_, DirtySet> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, hint: Hint) {
        if self.set().add(hint) {
            self.changed.notify_one();
        }
    }

    pub(super) fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who was seen at something that a hint is about to name.
    pub(super) fn saw(&self, resources: &[ResourceId], witness: &Arc<Witness>) {
        self.arrivals().add(resources, witness);
    }

    /// Waits for the next hint. Cancel-safe: nothing is taken before it is returned.
    pub(super) async fn next(&self) -> Hint {
        loop {
            if let Some(hint) = self.set().take() {
                return hint;
            }
            self.changed.notified().await;
        }
    }
}
