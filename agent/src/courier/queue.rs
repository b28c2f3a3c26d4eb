//! The outbox as the courier sees it: which messages wait, and of what kind, in order.
//!
//! Each message is read once to learn its kind; its content is read again when it is sent, so memory holds no dossiers.

use std::collections::BTreeMap;

use tracing::{error, warn};

use crate::spool::{Event, Outgoing, OutgoingBody, Spool, SpoolError};

/// What a queued message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// For webhooks.
    Alert(Event),
    /// For the endpoint.
    Reimage,
}

/// The waiting messages by id.
#[derive(Debug, Default)]
pub(super) struct Queue {
    known: BTreeMap<String, Kind>,
}

impl Queue {
    /// Looks at the outbox again.
    pub(super) fn refresh(&mut self, outbox: &Spool) -> Result<(), SpoolError> {
        let ids = outbox.list()?;
        self.known.retain(|id, _| ids.binary_search(id).is_ok());
        for id in ids {
            if self.known.contains_key(&id) {
                continue;
            }
            match outbox.read(&id) {
                Ok(Some(Outgoing { body: OutgoingBody::Alert(alert), .. })) => {
                    self.known.insert(id, Kind::Alert(alert.event));
                }
                Ok(Some(Outgoing { body: OutgoingBody::Reimage(_), .. })) => {
                    self.known.insert(id, Kind::Reimage);
                }
                Ok(None) => {}
                Err(refused @ SpoolError::Refused { .. }) => error!(id, error = %refused, "set a message aside"),
                // Read again with the next look; those behind it are not held up.
                Err(error) => warn!(id, error = %super::http::chain(&error), "cannot read a message yet"),
            }
        }
        Ok(())
    }

    /// The waiting messages, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Kind)> {
        self.known.iter().map(|(id, kind)| (id.as_str(), *kind))
    }

    /// How many messages wait.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Removes a message that everyone has, from the outbox and from here.
    pub(super) fn remove(&mut self, outbox: &Spool, id: &str) {
        match outbox.remove(id) {
            Ok(_) => {
                self.known.remove(id);
            }
            // It stays known as delivered, and removal is tried again with the next look.
            Err(error) => warn!(id, error = %super::http::chain(&error), "cannot remove a delivered message"),
        }
    }
}
