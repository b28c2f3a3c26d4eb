//! What a recursive purge keeps: never moved, nor the directories above it, whatever the tree and the patterns.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::trees::{attic, names, purged, repaired};
use super::*;
use crate::resource::directory::Depth;

#[test]
fn what_is_kept_beneath_an_undeclared_directory_stays_with_the_directories_above_it() {
    let mut world = World::new();
    for path in ["a/keepme", "a/stray", "b/x/f", "c/f", "d/e/1.db", "d/e/1.txt", "h/in.keep", "h/i/j", "z/f"] {
        world.write(&format!("/srv/k/{path}"), path);
    }
    super::paths::chmod(&world, "/srv/k", 0o750);
    let keep = ["a/keepme", "b/**", "c/*", "d/e/*.db", "*.keep"];
    let desired = desired(vec![purged("/srv/k", Depth::Recursive, &keep, &[])]);
    let changes = repaired(&mut world, &desired);
    let purged: Vec<&str> =
        changes.iter().filter_map(|line| line.strip_prefix("purge: ")?.split(" (").next()).collect();
    assert_eq!(purged, ["a/stray", "d/e/1.txt", "h/i", "z"]);
    assert_eq!(names(&world, "/srv/k"), ["a", "b", "c", "d", "h"]);
    for path in ["a/keepme", "b/x/f", "c/f", "d/e/1.db", "h/in.keep"] {
        assert_eq!(world.read(&format!("/srv/k/{path}")), path);
    }
    assert!(world.plan(&desired).is_empty());
    // What comes where something is kept is no better than elsewhere; what a path leads through stays though it is empty.
    world.write("/srv/k/h/late", "");
    std::fs::remove_file(world.path("/srv/k/a/keepme")).unwrap();
    std::fs::remove_file(world.path("/srv/k/h/in.keep")).unwrap();
    assert!(world.converge(&desired).converged());
    assert_eq!(names(&world, "/srv/k"), ["a", "b", "c", "d"]);
}

#[test]
fn whose_everything_is_holds_where_something_is_kept() {
    use std::os::unix::fs::MetadataExt;
    let mut world = World::new();
    world.write("/srv/k/h/in.keep", "");
    world.write("/srv/k/h/stray", "");
    super::paths::chmod(&world, "/srv/k", 0o750);
    let mut tree = purged("/srv/k", Depth::Recursive, &["*.keep"], &[]);
    let Desired::Directory(directory::Desired { ensure: Ensure::Present(spec), .. }) = &mut tree.desired else {
        unreachable!("it is a directory");
    };
    let file_mode = Some(Permission::from_bits(0o640));
    spec.rules.as_mut().unwrap().recurse = Some(directory::Recurse { file_mode, ..directory::Recurse::default() });
    let desired = desired(vec![tree]);
    let plan = world.plan(&desired).to_text();
    assert!(plan.contains("recurse h/in.keep") && !plan.contains("recurse h/stray"), "{plan}");
    assert!(world.converge(&desired).converged());
    assert_eq!(names(&world, "/srv/k/h"), ["in.keep"]);
    assert_eq!(std::fs::metadata(world.path("/srv/k/h/in.keep")).unwrap().mode() & 0o777, 0o640);
    assert!(world.plan(&desired).is_empty());
}

#[test]
fn a_directory_with_a_mount_is_left_and_the_rest_of_one_with_something_kept_goes() {
    if !super::faults::with_own_mounts() {
        return;
    }
    let mut world = World::new();
    for path in ["h/in.keep", "h/m/x", "h/stray", "n/m/x"] {
        world.write(&format!("/srv/k/{path}"), "");
    }
    super::paths::chmod(&world, "/srv/k", 0o750);
    let mounts = ["/srv/k/h/m", "/srv/k/n/m"].map(|path| world.path(path));
    for mount in &mounts {
        super::faults::run("mount", &["-t", "tmpfs", "none", super::faults::text(mount)]);
    }
    let desired = desired(vec![purged("/srv/k", Depth::Recursive, &["*.keep"], &[])]);
    drop(world.converge(&desired));
    assert_eq!(names(&world, "/srv/k"), ["h", "n"]);
    assert_eq!(names(&world, "/srv/k/h"), ["in.keep", "m"]);
    let plan = world.plan(&desired).to_text();
    assert!(plan.contains("something is mounted in `n`"), "{plan}");
    mounts.iter().for_each(|mount| super::faults::unmount(mount));
}

const PARTS: [&str; 4] = ["a", "b", "k.keep", "z"];

