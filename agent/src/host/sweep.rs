//! Looking for files of a kind in whole trees, and taking bits of their modes away: one streaming walk in bounded memory, at the
//! lowest priority for the disk.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode as KernelMode, OFlags};

use super::background;
use super::root::{FileType, Metadata, Root, metadata_at, stat_of};
use super::tree::{self, Entry, Next, Step};
use crate::resource::AbsPath;

/// Most findings that are kept; the others are counted.
pub const MAX_KEPT: usize = 200;
/// Longest time that a sweep takes; beyond it, it has no result.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// Entries between two looks at the clock.
const STRIDE: u64 = 1024;

/// What makes an entry a finding: any of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Traits {
    /// A regular file with the set-user-id bit.
    pub setuid: bool,
    /// A regular file with the set-group-id bit that its group may run.
    pub setgid: bool,
    /// Anybody may write to it: a regular file, or a directory that is not sticky.
    pub world_writable: bool,
    /// Its owner or group is none that the host knows.
    pub no_owner: bool,
    /// A regular file with capabilities.
    pub capabilities: bool,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub path: PathBuf,
    /// Owner id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// What a sweep found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// The first [`MAX_KEPT`] in the order of their paths.
    pub kept: Vec<Found>,
    /// How many there are, those included.
    pub n_found: u64,
    /// How many entries were looked at.
    pub n_looked: u64,
}

/// What decides about an entry besides its own metadata.
pub struct Question<'a> {
    /// The directories.
    pub under: &'a [AbsPath],
    /// What is looked for.
    pub traits: Traits,
    /// Whether the host knows an owner and a group.
    pub is_owned: &'a (dyn Fn(u32, u32) -> bool + Sync),
    /// Whether a path, and what is beneath it, is of no interest.
    pub is_excepted: &'a (dyn Fn(&Path) -> bool + Sync),
    /// Whether a path may have what is looked for.
    pub is_allowed: &'a (dyn Fn(&Path) -> bool + Sync),
}

impl std::fmt::Debug for Question<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Question").field("under", &self.under).field("traits", &self.traits).finish_non_exhaustive()
    }
}

/// Walks the directories. What is not there has nothing in it; other mounts are not entered, unless one is named itself.
///
/// # Errors
///
/// In words, when a directory cannot be read or it takes too long: then nothing is known.
pub fn sweep(root: &Root, question: &Question<'_>) -> Result<Findings, String> {
    std::thread::scope(|scope| {
        // The priority for the disk belongs to the thread.
        let walker = scope.spawn(|| {
            if let Err(error) = background::read_when_idle() {
                tracing::debug!(%error, "sweeping at the ordinary priority");
            }
            walk_all(root, question)
        });
        walker.join().unwrap_or_else(|_| Err("the sweeping thread panicked".to_owned()))
    })
}

fn walk_all(root: &Root, question: &Question<'_>) -> Result<Findings, String> {
    let ends = Instant::now() + LONGEST;
    let mut kept: BTreeMap<PathBuf, Found> = BTreeMap::new();
    let (mut n_found, mut n_looked) = (0, 0);
    let mut is_late = false;
    for top in question.under {
        // One that is beneath another is seen there.
        if question
            .under
            .iter()
            .any(|other| other != top && top.as_path().starts_with(other.as_path()) && !is_mount(root, top))
        {
            continue;
        }
        let mut visit = |step: Step<'_>| {
            let Step::Entry(entry) = step else { return Ok(Next::Enter) };
            n_looked += 1;
            if n_looked % STRIDE == 0 && Instant::now() > ends {
                is_late = true;
                return Ok(Next::Stop);
            }
            let path = top.as_path().join(entry.path);
            if (question.is_excepted)(&path) {
                return Ok(Next::Pass);
            }
            if matches(question, entry.metadata, || capabilities(entry)) && !(question.is_allowed)(&path) {
                n_found += 1;
                let Metadata { uid, gid, mode, .. } = *entry.metadata;
                kept.insert(path.clone(), Found { path, uid, gid, mode: mode.bits() });
                if kept.len() > MAX_KEPT {
                    kept.pop_last();
                }
            }
            Ok(Next::Enter)
        };
        tree::walk(root, top, &mut visit)
            .map_err(|error| format!("beneath `{top}`: {}", crate::resource::chain(&error)))?;
        if is_late {
            return Err(format!("the sweep was not over after {} minutes", LONGEST.as_secs() / 60));
        }
    }
    Ok(Findings { kept: kept.into_values().collect(), n_found, n_looked })
}

fn is_mount(root: &Root, path: &AbsPath) -> bool {
    root.metadata(path).is_ok_and(|found| found.is_some_and(|found| found.is_mount))
}

fn matches(question: &Question<'_>, metadata: &Metadata, has_capabilities: impl FnOnce() -> bool) -> bool {
    let Traits { setuid, setgid, world_writable, no_owner, capabilities } = question.traits;
    let bits = metadata.mode.bits();
    let is_file = metadata.file_type == FileType::File;
    let is_open = bits & 0o002 != 0 && (is_file || metadata.file_type == FileType::Directory && bits & 0o1000 == 0);
    (setuid && is_file && bits & 0o4000 != 0)
        || (setgid && is_file && bits & 0o2010 == 0o2010)
        || (world_writable && is_open)
        || (no_owner && !(question.is_owned)(metadata.uid, metadata.gid))
        || (capabilities && is_file && has_capabilities())
}

