//! Orphans: what the policy once declared and declares no longer.
//!
//! They are told of and left as they are. Only a policy that says `orphans = "remove"`, and has converged here, has them
//! reaped: each path returns to what stood there before a policy was first carried out, and what rekindle itself had made goes.
//! What is not known is left, with the reason. A user is locked first, and removed a day later at the earliest.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::revisions::InForce;
use super::worker::Worker;
use crate::converge::{self, Cause, Outcome, Scope};
use crate::policy::{DesiredState, Orphans, Revision};
use crate::record::{self, Note, Orphan, RunInfo, RunLock};
use crate::resource::place::Ownership;
use crate::resource::{
    AbsPath, Content, Desired, Ensure, GroupName, Kind, OnDrift, PackageName, Principal, Resource, ResourceId,
    SourceLocation, Stood, UserName, chain, directory, file, group, package, repository, symlink, user,
};
use crate::spool::{AlertResource, Event as AlertEvent, OutgoingBody};

/// How long the account of a user is locked before it goes.
const LOCKED_FOR: SignedDuration = SignedDuration::from_hours(24);

impl Worker {
    /// Takes note of what another state of things leaves out, and of what comes back. Called before that state is recorded as
    /// the one in force: a kill in between finds orphans that are still declared, which are then forgotten again.
    pub(super) fn note_orphans(&mut self, next: &DesiredState) -> Vec<Orphan> {
        let known = match self.record.orphans() {
            Ok(known) => known,
            Err(error) => {
                self.warn(chain(&error));
                return Vec::new();
            }
        };
        let gone: Vec<ResourceId> =
            known.iter().filter(|orphan| next.get(&orphan.resource).is_some()).map(|o| o.resource.clone()).collect();
        let now = Timestamp::now();
        let old = self.in_force.as_ref().map(|old| old.state.resources()).unwrap_or_default();
        let fresh: Vec<Orphan> = old
            .iter()
            .filter(|resource| next.get(&resource.id).is_none() && resource.desired.leaves_something())
            .map(|resource| Orphan {
                resource: resource.id.clone(),
                what: describe(&resource.desired),
                declared: format!("{}:{}", resource.source.file, resource.source.line),
                left_out_by: next.revision().as_str().to_owned(),
                since: now,
                locked: None,
                note: String::new(),
            })
            .collect();
        if let Err(error) = self.record.change_orphans(&fresh, &gone) {
            self.warn(chain(&error));
        }
        self.note_left_out(&fresh, next.revision());
        self.load_orphans();
        fresh
    }

    /// Writes into the history what was left out.
    fn note_left_out(&mut self, fresh: &[Orphan], revision: &Revision) {
        let time = Timestamp::now();
        let mut run =
            RunInfo { id: None, started: time, revision: revision.clone(), cause: Cause::NewRevision, full: false };
        let why = format!("revision {} does not declare it any more; left as it is", revision.short());
        for orphan in fresh {
            let note = Note {
                resource: &orphan.resource,
                outcome: "orphaned",
                action: None,
                changes: &[],
                error: &why,
                who: None,
                time,
            };
            if let Err(error) = self.record.note(&mut run, &note) {
                self.record.note_trouble(&error);
                return;
            }
        }
    }

    pub(super) fn load_orphans(&mut self) {
        match self.record.orphans() {
            Ok(orphans) => self.orphans = orphans,
            Err(error) => self.warn(chain(&error)),
        }
    }

    /// Says that a revision is in force, and what it leaves out.
    pub(super) fn announce_acceptance(&self, mut summary: String, left_out: &[Orphan]) {
        match left_out {
            [] => {}
            [one] => summary.push_str(&format!("; it leaves out {}, which stays as it is", one.resource)),
            several => summary.push_str(&format!(
                "; it leaves out {} resources, which stay as they are: {}",
                several.len(),
                several.iter().take(5).map(|orphan| orphan.resource.to_string()).collect::<Vec<_>>().join(", ")
            )),
        }
        let resources = left_out.iter().map(alert_resource).collect();
        let alert = self.speaker().alert(AlertEvent::PolicyAccepted, summary, resources, Timestamp::now());
        self.enqueue(OutgoingBody::Alert(alert));
    }

    /// Gives back what was left out, where the policy in force, which has just converged, says so.
    pub(super) fn reap_orphans(&mut self) {
        let Some(in_force) = self.in_force.take() else { return };
        if in_force.state.orphans() == Orphans::Remove && !self.orphans.is_empty() {
            self.reap(&in_force);
            self.load_orphans();
        }
        self.in_force = Some(in_force);
    }

