//! The record on a real disk.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::converge::Cause;
use crate::policy::Revision;
use crate::resource::{Action, Change, Kind, Notify, ResourceId, UnitName};

fn file_a() -> ResourceId {
    ResourceId::new(Kind::File, "/a")
}

fn run() -> RunInfo {
    RunInfo { id: None, started: Timestamp::now(), revision: Revision::new("r1"), cause: Cause::Drift, full: false }
}

fn nginx() -> UnitName {
    UnitName::new("nginx.service").unwrap()
}

fn begin(record: &mut Record, run: &mut RunInfo) -> i64 {
    let changes = [Change::value("mode", Some("0600".into()), Some("0644".into()))];
    let resource = file_a();
    let notifies = [(Notify::Reload, nginx())];
    let intent = Intent {
        resource: &resource,
        action: Action::Update,
        changes: &changes,
        backup: None,
        notifies: &notifies,
        who: None,
        before: &[],
        confirm: None,
        time: Timestamp::now(),
    };
    record.begin_steps(run, &[intent]).unwrap()[0]
}

fn open(state: &Path) -> Record {
    let opened = Record::open(state).unwrap();
    assert_eq!(opened.set_aside, None);
    opened.record
}

#[test]
fn a_killed_step_is_found_interrupted_and_its_debt_stands() {
    let state = tempfile::tempdir().unwrap();
    let id = begin(&mut open(state.path()), &mut run());
    let record = open(state.path());
    let history = record.history(&HistoryFilter::default()).unwrap();
    assert_eq!((history[0].id, history[0].outcome.as_str()), (id, "interrupted"));
    assert_eq!(record.debts().unwrap()[0].notify, Notify::Reload);
}

#[test]
fn outcomes_are_found_by_every_filter() {
    let state = tempfile::tempdir().unwrap();
    let mut record = open(state.path());
    let mut run = run();
    let before = Timestamp::now();
    let first = begin(&mut record, &mut run);
    let second = begin(&mut record, &mut run);
    record
        .finish_steps(&[
            StepOutcome { step: first, error: None, duration_us: 7, after: Vec::new() },
            StepOutcome { step: second, error: Some("no".into()), duration_us: 8, after: Vec::new() },
        ])
        .unwrap();
    let reader = Record::open_read_only(state.path()).unwrap();
    let ids = |filter: HistoryFilter| -> Vec<(i64, String)> {
        reader.history(&filter).unwrap().into_iter().map(|e| (e.id, e.outcome)).collect()
    };
    let both = vec![(second, "failed".to_owned()), (first, "changed".to_owned())];
    assert_eq!(ids(HistoryFilter::default()), both);
    assert_eq!(ids(HistoryFilter { limit: 1, ..HistoryFilter::default() }), both[..1]);
    assert_eq!(ids(HistoryFilter { id: Some(first), ..HistoryFilter::default() }), both[1..]);
    assert_eq!(ids(HistoryFilter { resource: Some(file_a()), ..HistoryFilter::default() }), both);
    let other = ResourceId::new(Kind::User, "a");
    assert_eq!(ids(HistoryFilter { resource: Some(other), ..HistoryFilter::default() }), vec![]);
    let later = before + SignedDuration::from_hours(1);
    assert_eq!(ids(HistoryFilter { since: Some(later), ..HistoryFilter::default() }), vec![]);
    assert_eq!(record.repairs_since(&file_a(), before).unwrap(), 1);
    assert_eq!(record.repairs_since(&file_a(), later).unwrap(), 0);
}

#[test]
fn a_corrupt_database_is_set_aside_and_replaced() {
    #[track_caller]
    fn check(damage: impl Fn(&Path)) {
        let state = tempfile::tempdir().unwrap();
        let mut record = open(state.path());
        for _ in 0..50 {
            begin(&mut record, &mut run());
        }
        drop(record);
        damage(&state.path().join("state.db"));
        let mut opened = Record::open(state.path()).unwrap();
        let aside = opened.set_aside.expect("the damaged database is set aside");
        assert!(aside.exists());
        assert_eq!(opened.record.history(&HistoryFilter::default()).unwrap(), vec![]);
        opened.record.save("k", &1).unwrap();
    }
    check(|path| {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(5000).unwrap();
    });
    check(|path| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0xff; 64], 0).unwrap();
    });
    check(|path| {
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.pragma_update(None, "user_version", 999).unwrap();
    });
}

