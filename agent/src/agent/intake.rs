//! What comes in: the policy in force, and what the courier wrote. Every byte of it is hostile until checked.

use std::path::Path;

use jiff::Timestamp;
use tracing::{info, warn};

use super::random_id;
use super::revisions::{self, Consideration, Contents, InForce};
use super::verdicts::Verdicts;
use super::worker::{Event, Worker};
use crate::converge::health::{Answer, Input};
use crate::host;
use crate::policy::compile::Inputs;
use crate::policy::facts::HostView;
use crate::policy::secret::Secrets;
use crate::resource::{Desired, Resource, ResourceId, UnitName, chain, directory};
use crate::spool::{CourierState, Event as AlertEvent, FetchResult, ReimageReply};
use crate::watch::{Interest, MOUNTS, SharedPath};

impl Worker {
    /// Puts the recorded revision in force again.
    pub(super) fn load_policy(&mut self) {
        if let Err(error) = revisions::keep_newest(&self.settings.paths, &self.revisions) {
            self.warn(chain(&error));
        }
        let Some(revision) = self.revisions.in_force.clone() else { return };
        let view = host::facts::view(&self.host);
        match revisions::load(&self.settings.paths, &revision, &self.inputs(view.as_ref()), self.contents) {
            Ok(in_force) => {
                // What has come back since, or was left out by a role or fact that changed.
                self.note_orphans(&in_force.state);
                self.put_in_force(in_force);
            }
            Err(reason) => {
                self.warn(format!("cannot load the policy in force, {}: {reason}", revision.short()));
                // Forgotten, so that the same commit is considered again; the high-water mark stays.
                self.revisions.in_force = None;
            }
        }
    }

    /// Compiles the policy again when the contents of its files turned out to be damaged, and keeps them in memory from now on:
    /// what the disk lost once it may lose again.
    pub(super) fn mend_contents(&mut self) {
        let store = self.in_force.as_ref().and_then(|in_force| in_force.store.as_ref());
        // Once it was tried, another look would find the same, if the tree is damaged as well.
        if !store.is_some_and(|store| store.is_damaged()) || self.contents == Contents::InMemory {
            return;
        }
        let Some(revision) = self.in_force.as_ref().map(|in_force| in_force.state.revision().clone()) else { return };
        self.warn(format!(
            "what is kept of the policy {} on the disk is damaged; it is compiled again, and kept in memory until the agent is \
             started again",
            revision.short()
        ));
        revisions::forget_compiled(&self.settings.paths, &revision);
        self.contents = Contents::InMemory;
        self.load_policy();
        self.read_inbox();
        self.tell(Event::RunEverything);
    }

    pub(super) fn inputs<'a>(&'a self, view: Option<&'a HostView>) -> Inputs<'a> {
        Inputs { facts: &self.facts, roles: &self.settings.roles, host: view, secrets: &self.secrets }
    }

    pub(super) fn put_in_force(&mut self, in_force: InForce) {
        self.guard.disarm();
        let revision = in_force.state.revision().clone();
        info!(revision = revision.short(), resources = in_force.state.resources().len(), "policy in force");
        self.untidy = true;
        self.verdicts = Verdicts::default();
        self.debts.clear();
        let (health, effects) =
            self.health.clone().next(Input::NewRevision(&revision), &self.settings.health, Timestamp::now(), random_id);
        self.health = health;
        self.remember_health();
        if let Err(error) = self.record.forget_never_confirmed(&revision) {
            self.record.note_trouble(&error);
        }
        let (interests, units) = self.interests(&in_force);
        let those = |needs_scans: fn(&directory::Desired) -> bool| {
            let is_one = |resource: &&Resource| matches!(&resource.desired, Desired::Directory(d) if needs_scans(d));
            in_force.state.resources().iter().filter(is_one).map(|resource| resource.id.clone()).collect()
        };
        let (scanned, purged) = (those(directory::Desired::needs_scans), those(directory::Desired::purges_by_scans));
        let mut status = self.shared.status();
        (status.scanned_trees, status.scanned_strays) = (scanned, purged);
        drop(status);
        if self.revisions.settled.as_ref() == Some(&revision) {
            self.declare_files(&in_force);
        } else {
            // Until a run has carried it out, everything differs, and nobody need be told of it.
            self.declare_no_files();
        }
        self.in_force = Some(in_force);
        self.tell(Event::Watch { interests, units });
        self.carry_out(effects, None);
        self.publish();
    }

    /// What to watch for the resources of a policy.
    pub(super) fn interests(&self, in_force: &InForce) -> (Vec<Interest>, Vec<UnitName>) {
        let databases: Vec<SharedPath> =
            self.host.packages.database_paths().into_iter().map(SharedPath::from).collect();
        let accounts = ["/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow"].map(SharedPath::from);
        let mut interests = Vec::new();
        let mut units = Vec::new();
        let mut watch = |path: SharedPath, id: &ResourceId| interests.push(Interest { path, resource: id.clone() });
        for resource in in_force.state.resources() {
            let watched = resource.watched();
            for path in &watched.paths {
                watch(path.into(), &resource.id);
            }
            // Where the link leads now. It leads elsewhere only after an event, which a run follows; until the policy is put in
            // force again full scans watch over what it leads to then.
            if let Desired::File(file) = &resource.desired
                && let Ok(followed) = file.acts_on(&self.host.root)
                && followed != file.path
            {
                watch((&followed).into(), &resource.id);
            }
            for directory in &watched.entries {
                watch(format!("{directory}/").as_str().into(), &resource.id);
            }
            if watched.accounts {
                for path in &accounts {
                    watch(path.clone(), &resource.id);
                }
            }
            if watched.mounts {
                watch(Path::new(MOUNTS).into(), &resource.id);
            }
            if watched.packages {
                for path in &databases {
                    watch(path.clone(), &resource.id);
                }
            }
            if let Some(unit) = watched.unit {
                units.push(unit);
            }
        }
        (interests, units)
    }

