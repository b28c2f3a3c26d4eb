//! Everything about a declared file besides its bytes: lists, capabilities, flags, other names, and what stands in its place.

use std::os::unix::fs::MetadataExt;

use rustix::fs::{IFlags, XattrFlags};

use super::paths::{chmod, fifo, link};
use super::*;
use crate::resource::Change;

const ACL: &str = "system.posix_acl_access";
const CAPABILITIES: &str = "security.capability";
/// `user::rw- user:4321:rw- group::r-- mask::rw- other::r--`.
const LIST: &[(u16, u16, u32)] = &[(1, 6, !0), (2, 6, 4321), (4, 4, !0), (0x10, 6, !0), (0x20, 4, !0)];

/// Whether this test may go on: what it needs is root's. Where everything must be tested, root is there.
pub(super) fn as_root() -> bool {
    let is_root = crate::host::current_ids().0 == 0;
    assert!(is_root || std::env::var_os("CI").is_none(), "this test needs root");
    if !is_root {
        eprintln!("not run: it needs root");
    }
    is_root
}

fn give_list(path: &Path, name: &str) {
    let mut value = vec![2, 0, 0, 0];
    for (tag, permissions, id) in LIST {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    rustix::fs::setxattr(path, name, &value, XattrFlags::empty()).unwrap();
}

fn has(path: &Path, name: &str) -> bool {
    let mut buffer = [0_u8; 256];
    match rustix::fs::lgetxattr(path, name, buffer.as_mut_slice()) {
        Ok(_) => true,
        Err(rustix::io::Errno::NODATA) => false,
        Err(e) => panic!("{e}"),
    }
}

fn set_flags(path: &Path, flags: IFlags) {
    let file = std::fs::File::open(path).unwrap();
    let before = rustix::fs::ioctl_getflags(&file).unwrap();
    let kept = before.difference(IFlags::IMMUTABLE | IFlags::APPEND);
    rustix::fs::ioctl_setflags(&file, kept.union(flags)).unwrap();
}

pub(super) fn inode(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).unwrap().ino()
}

/// Converges once and returns the changes of the only step, as a plan shows them; afterwards everything must be in sync, and the
/// history must tell the same.
#[track_caller]
pub(super) fn repaired(world: &mut World, desired: &DesiredState) -> Vec<String> {
    let planned = world.plan(desired).to_text();
    let report = world.converge(desired);
    let [ResourceReport { outcome: Outcome::Changed { changes, .. }, .. }] = &report.resources[..] else {
        panic!("{report:?}")
    };
    assert!(world.plan(desired).is_empty(), "{}", world.plan(desired).to_text());
    assert_eq!(outcomes(&world.converge(desired)).len(), 1);
    let history = world.record.history(&Default::default()).unwrap();
    assert_eq!(&history[0].changes, changes);
    let mut lines = Vec::new();
    for change in changes {
        let mut text = String::new();
        plan::change_text(&mut text, change);
        assert!(planned.contains(&text), "{planned}");
        lines.push(text.trim().to_owned());
    }
    lines
}

#[test]
fn case_10_an_access_control_list_is_drift_and_is_removed_with_what_it_granted() {
    let mut world = World::new();
    let desired = desired(vec![a_file("/f", "x\n")]);
    assert!(world.converge(&desired).converged());
    let path = world.path("/f");
    let before = inode(&path);
    give_list(&path, ACL);
    assert_eq!(world.mode("/f"), 0o664, "the bits of the group are the list's mask");
    assert_eq!(
        repaired(&mut world, &desired),
        ["mode: 0664 → 0644", "acl: user:4321:rw- group::r-- mask::rw- → (none)"]
    );
    assert_eq!((has(&path, ACL), world.mode("/f"), inode(&path)), (false, 0o644, before));
    // Its mask may be the declared bits: the list is drift all the same.
    give_list(&path, ACL);
    chmod(&world, "/f", 0o644);
    assert_eq!(repaired(&mut world, &desired), ["acl: user:4321:rw- group::r-- mask::r-- → (none)"]);
    // Nor does it survive on the replacement of drifted content.
    world.write("/f", "y\n");
    give_list(&path, ACL);
    let lines = repaired(&mut world, &desired);
    assert!(lines.iter().any(|line| line.starts_with("acl: ")), "{lines:?}");
    assert_eq!((has(&path, ACL), world.mode("/f"), world.read("/f").as_str()), (false, 0o644, "x\n"));
}

