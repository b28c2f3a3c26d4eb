//! What is beneath a directory and should not be, or should be another's: one walk for each rule, in bounded memory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::rules::{Depth, Judge, Judgement, Rules, shown};
use crate::host::attic::Batch;
use crate::host::root::{FileType, Metadata, Root, Ruling};
use crate::host::tree::{self, Entry, Extent, Next, Step, WalkError};
use crate::resource::{AbsPath, Change, Names};

/// Most entries that are named in a plan; the rest is counted.
const MAX_SHOWN: usize = 100;

/// What the rules find fault with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beneath {
    /// What nobody declares: its path, and what it is. The first of them, in order.
    pub undeclared: Vec<(String, String)>,
    /// All of them.
    pub n_undeclared: u64,
    /// The same, with everything in directories counted.
    pub n_to_remove: u64,
    /// What nobody declares and cannot be moved away, because something is mounted in it.
    pub mounted: Vec<String>,
    /// What has another owner, group or mode: its path, and which. The first of them, in order.
    pub ruled: Vec<(String, Change)>,
    /// All of them.
    pub n_ruled: u64,
    /// Why not all could be looked at, if so.
    pub unknown: Option<String>,
}

/// Looks at everything beneath a directory. `names` are the ids of the rule's owner and group.
pub(super) fn observe(root: &Root, path: &AbsPath, rules: &Rules, names: Names, now: Timestamp) -> Beneath {
    let mut beneath = Beneath::default();
    let looked =
        purge(root, path, rules, now, &mut beneath).and_then(|()| recurse(root, path, rules, names, now, &mut beneath));
    if let Err(error) = looked {
        beneath.unknown = Some(format!("beneath `{path}`: {}", crate::resource::chain(&error)));
    }
    beneath.undeclared.sort();
    beneath.mounted.sort();
    beneath.ruled.sort_by(|(a, _), (b, _)| a.cmp(b));
    beneath
}

fn purge(root: &Root, path: &AbsPath, rules: &Rules, now: Timestamp, beneath: &mut Beneath) -> Result<(), WalkError> {
    each_undeclared(root, path, rules, now, &mut |entry, extent| {
        if extent.has_mount {
            if beneath.mounted.len() < MAX_SHOWN {
                beneath.mounted.push(shown(entry.path));
            }
            return Ok(Next::Pass);
        }
        beneath.n_undeclared += 1;
        beneath.n_to_remove = beneath.n_to_remove.saturating_add(extent.n_entries);
        if beneath.undeclared.len() < MAX_SHOWN {
            beneath.undeclared.push((shown(entry.path), describe(entry, extent.n_entries - 1)));
        }
        Ok(Next::Pass)
    })
}

/// What becomes of an entry, by the rule about what may be there and by what is in it.
enum Fate {
    /// It is undeclared, and nothing in it is kept. It goes whole, unless something is mounted in it.
    Undeclared(Extent),
    /// It stays. What is in it has fates of its own.
    Enter,
    /// It stays, with everything in it.
    Pass,
}

/// A walk that tells the fate of what it comes by.
struct Purging<'a> {
    judge: Judge<'a>,
    /// What was last found to be kept in an undeclared directory. On the way to it nobody need look ahead again, so that in
    /// directories inside each other each entry is looked at a few times at most.
    kept: PathBuf,
}

impl<'a> Purging<'a> {
    fn new(path: &AbsPath, rules: &'a Rules, now: Timestamp) -> Self {
        Self { judge: Judge::new(path, rules, now), kept: PathBuf::new() }
    }

    fn fate(&mut self, entry: &Entry<'_>) -> Result<Fate, WalkError> {
        match self.judge.purge(entry.path, entry.metadata) {
            Judgement::Enter => return Ok(Fate::Enter),
            Judgement::Pass | Judgement::Ruled => return Ok(Fate::Pass),
            Judgement::Undeclared => {}
        }
        // The walk shows what is in a directory right after it: what starts with its path is in it.
        if self.kept.starts_with(entry.path) {
            return Ok(Fate::Enter);
        }
        let Self { judge, kept } = self;
        let extent = tree::measure_until(entry, &mut |path| {
            let is_kept = judge.keeps(path);
            if is_kept {
                path.clone_into(kept);
            }
            is_kept
        })?;
        Ok(extent.map_or(Fate::Enter, Fate::Undeclared))
    }
}

