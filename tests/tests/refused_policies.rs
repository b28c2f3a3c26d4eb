//! A policy that is wrong, not signed, or older than the one in force is refused with its reason, told, and changes nothing.

use anyhow::{Context, Result, ensure};
use rekindle_tests::product::{Estate, PATIENCE, Settings, event};
use rekindle_tests::{Signature, wait_for};

const GOOD: &str = "[policy]\nname = \"good\"\n[file.\"/etc/kept\"]\ncontent = \"good\\n\"\n";

/// Waits until this commit is refused for a reason with these words, told so, and the policy in force still guards.
fn check_refused(estate: &Estate, commit: &str, in_force: &str, words: &[&str]) -> Result<()> {
    estate.fetch()?;
    let status = wait_for("the refusal", PATIENCE, || {
        let status = estate.status()?;
        Ok((status["refused"]["revision"] == commit).then_some(status))
    })?;
    let reason = status["refused"]["reason"].as_str().context("a refusal has a reason")?;
    for word in words {
        ensure!(reason.contains(word), "the reason does not say `{word}`: {reason}");
    }
    ensure!(status["policy"]["revision"] == in_force, "the policy in force went away: {status:#}");
    let told = estate.receiver.wait_for("the alert about the refusal", PATIENCE, |message| {
        event(&message.body) == "policy.rejected" && words.iter().all(|word| message.body.to_string().contains(word))
    })?;
    ensure!(told.verified == Ok(()), "{told:?}");
    let times = estate.receiver.messages().iter().filter(|message| message.id == told.id).count();
    ensure!(times == 1, "told {times} times");

    // It is not merely shown as in force.
    estate.machine.sh("echo evil > /etc/kept")?;
    wait_for("the repair under the policy in force", PATIENCE, || {
        Ok((estate.machine.read("/etc/kept")? == "good\n").then_some(()))
    })
}

#[test]
fn what_is_refused_changes_nothing_and_says_why() -> Result<()> {
    let estate = Estate::new()?;
    let git = &estate.git;
    git.write("policy.toml", GOOD)?;
    let older = git.commit("Good", Signature::Trusted)?;
    let good = git.commit("Still good", Signature::Trusted)?;
    estate.configure(&Settings::default())?;
    estate.start()?;
    estate.wait_converged(&good)?;

    git.write("policy.toml", &GOOD.replace("content", "conent"))?;
    let wrong = git.commit("A slip", Signature::Trusted)?;
    check_refused(&estate, &wrong, &good, &["conent", "policy.toml", "did you mean"])
        .context("a policy with an error")?;

    git.write("policy.toml", &GOOD.replace("good\\n", "unsigned\\n"))?;
    let unsigned = git.commit("Nobody's", Signature::None)?;
    check_refused(&estate, &unsigned, &good, &["sign"]).context("an unsigned commit")?;

    let stranger = git.commit("A stranger's", Signature::Stranger)?;
    check_refused(&estate, &stranger, &good, &["sign"]).context("a stranger's commit")?;

    git.force_push(&older)?;
    check_refused(&estate, &older, &good, &["descend"]).context("a push backwards")?;

    // A sound commit on top of the good one is taken at once, and the refusal is over.
    git.force_push(&good)?;
    git.write("policy.toml", &GOOD.replace("good\\n", "better\\n"))?;
    let better = estate.push("Better")?;
    let status = estate.wait_converged(&better)?;
    ensure!(status["refused"].is_null(), "{status:#}");
    ensure!(estate.machine.read("/etc/kept")? == "better\n");

    // A refusal outlives neither a restart nor the policy that is in force.
    git.force_push(&older)?;
    check_refused_after_restart(&estate, &older, &better)
}

/// The newest revision ever accepted is remembered on disk.
fn check_refused_after_restart(estate: &Estate, commit: &str, in_force: &str) -> Result<()> {
    estate.machine.run("systemctl").args(["restart", rekindle_tests::product::AGENT]).ok()?;
    estate.fetch()?;
    wait_for("the refusal after a restart", PATIENCE, || {
        let status = estate.status()?;
        ensure!(status["policy"]["revision"] == in_force, "the host went back: {status:#}");
        Ok((status["refused"]["revision"] == commit).then_some(()))
    })
}
