//! What is guarded, and with which copies.
//!
//! Small for each file, because a policy may have a hundred thousand: what equal files have in common is a *pool*, which
//! also holds their copies.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::Withdrawn;
use crate::host::root::Permissions;
use crate::host::stage::{Copy, Stage};
use crate::policy::Revision;
use crate::resource::place::Ownership;
use crate::resource::{Content, Kind, Names, Notify, ResourceId, UnitName, file};

/// Most copies of one pool, however often they are used up.
pub(super) const MOST_OF_ONE: u32 = 256;

/// With so many copies left a pool is never short: at a drift every millisecond they last longer than a sync takes.
const COMFORT: usize = 32;

/// Copies that are laid out together when none is left.
const FIRST: usize = 4;

/// How many times as many copies are wanted of what is used up.
const GROWTH: u32 = 4;

/// Most copies of all pools.
const MOST_COPIES: usize = 20_000;

/// Most bytes of copies of all pools.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// The copies that there are to be, of all pools of a table: how many, and how many bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spent {
    n_copies: usize,
    n_bytes: usize,
}

impl Spent {
    /// Whether so many copies more may be, which are then counted.
    pub(super) fn take(&mut self, n_copies: u32, likeness: &Likeness) -> bool {
        let n = usize::try_from(n_copies).unwrap_or(usize::MAX);
        // A file takes a block at least.
        let length = likeness.content.len().max(4096);
        let then = Self {
            n_copies: self.n_copies.saturating_add(n),
            n_bytes: self.n_bytes.saturating_add(n.saturating_mul(length)),
        };
        let fits = then.n_copies <= MOST_COPIES && then.n_bytes <= MOST_BYTES;
        if fits {
            *self = then;
        }
        fits
    }
}

/// Everything that is guarded.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Whether anything is guarded at all.
    pub(super) live: bool,
    /// The revision that the files are declared by.
    pub(super) revision: Option<Arc<Revision>>,
    /// In order of name.
    pub(super) entries: Vec<Entry>,
    pub(super) pools: Vec<Pool>,
    /// What the pools want together.
    pub(super) spent: Spent,
    /// Device and inode of the directories that files are in.
    pub(super) directories: Vec<(u64, u64)>,
    /// Files that are left alone until a time.
    pub(super) held: HashMap<ResourceId, Instant>,
    /// Files that were withdrawn, with their place in the sequence of all that were: what was ordered before a withdrawal must
    /// not undo it.
    withdrawals: Vec<(u64, ResourceId)>,
    n_withdrawals: u64,
}

/// One file.
#[derive(Debug)]
pub(super) struct Entry {
    /// Name of the file resource, which is its path.
    pub(super) name: Arc<str>,
    /// Index into the pools; [`WITHDRAWN`] for a file that is left alone until it is armed again.
    pub(super) pool: u32,
    /// Index into the directories. A path that leads elsewhere by now is none of the guard's business.
    pub(super) directory: u32,
}

/// The pool of what has none.
pub(super) const WITHDRAWN: u32 = u32::MAX;

/// What files are that are equal but for their place.
#[derive(Debug)]
pub(super) struct Likeness {
    pub(super) content: Content,
    pub(super) common: Arc<Common>,
    /// Not empty only for a single file, so that what is found on the stage says who is owed.
    pub(super) notifies: Box<[(Notify, UnitName)]>,
}

/// What many pools have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Common {
    pub(super) ownership: Arc<Ownership>,
    pub(super) care: file::Care,
    pub(super) names: Names,
    pub(super) permissions: Permissions,
    /// The SELinux label of the copies, where one is named.
    pub(super) label: Option<Arc<str>>,
}

impl Likeness {
    /// What is declared.
    pub(super) fn spec(&self) -> file::Spec {
        let Common { ownership, care, .. } = &*self.common;
        file::Spec { content: self.content.clone(), ownership: Arc::clone(ownership), care: *care }
    }

