//! Where secrets stand, whether or not the policy still says so.
//!
//! What is declared tells which content is secret. That is not enough once it is declared otherwise: what a file held when its
//! secret leaves the policy, or becomes content that everybody may see, is a secret still. So the paths are remembered, from before
//! a secret is put there until something else was.
//!
//! - What cannot be read is not nothing: where it cannot be told whether a secret stands, content is not shown. It is backed up
//!   all the same, because nothing must be lost, and the backup store is root's alone.
//! - A memory that could not be read is never written over as if it had been empty: what is not known stays in doubt until it was
//!   found as declared.
//! - What was kept while it could not be told whether it is a secret may be one for ever, also when it is put back after the doubt
//!   has ended.

use std::collections::BTreeSet;

use super::Memory;
use crate::record::{LOST, Record, RecordError};
use crate::resource::{AbsPath, Change, Concealed, Desired, Drift, Resource, Verdict, chain};

/// The paths at which secrets stand. In the record under [`SecretPaths::KEY`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretPaths {
    known: BTreeSet<String>,
    /// Paths to which something was put back that may be a secret. In the record under [`SecretPaths::SUSPECTED`].
    suspected: BTreeSet<String>,
    doubt: Option<Doubt>,
}

/// There may be secrets that nobody remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Doubt {
    why: String,
    /// The paths at which something else was found since. In the record under [`LOST`], as long as there is a doubt.
    cleared: BTreeSet<String>,
}

/// Whether a run looked at everything that is declared, and found or put all of it in sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    Whole,
    Partial,
}

impl SecretPaths {
    const KEY: &str = "secret_paths";
    const SUSPECTED: &str = "suspected_paths";

    /// What is remembered of a host.
    pub(super) fn of(memory: Memory<'_>) -> Self {
        match memory {
            Memory::Nothing => Self::default(),
            Memory::Record(record) => Self::recall(record),
            Memory::Unreadable(error) => Self { doubt: Some(Doubt::new(error)), ..Self::default() },
        }
    }

