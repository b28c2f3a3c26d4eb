//! The one thread that owns the host, the record and the health: runs happen here, one at a time.
//!
//! The event loop sends [`Task`]s and gets [`Event`]s back; it never touches what this thread owns. State is persisted before
//! an effect of it leaves this process, so that a kill at any point repeats a message at worst and never loses one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::alerts::Speaker;
use super::confirming::POLL;
use super::fights::Fights;
use super::metrics::numbers::{self, Numbers};
use super::pauses::Told;
use super::random_id;
use super::recording::RETRY;
use super::revisions::{Contents, InForce, Revisions};
use super::scanning::Scanned;
use super::status::Status;
use super::verdicts::Verdicts;
use crate::actor::Actor;
use crate::config::{self, Settings};
use crate::converge::health::{Effect, Health, Input, MayAsk, State};
use crate::converge::{self, Cause, Outcome, RunReport, Scope};
use crate::guard::{Guard, Places, Repaired, Withdrawn};
use crate::host::verify::Entry;
use crate::host::{self, Host};
use crate::policy::facts::Facts;
use crate::policy::secret::Secrets;
use crate::record::reserve::Reserve;
use crate::record::{Confirmation, Orphan, Pause, Record, RunLock};
use crate::resource::{Action, Kind, OnDrift, ResourceId, UnitName, chain};
use crate::spool::{Alert, CheckInState, Event as AlertEvent, Outgoing, OutgoingBody, ReimageCall, Spool, SpoolError};
use crate::watch::Interest;

/// Something for the worker to do.
#[derive(Debug)]
pub enum Task {
    /// Converge.
    Run {
        /// What to look at.
        scope: Scope,
        /// Resources that are only to be reported, and why: the back-off of fights.
        held: BTreeMap<ResourceId, String>,
        /// Who was seen at them.
        seen: BTreeMap<ResourceId, Actor>,
    },
    /// The guard put files back.
    Repaired(Vec<Repaired>),
    /// The courier wrote something.
    Inbox,
    /// An operator asks for a reimage.
    Reimage {
        /// Their reason.
        reason: String,
        /// The request's id, or why there is none.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Tell people something that the event loop noticed.
    Announce {
        /// The event.
        event: AlertEvent,
        /// One sentence.
        summary: String,
    },
    /// Somebody keeps changing resources, or no longer does.
    Fights(Fights),
    /// The configuration was read again.
    Reload(Box<Settings>),
    /// End after the step in hand.
    Stop,
}

/// What the worker tells the event loop.
#[derive(Debug)]
pub enum Event {
    /// Another policy is in force: watch this.
    Watch {
        /// Paths and what they belong to.
        interests: Vec<Interest>,
        /// Units.
        units: Vec<UnitName>,
    },
    /// These are the files to scan.
    Files(Vec<Entry>),
    /// A run ended.
    Ran {
        /// What it did.
        report: Box<RunReport>,
        /// When a pause ends or is to be announced, if one does.
        wake: Option<Timestamp>,
    },
    /// Everything is to be looked at now.
    RunEverything,
    /// The record that one in memory stood in for can be opened again: whoever starts now begins with all of it.
    StartOver,
    /// A run was asked for and could not be made: no policy is in force any more, or the lock cannot be used.
    Idle,
}

/// Which run it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The one before the agent is ready: of paths alone, and it waits for nobody.
    First,
    /// Any other.
    Ordinary,
}

/// How long the first run waits for another process that runs.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// What both threads see.
#[derive(Debug)]
pub struct Shared {
    status: Mutex<Status>,
    /// What is counted for metrics.
    pub numbers: Numbers,
    /// Set once: end after the step in hand.
    pub stop: AtomicBool,
}

impl Shared {
    /// Wraps the first status.
    pub fn new(status: Status) -> Self {
        Self { status: Mutex::new(status), numbers: Numbers::default(), stop: AtomicBool::new(false) }
    }

