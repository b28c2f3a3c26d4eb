//! What is to be guarded, from what is declared: pools, places and the number of copies, before anything is written.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::Declared;
use super::stages::Stages;
use super::table::{Common, Entry, Likeness, MOST_OF_ONE, Pool, PoolKey, Spent, Table};
use crate::host::root::{Permissions, mount_of, stat_of};
use crate::host::stage::Stage;
use crate::policy::Revision;
use crate::resource::{AbsPath, ResourceId, file};

/// Longest content of which copies are laid out.
const LONGEST: usize = 1024 * 1024;
/// With no more files than these, there is room for several copies of each: who edits a file again at once does not wait for
/// the disk.
const VERY_FEW: usize = 128;
const FEW: usize = 1000;
/// With still fewer, there is room for as many as this of all together: a first burst of drift does not wait for the disk at all.
const ROOM: usize = 1024;

/// Where the files of one directory are, and where their copies lie.
#[derive(Clone)]
struct Place {
    /// Index into the directories.
    directory: u32,
    stage: Arc<Stage>,
}

/// A table in the making.
#[derive(Default)]
pub(super) struct Plan {
    entries: Vec<Entry>,
    pub(super) pools: Vec<Pool>,
    n_files: Vec<usize>,
    spent: Spent,
    directories: Vec<(u64, u64)>,
    /// Pools by key and mount.
    by_key: HashMap<(PoolKey, u64), u32>,
    /// What the files of a pool are and, when it is a single one, which: what is found on a stage is named by the key alone.
    pub(super) by_name: HashMap<PoolKey, (Arc<Likeness>, Option<ResourceId>)>,
    places: HashMap<AbsPath, Option<Place>>,
    common: HashSet<Arc<Common>>,
}

impl Plan {
    /// Plans for what is declared. What cannot be guarded is left out.
    pub(super) fn new(stages: &mut Stages, declared: Vec<Declared>) -> Self {
        let mut plan = Self::default();
        for file in declared {
            plan.add(stages, file);
        }
        plan.allot();
        plan
    }

    fn add(&mut self, stages: &mut Stages, file: Declared) {
        let (Some(uid), Some(gid)) = (file.names.uid, file.names.gid) else { return };
        if file.spec.content.len() > LONGEST {
            return;
        }
        let Some(Place { directory, stage }) = file.path.parent().and_then(|parent| self.place(stages, parent)) else {
            return;
        };
        let permissions = Permissions { uid, gid, mode: file.spec.ownership.mode };
        let label: Option<Arc<str>> = match stages.root().label_of_successor(&file.path) {
            Ok(label) => label.map(Arc::from),
            Err(error) => {
                tracing::warn!(resource = %file.resource, "left to ordinary runs: its label cannot be told: {error}");
                return;
            }
        };
        let key = Self::key(&file, permissions, label.as_deref());
        let next = u32::try_from(self.pools.len()).unwrap_or(u32::MAX);
        let index = *self.by_key.entry((key, stage.mount())).or_insert(next);
        let Declared { resource, spec, names, notifies, .. } = file;
        if index == next {
            let file::Spec { content, ownership, care } = spec;
            let common = self.common(Common { ownership, care, names, permissions, label });
            let likeness = Arc::new(Likeness { content, common, notifies: notifies.into_boxed_slice() });
            self.by_name
                .entry(key)
                .and_modify(|(_, only)| *only = None)
                .or_insert_with(|| (Arc::clone(&likeness), Some(resource.clone())));
            self.n_files.push(0);
            self.pools.push(Pool { likeness, stage, key, ready: Vec::new(), wanted: 0 });
        } else if let Some((_, only)) = self.by_name.get_mut(&key) {
            *only = None;
        }
        if let Some(n) = usize::try_from(index).ok().and_then(|i| self.n_files.get_mut(i)) {
            *n += 1;
        }
        self.entries.push(Entry { name: resource.name, pool: index, directory });
    }

    fn place(&mut self, stages: &mut Stages, parent: AbsPath) -> Option<Place> {
        if let Some(place) = self.places.get(&parent) {
            return place.clone();
        }
        let place = self.find(stages, &parent);
        self.places.insert(parent, place.clone());
        place
    }

    /// Looks for a directory as ordinary runs do: not through a link that others may change.
    fn find(&mut self, stages: &mut Stages, parent: &AbsPath) -> Option<Place> {
        let directory = stages.root().directory(parent.as_path()).ok()??;
        let mount = mount_of(directory.as_fd()).ok()?;
        let stage = stages.get(mount, directory.as_fd(), parent)?;
        let identity = stat_of(&directory).ok()?.identity;
        let index = u32::try_from(self.directories.len()).ok()?;
        self.directories.push(identity);
        Some(Place { directory: index, stage })
    }

