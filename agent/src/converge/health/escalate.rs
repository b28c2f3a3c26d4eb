//! What is no failed step and yet means that the host is not well: a fight that does not end, a file system that reports
//! damage, and drift of what the agent itself is made of.
//!
//! A step that fails for the same reason again and again needs nothing here: its first failure is `convergence.failed`, and
//! the give-up limits decide when it leads to a request.

use std::time::Duration;

use jiff::Timestamp;

use super::{Effect, Failure, Health, MayAsk, Reason, Request, State, later};
use crate::config::HealthSettings;
use crate::resource::ResourceId;

/// The signature of a resource that is fought over.
const FLAPPING: &str = "flapping";

/// Time after which a fight that nobody speaks of any more counts as over: the agent was restarted, and the fight did not begin
/// again. Longer than most runs, during which nobody speaks of any.
const FORGOTTEN: Duration = Duration::from_secs(30 * 60);

/// Time within which a second drift of what the agent is made of looks like somebody who wants it gone.
const OWN_DRIFT: Duration = Duration::from_secs(60 * 60);

/// A resource that somebody keeps changing.
#[derive(Debug, Clone, PartialEq)]
pub struct Contested {
    /// Which.
    pub resource: ResourceId,
    /// Since when.
    pub since: Timestamp,
    /// Repairs so far.
    pub n_repairs: u32,
    /// One sentence: by whom, and which values.
    pub summary: String,
}

impl Health {
    /// Fights that have gone on for too long are failures until they end, and ask for a reimage when that is possible.
    pub(super) fn take_fights(
        &mut self,
        (fights, ended): (&[Contested], &[ResourceId]),
        may_ask: MayAsk,
        settings: &HealthSettings,
        now: Timestamp,
        new_id: impl FnOnce() -> String,
        effects: &mut Vec<Effect>,
    ) {
        self.failing.retain(|id, failure| failure.contested_at.is_none() || !ended.contains(id));
        let mut began = None;
        for fight in fights.iter().filter(|fight| later(fight.since, settings.flapping_for) <= now) {
            let failure = self.failing.entry(fight.resource.clone()).or_insert_with(|| {
                began.get_or_insert(fight);
                Failure {
                    since: fight.since,
                    attempts: 0,
                    error: String::new(),
                    signature: FLAPPING.to_owned(),
                    indeterminate: false,
                    contested_at: Some(now),
                    outlived_restart: false,
                }
            });
            // What cannot even be repaired has worse to tell than that it is fought over.
            if failure.contested_at.is_some() {
                failure.contested_at = Some(now);
                failure.attempts = fight.n_repairs;
                failure.error.clone_from(&fight.summary);
            }
        }
        let flapping = self.failing.values().find(|failure| failure.contested_at.is_some());
        match (flapping, self.state.clone()) {
            (Some(failure), _) if self.can_ask(may_ask, now) => {
                let summary = failure.error.clone();
                self.ask(Request { id: new_id(), reason: Reason::Flapping, summary }, now, effects);
            }
            (
                Some(_),
                State::Unknown | State::Converged | State::Degraded | State::OnLastGood { .. } | State::Failing,
            ) => {
                if let Some(fight) = began {
                    effects.push(Effect::AlertUnhealthy(fight.summary.clone()));
                }
                if !matches!(self.state, State::Failing) {
                    self.enter(State::Failing, now);
                }
            }
            (None, State::Failing | State::Degraded) if !ended.is_empty() && self.is_well() => {
                self.enter(State::Converged, now);
                effects.push(Effect::AlertRestored);
                effects.push(Effect::RunEverything);
            }
            (None, State::Requested(request)) if request.reason == Reason::Flapping && self.is_well() => {
                self.withdraw(request, settings, now, effects);
            }
            (Some(_) | None, _) => {}
        }
    }

    /// Forgets the fights that an earlier process saw and that did not begin again.
    pub(super) fn forget_fights(&mut self, now: Timestamp) {
        self.failing.retain(|_, failure| failure.contested_at.is_none_or(|at| later(at, FORGOTTEN) > now));
    }

    /// A damaged file system is the clearest reason to be rebuilt; the request waits until it may be made.
    pub(super) fn take_damage(
        &mut self,
        (device, what): (&str, &str),
        may_ask: MayAsk,
        now: Timestamp,
        new_id: impl FnOnce() -> String,
        effects: &mut Vec<Effect>,
    ) {
        if self.request().is_some_and(|request| request.reason == Reason::FileSystem) {
            return;
        }
        let is_new = self.damage.is_none();
        let damage = Damage { since: now, device: device.to_owned(), summary: what.to_owned() };
        let damage = self.damage.get_or_insert(damage).clone();
        if self.ask_because_of_damage(may_ask, now, new_id, effects) {
            return;
        }
        if is_new {
            effects.push(Effect::AlertUnhealthy(damage.summary));
        }
        match self.state {
            State::Unknown | State::Converged | State::Degraded | State::OnLastGood { .. } => {
                self.enter(State::Failing, now);
            }
            State::Failing | State::Requested(_) | State::Granted(_) | State::Draining(_) | State::HandedOver(_) => {}
        }
    }

    /// Makes the request that a damaged file system waits for; `false` when there is none, or it may not be made.
    pub(super) fn ask_because_of_damage(
        &mut self,
        may_ask: MayAsk,
        now: Timestamp,
        new_id: impl FnOnce() -> String,
        effects: &mut Vec<Effect>,
    ) -> bool {
        if !self.can_ask(may_ask, now) {
            return false;
        }
        // Once asked, the answer counts: damage that was there already is not asked about twice.
        let Some(damage) = self.damage.take() else { return false };
        self.ask(Request { id: new_id(), reason: Reason::FileSystem, summary: damage.summary }, now, effects);
        true
    }

    /// The second drift of what the agent is made of, within an hour, is no accident.
    pub(super) fn take_own_drift(
        &mut self,
        resources: &[ResourceId],
        may_ask: MayAsk,
        now: Timestamp,
        new_id: impl FnOnce() -> String,
        effects: &mut Vec<Effect>,
    ) {
        let Some(first) = resources.first() else { return };
        let before = self.own_drift.replace(now);
        if before.is_some_and(|at| later(at, OWN_DRIFT) > now) && self.can_ask(may_ask, now) {
            let summary = format!("{first} drifted: what the agent itself is made of was changed twice within an hour");
            self.ask(Request { id: new_id(), reason: Reason::Tampered, summary }, now, effects);
        }
    }

    /// Whether a request may be made: none is open, no cool-down runs, and the caller may.
    pub(super) fn can_ask(&self, may_ask: MayAsk, now: Timestamp) -> bool {
        may_ask == MayAsk::Yes && self.request().is_none() && self.not_before.is_none_or(|t| t <= now)
    }

    /// Whether nothing fails and nothing is damaged.
    pub(super) fn is_well(&self) -> bool {
        self.failing.is_empty() && self.damage.is_none()
    }
}

/// A file system that reported damage, about which nobody has been asked yet.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Damage {
    /// When it was noticed.
    pub since: Timestamp,
    /// The device's name, such as `vda1`.
    pub device: String,
    /// One sentence for a person.
    pub summary: String,
}
