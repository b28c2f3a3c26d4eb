//! Users, groups and the files in their homes.

use super::*;
use crate::host::accounts::{GroupEntry, Hash, UserEntry};
use crate::policy::LockOut;

/// A host with the groups `adm` and `web`, and the user `deploy` whose files belong to whoever runs the test.
fn world() -> World {
    let world = World::new();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    world.fakes.accounts.edit(|db| {
        let group = |name: &str, gid, members: &[&str]| GroupEntry {
            name: name.to_owned(),
            gid,
            members: members.iter().map(|m| (*m).to_owned()).collect(),
        };
        db.groups.extend([group("adm", 4, &["deploy"]), group("web", 3000, &[]), group("deploy", gid, &[])]);
        db.users.push(UserEntry {
            name: "deploy".to_owned(),
            uid,
            gid,
            comment: "Deploy".to_owned(),
            home: "/home/deploy".to_owned(),
            shell: "/bin/sh".to_owned(),
            hash: Some(Hash("$y$old".to_owned())),
        });
    });
    std::fs::create_dir_all(world.path("/home/deploy")).unwrap();
    world
}

/// Converges one user or group, and compares its outcome and the attributes that changed.
#[track_caller]
fn check(world: &mut World, resource: Resource, expected: &str, attributes: &[&str]) {
    let id = resource.id.clone();
    // One of these users is whoever runs the test, who may be root.
    let rule = LockOut { is_meant: true, break_glass: Vec::new() };
    let desired = desired(vec![resource]).with_lock_out(rule);
    let before = world.fakes.accounts.n_changes();
    let report = world.converge(&desired);
    assert_eq!(outcomes(&report), [format!("{expected} {id}")], "{report:?}");
    if let Outcome::Changed { changes, .. } = &report.resources[0].outcome {
        let found: Vec<&str> = changes.iter().map(|change| change.attribute.as_str()).collect();
        assert_eq!(found, attributes);
    }
    if expected == "unchanged" {
        assert_eq!(world.fakes.accounts.n_changes(), before, "nothing is called for what is in sync");
    }
    if expected == "changed" {
        assert_eq!(outcomes(&world.converge(&desired)), [format!("unchanged {id}")]);
    }
}

fn groups(names: &[&str]) -> Vec<GroupName> {
    names.iter().map(|name| GroupName::new(name).unwrap()).collect()
}

#[test]
fn only_what_differs_is_changed() {
    #[track_caller]
    fn check_spec(edit: impl Fn(&mut user::Spec), attributes: &[&str]) {
        let mut spec = user_spec();
        edit(&mut spec);
        let expected = if attributes.is_empty() { "unchanged" } else { "changed" };
        check(&mut world(), a_user("deploy", spec), expected, attributes);
    }
    check_spec(|_| {}, &[]);
    check_spec(|s| s.shell = Some(abs("/bin/sh")), &[]);
    check_spec(|s| s.shell = Some(abs("/bin/bash")), &["shell"]);
    check_spec(|s| s.comment = Some("Other".to_owned()), &["comment"]);
    check_spec(|s| s.home = Some(abs("/srv/deploy")), &["home"]);
    check_spec(|s| s.group = Some(Principal::Name("web".to_owned())), &["group"]);
    check_spec(|s| s.groups = groups(&["adm"]), &[]);
    check_spec(|s| s.groups = groups(&["deploy"]), &[]);
    check_spec(|s| s.groups = groups(&["web"]), &["groups"]);
    check_spec(|s| s.membership = user::Membership::Exactly, &["groups"]);
    check_spec(
        |s| {
            s.groups = groups(&["adm"]);
            s.membership = user::Membership::Exactly;
        },
        &[],
    );
    check_spec(|s| s.password = Some(user::Password::Locked), &["password"]);
    check_spec(|s| s.password = Some(user::Password::Hash("$y$old".to_owned())), &[]);
    check_spec(|s| s.password = Some(user::Password::Hash("$y$new".to_owned())), &["password"]);
}

#[test]
fn at_least_keeps_other_groups_and_exactly_does_not() {
    let members = |world: &World, group: &str| {
        let accounts = world.host.accounts.read().unwrap();
        accounts.group(group).unwrap().members.clone()
    };
    let mut spec = user_spec();
    spec.groups = groups(&["web"]);
    let mut world = world();
    check(&mut world, a_user("deploy", spec.clone()), "changed", &["groups"]);
    assert_eq!((members(&world, "adm").len(), members(&world, "web").len()), (1, 1));
    spec.membership = user::Membership::Exactly;
    check(&mut world, a_user("deploy", spec), "changed", &["groups"]);
    assert_eq!((members(&world, "adm").len(), members(&world, "web").len()), (0, 1));
}

