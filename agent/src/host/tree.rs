//! Walks everything beneath a directory, in memory that does not grow with the number of entries.
//!
//! By descriptors alone: no link is followed, no other mount entered, nothing but directories opened. Names are bytes. What
//! vanishes during the walk, or turns into something else, is passed over: it is no longer there to be judged. Whoever may
//! write to the tree can at most hide what they have just put there, or end the walk with an error by nesting deeper than
//! [`MAX_DEPTH`].

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::root::{FileType, Metadata, Root, stat_at, sync_directory};
use crate::resource::AbsPath;

/// Directories inside each other; each holds a descriptor while what is in it is walked.
pub const MAX_DEPTH: usize = 200;

/// Something beneath the directory.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The directory that it is in, open for reading.
    pub dir: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a OsStr,
    /// Its path from the directory that is walked. It may be longer than any system call takes.
    pub path: &'a Path,
    /// Its metadata, without extended attributes.
    pub metadata: &'a Metadata,
}

/// What a walk comes by.
#[derive(Debug)]
pub enum Step<'a> {
    /// Something. What is answered says how to go on.
    Entry(&'a Entry<'a>),
    /// A directory that was entered is done with: everything in it was shown. Its name, and the directory that it is in.
    Left(BorrowedFd<'a>, &'a OsStr),
}

/// How to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Into it, if it is a directory of this mount.
    Enter,
    /// Past it.
    Pass,
    /// No further.
    Stop,
}

/// Something that kept a walk from being complete. `Display` leaves out the source.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{}`", path.display())]
pub struct WalkError {
    /// In words.
    pub operation: &'static str,
    /// From the directory that was walked; empty for that itself.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// A directory that is being read.
struct Level {
    dir: Dir,
    /// Length of its path.
    length: usize,
}

/// Shows everything beneath a directory to `visit`, a directory before what is in it, in the order of the file system.
/// Returns `false` when there is no such directory: nothing, something else, or a link.
pub fn walk(
    root: &Root,
    path: &AbsPath,
    visit: &mut dyn FnMut(Step<'_>) -> Result<Next, WalkError>,
) -> Result<bool, WalkError> {
    match open(root, path) {
        Ok(Some(top)) => walk_in(top, visit).map(|()| true),
        Ok(None) => Ok(false),
        Err(source) => Err(WalkError { operation: "open the directory", path: PathBuf::new(), source }),
    }
}

/// Opens a directory for reading; `None` when there is none. A link is none.
pub fn open(root: &Root, path: &AbsPath) -> io::Result<Option<OwnedFd>> {
    let (Some(parent), Some(name)) = (path.as_path().parent(), path.as_path().file_name()) else {
        return root
            .as_fd()
            .try_clone_to_owned()
            .and_then(|dir| enter(dir.as_fd(), OsStr::new("."), ResolveFlags::empty()));
    };
    match root.directory(parent)? {
        Some(dir) => enter(dir.as_fd(), name, ResolveFlags::empty()),
        None => Ok(None),
    }
}

/// Shows the name of everything in a directory that is no directory itself, in no order. A link to the directory is followed where
/// the root follows it.
pub fn names(root: &Root, path: &AbsPath, visit: &mut dyn FnMut(&OsStr)) -> io::Result<()> {
    let Some(directory) = root.directory(path.as_path())? else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for entry in Dir::new(rustix::fs::openat(&directory, ".", flags, Mode::empty())?)? {
        let entry = entry?;
        if entry.file_type() != rustix::fs::FileType::Directory {
            visit(OsStr::from_bytes(entry.file_name().to_bytes()));
        }
    }
    Ok(())
}

/// As [`walk`], from an open directory.
pub fn walk_in(top: OwnedFd, visit: &mut dyn FnMut(Step<'_>) -> Result<Next, WalkError>) -> Result<(), WalkError> {
    // The path from the top; shared by all levels.
    let mut path: Vec<u8> = Vec::new();
    let failed = |operation, path: &[u8], source: io::Error| WalkError {
        operation,
        path: PathBuf::from(OsString::from_vec(path.to_vec())),
        source,
    };
    let mut levels = vec![Level { dir: Dir::new(top).map_err(|e| failed("list", &path, e.into()))?, length: 0 }];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.length);
        let entry = match level.dir.read() {
            Some(Ok(entry)) => entry,
            // The directory itself was removed meanwhile.
            Some(Err(Errno::NOENT)) | None => {
                let done = path.clone();
                levels.pop();
                let Some(above) = levels.last() else { return Ok(()) };
                let name = done.get(above.length..).unwrap_or_default();
                let name = OsStr::from_bytes(name.strip_prefix(b"/").unwrap_or(name));
                let dir = above.dir.fd().map_err(|e| failed("read", &done, e.into()))?;
                if visit(Step::Left(dir, name))? == Next::Stop {
                    return Ok(());
                }
                continue;
            }
            Some(Err(errno)) => return Err(failed("list", &path, errno.into())),
        };
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let dir = level.dir.fd().map_err(|e| failed("read", &path, e.into()))?;
        let metadata = match stat_at(&dir, name) {
            Ok(Some(metadata)) => metadata,
            Ok(None) => continue,
            Err(error) => return Err(failed("look at", &path, error)),
        };
        let shown = Path::new(OsStr::from_bytes(&path));
        match visit(Step::Entry(&Entry { dir, name, path: shown, metadata: &metadata }))? {
            Next::Stop => return Ok(()),
            Next::Pass => {}
            Next::Enter if metadata.file_type != FileType::Directory || metadata.is_mount => {}
            Next::Enter => match enter(dir, name, ResolveFlags::NO_XDEV) {
                Ok(Some(below)) => {
                    if levels.len() > MAX_DEPTH {
                        let why = format!("directories are nested more than {MAX_DEPTH} deep");
                        return Err(failed("enter", &path, io::Error::new(io::ErrorKind::InvalidInput, why)));
                    }
                    let dir = Dir::new(below).map_err(|e| failed("list", &path, e.into()))?;
                    levels.push(Level { dir, length: path.len() });
                }
                Ok(None) => {}
                Err(error) => return Err(failed("enter", &path, error)),
            },
        }
    }
    Ok(())
}

/// Opens a directory by its name; `None` when it is gone, something else, or on another mount.
fn enter(dir: BorrowedFd<'_>, name: &OsStr, resolve: ResolveFlags) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve | ResolveFlags::NO_SYMLINKS) {
        // An older kernel, or a filter of system calls. What is mounted there was seen before.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty()),
        opened => opened,
    };
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// How much there is at a name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Everything, itself included.
    pub n_entries: u64,
    /// Bytes of all regular files.
    pub n_bytes: u64,
    /// Whether something is mounted in it.
    pub has_mount: bool,
}

