//! A storm while the agent is stopped: the kernel's queue overflows, and nothing may be missed and nothing stay unwatched.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::signal::Signal;
use rekindle_tests::{put, wait_for};

use crate::Bench;
use crate::clock::{between, now};
use crate::foreign::{Flood, Flooded};
use crate::proc::NORMAL;
use crate::process::{Helper, pause};
use crate::sandbox::Sandbox;
use crate::stats::show;
use crate::table::{Goal, Row};
use crate::tree::{self, Tree};

/// How long the agent is stopped.
const STOPPED: Duration = Duration::from_secs(2);

/// Longest wait for something that ought to take milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A drift that is seen is repaired in less; what only the next scan finds is not.
const WATCHED: Duration = Duration::from_secs(5);

/// Creates many files in a watched directory while the agent is stopped
#[derive(Debug, Clone, Args)]
pub struct Storm {
    /// Files to create
    #[arg(long, default_value_t = 20_000)]
    pub created: usize,
    /// Declared files
    #[arg(long, default_value_t = 1000)]
    pub files: usize,
    /// Declared files that drift meanwhile
    #[arg(long, default_value_t = 100)]
    pub drifted: usize,
}

impl Storm {
    /// Measures.
    pub fn run(&self, bench: &Bench) -> Result<Vec<Row>> {
        let sandbox = Sandbox::new(bench)?;
        let tree = Tree { per_directory: 10, ..Tree::new(self.files) };
        tree.make(sandbox.root())?;
        let revision = sandbox.commit(&tree.policy())?;
        let (agent, courier) = sandbox.start(&revision)?;
        let places = tree.classed_places(sandbox.root());
        let directories = tree.directories(sandbox.root());
        let stormy = directories.first().context("a directory")?.clone();

        let before = sandbox.status()?.last_run.context("the agent has not run yet")?.started;
        agent.process().signal(Signal::SIGSTOP)?;
        let stopped = Instant::now();
        for n in 0..self.created {
            put(stormy.join(format!("storm-{n}")), b"")?;
        }
        // The last of each few: the queue has long been full.
        let step = (self.files / self.drifted.max(1)).max(1);
        let drifted: Vec<(PathBuf, usize)> = places.iter().cloned().step_by(step).collect();
        for (place, _) in &drifted {
            put(place, b"drifted in the storm\n")?;
        }
        pause(STOPPED.saturating_sub(stopped.elapsed()));

        let resumed = now()?;
        agent.process().signal(Signal::SIGCONT)?;
        let n_drifted = drifted.len();
        let is_good =
            |place: &PathBuf, class: usize| std::fs::read(place).is_ok_and(|content| content == tree::content(class));
        let mut left = drifted;
        let mut ended = None;
        let mut look = || -> Result<bool> {
            if ended.is_none() && sandbox.status()?.verified.is_some_and(|began| began > before) {
                ended = Some(now()?);
            }
            Ok(ended.is_some())
        };
        wait_for("the drifts of the storm to be restored", PATIENCE, || {
            left.retain(|(place, class)| !is_good(place, *class));
            look()?;
            Ok(left.is_empty().then_some(()))
        })?;
        let restored = between(resumed, now()?);
        wait_for("a run over everything after the storm", PATIENCE, || Ok(look()?.then_some(())))?;
        let verified = between(resumed, ended.context("the end of a run")?);

        // Once more in each directory: the one that no longer reports stays wrong.
        let again: Vec<(PathBuf, usize)> = places.into_iter().step_by(tree.per_directory).collect();
        let n_again = again.len();
        let mut foreign =
            Helper::start(&bench.exe, "__flood", &Flood { files: again.clone(), patience: WATCHED }, NORMAL)?;
        foreign.wait_ready()?;
        let flooded: Flooded = foreign.finish()?;
        let n_blind = match flooded.visible {
            Some(_) => 0,
            None => again.iter().filter(|(place, class)| !is_good(place, *class)).count(),
        };
        courier.stop()?;
        agent.stop()?;

        let limit = Duration::from_millis(200);
        let (created, files) = (self.created, self.files);
        eprintln!("storm: restored {}, verified {}", show(restored), show(verified));
        Ok(vec![
            Row::within(
                format!(
                    "{created} files created while the agent is stopped: SIGCONT → {n_drifted} drifted files restored"
                ),
                restored,
                limit,
            ),
            Row::within(format!("the same: SIGCONT → all {files} declared files verified"), verified, limit),
            Row::plain(
                format!("the same: directories left unwatched of {n_again}"),
                n_blind.to_string(),
                Goal::Met("0".to_owned(), n_blind == 0),
            ),
        ])
    }
}
