use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, IFlags, XattrFlags};

use super::*;
use crate::resource::place::Ownership;
use crate::resource::{Ensure, Names, Principal, Verdict, file};

const METHODS: [Method; 4] =
    [Method::OneThread, Method::Threads(NonZeroUsize::new(3).unwrap()), Method::Ring, Method::Auto];

struct Fixture {
    dir: tempfile::TempDir,
    root: Root,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        Self { dir, root }
    }

    fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    /// Writes a file, in place, as a foreigner would.
    #[expect(clippy::disallowed_methods, reason = "a test plays the foreign writer, who does truncate")]
    fn write(&self, path: &str, content: &str) {
        let path = self.host(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn special(&self, path: &str, kind: FileType, device: u64) {
        rustix::fs::mknodat(CWD, self.host(path), kind, 0o644.into(), device).unwrap();
    }

    /// The answers of every method, which must agree.
    #[track_caller]
    fn answers(&self, entries: &[Entry]) -> Vec<Answer> {
        let expected = pass(&self.root, entries, Method::OneThread);
        for method in METHODS {
            assert_eq!(pass(&self.root, entries, method), expected, "{method:?}");
        }
        expected
    }

    #[track_caller]
    fn answer(&self, entry: &Entry) -> Answer {
        self.answers(std::slice::from_ref(entry))[0]
    }
}

fn entry(path: &str, content: &str) -> Entry {
    let (uid, gid) = crate::host::current_ids();
    let content = Content::new(content.as_bytes());
    Entry { path: AbsPath::new(path).unwrap(), content, uid, gid, mode: Mode::from_bits(0o644) }
}

fn is_in_sync(answer: Answer) -> bool {
    matches!(answer, Answer::InSync(_))
}

/// Whether this process may do what only root may. In CI it must be able to.
fn is_root() -> bool {
    let root = crate::host::current_ids().0 == 0;
    assert!(root || std::env::var_os("CI").is_none(), "CI must run this test as root");
    root
}

fn set_flags(path: &std::path::Path, flags: IFlags) {
    let file = fs::File::open(path).unwrap();
    rustix::fs::ioctl_setflags(&file, flags).unwrap();
}

#[test]
fn a_file_is_in_sync_only_with_every_byte_owner_group_and_mode() {
    let f = Fixture::new();
    f.write("/etc/a", "content");
    let good = entry("/etc/a", "content");
    let Answer::InSync(seen) = f.answer(&good) else { panic!("in sync as written") };
    let metadata = fs::metadata(f.host("/etc/a")).unwrap();
    assert_eq!((seen.ino, seen.size, seen.n_links), (metadata.ino(), 7, 1));
    assert_eq!((seen.ctime_s, i64::from(seen.ctime_ns)), (metadata.ctime(), metadata.ctime_nsec()));

    for wrong in [
        entry("/etc/a", "contenT"),
        entry("/etc/a", "conten"),
        entry("/etc/a", "content\n"),
        entry("/etc/a", ""),
        entry("/etc/b", "content"),
        entry("/missing/a", "content"),
        entry("/etc/a/b", "content"),
        Entry { uid: good.uid + 1, ..good.clone() },
        Entry { gid: good.gid + 1, ..good.clone() },
        Entry { mode: Mode::from_bits(0o4644), ..good.clone() },
    ] {
        assert_eq!(f.answer(&wrong), Answer::Differs, "{wrong:?}");
    }
}

#[test]
fn content_of_every_length_around_a_buffer_is_compared_to_its_end() {
    let f = Fixture::new();
    for length in [0, 1, 65_534, 65_535, 65_536, 131_071, 131_072, 131_073, 262_144, 300_000] {
        let content: String = "0123456789".chars().cycle().take(length).collect();
        f.write("/a", &content);
        assert!(is_in_sync(f.answer(&entry("/a", &content))), "{length}");
        f.write("/a", &format!("{content}x"));
        assert_eq!(f.answer(&entry("/a", &content)), Answer::Differs, "one longer than {length}");
        if length > 0 {
            let last_differs = format!("{}x", &content[1..]);
            f.write("/a", &last_differs);
            assert_eq!(f.answer(&entry("/a", &content)), Answer::Differs, "the last of {length}");
        }
    }
}

#[test]
fn what_grants_more_than_the_mode_says_differs() {
    let f = Fixture::new();
    f.write("/acl", "x");
    // The owner's, a named user's, the group's, the mask's and the others' entry.
    let acl: Vec<u8> = [
        &[2, 0, 0, 0][..],
        &[1, 0, 6, 0, 255, 255, 255, 255],
        &[2, 0, 6, 0, 0x34, 0x12, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255],
        &[0x10, 0, 4, 0, 255, 255, 255, 255],
        &[0x20, 0, 4, 0, 255, 255, 255, 255],
    ]
    .concat();
    assert!(is_in_sync(f.answer(&entry("/acl", "x"))));
    rustix::fs::setxattr(f.host("/acl"), "system.posix_acl_access", &acl, XattrFlags::empty()).unwrap();
    assert_eq!(f.answer(&entry("/acl", "x")), Answer::Differs);

    f.write("/user", "x");
    rustix::fs::setxattr(f.host("/user"), "user.note", b"harmless", XattrFlags::empty()).unwrap();
    assert!(is_in_sync(f.answer(&entry("/user", "x"))));

    if is_root() {
        f.write("/capable", "x");
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::fs::setxattr(f.host("/capable"), "security.capability", &capability, XattrFlags::empty()).unwrap();
        assert_eq!(f.answer(&entry("/capable", "x")), Answer::Differs);
        for flag in [IFlags::IMMUTABLE, IFlags::APPEND] {
            f.write("/flagged", "x");
            assert!(is_in_sync(f.answer(&entry("/flagged", "x"))));
            set_flags(&f.host("/flagged"), flag);
            let answer = f.answer(&entry("/flagged", "x"));
            set_flags(&f.host("/flagged"), IFlags::empty());
            assert_eq!(answer, Answer::Differs, "{flag:?}");
        }
    }
}

#[test]
fn nothing_but_a_regular_file_is_opened_and_nothing_hangs() {
    let f = Fixture::new();
    for name in ["fifo", "socket", "directory", "link", "loop", "device"] {
        // Neighbours make a batch of it.
        f.write(&format!("/d/{name}-before"), "x");
    }
    f.special("/d/fifo", FileType::Fifo, 0);
    f.special("/d/socket", FileType::Socket, 0);
    fs::create_dir(f.host("/d/directory")).unwrap();
    f.write("/elsewhere", "x");
    symlink(f.host("/elsewhere"), f.host("/d/link")).unwrap();
    symlink("loop", f.host("/d/loop")).unwrap();
    if is_root() {
        // The null device reads as an empty file.
        f.special("/d/device", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    }
    let names = ["fifo", "socket", "directory", "link", "loop", "device"];
    let mut entries: Vec<Entry> = names.iter().map(|name| entry(&format!("/d/{name}"), "")).collect();
    entries.extend(names.iter().map(|name| entry(&format!("/d/{name}-before"), "x")));
    sort(&mut entries);
    for (entry, answer) in entries.iter().zip(f.answers(&entries)) {
        assert_eq!(is_in_sync(answer), entry.path.to_string().ends_with("-before"), "{}", entry.path);
        assert!(!matches!(answer, Answer::Unknown(_)), "{}: {answer:?}", entry.path);
    }
}

#[test]
fn parents_follow_the_rules_of_the_root() {
    let f = Fixture::new();
    f.write("/real/a", "x");
    symlink("/real", f.host("/ours")).unwrap();
    assert!(is_in_sync(f.answer(&entry("/ours/a", "x"))), "a link of our own is followed, beneath the root");
    symlink("/loop", f.host("/loop")).unwrap();
    assert_eq!(f.answer(&entry("/loop/a", "x")), Answer::Unknown(Errno::LOOP));
    symlink("/../../../../etc", f.host("/out")).unwrap();
    assert_eq!(f.answer(&entry("/out/passwd", "x")), Answer::Differs, "nothing leaves the root");

    fs::create_dir(f.host("/shared")).unwrap();
    fs::set_permissions(f.host("/shared"), fs::Permissions::from_mode(0o777)).unwrap();
    symlink("/real", f.host("/shared/link")).unwrap();
    let entries = [entry("/real/a", "x"), entry("/shared/link/a", "x")];
    let answers = f.answers(&entries);
    assert!(is_in_sync(answers[0]));
    assert_eq!(answers[1], Answer::Unknown(Errno::LOOP), "a link that others may change is not followed");
}

#[test]
fn what_cannot_be_read_is_unknown() {
    // A directory that is not one for reading: `proc` gives a file whose reading fails, to root as well.
    let root = Root::open(std::path::Path::new("/proc/self")).unwrap();
    let (uid, gid) = crate::host::current_ids();
    let entry = Entry { uid, gid, mode: Mode::from_bits(0o600), ..entry("/mem", "") };
    // Longer than it says it is, or an error: never the empty file that its metadata shows.
    for method in METHODS {
        assert_eq!(pass(&root, std::slice::from_ref(&entry), method), [Answer::Unknown(Errno::IO)], "{method:?}");
    }
}

#[test]
fn a_file_that_is_longer_than_it_says_is_not_in_sync() {
    let root = Root::open(std::path::Path::new("/proc")).unwrap();
    let metadata = fs::metadata("/proc/version").unwrap();
    assert_eq!(metadata.len(), 0);
    let mode = Mode::from_bits(metadata.mode());
    let entry = Entry { uid: metadata.uid(), gid: metadata.gid(), mode, ..entry("/version", "") };
    for method in METHODS {
        assert_eq!(pass(&root, std::slice::from_ref(&entry), method), [Answer::Differs], "{method:?}");
    }
}

#[test]
fn a_look_sees_what_a_verification_saw() {
    let f = Fixture::new();
    f.write("/d/a", "x");
    let entries = [entry("/d/a", "x"), entry("/d/b", "x"), entry("/e/c", "x")];
    let Answer::InSync(seen) = f.answers(&entries)[0] else { panic!("in sync as written") };
    let mut looks = Vec::new();
    look_with(&f.root, &entries, &mut |index, look| looks.push((index, look)));
    assert_eq!(looks, [(0, Ok(Some(seen))), (1, Ok(None)), (2, Ok(None))]);
    f.write("/d/a", "y");
    let mut other = None;
    look_with(&f.root, &entries[..1], &mut |_, look| other = look.unwrap());
    assert_ne!(other, Some(seen));
}

#[test]
fn unsorted_entries_get_the_same_answers() {
    let f = Fixture::new();
    let mut entries = Vec::new();
    for i in 0..200 {
        let path = format!("/d{}/f{i}", i % 7);
        f.write(&path, if i % 3 == 0 { "bad" } else { "good" });
        entries.push(entry(&path, "good"));
    }
    let expected: BTreeSet<String> = (0..200).filter(|i| i % 3 != 0).map(|i| format!("/d{}/f{i}", i % 7)).collect();
    for sorted in [false, true] {
        if sorted {
            sort(&mut entries);
        }
        let answers = f.answers(&entries);
        let in_sync = entries.iter().zip(answers).filter(|(_, answer)| is_in_sync(*answer));
        assert_eq!(in_sync.map(|(entry, _)| entry.path.to_string()).collect::<BTreeSet<_>>(), expected);
    }
}

#[test]
fn what_vanishes_or_is_replaced_during_a_pass_is_never_taken_for_the_declared_file() {
    let f = Fixture::new();
    let n_files = 100;
    let mut entries = Vec::new();
    for i in 0..n_files {
        f.write(&format!("/d/f{i}"), "good");
        f.write(&format!("/evil/f{i}"), "evil");
        entries.push(entry(&format!("/d/f{i}"), "good"));
    }
    let inode = |path: &str| fs::metadata(f.host(path)).unwrap().ino();
    let evil: BTreeSet<u64> = (0..n_files).map(|i| inode(&format!("/evil/f{i}"))).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let directory = |name: &str| -> OwnedFd { fs::File::open(f.host(name)).unwrap().into() };
        let (d, e, stop) = (directory("/d"), directory("/evil"), &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for i in 0..n_files {
                    let name = format!("f{i}");
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(d.as_fd(), &name, e.as_fd(), &name, flags).unwrap();
                    rustix::fs::renameat(d.as_fd(), &name, d.as_fd(), "away").unwrap();
                    rustix::fs::renameat(d.as_fd(), "away", d.as_fd(), &name).unwrap();
                    rustix::fs::renameat_with(d.as_fd(), &name, e.as_fd(), &name, flags).unwrap();
                }
            }
        });
        for method in METHODS.iter().cycle().take(40) {
            for answer in pass(&f.root, &entries, *method) {
                match answer {
                    Answer::InSync(seen) => assert!(!evil.contains(&seen.ino), "{method:?} took evil for good"),
                    Answer::Differs => {}
                    Answer::Unknown(errno) => panic!("{method:?}: {errno}"),
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(f.answers(&entries).into_iter().all(is_in_sync));
}

#[test]
fn case_42_thousands_of_files_in_many_directories_are_verified_by_every_method() {
    let f = Fixture::new();
    let mut entries = Vec::new();
    // More directories than are open at once, more files than are in flight.
    for d in 0..100 {
        for i in 0..30 {
            let path = format!("/d{d}/f{i}");
            let content = format!("{path}\n").repeat(1 + i * 4);
            f.write(&path, &content);
            entries.push(entry(&path, &content));
        }
    }
    sort(&mut entries);
    let clock = Instant::now();
    assert!(f.answers(&entries).into_iter().all(is_in_sync));
    f.write("/d50/f7", "evil");
    fs::remove_file(f.host("/d99/f29")).unwrap();
    let answers = f.answers(&entries);
    let wrong: Vec<String> = entries
        .iter()
        .zip(answers)
        .filter(|(_, answer)| *answer == Answer::Differs)
        .map(|(entry, _)| entry.path.to_string())
        .collect();
    assert_eq!(wrong, ["/d50/f7", "/d99/f29"]);
    // Ten passes over 3,000 files: about a tenth of a second when calm. Only something quadratic takes this long.
    assert!(clock.elapsed() < Duration::from_secs(30), "{:?}", clock.elapsed());
}

/// What may be found at a path.
#[derive(Debug, Clone)]
enum Found {
    Nothing,
    File { content: Vec<u8>, mode: u32 },
    Directory,
    Link(String),
    Fifo,
}

fn found() -> impl Strategy<Value = Found> {
    let content = prop_oneof![
        3 => Just(b"declared".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
        1 => Just(b"declarer".to_vec()),
    ];
    let mode = prop_oneof![3 => Just(0o644_u32), 1 => 0..0o10_000_u32];
    prop_oneof![
        1 => Just(Found::Nothing),
        6 => (content, mode).prop_map(|(content, mode)| Found::File { content, mode }),
        1 => Just(Found::Directory),
        1 => "[a-f]{1,3}".prop_map(Found::Link),
        1 => Just(Found::Fifo),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The law that lets a run skip the ordinary observation of what the engine found in sync.
    #[test]
    fn engine_and_ordinary_observation_agree(states in proptest::collection::vec(found(), 1..100)) {
        let f = Fixture::new();
        fs::create_dir(f.host("/d")).unwrap();
        let mut entries = Vec::new();
        for (i, state) in states.iter().enumerate() {
            let path = format!("/d/f{i}");
            let host = f.host(&path);
            match state {
                Found::Nothing => {}
                #[expect(clippy::disallowed_methods, reason = "a fixture")]
                Found::File { content, mode } => {
                    fs::write(&host, content).unwrap();
                    fs::set_permissions(&host, fs::Permissions::from_mode(*mode)).unwrap();
                }
                Found::Directory => fs::create_dir(&host).unwrap(),
                Found::Link(target) => symlink(target, &host).unwrap(),
                Found::Fifo => f.special(&path, FileType::Fifo, 0),
            }
            entries.push(entry(&path, "declared"));
        }
        let answers = f.answers(&entries);
        for (entry, answer) in entries.iter().zip(answers) {
            let spec = file::Spec {
                content: entry.content.clone(),
                ownership: Arc::new(Ownership {
                    owner: Principal::Agent,
                    group: Principal::Agent,
                    mode: entry.mode,
                }),
                care: file::Care::default(),
            };
            let desired = file::Desired { path: entry.path.clone(), ensure: Ensure::Present(spec) };
            let names = Names { uid: Some(entry.uid), gid: Some(entry.gid) };
            let verdict = file::diff(&desired, &file::observe(&f.root, &desired), names, &[]);
            let expected = match verdict {
                Verdict::InSync => true,
                Verdict::Drift(_) => false,
                // A file that this user may not read: unknown to both.
                Verdict::Indeterminate(_) => {
                    prop_assert!(!is_in_sync(answer));
                    continue;
                }
            };
            prop_assert_eq!(is_in_sync(answer), expected, "{}: {:?}", entry.path, answer);
        }
    }
}
