//! When to run, and at what to look. Pure: time is an argument, chance is a seed, and nothing happens here.
//!
//! - The first hint runs at once. What comes while a run is in progress is merged and runs right after it.
//! - Everything is looked at once in a while, whatever the hints say; hosts are spread by chance.
//! - What failed is tried again with exponential back-off and jitter; what it blocked is tried with it.
//! - A resource that somebody keeps changing is put back ever more rarely, down to once a minute, and never given up.
//! - When there are too many repairs of all resources together, one pass over everything at a time takes the place of a run
//!   for each hint, until it is calm.

mod contest;
mod fights;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::actor::Actor;
use crate::config::{HealthSettings, Settings};
use crate::converge::{Cause, Outcome, ResourceReport, RunReport, Scope};
use crate::resource::ResourceId;
use crate::watch::Hint;

pub use contest::{Contest, Displaced, short_digest};
pub use fights::Contested;
use fights::{Counts, Fights};

/// Longest time from a hint to the next attempt at a failing resource.
const HINTED_RETRY: Duration = Duration::from_secs(15);

/// Longest time that a hinted full run is put off because the last one took long.
const MAX_REST: Duration = Duration::from_secs(1);

/// Shortest and longest time between two passes over everything during a storm; in between, four times what the last took.
const STORM_REST: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Run now. The caller answers with [`Schedule::report`] or [`Schedule::abandoned`].
    Run {
        /// What to look at.
        scope: Scope,
        /// Why, for the log.
        why: &'static str,
    },
    /// Nothing before this time, unless a hint comes.
    WaitUntil(Instant),
    /// A run is in progress; ask again after its report.
    Running,
}

/// What has to be looked at, and when.
#[derive(Debug)]
pub struct Schedule {
    full_scan: Duration,
    settle: Duration,
    settle_max: Duration,
    retry_first: Duration,
    retry_max: Duration,
    rng: Rng,
    running: Option<Scope>,
    everything: Option<&'static str>,
    rest_until: Instant,
    full_at: Instant,
    dirty: BTreeMap<ResourceId, Dirty>,
    retries: BTreeMap<ResourceId, Retry>,
    blocked: BTreeMap<ResourceId, ResourceId>,
    fights: Fights,
}

#[derive(Debug, Clone, Copy)]
struct Dirty {
    first: Instant,
    last: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    attempts: u32,
    at: Instant,
}

impl Schedule {
    /// A schedule that begins with a full run. Equal seeds give equal schedules.
    pub fn new(settings: &Settings, seed: u64, now: Instant) -> Self {
        let HealthSettings { retry_first, retry_max, .. } = settings.health;
        Self {
            full_scan: settings.converge.full_scan,
            settle: settings.converge.settle,
            settle_max: settings.converge.settle_max,
            retry_first,
            retry_max,
            rng: Rng(seed),
            running: None,
            everything: Some("start"),
            rest_until: now,
            full_at: now,
            dirty: BTreeMap::new(),
            retries: BTreeMap::new(),
            blocked: BTreeMap::new(),
            fights: Fights::new(&settings.health, now),
        }
    }

    /// A new schedule under other settings, which remembers who fights over what.
    pub fn reconfigured(self, settings: &Settings, seed: u64, now: Instant) -> Self {
        let new = Self::new(settings, seed, now);
        Self { fights: self.fights.with_limits_of(&new.fights), ..new }
    }

    /// Takes note of where to look.
    pub fn hint(&mut self, hint: Hint, now: Instant) {
        match hint {
            Hint::Everything { why } => {
                self.everything.get_or_insert(why);
            }
            Hint::Look(resources) => {
                for resource in resources {
                    self.dirty.entry(resource).or_insert(Dirty { first: now, last: now }).last = now;
                }
            }
        }
    }

    /// Counts a repair that no run made, such as one of the guard's fast path. What it put away is told to
    /// [`Schedule::displaced`] afterwards.
    pub fn repaired(&mut self, resource: &ResourceId, now: Instant) {
        self.fights.repaired(resource, Counts::ForAll, now);
    }

    /// Takes note of what the last repair of a resource put away, and of who had put it there.
    pub fn displaced(&mut self, resource: &ResourceId, displaced: Displaced) {
        self.fights.displaced(resource, displaced);
    }

