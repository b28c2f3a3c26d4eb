//! The demo for anyone: a host's root in a directory, and nothing outside it touched.

mod drift;
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use rekindle_hub::Engine;

use self::world::Sandbox;
use super::narration::{PATIENCE, Scenes, unless_interrupted, until, until_async};
use super::peers::Peers;
use super::repository::Repository;
use crate::agent::control;
use crate::cli::output::{DIM, GOOD, span};

const POLICY: &str = r#"[policy]
name = "demo"

[vars]
port = 8080

[directory."/etc/app"]
mode = "0755"

[file."/etc/app/app.conf"]
template = "app.conf.j2"
mode     = "0640"

[file."/etc/motd"]
content = "This host is kept by rekindle.\n"

[symlink."/etc/app/current.conf"]
target = "app.conf"
"#;

const TEMPLATE: &str = "# Written by rekindle.\nlisten {{ vars.port }}\nworkers {{ 2 * 2 }}\n";

/// Plays the demo in an empty directory.
pub(super) async fn play(scenes: &mut Scenes<'_>, directory: &Path) -> anyhow::Result<()> {
    scenes.say(&format!("{DIM}sandbox {}: nothing outside it is touched{DIM:#}\n", directory.display()))?;
    let mut sandbox = Sandbox::new(directory)?;
    // Nobody approves in this demo, so the engine is never called; a group without one accepts no requests.
    let engine = Engine { exec: vec!["/bin/false".to_owned()], timeout: Duration::from_secs(1) };
    let peers = Peers::start(directory, engine).await?;
    peers.introduce(scenes)?;
    let result = match unless_interrupted(live(scenes, directory, &mut sandbox, &peers)).await {
        // A service that ended is the better explanation of something not seen.
        Err(error) => sandbox.check_services().and(Err(error)),
        Ok(()) => sandbox.stop().await,
    };
    peers.stop().await;
    result
}

async fn live(scenes: &mut Scenes<'_>, directory: &Path, sandbox: &mut Sandbox, peers: &Peers) -> anyhow::Result<()> {
    let mut repository = Repository::init(directory.join("policy.git"))?;
    sandbox.configure(peers, &repository)?;
    let commit = repository.commit("The first policy", &[("policy.toml", POLICY), ("app.conf.j2", TEMPLATE)])?;
    let received = &peers.received;
    let started = Instant::now();
    sandbox.start("agent")?;
    sandbox.start("courier")?;

    let conf = sandbox.root().join("etc/app/app.conf");
    let control = sandbox.control();
    until_async("the host to converge", async || match control::ask(&control, &control::Request::Status).await {
        Ok(control::Answer::Status(status)) => (status.health.state == "converged").then_some(()),
        _ => None,
    })
    .await?;
    anyhow::ensure!(std::fs::read_to_string(&conf)?.contains("listen 8080"), "`{}` is not as declared", conf.display());
    peers.watch_acceptance(scenes, &commit).await?;
    scenes.scene("converge", &format!("4 resources put in place {} after start", span(started.elapsed())))?;

    for drift in drift::all() {
        let before = received.of("drift.repaired").len();
        let root = sandbox.root();
        let name = drift.what;
        let latency = tokio::task::spawn_blocking(move || drift.cause_and_time(&root, PATIENCE)).await??;
        scenes.scene("drift", &format!("{name:<44} {GOOD}repaired{GOOD:#} in {}", span(latency)))?;
        let alert = until("the alert about it", || received.of("drift.repaired").into_iter().nth(before)).await?;
        if before == 0 {
            scenes.changes(&alert)?;
        }
    }
    let n = received.of("drift.repaired").len();
    scenes.scene("alerts", &format!("{n} arrived at the receiver, each with a valid signature"))?;

    drift::block_with_data(&sandbox.root())?;
    scenes.scene(
        "broken",
        "/etc/motd became a directory with data in it: rekindle removes no data that it did not make",
    )?;
    peers.watch_giving_up(scenes, "file[/etc/motd]", "the directory is not empty").await?;
    Ok(())
}
