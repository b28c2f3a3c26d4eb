//! What no event tells, found by looking: the rolling scans on real files, with the time as an argument.
#![expect(unsafe_code, reason = "an attacker maps a file; the test plays one")]
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]

use std::fs::{self, File, FileTimes};
use std::num::NonZeroUsize;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use rekindle::guard::scan::{Found, Pace, Scan, Scanner};
use rekindle::host::root::{Permissions, Root};
use rekindle::host::verify::Entry;
use rekindle::resource::{AbsPath, Content, Kind, Mode, ResourceId};
use rustix::fs::IFlags;
use tempfile::TempDir;

const SETTLES: Duration = Duration::from_secs(35);
const MINUTE: Duration = Duration::from_secs(60);

struct World {
    dir: TempDir,
    root: Root,
    scan: Scan,
}

impl World {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(dir: TempDir) -> Self {
        let root = Root::open(dir.path()).unwrap();
        Self { dir, root, scan: Scan::new(SETTLES) }
    }

    fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn put(&self, path: &str, content: &str) {
        let (uid, gid) = rekindle::host::current_ids();
        let permissions = Permissions { uid, gid, mode: Mode::from_bits(0o644) };
        self.root.replace_file(&AbsPath::new(path).unwrap(), content.as_bytes(), permissions).unwrap();
    }

    /// Writes in place, as a foreigner would.
    #[expect(clippy::disallowed_methods, reason = "a test plays the foreign writer, who does truncate")]
    fn tamper(&self, path: &str, content: &str) {
        fs::write(self.host(path), content).unwrap();
    }

    fn quick(&mut self, now: SystemTime) -> Found {
        self.scan.quick(&self.root, now)
    }

    fn roll(&mut self, now: SystemTime, n: usize) -> Found {
        self.scan.roll(&self.root, now, n)
    }

    /// A world with one file in sync that has settled.
    fn settled(content: &str) -> Self {
        let mut world = Self::new();
        world.put("/f", content);
        world.scan.declare(vec![entry("/f", content)]);
        assert_eq!(names(&world.quick(later())), NOTHING);
        world
    }
}

fn entry(path: &str, content: &str) -> Entry {
    let (uid, gid) = rekindle::host::current_ids();
    let content = Content::new(content.as_bytes());
    Entry { path: AbsPath::new(path).unwrap(), content, uid, gid, mode: Mode::from_bits(0o644) }
}

/// When whatever was written until now has settled.
fn later() -> SystemTime {
    SystemTime::now() + MINUTE
}

const NOTHING: [String; 0] = [];

fn names(found: &Found) -> Vec<String> {
    found.look.iter().map(ToString::to_string).collect()
}

/// Whether this process may do what only root may. In CI it must be able to.
fn is_root() -> bool {
    let root = rekindle::host::current_ids().0 == 0;
    assert!(root || std::env::var_os("CI").is_none(), "CI must run this test as root");
    root
}

/// A file mapped by somebody who never closes it.
struct Mapping {
    address: std::ptr::NonNull<std::ffi::c_void>,
}

impl Mapping {
    const LENGTH: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