    /// When [`Schedule::next`] is to be asked again; `None` while a run is in progress.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        if self.running.is_some() { None } else { Some(self.wake_at(now)) }
    }

    /// Decides what to do now.
    pub fn next(&mut self, now: Instant) -> Next {
        if self.running.is_some() {
            return Next::Running;
        }
        let is_storm = self.fights.storm(now).is_some();
        if is_storm && self.dirty.iter().any(|(resource, dirty)| self.ready_at(resource, *dirty, now) <= now) {
            self.everything.get_or_insert("too much drift to look at one by one");
        }
        let full = match self.everything {
            Some(why) if self.rest_until <= now => Some(why),
            Some(_) | None if self.full_at <= now => Some("periodic full scan"),
            Some(_) | None => None,
        };
        if let Some(why) = full {
            self.everything = None;
            self.dirty.clear();
            self.running = Some(Scope::Everything);
            return Next::Run { scope: Scope::Everything, why };
        }
        let mut due: BTreeSet<ResourceId> = BTreeSet::new();
        let mut why = "retry";
        for (resource, retry) in &self.retries {
            if retry.at <= now {
                due.insert(resource.clone());
            }
        }
        let hinted: Vec<ResourceId> = self
            .dirty
            .iter()
            .filter(|(resource, dirty)| !is_storm && self.ready_at(resource, **dirty, now) <= now)
            .map(|(resource, _)| resource.clone())
            .collect();
        for resource in hinted {
            self.dirty.remove(&resource);
            due.insert(resource);
            why = "hint";
        }
        if due.is_empty() {
            return Next::WaitUntil(self.wake_at(now));
        }
        self.add_blocked(&mut due);
        let scope = Scope::Only(due);
        self.running = Some(scope.clone());
        Next::Run { scope, why }
    }

    /// Takes note of what a run did.
    pub fn report(&mut self, report: &RunReport, now: Instant) {
        let scope = self.running.take();
        // A debt is tried again through the resource that owes it.
        let mut unfinished: BTreeSet<&ResourceId> = report.debts.iter().map(|debt| &debt.because_of).collect();
        let mut mentioned = unfinished.clone();
        if report.cause == Cause::NewRevision {
            self.fights.forget_all(now);
        }
        for resource in &report.resources {
            let ResourceReport { resource: id, outcome, overtaken, .. } = resource;
            mentioned.insert(id);
            self.blocked.remove(id);
            if *overtaken {
                self.dirty.entry(id.clone()).or_insert(Dirty { first: now, last: now });
            }
            match outcome {
                Outcome::Unchanged | Outcome::Reported { .. } => {}
                Outcome::Changed { .. } => {
                    if report.cause == Cause::Drift {
                        self.fights.repaired(id, if report.full { Counts::AsPass } else { Counts::ForAll }, now);
                        let who = resource.who.as_deref().and_then(Actor::short);
                        if let Some(displaced) = Displaced::of(resource, who.as_deref()) {
                            self.fights.displaced(id, displaced);
                        }
                    }
                }
                Outcome::Failed { .. } | Outcome::Indeterminate { .. } => {
                    unfinished.insert(id);
                }
                Outcome::Skipped { blocked_by } => {
                    self.blocked.insert(id.clone(), blocked_by.clone());
                }
            }
            // Held is not forgotten: it is looked at when the hold ends, hinted or not.
            if self.held_until(id, now).is_some() {
                self.dirty.entry(id.clone()).or_insert(Dirty { first: now, last: now });
            }
        }
        for id in &mentioned {
            if unfinished.contains(id) {
                self.retry(id, now);
            } else {
                self.retries.remove(id);
            }
        }
        if report.interrupted {
            self.put_back(scope, now);
        } else if let Some(Scope::Only(asked)) = scope {
            // What the run did not know is no longer declared; trying it again would never end.
            for id in asked.iter().filter(|id| !mentioned.contains(id)) {
                self.retries.remove(id);
                self.blocked.remove(id);
            }
        }
        if report.full && !report.interrupted {
            self.forget_others(&mentioned, now);
            self.full_at = now + self.spread(self.full_scan);
            let rest = Duration::from_micros(report.duration_us).saturating_mul(4);
            let (shortest, longest) =
                if self.fights.storm(now).is_some() { STORM_REST } else { (Duration::ZERO, MAX_REST) };
            let rest = rest.clamp(shortest, longest);
            self.rest_until = now + rest;
        }
    }

    /// Takes note that a run could not be carried out at all, such as because another holds the lock. It is tried again
    /// after the first retry delay.
    pub fn abandoned(&mut self, now: Instant) {
        let scope = self.running.take();
        self.put_back(scope, now + self.retry_first);
    }

    /// Until when a resource that somebody keeps changing is to be left as it is; `None` when it may be repaired now.
    pub fn held_until(&self, resource: &ResourceId, now: Instant) -> Option<Instant> {
        self.fights.held_until(resource, now)
    }

    /// All resources that are to be left as they are, and until when: what the guard is told.
    pub fn held(&self, now: Instant) -> impl Iterator<Item = (&ResourceId, Instant)> {
        self.fights.held(now)
    }

    /// Resources that somebody keeps changing.
    pub fn contested(&self, now: Instant) -> impl Iterator<Item = Contested<'_>> {
        self.fights.contested(now)
    }

    /// Since when there is so much to repair that everything is looked at in single passes; `None` when it is calm.
    pub fn storm(&self, now: Instant) -> Option<Instant> {
        self.fights.storm(now)
    }

    /// When [`Schedule::contested`] or [`Schedule::storm`] are to be asked again although nothing happens: a fight or a storm
    /// is over then, or a fight has gone on for as long as health tolerates.
    pub fn fights_change_at(&self, now: Instant) -> Option<Instant> {
        self.fights.change_at(now)
    }

    /// When a hinted resource is to be looked at: at once unless settling is configured, not while it is held, and after a
    /// failure not before its retry, because a failing step causes events too (a package manager writes its database). A hint
    /// still shortens a long retry delay, so that a cause that somebody removed is noticed soon.
    fn ready_at(&self, resource: &ResourceId, dirty: Dirty, now: Instant) -> Instant {
        let settled = (dirty.last + self.settle).min(dirty.first + self.settle_max.max(self.settle));
        let retry = self.retries.get(resource).map(|retry| retry.at.min(dirty.first + HINTED_RETRY));
        self.held_until(resource, now).into_iter().chain(retry).fold(settled, Instant::max)
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let pass = self.fights.storm(now).map(|_| self.rest_until);
        let hinted = self.dirty.iter().map(|(resource, dirty)| {
            let ready = self.ready_at(resource, *dirty, now);
            pass.map_or(ready, |pass| ready.max(pass))
        });
        let retries = self.retries.values().map(|retry| retry.at);
        let rest = self.everything.map(|_| self.rest_until);
        hinted.chain(retries).chain(rest).fold(self.full_at, Instant::min)
    }

    /// Whatever a run looks at, what was skipped because of it is looked at too, and so on.
    fn add_blocked(&self, due: &mut BTreeSet<ResourceId>) {
        loop {
            let more: Vec<&ResourceId> = self
                .blocked
                .iter()
                .filter(|(id, blocker)| due.contains(*blocker) && !due.contains(*id))
                .map(|(id, _)| id)
                .collect();
            if more.is_empty() {
                return;
            }
            due.extend(more.into_iter().cloned());
        }
    }

    fn put_back(&mut self, scope: Option<Scope>, at: Instant) {
        match scope {
            Some(Scope::Everything) => {
                self.everything.get_or_insert("the last full run did not end");
                self.rest_until = at;
                // Otherwise the periodic scan, being due, would not wait.
                self.full_at = self.full_at.max(at);
            }
            Some(Scope::Only(resources)) => {
                for resource in resources {
                    let attempts = self.retries.get(&resource).map_or(0, |retry| retry.attempts);
                    self.retries.insert(resource, Retry { attempts, at });
                }
            }
            None => {}
        }
    }

    fn retry(&mut self, id: &ResourceId, now: Instant) {
        let attempts = self.retries.get(id).map_or(0, |retry| retry.attempts).saturating_add(1);
        let doubled = self.retry_first.saturating_mul(1_u32.checked_shl(attempts - 1).unwrap_or(u32::MAX));
        let longest = doubled.min(self.retry_max);
        // Full jitter, but never so lucky a draw that the retries spin.
        let shortest = (self.retry_first / 2).min(longest);
        let at = now + shortest + self.rng.up_to(longest - shortest);
        self.retries.insert(id.clone(), Retry { attempts, at });
    }

    /// After a full run, what it did not name is no longer declared.
    fn forget_others(&mut self, known: &BTreeSet<&ResourceId>, now: Instant) {
        self.retries.retain(|id, _| known.contains(id));
        self.blocked.retain(|id, _| known.contains(id));
        self.fights.forget_others(known, now);
    }

    /// A duration, a tenth more or less.
    fn spread(&mut self, duration: Duration) -> Duration {
        duration - duration / 10 + self.rng.up_to(duration / 5)
    }
}

/// SplitMix64: small, seedable, and good enough to spread hosts.
#[derive(Debug)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A duration from zero to `longest`, in whole microseconds.
    fn up_to(&mut self, longest: Duration) -> Duration {
        let microseconds = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX - 1);
        Duration::from_micros(self.next() % (microseconds + 1))
    }
}

#[cfg(test)]
mod tests;
