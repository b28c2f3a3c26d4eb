//! A disk that remembers every write and every flush, and the disks that a power cut could have made of it.
//!
//! It is one file in a file system of this process's own, under a loop device: what the kernel writes to the device arrives
//! here as writes, and what it flushes as fsync. A write that was followed by a flush is on the disk; of those after the last
//! flush each block may be there or not.

#![expect(unreachable_pub, clippy::unwrap_used, clippy::disallowed_methods, reason = "a test's helpers")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

/// What a disk writes whole or not at all.
const BLOCK: usize = 4096;
const ZEROES: [u8; BLOCK] = [0; BLOCK];
const TTL: Duration = Duration::from_secs(3600);
const IMAGE: &str = "image";

type Blocks = BTreeMap<u64, Box<[u8]>>;

/// What the disk was told.
#[derive(Debug, Clone)]
enum Event {
    /// Number of the block, and what it holds from now on.
    Write(u64, Box<[u8]>),
    Flush,
}

#[derive(Debug, Default)]
struct State {
    size: u64,
    blocks: Blocks,
    log: Vec<Event>,
}

/// A recorded disk with a file system on it, mounted.
pub struct Disk {
    base: Blocks,
    state: Arc<Mutex<State>>,
    work: tempfile::TempDir,
    device: Option<String>,
    session: Option<BackgroundSession>,
}

/// A disk after a power cut.
#[derive(Debug)]
pub struct Cut {
    /// How many events had happened.
    pub at: usize,
    /// Blocks written after the last flush that reached the disk, by index of their event.
    kept: Vec<usize>,
    /// Index of the last flush's event, plus one.
    flushed: usize,
}

impl Disk {
    /// Makes a file system with a program that takes the image's path last, and mounts it on the recorder.
    pub fn new(make: &[&str], megabytes: u64, options: &str) -> Self {
        let work = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let image = work.path().join("made");
        let size = megabytes << 20;
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        run(&[make, &[text(&image)]].concat());
        let base = read_blocks(&image);
        std::fs::remove_file(&image).unwrap();
        let state = Arc::new(Mutex::new(State { size, blocks: base.clone(), log: Vec::new() }));
        let server = work.path().join("server");
        std::fs::create_dir(&server).unwrap();
        std::fs::create_dir(work.path().join("mount")).unwrap();
        let session = fuser::spawn_mount(Server(Arc::clone(&state)), &server, &Config::default()).unwrap();
        let mut disk = Self { base, state, work, device: None, session: Some(session) };
        let device = run(&["losetup", "--find", "--show", "--direct-io=on", text(&server.join(IMAGE))]);
        let device = disk.device.insert(device.trim().to_owned()).clone();
        run(&["mount", "-o", options, &device, text(&disk.mount())]);
        disk
    }

    /// Where it is mounted.
    pub fn mount(&self) -> PathBuf {
        self.work.path().join("mount")
    }

    /// How many events have happened.
    pub fn n_events(&self) -> usize {
        self.state.lock().unwrap().log.len()
    }

    /// Writes everything out, so that what follows begins on a clean disk. Returns how many events have happened.
    pub fn settle(&self) -> usize {
        let mount = std::fs::File::open(self.mount()).unwrap();
        rustix::fs::syncfs(&mount).unwrap();
        self.n_events()
    }

    /// Unmounts; from here on there are only cuts.
    pub fn stop(&mut self) {
        if let Some(device) = self.device.take() {
            run(&["umount", text(&self.mount())]);
            run(&["losetup", "--detach", &device]);
        }
        if let Some(session) = self.session.take() {
            session.umount_and_join().unwrap();
        }
    }

    /// Power cuts while events of `range` happen: right after each flush and at the end with nothing kept that was not flushed
    /// and with everything kept, and, in between, with some of the blocks kept.
    pub fn cuts(&self, range: Range<usize>, chance: &mut Chance) -> Vec<Cut> {
        let state = self.state.lock().unwrap();
        let is_flush = |index: &usize| matches!(state.log[*index], Event::Flush);
        let mut flushed = (0..range.start).rev().find(is_flush).map_or(0, |index| index + 1);
        let mut cuts = Vec::new();
        for at in range.start..=range.end {
            let unflushed: Vec<usize> = (flushed..at).filter(|index| !is_flush(index)).collect();
            if at == range.end || is_flush(&at) {
                cuts.push(Cut { at, kept: Vec::new(), flushed });
                cuts.push(Cut { at, kept: unflushed.clone(), flushed });
                for _ in 0..2 {
                    cuts.push(Cut { at, kept: chance.some(&unflushed), flushed });
                }
                // All but one: the one that matters may be any.
                let mut kept = unflushed.clone();
                if !kept.is_empty() {
                    kept.remove(chance.below(kept.len()));
                }
                cuts.push(Cut { at, kept, flushed });
                flushed = at + 1;
            } else if chance.below(4) == 0 {
                cuts.push(Cut { at, kept: chance.some(&unflushed), flushed });
            }
        }
        cuts
    }

