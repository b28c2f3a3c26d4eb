//! Verification of everything: warm, by method, beside the floor of that method; arming; and from a cold start to READY.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rekindle::host::root::Root;
use rekindle::host::verify::{self, Entry};
use rekindle::resource::{AbsPath, Content, Kind, Mode, ResourceId};
use rekindle::watch::{Hint, Interest, WatchError, Watcher};
use rekindle_tests::wait_for;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::Bench;
use crate::floor::scan::{Group, Method, groups, is_available, pass};
use crate::image::Image;
use crate::sandbox::{self, PATIENCE, Sandbox};
use crate::stats::median;
use crate::table::{Goal, Row};
use crate::tree::{self, Tree};

/// Measures passes over all files, arming, and cold starts
#[derive(Debug, Clone, Args)]
pub struct Scan {
    /// Declared files
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    pub files: Vec<usize>,
    /// Times that each is measured; the median counts
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Times that a cold start is measured; 0 leaves it out. Needs root
    #[arg(long, default_value_t = 3)]
    pub cold: usize,
}

impl Scan {
    /// Measures.
    pub fn run(&self, bench: &Bench) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for n_files in &self.files {
            rows.extend(self.warm(bench, *n_files)?);
            if self.cold > 0 {
                if nix::unistd::geteuid().is_root() {
                    rows.extend(self.cold(bench, *n_files)?);
                } else {
                    eprintln!("cold starts are left out: mounting a file system needs root");
                }
            }
        }
        Ok(rows)
    }

    fn warm(&self, bench: &Bench, n_files: usize) -> Result<Vec<Row>> {
        let sandbox = Sandbox::new(bench)?;
        let tree = Tree::new(n_files);
        tree.make(sandbox.root())?;
        let groups = groups(&tree, sandbox.root())?;
        let revision = sandbox.commit(&tree.policy())?;
        let (agent, courier) = sandbox.start(&revision)?;

        let methods: Vec<Method> = Method::ALL.into_iter().filter(|method| is_available(*method)).collect();
        let engine = Engine::new(sandbox.root(), &tree)?;
        let mut floors: Vec<Vec<Duration>> = vec![Vec::new(); methods.len()];
        let mut passes = floors.clone();
        let (mut runs, mut armings, mut looks, mut floor_armings) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds.max(1) {
            for ((method, floor), passes) in methods.iter().zip(&mut floors).zip(&mut passes) {
                floor.push(pass(&groups, *method)?);
                passes.push(engine.pass(*method)?);
            }
            runs.push(full_run(&sandbox)?);
            floor_armings.push(arm_floor(&groups)?);
            let (armed, looked) = arm(&sandbox, &tree)?;
            armings.push(armed);
            looks.push(looked);
        }
        courier.stop()?;
        agent.stop()?;
        let mut rows = Vec::new();
        for ((method, floor), pass) in methods.iter().zip(&floors).zip(&passes) {
            let what = format!("warm: the engine's pass over {n_files} files; floor {}", method.describe());
            rows.push(Row::timed(what, median(floor), median(pass), Goal::Ratios(vec![1.5])));
        }
        rows.push(Row::timed(
            format!("warm: full run of the agent over {n_files} files, as `rekindle status` says, beside one pass"),
            floors.get(1).map_or(Duration::ZERO, |floor| median(floor)),
            median(&runs),
            Goal::None,
        ));
        let armed = median(&armings);
        rows.push(Row::timed(
            format!("arming {n_files} files in {} directories", tree.n_directories()),
            median(&floor_armings),
            armed,
            Goal::Met("≤ 100 ms".to_owned(), armed <= Duration::from_millis(100)),
        ));
        rows.push(Row::timed(
            format!("the same until each of {n_files} names was looked at as well, for second names and mounts, beside statx"),
            floors.first().map_or(Duration::ZERO, |floor| median(floor)),
            median(&looks),
            Goal::None,
        ));
        Ok(rows)
    }

    fn cold(&self, bench: &Bench, n_files: usize) -> Result<Vec<Row>> {
        let place = sandbox::directory(bench)?;
        // Twice the files, since a replica of each may lie beside it, and a fourth of that for the file system itself.
        let n_inodes = u64::try_from(n_files)? * 5 / 2 + 10_000;
        let image = Image::new(place.path(), n_inodes * 6000 + (256 << 20), n_inodes)?;
        let root = image.target().join("root");
        let tree = Tree::new(n_files);
        tree.make(&root)?;
        let groups = groups(&tree, &root)?;
        let sandbox = Sandbox::on(bench, root)?;
        let revision = sandbox.commit(&tree.policy())?;
        let (agent, courier) = sandbox.start(&revision)?;
        courier.stop()?;
        agent.stop()?;

        let (mut floor, mut ready, mut verified) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.cold {
            image.forget()?;
            floor.push(pass(&groups, Method::HashUring)?);
            image.forget()?;
            let agent = sandbox.start_agent()?;
            ready.push(agent.ready_after);
            wait_for("all to be in sync", PATIENCE, || {
                let status = sandbox.status()?;
                let done = status.last_run.is_some_and(|run| run.full) && status.resources.in_sync == n_files;
                Ok(done.then_some(()))
            })?;
            verified.push(agent.started.elapsed());
            agent.stop()?;
        }
        let (floor, ready, verified) = (median(&floor), median(&ready), median(&verified));
        Ok(vec![
            Row::timed(
                format!("cold cache, {n_files} files: start → READY, beside {}", Method::HashUring.describe()),
                floor,
                ready,
                Goal::Ratios(vec![1.5]),
            ),
            Row::timed(
                format!("cold cache, {n_files} files: start → all verified, as `rekindle status` says"),
                floor,
                verified,
                Goal::Ratios(vec![1.5]),
            ),
        ])
    }
}

