//! What the agent costs while nothing drifts: time, wake-ups, memory.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use nix::unistd::Pid;

use crate::Bench;
use crate::foreign::Reads;
use crate::proc::{NORMAL, pss, usage};
use crate::process::{Background, Helper, pause};
use crate::sandbox::Sandbox;
use crate::table::{Goal, Row};
use crate::tree::Tree;

/// Measures what the agent costs while nothing drifts
#[derive(Debug, Clone, Args)]
pub struct Idle {
    /// Declared files
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    pub files: Vec<usize>,
    /// Different contents, instead of as many as a policy can hold
    #[arg(long)]
    pub contents: Option<usize>,
    /// Seconds to watch the idle agent; more than a minute, so that what happens each minute is in it
    #[arg(long, default_value_t = 70)]
    pub seconds: u64,
    /// Seconds to watch it while others read the watched directories
    #[arg(long, default_value_t = 20)]
    pub read_seconds: u64,
    /// Seconds to let everything settle before: what is young is read again each minute, and copies are being laid out
    #[arg(long, default_value_t = 100)]
    pub settle: u64,
}

/// Reads a second in the watched directories.
const READS: u32 = 1000;

const MIB: u64 = 1 << 20;

impl Idle {
    /// Measures.
    pub fn run(&self, bench: &Bench) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for n_files in &self.files {
            rows.extend(self.one(bench, *n_files)?);
        }
        Ok(rows)
    }

    fn one(&self, bench: &Bench, n_files: usize) -> Result<Vec<Row>> {
        let sandbox = Sandbox::new(bench)?;
        let tree = Tree::new(n_files);
        let tree = Tree { n_contents: self.contents.unwrap_or(tree.n_contents), ..tree };
        tree.make(sandbox.root())?;
        let revision = sandbox.commit(&tree.policy())?;
        let (agent, courier) = sandbox.start(&revision)?;
        pause(Duration::from_secs(self.settle));
        let (agent_pid, courier_pid) = (agent.pid()?, courier.pid()?);

        let before = (usage(agent_pid)?, usage(courier_pid)?);
        pause(Duration::from_secs(self.seconds));
        let after = (usage(agent_pid)?, usage(courier_pid)?);
        let a_minute = |spent: Duration| spent.as_secs_f64() * 60.0 / Duration::from_secs(self.seconds).as_secs_f64();
        let agent_cpu = a_minute(after.0.cpu.saturating_sub(before.0.cpu));
        let courier_cpu = a_minute(after.1.cpu.saturating_sub(before.1.cpu));
        let idle = per_second(after.0.wakeups - before.0.wakeups, self.seconds);
        let memory = (pss(agent_pid)?, pss(courier_pid)?);

        let reads = Reads { paths: tree.places(sandbox.root()), per_second: READS };
        let mut reader = Helper::start(&bench.exe, "__read", &reads, NORMAL)?;
        reader.wait_ready()?;
        let before = usage(agent_pid)?.wakeups;
        pause(Duration::from_secs(self.read_seconds));
        let woken = per_second(usage(agent_pid)?.wakeups - before, self.read_seconds);
        let n_reads: u64 = reader.finish()?;
        stop(courier, &agent_pid)?;
        agent.stop()?;

        let what = format!("idle, {n_files} files of {} contents", tree.n_contents);
        let limit = if n_files <= 10_000 { 12 } else { 48 };
        eprintln!("{what}: {idle:.1} wake-ups a second idle, {woken:.1} during {n_reads} reads");
        // One wake-up a second is what timers may do; one for each hundred reads would be a thousandth of what reads could.
        let caused = (woken - idle).max(0.0);
        Ok(vec![
            Row::plain(
                format!("{what}: CPU seconds a minute of the agent"),
                format!("{agent_cpu:.3} s"),
                if n_files <= 10_000 { Goal::Met("< 0.05 s".to_owned(), agent_cpu < 0.05) } else { Goal::None },
            ),
            Row::plain(
                format!("{what}: CPU seconds a minute of the courier"),
                format!("{courier_cpu:.3} s"),
                Goal::None,
            ),
            Row::plain(
                format!("{what}: wake-ups of the agent a second, alone and during {READS} reads a second"),
                format!("{idle:.2} and {woken:.2}"),
                Goal::Met("none from reads".to_owned(), caused < 1.0),
            ),
            memory_row(&format!("{what}: PSS of the agent"), memory.0, limit),
            memory_row(&format!("{what}: PSS of the courier"), memory.1, 12),
        ])
    }
}

/// The courier goes first: the agent must still run then.
fn stop(courier: Background, agent: &Pid) -> Result<()> {
    usage(*agent)?;
    courier.stop()
}

fn per_second(n: u64, seconds: u64) -> f64 {
    // A duration is the one way to a float that loses nothing.
    Duration::from_secs(n).as_secs_f64() / Duration::from_secs(seconds.max(1)).as_secs_f64()
}

fn memory_row(what: &str, bytes: u64, limit_mib: u64) -> Row {
    let tenths = bytes * 10 / MIB;
    let shown = format!("{}.{} MiB", tenths / 10, tenths % 10);
    Row::plain(what, shown, Goal::Met(format!("≤ {limit_mib} MiB"), bytes <= limit_mib * MIB))
}
