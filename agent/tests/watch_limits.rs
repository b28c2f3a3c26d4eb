//! The watcher under pressure: queues that overflow, watches that run out, interests that change, trees that churn.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests change files as others do, and fail at once"
)]

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rekindle::watch::{DirtySet, Hint, How, Options, Sink, Sources, Touch, Touched, WatchError, Watcher};

#[path = "watch_common/storm.rs"]
mod storm;
mod watch_common;
use storm::storm;
use watch_common::{DEADLINE, Guard, for_each_source, interest};

fn write(path: impl AsRef<Path>, content: &str) {
    fs::write(path, content).unwrap();
}

/// A callback that blocks until it is let go.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let is_open = self.is_open.lock().unwrap();
        drop(self.opened.wait_while(is_open, |is_open| !*is_open).unwrap());
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

#[test]
fn case_21_an_overflow_means_everything_and_what_came_meanwhile_is_watched() {
    for_each_source(|sources| {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let gate = Arc::new(Gate::default());
        let hints = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let watcher = Watcher::start_with(dir.path().to_owned(), Options { sources, ..Options::default() }, {
            let (gate, hints) = (Arc::clone(&gate), Arc::clone(&hints));
            move |hint: Result<Hint, WatchError>| {
                gate.pass();
                hints.0.lock().unwrap().push(hint.unwrap());
                hints.1.notify_all();
            }
        })
        .unwrap();
        watcher.set_interests(vec![interest("/d/t"), interest("/new/t")]);
        // The watcher's thread is stopped in the middle of this one.
        write(dir.path().join("d/t"), "x");
        storm(&dir.path().join("d"));
        // Nobody is told of this one.
        fs::create_dir(dir.path().join("new")).unwrap();
        gate.open();
        let wait_for = |is_expected: &dyn Fn(&Hint) -> bool| {
            let heard = hints.0.lock().unwrap();
            let (mut heard, timeout) =
                hints.1.wait_timeout_while(heard, DEADLINE, |heard| !heard.iter().any(is_expected)).unwrap();
            assert!(!timeout.timed_out(), "{heard:?}");
            heard.clear();
        };
        wait_for(&|hint| matches!(hint, Hint::Everything { why } if why.contains("overflow")));
        assert!(watcher.stats().n_overflows >= 1);
        write(dir.path().join("new/t"), "in a directory that came while the queue was full");
        wait_for(&|hint| matches!(hint, Hint::Look(look) if look.contains(&watch_common::id("/new/t"))));
    });
}

#[test]
fn case_22_where_watches_run_out_paths_are_polled_and_coverage_says_so() {
    for_each_source(|sources| {
        // The root takes the only one.
        let guard = Guard::with(Options { sources, max_watches: 1, ..Options::default() }, &["/top", "/d/t"], |root| {
            fs::create_dir(root.join("d")).unwrap();
            write(root.join("d/t"), "good");
        });
        let coverage = guard.watcher.coverage();
        let n_watched = coverage.n_fanotify + coverage.n_inotify;
        assert_eq!((n_watched, coverage.n_polled, coverage.n_blind), (1, 1, 0));
        let [complaint] = &coverage.complaints[..] else { panic!("{coverage:?}") };
        assert_eq!(complaint.interest, interest("/d/t"));
        assert!(matches!(&complaint.how, How::Polled { why } if why.contains("max_user_watches")), "{complaint:?}");
        assert_eq!(guard.watcher.stats().n_watches, 1);
        let start = Instant::now();
        write(guard.at("/d/t"), "evil");
        guard.expect("/d/t");
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
        fs::set_permissions(guard.at("/d/t"), fs::Permissions::from_mode(0o777)).unwrap();
        guard.expect("/d/t");
        fs::remove_dir_all(guard.at("/d")).unwrap();
        guard.expect("/d/t");
    });
}