    /// Reads what the courier wrote. A file that cannot be read is reported and set aside by the spool; it never stops anything.
    pub(super) fn read_inbox(&mut self) {
        match self.inbox.read_slot::<FetchResult>() {
            Ok(Some(fetch)) => {
                if let Some(commit) = fetch.commit.clone() {
                    self.consider(&commit);
                }
                self.shared.status().fetch = Some(fetch);
            }
            Ok(None) => {}
            Err(error) => self.warn(chain(&error)),
        }
        match self.inbox.read_slot::<ReimageReply>() {
            Ok(Some(reply)) => self.take_reply(reply),
            Ok(None) => {}
            Err(error) => self.warn(chain(&error)),
        }
        match self.inbox.read_slot::<CourierState>() {
            Ok(state) => self.shared.status().courier = state,
            Err(error) => self.warn(chain(&error)),
        }
    }

    pub(super) fn consider(&mut self, commit: &str) {
        let Some(policy) = self.settings.policy.clone() else { return };
        if self.revisions.refused.is_some() || matches!(self.secrets, Secrets::Missing(_)) {
            // It may have been for the want of the key, which somebody has put there since.
            self.secrets = super::secrets::load(&self.settings);
        }
        let view = host::facts::view(&self.host);
        let mut revisions = self.revisions.clone();
        let now = Timestamp::now();
        let inputs = self.inputs(view.as_ref());
        let consideration = revisions::consider(
            &self.settings.paths,
            &policy.trust,
            &mut revisions,
            commit,
            &inputs,
            self.contents,
            now,
        );
        match consideration {
            Consideration::Nothing => {}
            Consideration::Refused(refused) => {
                self.revisions = revisions;
                warn!(revision = refused.revision, "policy refused: {}", refused.reason);
                let summary = format!("refused revision {}: {}", Short(&refused.revision), refused.reason);
                // Told before it is recorded: a kill between the two tells it twice, and never not at all.
                self.announce(AlertEvent::PolicyRejected, summary);
                self.remember_revisions();
            }
            Consideration::Accepted(in_force) => {
                let previous = self.revisions.in_force.clone();
                self.revisions = revisions;
                let summary = format!(
                    "revision {} is in force with {} resources{}",
                    in_force.state.revision().short(),
                    in_force.state.resources().len(),
                    in_force.signer.as_ref().map_or(String::new(), |who| format!(", signed by {who}")),
                );
                let left_out = self.note_orphans(&in_force.state);
                self.announce_acceptance(summary, &left_out);
                self.remember_revisions();
                self.forget_policies(previous);
                self.put_in_force(in_force);
                self.tell(Event::RunEverything);
            }
        }
    }

    /// Removes the tree of a revision that is neither in force nor the last good one.
    pub(super) fn forget_policies(&self, candidate: Option<crate::policy::Revision>) {
        // The record on the disk may name it.
        let Some(old) = candidate.filter(|_| self.record.is_durable()) else { return };
        if Some(&old) == self.revisions.in_force.as_ref() || Some(&old) == self.revisions.last_good.as_ref() {
            return;
        }
        if let Err(error) = crate::policy::trust::forget(&self.settings.paths.policies(), &old) {
            self.warn(format!("cannot remove the old policy {}: {}", old.short(), chain(&error)));
        }
    }

    pub(super) fn take_reply(&mut self, reply: ReimageReply) {
        let answer = match reply.state.as_str() {
            "awaiting_ready" => Answer::Granted,
            "denied" | "cancelled" | "expired" | "failed" | "quarantined" => Answer::Ended {
                why: reply.reason.map_or_else(|| reply.state.clone(), |reason| format!("{}: {reason}", reply.state)),
                retry_after: reply.retry_after,
            },
            // Undecided, under way, or a word of a newer endpoint: nothing to do but wait.
            _ => Answer::Open,
        };
        let input = Input::Answer { request: &reply.request, answer };
        let (health, effects) = self.health.clone().next(input, &self.settings.health, Timestamp::now(), random_id);
        self.adopt(health, effects, None);
    }

    pub(super) fn load_last_good(&mut self) -> Option<InForce> {
        let good = self.revisions.last_good.clone()?;
        let view = host::facts::view(&self.host);
        match revisions::load(&self.settings.paths, &good, &self.inputs(view.as_ref()), self.contents) {
            Ok(in_force) => Some(in_force),
            Err(reason) => {
                self.warn(format!("cannot load the last good policy, {}: {reason}", good.short()));
                None
            }
        }
    }
}

/// The first twelve characters of an id.
struct Short<'a>(&'a str);

impl std::fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(self.0))
    }
}
