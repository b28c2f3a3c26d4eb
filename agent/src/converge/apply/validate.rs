//! Having a validator look at candidates before any of them is put in place.
//!
//! - It sees everything that the run is about to do to paths, not only the file that names it: an included fragment is checked
//!   with what includes it. What the run has done already it sees on the disk.
//! - Each program runs once for all files that name it with the same words. What it said counts until something other than a
//!   candidate changes: a package, an account, a command, a step that failed.
//! - What was validated under a revision needs no second look when it is put back under the same one, by a run or by the guard:
//!   otherwise whoever breaks another file that the validator reads could keep this one from being repaired. That is remembered in
//!   the record, by the digest of content and program.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::{Run, left_alone};
use crate::converge::Cause;
use crate::host::exec;
use crate::host::exec::view::Candidate;
use crate::policy::{DesiredState, Revision};
use crate::record::Record;
use crate::resource::{
    self, AbsPath, Argv, Change, Desired, Drift, Ensure, Resource, ResourceId, Verdict, chain, digest, file,
};

/// Why a step may not go on: the error, and its signature.
pub(super) type Refusal = (String, String);

/// What validators said in this run.
#[derive(Debug, Default)]
pub(super) struct Looked {
    candidates: Option<Vec<Candidate>>,
    said: HashMap<Argv, Result<(), Refusal>>,
}

/// What was validated, under one revision. In the record under [`Validated::KEY`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validated {
    revision: Option<Revision>,
    /// By resource, the digest of what was validated.
    files: BTreeMap<ResourceId, String>,
}

impl Validated {
    const KEY: &str = "validated";

    /// What is remembered. What cannot be read counts as nothing: it is validated again.
    pub fn recall(record: &Record) -> Self {
        record
            .load(Self::KEY)
            .unwrap_or_else(|error| {
                tracing::debug!(error = %chain(&error), "cannot read what was validated");
                None
            })
            .unwrap_or_default()
    }

    /// Whether a resource may be put back as it is declared without being looked at again: nothing looks at it, or it was
    /// validated under this revision.
    pub fn covers(&self, desired: &DesiredState, resource: &Resource) -> bool {
        let Some(argv) = desired.validator(&resource.id) else { return true };
        self.revision.as_ref() == Some(desired.revision())
            && key(argv, resource).is_some_and(|key| self.files.get(&resource.id) == Some(&key))
    }

    fn add(&mut self, desired: &DesiredState, argv: &Argv, resource: &Resource) {
        if self.revision.as_ref() != Some(desired.revision()) {
            *self = Self { revision: Some(desired.revision().clone()), files: BTreeMap::new() };
        }
        self.files.extend(key(argv, resource).map(|key| (resource.id.clone(), key)));
    }
}

fn key(argv: &Argv, resource: &Resource) -> Option<String> {
    let (_, content) = declared(resource)?;
    Some(digest(format!("{content}\n{}", argv.words().join("\n")).as_bytes()))
}

/// The path of what a validator looks at, and what tells one declared content from another.
fn declared(resource: &Resource) -> Option<(&AbsPath, String)> {
    if let Desired::File(file::Desired { path, ensure: Ensure::Present(spec) }) = &resource.desired {
        let content = &spec.content;
        // A digest of a secret would let a guess be tested.
        let name = match (content.secret_key(), content.bytes()) {
            (Some(key), Ok(bytes)) => key.fingerprint(&bytes),
            (Some(_), Err(_)) => return None,
            (None, _) => content.digest(),
        };
        return Some((path, name));
    }
    if let Desired::Setting(setting) = &resource.desired {
        return Some((&setting.path, format!("{:?}", setting.spec)));
    }
    None
}

/// Owner and mode alone make no configuration wrong that was right.
fn changes_content(drift: &Drift) -> bool {
    let is_content = |change: &Change| {
        !matches!(change.attribute.as_str(), "owner" | "group" | "mode" | "acl" | "capabilities" | "flags" | "label")
    };
    drift.changes.iter().any(is_content)
}

