//! A file system in memory that fails when it is told to, and that looks at a file after every operation.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tempfile::TempDir;

/// Nothing is cached: every look is an operation that can fail.
const NO_TIME: Duration = Duration::ZERO;
const ROOT: u64 = 1;
/// The file that is looked at after every operation.
pub(super) const WITNESSED: &str = "f";
/// A file that something is mounted on, to look it up never fails.
pub(super) const MOUNTED_ON: &str = "state.db-shm";

/// Which operations fail, counted from 1, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) errno: i32,
}

/// The mounted file system.
pub(super) struct Disk {
    state: Arc<Mutex<State>>,
    at: TempDir,
    session: Option<BackgroundSession>,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    n_operations: usize,
    fault: Option<Fault>,
    failed: Option<&'static str>,
    seen: Vec<Option<Vec<u8>>>,
}

#[derive(Debug, Clone)]
struct Node {
    mode: u32,
    uid: u32,
    gid: u32,
    n_links: u32,
    changed: SystemTime,
    attributes: BTreeMap<OsString, Vec<u8>>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Directory(BTreeMap<OsString, u64>),
    File(Vec<u8>),
    Link(Vec<u8>),
}

/// Something to begin with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Made {
    Directory,
    File(&'static str),
    Link(&'static str),
}

impl Disk {
    pub(super) fn mount() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        state.lock().unwrap().reset();
        let at = tempfile::tempdir().unwrap();
        let session = fuser::spawn_mount(Server(Arc::clone(&state)), at.path(), &Config::default()).unwrap();
        Self { state, at, session: Some(session) }
    }

    pub(super) fn path(&self) -> &Path {
        self.at.path()
    }

    /// Forgets everything, and holds only the witnessed file with this content and mode 0644.
    pub(super) fn reset(&self, content: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.reset();
        state.insert(ROOT, OsStr::new(WITNESSED), Kind::File(content.to_vec()), 0o644).unwrap();
    }

    /// Forgets everything, and holds these: parents first, directories of mode 0755 and files of mode 0644.
    pub(super) fn reset_to(&self, all: &[(&str, Made)]) {
        let mut state = self.state.lock().unwrap();
        state.reset();
        for (path, made) in all {
            let (kind, mode) = match made {
                Made::Directory => (Kind::Directory(BTreeMap::new()), 0o755),
                Made::File(content) => (Kind::File(content.as_bytes().to_vec()), 0o644),
                Made::Link(target) => (Kind::Link(target.as_bytes().to_vec()), 0o777),
            };
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = parent.split('/').filter(|part| !part.is_empty());
            let parent = parent.fold(ROOT, |ino, part| state.find(ino, OsStr::new(part)).unwrap());
            state.insert(parent, OsStr::new(name), kind, mode).unwrap();
        }
    }

    /// All that it holds, by path, as a line each: `0755`, `0644 content` or `-> target`.
    pub(super) fn tree(&self) -> BTreeMap<String, String> {
        let state = self.state.lock().unwrap();
        let mut tree = BTreeMap::new();
        let mut left = vec![(String::new(), ROOT)];
        while let Some((path, ino)) = left.pop() {
            let node = state.node(ino).unwrap();
            let line = match &node.kind {
                Kind::Directory(names) => {
                    left.extend(names.iter().map(|(name, ino)| (format!("{path}/{}", name.to_str().unwrap()), *ino)));
                    format!("{:04o}", node.mode & 0o7777)
                }
                Kind::File(content) => format!("{:04o} {}", node.mode & 0o7777, String::from_utf8_lossy(content)),
                Kind::Link(target) => format!("-> {}", String::from_utf8_lossy(target)),
            };
            tree.insert(path, line);
        }
        tree
    }

    /// Begins to count operations, and to fail some of them.
    pub(super) fn fail(&self, fault: Option<Fault>) {
        let mut state = self.state.lock().unwrap();
        (state.n_operations, state.fault, state.failed) = (0, fault, None);
        state.seen.clear();
    }

    /// Operations since they are counted.
    pub(super) fn n_operations(&self) -> usize {
        self.state.lock().unwrap().n_operations
    }

    /// The first operation that failed.
    pub(super) fn failed(&self) -> Option<&'static str> {
        self.state.lock().unwrap().failed
    }

    /// What the witnessed file held after each operation; `None` where it was not there.
    pub(super) fn seen(&self) -> Vec<Option<Vec<u8>>> {
        self.state.lock().unwrap().seen.clone()
    }

    /// The names at the top.
    pub(super) fn names(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.directory(ROOT).unwrap().keys().map(|name| name.to_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            session.umount_and_join().ok();
        }
    }
}

impl State {
    fn reset(&mut self) {
        self.nodes.clear();
        self.next = self.next.max(ROOT);
        self.nodes.insert(ROOT, Node::new(Kind::Directory(BTreeMap::new()), 0o755));
    }

