//! What stood at a path at one moment: enough to compare with, and with the kept content enough to put back.
//!
//! The text form is what the record keeps, so it may only be added to.

use std::fmt;
use std::str::FromStr;

use super::place::{self, Node, Observed};
use super::{AbsPath, ApplyError, Change, ChangeDetail, Desired, Mode, Observation, Resource, Sighting, digest, text};
use crate::host::root::{Permissions, Root};

/// Something at a path, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stood {
    /// Nothing was there.
    Nothing,
    /// A regular file.
    File {
        /// SHA-256 of its content, in hexadecimal: its name in the backup store, if it is kept there.
        digest: String,
        /// Owner, group and mode.
        permissions: Permissions,
    },
    /// A regular file that is too long to be read and kept.
    Long {
        /// Bytes.
        size: u64,
        /// Owner, group and mode.
        permissions: Permissions,
    },
    /// A regular file that holds a secret, or stood where one belongs. Nothing tells what was in it: even a digest would let
    /// a guess be tested.
    Hidden {
        /// Owner, group and mode.
        permissions: Permissions,
    },
    /// A directory.
    Directory {
        /// Owner, group and mode.
        permissions: Permissions,
    },
    /// A symbolic link.
    Link {
        /// What it holds.
        target: String,
    },
    /// A device, socket or FIFO.
    Special,
}

/// Why something cannot be put back.
#[derive(Debug, thiserror::Error)]
pub enum PutBackError {
    /// Its content is not kept any more, or never was.
    #[error("what was at `{path}` is not kept: {why}")]
    NotKept {
        /// Where.
        path: AbsPath,
        /// Why not.
        why: &'static str,
    },
    /// What is kept of its content cannot be read.
    #[error("what was at `{path}` is kept and cannot be read: {why}")]
    Unread {
        /// Where.
        path: AbsPath,
        /// Why not.
        why: String,
    },
    /// The file system refused.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl Stood {
    /// What an observation saw; `None` when it saw nothing for certain.
    pub fn of(observation: &Observation<Observed>) -> Option<Self> {
        match observation {
            Observation::Unknown(_) => None,
            Observation::Absent => Some(Self::Nothing),
            Observation::Present(observed) => Some(Self::of_node(observed)),
        }
    }

    fn of_node(observed: &Observed) -> Self {
        let metadata = &observed.metadata;
        let permissions = Permissions { uid: metadata.uid, gid: metadata.gid, mode: metadata.mode };
        match &observed.node {
            Node::File(content) => Self::File { digest: digest(content), permissions },
            Node::Unread => Self::Long { size: metadata.size, permissions },
            Node::Directory => Self::Directory { permissions },
            Node::Symlink(target) => Self::Link { target: target.to_string_lossy().into_owned() },
            Node::Special => Self::Special,
        }
    }

    /// Looks at a path now; `None` when it cannot be told.
    pub fn look(root: &Root, path: &AbsPath) -> Option<Self> {
        Self::of(&place::observe_content(root, path, 0))
    }

    /// The same, without anything that tells of its content.
    #[must_use]
    pub fn hidden(self) -> Self {
        match self {
            Self::File { permissions, .. } | Self::Long { permissions, .. } => Self::Hidden { permissions },
            Self::Nothing | Self::Hidden { .. } | Self::Directory { .. } | Self::Link { .. } | Self::Special => self,
        }
    }

    /// As it may be recorded of a resource.
    #[must_use]
    pub fn recorded_of(self, desired: &Desired) -> Self {
        if desired.is_secret() { self.hidden() } else { self }
    }

