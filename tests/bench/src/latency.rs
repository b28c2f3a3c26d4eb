//! From a foreign drift to the correct content, beside the floor: pre-staged exchange on raw inotify.
//!
//! The three take turns in rounds, on files of one file system, so that a noisy minute is everybody's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rekindle_tests::wait_for;

use crate::clock::{Stamp, between};
use crate::floor::guard::{Guarded, Guarding};
use crate::foreign::{Drift, Drifts, Flood, Flooded, Kind};
use crate::proc::{self, NORMAL, Scheduling};
use crate::process::{Background, Helper, pause};
use crate::sandbox::{Agent, Sandbox};
use crate::stats::{Summary, median, show};
use crate::table::{Goal, Row};
use crate::tree::{self, Tree};
use crate::{Bench, clock};

/// Name of the agent's thread that is told of changes.
const WATCHER: &str = "watch";

/// How long a repair may take before it counts as missed.
const MISSED: Duration = Duration::from_secs(10);

/// Measures the time from a drift to the sight of the correct content
#[derive(Debug, Clone, Args)]
pub struct Latency {
    /// Drifts, one after the other, for each kind and each side
    #[arg(long, default_value_t = 1000)]
    pub drifts: usize,
    /// Turns in which floor and rekindle alternate
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Milliseconds from one repair to the next drift
    #[arg(long, default_value_t = 2)]
    pub gap: u64,
    /// Ways to drift
    #[arg(long, value_enum, value_delimiter = ',', default_value = "content")]
    pub kinds: Vec<Kind>,
    /// How many files are declared, and drift in turn
    #[arg(long, default_value_t = 1)]
    pub among: usize,
    /// Overwrite so many files at once instead
    #[arg(long, value_name = "FILES")]
    pub files: Option<usize>,
    /// How often to do so
    #[arg(long, value_name = "TIMES", default_value_t = 5)]
    pub at_once: usize,
}

/// How long the agent may take until the last repair of a round is durable and counted.
const COUNTED: Duration = Duration::from_secs(60);

/// The sides of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Floor,
    DurableFloor,
    Rekindle,
}

const SIDES: [Side; 3] = [Side::Floor, Side::DurableFloor, Side::Rekindle];

impl Latency {
    /// Measures.
    pub fn run(&self, bench: &Bench) -> Result<Vec<Row>> {
        match self.files {
            Some(n_files) => self.flood(bench, n_files),
            None => {
                let mut rows = Vec::new();
                for kind in &self.kinds {
                    rows.extend(self.drift(bench, *kind)?);
                }
                Ok(rows)
            }
        }
    }

    fn drift(&self, bench: &Bench, kind: Kind) -> Result<Vec<Row>> {
        let mut stage = Stage::new(bench, self.among.max(1))?;
        let mut turns: [Turns; 3] = Default::default();
        let rounds = self.rounds.clamp(1, self.drifts.max(1));
        for round in 0..rounds {
            let n = self.drifts / rounds + usize::from(round < self.drifts % rounds);
            // Whoever goes first in one round goes last in the next.
            for turn in 0..SIDES.len() {
                let side = (round + turn) % SIDES.len();
                let (Some(which), Some(turns)) = (SIDES.get(side), turns.get_mut(side)) else { continue };
                turns.add(stage.drifts(*which, kind, n, Duration::from_millis(self.gap))?);
            }
        }
        stage.end()?;
        let what = match self.among {
            0 | 1 => kind.describe().to_owned(),
            n => format!("{}, one of {n} in turn", kind.describe()),
        };
        let [floor, durable_floor, rekindle] = turns;
        let scheduling = shown(stage.scheduling);
        eprintln!("{what}, both {scheduling}: floor    {}", floor.describe());
        eprintln!("{what}, both {scheduling}: durable  {}", durable_floor.describe());
        eprintln!("{what}, both {scheduling}: rekindle {}", rekindle.describe());
        ensure!(floor.n_missed + durable_floor.n_missed == 0, "the floor missed drifts");
        let n = self.drifts;
        let seen = format!("a file {what} → declared content visible to others, {n} drifts, both {scheduling}");
        let goal = || Goal::Ratios(vec![1.5, 2.0]);
        let mut rows = vec![Turns::row(seen.clone(), &floor.visible, &rekindle.visible, rekindle.n_missed, goal())?];
        // The start of a deletion or a rename is no start of a drift: most of its time goes before anything is visible.
        if kind == Kind::Content {
            let whole = format!("{seen}; from before the write, instead of from after the close");
            rows.push(Turns::row(whole, &floor.whole, &rekindle.whole, rekindle.n_missed, goal())?);
            let durable = format!("{seen}; beside a floor that makes durable and restages, too");
            rows.push(Turns::row(durable, &durable_floor.visible, &rekindle.visible, rekindle.n_missed, Goal::None)?);
        }
        Ok(rows)
    }