#[test]
fn case_22_no_watch_at_all_is_no_reason_to_stop() {
    for_each_source(|sources| {
        let guard = Guard::with(Options { sources, max_watches: 0, ..Options::default() }, &["/d/t"], |_| {});
        fs::create_dir(guard.at("/d")).unwrap();
        write(guard.at("/d/t"), "new");
        guard.expect("/d/t");
        assert_eq!(guard.watcher.stats().n_watches, 0);
    });
}

#[test]
fn watches_that_come_free_are_taken() {
    for_each_source(|sources| {
        let guard = Guard::with(Options { sources, max_watches: 2, ..Options::default() }, &["/a/t", "/b/t"], |root| {
            fs::create_dir(root.join("a")).unwrap();
            fs::create_dir(root.join("b")).unwrap();
        });
        let polled = || guard.watcher.coverage().n_polled;
        assert_eq!(polled(), 1);
        guard.watcher.set_interests(vec![interest("/b/t")]);
        guard.watcher.refresh();
        assert_eq!(polled(), 0);
        write(guard.at("/b/t"), "new");
        guard.expect("/b/t");
    });
}

#[test]
fn case_20_two_paths_to_one_directory_share_a_watch_and_neither_takes_it_from_the_other() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/real/t", "/alias/t"], |root| {
            fs::create_dir(root.join("real")).unwrap();
            write(root.join("real/t"), "good");
            symlink("real", root.join("alias")).unwrap();
        });
        let n_watches = guard.watcher.stats().n_watches;
        write(guard.at("/real/t"), "evil");
        guard.expect_all(&["/real/t", "/alias/t"]);
        guard.watcher.set_interests(vec![interest("/real/t")]);
        assert_eq!(guard.watcher.stats().n_watches, n_watches);
        guard.settle();
        write(guard.at("/real/t"), "evil again");
        guard.expect("/real/t");
        guard.watcher.set_interests(vec![interest("/alias/t")]);
        guard.settle();
        write(guard.at("/real/t"), "and again");
        guard.expect("/alias/t");
        guard.watcher.set_interests(Vec::new());
        guard.settle();
        write(guard.at("/real/t"), "nobody's business");
        guard.expect_silence();
    });
}

#[test]
fn one_path_may_matter_to_many_resources() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &[], |root| {
            fs::create_dir(root.join("etc")).unwrap();
            write(root.join("etc/passwd"), "root:x:0:0");
        });
        let users: Vec<_> = (0..10)
            .map(|i| rekindle::watch::Interest {
                path: "/etc/passwd".into(),
                resource: rekindle::resource::ResourceId::new(rekindle::resource::Kind::User, format!("u{i}")),
            })
            .collect();
        guard.watcher.set_interests(users.clone());
        write(guard.at("/etc/passwd+"), "x");
        fs::rename(guard.at("/etc/passwd+"), guard.at("/etc/passwd")).unwrap();
        let mut missing: std::collections::BTreeSet<_> = users.into_iter().map(|user| user.resource).collect();
        guard.expect_hints(|hint| {
            if let Hint::Look(look) = hint {
                missing.retain(|id| !look.contains(id));
            }
            missing.is_empty()
        });
    });
}

#[test]
fn reloads_leak_no_watch_and_miss_no_change() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &["/keep/t"], |root| {
            for i in 0..100 {
                fs::create_dir_all(root.join(format!("many/{i}"))).unwrap();
            }
            fs::create_dir(root.join("keep")).unwrap();
            write(root.join("keep/t"), "good");
            fs::hard_link(root.join("keep/t"), root.join("many/link")).unwrap();
        });
        let baseline = guard.watcher.stats().n_watches;
        let more: Vec<_> = (0..1000)
            .map(|i| interest(&format!("/many/{}/f{i}", i % 100)))
            .chain([interest("/keep/t"), interest("/many/3"), interest("/missing/x")])
            .collect();
        for i in 0..50 {
            guard.watcher.set_interests(more.clone());
            assert!(guard.watcher.stats().n_watches > baseline + 90);
            guard.settle();
            write(guard.at("/keep/t"), &format!("evil {i}"));
            guard.watcher.set_interests(vec![interest("/keep/t")]);
            guard.expect("/keep/t");
            assert_eq!(guard.watcher.stats().n_watches, baseline, "after {i} reloads");
        }
    });
}

