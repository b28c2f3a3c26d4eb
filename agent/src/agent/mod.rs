//! The root event loop: one `enum Event`, one `select!`, a current-thread runtime.
//!
//! The loop owns nothing durable: it turns hints, timers, signals and requests into tasks for the [`worker`] thread, and what
//! the worker reports into the next time to run. It opens no network socket; the only sockets are the control socket, that for metrics, the
//! system bus and systemd's notification socket. Any thread or task that ends unasked ends the process, and systemd starts it
//! again: a half-dead guard is worse than none.

pub mod alerts;
pub mod confirming;
pub mod control;
mod dirty;
mod effects;
mod escalate;
mod fights;
mod first;
mod guarding;
mod intake;
pub mod metrics;
mod orphans;
mod pauses;
mod publish;
mod recording;
pub mod revisions;
mod scanning;
pub mod secrets;
mod sessions;
mod sockets;
pub mod status;
pub mod trial;
mod verdicts;
mod who;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch as tokio_watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use self::dirty::Dirty;
use self::sessions::{complaint, complaints};
use self::sockets::{listen, may_control, remove_socket, watch_inbox};
use self::status::Status;
use self::who::Seen;
use self::worker::{Shared, Task, Worker};
use crate::actor::Actor;
use crate::config::Settings;
use crate::converge::Scope;
use crate::guard::scan::{Pace, Scanner};
use crate::guard::{Guard, Repaired};
use crate::host::open_root;
use crate::host::thread::{Urgency, raise_open_files};
use crate::resource::{ResourceId, UnitName, chain};
use crate::schedule::{Contested, Displaced, Next, Schedule};
use crate::spool::Event as AlertEvent;
use crate::watch::{self, Hint, How, SelfTest, WatchError, Watcher};

/// Everything that can happen to the loop.
#[derive(Debug)]
enum Event {
    /// Something may have drifted.
    Hint(Hint),
    /// The watcher's thread cannot go on.
    WatcherEnded(WatchError),
    /// The scanning thread cannot go on.
    ScannerEnded(io::Error),
    /// The courier wrote something.
    Inbox,
    /// The guard put files back.
    Repaired(Vec<Repaired>),
    /// From the worker.
    Worker(worker::Event),
    /// Somebody connected to the control socket.
    Control(UnixStream),
    /// The time of the schedule has come.
    Due,
    /// Somebody connected to the socket for metrics.
    Scrape(UnixStream),
    /// Metrics are to be written into files.
    Publish,
    /// A pause ends or is to be announced.
    Wake,
    /// The first look takes too long to wait for.
    FirstOverdue,
    /// systemd wants a sign of life.
    Watchdog,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM or SIGINT.
    Terminate,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
///
/// When it cannot start (state directory, control socket, watcher), or when a part of it ended unasked.
pub async fn run(settings: Settings, config_file: Option<PathBuf>) -> anyhow::Result<()> {
    raise_open_files();
    let (events, mut received) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared::new(Status::first(&settings)));

    let (worker_events, mut from_worker) = mpsc::unbounded_channel();
    let repaired = events.clone();
    // The receiver is gone only while the process ends; what is not told now is told by the next one.
    let tell = move |repairs| drop(repaired.send(Event::Repaired(repairs)));
    let worker = Worker::open(settings.clone(), Arc::clone(&shared), worker_events, tell)?;
    let guard = Arc::clone(&worker.guard);

