//! Resolution of a path's parent directory beneath the root.
//!
//! Never leaves the root, never follows a link that somebody else could have put there, always ends: each followed link
//! counts towards [`MAX_LINKS`].

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::metadata::stat_of;
use super::{FileType, Metadata, Root};
use crate::resource::AbsPath;

/// As many links as the kernel itself would follow.
const MAX_LINKS: usize = 40;

/// How a directory is opened when no link is on the way.
pub(in crate::host) const DIRECTORY_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
pub(in crate::host) const DIRECTORY_RESOLVE: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Where a path's last component is.
pub(super) enum Place {
    /// The path is the root itself.
    Root,
    /// A name in a directory that is there.
    Entry {
        /// An `O_PATH` descriptor of the directory.
        dir: OwnedFd,
        /// The name, which may or may not exist.
        name: OsString,
    },
}

/// Whether nobody but root and the agent's own user may change what is in a directory.
pub(super) fn only_we_may_write(directory: &Metadata) -> bool {
    is_ours(directory) && directory.mode.bits() & 0o022 == 0
}

pub(super) fn is_ours(metadata: &Metadata) -> bool {
    metadata.uid == 0 || metadata.uid == rustix::process::geteuid().as_raw()
}

impl Root {
    /// Finds where the last component of `path` is; `None` when a parent does not exist or is no directory.
    pub(super) fn place(&self, path: &AbsPath) -> io::Result<Option<Place>> {
        let (Some(parent), Some(name)) = (path.as_path().parent(), path.as_path().file_name()) else {
            return Ok(Some(Place::Root));
        };
        let dir = self.directory(parent)?;
        Ok(dir.map(|dir| Place::Entry { dir, name: name.to_os_string() }))
    }

    /// Opens a directory (`O_PATH`) by absolute path; `None` when it does not exist or is no directory.
    pub(crate) fn directory(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        if relative.as_os_str().is_empty() {
            return self.dir.try_clone().map(Some);
        }
        match rustix::fs::openat2(&self.dir, relative, DIRECTORY_FLAGS, Mode::empty(), DIRECTORY_RESOLVE) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            // A link is among them, or the kernel (or a system call filter) does not know `openat2`.
            Err(Errno::LOOP | Errno::NOSYS | Errno::PERM | Errno::AGAIN) => self.walk(relative),
            Err(error) => Err(error.into()),
        }
    }

    /// Walks component by component, deciding at each link whether it may be followed.
    fn walk(&self, relative: &Path) -> io::Result<Option<OwnedFd>> {
        let mut walk = Walk::from(self.dir.try_clone()?)?;
        let mut ahead: VecDeque<OsString> = components(relative.as_os_str());
        let mut n_links = 0;
        while let Some(component) = ahead.pop_front() {
            if component == ".." {
                walk.up();
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = match rustix::fs::openat(walk.here(), &component, flags, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let metadata = stat_of(&next)?;
            match metadata.file_type {
                FileType::Directory => walk.down(next, &metadata),
                FileType::File | FileType::Special => return Ok(None),
                FileType::Symlink => {
                    if !(is_ours(&metadata) && walk.may_follow_links()) {
                        return Err(io::Error::new(
                            io::ErrorKind::PermissionDenied,
                            format!(
                                "`{}` among its parents is a symbolic link that others may change, so it is not followed",
                                component.display()
                            ),
                        ));
                    }
                    n_links += 1;
                    if n_links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = OsString::from_vec(rustix::fs::readlinkat(&next, "", Vec::new())?.into_bytes());
                    if target.as_bytes().starts_with(b"/") {
                        walk.start_over();
                    }
                    for component in components(&target).into_iter().rev() {
                        ahead.push_front(component);
                    }
                }
            }
        }
        walk.into_here().map(Some)
    }
}

fn components(path: &OsStr) -> VecDeque<OsString> {
    path.as_bytes()
        .split(|b| *b == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| OsStr::from_bytes(part).to_os_string())
        .collect()
}

/// The directories from the root to where the walk is. Holding them open is what makes `..` safe: it goes back to the
/// directory that was passed, never to a new parent that somebody moved it to.
struct Walk {
    root: Step,
    below: Vec<Step>,
}

struct Step {
    dir: OwnedFd,
    /// Nobody else may replace this directory or one above it.
    firm: bool,
    /// Nobody else may write to this directory.
    ours_alone: bool,
}

impl Walk {
    fn from(root: OwnedFd) -> io::Result<Self> {
        let metadata = stat_of(&root)?;
        // The root itself was chosen by whoever started the agent.
        let root = Step { dir: root, firm: true, ours_alone: only_we_may_write(&metadata) };
        Ok(Self { root, below: Vec::new() })
    }

    fn last(&self) -> &Step {
        self.below.last().unwrap_or(&self.root)
    }

    fn here(&self) -> impl AsFd {
        self.last().dir.as_fd()
    }

    fn may_follow_links(&self) -> bool {
        let last = self.last();
        last.firm && last.ours_alone
    }

    fn down(&mut self, dir: OwnedFd, metadata: &Metadata) {
        let parent = self.last();
        // In a sticky directory such as /tmp others may add names but not replace ours.
        let parent_keeps = parent.ours_alone || is_sticky(parent);
        let step = Step {
            dir,
            firm: parent.firm && parent_keeps && is_ours(metadata),
            ours_alone: only_we_may_write(metadata),
        };
        self.below.push(step);
    }

    fn up(&mut self) {
        self.below.pop();
    }

    fn start_over(&mut self) {
        self.below.clear();
    }

    fn into_here(mut self) -> io::Result<OwnedFd> {
        match self.below.pop() {
            Some(step) => Ok(step.dir),
            None => Ok(self.root.dir),
        }
    }
}

fn is_sticky(step: &Step) -> bool {
    stat_of(&step.dir).is_ok_and(|metadata| is_ours(&metadata) && metadata.mode.bits() & 0o1000 != 0)
}
