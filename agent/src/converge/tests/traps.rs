//! The traps that files hold, row by row of what such tools are known to fall into. What a row needs more than a test for is
//! named beside it.
//!
//! | row | tests |
//! |---|---|
//! | non-atomic write | [`non_atomic_write`], `faults::case_47_*`, `tests/power_cut.rs` |
//! | mode race | [`mode_race`] |
//! | existing target is a symlink | `existing_target_is_a_symlink_*`, `attributes::case_05_*` |
//! | target in a user-writable directory | `target_in_a_user_writable_directory_*` |
//! | SELinux | `labels` |
//! | ACL, xattr, caps | [`acl_xattr_caps`], `attributes::case_10_*` |
//! | hard links | `hard_links_*`, `attributes::case_07_*` |
//! | bind mount / EBUSY, EXDEV, ETXTBSY | [`etxtbsy`], `faults::case_40_*` |
//! | immutable / append-only flag | `attributes::case_11_*` |
//! | read-only FS | [`read_only_fs`], `health::tests::a_fault_of_the_host_is_no_policys` |
//! | disk or inode full | `disk_or_inode_full_*`, `faults::case_37_*`, `record::reserve::tests` |
//! | empty render | [`empty_render`] |
//! | content equal, metadata not | [`content_equal_metadata_not`], `attributes::case_10_*` |
//! | parent directories | [`parent_directories`] |
//! | non-UTF-8 names, very long names | [`non_utf8_names_very_long_names`], `trees` |
//! | editor leftovers | `resource::directory::rules::tests::leftovers_are_spared_for_an_hour_and_no_longer` |
//! | package owns the file | [`package_owns_the_file`], `host::packages::owner::tests`, `tests/agent_loop/beside.rs` |

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use super::attributes::{as_root, inode};
use super::faults::{run, text, unmount, with_own_mounts};
use super::paths::{chmod, link};
use super::*;
use crate::resource::file::{Care, Empty, HardLink, Symlink};

const NEW: &str = "declared\n";

fn careful(path: &str, content: &str, care: Care) -> Resource {
    let spec = file::Spec { care, ..file_spec(content) };
    let ensure = Ensure::Present(spec);
    resource(Kind::File, path, Desired::File(file::Desired { path: abs(path), ensure }))
}

fn symlinked(path: &str, symlink: Symlink) -> Resource {
    careful(path, NEW, Care { symlink, ..Care::default() })
}

fn named_twice(hardlink: HardLink) -> (World, DesiredState) {
    let world = World::new();
    world.write("/etc/f", "drifted");
    std::fs::hard_link(world.path("/etc/f"), world.path("/etc/g")).unwrap();
    (world, desired(vec![careful("/etc/f", NEW, Care { hardlink, ..Care::default() })]))
}

#[test]
fn non_atomic_write() {
    use std::io::Read;
    let mut world = World::new();
    world.write("/etc/f", "what was there");
    let mut reader = std::fs::File::open(world.path("/etc/f")).unwrap();
    let before = inode(&world.path("/etc/f"));
    assert!(world.converge(&desired(vec![a_file("/etc/f", NEW)])).converged());
    assert_ne!(inode(&world.path("/etc/f")), before);
    let mut seen = String::new();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!((seen.as_str(), world.read("/etc/f").as_str()), ("what was there", NEW));
}

#[test]
fn mode_race() {
    if !as_root() {
        return;
    }
    // A change of owner after the mode would strip the set-user-id bit.
    let mut world = World::new();
    let mut program = a_file("/usr/bin/p", NEW);
    let Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) = &mut program.desired else { return };
    spec.ownership = Arc::new(Ownership {
        owner: Principal::Id(1234),
        group: Principal::Id(1234),
        mode: Permission::from_bits(0o6755),
    });
    assert!(world.converge(&desired(vec![program])).converged());
    assert_eq!(world.mode("/usr/bin/p"), 0o6755);
}

#[test]
fn existing_target_is_a_symlink_and_is_replaced_or_refused() {
    let mut world = World::new();
    world.write("/srv/target", "of somebody else");
    std::fs::create_dir_all(world.path("/etc")).unwrap();
    link(&world, "/etc/f", "/srv/target");
    let refusing = desired(vec![symlinked("/etc/f", Symlink::Refuse)]);
    assert!(world.plan(&refusing).to_text().contains("left as it is: refused to replace `/etc/f`"));
    let (error, signature) = error_of(&world.converge(&refusing), 0);
    assert_eq!(signature, "refused: symlink");
    assert!(error.contains("it is a symbolic link to `/srv/target`"), "{error}");
    assert!(world.converge(&desired(vec![symlinked("/etc/f", Symlink::Replace)])).converged());
    assert_eq!((world.read("/etc/f").as_str(), world.read("/srv/target").as_str()), (NEW, "of somebody else"));
}