#[test]
fn ten_thousand_files_are_armed_quickly_with_a_watch_for_each_directory() {
    for_each_source(|sources| {
        let guard = Guard::new(sources, &[], |root| {
            for i in 0..100 {
                fs::create_dir_all(root.join(format!("d{i}"))).unwrap();
            }
        });
        let start = Instant::now();
        guard.watcher.set_interests((0..10_000).map(|i| interest(&format!("/d{}/f{i}", i % 100))).collect());
        let took = start.elapsed();
        assert_eq!(guard.watcher.stats().n_watches, 101);
        assert!(took.as_secs() < 5, "{took:?}");
    });
}

/// Writes to a file as soon as a look at everything has found the first differences, and notes how many it had found when that
/// was announced.
struct Impatient {
    last: PathBuf,
    n_found: usize,
    has_written: bool,
    served_after: Arc<Mutex<Option<usize>>>,
    n_found_in_all: Arc<Mutex<usize>>,
}

impl Sink for Impatient {
    fn touched(&mut self, touch: &Touch<'_>) -> Touched {
        if self.has_written && touch.resources.iter().any(|id| *id == watch_common::id("/d599/t")) {
            self.served_after.lock().unwrap().get_or_insert(self.n_found);
        }
        Touched::Settled
    }

    fn hint(&mut self, hint: Hint) {
        let Hint::Look(look) = hint else { panic!("{hint:?}") };
        self.n_found += look.len();
        *self.n_found_in_all.lock().unwrap() = self.n_found;
        if !self.has_written {
            self.has_written = true;
            write(&self.last, "evil");
        }
    }

    fn ended(&mut self, error: WatchError) {
        panic!("{error}");
    }
}

#[test]
fn an_event_waits_for_a_few_directories_and_not_for_a_look_at_all() {
    for_each_source(|sources| {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("elsewhere")).unwrap();
        for i in 0..600 {
            fs::create_dir(dir.path().join(format!("d{i:03}"))).unwrap();
            write(dir.path().join(format!("d{i:03}/t")), "good");
        }
        let (served_after, n_found_in_all) = (Arc::default(), Arc::default());
        let sink = Impatient {
            last: dir.path().join("d599/t"),
            n_found: 0,
            has_written: false,
            served_after: Arc::clone(&served_after),
            n_found_in_all: Arc::clone(&n_found_in_all),
        };
        let options = Options { sources, ..Options::default() };
        let watcher = Watcher::start_with(dir.path().to_owned(), options, sink).unwrap();
        watcher.set_interests((0..600).map(|i| interest(&format!("/d{i:03}/t"))).collect());
        watcher.stats();
        // A second name makes no event where the first one is, and a difference for whoever looks.
        for i in 0..600 {
            fs::hard_link(dir.path().join(format!("d{i:03}/t")), dir.path().join(format!("elsewhere/{i}"))).unwrap();
        }
        watcher.refresh();
        let served_after = served_after.lock().unwrap().expect("the write was announced");
        assert!(served_after <= 64, "after {served_after} directories");
        assert_eq!(*n_found_in_all.lock().unwrap(), 600);
    });
}

/// A small generator, so that a failure can be repeated.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn directory(&mut self) -> String {
        format!("a{}/b{}/c{}", self.below(4), self.below(3), self.below(3))
    }
}

