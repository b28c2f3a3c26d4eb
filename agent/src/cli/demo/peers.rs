//! Whom a host talks to: the real hub over TLS and a webhook receiver, both inside the demo's process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rekindle_hub::admin::NewToken;
use rekindle_hub::{Admin, Approval, Engine, Group, HubOptions, Running, TlsIdentity};
use serde_json::Value;
use tokio::task::JoinSet;

use super::narration::{Scenes, until, until_async};
use super::receiver::{self, Received};
use super::repository::SIGNER;

/// The hub's name of the demo's host.
pub(super) const HOST: &str = "demo-host";

/// A hub and a receiver at work.
#[derive(Debug)]
pub(super) struct Peers {
    /// What has arrived at the receiver.
    pub(super) received: Received,
    hub: Running,
    webhook: SocketAddr,
    ca: String,
    join_token: String,
    secret: Vec<u8>,
    background: JoinSet<()>,
}

impl Peers {
    /// Starts both, the hub with its database in `directory`.
    pub(super) async fn start(directory: &Path, engine: Engine) -> anyhow::Result<Self> {
        let (listener, webhook) = receiver::bind().await?;
        let received = Received::default();
        let secret = crate::agent::random_id().into_bytes();
        let mut background = JoinSet::new();
        background.spawn(receiver::serve(listener, secret.clone(), received.clone()));
        let (hub, ca) = start_hub(directory, engine).await?;
        let token = NewToken { group: "demo".to_owned(), host: None, uses: 1, expires: Duration::from_secs(600) };
        let join_token = hub.admin().create_token(token).await?.token.reveal().to_owned();
        Ok(Self { received, hub, webhook, ca, join_token, secret, background })
    }

    /// The hub, as an operator sees it.
    pub(super) fn admin(&self) -> Admin {
        self.hub.admin()
    }

    /// Ends both.
    pub(super) async fn stop(mut self) {
        self.background.shutdown().await;
        self.hub.stop().await;
    }

    /// Tells that both are there.
    pub(super) fn introduce(&self, scenes: &mut Scenes<'_>) -> anyhow::Result<()> {
        let (hub, receiver) = (self.hub.addr, self.webhook);
        scenes.scene("peers", &format!("a hub over TLS on {hub} and a webhook receiver on {receiver} are listening"))
    }

    /// A host's configuration, but for the tables after it. It names the files of [`Self::credentials`] in `files`.
    pub(super) fn agent_toml(&self, repository: &Path, files: &Path) -> String {
        let (repository, files) = (repository.display(), files.display());
        let (hub, receiver) = (self.hub.addr, self.webhook);
        format!(
            r#"[policy]
url      = "file://{repository}"
interval = "1s"
trust    = "{files}/allowed_signers"

[health]
retry   = {{ first = "200ms", max = "1s" }}
give_up = {{ attempts = 3, after = "2s" }}

[reimage]
endpoint        = "https://{hub}"
ca              = "{files}/ca.pem"
host_id         = "{HOST}"
join_token_file = "{files}/join.token"
checkin         = "1s"
drain           = ["{files}/drain.d"]

[[webhook]]
url         = "http://{receiver}/alerts"
secret_file = "{files}/webhook.key"
"#
        )
    }

    /// What a host needs to be known by its peers, by file name. An engine hands a token of its own to a host it re-created.
    pub(super) fn credentials(&self, token: Option<&str>) -> [(PathBuf, String); 3] {
        [
            ("ca.pem".into(), self.ca.clone()),
            ("join.token".into(), token.unwrap_or(&self.join_token).to_owned()),
            ("webhook.key".into(), format!("whsec_{}", STANDARD.encode(&self.secret))),
        ]
    }

    /// Watches a host accept a commit as its policy, and say who signed it.
    pub(super) async fn watch_acceptance(&self, scenes: &mut Scenes<'_>, commit: &str) -> anyhow::Result<()> {
        let accepted =
            until("the alert that the policy was accepted", || self.received.of("policy.accepted").pop()).await?;
        let summary = accepted.pointer("/data/summary").and_then(Value::as_str).unwrap_or_default();
        anyhow::ensure!(summary.contains(SIGNER), "the policy was accepted without its signer: {summary}");
        let short = commit.get(..12).unwrap_or(commit);
        scenes.scene("policy", &format!("commit {short} pulled from a git repository, signed by {SIGNER}"))
    }

    /// Watches a host give up on a resource because of `cause`, and ask to be reimaged; returns the hub's name of the
    /// request.
    pub(super) async fn watch_giving_up(
        &self,
        scenes: &mut Scenes<'_>,
        resource: &str,
        cause: &str,
    ) -> anyhow::Result<String> {
        let error = until("the alert that convergence failed", || {
            self.received.of("convergence.failed").iter().find_map(|alert| error_of(alert, resource, cause))
        })
        .await?;
        scenes.scene("failed", &error)?;
        until("the alert that a reimage was requested", || self.received.of("reimage.requested").pop()).await?;
        let admin = self.admin();
        let request = until_async("the request at the hub", async || {
            admin.list_reimages().await.ok().and_then(|all| all.into_iter().next())
        })
        .await?;
        let evidence = until_async("the dossier at the hub", async || {
            admin.show(request.id.as_str()).await.ok().and_then(|shown| shown.evidence)
        })
        .await?;
        let attempts = evidence
            .pointer("/health/failing")
            .and_then(|failing| failing.get(resource)?.get("attempts")?.as_u64())
            .context("the dossier does not say how often the repair was tried")?;
        scenes
            .scene("given up", &format!("after {attempts} attempts; a reimage was asked for, and the alert arrived"))?;
        let bytes = serde_json::to_vec(&evidence)?.len();
        scenes.scene(
            "hub",
            &format!("request {} is waiting for approval, with a dossier of {bytes} bytes", request.id),
        )?;
        Ok(request.id.to_string())
    }
}

/// The line of an alert that says why a resource failed.
fn error_of(alert: &Value, resource: &str, cause: &str) -> Option<String> {
    let resources = alert.pointer("/data/resources")?.as_array()?;
    let failed = resources.iter().find(|one| one.get("resource").and_then(Value::as_str) == Some(resource))?;
    let error = failed.get("error")?.as_str()?;
    error.lines().map(str::trim).find(|line| line.contains(cause)).map(str::to_owned)
}

async fn start_hub(directory: &Path, engine: Engine) -> anyhow::Result<(Running, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&key)?;
    let server_key = rcgen::KeyPair::generate()?;
    let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?
        .signed_by(&server_key, &rcgen::Issuer::new(authority, key))?;
    let mut options = HubOptions::new(directory.join("hub.db"), "127.0.0.1:0".parse()?);
    options.tls = Some(TlsIdentity::Pem { certificate: server.pem(), key: server_key.serialize_pem() });
    options.checkin = Duration::from_secs(1);
    let group = Group { opted_in: true, approval: Approval::One, engine: Some(engine), ..Group::default() };
    options.groups = BTreeMap::from([("demo".to_owned(), group)]);
    Ok((rekindle_hub::start(options).await?, ca.pem()))
}
