//! `setting`: keys or lines inside a file that something else owns; every other byte of it stays.
//!
//! The editors are pure functions from bytes to bytes, one module for each format. What they all keep to:
//!
//! - A key stands once, or once for each value of a list. Where several stand, the place of the one that counts is kept and the
//!   others are removed, so that it does not matter which of them a reader takes.
//! - A default that is commented out stays, and the new line comes right after it.
//! - A line that is edited keeps its indentation, separator, quotes and end; a new line ends as its neighbours do.
//! - Edited once is edited: a second time changes nothing.
//!
//! Owner, group and mode are looked at only where the policy names them. While it names no mode, an access control list stays, because
//! without it the mode's group bits would grant what the list did not. The file is replaced whole, as `file` does it, and
//! never through a link.

use super::place::{self, Node, Observed, Ownership};
use super::{AbsPath, Action, ApplyError, Change, Drift, Mode, Names, Observation, Principal, Verdict};
use crate::host::root::{Keep, Metadata, Permissions, Root};

pub mod block;
pub mod equals;
pub mod ini;
mod keyed;
pub mod line;
pub mod space;
pub mod ssh;
#[cfg(test)]
mod tests;

/// What a file should say.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// Where.
    pub path: AbsPath,
    /// What.
    pub spec: Box<Spec>,
}

/// What a file should say, and whose it should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spec {
    /// The edits.
    pub edits: Edits,
    /// What to do where there is no file.
    pub missing: Missing,
    /// Owner; `None` leaves it.
    pub owner: Option<Principal>,
    /// Group; `None` leaves it.
    pub group: Option<Principal>,
    /// Permission bits; `None` leaves them.
    pub mode: Option<Mode>,
}

/// What to do where there is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Missing {
    /// Fail: whoever owns it has not brought it.
    Refuse,
    /// Make it.
    Create,
}

/// Edits, by format.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Edits {
    /// `KEY value`.
    Space(Vec<Entry>),
    /// sshd_config and ssh_config.
    Ssh(Vec<Entry>),
    /// `KEY=value`.
    Equals(Vec<Entry>),
    /// `key = value` in sections.
    Ini(Vec<Entry>),
    /// Whole lines.
    Line {
        /// Those that must be there.
        present: Vec<String>,
        /// Those that must not.
        absent: Vec<String>,
    },
    /// Lines between two marks.
    Block {
        /// What the marks say.
        name: String,
        /// What a comment begins with.
        comment: String,
        /// All that is between them; without any, the block goes.
        lines: Vec<String>,
    },
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    /// Its section; empty for what stands before the first, and in formats without sections.
    pub section: String,
    /// Its name.
    pub key: String,
    /// Its values, each on a line of its own; none for a key that must not be there.
    pub values: Vec<String>,
}

/// An edited file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// Its content.
    pub content: Vec<u8>,
    /// What differed; empty exactly when nothing was changed.
    pub changes: Vec<Change>,
}

/// A file that cannot be edited without guessing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// A value is longer than its line.
    #[error(
        "the value of `{key}` on line {line} goes on in the next line (hint: make it one line, or declare the whole file)"
    )]
    Continued {
        /// The key, with its section.
        key: String,
        /// Its line, from 1.
        line: usize,
    },
    /// A value cannot stand in the quotes that the file has.
    #[error(
        "the new value of `{key}` cannot stand in the quotes of line {line} (hint: write it in the policy with the quotes that it needs)"
    )]
    Quote {
        /// The key, with its section.
        key: String,
        /// Its line, from 1.
        line: usize,
    },
    /// A block begins and does not end.
    #[error("`{begin}` on line {line} has no end (hint: remove the line, or put `{end}` after what belongs to it)")]
    Unended {
        /// The mark.
        begin: String,
        /// The one that is missing.
        end: String,
        /// The mark's line, from 1.
        line: usize,
    },
}

impl Edits {
    /// Edits a file's content. Pure.
    ///
    /// # Errors
    ///
    /// When that would be a guess.
    pub fn edit(&self, content: &[u8]) -> Result<Edited, EditError> {
        match self {
            Self::Space(entries) => space::edit(content, entries),
            Self::Ssh(entries) => ssh::edit(content, entries),
            Self::Equals(entries) => equals::edit(content, entries),
            Self::Ini(entries) => ini::edit(content, entries),
            Self::Line { present, absent } => Ok(line::edit(content, present, absent)),
            Self::Block { name, comment, lines } => block::edit(content, name, comment, lines),
        }
    }
}

