//! Says where to look, never what happened.
//!
//! One thread of its own watches every directory that a declared path runs through: its *spine*.
//! A kernel event only names resources to look at again; what is there is found out by looking, in [`crate::converge`].
//! A lost event, a full queue or a lost watch therefore means "look everywhere" and nothing worse.
//!
//! - The watcher never reads content (but a kernel setting's value, of which nothing else tells), never judges and never changes anything itself. What an event touched goes to a
//!   [`Sink`] on the same thread, at once and with its directory open, because a thread hop costs more than a repair; what
//!   the sink leaves open goes out as a hint.
//! - It needs no async runtime. Only [`units`], which listens to the service manager, is asynchronous.
//! - There is no debounce: the first event is passed on at once. When to act on it is decided in [`crate::schedule`].
//! - Every watch is armed *before* the thing behind it is looked at, so that a change is either seen by the look or
//!   announced by an event.
//! - No place goes blind silently: where events cannot be had the watcher polls, and [`Watcher::coverage`] says so.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::host::thread::Urgency;
use crate::resource::ResourceId;

mod canary;
mod clocks;
mod coverage;
mod path;
mod reader;
mod rounds;
mod self_test;
mod source;
mod targets;
mod tree;
pub mod units;
mod walk;

pub use coverage::{Complaint, Coverage, How};
pub use path::SharedPath;

pub use crate::host::process::Witness;

/// A path that a resource depends on. Several resources may share one path, such as `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interest {
    /// Absolute and normalised, as the managed host spells it; it need not exist. With a slash at its end it means whatever
    /// name comes in the directory and is nobody's interest by itself.
    pub path: SharedPath,
    /// Whom to look at when something happens to it.
    pub resource: ResourceId,
}

/// Interest in this path is interest in what is mounted, wherever it is: the kernel tells of every change.
pub const MOUNTS: &str = "/proc/self/mountinfo";

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// At these.
    Look(BTreeSet<ResourceId>),
    /// At everything, because it is not known where.
    Everything {
        /// What was lost, for people.
        why: &'static str,
    },
}

/// Something that happened to a declared name, while its directory is still open.
#[derive(Debug)]
pub struct Touch<'a> {
    /// The directory that holds the name: an `O_PATH` descriptor, on the mount that the path leads to.
    pub directory: BorrowedFd<'a>,
    /// Id of the mount that the directory is on.
    pub mount: u64,
    /// The name in it.
    pub name: &'a OsStr,
    /// Whom it concerns, in order, each once.
    pub resources: &'a [ResourceId],
    /// Who did it, or the last of them; `None` where that cannot be known.
    pub by: Option<&'a Arc<Witness>>,
}

/// Whether a touch needs another look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Touched {
    /// Everything about it is as declared, or was put right: no hint is needed.
    Settled,
    /// Somebody has to look: a hint goes out.
    Look,
}

/// What the watcher's thread tells, on that thread. It must not block for long, and must not call the [`Watcher`].
pub trait Sink: Send {
    /// An event touched a declared name.
    fn touched(&mut self, touch: &Touch<'_>) -> Touched;
    /// Somebody has to look.
    fn hint(&mut self, hint: Hint);
    /// The thread ends: its last word. The process should end and be restarted.
    fn ended(&mut self, error: WatchError);
}

/// A plain callback settles nothing.
impl<F: FnMut(Result<Hint, WatchError>) + Send> Sink for F {
    fn touched(&mut self, _touch: &Touch<'_>) -> Touched {
        Touched::Look
    }

    fn hint(&mut self, hint: Hint) {
        self(Ok(hint));
    }

    fn ended(&mut self, error: WatchError) {
        self(Err(error));
    }
}

/// Hints merged until they are taken. It never holds more than one entry for each resource, however long nobody takes it:
/// put it between the watcher's thread and a slow reader instead of an unbounded queue.
#[derive(Debug, Default)]
pub struct DirtySet {
    everything: Option<&'static str>,
    look: BTreeSet<ResourceId>,
}

impl DirtySet {
    /// Adds a hint. Returns whether the set was empty before, which is when its reader has to be woken.
    pub fn add(&mut self, hint: Hint) -> bool {
        let was_empty = self.everything.is_none() && self.look.is_empty();
        match hint {
            Hint::Look(resources) => {
                if self.everything.is_none() {
                    self.look.extend(resources);
                }
            }
            Hint::Everything { why } => {
                self.look.clear();
                self.everything.get_or_insert(why);
            }
        }
        was_empty && (self.everything.is_some() || !self.look.is_empty())
    }

    /// Takes all of it; `None` when there is nothing.
    pub fn take(&mut self) -> Option<Hint> {
        let Self { everything, look } = std::mem::take(self);
        match everything {
            Some(why) => Some(Hint::Everything { why }),
            None if look.is_empty() => None,
            None => Some(Hint::Look(look)),
        }
    }
}

/// Counters of the watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Kernel watches held now.
    pub n_watches: usize,
    /// Events read so far.
    pub n_events: u64,
    /// Times that the kernel's queue overflowed.
    pub n_overflows: u64,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// With the name of who did it.
    Fanotify,
    /// Anonymous.
    Inotify,
}

impl By {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fanotify => "fanotify",
            Self::Inotify => "inotify",
        }
    }
}

