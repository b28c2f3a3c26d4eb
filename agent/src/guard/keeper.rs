//! The patient half, on a thread of its own: lays out copies, and finishes what the reflex began.
//!
//! For what was put back, in this order: new copies, because the next drift may come at once; the directories to the disk;
//! what was displaced to the backup store; the history and what is owed, in one transaction; only then is what was displaced
//! removed from the stage, and the repair told. A kill in between leaves it on the stage, and [`Keeper::take_up`] finds it.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::left::{discard, displaced, hand_on, is_copy};
use super::plan::Plan;
use super::reflex::{Deed, What};
use super::stages::Stages;
use super::table::{Likeness, Pool, PoolKey, Table};
use super::{Arming, Declared, Order, Places, Repaired, Shared};
use crate::actor::Actor;
use crate::converge::Cause;
use crate::host::memory;
use crate::host::packages::provenance;
use crate::host::process::{self, UnitMap};
use crate::host::root::{Permissions, stat_of, sync_directory};
use crate::host::stage::{Copy, Stage};
use crate::host::thread::most_open_files;
use crate::policy::Revision;
use crate::record::{Record, Repair, RunInfo};
use crate::resource::{
    AbsPath, Action, Change, Content, Ensure, Notify, Observation, ResourceId, Stood, UnitName, Verdict, chain, file,
    place,
};

/// Copies that are written together.
const BATCH: usize = 256;
/// How long no drift must have come before what was put back is made durable: each sync makes the file system write its
/// journal, and whoever changes a name meanwhile waits for that, the reflex among them.
const QUIET: Duration = Duration::from_millis(20);
/// Longest time that a deed waits for the end of a burst.
const LONGEST: Duration = Duration::from_secs(1);
/// Most deeds that wait for it. Each holds a descriptor of its directory and perhaps one of a process, so it is no more than an
/// eighth of what the process may have open.
const MOST_TOGETHER: usize = 1024;
/// First and longest time between two attempts to sync what could not be synced.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

type Tell = Box<dyn Fn(Vec<Repaired>) + Send>;

/// See the module's text.
pub(super) struct Keeper {
    stages: Stages,
    record: Record,
    shared: Arc<Shared>,
    tell: Tell,
    next_number: u64,
    /// What could not be made durable yet.
    open: Vec<Known>,
    units: UnitMap,
    retry: Option<(Instant, Duration)>,
    /// See [`MOST_TOGETHER`].
    most_together: usize,
}