    fn node(&self, ino: u64) -> Result<&Node, Errno> {
        self.nodes.get(&ino).ok_or(Errno::ENOENT)
    }

    fn node_mut(&mut self, ino: u64) -> Result<&mut Node, Errno> {
        let node = self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)?;
        node.changed = SystemTime::now();
        Ok(node)
    }

    fn directory(&self, ino: u64) -> Result<&BTreeMap<OsString, u64>, Errno> {
        match &self.node(ino)?.kind {
            Kind::Directory(names) => Ok(names),
            Kind::File(_) | Kind::Link(_) => Err(Errno::ENOTDIR),
        }
    }

    fn directory_mut(&mut self, ino: u64) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match &mut self.node_mut(ino)?.kind {
            Kind::Directory(names) => Ok(names),
            Kind::File(_) | Kind::Link(_) => Err(Errno::ENOTDIR),
        }
    }

    fn content_mut(&mut self, ino: u64) -> Result<&mut Vec<u8>, Errno> {
        match &mut self.node_mut(ino)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Directory(_) => Err(Errno::EISDIR),
            Kind::Link(_) => Err(Errno::EINVAL),
        }
    }

    fn find(&self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.directory(parent)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn insert(&mut self, parent: u64, name: &OsStr, kind: Kind, mode: u32) -> Result<u64, Errno> {
        if self.directory(parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.next += 1;
        let ino = self.next;
        self.nodes.insert(ino, Node::new(kind, mode));
        self.directory_mut(parent)?.insert(name.to_owned(), ino);
        Ok(ino)
    }

    fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let ino = self.directory_mut(parent)?.remove(name).ok_or(Errno::ENOENT)?;
        // Whoever has it open keeps it; nothing is ever freed here.
        self.node_mut(ino)?.n_links = 0;
        Ok(())
    }

    fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), flags: RenameFlags) -> Result<(), Errno> {
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return Err(Errno::EINVAL);
        }
        let ino = self.find(from.0, from.1)?;
        if self.find(to.0, to.1).is_ok() {
            if flags.contains(RenameFlags::RENAME_NOREPLACE) {
                return Err(Errno::EEXIST);
            }
            self.remove(to.0, to.1)?;
        }
        self.directory_mut(from.0)?.remove(from.1);
        self.directory_mut(to.0)?.insert(to.1.to_owned(), ino);
        Ok(())
    }

    fn attr(&self, ino: u64) -> Result<FileAttr, Errno> {
        let node = self.node(ino)?;
        let (kind, size) = match &node.kind {
            Kind::Directory(_) => (FileType::Directory, 0),
            Kind::File(content) => (FileType::RegularFile, content.len() as u64),
            Kind::Link(target) => (FileType::Symlink, target.len() as u64),
        };
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: node.changed,
            mtime: node.changed,
            ctime: node.changed,
            crtime: node.changed,
            kind,
            perm: (node.mode & 0o7777) as u16,
            nlink: node.n_links,
            uid: node.uid,
            gid: node.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Node {
    fn new(kind: Kind, mode: u32) -> Self {
        let (uid, gid) = crate::host::current_ids();
        Self { mode, uid, gid, n_links: 1, changed: SystemTime::now(), attributes: BTreeMap::new(), kind }
    }
}

struct Server(Arc<Mutex<State>>);

impl Server {
    /// Does one operation, or fails it, and looks at the witnessed file afterwards.
    fn operate<T>(
        &self,
        name: &'static str,
        operation: impl FnOnce(&mut MutexGuard<'_, State>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.n_operations += 1;
        let n = state.n_operations;
        let result = match state.fault {
            Some(fault) if (fault.first..=fault.last).contains(&n) => {
                state.failed.get_or_insert(name);
                Err(Errno::from_i32(fault.errno))
            }
            Some(_) | None => operation(&mut state),
        };
        let seen = match state.find(ROOT, OsStr::new(WITNESSED)).and_then(|ino| state.node(ino)) {
            Ok(Node { kind: Kind::File(content), .. }) => Some(content.clone()),
            Ok(_) | Err(_) => None,
        };
        state.seen.push(seen);
        result
    }
}

macro_rules! answer {
    ($reply:ident, $result:expr, $ok:expr) => {
        match $result {
            Ok(value) => $ok(value),
            Err(errno) => $reply.error(errno),
        }
    };
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let find = |state: &mut MutexGuard<'_, State>| state.find(parent.0, name).and_then(|ino| state.attr(ino));
        // The kernel gives up what is mounted on a name that it cannot look up.
        let found = if name == MOUNTED_ON {
            find(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        } else {
            self.operate("lookup", find)
        };
        answer!(reply, found, |attr| reply.entry(&NO_TIME, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.operate("getattr", |state| state.attr(ino.0)), |attr| reply.attr(&NO_TIME, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = self.operate("setattr", |state| {
            let node = state.node_mut(ino.0)?;
            node.mode = mode.unwrap_or(node.mode);
            node.uid = uid.unwrap_or(node.uid);
            node.gid = gid.unwrap_or(node.gid);
            if let Some(size) = size {
                state.content_mut(ino.0)?.resize(size as usize, 0);
            }
            state.attr(ino.0)
        });
        answer!(reply, set, |attr| reply.attr(&NO_TIME, &attr));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let made = self.operate("mkdir", |state| {
            let ino = state.insert(parent.0, name, Kind::Directory(BTreeMap::new()), mode)?;
            state.attr(ino)
        });
        answer!(reply, made, |attr| reply.entry(&NO_TIME, &attr, Generation(0)));
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.operate("symlink", |state| {
            let target = target.as_os_str().as_encoded_bytes().to_vec();
            let ino = state.insert(parent.0, name, Kind::Link(target), 0o777)?;
            state.attr(ino)
        });
        answer!(reply, made, |attr| reply.entry(&NO_TIME, &attr, Generation(0)));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let read = self.operate("readlink", |state| match &state.node(ino.0)?.kind {
            Kind::Link(target) => Ok(target.clone()),
            Kind::Directory(_) | Kind::File(_) => Err(Errno::EINVAL),
        });
        answer!(reply, read, |target: Vec<u8>| reply.data(&target));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.operate("unlink", |state| state.remove(parent.0, name)), |()| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.operate("rmdir", |state| state.remove(parent.0, name)), |()| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.operate("rename", |state| state.rename((parent.0, name), (new_parent.0, new_name), flags));
        answer!(reply, renamed, |()| reply.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.operate("open", |state| state.node(ino.0).map(drop));
        answer!(reply, opened, |()| reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.operate("create", |state| {
            let ino = state.insert(parent.0, name, Kind::File(Vec::new()), mode)?;
            state.attr(ino)
        });
        answer!(reply, made, |attr| reply.created(
            &NO_TIME,
            &attr,
            Generation(0),
            FileHandle(0),
            FopenFlags::FOPEN_DIRECT_IO
        ));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.operate("read", |state| {
            let content = state.content_mut(ino.0)?;
            let rest = content.get(offset as usize..).unwrap_or_default();
            Ok(rest[..rest.len().min(size as usize)].to_vec())
        });
        answer!(reply, read, |data: Vec<u8>| reply.data(&data));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.operate("write", |state| {
            let content = state.content_mut(ino.0)?;
            let (start, end) = (offset as usize, offset as usize + data.len());
            content.resize(content.len().max(end), 0);
            content[start..end].copy_from_slice(data);
            Ok(data.len() as u32)
        });
        answer!(reply, written, |n| reply.written(n));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer!(reply, self.operate("flush", |_| Ok(())), |()| reply.ok());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.operate("fsync", |_| Ok(())), |()| reply.ok());
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.operate("fsyncdir", |_| Ok(())), |()| reply.ok());
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.operate("opendir", |state| state.directory(ino.0).map(drop));
        answer!(reply, opened, |()| reply.opened(FileHandle(0), FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let names = self.operate("readdir", |state| {
            let names = state.directory(ino.0)?;
            names.iter().map(|(name, ino)| Ok((name.clone(), state.attr(*ino)?))).collect::<Result<Vec<_>, Errno>>()
        });
        match names {
            Ok(names) => {
                for (n, (name, attr)) in (1_u64..).zip(names).skip(offset as usize) {
                    if reply.add(attr.ino, n, attr.kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, value: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        let set = self.operate("setxattr", |state| {
            state.node_mut(ino.0)?.attributes.insert(name.to_owned(), value.to_vec());
            Ok(())
        });
        answer!(reply, set, |()| reply.ok());
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let got =
            self.operate("getxattr", |state| state.node(ino.0)?.attributes.get(name).cloned().ok_or(Errno::NO_XATTR));
        answer!(reply, got, |value: Vec<u8>| if size == 0 {
            reply.size(value.len() as u32)
        } else {
            reply.data(&value)
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let listed = self.operate("listxattr", |state| {
            let mut list = Vec::new();
            for name in state.node(ino.0)?.attributes.keys() {
                list.extend_from_slice(name.as_encoded_bytes());
                list.push(0);
            }
            Ok(list)
        });
        answer!(reply, listed, |list: Vec<u8>| if size == 0 {
            reply.size(list.len() as u32)
        } else {
            reply.data(&list)
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.operate("removexattr", |state| {
            state.node_mut(ino.0)?.attributes.remove(name).map(drop).ok_or(Errno::NO_XATTR)
        });
        answer!(reply, removed, |()| reply.ok());
    }
}
