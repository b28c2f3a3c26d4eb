//! The child: makes the namespace, puts the candidates in place in it, and becomes the validator.
//!
//! Nothing that happens here is seen outside: the namespace's mounts are private, and new files and directories are on a file
//! system in memory. How a candidate gets to its path:
//!
//! - a regular file in the place of a regular file is bound over it;
//! - anything else changes what a directory holds. That directory is *mirrored*: a new one in memory, with every entry of the
//!   old one bound into it, is mounted over the old one, and then changed like any directory. This needs no overlay file system,
//!   which hardened hosts switch off, and works on whatever the directory is on.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::{Entry, FAILED, FAILED_TEXT, Header, Node, decode};
use crate::host::root::{FileType, Metadata, Root, stat_at, stat_of};
use crate::resource::AbsPath;

/// Most entries of a directory that is mirrored: each is a mount.
const MAX_ENTRIES: usize = 20_000;

const LABEL: &str = "security.selinux";

/// Does what standard input says, and becomes the program that it names. Returns only when that failed.
pub fn main() -> ExitCode {
    let mut bytes = Vec::new();
    let error = match io::stdin().lock().read_to_end(&mut bytes) {
        Ok(_) => match decode(&bytes) {
            Some((header, contents)) => enter(&header, &contents),
            None => io::Error::new(io::ErrorKind::InvalidData, "it was not told what to show"),
        },
        Err(error) => error,
    };
    drop(write!(io::stderr(), "{FAILED_TEXT}{error}"));
    FAILED.into()
}

fn enter(header: &Header, contents: &[&[u8]]) -> io::Error {
    // An image need not have one.
    let null = File::open("/dev/null");
    match show(header, contents).and(null) {
        Ok(null) => become_program(&header.argv, null),
        Err(error) => error,
    }
}

#[expect(clippy::disallowed_methods, reason = "it starts nothing: this process becomes the program")]
fn become_program(argv: &[String], stdin: File) -> io::Error {
    let Some((program, args)) = argv.split_first() else {
        return io::Error::new(io::ErrorKind::InvalidInput, "no program is named");
    };
    let error = std::process::Command::new(program).args(args).stdin(Stdio::from(stdin)).exec();
    io::Error::new(error.kind(), format!("cannot start `{program}`: {error}"))
}

