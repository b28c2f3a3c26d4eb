//! How many repairs are free, for each resource and for all together, and what becomes of those beyond.
//!
//! Pure. It never gives a resource up: a contested one is repaired ever more rarely, down to once a minute, and looked at
//! again when it may be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::contest::{Contest, Displaced};
use crate::config::HealthSettings;
use crate::resource::ResourceId;

/// Repairs of all resources together that are free in a minute; beyond it, hints are no longer followed one by one.
const FREE_REPAIRS_OF_ALL: u32 = 500;

/// Time in which those come back, and in which nobody may change a resource for a fight to be over.
const MINUTE: Duration = Duration::from_secs(60);

/// Longest time between two repairs of a contested resource.
const MAX_SPACING: Duration = Duration::from_secs(60);

/// The buckets.
#[derive(Debug)]
pub(super) struct Fights {
    limit: u32,
    /// Time in which one repair of a resource comes back.
    refill: Duration,
    limit_of_all: u32,
    refill_of_all: Duration,
    /// How long a resource is contested before it counts as flapping.
    patience: Duration,
    each: BTreeMap<ResourceId, Fight>,
    all: Bucket,
    storm_since: Option<Instant>,
}

/// Repairs that were made and have not come back yet.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    used: u32,
    refilled: Instant,
}

#[derive(Debug, Clone)]
struct Fight {
    bucket: Bucket,
    spacing: Duration,
    repaired: Instant,
    held_until: Option<Instant>,
    /// Since when it is contested; meaningless while `spacing` is zero.
    since: Instant,
    /// Made by the second repair: a storm that touches everything once costs no memory for names.
    contest: Option<Box<Contest>>,
}

/// A resource that somebody keeps changing.
#[derive(Debug, Clone, Copy)]
pub struct Contested<'a> {
    /// Which.
    pub resource: &'a ResourceId,
    /// Since when its free repairs are used up.
    pub since: Instant,
    /// Time between two repairs.
    pub spacing: Duration,
    /// Who and what.
    pub contest: &'a Contest,
}

/// Whether repairs beyond the limit of all resources begin a storm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    /// They do.
    ForAll,
    /// They do not, because one pass over everything made them; they only keep up a storm that is there.
    AsPass,
}

impl Fights {
    pub(super) fn new(settings: &HealthSettings, now: Instant) -> Self {
        let HealthSettings { flapping_repairs: limit, flapping_within, flapping_for: patience, .. } = *settings;
        let refill = (flapping_within / limit.max(1)).max(Duration::from_nanos(1));
        // What one resource may have, all together may have as well.
        let a_minute = u32::try_from(MINUTE.as_nanos() / refill.as_nanos()).unwrap_or(u32::MAX);
        let limit_of_all = a_minute.max(FREE_REPAIRS_OF_ALL);
        Self {
            limit,
            refill,
            limit_of_all,
            refill_of_all: (MINUTE / limit_of_all).max(Duration::from_nanos(1)),
            patience,
            each: BTreeMap::new(),
            all: Bucket::empty(now),
            storm_since: None,
        }
    }

    /// The same fights under other limits.
    pub(super) fn with_limits_of(self, other: &Self) -> Self {
        let Self { limit, refill, limit_of_all, refill_of_all, patience, .. } = *other;
        Self { limit, refill, limit_of_all, refill_of_all, patience, ..self }
    }

    /// Counts one repair.
    pub(super) fn repaired(&mut self, id: &ResourceId, counts: Counts, now: Instant) {
        self.count_for_all(counts, now);
        let (limit, refill) = (self.limit, self.refill);
        let fight = match self.each.get_mut(id) {
            Some(fight) => fight,
            None => self.each.entry(id.clone()).or_insert_with(|| Fight::new(now)),
        };
        if fight.is_over(now) {
            fight.spacing = Duration::ZERO;
            fight.contest = None;
        }
        fight.bucket.refill(refill, now);
        fight.repaired = now;
        fight.bucket.used = fight.bucket.used.saturating_add(1);
        if fight.bucket.used > 1 || fight.is_contested() {
            fight.contest.get_or_insert_default().count();
        }
        if fight.is_contested() || fight.bucket.used >= limit {
            if !fight.is_contested() {
                fight.since = now;
            }
            fight.spacing = (fight.spacing * 2).clamp(Duration::from_secs(1), MAX_SPACING);
            fight.held_until = Some(now + fight.spacing);
        } else {
            fight.held_until = None;
        }
    }