    fn reap(&mut self, in_force: &InForce) {
        let lock = RunLock::wait(&self.settings.paths.runtime, "agent");
        let _lock = match lock {
            Ok(lock) => lock,
            Err(error) => return self.warn(chain(&error)),
        };
        let now = Timestamp::now();
        let mut orphans: BTreeMap<ResourceId, Orphan> =
            std::mem::take(&mut self.orphans).into_iter().map(|orphan| (orphan.resource.clone(), orphan)).collect();
        let mut resources = Vec::new();
        // Paths return under their own name; what stood there may be of another kind.
        let mut names: BTreeMap<ResourceId, ResourceId> = BTreeMap::new();
        for orphan in orphans.values_mut() {
            match self.returned(orphan, now) {
                Ok(desired) => {
                    let id = ResourceId::new(kind_of(&desired, &orphan.resource), orphan.resource.name.clone());
                    names.insert(id.clone(), orphan.resource.clone());
                    resources.push(resource(id, desired));
                    orphan.note.clear();
                }
                Err(why) => orphan.note = why,
            }
        }
        // What is in a directory goes before the directory, a user before its group.
        resources.sort_by_key(|resource| (resource.id.kind == Kind::Group, std::cmp::Reverse(resource.id.name.len())));
        let state = DesiredState::new(in_force.state.revision().clone(), in_force.state.name().to_owned(), resources)
            .with_lock_out(in_force.state.lock_out().clone())
            .with_mask(in_force.state.mask().clone());
        let pauses = match self.record.pauses(now) {
            Ok(pauses) => pauses,
            Err(error) => return self.warn(chain(&error)),
        };
        let hold =
            |id: &ResourceId| pauses.iter().find(|p| p.covers(id)).map(|p| format!("paused until {:.0}", p.until));
        let request = converge::Request {
            desired: &state,
            // Not a run over everything: only one under the policy itself knows what nobody wants any more.
            scope: Scope::Only(state.resources().iter().map(|resource| resource.id.clone()).collect()),
            cause: Cause::NewRevision,
            mode: self.settings.mode,
            hold: &hold,
            claim: &converge::claim_from_nobody,
            seen: &converge::nobody_seen,
        };
        let mut context = converge::Context { host: &mut self.host, record: &mut self.record, stop: &self.shared.stop };
        let report = converge::converge(&mut context, &request);
        let mut gone = Vec::new();
        for entry in &report.resources {
            let Some(id) = names.get(&entry.resource) else { continue };
            let Some(orphan) = orphans.get_mut(id) else { continue };
            match &entry.outcome {
                Outcome::Unchanged | Outcome::Changed { .. } => {
                    if id.kind == Kind::User && orphan.locked.is_none() {
                        orphan.locked = Some(now);
                        continue;
                    }
                    gone.push(id.clone());
                    if let Err(error) = self.record.forget_origin(&key(id)) {
                        self.record.note_trouble(&error);
                    }
                }
                Outcome::Reported { why, .. } => orphan.note.clone_from(why),
                Outcome::Failed { error, .. } => orphan.note.clone_from(error),
                Outcome::Indeterminate { reason } => orphan.note.clone_from(reason),
                Outcome::Skipped { blocked_by } => orphan.note = format!("blocked by {blocked_by}"),
            }
        }
        tracing::info!(n_returned = gone.len(), n_left = orphans.len() - gone.len(), "reaped what was left out");
        let put: Vec<Orphan> = orphans.into_values().filter(|orphan| !gone.contains(&orphan.resource)).collect();
        if let Err(error) = self.record.change_orphans(&put, &gone) {
            self.warn(chain(&error));
        }
    }

    /// What an orphan is to return to, or why it stays.
    fn returned(&self, orphan: &Orphan, now: Timestamp) -> Result<Desired, String> {
        let id = &orphan.resource;
        let unknown = || "what was there before is not known: it is left as it is".to_owned();
        let origin = self.record.origin(&key(id)).map_err(|error| chain(&error))?.ok_or_else(unknown)?;
        if id.kind.is_place() {
            let path = AbsPath::new(&id.name).map_err(|error| error.to_string())?;
            return self.returned_path(id.kind, path, origin);
        }
        if matches!(id.kind, Kind::Sysctl | Kind::KernelModule) {
            return Err("it stays as it is until the next boot, and its file is removed".to_owned());
        }
        if !matches!(id.kind, Kind::User | Kind::Group | Kind::Package | Kind::Repository) {
            return Err("rekindle does not undo it: it is left as it is".to_owned());
        }
        if origin != Stood::Nothing {
            return Err("it was there before the policy: it is left as it is".to_owned());
        }
        let invalid = |error: crate::resource::InvalidName| error.to_string();
        if id.kind == Kind::User {
            let name = UserName::new(&id.name).map_err(invalid)?;
            let is_over = orphan.locked.is_some_and(|since| now.duration_since(since) >= LOCKED_FOR);
            let ensure = if is_over { Ensure::Absent } else { Ensure::Present(locked()) };
            return Ok(Desired::User(Box::new(user::Desired { name, ensure })));
        }
        if id.kind == Kind::Group {
            let name = GroupName::new(&id.name).map_err(invalid)?;
            let accounts = self.host.accounts.read().map_err(|error| error.to_string())?;
            let gid = accounts.group(name.as_str()).map(|group| group.gid);
            if let Some(user) = accounts.users.iter().find(|user| Some(user.gid) == gid) {
                return Err(format!("it is the first group of user[{}], and goes once that user is gone", user.name));
            }
            return Ok(Desired::Group(group::Desired { name, ensure: Ensure::Absent }));
        }
        if id.kind == Kind::Package {
            let name = PackageName::new(&id.name).map_err(invalid)?;
            return Ok(Desired::Package(package::Desired { name, ensure: Ensure::Absent }));
        }
        let name = repository::Name::new(&id.name).map_err(invalid)?;
        Ok(Desired::Repository(Box::new(repository::Desired { name, ensure: Ensure::Absent })))
    }

