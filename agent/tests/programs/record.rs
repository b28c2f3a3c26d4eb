//! What commands make of a record that is damaged, gone or in use by another run.

use std::process::Stdio;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rekindle::converge::Cause;
use rekindle::policy::Revision;
use rekindle::record::{HistoryFilter, Intent, Record, RunInfo, RunLock};
use rekindle::resource::{Action, Change, Kind, ResourceId};

use crate::support::World;

/// Longer than any busy machine needs; reached only by a test that fails.
const DEADLINE: Duration = Duration::from_secs(60);

const SECRET: &str = "hunter2-8f3a";

/// A host whose record was damaged, so that anything on it may be a secret.
fn doubtful() -> Option<World> {
    let world = World::new()?;
    world.write("state/state.db", &"no database ".repeat(100));
    assert!(Record::open(&world.path("state")).unwrap().set_aside.is_some());
    Some(world)
}

/// What nobody showed because it may be a secret becomes public in no roundabout way.
#[test]
fn threat_what_is_in_doubt_is_adopted_by_way_of_its_undo() {
    let Some(world) = doubtful() else { return };
    world.write("etc/token", SECRET);
    world.policy("[file.'$T/etc/token']\ncontent = \"plain\\n\"\nmode = '0600'\n");
    let policy = world.path("policy").to_str().unwrap().to_owned();
    let mut said = String::new();
    let mut run = |args: &[&str]| {
        let output = world.run(args);
        said.push_str(&output.text);
        output
    };
    let applied = run(&["apply", "--policy", &policy]);
    assert!(applied.code == 0 && applied.text.contains("perhaps a secret"), "{applied:?}");
    let refused = run(&["adopt", "1", "--policy", &policy]);
    assert!(refused.code == 4 && refused.text.contains("is, or may be, a secret"), "{refused:?}");
    let undone = run(&["undo", "1"]);
    assert!(undone.code == 0 && undone.text.contains("→ perhaps a secret"), "{undone:?}");
    assert_eq!(world.read("etc/token"), SECRET);
    let refused = run(&["adopt", "2", "--policy", &policy]);
    assert!(refused.code == 4 && refused.text.contains("is, or may be, a secret"), "{refused:?}");
    // It was found as declared in between, and is not any more.
    let plan = run(&["plan", "--policy", &policy]);
    assert!(plan.code == 2 && plan.text.contains("perhaps a secret"), "{plan:?}");
    // The undoing is undone, and undone again.
    assert_eq!(run(&["undo", "2"]).code, 0);
    assert_eq!(world.read("etc/token"), "plain\n");
    assert_eq!(run(&["undo", "3"]).code, 0);
    let refused = run(&["adopt", "4", "--policy", &policy]);
    assert!(refused.code == 4 && refused.text.contains("is, or may be, a secret"), "{refused:?}");
    run(&["resume"]);
    run(&["apply", "--policy", &policy]);
    for args in [&["history"][..], &["--json", "history"], &["--json", "plan", "--policy", &policy]] {
        run(args);
    }
    assert!(!said.contains(SECRET), "{said}");
}

/// An entry from before says nothing of what stands there now.
#[test]
fn threat_what_is_in_doubt_is_adopted_by_way_of_its_mode() {
    let Some(world) = doubtful() else { return };
    world.write("etc/token", "plain\n");
    let declared = "[file.'$T/etc/token']\ncontent = \"plain\\n\"\nmode = '0640'\n";
    let resource = format!("file[{}/etc/token]", world.at());
    assert_eq!(world.run(&["pause", "--for", "1h", "--reason", "a look", "--only", &resource]).code, 0);
    let applied = world.apply(declared);
    assert!(applied.text.contains("left") && applied.text.contains("mode: 0600 → 0640"), "{applied:?}");
    world.write("etc/token", SECRET);
    let patch = world.run(&["adopt", "1", "--policy", world.path("policy").to_str().unwrap()]);
    assert!(patch.code == 0 && patch.text.contains("+mode = \"0600\""), "{patch:?}");
    assert!(!patch.text.contains(SECRET), "{patch:?}");
    world.policy(&declared.replace("content = \"plain\\n\"\nmode = '0640'", "state = 'absent'"));
    let refused = world.run(&["adopt", "1", "--policy", world.path("policy").to_str().unwrap()]);
    assert!(refused.code == 4 && refused.text.contains("is, or may be, a secret"), "{refused:?}");
}

#[test]
fn threat_a_database_that_is_gone_is_taken_for_one_that_never_was() {
    let Some(world) = World::new() else { return };
    world.write("etc/token", SECRET);
    let declared = "[file.'$T/etc/token']\ncontent = \"plain\\n\"\n";
    assert!(world.plan(declared).text.contains(SECRET), "nobody ever put a secret there");
    world.write("state/backup/kept", "");
    let plan = world.plan(declared);
    assert!(plan.code == 2 && !plan.text.contains(SECRET), "{plan:?}");
    assert!(plan.text.contains("there is no `") && plan.text.contains("and there was one"), "{plan:?}");
    let plan = world.run(&["plan"]);
    assert!(plan.code == 1 && plan.text.contains("hint: put it back, or start the agent"), "{plan:?}");
}

