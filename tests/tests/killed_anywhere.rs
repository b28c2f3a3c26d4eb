//! `kill -9` at random moments: the next start converges, nobody ever saw half a file, and every alert arrives.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rekindle_tests::product::{AGENT, COURIER, Estate, PATIENCE, Settings, alerted, event};
use rekindle_tests::{Chance, TestPackage, measure, wait_for};

const KILLS: u64 = 20;

/// Enough files for a converge to last longer than a kill takes.
const FILES: u64 = 60;

/// Large enough for several writes and pages.
const LINES: usize = 2_000;

/// The content of every file under revision `n`: each line names it, so that any mixture shows.
fn content(n: u64) -> String {
    format!("revision {n:04}\n").repeat(LINES)
}

/// Whether a text is the whole content of some revision.
fn is_whole(text: &str) -> bool {
    let mut lines = text.lines();
    let Some(first) = lines.next() else { return false };
    text.len() == (first.len() + 1) * LINES && lines.all(|line| line == first)
}

fn policy() -> String {
    let mut policy = String::from(
        "[policy]\nname = \"many\"\n[package]\nrk-hello = {}\n\
         [service.rk-hello]\nstate = \"running\"\nrequires = [\"package[rk-hello]\"]\n",
    );
    for n in 0..FILES {
        policy.push_str(&format!(
            "[file.\"/etc/many/{n:03}\"]\nsource = \"content\"\nrestarts = [\"rk-hello\"]\nrequires = [\"package[rk-hello]\"]\n"
        ));
    }
    policy.push_str("[directory.\"/etc/many\"]\n");
    policy
}

/// Kills the main process of a unit at once.
fn kill_unit(estate: &Estate, unit: &str) -> Result<()> {
    // It may be between two lives already.
    if let Some(pid) = estate.machine.main_pid(unit)? {
        kill(Pid::from_raw(pid.try_into().context("a process id")?), Signal::SIGKILL).context("cannot kill")?;
    }
    Ok(())
}

/// Starts a killed unit at once instead of after its RestartSec=.
fn revive(estate: &Estate, unit: &str) -> Result<()> {
    // Before it is known to be dead there is nothing to start.
    wait_for("systemd to notice the death", PATIENCE, || Ok(estate.machine.main_pid(unit)?.is_none().then_some(())))?;
    estate.machine.run("systemctl").args(["start", unit]).ok()?;
    Ok(())
}

#[test]
fn the_agent_killed_anywhere_in_a_converge_goes_on_and_nobody_sees_half_a_file() -> Result<()> {
    let mut chance = Chance::seeded()?;
    let estate = Estate::new()?;
    // The service notes what it was started with: a restart that is owed must be paid after the last change.
    let mut hello = TestPackage::with_service("rk-hello", "1.0");
    let run = hello.files.iter_mut().find(|(path, _, _)| path.ends_with("/run")).context("the service's program")?;
    run.1 = "#!/bin/sh\nmkdir -p /run/rk-hello\nhead -qn 1 /etc/many/* > /run/rk-hello/seen\nexec sleep infinity\n"
        .to_owned();
    estate.apt.add(&hello)?;
    estate.apt.publish_to(&estate.machine)?;
    estate.git.write("policy.toml", &policy())?;
    estate.git.write("content", &content(0))?;
    let first = estate.git.commit("Revision 0", rekindle_tests::Signature::Trusted)?;
    estate.configure(&Settings::default())?;
    estate.start()?;
    let begun = Instant::now();
    estate.wait_converged(&first)?;
    // The first converge includes a package; later ones are about as long as their files.
    let mut length = begun.elapsed().min(Duration::from_secs(1));

    let dir = estate.machine.path("/etc/many");
    let paths: Vec<PathBuf> = (0..FILES).map(|n| dir.join(format!("{n:03}"))).collect();
    let (stop, n_reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut n_hits = 0;
    let outcome: Result<BTreeSet<String>> = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                for path in &paths {
                    let text =
                        std::fs::read_to_string(path).with_context(|| format!("`{}` vanished", path.display()))?;
                    ensure!(is_whole(&text), "`{}` is partial: {} bytes", path.display(), text.len());
                    n_reads.fetch_add(1, Ordering::SeqCst);
                }
            }
            Ok(())
        });
        let rounds = (1..=KILLS).map(|n| {
            estate.git.write("content", &content(n))?;
            let revision = estate.push(&format!("Revision {n}"))?;
            let new = content(n);
            let n_new =
                || paths.iter().filter(|path| std::fs::read_to_string(path).is_ok_and(|text| text == new)).count();
            wait_for("the converge to have begun", PATIENCE, || Ok((n_new() > 0).then_some(())))?;
            let (delay, since) = (chance.moment(length), Instant::now());
            measure("the moment to kill", PATIENCE, || Ok(since.elapsed() >= delay))?;
            kill_unit(&estate, AGENT)?;
            if n_new() < paths.len() {
                n_hits += 1;
                // It was alive for this long without being done; what comes after is to be hit as well.
                length = length.max(delay).mul_f32(1.2).min(Duration::from_secs(5));
            } else {
                length = delay.max(Duration::from_millis(20));
            }
            revive(&estate, AGENT)?;
            estate.wait_converged(&revision).with_context(|| format!("after kill {n}"))?;
            ensure!(n_new() == paths.len(), "in sync, it says, but only {} files are", n_new());
            let seen = estate.machine.read("/run/rk-hello/seen")?;
            ensure!(
                seen.lines().all(|line| line == format!("revision {n:04}")),
                "the restart that was owed was not paid after kill {n}: the service saw\n{seen}"
            );
            Ok(revision)
        });
        let revisions = rounds.collect();
        stop.store(true, Ordering::SeqCst);
        let read: Result<()> = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        read?;
        revisions
    });
    let revisions = outcome?;
    println!("{n_hits} of {KILLS} kills hit a converge; {} reads saw whole files", n_reads.into_inner());
    ensure!(n_hits >= 5, "only {n_hits} of {KILLS} kills hit a converge: that shows little");

    let told =
        |revision: &String| {
            estate.receiver.messages().iter().any(|message| {
                event(&message.body) == "policy.accepted" && message.body["data"]["revision"] == **revision
            })
        };
    wait_for("the alert about every revision", PATIENCE, || Ok(revisions.iter().all(told).then_some(())))
        .with_context(|| {
            format!("missing: {:?}", revisions.iter().filter(|revision| !told(revision)).collect::<Vec<_>>())
        })?;
    Ok(())
}

