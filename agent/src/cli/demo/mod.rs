//! `rekindle demo`: the whole life of a host in a minute, as anyone, in a sandbox directory.
//!
//! Nothing here is pretended: the policy is a signed commit in a git repository, the agent and the courier are the real
//! services as processes of their own, the hub is the real hub over TLS, and every line that says something happened has
//! seen it happen. The exit code says whether all of it was seen.

mod drift;
mod receiver;
mod sandbox;
mod signer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use clap::Args;
use rekindle_hub::admin::NewToken;
use rekindle_hub::{Approval, Engine, Group, HubOptions, Running, TlsIdentity};
use serde_json::Value;
use tokio::task::JoinSet;

use self::receiver::Received;
use self::sandbox::{Peers, Sandbox};
use super::output::{BAD, BOLD, DIM, GOOD, changes_text, span};
use super::{Out, Outcome, exit, services};
use crate::agent::control;
use crate::resource::Change;

/// Arguments of `rekindle demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Keep the sandbox directory, to look around in it
    #[arg(long)]
    keep: bool,
}

/// How long any one thing may take before the demo calls it not seen.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// Runs the demo.
pub fn run(args: &Demo, out: &mut Out) -> Outcome {
    let runtime = services::current_thread()?;
    let started = Instant::now();
    // Short paths: a unix socket's name has at most 107 bytes.
    let directory = tempfile::Builder::new().prefix("rekindle-demo-").tempdir().context("cannot make a sandbox")?;
    let mut scenes = Scenes { out, n: 0, log: Vec::new() };
    let result = runtime.block_on(play(&mut scenes, directory.path().to_path_buf()));
    if args.keep {
        let path = directory.keep();
        scenes.out.line(format_args!("{DIM}the sandbox is kept in {}{DIM:#}", path.display()))?;
    }
    let seen = result.is_ok();
    if scenes.out.is_json() {
        let log = std::mem::take(&mut scenes.log);
        let error = result.as_ref().err().map(|e| format!("{e:#}"));
        scenes.out.value(&serde_json::json!({ "version": 1, "seen": seen, "scenes": log, "error": error }))?;
    }
    match result {
        Ok(()) => {
            scenes.say(&format!("{GOOD}all of it was seen{GOOD:#}, in {}", span(started.elapsed())))?;
            Ok(exit::OK)
        }
        Err(error) => {
            scenes.say(&format!("{BAD}not seen{BAD:#}"))?;
            Err(error.into())
        }
    }
}

/// Narrates.
struct Scenes<'a> {
    out: &'a mut Out,
    n: u32,
    log: Vec<Value>,
}

