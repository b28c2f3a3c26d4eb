//! What can be put right before anything else is looked at closely.

use std::collections::{BTreeSet, HashMap};

use super::apply;
use crate::host::Host;
use crate::policy::DesiredState;
use crate::resource::{Kind, Resource, ResourceId, Snapshot, Verdict};

/// Whether a kind owns a path and nothing else: putting one right runs no program and waits for nobody.
pub fn is_path(kind: Kind) -> bool {
    match kind {
        Kind::File | Kind::Directory | Kind::Symlink | Kind::Setting => true,
        Kind::User
        | Kind::Group
        | Kind::Package
        | Kind::Service
        | Kind::Sysctl
        | Kind::Repository
        | Kind::KernelModule
        | Kind::Mount
        | Kind::Command
        | Kind::Check
        | Kind::Sweep => false,
    }
}

/// The files, directories and symbolic links that do not wait, however indirectly, for a user, group, package or service that
/// is out of sync or could not be observed. Only what a path requires is looked at; nothing is changed.
pub fn free_paths(host: &Host, desired: &DesiredState) -> BTreeSet<ResourceId> {
    let mut needed = BTreeSet::new();
    for resource in desired.resources().iter().filter(|resource| is_path(resource.id.kind)) {
        apply::add_requirements(desired, resource, &mut needed);
    }
    let mut snapshot = Snapshot::new();
    // Requirements come before what requires them.
    let mut is_free: HashMap<&ResourceId, bool> = HashMap::new();
    for resource in desired.resources() {
        let waits = resource.requires.iter().any(|id| is_free.get(id) != Some(&true));
        let free = !waits && (is_path(resource.id.kind) || is_in_sync(host, &mut snapshot, desired, resource, &needed));
        is_free.insert(&resource.id, free);
    }
    let free = is_free.into_iter().filter(|(id, free)| *free && is_path(id.kind));
    free.map(|(id, _)| id.clone()).collect()
}

fn is_in_sync(
    host: &Host,
    snapshot: &mut Snapshot,
    desired: &DesiredState,
    resource: &Resource,
    needed: &BTreeSet<ResourceId>,
) -> bool {
    // Nothing is run before the agent is ready.
    !matches!(resource.id.kind, Kind::Command | Kind::Check | Kind::Sweep)
        && needed.contains(&resource.id)
        && apply::look(host, snapshot, desired, resource).1 == Verdict::InSync
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_no_program_is_run_for() {
        let paths: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| is_path(*kind)).collect();
        assert_eq!(paths, [Kind::File, Kind::Directory, Kind::Symlink, Kind::Setting]);
    }
}
