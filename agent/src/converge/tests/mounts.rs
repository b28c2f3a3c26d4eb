//! Mounts, by a kernel in memory and a real /etc/fstab.

use super::*;
use crate::host::kernel::Mount;
use crate::resource::mount::{self, Spec, State};

fn a_mount(path: &str, state: State) -> Resource {
    resource(Kind::Mount, path, Desired::Mount(Box::new(mount::Desired { path: abs(path), state })))
}

fn owned(options: &[&str]) -> Vec<String> {
    options.iter().map(|option| (*option).to_owned()).collect()
}

fn mounted(options: &[&str]) -> State {
    State::Mounted(Spec { options: owned(options), source: None, fstype: None })
}

fn from(source: &str, fstype: &str, options: &[&str]) -> State {
    State::Mounted(Spec { options: owned(options), source: Some(source.into()), fstype: Some(fstype.into()) })
}

fn live(target: &str, fstype: &str, options: &[&str]) -> Mount {
    Mount {
        target: target.to_owned(),
        source: fstype.to_owned(),
        fstype: fstype.to_owned(),
        options: owned(options),
        super_options: owned(&["rw"]),
    }
}

#[test]
fn options_are_put_in_effect_and_into_fstab() {
    let mut world = World::new();
    world.write("/etc/fstab", "# static\nUUID=1 / ext4 defaults 0 1\ntmpfs\t/tmp\ttmpfs\tdefaults,dev\t0 0\n");
    world.fakes.kernel.edit_mounts(|mounts| mounts.push(live("/tmp", "tmpfs", &["rw", "nosuid", "relatime"])));
    let state = desired(vec![a_mount("/tmp", mounted(&["nodev", "nosuid", "noexec"]))]);
    insta::assert_snapshot!(world.plan(&state).to_text(), @"
    update mount[/tmp]  (drift; policy.toml:3:1)
        options: rw,nosuid,relatime → nodev,noexec
        fstab: tmpfs /tmp tmpfs defaults,dev 0 0 → tmpfs /tmp tmpfs defaults,nodev,nosuid,noexec 0 0
    1 to change, 0 in sync
    ");
    let report = world.converge(&state);
    assert!(report.converged(), "{report:?}");
    assert_eq!(
        world.read("/etc/fstab"),
        "# static\nUUID=1 / ext4 defaults 0 1\ntmpfs\t/tmp\ttmpfs\tdefaults,nodev,nosuid,noexec\t0 0\n"
    );
    // A remount names every flag, or some would be lost.
    assert_eq!(world.fakes.kernel.log(), ["flags /tmp rw,nosuid,relatime,nodev,noexec"]);
    assert!(report.resources[0].displaced.is_some());
    assert!(world.plan(&state).is_empty());
    // Somebody's remount.
    world.fakes.kernel.edit_mounts(|mounts| mounts[0].options = owned(&["rw", "relatime", "nodev", "noexec"]));
    assert!(world.converge(&state).converged());
    assert!(world.plan(&state).is_empty());
}

#[test]
fn what_is_not_mounted_is_by_its_new_line() {
    let mut world = World::new();
    world.fakes.kernel.put_mountable(live("/srv/data", "xfs", &["rw", "nodev"]));
    let state = desired(vec![a_mount("/srv/data", from("LABEL=data", "xfs", &["nodev"]))]);
    insta::assert_snapshot!(world.plan(&state).to_text(), @"
    update mount[/srv/data]  (drift; policy.toml:3:1)
        state: not mounted → mounted
        fstab: (none) → LABEL=data /srv/data xfs nodev 0 0
    1 to change, 0 in sync
    ");
    let report = world.converge(&state);
    assert!(report.converged(), "{report:?}");
    assert_eq!(world.read("/etc/fstab"), "LABEL=data /srv/data xfs nodev 0 0\n");
    assert!(world.path("/srv/data").is_dir());
    assert!(world.plan(&state).is_empty());
    // Unmounted, it keeps its line; absent, it does not.
    assert!(world.converge(&desired(vec![a_mount("/srv/data", State::Unmounted)])).converged());
    assert_eq!(world.read("/etc/fstab"), "LABEL=data /srv/data xfs nodev 0 0\n");
    let gone = desired(vec![a_mount("/srv/data", State::Absent)]);
    assert!(world.converge(&gone).converged());
    assert_eq!(world.read("/etc/fstab"), "");
    assert!(world.plan(&gone).is_empty());
}

#[test]
fn a_mount_in_use_is_not_forced_and_its_users_are_named() {
    let mut world = World::new();
    world.fakes.kernel.edit_mounts(|mounts| mounts.push(live("/srv/data", "xfs", &["rw"])));
    world.fakes.kernel.use_mount("/srv/data", &["812 (postgres)", "901 (bash)"]);
    let (error, signature) = error_of(&world.converge(&desired(vec![a_mount("/srv/data", State::Unmounted)])), 0);
    assert_eq!(
        error,
        "cannot unmount `/srv/data`: blocked by 812 (postgres), 901 (bash) (hint: stop what uses it; it is tried again)"
    );
    assert_eq!(signature, "unmount: in use");
}

#[test]
fn too_little_to_mount_something_is_an_error_and_so_is_another_file_system() {
    let mut world = World::new();
    let state = desired(vec![a_mount("/home", mounted(&["nodev"]))]);
    let (error, _) = error_of(&world.converge(&state), 0);
    insta::assert_snapshot!(error, @"cannot mount `/home` as declared: nothing is mounted there, and /etc/fstab has no line for it (hint: write its `source` and `fstype`)");
    world.fakes.kernel.edit_mounts(|mounts| mounts.push(live("/home", "ext4", &["rw", "relatime"])));
    let (error, _) = error_of(&world.converge(&state), 0);
    insta::assert_snapshot!(error, @"cannot mount `/home` as declared: /etc/fstab has no line for it (hint: write its `source` and `fstype`)");
    let state = desired(vec![a_mount("/home", from("/dev/vdb", "xfs", &[]))]);
    let (error, _) = error_of(&world.converge(&state), 0);
    insta::assert_snapshot!(error, @"cannot mount `/home` as declared: a file system of type ext4 is mounted there, and not xfs (hint: unmount it first: nothing is mounted over it or taken away for you)");
    assert!(world.fakes.kernel.log().is_empty());
    assert!(!world.path("/etc/fstab").exists());
}

#[test]
fn units_of_systemd_count() {
    let mut world = World::new();
    world.fakes.kernel.edit_mounts(|mounts| mounts.push(live("/tmp", "tmpfs", &["rw", "nosuid", "nodev", "noexec"])));
    let unit = "[Mount]\nWhat=tmpfs\nType=tmpfs\nOptions=mode=1777,nosuid,nodev,size=50%%\n";
    world.write("/usr/lib/systemd/system/tmp.mount", unit);
    // The unit has what is wanted: nothing to write.
    assert!(world.plan(&desired(vec![a_mount("/tmp", mounted(&["nosuid"]))])).is_empty());
    // It has not: a line in fstab goes before it, and keeps what it said.
    let state = desired(vec![a_mount("/tmp", mounted(&["nodev", "noexec"]))]);
    assert!(world.converge(&state).converged());
    assert_eq!(world.read("/etc/fstab"), "tmpfs /tmp tmpfs mode=1777,nosuid,nodev,size=50%,noexec 0 0\n");
    // An administrator's unit goes before both.
    world.write("/etc/systemd/system/tmp.mount", unit);
    let (error, _) = error_of(&world.converge(&state), 0);
    insta::assert_snapshot!(error, @"cannot mount `/tmp` as declared: `/etc/systemd/system/tmp.mount` mounts it at boot with the options mode=1777,nosuid,nodev,size=50% (hint: declare a drop-in of that unit with `Options=`: it goes before fstab)");
    world.write("/etc/systemd/system/tmp.mount.d/x.conf", "[Mount]\nOptions=nosuid,nodev,noexec\n");
    assert!(world.plan(&state).is_empty());
}

#[test]
fn a_table_that_is_a_link_is_left_alone() {
    let mut world = World::new();
    world.write("/real", "tmpfs /tmp tmpfs rw 0 0\n");
    std::fs::create_dir(world.path("/etc")).unwrap();
    std::os::unix::fs::symlink("/real", world.path("/etc/fstab")).unwrap();
    let (error, _) = error_of(&world.converge(&desired(vec![a_mount("/tmp", mounted(&["nodev"]))])), 0);
    assert!(error.starts_with("cannot edit `/etc/fstab`: it is a symlink to /real (hint: "), "{error}");
    assert_eq!(world.read("/real"), "tmpfs /tmp tmpfs rw 0 0\n");
}
