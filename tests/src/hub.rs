//! The real endpoint over TLS, with an engine that hands each request to the test.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::certificates::Authority;
use crate::machine::Machine;
use crate::product::{PATIENCE, build};
use crate::run::{Daemon, Invocation, free_port, put, wait_for};

/// Puts what it is given where the test sees it, and ends when the test says so.
const ENGINE: &str = r#"#!/bin/sh
set -eu
cd "$(dirname "$0")"
cat > intent.partial
mv intent.partial intent.json
while [ ! -e outcome ]; do sleep 0.05; done
exit "$(cat outcome)"
"#;

/// A running `rekindle-hub`.
#[derive(Debug)]
pub struct Hub {
    dir: TempDir,
    port: u16,
    program: PathBuf,
    authority_file: PathBuf,
    running: Option<Daemon>,
}

impl Hub {
    /// Starts one with a group `web` whose hosts may be reimaged when one person approves.
    pub fn start(authority: &Authority) -> Result<Self> {
        let program = build()?.hub.clone();
        ensure!(program.exists(), "there is no `{}`", program.display());
        let dir = tempfile::Builder::new().prefix("rekindle-hub-").tempdir().context("no directory")?;
        let port = free_port()?;
        let certificate = authority.issue("hub")?;
        let engine = dir.path().join("engine");
        put(&engine, ENGINE)?;
        std::fs::set_permissions(&engine, std::fs::Permissions::from_mode(0o755)).context("cannot set a mode")?;
        let at = dir.path().display();
        let text = format!(
            "listen = \"127.0.0.1:{port}\"
certificate = \"{}\"
key = \"{}\"
database = \"{at}/hub.db\"
control = \"{at}/control.sock\"
checkin = \"2s\"

[groups.web]
opted_in = true
approval = \"one\"
engine = {{ exec = [\"{at}/engine\"], timeout = \"5m\" }}
",
            certificate.certificate.display(),
            certificate.key.display(),
        );
        put(dir.path().join("hub.toml"), text)?;
        let mut hub = Self { dir, port, program, authority_file: authority.file(), running: None };
        hub.resume()?;
        Ok(hub)
    }

    /// Stops it: connections are refused.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Starts it again on the same port, with what it has on disk.
    pub fn resume(&mut self) -> Result<()> {
        let log = self.dir.path().join("log");
        let program = self.program.to_str().context("the target directory's name is text")?;
        let config = self.dir.path().join("hub.toml");
        let mut daemon = Daemon::start(program, ["serve".as_ref(), "--config".as_ref(), config.as_os_str()], &log)?;
        wait_for("the hub", Duration::from_secs(20), || {
            ensure!(!daemon.ended()?, "the hub ended");
            let answer = Invocation::new("curl")
                .args(["--silent", "--output", "/dev/null", "--cacert"])
                .arg(&self.authority_file)
                .arg(self.url())
                .output()?;
            Ok((answer.code == Some(0)).then_some(()))
        })
        .with_context(|| self.log())?;
        self.running = Some(daemon);
        Ok(())
    }

    /// Where hosts reach it.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The agent's `[reimage]` table for a host of this name.
    pub fn agent_table(&self, host: &str) -> String {
        format!(
            "[reimage]
endpoint = \"{}\"
ca = \"/etc/rekindle/ca.pem\"
join_token_file = \"/etc/rekindle/join.token\"
host_id = \"{host}\"
checkin = \"2s\"
drain = [\"/etc/rekindle/drain.d\"]
",
            self.url()
        )
    }

    /// Makes a join token for the group `web`.
    pub fn token(&self) -> Result<String> {
        let made = self.admin(&["token", "create", "--group", "web"])?;
        Ok(made["token"].as_str().with_context(|| format!("no token in {made}"))?.to_owned())
    }

    /// What it knows of a host.
    pub fn host(&self, host: &str) -> Result<Option<Value>> {
        Ok(self.list("hosts")?.into_iter().find(|known| known["host_id"] == host))
    }

    /// The requests of a host, oldest first.
    pub fn reimages(&self, host: &str) -> Result<Vec<Value>> {
        let mut all = self.list("reimages")?;
        all.retain(|reimage| reimage["host_id"] == host);
        all.sort_by_key(|reimage| reimage["requested_at"].to_string());
        Ok(all)
    }

    /// Waits until the newest request of a host is in this state, and returns it.
    pub fn wait_reimage(&self, host: &str, state: &str) -> Result<Value> {
        let mut last = Value::Null;
        wait_for(&format!("a request that is {state}"), PATIENCE, || {
            last = self.reimages(host)?.last().cloned().unwrap_or_default();
            Ok((last["state"] == state).then(|| last.clone()))
        })
        .with_context(|| format!("the newest request of {host} is {last:#}\n{}", self.log()))
    }

    /// Waits until a host has enrolled.
    pub fn wait_enrolled(&self, machine: &Machine) -> Result<Value> {
        wait_for("the host's enrolment", PATIENCE, || self.host(machine.name())).with_context(|| self.log())
    }

    /// Says yes to a request, as a person does.
    pub fn approve(&self, id: &str) -> Result<()> {
        self.admin(&["approve", id])?;
        Ok(())
    }

    /// The evidence that came with a request, once there is some.
    pub fn evidence(&self, id: &str) -> Result<Option<Value>> {
        let shown = self.admin(&["show", id])?;
        Ok(shown.get("evidence").filter(|evidence| !evidence.is_null()).cloned())
    }

    /// Waits until the engine was called, and returns what it was given.
    pub fn wait_engine(&self) -> Result<Value> {
        let path = self.dir.path().join("intent.json");
        let text = wait_for("the engine to be called", PATIENCE, || Ok(std::fs::read_to_string(&path).ok()))
            .with_context(|| self.log())?;
        std::fs::remove_file(&path).context("cannot take the intent")?;
        serde_json::from_str(&text).with_context(|| format!("the engine was given `{text}`"))
    }

    /// Lets the engine end with this exit code.
    pub fn end_engine(&self, code: u8) -> Result<()> {
        put(self.dir.path().join("outcome.partial"), code.to_string())?;
        std::fs::rename(self.dir.path().join("outcome.partial"), self.dir.path().join("outcome"))
            .context("cannot end it")
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn list(&self, what: &str) -> Result<Vec<Value>> {
        let all = self.admin(&[what])?;
        all[what].as_array().cloned().with_context(|| format!("`rekindle-hub {what}` printed no list: {all}"))
    }

    /// Runs one of its commands for operators.
    fn admin(&self, args: &[&str]) -> Result<Value> {
        let text = Invocation::new(&self.program)
            .args(["--json", "--control"])
            .arg(self.dir.path().join("control.sock"))
            .args(args)
            .ok()?;
        let printed: Value = serde_json::from_str(&text)
            .with_context(|| format!("`rekindle-hub {}` printed `{text}`", args.join(" ")))?;
        ensure!(printed["version"] == 1, "`rekindle-hub {}` printed `{text}`", args.join(" "));
        Ok(printed)
    }
}
