//! Carries out what [`Canary`] decides: touches the file, watches its directory with every source, and has everything armed anew.

use std::time::Instant;

use super::canary::{Backlog, Canary, Order, Sighting};
use super::tree::Tree;
use super::{Hint, SelfTest, Sink};
use crate::host::nest::Nest;

/// The test and what it needs.
#[derive(Debug)]
pub(super) struct Tester {
    canary: Canary,
    nest: Nest,
    n_overflows: u64,
}

impl Tester {
    pub(super) fn new(test: &SelfTest, tree: &mut Tree, now: Instant) -> Self {
        let canary = Canary::new(test, now);
        let mut tester = Self { canary, nest: Nest::at(test.directory.clone()), n_overflows: 0 };
        tester.arm(tree, now);
        tester
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.canary.due()
    }

    pub(super) fn canary(&self) -> &Canary {
        &self.canary
    }

    /// To be called after events were read.
    pub(super) fn run(&mut self, backlog: Backlog, tree: &mut Tree, now: Instant, sink: &mut dyn Sink) {
        let n_overflows = tree.stats().n_overflows;
        if std::mem::replace(&mut self.n_overflows, n_overflows) != n_overflows {
            self.canary.excuse(now);
        }
        for sighting in tree.sightings() {
            match sighting {
                Sighting::Gone => self.arm(tree, now),
                Sighting::Seen(_) | Sighting::Mistaken(_) | Sighting::Lost(_) => self.canary.saw(sighting, now),
            }
        }
        match self.canary.tick(backlog, now) {
            Order::None => {}
            Order::Touch => self.touch(tree, now),
            Order::Renew => {
                let why = self.canary.failing().unwrap_or_default();
                tracing::error!(
                    why,
                    "the watcher failed its self-test: arming everything anew and looking at everything"
                );
                tree.renew(now);
                self.arm(tree, now);
                sink.hint(Hint::Everything { why: "the watcher failed its self-test" });
            }
        }
    }

    /// After the sources were renewed, or the directory was made again.
    pub(super) fn arm(&mut self, tree: &mut Tree, now: Instant) {
        match self.nest.open() {
            Ok(directory) => self.canary.armed(tree.arm_canary(&directory)),
            Err(error) => self.impossible(&error, now),
        }
    }

    fn touch(&mut self, tree: &mut Tree, now: Instant) {
        let result = self.nest.touch().or_else(|_gone| {
            self.arm(tree, now);
            self.nest.touch()
        });
        if let Err(error) = result {
            self.impossible(&error, now);
        }
    }

    fn impossible(&mut self, error: &std::io::Error, now: Instant) {
        let why = format!("the watches cannot be tested with `{}`: {error}", self.nest.path().display());
        if self.canary.failing() != Some(&why) {
            tracing::warn!("{why}");
        }
        self.canary.impossible(why, now);
    }
}
