//! Files of the agent's own that say to the next boot what a resource says to the running kernel, or to a package manager where
//! packages come from. Each belongs to one resource, so that it is put and removed as a whole, and what belongs to none can be
//! told by its name.

use std::sync::Arc;

use super::place::{self, Ownership};
use super::{
    AbsPath, Action, ApplyError, Change, Content, Ensure, Kind, Mode, Names, Observation, Principal, ResourceId,
    Verdict, file,
};
use crate::host::root::Root;

/// Where they are, by kind: a directory, and what their names begin with.
const PLACES: [(Kind, &str, &str); 3] = [
    (Kind::Sysctl, "/etc/sysctl.d", "60-rekindle-"),
    (Kind::KernelModule, "/etc/modprobe.d", "60-rekindle-"),
    (Kind::KernelModule, "/etc/modules-load.d", "60-rekindle-"),
];
const SUFFIX: &str = ".conf";
/// More names than any of these directories holds.
const MAX_NAMES: usize = 10_000;

/// A resource's name in a file's: a slash cannot be in one, and a colon is in no resource's.
pub(super) fn file_name(prefix: &str, name: &str) -> String {
    format!("{prefix}{}{SUFFIX}", name.replace('/', ":"))
}

/// A file of the agent's own with this content.
pub(super) fn present(path: AbsPath, content: impl AsRef<[u8]>) -> file::Desired {
    let ownership = Ownership { owner: Principal::Agent, group: Principal::Agent, mode: Mode::from_bits(0o644) };
    let content = Content::new(content.as_ref());
    let spec = file::Spec { content, ownership: Arc::new(ownership), care: file::Care::default() };
    file::Desired { path, ensure: Ensure::Present(spec) }
}

/// No file there.
pub(super) fn absent(path: AbsPath) -> file::Desired {
    file::Desired { path, ensure: Ensure::Absent }
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    observed: Observation<place::Observed>,
    missing_parents: Vec<AbsPath>,
    /// Whose it should be.
    names: Names,
}

fn names(root: &Root) -> Names {
    let (uid, gid) = root.owner();
    Names { uid: Some(uid), gid: Some(gid) }
}

/// Looks at the files of a resource.
pub(super) fn observe(root: &Root, files: &[file::Desired]) -> Vec<Seen> {
    files.iter().map(|file| observe_one(root, file)).collect()
}

fn observe_one(root: &Root, file: &file::Desired) -> Seen {
    let mut observed = file::observe(root, file);
    let mut missing_parents = Vec::new();
    if observed == Observation::Absent {
        match place::missing_parents(root, &file.path) {
            Ok(missing) => missing_parents = missing,
            Err(e) => observed = Observation::Unknown(format!("cannot look for the parents of `{}`: {e}", file.path)),
        }
    }
    Seen { observed, missing_parents, names: names(root) }
}

/// How the files of a resource differ.
#[derive(Debug, Default)]
pub(super) struct Differences {
    /// What does.
    pub(super) changes: Vec<Change>,
    /// Why the first of them that cannot be told cannot be. No step may be taken then: it could keep nothing of that one.
    pub(super) unknown: Option<String>,
}

/// Compares.
pub(super) fn differences(files: &[file::Desired], seen: &[Seen]) -> Differences {
    let mut differences = Differences::default();
    for (file, seen) in files.iter().zip(seen) {
        let path = || Some(file.path.to_string());
        match file::diff(file, &seen.observed, seen.names, &seen.missing_parents) {
            Verdict::InSync => {}
            Verdict::Indeterminate(why) => drop(differences.unknown.get_or_insert(why)),
            Verdict::Drift(drift) => match drift.action {
                Action::Create => differences.changes.push(Change::value("file", None, path())),
                Action::Remove => differences.changes.push(Change::value("file", path(), None)),
                Action::Update | Action::Run | Action::Report | Action::Waive => {
                    let named = |change: Change| Change { attribute: format!("file.{}", change.attribute), ..change };
                    differences.changes.extend(drift.changes.into_iter().map(named));
                }
            },
        }
    }
    differences
}

/// Puts or removes the files, in their order, and leaves what is as it should be.
pub(super) fn apply(root: &Root, files: &[file::Desired], seen: &[Seen]) -> Result<(), ApplyError> {
    for (file, seen) in files.iter().zip(seen) {
        match file::diff(file, &seen.observed, seen.names, &seen.missing_parents) {
            Verdict::InSync => {}
            Verdict::Drift(_) | Verdict::Indeterminate(_) => file::apply(root, file, &seen.observed, seen.names)?,
        }
    }
    Ok(())
}

/// The bytes that [`apply`] would overwrite or remove, of each file that has any.
pub(super) fn replaced<'s>(files: &[file::Desired], seen: &'s [Seen]) -> Vec<&'s [u8]> {
    let replaced = |(file, seen): (&file::Desired, &'s Seen)| {
        let Observation::Present(place::Observed { node: place::Node::File(found), .. }) = &seen.observed else {
            return None;
        };
        match &file.ensure {
            Ensure::Present(spec) if spec.content.is(found) => None,
            Ensure::Present(_) | Ensure::Absent => Some(found.as_slice()),
        }
    };
    files.iter().zip(seen).filter_map(replaced).collect()
}

/// A file of the agent's own whose resource is no longer declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The resource that it belonged to.
    pub resource: ResourceId,
    /// Where it is.
    pub path: AbsPath,
    /// What it holds.
    pub content: Vec<u8>,
}

/// Finds them. A directory that cannot be read has none that we know of.
pub fn strays(root: &Root, is_declared: &dyn Fn(&ResourceId) -> bool) -> Vec<Stray> {
    let mut strays = Vec::new();
    for (kind, directory, prefix) in PLACES {
        let names = AbsPath::new(directory).map(|directory| (root.list_names(&directory, MAX_NAMES), directory));
        let Ok((Ok(Some(names)), directory)) = names else { continue };
        for name in names.iter().filter_map(|name| name.to_str()) {
            let Some(of) = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(SUFFIX)) else { continue };
            let resource = ResourceId::new(kind, of.replace(':', "/"));
            if is_declared(&resource) {
                continue;
            }
            let Ok(path) = directory.join(name) else { continue };
            if let Ok(Some((content, _))) = root.read(&path, place::MAX_CONTENT) {
                strays.push(Stray { resource, path, content });
            }
        }
    }
    strays
}

/// Removes one.
pub fn remove_stray(root: &Root, stray: &Stray) -> Result<(), ApplyError> {
    root.remove_file(&stray.path).map(drop).map_err(place::failure("remove", &stray.path, None))
}
