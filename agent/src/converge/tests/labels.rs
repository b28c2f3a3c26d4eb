//! SELinux labels: the host's own library and a description of the test's own, on a file system that keeps them. The kernel here
//! enforces nothing, so what is shown is which label is where and when, not what a policy would refuse.

use std::sync::atomic::Ordering;

use rustix::fs::XattrFlags;

use super::attributes::{as_root, inode, repaired};
use super::paths::link;
use super::*;
use crate::host::root::Root;
use crate::host::selinux::Labels;

const LABEL: &str = "security.selinux";
const CONTEXTS: &str = "\
/.*             system_u:object_r:default_t:s0
/etc(/.*)?      system_u:object_r:etc_t:s0
/etc/shadow --  system_u:object_r:shadow_t:s0
/etc/link   -l  system_u:object_r:link_t:s0
/etc/dir    -d  system_u:object_r:dir_t:s0
/etc/own    --  <<none>>
";

/// A world whose host names labels, and where it describes them.
struct Labelled {
    world: World,
    policy: TempDir,
}

#[expect(clippy::disallowed_methods, reason = "a test plays the administrator")]
fn labelled() -> Option<Labelled> {
    if !as_root() {
        return None;
    }
    let policy = tempfile::tempdir().unwrap();
    let contexts = policy.path().join("file_contexts");
    let customizable = policy.path().join("customizable_types");
    std::fs::write(&contexts, CONTEXTS).unwrap();
    std::fs::write(&customizable, "container_file_t\npublic_content_t\n").unwrap();
    let mut world = World::new();
    std::fs::create_dir(world.path("/etc")).unwrap();
    let labels = Labels::from_files(&contexts, &customizable).expect("this test needs libselinux.so.1");
    world.host.root = Root::open(world.root.path()).unwrap().with_labels(labels);
    Some(Labelled { world, policy })
}

fn label(world: &World, path: &str) -> Option<String> {
    label_at(&world.path(path))
}

