//! The record that the agent works with: the one on the disk, or one in memory while that cannot be opened.
//!
//! With one in memory the agent repairs what it can repair without losing anything, and says so. It looks again and again whether
//! the real one can be opened; then it hands over what happened, and ends, to be started anew with all that the real one knows.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::escalate::KEY_RUNNING;
use super::worker::{Event, Shared, Worker, recall};
use crate::config::Paths;
use crate::record::{Opened, Record, RecordError, RunLock};
use crate::resource::chain;

/// Time between two attempts to open the real record.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// The name in the record of the time during which it was one in memory, until that was told.
const KEY_STOOD_IN: &str = "stood_in";

/// When the record was in memory alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoodIn {
    from: Timestamp,
    until: Timestamp,
    why: String,
}

/// Opens the record, and another one beside it for the guard.
///
/// # Errors
///
/// When there is not even memory for them.
pub(super) fn open(paths: &Paths, shared: &Shared) -> Result<(Record, Record), RecordError> {
    // Whoever holds the lock may have a step in hand, and may wait until this agent is ready.
    let lock = RunLock::acquire(&paths.runtime, "agent", Duration::ZERO);
    let opened = match &lock {
        Ok(_) => Record::open(&paths.state),
        Err(_held) => Record::open_for_operator(&paths.state).map(|record| Opened { record, set_aside: None }),
    };
    let Opened { record, set_aside } = match opened {
        Ok(opened) => opened,
        Err(why) => return stand_in(&paths.state, &why, shared),
    };
    if let Some(set_aside) = set_aside {
        let text =
            format!("the state database was damaged: set aside as `{}`, a new one was made", set_aside.display());
        error!("{text}");
        shared.status().warnings.push(text);
    }
    match Record::open_beside(&paths.state) {
        Ok(beside) => Ok((record, beside)),
        Err(why) => {
            drop(record);
            stand_in(&paths.state, &why, shared)
        }
    }
}

fn stand_in(state: &Path, why: &RecordError, shared: &Shared) -> Result<(Record, Record), RecordError> {
    let record = Record::stand_in(state)?;
    let why = chain(why);
    error!(
        "{why}; the agent works with a record in memory until that ends: what it replaces is kept or not replaced, and nothing is \
         put back at once"
    );
    shared.status().record_in_memory = Some(why);
    Ok((record, Record::volatile()?))
}

impl Worker {
    /// Hands over to the real record if it can be opened now, and has the agent start over with it. Whether it was.
    pub(super) fn take_up_record(&mut self) -> bool {
        // Whoever has the lock may have a step in hand.
        let lock = RunLock::acquire(&self.settings.paths.runtime, "agent", Duration::ZERO);
        if lock.is_err() {
            return false;
        }
        match self.try_take_up_record() {
            Ok(()) => {
                info!("the record on the disk can be written again: starting over with it");
                self.tell(Event::StartOver);
                true
            }
            Err(error) => {
                let why = chain(&error);
                let mut status = self.shared.status();
                if status.record_in_memory.as_ref() != Some(&why) {
                    warn!("{why}; the record stays in memory");
                    status.record_in_memory = Some(why);
                }
                false
            }
        }
    }

    fn try_take_up_record(&mut self) -> Result<(), RecordError> {
        let mut real = Record::open(&self.settings.paths.state)?.record;
        let (from, why) = {
            let status = self.shared.status();
            (status.started, status.record_in_memory.clone())
        };
        let until = Timestamp::now();
        real.save(KEY_STOOD_IN, &StoodIn { from: from.unwrap_or(until), until, why: why.unwrap_or_default() })?;
        self.note_end();
        self.record.hand_over(&mut real)?;
        // From here on nothing may be done twice. What is still to be said is that this process ends as it should.
        if let Err(error) = real.save(KEY_RUNNING, &None::<String>) {
            self.warn(chain(&error));
        }
        Ok(())
    }

    /// What there is to say about the time of the record before this process, once.
    pub(super) fn told_of_standing_in(&mut self) -> String {
        if !self.record.is_durable() {
            let why = self.shared.status().record_in_memory.clone().unwrap_or_default();
            return format!("; its record is in memory alone: {why}");
        }
        let Some(StoodIn { from, until, why }) = recall::<StoodIn>(&self.record, KEY_STOOD_IN) else {
            return String::new();
        };
        if let Err(error) = self.record.forget(KEY_STOOD_IN) {
            self.warn(chain(&error));
        }
        format!("; from {from:.0} to {until:.0} its record was in memory alone: {why}")
    }
}