/// A running agent has a database open that it finds no fault with yet, and does not see what is written into another.
#[test]
fn whoever_only_writes_beside_sets_no_damaged_database_aside() {
    let state = tempfile::tempdir().unwrap();
    drop(open(state.path()));
    let path = state.path().join("state.db");
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(&path).unwrap(),
        &[0xff; 64],
        0,
    )
    .unwrap();
    let error = Record::open_for_operator(state.path()).unwrap_err().to_string();
    let expected = format!("`{}` is damaged\nhint: `systemctl restart rekindle-agent`", path.display());
    assert!(error.starts_with(&expected), "{error}");
    let names = std::fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names.into_iter().any(|name| name.to_string_lossy().contains("corrupt")));
}

fn owed(record: &Record) -> Vec<String> {
    let mut owed: Vec<String> =
        record.debts().unwrap().iter().map(|debt| format!("{} {}", debt.unit, debt.because_of)).collect();
    owed.sort();
    owed
}

#[test]
fn what_happens_in_memory_is_handed_over() {
    let state = tempfile::tempdir().unwrap();
    let (b, other) = (ResourceId::new(Kind::File, "/etc/b"), UnitName::new("other.service").unwrap());
    let mut real = open(state.path());
    let old = begin(&mut real, &mut run());
    real.finish_steps(&[StepOutcome { step: old, error: None, duration_us: 1, after: Vec::new() }]).unwrap();
    real.owe(Notify::Reload, &other, &b).unwrap();
    for key in ["kept", "changed", "contested"] {
        real.save(key, &1).unwrap();
    }
    drop(real);

    let mut memory = Record::stand_in(state.path()).unwrap();
    assert!(!memory.is_durable());
    assert_eq!(memory.history(&HistoryFilter::default()).unwrap().len(), 1);
    memory.settle(&other, Timestamp::now()).unwrap();
    let new = begin(&mut memory, &mut run());
    memory.finish_steps(&[StepOutcome { step: new, error: None, duration_us: 1, after: Vec::new() }]).unwrap();
    memory.owe_unsaved(&[(Notify::Restart, nginx())], &b);
    memory.save("changed", &2).unwrap();
    memory.save("contested", &2).unwrap();

    // Somebody else comes first.
    let mut real = open(state.path());
    let between = begin(&mut real, &mut run());
    assert_eq!(between, new, "both count from where the other stopped");
    real.save("contested", &3).unwrap();
    memory.hand_over(&mut real).unwrap();
    let ids: Vec<i64> = real.history(&HistoryFilter::default()).unwrap().iter().map(|entry| entry.id).collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert_eq!(real.untold().unwrap().iter().map(|entry| entry.id).max(), Some(new + 1));
    assert_eq!(owed(&real), ["nginx.service file[/a]", "nginx.service file[/etc/b]"], "the other was paid");
    let value = |key: &str| real.load::<i64>(key).unwrap();
    assert_eq!((value("kept"), value("changed"), value("contested")), (Some(1), Some(2), Some(3)));
    assert!(real.load::<Vec<String>>(LOST).unwrap().is_some(), "what both changed is in doubt");
}

#[test]
fn what_cannot_be_read_is_in_doubt_in_memory_too() {
    let state = tempfile::tempdir().unwrap();
    let memory = Record::stand_in(state.path()).unwrap();
    assert_eq!(memory.load::<Vec<String>>(LOST).unwrap(), None, "nothing was ever recorded");
    std::fs::create_dir(state.path().join("state.db")).unwrap();
    let memory = Record::stand_in(state.path()).unwrap();
    assert_eq!(memory.load::<Vec<String>>(LOST).unwrap(), Some(Vec::new()));
    // Nor does the real one know what was put where meanwhile.
    std::fs::remove_dir(state.path().join("state.db")).unwrap();
    let mut real = open(state.path());
    assert_eq!(real.load::<Vec<String>>(LOST).unwrap(), None);
    memory.hand_over(&mut real).unwrap();
    assert_eq!(real.load::<Vec<String>>(LOST).unwrap(), Some(Vec::new()));
}

