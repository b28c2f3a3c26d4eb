//! The names at the end of a spine, and for whom: a sorted table, because a policy may declare 100,000 of them.
//!
//! A row takes [`Target`]'s 48 bytes and nothing on the heap: its path is the name of its resource, and of the last look it
//! keeps a digest. This module looks at nothing itself.

use std::ffi::OsStr;
use std::hash::BuildHasher;

use rustix::io::Errno;

use super::source::Wd;
use super::walk::{Glance, Tells};
use super::{Interest, SharedPath, path};
use crate::resource::{Kind, ResourceId};

/// A declared name in a directory.
#[derive(Debug, Clone)]
pub(super) struct Target {
    claim: Claim,
    /// What the last look showed.
    pub(super) seen: Seen,
    /// The watch on the thing itself, where that of the directory would miss changes. Boxed, because few have one.
    mark: Option<Box<Wd>>,
}

/// Where it is, and whom it concerns.
#[derive(Debug, Clone)]
enum Claim {
    /// The resource that has the path as its name, and no other: next to always.
    Own(ResourceId),
    /// Whoever else.
    Others(Box<Others>),
}

#[derive(Debug, Clone)]
struct Others {
    path: SharedPath,
    resources: Box<[ResourceId]>,
}

/// What a look showed, as much of it as tells whether the next one shows the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nobody has looked yet.
    Nothing,
    /// Something was there.
    Present {
        /// Digest of its metadata.
        digest: u64,
        /// Whether it had changed so recently that another change might carry the same time stamp.
        fresh: bool,
    },
    /// Nothing was there.
    Absent,
    /// It could not be looked at.
    Unreadable(Errno),
}

impl Seen {
    /// Keeps of a glance what is needed. The digest is keyed, so that nobody can make two things look the same.
    pub(super) fn new(glance: &Glance, key: &impl BuildHasher, now: std::time::SystemTime) -> Self {
        match glance {
            Glance::Present(identity) => Self::Present { digest: key.hash_one(identity), fresh: glance.is_fresh(now) },
            Glance::Absent => Self::Absent,
            Glance::Unreadable(errno) => Self::Unreadable(*errno),
        }
    }

    /// Whether something may have happened between the last look, which is `self`, and a later one.
    pub(super) fn differs_from(self, later: Self) -> bool {
        match (self, later) {
            (Self::Present { digest: before, fresh: false }, Self::Present { digest: after, .. }) => before != after,
            (Self::Present { .. }, _) => true,
            // Whatever happened since it was declared has made an event.
            (Self::Nothing, _) => false,
            (Self::Absent | Self::Unreadable(_), later) => self != later,
        }
    }
}

impl Target {
    /// The name in its directory.
    pub(super) fn name(&self) -> &OsStr {
        self.split().1
    }

    /// Its directory and the name in it.
    pub(super) fn split(&self) -> (&OsStr, &OsStr) {
        match &self.claim {
            Claim::Own(resource) => path::split(resource.name.as_bytes()),
            Claim::Others(others) => others.path.split(),
        }
    }

    /// The whole path.
    pub(super) fn path(&self) -> SharedPath {
        match &self.claim {
            Claim::Own(resource) => SharedPath::from(&resource.name),
            Claim::Others(others) => others.path.clone(),
        }
    }

    /// The watch on the thing itself, if it has one.
    pub(super) fn mark(&self) -> Option<Wd> {
        self.mark.as_deref().copied()
    }

    /// Notes the watch on the thing itself, and returns the one before.
    pub(super) fn set_mark(&mut self, mark: Option<Wd>) -> Option<Wd> {
        std::mem::replace(&mut self.mark, mark.map(Box::new)).map(|wd| *wd)
    }

    /// By what a change of it is told: of a setting of the kernel, the value alone.
    pub(super) fn tells(&self) -> Tells {
        let is_sysctl = self.resources().first().is_some_and(|resource| resource.kind == Kind::Sysctl);
        if is_sysctl { Tells::Content } else { Tells::Metadata }
    }

    /// Whom it concerns, in order, each once.
    pub(super) fn resources(&self) -> &[ResourceId] {
        match &self.claim {
            Claim::Own(resource) => std::slice::from_ref(resource),
            Claim::Others(others) => &others.resources,
        }
    }
}

/// The targets of one spine, in order of name.
#[derive(Debug, Default)]
pub(super) struct Targets(Box<[Target]>);

/// What replacing the targets of a spine changed.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    /// Whether a name is there that was not there before.
    pub(super) has_new: bool,
    /// The marks of names that are gone, and the names.
    pub(super) released: Vec<(Wd, SharedPath)>,
}

impl Targets {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, in order of name.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, Target> {
        self.0.iter()
    }

    /// The target at a place in the order.
    pub(super) fn at(&self, index: usize) -> Option<&Target> {
        self.0.get(index)
    }

    /// The place of a name in the order.
    pub(super) fn find(&self, name: &OsStr) -> Option<usize> {
        self.0.binary_search_by(|target| target.name().cmp(name)).ok()
    }

    /// The target at a place in the order, to record a look.
    pub(super) fn at_mut(&mut self, index: usize) -> Option<&mut Target> {
        self.0.get_mut(index)
    }