/// The agent's engine of verification, in this process.
struct Engine {
    root: Root,
    entries: Vec<Entry>,
}

impl Engine {
    fn new(root: &Path, tree: &Tree) -> Result<Self> {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        // Files of one content share it, as those of a policy do.
        let contents: Vec<Content> = (0..tree.n_contents).map(|class| Content::new(&tree::content(class))).collect();
        let entry = |file: usize| {
            let content = contents.get(tree.class(file)).context("a content")?;
            let (path, mode) = (AbsPath::new(&tree.path(file))?, Mode::from_bits(tree::MODE));
            Ok(Entry { path, content: content.clone(), uid, gid, mode })
        };
        let mut entries = (0..tree.n_files).map(entry).collect::<Result<Vec<Entry>>>()?;
        verify::sort(&mut entries);
        Ok(Self { root: Root::open(root).context("cannot open the root")?, entries })
    }

    fn pass(&self, method: Method) -> Result<Duration> {
        let method = match method {
            Method::Stat => return self.look(),
            Method::Hash => verify::Method::OneThread,
            Method::HashThreads => verify::Method::Threads(std::thread::available_parallelism()?),
            Method::HashUring => verify::Method::Ring,
        };
        let started = Instant::now();
        let answers = verify::pass(&self.root, &self.entries, method);
        let took = started.elapsed();
        let wrong = answers.iter().find(|answer| !matches!(answer, verify::Answer::InSync(_)));
        ensure!(wrong.is_none(), "the engine found {wrong:?} in a tree that is as declared");
        Ok(took)
    }

    fn look(&self) -> Result<Duration> {
        let started = Instant::now();
        let mut n_seen = 0;
        verify::look_with(&self.root, &self.entries, &mut |_index, seen| {
            n_seen += usize::from(matches!(seen, Ok(Some(_))));
        });
        let took = started.elapsed();
        ensure!(n_seen == self.entries.len(), "the engine saw {n_seen} of {} files", self.entries.len());
        Ok(took)
    }
}

/// Has the agent look at everything, and returns how long it says that took.
fn full_run(sandbox: &Sandbox) -> Result<Duration> {
    let before = sandbox.status()?.last_run.context("the agent has not run yet")?;
    sandbox.look()?;
    wait_for("a run over everything", PATIENCE, || {
        let run = sandbox.status()?.last_run;
        Ok(run.filter(|run| run.full && run.started > before.started).map(|run| Duration::from_micros(run.duration_us)))
    })
}

/// Times how long the watcher takes until every later change of any file is seen, and until it has looked at each name: the
/// watcher alone, in this process.
fn arm(sandbox: &Sandbox, tree: &Tree) -> Result<(Duration, Duration)> {
    let n_failures = Arc::new(AtomicU64::new(0));
    let failures = Arc::clone(&n_failures);
    let watcher = Watcher::start(sandbox.root().to_owned(), move |hint: Result<Hint, WatchError>| {
        failures.fetch_add(u64::from(hint.is_err()), Ordering::Relaxed);
    })
    .context("cannot start a watcher")?;
    let interests: Vec<Interest> = interests(tree).collect();
    let started = Instant::now();
    watcher.set_interests(interests);
    let armed = started.elapsed();
    // It answers when it has done everything.
    let n_watches = watcher.stats().n_watches;
    let looked = started.elapsed();
    ensure!(n_failures.load(Ordering::Relaxed) == 0, "the watcher failed");
    ensure!(n_watches >= tree.n_directories(), "the watcher did not arm every directory");
    Ok((armed, looked))
}

/// What the agent asks of its watcher for a tree.
pub(crate) fn interests(tree: &Tree) -> impl Iterator<Item = Interest> {
    (0..tree.n_files).map(|file| {
        let path = tree.path(file);
        Interest { resource: ResourceId::new(Kind::File, path.as_str()), path: Path::new(&path).into() }
    })
}

/// One watch for each directory.
fn arm_floor(groups: &[Group]) -> Result<Duration> {
    let started = Instant::now();
    let inotify = inotify::init(CreateFlags::CLOEXEC)?;
    let mask = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::DELETE;
    for group in groups {
        inotify::add_watch(&inotify, &group.directory, mask)?;
    }
    Ok(started.elapsed())
}