/// Measures what is at a name, all that is beneath it included.
pub fn measure(entry: &Entry<'_>) -> Result<Extent, WalkError> {
    measure_until(entry, &mut |_| false).map(Option::unwrap_or_default)
}

/// Measures what is at a name, unless something beneath it is found, which ends it: `is_found` gets whole paths, that of the
/// entry included.
pub fn measure_until(entry: &Entry<'_>, is_found: &mut dyn FnMut(&Path) -> bool) -> Result<Option<Extent>, WalkError> {
    let mut has_found = false;
    let mut extent = Extent { n_entries: 1, n_bytes: 0, has_mount: entry.metadata.is_mount };
    match entry.metadata.file_type {
        FileType::File => extent.n_bytes = entry.metadata.size,
        FileType::Directory if !extent.has_mount => {
            let failed = |source| WalkError { operation: "enter", path: entry.path.to_path_buf(), source };
            if let Some(top) = enter(entry.dir, entry.name, ResolveFlags::NO_XDEV).map_err(failed)? {
                let walked = walk_in(top, &mut |step| {
                    let Step::Entry(Entry { metadata, path, .. }) = step else { return Ok(Next::Enter) };
                    if is_found(&entry.path.join(path)) {
                        has_found = true;
                        return Ok(Next::Stop);
                    }
                    extent.n_entries += 1;
                    extent.has_mount |= metadata.is_mount;
                    if metadata.file_type == FileType::File {
                        extent.n_bytes = extent.n_bytes.saturating_add(metadata.size);
                    }
                    Ok(Next::Enter)
                });
                walked.map_err(|error| WalkError { path: entry.path.join(&error.path), ..error })?;
            }
        }
        FileType::Directory | FileType::Symlink | FileType::Special => {}
    }
    Ok((!has_found).then_some(extent))
}

/// Removes a directory of the agent's own with everything in it, but nothing that is mounted there, which is an error.
pub fn remove_all(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let unlink = |dir: BorrowedFd<'_>, name: &OsStr, flags| match rustix::fs::unlinkat(dir, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(io::Error::from(error)),
    };
    let Some(top) = enter(dir, name, ResolveFlags::NO_XDEV)? else { return unlink(dir, name, AtFlags::empty()) };
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| WalkError { operation: "remove", path, source }
    };
    walk_in(top, &mut |step| match step {
        Step::Entry(Entry { metadata: Metadata { file_type: FileType::Directory, .. }, .. }) => Ok(Next::Enter),
        Step::Entry(Entry { dir, name, path, .. }) => {
            unlink(*dir, name, AtFlags::empty()).map_err(failed(path)).map(|()| Next::Pass)
        }
        Step::Left(dir, name) => {
            unlink(dir, name, AtFlags::REMOVEDIR).map_err(failed(Path::new(name))).map(|()| Next::Pass)
        }
    })
    .map_err(|error| io::Error::new(error.source.kind(), crate::resource::chain(&error)))?;
    unlink(dir, name, AtFlags::REMOVEDIR)?;
    sync_directory(&dir)
}