    /// Makes `interests` all there is. They are paths of one directory, sorted by name and then by resource. What is known
    /// about names that stay is kept.
    pub(super) fn replace(&mut self, interests: Vec<Interest>) -> Replaced {
        let mut replaced = Replaced::default();
        let mut wanted: Vec<Target> = Vec::with_capacity(interests.len());
        let mut interests = interests.into_iter().peekable();
        while let Some(Interest { path, resource }) = interests.next() {
            let more = std::iter::from_fn(|| interests.next_if(|next| next.path == path));
            let mut resources: Vec<ResourceId> =
                std::iter::once(resource).chain(more.map(|next| next.resource)).collect();
            resources.dedup();
            let claim = match <[ResourceId; 1]>::try_from(resources) {
                Ok([resource]) if path.is(&resource.name) => Claim::Own(resource),
                Ok([resource]) => Claim::Others(Box::new(Others { path, resources: Box::new([resource]) })),
                Err(resources) => Claim::Others(Box::new(Others { path, resources: resources.into() })),
            };
            wanted.push(Target { claim, seen: Seen::Nothing, mark: None });
        }
        let mut before = std::mem::take(&mut self.0).into_iter().peekable();
        for target in &mut wanted {
            while let Some(gone) = before.next_if(|old| old.name() < target.name()) {
                replaced.released.extend(gone.mark().map(|wd| (wd, gone.path())));
            }
            match before.next_if(|old| old.name() == target.name()) {
                Some(old) => (target.seen, target.mark) = (old.seen, old.mark),
                None => replaced.has_new = true,
            }
        }
        for gone in before {
            replaced.released.extend(gone.mark().map(|wd| (wd, gone.path())));
        }
        self.0 = wanted.into_boxed_slice();
        replaced
    }
}

/// Sorts interests as [`Targets::replace`] wants them: by directory, then by name, then by resource.
pub(super) fn sort(interests: &mut [Interest]) {
    interests.sort_unstable_by(|a, b| (a.path.split(), &a.resource).cmp(&(b.path.split(), &b.resource)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interest(path: &str, resource: &str) -> Interest {
        Interest { path: path.into(), resource: ResourceId::new(Kind::File, resource) }
    }

    fn show(targets: &Targets) -> Vec<String> {
        let row = |target: &Target| {
            assert_eq!(target.path().split(), target.split());
            let resources: Vec<&str> = target.resources().iter().map(|id| &*id.name).collect();
            format!("{}: {}", target.name().display(), resources.join(" "))
        };
        targets.iter().map(row).collect()
    }

    fn wd(number: usize) -> Wd {
        Wd::inotify(0, i32::try_from(number).unwrap() + 1)
    }

    #[test]
    fn a_target_is_a_short_row() {
        // With 100,000 files every eight bytes here are a megabyte of the agent.
        assert!(size_of::<Target>() <= 48, "{}", size_of::<Target>());
    }

    #[test]
    fn interests_become_rows_in_order_with_each_resource_once() {
        let mut interests =
            vec![interest("/d/b", "2"), interest("/d/a", "1"), interest("/d/b", "1"), interest("/d/b", "2")];
        sort(&mut interests);
        let mut targets = Targets::default();
        assert!(targets.replace(interests).has_new);
        assert_eq!(show(&targets), ["a: 1", "b: 1 2"]);
        assert_eq!(targets.find(OsStr::new("b")), Some(1));
        assert_eq!(targets.find(OsStr::new("c")), None);
    }

    #[test]
    fn what_stays_is_remembered_and_what_goes_gives_back_its_mark() {
        let mut targets = Targets::default();
        targets.replace(["/d/a", "/d/b", "/d/c"].map(|path| interest(path, path)).into());
        for (index, target) in targets.0.iter_mut().enumerate() {
            target.set_mark(Some(wd(index)));
            target.seen = Seen::Unreadable(Errno::IO);
        }
        let replaced = targets.replace(["/d/b", "/d/d"].map(|path| interest(path, path)).into());
        assert!(replaced.has_new);
        let released: Vec<_> = replaced.released.iter().map(|(wd, path)| (*wd, path.split().1)).collect();
        assert_eq!(released, [(wd(0), OsStr::new("a")), (wd(2), OsStr::new("c"))]);
        let known: Vec<_> = targets.iter().map(|target| (target.mark(), target.seen)).collect();
        assert_eq!(known, [(Some(wd(1)), Seen::Unreadable(Errno::IO)), (None, Seen::Nothing)]);
        assert!(!targets.replace(vec![interest("/d/b", "/d/b")]).has_new);
    }

    #[test]
    fn a_fresh_look_may_hide_a_change() {
        let present = |digest, fresh| Seen::Present { digest, fresh };
        assert!(!present(1, false).differs_from(present(1, true)));
        assert!(present(1, true).differs_from(present(1, false)));
        assert!(present(1, false).differs_from(present(2, false)));
        assert!(present(1, false).differs_from(Seen::Absent));
        assert!(!Seen::Nothing.differs_from(present(1, false)));
        assert!(!Seen::Absent.differs_from(Seen::Absent));
        assert!(Seen::Absent.differs_from(present(1, false)));
    }
}