    /// Takes note of what the last counted repair of a resource put away.
    pub(super) fn displaced(&mut self, id: &ResourceId, displaced: Displaced) {
        if let Some(contest) = self.each.get_mut(id).and_then(|fight| fight.contest.as_mut()) {
            contest.note(displaced);
        }
    }

    fn count_for_all(&mut self, counts: Counts, now: Instant) {
        let is_storm = self.storm(now).is_some();
        if !is_storm && counts == Counts::AsPass {
            return;
        }
        self.all.refill(self.refill_of_all, now);
        self.all.used = self.all.used.saturating_add(1).min(self.limit_of_all.saturating_add(1));
        if !is_storm {
            self.storm_since = (self.all.used > self.limit_of_all).then_some(now);
        }
    }

    /// Since when there are more repairs than may be followed one by one; `None` when it is calm.
    pub(super) fn storm(&self, now: Instant) -> Option<Instant> {
        self.storm_since.filter(|_| self.storm_ends() > now)
    }

    /// A storm is over when half of what it took has come back: half a minute after the last of it.
    fn storm_ends(&self) -> Instant {
        self.all.refilled + self.refill_of_all * self.all.used.saturating_sub(self.limit_of_all / 2)
    }

    /// Until when a resource is to be left as it is.
    pub(super) fn held_until(&self, id: &ResourceId, now: Instant) -> Option<Instant> {
        self.each.get(id).and_then(|fight| fight.held_until).filter(|until| *until > now)
    }

    /// All resources that are to be left as they are, and until when.
    pub(super) fn held(&self, now: Instant) -> impl Iterator<Item = (&ResourceId, Instant)> {
        self.each.iter().filter_map(move |(id, fight)| Some((id, fight.held_until.filter(|until| *until > now)?)))
    }

    /// All resources that somebody keeps changing.
    pub(super) fn contested(&self, now: Instant) -> impl Iterator<Item = Contested<'_>> {
        self.each.iter().filter_map(move |(resource, fight)| {
            let contest = fight.contest.as_deref().filter(|_| fight.is_contested() && !fight.is_over(now))?;
            Some(Contested { resource, since: fight.since, spacing: fight.spacing, contest })
        })
    }

    /// When something about fights changes by the passing of time alone: one is over, or has gone on for too long.
    pub(super) fn change_at(&self, now: Instant) -> Option<Instant> {
        let fights = self.each.values().filter(|fight| fight.is_contested());
        let times = fights.flat_map(|fight| [fight.ends(), fight.since + self.patience]);
        times.chain(self.storm_since.map(|_| self.storm_ends())).filter(|at| *at > now).min()
    }

    /// A new policy may well be the end of every fight.
    pub(super) fn forget_all(&mut self, now: Instant) {
        self.each.clear();
        self.all = Bucket::empty(now);
        self.storm_since = None;
    }

    /// Forgets what is over, and what is not known any more.
    pub(super) fn forget_others(&mut self, known: &BTreeSet<&ResourceId>, now: Instant) {
        self.each.retain(|id, fight| known.contains(id) && !fight.is_over(now));
    }
}

impl Bucket {
    fn empty(now: Instant) -> Self {
        Self { used: 0, refilled: now }
    }

    fn refill(&mut self, each: Duration, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled).as_nanos();
        let n_back = passed.checked_div(each.as_nanos()).and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
        if n_back >= self.used {
            *self = Self::empty(now);
        } else {
            self.used -= n_back;
            self.refilled += each * n_back;
        }
    }
}

impl Fight {
    fn new(now: Instant) -> Self {
        Self {
            bucket: Bucket::empty(now),
            spacing: Duration::ZERO,
            repaired: now,
            held_until: None,
            since: now,
            contest: None,
        }
    }

    fn is_contested(&self) -> bool {
        !self.spacing.is_zero()
    }

    /// When nobody has changed it for a while after it could be repaired again.
    fn ends(&self) -> Instant {
        self.repaired + (self.spacing * 4).max(MINUTE)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.ends() <= now
    }
}
