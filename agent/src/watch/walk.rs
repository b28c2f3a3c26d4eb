//! Walks a path one component at a time, arming each directory before looking up the next name in it.
//!
//! Nothing is opened for reading and no link is followed by the kernel: every hop is read and resolved here, beneath the
//! root, so that each directory that takes part in the path's meaning is watched, and nothing else.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags, fstatfs, openat, readlinkat, statx};
use rustix::io::Errno;

use super::source::{ArmError, Purpose, Source, Wd};

/// As many hops as the kernel follows.
const MAX_HOPS: u32 = 40;

/// Opens a directory to be the root of all walks.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Id of the mount that a directory is on.
pub(super) fn mount_of(directory: &OwnedFd) -> Option<u64> {
    statx(directory, "", AtFlags::EMPTY_PATH, WANTED).map(|stat| stat.stx_mnt_id).ok()
}

/// Whether there can be a way to a path: whether it is absolute and normalised.
pub(super) fn is_way(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && parts.all(|part| matches!(part, Component::Normal(_)))
        && !path.as_os_str().as_bytes().contains(&0)
}

/// The names of an absolute, normalised path; `None` for any other.
pub(super) fn components(path: &Path) -> Option<VecDeque<OsString>> {
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) || path.as_os_str().as_bytes().contains(&0) {
        return None;
    }
    parts
        .map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
        })
        .collect()
}

/// A directory on the way.
#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    mount: u64,
    armed: OnceCell<Result<Wd, ArmError>>,
}

impl Open {
    fn new(fd: OwnedFd, stat: &Statx) -> Self {
        Self { fd, mount: stat.stx_mnt_id, armed: OnceCell::new() }
    }

    fn arm(&self, source: &mut Source, failed: &mut Option<ArmError>) -> Option<Wd> {
        match self.armed.get_or_init(|| source.arm(self.fd.as_fd(), Purpose::Entries)) {
            Ok(wd) => Some(*wd),
            Err(error) => {
                failed.get_or_insert(*error);
                None
            }
        }
    }
}

/// The directory that a path led to.
#[derive(Debug)]
pub(super) struct Directory {
    open: Rc<Open>,
    /// Its watch, if it could be armed.
    pub(super) wd: Option<Wd>,
}

impl Directory {
    /// An `O_PATH` descriptor of it.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.open.fd.as_fd()
    }

    /// Id of the mount that it is on.
    pub(super) fn mount(&self) -> u64 {
        self.open.mount
    }
}

/// How a walk ended.
#[derive(Debug)]
pub(super) enum End {
    /// At a directory.
    Directory(Directory),
    /// At a name that is not there, or is no directory; it is among the steps, so its coming is noticed.
    Missing,
    /// At something that could not be looked at.
    Unreadable(Errno),
}

/// What a walk found and armed.
#[derive(Debug)]
pub(super) struct Walk {
    /// Each name that was looked up, with the watch of the directory that it was looked up in.
    pub(super) steps: Vec<(Wd, OsString)>,
    /// How it ended.
    pub(super) end: End,
    /// The first arming that failed.
    pub(super) failed: Option<ArmError>,
    /// Set when the last directory is on a file system that does not report every change.
    pub(super) silent: Option<&'static str>,
}

/// Walks to the directory `names`, beneath `root`, and opens it without arming anything.
pub(super) fn open(root: &OwnedFd, names: VecDeque<OsString>) -> Option<Directory> {
    match Walker::default().walk(root, names, None).end {
        End::Directory(directory) => Some(directory),
        End::Missing | End::Unreadable(_) => None,
    }
}

/// Walks one way after the other, and opens and arms once what a way has in common with the one before it.
///
/// It is to be dropped before events are read: what it knows is what whoever changes it will be heard of for.
#[derive(Debug, Default)]
pub(super) struct Walker {
    /// The last way as far as it goes down from the root without a link: each directory with its name in the one before.
    known: Vec<(OsString, Rc<Open>)>,
}