impl Keeper {
    pub(super) fn new(places: Places, record: Record, shared: Arc<Shared>, tell: Tell) -> Self {
        Self {
            stages: Stages::new(places),
            record,
            shared,
            tell,
            // No number of an earlier process, whose copies may still be there.
            next_number: u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0),
            open: Vec::new(),
            units: UnitMap::new(),
            retry: None,
            most_together: (most_open_files() / 8).clamp(1, MOST_TOGETHER),
        }
    }

    /// Works until told to stop, or until nobody can tell it anything any more.
    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        self.units.learn();
        loop {
            let first = match self.retry {
                None => orders.recv().ok(),
                Some((at, _)) => match orders.recv_timeout(at.saturating_duration_since(Instant::now())) {
                    Ok(order) => Some(order),
                    Err(RecvTimeoutError::Timeout) => {
                        self.finish(Vec::new());
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => None,
                },
            };
            let Some(first) = first else { return };
            let mut deeds: Vec<Known> = Vec::new();
            let flow = self.gather(first, orders, &mut deeds);
            self.finish(deeds);
            if flow == Flow::Stop {
                return;
            }
        }
    }

    /// Obeys orders until no deed came for a moment, or enough have come. Copies that run short meanwhile are laid out.
    fn gather(&mut self, first: Order, orders: &Receiver<Order>, deeds: &mut Vec<Known>) -> Flow {
        let until = Instant::now() + LONGEST;
        let patience = self.shared.patience.load(Ordering::Relaxed);
        let mut n_of_each: HashMap<ResourceId, u32> = HashMap::new();
        let mut most = 0;
        // Pools that ran short, and the most of their copies that one file took.
        let mut short: BTreeMap<u32, u32> = BTreeMap::new();
        let mut can_refill = true;
        let mut next = Some(first);
        while let Some(order) = next {
            if let Order::Deed(deed) = &order {
                let n = n_of_each.entry(deed.resource.clone()).or_default();
                *n += 1;
                most = most.max(*n);
                if let Some(pool) = deed.short {
                    let most = short.entry(pool).or_default();
                    *most = (*most).max(*n);
                }
            }
            if self.obey(order, deeds) == Flow::Stop {
                return Flow::Stop;
            }
            let is_over = Instant::now() >= until || deeds.len() >= self.most_together || most >= patience;
            if is_over || deeds.is_empty() {
                break;
            }
            next = orders.try_recv().ok().or_else(|| {
                // What cannot be written is not tried again with each drift.
                can_refill = can_refill && self.refill(&std::mem::take(&mut short)) == Laid::Out;
                let wait = QUIET.min(until.saturating_duration_since(Instant::now()));
                orders.recv_timeout(wait).ok()
            });
        }
        Flow::On
    }

    /// Lays out copies for pools that are still short of them.
    fn refill(&mut self, short: &BTreeMap<u32, u32>) -> Laid {
        let mut table = self.shared.table();
        let Table { pools, spent, .. } = &mut *table;
        let mut is_short = false;
        for (pool, n_used) in short {
            // Another table may be there by now; then this is a pool as good as any.
            let pool = usize::try_from(*pool).ok().and_then(|index| pools.get_mut(index));
            if let Some(pool) = pool.filter(|pool| pool.is_short()) {
                pool.grow(*n_used, spent);
                is_short = true;
            }
        }
        drop(table);
        if is_short { self.lay_out(Pool::is_short) } else { Laid::Out }
    }

    fn obey(&mut self, order: Order, deeds: &mut Vec<Known>) -> Flow {
        match order {
            Order::Deed(deed) => deeds.push(self.identify(deed)),
            Order::Arm { revision, declared, arming, ordered } => {
                self.finish(std::mem::take(deeds));
                self.arm(&revision, declared, arming, ordered);
            }
            Order::Unsound { stage, name } => discard(&stage, &name),
            Order::Stop => return Flow::Stop,
        }
        Flow::On
    }

    /// Finds out who it was, before anything else: what is known of a process goes with it.
    fn identify(&mut self, mut deed: Deed) -> Known {
        let actor = deed.by.take().map(|witness| process::identify(&witness, &mut self.units)).map(|mut actor| {
            actor.transaction = provenance::of_actor(self.stages.root(), &actor, deed.time);
            actor
        });
        self.shared.n_unidentified.fetch_sub(1, Ordering::Relaxed);
        Known { deed, actor: actor.filter(|actor| !actor.is_unknown()) }
    }

    /// Makes deeds durable, with those that could not be before, records and tells them.
    fn finish(&mut self, later: Vec<Known>) {
        let mut deeds = std::mem::take(&mut self.open);
        deeds.extend(later);
        if deeds.is_empty() {
            return;
        }
        self.lay_out(|_| true);
        let (durable, failed) = sync(deeds);
        self.retry = match (failed.is_empty(), self.retry) {
            (true, _) => None,
            (false, last) => {
                let pause = last.map_or(RETRY.0, |(_, pause)| (pause * 2).min(RETRY.1));
                Some((Instant::now() + pause, pause))
            }
        };
        self.open = failed;
        self.record_and_tell(durable);
    }

    fn record_and_tell(&mut self, deeds: Vec<Known>) {
        let mut by_revision: BTreeMap<String, (Arc<Revision>, Vec<Known>)> = BTreeMap::new();
        for deed in deeds {
            let Some(revision) = deed.deed.revision.clone() else { continue };
            by_revision.entry(revision.as_str().to_owned()).or_insert_with(|| (revision, Vec::new())).1.push(deed);
        }
        for (revision, deeds) in by_revision.into_values() {
            let n_deeds = deeds.len();
            let accounts: Vec<Account> = deeds.into_iter().map(|deed| self.account(deed)).collect();
            let repaired = self.write_down(&revision, &accounts);
            for account in &accounts {
                if let Some((stage, name)) = &account.displaced {
                    discard(stage, name);
                }
            }
            self.shared.n_open.fetch_sub(n_deeds, Ordering::Relaxed);
            (self.tell)(repaired);
        }
    }

    /// What a deed was about, from what it displaced.
    fn account(&mut self, known: Known) -> Account {
        let Known { deed, actor } = known;
        let known = deed.likeness;
        let mut changes = Vec::new();
        let mut stood = None;
        let (observation, displaced) = match deed.what {
            What::Placed => (Some(Observation::Absent), None),
            What::Permissions(_, before) => {
                // Nothing was displaced.
                changes = file::permission_changes(&known.common.ownership, &before, known.common.names);
                let permissions = Permissions { uid: before.uid, gid: before.gid, mode: before.mode };
                stood = Some(standing(&known, permissions));
                (None, None)
            }
            What::Exchanged(name) => {
                hand_on(&deed.stage, &name, &path_of(&deed.resource), deed.directory.as_fd());
                (Some(displaced(&deed.stage, &name)), Some((deed.stage, name)))
            }
        };
        let stood = stood.or_else(|| before(&known, observation.as_ref()?));
        let place = stood.map(|stood| (path_of(&deed.resource), stood, after(&known)));
        let mut account = Account {
            resource: deed.resource,
            changes,
            action: Action::Update,
            backup: None,
            notifies: known.notifies.to_vec(),
            actor,
            displaced,
            place,
            time: deed.time,
            took_us: deed.took_us,
        };
        let desired = file::Desired { path: path_of(&account.resource), ensure: Ensure::Present(known.spec()) };
        if let Some(observation) = &observation {
            if let Verdict::Drift(drift) = file::diff(&desired, observation, known.common.names, &[]) {
                account.changes = drift.changes;
                account.action = drift.action;
            }
            match self.keep(&account.resource, observation, &known.content) {
                Ok(backup) => account.backup = backup,
                // It stays where it is, and the next start tries again.
                Err(NotKept) => account.displaced = None,
            }
        }
        if account.changes.is_empty() {
            // Whoever still had the displaced file open wrote to it since.
            account.changes.push(Change::value("content", Some("changed again since".to_owned()), None));
        }
        account
    }

    /// Keeps what was displaced, unless it is what is declared, or stood where a secret belongs: it may be the one before it.
    fn keep(
        &mut self,
        resource: &ResourceId,
        observation: &Observation<place::Observed>,
        declared: &Content,
    ) -> Result<Option<String>, NotKept> {
        let kept = match observation {
            Observation::Absent => return Ok(None),
            Observation::Present(_) if declared.is_secret() => return Ok(None),
            Observation::Unknown(why) => {
                tracing::error!(%resource, "what was displaced could not be kept: {why}");
                return Err(NotKept);
            }
            Observation::Present(observed) => match &observed.node {
                place::Node::File(content) if declared.is(content) => return Ok(None),
                place::Node::File(content) => self.record.keep(content),
                place::Node::Symlink(target) => {
                    self.record.keep(std::os::unix::ffi::OsStrExt::as_bytes(target.as_os_str()))
                }
                place::Node::Unread => {
                    tracing::warn!(%resource, "what was displaced is too long to keep a backup of");
                    return Ok(None);
                }
                place::Node::Directory | place::Node::Special => return Ok(None),
            },
        };
        kept.map(Some).map_err(|error| {
            tracing::error!(%resource, "what was displaced could not be kept: {}", chain(&error));
            NotKept
        })
    }

    fn write_down(&mut self, revision: &Revision, accounts: &[Account]) -> Vec<Repaired> {
        let repairs: Vec<Repair<'_>> = accounts
            .iter()
            .map(|account| Repair {
                resource: &account.resource,
                action: account.action,
                changes: &account.changes,
                backup: account.backup.as_deref(),
                notifies: &account.notifies,
                who: account.actor.as_ref(),
                place: account.place.as_ref().map(|(path, before, after)| (path, before, after)),
                time: account.time,
                duration_us: account.took_us,
            })
            .collect();
        let run = RunInfo {
            id: None,
            started: accounts.first().map_or_else(Timestamp::now, |account| account.time),
            revision: revision.clone(),
            cause: Cause::Drift,
            full: false,
        };
        let steps = self.record.record_repairs(&run, &repairs).unwrap_or_else(|error| {
            self.record.note_trouble(&error);
            Vec::new()
        });
        let mut steps = steps.into_iter();
        accounts
            .iter()
            .map(|account| Repaired {
                resource: account.resource.clone(),
                step: steps.next(),
                changes: account.changes.clone(),
                action: account.action,
                backup: account.backup.clone(),
                notifies: account.notifies.clone(),
                actor: account.actor.clone(),
                took_us: account.took_us,
            })
            .collect()
    }

    /// Guards files: makes their pools and copies, and shows the new table to the reflex.
    fn arm(&mut self, revision: &Revision, declared: Vec<Declared>, arming: Arming, ordered: super::Ordered) {
        if arming == Arming::Besides {
            let table = self.shared.table();
            if !(table.live && table.revision.as_deref() == Some(revision)) {
                return;
            }
        }
        let mut plan = Plan::new(&mut self.stages, declared);
        for stage in self.stages.take_fresh() {
            self.take_up(&stage, &plan, revision);
        }
        match arming {
            Arming::Besides => plan.add_to(&mut self.shared.table()),
            Arming::Only => {
                // Not live while the copies change hands, which may take a while: events become hints meanwhile.
                let old = self.shared.table().take_pools();
                let orphans = plan.take_over(old);
                plan.replace(&mut self.shared.table(), revision);
                for (stage, name) in orphans {
                    discard(&stage, &name);
                }
            }
        }
        let mut table = self.shared.table();
        table.withdraw_after(ordered.n_withdrawals);
        table.live = self.shared.generation.load(Ordering::SeqCst) == ordered.generation;
        let is_live = table.live;
        drop(table);
        if is_live {
            self.lay_out(|_| true);
        }
        if arming == Arming::Only {
            memory::give_back();
        }
    }

    /// Lays out the copies that are missing now in such pools. Those that are used up meanwhile are for the next time: drift that
    /// goes on must not keep what was put back from being recorded.
    fn lay_out(&mut self, which: fn(&Pool) -> bool) -> Laid {
        let mut left: usize = self.shared.table().pools.iter().filter(|pool| which(pool)).map(Pool::n_missing).sum();
        // Mounts of stages that cannot be written to; the others get their copies.
        let mut failed: Vec<u64> = Vec::new();
        while left > 0 {
            let missing = self.missing(|pool| which(pool) && !failed.contains(&pool.stage.mount()));
            let Some((stage, _)) = missing.first() else { break };
            let stage = Arc::clone(stage);
            let batch: Vec<Missing> =
                missing.into_iter().filter(|(at, _)| Arc::ptr_eq(at, &stage)).map(|(_, missing)| missing).collect();
            left = left.saturating_sub(batch.len());
            let names: Vec<String> = batch.iter().map(|m| Pool::copy_name(m.key, m.number)).collect();
            let copies: Vec<Copy<'_>> = batch.iter().zip(&names).map(|(m, name)| m.likeness.copy(name)).collect();
            if let Err(error) = stage.enter().and_then(|entered| entered.write(&copies)) {
                tracing::warn!(stage = %stage.path().display(), "cannot lay out copies: {error}; ordinary runs repair meanwhile");
                failed.push(stage.mount());
                continue;
            }
            let mut table = self.shared.table();
            for missing in batch {
                // A pool that went meanwhile leaves its copy to the next arming.
                if let Some(pool) = table.pools.get_mut(missing.pool).filter(|pool| pool.key == missing.key) {
                    // Most have one: nothing is set aside for more.
                    pool.ready.reserve_exact(1);
                    pool.ready.push(missing.number);
                }
            }
        }
        if failed.is_empty() {
            return Laid::Out;
        }
        // Whoever owns the policy sees to it when it is its contents that cannot be read.
        (self.tell)(Vec::new());
        Laid::InPart
    }

    /// Copies to be made next, of one batch at most.
    fn missing(&mut self, which: impl Fn(&Pool) -> bool) -> Vec<(Arc<Stage>, Missing)> {
        let table = self.shared.table();
        let mut missing = Vec::new();
        for (index, pool) in table.pools.iter().enumerate().filter(|(_, pool)| which(pool)) {
            for _ in 0..pool.n_next() {
                self.next_number += 1;
                let one = Missing {
                    pool: index,
                    key: pool.key,
                    number: self.next_number,
                    likeness: Arc::clone(&pool.likeness),
                };
                missing.push((Arc::clone(&pool.stage), one));
                if missing.len() == BATCH {
                    return missing;
                }
            }
        }
        missing
    }

    /// What is on a stage that nobody laid out: copies of an earlier process, which go, and what was displaced just before a
    /// kill, which is kept, recorded and told.
    fn take_up(&mut self, stage: &Arc<Stage>, plan: &Plan, revision: &Revision) {
        let names = match stage.enter().and_then(|entered| entered.leftovers()) {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(stage = %stage.path().display(), "cannot look at what is left there: {error}");
                return;
            }
        };
        let mut accounts = Vec::new();
        for name in names {
            let known = PoolKey::of_copy(&name).and_then(|key| plan.by_name.get(&key));
            if known.is_some_and(|(likeness, _)| is_copy(stage, &name, likeness)) {
                discard(stage, &name);
                continue;
            }
            let found = displaced(stage, &name);
            match known.and_then(|(known, only)| Some((known, only.clone()?))) {
                Some((known, only)) => {
                    let desired = file::Desired { path: path_of(&only), ensure: Ensure::Present(known.spec()) };
                    if let Verdict::Drift(drift) = file::diff(&desired, &found, known.common.names, &[]) {
                        let Ok(backup) = self.keep(&only, &found, &known.content) else { continue };
                        accounts.push(Account {
                            place: before(known, &found).map(|stood| (desired.path, stood, after(known))),
                            resource: only,
                            changes: drift.changes,
                            action: drift.action,
                            backup,
                            notifies: known.notifies.to_vec(),
                            actor: None,
                            displaced: Some((Arc::clone(stage), name)),
                            time: Timestamp::now(),
                            took_us: 0,
                        });
                    } else {
                        discard(stage, &name);
                    }
                }
                None => self.keep_unexplained(stage, &name, &found),
            }
        }
        if accounts.is_empty() {
            return;
        }
        tracing::info!(n = accounts.len(), "recording repairs that a kill kept from being recorded");
        let repaired = self.write_down(revision, &accounts);
        for account in &accounts {
            if let Some((stage, name)) = &account.displaced {
                discard(stage, name);
            }
        }
        (self.tell)(repaired);
    }

    /// A copy of a policy that is no longer in force, or something displaced that no single file explains.
    fn keep_unexplained(&mut self, stage: &Arc<Stage>, name: &str, found: &Observation<place::Observed>) {
        let Observation::Present(observed) = found else { return discard(stage, name) };
        if PoolKey::is_of_secret(name) {
            return discard(stage, name);
        }
        let kept = match &observed.node {
            place::Node::File(content) => self.record.keep(content).map(Some),
            place::Node::Symlink(_) | place::Node::Special | place::Node::Unread => Ok(None),
            place::Node::Directory => {
                tracing::warn!(stage = %stage.path().display(), name, "a directory was left on the stage; it stays there");
                return;
            }
        };
        match kept {
            Ok(backup) => {
                tracing::info!(stage = %stage.path().display(), name, backup = backup.as_deref(), "cleared from the stage");
                discard(stage, name);
            }
            Err(error) => tracing::error!(name, "what is left on the stage cannot be kept: {}", chain(&error)),
        }
    }
}

