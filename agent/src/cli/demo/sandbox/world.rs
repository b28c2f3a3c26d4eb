//! The sandbox: a directory with a host's root, the agent's state, and the two real services as processes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};

use super::super::files::{make, place};
use super::super::peers::Peers;
use super::super::repository::Repository;

/// Everything below one temporary directory.
#[derive(Debug)]
pub(super) struct Sandbox {
    directory: PathBuf,
    services: Vec<(&'static str, Child)>,
}

impl Sandbox {
    /// Makes the directories.
    pub(super) fn new(directory: &Path) -> anyhow::Result<Self> {
        for name in ["root/etc", "state/outbox", "state/inbox", "state/courier", "state/policy", "run"] {
            make(&directory.join(name), 0o700)?;
        }
        Ok(Self { directory: directory.to_path_buf(), services: Vec::new() })
    }

    /// The managed root.
    pub(super) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// The agent's control socket.
    pub(super) fn control(&self) -> PathBuf {
        self.directory.join("run/control.sock")
    }

    fn config(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }

    /// Writes the configuration of both services.
    pub(super) fn configure(&self, peers: &Peers, repository: &Repository) -> anyhow::Result<()> {
        let directory = self.directory.display();
        let paths = format!(
            r#"
[paths]
root    = "{directory}/root"
state   = "{directory}/state"
runtime = "{directory}/run"
"#
        );
        place(&self.config(), peers.agent_toml(repository.path(), &self.directory) + &paths, 0o600)?;
        place(&self.directory.join("allowed_signers"), repository.allowed_signers(), 0o600)?;
        for (name, content) in peers.credentials(None) {
            place(&self.directory.join(name), content, 0o600)?;
        }
        Ok(())
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