/// Shows what nobody declares and nothing keeps, with everything in it, in the order of the file system: directories whole where
/// all of it goes, and where something in one is kept or declared what else is in it. What has something mounted in it is shown as
/// well.
pub(super) fn each_undeclared(
    root: &Root,
    path: &AbsPath,
    rules: &Rules,
    now: Timestamp,
    visit: &mut dyn FnMut(&Entry<'_>, Extent) -> Result<Next, WalkError>,
) -> Result<(), WalkError> {
    if rules.purge.as_ref().is_none_or(|purge| purge.depth == Depth::Nothing) {
        return Ok(());
    }
    check_real_path(root, path)?;
    let mut purging = Purging::new(path, rules, now);
    tree::walk(root, path, &mut |step| {
        let Step::Entry(entry) = step else { return Ok(Next::Enter) };
        match purging.fate(entry)? {
            Fate::Enter => Ok(Next::Enter),
            Fate::Pass => Ok(Next::Pass),
            Fate::Undeclared(extent) => visit(entry, extent),
        }
    })
    .map(drop)
}

/// A declared file may be spelled by the way that leads through the link, and would be taken for undeclared.
fn check_real_path(root: &Root, path: &AbsPath) -> Result<(), WalkError> {
    let failed = |source| WalkError { operation: "open the directory", path: PathBuf::new(), source };
    let Some(directory) = tree::open(root, path).map_err(failed)? else { return Ok(()) };
    match tree::real_path(root, std::os::fd::AsFd::as_fd(&directory)) {
        Some(real) if real != path.as_path() => Err(failed(std::io::Error::other(format!(
            "a symbolic link leads to it: what is purged is declared under its real path, `{}`",
            shown(&real)
        )))),
        Some(_) | None => Ok(()),
    }
}

fn describe(entry: &Entry<'_>, n_below: u64) -> String {
    let Metadata { file_type, mode, size, uid, gid, .. } = entry.metadata;
    match file_type {
        FileType::File => format!("file, {size} bytes, {uid}:{gid} {mode}"),
        FileType::Directory => format!("directory with {n_below} entries, {uid}:{gid} {mode}"),
        FileType::Symlink => match rustix::fs::readlinkat(entry.dir, entry.name, Vec::new()) {
            Ok(target) => format!("symlink to {}", shown(Path::new(OsStr::from_bytes(target.to_bytes())))),
            Err(_) => "symlink".to_owned(),
        },
        FileType::Special => format!("special file, {uid}:{gid} {mode}"),
    }
}

fn recurse(
    root: &Root,
    path: &AbsPath,
    rules: &Rules,
    names: Names,
    now: Timestamp,
    beneath: &mut Beneath,
) -> Result<(), WalkError> {
    each_ruled(root, path, rules, names, now, &mut |entry, ruling| {
        beneath.n_ruled += 1;
        if beneath.ruled.len() < MAX_SHOWN {
            let path = shown(entry.path);
            let Metadata { uid, gid, mode, .. } = entry.metadata;
            let ids = |uid: u32, gid: u32| format!("{uid}:{gid}");
            let (from, to) = (
                format!("{} {mode}", ids(*uid, *gid)),
                format!(
                    "{} {}",
                    ids(ruling.uid.unwrap_or(*uid), ruling.gid.unwrap_or(*gid)),
                    ruling.mode.unwrap_or(*mode)
                ),
            );
            beneath.ruled.push((path.clone(), Change::value(&path, Some(from), Some(to))));
        }
        Ok(())
    })
}

/// Shows each entry that differs from the rule about whose it is, with what the rule says.
fn each_ruled(
    root: &Root,
    path: &AbsPath,
    rules: &Rules,
    names: Names,
    now: Timestamp,
    visit: &mut dyn FnMut(&Entry<'_>, Ruling) -> Result<(), WalkError>,
) -> Result<(), WalkError> {
    let Some(recurse) = &rules.recurse else { return Ok(()) };
    let mut purging = Purging::new(path, rules, now);
    tree::walk(root, path, &mut |step| {
        let Step::Entry(entry) = step else { return Ok(Next::Enter) };
        // What is about to go need not become anybody's first.
        if matches!(purging.fate(entry)?, Fate::Undeclared(_)) {
            return Ok(Next::Pass);
        }
        match purging.judge.recurse(entry.path, entry.metadata) {
            Judgement::Pass | Judgement::Undeclared => return Ok(Next::Pass),
            Judgement::Enter => return Ok(Next::Enter),
            Judgement::Ruled => {}
        }
        let mode = match entry.metadata.file_type {
            FileType::Directory => recurse.directory_mode,
            FileType::File | FileType::Symlink | FileType::Special => recurse.file_mode,
        };
        let ruling =
            Ruling { uid: recurse.owner.as_ref().and(names.uid), gid: recurse.group.as_ref().and(names.gid), mode };
        if !ruling.holds_for(entry.metadata) {
            visit(entry, ruling)?;
        }
        Ok(Next::Enter)
    })
    .map(drop)
}

/// Gives what is beneath a directory the owner, group and modes of the rule.
pub(super) fn rule(root: &Root, path: &AbsPath, rules: &Rules, names: Names, now: Timestamp) -> Result<(), WalkError> {
    each_ruled(root, path, rules, names, now, &mut |entry, ruling| match ruling.give(
        entry.dir,
        entry.name,
        entry.metadata.file_type,
    ) {
        Ok(()) => Ok(()),
        Err(source) => {
            Err(WalkError { operation: "set the owner and mode of", path: entry.path.to_path_buf(), source })
        }
    })
}

/// Moves what nobody declares into a batch, at most so many entries as the rule allows.
pub(super) fn remove(
    root: &Root,
    path: &AbsPath,
    rules: &Rules,
    now: Timestamp,
    batch: &mut Batch,
) -> Result<(), WalkError> {
    let Some(purge) = &rules.purge else { return Ok(()) };
    let mut n_left = purge.limit;
    each_undeclared(root, path, rules, now, &mut |entry, extent| {
        if extent.has_mount {
            return Ok(Next::Pass);
        }
        // More came since it was looked at: the next look counts it.
        let Some(left) = n_left.checked_sub(extent.n_entries) else { return Ok(Next::Stop) };
        n_left = left;
        let whole = path.as_path().join(entry.path);
        batch.take(entry, &shown(&whole), extent).map_err(|source| WalkError {
            operation: "move away",
            path: entry.path.to_path_buf(),
            source,
        })?;
        Ok(Next::Pass)
    })
}

impl Beneath {
    /// Adds a change for each thing, and one that counts those which are not named.
    pub fn changes(&self, changes: &mut Vec<Change>) {
        let more = |changes: &mut Vec<Change>, attribute: &str, n: u64, n_shown: usize| {
            let n_more = n.saturating_sub(u64::try_from(n_shown).unwrap_or(u64::MAX));
            if n_more > 0 {
                changes.push(Change::value(attribute, Some(format!("and {n_more} more")), None));
            }
        };
        for (path, what) in &self.undeclared {
            changes.push(Change::value("purge", Some(format!("{path} ({what})")), None));
        }
        more(changes, "purge", self.n_undeclared, self.undeclared.len());
        for path in &self.mounted {
            let what = format!("{path} (something is mounted in it)");
            changes.push(Change::value("purge", Some(what), None));
        }
        for (path, change) in &self.ruled {
            changes.push(Change { attribute: format!("recurse {path}"), ..change.clone() });
        }
        more(changes, "recurse", self.n_ruled, self.ruled.len());
    }

    /// Why nothing is to be removed, although something is not declared; `None` when it may be.
    pub fn excess(&self, rules: &Rules) -> Option<String> {
        let limit = rules.purge.as_ref()?.limit;
        if self.n_to_remove > limit {
            let n = self.n_to_remove;
            return Some(format!("{n} entries would be removed, more than the purge_limit of {limit}"));
        }
        match (self.mounted.first(), self.n_undeclared) {
            (Some(path), 0) if self.n_ruled == 0 => {
                Some(format!("something is mounted in `{path}`, which is not declared: unmount it first"))
            }
            (Some(_) | None, _) => None,
        }
    }
}
