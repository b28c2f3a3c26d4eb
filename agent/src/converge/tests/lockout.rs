//! Steps that would leave nobody who can log in and become root.

use super::*;
use crate::host::accounts::{GroupEntry, Hash, UserEntry};
use crate::host::kernel::Mount;
use crate::host::packages::{PackageEntry, PackageStatus};
use crate::policy::LockOut;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBk6 ops@example.org";

/// A host on which `ops` alone can become root: by a key, and a drop-in of sudo.
fn world() -> World {
    let world = World::new();
    // So that nobody has to be root to own what is in a home.
    let uid = rustix::process::geteuid().as_raw().max(1000);
    world.fakes.accounts.edit(|db| {
        db.groups.push(GroupEntry { name: "ops".to_owned(), gid: 1000, members: Vec::new() });
        db.groups.push(GroupEntry { name: "admins".to_owned(), gid: 2000, members: vec!["ops".to_owned()] });
        db.users.push(UserEntry {
            name: "ops".to_owned(),
            uid,
            gid: 1000,
            comment: String::new(),
            home: "/home/ops".to_owned(),
            shell: "/bin/bash".to_owned(),
            hash: Some(Hash("!".to_owned())),
        });
    });
    world.write("/etc/sudoers", "root ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n");
    world.write("/etc/sudoers.d/90-ops", "%admins ALL=(ALL) NOPASSWD: ALL\n");
    world.write("/etc/ssh/sshd_config", "UsePAM yes\n");
    world.write("/home/ops/.ssh/authorized_keys", &format!("{KEY}\n"));
    world
}

fn new_revision(desired: &DesiredState) -> Request<'_> {
    Request { cause: Cause::NewRevision, ..everything(desired) }
}

/// What a new revision of these resources does to that host; a plan says the same beforehand.
#[track_caller]
fn check(resources: Vec<Resource>, expected: &[&str]) -> World {
    check_with(world(), LockOut::default(), resources, expected)
}

#[track_caller]
fn check_with(mut world: World, rule: LockOut, resources: Vec<Resource>, expected: &[&str]) -> World {
    let desired = desired(resources).with_lock_out(rule);
    let plan = observe_and_plan(&world.host, Memory::Record(&world.record), &new_revision(&desired));
    let refused = |id: &ResourceId| plan.steps.iter().any(|step| step.resource == *id && step.held.is_some());
    let report = world.converge_with(&new_revision(&desired));
    assert_eq!(outcomes(&report), expected, "{report:?}");
    for entry in &report.resources {
        let is_failed = matches!(&entry.outcome, Outcome::Failed { signature, .. } if signature == "refused: lock-out");
        assert_eq!(refused(&entry.resource), is_failed, "{}", plan.to_text());
    }
    world
}

fn exact_keys(keys: &[&str]) -> user::Spec {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    user::Spec { authorized_keys: Some(user::AuthorizedKeys { keys, exact: true }), ..user_spec() }
}

#[test]
fn the_last_way_in_stays_and_everything_else_goes_on() {
    let world = check(
        vec![a_file("/etc/motd", "x"), no_user("ops"), a_file("/etc/issue", "y")],
        &["changed file[/etc/motd]", "changed file[/etc/issue]", "failed user[ops]"],
    );
    assert!(world.host.accounts.read().unwrap().user("ops").is_some());
    assert_eq!(world.read("/etc/issue"), "y");
}

#[test]
fn the_refusal_says_what_would_be_and_what_to_do() {
    let mut world = world();
    let desired = desired(vec![no_user("ops")]);
    let report = world.converge_with(&new_revision(&desired));
    insta::assert_snapshot!(error_of(&report, 0).0, @"refused, because nobody would be known to be able to log in and become root after it; now `ops` can. Declare an account that keeps a key or password and sudo, or set `lock_out = \"allow\"` under [policy]");
    let plan = world.plan(&desired).to_text();
    assert!(plan.contains("left as it is: refused, because nobody"), "{plan}");
}