/// One random change; most of them make ways come and go. Any of them may fail because of an earlier one.
fn churn(root: &Path, rng: &mut Rng, i: u32) -> std::io::Result<()> {
    match rng.below(10) {
        0..=4 => {
            let directory = root.join(rng.directory());
            fs::create_dir_all(&directory)?;
            fs::write(directory.join(format!("f{}", rng.below(3))), format!("{i}"))
        }
        5 => {
            let directory = root.join(rng.directory());
            fs::create_dir_all(&directory)?;
            fs::write(directory.join("tmp"), format!("{i}"))?;
            fs::rename(directory.join("tmp"), directory.join("f0"))
        }
        6 => fs::rename(root.join(format!("a{}", rng.below(4))), root.join(format!("a{}", rng.below(4)))),
        7 => fs::rename(root.join(rng.directory()), root.join(rng.directory())),
        8 => {
            let link = root.join(format!("a{}", rng.below(4)));
            if link.is_symlink() {
                fs::remove_file(&link)?;
            }
            symlink(format!("a{}", rng.below(4)), link)
        }
        _ => fs::remove_dir_all(root.join(format!("a{}", rng.below(4)))),
    }
}

/// Whoever looks exactly where the hints say ends up knowing what is there, whatever happened in between.
fn check_churn(sources: Sources, seed: u64) {
    let paths: Vec<String> =
        (0..4 * 3 * 3 * 3).map(|i| format!("/a{}/b{}/c{}/f{}", i / 27, i / 9 % 3, i / 3 % 3, i % 3)).collect();
    // In memory, where the changes come fastest.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let root = dir.path().to_owned();
    let dirty = Arc::new((Mutex::new(DirtySet::default()), Condvar::new()));
    let watcher = Watcher::start_with(root.clone(), Options { sources, ..Options::default() }, {
        let dirty = Arc::clone(&dirty);
        move |hint: Result<rekindle::watch::Hint, rekindle::watch::WatchError>| {
            if dirty.0.lock().unwrap().add(hint.unwrap()) {
                dirty.1.notify_all();
            }
        }
    })
    .unwrap();
    watcher.set_interests(paths.iter().map(|path| interest(path)).collect());
    let look = {
        let root = root.clone();
        move |path: &str| fs::read_to_string(root.join(path.trim_start_matches('/'))).ok()
    };
    let ended = Arc::new(AtomicBool::new(false));
    let observer = std::thread::spawn({
        let (dirty, ended, look, paths) = (Arc::clone(&dirty), Arc::clone(&ended), look.clone(), paths.clone());
        move || {
            let mut known: HashMap<String, Option<String>> = paths.iter().map(|path| (path.clone(), None)).collect();
            loop {
                let waiting = dirty.0.lock().unwrap();
                let hint = {
                    let mut waiting = dirty.1.wait_timeout(waiting, std::time::Duration::from_millis(1)).unwrap().0;
                    waiting.take()
                };
                match hint {
                    Some(Hint::Look(ids)) => {
                        known.extend(ids.into_iter().map(|id| (id.name.to_string(), look(&id.name))))
                    }
                    Some(Hint::Everything { .. }) => {
                        known.extend(paths.iter().map(|path| (path.clone(), look(path))));
                    }
                    None if ended.load(Ordering::SeqCst) => return known,
                    None => {}
                }
            }
        }
    });
    let mut rng = Rng(seed);
    let n_done = (0..4000).filter(|i| churn(&root, &mut rng, *i).is_ok()).count();
    assert!(n_done > 1000, "too little happened: {n_done}");
    // What happened before a call is hinted before it returns.
    watcher.stats();
    ended.store(true, Ordering::SeqCst);
    let known = observer.join().unwrap();
    let stale: Vec<_> = paths
        .iter()
        .filter_map(|path| {
            let truth = look(path);
            (known[path] != truth).then(|| (path.clone(), known[path].clone(), truth))
        })
        .collect();
    assert!(stale.is_empty(), "seed {seed}: {stale:?}");
    watcher.set_interests(Vec::new());
    assert_eq!(watcher.stats().n_watches, 0, "seed {seed}");
}

#[test]
fn after_any_churn_what_the_hints_showed_is_the_truth() {
    for_each_source(|sources| {
        for seed in [88_172_645_463_325_252, 1, 2, 3, 42, 1_234_567, 0xDEAD_BEEF, 987_654_321] {
            check_churn(sources, seed);
        }
    });
}
