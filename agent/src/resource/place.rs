//! What stands at a path: shared by the kinds that own one (`file`, `directory`, `symlink`, and a user's keys).

use std::io;
use std::path::PathBuf;

use super::{AbsPath, Action, ApplyError, Change, Concealed, Drift, Mode, Names, Observation, Principal, text};
use crate::host::root::{Extras, FileType, Keep, Metadata, Permissions, Put, Root};

/// The longest content that is read from the host, and so the longest that is kept as a backup.
pub const MAX_CONTENT: u64 = 16 * 1024 * 1024;

/// Who owns something at a path, and what others may do with it, as the policy names them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Ownership {
    /// Owner; [`Principal::Agent`] when the policy names none.
    pub owner: Principal,
    /// Group; [`Principal::Agent`] when the policy names none.
    pub group: Principal,
    /// Permission bits; `0644` for a file and `0755` for a directory when the policy names none.
    pub mode: Mode,
}

/// Something at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// What it is.
    pub node: Node,
    /// Its metadata.
    pub metadata: Metadata,
}

/// What something at a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A regular file with this content.
    File(Vec<u8>),
    /// A regular file whose content was not read: longer than [`MAX_CONTENT`], or of no interest to the kind that looked.
    Unread,
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(PathBuf),
    /// A device, socket or FIFO. It is never opened.
    Special,
}

impl Node {
    fn word(&self) -> &'static str {
        match self {
            Self::File(_) | Self::Unread => "file",
            Self::Directory => "directory",
            Self::Symlink(_) => "symlink",
            Self::Special => "special file",
        }
    }

    /// For a `type` change: the word, and for a link where it leads.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Symlink(target) => format!("symlink to {}", target.display()),
            Self::File(_) | Self::Unread | Self::Directory | Self::Special => self.word().to_owned(),
        }
    }
}

/// Looks at a path and reads its content when it is a regular file. One system call sequence when nothing is odd.
pub(super) fn observe_content(root: &Root, path: &AbsPath, at_least: u64) -> Observation<Observed> {
    match root.read(path, MAX_CONTENT.max(at_least)) {
        Ok(Some((content, metadata))) => Observation::Present(Observed { node: Node::File(content), metadata }),
        Ok(None) => Observation::Absent,
        // Not a regular file, or too long: the metadata says which.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge) => observe(root, path),
        Err(e) => Observation::Unknown(format!("cannot read `{path}`: {e}")),
    }
}

/// Looks at a path without reading content.
pub(super) fn observe(root: &Root, path: &AbsPath) -> Observation<Observed> {
    let metadata = match root.metadata(path) {
        Ok(Some(metadata)) => metadata,
        Ok(None) => return Observation::Absent,
        Err(e) => return Observation::Unknown(format!("cannot look at `{path}`: {e}")),
    };
    let node = match metadata.file_type {
        FileType::File => Node::Unread,
        FileType::Directory => Node::Directory,
        FileType::Special => Node::Special,
        FileType::Symlink => match root.read_link(path) {
            Ok(Some(target)) => Node::Symlink(target),
            Ok(None) => return Observation::Absent,
            Err(e) => return Observation::Unknown(format!("cannot read the link `{path}`: {e}")),
        },
    };
    Observation::Present(Observed { node, metadata })
}

/// The parents of `path` that do not exist, outermost first.
pub(super) fn missing_parents(root: &Root, path: &AbsPath) -> io::Result<Vec<AbsPath>> {
    let mut missing = Vec::new();
    let mut parent = path.parent();
    while let Some(directory) = parent {
        if root.metadata(&directory)?.is_some() {
            break;
        }
        parent = directory.parent();
        missing.push(directory);
    }
    missing.reverse();
    Ok(missing)
}

/// The mode of a parent directory that no resource declares.
const PARENT_MODE: Mode = Mode::from_bits(0o755);

/// One change for each parent that a step would make.
pub(super) fn parent_changes(missing: &[AbsPath]) -> impl Iterator<Item = Change> + '_ {
    missing.iter().map(|path| Change::value("parent", None, Some(format!("{path} {PARENT_MODE}"))))
}

