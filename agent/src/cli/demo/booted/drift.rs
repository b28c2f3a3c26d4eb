//! What another process does to the machine, and how long it stays.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::super::narration::PATIENCE;
use super::machine::Machine;

/// One way to drift.
#[derive(Debug)]
pub(super) struct Drift {
    /// The command that causes it, which is also what people are told.
    pub(super) command: &'static str,
    /// What is to be repaired.
    pub(super) resource: &'static str,
    is_good: fn(&Path) -> bool,
}

/// Every drift of the demo, in order.
pub(super) const ALL: &[Drift] = &[
    Drift { command: "echo hacked > /etc/motd", resource: "file[/etc/motd]", is_good: has_motd },
    Drift { command: "chmod 0666 /etc/demo/demo.conf", resource: "file[/etc/demo/demo.conf]", is_good: has_conf },
    Drift { command: "usermod -s /bin/false deploy", resource: "user[deploy]", is_good: has_account },
    Drift { command: "userdel deploy", resource: "user[deploy]", is_good: has_account },
    Drift { command: "systemctl stop demo-hello", resource: "service[demo-hello]", is_good: has_service },
    Drift { command: "systemctl mask demo-hello", resource: "service[demo-hello]", is_good: has_service },
    Drift { command: "apt-get -y remove demo-hello", resource: "package[demo-hello]", is_good: has_package },
];

impl Drift {
    /// Causes the drift, and returns how long it was to be seen from outside; nothing when it was gone before a look.
    pub(super) async fn cause_and_time(&self, machine: &Machine) -> anyhow::Result<Option<Duration>> {
        let root = machine.root()?;
        let is_good = self.is_good;
        anyhow::ensure!(is_good(&root), "before `{}` the machine is not as declared", self.command);
        let is_caused = Arc::new(AtomicBool::new(false));
        let watched = Arc::clone(&is_caused);
        let watcher = tokio::task::spawn_blocking(move || watch(&root, is_good, &watched));
        machine.run(&["sh", "-c", self.command]).await?;
        is_caused.store(true, Ordering::Release);
        watcher.await?.with_context(|| format!("not repaired: `{}`", self.command))
    }
}

/// Looks without a pause: the time runs from the first look that finds the drift.
fn watch(root: &Path, is_good: fn(&Path) -> bool, is_caused: &AtomicBool) -> anyhow::Result<Option<Duration>> {
    let started = Instant::now();
    let mut drifted = None;
    loop {
        let was_caused = is_caused.load(Ordering::Acquire);
        match (is_good(root), drifted) {
            (false, None) => drifted = Some(Instant::now()),
            (true, Some(since)) if was_caused => return Ok(Some(since.elapsed())),
            (true, None) if was_caused => return Ok(None),
            (true, None | Some(_)) | (false, Some(_)) => {}
        }
        anyhow::ensure!(started.elapsed() < PATIENCE, "it still differs after {} s", PATIENCE.as_secs());
        std::thread::yield_now();
    }
}

fn has_motd(root: &Path) -> bool {
    fs::read_to_string(root.join("etc/motd")).is_ok_and(|text| text == "This host is kept by rekindle.\n")
}

fn has_conf(root: &Path) -> bool {
    fs::symlink_metadata(root.join("etc/demo/demo.conf"))
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o7777 == 0o640)
}

fn has_account(root: &Path) -> bool {
    let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap_or_default();
    let group = fs::read_to_string(root.join("etc/group")).unwrap_or_default();
    let keys = fs::read_to_string(root.join("home/deploy/.ssh/authorized_keys")).unwrap_or_default();
    passwd.lines().any(|line| line.starts_with("deploy:x:2001:") && line.ends_with(":/home/deploy:/bin/bash"))
        && group.lines().any(|line| line.starts_with("web:") && line.ends_with(":deploy"))
        && keys.starts_with("ssh-ed25519 ")
}

/// Whether its process runs, and nothing forbids it to be started again.
fn has_service(root: &Path) -> bool {
    let is_masked = fs::read_link(root.join("etc/systemd/system/demo-hello.service")).is_ok();
    let processes = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let mut names = processes.filter_map(|process| fs::read_to_string(process.path().join("comm")).ok());
    !is_masked && names.any(|name| name == "demo-hello\n")
}

pub(super) fn has_package(root: &Path) -> bool {
    let status = fs::read_to_string(root.join("var/lib/dpkg/status")).unwrap_or_default();
    let is_installed = |record: &str| {
        record.starts_with("Package: demo-hello\n") && record.contains("\nStatus: install ok installed\n")
    };
    status.split("\n\n").any(is_installed) && has_service(root)
}