    /// The status now. A poisoned lock cannot happen: a panic ends the process.
    pub fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The owner of everything durable. See the module's text.
#[derive(Debug)]
pub struct Worker {
    pub(super) settings: Settings,
    pub(super) facts: Facts,
    pub(super) secrets: Secrets,
    pub(super) host: Host,
    pub(super) record: Record,
    pub(super) outbox: Spool,
    pub(super) inbox: Spool,
    reserve: Reserve,
    /// Whether the reserve was there when last looked at: the journal may give it up as well.
    had_reserve: bool,
    pub(super) in_force: Option<InForce>,
    /// Where the contents of declared files are.
    pub(super) contents: Contents,
    pub(super) revisions: Revisions,
    pub(super) health: Health,
    pub(super) verdicts: Verdicts,
    pub(super) n_repairs: u64,
    pub(super) known_pauses: BTreeMap<i64, Pause>,
    pub(super) announced_pauses: BTreeSet<i64>,
    pub(super) debts: Vec<converge::DebtReport>,
    pub(super) orphans: Vec<Orphan>,
    /// Changes of this process that wait for a proof.
    pub(super) waiting: Vec<Confirmation>,
    checkin: Option<CheckInState>,
    /// Whether something was done that takes much memory for a while.
    pub(super) untidy: bool,
    pub(super) guard: Arc<Guard>,
    pub(super) scanned: Scanned,
    pub(super) shared: Arc<Shared>,
    events: mpsc::UnboundedSender<Event>,
}

/// Keys of small values in the record.
const KEY_HEALTH: &str = "health";
const KEY_REVISIONS: &str = "revisions";
const KEY_BORN: &str = "born_converged";

/// With no task for this long, and after a policy was loaded or everything was looked at, the worker tidies up.
const QUIET: Duration = Duration::from_secs(2);

impl Worker {
    /// Opens everything. Nothing is changed on the host yet.
    pub fn open(
        settings: Settings,
        shared: Arc<Shared>,
        events: mpsc::UnboundedSender<Event>,
        tell: impl Fn(Vec<Repaired>) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let mut host = Host::open(&settings.paths.root)?;
        host.programs.set_scratch(&settings.paths.runtime);
        host.programs.set_validation(settings.converge.validate_timeout);
        let (record, beside) = super::recording::open(&settings.paths, &shared)?;
        let now = Timestamp::now();
        let health = recall(&record, KEY_HEALTH).unwrap_or_else(|| Health::unknown(now));
        let revisions = recall(&record, KEY_REVISIONS).unwrap_or_default();
        let facts = facts(&host);
        let told = Told::recall(&record);
        let places = Places { root: host::open_root(&settings.paths.root)?, state: settings.paths.state.clone() };
        let patience = settings.health.flapping_repairs;
        let guard = Arc::new(Guard::start(places, beside, patience, tell).context("cannot start the guard")?);
        let worker = Self {
            guard,
            scanned: Scanned::default(),
            outbox: Spool::open(&settings.paths.outbox())?,
            inbox: Spool::open(&settings.paths.inbox())?,
            reserve: Reserve::of(&settings.paths.state),
            had_reserve: false,
            facts,
            secrets: super::secrets::load(&settings),
            host,
            record,
            in_force: None,
            contents: Contents::OnDisk,
            revisions,
            health,
            verdicts: Verdicts::default(),
            n_repairs: 0,
            known_pauses: told.known,
            announced_pauses: told.expiring,
            debts: Vec::new(),
            orphans: Vec::new(),
            waiting: Vec::new(),
            checkin: None,
            untidy: false,
            shared,
            events,
            settings,
        };
        worker.publish();
        Ok(worker)
    }

    /// Works until told to stop, or until the event loop is gone.
    pub fn run(mut self, tasks: &Receiver<Task>) {
        self.note_start();
        self.take_reserve();
        self.recover();
        self.load_policy();
        // Before anything else is looked at: a crash in the time for a proof is no proof.
        self.take_back_leftovers();
        self.read_inbox();
        let record = self.told_of_standing_in();
        self.announce(AlertEvent::AgentStarted, format!("rekindle {} started{record}", env!("CARGO_PKG_VERSION")));
        self.look_first();
        self.tell(Event::RunEverything);
        self.publish();
        while let Some(task) = self.next_task(tasks) {
            match task {
                Task::Run { scope, held, seen } => self.converge(scope, &held, &seen),
                Task::Repaired(repairs) => self.take_repairs(&repairs),
                Task::Inbox => self.read_inbox(),
                Task::Reimage { reason, reply } => {
                    let answer = self.ask_for_reimage(reason);
                    // The operator may have gone away; the request stands all the same.
                    drop(reply.send(answer));
                }
                Task::Announce { event, summary } => self.announce(event, summary),
                Task::Fights(fights) => self.take_fights(fights),
                Task::Reload(settings) => self.reload(*settings),
                Task::Stop => break,
            }
            self.mend_contents();
            if self.shared.stop.load(Ordering::SeqCst) {
                break;
            }
            self.publish();
        }
        if self.shared.stop.load(Ordering::SeqCst) {
            self.note_end();
        }
    }

