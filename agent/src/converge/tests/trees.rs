//! Rules for what is beneath a directory: what nobody declares goes to the attic, and the rest has one owner.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::attributes::as_root;
use super::*;
use crate::resource::directory::{Declared, Depth, Purge, Recurse, Rules};

const LIMIT: u64 = 1000;

/// A directory with rules, beneath which these paths are declared.
fn ruled(path: &str, purge: Option<Purge>, recurse: Option<Recurse>, declared: &[&str]) -> Resource {
    let mut paths: Vec<Arc<str>> = declared.iter().map(|path| Arc::from(*path)).collect();
    paths.sort();
    let declared = Declared { paths: paths.into(), ..Declared::default() };
    let mut resource = a_directory(path);
    let Desired::Directory(directory::Desired { ensure: Ensure::Present(spec), .. }) = &mut resource.desired else {
        unreachable!("it is a directory");
    };
    spec.rules = Some(Box::new(Rules { purge, recurse, declared }));
    resource
}

pub(super) fn purged(path: &str, depth: Depth, keep: &[&str], declared: &[&str]) -> Resource {
    let keep = keep.iter().map(|text| Box::from(*text)).collect();
    ruled(path, Some(Purge { depth, keep, limit: LIMIT }), None, declared)
}

/// Converges, and returns what was changed, line by line.
pub(super) fn repaired(world: &mut World, desired: &DesiredState) -> Vec<String> {
    let report = world.converge(desired);
    let Outcome::Changed { changes, .. } = &report.resources[0].outcome else { panic!("{report:?}") };
    let mut text = String::new();
    changes.iter().for_each(|change| plan::change_text(&mut text, change));
    text.lines().map(|line| line.trim().to_owned()).collect()
}

pub(super) fn names(world: &World, path: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(world.path(path))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// What is kept: the path that it had, and its content.
pub(super) fn attic(world: &World) -> Vec<(String, PathBuf)> {
    let mut kept = Vec::new();
    let Ok(batches) = std::fs::read_dir(world.state.path().join("attic")) else { return kept };
    for batch in batches {
        let batch = batch.unwrap().path();
        for line in std::fs::read_to_string(batch.join("manifest")).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let at = batch.join(line["kept_as"].to_string());
            if std::fs::symlink_metadata(&at).is_ok() {
                kept.push((line["path"].as_str().unwrap().to_owned(), at));
            }
        }
    }
    kept.sort();
    kept
}

fn explain(report: &RunReport) -> String {
    let outcome = &report.resources[0].outcome;
    if let Outcome::Reported { why: text, .. } | Outcome::Indeterminate { reason: text } = outcome {
        text.clone()
    } else {
        panic!("{outcome:?}")
    }
}

#[test]
fn what_nobody_declares_is_moved_to_the_attic() {
    let mut world = World::new();
    world.write("/etc/x.d/declared", "declared");
    world.write("/etc/x.d/kept.local", "kept");
    world.write("/etc/x.d/evil", "evil\n");
    world.write("/etc/x.d/other/below", "below");
    super::paths::chmod(&world, "/etc/x.d", 0o750);
    super::paths::link(&world, "/etc/x.d/link", "/etc/x.d/declared");
    super::paths::fifo(&world, "/etc/x.d/fifo");
    let bytes = world.path("/etc/x.d").join(OsStr::from_bytes(b"\xff\n"));
    std::fs::hard_link(world.path("/etc/x.d/evil"), &bytes).unwrap();
    let desired = desired(vec![purged("/etc/x.d", Depth::Entries, &["*.local"], &["/etc/x.d/declared"])]);
    let plan = world.plan(&desired).to_text();
    assert!(plan.contains("purge: evil (file, 5 bytes, "), "{plan}");
    assert!(plan.contains("purge: link (symlink to /etc/x.d/declared) → (none)"), "{plan}");
    assert!(plan.contains("purge: \\xff\\x0a (file, 5 bytes, "), "{plan}");
    assert!(!plan.contains("other"), "{plan}");
    let changes = repaired(&mut world, &desired);
    assert!(changes.last().unwrap().starts_with("kept: (none) → "), "{changes:?}");
    assert_eq!(names(&world, "/etc/x.d"), ["declared", "kept.local", "other"]);
    let kept = attic(&world);
    let paths: Vec<&str> = kept.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/etc/x.d/\\xff\\x0a", "/etc/x.d/evil", "/etc/x.d/fifo", "/etc/x.d/link"]);
    assert_eq!(std::fs::read_to_string(&kept[1].1).unwrap(), "evil\n");
    assert!(world.converge(&desired).resources.iter().all(|r| r.outcome == Outcome::Unchanged));
}