    /// One word for people.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::File { .. } | Self::Long { .. } | Self::Hidden { .. } => "a file",
            Self::Directory { .. } => "a directory",
            Self::Link { .. } => "a symbolic link",
            Self::Special => "a special file",
        }
    }

    /// The name under which its content is kept, if it has content that was read.
    pub fn content_name(&self) -> Option<&str> {
        match self {
            Self::File { digest, .. } => Some(digest),
            Self::Nothing
            | Self::Long { .. }
            | Self::Hidden { .. }
            | Self::Directory { .. }
            | Self::Link { .. }
            | Self::Special => None,
        }
    }

    /// Whether its content can never be put back, because nothing keeps it.
    pub fn content_is_lost(&self) -> bool {
        matches!(self, Self::Long { .. } | Self::Hidden { .. } | Self::Special)
    }

    /// Owner, group and mode, where it has them.
    pub fn permissions(&self) -> Option<Permissions> {
        match self {
            Self::File { permissions, .. }
            | Self::Long { permissions, .. }
            | Self::Hidden { permissions }
            | Self::Directory { permissions } => Some(*permissions),
            Self::Nothing | Self::Link { .. } | Self::Special => None,
        }
    }

    /// Puts this back at a path. `kept` gives content by its name. What is there now is replaced, a directory only when it is
    /// empty.
    pub fn put_back(
        &self,
        root: &Root,
        path: &AbsPath,
        kept: impl FnOnce(&str) -> Result<Option<Vec<u8>>, String>,
    ) -> Result<(), PutBackError> {
        let now = match place::observe_content(root, path, 0) {
            Observation::Present(observed) => Some(observed),
            Observation::Absent => None,
            Observation::Unknown(why) => {
                return Err(ApplyError::Vanished { what: path.to_string(), why }.into());
            }
        };
        let not_kept = |why| PutBackError::NotKept { path: path.clone(), why };
        match self {
            Self::Nothing => now.map_or(Ok(()), |observed| Ok(place::remove(root, path, &observed)?)),
            Self::File { digest: wanted, permissions } => {
                if let Some(Observed { node: Node::File(content), metadata }) = &now
                    && digest(content) == *wanted
                    && metadata.n_links == 1
                {
                    let set = root.set_permissions(path, *permissions);
                    return Ok(set.map_err(place::failure("set the owner and mode of", path, Some(metadata)))?);
                }
                let kept = kept(wanted).map_err(|why| PutBackError::Unread { path: path.clone(), why })?;
                let content = match kept {
                    Some(content) => content,
                    // Only its owner or mode were changed, so that nothing had to be kept.
                    None => match now.as_ref().map(|observed| &observed.node) {
                        Some(Node::File(content)) if digest(content) == *wanted => content.clone(),
                        _ => return Err(not_kept("the backup was dropped to make room, or was never made")),
                    },
                };
                if let Some(observed) = &now {
                    match observed.node {
                        Node::Directory => place::remove(root, path, observed)?,
                        Node::File(_) | Node::Unread | Node::Symlink(_) | Node::Special => {
                            place::unlock(root, path, observed)?;
                        }
                    }
                } else {
                    place::make_parents(root, path)?;
                }
                let metadata = now.as_ref().map(|observed| &observed.metadata);
                Ok(place::put(root, path, &content, *permissions, "put back", metadata)?)
            }
            Self::Directory { permissions } => match &now {
                Some(Observed { node: Node::Directory, metadata }) => {
                    let set = root.set_permissions(path, *permissions);
                    Ok(set.map_err(place::failure("set the owner and mode of", path, Some(metadata)))?)
                }
                other => {
                    match other {
                        Some(observed) => place::remove(root, path, observed)?,
                        None => place::make_parents(root, path)?,
                    }
                    let made = root.create_directory(path, *permissions);
                    Ok(made.map_err(place::failure("create", path, None))?)
                }
            },
            Self::Link { target } => {
                match &now {
                    Some(observed @ Observed { node: Node::Directory, .. }) => place::remove(root, path, observed)?,
                    Some(observed) => place::unlock(root, path, observed)?,
                    None => place::make_parents(root, path)?,
                }
                Ok(root.replace_symlink(path, target).map_err(place::failure("put back the link", path, None))?)
            }
            Self::Long { .. } => Err(not_kept("it was longer than what is kept")),
            Self::Hidden { .. } => Err(not_kept("a secret stood there, or belongs there")),
            Self::Special => Err(not_kept("it was a device, socket or FIFO")),
        }
    }
}

/// The paths that a step on a resource may change, with what stands there. Of a path that cannot be told nothing is said.
pub fn places(root: &Root, resource: &Resource, sighting: &Sighting) -> Vec<(AbsPath, Stood)> {
    let places = places_seen(root, resource, sighting);
    places.into_iter().map(|(path, stood)| (path, stood.recorded_of(&resource.desired))).collect()
}

