//! `directory`: a directory with this owner, group and mode, and where the policy says so rules for what is beneath it.
//!
//! Without rules its entries are not its concern. With `purge` what the policy does not declare is moved to the attic; with
//! `recurse` everything beneath has one owner. Each is one resource, whatever the size of the tree. A directory that is to be
//! absent is only removed when it is empty. Something else at the path is kept as a backup and replaced.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::place::{self, Node, Ownership};
use super::{AbsPath, Action, ApplyError, Change, Drift, Ensure, Names, Observation, Verdict};
use crate::host::attic::Batch;
use crate::host::root::Root;
use crate::host::tree::{Next, WalkError};

mod beneath;
mod rules;

pub use beneath::Beneath;
pub use rules::{Declared, Depth, Judge, Judgement, Purge, Recurse, Rules, shown};

/// What a directory should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// Where.
    pub path: AbsPath,
    /// There with this specification, or not there. Only an empty directory is ever removed.
    pub ensure: Ensure<Spec>,
}

/// The specification of a present directory.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spec {
    /// Owner, group and mode. A compiled policy holds equal ones once.
    pub ownership: Arc<Ownership>,
    /// What holds beneath it, if anything. Boxed, because few have any.
    pub rules: Option<Box<Rules>>,
}

/// What is at the path, and beneath it where rules say what should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// What is at the path.
    pub place: place::Observed,
    /// What the rules find fault with.
    pub beneath: Beneath,
}

impl Desired {
    /// The rules for what is beneath it.
    pub fn rules(&self) -> Option<&Rules> {
        match &self.ensure {
            Ensure::Present(spec) => spec.rules.as_deref(),
            Ensure::Absent => None,
        }
    }

    /// Directories in which something may come that nobody declares.
    pub fn watched_entries(&self) -> Vec<AbsPath> {
        let Some(Rules { purge: Some(purge), declared, .. }) = self.rules() else { return Vec::new() };
        match purge.depth {
            Depth::Nothing => Vec::new(),
            Depth::Entries => vec![self.path.clone()],
            Depth::Recursive => std::iter::once(&self.path).chain(&declared.inner).cloned().collect(),
        }
    }

    /// Whether some changes beneath it are announced by no event: `recurse` has no watches of its own in subdirectories.
    pub fn needs_scans(&self) -> bool {
        self.rules().is_some_and(|rules| rules.recurse.is_some())
    }

    /// Whether something that nobody declares may come beneath it without an event: a directory that stays because of what is
    /// kept in it is watched only where the policy names it.
    pub fn purges_by_scans(&self) -> bool {
        self.rules()
            .and_then(|rules| rules.purge.as_ref())
            .is_some_and(|purge| purge.depth == Depth::Recursive && purge.keeps_anywhere())
    }
}

/// Looks at the path, and beneath it. `ruled` are the ids of the owner and group of `recurse`.
pub fn observe(root: &Root, desired: &Desired, ruled: Names) -> Observation<Observed> {
    let place = match place::observe(root, &desired.path) {
        Observation::Present(place) => place,
        Observation::Absent => return Observation::Absent,
        Observation::Unknown(why) => return Observation::Unknown(why),
    };
    let beneath = match desired.rules() {
        Some(rules) if place.node == Node::Directory => {
            beneath::observe(root, &desired.path, rules, ruled, Timestamp::now())
        }
        Some(_) | None => Beneath::default(),
    };
    match &beneath.unknown {
        // Half a look must not be taken for the whole.
        Some(why) => Observation::Unknown(why.clone()),
        None => Observation::Present(Observed { place, beneath }),
    }
}

/// Compares; `missing_parents` are shown as part of the step that will make them.
pub fn diff(
    desired: &Desired,
    observation: &Observation<Observed>,
    names: Names,
    missing_parents: &[AbsPath],
) -> Verdict {
    match (&desired.ensure, observation) {
        (_, Observation::Unknown(why)) => Verdict::Indeterminate(why.clone()),
        (Ensure::Absent, Observation::Absent) => Verdict::InSync,
        (Ensure::Absent, Observation::Present(observed)) => Verdict::Drift(place::removal(&observed.place)),
        (Ensure::Present(spec), Observation::Absent) => {
            let mut changes: Vec<Change> = place::parent_changes(missing_parents).collect();
            changes.extend(place::new_permission_changes(names, &spec.ownership));
            Verdict::Drift(Drift { action: Action::Create, changes })
        }
        (Ensure::Present(spec), Observation::Present(Observed { place: observed, beneath })) => {
            let mut changes = Vec::new();
            if observed.node == Node::Directory {
                place::permission_changes(&mut changes, &observed.metadata, names, &spec.ownership);
                beneath.changes(&mut changes);
            } else {
                changes.push(Change::value("type", Some(observed.node.describe()), Some("directory".to_owned())));
                place::flag_change(&mut changes, "", &observed.metadata);
            }
            if changes.is_empty() { Verdict::InSync } else { Verdict::Drift(Drift { action: Action::Update, changes }) }
        }
    }
}