/// Makes the missing parents of `path`, owned by the agent's user, `0755` whatever the umask.
pub(super) fn make_parents(root: &Root, path: &AbsPath) -> Result<(), ApplyError> {
    let missing = missing_parents(root, path).and_then(|missing| {
        if let Some(nearest) = missing.first().unwrap_or(path).parent() {
            check_directory(root, &nearest)?;
        }
        Ok(missing)
    });
    let missing = missing.map_err(failure("look for the parents of", path, None))?;
    let permissions = Permissions {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mode: PARENT_MODE,
    };
    for directory in &missing {
        root.create_directory(directory, permissions).map_err(failure(
            "create the parent directory",
            directory,
            None,
        ))?;
    }
    Ok(())
}

/// An error that names what is no directory, rather than a path below it that "does not exist".
fn check_directory(root: &Root, path: &AbsPath) -> io::Result<()> {
    let why = match root.metadata(path)?.map(|metadata| metadata.file_type) {
        Some(FileType::Directory) | None => return Ok(()),
        Some(FileType::File | FileType::Special) => "is not a directory",
        // Listing follows a link that may be followed; a longer list than asked for is a directory as well.
        Some(FileType::Symlink) => match root.list_names(path, 0) {
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => "is a symbolic link that leads to no directory",
            Ok(_) | Err(_) => return Ok(()),
        },
    };
    Err(io::Error::new(io::ErrorKind::NotADirectory, format!("`{path}` {why}")))
}

/// Adds a change for each of owner, group and mode that differs, and for whatever grants or refuses more than these.
pub(super) fn permission_changes(changes: &mut Vec<Change>, metadata: &Metadata, names: Names, wanted: &Ownership) {
    if names.uid != Some(metadata.uid) {
        changes.push(Change::value("owner", Some(metadata.uid.to_string()), Some(label(&wanted.owner, names.uid))));
    }
    if names.gid != Some(metadata.gid) {
        changes.push(Change::value("group", Some(metadata.gid.to_string()), Some(label(&wanted.group, names.gid))));
    }
    if metadata.mode != wanted.mode {
        changes.push(Change::value("mode", Some(metadata.mode.to_string()), Some(wanted.mode.to_string())));
    }
    extra_changes(changes, "", metadata);
}

/// Adds a change for each thing that nobody declared: an access control list, capabilities, a wrong label, a flag that refuses
/// changes.
/// Attributes are named with `prefix` before them.
pub(super) fn extra_changes(changes: &mut Vec<Change>, prefix: &str, metadata: &Metadata) {
    let Extras { acl, capabilities, label } = &metadata.extras;
    for (attribute, found) in [("acl", acl), ("capabilities", capabilities)] {
        if let Some(found) = found {
            changes.push(Change::value(&format!("{prefix}{attribute}"), Some(found.to_string()), None));
        }
    }
    if let Some(label) = label {
        changes.push(Change::value(&format!("{prefix}label"), label.found.clone(), Some(label.wanted.clone())));
    }
    flag_change(changes, prefix, metadata);
}

/// Adds a change for the flags that will be cleared first, because they refuse every other change.
pub(super) fn flag_change(changes: &mut Vec<Change>, prefix: &str, metadata: &Metadata) {
    if !metadata.flags.is_empty() {
        changes.push(Change::value(&format!("{prefix}flags"), Some(metadata.flags.to_string()), None));
    }
}

/// The changes that a new thing's owner, group and mode are.
pub(super) fn new_permission_changes(names: Names, wanted: &Ownership) -> [Change; 3] {
    [
        Change::value("owner", None, Some(label(&wanted.owner, names.uid))),
        Change::value("group", None, Some(label(&wanted.group, names.gid))),
        Change::value("mode", None, Some(wanted.mode.to_string())),
    ]
}

fn label(principal: &Principal, id: Option<u32>) -> String {
    match (principal, id) {
        (Principal::Name(name), _) => name.clone(),
        (Principal::Agent | Principal::Id(_), Some(id)) => id.to_string(),
        (Principal::Agent | Principal::Id(_), None) => principal.to_string(),
    }
}