#[test]
fn a_recursive_purge_removes_directories_whole_and_no_declared_path() {
    let mut world = World::new();
    for path in ["a/declared", "a/undeclared", "b/c/d", "own/x", "cache/deep/y"] {
        world.write(&format!("/srv/app/{path}"), path);
    }
    super::paths::chmod(&world, "/srv/app", 0o750);
    let mut tree = purged("/srv/app", Depth::Recursive, &["cache"], &["/srv/app/a/declared", "/srv/app/own"]);
    let Desired::Directory(directory::Desired { ensure: Ensure::Present(spec), .. }) = &mut tree.desired else {
        return;
    };
    spec.rules.as_mut().unwrap().declared.with_purge = Box::new(["/srv/app/own".into()]);
    let desired = desired(vec![tree]);
    let changes = repaired(&mut world, &desired);
    assert!(changes[0].starts_with("purge: a/undeclared (file, 12 bytes"), "{changes:?}");
    assert!(changes[1].starts_with("purge: b (directory with 2 entries"), "{changes:?}");
    assert_eq!(names(&world, "/srv/app"), ["a", "cache", "own"]);
    assert_eq!(names(&world, "/srv/app/a"), ["declared"]);
    let kept = attic(&world);
    assert_eq!(std::fs::read_to_string(kept[1].1.join("c/d")).unwrap(), "b/c/d");
}

#[test]
fn more_than_the_limit_is_reported_and_left() {
    let mut world = World::new();
    for i in 0..40 {
        world.write(&format!("/srv/app/{}/{i}", i / 10), "");
    }
    super::paths::chmod(&world, "/srv/app", 0o750);
    let mut tree = purged("/srv/app", Depth::Recursive, &[], &[]);
    let set = |tree: &mut Resource, limit| {
        let Desired::Directory(directory::Desired { ensure: Ensure::Present(spec), .. }) = &mut tree.desired else {
            return;
        };
        spec.rules.as_mut().unwrap().purge.as_mut().unwrap().limit = limit;
    };
    set(&mut tree, 43);
    let report = world.converge(&desired(vec![tree.clone()]));
    assert_eq!(explain(&report), "44 entries would be removed, more than the purge_limit of 43");
    assert_eq!(names(&world, "/srv/app").len(), 4);
    assert!(world.plan(&desired(vec![tree.clone()])).to_text().contains("left as it is: 44 entries would be"));
    set(&mut tree, 44);
    assert!(world.converge(&desired(vec![tree])).converged());
    assert_eq!(names(&world, "/srv/app").len(), 0);
}

#[test]
fn a_plan_names_a_hundred_and_counts_the_rest() {
    let mut world = World::new();
    for i in 0..250 {
        world.write(&format!("/srv/app/{i:03}"), "");
    }
    super::paths::chmod(&world, "/srv/app", 0o750);
    let desired = desired(vec![purged("/srv/app", Depth::Entries, &[], &[])]);
    let plan = world.plan(&desired).to_text();
    assert_eq!(plan.matches("purge: ").count(), 101);
    assert!(plan.contains("purge: and 150 more → (none)"), "{plan}");
    assert!(world.converge(&desired).converged());
}

#[test]
fn a_purge_does_not_go_through_a_link() {
    let mut world = World::new();
    world.write("/run/app/x", "");
    std::fs::create_dir(world.path("/var")).unwrap();
    super::paths::link(&world, "/var/run", "/run");
    super::paths::chmod(&world, "/run/app", 0o750);
    let report = world.converge(&desired(vec![purged("/var/run/app", Depth::Entries, &[], &[])]));
    assert!(explain(&report).contains("is declared under its real path, `/run/app`"), "{}", explain(&report));
    assert_eq!(names(&world, "/run/app"), ["x"]);
}