#[test]
fn existing_target_is_a_symlink_and_is_followed() {
    let mut world = World::new();
    world.write("/usr/real/f", "drifted");
    std::fs::create_dir_all(world.path("/etc")).unwrap();
    chmod(&world, "/", 0o755);
    link(&world, "/etc/f", "../usr/real/hop");
    link(&world, "/usr/real/hop", "f");
    let desired = desired(vec![symlinked("/etc/f", Symlink::Follow)]);
    assert!(world.converge(&desired).converged());
    assert_eq!(world.read("/usr/real/f"), NEW);
    assert!(std::fs::symlink_metadata(world.path("/etc/f")).unwrap().is_symlink());
    // What a link leads to is made where it should be, but never through a directory that is not there.
    std::fs::remove_file(world.path("/usr/real/f")).unwrap();
    assert!(world.converge(&desired).converged());
    assert_eq!(world.read("/usr/real/f"), NEW);
    std::fs::rename(world.path("/usr/real"), world.path("/usr/gone")).unwrap();
    let report = world.converge(&desired);
    let Outcome::Indeterminate { reason } = &report.resources[0].outcome else { panic!("{report:?}") };
    assert!(reason.contains("that directory does not exist"), "{reason}");
}

#[test]
fn target_in_a_user_writable_directory_is_not_followed_out_of_it() {
    let mut world = World::new();
    world.write("/srv/victim", "victim");
    std::fs::create_dir_all(world.path("/home/eve")).unwrap();
    chmod(&world, "/", 0o755);
    link(&world, "/home/eve/f", "/srv/victim");
    chmod(&world, "/home/eve", 0o777);
    let report = world.converge(&desired(vec![symlinked("/home/eve/f", Symlink::Follow)]));
    let Outcome::Indeterminate { reason } = &report.resources[0].outcome else { panic!("{report:?}") };
    assert!(reason.contains("others may change, so it is not followed"), "{reason}");
    // Nor is one among the parents.
    link(&world, "/home/eve/etc", "/srv");
    let report = world.converge(&desired(vec![a_file("/home/eve/etc/victim", NEW)]));
    let Outcome::Indeterminate { reason } = &report.resources[0].outcome else { panic!("{report:?}") };
    assert!(reason.contains("is a symbolic link that others may change"), "{reason}");
    assert_eq!(world.read("/srv/victim"), "victim");
}

#[test]
fn target_in_a_user_writable_directory_gives_no_file_away() {
    if !as_root() {
        return;
    }
    let mut world = World::new();
    world.write("/srv/victim", NEW);
    std::fs::create_dir_all(world.path("/home/eve")).unwrap();
    chmod(&world, "/home/eve", 0o777);
    std::fs::hard_link(world.path("/srv/victim"), world.path("/home/eve/f")).unwrap();
    let mut given = a_file("/home/eve/f", NEW);
    let Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) = &mut given.desired else { return };
    spec.ownership = Arc::new(Ownership {
        owner: Principal::Id(1234),
        group: Principal::Id(1234),
        mode: Permission::from_bits(0o600),
    });
    assert!(world.converge(&desired(vec![given])).converged());
    let owner = |path: &str| std::fs::metadata(world.path(path)).unwrap().uid();
    assert_eq!((owner("/home/eve/f"), owner("/srv/victim")), (1234, 0));
}

#[test]
fn acl_xattr_caps() {
    let mut world = World::new();
    world.write("/etc/f", "drifted");
    let path = world.path("/etc/f");
    if rustix::fs::setxattr(&path, "user.note", b"kept", rustix::fs::XattrFlags::empty()).is_err() {
        return;
    }
    assert!(world.converge(&desired(vec![a_file("/etc/f", NEW)])).converged());
    let mut value = [0_u8; 16];
    let length = rustix::fs::getxattr(&path, "user.note", value.as_mut_slice()).unwrap();
    assert_eq!(&value[..length], b"kept");
}

#[test]
fn hard_links_are_broken() {
    let (mut world, desired) = named_twice(HardLink::Break);
    assert!(world.converge(&desired).converged());
    assert_eq!((world.read("/etc/f").as_str(), world.read("/etc/g").as_str()), (NEW, "drifted"));
}