#[test]
fn what_another_has_in_hand_is_claimed_only_once_it_is_over() {
    let state = tempfile::tempdir().unwrap();
    let mut other = open(state.path());
    begin(&mut other, &mut run());
    let mut record = Record::open_for_operator(state.path()).unwrap();
    let outcome = |record: &Record| record.history(&HistoryFilter::default()).unwrap()[0].outcome.clone();
    assert_eq!(outcome(&record), "started");
    record.claim(state.path()).unwrap();
    assert_eq!((outcome(&record).as_str(), record.take_interrupted()), ("interrupted", vec![file_a()]));
    // What is in hand from then on is its own.
    begin(&mut record, &mut run());
    record.claim(state.path()).unwrap();
    assert_eq!(outcome(&record), "started");
}

#[test]
fn a_database_that_is_gone_is_not_one_that_never_was() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("state.db");
    let is_lost = || match Record::open_if_any(state.path()) {
        Ok(None) => false,
        Err(RecordError::Lost { path: told }) => told == path,
        other => panic!("{other:?}"),
    };
    assert!(!is_lost(), "nothing was ever recorded");
    std::fs::create_dir(state.path().join("outbox")).unwrap();
    assert!(!is_lost(), "the courier's directories say nothing of a record");
    std::fs::File::create_new(state.path().join("state.db.corrupt-1")).unwrap();
    assert!(is_lost());
    std::fs::remove_file(state.path().join("state.db.corrupt-1")).unwrap();
    drop(open(state.path()));
    assert!(Record::open_if_any(state.path()).unwrap().is_some());
    std::fs::remove_file(&path).unwrap();
    assert!(is_lost(), "its backups are there");
}

/// Whether a lock keeps other processes from thinking that they are alone with the database.
fn is_locked(database: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(database).unwrap();
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    // Other file systems have files of the same number.
    let place = format!(" {major:02x}:{minor:02x}:{} ", file.ino());
    std::fs::read_to_string("/proc/locks").unwrap().lines().any(|line| line.contains(&place))
}

/// Whoever closes any descriptor of a file gives up all locks that the process has on it. Without them a command that writes and
/// ends takes the journal away under the agent.
#[test]
fn opening_it_once_more_leaves_the_locks_of_the_first() {
    let state = tempfile::tempdir().unwrap();
    let first = open(state.path());
    let locks = || std::fs::read_to_string("/proc/locks").unwrap();
    assert!(is_locked(&state.path().join("state.db")), "{}", locks());
    let beside = Record::open_beside(state.path()).unwrap();
    assert!(Record::open_if_any(state.path()).unwrap().is_some());
    assert!(Record::open_if_any(&state.path().join("none")).unwrap().is_none());
    assert!(is_locked(&state.path().join("state.db")));
    drop((first, beside));
    assert!(!is_locked(&state.path().join("state.db")), "nobody has it any more");
}

#[test]
fn files_are_for_the_agent_alone() {
    use std::os::unix::fs::PermissionsExt;
    let state = tempfile::tempdir().unwrap();
    let mut record = open(state.path());
    let name = record.keep(b"old content").unwrap();
    let mode = |path: &str| std::fs::metadata(state.path().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("state.db"), 0o600);
    assert_eq!(mode("backup"), 0o700);
    assert_eq!(mode(&format!("backup/{name}")), 0o600);
    assert_eq!(kept(state.path(), &name).unwrap().as_deref(), Some(&b"old content"[..]));
    assert_eq!(kept(state.path(), "../state.db").unwrap(), None);
}

#[test]
fn the_oldest_backups_go_first() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = backup::BackupStore::with_capacity(directory.path(), 10).unwrap();
    let age = |name: &str, seconds: u64| {
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        let file = std::fs::File::open(directory.path().join(name)).unwrap();
        file.set_times(std::fs::FileTimes::new().set_modified(time)).unwrap();
    };
    let first = store.keep(b"aaaa").unwrap();
    age(&first, 100);
    let second = store.keep(b"bbbb").unwrap();
    age(&second, 50);
    // Kept again: it is the newest now.
    assert_eq!(store.keep(b"aaaa").unwrap(), first);
    let third = store.keep(b"cccc").unwrap();
    let there = |name: &str| backup::read(directory.path(), name).unwrap().is_some();
    assert_eq!([there(&first), there(&second), there(&third)], [true, false, true]);
}