#[test]
fn the_courier_killed_anywhere_in_a_delivery_loses_no_alert() -> Result<()> {
    let mut chance = Chance::seeded()?;
    let estate = Estate::new()?;
    let mut policy = String::from("[policy]\nname = \"told\"\n");
    for n in 0..5 {
        policy.push_str(&format!("[file.\"/etc/told/{n}\"]\ncontent = \"declared\\n\"\n"));
    }
    policy.push_str("[directory.\"/etc/told\"]\n");
    estate.git.write("policy.toml", &policy)?;
    let revision = estate.git.commit("Tell", rekindle_tests::Signature::Trusted)?;
    estate.configure(&Settings::default())?;
    estate.start()?;
    estate.wait_converged(&revision)?;

    for n in 1..=KILLS {
        let n_repairs = || Ok::<_, anyhow::Error>(estate.history()?.iter().filter(|entry| entry.is_repair()).count());
        let n_before = n_repairs()?;
        for file in 0..5 {
            // One at a time, so that there are several alerts to deliver.
            let path = estate.machine.path(format!("/etc/told/{file}"));
            std::fs::OpenOptions::new()
                .append(true)
                .open(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"drift\n"))?;
            wait_for("the repair", PATIENCE, || {
                Ok(std::fs::read(&path).is_ok_and(|content| content == b"declared\n").then_some(()))
            })?;
        }
        let (delay, since) = (chance.moment(Duration::from_millis(60)), Instant::now());
        measure("the moment to kill", PATIENCE, || Ok(since.elapsed() >= delay))?;
        kill_unit(&estate, COURIER)?;
        // Every other time it is the unit's own Restart= that brings it back.
        if n % 2 == 0 {
            revive(&estate, COURIER)?;
        }
        wait_for("the repairs in the history", PATIENCE, || Ok((n_repairs()? >= n_before + 5).then_some(())))?;
    }
    let repairs: BTreeSet<i64> =
        estate.history()?.iter().filter(|entry| entry.is_repair()).map(|entry| entry.id).collect();
    ensure!(repairs.len() >= usize::try_from(KILLS * 5)?, "{} repairs", repairs.len());
    wait_for("every repair to be told", PATIENCE, || {
        let told: BTreeSet<i64> =
            estate.receiver.messages().iter().flat_map(|message| alerted(&message.body)).collect();
        Ok(told.is_superset(&repairs).then_some(()))
    })?;
    let n_messages = estate.receiver.messages().len();
    let ids: BTreeSet<String> = estate.receiver.messages().into_iter().map(|message| message.id).collect();
    println!("{} repairs told in {n_messages} messages, {} of them repeated", repairs.len(), n_messages - ids.len());
    ensure!(estate.receiver.messages().iter().all(|message| message.verified == Ok(())), "an unsigned alert");
    wait_for("an empty outbox", PATIENCE, || Ok((estate.status()?["outbox"] == 0).then_some(())))
}
