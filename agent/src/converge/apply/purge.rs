//! Removing what nobody declares: into the attic, never away.

use std::os::fd::AsFd;
use std::path::PathBuf;

use jiff::Timestamp;

use super::Run;
use crate::host::attic::{Attic, Batch};
use crate::host::tree;
use crate::resource::{ApplyError, Change, directory};

impl Run<'_, '_> {
    /// Begins a batch for what a step removes from a directory. The error comes with its signature.
    pub(super) fn begin_batch(&self, directory: &directory::Desired) -> Result<Batch, (String, String)> {
        let failed = |error: std::io::Error| {
            let class = error.raw_os_error().map(|errno| format!(": errno {errno}")).unwrap_or_default();
            let text = format!("cannot keep what would be removed from `{}`: {error}", directory.path);
            (text, format!("open the attic{class}"))
        };
        let root = &self.context.host.root;
        let opened = tree::open(root, &directory.path).map_err(failed)?;
        let opened = opened.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let home: Option<PathBuf> = self.context.record.attic();
        let attic = Attic::open(root, home.as_deref(), opened.as_fd()).map_err(failed)?;
        attic.begin(Timestamp::now()).map_err(failed)
    }

    /// Where what is removed will be; `None` when nobody keeps it.
    pub(super) fn kept(&self, batch: &Batch) -> Option<Change> {
        self.context.record.attic()?;
        Some(Change::value("kept", None, Some(batch.path().display().to_string())))
    }

    /// Moves what nobody declares into the batch, unless something failed before.
    pub(super) fn purge(
        &self,
        directory: &directory::Desired,
        mut batch: Batch,
        before: Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let root = &self.context.host.root;
        let path = batch.path();
        let purged = before.and_then(|()| directory::purge(root, directory, &mut batch));
        let finished = batch.finish().map_err(|source| ApplyError::Beneath {
            path: directory.path.clone(),
            source: tree::WalkError { operation: "move away", path: PathBuf::new(), source },
        });
        let n_taken = purged.and(finished)?;
        tracing::warn!(path = %directory.path, n_taken, kept = %path.display(), "removed what nobody declares");
        Ok(())
    }
}