/// Who waits for a run to end must not take its step in hand for one that a kill cut short.
#[test]
fn apply_touches_the_record_of_a_run_under_way_only_when_it_is_over() {
    let Some(world) = World::new() else { return };
    world.write("etc/file", "plain\n");
    world.policy("[file.'$T/etc/file']\ncontent = \"plain\\n\"\nmode = '0600'\n");
    let lock = RunLock::acquire(&world.path("run"), "agent", Duration::ZERO).unwrap();
    let mut record = Record::open(&world.path("state")).unwrap().record;
    let resource = ResourceId::new(Kind::File, "/etc/motd");
    let changes = [Change::value("mode", Some("0600".into()), Some("0644".into()))];
    let intent = Intent {
        resource: &resource,
        action: Action::Update,
        changes: &changes,
        backup: None,
        notifies: &[],
        who: None,
        before: &[],
        confirm: None,
        time: Timestamp::now(),
    };
    let run = RunInfo {
        id: None,
        started: Timestamp::now(),
        revision: Revision::new("r1"),
        cause: Cause::Drift,
        full: false,
    };
    record.begin_steps(&mut run.clone(), &[intent]).unwrap();
    world.write("state/backup/.new-1-1", "half");
    let outcome = |record: &Record| record.history(&HistoryFilter::default()).unwrap()[0].outcome.clone();

    let policy = world.path("policy").to_str().unwrap().to_owned();
    let apply = world.command(&["apply", "--policy", &policy]).stdout(Stdio::null()).spawn().unwrap();
    let descriptors = format!("/proc/{}/fd", apply.id());
    let waits = || {
        std::fs::read_dir(&descriptors)
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .any(|path| path.ends_with("run.lock"))
    };
    let started = Instant::now();
    while !waits() {
        assert!(started.elapsed() < DEADLINE, "it never asked for the lock");
        std::thread::yield_now();
    }
    assert_eq!(outcome(&record), "started");
    assert!(world.exists("state/backup/.new-1-1"));
    drop(lock);
    assert!(apply.wait_with_output().unwrap().status.success());
    assert_eq!(outcome(&record), "interrupted", "whoever has the lock next says so");
    assert!(!world.exists("state/backup/.new-1-1"));
}

/// Runs commands where the state directory is read-only, as a shell does, each with its exit code after it.
fn where_nothing_can_be_written(world: &World, commands: &[&str]) -> String {
    let state = world.path("state").display().to_string();
    let mut script = format!("mount --bind {state} {state} && mount -o remount,bind,ro {state} || exit\n");
    for command in commands {
        let (program, config) = (env!("CARGO_BIN_EXE_rekindle"), world.path("agent.toml"));
        script.push_str(&format!("{program} --config {} {command} 2>&1; echo \"exit $?\"\n", config.display()));
    }
    let output =
        std::process::Command::new("unshare").args(["-m", "sh", "-c", &script]).env("NO_COLOR", "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_record_is_read_where_nothing_can_be_written_or_said_to_be_unknown() {
    let Some(world) = World::new() else { return };
    let applied = world.apply("[file.'$T/etc/file']\ncontent = \"plain\\n\"\n");
    assert_eq!(applied.code, 0, "{applied:?}");
    for side in ["state/state.db-wal", "state/state.db-shm"] {
        assert!(!world.exists(side), "whoever ends last clears up");
    }
    let plan = format!("plan --policy {}", world.path("policy").display());
    let said = where_nothing_can_be_written(&world, &["history", &plan]);
    assert!(said.contains("+plain\n") && !said.contains("unknown") && !said.contains("exit 3"), "{said}");
    assert_eq!(said.matches("exit 0").count(), 2, "{said}");

    // What was written last is in the journal beside it.
    let mut record = Record::open(&world.path("state")).unwrap().record;
    record.save("a", &1).unwrap();
    let elsewhere = world.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    for file in ["state.db", "state.db-wal"] {
        std::fs::copy(world.path("state").join(file), elsewhere.join(file)).unwrap();
    }
    drop(record);
    for file in ["state.db", "state.db-wal"] {
        std::fs::copy(elsewhere.join(file), world.path("state").join(file)).unwrap();
    }
    let said = where_nothing_can_be_written(&world, &["history", &plan]);
    assert!(
        said.contains("state.db-wal` cannot be read without writing beside it") && said.contains("exit 1"),
        "{said}"
    );
    assert!(said.contains("unknown what is owed already") && said.contains("exit 3"), "{said}");
}
