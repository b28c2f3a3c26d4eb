//! Keys and lines inside files that something else owns.

use super::*;
use crate::resource::setting::{self, Edits, Entry, Missing};

pub(super) fn entries(values: &[(&str, &str)]) -> Vec<Entry> {
    let entry = |(key, value): &(&str, &str)| Entry {
        section: String::new(),
        key: (*key).to_owned(),
        values: vec![(*value).to_owned()],
    };
    values.iter().map(entry).collect()
}

pub(super) fn a_setting(name: &str, path: &str, edits: Edits) -> Resource {
    let spec = setting::Spec { edits, missing: Missing::Refuse, owner: None, group: None, mode: None };
    resource(Kind::Setting, name, Desired::Setting(setting::Desired { path: abs(path), spec: Box::new(spec) }))
}

fn with(mut resource: Resource, change: impl FnOnce(&mut setting::Spec)) -> Resource {
    if let Desired::Setting(setting) = &mut resource.desired {
        change(&mut setting.spec);
    }
    resource
}

fn umask() -> Resource {
    a_setting("/etc/login.defs", "/etc/login.defs", Edits::Space(entries(&[("UMASK", "027")])))
}

#[test]
fn a_key_is_put_back_and_the_rest_stays() {
    let mut world = World::new();
    world.write("/etc/login.defs", "# \u{fffd}\nUMASK\t022\nMAIL /var/mail");
    let state = desired(vec![umask()]);
    insta::assert_snapshot!(world.plan(&state).to_text(), @"
    update setting[/etc/login.defs]  (drift; policy.toml:3:1)
        UMASK: 022 → 027
    1 to change, 0 in sync
    ");
    assert_eq!(outcomes(&world.converge(&state)), ["changed setting[/etc/login.defs]"]);
    assert_eq!(world.read("/etc/login.defs"), "# \u{fffd}\nUMASK\t027\nMAIL /var/mail");
    assert!(world.plan(&state).is_empty());
    assert_eq!(outcomes(&world.converge(&state)), ["unchanged setting[/etc/login.defs]"]);
}

#[test]
fn what_was_there_is_kept_and_owner_mode_and_list_stay() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = World::new();
    world.write("/etc/login.defs", "UMASK 022\n");
    let path = world.path("/etc/login.defs");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    // user:1:r, mask r, group nothing.
    let list = [
        &[2, 0, 0, 0][..],
        &[1, 0, 6, 0, 255, 255, 255, 255],
        &[2, 0, 4, 0, 1, 0, 0, 0],
        &[4, 0, 0, 0, 255, 255, 255, 255],
        &[16, 0, 4, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    let has_lists =
        rustix::fs::setxattr(&path, "system.posix_acl_access", &list, rustix::fs::XattrFlags::empty()).is_ok();
    let report = world.converge(&desired(vec![umask()]));
    assert_eq!(outcomes(&report), ["changed setting[/etc/login.defs]"]);
    assert_eq!(world.mode("/etc/login.defs"), 0o640);
    let kept = report.resources[0].displaced.as_deref().unwrap();
    assert_eq!(crate::record::kept(world.state.path(), kept).unwrap().unwrap(), b"UMASK 022\n");
    if has_lists {
        let mut buffer = vec![0; 100];
        let n = rustix::fs::getxattr(&path, "system.posix_acl_access", buffer.as_mut_slice()).unwrap();
        assert_eq!(buffer[..n], list);
        // With a declared mode it is drift.
        let declared = with(umask(), |spec| spec.mode = Some(Permission::from_bits(0o600)));
        assert_eq!(outcomes(&world.converge(&desired(vec![declared.clone()]))), ["changed setting[/etc/login.defs]"]);
        assert!(rustix::fs::getxattr(&path, "system.posix_acl_access", buffer.as_mut_slice()).is_err());
        assert!(world.plan(&desired(vec![declared])).is_empty());
        assert_eq!(world.mode("/etc/login.defs"), 0o600);
    }
}

#[test]
fn a_missing_file_is_made_only_when_that_is_said() {
    let mut world = World::new();
    let state = desired(vec![umask()]);
    insta::assert_snapshot!(world.plan(&state).to_text(), @"
    create setting[/etc/login.defs]  (drift; policy.toml:3:1)
        parent: (none) → /etc 0755
        type: (none) → file
        UMASK: (none) → 027
        owner: (none) → 0
        group: (none) → 0
        mode: (none) → 0644
    1 to change, 0 in sync
    ");
    let report = world.converge(&state);
    let (error, signature) = error_of(&report, 0);
    insta::assert_snapshot!(error, @"cannot edit `/etc/login.defs`: it does not exist (hint: require what brings it, such as its package, or write `create = true`)");
    assert_eq!(signature, "edit: require what brings it, such as its package, or write `create = true`");
    let state = desired(vec![with(umask(), |spec| spec.missing = Missing::Create)]);
    assert_eq!(outcomes(&world.converge(&state)), ["changed setting[/etc/login.defs]"]);
    assert_eq!(world.read("/etc/login.defs"), "UMASK 027\n");
    // What is to be absent is, where there is no file.
    let absent = vec![Entry { section: String::new(), key: "A".to_owned(), values: vec![] }];
    let state = desired(vec![a_setting("/etc/none", "/etc/none", Edits::Equals(absent))]);
    assert_eq!(outcomes(&world.converge(&state)), ["unchanged setting[/etc/none]"]);
}

#[test]
fn links_directories_and_what_cannot_be_edited_are_left_alone() {
    let mut world = World::new();
    world.write("/real", "UMASK 022\n");
    std::fs::create_dir(world.path("/etc")).unwrap();
    std::os::unix::fs::symlink("/real", world.path("/etc/login.defs")).unwrap();
    let state = desired(vec![umask()]);
    let (error, _) = error_of(&world.converge(&state), 0);
    assert_eq!(
        error,
        "cannot edit `/etc/login.defs`: it is a symbolic link (hint: name the file that the link leads to)"
    );
    assert_eq!(world.read("/real"), "UMASK 022\n");
    std::fs::remove_file(world.path("/etc/login.defs")).unwrap();
    world.write("/etc/login.defs", "UMASK 022 \\\n");
    let report = world.converge(&state);
    let Outcome::Indeterminate { reason } = &report.resources[0].outcome else { panic!("{report:?}") };
    assert_eq!(
        reason,
        "cannot edit `/etc/login.defs`: the value of `UMASK` on line 1 goes on in the next line (hint: make it one line, or declare the whole file)"
    );
    assert_eq!(world.read("/etc/login.defs"), "UMASK 022 \\\n");
}

#[test]
fn several_settings_share_a_file_and_owe_what_they_change() {
    let mut world = World::new();
    world.fakes.units.add("ssh.service", "active", "enabled");
    world.write("/etc/ssh/sshd_config", "#Port 22\n\nMatch all\n");
    let root =
        a_setting("/etc/ssh/sshd_config", "/etc/ssh/sshd_config", Edits::Ssh(entries(&[("PermitRootLogin", "no")])));
    let port = a_setting("port", "/etc/ssh/sshd_config", Edits::Ssh(entries(&[("Port", "2222")])));
    let lines = Edits::Block { name: "mark".to_owned(), comment: "#".to_owned(), lines: vec!["# seen".to_owned()] };
    let mark = a_setting("mark", "/etc/ssh/sshd_config", lines);
    let state = desired(vec![root.notifies(Notify::Restart, "ssh.service"), port, mark]);
    assert!(world.converge(&state).converged());
    assert_eq!(
        world.read("/etc/ssh/sshd_config"),
        "#Port 22\nPort 2222\n\nPermitRootLogin no\nMatch all\n# BEGIN rekindle: mark\n# seen\n# END rekindle: mark\n"
    );
    assert!(world.plan(&state).is_empty());
    assert!(world.fakes.units.log().iter().any(|call| call.contains("ssh.service")), "{:?}", world.fakes.units.log());
}

#[test]
fn a_second_name_keeps_what_it_had() {
    let mut world = World::new();
    world.write("/etc/login.defs", "UMASK 022\n");
    std::fs::hard_link(world.path("/etc/login.defs"), world.path("/other")).unwrap();
    assert!(world.converge(&desired(vec![umask()])).converged());
    assert_eq!((world.read("/etc/login.defs").as_str(), world.read("/other").as_str()), ("UMASK 027\n", "UMASK 022\n"));
}
