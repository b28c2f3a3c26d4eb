//! A user's `~/.ssh/authorized_keys`, written as root into a directory that the user controls.
//!
//! The user may swap anything in its home at any moment. So every directory on the way must be a real directory owned by the
//! user or by root, [`crate::host::root::Root`] refuses to pass a link that the user made, and the file itself is put in place by
//! rename, which never follows a link. Nothing is ever opened for writing or given away by path.

use crate::host::accounts::UserEntry;
use crate::host::root::{FileType, Metadata, Permissions, Root};
use crate::resource::place::{self, Node};
use crate::resource::{AbsPath, ApplyError, Change, Mode, Observation, text};

use super::AuthorizedKeys;

const DIRECTORY_MODE: Mode = Mode::from_bits(0o700);
const FILE_MODE: Mode = Mode::from_bits(0o600);

/// What is where a user's keys should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysObserved {
    path: AbsPath,
    /// Why the way there must not be walked, if so.
    unsafe_way: Option<String>,
    directory: Option<Metadata>,
    file: Option<place::Observed>,
}

impl KeysObserved {
    /// The file's bytes, when there is a regular file.
    pub(super) fn content(&self) -> Option<&[u8]> {
        match self.file.as_ref().map(|file| &file.node) {
            Some(Node::File(content)) => Some(content),
            Some(Node::Unread | Node::Directory | Node::Symlink(_) | Node::Special) | None => None,
        }
    }
}

/// The file in a home directory.
pub(super) fn path_in(home: &AbsPath) -> Result<AbsPath, crate::resource::InvalidName> {
    home.join(".ssh")?.join("authorized_keys")
}

/// The directory that holds the keys: the declared home, because a differing row is about to be changed to it.
fn home_of(entry: &UserEntry, declared: Option<&AbsPath>) -> Result<AbsPath, String> {
    match declared {
        Some(home) => Ok(home.clone()),
        None => AbsPath::new(&entry.home).map_err(|e| format!("the home directory of `{}`: {e}", entry.name)),
    }
}

/// Looks at the way and at the file.
pub(super) fn observe(root: &Root, entry: &UserEntry, declared: Option<&AbsPath>) -> Result<KeysObserved, String> {
    let home = home_of(entry, declared)?;
    let path = path_in(&home).map_err(|e| e.to_string())?;
    let directory = path.parent().ok_or_else(|| format!("`{path}` has no parent"))?;
    let look = |path: &AbsPath| root.metadata(path).map_err(|e| format!("cannot look at `{path}`: {e}"));
    let home_found = look(&home)?;
    let mut unsafe_way = home_found.as_ref().and_then(|found| distrust(&home, found, entry));
    let mut observed = KeysObserved { path, unsafe_way: None, directory: None, file: None };
    if unsafe_way.is_none() && home_found.is_some() {
        observed.directory = look(&directory)?;
        unsafe_way = observed.directory.as_ref().and_then(|found| distrust(&directory, found, entry));
    }
    if unsafe_way.is_none() && observed.directory.is_some() {
        observed.file = match place::observe_content(root, &observed.path, 0) {
            Observation::Present(found) => Some(found),
            Observation::Absent => None,
            Observation::Unknown(why) => return Err(why),
        };
    }
    observed.unsafe_way = unsafe_way;
    Ok(observed)
}

fn distrust(path: &AbsPath, found: &Metadata, entry: &UserEntry) -> Option<String> {
    if found.file_type != FileType::Directory {
        return Some(format!("`{path}` is not a directory"));
    }
    if found.uid != entry.uid && found.uid != 0 {
        return Some(format!("`{path}` belongs to uid {}, neither to the user nor to root", found.uid));
    }
    None
}

/// The lines that the file should hold, given what it holds now.
pub(super) fn wanted_content(wanted: &AuthorizedKeys, found: Option<&[u8]>) -> Vec<u8> {
    let mut content: Vec<u8> = if wanted.exact { Vec::new() } else { found.unwrap_or_default().to_vec() };
    for key in &wanted.keys {
        let key = key.trim();
        let listed = content.split(|byte| *byte == b'\n').any(|line| line.trim_ascii() == key.as_bytes());
        if listed {
            continue;
        }
        if content.last().is_some_and(|byte| *byte != b'\n') {
            content.push(b'\n');
        }
        content.extend_from_slice(key.as_bytes());
        content.push(b'\n');
    }
    content
}

