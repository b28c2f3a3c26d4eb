//! Where removed things go: whole, under a name of their own, on their own mount.
//!
//! What a rule over a tree removes is moved, not copied: one rename keeps bytes, owner, mode, attributes and everything in a
//! directory, however large, and a kill leaves it in one of the two places. Each *batch* is a directory with a manifest, which
//! is on the disk before the first thing is moved: a line of JSON for each, with the path that it had and the name that it has
//! now. So a person can put back anything with `mv`.
//!
//! Batches go after [`KEPT_FOR`], and after a day when there are more than [`CAPACITY`] bytes. A disk that fills up within a
//! day because of what was removed is left to people: what somebody wants back is wanted soon.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::{AtFlags, Gid, Mode as KernelMode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use super::root::{FileType, Metadata, Root, clear_flags_at, mount_of, stat_at, sync_directory};
use super::stage;
use super::tree::{self, Entry, Extent, MAX_DEPTH};

/// Name of the attic of a mount that the state directory is not on, in the mount's own root.
pub const FOREIGN_ATTIC: &str = ".rekindle-attic";

/// Time for which removed things are kept, unless there are too many bytes of them.
pub const KEPT_FOR: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Time for which they are kept in any case.
const KEPT_ANYWAY: SignedDuration = SignedDuration::from_hours(24);

/// Bytes of all batches on one mount from which on the oldest go.
const CAPACITY: u64 = 1024 * 1024 * 1024;

/// Entries that are written to the manifest, synced and moved together.
const TOGETHER: usize = 256;

const MANIFEST: &str = "manifest";

/// Longest line of a manifest.
const MAX_LINE: u64 = 64 * 1024;

/// The attic of one mount.
#[derive(Debug)]
pub struct Attic {
    path: PathBuf,
    dir: OwnedFd,
    /// Whether what is put here is wanted by nobody: an image that is being baked keeps nothing.
    is_bin: bool,
}

/// Things that are moved together.
#[derive(Debug)]
pub struct Batch {
    attic: Attic,
    id: String,
    dir: OwnedFd,
    manifest: File,
    n_taken: u64,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    dir: OwnedFd,
    name: OsString,
}

/// One line of a manifest.
#[derive(serde::Serialize, serde::Deserialize)]
struct Line<'a> {
    /// Its name in the batch.
    kept_as: u64,
    /// Where it was: text with a backslash doubled and what is no text as `\xNN`.
    path: std::borrow::Cow<'a, str>,
    #[serde(rename = "type")]
    file_type: std::borrow::Cow<'a, str>,
    mode: String,
    uid: u32,
    gid: u32,
    /// Everything, itself included.
    entries: u64,
    /// Of all regular files.
    bytes: u64,
}

impl Attic {
    /// Opens or makes the attic for the mount that `directory` is on: `home` when that is on the same mount, otherwise a
    /// directory in the mount's root. Without a home what is put there is thrown away at the end of its batch.
    pub fn open(root: &Root, home: Option<&Path>, directory: BorrowedFd<'_>) -> io::Result<Self> {
        let mount = mount_of(directory)?;
        let at_home = match home {
            Some(home) => stage::place_at_home(home, mount).map_err(plain)?,
            None => None,
        };
        let path = match at_home {
            Some(path) => path,
            None => stage::top_of_mount(root, directory, mount)?.join(FOREIGN_ATTIC),
        };
        stage::make_private(&path).map_err(plain)?;
        let dir = stage::open_directory(&path)?;
        let metadata = super::root::stat_of(&dir)?;
        if metadata.uid != super::current_ids().0 || metadata.mode.bits() & 0o077 != 0 {
            let why = format!("`{}` is not a directory of the agent's own", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        if mount_of(dir.as_fd())? != mount {
            return Err(io::Error::new(
                io::ErrorKind::CrossesDevices,
                format!("`{}` is on another mount", path.display()),
            ));
        }
        Ok(Self { path, dir, is_bin: home.is_none() })
    }

    /// Begins a batch, and drops those that were kept for long enough.
    pub fn begin(self, now: Timestamp) -> io::Result<Batch> {
        if let Err(error) = self.expire(now, CAPACITY) {
            tracing::warn!(path = %self.path.display(), %error, "cannot drop what was kept for long enough");
        }
        let id = format!("{:013}-{}", now.as_millisecond(), super::random_hex());
        rustix::fs::mkdirat(&self.dir, &id, KernelMode::from_raw_mode(0o700))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.dir, &id, flags, KernelMode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
        let manifest = File::from(rustix::fs::openat(&dir, MANIFEST, flags, KernelMode::from_raw_mode(0o600))?);
        sync_directory(&dir)?;
        sync_directory(&self.dir)?;
        Ok(Batch { attic: self, id, dir, manifest, n_taken: 0, waiting: Vec::with_capacity(TOGETHER) })
    }

    fn expire(&self, now: Timestamp, capacity: u64) -> io::Result<()> {
        let mut batches = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let Some(begun) = name.split_once('-').and_then(|(ms, _)| ms.parse().ok()) else { continue };
            let Ok(begun) = Timestamp::from_millisecond(begun) else { continue };
            batches.push((begun, name.to_owned()));
        }
        batches.sort();
        let sizes: Vec<u64> = batches.iter().map(|(_, name)| self.n_bytes(name)).collect();
        let mut total: u64 = sizes.iter().fold(0, |total, size| total.saturating_add(*size));
        for ((begun, name), size) in batches.iter().zip(sizes) {
            let age = now.duration_since(*begun);
            if age > KEPT_FOR || age > KEPT_ANYWAY && total > capacity {
                tree::remove_all(self.dir.as_fd(), OsStr::new(name))?;
                total = total.saturating_sub(size);
                tracing::info!(batch = %self.path.join(name).display(), "dropped what was removed long ago");
            }
        }
        Ok(())
    }

    /// Bytes of what is in a batch, as far as its manifest says.
    fn n_bytes(&self, batch: &str) -> u64 {
        let path = format!("{batch}/{MANIFEST}");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(manifest) = rustix::fs::openat(&self.dir, path, flags, KernelMode::empty()) else { return 0 };
        let mut manifest = BufReader::new(File::from(manifest));
        let mut total = 0_u64;
        let mut line = Vec::new();
        loop {
            line.clear();
            match manifest.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return total,
            }
            if let Ok(Line { bytes, .. }) = serde_json::from_slice(&line) {
                total = total.saturating_add(bytes);
            }
        }
    }
}