    fn of(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let address = unsafe { mmap(None, Self::LENGTH, protection, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
        Self { address }
    }

    /// Stores one byte at the start of the file. No event tells.
    fn store(&self, byte: u8) {
        // SAFETY: the file has content, so its first page is there; it is not made shorter while it is mapped.
        unsafe { self.address.cast::<u8>().write_volatile(byte) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        unsafe { munmap(self.address, Self::LENGTH.get()) }.unwrap();
    }
}

fn ctime(path: &Path) -> (i64, i64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.ctime(), metadata.ctime_nsec())
}

/// Has somebody store the right byte through a mapping, then runs `between`, then has them store a wrong one, all without the
/// page being written back in between, so that the second store changes neither ctime nor mtime.
fn store_unnoticed(mut world: impl FnMut() -> World, between: impl Fn(&mut World)) -> (World, Mapping) {
    for _ in 0..20 {
        let mut world = world();
        world.put("/f", "good");
        let path = world.host("/f");
        let mapping = Mapping::of(&path);
        mapping.store(b'g');
        let before = ctime(&path);
        between(&mut world);
        mapping.store(b'f');
        if ctime(&path) == before {
            assert_eq!(fs::read_to_string(&path).unwrap(), "food");
            return (world, mapping);
        }
    }
    panic!("the kernel writes back too soon to play this");
}

fn declare(world: &mut World) {
    world.scan.declare(vec![entry("/f", "good")]);
}

#[test]
fn case_08_a_store_through_a_mapping_is_found_by_the_rolling_scan_and_reaches_nobody_after_the_repair() {
    let (mut world, mapping) = store_unnoticed(World::new, |world| {
        declare(world);
        assert_eq!(names(&world.roll(later(), 10)), NOTHING);
    });
    assert_eq!(names(&world.roll(later(), 10)), ["file[/f]"]);
    world.put("/f", "good");
    mapping.store(b'w');
    assert_eq!(fs::read_to_string(world.host("/f")).unwrap(), "good");
    assert_eq!(names(&world.roll(later(), 10)), NOTHING);
}

#[test]
fn case_09_a_second_store_that_changes_no_time_is_found_by_the_unsettled_rule() {
    let (mut world, _mapping) = store_unnoticed(World::new, |world| {
        declare(world);
        let found = world.quick(SystemTime::now());
        assert_eq!((names(&found), found.n_read), (Vec::new(), 1), "what was just written is read and in sync");
    });
    assert_eq!(names(&world.quick(SystemTime::now())), ["file[/f]"]);
    // Unsettled as it is, it is told again: nobody knows what was looked at meanwhile.
    assert_eq!(names(&world.quick(SystemTime::now())), ["file[/f]"]);

    // Without the rule it would not be found: a scan that takes the file for settled sees nothing.
    let (mut world, _mapping) = store_unnoticed(World::new, |world| {
        declare(world);
        assert_eq!(names(&world.quick(later())), NOTHING);
    });
    assert_eq!(names(&world.quick(later())), NOTHING);
    assert_eq!(names(&world.roll(later(), 1)), ["file[/f]"]);
}

#[test]
fn case_09_a_file_settles_when_its_page_has_been_written_back() {
    let mut world = World::new();
    world.put("/f", "good");
    declare(&mut world);
    let (s, ns) = ctime(&world.host("/f"));
    let changed = SystemTime::UNIX_EPOCH + Duration::new(s.try_into().unwrap(), ns.try_into().unwrap());
    let mut n_read = |now| world.quick(now).n_read;
    assert_eq!(n_read(changed), 1);
    // A clock that was set back makes the change time lie in the future.
    assert_eq!(n_read(changed - MINUTE), 1);
    assert_eq!(n_read(changed + SETTLES - Duration::from_nanos(1)), 1);
    // The last reading of an unsettled file.
    assert_eq!(n_read(changed + SETTLES), 1);
    assert_eq!(n_read(changed + SETTLES), 0);
    assert_eq!(n_read(changed), 0, "what has settled stays so");
}

#[test]
fn case_09_files_in_memory_never_settle() {
    const TMPFS: i64 = 0x0102_1994;
    if !rustix::fs::statfs("/dev/shm").is_ok_and(|found| found.f_type == TMPFS) {
        assert!(std::env::var_os("CI").is_none(), "CI must have a tmpfs at /dev/shm");
        return;
    }
    let in_memory = || World::at(tempfile::tempdir_in("/dev/shm").unwrap());
    let next_day = || SystemTime::now() + Duration::from_secs(86_400);
    let (mut world, _mapping) = store_unnoticed(in_memory, |world| {
        declare(world);
        assert_eq!(names(&world.quick(next_day())), NOTHING);
    });
    assert_eq!(names(&world.quick(next_day())), ["file[/f]"]);
}

#[test]
fn case_11_an_immutable_flag_of_which_no_event_tells_is_found_by_the_quick_scan() {
    if !is_root() {
        return;
    }
    let set_flags = |path: &Path, flags| rustix::fs::ioctl_setflags(File::open(path).unwrap(), flags).unwrap();
    for content in ["good", "evil"] {
        let mut world = World::settled("good");
        let path = world.host("/f");
        if content != "good" {
            world.tamper("/f", content);
        }
        set_flags(&path, IFlags::IMMUTABLE);
        let found = world.quick(later());
        set_flags(&path, IFlags::empty());
        assert_eq!(names(&found), ["file[/f]"], "{content}");
    }
}

#[test]
fn case_12_an_edit_of_the_same_length_that_restores_mtime_is_found_by_the_quick_scan() {
    let mut world = World::settled("good");
    let path = world.host("/f");
    let mtime = fs::metadata(&path).unwrap().modified().unwrap();
    world.tamper("/f", "evil");
    let times = FileTimes::new().set_modified(mtime).set_accessed(mtime);
    File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), mtime);
    assert_eq!(names(&world.quick(later())), ["file[/f]"]);
}

#[test]
fn case_36_after_the_clock_was_set_everything_is_read_whatever_it_looks_like() {
    let (mut world, _mapping) = store_unnoticed(World::new, |world| {
        declare(world);
        assert_eq!(names(&world.quick(later())), NOTHING);
    });
    // The change time tells nothing, as it would not when the clock had been set to the time of an earlier change.
    assert_eq!(names(&world.quick(later())), NOTHING);
    world.scan.forget();
    let found = world.quick(SystemTime::now() - Duration::from_secs(3600));
    assert_eq!((names(&found), found.n_read), (vec!["file[/f]".to_owned()], 1));
}

