//! Who did it: short-lived writers in known units, and what the history says about each.
//!
//! Each writer is `sh -c 'echo x > f'` in a cgroup of its own unit, gone before anybody can look at it. Needs root.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rekindle_tests::wait_for;
use serde_json::Value;

use crate::Bench;
use crate::process::command;
use crate::sandbox::Sandbox;
use crate::table::{Goal, Row};
use crate::tree::{self, Tree};

/// Changes a declared file by short-lived programs of known units
#[derive(Debug, Clone, Args)]
pub struct Actors {
    /// Writers
    #[arg(long, default_value_t = 1000)]
    pub writers: usize,
    /// Units that they belong to
    #[arg(long, default_value_t = 10)]
    pub units: usize,
}

/// Where cgroup hierarchies are mounted: the unified one, alone or beside the others, and systemd's own.
const HIERARCHIES: [&str; 3] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"];

/// Longest wait for one repair.
const PATIENCE: Duration = Duration::from_secs(20);

impl Actors {
    /// Measures.
    pub fn run(&self, bench: &Bench) -> Result<Vec<Row>> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("actors are left out: making cgroups needs root");
            return Ok(Vec::new());
        }
        let units = (0..self.units).map(Unit::new).collect::<Result<Vec<Unit>>>()?;
        let sandbox = Sandbox::new(bench)?;
        let tree = Tree::new(1);
        tree.make(sandbox.root())?;
        let revision = sandbox.commit(&tree.policy())?;
        let (agent, courier) = sandbox.start(&revision)?;
        let place = tree.place_of(sandbox.root(), 0);
        let good = tree::content(0);
        let mut expected = Vec::with_capacity(self.writers);
        for n in 0..self.writers {
            // Not in order, so that an answer that is one drift late is a wrong one.
            let unit = units.get(n * 7 % self.units).context("a unit")?;
            unit.write(&place)?;
            expected.push(unit.name.clone());
            wait_for("a repair", PATIENCE, || Ok(std::fs::read(&place).is_ok_and(|c| c == good).then_some(())))?;
        }
        let entries = wait_for("every repair in the history", Duration::from_secs(120), || {
            let mut entries = sandbox.history(10 * self.writers + 100)?;
            entries.retain(|entry| entry.get("cause").and_then(Value::as_str) == Some("drift"));
            entries.retain(|entry| entry.get("outcome").and_then(Value::as_str) == Some("changed"));
            // What the guard put back is written down a moment later than what a run did.
            entries.sort_by_key(|entry| {
                entry.get("time").and_then(Value::as_str).and_then(|time| time.parse::<jiff::Timestamp>().ok())
            });
            Ok((entries.len() >= self.writers).then_some(entries))
        })?;
        courier.stop()?;
        agent.stop()?;
        ensure!(entries.len() == self.writers, "{} repairs of {} drifts", entries.len(), self.writers);

        let (mut n_known, mut n_wrong) = (0, 0);
        for (entry, expected) in entries.iter().zip(&expected) {
            match unit_of(entry) {
                Some(unit) if unit == *expected => n_known += 1,
                Some(unit) => {
                    n_wrong += 1;
                    eprintln!("wrong: {unit} for {expected} in {entry}");
                }
                None => {}
            }
        }
        let share = n_known * 1000 / self.writers.max(1);
        Ok(vec![
            Row::plain(
                format!("{} short-lived writers: unit known", self.writers),
                format!("{}.{} %", share / 10, share % 10),
                Goal::Met("≥ 90 %".to_owned(), share >= 900),
            ),
            Row::plain(
                format!("{} short-lived writers: wrong unit named", self.writers),
                n_wrong.to_string(),
                Goal::Met("0".to_owned(), n_wrong == 0),
            ),
        ])
    }
}

/// The unit that an entry of the history names.
fn unit_of(entry: &Value) -> Option<&str> {
    entry.pointer("/actor/unit").and_then(Value::as_str)
}

/// A unit's cgroup in each hierarchy, gone when it is dropped.
struct Unit {
    name: String,
    groups: Vec<PathBuf>,
}

impl Unit {
    fn new(n: usize) -> Result<Self> {
        let name = format!("rekindle-bench-{n}.service");
        let mut unit = Self { name, groups: Vec::new() };
        for hierarchy in HIERARCHIES.map(Path::new) {
            if hierarchy.join("cgroup.procs").exists() {
                let group = hierarchy.join("system.slice").join(&unit.name);
                std::fs::create_dir_all(&group).with_context(|| format!("cannot make `{}`", group.display()))?;
                unit.groups.push(group);
            }
        }
        if unit.groups.is_empty() {
            bail!("there is no cgroup hierarchy at any of {HIERARCHIES:?}");
        }
        Ok(unit)
    }

    /// Has a shell of this unit overwrite the file, and waits for its end.
    fn write(&self, place: &Path) -> Result<()> {
        let mut script = String::new();
        for group in &self.groups {
            script.push_str(&format!("echo $$ > '{}/cgroup.procs'; ", group.display()));
        }
        // The shell that enters the unit becomes the writer: the drift is its child's or its own, in the same unit.
        script.push_str("exec sh -c 'echo x > \"$0\"' \"$0\"");
        let status = command("sh").args(["-e", "-c", &script]).arg(place).status().context("cannot start a writer")?;
        ensure!(status.success(), "a writer ended with {status}");
        Ok(())
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        for group in &self.groups {
            // One that is left behind is empty, and gone with the next boot.
            drop(std::fs::remove_dir(group));
        }
    }
}
