use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use tempfile::TempDir;

use super::*;
use crate::resource::{Kind, ResourceId};
use crate::spool::{AlertResource, ReimageCall};

const ID: &str = "1763764200000-00000000000000ff";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_763_764_200 + second).unwrap()
}

fn alert(id: &str, event: Event) -> Outgoing {
    let resource = AlertResource {
        resource: ResourceId::new(Kind::File, "/etc/motd"),
        cause: "corrective".into(),
        outcome: "changed".into(),
        error: None,
        changes: vec![],
        history: Some(1),
        who: None,
    };
    let body = OutgoingBody::Alert(Alert {
        version: 1,
        time: at(0),
        host: "web1".into(),
        event,
        revision: None,
        summary: format!("alert {id}"),
        resources: vec![resource],
    });
    Outgoing { version: 1, id: id.to_owned(), body }
}

fn call(id: &str) -> Outgoing {
    let call = ReimageCall::Ready { request: "r1".into() };
    Outgoing { version: 1, id: id.to_owned(), body: OutgoingBody::Reimage(call) }
}

fn spool(max_queued: usize) -> (TempDir, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool { max_queued, ..Spool::open(dir.path()).unwrap() };
    (dir, spool)
}

#[test]
fn a_message_comes_back_as_it_went_in() {
    let (dir, spool) = spool(10);
    let message = alert(ID, Event::DriftRepaired);
    assert_eq!(spool.enqueue(&message).unwrap(), Enqueued::Stored);
    assert_eq!(spool.list().unwrap(), [ID]);
    assert_eq!(spool.read(ID).unwrap(), Some(message));
    let mode = fs::metadata(dir.path().join(format!("{ID}.json"))).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
    assert!(spool.remove(ID).unwrap());
    assert!(!spool.remove(ID).unwrap());
    assert_eq!(spool.read(ID).unwrap(), None);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no temporary file stays");
}

/// Puts something hostile under a message's name and expects it refused once, set aside, and out of the list.
fn refused(what: &str, plant: impl FnOnce(&Path), expected: &str) {
    let (dir, spool) = spool(10);
    plant(&dir.path().join(format!("{ID}.json")));
    let error = spool.read(ID).expect_err(what).to_string();
    assert!(error.contains(expected), "{what}: {error}");
    assert_eq!(spool.list().unwrap(), [""; 0], "{what}");
    assert!(dir.path().join(format!("{ID}.bad")).symlink_metadata().is_ok(), "{what}");
    assert_eq!(spool.read(ID).unwrap(), None, "{what}: never retried");
}

#[test]
fn hostile_messages_are_set_aside() {
    let good = serde_json::to_string(&alert(ID, Event::AgentStarted)).unwrap();
    let text = |content: String| {
        move |path: &Path| {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(path)
                .unwrap()
                .write_all(content.as_bytes())
                .unwrap()
        }
    };
    refused("a symbolic link", |path| symlink("/etc/passwd", path).unwrap(), "symbolic link");
    refused(
        "a link to a good message",
        |path| {
            text(good.clone())(&path.with_extension("elsewhere"));
            symlink(path.with_extension("elsewhere"), path).unwrap();
        },
        "symbolic link",
    );
    refused("a fifo", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(), "no regular file");
    refused("a socket", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()), "no regular file");
    refused("a directory", |path| fs::create_dir(path).unwrap(), "no regular file");
    refused(
        "a huge file",
        |path| {
            let file = fs::OpenOptions::new().write(true).create_new(true).open(path).unwrap();
            file.set_len(MAX_MESSAGE + 1).unwrap();
        },
        "longer than",
    );
    refused("an unknown key", text(good.replacen('{', "{\"extra\":1,", 1)), "unknown field `extra`");
    refused("an unknown key inside", text(good.replace("\"host\"", "\"hots\"")), "unknown field `hots`");
    refused("a truncated file", text(good[..good.len() - 5].to_owned()), "EOF");
    refused("an empty file", text(String::new()), "EOF");
    refused("another version", text(good.replacen("\"version\":1", "\"version\":2", 1)), "version 2");
    refused("another id", text(good.replacen("00ff", "00fe", 1)), "its id differs");
    refused("deep nesting", text("[".repeat(100_000)), "");
    refused(
        "not UTF-8",
        |path| {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path).unwrap();
            file.write_all(&[0xff; 64]).unwrap();
        },
        "expected value",
    );
}