/// Every difference. A way that must not be walked is one: the step will fail and say so.
pub(super) fn diff(wanted: &AuthorizedKeys, found: &KeysObserved, entry: &UserEntry) -> Vec<Change> {
    let mut changes = Vec::new();
    if let Some(why) = &found.unsafe_way {
        return vec![Change::value("authorized_keys", Some(why.clone()), Some("a safe home directory".to_owned()))];
    }
    let content = wanted_content(wanted, found.content());
    if found.file.is_none() && content.is_empty() {
        return changes;
    }
    if found.content() != Some(&content[..]) {
        changes.push(text::content_change("authorized_keys", found.content(), Some(&content)));
    }
    let mut compare = |what: &str, metadata: &Metadata, mode: Mode| {
        if metadata.uid != entry.uid {
            let to = Some(entry.uid.to_string());
            changes.push(Change::value(&format!("{what} owner"), Some(metadata.uid.to_string()), to));
        }
        if metadata.mode != mode {
            let to = Some(mode.to_string());
            changes.push(Change::value(&format!("{what} mode"), Some(metadata.mode.to_string()), to));
        }
        place::extra_changes(&mut changes, &format!("{what} "), metadata);
    };
    if let Some(directory) = &found.directory {
        compare(".ssh", directory, DIRECTORY_MODE);
    }
    if let Some(file) = found.file.as_ref().filter(|file| matches!(file.node, Node::File(_) | Node::Unread)) {
        compare("authorized_keys", &file.metadata, FILE_MODE);
    }
    changes
}

/// Puts the file in place for the user as its row reads now.
pub(super) fn apply(
    root: &Root,
    wanted: &AuthorizedKeys,
    entry: &UserEntry,
    declared: Option<&AbsPath>,
) -> Result<(), ApplyError> {
    let lost = |why: String| ApplyError::Vanished { what: format!("the keys of `{}`", entry.name), why };
    let home = home_of(entry, declared).map_err(lost)?;
    let found = observe(root, entry, declared).map_err(lost)?;
    if let Some(why) = found.unsafe_way.clone() {
        return Err(ApplyError::UnsafeHome { path: found.path, why });
    }
    if diff(wanted, &found, entry).is_empty() {
        return Ok(());
    }
    let path = &found.path;
    let content = wanted_content(wanted, found.content());
    let owned = |mode| Permissions { uid: entry.uid, gid: entry.gid, mode };
    match (&found.directory, path.parent()) {
        (Some(_), Some(directory)) => root
            .set_permissions(&directory, owned(DIRECTORY_MODE))
            .map_err(place::failure("set the owner and mode of", &directory, None))?,
        (None, Some(directory)) => {
            if !matches!(root.metadata(&home), Ok(Some(_))) {
                place::make_parents(root, &home)?;
                root.create_directory(&home, owned(DIRECTORY_MODE)).map_err(place::failure("create", &home, None))?;
            }
            root.create_directory(&directory, owned(DIRECTORY_MODE))
                .map_err(place::failure("create", &directory, None))?;
        }
        (_, None) => return Err(lost(format!("`{path}` has no parent"))),
    }
    match &found.file {
        Some(file) if found.content() == Some(&content[..]) => root
            .set_permissions(path, owned(FILE_MODE))
            .map_err(place::failure("set the owner and mode of", path, Some(&file.metadata))),
        Some(place::Observed { node: Node::Directory, .. }) => {
            Err(ApplyError::UnsafeHome { path: path.clone(), why: format!("`{path}` is a directory") })
        }
        Some(place::Observed { node: Node::Unread, .. }) if !wanted.exact => {
            Err(ApplyError::UnsafeHome { path: path.clone(), why: format!("`{path}` is too long to be kept") })
        }
        Some(file) => {
            place::unlock(root, path, file)?;
            place::put(root, path, &content, owned(FILE_MODE), "write", None)
        }
        None => place::put(root, path, &content, owned(FILE_MODE), "write", None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_lines_stay_unless_the_list_is_exact() {
        #[track_caller]
        fn check(exact: bool, keys: &[&str], found: Option<&str>, expected: &str) {
            let wanted = AuthorizedKeys { keys: keys.iter().map(|k| (*k).to_owned()).collect(), exact };
            let content = wanted_content(&wanted, found.map(str::as_bytes));
            assert_eq!(String::from_utf8(content).unwrap(), expected);
        }
        check(false, &["k1"], None, "k1\n");
        check(false, &["k1"], Some("old\n"), "old\nk1\n");
        check(false, &["k1"], Some("old"), "old\nk1\n");
        check(false, &["k1"], Some("# c\nk1\nold\n"), "# c\nk1\nold\n");
        check(false, &["k1"], Some("#k1\n"), "#k1\nk1\n");
        check(false, &[], Some("old"), "old");
        check(true, &["k1", "k2"], Some("old\nk2\n"), "k1\nk2\n");
        check(true, &[], Some("old\n"), "");
    }
}