/// A file server that is down is waited for by whoever asks it: keys there are not read, and what is not read is not known.
#[test]
fn keys_on_a_file_server_are_not_waited_for() {
    let without_a_key = |fstype: &str| {
        let world = world();
        world.write("/home/ops/.ssh/authorized_keys", "");
        mount(&world, "/home", fstype);
        world
    };
    let closed = || vec![no_file("/etc/sudoers.d/90-ops")];
    drop(check_with(without_a_key("ext4"), LockOut::default(), closed(), &["changed file[/etc/sudoers.d/90-ops]"]));
    for fstype in ["nfs4", "autofs", "fuse.sshfs", "fuse", "gpfs", "beegfs"] {
        let world =
            check_with(without_a_key(fstype), LockOut::default(), closed(), &["failed file[/etc/sudoers.d/90-ops]"]);
        check_now(&world, "`ops` perhaps can");
    }
    // What the policy itself puts there is known without a look.
    let keys = a_file("/home/ops/.ssh/authorized_keys", &format!("{KEY}\n"));
    let world = without_a_key("nfs4");
    let expected = ["changed file[/home/ops/.ssh/authorized_keys]", "failed file[/etc/sudoers.d/90-ops]"];
    drop(check_with(world, LockOut::default(), vec![keys, no_file("/etc/sudoers.d/90-ops")], &expected));
}

fn mount(world: &World, target: &str, fstype: &str) {
    world.fakes.kernel.edit_mounts(|mounts| {
        mounts.push(Mount {
            target: target.to_owned(),
            source: "server:/home".to_owned(),
            fstype: fstype.to_owned(),
            options: Vec::new(),
            super_options: Vec::new(),
        });
    });
}

/// Nor where a link leads to a file server, whose own path names none.
#[test]
fn keys_behind_links_to_a_file_server_are_not_waited_for() {
    let moved = |from: &str, to: &str, link: &str| {
        let world = world();
        let (from, to) = (world.path(from), world.path(to));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::rename(&from, &to).unwrap();
        std::os::unix::fs::symlink(link, from).unwrap();
        world
    };
    let check = |world: World, server: &str, expected: &str| {
        mount(&world, server, "nfs4");
        check_now(&world, expected);
    };
    check(moved("/home", "/nfs/home", "/nfs/home"), "/nfs", "`ops` perhaps can");
    check(moved("/home", "/nfs/home", "nfs/./home/"), "/nfs/home", "`ops` perhaps can");
    check(moved("/home/ops", "/srv/nfs/ops", "../srv/nfs/ops"), "/srv/nfs", "`ops` perhaps can");
    check(moved("/home/ops/.ssh/authorized_keys", "/nfs/keys", "/nfs/keys"), "/nfs", "`ops` perhaps can");
    check(moved("/home", "/data/home", "/data/home"), "/nfs", "`ops` can");
    check(world(), "/home/other", "`ops` can");
}

/// Who can get in, as the refusal of what closes it says.
#[track_caller]
fn check_now(world: &World, expected: &str) {
    let policy = desired(vec![no_file("/etc/sudoers.d/90-ops")]);
    let plan = observe_and_plan(&world.host, Memory::Record(&world.record), &new_revision(&policy)).to_text();
    assert!(plan.contains(&format!("; now {expected}")), "{plan}");
}

#[test]
fn only_the_last_mount_on_a_directory_counts() {
    let world = world();
    mount(&world, "/home", "autofs");
    check_now(&world, "`ops` perhaps can");
    mount(&world, "/home", "ext4");
    check_now(&world, "`ops` can");
}

#[test]
fn mounts_that_cannot_be_read_are_not_taken_for_none() {
    let world = world();
    world.fakes.kernel.hide_mounts();
    let policy = desired(vec![no_file("/etc/sudoers.d/90-ops")]);
    let plan = observe_and_plan(&world.host, Memory::Record(&world.record), &new_revision(&policy)).to_text();
    assert!(plan.contains("it cannot be told whether anybody could log in after it: cannot read"), "{plan}");
    assert!(plan.contains("mountinfo"), "{plan}");
}