fn places_seen(root: &Root, resource: &Resource, sighting: &Sighting) -> Vec<(AbsPath, Stood)> {
    use super::Observed as Seen;
    let seen = match (&resource.desired, &sighting.observed) {
        // What a link leads to is not what is at the path.
        (Desired::File(d), Seen::File(_)) if d.acts_on(root).ok().as_ref() != Some(&d.path) => return Vec::new(),
        (Desired::File(d), Seen::File(seen)) => Some((&d.path, seen)),
        (Desired::Directory(d), Seen::Directory(seen)) => {
            // What a rule changes beneath a directory is held by no list of paths: the attic and its manifest have it.
            let at_path = match seen {
                Observation::Present(seen) if seen.beneath != super::directory::Beneath::default() => {
                    return Vec::new();
                }
                Observation::Present(seen) => Observation::Present(seen.place.clone()),
                Observation::Absent => Observation::Absent,
                Observation::Unknown(why) => Observation::Unknown(why.clone()),
            };
            return Stood::of(&at_path).map(|stood| (d.path.clone(), stood)).into_iter().collect();
        }
        (Desired::Symlink(d), Seen::Symlink(seen)) => Some((&d.path, seen)),
        _ => None,
    };
    match seen {
        // A kind that only looked at what is there has not read it.
        Some((path, Observation::Present(Observed { node: Node::Unread, .. }))) => {
            Stood::look(root, path).map(|stood| (path.clone(), stood)).into_iter().collect()
        }
        Some((path, seen)) => Stood::of(seen).map(|stood| (path.clone(), stood)).into_iter().collect(),
        None => look_at_places(root, resource),
    }
}

/// The same, looked at now. What is not held by paths alone, such as a user, a package or a setting of the kernel, has none: to
/// put back a part of it would be neither the state before nor the state after.
pub fn look_at_places(root: &Root, resource: &Resource) -> Vec<(AbsPath, Stood)> {
    let watched = resource.watched();
    let is_held_by_paths = !matches!(
        resource.desired,
        Desired::Repository(_) | Desired::Sysctl(_) | Desired::KernelModule(_) | Desired::Mount(_)
    );
    if watched.accounts || watched.packages || watched.unit.is_some() || !is_held_by_paths {
        return Vec::new();
    }
    let stood = |path: &AbsPath| Some(Stood::look(root, path)?.recorded_of(&resource.desired));
    watched.paths.into_iter().filter_map(|path| stood(&path).map(|stood| (path, stood))).collect()
}

/// Every difference between two things that stood at a path at different times. Content is shown where both sides are given.
pub fn changes(from: &Stood, to: &Stood, content_from: Option<&[u8]>, content_to: Option<&[u8]>) -> Vec<Change> {
    let mut changes = Vec::new();
    let word = |stood: &Stood| (*stood != Stood::Nothing).then(|| stood.word().to_owned());
    if word(from) != word(to) {
        changes.push(Change::value("type", word(from), word(to)));
    }
    if from.content_name() != to.content_name() {
        let is_shown = |stood: &Stood, content: Option<&[u8]>| content.is_some() || stood.content_name().is_none();
        changes.push(if is_shown(from, content_from) && is_shown(to, content_to) {
            text::content_change("content", content_from, content_to)
        } else {
            let side = |stood: &Stood| stood.content_name().map(|_| "not shown".to_owned());
            Change { attribute: "content".to_owned(), detail: ChangeDetail::Opaque { from: side(from), to: side(to) } }
        });
    }
    if let (Stood::Link { target: old }, Stood::Link { target: new }) = (from, to)
        && old != new
    {
        changes.push(Change::value("target", Some(old.clone()), Some(new.clone())));
    }
    let (old, new) = (from.permissions(), to.permissions());
    let mut compare = |attribute: &str, value: fn(&Permissions) -> String| {
        let (old, new) = (old.as_ref().map(value), new.as_ref().map(value));
        if old != new {
            changes.push(Change::value(attribute, old, new));
        }
    };
    compare("owner", |p| p.uid.to_string());
    compare("group", |p| p.gid.to_string());
    compare("mode", |p| p.mode.to_string());
    changes
}

/// In which way two things differ, in words for one line.
pub fn words_of_difference(from: &Stood, to: &Stood) -> String {
    if from.word() != to.word() {
        return format!("{} was left there, and now there is {}", from.word(), to.word());
    }
    let attributes: Vec<String> = changes(from, to, None, None).into_iter().map(|change| change.attribute).collect();
    if attributes.is_empty() {
        "it is another one".to_owned()
    } else {
        format!("it differs in {}", attributes.join(", "))
    }
}

