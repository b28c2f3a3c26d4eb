//! What the guard does about everything but the bytes: lists, capabilities, labels, other attributes.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::guard_common::{GOOD, Sandbox};
use rekindle::host::root::{FileType, Root};
use rekindle::host::selinux::Labels;
use rekindle::resource::{AbsPath, Change};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

const ACL: &str = "system.posix_acl_access";
const LABEL: &str = "security.selinux";

/// `user::rw- user:4321:rw- group::r-- mask::rw- other::r--`.
fn list() -> Vec<u8> {
    let mut value = vec![2, 0, 0, 0];
    for (tag, permissions, id) in [(1_u16, 6_u16, !0_u32), (2, 6, 4321), (4, 4, !0), (0x10, 6, !0), (0x20, 4, !0)] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn get(path: &Path, name: &str) -> Option<String> {
    let mut buffer = [0_u8; 256];
    match rustix::fs::getxattr(path, name, buffer.as_mut_slice()) {
        Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).trim_end_matches('\0').to_owned()),
        Err(Errno::NODATA) => None,
        Err(e) => panic!("{e}"),
    }
}

fn is_as_declared(sandbox: &Sandbox, path: &str) -> bool {
    let root = Root::open(&sandbox.dir.path().join("root")).unwrap();
    let (uid, gid) = rekindle::host::current_ids();
    let mode = rekindle::resource::Mode::from_bits(0o644);
    let path = AbsPath::new(path).unwrap();
    root.read(&path, 1024).unwrap().is_some_and(|(content, metadata)| {
        content == GOOD.as_bytes()
            && metadata.file_type == FileType::File
            && metadata.is_as_declared(rekindle::host::root::Permissions { uid, gid, mode })
    })
}

#[test]
fn case_10_a_list_is_taken_away_and_told() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    set(&sandbox.at("/d/t"), ACL, &list());
    sandbox.wait("the list to go", || is_as_declared(&sandbox, "/d/t"));
    let changes = sandbox.expect_repairs(1).pop().unwrap().changes;
    let expected = Change::value("acl", Some("user:4321:rw- group::r-- mask::rw-".to_owned()), None);
    assert!(changes.contains(&expected), "{changes:?}");
    assert_eq!(sandbox.history().pop().unwrap().changes, changes);
}

#[test]
fn a_list_that_the_stage_hands_down_is_not_on_the_copies() {
    let sandbox = Sandbox::new(tempfile::tempdir().unwrap());
    fs::create_dir(sandbox.stage()).unwrap();
    fs::set_permissions(sandbox.stage(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    set(&sandbox.stage(), "system.posix_acl_default", &list());
    sandbox.arm(&["/d/t"]);
    fs::write(sandbox.at("/d/t"), "evil").unwrap();
    sandbox.wait("the file to be put back", || is_as_declared(&sandbox, "/d/t"));
    sandbox.expect_repairs(1);
}

#[test]
fn attributes_of_users_stay_with_the_path() {
    let sandbox = Sandbox::guard(&["/d/t"]);
    set(&sandbox.at("/d/t"), "user.note", b"kept");
    fs::write(sandbox.at("/d/t"), "evil").unwrap();
    sandbox.expect_good("/d/t");
    sandbox.expect_repairs(1);
    assert_eq!(get(&sandbox.at("/d/t"), "user.note").as_deref(), Some("kept"));
}

#[test]
fn case_48_a_copy_has_the_label_of_its_path_before_it_is_visible() {
    let is_root = rekindle::host::current_ids().0 == 0;
    assert!(is_root || std::env::var_os("CI").is_none(), "this test needs root");
    if !is_root {
        return;
    }
    let policy = tempfile::tempdir().unwrap();
    let (contexts, types) = (policy.path().join("file_contexts"), policy.path().join("customizable_types"));
    fs::write(&contexts, "/.*\tu:r:default_t:s0\n/d/shadow\t--\tu:r:shadow_t:s0\n/d/t\t--\tu:r:etc_t:s0\n").unwrap();
    fs::write(&types, "public_content_t\n").unwrap();
    let labels = Labels::from_files(&contexts, &types).expect("this test needs libselinux.so.1");
    let sandbox = Sandbox::with_root(tempfile::tempdir().unwrap(), |root| root.with_labels(labels));
    let paths = [("/d/shadow", "u:r:shadow_t:s0"), ("/d/t", "u:r:etc_t:s0")];
    fs::create_dir(sandbox.at("/d")).unwrap();
    for (path, label) in paths {
        fs::write(sandbox.at(path), GOOD).unwrap();
        set(&sandbox.at(path), LABEL, label.as_bytes());
    }
    sandbox.arm(&["/d/shadow", "/d/t"]);
    for _ in 0..20 {
        for (path, label) in paths {
            sandbox.expect_ready(2);
            fs::write(sandbox.at("/d/new"), "evil").unwrap();
            set(&sandbox.at("/d/new"), LABEL, label.as_bytes());
            fs::rename(sandbox.at("/d/new"), sandbox.at(path)).unwrap();
            sandbox.wait("the file to be put back", || {
                assert_eq!(get(&sandbox.at(path), LABEL).as_deref(), Some(label), "no other label is ever seen");
                is_as_declared(&sandbox, path)
            });
        }
    }
    // What to do about another label is an ordinary run's to decide.
    set(&sandbox.at("/d/t"), LABEL, b"u:r:evil_t:s0");
    sandbox.expect_hint();
}

#[test]
fn case_47_readers_beside_the_guard_never_find_the_file_absent_empty_or_in_part() {
    let evil = "drifted and longer\n".repeat(4000);
    let sandbox = Sandbox::guard(&["/d/t"]);
    let path = sandbox.at("/d/t");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut n_read = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let content = fs::read_to_string(&path).expect("it is always there");
                assert!(content == GOOD || content == evil, "{} bytes", content.len());
                n_read += 1;
            }
            n_read
        });
        for _ in 0..200 {
            sandbox.expect_ready(1);
            fs::write(sandbox.at("/d/evil"), &evil).unwrap();
            fs::rename(sandbox.at("/d/evil"), &path).unwrap();
            sandbox.expect_good("/d/t");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 10);
    });
}