    let dirty = Arc::new(Dirty::default());
    let (hints, failures) = (Arc::clone(&dirty), events.clone());
    let sink = guard.reflex(move |hint: Result<Hint, WatchError>| match hint {
        Ok(hint) => hints.add(hint),
        // The receiver is gone only while the process ends.
        Err(error) => drop(failures.send(Event::WatcherEnded(error))),
    });
    let arrivals = Arc::clone(&dirty);
    let sink = sink.telling(move |resources, witness| arrivals.saw(resources, witness));
    let self_test = Some(SelfTest::within(settings.paths.runtime.join("canary")));
    let options = watch::Options { urgency: Urgency::RealTime, self_test, ..watch::Options::default() };
    let watcher =
        Watcher::start_with(settings.paths.root.clone(), options, sink).context("cannot start the watcher")?;
    let (hints, failures) = (Arc::clone(&dirty), events.clone());
    let scanner = Scanner::start(open_root(&settings.paths.root)?, Pace::default(), move |look| match look {
        Ok(look) => hints.add(Hint::Look(look)),
        Err(error) => drop(failures.send(Event::ScannerEnded(error))),
    })
    .context("cannot start the scanning thread")?;
    let inbox = watch_inbox(&settings.paths.inbox(), events.clone())?;
    let listener = listen(&settings.paths.control())?;
    let scrapes = listen(&settings.paths.metrics_socket())?;

    let (tasks, worker_tasks) = std_mpsc::channel();
    let (ended, mut worker_ended) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("worker".to_owned()).spawn(move || {
        worker.run(&worker_tasks);
        drop(ended);
    })?;

    let (units, declared_units) = tokio_watch::channel(Vec::<UnitName>::new());
    let (bus, unit_coverage) = tokio_watch::channel(How::Watched);
    let mut tasks_joined = JoinSet::new();
    let live = settings.paths.root == Path::new("/");
    if live {
        let hints = Arc::clone(&dirty);
        tasks_joined.spawn(watch::units::unit_signals(watch::units::Bus::System, declared_units, bus, move |hint| {
            hints.add(hint)
        }));
    }

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut watchdog = watchdog_interval();
    let mut state = Loop {
        events,
        schedule: Schedule::new(&settings, random_u64(), Instant::now()),
        settings,
        config_file,
        shared,
        tasks,
        guard,
        watcher,
        scanner,
        units,
        unit_coverage,
        live,
        busy_since: None,
        wake: None,
        first_by: Some(Instant::now() + LONGEST_FIRST_LOOK),
        has_policy: false,
        sessions: JoinSet::new(),
        contested: BTreeSet::new(),
        is_storm: false,
        publish_at: Some(Instant::now()),
        is_publishing: Arc::default(),
        degraded: BTreeSet::new(),
        n_failed_tests: 0,
        dirty: Arc::clone(&dirty),
        seen: Seen::default(),
    };
    info!(version = env!("CARGO_PKG_VERSION"), "agent started");

    loop {
        let due = state.due();
        let wake = state.wake_in();
        let publish = state.publish_at;
        let event = tokio::select! {
            // Biased: a stop must not wait behind a storm of hints.
            biased;
            _ = terminate.recv() => Event::Terminate,
            _ = interrupt.recv() => Event::Terminate,
            _ = hangup.recv() => Event::Reload,
            _ = &mut worker_ended => anyhow::bail!("the worker thread ended unasked"),
            Some(ended) = tasks_joined.join_next() => anyhow::bail!("the unit watcher ended unasked: {ended:?}"),
            Some(event) = from_worker.recv() => Event::Worker(event),
            Some(event) = received.recv() => event,
            hint = dirty.next() => Event::Hint(hint),
            Some(ended) = state.sessions.join_next() => {
                ended.context("a control session panicked")?;
                continue;
            }
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| may_control(&stream).map(|may| (stream, may))) {
                Ok((stream, true)) => Event::Control(stream),
                Ok((_refused, false)) => continue,
                Err(error) => {
                    warn!("cannot accept on the control socket: {error}");
                    continue;
                }
            },
            accepted = scrapes.accept() => match accepted.and_then(|(stream, _)| may_control(&stream).map(|may| (stream, may))) {
                Ok((stream, true)) => Event::Scrape(stream),
                Ok((_refused, false)) => continue,
                Err(error) => {
                    warn!("cannot accept on the socket for metrics: {error}");
                    continue;
                }
            },
            () = sleep_until(due) => Event::Due,
            () = sleep_until(publish) => Event::Publish,
            () = sleep_until(wake) => Event::Wake,
            () = sleep_until(state.first_by) => Event::FirstOverdue,
            () = tick(&mut watchdog) => Event::Watchdog,
        };
        if state.take(event)? == Flow::Stop {
            break;
        }
    }

    notify_systemd(&[sd_notify::NotifyState::Stopping]);
    info!("stopping after the step in hand");
    state.shared.stop.store(true, Ordering::SeqCst);
    // The worker is gone only when it has ended already.
    drop(state.tasks.send(Task::Stop));
    worker_ended.await.ok();
    thread.join().map_err(|_panic| anyhow::anyhow!("the worker thread panicked"))?;
    drop(inbox);
    remove_socket(&state.settings.paths.control());
    remove_socket(&state.settings.paths.metrics_socket());
    info!("stopped");
    Ok(())
}