    /// A copy under this name.
    pub(super) fn copy<'a>(&'a self, name: &'a str) -> Copy<'a> {
        let Common { permissions, label, .. } = &*self.common;
        Copy { name, content: &self.content, permissions: *permissions, label: label.as_deref() }
    }
}

/// What the names of copies of secrets begin with.
const SECRET: &str = "secret";

/// Names a pool on the stage, as sixteen hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum PoolKey {
    /// Of content that anybody who may read the record may see.
    Plain(u64),
    /// Of a secret. It shows in the name, so that also when no policy explains it any more, what has it is not kept elsewhere.
    Secret(u64),
}

impl PoolKey {
    /// The key in the name of a copy.
    pub(super) fn of_copy(name: &str) -> Option<Self> {
        let (key, _) = name.split_once('-')?;
        let parse = |digits| u64::from_str_radix(digits, 16).ok();
        let known = match key.strip_prefix(SECRET) {
            Some(digits) => parse(digits).map(Self::Secret),
            None => parse(key).map(Self::Plain),
        };
        known.filter(|known| known.to_string() == key)
    }

    /// Whether the name of a copy, also of an unknown one, is that of a secret.
    pub(super) fn is_of_secret(name: &str) -> bool {
        name.starts_with(SECRET)
    }
}

impl fmt::Display for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(digest) => write!(f, "{digest:016x}"),
            Self::Secret(digest) => write!(f, "{SECRET}{digest:016x}"),
        }
    }
}

/// Files that are alike, on one mount.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) likeness: Arc<Likeness>,
    pub(super) stage: Arc<Stage>,
    /// With a number, the name of a copy.
    pub(super) key: PoolKey,
    /// Numbers of the copies that are ready.
    pub(super) ready: Vec<u64>,
    /// How many there should be.
    pub(super) wanted: u32,
}

impl Pool {
    /// Name of a copy on the stage.
    pub(super) fn copy_name(key: PoolKey, number: u64) -> String {
        format!("{key}-{number:x}")
    }

    /// Whether new copies must not wait: a file that drifts again and again would use up those that are left.
    pub(super) fn is_short(&self) -> bool {
        self.ready.len() < COMFORT && self.ready.len().saturating_mul(2) < self.n_wanted()
    }

    /// How many of the missing copies to lay out next. All of a batch are ready only when the last one is on the disk, so the
    /// fewer are left, the smaller it is: drift goes on meanwhile.
    pub(super) fn n_next(&self) -> usize {
        self.n_missing().min(self.ready.len().saturating_mul(2).max(FIRST))
    }

    /// How many copies are missing.
    pub(super) fn n_missing(&self) -> usize {
        self.n_wanted().saturating_sub(self.ready.len())
    }

    fn n_wanted(&self) -> usize {
        usize::try_from(self.wanted).unwrap_or(usize::MAX)
    }

    /// Wants as many copies as a pool that ran short is to have, when one file took `n_used` of them within a moment.
    pub(super) fn grow(&mut self, n_used: u32, spent: &mut Spent) {
        self.want(grown(self.wanted, n_used), spent);
    }

    /// Raises the number of copies that there should be, if that is allowed.
    pub(super) fn want(&mut self, wanted: u32, spent: &mut Spent) {
        if spent.take(wanted.saturating_sub(self.wanted), &self.likeness) {
            self.wanted = self.wanted.max(wanted);
        }
    }
}

/// Several times as many copies once one file used up half of them by itself. Each time that they run short costs a sync, and
/// whoever changes a name meanwhile waits for that; so there are not to be many such times.
fn grown(wanted: u32, n_used: u32) -> u32 {
    if n_used > 1 && n_used.saturating_mul(2) >= wanted {
        wanted.saturating_mul(GROWTH).min(MOST_OF_ONE)
    } else {
        wanted
    }
}

/// The index of an entry.
pub(super) fn find(entries: &[Entry], resource: &ResourceId) -> Option<usize> {
    if resource.kind != Kind::File {
        return None;
    }
    entries.binary_search_by(|entry| entry.name.cmp(&resource.name)).ok()
}