#[test]
fn no_hash_is_ever_shown_or_kept() {
    let mut world = world();
    let mut spec = user_spec();
    spec.password = Some(user::Password::Hash("$y$secret".to_owned()));
    let desired = desired(vec![a_user("deploy", spec)]);
    let shown = format!("{}{}", world.plan(&desired).to_text(), world.plan(&desired).to_json());
    let report = world.converge(&desired);
    let kept = format!("{:?}", world.record.history(&Default::default()).unwrap());
    let all = format!("{shown}{report:?}{kept}");
    assert!(all.contains("password") && !all.contains("$y$"), "{all}");
}

#[test]
fn accounts_come_and_go() {
    let mut world = world();
    check(&mut world, a_group("ops", Some(2001)), "changed", &["state", "gid"]);
    check(&mut world, a_group("ops", Some(2002)), "changed", &["gid"]);
    let mut spec = user_spec();
    spec.uid = Some(2001);
    spec.group = Some(Principal::Name("ops".to_owned()));
    spec.groups = groups(&["adm"]);
    spec.password = Some(user::Password::Hash("$y$x".to_owned()));
    check(&mut world, a_user("oscar", spec), "changed", &["state", "uid", "group", "groups", "password"]);
    check(&mut world, no_user("oscar"), "changed", &["state"]);
    check(&mut world, no_user("oscar"), "unchanged", &[]);
}

#[test]
fn system_accounts_are_never_removed() {
    for name in ["root", "daemon"] {
        let mut world = world();
        world.fakes.accounts.edit(|db| {
            let root = db.users[0].clone();
            db.users.push(UserEntry { name: "daemon".to_owned(), uid: 1, gid: 1, ..root });
        });
        check(&mut world, no_user(name), "failed", &[]);
        assert!(world.host.accounts.read().unwrap().user(name).is_some());
    }
    let mut spec = user_spec();
    spec.uid = Some(0);
    check(&mut world(), a_user("toor", spec), "failed", &[]);
}

#[test]
fn unreadable_databases_are_unknown_and_nothing_is_done() {
    let mut world = world();
    world.fakes.accounts.fail_reads(true);
    check(&mut world, no_user("deploy"), "indeterminate", &[]);
    check(&mut world, a_group("ops", None), "indeterminate", &[]);
    let mut owned = a_file("/f", "x");
    if let Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) = &mut owned.desired {
        Arc::make_mut(&mut spec.ownership).owner = Principal::Name("deploy".to_owned());
    }
    check(&mut world, owned, "indeterminate", &[]);
    assert!(!world.path("/f").exists());
    assert_eq!(world.fakes.accounts.n_changes(), 0);
    world.fakes.accounts.fail_reads(false);
    world.fakes.packages.fail_reads(true);
    world.fakes.units.fail_reads(true);
    check(&mut world, a_package("nginx"), "indeterminate", &[]);
    check(&mut world, a_service("nginx", None, Some(service::RunState::Stopped)), "indeterminate", &[]);
}

fn with_keys(keys: &[&str], exact: bool) -> Resource {
    let mut spec = user_spec();
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    spec.authorized_keys = Some(user::AuthorizedKeys { keys, exact });
    a_user("deploy", spec)
}

const KEYS: &str = "/home/deploy/.ssh/authorized_keys";

#[test]
fn keys_are_written_and_kept_private() {
    let mut world = world();
    check(&mut world, with_keys(&["k1"], false), "changed", &["authorized_keys"]);
    assert_eq!(world.read(KEYS), "k1\n");
    assert_eq!((world.mode("/home/deploy/.ssh"), world.mode(KEYS)), (0o700, 0o600));
    world.write(KEYS, "k1\nother\n");
    check(&mut world, with_keys(&["k1"], false), "unchanged", &[]);
    check(&mut world, with_keys(&["k1"], true), "changed", &["authorized_keys"]);
    assert_eq!(world.read(KEYS), "k1\n");
    std::fs::remove_dir_all(world.path("/home/deploy")).unwrap();
    check(&mut world, with_keys(&["k1"], true), "changed", &["authorized_keys"]);
}

#[test]
fn a_home_that_leads_elsewhere_is_refused() {
    let mut world = world();
    std::fs::create_dir(world.path("/etc")).unwrap();
    std::os::unix::fs::symlink("/etc", world.path("/home/deploy/.ssh")).unwrap();
    check(&mut world, with_keys(&["k1"], false), "failed", &[]);
    assert!(!world.path("/etc/authorized_keys").exists());
    // The file itself is replaced, never followed.
    std::fs::remove_file(world.path("/home/deploy/.ssh")).unwrap();
    std::fs::create_dir(world.path("/home/deploy/.ssh")).unwrap();
    world.write("/etc/shadow", "secret\n");
    std::os::unix::fs::symlink("/etc/shadow", world.path(KEYS)).unwrap();
    check(&mut world, with_keys(&["k1"], false), "changed", &["authorized_keys", ".ssh mode"]);
    assert_eq!((world.read(KEYS).as_str(), world.read("/etc/shadow").as_str()), ("k1\n", "secret\n"));
}
