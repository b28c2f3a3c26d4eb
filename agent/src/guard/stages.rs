//! The stages of all mounts that declared files are on.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::Places;
use crate::host::root::Root;
use crate::host::stage::{Stage, Unfit};
use crate::resource::{AbsPath, chain};

/// Directory of the stage in the state directory.
const HOME: &str = "stage";

/// Stages by mount, opened when first needed.
pub(super) struct Stages {
    root: Root,
    home: PathBuf,
    /// Where none can be had, `None`, so that it is said once.
    by_mount: HashMap<u64, Option<Arc<Stage>>>,
    /// Those that nobody has looked at yet for what an earlier process left.
    fresh: Vec<Arc<Stage>>,
}

impl Stages {
    pub(super) fn new(places: Places) -> Self {
        Self { root: places.root, home: places.state.join(HOME), by_mount: HashMap::new(), fresh: Vec::new() }
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    /// The stage of a mount; `directory`, at `path`, is on it.
    pub(super) fn get(&mut self, mount: u64, directory: BorrowedFd<'_>, path: &AbsPath) -> Option<Arc<Stage>> {
        if let Some(known) = self.by_mount.get(&mount) {
            return known.clone();
        }
        let opened = self.open(directory, path);
        self.fresh.extend(opened.clone());
        self.by_mount.insert(mount, opened.clone());
        opened
    }

    /// Stages that were opened since this was last asked.
    pub(super) fn take_fresh(&mut self) -> Vec<Arc<Stage>> {
        std::mem::take(&mut self.fresh)
    }

    fn open(&self, directory: BorrowedFd<'_>, path: &AbsPath) -> Option<Arc<Stage>> {
        match Stage::open(&self.root, &self.home, directory) {
            Ok(stage) => Some(Arc::new(stage)),
            Err(error @ (Unfit::Btrfs | Unfit::NoExchange)) => {
                tracing::info!(directory = %path, "files there are repaired by ordinary runs: {error}");
                None
            }
            Err(error @ (Unfit::Io { .. } | Unfit::NotOurs(_))) => {
                tracing::warn!(directory = %path, "files there are repaired by ordinary runs: {}", chain(&error));
                None
            }
        }
    }
}