#[test]
fn case_10_a_directory_has_no_access_list_and_keeps_its_default_list() {
    let default = "system.posix_acl_default";
    let mut world = World::new();
    let desired = desired(vec![a_directory("/d")]);
    assert!(world.converge(&desired).converged());
    give_list(&world.path("/d"), ACL);
    give_list(&world.path("/d"), default);
    let lines = repaired(&mut world, &desired);
    assert!(lines.iter().any(|line| line.starts_with("acl: ")), "{lines:?}");
    assert_eq!((has(&world.path("/d"), ACL), has(&world.path("/d"), default)), (false, true));
    assert_eq!(world.mode("/d"), 0o750);
    // What is made below it inherits nothing that was not declared.
    let below = super::desired(vec![a_file("/d/f", "x\n"), a_directory("/d/sub")]);
    assert!(world.converge(&below).converged());
    assert!(world.plan(&below).is_empty());
    assert_eq!((has(&world.path("/d/f"), ACL), has(&world.path("/d/sub"), ACL)), (false, false));
}

#[test]
fn case_10_mode_and_owner_are_restored() {
    let mut world = World::new();
    let desired = desired(vec![a_file("/f", "x\n")]);
    assert!(world.converge(&desired).converged());
    chmod(&world, "/f", 0o777);
    assert_eq!(repaired(&mut world, &desired), ["mode: 0777 → 0644"]);
    if as_root() {
        std::os::unix::fs::chown(world.path("/f"), Some(4321), Some(1234)).unwrap();
        assert_eq!(repaired(&mut world, &desired), ["owner: 4321 → 0", "group: 1234 → 0"]);
    }
}