/// Whether the loop goes on.
#[derive(Debug, PartialEq, Eq)]
enum Flow {
    /// It does.
    On,
    /// It ends.
    Stop,
}

/// What the loop itself knows. Nothing in it survives a restart, and nothing needs to.
struct Loop {
    events: mpsc::UnboundedSender<Event>,
    settings: Settings,
    config_file: Option<PathBuf>,
    shared: Arc<Shared>,
    tasks: std_mpsc::Sender<Task>,
    guard: Arc<Guard>,
    watcher: Watcher,
    scanner: Scanner,
    units: tokio_watch::Sender<Vec<UnitName>>,
    unit_coverage: tokio_watch::Receiver<How>,
    live: bool,
    schedule: Schedule,
    busy_since: Option<Instant>,
    wake: Option<Timestamp>,
    /// Until when the first look is waited for; `None` once the agent is ready.
    first_by: Option<Instant>,
    has_policy: bool,
    sessions: JoinSet<()>,
    contested: BTreeSet<ResourceId>,
    is_storm: bool,
    publish_at: Option<Instant>,
    is_publishing: Arc<AtomicBool>,
    degraded: BTreeSet<String>,
    n_failed_tests: u64,
    dirty: Arc<Dirty>,
    seen: Seen,
}

/// Then the agent is ready even if the first look is not over: one file system that does not answer must not keep systemd from
/// starting the guard of all others.
const LONGEST_FIRST_LOOK: Duration = Duration::from_secs(30);

/// A run that takes longer than this is stuck: the watchdog is no longer fed. Package transactions end themselves sooner.
const LONGEST_RUN: Duration = Duration::from_secs(2 * 3600);

impl Loop {
    fn take(&mut self, event: Event) -> anyhow::Result<Flow> {
        let now = Instant::now();
        match event {
            Event::Hint(hint) => {
                let arrivals = self.dirty.arrivals().take();
                self.seen.arrive(arrivals, now);
                if matches!(hint, Hint::Everything { .. }) {
                    // The run that follows sees everything, but it may be a while until it can begin.
                    self.scanner.look_now();
                }
                self.schedule.hint(hint, now);
                self.start_due_run(now)?;
            }
            Event::Due => {
                self.tell_fights(now)?;
                self.start_due_run(now)?;
            }
            Event::Scrape(stream) => self.take_scrape(stream),
            Event::Publish => self.publish_metrics(now),
            Event::Wake => {
                self.wake = None;
                self.schedule.hint(Hint::Everything { why: "a pause or a waiver changes" }, now);
                self.start_due_run(now)?;
            }
            Event::WatcherEnded(error) => return Err(error).context("the watcher ended unasked"),
            Event::ScannerEnded(error) => return Err(error).context("the scanning thread ended unasked"),
            Event::Repaired(repairs) => self.take_repairs(repairs, now)?,
            Event::Inbox => self.send(Task::Inbox)?,
            // systemd starts the agent again.
            Event::Worker(worker::Event::StartOver) => return Ok(Flow::Stop),
            Event::Worker(event) => self.take_worker_event(event, now)?,
            Event::Control(stream) => self.take_session(stream),
            Event::FirstOverdue => {
                warn!("the first look is not over yet; the agent is ready without it");
                self.be_ready();
                self.start_due_run(now)?;
            }
            Event::Watchdog => {
                if self.busy_since.is_none_or(|since| now.duration_since(since) < LONGEST_RUN) {
                    notify_systemd(&[sd_notify::NotifyState::Watchdog]);
                }
            }
            Event::Reload => self.reload()?,
            Event::Terminate => return Ok(Flow::Stop),
        }
        Ok(Flow::On)
    }

