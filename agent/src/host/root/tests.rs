use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::attributes::tests::{NOBODY, acl};
use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    root: Root,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::open(dir.path()).unwrap();
    Fixture { dir, root }
}

impl Fixture {
    fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn directory(&self, path: &str, mode: u32) {
        std::fs::create_dir_all(self.host(path)).unwrap();
        self.chmod(path, mode);
    }

    fn chmod(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.host(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn file(&self, path: &str, content: &str) {
        self.root.replace_file(&path_of(path), content.as_bytes(), ours(0o644)).unwrap();
    }

    fn content(&self, path: &str) -> String {
        std::fs::read_to_string(self.host(path)).unwrap()
    }

    fn names(&self, path: &str) -> Vec<String> {
        let names = self.root.list_names(&path_of(path), 100).unwrap().unwrap();
        names.into_iter().map(|name| name.into_string().unwrap()).collect()
    }
}

fn path_of(path: &str) -> AbsPath {
    AbsPath::new(path).unwrap()
}

fn ours(mode: u32) -> Permissions {
    let (uid, gid) = crate::host::current_ids();
    Permissions { uid, gid, mode: Mode::from_bits(mode) }
}

fn is_root() -> bool {
    crate::host::current_ids().0 == 0
}

#[test]
fn what_is_not_there_is_none_and_what_cannot_be_told_is_an_error() {
    let f = fixture();
    f.directory("/d", 0o755);
    f.file("/d/f", "x");
    symlink("nowhere", f.host("/d/dangling")).unwrap();
    for absent in ["/a", "/a/b/c", "/d/f/below", "/d/dangling/x"] {
        assert_eq!(f.root.metadata(&path_of(absent)).unwrap(), None, "{absent}");
        assert_eq!(f.root.read(&path_of(absent), 10).unwrap(), None, "{absent}");
        assert_eq!(f.root.read_link(&path_of(absent)).unwrap(), None, "{absent}");
        assert!(!f.root.remove_file(&path_of(absent)).unwrap(), "{absent}");
        assert!(!f.root.remove_directory(&path_of(absent)).unwrap(), "{absent}");
        assert_eq!(f.root.remove_leftovers(&path_of(absent)).unwrap(), 0, "{absent}");
    }
    let kind = |path: &str| f.root.metadata(&path_of(path)).unwrap().unwrap().file_type;
    assert_eq!(kind("/"), FileType::Directory);
    assert_eq!(kind("/d"), FileType::Directory);
    assert_eq!(kind("/d/f"), FileType::File);
    assert_eq!(kind("/d/dangling"), FileType::Symlink);
    symlink("loop", f.host("/loop")).unwrap();
    assert!(f.root.metadata(&path_of("/loop/x")).is_err());
}

#[test]
fn reading_is_bounded_and_only_of_regular_files() {
    let f = fixture();
    f.file("/f", "12345");
    f.file("/empty", "");
    symlink("f", f.host("/link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, f.host("/fifo"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let (content, metadata) = f.root.read(&path_of("/f"), 5).unwrap().unwrap();
    assert_eq!((content.as_slice(), metadata.size), (b"12345".as_slice(), 5));
    assert_eq!(f.root.read(&path_of("/empty"), 0).unwrap().unwrap().0, b"");
    let kind = |path: &str, limit| f.root.read(&path_of(path), limit).unwrap_err().kind();
    assert_eq!(kind("/f", 4), io::ErrorKind::FileTooLarge);
    assert_eq!(kind("/link", 9), io::ErrorKind::InvalidInput);
    assert_eq!(kind("/fifo", 9), io::ErrorKind::InvalidInput);
    assert_eq!(kind("/", 9), io::ErrorKind::InvalidInput);
    assert_eq!(f.root.read_link(&path_of("/link")).unwrap(), Some(PathBuf::from("f")));
    assert_eq!(f.root.read_link(&path_of("/f")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
    let f = fixture();
    f.directory("/d", 0o755);
    f.file("/d/f", "old");
    let before = f.root.metadata(&path_of("/d/f")).unwrap().unwrap();
    f.root.replace_file(&path_of("/d/f"), b"new", ours(0o640)).unwrap();
    let after = f.root.metadata(&path_of("/d/f")).unwrap().unwrap();
    assert_eq!((f.content("/d/f").as_str(), after.mode.bits()), ("new", 0o640));
    assert_ne!(before.identity, after.identity);
    symlink("/etc/passwd", f.host("/d/link")).unwrap();
    f.root.replace_file(&path_of("/d/link"), b"a file now", ours(0o4755)).unwrap();
    let replaced = f.root.metadata(&path_of("/d/link")).unwrap().unwrap();
    assert_eq!((replaced.file_type, replaced.mode.bits()), (FileType::File, 0o4755));
    assert_eq!(f.names("/d"), ["f", "link"]);
}

#[test]
fn a_refused_write_leaves_the_target_and_the_directory_as_they_were() {
    let f = fixture();
    f.directory("/d/sub", 0o755);
    f.directory("/d/full/x", 0o755);
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(f.root.replace_file(&path_of("/d/sub"), b"x", ours(0o644)).map(drop)), io::ErrorKind::IsADirectory);
    assert_eq!(kind(f.root.replace_symlink(&path_of("/d/sub"), "x")), io::ErrorKind::IsADirectory);
    assert_eq!(kind(f.root.replace_file(&path_of("/"), b"x", ours(0o644)).map(drop)), io::ErrorKind::IsADirectory);
    assert_eq!(kind(f.root.replace_file(&path_of("/no/f"), b"x", ours(0o644)).map(drop)), io::ErrorKind::NotFound);
    assert_eq!(kind(f.root.create_directory(&path_of("/d/sub"), ours(0o755))), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(f.root.remove_directory(&path_of("/d/full")).map(drop)), io::ErrorKind::DirectoryNotEmpty);
    assert_eq!(kind(f.root.remove_file(&path_of("/d/sub")).map(drop)), io::ErrorKind::IsADirectory);
    assert_eq!(kind(f.root.set_permissions(&path_of("/d/no"), ours(0o644))), io::ErrorKind::NotFound);
    assert_eq!(f.names("/d"), ["full", "sub"]);
    if !is_root() {
        let foreign = Permissions { uid: 0, gid: 0, mode: Mode::from_bits(0o644) };
        assert_eq!(
            kind(f.root.replace_file(&path_of("/d/f"), b"x", foreign).map(drop)),
            io::ErrorKind::PermissionDenied
        );
        assert_eq!(f.names("/d"), ["full", "sub"]);
    }
}

#[test]
fn links_and_directories_are_made_and_removed() {
    let f = fixture();
    f.root.create_directory(&path_of("/d"), ours(0o2750)).unwrap();
    assert_eq!(f.root.metadata(&path_of("/d")).unwrap().unwrap().mode.bits(), 0o2750);
    f.root.replace_symlink(&path_of("/d/l"), "one").unwrap();
    f.root.replace_symlink(&path_of("/d/l"), "two").unwrap();
    assert_eq!(f.root.read_link(&path_of("/d/l")).unwrap(), Some(PathBuf::from("two")));
    assert_eq!(f.names("/d"), ["l"]);
    assert!(f.root.remove_file(&path_of("/d/l")).unwrap());
    assert!(f.root.remove_directory(&path_of("/d")).unwrap());
    assert_eq!(f.root.metadata(&path_of("/d")).unwrap(), None);
}

#[test]
fn permissions_are_set_on_the_thing_itself() {
    let f = fixture();
    f.file("/f", "x");
    f.directory("/d", 0o700);
    f.root.set_permissions(&path_of("/f"), ours(0o600)).unwrap();
    f.root.set_permissions(&path_of("/d"), ours(0o751)).unwrap();
    let mode = |path: &str| f.root.metadata(&path_of(path)).unwrap().unwrap().mode.bits();
    assert_eq!((mode("/f"), mode("/d")), (0o600, 0o751));
    symlink("f", f.host("/l")).unwrap();
    let error = f.root.set_permissions(&path_of("/l"), ours(0o777)).unwrap_err();
    assert_eq!((error.kind(), mode("/f")), (io::ErrorKind::InvalidInput, 0o600));
    // Even of a file that may not be opened.
    f.root.set_permissions(&path_of("/f"), ours(0o000)).unwrap();
    f.root.set_permissions(&path_of("/f"), ours(0o644)).unwrap();
    assert_eq!(mode("/f"), 0o644);
    if is_root() {
        f.chmod("/f", 0o4755);
        let other = Permissions { uid: 12, gid: 34, mode: Mode::from_bits(0o4755) };
        f.root.set_permissions(&path_of("/f"), other).unwrap();
        let m = f.root.metadata(&path_of("/f")).unwrap().unwrap();
        assert_eq!((m.uid, m.gid, m.mode.bits()), (12, 34, 0o4755), "a change of owner strips the bit");
    }
}

#[test]
fn a_second_name_of_anothers_file_in_a_foreign_directory_keeps_its_owner() {
    if !is_root() {
        return;
    }
    let f = fixture();
    f.file("/secret", "x");
    f.directory("/home", 0o755);
    std::os::unix::fs::chown(f.host("/home"), Some(1000), Some(1000)).unwrap();
    std::fs::hard_link(f.host("/secret"), f.host("/home/keys")).unwrap();
    let theirs = Permissions { uid: 1000, gid: 1000, mode: Mode::from_bits(0o600) };
    assert!(f.root.set_permissions(&path_of("/home/keys"), theirs).is_err());
    assert_eq!(std::fs::metadata(f.host("/secret")).unwrap().uid(), 0);
}

#[test]
fn trusted_links_among_the_parents_are_followed_beneath_the_root() {
    let f = fixture();
    f.directory("/run/lock", 0o755);
    f.directory("/var", 0o755);
    symlink("/run", f.host("/var/run")).unwrap();
    symlink("../../../../run/./lock", f.host("/var/lock")).unwrap();
    symlink("var/run", f.host("/twice")).unwrap();
    for path in ["/var/run/f", "/twice/g", "/var/lock/h"] {
        f.file(path, "x");
    }
    assert_eq!(f.names("/run"), ["f", "g", "lock"]);
    assert_eq!(f.names("/run/lock"), ["h"]);
    // An absolute target means the root, never the system that the root lies in.
    symlink(f.dir.path(), f.host("/var/outside")).unwrap();
    assert_eq!(f.root.metadata(&path_of("/var/outside/run")).unwrap(), None);
}

#[test]
fn links_that_others_may_change_are_not_followed() {
    let f = fixture();
    f.directory("/etc", 0o755);
    f.file("/etc/shadow", "secret");
    f.directory("/open", 0o777);
    f.directory("/sticky", 0o1777);
    f.directory("/group", 0o775);
    f.directory("/open/below", 0o755);
    f.directory("/sticky/below", 0o755);
    for dir in ["/open", "/sticky", "/group", "/open/below", "/sticky/below"] {
        symlink("/etc", f.host(dir).join("l")).unwrap();
    }
    let refused = |path: &str| {
        let path = path_of(path);
        assert_eq!(f.root.read(&path, 99).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{path}");
        assert!(f.root.replace_file(&path, b"x", ours(0o644)).is_err(), "{path}");
        assert!(f.root.remove_file(&path).is_err(), "{path}");
    };
    for path in ["/open/l/shadow", "/sticky/l/shadow", "/group/l/shadow", "/open/below/l/shadow"] {
        refused(path);
    }
    // Nobody else can replace our directory in a sticky one.
    assert!(f.root.read(&path_of("/sticky/below/l/shadow"), 99).unwrap().is_some());
    if is_root() {
        f.directory("/home/alice", 0o755);
        std::os::unix::fs::chown(f.host("/home/alice"), Some(1000), Some(1000)).unwrap();
        symlink("/etc", f.host("/home/alice/.ssh")).unwrap();
        refused("/home/alice/.ssh/shadow");
        f.directory("/srv", 0o755);
        symlink("/etc", f.host("/srv/l")).unwrap();
        std::os::unix::fs::lchown(f.host("/srv/l"), Some(1000), Some(1000)).unwrap();
        refused("/srv/l/shadow");
    }
    assert_eq!(f.content("/etc/shadow"), "secret");
}

#[test]
fn leftovers_of_a_killed_run_are_removed_and_nothing_else() {
    let f = fixture();
    f.file("/.rekindle-0123456789abcdef.tmp", "half");
    f.directory("/.rekindle-0123456789abcde0.tmp", 0o700);
    f.file("/.rekindle-note.tmp", "a person's");
    f.file("/keep", "x");
    assert_eq!(f.root.remove_leftovers(&path_of("/keep")).unwrap(), 2);
    assert_eq!(f.names("/"), [".rekindle-note.tmp", "keep"]);
    assert_eq!(f.root.list_names(&path_of("/"), 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(f.root.list_names(&path_of("/keep"), 1).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    assert_eq!(f.root.list_names(&path_of("/none"), 1).unwrap(), None);
}

#[test]
fn user_attributes_are_carried_over() {
    let f = fixture();
    f.file("/f", "old");
    let set = rustix::fs::setxattr(f.host("/f"), "user.note", b"kept", rustix::fs::XattrFlags::empty());
    if set == Err(Errno::NOTSUP) {
        return;
    }
    set.unwrap();
    f.file("/f", "new");
    let mut value = [0_u8; 16];
    let length = rustix::fs::getxattr(f.host("/f"), "user.note", value.as_mut_slice()).unwrap();
    assert_eq!(&value[..length], b"kept");
}

#[test]
fn a_list_is_not_carried_over() {
    let f = fixture();
    f.file("/f", "old");
    let list = acl(&[(1, 6, NOBODY), (2, 6, 4321), (4, 4, NOBODY), (0x10, 6, NOBODY), (0x20, 4, NOBODY)]);
    let set = rustix::fs::setxattr(f.host("/f"), "system.posix_acl_access", &list, rustix::fs::XattrFlags::empty());
    if set == Err(Errno::NOTSUP) {
        return;
    }
    set.unwrap();
    let extras = f.root.metadata(&path_of("/f")).unwrap().unwrap().extras;
    assert_eq!(extras.acl.as_deref(), Some("user:4321:rw- group::r-- mask::rw-"));
    assert_eq!(f.root.read(&path_of("/f"), 99).unwrap().unwrap().1.extras, extras, "however it is looked at");
    f.root.replace_file(&path_of("/f"), b"new", ours(0o640)).unwrap();
    let metadata = f.root.metadata(&path_of("/f")).unwrap().unwrap();
    assert!(metadata.is_as_declared(ours(0o640)), "{metadata:?}");
    assert!(!metadata.is_as_declared(ours(0o644)));
}

#[test]
fn a_file_system_without_attributes_or_flags_has_none() {
    let proc = Root::open(Path::new("/proc")).unwrap();
    let (_, metadata) = proc.read(&path_of("/version"), 4096).unwrap().unwrap();
    assert_eq!((metadata.extras, metadata.flags), (Extras::default(), Flags::default()));
    assert_eq!(proc.metadata(&path_of("/version")).unwrap().unwrap().extras, Extras::default());
    assert_eq!(proc.metadata(&path_of("/tty")).unwrap().unwrap().extras, Extras::default());
}

#[test]
fn an_immutable_target_is_named_as_such() {
    if !is_root() {
        return;
    }
    let f = fixture();
    f.file("/f", "old");
    let file = File::open(f.host("/f")).unwrap();
    let Ok(flags) = rustix::fs::ioctl_getflags(&file) else { return };
    if rustix::fs::ioctl_setflags(&file, flags | rustix::fs::IFlags::IMMUTABLE).is_err() {
        return;
    }
    let replaced = f.root.replace_file(&path_of("/f"), b"new", ours(0o644));
    let removed = f.root.remove_file(&path_of("/f"));
    let immutable = f.root.metadata(&path_of("/f")).unwrap().unwrap().flags.immutable;
    rustix::fs::ioctl_setflags(&file, flags).unwrap();
    assert!(immutable);
    assert!(replaced.unwrap_err().to_string().contains("immutable"));
    assert!(removed.unwrap_err().to_string().contains("immutable"));
    assert_eq!((f.content("/f").as_str(), f.names("/")), ("old", vec!["f".to_owned()]));
}
