//! The first look, before the agent says that it is ready: what drifted on paths while it was down is put right.
//!
//! Whatever starts after the agent finds the files that policy declares. Nothing here may wait for long or for anybody: the
//! agent may have been started by a package manager that holds its lock until the agent is ready, and by a boot in which other
//! units wait for it. So no package, service, user or group is touched, nothing that waits for one, and no debt is paid; the
//! full run that follows does all of that.

use std::collections::BTreeMap;

use tracing::{debug, info};

use super::worker::{Turn, Worker};
use crate::config::Mode;
use crate::converge::{self, Scope};

impl Worker {
    /// Puts paths right under a revision that was carried out here before. Under another one there is no drift yet, and its
    /// order is for the full run to keep.
    pub(super) fn look_first(&mut self) {
        let Some(in_force) = self.in_force.take() else { return };
        if self.settings.mode == Mode::Enforce && self.revisions.settled.as_ref() == Some(in_force.state.revision()) {
            let mut paths = converge::free_paths(&self.host, &in_force.state);
            // What failed before is tried again on its own schedule, which this would hurry.
            paths.retain(|id| !self.health.failing.contains_key(id));
            let n_paths = paths.len();
            let permit = self.guard.permit();
            match self.converge_under_lock(
                &in_force,
                Scope::Only(paths),
                &BTreeMap::new(),
                &BTreeMap::new(),
                Turn::First,
            ) {
                Ok(report) => {
                    info!(n_paths, n_repaired = report.changed().count(), took_us = report.duration_us, "looked first");
                    self.arm_guard(permit, &in_force, &report);
                    self.take_report(&report);
                }
                // Whoever has the lock does the same work.
                Err(error) => debug!("no first look: {error:#}"),
            }
        }
        self.in_force = Some(in_force);
    }
}
