//! A throwaway machine: systemd-nspawn on an overlay over the image, driven from outside by entering its namespaces.
//!
//! It is a tree of processes in namespaces of their own, which the kernel takes down whole when the demo ends, however
//! that comes about. What stays behind then are a directory and empty control groups.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

use super::super::files::make;
use super::super::narration::until_async;
use super::program::{self, Contained};

/// Where the machine has the policy's repository.
pub(super) const REPOSITORY: &str = "/srv/policy.git";

const BOOT: &str = include_str!("boot.sh");
const CONSOLE: &str = "console.log";
const UNITS: [&str; 2] = ["rekindle-agent.service", "rekindle-courier.service"];

/// A machine that was powered on. Dropping it kills it; [`Machine::destroy`] also waits and clears up.
#[derive(Debug)]
pub(super) struct Machine {
    disk: PathBuf,
    groups: Vec<PathBuf>,
    program: Contained,
    /// The first process inside, once there is one.
    leader: Option<u32>,
}

/// Makes an empty disk; what is put into the directory that is returned is there from birth.
pub(super) fn make_disk(disk: &Path) -> anyhow::Result<PathBuf> {
    for part in ["upper", "work", "root"] {
        make(&disk.join(part), 0o755)?;
    }
    Ok(disk.join("upper"))
}

impl Machine {
    /// Powers a machine on and waits for nothing.
    pub(super) fn power_on(disk: &Path, image: &Path, repository: &Path) -> anyhow::Result<Self> {
        let name = format!("rekindle-demo-{}", std::process::id());
        let groups = groups(&name)?;
        let mut args = ["-c", BOOT, "boot", &name].map(PathBuf::from).to_vec();
        args.extend([image, disk, repository].map(Path::to_path_buf));
        args.extend(groups.iter().cloned());
        let program = Contained::start("sh", &args, &disk.join(CONSOLE))?;
        Ok(Self { disk: disk.to_path_buf(), groups, program, leader: None })
    }

    /// Waits until its service manager has started everything.
    pub(super) async fn booted(&mut self) -> anyhow::Result<()> {
        let found = until_async("the machine's first process", async || {
            if self.program.has_ended() {
                return Some(None);
            }
            self.program.process().and_then(leader_below).map(Some)
        })
        .await?;
        self.leader = Some(found.context("systemd-nspawn ended at once")?);
        until_async("the machine to have booted", async || {
            // `degraded` is a unit of the image that cannot work in a container.
            let state = self.enter(&["systemctl", "is-system-running"]).ok()?.output().await.ok()?.stdout;
            matches!(state.trim_ascii(), b"running" | b"degraded").then_some(())
        })
        .await
    }

    /// Its file system, seen from outside. Absolute symbolic links in it lead out of it.
    pub(super) fn root(&self) -> anyhow::Result<PathBuf> {
        Ok(format!("/proc/{}/root", self.leader.context("the machine is not there")?).into())
    }

    fn enter(&self, argv: &[&str]) -> anyhow::Result<tokio::process::Command> {
        let leader = self.leader.context("the machine is not there")?.to_string();
        let mut command = program::command("nsenter");
        command
            .args(["--target", &leader, "--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup"])
            .args(["--root", "--wd", "--"])
            .args(argv)
            .env_clear()
            .env("PATH", program::PATH)
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        Ok(command)
    }

    /// Runs a program inside, as root; anything but success is an error.
    pub(super) async fn run(&self, argv: &[&str]) -> anyhow::Result<String> {
        program::run(&mut self.enter(argv)?).await
    }

    /// Lets both services start, now and at every boot.
    pub(super) async fn start_services(&self) -> anyhow::Result<()> {
        self.run(&["systemctl", "enable", "--now", UNITS[0], UNITS[1]]).await?;
        Ok(())
    }

    /// What `rekindle status` says inside; nothing while the agent does not answer.
    pub(super) async fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.run(&["rekindle", "status", "--json"]).await.ok()?).ok()
    }

    /// Adds to an error what the machine says of itself.
    pub(super) async fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let journal =
            ["journalctl", "--no-pager", "--output=cat", "--lines=20", "--unit", UNITS[0], "--unit", UNITS[1]];
        match self.run(&journal).await {
            Ok(text) => anyhow::anyhow!("{error:#}\nthe services of the machine said last:\n{text}"),
            Err(_) => {
                let console = std::fs::read_to_string(self.disk.join(CONSOLE)).unwrap_or_default();
                anyhow::anyhow!("{error:#}\nthe console of the machine said:\n{console}")
            }
        }
    }

    /// Pulls the plug and waits until nothing of it is left but its disk.
    pub(super) async fn destroy(self) -> anyhow::Result<()> {
        self.program.end().await?;
        for group in &self.groups {
            until_async("the machine's control group to be empty", async || remove_tree(group).ok()).await?;
        }
        Ok(())
    }
}

/// Makes a control group in each hierarchy that a service manager uses, below the demo's own.
fn groups(name: &str) -> anyhow::Result<Vec<PathBuf>> {
    let own = std::fs::read_to_string("/proc/self/cgroup").context("cannot read `/proc/self/cgroup`")?;
    let mut groups = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let unified = Path::new("/sys/fs/cgroup/unified");
        let mount = match controllers {
            "" if unified.is_dir() => unified,
            "" => Path::new("/sys/fs/cgroup"),
            "name=systemd" => Path::new("/sys/fs/cgroup/systemd"),
            // A hierarchy that no service manager needs.
            _ => continue,
        };
        let group = mount.join(path.trim_start_matches('/')).join(name);
        make(&group, 0o755).context("the machine needs a control group of its own")?;
        groups.push(group);
    }
    Ok(groups)
}

/// Removes a control group with those below it; the files in them go by themselves.
fn remove_tree(group: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

/// The child that is number 1 in a namespace of its own.
fn leader_below(nspawn: u32) -> Option<u32> {
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let innermost = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse::<u32>().ok()
    };
    let outer = namespace(nspawn)?;
    program::children(nspawn)
        .into_iter()
        .find(|&child| innermost(child) == Some(1) && namespace(child).is_some_and(|own| own != outer))
}