/// Longest value of a file that is shown, in characters.
const MAX_SHOWN: usize = 1000;

/// A file's bytes as a short text.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.chars().count() <= MAX_SHOWN {
        return text.into_owned();
    }
    text.chars().take(MAX_SHOWN).chain(['…']).collect()
}

impl Spec {
    /// What the policy's names are looked up with. Where it names nobody, [`Principal::Agent`] stands, which is no lookup.
    pub(crate) fn ownership(&self) -> Ownership {
        Ownership {
            owner: self.owner.clone().unwrap_or(Principal::Agent),
            group: self.group.clone().unwrap_or(Principal::Agent),
            mode: self.mode.unwrap_or(NEW_MODE),
        }
    }

    /// What the file should have, starting from what it has.
    fn permissions(&self, path: &AbsPath, names: Names, now: Option<&Metadata>) -> Result<Permissions, ApplyError> {
        let named = self.ownership().permissions(path, names)?;
        let Some(now) = now else { return Ok(named) };
        Ok(Permissions {
            uid: if self.owner.is_some() { named.uid } else { now.uid },
            gid: if self.group.is_some() { named.gid } else { now.gid },
            mode: self.mode.unwrap_or(now.mode),
        })
    }

    fn permission_changes(&self, changes: &mut Vec<Change>, metadata: &Metadata, names: Names) {
        let mut wanted = self.ownership();
        let (mut all, mut names) = (Vec::new(), names);
        if self.owner.is_none() {
            names.uid = Some(metadata.uid);
        }
        if self.group.is_none() {
            names.gid = Some(metadata.gid);
        }
        wanted.mode = self.mode.unwrap_or(metadata.mode);
        place::permission_changes(&mut all, metadata, names, &wanted);
        // What grants more than the mode is drift where there is a declared mode. A flag is in the way of every change.
        let has_changes = !changes.is_empty() || all.iter().any(|change| !is_extra(change));
        changes.extend(all.into_iter().filter(|change| match change.attribute.as_str() {
            "acl" | "capabilities" => self.mode.is_some(),
            "flags" => self.mode.is_some() || has_changes,
            _ => true,
        }));
    }
}

fn is_extra(change: &Change) -> bool {
    matches!(change.attribute.as_str(), "acl" | "capabilities" | "flags")
}

/// Mode of a file that is made.
const NEW_MODE: Mode = Mode::from_bits(0o644);

/// Reads the file.
pub fn observe(root: &Root, desired: &Desired) -> Observation<Observed> {
    place::observe_content(root, &desired.path, 0)
}

/// Compares; `missing_parents` are shown as part of the step that will make them.
pub fn diff(
    desired: &Desired,
    observation: &Observation<Observed>,
    names: Names,
    missing_parents: &[AbsPath],
) -> Verdict {
    let Desired { path, spec } = desired;
    let edited = |content: &[u8]| {
        spec.edits.edit(content).map_err(|error| Verdict::Indeterminate(format!("cannot edit `{path}`: {error}")))
    };
    let mut changes = Vec::new();
    match observation {
        Observation::Unknown(why) => return Verdict::Indeterminate(why.clone()),
        Observation::Absent => {
            let edited = match edited(&[]) {
                Ok(edited) => edited,
                Err(verdict) => return verdict,
            };
            // What must not be there is not.
            if edited.changes.is_empty() {
                return Verdict::InSync;
            }
            changes.extend(place::parent_changes(missing_parents));
            changes.push(Change::value("type", None, Some("file".to_owned())));
            changes.extend(edited.changes);
            changes.extend(place::new_permission_changes(names, &spec.ownership()));
            return Verdict::Drift(Drift { action: Action::Create, changes });
        }
        Observation::Present(Observed { node: Node::File(content), metadata }) => {
            match edited(content) {
                Ok(edited) => changes.extend(edited.changes),
                Err(verdict) => return verdict,
            }
            let is_edited = !changes.is_empty();
            spec.permission_changes(&mut changes, metadata, names);
            // As for a file: another name is left behind by a step, and what something is mounted on is written in place.
            if metadata.n_links > 1 && !metadata.is_mount && !changes.is_empty() {
                changes.push(Change::value("links", Some(metadata.n_links.to_string()), Some("1".to_owned())));
            }
            if metadata.is_mount && is_edited {
                let how = "in place, not at once: something is mounted on it".to_owned();
                changes.push(Change::value("method", None, Some(how)));
            }
        }
        Observation::Present(observed) => {
            let found = if observed.node == Node::Unread {
                format!("file of {} bytes", observed.metadata.size)
            } else {
                observed.node.describe()
            };
            changes.push(Change::value("type", Some(found), Some("file".to_owned())));
        }
    }
    if changes.is_empty() { Verdict::InSync } else { Verdict::Drift(Drift { action: Action::Update, changes }) }
}