    fn flood(&self, bench: &Bench, n_files: usize) -> Result<Vec<Row>> {
        let mut stage = Stage::new(bench, n_files)?;
        let (mut floor, mut durable_floor, mut rekindle, mut durable) = (vec![], vec![], vec![], vec![]);
        let mut n_missed = 0;
        for _ in 0..self.at_once {
            let (flooded, all_durable) = stage.flood(Side::DurableFloor)?;
            floor.push(between(flooded.last, flooded.visible.context("the floor did not restore all")?));
            durable_floor.push(between(flooded.last, all_durable));
            let (flooded, all_durable) = stage.flood(Side::Rekindle)?;
            match flooded.visible {
                Some(visible) => rekindle.push(between(flooded.last, visible)),
                None => n_missed += 1,
            }
            durable.push(between(flooded.last, all_durable));
        }
        let (n_recorded, n_expected) = (stage.recorded()?, n_files * self.at_once);
        ensure!(n_recorded >= n_expected, "the history has {n_recorded} of {n_expected} repairs");
        stage.end()?;
        let what = format!("{n_files} files overwritten at once");
        eprintln!("{what}: restored {}, durable {}", show(median(&rekindle)), show(median(&durable)));
        let (restored, recorded) = (median(&rekindle), median(&durable));
        let slowest = rekindle.iter().max().copied().unwrap_or_default();
        Ok(vec![
            Row::timed(
                format!("{what}, from the last close: all restored, median of {}", self.at_once),
                median(&floor),
                restored,
                Goal::Met("≤ 50.0 ms".to_owned(), n_missed == 0 && restored <= Duration::from_millis(50)),
            ),
            Row::plain(format!("{what}: the slowest of {}", self.at_once), show(slowest), Goal::None),
            Row::timed(
                format!(
                    "{what}, from the last close: all durable, in the history and counted, median of {}",
                    self.at_once
                ),
                median(&durable_floor),
                recorded,
                Goal::Met("≤ 1.00 s".to_owned(), recorded <= Duration::from_secs(1)),
            ),
        ])
    }
}

/// What one side did in all its turns.
#[derive(Debug, Default)]
struct Turns {
    /// From the return of the last system call of each drift to the sight of its repair.
    visible: Vec<Duration>,
    /// From the start of the first.
    whole: Vec<Duration>,
    n_missed: usize,
}

impl Turns {
    fn add(&mut self, drifts: Vec<Drift>) {
        for drift in drifts {
            match drift.visible {
                Some(visible) => {
                    self.visible.push(between(drift.caused, visible));
                    self.whole.push(between(drift.began, visible));
                }
                None => self.n_missed += 1,
            }
        }
    }

    fn describe(&self) -> String {
        let summary =
            |durations: &[Duration]| Summary::of(durations.to_vec()).map_or_else(String::new, |s| s.to_string());
        let n_slow = self.visible.iter().filter(|took| **took > SLOW).count();
        let (visible, whole) = (summary(&self.visible), summary(&self.whole));
        format!(
            "after {visible}; since its start {whole}; {n_slow} slower than {}, {} missed",
            show(SLOW),
            self.n_missed
        )
    }

    fn row(what: String, floor: &[Duration], rekindle: &[Duration], n_missed: usize, goal: Goal) -> Result<Row> {
        let floor = Summary::of(floor.to_vec()).context("the floor restored nothing")?;
        let rekindle = Summary::of(rekindle.to_vec()).context("rekindle restored nothing")?;
        Ok(Row::compared(what, floor, rekindle, n_missed, goal))
    }
}

/// What is slower than this was restored in another way than by an exchange at once.
const SLOW: Duration = Duration::from_millis(1);

fn shown(scheduling: Scheduling) -> String {
    match scheduling {
        Scheduling { fifo: 0, nice, .. } => format!("at nice {nice}"),
        Scheduling { fifo, .. } => format!("under SCHED_FIFO {fifo}"),
    }
}

/// A file system with files for the floor and the same files for the agent, which guards them.
struct Stage {
    exe: PathBuf,
    sandbox: Sandbox,
    services: Option<(Agent, Background)>,
    tree: Tree,
    scheduling: Scheduling,
    n_floors: usize,
    n_expected: u64,
}

impl Stage {
    fn new(bench: &Bench, n_files: usize) -> Result<Self> {
        let sandbox = Sandbox::new(bench)?;
        let tree = Tree::new(n_files);
        tree.make(sandbox.root())?;
        tree.make(&sandbox.scratch().join("floor"))?;
        let revision = sandbox.commit(&tree.policy())?;
        let (agent, courier) = sandbox.start(&revision)?;
        // What the agent prepares after the first convergence is no part of a repair.
        tree::settle(sandbox.root())?;
        pause(Duration::from_secs(1));
        let scheduling = proc::scheduling(agent.pid()?, WATCHER)?.context("the agent has no thread that watches")?;
        let scheduling = Scheduling { cpu: processors().0, ..scheduling };
        if let Some(cpu) = scheduling.cpu {
            proc::bind(agent.pid()?, WATCHER, cpu)?;
        }
        let n_expected = sandbox.status()?.n_repairs;
        Ok(Self {
            exe: bench.exe.clone(),
            sandbox,
            services: Some((agent, courier)),
            tree,
            scheduling,
            n_floors: 0,
            n_expected,
        })
    }

