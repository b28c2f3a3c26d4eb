//! What stands at a path once a resource has been put in sync: what a validator is shown before that is so.

use super::place::Ownership;
use super::{AbsPath, Content, Desired, Ensure, Names, Observed, Sighting, file, setting};
use crate::host::exec::view::{Becomes, Candidate};
use crate::host::root::{Permissions, Root};

/// What a step for this would leave at its path; `None` for what owns no path, or whose owner the host does not have. `earlier`
/// is what another step on the same path would leave before it.
pub fn becomes(root: &Root, desired: &Desired, sighting: &Sighting, earlier: Option<&Candidate>) -> Option<Candidate> {
    let names = sighting.names;
    let (path, becomes) = if let Desired::File(file) = desired {
        (&file.path, of_file(root, file, names)?)
    } else if let Desired::Directory(directory) = desired {
        let becomes = match &directory.ensure {
            Ensure::Present(spec) => Becomes::Directory(permissions(&directory.path, &spec.ownership, names)?),
            Ensure::Absent => Becomes::Absent,
        };
        (&directory.path, becomes)
    } else if let Desired::Symlink(symlink) = desired {
        let becomes = match &symlink.ensure {
            Ensure::Present(target) => Becomes::Symlink(target.clone()),
            Ensure::Absent => Becomes::Absent,
        };
        (&symlink.path, becomes)
    } else if let (Desired::Setting(setting), Observed::Setting(seen)) = (desired, &sighting.observed) {
        let earlier = match earlier.map(|earlier| &earlier.becomes) {
            Some(Becomes::File { content, .. }) => Some(content.bytes().ok()?),
            Some(Becomes::Directory(_) | Becomes::Symlink(_) | Becomes::Absent) | None => None,
        };
        let (content, permissions) = setting::outcome(setting, seen, earlier.as_deref(), names)?;
        // A label that cannot be told is told of by the step itself.
        let label = root.label_of_successor(&setting.path).unwrap_or_default();
        (&setting.path, Becomes::File { content: Content::new(&content), permissions, label })
    } else {
        return None;
    };
    Some(Candidate { path: path.clone(), becomes })
}

fn of_file(root: &Root, file: &file::Desired, names: Names) -> Option<Becomes> {
    let Ensure::Present(spec) = &file.ensure else { return Some(Becomes::Absent) };
    // A label that cannot be told is told of by the step itself.
    let label = root.label_of_successor(&file.path).unwrap_or_default();
    let permissions = permissions(&file.path, &spec.ownership, names)?;
    Some(Becomes::File { content: spec.content.clone(), permissions, label })
}

fn permissions(path: &AbsPath, ownership: &Ownership, names: Names) -> Option<Permissions> {
    ownership.permissions(path, names).ok()
}