fn show(header: &Header, contents: &[&[u8]]) -> io::Result<()> {
    let doing = |what: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(io::Error::from)
        .map_err(doing("make a mount namespace, which needs CAP_SYS_ADMIN"))?;
    mount_at(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)
        .map_err(doing("keep mounts private"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at(Some(Path::new("tmpfs")), &header.scratch, Some("tmpfs"), flags, Some("mode=0700,size=1g"))
        .map_err(doing("mount a file system in memory"))?;
    let mut view = View::new(header)?;
    let mut contents = contents.iter();
    for entry in &header.entries {
        let content = match entry.node {
            Node::File { .. } => contents.next().copied().unwrap_or_default(),
            Node::Symlink { .. } | Node::Directory { .. } | Node::Absent => &[],
        };
        view.put(entry, content)
            .map_err(|error| io::Error::new(error.kind(), format!("put `{}` in place: {error}", entry.path)))?;
    }
    view.finish().map_err(doing("enter"))
}

fn mount_at(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> io::Result<()> {
    mount(source, target, kind, flags, data).map_err(io::Error::from)
}

fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount_at(Some(source), target, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)
}

/// A path that leads to the very thing that a descriptor is open on.
fn through(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

fn open_path(dir: &impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(io::Error::from)
}

struct View {
    /// The root that the validator will have, and where that is.
    root: Root,
    at: PathBuf,
    scratch: PathBuf,
    /// The device of the file system in memory: what is on it is ours to change.
    device: u64,
    n_made: usize,
}

impl View {
    fn new(header: &Header) -> io::Result<Self> {
        let scratch = header.scratch.clone();
        let device = stat_of(&rustix::fs::open(&scratch, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?.identity.0;
        Ok(Self { root: Root::open(&header.root)?, at: header.root.clone(), scratch, device, n_made: 0 })
    }

    /// A name in the file system in memory that nothing has yet.
    fn fresh(&mut self) -> PathBuf {
        self.n_made += 1;
        self.scratch.join(self.n_made.to_string())
    }

    fn is_ours(&self, dir: &OwnedFd) -> io::Result<bool> {
        Ok(stat_of(dir)?.identity.0 == self.device)
    }

    fn put(&mut self, entry: &Entry, content: &[u8]) -> io::Result<()> {
        let path = AbsPath::new(&entry.path).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let (Some(mut parent), Some(name)) = (path.parent(), path.as_path().file_name()) else { return Ok(()) };
        let mut missing: Vec<OsString> = Vec::new();
        let mut dir = loop {
            match self.root.directory(parent.as_path())? {
                Some(dir) => break dir,
                None => {
                    let (Some(above), Some(name)) = (parent.parent(), parent.as_path().file_name()) else {
                        return Err(Errno::NOENT.into());
                    };
                    missing.push(name.to_owned());
                    parent = above;
                }
            }
        };
        let here = if missing.is_empty() { stat_at(&dir, name)? } else { None };
        let found = here.as_ref().map(|metadata| metadata.file_type);
        match (&entry.node, found) {
            (Node::Absent, None) | (Node::Directory { .. }, Some(FileType::Directory)) => return Ok(()),
            (Node::File { .. }, Some(FileType::File)) if !self.is_ours(&dir)? => {
                let path = self.fresh();
                write_file(&rustix::fs::CWD, path.as_os_str(), &entry.node, content)?;
                return bind(&path, &through(&open_path(&dir, name)?));
            }
            (_, _) => {}
        }
        if !self.is_ours(&dir)? {
            dir = self.mirror(&dir, &parent)?;
        }
        for name in missing.iter().rev() {
            rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
            dir = open_path(&dir, name)?;
        }
        if let Some(here) = here {
            clear(&dir, name, &here)?;
        }
        match &entry.node {
            Node::Absent => Ok(()),
            Node::File { .. } => write_file(&dir, name, &entry.node, content),
            Node::Symlink { target } => rustix::fs::symlinkat(target, &dir, name).map_err(io::Error::from),
            Node::Directory { uid, gid, mode } => {
                rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700))?;
                let made = open_directory(&dir, name)?;
                rustix::fs::fchown(&made, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))?;
                rustix::fs::fchmod(&made, Mode::from_raw_mode(*mode)).map_err(io::Error::from)
            }
        }
    }

    /// Puts a directory in memory in the place of one, with the same entries. Returns the new one.
    fn mirror(&mut self, dir: &OwnedFd, path: &AbsPath) -> io::Result<OwnedFd> {
        let place = self.fresh();
        rustix::fs::mkdirat(CWD, &place, Mode::from_raw_mode(0o700))?;
        // A mount of its own, so that it can be moved with all that is mounted in it.
        bind(&place, &place)?;
        let made = open_directory(&CWD, place.as_os_str())?;
        let reading = open_directory(dir, OsStr::new("."))?;
        for (n, entry) in rustix::fs::Dir::read_from(&reading)?.enumerate() {
            if n > MAX_ENTRIES {
                let text = format!("`{path}` has more than {MAX_ENTRIES} entries");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                match mirror_entry(dir, &made, &place, name) {
                    // It went meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => result?,
                }
            }
        }
        let like = stat_of(dir)?;
        rustix::fs::fchown(&made, Some(Uid::from_raw(like.uid)), Some(Gid::from_raw(like.gid)))?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(like.mode.bits()))?;
        copy_label(&through(dir), &place);
        if path.parent().is_none() {
            // Nothing can be mounted over one's own root: another root is entered at the end.
            self.root = Root::open(&place)?;
            self.at = place;
            return Ok(made);
        }
        mount_at(Some(&place), &through(dir), None, MsFlags::MS_MOVE, None)?;
        self.root.directory(path.as_path())?.ok_or_else(|| Errno::NOENT.into())
    }

    fn finish(self) -> io::Result<()> {
        let View { root, at, scratch, .. } = self;
        drop(root);
        if at == Path::new("/") {
            // What is bound elsewhere stays; the contents are no longer in a second place.
            umount2(&scratch, MntFlags::MNT_DETACH)?;
        } else {
            rustix::process::chroot(&at)?;
        }
        rustix::process::chdir("/").map_err(io::Error::from)
    }
}

fn mirror_entry(dir: &OwnedFd, made: &OwnedFd, place: &Path, name: &OsStr) -> io::Result<()> {
    let source = open_path(dir, name)?;
    let metadata = stat_of(&source)?;
    match metadata.file_type {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&source, "", Vec::new())?;
            rustix::fs::symlinkat(target, made, name)?;
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
            rustix::fs::chownat(made, name, Some(uid), Some(gid), flags).map_err(io::Error::from)
        }
        FileType::Directory => {
            rustix::fs::mkdirat(made, name, Mode::from_raw_mode(0o700))?;
            bind(&through(&source), &place.join(name))
        }
        FileType::File | FileType::Special => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            drop(rustix::fs::openat(made, name, flags, Mode::from_raw_mode(0o600))?);
            bind(&through(&source), &place.join(name))
        }
    }
}

/// Removes an entry of a directory of ours, with whatever is mounted on it.
fn clear(dir: &OwnedFd, name: &OsStr, here: &Metadata) -> io::Result<()> {
    match here.file_type {
        FileType::Symlink => {}
        FileType::File | FileType::Directory | FileType::Special => {
            let top = open_path(dir, name)?;
            match umount2(&through(&top), MntFlags::MNT_DETACH) {
                // It is one of ours, with nothing on it.
                Ok(()) | Err(nix::Error::EINVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let flags = match here.file_type {
        FileType::Directory => AtFlags::REMOVEDIR,
        FileType::File | FileType::Symlink | FileType::Special => AtFlags::empty(),
    };
    rustix::fs::unlinkat(dir, name, flags).map_err(io::Error::from)
}

fn open_directory(dir: &impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(io::Error::from)
}

fn write_file(dir: &impl AsFd, name: &OsStr, node: &Node, content: &[u8]) -> io::Result<()> {
    let Node::File { uid, gid, mode, label, .. } = node else { return Ok(()) };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(content)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))?;
    // After the owner, because a change of owner strips the set-user-id bit.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode))?;
    if let Some(label) = label {
        // A file system in memory that keeps no labels is as good.
        rustix::fs::fsetxattr(&file, LABEL, label.as_bytes(), XattrFlags::empty()).ok();
    }
    Ok(())
}

/// Gives the mirror the label of what it stands for, where there are labels.
fn copy_label(from: &Path, to: &Path) {
    let mut label = vec![0; 1024];
    if let Ok(n) = rustix::fs::getxattr(from, LABEL, label.as_mut_slice()) {
        rustix::fs::setxattr(to, LABEL, label.get(..n).unwrap_or_default(), XattrFlags::empty()).ok();
    }
}