    /// Names the pool of a file on the stage. It is the same in every process that runs under the same policy.
    fn key(file: &Declared, permissions: Permissions, label: Option<&str>) -> PoolKey {
        let content = file.spec.content.digest();
        let Permissions { uid, gid, mode } = permissions;
        let mut text =
            format!("{content} {uid} {gid} {mode} {} {}", file.spec.ownership.owner, file.spec.ownership.group);
        text.extend(label);
        if !file.notifies.is_empty() {
            text.push_str(&file.resource.to_string());
        }
        let digest = Sha256::digest(text.as_bytes());
        let digest = digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        if file.spec.content.is_secret() { PoolKey::Secret(digest) } else { PoolKey::Plain(digest) }
    }

    /// The one copy of what many pools have in common.
    fn common(&mut self, common: Common) -> Arc<Common> {
        match self.common.get(&common) {
            Some(known) => Arc::clone(known),
            None => {
                let common = Arc::new(common);
                self.common.insert(Arc::clone(&common));
                common
            }
        }
    }

    /// Says how many copies each pool gets, within the budget.
    fn allot(&mut self) {
        let n_all: usize = self.n_files.iter().sum();
        let each = if n_all <= VERY_FEW {
            8
        } else if n_all <= FEW {
            2
        } else {
            1
        };
        let most = each.max(ROOM / n_all.max(1));
        let most_of_one = usize::try_from(MOST_OF_ONE).unwrap_or(usize::MAX);
        // Each pool has some before any has more.
        for each in std::iter::successors(Some(each), |each| (*each < most).then(|| most.min(each * 2))) {
            for (pool, n_files) in self.pools.iter_mut().zip(&self.n_files) {
                pool.want(u32::try_from((n_files * each).clamp(1, most_of_one)).unwrap_or(1), &mut self.spent);
            }
        }
        self.leave_out_unallotted();
    }

    /// Leaves what got no copy to ordinary runs: with 100,000 different contents its pools would take more memory than all else.
    fn leave_out_unallotted(&mut self) {
        let mut n_kept = 0;
        let mut place = |pool: &Pool| {
            let place = n_kept;
            n_kept += u32::from(pool.wanted > 0);
            (pool.wanted > 0).then_some(place)
        };
        let places: Vec<Option<u32>> = self.pools.iter().map(&mut place).collect();
        self.pools.retain(|pool| pool.wanted > 0);
        self.pools.shrink_to_fit();
        self.entries.retain_mut(|entry| {
            let place = usize::try_from(entry.pool).ok().and_then(|pool| places.get(pool).copied().flatten());
            entry.pool = place.unwrap_or(entry.pool);
            place.is_some()
        });
    }

    /// Takes over the copies of an earlier table where they fit. Returns those that fit nowhere.
    pub(super) fn take_over(&mut self, old: Vec<Pool>) -> Vec<(Arc<Stage>, String)> {
        let mut old: HashMap<PoolKey, Pool> = old.into_iter().map(|pool| (pool.key, pool)).collect();
        for pool in &mut self.pools {
            if let Some(old) = old.remove(&pool.key).filter(|old| Arc::ptr_eq(&old.stage, &pool.stage)) {
                pool.ready = old.ready;
                pool.want(old.wanted, &mut self.spent);
            }
        }
        old.into_values()
            .flat_map(|pool| {
                let Pool { key, stage, ready, .. } = pool;
                ready.into_iter().map(move |number| (Arc::clone(&stage), Pool::copy_name(key, number)))
            })
            .collect()
    }

    /// Makes this what the table guards.
    pub(super) fn replace(mut self, table: &mut Table, revision: &Revision) {
        self.entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        self.entries.shrink_to_fit();
        table.revision = Some(Arc::new(revision.clone()));
        table.entries = self.entries;
        table.pools = self.pools;
        table.spent = self.spent;
        table.directories = self.directories;
    }

    /// Adds this to what the table guards, as far as there may be more copies.
    pub(super) fn add_to(mut self, table: &mut Table) {
        let index = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let n_directories = index(table.directories.len());
        table.directories.append(&mut self.directories);
        let mut places = Vec::with_capacity(self.pools.len());
        for mut pool in self.pools {
            let known =
                table.pools.iter().position(|known| known.key == pool.key && Arc::ptr_eq(&known.stage, &pool.stage));
            let wanted = std::mem::take(&mut pool.wanted);
            let place = known.or_else(|| {
                pool.want(wanted, &mut table.spent);
                (pool.wanted > 0).then(|| {
                    table.pools.push(pool);
                    table.pools.len() - 1
                })
            });
            places.push(place.map(index));
        }
        for mut entry in self.entries {
            let place = usize::try_from(entry.pool).ok().and_then(|i| places.get(i)).copied().flatten();
            // Left to ordinary runs.
            let Some(place) = place else { continue };
            entry.pool = place;
            entry.directory = entry.directory.saturating_add(n_directories);
            match table.entries.binary_search_by(|known| known.name.cmp(&entry.name)) {
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
