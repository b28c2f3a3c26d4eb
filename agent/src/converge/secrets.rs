//! Where secrets stand, whether or not the policy still says so.
//!
//! What is declared tells which content is secret. That is not enough once it is declared otherwise: what a file held when its
//! secret leaves the policy, or becomes content that everybody may see, is a secret still. So the paths are remembered, from before
//! a secret is put there until something else was.

use std::collections::BTreeSet;

use crate::record::Record;
use crate::resource::{AbsPath, Change, ChangeDetail, Drift, Resource, Verdict, chain};

/// The paths at which secrets stand. In the record under [`SecretPaths::KEY`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SecretPaths(BTreeSet<String>);

impl SecretPaths {
    const KEY: &str = "secret_paths";

    /// What is remembered.
    pub(super) fn recall(record: Option<&Record>) -> Self {
        let loaded = record.map(|record| record.load(Self::KEY)).transpose();
        let paths = loaded.unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "cannot read at which paths secrets stand");
            None
        });
        Self(paths.flatten().unwrap_or_default())
    }

    /// Whether a secret stands at a path.
    pub(super) fn contains(&self, path: &AbsPath) -> bool {
        self.0.contains(&path.to_string())
    }

    /// Whether what a resource finds is secret although what it declares is not.
    pub(super) fn is_at(&self, resource: &Resource) -> bool {
        !self.0.is_empty()
            && !resource.desired.is_secret()
            && resource.watched().paths.iter().any(|path| self.contains(path))
    }

    /// Takes what was found out of the words for a difference.
    pub(super) fn conceal(&self, resource: &Resource, verdict: &mut Verdict) {
        if let Verdict::Drift(Drift { changes, .. }) = verdict
            && self.is_at(resource)
        {
            changes.iter_mut().for_each(conceal);
        }
    }

    /// Remembers, before it is put there, that a resource's content is secret.
    pub(super) fn add(&mut self, record: &mut Record, resource: &Resource) {
        if !resource.desired.is_secret() {
            return;
        }
        let before = self.0.len();
        self.0.extend(resource.watched().paths.iter().map(ToString::to_string));
        if self.0.len() != before {
            self.save(record);
        }
    }

    /// Remembers what a run found, or put, in sync: secrets that stood there before, and what has taken the place of one.
    pub(super) fn settle<'r>(&mut self, record: &mut Record, in_sync: impl Iterator<Item = &'r Resource>) {
        let before = self.0.clone();
        for resource in in_sync {
            if resource.desired.is_secret() {
                self.0.extend(resource.watched().paths.iter().map(ToString::to_string));
            } else if !self.0.is_empty() {
                for path in resource.watched().paths {
                    self.0.remove(&path.to_string());
                }
            }
        }
        if self.0 != before {
            self.save(record);
        }
    }

    fn save(&self, record: &mut Record) {
        if let Err(error) = record.save(Self::KEY, &self.0) {
            record.note_trouble(&error);
        }
    }
}

fn conceal(change: &mut Change) {
    let secret = || "a secret".to_owned();
    match &mut change.detail {
        ChangeDetail::Text { .. } => {
            change.detail = ChangeDetail::Opaque { from: Some(secret()), to: Some("not shown".to_owned()) };
        }
        ChangeDetail::Opaque { from, .. } => {
            if let Some(from) = from {
                *from = secret();
            }
        }
        // Owner, group, mode and kind are nobody's secret; the values of a setting are.
        ChangeDetail::Value { from, .. } => {
            let is_plain = matches!(
                change.attribute.as_str(),
                "state" | "type" | "owner" | "group" | "mode" | "parent" | "acl" | "capabilities" | "flags" | "label"
            );
            if let Some(from) = from.as_mut().filter(|_| !is_plain) {
                *from = secret();
            }
        }
    }
}
