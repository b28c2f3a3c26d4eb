//! The SELinux labels of what is beneath a root, where a policy of the host names them.
//!
//! Labels belong to real paths: the directory is asked for its own, whatever links led to it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::attributes::{Inode, Mislabel};
use super::metadata::{FileType, Metadata, open_path, stat_at, stat_of};
use super::{Place, Root, open_regular};
use crate::host::selinux::Labels;
use crate::resource::AbsPath;

impl Root {
    /// Keeps labels as these say from now on.
    #[must_use]
    pub fn with_labels(mut self, labels: Labels) -> Self {
        self.labels = Some(labels);
        self
    }

    /// Whether somebody says what labels should be.
    pub(in crate::host) fn keeps_labels(&self) -> bool {
        self.labels.is_some()
    }

    /// Sets the label of what is at `path` where it is wrong; never follows a link. Returns what was wrong.
    pub fn restore_label(&self, path: &AbsPath) -> io::Result<Option<Mislabel>> {
        let Some(Place::Entry { dir, name }) = self.place(path)? else { return Ok(None) };
        let target = open_path(&dir, &name)?;
        let wrong = self.inspect(&dir, &name, &target)?.extras.label;
        if let Some(label) = &wrong {
            Inode::behind(&target).set_label(&label.wanted)?;
        }
        Ok(wrong.map(|label| *label))
    }

    /// The label that a file which replaces what is at `path` would get; `None` where nobody names one.
    pub fn label_of_successor(&self, path: &AbsPath) -> io::Result<Option<String>> {
        if self.labels.is_none() {
            return Ok(None);
        }
        let Some(Place::Entry { dir, name }) = self.place(path)? else { return Ok(None) };
        let old = match stat_at(&dir, &name)? {
            Some(Metadata { file_type: FileType::File, .. }) => open_regular(&dir, &name)?,
            Some(_) | None => None,
        };
        self.label_of_new(&dir, &name, FileType::File, old.as_ref())
    }

    /// Notes a wrong label among the metadata of an inode.
    pub(super) fn add_mislabel(
        &self,
        metadata: &mut Metadata,
        dir: &OwnedFd,
        name: &OsStr,
        inode: &Inode<'_>,
    ) -> io::Result<()> {
        let Some(labels) = &self.labels else { return Ok(()) };
        let found = match inode.label() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
            Err(error) => return Err(error),
        };
        let correction = labels.correction(&self.real_path(dir, name)?, metadata.file_type, found.as_deref())?;
        if let Some(wanted) = correction.filter(|_| labels.are_kept_on(metadata.identity.0)) {
            metadata.extras.label = Some(Box::new(Mislabel { found, wanted }));
        }
        Ok(())
    }

    /// The label that something new gets before it is visible under its name; `None` where nobody names one.
    pub(in crate::host) fn label_of_new(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        file_type: FileType,
        old: Option<&File>,
    ) -> io::Result<Option<String>> {
        let Some(labels) = &self.labels else { return Ok(None) };
        if !labels.are_kept_on(stat_of(dir)?.identity.0) {
            return Ok(None);
        }
        let old = match old.map(|old| Inode::Open(old.as_fd()).label()) {
            Some(Ok(label)) => label,
            Some(Err(error)) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
            Some(Err(_)) | None => None,
        };
        labels.of_new(&self.real_path(dir, name)?, file_type, old.as_deref())
    }

    /// The path of a name in a directory as the managed host has it.
    fn real_path(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<PathBuf> {
        let dir = rustix::fs::readlinkat(rustix::fs::CWD, format!("/proc/self/fd/{}", dir.as_raw_fd()), Vec::new())?;
        let dir = Path::new(OsStr::from_bytes(dir.to_bytes()));
        let beneath = dir.strip_prefix(&self.path).unwrap_or(dir);
        let path = Path::new("/").join(beneath);
        Ok(if name == "." { path } else { path.join(name) })
    }
}

/// Whether a file has a label of the same type as this one, which is all that counts; where a file system keeps none, it has.
pub(crate) fn is_labelled_like(file: &impl AsFd, label: &str) -> io::Result<bool> {
    match Inode::Open(file.as_fd()).label() {
        Ok(found) => {
            Ok(found.is_some_and(|found| crate::host::selinux::type_of(&found) == crate::host::selinux::type_of(label)))
        }
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(true),
        Err(error) => Err(error),
    }
}
