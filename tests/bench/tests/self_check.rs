//! The measuring programs check themselves: the floor restores every kind of drift, and what looks for it sees it.
//!
//! Nothing is timed here: how fast it is belongs to a quiet machine, that it works to every machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rekindle_bench::floor::guard::{Guarded, Guarding};
use rekindle_bench::floor::scan::{Method, groups, is_available, pass};
use rekindle_bench::foreign::{Drift, Drifts, Flood, Flooded, Kind, Reads};
use rekindle_bench::proc::NORMAL;
use rekindle_bench::process::Helper;
use rekindle_bench::tree::{self, Tree};
use tempfile::TempDir;

/// Longer than any busy machine needs; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(role: &str, spec: &impl serde::Serialize) -> Result<Helper> {
    let mut helper = Helper::start(Path::new(env!("CARGO_BIN_EXE_rekindle-bench")), role, spec, NORMAL)?;
    helper.wait_ready()?;
    Ok(helper)
}

fn declared(n_files: usize) -> Result<(TempDir, Tree)> {
    let directory = tempfile::tempdir()?;
    let tree = Tree { per_directory: 10, ..Tree::new(n_files) };
    tree.make(directory.path())?;
    Ok((directory, tree))
}

fn guarded(directory: &TempDir, tree: &Tree, kind: Kind, n_replicas: usize, durable: bool) -> Guarded {
    let files = tree.classed_places(directory.path());
    Guarded { files, kind, n_replicas, pool: directory.path().join("pool"), durable }
}

fn every_drift_is_restored(kind: Kind, durable: bool) -> Result<()> {
    const N: usize = 5;
    let (directory, tree) = declared(1)?;
    let guard = start("__guard", &guarded(&directory, &tree, kind, N, durable))?;
    let path = tree.place_of(directory.path(), 0);
    let spare = directory.path().join("spare");
    let gap = Duration::from_millis(1);
    let drifts =
        start("__drift", &Drifts { files: vec![(path.clone(), 0)], kind, n: N, gap, patience: PATIENCE, spare })?;
    let drifts: Vec<Drift> = drifts.finish()?;
    let guarding: Guarding = guard.finish()?;
    assert_eq!(drifts.len(), N);
    assert!(drifts.iter().all(|drift| drift.visible.is_some_and(|visible| visible >= drift.caused)), "{drifts:?}");
    assert_eq!(guarding.repaired.len(), N, "{guarding:?}");
    assert_eq!(guarding.durable.len(), if durable { N } else { 0 });
    assert_eq!(std::fs::read(path)?, tree::content(0));
    Ok(())
}

#[test]
fn the_floor_restores_content() -> Result<()> {
    every_drift_is_restored(Kind::Content, false)
}

#[test]
fn the_floor_restores_a_mode() -> Result<()> {
    every_drift_is_restored(Kind::Mode, false)
}

#[test]
fn the_floor_restores_what_was_deleted() -> Result<()> {
    every_drift_is_restored(Kind::Delete, false)
}

#[test]
fn the_floor_restores_what_was_replaced() -> Result<()> {
    every_drift_is_restored(Kind::RenameOver, false)
}

#[test]
fn the_durable_floor_makes_each_repair_durable() -> Result<()> {
    every_drift_is_restored(Kind::Content, true)
}

#[test]
fn a_flood_is_restored_whole() -> Result<()> {
    let (directory, tree) = declared(25)?;
    let guarded = guarded(&directory, &tree, Kind::Content, 1, true);
    let flood = Flood { files: guarded.files.clone(), patience: PATIENCE };
    let guard = start("__guard", &guarded)?;
    let flooded: Flooded = start("__flood", &flood)?.finish()?;
    let guarding: Guarding = guard.finish()?;
    assert!(flooded.first < flooded.last && flooded.visible.is_some_and(|visible| visible >= flooded.last));
    assert_eq!((guarding.repaired.len(), guarding.durable.len()), (25, 25));
    for (path, class) in &flood.files {
        assert_eq!(std::fs::read(path)?, tree::content(*class), "{}", path.display());
    }
    Ok(())
}

#[test]
fn a_drift_that_nobody_restores_is_missed() -> Result<()> {
    let (directory, tree) = declared(1)?;
    let spec = Drifts {
        files: vec![(tree.place_of(directory.path(), 0), 0)],
        kind: Kind::Content,
        n: 1,
        gap: Duration::ZERO,
        patience: Duration::from_millis(20),
        spare: directory.path().join("spare"),
    };
    let drifts: Vec<Drift> = start("__drift", &spec)?.finish()?;
    assert_eq!(drifts.iter().map(|drift| drift.visible).collect::<Vec<_>>(), [None]);
    Ok(())
}

#[test]
fn every_scan_sees_every_file() -> Result<()> {
    let (directory, tree) = declared(300)?;
    let groups = groups(&tree, directory.path())?;
    let methods = || Method::ALL.into_iter().filter(|method| is_available(*method));
    for method in methods() {
        pass(&groups, method).with_context(|| method.describe())?;
    }
    std::fs::remove_file(tree.place_of(directory.path(), 299))?;
    for method in methods() {
        assert!(pass(&groups, method).is_err(), "{} does not miss a file", method.describe());
    }
    Ok(())
}

#[test]
fn a_reader_reads_until_it_is_told_to_stop() -> Result<()> {
    let (directory, tree) = declared(10)?;
    let reader = start("__read", &Reads { paths: tree.places(directory.path()), per_second: 1000 })?;
    let n_reads: u64 = reader.finish()?;
    assert!(n_reads > 0);
    Ok(())
}