impl Walker {
    /// Walks to the directory `names`, beneath `root`, and arms the way with `source`.
    pub(super) fn walk(
        &mut self,
        root: &OwnedFd,
        mut names: VecDeque<OsString>,
        mut source: Option<&mut Source>,
    ) -> Walk {
        let mut walk = Walk { steps: Vec::new(), end: End::Missing, failed: None, silent: None };
        let top = match self.top(root) {
            Ok(top) => top,
            Err(errno) => return Walk { end: End::Unreadable(errno), ..walk },
        };
        // The way down from the root, for `..` in a link's target.
        let mut way = vec![top];
        let mut hops = 0;
        loop {
            let Some(here) = way.last().map(Rc::clone) else { return walk };
            let Some(name) = names.pop_front() else {
                let wd = source.and_then(|source| here.arm(source, &mut walk.failed));
                walk.silent = silence(&here.fd);
                walk.end = End::Directory(Directory { open: here, wd });
                return walk;
            };
            if name == OsStr::new("..") {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            if let Some(wd) = source.as_deref_mut().and_then(|source| here.arm(source, &mut walk.failed)) {
                walk.steps.push((wd, name.clone()));
            }
            if hops == 0 {
                if let Some((_, next)) = self.known.get(way.len()).filter(|(known, _)| *known == name) {
                    way.push(Rc::clone(next));
                    continue;
                }
                self.known.truncate(way.len());
            }
            match step(&here.fd, &name) {
                Ok(Step::Down(next)) => {
                    let next = Rc::new(next);
                    if hops == 0 {
                        self.known.push((name, Rc::clone(&next)));
                    }
                    way.push(next);
                }
                Ok(Step::Hop(target)) => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        walk.end = End::Unreadable(Errno::LOOP);
                        return walk;
                    }
                    if target.first() == Some(&b'/') {
                        way.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        if !matches!(part, b"" | b".") {
                            names.push_front(OsString::from_vec(part.to_vec()));
                        }
                    }
                }
                Ok(Step::Nothing) => {
                    walk.silent = silence(&here.fd);
                    return walk;
                }
                Err(errno) => {
                    walk.end = End::Unreadable(errno);
                    return walk;
                }
            }
        }
    }

    fn top(&mut self, root: &OwnedFd) -> Result<Rc<Open>, Errno> {
        if let Some((_, top)) = self.known.first() {
            return Ok(Rc::clone(top));
        }
        let fd = root.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let stat = statx(&fd, "", AtFlags::EMPTY_PATH, WANTED)?;
        let top = Rc::new(Open::new(fd, &stat));
        self.known.push((OsString::new(), Rc::clone(&top)));
        Ok(top)
    }
}

enum Step {
    Down(Open),
    Hop(Vec<u8>),
    Nothing,
}

fn step(here: &OwnedFd, name: &OsStr) -> Result<Step, Errno> {
    let fd = match openat(here, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(Step::Nothing),
        Err(errno) => return Err(errno),
    };
    let stat = statx(&fd, "", AtFlags::EMPTY_PATH, WANTED)?;
    Ok(match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => Step::Down(Open::new(fd, &stat)),
        FileType::Symlink => Step::Hop(readlinkat(&fd, "", Vec::new())?.into_bytes()),
        FileType::RegularFile
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Step::Nothing,
    })
}

/// File systems whose content can change without this kernel's doing, or without an event.
fn silence(fd: &OwnedFd) -> Option<&'static str> {
    Some(match fstatfs(fd).ok()?.f_type {
        0x6969 => "NFS reports no changes by others",
        0x517B | 0xFF53_4D42 | 0xFE53_4D42 => "SMB reports no changes by others",
        0x6573_5546 => "FUSE need not report changes",
        0x0102_1997 => "9p reports no changes by others",
        0x00C3_6400 => "Ceph reports no changes by others",
        0x5346_414F | 0x6B41_4653 => "AFS reports no changes by others",
        0x0BD0_0BD0 => "Lustre reports no changes by others",
        0x0116_1970 | 0x7461_636F | 0x4750_4653 | 0x1983_0326 => "a cluster file system reports no changes by others",
        0x786F_4256 => "a VirtualBox share reports no changes by others",
        0x9FA0 | 0x6265_6572 | 0x6367_7270 | 0x0027_E0EB => "the kernel's own file systems report no changes",
        _ => return None,
    })
}