    /// One round of drifts of all files in turn.
    fn drifts(&mut self, side: Side, kind: Kind, n: usize, gap: Duration) -> Result<Vec<Drift>> {
        let floor = self.floor(side, kind, n.div_ceil(self.tree.n_files))?;
        let root = self.root_of(side);
        let spec = Drifts {
            files: self.files(&root),
            kind,
            n,
            gap,
            patience: MISSED,
            spare: self.sandbox.scratch().join("spare"),
        };
        let mut foreign = Helper::start(&self.exe, "__drift", &spec, Scheduling { cpu: processors().1, ..NORMAL })?;
        foreign.wait_ready()?;
        let drifts: Vec<Drift> = foreign.finish()?;
        self.end_round(side, floor, n)?;
        Ok(drifts)
    }

    /// All files at once; with when all repairs were durable.
    fn flood(&mut self, side: Side) -> Result<(Flooded, Stamp)> {
        let floor = self.floor(side, Kind::Content, 1)?;
        let root = self.root_of(side);
        let spec = Flood { files: self.files(&root), patience: MISSED };
        let mut foreign = Helper::start(&self.exe, "__flood", &spec, Scheduling { cpu: processors().1, ..NORMAL })?;
        foreign.wait_ready()?;
        let flooded = foreign.finish()?;
        let durable = self.end_round(side, floor, self.tree.n_files)?;
        // The copies for the next flood are laid out meanwhile, by either side.
        pause(Duration::from_secs(1));
        Ok((flooded, durable))
    }

    fn root_of(&self, side: Side) -> PathBuf {
        match side {
            Side::Floor | Side::DurableFloor => self.sandbox.scratch().join("floor"),
            Side::Rekindle => self.sandbox.root().to_owned(),
        }
    }

    fn files(&self, root: &Path) -> Vec<(PathBuf, usize)> {
        self.tree.classed_places(root)
    }

    /// Starts the floor when it is its turn, scheduled as the agent's watching thread is.
    fn floor(&mut self, side: Side, kind: Kind, n_replicas: usize) -> Result<Option<Helper>> {
        let durable = match side {
            Side::Rekindle => return Ok(None),
            Side::Floor => false,
            Side::DurableFloor => true,
        };
        self.n_floors += 1;
        let pool = self.sandbox.scratch().join(format!("pool-{}", self.n_floors));
        let files = self.files(&self.root_of(side));
        let spec = Guarded { files, kind, n_replicas, pool, durable };
        let mut floor = Helper::start(&self.exe, "__guard", &spec, self.scheduling)?;
        floor.wait_ready()?;
        Ok(Some(floor))
    }

    /// Ends the floor, or lets the agent end what it does after its repairs, so that the next turn begins in quiet. Returns
    /// when all was durable: the agent counts no repair before.
    fn end_round(&mut self, side: Side, floor: Option<Helper>, n: usize) -> Result<Stamp> {
        let mut durable = None;
        if side == Side::Rekindle {
            self.n_expected += u64::try_from(n)?;
            let expected = self.n_expected;
            durable = wait_for("the repairs to be counted", COUNTED, || {
                Ok((self.sandbox.status()?.n_repairs >= expected).then_some(clock::now()?))
            })
            .ok();
            // A drift that came before the last one was judged is repaired with it; what is missed shows in the table.
            if durable.is_none() {
                self.n_expected = self.sandbox.status()?.n_repairs;
            }
        }
        let guarding: Guarding = floor.map(Helper::finish).transpose()?.unwrap_or_default();
        let durable = durable.or_else(|| guarding.durable.last().copied()).map_or_else(clock::now, Ok)?;
        tree::settle(self.sandbox.root())?;
        Ok(durable)
    }

    /// Repairs in the history.
    fn recorded(&self) -> Result<usize> {
        let entries = self.sandbox.history(1_000_000)?;
        let is_repair = |entry: &&serde_json::Value| {
            let text = |key| entry.get(key).and_then(serde_json::Value::as_str);
            text("cause") == Some("drift") && text("outcome") == Some("changed")
        };
        Ok(entries.iter().filter(is_repair).count())
    }

    fn end(&mut self) -> Result<()> {
        let Some((agent, courier)) = self.services.take() else { return Ok(()) };
        courier.stop()?;
        agent.stop()
    }
}

/// Processors for who watches and for the process that changes files, where there are two. On the same one a watcher that is
/// real-time runs before the writer's `close` returns, on another one after it: 50 µs that have nothing to do with what is
/// compared, and would be given to either side by chance.
fn processors() -> (Option<usize>, Option<usize>) {
    match std::thread::available_parallelism() {
        Ok(n) if n.get() > 1 => (Some(0), Some(1)),
        Ok(_) | Err(_) => (None, None),
    }
}