    /// What a record remembers.
    pub fn recall(record: &Record) -> Self {
        let (known, suspected, lost) = (record.load(Self::KEY), record.load(Self::SUSPECTED), record.load(LOST));
        let doubt = match (&known, &suspected, &lost) {
            (Err(error), ..) | (Ok(_), Err(error), _) | (Ok(_), Ok(_), Err(error)) => Some(Doubt::new(error)),
            (Ok(_), Ok(_), Ok(lost)) => lost.clone().map(|cleared| Doubt {
                why: "the state database was lost, and not everything was found as declared since".to_owned(),
                cleared,
            }),
        };
        if let Some(Doubt { why, .. }) = &doubt {
            // Each run asks.
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| {
                tracing::warn!(
                    "what may be a secret is not shown, because it cannot be told where secrets stand: {why}"
                );
            });
        }
        let set = |paths: Result<Option<BTreeSet<String>>, RecordError>| paths.ok().flatten().unwrap_or_default();
        Self { known: set(known), suspected: set(suspected), doubt }
    }

    /// Whether a resource looks at content: what a command creates is not looked into, and a check has no path.
    pub(super) fn looks_at(resource: &Resource) -> bool {
        !matches!(resource.desired, Desired::Command(_)) && !resource.watched().paths.is_empty()
    }

    /// Why it cannot be told where secrets stand, if so.
    pub(super) fn doubt(&self) -> Option<&str> {
        self.doubt.as_ref().map(|doubt| doubt.why.as_str())
    }

    /// Whether a secret is known to stand at a path.
    pub(super) fn contains(&self, path: &AbsPath) -> bool {
        self.known.contains(&path.to_string())
    }

    /// Whether a secret may stand at a path.
    pub(super) fn may_contain(&self, path: &AbsPath) -> bool {
        let path = path.to_string();
        self.known.contains(&path)
            || self.suspected.contains(&path)
            || self.doubt.as_ref().is_some_and(|doubt| !doubt.cleared.contains(&path))
    }

    /// Whether what a resource finds is known to be secret although what it declares is not.
    pub(super) fn is_at(&self, resource: &Resource) -> bool {
        !self.known.is_empty() && is_any_at(resource, |path| self.contains(path))
    }

    /// Whether what a resource finds may be secret although what it declares is not.
    pub fn may_be_at(&self, resource: &Resource) -> bool {
        let is_any = !self.known.is_empty() || !self.suspected.is_empty() || self.doubt.is_some();
        is_any && is_any_at(resource, |path| self.may_contain(path))
    }

    /// Takes what was found out of the words for a difference.
    pub(super) fn conceal(&self, resource: &Resource, verdict: &mut Verdict) {
        if let Verdict::Drift(Drift { changes, .. }) = verdict {
            self.conceal_changes(resource, changes);
        }
    }

    /// Takes what was found out of changes of a resource, if it may be secret.
    pub fn conceal_changes(&self, resource: &Resource, changes: &mut [Change]) {
        if self.may_be_at(resource) {
            let what = if self.is_at(resource) { Concealed::Secret } else { Concealed::InDoubt };
            changes.iter_mut().for_each(|change| change.conceal(what));
        }
    }

    /// Remembers, before it is put back there, that something at these paths may be a secret, if the step that replaced it did not
    /// show it.
    ///
    /// # Errors
    ///
    /// When that cannot be written down.
    pub fn suspect<'p>(
        record: &mut Record,
        paths: impl Iterator<Item = &'p AbsPath>,
        step: &[Change],
    ) -> Result<(), RecordError> {
        if !step.iter().any(Change::conceals_found) {
            return Ok(());
        }
        let before = Self::recall(record);
        let mut after = before.clone();
        after.suspected.extend(paths.map(ToString::to_string));
        after.try_save(record, &before)
    }

    /// Remembers, before it is put there, that a resource's content is secret.
    pub(super) fn add(&mut self, record: &mut Record, resource: &Resource) {
        if resource.desired.is_secret() {
            let before = self.clone();
            self.known.extend(paths(resource));
            self.save(record, &before);
        }
    }

    /// Remembers what a run found, or put, in sync: secrets that stood there before, and what has taken the place of one.
    pub(super) fn settle<'r>(
        &mut self,
        record: &mut Record,
        in_sync: impl Iterator<Item = &'r Resource>,
        sight: Sight,
    ) {
        let before = self.clone();
        for resource in in_sync {
            if !self.suspected.is_empty() {
                self.suspected.retain(|suspected| !paths(resource).any(|path| path == *suspected));
            }
            if resource.desired.is_secret() {
                self.known.extend(paths(resource));
                continue;
            }
            if !self.known.is_empty() {
                self.known.retain(|known| !paths(resource).any(|path| path == *known));
            }
            if let Some(doubt) = &mut self.doubt {
                doubt.cleared.extend(paths(resource));
            }
        }
        if sight == Sight::Whole {
            self.doubt = None;
        }
        self.save(record, &before);
    }

    /// Writes down what is another than before. A doubt is written first and ended last, so that a kill leaves one too many.
    fn save(&self, record: &mut Record, before: &Self) {
        if let Err(error) = self.try_save(record, before) {
            record.note_trouble(&error);
        }
    }

    fn try_save(&self, record: &mut Record, before: &Self) -> Result<(), RecordError> {
        if self == before {
            return Ok(());
        }
        if let Some(doubt) = &self.doubt {
            record.save(LOST, &doubt.cleared)?;
        }
        record.save(Self::KEY, &self.known)?;
        // One that could not be read is in doubt, and is written anew with it.
        if self.suspected != before.suspected || before.doubt.is_some() {
            record.save(Self::SUSPECTED, &self.suspected)?;
        }
        if self.doubt.is_none() && before.doubt.is_some() {
            record.forget(LOST)?;
        }
        Ok(())
    }
}

impl Doubt {
    fn new(why: &RecordError) -> Self {
        Self { why: chain(why), cleared: BTreeSet::new() }
    }
}

fn paths(resource: &Resource) -> impl Iterator<Item = String> {
    resource.watched().paths.into_iter().map(|path| path.to_string())
}

fn is_any_at(resource: &Resource, is_at: impl Fn(&AbsPath) -> bool) -> bool {
    SecretPaths::looks_at(resource) && !resource.desired.is_secret() && resource.watched().paths.iter().any(is_at)
}