#[test]
fn a_quick_scan_reads_nothing_that_looks_as_it_did() {
    let mut world = World::new();
    let mut entries = Vec::new();
    for i in 0..300 {
        let (path, content) = (format!("/f{i}"), format!("content {i}"));
        world.put(&path, &content);
        entries.push(entry(&path, &content));
    }
    world.scan.declare(entries);
    let first = world.quick(later());
    assert_eq!((first.n_read, first.look.len()), (300, 0));
    let second = world.quick(later());
    assert_eq!((second.n_looked, second.n_read, second.look.len()), (300, 0, 0));
    // Touched without being changed: read once, and in sync.
    world.tamper("/f7", "content 7");
    let third = world.quick(later());
    assert_eq!((third.n_read, third.look.len()), (1, 0));
}

#[test]
fn what_was_told_is_told_again_only_when_it_changes_or_its_turn_comes() {
    let mut world = World::settled("good");
    let chmod = |world: &World, mode| {
        fs::set_permissions(world.host("/f"), fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod(&world, 0o666);
    assert_eq!(names(&world.quick(later())), ["file[/f]"]);
    assert_eq!(names(&world.quick(later())), NOTHING, "whoever was told retries by itself");
    chmod(&world, 0o777);
    assert_eq!(names(&world.quick(later())), ["file[/f]"]);
    assert_eq!(names(&world.roll(later(), 1)), ["file[/f]"], "the rolling scan tells whatever it finds");
    fs::remove_file(world.host("/f")).unwrap();
    assert_eq!(names(&world.quick(later())), ["file[/f]"]);
    assert_eq!(names(&world.quick(later())), NOTHING);
    world.put("/f", "evil");
    assert_eq!(names(&world.quick(later())), ["file[/f]"]);
    world.put("/f", "good");
    let found = world.quick(later());
    assert_eq!((names(&found), found.n_read), (Vec::new(), 1));
    assert_eq!(world.quick(later()).n_read, 0);
}

#[test]
fn the_rolling_scan_reads_every_file_once_a_round() {
    let mut world = World::new();
    let mut entries = Vec::new();
    for i in 0..25 {
        world.put(&format!("/f{i}"), "evil");
        entries.push(entry(&format!("/f{i}"), "good"));
    }
    world.scan.declare(entries);
    let mut all = Found::default();
    for _ in 0..3 {
        let part = world.roll(later(), 10);
        assert!(part.n_read <= 10);
        all.add(part);
    }
    assert_eq!((all.n_read, all.look.len()), (25, 25));
    assert_eq!(world.roll(later(), 10).n_read, 10, "then it begins again");
}

#[test]
fn what_is_known_of_a_file_survives_a_policy_that_declares_it_as_before() {
    let mut world = World::new();
    for name in ["/a", "/b", "/c", "/d/e"] {
        world.put("/x", "x");
        fs::create_dir_all(world.host("/d")).unwrap();
        world.put(name, "good");
    }
    world.scan.declare(["/a", "/b", "/c"].map(|path| entry(path, "good")).to_vec());
    assert_eq!(world.quick(later()).n_read, 3);
    // One gone, one changed, one as before, one new.
    world.scan.declare(vec![entry("/d/e", "good"), entry("/c", "good"), entry("/b", "other")]);
    let found = world.quick(later());
    assert_eq!((names(&found), found.n_looked, found.n_read), (vec!["file[/b]".to_owned()], 1, 2));
}

#[test]
fn the_thread_finds_by_itself_what_no_event_tells() {
    let world = World::new();
    world.put("/f", "good");
    let (found, received) = mpsc::channel();
    let pace = Pace { quick: Duration::from_millis(50), round: Duration::from_secs(3600) };
    let root = Root::open(world.dir.path()).unwrap();
    let scanner = Scanner::start(root, pace, move |look| drop(found.send(look.unwrap()))).unwrap();
    scanner.declare(vec![entry("/f", "good")]);
    world.tamper("/f", "evil");
    let look = received.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(look, [ResourceId::new(Kind::File, "/f")].into());
    drop(scanner);
    assert!(received.iter().all(|look| look.len() == 1), "the thread is gone with its handle");
}

#[test]
fn the_thread_looks_at_once_when_something_may_have_been_missed() {
    let world = World::new();
    world.put("/f", "good");
    let (found, received) = mpsc::channel();
    let pace = Pace { quick: Duration::from_secs(3600), round: Duration::from_secs(3600) };
    let root = Root::open(world.dir.path()).unwrap();
    let scanner = Scanner::start(root, pace, move |look| drop(found.send(look.unwrap()))).unwrap();
    scanner.declare(vec![entry("/f", "good")]);
    world.tamper("/f", "evil");
    let clock = Instant::now();
    scanner.look_now();
    let look = received.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(look, [ResourceId::new(Kind::File, "/f")].into());
    assert!(clock.elapsed() < Duration::from_secs(30));
}
