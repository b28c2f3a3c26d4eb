//! Files, directories and symbolic links.

use super::*;

/// A world after one resource was converged in it.
struct Checked {
    world: World,
    report: RunReport,
}

/// Prepares a world, converges one resource, and compares its outcome; a changed one must be in sync afterwards.
#[track_caller]
fn check(prepare: impl Fn(&World), resource: Resource, expected: &str) -> Checked {
    let mut world = World::new();
    prepare(&world);
    let id = resource.id.clone();
    let desired = desired(vec![resource]);
    let report = world.converge(&desired);
    assert_eq!(outcomes(&report), [format!("{expected} {id}")], "{report:?}");
    if expected == "changed" {
        assert!(world.plan(&desired).is_empty());
        assert_eq!(outcomes(&world.converge(&desired)), [format!("unchanged {id}")]);
    }
    Checked { world, report }
}

pub(super) fn fifo(world: &World, path: &str) {
    nix::unistd::mkfifo(&world.path(path), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
}

pub(super) fn link(world: &World, path: &str, target: &str) {
    std::os::unix::fs::symlink(target, world.path(path)).unwrap();
}

pub(super) fn chmod(world: &World, path: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(world.path(path), std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_is_put_in_place_of_whatever_is_there() {
    check(|_| {}, a_file("/f", "new\n"), "changed");
    check(|w| w.write("/f", "old\n"), a_file("/f", "new\n"), "changed");
    check(|w| w.write("/f", "new\n"), a_file("/f", "new\n"), "unchanged");
    check(|w| w.write("/f", ""), a_file("/f", "new\n"), "changed");
    check(|w| fifo(w, "f"), a_file("/f", "new\n"), "changed");
    check(|w| std::fs::create_dir(w.path("/f")).unwrap(), a_file("/f", "new\n"), "changed");
    let Checked { world, .. } = check(
        |w| {
            w.write("/other", "kept\n");
            link(w, "/f", "other");
        },
        a_file("/f", "new\n"),
        "changed",
    );
    assert_eq!(world.read("/other"), "kept\n", "a link is replaced, never followed");
    let Checked { world, report } = check(|w| w.write("/f/inside", "kept\n"), a_file("/f", "new\n"), "failed");
    assert_eq!(error_of(&report, 0).1, "remove: directory not empty");
    assert_eq!(world.read("/f/inside"), "kept\n");
}

#[test]
fn missing_parents_are_made_and_shown() {
    let world = World::new();
    let resource = a_file("/a/b/f", "new\n");
    let text = world.plan(&desired(vec![resource.clone()])).to_text();
    assert!(text.contains("parent: (none) → /a 0755") && text.contains("parent: (none) → /a/b 0755"), "{text}");
    let Checked { world, .. } = check(|_| {}, resource.clone(), "changed");
    assert_eq!((world.mode("/a"), world.mode("/a/b")), (0o755, 0o755));
    // A declared parent belongs to its own resource.
    let text = World::new().plan(&desired(vec![a_directory("/a"), resource.clone()])).to_text();
    assert!(!text.contains("→ /a 0755") && text.contains("→ /a/b 0755"), "{text}");
    let Checked { report, .. } = check(|w| w.write("/a", "a file\n"), resource, "failed");
    assert!(error_of(&report, 0).0.contains("`/a` is not a directory"), "{report:?}");
}

#[test]
fn metadata_drift_keeps_the_inode() {
    use std::os::unix::fs::MetadataExt;
    let mut world = World::new();
    let desired = desired(vec![a_file("/f", "new\n")]);
    let first = world.converge(&desired);
    assert!(first.converged());
    let inode = |world: &World| std::fs::metadata(world.path("/f")).unwrap().ino();
    let before = inode(&world);
    chmod(&world, "/f", 0o4777);
    let report = world.converge(&desired);
    assert_eq!(outcomes(&report), ["changed file[/f]"]);
    assert_eq!((inode(&world), world.mode("/f")), (before, 0o644));
    let history = world.record.history(&Default::default()).unwrap();
    assert_eq!(history[0].backup, None, "the same bytes need no backup");
}

#[test]
fn what_is_replaced_or_removed_is_kept() {
    #[track_caller]
    fn check_kept(prepare: impl Fn(&World), resource: Resource, kept: &str) {
        let Checked { world, .. } = check(prepare, resource, "changed");
        let history = world.record.history(&Default::default()).unwrap();
        let backup = history[0].backup.as_deref().expect("a backup");
        let content = crate::record::kept(world.state.path(), backup).unwrap().unwrap();
        assert_eq!(String::from_utf8(content).unwrap(), kept);
    }
    check_kept(|w| w.write("/f", "old\n"), a_file("/f", "new\n"), "old\n");
    check_kept(|w| w.write("/f", "old\n"), no_file("/f"), "old\n");
    check_kept(|w| w.write("/f", "old\n"), a_directory("/f"), "old\n");
    check_kept(|w| w.write("/f", "old\n"), a_symlink("/f", "t"), "old\n");
    check_kept(|w| link(w, "/f", "elsewhere"), a_file("/f", "new\n"), "elsewhere");
}

#[test]
fn files_are_removed() {
    let Checked { world, .. } = check(|w| w.write("/f", "old\n"), no_file("/f"), "changed");
    assert!(!world.path("/f").exists());
    check(|_| {}, no_file("/f"), "unchanged");
    check(|_| {}, no_file("/missing/f"), "unchanged");
    check(|w| link(w, "/f", "dangling"), no_file("/f"), "changed");
}

#[test]
fn directories_are_made_mended_and_removed_when_empty() {
    let Checked { world, .. } = check(|_| {}, a_directory("/d"), "changed");
    assert_eq!(world.mode("/d"), 0o750);
    check(|w| w.write("/d/inside", ""), a_directory("/d"), "changed");
    check(|w| link(w, "/d", "/elsewhere"), a_directory("/d"), "changed");
    check(|w| fifo(w, "d"), a_directory("/d"), "changed");
    check(|w| std::fs::create_dir(w.path("/d")).unwrap(), no_directory("/d"), "changed");
    check(|_| {}, no_directory("/d"), "unchanged");
    let Checked { world, report } = check(|w| w.write("/d/inside", "kept\n"), no_directory("/d"), "failed");
    assert!(error_of(&report, 0).0.contains("is not empty"), "{report:?}");
    assert_eq!(world.read("/d/inside"), "kept\n");
}

#[test]
pub(super) fn links_point_where_they_should() {
    check(|_| {}, a_symlink("/l", "/target"), "changed");
    check(|w| link(w, "/l", "/target"), a_symlink("/l", "/target"), "unchanged");
    check(|w| link(w, "/l", "target"), a_symlink("/l", "/target"), "changed");
    check(|w| w.write("/l", "file\n"), a_symlink("/l", "/target"), "changed");
    check(|w| w.write("/l/inside", ""), a_symlink("/l", "/target"), "failed");
}

#[test]
fn an_owner_that_is_not_there_is_named() {
    let mut spec = file_spec("new\n");
    Arc::make_mut(&mut spec.ownership).owner = Principal::Name("nobody-here".to_owned());
    let path = abs("/f");
    let resource = resource(Kind::File, "/f", Desired::File(file::Desired { path, ensure: Ensure::Present(spec) }));
    let Checked { world, report } = check(|_| {}, resource, "failed");
    assert!(error_of(&report, 0).0.contains("no user named `nobody-here`"), "{report:?}");
    assert!(!world.path("/f").exists(), "nothing is made that could not be given to its owner");
}

#[test]
fn a_plan_reads_well() {
    let mut world = World::new();
    world.write("/etc/motd", "old\nsame\n");
    world.write("/etc/gone", "\u{1b}[31mred\n");
    link(&world, "/etc/link", "bad\u{7}target");
    chmod(&world, "/etc/motd", 0o600);
    let mut motd = a_file("/etc/motd", "new\nsame\n").notifies(Notify::Reload, "ssh.service");
    if let Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) = &mut motd.desired {
        Arc::make_mut(&mut spec.ownership).owner = Principal::Id(0);
        Arc::make_mut(&mut spec.ownership).group = Principal::Id(0);
    }
    let desired = desired(vec![
        motd,
        no_file("/etc/gone"),
        a_symlink("/etc/link", "/etc/motd"),
        a_package("nginx"),
        a_service("nginx", Some(service::Enablement::Enabled), Some(service::RunState::Running)),
        no_file("/etc/nothing"),
    ]);
    world
        .record
        .owe(Notify::Restart, &UnitName::new("cron.service").unwrap(), &ResourceId::new(Kind::File, "/c"))
        .unwrap();
    let plan = world.plan(&desired);
    let mut settings = insta::Settings::clone_current();
    // The tree belongs to whoever runs the test.
    settings.add_filter(r"(?m)^    (owner|group): .*\n", "");
    settings.bind(|| {
        insta::assert_snapshot!(plan.to_text(), @r"
        update file[/etc/motd]  (drift; policy.toml:3:1)
            content:
              @@ -1,2 +1,2 @@
              -old
              +new
               same
            mode: 0600 → 0644
            owes a reload to ssh.service
        remove file[/etc/gone]  (drift; policy.toml:3:1)
            state: present (file) → absent
            content: 9 bytes, sha256 637bc8e2be8ac5bae0c1af238d759684ddc07c63ec304aebb0790a95012c72fc → (none)
        update symlink[/etc/link]  (drift; policy.toml:3:1)
            target: bad\u{7}target → /etc/motd
        create package[nginx]  (drift; policy.toml:3:1)
            state: (none) → installed
        update service[nginx]  (drift; policy.toml:3:1)
            enabled: not found → enabled
            state: not found → running
        restart cron.service  (owed because of file[/c])
        5 to change, 1 in sync, 1 owed
        ");
    });
    let json = plan.to_json();
    assert_eq!((&json["version"], &json["steps"][0]["source"]["line"]), (&1.into(), &3.into()));
}