/// Something could not be put into the backup store; why was said.
struct NotKept;

/// Whether all copies could be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Laid {
    Out,
    InPart,
}

/// Whether the keeper goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Stop,
}

/// A deed, and who made it necessary.
struct Known {
    deed: Deed,
    actor: Option<Actor>,
}

/// A deed, as it is told.
struct Account {
    resource: ResourceId,
    changes: Vec<Change>,
    action: Action,
    backup: Option<String>,
    notifies: Vec<(Notify, UnitName)>,
    actor: Option<Actor>,
    displaced: Option<(Arc<Stage>, String)>,
    place: Option<(AbsPath, Stood, Stood)>,
    time: Timestamp,
    took_us: u64,
}

struct Missing {
    pool: usize,
    key: PoolKey,
    number: u64,
    likeness: Arc<Likeness>,
}

/// What a repair displaced, as it may be recorded; `None` when that cannot be told.
fn before(known: &Likeness, found: &Observation<place::Observed>) -> Option<Stood> {
    let stood = Stood::of(found)?;
    Some(if known.content.is_secret() { stood.hidden() } else { stood })
}

/// What a repair leaves.
fn after(known: &Likeness) -> Stood {
    standing(known, known.common.permissions)
}

/// The declared content with some owner and mode.
fn standing(known: &Likeness, permissions: Permissions) -> Stood {
    let content = &known.content;
    if content.is_secret() {
        Stood::Hidden { permissions }
    } else {
        Stood::File { digest: content.digest(), permissions }
    }
}

