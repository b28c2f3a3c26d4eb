//! What a policy declares beneath each directory that has rules for what is there.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::resource::{AbsPath, Desired, Ensure, Resource, directory};

/// Directories that have another name on most hosts. Whatever is declared under one name is declared under the other: what is
/// spared needlessly does less harm than what is removed and made again for ever.
const ALIASES: [(&str, &str); 6] = [
    ("/var/run/", "/run/"),
    ("/var/lock/", "/run/lock/"),
    ("/bin/", "/usr/bin/"),
    ("/sbin/", "/usr/sbin/"),
    ("/lib/", "/usr/lib/"),
    ("/lib64/", "/usr/lib64/"),
];

/// Tells each directory with rules what is declared beneath it. Their names are those of the resources.
pub(in crate::policy) fn declare(resources: &mut [Resource]) {
    let has_rules = |resource: &Resource| matches!(&resource.desired, Desired::Directory(d) if d.rules().is_some());
    if !resources.iter().any(has_rules) {
        return;
    }
    let mut paths: Vec<Arc<str>> = Vec::new();
    let mut directories: Vec<Arc<str>> = Vec::new();
    let mut with_purge: Vec<Arc<str>> = Vec::new();
    let mut with_recurse: Vec<Arc<str>> = Vec::new();
    for resource in resources.iter() {
        paths.extend(claims(resource));
        let Desired::Directory(directory) = &resource.desired else { continue };
        directories.push(directory.path.shared());
        let Some(rules) = directory.rules() else { continue };
        with_purge.extend(rules.purge.is_some().then(|| directory.path.shared()));
        with_recurse.extend(rules.recurse.is_some().then(|| directory.path.shared()));
    }
    for list in [&mut paths, &mut directories, &mut with_purge, &mut with_recurse] {
        let aliases: Vec<Arc<str>> = list.iter().flat_map(|path| aliases(path)).collect();
        list.extend(aliases);
        list.sort_unstable();
        list.dedup();
    }
    for resource in resources.iter_mut() {
        let Desired::Directory(directory::Desired { path, ensure: Ensure::Present(spec) }) = &mut resource.desired
        else {
            continue;
        };
        let Some(rules) = &mut spec.rules else { continue };
        let prefix = if path.as_path() == std::path::Path::new("/") { "/".to_owned() } else { format!("{path}/") };
        rules.declared = directory::Declared {
            paths: beneath(&paths, &prefix).into(),
            with_purge: beneath(&with_purge, &prefix).into(),
            with_recurse: beneath(&with_recurse, &prefix).into(),
            inner: Box::default(),
        };
        if rules.purge.as_ref().is_some_and(|purge| purge.depth == directory::Depth::Recursive) {
            let kept = rules.purge.iter().flat_map(directory::Purge::directories);
            // A policy is text, and so are its patterns.
            let kept = kept.filter_map(|path| AbsPath::new(&format!("{prefix}{}", str::from_utf8(path).ok()?)).ok());
            rules.declared.inner = inner(&rules.declared, beneath(&directories, &prefix), kept, &prefix);
        }
    }
}

/// Paths that are a resource's own.
fn claims(resource: &Resource) -> Vec<Arc<str>> {
    let mut paths: Vec<Arc<str>> = resource.watched().paths.iter().map(AbsPath::shared).collect();
    if let Desired::User(user) = &resource.desired
        && let Ensure::Present(spec) = &user.ensure
    {
        paths.extend(spec.home.as_ref().map(AbsPath::shared));
    }
    paths
}

fn aliases(path: &str) -> impl Iterator<Item = Arc<str>> {
    ALIASES.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).filter_map(move |(from, to)| {
        let rest = path.strip_prefix(from)?;
        Some(format!("{to}{rest}").into())
    })
}

/// The part of a sorted list that begins with a text.
fn beneath<'p>(sorted: &'p [Arc<str>], prefix: &str) -> &'p [Arc<str>] {
    let first = sorted.partition_point(|path| &**path < prefix);
    let rest = sorted.get(first..).unwrap_or_default();
    let n = rest.iter().take_while(|path| path.starts_with(prefix)).count();
    rest.get(..n).unwrap_or_default()
}

/// The directories beneath in which the rule holds as well: those that are declared, those above something declared, and those
/// that stay because they are named on the way to something that is kept.
fn inner(
    declared: &directory::Declared,
    directories: &[Arc<str>],
    kept: impl Iterator<Item = AbsPath>,
    prefix: &str,
) -> Box<[AbsPath]> {
    let mut inner: BTreeSet<AbsPath> = directories.iter().filter_map(|path| AbsPath::from_shared(path).ok()).collect();
    for path in &declared.paths {
        let mut above = AbsPath::from_shared(path).ok().and_then(|path| path.parent());
        while let Some(directory) = above {
            if !directory.as_path().as_os_str().as_encoded_bytes().starts_with(prefix.as_bytes()) {
                break;
            }
            above = directory.parent();
            if !inner.insert(directory) {
                break;
            }
        }
    }
    inner.extend(kept);
    let decides_itself =
        |path: &AbsPath| declared.with_purge.iter().any(|own| path.as_path().starts_with(std::path::Path::new(&**own)));
    inner.into_iter().filter(|path| !decides_itself(path)).collect()
}