    fn returned_path(&self, kind: Kind, path: AbsPath, origin: Stood) -> Result<Desired, String> {
        let ownership = |permissions: crate::host::root::Permissions| Ownership {
            owner: Principal::Id(permissions.uid),
            group: Principal::Id(permissions.gid),
            mode: permissions.mode,
        };
        match origin {
            Stood::Nothing if kind == Kind::Directory => {
                Ok(Desired::Directory(directory::Desired { path, ensure: Ensure::Absent }))
            }
            Stood::Nothing if kind == Kind::Symlink => {
                Ok(Desired::Symlink(symlink::Desired { path, ensure: Ensure::Absent }))
            }
            Stood::Nothing => Ok(Desired::File(file::Desired { path, ensure: Ensure::Absent })),
            Stood::File { digest, permissions } => {
                let content = record::kept(&self.settings.paths.state, &digest).map_err(|error| chain(&error))?;
                let content = match content {
                    Some(content) => content,
                    // Only its owner or mode were declared otherwise.
                    None => match self.host.root.read(&path, crate::resource::place::MAX_CONTENT) {
                        Ok(Some((now, _))) if crate::resource::digest(&now) == digest => now,
                        _ => {
                            return Err(
                                "the backup of what was there before was dropped: it is left as it is".to_owned()
                            );
                        }
                    },
                };
                let spec = file::Spec {
                    content: Content::new(&content),
                    ownership: ownership(permissions).into(),
                    care: file::Care::default(),
                };
                Ok(Desired::File(file::Desired { path, ensure: Ensure::Present(spec) }))
            }
            Stood::Directory { permissions } => {
                let spec = directory::Spec { ownership: ownership(permissions).into(), rules: None };
                let ensure = Ensure::Present(spec);
                Ok(Desired::Directory(directory::Desired { path, ensure }))
            }
            Stood::Link { target } => Ok(Desired::Symlink(symlink::Desired { path, ensure: Ensure::Present(target) })),
            Stood::Long { .. } | Stood::Hidden { .. } | Stood::Special => {
                Err("what was there before could not be kept: it is left as it is".to_owned())
            }
        }
    }
}

fn alert_resource(orphan: &Orphan) -> AlertResource {
    AlertResource {
        resource: orphan.resource.clone(),
        cause: "intentional".to_owned(),
        outcome: "orphaned".to_owned(),
        error: Some(if orphan.what.is_empty() {
            format!("was declared in {}", orphan.declared)
        } else {
            format!("was declared in {}: {}", orphan.declared, orphan.what)
        }),
        changes: Vec::new(),
        history: None,
        who: None,
    }
}

/// The name under which the record knows what was there first.
fn key(id: &ResourceId) -> String {
    if id.kind.is_place() { id.name.to_string() } else { id.to_string() }
}

/// What it was, where its name does not say it.
fn describe(desired: &Desired) -> String {
    if let Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) = desired {
        let Ownership { owner, group, mode } = &*spec.ownership;
        return format!("{} bytes, {owner}:{group} {mode}", spec.content.len());
    }
    if let Desired::Directory(directory::Desired { ensure: Ensure::Present(spec), .. }) = desired {
        let Ownership { owner, group, mode } = &*spec.ownership;
        return format!("{owner}:{group} {mode}");
    }
    if let Desired::Symlink(symlink::Desired { ensure: Ensure::Present(target), .. }) = desired {
        return format!("to {target}");
    }
    String::new()
}

/// A user as it is, but for its password, which opens nothing any more. Its keys open nothing either.
fn locked() -> user::Spec {
    user::Spec {
        uid: None,
        group: None,
        groups: Vec::new(),
        membership: user::Membership::AtLeast,
        shell: None,
        home: None,
        comment: None,
        password: Some(user::Password::Locked),
        authorized_keys: Some(user::AuthorizedKeys { keys: Vec::new(), exact: true }),
        system: false,
    }
}

/// The kind of what an orphan returns to: of a path that of what stood there.
fn kind_of(desired: &Desired, orphan: &ResourceId) -> Kind {
    if matches!(desired, Desired::File(_)) {
        Kind::File
    } else if matches!(desired, Desired::Directory(_)) {
        Kind::Directory
    } else if matches!(desired, Desired::Symlink(_)) {
        Kind::Symlink
    } else {
        orphan.kind
    }
}

fn resource(id: ResourceId, desired: Desired) -> Resource {
    Resource {
        id,
        desired,
        requires: Box::default(),
        notifies: Box::default(),
        on_drift: OnDrift::Repair,
        notes: None,
        source: SourceLocation::default(),
    }
}