impl fmt::Display for Stood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = |f: &mut fmt::Formatter<'_>, p: &Permissions| write!(f, "{} {} {}", p.uid, p.gid, p.mode);
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Special => f.write_str("special"),
            Self::File { digest, permissions } => {
                write!(f, "file {digest} ")?;
                tail(f, permissions)
            }
            Self::Long { size, permissions } => {
                write!(f, "long {size} ")?;
                tail(f, permissions)
            }
            Self::Hidden { permissions } => {
                f.write_str("hidden ")?;
                tail(f, permissions)
            }
            Self::Directory { permissions } => {
                f.write_str("directory ")?;
                tail(f, permissions)
            }
            Self::Link { target } => write!(f, "link {target}"),
        }
    }
}

/// A text that no version up to this one wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a description of what stood at a path")]
pub struct InvalidStood;

impl FromStr for Stood {
    type Err = InvalidStood;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(target) = text.strip_prefix("link ") {
            return Ok(Self::Link { target: target.to_owned() });
        }
        let words: Vec<&str> = text.split(' ').collect();
        let permissions = |words: &[&str]| match words {
            [uid, gid, mode] => Ok(Permissions {
                uid: uid.parse().map_err(|_| InvalidStood)?,
                gid: gid.parse().map_err(|_| InvalidStood)?,
                mode: Mode::parse(mode).map_err(|_| InvalidStood)?,
            }),
            _ => Err(InvalidStood),
        };
        match words.as_slice() {
            ["nothing"] => Ok(Self::Nothing),
            ["special"] => Ok(Self::Special),
            ["file", digest, rest @ ..] => {
                Ok(Self::File { digest: (*digest).to_owned(), permissions: permissions(rest)? })
            }
            ["long", size, rest @ ..] => {
                Ok(Self::Long { size: size.parse().map_err(|_| InvalidStood)?, permissions: permissions(rest)? })
            }
            ["hidden", rest @ ..] => Ok(Self::Hidden { permissions: permissions(rest)? }),
            ["directory", rest @ ..] => Ok(Self::Directory { permissions: permissions(rest)? }),
            _ => Err(InvalidStood),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permissions() -> Permissions {
        let (uid, gid) = crate::host::current_ids();
        Permissions { uid, gid, mode: Mode::from_bits(0o640) }
    }

    #[test]
    fn the_text_form_is_read_as_it_is_written() {
        for stood in [
            Stood::Nothing,
            Stood::Special,
            Stood::File { digest: "ab".to_owned(), permissions: permissions() },
            Stood::Long { size: 7, permissions: permissions() },
            Stood::Hidden { permissions: permissions() },
            Stood::Directory { permissions: permissions() },
            Stood::Link { target: "a b\nfile c".to_owned() },
        ] {
            assert_eq!(stood.to_string().parse(), Ok(stood));
        }
        for text in ["", "file", "file ab 0 0", "file ab 0 0 644", "long x 0 0 0644", "nothing more"] {
            assert_eq!(text.parse::<Stood>(), Err(InvalidStood), "{text}");
        }
    }

    #[test]
    fn whatever_stood_there_comes_back_over_whatever_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let path = AbsPath::new("/sub/x").unwrap();
        let all = [
            Stood::Nothing,
            Stood::File { digest: digest(b"old\n"), permissions: permissions() },
            Stood::Directory { permissions: permissions() },
            Stood::Link { target: "elsewhere".to_owned() },
        ];
        for before in &all {
            for after in &all {
                for stood in [before, after] {
                    let kept = |name: &str| Ok((name == digest(b"old\n")).then(|| b"old\n".to_vec()));
                    stood.put_back(&root, &path, kept).unwrap();
                    assert_eq!(Stood::look(&root, &path).as_ref(), Some(stood));
                }
            }
        }
    }

    #[test]
    fn without_its_content_a_file_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let path = AbsPath::new("/x").unwrap();
        let now = Stood::File { digest: digest(b"now"), permissions: permissions() };
        now.put_back(&root, &path, |_| Ok(Some(b"now".to_vec()))).unwrap();
        let before = Stood::File { digest: digest(b"old"), permissions: permissions() };
        assert!(matches!(before.put_back(&root, &path, |_| Ok(None)), Err(PutBackError::NotKept { .. })));
        let unread = before.put_back(&root, &path, |_| Err("input/output error".to_owned())).unwrap_err().to_string();
        assert_eq!(unread, "what was at `/x` is kept and cannot be read: input/output error");
        assert_eq!(Stood::look(&root, &path), Some(now));
    }
}
