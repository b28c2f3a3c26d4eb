//! The patient half, on a thread of its own: lays out copies, and finishes what the reflex began.
//!
//! For what was put back, in this order: new copies, because the next drift may come at once; the directories to the disk;
//! what was displaced to the backup store; the history and what is owed, in one transaction; only then is what was displaced
//! removed from the stage, and the repair told. A kill in between leaves it on the stage, and [`Keeper::take_up`] finds it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::reflex::{Deed, What};
use super::table::{Entry, Pool, Table};
use super::{Arming, Declared, Order, Places, Repaired, Shared};
use crate::converge::Cause;
use crate::host::root::{FileType, Metadata, Permissions, stat_of, sync_directory};
use crate::host::stage::{Copy, Entered, Stage, Unfit};
use crate::policy::Revision;
use crate::record::{Record, Repair, RunInfo};
use crate::resource::{
    AbsPath, Action, Change, Ensure, Names, Notify, Observation, Principal, ResourceId, UnitName, Verdict, chain,
    digest, file, place,
};

/// Longest content of which copies are laid out.
const LONGEST: usize = 1024 * 1024;
/// Most bytes of copies, over all stages.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Most copies, over all stages.
const MOST_COPIES: usize = 20_000;
/// Copies for each file of a pool, when there are few files.
const FEW: usize = 1000;
/// Copies that are written together.
const BATCH: usize = 256;
/// First and longest time between two attempts to sync what could not be synced.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Directory of the stage in the state directory.
const HOME: &str = "stage";

type Tell = Box<dyn Fn(Vec<Repaired>) + Send>;

/// See the module's text.
pub(super) struct Keeper {
    places: Places,
    record: Record,
    shared: Arc<Shared>,
    tell: Tell,
    /// By mount. Where none can be had, `None`, so that it is said once.
    stages: HashMap<u64, Option<Arc<Stage>>>,
    /// What is declared, by the key of its pool; for deeds that outlive the table.
    known: HashMap<Arc<str>, Known>,
    /// Mounts whose stage was looked at.
    taken_up: HashSet<u64>,
    next_number: u64,
    /// What could not be made durable yet.
    open: Vec<Deed>,
    retry: Option<(Instant, Duration)>,
}

/// What the files of a pool are.
#[derive(Clone)]
struct Known {
    spec: file::Spec,
    names: Names,
    label: Option<Arc<str>>,
    notifies: Vec<(Notify, UnitName)>,
    /// The file, when it is the only one.
    only: Option<ResourceId>,
}

/// What makes two files of one pool: equal content in the same memory, and the same permissions.
#[derive(PartialEq, Eq, Hash)]
struct Likeness {
    content: (*const u8, usize),
    owner: Principal,
    group: Principal,
    names: (Option<u32>, Option<u32>),
    mode: u32,
    label: Option<Arc<str>>,
    mount: u64,
    /// Set for a file that something is owed for: it has a pool of its own.
    alone: Option<ResourceId>,
}