#[test]
fn a_restart_supersedes_a_reload_and_settling_is_durable() {
    let state = tempfile::tempdir().unwrap();
    let mut record = open(state.path());
    for notify in [Notify::Reload, Notify::Restart, Notify::Reload] {
        record.owe(notify, &nginx(), &file_a()).unwrap();
    }
    record.keep_owing(&nginx(), "it would not").unwrap();
    let debts = open(state.path()).debts().unwrap();
    assert_eq!(debts.len(), 1);
    assert_eq!((debts[0].notify, debts[0].error.as_str()), (Notify::Restart, "it would not"));
    record.settle(&nginx(), Timestamp::now()).unwrap();
    assert_eq!(open(state.path()).debts().unwrap(), vec![]);
}

#[test]
fn what_was_not_told_is_known_whoever_recorded_it_and_in_whatever_order() {
    let state = tempfile::tempdir().unwrap();
    let mut worker = open(state.path());
    let mut keeper = Record::open_beside(state.path()).unwrap();
    let mut run = run();
    let resource = file_a();
    let intent = Intent {
        resource: &resource,
        action: Action::Update,
        changes: &[],
        backup: None,
        notifies: &[],
        who: None,
        before: &[],
        confirm: None,
        time: Timestamp::now(),
    };
    let begun = worker.begin_steps(&mut run, &[intent]).unwrap();
    let repair = Repair {
        resource: &resource,
        action: Action::Update,
        changes: &[],
        backup: None,
        notifies: &[],
        who: None,
        place: None,
        time: Timestamp::now(),
        duration_us: 40,
    };
    let repaired = keeper.record_repairs(&run, &[repair]).unwrap();
    // The later one is told first, and then comes a kill.
    worker.told(&repaired).unwrap();
    drop((worker, keeper));
    let mut record = open(state.path());
    let untold = record.untold().unwrap();
    assert_eq!(untold.iter().map(|entry| entry.id).collect::<Vec<_>>(), begun);
    assert_eq!(untold[0].outcome, "interrupted");
    record.told(&begun).unwrap();
    assert_eq!(record.untold().unwrap(), vec![]);
}

#[test]
fn what_is_owed_after_a_restart_began_stays_owed() {
    let state = tempfile::tempdir().unwrap();
    let mut record = open(state.path());
    record.owe(Notify::Restart, &nginx(), &file_a()).unwrap();
    let began = Timestamp::now();
    // The guard puts the file back while the unit, which may have read the wrong one, is starting.
    let repair = Repair {
        resource: &file_a(),
        action: Action::Update,
        changes: &[],
        backup: None,
        notifies: &[(Notify::Restart, nginx())],
        who: None,
        place: None,
        time: began + jiff::SignedDuration::from_millis(1),
        duration_us: 40,
    };
    record.record_repairs(&run(), &[repair]).unwrap();
    record.settle(&nginx(), began).unwrap();
    assert_eq!(record.debts().unwrap().len(), 1);
}

#[test]
fn a_standing_drift_is_noted_once() {
    let mut record = Record::volatile().unwrap();
    let mut run = run();
    let resource = file_a();
    let mut note = |error: &str| {
        record
            .note(
                &mut run,
                &Note {
                    resource: &resource,
                    outcome: "reported",
                    action: Some(Action::Update),
                    changes: &[],
                    error,
                    who: None,
                    time: Timestamp::now(),
                },
            )
            .unwrap()
    };
    let first = note("paused");
    assert_eq!(note("paused"), first);
    assert_ne!(note("on_drift"), first);
}

#[test]
fn who_did_it_is_kept_with_every_kind_of_entry() {
    use crate::actor::{Actor, Confidence};
    let state = tempfile::tempdir().unwrap();
    let mut record = open(state.path());
    let puppet = Actor { confidence: Confidence::Unit, unit: Some("puppet.service".to_owned()), ..Actor::default() };
    let (resource, time) = (file_a(), Timestamp::now());
    let mut run = run();
    for who in [Some(&puppet), None, Some(&Actor::default())] {
        let (action, changes, backup) = (Action::Update, &[][..], None);
        let intent = Intent {
            resource: &resource,
            action,
            changes,
            backup,
            notifies: &[],
            who,
            before: &[],
            confirm: None,
            time,
        };
        record.begin_steps(&mut run, &[intent]).unwrap();
        let repair = Repair {
            resource: &resource,
            action,
            changes,
            backup,
            notifies: &[],
            who,
            place: None,
            time,
            duration_us: 1,
        };
        record.record_repairs(&run, &[repair]).unwrap();
        let error = if who.is_some() { "a" } else { "b" };
        let note = Note { resource: &resource, outcome: "reported", action: None, changes, error, who, time };
        record.note(&mut run, &note).unwrap();
    }
    let entries = open(state.path()).history(&HistoryFilter::default()).unwrap();
    let named: Vec<bool> = entries.iter().rev().map(|entry| entry.actor.as_ref() == Some(&puppet)).collect();
    assert_eq!(named, [true, true, true, false, false, false, false, false, false]);
    assert!(entries.iter().take(6).all(|entry| entry.actor.is_none()), "{entries:?}");
}