#[test]
fn whatever_closes_it_is_refused() {
    let refused = |resource: Resource| {
        let expected = format!("failed {}", resource.id);
        drop(check(vec![resource], &[&expected]));
    };
    refused(a_user("ops", exact_keys(&[])));
    refused(a_user("ops", user::Spec { membership: user::Membership::Exactly, ..user_spec() }));
    refused(a_user("ops", user::Spec { shell: Some(abs("/usr/sbin/nologin")), ..user_spec() }));
    refused(resource(
        Kind::Group,
        "admins",
        Desired::Group(group::Desired { name: GroupName::new("admins").unwrap(), ensure: Ensure::Absent }),
    ));
    refused(no_file("/etc/sudoers.d/90-ops"));
    refused(a_file("/etc/sudoers.d/90-ops", "%admins ALL=(ALL) ALL\n"));
    refused(a_file("/etc/sudoers.d/99-none", "ALL ALL=(ALL) !ALL\n"));
    refused(a_file("/etc/sudoers", "root ALL=(ALL) ALL\n"));
    refused(a_symlink("/etc/sudoers.d/90-ops", "/dev/null"));
    refused(a_file("/etc/ssh/sshd_config", "AllowGroups wheel\n"));
    refused(a_file("/etc/pam.d/sshd", "account required pam_deny.so\n"));
    refused(no_file("/home/ops/.ssh/authorized_keys"));
    refused(a_file("/etc/passwd", "root:x:0:0::/root:/bin/bash\n"));
    refused(a_file("/etc/shadow", "!"));
}