/// Why a difference is to be left as it is whatever the policy says of drift: more would be removed than it allows.
pub fn excess(desired: &Desired, observation: &Observation<Observed>) -> Option<String> {
    match observation {
        Observation::Present(observed) => observed.beneath.excess(desired.rules()?),
        Observation::Absent | Observation::Unknown(_) => None,
    }
}

/// Whether something beneath the directory is to be removed.
pub fn purges(observation: &Observation<Observed>) -> bool {
    match observation {
        Observation::Present(observed) => observed.beneath.n_undeclared > 0,
        Observation::Absent | Observation::Unknown(_) => false,
    }
}

/// Shows the whole path of each thing that a purge would remove now, directories that go whole once.
pub fn each_purged(root: &Root, desired: &Desired, visit: &mut dyn FnMut(&Path)) -> Result<(), WalkError> {
    let Some(rules) = desired.rules() else { return Ok(()) };
    beneath::each_undeclared(root, &desired.path, rules, Timestamp::now(), &mut |entry, extent| {
        if !extent.has_mount {
            visit(&desired.path.as_path().join(entry.path));
        }
        Ok(Next::Pass)
    })
}

/// Moves what nobody declares into a batch.
pub fn purge(root: &Root, desired: &Desired, batch: &mut Batch) -> Result<(), ApplyError> {
    let Some(rules) = desired.rules() else { return Ok(()) };
    let removed = beneath::remove(root, &desired.path, rules, Timestamp::now(), batch);
    removed.map_err(|source| ApplyError::Beneath { path: desired.path.clone(), source })
}

/// Puts the directory in sync with what was desired, starting from what was observed. What is to be removed from it is left to
/// [`purge`].
pub fn apply(
    root: &Root,
    desired: &Desired,
    observation: &Observation<Observed>,
    names: Names,
    ruled: Names,
) -> Result<(), ApplyError> {
    let path = &desired.path;
    match (&desired.ensure, observation) {
        (_, Observation::Unknown(why)) => Err(ApplyError::Vanished { what: path.to_string(), why: why.clone() }),
        (Ensure::Absent, Observation::Absent) => Ok(()),
        (Ensure::Absent, Observation::Present(observed)) => place::remove(root, path, &observed.place),
        (Ensure::Present(spec), Observation::Absent) => {
            let permissions = spec.ownership.permissions(path, names)?;
            place::make_parents(root, path)?;
            root.create_directory(path, permissions).map_err(place::failure("create", path, None))
        }
        (Ensure::Present(spec), Observation::Present(Observed { place: observed, beneath })) => {
            let permissions = spec.ownership.permissions(path, names)?;
            if observed.node != Node::Directory {
                place::remove(root, path, observed)?;
                return root.create_directory(path, permissions).map_err(place::failure("create", path, None));
            }
            root.set_permissions(path, permissions).map_err(place::failure(
                "set the owner and mode of",
                path,
                Some(&observed.metadata),
            ))?;
            match &spec.rules {
                Some(rules) if beneath.n_ruled > 0 => {
                    check_ruled(path, rules, ruled)?;
                    beneath::rule(root, path, rules, ruled, Timestamp::now())
                        .map_err(|source| ApplyError::Beneath { path: path.clone(), source })
                }
                Some(_) | None => Ok(()),
            }
        }
    }
}

/// The error that names who is missing.
fn check_ruled(path: &AbsPath, rules: &Rules, ruled: Names) -> Result<(), ApplyError> {
    let Some(recurse) = &rules.recurse else { return Ok(()) };
    for (what, principal, id) in [("user", &recurse.owner, ruled.uid), ("group", &recurse.group, ruled.gid)] {
        if let (Some(principal), None) = (principal, id) {
            return Err(ApplyError::NoSuchPrincipal { path: path.clone(), what, name: principal.to_string() });
        }
    }
    Ok(())
}
