//! With the git server, the receiver and the endpoint down the host keeps its state, and what was queued arrives later.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rekindle_tests::product::{AGENT, COURIER, Estate, PATIENCE, Settings, alerted, event};
use rekindle_tests::{Hub, Signature, wait_for};

/// Retries have backed off by the time that the servers are back.
const RETURN: Duration = Duration::from_secs(120);

#[test]
fn everything_down_the_host_converges_and_tells_later() -> Result<()> {
    let mut estate = Estate::new()?;
    let mut hub = Hub::start(&estate.authority)?;
    let policy =
        |content: &str| format!("[policy]\nname = \"offline\"\n[file.\"/etc/kept\"]\ncontent = \"{content}\\n\"\n");
    estate.git.write("policy.toml", &policy("first"))?;
    let first = estate.git.commit("First", Signature::Trusted)?;
    let settings = Settings { tables: hub.agent_table(estate.machine.name()), ..Settings::default() };
    estate.machine.put("/etc/rekindle/join.token", hub.token()?)?;
    estate.machine.sh("chgrp rekindle /etc/rekindle/join.token && chmod 0640 /etc/rekindle/join.token")?;
    estate.configure(&settings)?;
    estate.start()?;
    estate.wait_converged(&first)?;
    hub.wait_enrolled(&estate.machine)?;
    let host = estate.machine.name().to_owned();

    estate.git.stop();
    estate.receiver.stop();
    hub.stop();
    let n_messages = estate.receiver.messages().len();
    let last = estate.history()?.last().map_or(0, |entry| entry.id);

    // Drift is repaired, by the process that saw the servers and by one that never did.
    let drift = |n: u32| -> Result<()> {
        estate.machine.sh(&format!("echo 'drift {n}' >> /etc/kept"))?;
        wait_for("the repair", PATIENCE, || Ok((estate.machine.read("/etc/kept")? == "first\n").then_some(())))
    };
    drift(1)?;
    drift(2)?;
    estate.machine.run("systemctl").args(["restart", AGENT, COURIER]).ok()?;
    drift(3)?;
    // While the agent is down nobody watches; it looks when it comes.
    estate.machine.run("systemctl").args(["stop", AGENT]).ok()?;
    estate.machine.sh("echo 'drift 4' >> /etc/kept")?;
    estate.machine.run("systemctl").args(["start", AGENT]).ok()?;
    wait_for("the repair", PATIENCE, || Ok((estate.machine.read("/etc/kept")? == "first\n").then_some(())))?;

    let status = wait_for("the courier's complaint", PATIENCE, || {
        let status = estate.status()?;
        let complains = status["courier"]["receivers"]
            .as_array()
            .is_some_and(|receivers| receivers.iter().any(|receiver| receiver["error"].is_string()));
        Ok((complains && status["fetch"]["error"].is_string()).then_some(status))
    })?;
    ensure!(status["health"]["state"] == "converged", "being alone is no failure: {status:#}");
    ensure!(status["outbox"].as_u64().is_some_and(|queued| queued >= 4), "{status:#}");
    ensure!(estate.machine.is_active(AGENT)? && estate.machine.is_active(COURIER)?);
    ensure!(estate.receiver.messages().len() == n_messages, "the receiver is not down");
    let repairs: Vec<i64> =
        estate.history()?.iter().filter(|entry| entry.id > last && entry.is_repair()).map(|entry| entry.id).collect();
    ensure!(repairs.len() == 4, "{repairs:?}");

    // A receiver that is back but not well loses nothing either.
    estate.git.write("policy.toml", &policy("second"))?;
    let second = estate.git.commit("Second", Signature::Trusted)?;
    estate.receiver.answer(500);
    estate.receiver.resume()?;
    wait_for("a refused delivery", RETURN, || Ok((!estate.receiver.refused().is_empty()).then_some(())))?;
    estate.receiver.answer(204);
    wait_for("every repair to be told", RETURN, || {
        let messages = estate.receiver.messages();
        let told: Vec<i64> = messages.iter().flat_map(|message| alerted(&message.body)).collect();
        Ok(repairs.iter().all(|id| told.contains(id)).then_some(()))
    })?;
    let told: Vec<i64> = estate.receiver.messages().iter().flat_map(|message| alerted(&message.body)).collect();
    ensure!(told.is_sorted(), "one receiver gets its alerts in order: {told:?}");

    estate.git.resume()?;
    hub.resume()?;
    estate.wait_converged(&second).context("after the git server came back")?;
    estate.receiver.wait_for("the alert about the second revision", RETURN, |message| {
        event(&message.body) == "policy.accepted" && message.body.to_string().contains(&second)
    })?;
    wait_for("a check-in with the second revision", RETURN, || {
        Ok(hub.host(&host)?.filter(|host| host.to_string().contains(&second)))
    })?;
    wait_for("an empty outbox", RETURN, || Ok((estate.status()?["outbox"] == 0).then_some(())))
}
