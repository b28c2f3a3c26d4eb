//! `symlink`: a symbolic link with exactly this target. The target is compared as text and never followed.

use std::path::Path;

use super::place::{self, Node, Observed};
use super::{AbsPath, Action, ApplyError, Change, Drift, Ensure, Observation, Verdict};
use crate::host::root::Root;

/// What a symbolic link should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// Where the link is.
    pub path: AbsPath,
    /// There, pointing to this target text (which need not exist), or not there.
    pub ensure: Ensure<String>,
}

/// Looks at the path.
pub fn observe(root: &Root, desired: &Desired) -> Observation<Observed> {
    place::observe(root, &desired.path)
}

/// Compares; `missing_parents` are shown as part of the step that will make them.
pub fn diff(desired: &Desired, observation: &Observation<Observed>, missing_parents: &[AbsPath]) -> Verdict {
    match (&desired.ensure, observation) {
        (_, Observation::Unknown(why)) => Verdict::Indeterminate(why.clone()),
        (Ensure::Absent, Observation::Absent) => Verdict::InSync,
        (Ensure::Absent, Observation::Present(observed)) => Verdict::Drift(place::removal(observed)),
        (Ensure::Present(target), Observation::Absent) => {
            let mut changes: Vec<Change> = place::parent_changes(missing_parents).collect();
            changes.push(Change::value("target", None, Some(target.clone())));
            Verdict::Drift(Drift { action: Action::Create, changes })
        }
        (Ensure::Present(target), Observation::Present(observed)) => match &observed.node {
            Node::Symlink(actual) if actual == Path::new(target) => {
                let mut changes = Vec::new();
                place::extra_changes(&mut changes, "", &observed.metadata);
                if changes.is_empty() {
                    Verdict::InSync
                } else {
                    Verdict::Drift(Drift { action: Action::Update, changes })
                }
            }
            Node::Symlink(actual) => Verdict::Drift(Drift::value(
                Action::Update,
                "target",
                Some(actual.display().to_string()),
                Some(target.clone()),
            )),
            Node::File(_) | Node::Unread | Node::Directory | Node::Special => {
                let to = Some(format!("symlink to {target}"));
                let mut drift = Drift::value(Action::Update, "type", Some(observed.node.describe()), to);
                place::flag_change(&mut drift.changes, "", &observed.metadata);
                Verdict::Drift(drift)
            }
        },
    }
}

/// Puts the link in sync with what was desired, starting from what was observed.
pub fn apply(root: &Root, desired: &Desired, observation: &Observation<Observed>) -> Result<(), ApplyError> {
    let path = &desired.path;
    match (&desired.ensure, observation) {
        (_, Observation::Unknown(why)) => Err(ApplyError::Vanished { what: path.to_string(), why: why.clone() }),
        (Ensure::Absent, Observation::Absent) => Ok(()),
        (Ensure::Absent, Observation::Present(observed)) => place::remove(root, path, observed),
        (Ensure::Present(target), Observation::Absent) => {
            place::make_parents(root, path)?;
            root.replace_symlink(path, target).map_err(place::failure("create", path, None))
        }
        (Ensure::Present(target), Observation::Present(observed)) => {
            if observed.node == Node::Symlink(target.into()) {
                let restored = root.restore_label(path).map(drop);
                return restored.map_err(place::failure("set the label of", path, Some(&observed.metadata)));
            }
            if observed.node == Node::Directory {
                place::remove(root, path, observed)?;
            } else {
                place::unlock(root, path, observed)?;
            }
            root.replace_symlink(path, target).map_err(place::failure("replace", path, Some(&observed.metadata)))
        }
    }
}