#[test]
fn hard_links_are_written_through() {
    let (mut world, desired) = named_twice(HardLink::InPlace);
    let before = inode(&world.path("/etc/f"));
    let plan = world.plan(&desired).to_text();
    assert!(plan.contains("method: (none) → in place, not at once: the file has 2 names"), "{plan}");
    let report = world.converge(&desired);
    assert!(report.converged());
    assert_eq!((world.read("/etc/g").as_str(), inode(&world.path("/etc/f"))), (NEW, before));
    let kept = report.resources[0].displaced.clone().expect("what was there is kept");
    assert_eq!(crate::record::kept(world.state.path(), &kept).unwrap().unwrap(), b"drifted");
}

#[test]
fn hard_links_are_refused() {
    let (mut world, desired) = named_twice(HardLink::Refuse);
    let (error, signature) = error_of(&world.converge(&desired), 0);
    assert_eq!(signature, "refused: hard link");
    assert!(error.contains("the file has 2 names"), "{error}");
    assert_eq!(world.read("/etc/f"), "drifted");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a program has to run")]
fn etxtbsy() {
    let mut world = World::new();
    std::fs::create_dir_all(world.path("/bin")).unwrap();
    std::fs::copy("/bin/sleep", world.path("/bin/p")).unwrap();
    std::fs::hard_link(world.path("/bin/p"), world.path("/bin/q")).unwrap();
    let mut child = std::process::Command::new(world.path("/bin/p")).arg("60").spawn().unwrap();
    let in_place = careful("/bin/p", NEW, Care { hardlink: HardLink::InPlace, ..Care::default() });
    let written = world.converge(&desired(vec![in_place]));
    let replaced = world.converge(&desired(vec![a_file("/bin/p", NEW)]));
    child.kill().unwrap();
    child.wait().unwrap();
    let (error, _) = error_of(&written, 0);
    assert!(error.contains("it is a program that runs: it can be replaced, but not written to"), "{error}");
    assert!(replaced.converged());
    assert_eq!(world.read("/bin/p"), NEW);
}

/// One of each kind that owns a path, each out of sync, beneath `/mnt`.
fn every_kind_of_path(world: &World) -> Vec<Resource> {
    world.write("/mnt/f", "drifted\n");
    link(world, "/mnt/l", "elsewhere");
    world.write("/mnt/p/evil", "evil\n");
    let mut tree = a_directory("/mnt/p");
    let Desired::Directory(directory::Desired { ensure: Ensure::Present(spec), .. }) = &mut tree.desired else {
        unreachable!("it is a directory");
    };
    let purge = directory::Purge { depth: directory::Depth::Entries, keep: Box::default(), limit: 10 };
    spec.rules = Some(Box::new(directory::Rules { purge: Some(purge), ..directory::Rules::default() }));
    vec![
        a_file("/mnt/f", &"declared\n".repeat(10_000)),
        a_file("/mnt/new/f", NEW),
        a_directory("/mnt/d"),
        a_symlink("/mnt/l", "declared"),
        tree,
    ]
}

/// Converges while something keeps `spoilt` resources from it, and again when it is over.
fn check_recovery(world: &mut World, desired: &DesiredState, errno: i32, end: impl FnOnce(&World)) {
    for _ in 0..2 {
        let report = world.converge(desired);
        assert!(report.failed().count() > 0, "{report:?}");
        for (index, resource) in report.resources.iter().enumerate() {
            match &resource.outcome {
                Outcome::Failed { .. } => {
                    let (error, signature) = error_of(&report, index);
                    assert!(signature.ends_with(&format!("errno {errno}")), "{signature}: {error}");
                }
                Outcome::Unchanged | Outcome::Changed { .. } => {}
                Outcome::Reported { .. } | Outcome::Indeterminate { .. } | Outcome::Skipped { .. } => {
                    panic!("{resource:?}")
                }
            }
        }
        assert_eq!(world.read("/mnt/f"), "drifted\n");
        let names = world.host.root.list_names(&abs("/mnt"), 100).unwrap().unwrap();
        assert!(names.iter().all(|name| !name.as_bytes().ends_with(b".tmp")), "{names:?}");
    }
    end(world);
    let report = world.converge(desired);
    assert!(report.converged(), "{report:?}");
    assert_eq!(world.read("/mnt/f").len(), 90_000);
}

#[test]
fn disk_or_inode_full_for_every_kind_of_path() {
    if !with_own_mounts() {
        return;
    }
    // Room, but no name: the root, six more, and what fills up the rest.
    let mut world = World::new();
    std::fs::create_dir(world.path("/mnt")).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=1m,nr_inodes=12", "none", text(&world.path("/mnt"))]);
    let desired = desired(every_kind_of_path(&world));
    let fillers: Vec<PathBuf> = (0..12).map(|i| world.path(&format!("/mnt/filler{i}"))).collect();
    for filler in &fillers {
        let made = std::fs::OpenOptions::new().write(true).create_new(true).open(filler);
        drop(made);
    }
    check_recovery(&mut world, &desired, nix::errno::Errno::ENOSPC as i32, |_| {
        fillers.iter().for_each(|filler| drop(std::fs::remove_file(filler)));
    });
    unmount(&world.path("/mnt"));
}

#[test]
fn read_only_fs() {
    if !with_own_mounts() {
        return;
    }
    let mut world = World::new();
    std::fs::create_dir(world.path("/mnt")).unwrap();
    run("mount", &["-t", "tmpfs", "none", text(&world.path("/mnt"))]);
    let mut resources = every_kind_of_path(&world);
    world.write("/mnt/gone", "");
    resources.push(no_file("/mnt/gone"));
    let desired = desired(resources);
    run("mount", &["-o", "remount,ro", text(&world.path("/mnt"))]);
    check_recovery(&mut world, &desired, nix::errno::Errno::EROFS as i32, |world| {
        run("mount", &["-o", "remount,rw", text(&world.path("/mnt"))]);
    });
    unmount(&world.path("/mnt"));
}

#[test]
fn disk_or_inode_full_and_the_journal_and_alerts_still_get_out() {
    if !with_own_mounts() {
        return;
    }
    use crate::record::reserve::{BYTES, Reserve};
    let mut world = World::new();
    let state = world.path("/state");
    std::fs::create_dir(&state).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=64m,nr_inodes=1024", "none", text(&state)]);
    world.record = Record::open(&state).unwrap().record;
    let reserve = Reserve::of(&state);
    assert!(reserve.take().unwrap());
    super::faults::fill(&state);
    for i in 0..1024 {
        let made = std::fs::OpenOptions::new().write(true).create_new(true).open(state.join(format!("filler{i}")));
        if made.is_err() {
            break;
        }
    }
    // The bytes are gone, and so are the names.
    assert!(reserve.is_held());
    for i in 0..200 {
        let desired = desired(vec![a_file("/etc/f", &format!("{i}\n"))]);
        assert!(world.converge(&desired).converged());
    }
    assert!(!reserve.is_held(), "the journal had no room");
    assert_eq!(world.record.take_trouble(), None);
    assert_eq!(world.record.history(&crate::record::HistoryFilter::default()).unwrap().len(), 100);
    assert!(!reserve.take().unwrap(), "there is no room for it yet");
    std::fs::remove_file(state.join("filler")).unwrap();
    for i in 0..1024 {
        drop(std::fs::remove_file(state.join(format!("filler{i}"))));
    }
    assert!(reserve.take().unwrap() && BYTES > 0);
    drop(std::mem::replace(&mut world.record, Record::open(world.state.path()).unwrap().record));
    unmount(&state);
}

#[test]
fn empty_render() {
    let mut world = World::new();
    let came_out_empty = |path: &str| careful(path, "", Care { empty: Empty::Refuse, ..Care::default() });
    // Nothing is lost where nothing was.
    let both = || desired(vec![came_out_empty("/etc/f"), careful("/etc/g", "", Care::default())]);
    assert!(world.converge(&both()).converged());
    world.write("/etc/f", "important\n");
    world.write("/etc/g", "important\n");
    let report = world.converge(&both());
    let (error, signature) = error_of(&report, 0);
    assert_eq!(signature, "refused: empty");
    assert!(error.contains("which has 10 bytes") && error.contains("allow_empty = true"), "{error}");
    assert_eq!((world.read("/etc/f").as_str(), world.read("/etc/g").as_str()), ("important\n", ""));
}

#[test]
fn content_equal_metadata_not() {
    let mut world = World::new();
    let desired = desired(vec![a_file("/etc/f", NEW)]);
    assert!(world.converge(&desired).converged());
    let before = inode(&world.path("/etc/f"));
    chmod(&world, "/etc/f", 0o666);
    assert!(world.converge(&desired).converged());
    assert_eq!((world.mode("/etc/f"), inode(&world.path("/etc/f"))), (0o644, before));
}

#[test]
fn parent_directories() {
    let mut world = World::new();
    std::fs::create_dir(world.path("/srv")).unwrap();
    chmod(&world, "/srv", 0o2775);
    // Each test is a process of its own, so nobody else is bothered.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let converged = world.converge(&desired(vec![a_file("/srv/a/b/f", NEW)])).converged();
    rustix::process::umask(umask);
    assert!(converged);
    assert_eq!(
        ["/srv", "/srv/a", "/srv/a/b", "/srv/a/b/f"].map(|path| world.mode(path)),
        [0o2775, 0o755, 0o755, 0o644]
    );
}

#[test]
fn non_utf8_names_very_long_names() {
    let mut world = World::new();
    let long = format!("/{}", "n".repeat(255));
    world.write("/etc/f", "drifted");
    std::fs::hard_link(world.path("/etc/f"), world.path("/etc").join(OsStr::from_bytes(b"\xff"))).unwrap();
    let deep = format!("/srv{}", long.repeat(15));
    let desired = desired(vec![a_file("/etc/f", NEW), a_file(&long, NEW), a_file(&deep, NEW)]);
    let report = world.converge(&desired);
    assert!(report.converged(), "{report:?}");
    assert_eq!(world.host.root.read(&abs(&deep), 100).unwrap().unwrap().0, NEW.as_bytes());
}

/// What a package manager laid beside a declared file is told, with the package; it is spared, is no drift, and is nothing where the
/// policy declares it itself.
#[test]
fn package_owns_the_file() {
    let mut world = World::new();
    world.write("/var/lib/dpkg/info/app.list", "/etc/d/f\n/etc/d/plain\n");
    world.write("/var/lib/dpkg/info/app.conffiles", "/etc/d/f\n");
    let mut suffixes = vec![];
    for (suffix, whose) in [
        ("dpkg-dist", "is the package's version of it"),
        ("dpkg-new", "is the package's version of it"),
        ("dpkg-old", "is what was there before the package's version"),
        ("rpmnew", "is the package's version of it"),
        ("rpmsave", "is what was there before the package's version"),
        ("ucf-dist", "is the package's version of it"),
    ] {
        world.write(&format!("/etc/d/f.{suffix}"), "another version\n");
        suffixes
            .push(format!("beside file[/etc/d/f]\n    /etc/d/f.{suffix} {whose}; it belongs to app (a conffile)\n"));
    }
    for name in
        ["/etc/d/plain.rpmnew", "/etc/d/other.dpkg-old", "/etc/d/mine.dpkg-dist", "/etc/d/.dpkg-dist", "/etc/d/f.bak"]
    {
        world.write(name, "another version\n");
    }
    std::fs::create_dir(world.path("/etc/d/f.dpkg-bak")).unwrap();
    let files = ["/etc/d/f", "/etc/d/plain", "/etc/d/other", "/etc/d/mine", "/etc/d/mine.dpkg-dist"];
    let state = desired(files.into_iter().map(|path| a_file(path, NEW)).collect());
    assert!(world.converge(&state).converged());
    let plan = world.plan(&state);
    assert!(plan.is_empty(), "it is no drift: {plan:?}");
    let text = plan.to_text();
    suffixes.push("beside file[/etc/d/other]\n    /etc/d/other.dpkg-old is what was there before the package's version; no package has it\n".to_owned());
    suffixes.push("beside file[/etc/d/plain]\n    /etc/d/plain.rpmnew is the package's version of it; it belongs to app (no conffile)\n".to_owned());
    assert_eq!(text, format!("{}0 to change, 5 in sync\n", suffixes.concat()));
    let json = plan.to_json();
    assert_eq!(json["beside"][0]["owners"], serde_json::json!([{ "package": "app", "claim": "conffile" }]));
    assert_eq!(json["beside"].as_array().unwrap().len(), 8);
    // How much else is there is up to whoever may write there: it takes no place from what is told.
    for n in 0..2000 {
        world.write(&format!("/etc/d/{n}.dpkg-old"), "");
    }
    assert_eq!(world.plan(&state).to_text(), text);
    // A database that is not read is no database that knows nothing.
    std::fs::remove_dir_all(world.path("/var/lib/dpkg")).unwrap();
    world.write("/var/lib/rpm/rpmdb.sqlite", "");
    let text = world.plan(&state).to_text();
    assert!(
        text.contains(
            "f.rpmnew is the package's version of it; which package has it is not known: the database of rpm"
        ),
        "{text}"
    );
}