impl Table {
    /// The index of an entry.
    pub(super) fn find(&self, resource: &ResourceId) -> Option<usize> {
        find(&self.entries, resource)
    }

    /// Leaves a file alone until it is armed by an order that is given later.
    pub(super) fn withdraw(&mut self, resource: &ResourceId) -> Withdrawn {
        self.n_withdrawals += 1;
        self.withdrawals.push((self.n_withdrawals, resource.clone()));
        self.mark_withdrawn(resource)
    }

    /// How many withdrawals there were.
    pub(super) fn n_withdrawals(&self) -> u64 {
        self.n_withdrawals
    }

    /// Withdraws again what was withdrawn after an order was given, and forgets the others.
    pub(super) fn withdraw_after(&mut self, n_withdrawals: u64) {
        self.withdrawals.retain(|(n, _)| *n > n_withdrawals);
        let later: Vec<ResourceId> = self.withdrawals.iter().map(|(_, resource)| resource.clone()).collect();
        for resource in later {
            match self.mark_withdrawn(&resource) {
                Withdrawn::WasGuarded | Withdrawn::WasNot => {}
            }
        }
    }

    fn mark_withdrawn(&mut self, resource: &ResourceId) -> Withdrawn {
        let is_live = self.live;
        let Some(entry) = self.find(resource).and_then(|i| self.entries.get_mut(i)) else { return Withdrawn::WasNot };
        let pool = std::mem::replace(&mut entry.pool, WITHDRAWN);
        if is_live && pool != WITHDRAWN { Withdrawn::WasGuarded } else { Withdrawn::WasNot }
    }

    /// Takes all pools out; nothing is guarded until there are others.
    pub(super) fn take_pools(&mut self) -> Vec<Pool> {
        self.live = false;
        self.entries.clear();
        self.spent = Spent::default();
        std::mem::take(&mut self.pools)
    }

    /// Whether a file would be put back at once now.
    pub(super) fn guards(&self, resource: &ResourceId) -> bool {
        let entry = self.find(resource).and_then(|i| self.entries.get(i));
        self.live && entry.is_some_and(|entry| entry.pool != WITHDRAWN)
    }

    pub(super) fn readiness(&self) -> super::Readiness {
        if !self.live {
            return super::Readiness::default();
        }
        let has_copy = |entry: &&Entry| {
            let pool = usize::try_from(entry.pool).ok().and_then(|i| self.pools.get(i));
            pool.is_some_and(|pool| !pool.ready.is_empty())
        };
        super::Readiness {
            n_guarded: self.entries.iter().filter(has_copy).count(),
            n_copies: self.pools.iter().map(|pool| pool.ready.len()).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_copy_says_its_pool_and_whether_it_is_secret() {
        for (key, expected) in
            [(PoolKey::Plain(0x2a), "000000000000002a-f"), (PoolKey::Secret(u64::MAX), "secretffffffffffffffff-f")]
        {
            let name = Pool::copy_name(key, 15);
            assert_eq!(name, expected);
            assert_eq!(PoolKey::of_copy(&name), Some(key));
            assert_eq!(PoolKey::is_of_secret(&name), matches!(key, PoolKey::Secret(_)));
        }
        for other in ["", "-", "2a-f", "000000000000002A-f", "+00000000000002a-f", "000000000000002a", "secret-1"] {
            assert_eq!(PoolKey::of_copy(other), None, "{other}");
        }
    }

    #[test]
    fn a_pool_grows_with_the_drift_of_one_file_and_not_with_that_of_many() {
        for (wanted, n_used, expected) in [
            (8, 3, 8),
            (8, 4, 32),
            (1, 1, 1),
            (1, 2, 4),
            (64, 1, 64),
            (128, 64, MOST_OF_ONE),
            (MOST_OF_ONE, 200, MOST_OF_ONE),
        ] {
            assert_eq!(grown(wanted, n_used), expected, "{wanted} copies, {n_used} used");
        }
    }
}