    /// The next thing to do; `None` when the event loop is gone. Tidies up when there has been none for a moment.
    fn next_task(&mut self, tasks: &Receiver<Task>) -> Option<Task> {
        while !self.waiting.is_empty() {
            match tasks.recv_timeout(POLL) {
                Ok(task) => return Some(task),
                Err(RecvTimeoutError::Timeout) => self.look_for_proof(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        while !self.record.is_durable() {
            match tasks.recv_timeout(RETRY) {
                Ok(task) => return Some(task),
                // What was asked for is asked for again by whoever starts now.
                Err(RecvTimeoutError::Timeout) if self.take_up_record() => {
                    return tasks.iter().find(|task| matches!(task, Task::Stop));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        if std::mem::take(&mut self.untidy) {
            match tasks.recv_timeout(QUIET) {
                Ok(task) => {
                    self.untidy = true;
                    return Some(task);
                }
                Err(RecvTimeoutError::Timeout) => host::memory::give_back(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        tasks.recv().ok()
    }

    /// Takes up what an earlier process left: untold repairs, and an open request.
    fn recover(&mut self) {
        match self.record.untold() {
            Ok(entries) => {
                if let Some(alert) = self.speaker().recovered(&entries, Timestamp::now()) {
                    self.enqueue(OutgoingBody::Alert(alert));
                }
                let steps: Vec<i64> = entries.iter().map(|entry| entry.id).collect();
                self.note_told(&steps);
            }
            Err(error) => self.warn(format!("cannot read the history: {}", chain(&error))),
        }
        let again = match &self.health.state {
            State::Requested(request) => Some(Effect::Ask(request.clone())),
            State::Draining(request) => Some(Effect::Drain(request.clone())),
            State::HandedOver(request) => Some(Effect::HandOver(request.clone())),
            State::Unknown
            | State::Converged
            | State::Degraded
            | State::OnLastGood { .. }
            | State::Failing
            | State::Granted(_) => None,
        };
        if let Some(effect) = again {
            self.carry_out(vec![effect], None);
        }
    }

    fn ask_for_reimage(&mut self, reason: String) -> Result<String, String> {
        if self.settings.reimage.is_none() {
            return Err("no endpoint is configured: set `[reimage] endpoint` in agent.toml".to_owned());
        }
        if let Some(open) = self.health.request() {
            return Err(format!("a request is open already: {} ({})", open.id, open.summary));
        }
        let input = Input::Operator { reason };
        let (health, effects) = self.health.clone().next(input, &self.settings.health, Timestamp::now(), random_id);
        self.adopt(health, effects, None);
        self.health.request().map(|r| r.id.clone()).ok_or_else(|| "the request could not be made".to_owned())
    }

    /// Takes up a new health: persisted first, carried out second.
    pub(super) fn adopt(&mut self, health: Health, effects: Vec<Effect>, report: Option<&RunReport>) {
        if health != self.health {
            if health.word() != self.health.word() {
                info!(from = self.health.word(), to = health.word(), "health");
            }
            self.health = health;
            self.remember_health();
        }
        self.carry_out(effects, report);
        self.write_checkin();
    }

    fn converge(&mut self, scope: Scope, held: &BTreeMap<ResourceId, String>, seen: &BTreeMap<ResourceId, Actor>) {
        self.take_back_leftovers();
        let Some(in_force) = self.in_force.take() else {
            self.tell(Event::Idle);
            return;
        };
        self.shared.status().activity = "converging".to_owned();
        let permit = self.guard.permit();
        let report = self.converge_under_lock(&in_force, scope, held, seen, Turn::Ordinary);
        if let Ok(report) = &report {
            self.arm_guard(permit, &in_force, report);
            if report.full {
                self.declare_files(&in_force);
            }
            // It is an upgrade that lays something beside a file.
            if report.full || report.resources.iter().any(|one| one.resource.kind == Kind::Package) {
                self.look_beside(&in_force);
            }
        }
        self.in_force = Some(in_force);
        self.load_confirmations();
        self.shared.status().activity = String::new();
        match report {
            Ok(report) => {
                self.take_report(&report);
                let wake = self.next_wake();
                self.tell(Event::Ran { report: Box::new(report), wake });
            }
            Err(error) => {
                self.warn(format!("cannot run: {error:#}"));
                self.tell(Event::Idle);
            }
        }
    }

    pub(super) fn converge_under_lock(
        &mut self,
        in_force: &InForce,
        scope: Scope,
        held: &BTreeMap<ResourceId, String>,
        seen: &BTreeMap<ResourceId, Actor>,
        turn: Turn,
    ) -> anyhow::Result<RunReport> {
        let _lock = match turn {
            Turn::First => RunLock::acquire(&self.settings.paths.runtime, "agent", FIRST_PATIENCE)?,
            Turn::Ordinary => RunLock::wait(&self.settings.paths.runtime, "agent")?,
        };
        if let Err(error) = self.record.claim(&self.settings.paths.state) {
            self.record.note_trouble(&error);
        }
        let now = Timestamp::now();
        let pauses = self.record.pauses(now)?;
        self.note_pauses(&pauses, now);
        let never_confirmed: BTreeMap<ResourceId, String> =
            self.record.never_confirmed(in_force.state.revision())?.into_iter().collect();
        let hold = |id: &ResourceId| {
            pauses
                .iter()
                .find(|p| p.only.is_empty() || p.only.contains(id))
                .map(|p| format!("paused until {:.0} by {}: {}", p.until, p.by, p.reason))
                .or_else(|| never_confirmed.get(id).map(|why| format!("put back, because {why}")))
                .or_else(|| held.get(id).cloned())
                .or_else(|| (turn == Turn::First && !converge::is_path(id.kind)).then(|| "the agent starts".to_owned()))
        };
        let cause = if self.revisions.settled.as_ref() == Some(in_force.state.revision()) {
            Cause::Drift
        } else {
            Cause::NewRevision
        };
        let claim = |id: &ResourceId| match self.guard.withdraw(id) {
            Withdrawn::WasGuarded => converge::Claimed::FromAnother,
            Withdrawn::WasNot => converge::Claimed::FromNobody,
        };
        let request = converge::Request {
            desired: &in_force.state,
            scope,
            cause,
            mode: self.settings.mode,
            hold: &hold,
            claim: &claim,
            seen: &|id| seen.get(id).cloned(),
        };
        let mut context = converge::Context { host: &mut self.host, record: &mut self.record, stop: &self.shared.stop };
        Ok(converge::converge(&mut context, &request))
    }

    pub(super) fn take_report(&mut self, report: &RunReport) {
        let now = Timestamp::now();
        self.untidy |= report.full;
        let fresh = self.verdicts.update(report);
        self.debts.clone_from(&report.debts);
        let speaker = self.speaker();
        let repaired = speaker.repaired(report, now);
        let numbers = &self.shared.numbers;
        numbers::add(if report.full { &numbers.n_full_runs } else { &numbers.n_partial_runs }, 1);
        numbers::add(&numbers.n_left, fresh.len());
        if report.cause == Cause::Drift {
            report.changed().for_each(|_| numbers.by_run.add(report.duration_us));
            self.n_repairs = self.n_repairs.saturating_add(u64::try_from(report.changed().count()).unwrap_or(0));
        }
        for alert in repaired.into_iter().chain(speaker.reported(report, &fresh, now)) {
            self.enqueue(OutgoingBody::Alert(alert));
        }
        let steps: Vec<i64> = report.resources.iter().filter_map(|r| r.step).collect();
        self.note_told(&steps);
        self.announce_expiring(report, now);
        if report.full && !report.interrupted && self.revisions.settled.as_ref() != Some(&report.revision) {
            self.revisions.settled = Some(report.revision.clone());
            self.remember_revisions();
        }
        self.look_at_reserve();
        if report.full && !report.interrupted {
            self.look_at_file_systems();
            self.take_reserve();
        }
        if report.cause == Cause::Drift {
            self.note_own_drift(report.changed().map(|changed| &changed.resource));
        }
        let may_ask = self.may_ask();
        let tampered = if may_ask == MayAsk::Yes { self.tampered(report) } else { Vec::new() };
        let last_good = self.revisions.last_good.clone();
        let input = Input::Report { report, tampered, last_good: last_good.as_ref(), may_ask };
        let (health, effects) = self.health.clone().next(input, &self.settings.health, now, random_id);
        let converged = report.full && report.converged_but_reports();
        self.adopt(health, effects, Some(report));
        if converged && self.settings.mode == config::Mode::Enforce && self.is_confirmed(&report.revision) {
            self.note_convergence(report);
        }
    }

    /// Whether nothing of a revision waits for a proof, or never got one.
    fn is_confirmed(&mut self, revision: &crate::policy::Revision) -> bool {
        self.waiting.is_empty()
            && match self.record.never_confirmed(revision) {
                Ok(never) => never.is_empty(),
                Err(error) => {
                    self.record.note_trouble(&error);
                    false
                }
            }
    }

    /// Whether a reimage may be asked for now.
    pub(super) fn may_ask(&self) -> MayAsk {
        let is_possible = self.settings.reimage.is_some()
            && self.settings.mode == config::Mode::Enforce
            && self.known_pauses.is_empty()
            // A request is written down before it is sent.
            && self.record.is_durable();
        if is_possible { MayAsk::Yes } else { MayAsk::No }
    }

    /// Everything converged: this revision is good here, and a reborn host may say so.
    fn note_convergence(&mut self, report: &RunReport) {
        self.reap_orphans();
        if self.revisions.last_good.as_ref() != Some(&report.revision) {
            let old = self.revisions.last_good.replace(report.revision.clone());
            self.remember_revisions();
            self.forget_policies(old);
        }
        if self.record.is_durable() && recall::<bool>(&self.record, KEY_BORN).is_none() {
            if self.settings.reimage.is_some() {
                self.enqueue(OutgoingBody::Reimage(ReimageCall::Complete));
            }
            self.remember(KEY_BORN, &true);
            self.write_checkin();
        }
    }

    /// Steps that an alert in the outbox tells of, or that need none.
    pub(super) fn note_told(&mut self, steps: &[i64]) {
        // Where nothing can be written no alert was either: whoever takes up the record tells of them.
        if !self.record.is_durable() {
            return;
        }
        if let Err(error) = self.record.told(steps) {
            self.warn(format!("cannot record what was told: {}", chain(&error)));
        }
    }

    fn tampered(&self, report: &RunReport) -> Vec<ResourceId> {
        let Some(in_force) = &self.in_force else { return Vec::new() };
        report
            .resources
            .iter()
            .filter(|r| matches!(&r.outcome, Outcome::Reported { action, .. } if *action != Action::Waive))
            .filter(|r| in_force.state.get(&r.resource).is_some_and(|res| res.on_drift == OnDrift::Reimage))
            .map(|r| r.resource.clone())
            .collect()
    }

    fn reload(&mut self, mut settings: Settings) {
        self.guard.disarm();
        // The directories are open; they change only with a restart.
        settings.paths.clone_from(&self.settings.paths);
        self.host.programs.set_validation(settings.converge.validate_timeout);
        self.settings = settings;
        self.facts = facts(&self.host);
        self.secrets = super::secrets::load(&self.settings);
        self.load_policy();
        self.read_inbox();
        self.tell(Event::RunEverything);
    }

    pub(super) fn speaker(&self) -> Speaker {
        Speaker { host: self.facts.fqdn.clone(), revision: self.revisions.in_force.clone() }
    }

    pub(super) fn announce(&self, event: AlertEvent, summary: String) {
        let alert: Alert = self.speaker().alert(event, summary, Vec::new(), Timestamp::now());
        self.enqueue(OutgoingBody::Alert(alert));
    }

    /// Does something once more when the disk was full and the reserve could be given up.
    fn with_reserve<T>(&self, what: &str, mut write: impl FnMut() -> Result<T, SpoolError>) -> Result<T, SpoolError> {
        match write() {
            Err(error) if error.is_full() && self.reserve.release_for(what) => {
                self.say_that_the_reserve_is_in_use();
                write()
            }
            written => written,
        }
    }

    fn say_that_the_reserve_is_in_use(&self) {
        self.warn(format!(
            "the disk of `{}` is full: the reserve for what must be told is in use; make room",
            self.settings.paths.state.display()
        ));
    }

    /// Notices that the reserve was given up.
    pub(super) fn look_at_reserve(&mut self) {
        if self.had_reserve && !self.reserve.is_held() {
            self.had_reserve = false;
            self.say_that_the_reserve_is_in_use();
        }
    }

    /// Takes the reserve (again) where there is room for it.
    pub(super) fn take_reserve(&mut self) {
        let taken = self.reserve.take();
        self.had_reserve = matches!(taken, Ok(true));
        match taken {
            Ok(true) => {}
            Ok(false) => self.warn(format!(
                "too little room on the disk of `{}` to keep a reserve: alerts are lost when it fills up",
                self.settings.paths.state.display()
            )),
            Err(error) => self.warn(format!("cannot keep a reserve for a full disk: {error}")),
        }
    }

    /// Queues a message for the courier. A full disk costs the message, never the run: it is said in the log and in `status`.
    pub(super) fn enqueue(&self, body: OutgoingBody) {
        let queue = || {
            let id = self.outbox.next_id(Timestamp::now(), super::random_u64())?;
            self.outbox.enqueue(&Outgoing { version: 1, id, body: body.clone() })
        };
        let queued = self.with_reserve("a message", queue);
        if let Err(error) = queued {
            self.warn(format!("cannot queue a message: {}", chain(&error)));
        }
    }

    /// Writes the state that the courier reports, when it changed.
    pub(super) fn write_checkin(&mut self) {
        let state = CheckInState {
            version: 1,
            revision: self.revisions.in_force.as_ref().map(|r| r.as_str().to_owned()),
            health: self.health.word().to_owned(),
            since: self.health.since,
            failing: self.health.failing.iter().map(|(id, f)| (id.clone(), f.signature.clone())).collect(),
            n_resources: self
                .in_force
                .as_ref()
                .map_or(0, |p| u32::try_from(p.state.resources().len()).unwrap_or(u32::MAX)),
            n_repairs: self.n_repairs,
            request: self.health.request().map(|r| r.id.clone()),
            born_converged: recall::<bool>(&self.record, KEY_BORN).is_some(),
            confirming: self.waiting.iter().filter_map(|one| one.until).min(),
        };
        if self.checkin.as_ref() == Some(&state) {
            return;
        }
        match self.with_reserve("the check-in", || self.outbox.write_slot(&state)) {
            Ok(()) => self.checkin = Some(state),
            Err(error) => self.warn(format!("cannot write the check-in: {}", chain(&error))),
        }
    }

    pub(super) fn tell(&self, event: Event) {
        // The receiver is gone only while the process ends.
        drop(self.events.send(event));
    }

    /// Says what went wrong without stopping anything, in the log and in `status`.
    pub(super) fn warn(&self, text: String) {
        warn!("{text}");
        let mut status = self.shared.status();
        if status.warnings.last() != Some(&text) {
            status.warnings.push(text);
        }
        let excess = status.warnings.len().saturating_sub(20);
        status.warnings.drain(..excess);
    }

    pub(super) fn remember<T: serde::Serialize>(&mut self, key: &str, value: &T) {
        if let Err(error) = self.record.save(key, value) {
            self.warn(format!("cannot record `{key}`: {}", chain(&error)));
        }
    }

    pub(super) fn remember_health(&mut self) {
        let health = self.health.clone();
        self.remember(KEY_HEALTH, &health);
    }

    pub(super) fn remember_revisions(&mut self) {
        let revisions = self.revisions.clone();
        self.remember(KEY_REVISIONS, &revisions);
    }

    pub(super) fn feed_health(&mut self, input: Input<'_>) {
        let (health, effects) = self.health.clone().next(input, &self.settings.health, Timestamp::now(), random_id);
        self.adopt(health, effects, None);
    }
}

/// The facts of the host. A sandbox has no name of its own, and speaks under that of the machine that it is on.
fn facts(host: &Host) -> Facts {
    let mut facts = host::facts::gather(&host.root);
    if facts.fqdn.is_empty() {
        facts.fqdn = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    }
    facts
}

/// Reads a small value; one that cannot be read is as good as none, and said so.
pub(super) fn recall<T: serde::de::DeserializeOwned>(record: &Record, key: &str) -> Option<T> {
    match record.load(key) {
        Ok(value) => value,
        Err(error) => {
            warn!(key, "cannot read a recorded value: {}", chain(&error));
            None
        }
    }
}