/// The path of a directory that is open, beneath the root, as it is without any link; `None` where that cannot be told.
pub fn real_path(root: &Root, directory: BorrowedFd<'_>) -> Option<PathBuf> {
    let path = super::path_of(directory).ok()?;
    let beneath = path.strip_prefix(root.path()).ok()?;
    Some(Path::new("/").join(beneath))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    fn touch(path: &Path) -> std::fs::File {
        std::fs::OpenOptions::new().write(true).create_new(true).open(path).unwrap()
    }

    fn names(root: &Root, path: &str) -> Vec<PathBuf> {
        let mut seen = Vec::new();
        walk(root, &AbsPath::new(path).unwrap(), &mut |step| {
            if let Step::Entry(entry) = step {
                seen.push(entry.path.to_path_buf());
            }
            Ok(Next::Enter)
        })
        .unwrap();
        seen.sort();
        seen
    }

    #[test]
    fn everything_beneath_is_shown_and_no_link_is_followed() {
        let (dir, root) = root();
        std::fs::create_dir_all(dir.path().join("t/a/b")).unwrap();
        touch(&dir.path().join("t/a/b/f"));
        let bytes = OsStr::from_bytes(b"\xff\n");
        touch(&dir.path().join("t").join(bytes));
        std::os::unix::fs::symlink("/", dir.path().join("t/link")).unwrap();
        let expected: Vec<PathBuf> =
            [OsStr::new("a"), OsStr::new("a/b"), OsStr::new("a/b/f"), OsStr::new("link"), bytes]
                .map(PathBuf::from)
                .into();
        assert_eq!(names(&root, "/t"), expected);
        std::os::unix::fs::symlink("t", dir.path().join("to_t")).unwrap();
        assert_eq!(names(&root, "/to_t"), Vec::<PathBuf>::new(), "the last component is never followed");
    }

    #[test]
    fn what_vanishes_is_passed_over() {
        let (dir, root) = root();
        for i in 0..1000 {
            std::fs::create_dir_all(dir.path().join(format!("t/{i:04}/below"))).unwrap();
        }
        let mut n_seen = 0;
        walk(&root, &AbsPath::new("/t").unwrap(), &mut |step| {
            if let Step::Entry(entry) = step {
                // Whatever is shown goes before it can be entered, and at the first much more besides.
                for i in 0..if n_seen == 0 { 500 } else { 0 } {
                    std::fs::remove_dir_all(dir.path().join(format!("t/{i:04}"))).ok();
                }
                n_seen += 1;
                std::fs::remove_dir_all(dir.path().join("t").join(entry.path)).ok();
            }
            Ok(Next::Enter)
        })
        .unwrap();
        assert!((500..=1000).contains(&n_seen), "{n_seen}");
    }

    #[test]
    fn nesting_without_end_is_an_error_and_not_a_crash() {
        let (dir, root) = root();
        let mut here = open(&root, &AbsPath::new("/").unwrap()).unwrap().unwrap();
        for _ in 0..MAX_DEPTH + 10 {
            rustix::fs::mkdirat(&here, "d", Mode::from_raw_mode(0o755)).unwrap();
            here = enter(here.as_fd(), OsStr::new("d"), ResolveFlags::empty()).unwrap().unwrap();
        }
        let error = walk(&root, &AbsPath::new("/").unwrap(), &mut |_| Ok(Next::Enter)).unwrap_err();
        assert_eq!(error.source.to_string(), "directories are nested more than 200 deep");
        drop(dir);
    }

    #[test]
    fn a_tree_is_measured_and_removed() {
        let (dir, root) = root();
        std::fs::create_dir_all(dir.path().join("t/a/b")).unwrap();
        rustix::fs::ftruncate(touch(&dir.path().join("t/a/f")), 1000).unwrap();
        let mut found = Vec::new();
        walk(&root, &AbsPath::new("/t").unwrap(), &mut |step| {
            if let Step::Entry(entry) = step {
                found.push(measure(entry)?);
            }
            Ok(Next::Pass)
        })
        .unwrap();
        assert_eq!(found, [Extent { n_entries: 3, n_bytes: 1000, has_mount: false }]);
        let top = open(&root, &AbsPath::new("/").unwrap()).unwrap().unwrap();
        remove_all(top.as_fd(), OsStr::new("t")).unwrap();
        assert_eq!(names(&root, "/"), Vec::<PathBuf>::new());
    }
}