    fn take_worker_event(&mut self, event: worker::Event, now: Instant) -> anyhow::Result<()> {
        match event {
            worker::Event::Watch { mut interests, units } => {
                self.has_policy = true;
                if self.live {
                    interests.extend(units.iter().flat_map(watch::units::interests));
                }
                self.watcher.set_interests(interests);
                self.units.send_replace(units);
            }
            worker::Event::Files(entries) => self.scanner.declare(entries),
            worker::Event::Ran { report, wake } => {
                self.busy_since = None;
                self.wake = wake;
                self.schedule.report(&report, now);
                self.hold_contested(now);
                self.tell_fights(now)?;
                if report.full {
                    self.announce_degraded()?;
                }
                self.say_status();
                self.start_due_run(now)?;
            }
            worker::Event::RunEverything => {
                self.be_ready();
                self.schedule.hint(Hint::Everything { why: "the agent asked" }, now);
                self.start_due_run(now)?;
            }
            worker::Event::StartOver => {}
            worker::Event::Idle => {
                self.busy_since = None;
                self.schedule.abandoned(now);
                self.say_status();
            }
        }
        Ok(())
    }

    /// Counts what the guard put back, and has what is owed for it paid.
    fn take_repairs(&mut self, repairs: Vec<Repaired>, now: Instant) -> anyhow::Result<()> {
        for repaired in &repairs {
            self.schedule.repaired(&repaired.resource, now);
            let who = repaired.actor.as_ref().and_then(Actor::short);
            if let Some(displaced) =
                Displaced::by(&repaired.changes, repaired.action, repaired.backup.as_deref(), who.as_deref())
            {
                self.schedule.displaced(&repaired.resource, displaced);
            }
        }
        let owing = repairs.iter().filter(|repaired| !repaired.notifies.is_empty());
        let owing: BTreeSet<ResourceId> = owing.map(|repaired| repaired.resource.clone()).collect();
        self.send(Task::Repaired(repairs))?;
        if !owing.is_empty() {
            self.schedule.hint(Hint::Look(owing), now);
        }
        self.hold_contested(now);
        self.tell_fights(now)?;
        self.start_due_run(now)
    }

    /// The guard leaves alone what somebody fights over: it would win every round, and never end.
    fn hold_contested(&self, now: Instant) {
        for (resource, until) in self.schedule.held(now) {
            self.guard.hold(resource, until);
        }
    }

    /// Starts the run that is due, unless one is under way: what comes meanwhile is coalesced by the schedule.
    fn start_due_run(&mut self, now: Instant) -> anyhow::Result<()> {
        if !self.may_run() {
            return Ok(());
        }
        match self.schedule.next(now) {
            Next::Run { scope, why } => {
                if scope == Scope::Everything {
                    // What no event tells, such as a second name for a declared file, is armed before it is looked at.
                    self.watcher.refresh();
                }
                debug!(why, ?scope, "run");
                self.busy_since = Some(now);
                let held = self.held(now);
                let seen = self.seen.take(&scope, now);
                self.send(Task::Run { scope, held, seen })?;
            }
            Next::WaitUntil(_) | Next::Running => {}
        }
        Ok(())
    }

    fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        let run = if self.may_run() { self.schedule.due(now) } else { None };
        run.into_iter().chain(self.schedule.fights_change_at(now)).min()
    }

    /// Resources that somebody keeps changing, which a run over everything must leave alone as well.
    fn held(&self, now: Instant) -> BTreeMap<ResourceId, String> {
        let why = |fight: &Contested<'_>| {
            let who = fight
                .contest
                .who()
                .map_or_else(|| "somebody keeps changing it".to_owned(), |who| format!("fought over by {who}"));
            format!("{who}: repaired every {} s", fight.spacing.as_secs())
        };
        self.schedule
            .contested(now)
            .filter(|fight| self.schedule.held_until(fight.resource, now).is_some())
            .map(|fight| (fight.resource.clone(), why(&fight)))
            .collect()
    }

    fn wake_in(&self) -> Option<Instant> {
        let at = self.wake?;
        let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
        Some(Instant::now() + left)
    }

    /// Tells once about each path that is no longer watched by events.
    fn announce_degraded(&mut self) -> anyhow::Result<()> {
        let coverage = self.watcher.coverage();
        let bus = complaint("services", &self.unit_coverage.borrow());
        // What fails still is among the complaints. If new watches do better, somebody took the old ones away all the same.
        if coverage.n_failed_tests > self.n_failed_tests && coverage.self_test.is_none() {
            let summary =
                "the watches failed their self-test; everything was armed anew, and events come again".to_owned();
            self.send(Task::Announce { event: AlertEvent::WatchDegraded, summary })?;
        }
        self.n_failed_tests = coverage.n_failed_tests;
        let degraded: BTreeSet<String> = complaints(&coverage).chain(bus).collect();
        let fresh: Vec<&str> = degraded.difference(&self.degraded).map(String::as_str).collect();
        if let Some(first) = fresh.first() {
            let more = fresh.len().saturating_sub(1);
            let summary = if more == 0 { (*first).to_owned() } else { format!("{first}; and {more} more") };
            self.send(Task::Announce { event: AlertEvent::WatchDegraded, summary })?;
        }
        self.degraded = degraded;
        Ok(())
    }

    fn send(&self, task: Task) -> anyhow::Result<()> {
        self.tasks.send(task).map_err(|_gone| anyhow::anyhow!("the worker thread is gone"))
    }

    /// Whether there is a policy, and the first look is over.
    fn may_run(&self) -> bool {
        self.has_policy && self.first_by.is_none()
    }

    /// Watches are armed, the policy is loaded and paths have been put right: the first look at everything comes next.
    fn be_ready(&mut self) {
        if self.first_by.take().is_some() {
            notify_systemd(&[sd_notify::NotifyState::Ready]);
        }
        self.say_status();
    }

    fn say_status(&self) {
        let line = self.shared.status().one_line();
        notify_systemd(&[sd_notify::NotifyState::Status(&line)]);
    }

    fn reload(&mut self) -> anyhow::Result<()> {
        // systemd's notify-reload wants the time at which the reload began, on its own clock.
        match sd_notify::NotifyState::monotonic_usec_now() {
            Ok(stamp) => notify_systemd(&[sd_notify::NotifyState::Reloading, stamp]),
            Err(error) => warn!("cannot read the monotonic clock: {error}"),
        }
        match crate::config::load_from(self.config_file.as_deref()) {
            Ok(settings) => {
                info!("configuration read again");
                let now = Instant::now();
                let old = std::mem::replace(&mut self.schedule, Schedule::new(&settings, random_u64(), now));
                self.schedule = old.reconfigured(&settings, random_u64(), now);
                self.busy_since = None;
                self.guard.set_patience(settings.health.flapping_repairs);
                self.settings.health = settings.health.clone();
                self.settings.metrics = settings.metrics.clone();
                self.publish_at = Some(now);
                self.send(Task::Reload(Box::new(settings)))?;
            }
            Err(error) => {
                let text = format!("the configuration was not taken over: {}", chain(&error));
                warn!("{text}");
                self.shared.status().warnings.push(text);
            }
        }
        notify_systemd(&[sd_notify::NotifyState::Ready]);
        Ok(())
    }
}

fn watchdog_interval() -> Option<tokio::time::Interval> {
    let period = sd_notify::watchdog_enabled()?;
    Some(tokio::time::interval(period / 3))
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Tells systemd; without one (a sandbox, a container) there is nobody to tell.
fn notify_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("cannot notify systemd: {error}");
    }
}

/// Eight bytes of chance.
pub fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel's random source works, or nothing here can be trusted");
    u64::from_ne_bytes(bytes)
}

/// An id with 128 bits of chance, in hexadecimal.
pub fn random_id() -> String {
    format!("{:016x}{:016x}", random_u64(), random_u64())
}
