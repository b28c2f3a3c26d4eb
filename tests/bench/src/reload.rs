//! Reloads that add and remove paths: watches and descriptors return to what they were.
//!
//! A thousand reloads of the agent would take an hour of pulling and converging, so a thousand are asked of the watcher
//! alone, in this process, and a few of the real agent, by commits to its policy.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::unistd::Pid;
use rekindle::watch::{Hint, Interest, WatchError, Watcher};

use crate::Bench;
use crate::proc::{Held, held};
use crate::sandbox::Sandbox;
use crate::scan::interests;
use crate::stats::show;
use crate::table::{Goal, Row};
use crate::tree::{Tree, policy};

/// Adds and removes paths over and over
#[derive(Debug, Clone, Args)]
pub struct Reload {
    /// Reloads of the watcher alone
    #[arg(long, default_value_t = 1000)]
    pub reloads: usize,
    /// Reloads of the agent, by commits
    #[arg(long, default_value_t = 10)]
    pub commits: usize,
    /// Paths that come and go
    #[arg(long, default_value_t = 1000)]
    pub paths: usize,
}

impl Reload {
    /// Measures.
    pub fn run(&self, bench: &Bench) -> Result<Vec<Row>> {
        let mut rows = self.watcher(bench)?;
        rows.extend(self.agent(bench)?);
        Ok(rows)
    }

    fn trees(&self) -> [Tree; 2] {
        [Tree::new(self.paths), Tree { home: "/srv/passing".to_owned(), ..Tree::new(self.paths) }]
    }

    fn watcher(&self, bench: &Bench) -> Result<Vec<Row>> {
        let directory = crate::sandbox::directory(bench)?;
        let [kept, passing] = self.trees();
        kept.make(directory.path())?;
        passing.make(directory.path())?;
        let fewer: Vec<Interest> = interests(&kept).collect();
        let more: Vec<Interest> = interests(&kept).chain(interests(&passing)).collect();
        let watcher = Watcher::start(directory.path().to_owned(), |_hint: Result<Hint, WatchError>| {})
            .context("cannot start a watcher")?;
        watcher.set_interests(fewer.clone());
        // Only after an answer to a later question has all been given back.
        watcher.stats();
        let before = held(Pid::this())?;
        let started = Instant::now();
        for _ in 0..self.reloads {
            watcher.set_interests(more.clone());
            watcher.set_interests(fewer.clone());
        }
        let took = started.elapsed();
        watcher.stats();
        let after = held(Pid::this())?;
        eprintln!("reload: {} of the watcher took {}", self.reloads, show(took));
        let what = format!("{} reloads of the watcher that add and remove {} paths", self.reloads, self.paths);
        let each = took / u32::try_from(self.reloads.max(1))?;
        Ok(vec![same(&what, before, after), Row::plain(format!("{what}: time of each"), show(each), Goal::None)])
    }

    fn agent(&self, bench: &Bench) -> Result<Vec<Row>> {
        let sandbox = Sandbox::new(bench)?;
        let [kept, passing] = self.trees();
        kept.make(sandbox.root())?;
        passing.make(sandbox.root())?;
        let revision = sandbox.commit(&kept.policy())?;
        let (agent, courier) = sandbox.start(&revision)?;
        let both = [kept.clone(), passing];
        let pid = agent.pid()?;
        let mut before = None;
        for _ in 0..self.commits {
            for trees in [&both[..], std::slice::from_ref(&kept)] {
                let revision = sandbox.commit(&policy(trees))?;
                sandbox.ask(&["fetch"])?;
                sandbox.wait_converged(&revision)?;
            }
            // The first reload opens what the agent then keeps open.
            before.get_or_insert(quiet(pid)?);
        }
        let after = quiet(pid)?;
        courier.stop()?;
        agent.stop()?;
        let what = format!("{} reloads of the agent that add and remove {} paths", self.commits, self.paths);
        Ok(vec![same(&what, before.unwrap_or(after), after)])
    }
}

/// Counts when the count has not changed for a while: a request that is being answered has a descriptor, too.
fn quiet(pid: Pid) -> Result<Held> {
    let mut last = held(pid)?;
    rekindle_tests::wait_for("the descriptors to settle", Duration::from_secs(30), || {
        crate::process::pause(Duration::from_millis(300));
        let now = held(pid)?;
        let settled = now == last;
        last = now;
        Ok(settled.then_some(now))
    })
}

fn same(what: &str, before: Held, after: Held) -> Row {
    Row::plain(
        format!("{what}: watches and descriptors, before → after"),
        format!("{} and {} → {} and {}", before.watches, before.descriptors, after.watches, after.descriptors),
        Goal::Met("the same".to_owned(), before == after),
    )
}