#[test]
fn what_leaves_a_way_goes_on() {
    let done = |resource: Resource| {
        let expected = format!("changed {}", resource.id);
        drop(check(vec![resource], &[&expected]));
    };
    done(a_file("/etc/ssh/sshd_config", "PermitRootLogin no\nAllowGroups admins\n"));
    done(a_file("/etc/sudoers.d/10-web", "www-data ALL=(root) NOPASSWD: /usr/bin/systemctl\n"));
    done(a_file("/etc/pam.d/common-auth", "auth required pam_unix.so\n"));
    done(a_user("ops", exact_keys(&[KEY, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBk7 more@example.org"])));
    done(a_user("ops", user::Spec { shell: Some(abs("/bin/sh")), ..user_spec() }));
}

#[test]
fn a_purge_a_package_and_a_stopped_service_close_it_too() {
    let rules = |keep: &str| directory::Rules {
        purge: Some(directory::Purge { depth: directory::Depth::Entries, keep: Box::new([keep.into()]), limit: 1000 }),
        ..directory::Rules::default()
    };
    let purged = |keep: &str| {
        let mut purged = a_directory("/etc/sudoers.d");
        if let Desired::Directory(directory::Desired { ensure: Ensure::Present(spec), .. }) = &mut purged.desired {
            spec.rules = Some(Box::new(rules(keep)));
        }
        purged
    };
    let world = check(vec![purged("README")], &["failed directory[/etc/sudoers.d]"]);
    assert!(world.path("/etc/sudoers.d/90-ops").exists());
    drop(check(vec![purged("90-*")], &["changed directory[/etc/sudoers.d]"]));

    for package in ["sudo", "openssh-server"] {
        let world = self::world();
        world.fakes.packages.add_available(package, "1");
        world.fakes.packages.edit(|db| {
            let entry = PackageEntry { version: "1".to_owned(), status: PackageStatus::Installed, essential: false };
            db.packages.insert(package.to_owned(), entry);
        });
        let expected = format!("failed package[{package}]");
        drop(check_with(world, LockOut::default(), vec![no_package(package)], &[&expected]));
    }
    let world = self::world();
    world.fakes.units.add("ssh.service", "active", "enabled");
    let stopped = a_service("ssh", None, Some(service::RunState::Stopped));
    drop(check_with(world, LockOut::default(), vec![stopped], &["failed service[ssh]"]));
}

/// An account that becomes another way in.
fn another() -> Vec<Resource> {
    let mut spec = exact_keys(&[KEY]);
    spec.uid = Some(rustix::process::geteuid().as_raw().max(1000) + 1);
    spec.group = Some(Principal::Name("ops".to_owned()));
    spec.home = Some(abs("/home/anna"));
    vec![a_user("anna", spec), a_file("/etc/sudoers.d/anna", "anna ALL=(ALL) NOPASSWD: ALL\n")]
}

#[test]
fn what_closes_one_way_waits_for_what_opens_another() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut all = vec![no_user("ops"), a_file("/etc/motd", "x").requires(Kind::User, "ops")];
    all.extend(another());
    let expected =
        ["changed user[anna]", "changed file[/etc/sudoers.d/anna]", "changed user[ops]", "changed file[/etc/motd]"];
    drop(check(all.clone(), &expected));

    // The other one does not come to be: what waited is refused, and what waited for that is skipped.
    let mut world = world();
    world.write("/home/anna/.ssh/authorized_keys/x", "a directory where a file belongs");
    let desired = desired(all);
    let report = world.converge_with(&new_revision(&desired));
    let expected = [
        "failed user[anna]",
        "changed file[/etc/sudoers.d/anna]",
        "failed user[ops]",
        "skipped by user[ops]: file[/etc/motd]",
    ];
    assert_eq!(outcomes(&report), expected, "{report:?}");
    assert!(world.host.accounts.read().unwrap().user("ops").is_some());
}

#[test]
fn of_two_steps_that_close_it_together_the_second_is_refused() {
    let world = world();
    world.fakes.accounts.edit(|db| db.users[1].hash = Some(Hash("$y$x".to_owned())));
    let steps = vec![a_user("ops", exact_keys(&[])), a_file("/etc/x", "x"), a_user("root", user_spec())];
    drop(check_with(
        world,
        LockOut::default(),
        steps,
        &["changed user[ops]", "changed file[/etc/x]", "unchanged user[root]"],
    ));

    let world = self::world();
    world.fakes.accounts.edit(|db| db.users[0].hash = Some(Hash("$y$x".to_owned())));
    let locked = user::Spec { password: Some(user::Password::Locked), ..user_spec() };
    let steps = vec![a_user("root", locked), no_user("ops"), a_file("/etc/x", "x")];
    let expected = ["changed user[root]", "changed file[/etc/x]", "failed user[ops]"];
    drop(check_with(world, LockOut::default(), steps, &expected));
}

#[test]
fn a_host_without_a_way_in_hears_nothing() {
    let world = world();
    std::fs::remove_file(world.path("/etc/sudoers")).unwrap();
    drop(check_with(world, LockOut::default(), vec![no_user("ops")], &["changed user[ops]"]));
    let mut world = World::new();
    let desired = desired(vec![a_file("/etc/sudoers", ""), a_file("/etc/ssh/sshd_config", "PermitRootLogin no\n")]);
    let report = world.converge_with(&new_revision(&desired));
    assert_eq!(report.changed().count(), 2, "{report:?}");
}

#[test]
fn what_cannot_be_told_is_named_and_is_no_way_in() {
    let mut world = world();
    let desired =
        desired(vec![a_file("/etc/ssh/sshd_config", "Match User o* Address 10.0.0.0/8\nPubkeyAuthentication no\n")]);
    let report = world.converge_with(&new_revision(&desired));
    let (error, _) = error_of(&report, 0);
    assert!(error.contains("could not be told: sshd_config has a `Match` block that may be about `ops`"), "{error}");

    // Where it could not be told before, a step that leaves it so is none that takes anything away.
    world.write("/etc/ssh/sshd_config", "Match User o* Address 10.0.0.0/8\nPubkeyAuthentication no\n");
    let quiet = self::desired(vec![a_file("/etc/sudoers.d/10-x", "x ALL=(root) /bin/true\n")]);
    assert_eq!(world.converge_with(&new_revision(&quiet)).failed().count(), 0);
    let closed = self::desired(vec![no_user("ops")]);
    assert_eq!(world.converge_with(&new_revision(&closed)).failed().count(), 1);
}

#[test]
fn a_policy_may_mean_it_or_name_who_keeps_access() {
    let allow = LockOut { is_meant: true, break_glass: Vec::new() };
    drop(check_with(world(), allow, vec![no_user("ops")], &["changed user[ops]"]));

    let world = || {
        let world = world();
        world.fakes.accounts.edit(|db| db.users[0].hash = Some(Hash("$y$x".to_owned())));
        world
    };
    let named = |name: &str| LockOut { is_meant: false, break_glass: vec![UserName::new(name).unwrap()] };
    drop(check_with(world(), LockOut::default(), vec![no_user("ops")], &["changed user[ops]"]));
    drop(check_with(world(), named("ops"), vec![no_user("ops")], &["failed user[ops]"]));
    // Of those who are not there, or cannot get in, none is guarded: then everybody is.
    for nobody in ["opz", "root"] {
        drop(check_with(self::world(), named(nobody), vec![no_user("ops")], &["failed user[ops]"]));
    }
}

#[test]
fn ssh_may_stop_where_another_unit_of_it_serves() {
    let stopped = || a_service("ssh.socket", None, Some(service::RunState::Stopped));
    let with = |units: &[&str]| {
        let world = world();
        units.iter().for_each(|unit| world.fakes.units.add(unit, "active", "enabled"));
        world
    };
    let both = with(&["ssh.service", "ssh.socket"]);
    drop(check_with(both, LockOut::default(), vec![stopped()], &["changed service[ssh.socket]"]));
    drop(check_with(with(&["ssh.socket"]), LockOut::default(), vec![stopped()], &["failed service[ssh.socket]"]));
    // The one after the other is the last one.
    let all = vec![a_service("ssh", None, Some(service::RunState::Stopped)), stopped()];
    let both = with(&["ssh.service", "ssh.socket"]);
    drop(check_with(both, LockOut::default(), all, &["changed service[ssh]", "failed service[ssh.socket]"]));

    let alone = with(&["ssh.socket"]);
    let plan = alone.plan(&desired(vec![stopped()]));
    assert!(plan.steps[0].held.is_some(), "{}", plan.to_text());
    assert_eq!(alone.fakes.units.n_looks(), 4, "the unit once, and each of the three others once");
}

#[test]
fn a_key_that_its_user_cannot_read_lets_nobody_in() {
    let path = "/home/ops/.ssh/authorized_keys";
    let with_mode = |mode: u32| {
        let mut file = a_file(path, &format!("{KEY}\n"));
        if let Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) = &mut file.desired {
            spec.ownership = Arc::new(Ownership {
                owner: Principal::Id(0),
                mode: Permission::from_bits(mode),
                ..(*spec.ownership).clone()
            });
        }
        vec![file]
    };
    let failed = format!("failed file[{path}]");
    for mode in [0o600, 0o666] {
        drop(check_with(world(), LockOut::default(), with_mode(mode), &[&failed]));
    }
}

#[test]
fn a_repair_of_what_was_accepted_is_not_questioned() {
    // Nobody can get in, as declared. Whoever opens a way for themselves does not keep it.
    let mut world = world();
    std::fs::remove_file(world.path("/etc/sudoers.d/90-ops")).unwrap();
    let closed = desired(vec![no_file("/etc/sudoers.d/90-ops")]);
    assert_eq!(outcomes(&world.converge_with(&new_revision(&closed))), ["unchanged file[/etc/sudoers.d/90-ops]"]);
    world.write("/etc/sudoers.d/90-ops", "ops ALL=(ALL) NOPASSWD: ALL\n");
    assert!(world.plan(&closed).steps[0].held.is_none());
    assert_eq!(outcomes(&world.converge(&closed)), ["changed file[/etc/sudoers.d/90-ops]"]);

    // What was never accepted is no repair, however often it is tried.
    let mut world = self::world();
    assert_eq!(outcomes(&world.converge_with(&new_revision(&closed))), ["failed file[/etc/sudoers.d/90-ops]"]);
    assert_eq!(outcomes(&world.converge(&closed)), ["failed file[/etc/sudoers.d/90-ops]"]);
    world.reopen();
    assert_eq!(outcomes(&world.converge(&closed)), ["failed file[/etc/sudoers.d/90-ops]"]);
}

#[test]
fn noop_and_a_pause_come_first() {
    let mut world = world();
    let desired = desired(vec![no_user("ops")]);
    let noop = Request { mode: Mode::Noop, ..new_revision(&desired) };
    assert_eq!(outcomes(&world.converge_with(&noop)), ["reported user[ops]"]);
    let plan = observe_and_plan(&world.host, Memory::Nothing, &noop);
    assert!(plan.steps[0].held.as_deref().is_some_and(|why| why.starts_with("refused")), "{}", plan.to_text());
}