#[test]
fn what_is_mounted_beneath_is_neither_entered_nor_moved() {
    if !super::faults::with_own_mounts() {
        return;
    }
    let mut world = World::new();
    world.write("/srv/app/inner/deep/x", "");
    world.write("/srv/app/loose", "");
    super::paths::chmod(&world, "/srv/app", 0o750);
    let mount = world.path("/srv/app/inner/deep");
    super::faults::run("mount", &["-t", "tmpfs", "none", super::faults::text(&mount)]);
    world.write("/srv/app/inner/deep/mounted", "");
    let desired = desired(vec![purged("/srv/app", Depth::Recursive, &[], &[])]);
    let first = world.converge(&desired);
    assert!(first.resources[0].overtaken, "one is left, so another look is due: {first:?}");
    assert_eq!(names(&world, "/srv/app"), ["inner"]);
    let report = world.converge(&desired);
    assert_eq!(explain(&report), "something is mounted in `inner`, which is not declared: unmount it first");
    assert_eq!(names(&world, "/srv/app/inner/deep"), ["mounted"]);
    super::faults::unmount(&mount);
    assert!(world.converge(&desired).converged());
    assert_eq!(names(&world, "/srv/app"), [""; 0]);
}

#[test]
fn on_another_mount_the_attic_is_at_its_top() {
    if !super::faults::with_own_mounts() {
        return;
    }
    let mut world = World::new();
    std::fs::create_dir(world.path("/mnt")).unwrap();
    super::faults::run("mount", &["-t", "tmpfs", "none", super::faults::text(&world.path("/mnt"))]);
    world.write("/mnt/app/x", "evil");
    super::paths::chmod(&world, "/mnt/app", 0o750);
    super::paths::chmod(&world, "/mnt", 0o750);
    let desired = desired(vec![
        purged("/mnt", Depth::Recursive, &[], &["/mnt/app"]),
        purged("/mnt/app", Depth::Entries, &[], &[]),
    ]);
    assert!(world.converge(&desired).converged());
    assert_eq!(names(&world, "/mnt"), [".rekindle-attic", "app"], "the attic itself is not purged");
    let batch = names(&world, "/mnt/.rekindle-attic").remove(0);
    assert_eq!(world.read(&format!("/mnt/.rekindle-attic/{batch}/0")), "evil");
    assert!(world.converge(&desired).resources.iter().all(|r| r.outcome == Outcome::Unchanged));
    super::faults::unmount(&world.path("/mnt"));
}

#[test]
fn whose_everything_is_follows_no_link_and_spares_what_is_declared() {
    if !as_root() {
        return;
    }
    use std::os::unix::fs::{MetadataExt, chown};
    let mut world = World::new();
    for path in ["f", "sub/g", "own/h"] {
        world.write(&format!("/srv/app/{path}"), "");
    }
    world.write("/srv/outside", "");
    super::paths::link(&world, "/srv/app/link", "/srv/outside");
    super::paths::chmod(&world, "/srv/app", 0o750);
    let mode = |bits| Some(Permission::from_bits(bits));
    let rule =
        Recurse { owner: Some(Principal::Id(1234)), group: None, file_mode: mode(0o640), directory_mode: mode(0o2750) };
    let desired = desired(vec![ruled("/srv/app", None, Some(rule), &["/srv/app/own/h"])]);
    let plan = world.plan(&desired).to_text();
    assert!(plan.contains("recurse sub/g: 0:0 0644 → 1234:0 0640"), "{plan}");
    assert_eq!(repaired(&mut world, &desired).len(), 4);
    let root = world.root.path().to_owned();
    let look = |path: &str| {
        let metadata = std::fs::symlink_metadata(root.join(path.trim_start_matches('/'))).unwrap();
        (metadata.uid(), metadata.mode() & 0o7777)
    };
    assert_eq!(look("/srv/app"), (0, 0o750));
    assert_eq!(look("/srv/app/sub"), (1234, 0o2750));
    assert_eq!(look("/srv/app/sub/g"), (1234, 0o640));
    assert_eq!(look("/srv/app/own"), (1234, 0o2750));
    assert_eq!(look("/srv/app/own/h"), (0, 0o644));
    assert_eq!(look("/srv/outside"), (0, 0o644));
    assert_eq!(look("/srv/app/link").0, 0);
    // Somebody else's file under a second name, where others may write, is not given away.
    let open = world.path("/srv/app/sub");
    chown(&open, Some(1234), None).unwrap();
    std::fs::hard_link(world.path("/srv/outside"), open.join("shadow")).unwrap();
    let report = world.converge(&desired);
    let (error, _) = error_of(&report, 0);
    assert!(error.contains("`sub/shadow`: it has several names"), "{error}");
    assert_eq!(look("/srv/outside").0, 0);
}

