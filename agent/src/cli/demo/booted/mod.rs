//! The demo as root: a booted machine with users, packages and services, destroyed and re-created by the hub's engine.
//!
//! The machine shares the network of this host, so that the hub and the receiver of this process are in its reach; its
//! disk is an overlay that is thrown away. Nothing of this host is changed but the cache of the image.

mod drift;
pub(super) mod engine;
mod image;
mod machine;
mod outfit;
mod program;
mod shop;

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use rekindle_hub::admin::HostSummary;
use rekindle_protocol::ReimageState;
use serde_json::Value;

use self::drift::Drift;
use self::engine::Calls;
pub(super) use self::image::{Image, find as find_image};
use self::machine::Machine;
use self::outfit::{DRAINED, Outfit};
use super::narration::{Interrupted, PATIENCE, Scenes, unless_interrupted, until, until_async};
use super::peers::{HOST, Peers};
use super::repository::Repository;
use crate::cli::output::{DIM, GOOD, span};

const POLICY: &str = include_str!("policy.toml");
const TEMPLATE: &str = "# Written by rekindle.\nlisten {{ vars.port }}\n";

/// What cannot be repaired in the end, and how that comes about.
const BROKEN: &str = "package[demo-hello]";
const BREAK: &str = "echo garbage > /var/lib/demo-hello/store && apt-get -y remove demo-hello";
/// What the package says to that.
const CAUSE: &str = "is damaged";

/// Everything that must be taken down at the end.
#[derive(Debug)]
struct Estate<'a> {
    peers: Peers,
    calls: Calls,
    outfit: Outfit<'a>,
    image: &'a Path,
    directory: &'a Path,
    machine: Option<Machine>,
}

/// Plays the demo in an empty directory, after making the image where there is none.
pub(super) async fn play(scenes: &mut Scenes<'_>, directory: &Path, image: Image) -> anyhow::Result<()> {
    // The accounts of the machine must be able to pass the directories that are made for it.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    image::check_disk(directory)?;
    let image = image.ready(scenes).await?;
    scenes.say(&format!("{DIM}a machine on a throwaway disk in {}{DIM:#}\n", directory.display()))?;
    let shop = unless_interrupted(shop::build(&directory.join("apt"))).await?;
    let mut repository = Repository::init(directory.join("policy.git"))?;
    let policy = POLICY.replace("PUBLIC KEY", &repository.public_key());
    let commit = repository.commit("The first policy", &[("policy.toml", &policy), ("demo.conf.j2", TEMPLATE)])?;

    let calls = Calls::listen(directory.join("engine.sock"))?;
    let peers = Peers::start(directory, calls.engine()?).await?;
    peers.introduce(scenes)?;
    let outfit = Outfit { shop, repository: &repository };
    let mut estate = Estate { peers, calls, outfit, image: &image, directory, machine: None };
    let result = match (unless_interrupted(live(scenes, &mut estate, &commit)).await, &estate.machine) {
        (Err(error), Some(machine)) if !error.is::<Interrupted>() => Err(machine.explain(error).await),
        (result, _) => result,
    };
    let destroyed = match estate.machine.take() {
        Some(machine) => machine.destroy().await,
        None => Ok(()),
    };
    // Its engine ends with the socket that it waits on.
    drop(estate.calls);
    estate.peers.stop().await;
    result.and(destroyed)
}

async fn live(scenes: &mut Scenes<'_>, estate: &mut Estate<'_>, commit: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    estate.boot("disk-1", None).await?;
    scenes.scene("machine", &format!("booted in {}, its network is that of this host", span(started.elapsed())))?;

    let started = Instant::now();
    estate.machine()?.start_services().await?;
    let n = estate.converged(commit).await?;
    let elapsed = span(started.elapsed());
    estate.peers.watch_acceptance(scenes, commit).await?;
    scenes.scene(
        "converge",
        &format!("{n} resources, an account, a package and a service among them, put in place {elapsed} after start"),
    )?;

    for drift in drift::ALL {
        estate.show_drift(scenes, drift).await?;
        estate.converged(commit).await?;
    }
    let n = estate.peers.received.of("drift.repaired").len();
    scenes.scene("alerts", &format!("{n} arrived at the receiver, each with a valid signature"))?;

    estate.machine()?.run(&["sh", "-c", BREAK]).await?;
    scenes.scene("broken", "demo-hello removed and its data damaged: the package refuses to be installed over it")?;
    let request = estate.peers.watch_giving_up(scenes, BROKEN, CAUSE).await?;
    estate.show_rebirth(scenes, &request, commit).await
}