impl Keeper {
    pub(super) fn new(places: Places, record: Record, shared: Arc<Shared>, tell: Tell) -> Self {
        Self {
            places,
            record,
            shared,
            tell,
            stages: HashMap::new(),
            known: HashMap::new(),
            taken_up: HashSet::new(),
            // No number of an earlier process, whose copies may still be there.
            next_number: u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0),
            open: Vec::new(),
            retry: None,
        }
    }

    /// Works until told to stop, or until nobody can tell it anything any more.
    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let first = match self.retry {
                None => orders.recv().ok(),
                Some((at, _)) => match orders.recv_timeout(at.saturating_duration_since(Instant::now())) {
                    Ok(order) => Some(order),
                    Err(RecvTimeoutError::Timeout) => {
                        let open = std::mem::take(&mut self.open);
                        self.finish(open);
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => None,
                },
            };
            let Some(first) = first else { return };
            let mut deeds = std::mem::take(&mut self.open);
            let mut stop = false;
            // Whatever has come meanwhile shares the syncing.
            for order in std::iter::once(first).chain(orders.try_iter()) {
                match order {
                    Order::Deed(deed) => deeds.push(deed),
                    Order::Arm { revision, declared, arming, ordered } => {
                        self.finish(std::mem::take(&mut deeds));
                        self.arm(&revision, declared, arming, ordered);
                    }
                    Order::Unsound { stage, name } => discard(&stage, &name),
                    Order::Stop => stop = true,
                }
            }
            self.finish(deeds);
            if stop {
                return;
            }
        }
    }

    /// Makes deeds durable, records and tells them.
    fn finish(&mut self, deeds: Vec<Deed>) {
        if deeds.is_empty() {
            return;
        }
        self.lay_out();
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

    fn record_and_tell(&mut self, deeds: Vec<Deed>) {
        let mut by_revision: BTreeMap<String, (Arc<Revision>, Vec<Deed>)> = BTreeMap::new();
        for deed in deeds {
            let Some(revision) = deed.revision.clone() else { continue };
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
    fn account(&mut self, deed: Deed) -> Account {
        let known = self.known.get(&deed.key).cloned();
        let (observation, displaced) = match deed.what {
            What::Placed => (Observation::Absent, None),
            What::Permissions(_, before) => {
                let content = known.as_ref().map(|known| known.spec.content.to_vec()).unwrap_or_default();
                (Observation::Present(place::Observed { node: place::Node::File(content), metadata: before }), None)
            }
            What::Exchanged(name) => {
                hand_on(&deed.stage, &name, &deed.resource, deed.directory.as_fd());
                (displaced(&deed.stage, &name), Some((deed.stage, name)))
            }
        };
        let mut account = Account {
            resource: deed.resource,
            changes: Vec::new(),
            action: Action::Update,
            backup: None,
            notifies: Vec::new(),
            displaced,
            time: deed.time,
            took_us: deed.took_us,
        };
        if let Some(known) = known {
            account.notifies = known.notifies;
            let desired =
                file::Desired { path: path_of(&account.resource), ensure: Ensure::Present(known.spec.clone()) };
            if let Verdict::Drift(drift) = file::diff(&desired, &observation, known.names, &[]) {
                account.changes = drift.changes;
                account.action = drift.action;
            }
            account.backup = self.keep(&account.resource, &observation, &known.spec.content);
        }
        if account.changes.is_empty() {
            // Whoever still had the displaced file open wrote to it since.
            account.changes.push(Change::value("content", Some("changed again since".to_owned()), None));
        }
        account
    }

    /// Keeps what was displaced, unless it is what is declared.
    fn keep(
        &mut self,
        resource: &ResourceId,
        observation: &Observation<place::Observed>,
        declared: &[u8],
    ) -> Option<String> {
        let Observation::Present(observed) = observation else { return None };
        let kept = match &observed.node {
            place::Node::File(content) if content != declared => self.record.keep(content),
            place::Node::Symlink(target) => {
                self.record.keep(std::os::unix::ffi::OsStrExt::as_bytes(target.as_os_str()))
            }
            place::Node::File(_) | place::Node::Unread | place::Node::Directory | place::Node::Special => return None,
        };
        kept.inspect_err(|error| tracing::error!(%resource, "what was displaced could not be kept: {}", chain(error)))
            .ok()
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
        let mut plan = Plan::default();
        for file in declared {
            self.plan(&mut plan, file);
        }
        self.take_up_all(&plan, revision);
        plan.allot();
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
            self.lay_out();
        }
        self.forget_unknown();
    }

    /// Finds the pool and the directory of a file. What cannot be guarded is left out.
    fn plan(&mut self, plan: &mut Plan, file: Declared) {
        let (Some(uid), Some(gid)) = (file.names.uid, file.names.gid) else { return };
        if file.spec.content.len() > LONGEST {
            return;
        }
        let Some(parent) = file.path.parent() else { return };
        let place = match plan.places.get(&parent) {
            Some(place) => place.clone(),
            None => {
                let place = self.place(plan, &parent);
                plan.places.insert(parent, place.clone());
                place
            }
        };
        let Some((directory, stage)) = place else { return };
        let label = match self.places.root.label_of_successor(&file.path) {
            Ok(label) => label.map(Arc::from),
            Err(error) => {
                tracing::warn!(resource = %file.resource, "left to ordinary runs: its label cannot be told: {error}");
                return;
            }
        };
        let likeness = Likeness {
            content: (file.spec.content.as_ptr(), file.spec.content.len()),
            owner: file.spec.owner.clone(),
            group: file.spec.group.clone(),
            names: (file.names.uid, file.names.gid),
            mode: file.spec.mode.bits(),
            label: label.clone(),
            mount: stage.mount(),
            alone: (!file.notifies.is_empty()).then(|| file.resource.clone()),
        };
        let next = u32::try_from(plan.pools.len()).unwrap_or(u32::MAX);
        let pool = *plan.likenesses.entry(likeness).or_insert(next);
        if pool == next {
            let permissions = Permissions { uid, gid, mode: file.spec.mode };
            let key = key(&file, permissions, label.as_deref());
            plan.pools.push(Pool {
                permissions,
                label: label.clone(),
                notifies: file.notifies.clone().into_boxed_slice(),
                stage,
                key: Arc::clone(&key),
                ready: Vec::new(),
                wanted: 0,
                spec: file.spec.clone(),
            });
            plan.n_files.push(0);
            let Declared { resource, spec, names, notifies, .. } = file.clone();
            self.known.insert(key, Known { spec, names, label, notifies, only: Some(resource) });
        } else if let Some(known) =
            usize::try_from(pool).ok().and_then(|i| plan.pools.get(i)).and_then(|pool| self.known.get_mut(&pool.key))
        {
            known.only = None;
        }
        if let Some(n) = usize::try_from(pool).ok().and_then(|i| plan.n_files.get_mut(i)) {
            *n += 1;
        }
        plan.entries.push(Entry { resource: file.resource, pool, directory, withdrawn: false });
    }

    /// The identity of a directory, and the stage of its mount.
    fn place(&mut self, plan: &mut Plan, parent: &AbsPath) -> Option<(u32, Arc<Stage>)> {
        let directory = self.places.root.directory(parent.as_path()).ok()??;
        let mount = crate::host::root::mount_of(directory.as_fd()).ok()?;
        let stage = match self.stages.get(&mount) {
            Some(known) => known.clone(),
            None => {
                let opened = self.open_stage(directory.as_fd(), parent);
                self.stages.insert(mount, opened.clone());
                opened
            }
        }?;
        let identity = stat_of(&directory).ok()?.identity;
        let index = u32::try_from(plan.directories.len()).ok()?;
        plan.directories.push(identity);
        Some((index, stage))
    }

    fn open_stage(&self, directory: std::os::fd::BorrowedFd<'_>, parent: &AbsPath) -> Option<Arc<Stage>> {
        match Stage::open(&self.places.root, &self.places.state.join(HOME), directory) {
            Ok(stage) => Some(Arc::new(stage)),
            Err(error @ (Unfit::Btrfs | Unfit::NoExchange)) => {
                tracing::info!(%parent, "files there are repaired by ordinary runs: {error}");
                None
            }
            Err(error @ (Unfit::Io { .. } | Unfit::NotOurs(_))) => {
                tracing::warn!(%parent, "files there are repaired by ordinary runs: {}", chain(&error));
                None
            }
        }
    }

    /// Lays out the copies that are missing.
    fn lay_out(&mut self) {
        loop {
            let missing = self.missing();
            let Some((stage, _)) = missing.first() else { return };
            let stage = Arc::clone(stage);
            let batch: Vec<Missing> =
                missing.into_iter().filter(|(at, _)| Arc::ptr_eq(at, &stage)).map(|(_, missing)| missing).collect();
            let names: Vec<String> = batch.iter().map(|m| Pool::copy_name(&m.key, m.number)).collect();
            let copies: Vec<Copy<'_>> = batch
                .iter()
                .zip(&names)
                .map(|(m, name)| Copy {
                    name,
                    content: &m.content,
                    permissions: m.permissions,
                    label: m.label.as_deref(),
                })
                .collect();
            if let Err(error) = stage.enter().and_then(|entered| entered.write(&copies)) {
                tracing::warn!(stage = %stage.path().display(), "cannot lay out copies: {error}; ordinary runs repair meanwhile");
                return;
            }
            let mut table = self.shared.table();
            for missing in batch {
                // A pool that went meanwhile leaves its copy to the next arming.
                if let Some(pool) = table.pools.get_mut(missing.pool).filter(|pool| pool.key == missing.key) {
                    pool.ready.push(missing.number);
                }
            }
        }
    }

    /// Copies to be made next, of one batch at most.
    fn missing(&mut self) -> Vec<(Arc<Stage>, Missing)> {
        let table = self.shared.table();
        let mut missing = Vec::new();
        for (index, pool) in table.pools.iter().enumerate() {
            let wanted = usize::try_from(pool.wanted).unwrap_or(usize::MAX);
            for _ in pool.ready.len()..wanted {
                self.next_number += 1;
                let one = Missing {
                    pool: index,
                    key: Arc::clone(&pool.key),
                    number: self.next_number,
                    content: Arc::clone(&pool.spec.content),
                    permissions: pool.permissions,
                    label: pool.label.clone(),
                };
                missing.push((Arc::clone(&pool.stage), one));
                if missing.len() == BATCH {
                    return missing;
                }
            }
        }
        missing
    }

    /// Looks at what an earlier process left on the stages of a plan, once for each stage.
    fn take_up_all(&mut self, plan: &Plan, revision: &Revision) {
        let mut stages: Vec<Arc<Stage>> = Vec::new();
        for pool in &plan.pools {
            if !stages.iter().any(|stage| Arc::ptr_eq(stage, &pool.stage)) {
                stages.push(Arc::clone(&pool.stage));
            }
        }
        for stage in stages {
            if self.taken_up.insert(stage.mount()) {
                self.take_up(&stage, revision);
            }
        }
    }

    /// What is on a stage that nobody laid out: copies of an earlier process, which go, and what was displaced just before a
    /// kill, which is kept, recorded and told.
    fn take_up(&mut self, stage: &Arc<Stage>, revision: &Revision) {
        let names = match stage.enter().and_then(|entered| entered.leftovers()) {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(stage = %stage.path().display(), "cannot look at what is left there: {error}");
                return;
            }
        };
        let mut accounts = Vec::new();
        for name in names {
            let key = name.split_once('-').map_or("", |(key, _)| key);
            let known = self.known.get(key).cloned();
            let is_copy = known.as_ref().is_some_and(|known| is_copy(stage, &name, known));
            let found = displaced(stage, &name);
            match known.and_then(|known| known.only.clone().map(|only| (known, only))) {
                _ if is_copy => discard(stage, &name),
                Some((known, only)) => {
                    let desired = file::Desired { path: path_of(&only), ensure: Ensure::Present(known.spec.clone()) };
                    if let Verdict::Drift(drift) = file::diff(&desired, &found, known.names, &[]) {
                        let backup = self.keep(&only, &found, &known.spec.content);
                        accounts.push(Account {
                            resource: only,
                            changes: drift.changes,
                            action: drift.action,
                            backup,
                            notifies: known.notifies,
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

    /// Forgets what deeds can no longer refer to.
    fn forget_unknown(&mut self) {
        let table = self.shared.table();
        let mut keep: HashSet<Arc<str>> = table.pools.iter().map(|pool| Arc::clone(&pool.key)).collect();
        drop(table);
        keep.extend(self.open.iter().map(|deed| Arc::clone(&deed.key)));
        // Deeds may be on their way: those are accounted without what they were declared as.
        self.known.retain(|key, _| keep.contains(key));
    }
}

/// A deed, as it is told.
struct Account {
    resource: ResourceId,
    changes: Vec<Change>,
    action: Action,
    backup: Option<String>,
    notifies: Vec<(Notify, UnitName)>,
    displaced: Option<(Arc<Stage>, String)>,
    time: Timestamp,
    took_us: u64,
}

struct Missing {
    pool: usize,
    key: Arc<str>,
    number: u64,
    content: Arc<[u8]>,
    permissions: Permissions,
    label: Option<Arc<str>>,
}

/// A table in the making.
#[derive(Default)]
struct Plan {
    entries: Vec<Entry>,
    pools: Vec<Pool>,
    n_files: Vec<usize>,
    directories: Vec<(u64, u64)>,
    likenesses: HashMap<Likeness, u32>,
    places: HashMap<AbsPath, Option<(u32, Arc<Stage>)>>,
}

impl Plan {
    /// Says how many copies each pool gets, within the budget.
    fn allot(&mut self) {
        let n_all: usize = self.n_files.iter().sum();
        let each = if n_all <= FEW { 2 } else { 1 };
        let (mut n_copies, mut n_bytes) = (0_usize, 0_usize);
        for (pool, n_files) in self.pools.iter_mut().zip(&self.n_files) {
            let wanted = (n_files * each).clamp(1, 64);
            let bytes = wanted.saturating_mul(pool.spec.content.len().max(4096));
            if n_copies + wanted > MOST_COPIES || n_bytes.saturating_add(bytes) > MOST_BYTES {
                continue;
            }
            n_copies += wanted;
            n_bytes += bytes;
            pool.wanted = u32::try_from(wanted).unwrap_or(1);
        }
    }

    /// Takes over the copies of an earlier table where they fit. Returns those that fit nowhere.
    fn take_over(&mut self, old: Vec<Pool>) -> Vec<(Arc<Stage>, String)> {
        let mut old: HashMap<Arc<str>, Pool> = old.into_iter().map(|pool| (Arc::clone(&pool.key), pool)).collect();
        for pool in &mut self.pools {
            if let Some(old) = old.remove(&pool.key).filter(|old| Arc::ptr_eq(&old.stage, &pool.stage)) {
                pool.ready = old.ready;
                pool.wanted = pool.wanted.max(old.wanted);
            }
        }
        old.into_values()
            .flat_map(|pool| {
                let Pool { key, stage, ready, .. } = pool;
                ready.into_iter().map(move |number| (Arc::clone(&stage), Pool::copy_name(&key, number)))
            })
            .collect()
    }

    /// Makes this what the table guards.
    fn replace(mut self, table: &mut Table, revision: &Revision) {
        self.entries.sort_by(|a, b| a.resource.cmp(&b.resource));
        self.entries.shrink_to_fit();
        table.revision = Some(Arc::new(revision.clone()));
        table.entries = self.entries;
        table.pools = self.pools;
        table.directories = self.directories;
    }

    /// Adds this to what the table guards.
    fn add_to(mut self, table: &mut Table) {
        let index = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let n_directories = index(table.directories.len());
        table.directories.append(&mut self.directories);
        let mut places = Vec::with_capacity(self.pools.len());
        for pool in self.pools {
            let at =
                table.pools.iter().position(|known| known.key == pool.key && Arc::ptr_eq(&known.stage, &pool.stage));
            places.push(index(at.unwrap_or(table.pools.len())));
            if at.is_none() {
                table.pools.push(pool);
            }
        }
        for mut entry in self.entries {
            entry.directory = entry.directory.saturating_add(n_directories);
            entry.pool = usize::try_from(entry.pool).ok().and_then(|i| places.get(i)).copied().unwrap_or(u32::MAX);
            match table.entries.binary_search_by(|known| known.resource.cmp(&entry.resource)) {
                Ok(at) => {
                    if let Some(place) = table.entries.get_mut(at) {
                        *place = entry;
                    }
                }
                Err(at) => table.entries.insert(at, entry),
            }
        }
    }
}

/// Names the pool of a file on the stage. It must be the same in every process that runs under the same policy.
fn key(file: &Declared, permissions: Permissions, label: Option<&str>) -> Arc<str> {
    let mut text = format!(
        "{} {} {} {} {} {}",
        digest(&file.spec.content),
        permissions.uid,
        permissions.gid,
        permissions.mode,
        file.spec.owner,
        file.spec.group
    );
    text.extend(label);
    if !file.notifies.is_empty() {
        text.push_str(&file.resource.to_string());
    }
    let digest = digest(text.as_bytes());
    Arc::from(digest.get(..16).unwrap_or(&digest))
}

/// A file resource is named by its path.
fn path_of(resource: &ResourceId) -> AbsPath {
    AbsPath::new(&resource.name).expect("a file resource is named by a valid path")
}

/// Syncs the directories that deeds changed. Returns what is durable, and what is not.
fn sync(deeds: Vec<Deed>) -> (Vec<Deed>, Vec<Deed>) {
    let mut directories: HashMap<(u64, u64), bool> = HashMap::new();
    let mut stages: HashMap<u64, bool> = HashMap::new();
    deeds.into_iter().partition(|deed| {
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

/// What is on the stage under a name, as an observation.
fn displaced(stage: &Stage, name: &str) -> Observation<place::Observed> {
    let observe = |entered: &Entered<'_>| -> std::io::Result<Observation<place::Observed>> {
        let Some(metadata) = entered.metadata(name)? else { return Ok(Observation::Absent) };
        let node = match metadata.file_type {
            FileType::File => match entered.read(name, place::MAX_CONTENT) {
                Ok(content) => place::Node::File(content),
                Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => place::Node::Unread,
                Err(error) => return Err(error),
            },
            FileType::Directory => place::Node::Directory,
            FileType::Symlink => place::Node::Symlink(entered.read_link(name)?),
            FileType::Special => place::Node::Special,
        };
        Ok(Observation::Present(place::Observed { node, metadata }))
    };
    match stage.enter().and_then(|entered| observe(&entered)) {
        Ok(observation) => observation,
        Err(error) => Observation::Unknown(format!("cannot read what was displaced: {error}")),
    }
}

/// Gives the file that was put in place the `user.*` attributes of the displaced one: nobody declares them, and a replacement
/// keeps them.
fn hand_on(stage: &Stage, displaced: &str, resource: &ResourceId, directory: BorrowedFd<'_>) {
    let path = path_of(resource);
    let Some(name) = path.as_path().file_name() else { return };
    if let Err(error) = stage.enter().and_then(|entered| entered.hand_on(displaced, directory, name)) {
        tracing::warn!(%resource, "the `user.*` attributes of what was displaced are lost: {error}");
    }
}

/// Whether what is on the stage is a copy as it was laid out.
fn is_copy(stage: &Stage, name: &str, known: &Known) -> bool {
    let (Some(uid), Some(gid)) = (known.names.uid, known.names.gid) else { return false };
    let permissions = Permissions { uid, gid, mode: known.spec.mode };
    let copy = Copy { name, content: &known.spec.content, permissions, label: known.label.as_deref() };
    stage.enter().and_then(|entered| entered.is_sound(&copy, &mut Vec::new())).unwrap_or(false)
}

/// Removes something from a stage. What cannot be removed now is found by the next process.
fn discard(stage: &Stage, name: &str) {
    let remove = |entered: &Entered<'_>| match entered.metadata(name)? {
        None => Ok(()),
        Some(Metadata { file_type: FileType::Directory, .. }) => entered.remove_directory(name),
        Some(_) => entered.remove(name),
    };
    if let Err(error) = stage.enter().and_then(|entered| remove(&entered)) {
        tracing::warn!(stage = %stage.path().display(), name, "cannot be removed from the stage: {error}");
    }
}