fn label_at(path: &Path) -> Option<String> {
    let mut buffer = [0_u8; 256];
    match rustix::fs::lgetxattr(path, LABEL, buffer.as_mut_slice()) {
        Ok(length) => Some(String::from_utf8(buffer[..length].to_vec()).unwrap().trim_end_matches('\0').to_owned()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(e) => panic!("{e}"),
    }
}

fn relabel(world: &World, path: &str, label: &str) {
    rustix::fs::lsetxattr(world.path(path), LABEL, label.as_bytes(), XattrFlags::empty()).unwrap();
}

const ETC: &str = "system_u:object_r:etc_t:s0";

#[test]
fn case_48_what_is_made_gets_the_label_of_its_path_and_kind() {
    let Some(Labelled { mut world, policy: _policy }) = labelled() else { return };
    let desired = desired(vec![
        a_file("/etc/f", "x\n"),
        a_file("/etc/shadow", "x\n"),
        a_file("/etc/own", "x\n"),
        a_symlink("/etc/link", "f"),
        a_symlink("/etc/other", "f"),
        a_directory("/etc/dir"),
        a_file("/etc/dir/below/f", "x\n"),
    ]);
    let report = world.converge(&desired);
    assert!(report.converged(), "{report:?}");
    let expected = [
        ("/etc/f", Some(ETC)),
        ("/etc/shadow", Some("system_u:object_r:shadow_t:s0")),
        ("/etc/own", None),
        ("/etc/link", Some("system_u:object_r:link_t:s0")),
        ("/etc/other", Some(ETC)),
        ("/etc/dir", Some("system_u:object_r:dir_t:s0")),
        ("/etc/dir/below", Some(ETC)),
        ("/etc/dir/below/f", Some(ETC)),
    ];
    for (path, expected) in expected {
        assert_eq!(label(&world, path).as_deref(), expected, "{path}");
    }
    assert!(world.plan(&desired).is_empty(), "{}", world.plan(&desired).to_text());
}

#[test]
fn case_48_a_link_among_the_parents_does_not_change_the_label() {
    let Some(Labelled { mut world, policy: _policy }) = labelled() else { return };
    link(&world, "/conf", "/etc");
    let desired = desired(vec![a_file("/conf/shadow", "x\n")]);
    let report = world.converge(&desired);
    assert!(report.converged(), "{report:?}");
    assert_eq!(label(&world, "/etc/shadow").as_deref(), Some("system_u:object_r:shadow_t:s0"));
    assert!(world.plan(&desired).is_empty());
}

#[test]
fn case_10_a_wrong_label_is_drift_and_only_its_type_is_set() {
    let Some(Labelled { mut world, policy: _policy }) = labelled() else { return };
    let desired = desired(vec![a_file("/etc/f", "x\n")]);
    let report = world.converge(&desired);
    assert!(report.converged(), "{report:?}");
    let before = inode(&world.path("/etc/f"));
    relabel(&world, "/etc/f", "unconfined_u:object_r:user_tmp_t:s0:c1,c2");
    assert_eq!(
        repaired(&mut world, &desired),
        ["label: unconfined_u:object_r:user_tmp_t:s0:c1,c2 → unconfined_u:object_r:etc_t:s0:c1,c2"]
    );
    assert_eq!(label(&world, "/etc/f").as_deref(), Some("unconfined_u:object_r:etc_t:s0:c1,c2"));
    assert_eq!(inode(&world.path("/etc/f")), before);
    // Another user or range alone is none, and neither is a type that the administrator may choose.
    for left_alone in ["unconfined_u:object_r:etc_t:s0", "system_u:object_r:container_file_t:s0"] {
        relabel(&world, "/etc/f", left_alone);
        assert!(world.plan(&desired).is_empty(), "{left_alone}");
    }
    rustix::fs::removexattr(world.path("/etc/f"), LABEL).unwrap();
    assert_eq!(repaired(&mut world, &desired), [format!("label: (none) → {ETC}")]);
}

#[test]
fn case_10_wrong_labels_of_directories_and_links_are_set_on_themselves() {
    let Some(Labelled { mut world, policy: _policy }) = labelled() else { return };
    let directory = desired(vec![a_directory("/etc/dir")]);
    let a_link = desired(vec![a_symlink("/etc/link", "dir")]);
    assert!(world.converge(&directory).converged() && world.converge(&a_link).converged());
    relabel(&world, "/etc/dir", "system_u:object_r:tmp_t:s0");
    relabel(&world, "/etc/link", "system_u:object_r:tmp_t:s0");
    let of_link = repaired(&mut world, &a_link);
    assert_eq!(of_link, ["label: system_u:object_r:tmp_t:s0 → system_u:object_r:link_t:s0"]);
    assert_eq!(label(&world, "/etc/dir").as_deref(), Some("system_u:object_r:tmp_t:s0"), "the link was not followed");
    let of_directory = repaired(&mut world, &directory);
    assert_eq!(of_directory, ["label: system_u:object_r:tmp_t:s0 → system_u:object_r:dir_t:s0"]);
}

#[test]
fn case_48_a_replacement_has_the_named_label_or_the_customised_one() {
    let Some(Labelled { mut world, policy: _policy }) = labelled() else { return };
    let desired = desired(vec![a_file("/etc/f", "x\n"), a_file("/etc/own", "x\n")]);
    let report = world.converge(&desired);
    assert!(report.converged(), "{report:?}");
    let mut check = |path: &str, old: &str, expected: &str| {
        std::fs::remove_file(world.path(path)).unwrap();
        world.write(path, "evil\n");
        relabel(&world, path, old);
        let report = world.converge(&desired);
        assert!(report.converged(), "{report:?}");
        assert_eq!(label(&world, path).as_deref(), Some(expected), "{old}");
    };
    check("/etc/f", "unconfined_u:object_r:user_tmp_t:s0", ETC);
    check("/etc/f", "u:object_r:public_content_t:s0", "u:object_r:public_content_t:s0");
    // Where nothing is named, the old one stays.
    check("/etc/own", "u:object_r:any_t:s0", "u:object_r:any_t:s0");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test plays the administrator")]
fn a_changed_description_counts_at_once() {
    let Some(Labelled { mut world, policy }) = labelled() else { return };
    let desired = desired(vec![a_file("/etc/f", "x\n")]);
    let report = world.converge(&desired);
    assert!(report.converged(), "{report:?}");
    let changed = CONTEXTS.replace("etc_t", "conf_t");
    std::fs::write(policy.path().join("file_contexts"), changed).unwrap();
    assert_eq!(repaired(&mut world, &desired), [format!("label: {ETC} → system_u:object_r:conf_t:s0")]);
}

#[test]
fn case_48_no_reader_ever_sees_another_label() {
    let Some(Labelled { mut world, policy: _policy }) = labelled() else { return };
    let desired = desired(vec![a_file("/etc/shadow", "x\n")]);
    let report = world.converge(&desired);
    assert!(report.converged(), "{report:?}");
    let path = world.path("/etc/shadow");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut n_seen = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(label_at(&path).as_deref(), Some("system_u:object_r:shadow_t:s0"));
                n_seen += 1;
            }
            n_seen
        });
        for _ in 0..200 {
            world.write("/etc/shadow", "evil\n");
            let report = world.converge(&desired);
            assert!(report.converged(), "{report:?}");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}

#[test]
fn a_wrong_label_among_many_files_is_drift_too() {
    let Some(Labelled { mut world, policy: _policy }) = labelled() else { return };
    let desired = desired((0..40).map(|i| a_file(&format!("/etc/f{i}"), "x\n")).collect());
    assert!(world.converge(&desired).converged());
    relabel(&world, "/etc/f7", "system_u:object_r:user_home_t:s0");
    let report = world.converge(&desired);
    let changed: Vec<String> = outcomes(&report).into_iter().filter(|outcome| outcome.starts_with("changed")).collect();
    assert_eq!(changed, ["changed file[/etc/f7]"]);
    assert_eq!(label(&world, "/etc/f7").as_deref(), Some(ETC));
}
