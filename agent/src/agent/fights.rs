//! Fights over resources, from what the schedule counted to what is told: once when one begins, in `status` while it lasts.
//!
//! Nothing here decides how often anything is repaired.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tracing::{info, warn};

use super::Loop;
use super::status::ContestedStatus;
use super::worker::{Task, Worker};
use crate::converge::Cause;
use crate::converge::health::{Contested, Input};
use crate::record::{Note, RunInfo};
use crate::resource::{Desired, Resource, ResourceId};
use crate::schedule::{Contest, short_digest};
use crate::spool::{Event as AlertEvent, OutgoingBody};

/// A resource that somebody keeps changing, now.
#[derive(Debug, Clone)]
pub struct Fight {
    /// Which.
    pub resource: ResourceId,
    /// Since when its free repairs are used up.
    pub since: Timestamp,
    /// Time between two repairs.
    pub spacing: Duration,
    /// Who and what.
    pub contest: Contest,
}

/// All fights now, and what is new about them.
#[derive(Debug, Clone, Default)]
pub struct Fights {
    /// Those under way.
    pub all: Vec<Fight>,
    /// Which of them were not told of before.
    pub began: BTreeSet<ResourceId>,
    /// Those that were told of and are over.
    pub ended: Vec<ResourceId>,
    /// Since when there is too much drift to look at one by one.
    pub storm: Option<Timestamp>,
}

impl Loop {
    /// Passes on what the schedule knows of fights, when there are any or something about them has changed.
    pub(super) fn tell_fights(&mut self, now: Instant) -> anyhow::Result<()> {
        let stamp = |at: Instant| {
            let past = SignedDuration::try_from(now.saturating_duration_since(at)).unwrap_or(SignedDuration::ZERO);
            Timestamp::now().checked_sub(past).unwrap_or(Timestamp::UNIX_EPOCH)
        };
        let all: Vec<Fight> = self
            .schedule
            .contested(now)
            .map(|fight| Fight {
                resource: fight.resource.clone(),
                since: stamp(fight.since),
                spacing: fight.spacing,
                contest: fight.contest.clone(),
            })
            .collect();
        let storm = self.schedule.storm(now);
        if all.is_empty() && self.contested.is_empty() && storm.is_some() == self.is_storm {
            return Ok(());
        }
        self.is_storm = storm.is_some();
        let contested: BTreeSet<ResourceId> = all.iter().map(|fight| fight.resource.clone()).collect();
        let began = contested.difference(&self.contested).cloned().collect();
        let ended = self.contested.difference(&contested).cloned().collect();
        self.contested = contested;
        self.send(Task::Fights(Fights { all, began, ended, storm: storm.map(stamp) }))
    }
}

impl Worker {
    /// Tells of what is new, and shows what lasts.
    pub(super) fn take_fights(&mut self, fights: Fights) {
        let told: Vec<(ResourceId, String)> = fights
            .all
            .iter()
            .filter(|fight| fights.began.contains(&fight.resource))
            .map(|fight| (fight.resource.clone(), self.sentence(fight)))
            .collect();
        for (resource, summary) in &told {
            warn!(%resource, "contested: {summary}");
            self.note_contested(resource, summary);
        }
        if let Some(alert) = self.speaker().contested(&told, Timestamp::now()) {
            self.enqueue(OutgoingBody::Alert(alert));
        }
        for resource in &fights.ended {
            info!(%resource, "no longer contested");
        }
        let was_storm = self.shared.status().storm_since.is_some();
        match fights.storm {
            Some(_) if !was_storm => {
                let summary = "more drift than can be followed change by change: until it is calm, everything is looked \
                               at in one pass after the other";
                warn!("{summary}");
                self.announce(AlertEvent::DriftStorm, summary.to_owned());
            }
            None if was_storm => info!("drift is followed change by change again"),
            Some(_) | None => {}
        }
        let contested: Vec<ContestedStatus> = fights.all.iter().map(|fight| self.contested_status(fight)).collect();
        let input: Vec<Contested> = contested
            .iter()
            .map(|fight| Contested {
                resource: fight.resource.clone(),
                since: fight.since,
                n_repairs: fight.n_repairs,
                summary: fight.summary.clone(),
            })
            .collect();
        {
            let mut status = self.shared.status();
            status.storm_since = fights.storm;
            status.contested = contested;
        }
        let may_ask = self.may_ask();
        self.feed_health(Input::Fights { fights: &input, ended: &fights.ended, may_ask });
    }

    fn sentence(&self, fight: &Fight) -> String {
        let declared = self.in_force.as_ref().and_then(|policy| policy.state.get(&fight.resource));
        fight.contest.sentence(&fight.resource, declared.and_then(wanted).as_deref())
    }

    fn contested_status(&self, fight: &Fight) -> ContestedStatus {
        ContestedStatus {
            resource: fight.resource.clone(),
            since: fight.since,
            every_s: fight.spacing.as_secs(),
            n_repairs: fight.contest.n_repairs(),
            actors: fight.contest.actors().into_iter().map(|(name, times)| (name.to_owned(), times)).collect(),
            summary: self.sentence(fight),
        }
    }

    /// Writes into the history that somebody fights over a resource.
    fn note_contested(&mut self, resource: &ResourceId, summary: &str) {
        let Some(revision) = self.in_force.as_ref().map(|policy| policy.state.revision().clone()) else { return };
        let time = Timestamp::now();
        let mut run = RunInfo { id: None, started: time, revision, cause: Cause::Drift, full: false };
        let note = Note { resource, outcome: "contested", action: None, changes: &[], error: summary, who: None, time };
        if let Err(error) = self.record.note(&mut run, &note) {
            self.record.note_trouble(&error);
        }
    }
}

/// The value that a policy wants, where the differences that a run reports do not say it.
fn wanted(resource: &Resource) -> Option<String> {
    let Desired::File(file) = &resource.desired else { return None };
    Some(short_digest(&file.ensure.present()?.content.digest()))
}
