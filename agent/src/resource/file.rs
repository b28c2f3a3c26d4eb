//! `file`: a regular file with exactly these bytes, owner, group and mode.
//!
//! Content that differs is replaced as a whole and atomically; owner, group or mode that differ alone are set on the inode
//! that is there, and an access control list, capabilities and the flags that refuse changes are removed from it; of a file with
//! several names the others are left behind as they are. A link, FIFO, socket or device at the path is replaced without ever being opened; a directory only when it
//! is empty. A policy can say otherwise of links and names: [`Care`].

use std::sync::Arc;

use super::place::{self, Node, Observed, Ownership};
use super::{AbsPath, Action, ApplyError, Change, Content, Drift, Ensure, Names, Observation, Verdict, text};
use crate::host::root::{Metadata, Permissions, Root};
use crate::host::verify::Entry;

mod care;

pub use care::{Care, Empty, HardLink, Symlink, refusal};

/// What a file should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Where.
    pub path: AbsPath,
    /// There with this specification, or not there.
    pub ensure: Ensure<Spec>,
}

/// The specification of a present file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The whole content, already rendered. A compiled policy holds equal contents once.
    pub content: Content,
    /// Owner, group and mode. A compiled policy holds equal ones once.
    pub ownership: Arc<Ownership>,
    /// What to do where the file is not simply replaced.
    pub care: Care,
}

/// Files share contents, which only who writes or reads the whole policy can see to: see [`crate::policy::compiled`].
const HAS_ITS_OWN_ROW: &str = "a file has a row of its own";

impl serde::Serialize for Desired {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom(HAS_ITS_OWN_ROW))
    }
}

impl<'de> serde::Deserialize<'de> for Desired {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom(HAS_ITS_OWN_ROW))
    }
}

impl Desired {
    /// What the verification engine compares with; `None` for what is not to be there, or whose owner or group this host does
    /// not have.
    pub fn entry(&self, names: Names) -> Option<Entry> {
        let Ensure::Present(spec) = &self.ensure else { return None };
        // Links are not followed there.
        if spec.care.symlink == Symlink::Follow {
            return None;
        }
        Some(Entry {
            path: self.path.clone(),
            content: spec.content.clone(),
            uid: names.uid?,
            gid: names.gid?,
            mode: spec.ownership.mode,
        })
    }
}

/// What differs when the content is as declared and only owner, group or mode may not be.
pub fn permission_changes(wanted: &Ownership, metadata: &Metadata, names: Names) -> Vec<Change> {
    let mut changes = Vec::new();
    place::permission_changes(&mut changes, metadata, names, wanted);
    changes
}

/// Reads what is at the path. Content is read up to [`place::MAX_CONTENT`] so that it can be shown and kept.
pub fn observe(root: &Root, desired: &Desired) -> Observation<Observed> {
    let path = match desired.acts_on(root) {
        Ok(path) => path,
        Err(error) => return Observation::Unknown(format!("cannot follow `{}`: {error}", desired.path)),
    };
    match &desired.ensure {
        Ensure::Present(spec) => {
            place::observe_content(root, &path, u64::try_from(spec.content.len()).unwrap_or(u64::MAX))
        }
        Ensure::Absent => place::observe_content(root, &path, 0),
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
        (Ensure::Absent, Observation::Present(observed)) => Verdict::Drift(place::removal(observed)),
        (Ensure::Present(spec), Observation::Absent) => {
            let mut changes: Vec<Change> = place::parent_changes(missing_parents).collect();
            changes.push(text::change_to("content", None, &spec.content));
            changes.extend(place::new_permission_changes(names, &spec.ownership));
            Verdict::Drift(Drift { action: Action::Create, changes })
        }
        (Ensure::Present(spec), Observation::Present(observed)) => {
            let mut changes = Vec::new();
            match &observed.node {
                Node::File(content) if spec.content.is(content) => {}
                Node::File(content) => {
                    changes.push(text::change_to("content", Some(content), &spec.content));
                }
                Node::Unread => changes.push(Change {
                    attribute: "content".to_owned(),
                    detail: super::ChangeDetail::Opaque {
                        from: Some(format!("{} bytes, too long to keep", observed.metadata.size)),
                        to: Some(text::describe_declared(&spec.content)),
                    },
                }),
                Node::Directory | Node::Symlink(_) | Node::Special => {
                    changes.push(Change::value("type", Some(observed.node.describe()), Some("file".to_owned())));
                    changes.push(text::change_to("content", None, &spec.content));
                    place::flag_change(&mut changes, "", &observed.metadata);
                }
            }
            if matches!(observed.node, Node::File(_) | Node::Unread) {
                place::permission_changes(&mut changes, &observed.metadata, names, &spec.ownership);
                let n_links = observed.metadata.n_links;
                // Another name alone changes nothing here; with a step it is shown, because the step leaves it behind.
                let same = matches!(&observed.node, Node::File(content) if spec.content.is(content));
                if n_links > 1 && !observed.metadata.is_mount && !changes.is_empty() {
                    changes.push(match spec.care.hardlink {
                        HardLink::Break => Change::value("links", Some(n_links.to_string()), Some("1".to_owned())),
                        HardLink::InPlace | HardLink::Refuse => {
                            let how = format!("in place, not at once: the file has {n_links} names");
                            Change::value("method", None, Some(how))
                        }
                    });
                }
                if observed.metadata.is_mount && !same {
                    let how = "in place, not at once: something is mounted on it".to_owned();
                    changes.push(Change::value("method", None, Some(how)));
                }
            }
            if changes.is_empty() { Verdict::InSync } else { Verdict::Drift(Drift { action: Action::Update, changes }) }
        }
    }
}