#[test]
fn the_root_of_what_is_mounted_beneath_is_nobody_elses_to_rule() {
    if !as_root() || !super::faults::with_own_mounts() {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let mut world = World::new();
    for path in ["m/x", "sub/g"] {
        world.write(&format!("/srv/r/{path}"), "");
    }
    super::paths::chmod(&world, "/srv/r", 0o750);
    let mount = world.path("/srv/r/m");
    super::faults::run("mount", &["-t", "tmpfs", "-o", "mode=1777", "none", super::faults::text(&mount)]);
    let one = world.path("/srv/r/sub/g");
    super::faults::run("mount", &["--bind", super::faults::text(&one), super::faults::text(&one)]);
    let directory_mode = Some(Permission::from_bits(0o750));
    let rule = Recurse {
        owner: Some(Principal::Id(65534)),
        group: Some(Principal::Id(4)),
        directory_mode,
        ..Recurse::default()
    };
    let desired = desired(vec![ruled("/srv/r", None, Some(rule), &[])]);
    let plan = world.plan(&desired).to_text();
    assert!(
        plan.contains("recurse sub: ") && !plan.contains("recurse m: ") && !plan.contains("recurse sub/g"),
        "{plan}"
    );
    assert!(world.converge(&desired).converged());
    let look = |path: &Path| {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    assert_eq!(look(&mount), (0, 0, 0o1777));
    assert_eq!(look(&one), (0, 0, 0o644));
    assert!(world.plan(&desired).is_empty());
    super::faults::unmount(&one);
    super::faults::unmount(&mount);
}

/// Bytes that this process holds in memory at most since it started.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_hundred_thousand_entries_take_no_more_memory_than_a_few() {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut world = World::new();
    world.host.root = crate::host::root::Root::open(dir.path()).unwrap();
    std::fs::create_dir(dir.path().join("t")).unwrap();
    for i in 0..100 {
        std::fs::create_dir(dir.path().join(format!("t/{i}"))).unwrap();
        for j in 0..1000 {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                dir.path().join(format!("t/{i}/{j}")),
                rustix::fs::FileType::RegularFile,
                rustix::fs::Mode::from_raw_mode(0o666),
                0,
            )
            .unwrap();
        }
    }
    let rule = Recurse { file_mode: Some(Permission::from_bits(0o640)), ..Recurse::default() };
    let tree = || {
        let purge = Purge { depth: Depth::Entries, keep: Box::default(), limit: LIMIT };
        ruled("/t", Some(purge), Some(rule.clone()), &[])
    };
    // Whatever the first step of a process needs is not what is measured.
    std::fs::create_dir(dir.path().join("w")).unwrap();
    assert!(world.converge(&desired(vec![a_directory("/w"), a_file("/f", "content")])).converged());
    let before = peak();
    assert!(world.converge(&desired(vec![tree()])).converged());
    // Each of the directories holds something that is kept, and everything else in it is judged by itself.
    let report = world.converge(&desired(vec![purged("/t", Depth::Recursive, &["999"], &[])]));
    assert_eq!(explain(&report), "99900 entries would be removed, more than the purge_limit of 1000");
    let grown = peak().saturating_sub(before);
    assert!(grown < 4 * 1024 * 1024, "{grown} bytes");
    let plan = world.plan(&desired(vec![tree()]));
    assert!(plan.is_empty(), "{}", plan.to_text());
}
