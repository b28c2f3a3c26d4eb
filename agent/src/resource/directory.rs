//! `directory`: a directory with this owner, group and mode. Its entries are not its concern.
//!
//! Only an empty directory is ever removed. Something else at the path is kept as a backup and replaced.

use std::sync::Arc;

use super::place::{self, Node, Observed, Ownership};
use super::{AbsPath, Action, ApplyError, Change, Drift, Ensure, Names, Observation, Verdict};
use crate::host::root::Root;

/// What a directory should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Where.
    pub path: AbsPath,
    /// There with this specification, or not there. Only an empty directory is ever removed.
    pub ensure: Ensure<Spec>,
}

/// The specification of a present directory. A compiled policy holds equal ones once.
pub type Spec = Arc<Ownership>;

/// Looks at the path.
pub fn observe(root: &Root, desired: &Desired) -> Observation<Observed> {
    place::observe(root, &desired.path)
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
        (Ensure::Absent, Observation::Present(observed)) => Verdict::Drift(place::removal(observed)),
        (Ensure::Present(spec), Observation::Absent) => {
            let mut changes: Vec<Change> = place::parent_changes(missing_parents).collect();
            changes.extend(place::new_permission_changes(names, spec));
            Verdict::Drift(Drift { action: Action::Create, changes })
        }
        (Ensure::Present(spec), Observation::Present(observed)) => {
            let mut changes = Vec::new();
            if observed.node == Node::Directory {
                place::permission_changes(&mut changes, &observed.metadata, names, spec);
            } else {
                changes.push(Change::value("type", Some(observed.node.describe()), Some("directory".to_owned())));
                place::flag_change(&mut changes, "", &observed.metadata);
            }
            if changes.is_empty() { Verdict::InSync } else { Verdict::Drift(Drift { action: Action::Update, changes }) }
        }
    }
}

/// Puts the directory in sync with what was desired, starting from what was observed.
pub fn apply(
    root: &Root,
    desired: &Desired,
    observation: &Observation<Observed>,
    names: Names,
) -> Result<(), ApplyError> {
    let path = &desired.path;
    match (&desired.ensure, observation) {
        (_, Observation::Unknown(why)) => Err(ApplyError::Vanished { what: path.to_string(), why: why.clone() }),
        (Ensure::Absent, Observation::Absent) => Ok(()),
        (Ensure::Absent, Observation::Present(observed)) => place::remove(root, path, observed),
        (Ensure::Present(spec), Observation::Absent) => {
            let permissions = spec.permissions(path, names)?;
            place::make_parents(root, path)?;
            root.create_directory(path, permissions).map_err(place::failure("create", path, None))
        }
        (Ensure::Present(spec), Observation::Present(observed)) => {
            let permissions = spec.permissions(path, names)?;
            if observed.node == Node::Directory {
                return root.set_permissions(path, permissions).map_err(place::failure(
                    "set the owner and mode of",
                    path,
                    Some(&observed.metadata),
                ));
            }
            place::remove(root, path, observed)?;
            root.create_directory(path, permissions).map_err(place::failure("create", path, None))
        }
    }
}