/// Puts the file in sync with what was desired, starting from what was observed.
pub fn apply(
    root: &Root,
    desired: &Desired,
    observation: &Observation<Observed>,
    names: Names,
) -> Result<(), ApplyError> {
    let acts_on = desired.acts_on(root).map_err(place::failure("follow", &desired.path, None))?;
    let path = &acts_on;
    match (&desired.ensure, observation) {
        (_, Observation::Unknown(why)) => Err(ApplyError::Vanished { what: path.to_string(), why: why.clone() }),
        (Ensure::Absent, Observation::Absent) => Ok(()),
        (Ensure::Absent, Observation::Present(observed)) => place::remove(root, path, observed),
        (Ensure::Present(spec), Observation::Absent) => {
            let permissions = spec.ownership.permissions(path, names)?;
            place::make_parents(root, path)?;
            put(root, path, spec, permissions, "create", None)
        }
        (Ensure::Present(spec), Observation::Present(observed)) => {
            let permissions = spec.ownership.permissions(path, names)?;
            let metadata = Some(&observed.metadata);
            match &observed.node {
                // All names are to show the same.
                Node::File(_) | Node::Unread
                    if observed.metadata.n_links > 1 && spec.care.hardlink == HardLink::InPlace =>
                {
                    place::unlock(root, path, observed)?;
                    let content =
                        spec.content.bytes().map_err(place::failure("read the declared content of", path, None))?;
                    root.overwrite_file(path, &content, permissions).map_err(place::failure(
                        "overwrite",
                        path,
                        metadata,
                    ))
                }
                // Of a file with several names the others are none of ours to change: it is replaced, and they keep what
                // they are.
                Node::File(content) if spec.content.is(content) && observed.metadata.n_links == 1 => root
                    .set_permissions(path, permissions)
                    .map_err(place::failure("set the owner and mode of", path, metadata)),
                Node::File(_) | Node::Unread | Node::Symlink(_) | Node::Special => {
                    place::unlock(root, path, observed)?;
                    put(root, path, spec, permissions, "replace", metadata)
                }
                Node::Directory => {
                    place::remove(root, path, observed)?;
                    put(root, path, spec, permissions, "create", None)
                }
            }
        }
    }
}

/// Puts the declared content at a path; `metadata` is what was seen there.
fn put(
    root: &Root,
    path: &AbsPath,
    spec: &Spec,
    permissions: Permissions,
    operation: &'static str,
    metadata: Option<&Metadata>,
) -> Result<(), ApplyError> {
    let content = spec.content.bytes().map_err(place::failure("read the declared content of", path, None))?;
    place::put(root, path, &content, permissions, operation, metadata)
}