/// Paths of three parts at most; the last is a file.
fn trees() -> impl Strategy<Value = BTreeSet<String>> {
    let path = prop::collection::vec(prop::sample::select(&PARTS[..]), 1..=4).prop_map(|parts| parts.join("/"));
    prop::collection::btree_set(path, 0..24)
}

fn patterns() -> impl Strategy<Value = Vec<String>> {
    let part = prop::sample::select(vec!["a", "b", "z", "*", "*.keep", "?", "**"]);
    let pattern = prop::collection::vec(part, 1..=4).prop_map(|parts| parts.join("/"));
    prop::collection::vec(pattern, 0..4)
}

/// The same as the documentation says, in another way: part by part.
fn matches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        (["**"], [_, ..]) => true,
        (["**", rest @ ..], _) if !rest.is_empty() => {
            matches(rest, path) || path.split_first().is_some_and(|(_, below)| matches(pattern, below))
        }
        ([first, pattern @ ..], [name, path @ ..]) => {
            let is_match = match *first {
                "*" => true,
                "?" => name.len() == 1,
                "*.keep" => name.ends_with(".keep"),
                text => text == *name,
            };
            is_match && matches(pattern, path)
        }
        (_, _) => false,
    }
}

fn is_kept(patterns: &[String], path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    patterns.iter().any(|pattern| {
        let pattern: Vec<&str> = pattern.split('/').collect();
        // A directory that is kept is kept with everything in it.
        (1..=parts.len()).any(|n| {
            let path = &parts[..n];
            if let [_] = pattern[..] { matches(&pattern, &path[n - 1..]) } else { matches(&pattern, path) }
        })
    })
}

/// All paths beneath a directory, and what is in files.
fn all(top: &Path) -> BTreeSet<(String, Option<String>)> {
    let mut found = BTreeSet::new();
    let mut open = vec![top.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            let content = path.is_file().then(|| std::fs::read_to_string(&path).unwrap());
            if path.is_dir() {
                open.push(path);
            }
            found.insert((name, content));
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_kept_is_ever_moved_and_what_is_planned_is_done(
        tree in trees(),
        patterns in patterns(),
        declared in prop::option::of(prop::sample::select(vec!["a/b", "z", "b/k.keep/a"])),
    ) {
        let mut world = World::new();
        std::fs::create_dir_all(world.path("/srv/k")).unwrap();
        for path in &tree {
            // One path may be another's directory.
            if !tree.iter().any(|other| other.starts_with(&format!("{path}/"))) {
                world.write(&format!("/srv/k/{path}"), path);
            }
        }
        super::paths::chmod(&world, "/srv/k", 0o750);
        let declared = declared.map(|path| format!("/srv/k/{path}"));
        let declared: Vec<&str> = declared.iter().map(String::as_str).collect();
        let keep: Vec<&str> = patterns.iter().map(String::as_str).collect();
        let desired = desired(vec![purged("/srv/k", Depth::Recursive, &keep, &declared)]);
        let top = world.path("/srv/k");
        let before = all(&top);
        let plan = world.plan(&desired);
        let mut planned = BTreeSet::new();
        for change in plan.steps.iter().flat_map(|step| &step.changes) {
            let mut text = String::new();
            plan::change_text(&mut text, change);
            let purged = text.trim().strip_prefix("purge: ").and_then(|rest| rest.split(" (").next().map(str::to_owned));
            planned.extend(purged.map(|path| format!("/srv/k/{path}")));
        }
        let report = world.converge(&desired);
        prop_assert!(report.converged(), "{:?}", report);
        let after = all(&top);
        for (path, content) in &before {
            let whole = format!("/srv/k/{path}");
            let below = format!("{path}/");
            let is_declared = declared.iter().any(|other| *other == whole || other.starts_with(&format!("{whole}/")));
            let holds_kept = before.iter().any(|(other, _)| other.starts_with(&below) && is_kept(&patterns, other));
            let is_way = content.is_none()
                && patterns.iter().any(|pattern| pattern.starts_with(&below) && !path.contains(['*', '?']));
            let stays = is_kept(&patterns, path) || is_declared || holds_kept || is_way;
            // Beneath a directory that stays for itself nothing is declared but what was named.
            prop_assert_eq!(after.contains(&(path.clone(), content.clone())), stays, "{} of {:?}", path, patterns);
        }
        prop_assert!(after.is_subset(&before));
        let moved: BTreeSet<String> = attic(&world).into_iter().map(|(path, _)| path).collect();
        prop_assert_eq!(&planned, &moved);
        prop_assert!(world.plan(&desired).is_empty());
    }
}
