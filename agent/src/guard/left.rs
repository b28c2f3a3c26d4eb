//! What is on a stage beside copies that are ready: what was displaced, and what a kill left.

use std::io;
use std::os::fd::BorrowedFd;

use crate::host::root::{FileType, Metadata};
use crate::host::stage::{Entered, Stage};
use crate::resource::{AbsPath, Observation, place};

use super::table::Likeness;

/// What is on the stage under a name, as an observation.
pub(super) fn displaced(stage: &Stage, name: &str) -> Observation<place::Observed> {
    let observe = |entered: &Entered<'_>| -> io::Result<Observation<place::Observed>> {
        let Some(metadata) = entered.metadata(name)? else { return Ok(Observation::Absent) };
        let node = match metadata.file_type {
            FileType::File => match entered.read(name, place::MAX_CONTENT) {
                Ok(content) => place::Node::File(content),
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => place::Node::Unread,
                Err(error) => return Err(error),
            },
            FileType::Directory => place::Node::Directory,
            FileType::Symlink => place::Node::Symlink(entered.read_link(name)?),
            FileType::Special => place::Node::Special,
        };
        Ok(Observation::Present(place::Observed { node, metadata }))
    };
    match stage.enter().and_then(|entered| observe(&entered)) {
        Ok(observation) => observation,
        Err(error) => Observation::Unknown(format!("cannot read what was displaced: {error}")),
    }
}

/// Gives the file that was put in place the `user.*` attributes of the displaced one: nobody declares them, and a replacement
/// keeps them.
pub(super) fn hand_on(stage: &Stage, displaced: &str, path: &AbsPath, directory: BorrowedFd<'_>) {
    let Some(name) = path.as_path().file_name() else { return };
    if let Err(error) = stage.enter().and_then(|entered| entered.hand_on(displaced, directory, name)) {
        tracing::warn!(%path, "the `user.*` attributes of what was displaced are lost: {error}");
    }
}

/// Whether what is on the stage is a copy as it was laid out.
pub(super) fn is_copy(stage: &Stage, name: &str, known: &Likeness) -> bool {
    stage.enter().and_then(|entered| entered.is_sound(&known.copy(name), &mut Vec::new())).unwrap_or(false)
}

/// Removes something from a stage. What cannot be removed now is found by the next process.
pub(super) fn discard(stage: &Stage, name: &str) {
    let remove = |entered: &Entered<'_>| match entered.metadata(name)? {
        None => Ok(()),
        Some(Metadata { file_type: FileType::Directory, .. }) => entered.remove_directory(name),
        Some(_) => entered.remove(name),
    };
    if let Err(error) = stage.enter().and_then(|entered| remove(&entered)) {
        tracing::warn!(stage = %stage.path().display(), name, "cannot be removed from the stage: {error}");
    }
}
