//! What it costs to compile a policy: `rekindle check` as a whole, from its start to its end, with the child that tries templates out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

use crate::Bench;
use crate::proc::NORMAL;
use crate::process::{self, Helper, answer, read_spec, say_ready};
use crate::stats::median;
use crate::table::{Goal, Row};
use crate::tree::Tree;

/// Measures how long a policy takes to compile, and in how much memory
#[derive(Debug, Clone, Args)]
pub struct Compile {
    /// Declared files
    #[arg(long, default_value_t = 10_000)]
    pub resources: usize,
    /// How often it is compiled; the median counts, of memory the most
    #[arg(long, default_value_t = 11)]
    pub rounds: usize,
}

/// Different contents of the files: it is the declarations that are compiled.
const N_CONTENTS: usize = 16;

const MIB: u64 = 1 << 20;
/// What 10,000 resources may take.
const GOAL: (Duration, u64) = (Duration::from_millis(150), 100 * MIB);

/// What the process that starts the program is told: the most memory of *its* children is that of the program alone.
#[derive(Debug, Serialize, Deserialize)]
struct Rounds {
    rekindle: PathBuf,
    policy: PathBuf,
    n: usize,
}

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
struct Took {
    times: Vec<Duration>,
    peak: u64,
}

impl Compile {
    /// Measures.
    pub fn run(&self, bench: &Bench) -> Result<Vec<Row>> {
        let directory = crate::sandbox::directory(bench)?;
        let tree = Tree { n_contents: N_CONTENTS, ..Tree::new(self.resources) };
        for (name, content) in tree.policy() {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
            write(&path, &content)?;
        }
        let rounds =
            Rounds { rekindle: bench.rekindle.clone(), policy: directory.path().to_owned(), n: self.rounds.max(1) };
        let mut helper = Helper::start(&bench.exe, "__compile", &rounds, NORMAL)?;
        helper.wait_ready()?;
        let took: Took = helper.finish()?;
        let what = format!("`rekindle check` of a policy of {} resources", self.resources);
        // The goal is one of 10,000 resources.
        let is_goal = self.resources == 10_000;
        let time = median(&took.times);
        let of_time = format!("{what}: time (median of {})", took.times.len());
        let mib = format!("{:.1} MiB", bytes_as_mib(took.peak));
        let of_memory = Goal::Met(format!("≤ {} MiB", GOAL.1 / MIB), took.peak <= GOAL.1);
        Ok(vec![
            if is_goal {
                Row::within(of_time, time, GOAL.0)
            } else {
                Row::plain(of_time, crate::stats::show(time), Goal::None)
            },
            Row::plain("the same: most memory", mib, if is_goal { of_memory } else { Goal::None }),
        ])
    }
}

/// The process that starts the program again and again, once before it counts.
pub fn main() -> Result<()> {
    let rounds: Rounds = read_spec()?;
    say_ready()?;
    let mut times = Vec::with_capacity(rounds.n);
    for round in 0..=rounds.n {
        let started = Instant::now();
        let output = process::command(&rounds.rekindle).arg("check").arg(&rounds.policy).output();
        let took = started.elapsed();
        let output = output.with_context(|| format!("cannot start `{}`", rounds.rekindle.display()))?;
        ensure!(output.status.success(), "the policy is refused: {}", String::from_utf8_lossy(&output.stderr));
        if round > 0 {
            times.push(took);
        }
    }
    let kib = getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot ask for the memory of what ended")?.max_rss();
    answer(&Took { times, peak: u64::try_from(kib)? * 1024 })
}

#[expect(clippy::disallowed_methods, reason = "nobody reads the policy while it is made")]
fn write(path: &std::path::Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).with_context(|| format!("cannot write `{}`", path.display()))
}

#[expect(clippy::cast_precision_loss, reason = "a figure of a few digits for people")]
fn bytes_as_mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}