impl Ownership {
    /// The numeric form, or the error that names who is missing.
    pub(super) fn permissions(&self, path: &AbsPath, names: Names) -> Result<Permissions, ApplyError> {
        let missing =
            |what, name: &Principal| ApplyError::NoSuchPrincipal { path: path.clone(), what, name: name.to_string() };
        Ok(Permissions {
            uid: names.uid.ok_or_else(|| missing("user", &self.owner))?,
            gid: names.gid.ok_or_else(|| missing("group", &self.group))?,
            mode: self.mode,
        })
    }
}

/// Wraps an I/O error; names the flag when the inode carries one that nobody would think of.
pub(super) fn failure(
    operation: &'static str,
    path: &AbsPath,
    metadata: Option<&Metadata>,
) -> impl FnOnce(io::Error) -> ApplyError {
    let path = path.clone();
    let flagged = metadata.is_some_and(|m| !m.flags.is_empty());
    move |source| {
        let kind = source.kind();
        let hint = if kind == io::ErrorKind::PermissionDenied && flagged {
            Some("the immutable or append-only flag is set; see lsattr(1) and who set it")
        } else if kind == io::ErrorKind::ReadOnlyFilesystem {
            Some("the file system is read-only: a fault of the host, unless it was mounted so")
        } else if matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            Some("nothing was touched; make room")
        } else {
            None
        };
        ApplyError::Path { operation, path, hint, source }
    }
}

/// Puts a file at a path; `metadata` is what was seen there.
pub(super) fn put(
    root: &Root,
    path: &AbsPath,
    content: &[u8],
    permissions: Permissions,
    operation: &'static str,
    metadata: Option<&Metadata>,
) -> Result<(), ApplyError> {
    put_keeping(root, path, content, permissions, Keep::Nothing, operation, metadata)
}

/// As [`put`], with what else is kept.
pub(super) fn put_keeping(
    root: &Root,
    path: &AbsPath,
    content: &[u8],
    permissions: Permissions,
    keep: Keep,
    operation: &'static str,
    metadata: Option<&Metadata>,
) -> Result<(), ApplyError> {
    let put = root.replace_file_keeping(path, content, permissions, keep);
    match put.map_err(failure(operation, path, metadata))? {
        Put::Replaced => {}
        Put::InPlace => tracing::warn!(path = %path, "written in place, because something is mounted on it"),
    }
    Ok(())
}

/// Clears the flags that refuse changes, when what stands at a path was seen to have some.
pub(super) fn unlock(root: &Root, path: &AbsPath, observed: &Observed) -> Result<(), ApplyError> {
    if observed.metadata.flags.is_empty() {
        return Ok(());
    }
    let cleared = root.clear_flags(path).map_err(failure("clear the flags of", path, Some(&observed.metadata)))?;
    tracing::warn!(path = %path, flags = %cleared, "cleared flags that refuse changes");
    Ok(())
}

/// Removes what stands at a path, flags that refuse it first: a directory only when it is empty.
pub(super) fn remove(root: &Root, path: &AbsPath, observed: &Observed) -> Result<(), ApplyError> {
    unlock(root, path, observed)?;
    match observed.node {
        Node::Directory => match root.remove_directory(path) {
            Ok(_existed) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Err(ApplyError::NotEmpty { path: path.clone() }),
            Err(e) => Err(failure("remove", path, Some(&observed.metadata))(e)),
        },
        Node::File(_) | Node::Unread | Node::Symlink(_) | Node::Special => {
            root.remove_file(path).map(drop).map_err(failure("remove", path, Some(&observed.metadata)))
        }
    }
}

/// The drift of something that should not be there.
pub(super) fn removal(observed: &Observed) -> Drift {
    let mut drift = Drift::value(
        Action::Remove,
        "state",
        Some(format!("present ({})", observed.node.describe())),
        Some("absent".into()),
    );
    if let Node::File(content) = &observed.node {
        let mut change = text::content_change("content", Some(content), None);
        if observed.metadata.mode.bits() & 0o004 == 0 {
            // Who kept it from being read did not mean it for logs and alerts, and no policy says that it may be shown.
            change.conceal(Concealed::InDoubt);
        }
        drift.changes.push(change);
    }
    flag_change(&mut drift.changes, "", &observed.metadata);
    drift
}