impl Estate<'_> {
    /// The machine that is there now.
    fn machine(&self) -> anyhow::Result<&Machine> {
        self.machine.as_ref().context("there is no machine")
    }

    /// Boots a machine on a new disk, with everything but running services.
    async fn boot(&mut self, disk: &str, token: Option<&str>) -> anyhow::Result<()> {
        let disk = self.directory.join(disk);
        self.outfit.place_on(&machine::make_disk(&disk)?, &self.peers, token)?;
        let machine = Machine::power_on(&disk, self.image, self.outfit.repository.path())?;
        self.machine.insert(machine).booted().await?;
        self.outfit.finish(self.machine()?).await
    }

    /// Waits until this commit is in force, everything is as declared and everything is delivered; returns how many
    /// resources there are.
    async fn converged(&self, commit: &str) -> anyhow::Result<u64> {
        let machine = self.machine()?;
        let mut last = Value::Null;
        until_async("the host to converge", async || {
            last = machine.status().await?;
            let is_converged = last.pointer("/policy/revision").and_then(Value::as_str) == Some(commit)
                && last.pointer("/health/state").and_then(Value::as_str) == Some("converged")
                && last.pointer("/out_of_sync").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty)
                && last.pointer("/debts").and_then(Value::as_array).is_some_and(Vec::is_empty)
                && last.pointer("/activity").and_then(Value::as_str) == Some("")
                && last.pointer("/outbox").and_then(Value::as_u64) == Some(0);
            last.pointer("/resources/total").and_then(Value::as_u64).filter(|_| is_converged)
        })
        .await
        .with_context(|| format!("its last status is {last}"))
    }

    /// Drifts, and tells how long that lasted.
    async fn show_drift(&self, scenes: &mut Scenes<'_>, drift: &Drift) -> anyhow::Result<()> {
        let received = &self.peers.received;
        let before = received.of("drift.repaired").len();
        let latency = drift.cause_and_time(self.machine()?).await?;
        let latency =
            latency.map_or_else(|| "before it could be seen".to_owned(), |latency| format!("in {}", span(latency)));
        scenes.scene("drift", &format!("{:<31} {GOOD}repaired{GOOD:#} {latency}", drift.command))?;
        let alert = until("the alert about it", || {
            received.of("drift.repaired").into_iter().skip(before).find(|alert| concerns(alert, drift.resource))
        })
        .await?;
        if before == 0 {
            scenes.changes(&alert)?;
        }
        Ok(())
    }

    /// Approves a request, lets the hub's engine have the machine destroyed and re-created, and watches the new one live.
    async fn show_rebirth(&mut self, scenes: &mut Scenes<'_>, request: &str, commit: &str) -> anyhow::Result<()> {
        let drained = self.machine()?.root()?.join(DRAINED);
        anyhow::ensure!(!drained.exists(), "drained before anybody approved");
        let admin = self.peers.admin();
        admin.approve(request).await?;
        let call =
            tokio::time::timeout(PATIENCE, self.calls.next()).await.context("the hub did not call its engine")??;
        anyhow::ensure!(call.intent.host_id == HOST, "the engine was told to re-create `{}`", call.intent.host_id);
        anyhow::ensure!(drained.exists(), "the drain hook of the host has not run");
        scenes.scene("approved", "the host ran its drain hook and said that it is ready; the hub called its engine")?;

        let started = Instant::now();
        let machine = self.machine.take().context("there is no machine")?;
        machine.destroy().await?;
        self.boot("disk-2", Some(&call.intent.enroll_token)).await?;
        self.machine()?.start_services().await?;
        let incarnation = call.intent.next_incarnation;
        call.done().await?;
        scenes
            .scene("engine", "destroyed the machine with its disk, and booted a new one with a token to enrol with")?;

        self.converged(commit).await?;
        anyhow::ensure!(drift::has_package(&self.machine()?.root()?), "the new machine does not have what was broken");
        until_async("the hub to call the rebirth a success", async || {
            let all = admin.list_reimages().await.ok()?;
            all.into_iter().find(|one| one.id.as_str() == request && one.state == ReimageState::Succeeded)
        })
        .await?;
        let host = admin.list_hosts().await?.into_iter().find(|host: &HostSummary| host.host_id.as_str() == HOST);
        let host = host.context("the hub does not know the host")?;
        anyhow::ensure!(host.incarnation == incarnation, "the hub knows incarnation {}", host.incarnation);
        let elapsed = span(started.elapsed());
        scenes.scene(
            "reborn",
            &format!("converged as incarnation {incarnation} within {elapsed}; the hub says {GOOD}succeeded{GOOD:#}"),
        )
    }
}

/// Whether an alert is about a resource.
fn concerns(alert: &Value, resource: &str) -> bool {
    let resources = alert.pointer("/data/resources").and_then(Value::as_array);
    resources.into_iter().flatten().any(|one| one.get("resource").and_then(Value::as_str) == Some(resource))
}
