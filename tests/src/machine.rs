//! A booted Debian host that lives as long as the value: systemd-nspawn on an overlay over the shared image.
//!
//! It shares the network of the build machine, so that servers on 127.0.0.1 are the same for both, unless it is to have
//! servers of its own on the usual ports: [`Machine::boot_alone`]. It is driven from outside by [`Machine::run`], which enters its namespaces.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::image::BaseImage;
use crate::run::{Daemon, Invocation, Output, children, put, require, wait_for};

/// The units whose journals a failed test shows.
const UNITS: &[&str] = &["rekindle-agent.service", "rekindle-courier.service"];

/// Lines of journal that a failed test shows for each unit.
const JOURNAL_LINES: &str = "200";

/// A booted host.
#[derive(Debug)]
pub struct Machine {
    name: String,
    image: BaseImage,
    network: Network,
    boot: Boot,
}

/// What a machine reaches.
#[derive(Debug, Clone, Copy)]
enum Network {
    /// What the build machine reaches.
    Shared,
    /// Itself alone.
    Loopback,
}

/// One life of a machine: gone with its overlay when dropped.
#[derive(Debug)]
struct Boot {
    name: String,
    daemon: Option<Daemon>,
    leader: u32,
    layers: TempDir,
}

impl Machine {
    /// Boots a new host, and returns when its service manager has started everything.
    pub fn boot() -> Result<Self> {
        require()?;
        Self::boot_on(BaseImage::ready()?)
    }

    /// Boots a new host that reaches nobody but itself.
    pub fn boot_alone() -> Result<Self> {
        require()?;
        Self::boot_with(BaseImage::ready()?, Network::Loopback)
    }

    /// Boots a new host on this image.
    pub fn boot_on(image: BaseImage) -> Result<Self> {
        Self::boot_with(image, Network::Shared)
    }

    fn boot_with(image: BaseImage, network: Network) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rk-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let boot = Boot::start_on(&name, &image, network, Boot::layers(&name)?)?;
        Ok(Self { name, image, network, boot })
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file system, seen from outside. Absolute symbolic links in it lead out of it.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.boot.leader))
    }

    /// A path of the host's, seen from outside.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        self.root().join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Prepares a program inside the host, as root with a clean environment.
    pub fn run(&self, program: &str) -> Invocation {
        enter(self.boot.leader, program)
    }

    /// Runs a shell script inside the host to its end.
    pub fn shell(&self, script: &str) -> Result<Output> {
        self.run("sh").args(["-ec", script]).output()
    }

    /// Runs a shell script inside the host; anything but success is an error that shows both streams.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.shell(script)?.ok()
    }

    /// Reads a file of the host's.
    pub fn read(&self, inside: impl AsRef<Path>) -> Result<String> {
        let inside = inside.as_ref();
        std::fs::read_to_string(self.path(inside)).with_context(|| format!("cannot read `{}`", inside.display()))
    }

    /// Writes a file of the host's, owned by root with mode 0644.
    pub fn put(&self, inside: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        put(self.path(inside), content)
    }

    /// The last lines of a unit's journal.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.boot.journal(unit)
    }

    /// Whether a unit is active.
    pub fn is_active(&self, unit: &str) -> Result<bool> {
        Ok(self.run("systemctl").args(["is-active", "--quiet", "--", unit]).output()?.code == Some(0))
    }

    /// The main process of a unit, in the process ids of this build machine.
    pub fn main_pid(&self, unit: &str) -> Result<Option<u32>> {
        let inside = self.run("systemctl").args(["show", "--property=MainPID", "--value", "--", unit]).ok()?;
        let inside: u32 = inside.trim().parse().with_context(|| format!("`{inside}` is no process id"))?;
        if inside == 0 {
            return Ok(None);
        }
        Ok(self.processes()?.into_iter().find(|(_, seen)| *seen == inside).map(|(outside, _)| outside))
    }

    /// Every process of the machine: its id here and its id inside.
    pub fn processes(&self) -> Result<Vec<(u32, u32)>> {
        let namespace = pid_namespace(self.boot.leader).context("the machine is gone")?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").context("cannot list /proc")? {
            let entry = entry.context("cannot list /proc")?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process may end while it is looked at.
            if pid_namespace(pid).is_some_and(|other| other == namespace)
                && let Some(inside) = innermost_pid(pid)
            {
                found.push((pid, inside));
            }
        }
        Ok(found)
    }

    /// Shuts the host down in order, and returns when it is off.
    pub fn power_off(&mut self) -> Result<()> {
        // The connection may break before the answer comes: what counts is that it goes off.
        drop(self.run("systemctl").args(["poweroff", "--no-block"]).output()?);
        let daemon = self.boot.daemon.as_mut().context("the machine is off already")?;
        wait_for("the machine to be off", Duration::from_secs(60), || Ok(daemon.ended()?.then_some(())))?;
        self.boot.daemon = None;
        Ok(())
    }

    /// Pulls the plug, throws the disk away and boots again from the bare image under the same name, as a reimage does.
    /// `prepare` places files in the new root before it boots.
    pub fn reimage(&mut self, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.boot.show_journals();
        self.boot.daemon = None;
        self.boot.remove_groups();
        let layers = Boot::layers(&self.name)?;
        prepare(&layers.path().join("upper"))?;
        self.boot = Boot::start_on(&self.name, &self.image, self.network, layers)?;
        Ok(())
    }
}