/// Which of them to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sources {
    /// fanotify for directories where it can be had, inotify for everything else.
    #[default]
    All,
    /// As where fanotify cannot be had: a kernel before 5.9, or no `CAP_SYS_ADMIN`.
    InotifyOnly,
}

/// How the watcher tests itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfTest {
    /// A directory of its own, which is made; absolute, as this process sees it.
    pub directory: PathBuf,
    /// Time between tests.
    pub every: Duration,
    /// How long an event may take.
    pub patience: Duration,
}

impl SelfTest {
    /// Once a minute, and an event may take a second.
    pub fn within(directory: PathBuf) -> Self {
        Self { directory, every: Duration::from_secs(60), patience: Duration::from_secs(1) }
    }
}

/// What the watcher may take from the kernel, and what it does beside watching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Which events.
    pub sources: Sources,
    /// Most kernel watches to hold; beyond it paths are polled, as when the kernel has no more to give.
    pub max_watches: usize,
    /// How soon its thread is to run when something happens.
    pub urgency: Urgency,
    /// The self-test; without it, events that silently stop to come are noticed by the full scan.
    pub self_test: Option<SelfTest>,
}

impl Default for Options {
    fn default() -> Self {
        Self { sources: Sources::default(), max_watches: usize::MAX, urgency: Urgency::Ordinary, self_test: None }
    }
}

/// The watcher's thread cannot go on. The process should end and be restarted.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Waiting failed.
    #[error("cannot wait for file system events")]
    Wait(#[source] io::Error),
    /// Reading failed.
    #[error("cannot read file system events")]
    Read(#[source] io::Error),
}

/// Interests in the order that the thread wants.
#[derive(Debug)]
struct Interests {
    /// By directory, then by name, then by resource.
    wanted: Vec<Interest>,
    /// Those that there can be no way to.
    refused: Vec<Interest>,
    /// Whom mounts concern.
    of_mounts: BTreeSet<ResourceId>,
}

impl Interests {
    fn new(interests: Vec<Interest>) -> Self {
        let (of_mounts, interests): (Vec<_>, Vec<_>) =
            interests.into_iter().partition(|interest| interest.path.is(MOUNTS));
        let (mut wanted, refused): (Vec<_>, _) =
            interests.into_iter().partition(|interest| walk::is_way(&interest.path));
        targets::sort(&mut wanted);
        let of_mounts = of_mounts.into_iter().map(|interest| interest.resource).collect();
        Self { wanted, refused, of_mounts }
    }
}

/// What the handle asks of the thread.
#[derive(Debug)]
enum Command {
    SetInterests(Interests, mpsc::SyncSender<()>),
    Refresh(mpsc::SyncSender<()>),
    Coverage(mpsc::SyncSender<Coverage>),
    Stats(mpsc::SyncSender<Stats>),
    Stop,
}

/// Handle of the watcher's thread; dropping it stops and joins the thread. What happened before a call is hinted before the
/// call returns.
#[derive(Debug)]
pub struct Watcher {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the thread for the host whose root directory is `root`. Interests are resolved beneath it, symbolic links
    /// included. The sink lives on that thread.
    pub fn start(root: PathBuf, sink: impl Sink + 'static) -> io::Result<Self> {
        Self::start_with(root, Options::default(), sink)
    }

    /// As [`Watcher::start`], with bounds.
    pub fn start_with(root: PathBuf, options: Options, mut sink: impl Sink + 'static) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (commands, received) = mpsc::channel();
        let root = walk::open_root(&root)?;
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn({
            let wake = Arc::clone(&wake);
            move || {
                if let Err(error) = reader::run(root, options, &received, wake.as_fd(), &mut sink) {
                    sink.ended(error);
                }
            }
        })?;
        Ok(Self { commands, wake, thread: Some(thread) })
    }

    /// Replaces what is watched. When it returns, every way is armed: any later change of what is at the end of it is hinted, but
    /// for one that comes by another name of a file, or to something that is mounted there. What those need is armed soon
    /// after that, and when [`Watcher::refresh`] returns. Nothing is hinted for what was there before, so look once at
    /// whatever is new, after a refresh.
    pub fn set_interests(&self, interests: Vec<Interest>) {
        // Here and not on the thread, for which others wait.
        let interests = Interests::new(interests);
        self.ask(|reply| Command::SetInterests(interests, reply));
    }

    /// Walks every way and looks at every name again, and hints what is another thing than at the last look. To be called
    /// before each full scan: it arms what no event announces, such as a second name given to a declared file. Events are
    /// answered meanwhile.
    pub fn refresh(&self) {
        self.ask(Command::Refresh);
    }

    /// How well everything is guarded now.
    pub fn coverage(&self) -> Coverage {
        self.ask(Command::Coverage).unwrap_or_default()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.ask(Command::Stats).unwrap_or_default()
    }

    /// `None` when the thread has ended, which its callback was told.
    fn ask<T>(&self, command: impl FnOnce(mpsc::SyncSender<T>) -> Command) -> Option<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.commands.send(command(reply)).ok()?;
        self.wake.write(1).ok()?;
        answer.recv().ok()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Either fails only when the thread has already ended.
            let told = self.commands.send(Command::Stop).is_ok();
            let woken = self.wake.write(1).is_ok();
            if told && woken && thread.join().is_err() {
                tracing::error!("the watcher's thread panicked");
            }
        }
    }
}