    /// Mounts the disk as after a cut, which replays its journal, and has a look.
    pub fn after<T>(&self, cut: &Cut, options: &str, look: impl FnOnce(&Path) -> T) -> T {
        let image = self.work.path().join("cut");
        let mount = self.mount();
        {
            let state = self.state.lock().unwrap();
            let file = std::fs::File::create(&image).unwrap();
            file.set_len(state.size).unwrap();
            let mut blocks: BTreeMap<u64, &[u8]> =
                self.base.iter().map(|(number, block)| (*number, &**block)).collect();
            for index in (0..cut.flushed).chain(cut.kept.iter().copied()) {
                if let Event::Write(number, block) = &state.log[index] {
                    blocks.insert(*number, block);
                }
            }
            for (number, block) in blocks {
                file.write_all_at(block, number * BLOCK as u64).unwrap();
            }
        }
        run(&["mount", "-o", &format!("loop,{options}"), text(&image), text(&mount)]);
        let seen = look(&mount);
        run(&["umount", text(&mount)]);
        seen
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that fails leaves neither a mount nor a loop device.
        if self.device.is_some() {
            std::process::Command::new("umount").arg("-l").arg(self.mount()).status().ok();
        }
        if let Some(device) = self.device.take() {
            std::process::Command::new("losetup").args(["--detach", &device]).status().ok();
        }
        if let Some(session) = self.session.take() {
            session.umount_and_join().ok();
        }
    }
}

fn read_blocks(image: &Path) -> Blocks {
    let mut file = std::fs::File::open(image).unwrap();
    let mut blocks = Blocks::new();
    let mut block = vec![0; BLOCK];
    for number in 0.. {
        match file.read_exact(&mut block) {
            Ok(()) if block == ZEROES => {}
            Ok(()) => drop(blocks.insert(number, block.clone().into())),
            Err(_) => break,
        }
    }
    blocks
}

/// Runs a program that must succeed, and returns what it printed.
pub fn run(command: &[&str]) -> String {
    let output = std::process::Command::new(command[0]).args(&command[1..]).output();
    let output = output.unwrap_or_else(|e| panic!("{command:?} is needed: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Numbers that look like chance and are the same in every run.
pub struct Chance(pub u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn some(&mut self, of: &[usize]) -> Vec<usize> {
        of.iter().copied().filter(|_| self.below(2) == 0).collect()
    }

    /// At most `n` of these.
    pub fn sample<T>(&mut self, mut of: Vec<T>, n: usize) -> Vec<T> {
        while of.len() > n {
            of.swap_remove(self.below(of.len()));
        }
        of
    }
}

struct Server(Arc<Mutex<State>>);

impl Server {
    fn attr(&self, ino: u64) -> FileAttr {
        let (kind, size) = match ino {
            1 => (FileType::Directory, 0),
            _ => (FileType::RegularFile, self.0.lock().unwrap().size),
        };
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == IMAGE {
            reply.entry(&TTL, &self.attr(2), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino.0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // No page cache in between: what the device is told is told here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.lock().unwrap();
        let mut data = Vec::with_capacity(size as usize);
        let end = (offset + u64::from(size)).min(state.size);
        while offset + (data.len() as u64) < end {
            let at = offset + data.len() as u64;
            let (number, skip) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let block = state.blocks.get(&number).map_or(&ZEROES[..], |block| block);
            let n = (BLOCK - skip).min((end - at) as usize);
            data.extend_from_slice(&block[skip..skip + n]);
        }
        reply.data(&data);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock().unwrap();
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (number, skip) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let n = (BLOCK - skip).min(data.len() - done);
            let mut block = state.blocks.get(&number).map_or_else(|| ZEROES.to_vec(), |block| block.to_vec());
            block[skip..skip + n].copy_from_slice(&data[done..done + n]);
            let block: Box<[u8]> = block.into();
            state.blocks.insert(number, block.clone());
            state.log.push(Event::Write(number, block));
            done += n;
        }
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.lock().unwrap().log.push(Event::Flush);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
