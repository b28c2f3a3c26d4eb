//! How well everything is guarded, in counts: a host may declare 100,000 paths, and the watcher has better things to do than to
//! list them.

use super::source::Wd;
use super::targets::{Seen, Target, Targets};
use super::{By, Interest};

/// Complaints that are told of one by one; the counts have all.
const MAX_COMPLAINTS: usize = 100;

/// How well everything is guarded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage {
    /// Interests whose changes fanotify announces.
    pub n_fanotify: usize,
    /// Interests whose changes inotify announces.
    pub n_inotify: usize,
    /// Interests that are polled.
    pub n_polled: usize,
    /// Interests that only the full scan sees.
    pub n_blind: usize,
    /// Interests that are not watched, in order of directory and name; at most 100 of them.
    pub complaints: Vec<Complaint>,
    /// What the self-test found wrong, while it is.
    pub self_test: Option<String>,
    /// Times that the self-test failed.
    pub n_failed_tests: u64,
}

impl Coverage {
    /// All interests.
    pub fn n_interests(&self) -> usize {
        self.n_fanotify + self.n_inotify + self.n_polled + self.n_blind
    }
}

/// An interest that is not watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Which.
    pub interest: Interest,
    /// How it is guarded instead.
    pub how: How,
}

/// Ways in which a change can be noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// By events, at once.
    Watched,
    /// By comparing metadata every few seconds.
    Polled {
        /// Why there are no events.
        why: String,
    },
    /// Only by the full scan.
    Blind {
        /// Why not.
        why: String,
    },
}

/// How the targets of one spine are guarded.
#[derive(Debug)]
pub(super) struct Guarded {
    /// How, as far as the way to them goes.
    pub(super) how: How,
    /// Who announces changes, where they are watched.
    by: By,
    n_interests: usize,
    /// How many of them could not be looked at.
    n_unreadable: usize,
}

impl Guarded {
    /// Before the first look.
    pub(super) fn new() -> Self {
        Self { how: How::Watched, by: By::Inotify, n_interests: 0, n_unreadable: 0 }
    }

    /// The targets were replaced.
    pub(super) fn count(&mut self, targets: &Targets) {
        self.n_interests = targets.iter().map(|target| target.resources().len()).sum();
        self.n_unreadable = targets.iter().map(n_unreadable).sum();
    }

    /// A target was looked at again.
    pub(super) fn recount(&mut self, before: usize, target: &Target) {
        self.n_unreadable = (self.n_unreadable + n_unreadable(target)).saturating_sub(before);
    }

    /// The watch that is nearest to the targets decides who announces changes.
    pub(super) fn guarded_by(&mut self, nearest: Option<Wd>) {
        self.by = nearest.map_or(By::Inotify, Wd::by);
    }

    /// Whether some target could not be looked at.
    pub(super) fn has_unreadable(&self) -> bool {
        self.n_unreadable > 0
    }
}

/// Interests in a target that could not be looked at.
pub(super) fn n_unreadable(target: &Target) -> usize {
    match target.seen {
        Seen::Unreadable(_) => target.resources().len(),
        Seen::Nothing | Seen::Present { .. } | Seen::Absent => 0,
    }
}

/// Puts together how everything is guarded. Touches only the targets that are not watched, so it is quick where all is well.
pub(super) fn survey<'a>(spines: impl Iterator<Item = (&'a Guarded, &'a Targets)>, refused: &[Interest]) -> Coverage {
    let mut coverage = Coverage { n_blind: refused.len(), ..Coverage::default() };
    let mut bad: Vec<(&Target, &How)> = Vec::new();
    for (guarded, targets) in spines {
        let n_readable = guarded.n_interests.saturating_sub(guarded.n_unreadable);
        coverage.n_blind += guarded.n_unreadable;
        match (&guarded.how, guarded.by) {
            (How::Watched, By::Fanotify) => coverage.n_fanotify += n_readable,
            (How::Watched, By::Inotify) => coverage.n_inotify += n_readable,
            (How::Polled { .. }, _) => coverage.n_polled += n_readable,
            (How::Blind { .. }, _) => coverage.n_blind += n_readable,
        }
        if guarded.how != How::Watched || guarded.has_unreadable() {
            let is_watched = |target: &Target| guarded.how == How::Watched && n_unreadable(target) == 0;
            bad.extend(targets.iter().filter(|target| !is_watched(target)).map(|target| (target, &guarded.how)));
        }
    }
    bad.sort_unstable_by_key(|(target, _)| target.split());
    let refused = refused.iter().map(|interest| Complaint {
        interest: interest.clone(),
        how: How::Blind { why: "not an absolute, normalised path".to_owned() },
    });
    let complaints = bad.into_iter().flat_map(|(target, how)| {
        let how = match target.seen {
            Seen::Unreadable(errno) => How::Blind { why: format!("cannot look at it: {errno}") },
            Seen::Nothing | Seen::Present { .. } | Seen::Absent => how.clone(),
        };
        target.resources().iter().map(move |resource| Complaint {
            interest: Interest { path: target.path(), resource: resource.clone() },
            how: how.clone(),
        })
    });
    coverage.complaints = refused.chain(complaints).take(MAX_COMPLAINTS).collect();
    coverage
}
