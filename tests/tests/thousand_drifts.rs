//! A thousand drifts of one file are a thousand repairs: none missed, none twice, and no loop after.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rekindle_tests::product::{Estate, PATIENCE, Settings, alerted};
use rekindle_tests::{measure, wait_for};

const DRIFTS: usize = 1000;

const CONTENT: &str = "the declared content\n";

#[test]
fn a_thousand_drifts_are_a_thousand_repairs() -> Result<()> {
    let estate = Estate::new()?;
    let policy = format!("[policy]\nname = \"one\"\n[file.\"/etc/guarded\"]\ncontent = {CONTENT:?}\n");
    estate.git.write("policy.toml", &policy)?;
    let revision = estate.git.commit("Guard one file", rekindle_tests::Signature::Trusted)?;
    estate.configure(&Settings::default())?;
    estate.start()?;
    estate.wait_converged(&revision)?;
    let before = estate.history()?.last().map_or(0, |entry| entry.id);

    // This process is another one than the agent, and the path is the machine's own file system.
    let path = estate.machine.path("/etc/guarded");
    let mut latencies = Vec::with_capacity(DRIFTS);
    let start = Instant::now();
    for n in 0..DRIFTS {
        let mut file = std::fs::File::options().append(true).open(&path).context("cannot open the guarded file")?;
        file.write_all(format!("drift {n}\n").as_bytes()).context("cannot drift")?;
        drop(file);
        let latency = measure(&format!("repair {n}"), PATIENCE, || {
            Ok(std::fs::read(&path).is_ok_and(|content| content == CONTENT.as_bytes()))
        })?;
        latencies.push(latency);
    }
    let total = start.elapsed();
    latencies.sort();
    let at = |share: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index below the count")]
        let index = (share * DRIFTS as f64) as usize;
        latencies[index.min(DRIFTS - 1)]
    };
    println!("{DRIFTS} drifts repaired in {total:.1?}: p50 {:.2?}, p99 {:.2?}, max {:.2?}", at(0.5), at(0.99), at(1.0));
    ensure!(at(1.0) < Duration::from_secs(1), "the slowest repair took {:?}", at(1.0));

    let repairs = wait_for("the last entry of the history", PATIENCE, || {
        let mut history = estate.history()?;
        history.retain(|entry| entry.id > before);
        let ended = history.iter().all(|entry| entry.outcome != "started");
        Ok((history.len() >= DRIFTS && ended).then_some(history))
    })?;
    let other = repairs.iter().find(|entry| !entry.is_repair() || entry.resource != "file[/etc/guarded]");
    ensure!(other.is_none(), "no repair of the file: {other:?}");
    ensure!(repairs.len() == DRIFTS, "{} repairs for {DRIFTS} drifts", repairs.len());
    ensure!(repairs.iter().all(|entry| !entry.changes.is_empty()), "a repair without a difference");

    // Every repair is told, and telling it took no more of them.
    let expected: BTreeSet<i64> = repairs.iter().map(|entry| entry.id).collect();
    wait_for("every repair to be told", Duration::from_secs(120), || {
        let told: BTreeSet<i64> =
            estate.receiver.messages().iter().flat_map(|message| alerted(&message.body)).collect();
        Ok(told.is_superset(&expected).then_some(()))
    })?;
    ensure!(estate.receiver.messages().iter().all(|message| message.verified == Ok(())), "an unsigned alert");
    let after = estate.history()?.iter().filter(|entry| entry.id > before).count();
    ensure!(after == DRIFTS, "{after} repairs for {DRIFTS} drifts: the agent repairs its own repairs");
    wait_for("the count in the status", PATIENCE, || Ok((estate.status()?["n_repairs"] == DRIFTS).then_some(())))
}