/// The content that a step would put in place of `content`; `None` when it would leave it.
pub(super) fn replacement(desired: &Desired, content: &[u8]) -> Option<Vec<u8>> {
    let edited = desired.spec.edits.edit(content).ok()?;
    (!edited.changes.is_empty()).then_some(edited.content)
}

/// What a step would leave at the path, starting from what was observed, or from the content that an earlier step would leave;
/// `None` when it would fail.
pub(super) fn outcome(
    desired: &Desired,
    observation: &Observation<Observed>,
    earlier: Option<&[u8]>,
    names: Names,
) -> Option<(Vec<u8>, Permissions)> {
    let Desired { path, spec } = desired;
    let (content, metadata): (&[u8], _) = match observation {
        Observation::Present(Observed { node: Node::File(content), metadata }) => (content, Some(metadata)),
        Observation::Absent if spec.missing == Missing::Create => (&[], None),
        Observation::Absent if earlier.is_some() => (&[], None),
        Observation::Present(_) | Observation::Absent | Observation::Unknown(_) => return None,
    };
    let content = earlier.unwrap_or(content);
    Some((spec.edits.edit(content).ok()?.content, spec.permissions(path, names, metadata).ok()?))
}

/// Edits the file, starting from what was observed.
pub fn apply(
    root: &Root,
    desired: &Desired,
    observation: &Observation<Observed>,
    names: Names,
) -> Result<(), ApplyError> {
    let Desired { path, spec } = desired;
    let refuse =
        |why: &str, hint: &'static str| ApplyError::NotEditable { path: path.clone(), why: why.to_owned(), hint };
    let edit = |content: &[u8]| {
        let hint = "edit it by hand, or declare the whole file";
        spec.edits.edit(content).map_err(|error| refuse(&error.to_string(), hint))
    };
    let observed = match observation {
        Observation::Unknown(why) => return Err(ApplyError::Vanished { what: path.to_string(), why: why.clone() }),
        Observation::Absent => {
            if spec.missing == Missing::Refuse {
                let hint = "require what brings it, such as its package, or write `create = true`";
                return Err(refuse("it does not exist", hint));
            }
            let permissions = spec.permissions(path, names, None)?;
            let content = edit(&[])?.content;
            place::make_parents(root, path)?;
            return place::put(root, path, &content, permissions, "create", None);
        }
        Observation::Present(observed) => observed,
    };
    let content = match &observed.node {
        Node::File(content) => content,
        Node::Unread => {
            return Err(refuse("it is longer than 16 MiB", "only files that a person could read are edited"));
        }
        Node::Symlink(_) => {
            return Err(refuse("it is a symbolic link", "name the file that the link leads to"));
        }
        Node::Directory | Node::Special => {
            return Err(refuse("it is no file", "remove what stands there, or name another path"));
        }
    };
    // Somebody's change between the look and now must not be undone with an old copy.
    match root.read(path, place::MAX_CONTENT).map_err(place::failure("read", path, None))? {
        Some((now, _)) if now == *content => {}
        Some(_) | None => {
            let why = "it has changed since it was looked at".to_owned();
            return Err(ApplyError::Vanished { what: path.to_string(), why });
        }
    }
    let metadata = &observed.metadata;
    let permissions = spec.permissions(path, names, Some(metadata))?;
    let edited = edit(content)?;
    let keep = if spec.mode.is_some() { Keep::Nothing } else { Keep::AccessList };
    let is_kept = keep == Keep::AccessList && metadata.extras.acl.is_some();
    if edited.changes.is_empty() && metadata.n_links == 1 && !is_kept {
        return root.set_permissions(path, permissions).map_err(place::failure(
            "set the owner and mode of",
            path,
            Some(metadata),
        ));
    }
    place::unlock(root, path, observed)?;
    place::put_keeping(root, path, &edited.content, permissions, keep, "edit", Some(metadata))
}
