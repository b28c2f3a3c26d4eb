//! The demo's world: a directory with a host's root, the agent's state, a git repository, and the two real services.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use gix::objs::tree::{Entry, EntryKind};
use gix::objs::{Kind, Tree, Write as _};
use jiff::Timestamp;
use tokio::process::{Child, Command};

use super::signer::Signer;

/// Everything below one temporary directory.
#[derive(Debug)]
pub(super) struct Sandbox {
    directory: PathBuf,
    signer: Signer,
    head: Option<String>,
    services: Vec<(&'static str, Child)>,
}

/// Where the services find their peers.
#[derive(Debug)]
pub(super) struct Peers<'a> {
    /// Webhook receiver.
    pub webhook: &'a str,
    /// Endpoint.
    pub endpoint: &'a str,
    /// PEM of the certificate authority of the endpoint.
    pub ca: &'a str,
    /// Token to enrol with.
    pub join_token: &'a str,
    /// Secret that signs alerts.
    pub secret: &'a str,
}

impl Sandbox {
    /// Makes the directories and an empty repository.
    pub(super) fn new(directory: PathBuf) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let sandbox = Self { directory, signer: Signer::generate()?, head: None, services: Vec::new() };
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        for name in ["root/etc", "state/outbox", "state/inbox", "state/courier", "state/policy", "run"] {
            let path = sandbox.directory.join(name);
            private.create(&path).with_context(|| format!("cannot make `{}`", path.display()))?;
        }
        gix::init_bare(sandbox.repository()).context("cannot make a git repository")?;
        Ok(sandbox)
    }

    /// The managed root.
    pub(super) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// The agent's configuration file.
    pub(super) fn config(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }

    /// The agent's control socket.
    pub(super) fn control(&self) -> PathBuf {
        self.directory.join("run/control.sock")
    }

    /// Where the demo lives.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn repository(&self) -> PathBuf {
        self.directory.join("policy.git")
    }

    /// Commits these files to `main`, signed. Returns the commit's id.
    pub(super) fn commit(&mut self, message: &str, files: &[(&str, &str)]) -> anyhow::Result<String> {
        let repository = gix::open_opts(self.repository(), gix::open::Options::isolated())?;
        let mut entries = Vec::new();
        for (name, content) in files {
            let oid = repository.write_blob(content.as_bytes())?.detach();
            entries.push(Entry { mode: EntryKind::Blob.into(), filename: (*name).into(), oid });
        }
        entries.sort();
        let tree = repository.write_object(&Tree { entries })?.detach();
        let parent = self.head.as_ref().map_or(String::new(), |head| format!("parent {head}\n"));
        let who = format!("Demo <demo@rekindle.invalid> {} +0000", Timestamp::now().as_second());
        let header = format!("tree {tree}\n{parent}author {who}\ncommitter {who}\n");
        let payload = format!("{header}\n{message}\n");
        let signature = self.signer.sign(payload.as_bytes()).replace('\n', "\n ");
        let commit = format!("{header}gpgsig {signature}\n\n{message}\n");
        let id = repository
            .objects
            .write_buf(Kind::Commit, commit.as_bytes())
            .map_err(|e| anyhow::anyhow!("cannot write a commit: {e}"))?;
        repository.reference("refs/heads/main", id, gix::refs::transaction::PreviousValue::Any, "demo")?;
        let id = id.to_string();
        self.head = Some(id.clone());
        Ok(id)
    }

    /// Writes the configuration of both services.
    pub(super) fn configure(&self, peers: &Peers<'_>) -> anyhow::Result<()> {
        let signers = self.place("allowed_signers", &self.signer.allowed_signer("demo@rekindle"))?;
        let ca = self.place("ca.pem", peers.ca)?;
        let token = self.place("join.token", peers.join_token)?;
        let secret = self.place("webhook.key", peers.secret)?;
        let directory = self.directory.display();
        let config = format!(
            r#"[policy]
url      = "file://{directory}/policy.git"
interval = "1s"
trust    = "{signers}"

[health]
retry   = {{ first = "200ms", max = "1s" }}
give_up = {{ attempts = 3, after = "2s" }}

[reimage]
endpoint        = "{endpoint}"
ca              = "{ca}"
host_id         = "demo-host"
join_token_file = "{token}"
checkin         = "1s"

[[webhook]]
url         = "{webhook}"
secret_file = "{secret}"

[paths]
root    = "{directory}/root"
state   = "{directory}/state"
runtime = "{directory}/run"
"#,
            signers = signers.display(),
            ca = ca.display(),
            token = token.display(),
            secret = secret.display(),
            endpoint = peers.endpoint,
            webhook = peers.webhook,
        );
        self.place("agent.toml", &config)?;
        Ok(())
    }

    fn place(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.directory.join(name);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(content.as_bytes())?;
        Ok(path)
    }

    /// Starts one of the real services, its log in a file of the sandbox.
    pub(super) fn start(&mut self, service: &'static str) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.directory.join(format!("{service}.log")))?;
        let child = Command::new(std::env::current_exe()?)
            .arg("--config")
            .arg(self.config())
            .arg(service)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the {service}"))?;
        self.services.push((service, child));
        Ok(())
    }

    /// Fails when a service has ended by itself, with the end of its log.
    pub(super) fn check_services(&mut self) -> anyhow::Result<()> {
        for (name, child) in &mut self.services {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(self.directory.join(format!("{name}.log"))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n");
                anyhow::bail!("the {name} ended ({status}):\n{tail}");
            }
        }
        Ok(())
    }

    /// Stops the services as systemd would, and waits for them.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        for (name, child) in &mut self.services {
            let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else { continue };
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
            let status = tokio::time::timeout(Duration::from_secs(10), child.wait())
                .await
                .map_err(|_elapsed| anyhow::anyhow!("the {name} does not stop"))??;
            anyhow::ensure!(status.success(), "the {name} stopped with {status}");
        }
        self.services.clear();
        Ok(())
    }
}