impl<'a> Run<'a, '_> {
    /// Has the resource's validator look at what is to be put in place, if it names one and new content is.
    pub(super) fn validate(&mut self, resource: &Resource, drift: &Drift) -> Result<(), Refusal> {
        let desired = self.request.desired;
        let (Some(argv), Some((path, _))) = (desired.validator(&resource.id), declared(resource)) else {
            return Ok(());
        };
        if !changes_content(drift) {
            return Ok(());
        }
        let mut validated = Validated::recall(self.context.record);
        if self.request.cause == Cause::Drift && validated.covers(desired, resource) {
            return Ok(());
        }
        let argv = argv.with_path(path);
        let said = match self.looked.said.get(&argv) {
            Some(said) => said.clone(),
            None => {
                let said = self.ask(&argv);
                self.looked.said.insert(argv, said.clone());
                said
            }
        };
        if said.is_ok()
            && let Some(argv) = desired.validator(&resource.id)
        {
            validated.add(desired, argv, resource);
            if let Err(error) = self.context.record.save(Validated::KEY, &validated) {
                self.context.record.note_trouble(&error);
            }
        }
        said
    }

    /// Has what validators said count no longer: something changed that was no candidate.
    pub(super) fn forget_validations(&mut self) {
        self.looked = Looked::default();
    }

    /// Has what validators approved count no longer: a candidate that they saw will not come to its place. Who refused all of them
    /// together is not asked about the rest.
    pub(super) fn forget_approvals(&mut self) {
        self.looked.candidates = None;
        self.looked.said.retain(|_, said| said.is_err());
    }

    fn ask(&mut self, argv: &Argv) -> Result<(), Refusal> {
        if self.looked.candidates.is_none() {
            self.looked.candidates = Some(self.candidates());
        }
        let candidates = self.looked.candidates.as_deref().unwrap_or_default();
        tracing::debug!(program = argv.program(), n_candidates = candidates.len(), "validating");
        match self.context.host.programs.validate(candidates, argv.words()) {
            Ok(output) if output.success() => Ok(()),
            Ok(output) => {
                let said = exec::last_words(&output);
                let said = if said.is_empty() { "it said nothing".to_owned() } else { said };
                let error = format!("not put in place, because `{argv}` refuses it: {}: {said}", output.status);
                tracing::warn!(program = argv.program(), status = %output.status, "a candidate was refused");
                Err((error, format!("validate {}: {}", argv.short(), output.status)))
            }
            Err(error) => {
                let text = format!("not put in place, because it cannot be validated by `{argv}`: {}", chain(&error));
                Err((text, format!("validate {}: cannot run", argv.short())))
            }
        }
    }

    /// Everything that the run is still to do to paths, as far as it can be told now.
    fn candidates(&mut self) -> Vec<Candidate> {
        let desired = self.request.desired;
        if !self.verified.is_of(self.epoch) {
            self.verify_files();
        }
        let mut candidates: Vec<Candidate> = Vec::new();
        for resource in desired.resources() {
            let is_due = crate::converge::is_path(resource.id.kind)
                && !self.done.contains_key(&resource.id)
                && self.selected.as_ref().is_none_or(|selected| selected.contains(&resource.id))
                && !self.is_verified(&resource.id)
                && self.blocker(resource).is_none()
                && left_alone(self.request, resource).is_none();
            if !is_due {
                continue;
            }
            if let (sighting, Verdict::Drift(_)) = self.look(resource) {
                let root = &self.context.host.root;
                // Several settings may edit one file.
                let earlier = if let Desired::Setting(setting) = &resource.desired {
                    candidates.iter_mut().find(|earlier| earlier.path == setting.path)
                } else {
                    None
                };
                match (resource::becomes(root, &resource.desired, &sighting, earlier.as_deref()), earlier) {
                    (Some(candidate), Some(earlier)) => *earlier = candidate,
                    (candidate, _) => candidates.extend(candidate),
                }
            }
        }
        candidates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Content, Kind, Mode, OnDrift, Principal, SourceLocation, place::Ownership};
    use std::sync::Arc;

    fn resource(content: &str) -> Resource {
        let ownership = Ownership { owner: Principal::Agent, group: Principal::Agent, mode: Mode::from_bits(0o644) };
        let spec = file::Spec {
            content: Content::new(content.as_bytes()),
            ownership: Arc::new(ownership),
            care: file::Care::default(),
        };
        let path = AbsPath::new("/etc/a").unwrap();
        Resource {
            id: ResourceId::new(Kind::File, "/etc/a"),
            desired: Desired::File(file::Desired { path, ensure: Ensure::Present(spec) }),
            requires: Box::default(),
            notifies: Box::default(),
            on_drift: OnDrift::Repair,
            notes: None,
            source: SourceLocation::default(),
        }
    }

    fn state(revision: &str, validator: Option<&str>) -> DesiredState {
        let argv = validator.map(|program| Argv::new(vec![program.to_owned()]).unwrap());
        let validators = argv.map(|argv| (ResourceId::new(Kind::File, "/etc/a"), argv)).into_iter().collect();
        DesiredState::new(Revision::new(revision), "test".to_owned(), vec![]).with_validators(validators)
    }

    #[test]
    fn only_the_same_content_under_the_same_revision_and_validator_was_validated() {
        let (state_1, state_2) = (state("r1", Some("/bin/true")), state("r2", Some("/bin/true")));
        let argv = Argv::new(vec!["/bin/true".to_owned()]).unwrap();
        let mut validated = Validated::default();
        assert!(validated.covers(&state("r1", None), &resource("x")), "nothing looks at it");
        assert!(!validated.covers(&state_1, &resource("x")));
        validated.add(&state_1, &argv, &resource("x"));
        assert!(validated.covers(&state_1, &resource("x")));
        assert!(!validated.covers(&state_1, &resource("y")));
        assert!(!validated.covers(&state_2, &resource("x")));
        assert!(!validated.covers(&state("r1", Some("/bin/false")), &resource("x")));
        validated.add(&state_2, &argv, &resource("y"));
        assert!(!validated.covers(&state_1, &resource("x")), "another revision starts anew");
        let mut record = Record::volatile().unwrap();
        record.save(Validated::KEY, &validated).unwrap();
        assert_eq!(Validated::recall(&record), validated);
    }
}
