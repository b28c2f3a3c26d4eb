//! The parts that run for every file and every event, alone: `cargo bench -p rekindle`.
//!
//! They show what a change of one of them costs. What the whole takes, beside the floor, is printed by `tests/bench/run`.

#![expect(clippy::unwrap_used, reason = "a benchmark's fixture fails as a test's does")]

use std::hint::black_box;
use std::path::Path;
use std::sync::mpsc;

use divan::Bencher;
use divan::counter::ItemsCount;
use rekindle::config::Mode as AgentMode;
use rekindle::converge::{
    Cause, Memory, Plan, Request, Scope, claim_from_nobody, hold_nothing, nobody_seen, observe_and_plan,
};
use rekindle::host::Host;
use rekindle::host::verify::{Entry, Verifier};
use rekindle::policy::compile::{Inputs, compile};
use rekindle::policy::facts::Facts;
use rekindle::policy::secret::Secrets;
use rekindle::policy::trust::{self, Trust, Verified};
use rekindle::policy::{DesiredState, candidate};
use rekindle::resource::{AbsPath, Desired, Ensure, Kind, Mode, ResourceId, Snapshot, diff, observe};
use rekindle::watch::{DirtySet, Hint, Interest, WatchError, Watcher};
use tempfile::TempDir;

/// Declared files, a hundred in a directory.
const FILES: usize = 1000;

fn main() {
    divan::main();
}

fn path(file: usize) -> String {
    format!("/srv/bench/d{:02}/f{file:04}", file / 100)
}

fn content(file: usize) -> String {
    format!("{:.<4095}\n", file % 16)
}

#[expect(clippy::disallowed_methods, reason = "fixtures: nothing reads them while they are written")]
fn put(path: &Path, content: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// A policy of a thousand files that share sixteen contents.
fn verified() -> Verified {
    let directory = tempfile::tempdir().unwrap();
    let mut text = "[policy]\nname = \"bench\"\n".to_owned();
    for file in 0..FILES {
        text.push_str(&format!("[file.{:?}]\nsource = \"content/{:02}\"\n", path(file), file % 16));
    }
    put(&directory.path().join("policy.toml"), &text);
    for file in 0..16 {
        put(&directory.path().join(format!("content/{file:02}")), &content(file));
    }
    let candidate = candidate::from_directory(directory.path()).unwrap();
    trust::verify(candidate, &Trust::Operator, "2026-01-01T00:00:00Z".parse().unwrap()).unwrap()
}

fn compiled(verified: &Verified) -> DesiredState {
    let inputs = Inputs { facts: &Facts::default(), roles: &[], host: None, secrets: &Secrets::Unread };
    compile(verified, &inputs).unwrap().state
}

/// A host with every file as declared, but for so many.
fn host(n_drifted: usize) -> (TempDir, Host) {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    for file in 0..FILES {
        let place = directory.path().join(path(file).trim_start_matches('/'));
        let content = if file < n_drifted { "drifted\n".to_owned() } else { content(file) };
        put(&place, &content);
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let host = Host::sandbox(directory.path()).unwrap();
    (directory, host)
}

fn plan(host: &Host, desired: &DesiredState) -> Plan {
    let (scope, cause, mode) = (Scope::Everything, Cause::Drift, AgentMode::Enforce);
    observe_and_plan(
        host,
        Memory::Nothing,
        &Request { desired, scope, cause, mode, hold: &hold_nothing, claim: &claim_from_nobody, seen: &nobody_seen },
    )
}

#[divan::bench]
fn compile_a_policy_of_a_thousand_files(bencher: Bencher<'_, '_>) {
    let verified = verified();
    bencher.counter(ItemsCount::new(FILES)).bench(|| compiled(black_box(&verified)));
}

#[divan::bench]
fn observe_and_plan_a_thousand_files_in_sync(bencher: Bencher<'_, '_>) {
    let ((_directory, host), desired) = (host(0), compiled(&verified()));
    assert!(plan(&host, &desired).is_empty());
    bencher.counter(ItemsCount::new(FILES)).bench_local(|| plan(&host, &desired));
}

#[divan::bench]
fn show_a_plan_of_a_hundred_drifts(bencher: Bencher<'_, '_>) {
    let ((_directory, host), desired) = (host(100), compiled(&verified()));
    let plan = plan(&host, &desired);
    assert_eq!(plan.steps.len(), 100);
    bencher.counter(ItemsCount::new(100_usize)).bench_local(|| plan.to_text());
}

#[divan::bench(args = [0, 1])]
fn diff_one_file(bencher: Bencher<'_, '_>, n_drifted: usize) {
    let ((_directory, host), desired) = (host(n_drifted), compiled(&verified()));
    let first = &desired.get(&ResourceId::new(Kind::File, path(0))).unwrap().desired;
    let sighting = observe(&host, &mut Snapshot::new(), first);
    bencher.bench_local(|| diff(black_box(first), black_box(&sighting)));
}

#[divan::bench]
fn verify_one_file(bencher: Bencher<'_, '_>) {
    let ((_directory, host), desired) = (host(0), compiled(&verified()));
    let Desired::File(file) = &desired.resources().first().unwrap().desired else { panic!("a file") };
    let Ensure::Present(spec) = &file.ensure else { panic!("a file that is there") };
    let entry = Entry {
        path: AbsPath::new(&path(0)).unwrap(),
        content: spec.content.clone(),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mode: Mode::from_bits(0o644),
    };
    let mut verifier = Verifier::new(&host.root);
    bencher.bench_local(|| verifier.verify(black_box(&entry)));
}

#[divan::bench]
fn merge_a_thousand_hints(bencher: Bencher<'_, '_>) {
    let hints: Vec<Hint> =
        (0..FILES).map(|file| Hint::Look([ResourceId::new(Kind::File, path(file))].into())).collect();
    bencher.counter(ItemsCount::new(FILES)).with_inputs(|| hints.clone()).bench_local_values(|hints| {
        let mut dirty = DirtySet::default();
        for hint in hints {
            dirty.add(hint);
        }
        dirty.take()
    });
}

/// From a write of one of a thousand watched files until the watcher names the resource: the kernel's part included.
#[divan::bench]
fn from_a_write_to_its_hint(bencher: Bencher<'_, '_>) {
    let (directory, _host) = host(0);
    let (hints, received) = mpsc::channel();
    let watcher = Watcher::start(directory.path().to_owned(), move |hint: Result<Hint, WatchError>| {
        // The receiver is gone only when the benchmark ends.
        drop(hints.send(hint));
    })
    .unwrap();
    let interest = |file: usize| Interest {
        path: Path::new(&path(file)).into(),
        resource: ResourceId::new(Kind::File, path(file)),
    };
    watcher.set_interests((0..FILES).map(interest).collect());
    let place = directory.path().join(path(0).trim_start_matches('/'));
    bencher.bench_local(|| {
        put(&place, "drifted\n");
        received.recv().unwrap().unwrap();
        // One write may be several events; the rest of them must not be taken for the next write.
        watcher.stats();
        while received.try_recv().is_ok() {}
    });
}