impl Boot {
    /// Makes an empty disk, with what a host has of its own from birth.
    fn layers(name: &str) -> Result<TempDir> {
        let layers =
            tempfile::Builder::new().prefix("rekindle-machine-").tempdir_in("/var/tmp").context("no directory")?;
        for dir in ["upper", "work", "root"] {
            std::fs::create_dir(layers.path().join(dir)).with_context(|| format!("cannot make `{dir}`"))?;
        }
        let etc = layers.path().join("upper/etc");
        // Without an id systemd would take this for its first boot and apply every preset of the distribution.
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).context("no randomness")?;
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        put(etc.join("machine-id"), format!("{id}\n"))?;
        put(etc.join("hostname"), format!("{name}\n"))?;
        put(etc.join("hosts"), format!("127.0.0.1 localhost {name}\n"))?;
        Ok(layers)
    }

    fn start_on(name: &str, image: &BaseImage, network: Network, layers: TempDir) -> Result<Self> {
        let dir = layers.path();
        let log = dir.join("console.log");
        let network = match network {
            Network::Shared => "",
            Network::Loopback => "--private-network",
        };
        let args = ["-c", include_str!("boot.sh"), "boot", name, network].map(PathBuf::from);
        let paths = [image.path().to_owned(), dir.join("upper"), dir.join("work"), dir.join("root")];
        let daemon = Daemon::start("sh", args.iter().chain(&paths), &log)?;
        let mut boot = Self { name: name.to_owned(), daemon: Some(daemon), leader: 0, layers };
        boot.leader = boot.find_leader()?;
        wait_for("the machine to have booted", Duration::from_secs(60), || {
            let state = enter(boot.leader, "systemctl").arg("is-system-running").output()?;
            // Some jobs may still be queued for `starting`; a unit that cannot run in a container makes `degraded`.
            Ok(matches!(state.stdout.trim(), "running" | "degraded").then_some(()))
        })
        .with_context(|| boot.console())?;
        Ok(boot)
    }

    /// Waits for the process that is number 1 inside.
    fn find_leader(&mut self) -> Result<u32> {
        let console = self.console();
        let daemon = self.daemon.as_mut().context("the machine was not started")?;
        wait_for("the machine's first process", Duration::from_secs(30), || {
            ensure!(!daemon.ended()?, "systemd-nspawn ended at once");
            let Some(nspawn) = daemon.pid() else { return Ok(None) };
            let namespace = pid_namespace(nspawn);
            Ok(children(nspawn).into_iter().find(|&child| {
                innermost_pid(child) == Some(1) && pid_namespace(child).is_some_and(|own| Some(own) != namespace)
            }))
        })
        .with_context(|| console)
    }

    fn console(&self) -> String {
        let log = std::fs::read_to_string(self.layers.path().join("console.log")).unwrap_or_default();
        format!("machine {} does not come up; its console says:\n{log}", self.name)
    }

    fn journal(&self, unit: &str) -> Result<String> {
        enter(self.leader, "journalctl")
            .args(["--no-pager", "--output=short-precise", "--lines", JOURNAL_LINES, "--unit", unit])
            .ok()
    }

    /// Prints what a person needs to understand a failure; the test runner shows it for failed tests only.
    fn show_journals(&self) {
        if self.daemon.is_none() {
            return;
        }
        for unit in UNITS {
            match self.journal(unit) {
                Ok(journal) => eprintln!("--- {}: journal of {unit}\n{journal}", self.name),
                Err(error) => eprintln!("--- {}: no journal of {unit}: {error:#}", self.name),
            }
        }
    }

    /// Removes the control groups of a machine that is gone.
    fn remove_groups(&self) {
        for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"] {
            for group in find_groups(Path::new(mount), &self.name, 3) {
                let emptied = wait_for("an empty control group", Duration::from_secs(5), || {
                    Ok(remove_tree(&group).is_ok().then_some(()))
                });
                if let Err(error) = emptied {
                    eprintln!("`{}` stays behind: {error:#}", group.display());
                }
            }
        }
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        self.show_journals();
        self.daemon = None;
        self.remove_groups();
    }
}

/// Enters a machine by its first process.
fn enter(leader: u32, program: &str) -> Invocation {
    Invocation::new("nsenter")
        .args(["--target", &leader.to_string(), "--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup"])
        .args(["--root", "--wd", "--", program])
        .clean_env()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
}

fn pid_namespace(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

fn innermost_pid(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}

/// Control groups of this name, at most so many levels down.
fn find_groups(dir: &Path, name: &str, levels: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name() == name {
            found.push(entry.path());
        } else if levels > 0 {
            found.extend(find_groups(&entry.path(), name, levels - 1));
        }
    }
    found
}

/// Removes a control group with those below it; their files go with them.
fn remove_tree(group: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(group)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}