#[test]
fn names_that_are_no_ids_are_neither_listed_nor_touched() {
    let (dir, spool) = spool(10);
    for name in
        ["fetch.json", "a.json", ".new-1-2-3", "../x", &format!("{ID}.bad"), &format!("{}.json", ID.to_uppercase())]
    {
        if !name.contains('/') {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert!(matches!(spool.read(name), Err(SpoolError::Refused { .. })), "{name}");
        assert!(matches!(spool.remove(name), Err(SpoolError::Refused { .. })), "{name}");
    }
    assert_eq!(spool.list().unwrap(), [""; 0]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
}

#[test]
fn ids_follow_each_other_even_when_the_clock_does_not() {
    let (_dir, spool) = spool(10);
    let mut ids = Vec::new();
    for (second, random) in [(0, 9), (0, 1), (-60, 5), (60, 0)] {
        let id = spool.next_id(at(second), random).unwrap();
        let queued = spool.enqueue(&alert(&id, Event::DriftReported)).unwrap();
        assert_eq!(queued, Enqueued::Stored);
        ids.push(id);
    }
    assert_eq!(spool.list().unwrap(), ids, "in the order of creation");
    let again = Spool::open(spool.path()).unwrap();
    let id = again.next_id(at(-3600), 0).unwrap();
    assert!(id > *ids.last().unwrap(), "a restart does not put a message before those that wait");
}

#[test]
fn a_full_outbox_merges_repairs_and_keeps_reimage_calls() {
    let (_dir, spool) = spool(20);
    let mut lost = 0;
    let mut calls = Vec::new();
    for n in 0..100_u64 {
        let id = spool.next_id(at(0), n).unwrap();
        let message = if n % 20 == 0 { call(&id) } else { alert(&id, Event::DriftRepaired) };
        if n % 20 == 0 {
            calls.push(id);
        }
        match spool.enqueue(&message).unwrap() {
            Enqueued::Stored => {}
            Enqueued::StoredAfterMerging { n_alerts } => lost += n_alerts,
        }
        assert!(spool.list().unwrap().len() <= 20);
    }
    let mut merged = 0;
    let mut n_single = 0;
    let mut found = Vec::new();
    for id in spool.list().unwrap() {
        match spool.read(&id).unwrap().unwrap().body {
            OutgoingBody::Reimage(_) => found.push(id),
            OutgoingBody::Alert(alert) if alert.resources.is_empty() => {
                merged += alert.summary.split(' ').next().unwrap().parse::<usize>().unwrap();
            }
            OutgoingBody::Alert(_) => n_single += 1,
        }
    }
    assert_eq!(found, calls);
    assert!(merged > 0 && merged <= lost, "{merged} of {lost}");
    assert!(n_single > 0);
}

#[test]
fn an_outbox_full_of_reimage_calls_still_takes_more() {
    let (_dir, spool) = spool(3);
    for n in 0..6 {
        let id = spool.next_id(at(n), 0).unwrap();
        assert_eq!(spool.enqueue(&call(&id)).unwrap(), Enqueued::Stored);
    }
    assert_eq!(spool.list().unwrap().len(), 6);
}

#[test]
fn slots_are_replaced_and_hostile_ones_refused() {
    let (dir, spool) = spool(10);
    assert_eq!(spool.read_slot::<FetchNow>().unwrap(), None);
    for second in [1, 2] {
        spool.write_slot(&FetchNow { version: 1, asked: at(second) }).unwrap();
        assert_eq!(spool.read_slot::<FetchNow>().unwrap().unwrap().asked, at(second));
    }
    let path = dir.path().join("fetch.json");
    let refusal = |spool: &Spool| spool.read_slot::<FetchNow>().unwrap_err().to_string();
    spool.write_slot(&FetchNow { version: 7, asked: at(1) }).unwrap();
    assert!(refusal(&spool).contains("version 7"));
    fs::remove_file(&path).unwrap();
    symlink("/etc/shadow", &path).unwrap();
    assert!(refusal(&spool).contains("symbolic link"));
    spool.write_slot(&FetchNow { version: 1, asked: at(3) }).unwrap();
    assert_eq!(spool.read_slot::<FetchNow>().unwrap().unwrap().asked, at(3), "replaced, not followed");
}

#[test]
fn a_message_longer_than_the_limit_is_not_stored() {
    let (dir, spool) = spool(10);
    let dossier = serde_json::Value::String("x".repeat(usize::try_from(MAX_MESSAGE).unwrap()));
    let request =
        ReimageCall::Request { request: "r".into(), reason: "failed".into(), summary: String::new(), dossier };
    let message = Outgoing { version: 1, id: ID.into(), body: OutgoingBody::Reimage(request) };
    assert!(matches!(spool.enqueue(&message), Err(SpoolError::Unstorable { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