#[test]
fn a_database_of_the_version_before_is_brought_up_to_date_with_what_is_in_it() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("state.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(include_str!("tests/version1.sql")).unwrap();
    drop(old);
    // Before an agent has written to it a command can read it.
    let before = Record::open_read_only(state.path()).unwrap().history(&HistoryFilter::default()).unwrap();
    let record = open(state.path());
    let after = record.history(&HistoryFilter::default()).unwrap();
    assert_eq!(after, before);
    assert_eq!(after.len(), 1);
    assert_eq!((after[0].resource.clone(), after[0].duration_us), (file_a(), Some(42)));
    assert_eq!((after[0].backup.as_deref(), &after[0].actor), (Some("abc"), &None));
    assert_eq!(record.debts().unwrap().len(), 1);
    assert_eq!(record.load::<Vec<u8>>("health").unwrap(), Some(vec![1, 2]));
    // It is as a new one.
    let tables = |record: &Record| -> Vec<String> {
        let columns = "SELECT m.name || '.' || c.name || ' ' || c.type || ' ' || c.\"notnull\" FROM sqlite_schema m
            JOIN pragma_table_info(m.name) c ORDER BY m.name, c.cid";
        let mut statement = record.connection.prepare(columns).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(tables(&record), tables(&Record::volatile().unwrap()));
    drop(record);
    assert_eq!(open(state.path()).history(&HistoryFilter::default()).unwrap(), after);
}

#[test]
fn pauses_end() {
    let mut record = Record::volatile().unwrap();
    let now = Timestamp::now();
    let hours = |h: i64| now + SignedDuration::from_hours(h);
    let pause = |until: Timestamp, only: Vec<ResourceId>| NewPause {
        from: now,
        until,
        reason: "work".into(),
        by: "ops".into(),
        only,
    };
    let short = record.pause(pause(hours(1), vec![file_a()])).unwrap();
    let long = record.pause(pause(hours(2), vec![])).unwrap();
    assert!(short.covers(&file_a()) && !short.covers(&ResourceId::new(Kind::File, "/b")) && long.covers(&file_a()));
    assert_eq!(record.pauses(now).unwrap(), vec![short.clone(), long.clone()]);
    assert_eq!(record.pauses(hours(1)).unwrap(), vec![long.clone()]);
    assert_eq!(record.end_expired_pauses(hours(1)).unwrap(), vec![short]);
    assert_eq!(record.end_expired_pauses(hours(1)).unwrap(), vec![]);
    assert_eq!(record.resume(None).unwrap(), vec![long]);
    assert_eq!(record.pauses(now).unwrap(), vec![]);
}

#[test]
fn values_are_kept() {
    let state = tempfile::tempdir().unwrap();
    open(state.path()).save("health", &vec![1, 2]).unwrap();
    let mut record = open(state.path());
    assert_eq!(record.load::<Vec<u8>>("health").unwrap(), Some(vec![1, 2]));
    assert_eq!(record.load::<Vec<u8>>("other").unwrap(), None);
    assert!(record.load::<bool>("health").is_err());
    assert!(record.forget("health").unwrap());
    assert_eq!(record.load::<Vec<u8>>("health").unwrap(), None);
}

#[test]
fn old_history_goes() {
    let mut record = Record::volatile().unwrap();
    begin(&mut record, &mut run());
    record.prune(Timestamp::now() + SignedDuration::from_hours(89 * 24)).unwrap();
    assert_eq!(record.history(&HistoryFilter::default()).unwrap().len(), 1);
    record.prune(Timestamp::now() + SignedDuration::from_hours(91 * 24)).unwrap();
    assert_eq!(record.history(&HistoryFilter::default()).unwrap().len(), 0);
}

impl Record {
    /// Makes every later write fail, as a full disk does.
    pub(crate) fn refuse_writes(&self) {
        self.connection.pragma_update(None, "query_only", true).unwrap();
    }
}
