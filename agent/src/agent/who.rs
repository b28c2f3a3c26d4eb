//! Who was seen at a resource, from the event until somebody has looked at it.
//!
//! An actor belongs to one look: whoever starts a run takes what was seen of its resources with it, so that nobody is blamed
//! for what was found in sync after them. Nothing here is needed for a repair, and everything here is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::actor::Actor;
use crate::converge::Scope;
use crate::host::process::{UnitMap, Witness, identify};
use crate::resource::ResourceId;

/// Most witnesses that wait for the loop; each holds a descriptor. The oldest go first.
const MAX_WAITING: usize = 64;
/// Most resources of which it is remembered who was there.
const MAX_KNOWN: usize = 4096;
/// Longest time for which it is remembered.
const MEMORY: Duration = Duration::from_secs(60);

/// Witnesses on their way from the watcher's thread to the loop.
#[derive(Debug, Default)]
pub(super) struct Arrivals(VecDeque<(Vec<ResourceId>, Arc<Witness>)>);

impl Arrivals {
    /// Adds one. The agent itself and its own repairs are no witnesses.
    pub(super) fn add(&mut self, resources: &[ResourceId], witness: &Arc<Witness>) {
        if witness.is_self() {
            return;
        }
        if self.0.len() >= MAX_WAITING {
            self.0.pop_front();
        }
        self.0.push_back((resources.to_vec(), Arc::clone(witness)));
    }

    /// Takes all.
    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

/// Who was there last.
#[derive(Debug, Default)]
pub(super) struct Seen {
    units: UnitMap,
    actors: BTreeMap<ResourceId, (Actor, Instant)>,
}

impl Seen {
    /// Finds out who the witnesses are, while they can still be found.
    pub(super) fn arrive(&mut self, arrivals: Arrivals, now: Instant) {
        for (resources, witness) in arrivals.0 {
            let actor = identify(&witness, &mut self.units);
            for resource in resources {
                self.note(resource, actor.clone(), now);
            }
        }
    }

    /// The last one counts: also one of whom nothing is known, because then it was not the one before. A step of ours that works
    /// on a database of all accounts or packages is at every one of them, and tells of none.
    fn note(&mut self, resource: ResourceId, actor: Actor, now: Instant) {
        if !resource.kind.is_place() && actor.is_step() {
            return;
        }
        if self.actors.len() >= MAX_KNOWN {
            self.actors.retain(|_, (_, at)| now.duration_since(*at) < MEMORY);
        }
        if self.actors.len() < MAX_KNOWN {
            self.actors.insert(resource, (actor, now));
        }
    }

    /// Hands over who was seen at what a run looks at.
    pub(super) fn take(&mut self, scope: &Scope, now: Instant) -> BTreeMap<ResourceId, Actor> {
        let taken: Vec<(ResourceId, (Actor, Instant))> = match scope {
            Scope::Everything => std::mem::take(&mut self.actors).into_iter().collect(),
            Scope::Only(resources) => resources.iter().filter_map(|id| self.actors.remove_entry(id)).collect(),
        };
        taken
            .into_iter()
            .filter(|(_, (actor, at))| !actor.is_unknown() && now.duration_since(*at) < MEMORY)
            .map(|(resource, (actor, _))| (resource, actor))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actor::Confidence;
    use crate::resource::Kind;

    fn file(name: &str) -> ResourceId {
        ResourceId::new(Kind::File, name)
    }

    fn actor(name: &str) -> Actor {
        Actor { confidence: Confidence::Exact, pid: Some(1), name: Some(name.to_owned()), ..Actor::default() }
    }

    #[test]
    fn an_actor_is_blamed_for_one_look_only() {
        let mut seen = Seen::default();
        let now = Instant::now();
        seen.note(file("/a"), actor("first"), now);
        seen.note(file("/a"), actor("second"), now);
        seen.note(file("/b"), actor("third"), now);
        let scope = Scope::Only([file("/a"), file("/c")].into());
        assert_eq!(seen.take(&scope, now), BTreeMap::from([(file("/a"), actor("second"))]));
        assert_eq!(seen.take(&scope, now), BTreeMap::new());
        assert_eq!(seen.take(&Scope::Everything, now), BTreeMap::from([(file("/b"), actor("third"))]));
    }

    #[test]
    fn who_touched_an_account_is_not_forgotten_for_our_own_steps() {
        let mut seen = Seen::default();
        let now = Instant::now();
        let step = |unit: &str| Actor { unit: Some(unit.to_owned()), ..actor("groupdel") };
        let alice = ResourceId::new(Kind::User, "alice");
        seen.note(alice.clone(), actor("alice's shell"), now);
        seen.note(alice.clone(), step("rekindle-groupdel-cron-1f.service"), now);
        seen.note(ResourceId::new(Kind::Package, "tree"), step("rekindle-apt-get-1f.service"), now);
        // A command of the policy that changes a file of the policy is to be found out.
        seen.note(file("/a"), step("rekindle-rotate-1f.service"), now);
        let expected = [(file("/a"), step("rekindle-rotate-1f.service")), (alice, actor("alice's shell"))];
        assert_eq!(seen.take(&Scope::Everything, now), BTreeMap::from(expected));
    }

    #[test]
    fn nobody_is_blamed_for_long_nor_for_a_stranger() {
        let mut seen = Seen::default();
        let now = Instant::now();
        seen.note(file("/a"), actor("first"), now);
        seen.note(file("/b"), actor("first"), now);
        seen.note(file("/b"), Actor::default(), now);
        assert_eq!(seen.take(&Scope::Everything, now + MEMORY), BTreeMap::new());
        seen.note(file("/b"), Actor::default(), now);
        assert_eq!(seen.take(&Scope::Everything, now), BTreeMap::new());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut arrivals = Arrivals::default();
        for n in 0..2 * MAX_WAITING {
            let witness = Arc::new(Witness { pid: None, pidfd: None, info: None });
            arrivals.add(&[file(&format!("/{n}"))], &witness);
        }
        let ours = Arc::new(Witness { pid: Some(std::process::id()), pidfd: None, info: None });
        arrivals.add(&[file("/own")], &ours);
        let waiting = arrivals.take();
        assert_eq!(waiting.0.len(), MAX_WAITING);
        assert!(waiting.0.back().is_some_and(|(resources, _)| *resources == [file("/127")]));
        let mut seen = Seen::default();
        let now = Instant::now();
        for n in 0..2 * MAX_KNOWN {
            seen.note(file(&format!("/{n}")), actor("x"), now);
        }
        assert_eq!(seen.take(&Scope::Everything, now).len(), MAX_KNOWN);
    }
}