/// The error of the system, where it was one.
fn plain(unfit: stage::Unfit) -> io::Error {
    match unfit {
        stage::Unfit::Io { source, .. } => source,
        stage::Unfit::Btrfs | stage::Unfit::NoExchange | stage::Unfit::NotOurs(_) => io::Error::other(unfit),
    }
}

impl Batch {
    /// Where the batch is, for people.
    pub fn path(&self) -> PathBuf {
        self.attic.path.join(&self.id)
    }

    /// Takes something, now or with those that follow. `shown` is the path that it has, for the manifest.
    pub fn take(&mut self, entry: &Entry<'_>, shown: &str, extent: Extent) -> io::Result<()> {
        let Metadata { file_type, mode, uid, gid, .. } = entry.metadata;
        let line = Line {
            kept_as: self.n_taken + u64::try_from(self.waiting.len()).unwrap_or(u64::MAX),
            path: shown.into(),
            file_type: match file_type {
                FileType::File => "file".into(),
                FileType::Directory => "directory".into(),
                FileType::Symlink => "symlink".into(),
                FileType::Special => "special".into(),
            },
            mode: mode.to_string(),
            uid: *uid,
            gid: *gid,
            entries: extent.n_entries,
            bytes: extent.n_bytes,
        };
        let mut line = serde_json::to_vec(&line).map_err(io::Error::other)?;
        line.push(b'\n');
        self.manifest.write_all(&line)?;
        self.waiting.push(Waiting { dir: entry.dir.try_clone_to_owned()?, name: entry.name.to_owned() });
        if self.waiting.len() == TOGETHER { self.flush() } else { Ok(()) }
    }

    /// Moves what waits, once the manifest is on the disk.
    fn flush(&mut self) -> io::Result<()> {
        self.manifest.sync_all()?;
        for Waiting { dir, name } in self.waiting.drain(..) {
            let kept_as = self.n_taken.to_string();
            self.n_taken += 1;
            let metadata = match stat_at(&dir, &name)? {
                // Gone by itself.
                None => continue,
                Some(metadata) => metadata,
            };
            if !metadata.flags.is_empty() {
                let cleared = clear_flags_at(&dir, &name)?;
                tracing::warn!(name = %name.display(), flags = %cleared, "cleared flags that refuse changes");
            }
            move_away(dir.as_fd(), &name, self.dir.as_fd(), OsStr::new(&kept_as), 0)?;
            // One after the other, because the next may be in another directory. What is unchanged costs nothing.
            sync_directory(&dir)?;
        }
        sync_directory(&self.dir)
    }

    /// Moves the rest. Returns how many things were taken; without any the batch is gone.
    pub fn finish(mut self) -> io::Result<u64> {
        if !self.waiting.is_empty() {
            self.flush()?;
        }
        let Self { attic, id, n_taken, .. } = self;
        if attic.is_bin || n_taken == 0 {
            tree::remove_all(attic.dir.as_fd(), OsStr::new(&id))?;
        }
        if attic.is_bin {
            // Not empty when somebody else bakes the same image; then it is theirs to remove.
            drop(std::fs::remove_dir(&attic.path));
        }
        Ok(n_taken)
    }
}