fn capabilities(entry: &Entry<'_>) -> bool {
    // What vanishes has none.
    metadata_at(&entry.dir, entry.name)
        .is_ok_and(|found| found.is_some_and(|found| found.extras.capabilities.is_some()))
}

/// Looks again at one finding; `None` when it is none any more.
pub fn look_again(root: &Root, question: &Question<'_>, found: &Found) -> io::Result<Option<Found>> {
    let Some((dir, name)) = place(root, &found.path)? else { return Ok(None) };
    let Some(metadata) = metadata_at(&dir, name)? else { return Ok(None) };
    let has_capabilities = metadata.extras.capabilities.is_some();
    let Metadata { uid, gid, mode, .. } = metadata;
    let is_found = matches(question, &metadata, || has_capabilities);
    Ok(is_found.then(|| Found { path: found.path.clone(), uid, gid, mode: mode.bits() }))
}

/// Takes the set-user-id and set-group-id bits from a regular file, if it still has any. Never follows a link.
pub fn strip(root: &Root, found: &Found) -> io::Result<()> {
    let Some((dir, name)) = place(root, &found.path)? else { return Ok(()) };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = match rustix::fs::openat(&dir, name, flags, KernelMode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        result => result?,
    };
    let metadata = stat_of(&target)?;
    let bits = metadata.mode.bits();
    if metadata.file_type != FileType::File || bits & 0o6000 == 0 {
        return Ok(());
    }
    // The kernel changes no mode through such a descriptor, but through its name in /proc, which is the very inode.
    let through = format!("/proc/self/fd/{}", target.as_raw_fd());
    rustix::fs::chmod(through, KernelMode::from_raw_mode(bits & 0o1777)).map_err(io::Error::from)
}

fn place<'p>(root: &Root, path: &'p Path) -> io::Result<Option<(OwnedFd, &'p OsStr)>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    Ok(root.directory(parent)?.map(|dir| (dir, name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[expect(clippy::disallowed_methods, reason = "a test lays out a tree")]
    fn put(root: &Path, path: impl AsRef<Path>, mode: u32) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn question<'a>(
        under: &'a [AbsPath],
        traits: Traits,
        excepted: &'a (dyn Fn(&Path) -> bool + Sync),
    ) -> Question<'a> {
        Question {
            under,
            traits,
            is_owned: &|_, _| true,
            is_excepted: excepted,
            is_allowed: &|path| path.ends_with("sudo"),
        }
    }

    #[test]
    fn what_matches_is_found_counted_and_stripped_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        put(dir.path(), "usr/bin/sudo", 0o4755);
        put(dir.path(), "usr/bin/bad", 0o4755);
        put(dir.path(), "usr/bin/group", 0o2755);
        put(dir.path(), "usr/bin/locking", 0o2644);
        put(dir.path(), "usr/skip/bad", 0o4755);
        put(dir.path(), Path::new("usr/bin").join(OsStr::from_bytes(b"odd\xff\n")), 0o6711);
        put(dir.path(), "outside/bad", 0o4755);
        symlink("../../outside", dir.path().join("usr/bin/link")).unwrap();
        let under = [AbsPath::new("/usr").unwrap(), AbsPath::new("/usr/bin").unwrap(), AbsPath::new("/none").unwrap()];
        let traits = Traits { setuid: true, setgid: true, ..Traits::default() };
        let excepted = |path: &Path| path == Path::new("/usr/skip");
        let question = question(&under, traits, &excepted);
        let findings = sweep(&root, &question).unwrap();
        let paths: Vec<&[u8]> = findings.kept.iter().map(|found| found.path.as_os_str().as_bytes()).collect();
        assert_eq!(paths, [b"/usr/bin/bad".as_slice(), b"/usr/bin/group", b"/usr/bin/odd\xff\n"]);
        assert_eq!(findings.n_found, 3);
        for found in &findings.kept {
            strip(&root, found).unwrap();
            assert_eq!(look_again(&root, &question, found).unwrap(), None);
        }
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("usr/bin/bad"), mode("usr/bin/group"), mode("usr/bin/sudo")), (0o755, 0o755, 0o4755));
        assert_eq!((mode("outside/bad"), mode("usr/skip/bad")), (0o4755, 0o4755));
        assert_eq!(sweep(&root, &question).unwrap().n_found, 0);
    }

    #[test]
    fn many_findings_take_bounded_memory() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        for n in 0..MAX_KEPT + 50 {
            put(dir.path(), format!("opt/{n:05}"), 0o666);
        }
        let under = [AbsPath::new("/opt").unwrap()];
        let traits = Traits { world_writable: true, ..Traits::default() };
        let findings = sweep(&root, &question(&under, traits, &|_| false)).unwrap();
        assert_eq!((findings.kept.len(), findings.n_found), (MAX_KEPT, MAX_KEPT as u64 + 50));
        assert_eq!(findings.kept[0].path, Path::new("/opt/00000"));
    }
}