const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID);

/// Metadata by which polling tells whether to look again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    mount: u64,
    device: (u32, u32),
    inode: u64,
    ctime: (i64, u32),
    size: u64,
    mode: u16,
    owner: (u32, u32),
    n_links: u32,
    /// What it says, where its metadata do not tell of changes.
    content: Vec<u8>,
}

/// By what a change of something is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tells {
    /// Metadata.
    Metadata,
    /// What it says, where the file system is the kernel's own.
    Content,
}

/// What one look at a name showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Glance {
    /// It is there.
    Present(Identity),
    /// Nothing is there.
    Absent,
    /// It could not be looked at.
    Unreadable(Errno),
}

impl Glance {
    /// Whether it changed so recently that another change might carry the same time stamp.
    pub(super) fn is_fresh(&self, now: std::time::SystemTime) -> bool {
        let Self::Present(identity) = self else { return false };
        let now = now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let (seconds, nanoseconds) = identity.ctime;
        let then = u128::try_from(seconds).unwrap_or(0) * 1000 + u128::from(nanoseconds / 1_000_000);
        now < then + 50
    }
}

/// Looks at `name` in a directory without following a link, and arms a watch on the thing itself where the watch on the
/// directory would miss changes: a directory's own attributes at a mount point, a file with another name elsewhere.
pub(super) fn glance(
    directory: &Directory,
    name: &OsStr,
    tells: Tells,
    source: &mut Source,
) -> (Glance, Option<Result<Wd, ArmError>>) {
    // No name means all of them: the directory's own times say that some came or went. Its watch announces them.
    let (flags, is_all) = match name.is_empty() {
        true => (AtFlags::EMPTY_PATH, true),
        false => (AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, false),
    };
    let stat = match statx(&directory.open.fd, name, flags, WANTED) {
        Ok(stat) if is_all => return (Glance::Present(identity(&stat)), None),
        Ok(stat) => stat,
        Err(Errno::NOENT) => return (Glance::Absent, None),
        Err(errno) => return (Glance::Unreadable(errno), None),
    };
    if tells == Tells::Content && silence(&directory.open.fd).is_some() {
        return (content(&directory.open.fd, name, &stat), None);
    }
    let purpose = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => Some(Purpose::DirectoryItself),
        FileType::RegularFile if stat.stx_nlink > 1 || stat.stx_mnt_id != directory.open.mount => {
            Some(Purpose::FileItself)
        }
        FileType::RegularFile
        | FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => None,
    };
    let armed = purpose.and_then(|purpose| {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Gone since the look above: the directory's watch has announced it.
        let fd = openat(&directory.open.fd, name, flags, Mode::empty()).ok()?;
        Some(source.arm(fd.as_fd(), purpose))
    });
    (Glance::Present(identity(&stat)), armed)
}

/// Longest content that is compared: of a setting of the kernel.
const MAX_CONTENT: usize = 4096;

/// What a file of the kernel says. Its metadata say only when somebody first looked at it.
fn content(directory: &OwnedFd, name: &OsStr, stat: &Statx) -> Glance {
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
        return Glance::Present(identity(stat));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let read = || {
        let file = openat(directory, name, flags, Mode::empty())?;
        let mut buffer = vec![0; MAX_CONTENT];
        let length = rustix::io::read(&file, buffer.as_mut_slice())?;
        buffer.truncate(length);
        Ok(buffer)
    };
    match read() {
        Ok(content) => Glance::Present(Identity { inode: 0, ctime: (0, 0), content, ..identity(stat) }),
        Err(Errno::NOENT) => Glance::Absent,
        Err(errno) => Glance::Unreadable(errno),
    }
}

fn identity(stat: &Statx) -> Identity {
    Identity {
        mount: stat.stx_mnt_id,
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        size: stat.stx_size,
        mode: stat.stx_mode,
        owner: (stat.stx_uid, stat.stx_gid),
        n_links: stat.stx_nlink,
        content: Vec::new(),
    }
}
