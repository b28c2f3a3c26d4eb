//! A host that cannot converge asks to be rebuilt, is rebuilt when a person says yes, and is whole again.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rekindle_tests::product::{Estate, PATIENCE, Settings, event};
use rekindle_tests::{Hub, Invocation, Signature, TestPackage, put, wait_for};

const POLICY: &str =
    "[policy]\nname = \"reborn\"\n[file.\"/etc/kept\"]\ncontent = \"kept\\n\"\n[package]\nrk-store = {}\n";

/// What a host has before its first convergence: the engine's image and what comes with it.
fn provision(estate: &Estate, root: &Path, settings: &Settings, token: &str) -> Result<()> {
    estate.configure_below(root, settings)?;
    put(root.join("etc/rekindle/join.token"), token)?;
    // The hook of a load balancer, say: it sees which request it drains for.
    let hook = root.join("etc/rekindle/drain.d/10-leave");
    put(&hook, "#!/bin/sh\necho \"drained for $REKINDLE_REQUEST\" > /var/log/drained\n")?;
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// What installing the image's packages does to the files that were there before the courier's user was.
const ADOPT: &str = "chown root:rekindle /etc/rekindle/webhook.key /etc/rekindle/join.token && \
    chmod 0640 /etc/rekindle/webhook.key /etc/rekindle/join.token";

#[test]
fn a_host_that_cannot_converge_is_rebuilt_and_whole_again() -> Result<()> {
    let mut estate = Estate::new()?;
    let hub = Hub::start(&estate.authority)?;
    let name = estate.machine.name().to_owned();

    // A package that cannot be installed on this disk: somebody left a damaged database where it keeps its own.
    estate.apt.add(&TestPackage {
        postinst: Some(
            "#!/bin/sh\nif [ -e /var/lib/rk-store/damaged ]; then echo 'the store is damaged' >&2; exit 1; fi\n"
                .to_owned(),
        ),
        ..TestPackage::new("rk-store", "1.0")
    })?;
    estate.apt.publish_to(&estate.machine)?;
    estate.machine.sh("mkdir -p /var/lib/rk-store && touch /var/lib/rk-store/damaged")?;

    estate.git.write("policy.toml", POLICY)?;
    let revision = estate.git.commit("Declare the store", Signature::Trusted)?;
    let flapping = Settings::default().health;
    let settings = Settings {
        health: format!(
            "{flapping}retry = {{ first = \"500ms\", max = \"1s\" }}\ngive_up = {{ attempts = 3, after = \"3s\" }}\n"
        ),
        tables: hub.agent_table(&name),
        ..Settings::default()
    };
    provision(&estate, &estate.machine.root(), &settings, &hub.token()?)?;
    estate.machine.sh(ADOPT)?;
    estate.start()?;
    let born = hub.wait_enrolled(&estate.machine)?;
    ensure!(born["incarnation"] == 1, "{born:#}");

    // Retried, given up, asked for; what can be kept in order is.
    let asked = hub.wait_reimage(&name, "requested")?;
    let id = asked["id"].as_str().context("a request has an id")?.to_owned();
    ensure!(asked["why"] == "failed", "{asked:#}");
    let status = estate.status()?;
    ensure!(status["health"]["state"] == "requested", "{status:#}");
    let failing = &status["health"]["failing"]["package[rk-store]"];
    ensure!(failing["attempts"].as_u64().is_some_and(|attempts| attempts >= 3), "{status:#}");
    ensure!(failing["error"].as_str().is_some_and(|error| error.contains("the store is damaged")), "{status:#}");
    ensure!(estate.machine.read("/etc/kept")? == "kept\n");
    for what in ["convergence.failed", "reimage.requested"] {
        estate
            .receiver
            .wait_for(what, PATIENCE, |message| event(&message.body) == what && message.verified == Ok(()))?;
    }
    let evidence = wait_for("the dossier", PATIENCE, || hub.evidence(&id))?.to_string();
    for word in ["package[rk-store]", "the store is damaged", &revision] {
        ensure!(evidence.contains(word), "the dossier does not say `{word}`: {evidence}");
    }
    ensure!(!estate.machine.path("/var/log/drained").exists(), "drained before anybody approved");

    // A person says yes.
    hub.approve(&id)?;
    let intent = hub.wait_engine()?;
    let token = intent["enroll_token"].as_str().with_context(|| format!("no token in {intent:#}"))?.to_owned();
    let drained = estate.machine.read("/var/log/drained").context("the drain hook has not run")?;
    ensure!(drained.starts_with("drained for ") && drained.trim().len() > "drained for".len(), "{drained:?}");
    estate
        .receiver
        .wait_for("the alert about the grant", PATIENCE, |message| event(&message.body) == "reimage.granted")?;

    // The engine destroys the machine and makes a new one, which gets nothing but the image and the token.
    let image = tempfile::tempdir()?;
    estate.apt.publish_below(image.path())?;
    provision(&estate, image.path(), &settings, &token)?;
    estate.machine.reimage(|root| {
        Invocation::new("cp").args(["--archive", "--no-target-directory"]).arg(image.path()).arg(root).ok()?;
        Ok(())
    })?;
    hub.end_engine(0)?;
    ensure!(!estate.machine.path("/var/lib/rk-store").exists() && !estate.machine.path("/var/log/drained").exists());
    // The image has the package, and what the engine injects is there before the services start.
    estate.machine.sh("apt-get -qq update")?;
    estate.machine.sh("mv /etc/rekindle/agent.toml /etc/rekindle/agent.toml.later")?;
    estate.install()?;
    estate.machine.sh(ADOPT)?;
    estate.machine.sh("mv /etc/rekindle/agent.toml.later /etc/rekindle/agent.toml")?;
    estate.start()?;
    estate.wait_converged(&revision)?;
    ensure!(estate.machine.sh("dpkg-query -W -f '${db:Status-Status}' rk-store")? == "installed");

    let done = hub.wait_reimage(&name, "succeeded")?;
    ensure!(done["id"] == *id, "{done:#}");
    ensure!(hub.reimages(&name)?.len() == 1, "one request for one rebirth");
    let reborn = hub.host(&name)?.context("the host is known")?;
    ensure!(reborn["incarnation"] == 2, "{reborn:#}");
    Ok(())
}

#[test]
fn a_host_that_converges_after_all_withdraws_its_request() -> Result<()> {
    let estate = Estate::new()?;
    let hub = Hub::start(&estate.authority)?;
    let name = estate.machine.name().to_owned();
    estate.apt.add(&TestPackage::broken("rk-store", "1.0"))?;
    estate.apt.publish_to(&estate.machine)?;
    estate.git.write("policy.toml", POLICY)?;
    let revision = estate.git.commit("Declare the store", Signature::Trusted)?;
    let flapping = Settings::default().health;
    let settings = Settings {
        health: format!(
            "{flapping}retry = {{ first = \"500ms\", max = \"1s\" }}\ngive_up = {{ attempts = 3, after = \"3s\" }}\n"
        ),
        tables: hub.agent_table(&name),
        ..Settings::default()
    };
    provision(&estate, &estate.machine.root(), &settings, &hub.token()?)?;
    estate.machine.sh(ADOPT)?;
    estate.start()?;
    hub.wait_reimage(&name, "requested")?;

    // Somebody mends the package; the host goes on trying while it waits for an answer.
    estate.apt.add(&TestPackage::new("rk-store", "1.1"))?;
    estate.apt.publish_to(&estate.machine)?;
    estate.wait_converged(&revision)?;
    hub.wait_reimage(&name, "cancelled")?;
    estate
        .receiver
        .wait_for("the alert about the withdrawal", PATIENCE, |message| event(&message.body) == "reimage.withdrawn")?;
    ensure!(!estate.machine.path("/var/log/drained").exists(), "drained without need");
    Ok(())
}
