//! The other process: it drifts declared files as programs do, and looks at them as readers do, by opening the path.
//!
//! It takes all times itself, so that a drift and the sight of its repair are read from one clock by one thread.

use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rekindle_tests::put;
use rustix::fs::{CWD, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::clock::{self, Stamp, between};
use crate::process::{answer, pause, read_spec, say_ready};
use crate::tree;

/// Ways to drift a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Kind {
    /// Open, overwrite all of it in place, close.
    Content,
    /// chmod.
    Mode,
    /// unlink.
    Delete,
    /// Rename another file over it, as editors and package managers do.
    RenameOver,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Content, Self::Mode, Self::Delete, Self::RenameOver];

    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Content => "overwritten in place",
            Self::Mode => "its mode changed",
            Self::Delete => "deleted",
            Self::RenameOver => "replaced by rename",
        }
    }
}

/// Drifts of files in turn, one after the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drifts {
    /// The files, and the number of the content of each.
    pub files: Vec<(PathBuf, usize)>,
    /// How.
    pub kind: Kind,
    /// How often.
    pub n: usize,
    /// Time from the sight of one repair to the next drift.
    pub gap: Duration,
    /// How long to look before a repair is given up as missed.
    pub patience: Duration,
    /// Where to prepare what is renamed over a file: on the same file system, watched by nobody.
    pub spare: PathBuf,
}

/// One drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// Before the first system call that changed anything. A guard of real-time priority may put back what a call changed
    /// before that call returns, so what is measured from here cannot be nothing.
    pub began: Stamp,
    /// The last system call that caused it had returned.
    pub caused: Stamp,
    /// The path was as declared, at the first look that found it so.
    pub visible: Option<Stamp>,
}

/// One drift of many files at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flood {
    /// The files, and the number of the content of each.
    pub files: Vec<(PathBuf, usize)>,
    /// How long to look before the rest is given up as missed.
    pub patience: Duration,
}

/// What came of a [`Flood`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flooded {
    /// Before the first file was opened.
    pub first: Stamp,
    /// The last close had returned.
    pub last: Stamp,
    /// All were as declared.
    pub visible: Option<Stamp>,
}

/// Opens and reads files of a tree over and over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reads {
    /// The files.
    pub paths: Vec<PathBuf>,
    /// Reads a second.
    pub per_second: u32,
}

/// Causes one drift after the other, and looks for each repair.
pub fn drift_main() -> Result<()> {
    let spec: Drifts = read_spec()?;
    let mut targets = Target::all(&spec.files)?;
    let bad = vec![b'B'; tree::SIZE];
    for target in &mut targets {
        ensure!(target.is_good(Aspect::All)?, "{:?} is not as declared before the first drift", target.path);
    }
    say_ready()?;
    let mut drifts = Vec::with_capacity(spec.n);
    let mut next = (0..targets.len()).cycle();
    while drifts.len() < spec.n {
        let target = next.next().and_then(|next| targets.get_mut(next)).context("nothing to drift")?;
        pause(spec.gap);
        let began;
        let aspect = match spec.kind {
            Kind::Content => {
                began = clock::now()?;
                overwrite(&target.path, &bad)?;
                Aspect::Content
            }
            Kind::Mode => {
                began = clock::now()?;
                rustix::fs::chmodat(CWD, &*target.path, Mode::from_raw_mode(0o600), rustix::fs::AtFlags::empty())?;
                Aspect::Mode
            }
            Kind::Delete => {
                began = clock::now()?;
                rustix::fs::unlink(&*target.path)?;
                Aspect::Content
            }
            Kind::RenameOver => {
                put(&spec.spare, &bad)?;
                began = clock::now()?;
                rustix::fs::rename(&spec.spare, &*target.path)?;
                Aspect::Content
            }
        };
        let caused = clock::now()?;
        let visible = target.wait_good(aspect, caused, spec.patience)?;
        drifts.push(Drift { began, caused, visible });
    }
    answer(&drifts)
}

/// Overwrites many files at once, and looks until all are as declared.
pub fn flood_main() -> Result<()> {
    let spec: Flood = read_spec()?;
    let bad = vec![b'B'; tree::SIZE];
    let mut targets = Target::all(&spec.files)?;
    say_ready()?;
    let first = clock::now()?;
    for target in &targets {
        overwrite(&target.path, &bad)?;
    }
    let last = clock::now()?;
    let mut visible = Some(last);
    for target in &mut targets {
        // Those that come later are repaired meanwhile, so the last sight is that of the last repair.
        visible = visible.and(target.wait_good(Aspect::Content, last, spec.patience)?);
    }
    answer(&Flooded { first, last, visible })
}

/// Reads files until its input ends; answers how often.
pub fn read_main() -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    let spec: Reads = read_spec()?;
    say_ready()?;
    let stdin = std::io::stdin();
    let mut paths = spec.paths.iter().cycle();
    let mut n_reads = 0_u64;
    let started = clock::now()?;
    loop {
        // The first at once.
        let due = 1 + u128::from(spec.per_second) * between(started, clock::now()?).as_millis() / 1000;
        while u128::from(n_reads) < due {
            let path = paths.next().context("nothing to read")?;
            drop(std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?);
            n_reads += 1;
        }
        let mut ended = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        // In bursts: a finer timer would load the machine more than the reads do.
        if poll(&mut ended, PollTimeout::from(5_u8))? > 0 {
            return answer(&n_reads);
        }
    }
}

/// How long to look before giving way.
const SPIN: Duration = Duration::from_millis(2);

/// What of a file is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aspect {
    Content,
    Mode,
    All,
}

/// A file and what it should hold.
struct Target {
    path: CString,
    content: Vec<u8>,
    buffer: Vec<u8>,
}

impl Target {
    fn all(files: &[(PathBuf, usize)]) -> Result<Vec<Self>> {
        files.iter().map(|(path, class)| Self::new(path, *class)).collect()
    }

    fn new(path: &Path, class: usize) -> Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).context("a path without NUL")?;
        Ok(Self { path, content: tree::content(class), buffer: vec![0; 2 * tree::SIZE] })
    }

    /// What a reader sees that opens the path now. No file is as good as a wrong one.
    fn is_good(&mut self, aspect: Aspect) -> Result<bool> {
        let file = match open(&*self.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("cannot open {:?}", self.path)),
        };
        let mode_is_good = aspect == Aspect::Content || fstat(&file)?.st_mode & 0o7777 == tree::MODE;
        if aspect == Aspect::Mode {
            return Ok(mode_is_good);
        }
        let n = rustix::io::read(&file, &mut *self.buffer)?;
        Ok(mode_is_good && self.buffer.get(..n) == Some(&self.content))
    }

    /// Looks without a pause, and gives way to whoever has work only after a while: on a busy machine it may take
    /// milliseconds to come back.
    fn wait_good(&mut self, aspect: Aspect, since: Stamp, patience: Duration) -> Result<Option<Stamp>> {
        loop {
            let good = self.is_good(aspect)?;
            let now = clock::now()?;
            if good {
                return Ok(Some(now));
            }
            match between(since, now) {
                took if took > patience => return Ok(None),
                took if took > SPIN => std::thread::yield_now(),
                _ => {}
            }
        }
    }
}

fn overwrite(path: &CString, content: &[u8]) -> Result<()> {
    let file = open(&**path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("cannot open {path:?} to drift it"))?;
    let n = rustix::io::pwrite(&file, content, 0).with_context(|| format!("cannot overwrite {path:?}"))?;
    ensure!(n == content.len(), "{path:?} was overwritten in part");
    Ok(())
}