/// Renames something, and where the file system cannot move a directory (one from a lower layer of an overlay), what is in it.
fn move_away(from: BorrowedFd<'_>, name: &OsStr, to: BorrowedFd<'_>, new: &OsStr, depth: usize) -> io::Result<()> {
    let renamed = match rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        // A file system without the flag: nobody but us makes names in a batch.
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(from, name, to, new),
        renamed => renamed,
    };
    match renamed {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::XDEV) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = match rustix::fs::openat(from, name, flags, KernelMode::empty()) {
        Ok(below) if depth < MAX_DEPTH => below,
        Ok(_) | Err(Errno::NOTDIR | Errno::LOOP) => return Err(Errno::XDEV.into()),
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let metadata = super::root::stat_of(&below)?;
    rustix::fs::mkdirat(to, new, KernelMode::from_raw_mode(0o700))?;
    let made = rustix::fs::openat(to, new, flags, KernelMode::empty())?;
    for name in super::root::names_in(&below, usize::MAX)? {
        move_away(below.as_fd(), &name, made.as_fd(), &name, depth + 1)?;
    }
    rustix::fs::fchown(&made, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))?;
    rustix::fs::fchmod(&made, KernelMode::from_raw_mode(metadata.mode.bits()))?;
    sync_directory(&made)?;
    rustix::fs::unlinkat(from, name, AtFlags::REMOVEDIR).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tree::{Next, Step, measure, walk};
    use crate::resource::AbsPath;

    fn take_everything(root: &Root, home: Option<&Path>, now: Timestamp) -> (PathBuf, u64) {
        let top = AbsPath::new("/t").unwrap();
        let directory = tree::open(root, &top).unwrap().unwrap();
        let mut batch = Attic::open(root, home, directory.as_fd()).unwrap().begin(now).unwrap();
        walk(root, &top, &mut |step| {
            if let Step::Entry(entry) = step {
                let extent = measure(entry)?;
                batch.take(entry, &entry.path.display().to_string(), extent).unwrap();
            }
            Ok(Next::Pass)
        })
        .unwrap();
        let path = batch.path();
        (path, batch.finish().unwrap())
    }

    fn touch(path: &Path) -> File {
        std::fs::OpenOptions::new().write(true).create_new(true).open(path).unwrap()
    }

    fn n_names(path: &Path) -> usize {
        std::fs::read_dir(path).unwrap().count()
    }

    #[test]
    fn what_is_taken_is_kept_whole_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::create_dir_all(dir.path().join("t/d/e")).unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        for i in 0..600 {
            rustix::fs::ftruncate(touch(&dir.path().join(format!("t/{i}"))), 10).unwrap();
        }
        let home = dir.path().join("state/attic");
        let (batch, n_taken) = take_everything(&root, Some(&home), Timestamp::now());
        assert_eq!((n_taken, n_names(&dir.path().join("t"))), (601, 0));
        assert!(batch.starts_with(&home));
        let manifest = std::fs::read_to_string(batch.join(MANIFEST)).unwrap();
        assert_eq!(manifest.lines().count(), 601);
        let line = manifest.lines().find(|line| line.contains("\"d\"")).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((line["type"].as_str(), line["entries"].as_u64()), (Some("directory"), Some(2)));
        assert!(batch.join(line["kept_as"].to_string()).join("e").is_dir());
    }

    #[test]
    fn batches_go_when_they_are_old_or_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("t")).unwrap();
        let home = dir.path().join("attic");
        let now = Timestamp::now();
        let days_ago = |days: i64| now - SignedDuration::from_hours(24 * days);
        let batches: Vec<PathBuf> = [40_i64, 29, 2, 0]
            .map(|days| {
                rustix::fs::ftruncate(touch(&dir.path().join("t/f")), 1000).unwrap();
                take_everything(&root, Some(&home), days_ago(days)).0
            })
            .into();
        let left = |capacity| {
            let directory = tree::open(&root, &AbsPath::new("/t").unwrap()).unwrap().unwrap();
            Attic::open(&root, Some(&home), directory.as_fd()).unwrap().expire(now, capacity).unwrap();
            batches.iter().map(|batch| batch.exists()).collect::<Vec<_>>()
        };
        assert_eq!(left(10_000), [false, true, true, true]);
        assert_eq!(left(2000), [false, false, true, true]);
        // What was removed today stays, however much it is.
        assert_eq!(left(0), [false, false, false, true]);
    }

    #[test]
    fn without_a_home_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::create_dir_all(dir.path().join("t/d/e")).unwrap();
        assert_eq!(take_everything(&root, None, Timestamp::now()).1, 1);
        assert_eq!(n_names(dir.path()), 1);
    }
}