impl Scenes<'_> {
    /// One numbered line about something that was seen.
    fn scene(&mut self, title: &str, text: &str) -> anyhow::Result<()> {
        self.n = self.n.saturating_add(1);
        self.log.push(serde_json::json!({ "scene": title, "seen": text }));
        if !self.out.is_json() {
            let n = self.n;
            self.out.line(format_args!("{DIM}{n:>2}{DIM:#}  {BOLD}{title:<9}{BOLD:#} {text}"))?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// A line without a number.
    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        if !self.out.is_json() {
            self.out.line(text)?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// The differences of an alert, indented.
    fn changes(&mut self, alert: &Value) -> anyhow::Result<()> {
        let changes = alert.pointer("/data/resources/0/changes").cloned().unwrap_or_default();
        let changes: Vec<Change> = serde_json::from_value(changes).context("the alert holds no changes")?;
        if !self.out.is_json() {
            for line in changes_text(&changes, self.out.has_color()).lines() {
                self.out.line(format_args!("              {line}"))?;
            }
        }
        Ok(())
    }
}

async fn play(scenes: &mut Scenes<'_>, directory: PathBuf) -> anyhow::Result<()> {
    scenes.say(&format!("{DIM}sandbox {}: nothing outside it is touched{DIM:#}\n", directory.display()))?;
    let mut sandbox = Sandbox::new(directory)?;
    let mut background = JoinSet::new();

    let (listener, receiver) = receiver::bind().await?;
    let received = Received::default();
    let secret = crate::agent::random_id().into_bytes();
    background.spawn(receiver::serve(listener, secret.clone(), received.clone()));
    let (hub, ca) = start_hub(&sandbox).await?;
    let token = NewToken { group: "demo".to_owned(), host: None, uses: 1, expires: Duration::from_secs(600) };
    let join_token = hub.admin().create_token(token).await?.token;
    scenes.scene(
        "peers",
        &format!("a hub over TLS on {} and a webhook receiver on {receiver} are listening", hub.addr),
    )?;

    let result = live(
        scenes,
        &mut sandbox,
        &hub,
        &received,
        &Peers {
            webhook: &format!("http://{receiver}/alerts"),
            endpoint: &format!("https://{}", hub.addr),
            ca: &ca,
            join_token: join_token.reveal(),
            secret: &format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(&secret)),
        },
    )
    .await;
    let result = match result {
        // A service that ended is the better explanation of something not seen.
        Err(error) => sandbox.check_services().and(Err(error)),
        Ok(()) => sandbox.stop().await,
    };
    background.abort_all();
    hub.stop().await;
    result
}

async fn live(
    scenes: &mut Scenes<'_>,
    sandbox: &mut Sandbox,
    hub: &Running,
    received: &Received,
    peers: &Peers<'_>,
) -> anyhow::Result<()> {
    sandbox.configure(peers)?;
    let commit = sandbox.commit("The first policy", &[("policy.toml", POLICY), ("app.conf.j2", TEMPLATE)])?;
    let short = commit.get(..12).unwrap_or(&commit).to_owned();
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
    let accepted = until("the alert that the policy was accepted", || received.of("policy.accepted").pop()).await?;
    let signer = accepted.pointer("/data/summary").and_then(Value::as_str).unwrap_or_default();
    anyhow::ensure!(signer.contains("demo@rekindle"), "the policy was accepted without its signer: {signer}");
    scenes.scene("policy", &format!("commit {short} pulled from a git repository, signed by demo@rekindle"))?;
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
    let failed = until("the alert that convergence failed", || received.of("convergence.failed").pop()).await?;
    let error = failed.pointer("/data/resources/0/error").and_then(Value::as_str).unwrap_or_default();
    scenes.scene("failed", error.lines().next().unwrap_or_default())?;
    until("the alert that a reimage was requested", || received.of("reimage.requested").pop()).await?;
    let request = until_async("the request at the hub", async || {
        hub.admin().list_reimages().await.ok().and_then(|all| all.into_iter().next())
    })
    .await?;
    let whole = until_async("the dossier at the hub", async || {
        hub.admin().show(request.id.as_str()).await.ok().filter(|shown| shown.evidence.is_some())
    })
    .await?;
    let evidence = whole.evidence.unwrap_or_default();
    let attempts = evidence
        .pointer("/health/failing/file[~1etc~1motd]/attempts")
        .and_then(Value::as_u64)
        .context("the dossier does not say how often the repair was tried")?;
    scenes.scene("given up", &format!("after {attempts} attempts; a reimage was asked for, and the alert arrived"))?;
    let bytes = serde_json::to_vec(&evidence)?.len();
    scenes.scene("hub", &format!("request {} is waiting for approval, with a dossier of {bytes} bytes", request.id))?;
    Ok(())
}

async fn start_hub(sandbox: &Sandbox) -> anyhow::Result<(Running, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&key)?;
    let server_key = rcgen::KeyPair::generate()?;
    let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?
        .signed_by(&server_key, &rcgen::Issuer::new(authority, key))?;
    let mut options = HubOptions::new(sandbox.directory().join("hub.db"), "127.0.0.1:0".parse()?);
    options.tls = Some(TlsIdentity::Pem { certificate: server.pem(), key: server_key.serialize_pem() });
    // Nobody approves in this demo, so the engine is never called; a group without one accepts no requests.
    let engine = Engine { exec: vec!["/bin/false".to_owned()], timeout: Duration::from_secs(1) };
    let group = Group { opted_in: true, approval: Approval::One, engine: Some(engine), ..Group::default() };
    options.groups = BTreeMap::from([("demo".to_owned(), group)]);
    Ok((rekindle_hub::start(options).await?, ca.pem()))
}

/// Waits for something to be there.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    until_async(what, async || look()).await
}

/// Waits for something to be there, asking asynchronously.
async fn until_async<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> anyhow::Result<T> {
    let ends = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < ends, "waited {} s for {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
