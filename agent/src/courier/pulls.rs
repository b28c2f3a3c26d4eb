//! Decides when the policy is pulled, and tells the agent what the last pull brought.
//!
//! It never gives up, and it never says more than "this is the branch's head now": the agent verifies everything itself.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Done;
use super::backoff::{random, wait};
use super::fetch::{Check, FetchError, fetch};
use super::http::chain;
use crate::config::Settings;
use crate::spool::{FetchNow, FetchResult, Spool};

/// First wait after a failed pull.
const FIRST_WAIT: Duration = Duration::from_secs(2);

/// Time after which an unchanged result is written again; every writing wakes the agent.
const REWRITE: Duration = Duration::from_secs(600);

/// Shortest time between two pulls that the endpoint hints at.
const HINT_GAP: Duration = Duration::from_secs(10);

/// When to pull, and what the last pull brought.
#[derive(Debug)]
pub(super) struct Pulls<'a> {
    settings: &'a Settings,
    exe: &'a Path,
    result: FetchResult,
    /// When `result` was written by this process.
    written: Option<Instant>,
    busy: bool,
    due: Option<Instant>,
    failures: u32,
    check: Check,
    /// The last request of an operator that a pull has begun for.
    asked: Option<Timestamp>,
    hinted: Option<Instant>,
}

impl<'a> Pulls<'a> {
    /// Reads what the last pull brought and chooses the moment of the first one.
    pub(super) fn load(settings: &'a Settings, exe: &'a Path, inbox: &Spool) -> Self {
        let stored = inbox.read_slot::<FetchResult>().unwrap_or_else(|error| {
            warn!(error = %chain(&error), "the result of the last pull is lost");
            None
        });
        let asked = stored.as_ref().and_then(|result| result.answers);
        let result = stored.unwrap_or(FetchResult {
            version: 1,
            at: Timestamp::UNIX_EPOCH,
            commit: None,
            error: None,
            answers: None,
        });
        let due = settings.policy.as_ref().map(|policy| {
            let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
            // A host without a policy waits for nothing; the others spread themselves over the interval.
            let offset = if result.commit.is_some() { spread(&machine, policy.interval) } else { Duration::ZERO };
            Instant::now() + offset
        });
        Self {
            settings,
            exe,
            result,
            written: None,
            busy: false,
            due,
            failures: 0,
            check: Check::Stored,
            asked,
            hinted: None,
        }
    }

    /// The endpoint expects this revision: pull soon, unless it is here already.
    pub(super) fn expect(&mut self, revision: &str) {
        let recently = self.hinted.is_some_and(|when| when.elapsed() < HINT_GAP);
        if self.result.commit.as_deref() != Some(revision) && self.due.is_some() && !recently {
            info!(revision, "the endpoint expects another revision; pulling now");
            self.hinted = Some(Instant::now());
            self.due = self.hinted;
        }
    }

    /// When the next pull is due.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        if self.busy { None } else { self.due }
    }

    /// Why the last pull failed, if it did.
    pub(super) fn error(&self) -> Option<&str> {
        self.result.error.as_deref()
    }

    /// Starts a pull when one is due or an operator wants one.
    pub(super) fn look(&mut self, outbox: &Spool, tasks: &mut JoinSet<Done>) {
        let Some(policy) = self.settings.policy.as_ref().filter(|_| !self.busy) else { return };
        let wanted = match outbox.read_slot::<FetchNow>() {
            // Not a later one: the clock may have been set back.
            Ok(wanted) => wanted.map(|wanted| wanted.asked).filter(|asked| self.asked != Some(*asked)),
            Err(error) => {
                warn!(error = %chain(&error), "cannot read whether a pull is wanted");
                None
            }
        };
        if wanted.is_none() && self.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.asked = wanted.or(self.asked);
        // Set again when it ends; this is for a task that is broken off.
        self.due = Some(Instant::now() + policy.interval);
        self.busy = true;
        let (settings, exe, check) = (self.settings.clone(), self.exe.to_owned(), self.check);
        tasks.spawn(async move { Done::Pull(fetch(&settings, &exe, check).await) });
    }

    /// Takes the end of a pull.
    pub(super) fn finish(&mut self, result: Result<String, FetchError>, inbox: &Spool) {
        self.busy = false;
        let mut next = self.result.clone();
        next.at = Timestamp::now();
        next.answers = self.asked;
        let interval = self.settings.policy.as_ref().map_or(REWRITE, |policy| policy.interval);
        let delay = match result {
            Ok(commit) => {
                self.failures = 0;
                self.check = Check::Nothing;
                if self.result.commit.as_deref() != Some(commit.as_str()) {
                    info!(commit, "pulled the policy");
                }
                next.commit = Some(commit);
                next.error = None;
                interval
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                let why = chain(&error);
                if self.result.error.as_deref() != Some(why.as_str()) {
                    warn!(why, "cannot pull the policy");
                }
                next.error = Some(why);
                wait(self.failures, FIRST_WAIT, random())
            }
        };
        self.due = Some(Instant::now() + delay);
        // An operator waits for an answer, also for one that says nothing new.
        let news = next != FetchResult { at: next.at, ..self.result.clone() };
        if news || self.written.is_none_or(|when| when.elapsed() >= REWRITE) {
            match inbox.write_slot(&next) {
                Ok(()) => self.written = Some(Instant::now()),
                Err(error) => {
                    error!(error = %chain(&error), "cannot tell the agent what the pull brought");
                    self.written = None;
                }
            }
        }
        self.result = next;
    }
}

/// A moment in an interval, always the same for a machine and evenly spread over many of them.
fn spread(machine: &[u8], interval: Duration) -> Duration {
    let digest = Sha256::digest(machine);
    let number = digest.iter().take(4).fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
    interval.mul_f64(f64::from(number) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_spread_over_the_interval() {
        let interval = Duration::from_secs(60);
        let moments: Vec<Duration> = (0..600_u32).map(|n| spread(&n.to_le_bytes(), interval)).collect();
        assert_eq!(moments.first(), Some(&spread(&0_u32.to_le_bytes(), interval)), "always the same for one machine");
        for tenth in 0..10 {
            let from = Duration::from_secs(tenth * 6);
            let n_hosts = moments.iter().filter(|m| **m >= from && **m < from + Duration::from_secs(6)).count();
            assert!((30..=90).contains(&n_hosts), "{n_hosts} of 600 in tenth {tenth}");
        }
    }
}