/// A file resource is named by its path.
fn path_of(resource: &ResourceId) -> AbsPath {
    AbsPath::new(&resource.name).expect("a file resource is named by a valid path")
}

/// Syncs the directories that deeds changed. Returns what is durable, and what is not.
fn sync(deeds: Vec<Known>) -> (Vec<Known>, Vec<Known>) {
    let mut directories: HashMap<(u64, u64), bool> = HashMap::new();
    let mut stages: HashMap<u64, bool> = HashMap::new();
    deeds.into_iter().partition(|Known { deed, .. }| {
        let is_synced = match &deed.what {
            What::Permissions(file, _) => file.sync_all().is_ok(),
            What::Exchanged(_) | What::Placed => {
                let identity = stat_of(&deed.directory).map(|metadata| metadata.identity).unwrap_or_default();
                let target = *directories.entry(identity).or_insert_with(|| sync_directory(&deed.directory).is_ok());
                // A stage that cannot be entered any more went with its mount, and the directory with it.
                let stage = *stages
                    .entry(deed.stage.mount())
                    .or_insert_with(|| deed.stage.enter().and_then(|entered| entered.sync()).is_ok());
                target && stage
            }
        };
        if !is_synced {
            tracing::error!(resource = %deed.resource, "put back, but the disk does not take it yet; trying again");
        }
        is_synced
    })
}
