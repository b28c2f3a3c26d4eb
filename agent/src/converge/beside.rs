//! What a package manager laid beside a declared file: the package's own version of it, for a person to compare, or the one that was
//! there before.
//!
//! It is told, and changes nothing: the policy says what the file is. Each directory is listed once, and the package database is
//! read only where something was found.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::plan::visible;
use crate::host::packages::owner::{self, Owner};
use crate::host::root::Root;
use crate::host::tree;
use crate::policy::DesiredState;
use crate::resource::{AbsPath, Desired, Kind, Resource, ResourceId};

/// How dpkg, ucf and rpm name what they lay beside a file.
const SUFFIXES: [(&str, Version); 11] = [
    (".dpkg-dist", Version::Package),
    (".dpkg-new", Version::Package),
    (".dpkg-inst", Version::Package),
    (".dpkg-old", Version::Earlier),
    (".dpkg-bak", Version::Earlier),
    (".ucf-dist", Version::Package),
    (".ucf-new", Version::Package),
    (".ucf-old", Version::Earlier),
    (".rpmnew", Version::Package),
    (".rpmsave", Version::Earlier),
    (".rpmorig", Version::Earlier),
];

/// More than anybody reads: the rest is left out.
const MOST: usize = 1000;

/// Another version of a declared file, beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// What declares the file.
    pub resource: ResourceId,
    /// Where the other version is.
    pub path: AbsPath,
    /// Which version it is.
    pub version: Version,
    /// The packages that the declared file belongs to.
    pub owners: Vec<Owner>,
    /// Why they are not known, if so.
    pub owners_unknown: Option<String>,
}

/// Whose version of a file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// The one that the package brought.
    Package,
    /// The one that was there before the package's.
    Earlier,
}

impl std::fmt::Display for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = visible(&self.path.to_string());
        match self.version {
            Version::Package => write!(f, "{path} is the package's version of it; ")?,
            Version::Earlier => write!(f, "{path} is what was there before the package's version; ")?,
        }
        match (self.owners.as_slice(), &self.owners_unknown) {
            (_, Some(why)) => write!(f, "which package has it is not known: {}", visible(why)),
            ([], None) => write!(f, "no package has it"),
            (owners, None) => {
                let owners: Vec<String> = owners.iter().map(ToString::to_string).collect();
                write!(f, "it belongs to {}", owners.join(", "))
            }
        }
    }
}

/// Looks beside every file that is declared, or is edited by a setting.
pub fn look(root: &Root, desired: &DesiredState) -> Vec<Beside> {
    look_at(root, desired, desired.resources().iter())
}

/// As [`look`], beside the files of these resources.
pub fn look_at<'a>(root: &Root, desired: &DesiredState, resources: impl Iterator<Item = &'a Resource>) -> Vec<Beside> {
    // By bytes: comparing paths is slow, and most files have the directory of the file before them.
    let mut directories: HashSet<&OsStr> = HashSet::new();
    let mut last = None;
    let mut settings: BTreeMap<&AbsPath, &ResourceId> = BTreeMap::new();
    let mut only: HashSet<&ResourceId> = HashSet::new();
    for resource in resources {
        let Some(path) = file_of(resource) else { continue };
        if resource.id.kind == Kind::Setting {
            settings.entry(path).or_insert(&resource.id);
        }
        only.insert(&resource.id);
        let directory = path.as_path().parent().map(Path::as_os_str);
        if directory != last {
            directories.extend(directory);
            last = directory;
        }
    }
    // Whoever fills a directory decides how many names there are: what no resource is about is dropped as it is read, and of the
    // rest the first ones are kept.
    let mut found: BTreeMap<(&ResourceId, AbsPath), (AbsPath, Version)> = BTreeMap::new();
    for directory in directories {
        for_siblings(root, Path::new(directory), &mut |path, file, version| {
            let by_name = ResourceId::new(Kind::File, file.shared());
            let resource = only.get(&by_name).copied().or_else(|| settings.get(&file).copied());
            // What the policy itself declares is nobody's leftover.
            let is_declared = || desired.get(&ResourceId::new(Kind::File, path.shared())).is_some();
            if let Some(resource) = resource.filter(|_| !is_declared()) {
                found.insert((resource, path), (file, version));
                if found.len() > MOST {
                    found.pop_last();
                }
            }
        });
    }
    name_owners(root, found)
}

fn name_owners(root: &Root, found: BTreeMap<(&ResourceId, AbsPath), (AbsPath, Version)>) -> Vec<Beside> {
    if found.is_empty() {
        return Vec::new();
    }
    let files: BTreeSet<AbsPath> = found.values().map(|(file, _)| file.clone()).collect();
    let recorded = owner::recorded(root, &files);
    let with_owners = |((resource, path), (file, version)): ((&ResourceId, AbsPath), (AbsPath, Version))| {
        let (owners, owners_unknown) = match &recorded {
            Ok(owners) => (owners.get(&file).cloned().unwrap_or_default(), None),
            Err(why) => (Vec::new(), Some(why.clone())),
        };
        Beside { resource: resource.clone(), path, version, owners, owners_unknown }
    };
    found.into_iter().map(with_owners).collect()
}

/// The file that a resource declares or edits.
pub fn file_of(resource: &Resource) -> Option<&AbsPath> {
    if let Desired::File(file) = &resource.desired {
        return file.ensure.present().map(|_| &file.path);
    }
    let Desired::Setting(setting) = &resource.desired else { return None };
    Some(&setting.path)
}

/// Shows what is in a directory and named as another version of something: its path, that of what it is a version of, and which it
/// is.
fn for_siblings(root: &Root, directory: &Path, visit: &mut dyn FnMut(AbsPath, AbsPath, Version)) {
    let Some(directory) = directory.to_str().and_then(|directory| AbsPath::new(directory).ok()) else { return };
    let listed = tree::names(root, &directory, &mut |name| {
        // A name that is no text belongs to no declared file.
        let Ok(name) = std::str::from_utf8(name.as_bytes()) else { return };
        let Some((base, version)) = version_of(name) else { return };
        if let (Ok(path), Ok(file)) = (directory.join(name), directory.join(base)) {
            visit(path, file, version);
        }
    });
    if let Err(error) = listed {
        // The files in it cannot be told either, and say so.
        tracing::debug!(%directory, %error, "cannot look for other versions");
    }
}

fn version_of(name: &str) -> Option<(&str, Version)> {
    let (base, suffix) = name.split_at(name.rfind('.').filter(|at| *at > 0)?);
    SUFFIXES.iter().find(|(known, _)| *known == suffix).map(|(_, version)| (base, *version))
}