#[test]
fn case_10_capabilities_are_drift_and_are_removed() {
    if !as_root() {
        return;
    }
    let mut world = World::new();
    let desired = desired(vec![a_file("/f", "x\n")]);
    assert!(world.converge(&desired).converged());
    let path = world.path("/f");
    let net_raw: Vec<u8> = [0x0200_0001_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    rustix::fs::setxattr(&path, CAPABILITIES, &net_raw, XattrFlags::empty()).unwrap();
    assert_eq!(repaired(&mut world, &desired), ["capabilities: cap_net_raw=ep → (none)"]);
    assert!(!has(&path, CAPABILITIES));
    rustix::fs::setxattr(&path, "user.note", b"kept", XattrFlags::empty()).unwrap();
    world.write("/f", "y\n");
    rustix::fs::setxattr(&path, CAPABILITIES, &net_raw, XattrFlags::empty()).unwrap();
    let lines = repaired(&mut world, &desired);
    assert!(lines.contains(&"capabilities: cap_net_raw=ep → (none)".to_owned()), "{lines:?}");
    assert_eq!((has(&path, CAPABILITIES), has(&path, "user.note")), (false, true));
}

#[test]
fn case_11_flags_are_drift_and_are_cleared_before_the_content_is_repaired() {
    if !as_root() {
        return;
    }
    for (flags, word) in [
        (IFlags::IMMUTABLE, "immutable"),
        (IFlags::APPEND, "append-only"),
        (IFlags::IMMUTABLE | IFlags::APPEND, "immutable, append-only"),
    ] {
        let mut world = World::new();
        let desired = desired(vec![a_file("/f", "x\n")]);
        assert!(world.converge(&desired).converged());
        set_flags(&world.path("/f"), flags);
        assert_eq!(repaired(&mut world, &desired), [format!("flags: {word} → (none)")], "the flag alone is drift");
        world.write("/f", "evil\n");
        chmod(&world, "/f", 0o666);
        set_flags(&world.path("/f"), flags);
        let lines = repaired(&mut world, &desired);
        assert!(lines.contains(&format!("flags: {word} → (none)")), "{lines:?}");
        assert!(lines.contains(&"mode: 0666 → 0644".to_owned()), "{lines:?}");
        assert_eq!((world.read("/f").as_str(), world.mode("/f")), ("x\n", 0o644));
    }
}

#[test]
fn case_11_flags_are_cleared_off_whatever_stands_in_the_way() {
    if !as_root() {
        return;
    }
    let check = |prepare: fn(&World), resource: Resource| {
        let mut world = World::new();
        prepare(&world);
        set_flags(&world.path("/f"), IFlags::IMMUTABLE);
        let lines = repaired(&mut world, &desired(vec![resource]));
        assert!(lines.contains(&"flags: immutable → (none)".to_owned()), "{lines:?}");
    };
    let file: fn(&World) = |world| world.write("/f", "evil\n");
    let directory: fn(&World) = |world| std::fs::create_dir(world.path("/f")).unwrap();
    check(directory, a_file("/f", "x\n"));
    check(file, no_file("/f"));
    check(directory, no_directory("/f"));
    check(file, a_directory("/f"));
    check(file, a_symlink("/f", "t"));
}

#[test]
fn case_11_a_directory_is_unlocked_only_when_it_is_declared() {
    if !as_root() {
        return;
    }
    let mut world = World::new();
    world.write("/d/f", "evil\n");
    chmod(&world, "/d", 0o750);
    set_flags(&world.path("/d"), IFlags::IMMUTABLE);
    let report = world.converge(&desired(vec![a_file("/d/f", "x\n")]));
    let (error, _) = error_of(&report, 0);
    assert!(error.contains("flag is set on its directory `/d`"), "{error}");
    assert_eq!(world.read("/d/f"), "evil\n");
    let both = desired(vec![a_directory("/d"), a_file("/d/f", "x\n").requires(Kind::Directory, "/d")]);
    let report = world.converge(&both);
    assert_eq!(outcomes(&report), ["changed directory[/d]", "changed file[/d/f]"]);
    let Outcome::Changed { changes, .. } = &report.resources[0].outcome else { panic!("{report:?}") };
    assert_eq!(changes, &[Change::value("flags", Some("immutable".to_owned()), None)]);
    assert_eq!(world.read("/d/f"), "x\n");
    assert!(world.plan(&both).is_empty());
}

#[test]
fn case_11_without_the_capability_the_error_names_the_flag() {
    if !as_root() {
        return;
    }
    let mut world = World::new();
    world.write("/f", "evil\n");
    set_flags(&world.path("/f"), IFlags::IMMUTABLE);
    // Of this thread alone: each test has one.
    let all = rustix::thread::capabilities(None).unwrap();
    let mut fewer = all;
    fewer.effective.remove(rustix::thread::CapabilitySet::LINUX_IMMUTABLE);
    rustix::thread::set_capabilities(None, fewer).unwrap();
    let report = world.converge(&desired(vec![a_file("/f", "x\n")]));
    rustix::thread::set_capabilities(None, all).unwrap();
    set_flags(&world.path("/f"), IFlags::empty());
    let (error, signature) = error_of(&report, 0);
    assert!(error.contains("cannot clear the flags of `/f`") && error.contains("`chattr -ia` clears it"), "{error}");
    assert_eq!(signature, "clear the flags of: permission denied");
    assert_eq!(world.read("/f"), "evil\n");
}

#[test]
fn case_05_a_link_in_the_files_place_is_replaced_and_its_target_untouched() {
    let mut world = World::new();
    let desired = desired(vec![a_file("/etc/f", "x\n")]);
    assert!(world.converge(&desired).converged());
    world.write("/etc/shadow", "secret\n");
    chmod(&world, "/etc/shadow", 0o600);
    let secret = inode(&world.path("/etc/shadow"));
    std::fs::remove_file(world.path("/etc/f")).unwrap();
    link(&world, "/etc/f", "/etc/shadow");
    let lines = repaired(&mut world, &desired);
    assert_eq!(lines[0], "type: symlink to /etc/shadow → file");
    assert_eq!((world.read("/etc/f").as_str(), world.read("/etc/shadow").as_str()), ("x\n", "secret\n"));
    assert_eq!((world.mode("/etc/shadow"), inode(&world.path("/etc/shadow"))), (0o600, secret));
}

#[test]
fn case_06_a_fifo_socket_device_or_empty_directory_is_replaced_without_being_opened() {
    let check = |word: &str, put: fn(&World)| {
        let mut world = World::new();
        put(&world);
        let lines = repaired(&mut world, &desired(vec![a_file("/f", "x\n")]));
        assert_eq!(lines[0], format!("type: {word} → file"));
        assert_eq!(world.read("/f"), "x\n");
    };
    // A FIFO that was opened would hang here: nobody writes to it.
    check("special file", |world| fifo(world, "f"));
    check("special file", |world| drop(std::os::unix::net::UnixListener::bind(world.path("/f")).unwrap()));
    check("directory", |world| std::fs::create_dir(world.path("/f")).unwrap());
    if as_root() {
        check("special file", |world| {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            mknod(&world.path("/f"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 5)).unwrap();
        });
    }
    let mut world = World::new();
    world.write("/f/inside", "kept\n");
    let report = world.converge(&desired(vec![a_file("/f", "x\n")]));
    assert_eq!(error_of(&report, 0).1, "remove: directory not empty");
    assert_eq!(world.read("/f/inside"), "kept\n");
}

#[test]
fn case_07_another_name_is_shown_and_left_behind() {
    let mut world = World::new();
    let desired = desired(vec![a_file("/f", "x\n")]);
    assert!(world.converge(&desired).converged());
    let other = world.path("/other");
    std::fs::hard_link(world.path("/f"), &other).unwrap();
    assert!(world.plan(&desired).is_empty(), "a second name alone is no drift");
    world.write("/other", "evil\n");
    let lines = repaired(&mut world, &desired);
    assert_eq!(lines.last().unwrap(), "links: 2 → 1");
    assert_ne!(inode(&world.path("/f")), inode(&other));
    assert_eq!((world.read("/f").as_str(), world.read("/other").as_str()), ("x\n", "evil\n"));
    // Nor is the other name changed when only the mode is to be.
    std::fs::remove_file(&other).unwrap();
    std::fs::hard_link(world.path("/f"), &other).unwrap();
    chmod(&world, "/other", 0o600);
    assert_eq!(repaired(&mut world, &desired), ["mode: 0600 → 0644", "links: 2 → 1"]);
    assert_eq!((world.mode("/f"), world.mode("/other")), (0o644, 0o600));
}
