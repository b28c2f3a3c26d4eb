//! One look at a guarded file: as declared, or how it differs. Changes nothing.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode as KernelMode, OFlags};
use rustix::io::Errno;

use super::table::Likeness;
use crate::host::root::{FileType, Metadata, is_labelled_like, metadata_of_open, stat_at};
use crate::resource::Content;

/// What a look found.
#[derive(Debug)]
pub(super) enum Found {
    /// Everything as declared.
    InSync,
    /// Only owner, group or mode differ, on an inode with this one name.
    Permissions(File, Metadata),
    /// Something else is there, which may be displaced.
    Other,
    /// Nothing is there.
    Absent,
    /// A directory, or something that could not be looked at.
    Odd,
}

/// Looks at a name without following a link, waiting, or opening what is no regular file.
pub(super) fn look(directory: BorrowedFd<'_>, name: &OsStr, declared: &Likeness, buffer: &mut Vec<u8>) -> Found {
    match stat_at(&directory, name) {
        Ok(None) => return Found::Absent,
        // A flag that refuses changes has to be cleared first.
        Ok(Some(Metadata { file_type: FileType::File, flags, .. })) if !flags.is_empty() => return Found::Odd,
        Ok(Some(Metadata { file_type: FileType::File, .. })) => {}
        Ok(Some(Metadata { file_type: FileType::Symlink | FileType::Special, .. })) => return Found::Other,
        Ok(Some(Metadata { file_type: FileType::Directory, .. })) | Err(_) => return Found::Odd,
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, name, flags, KernelMode::empty()) {
        Ok(file) => File::from(file),
        // Replaced or removed between the two looks: the next event says so.
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Found::Other,
        Err(_) => return Found::Odd,
    };
    let Ok(metadata) = metadata_of_open(&file) else { return Found::Odd };
    if metadata.file_type != FileType::File {
        return Found::Other;
    }
    // What to do about another label depends on the policy of the host.
    if let Some(label) = declared.common.label.as_deref()
        && !is_labelled_like(&file, label).unwrap_or(false)
    {
        return Found::Odd;
    }
    let content = &declared.content;
    let length = u64::try_from(content.len()).unwrap_or(u64::MAX);
    if metadata.size != length || !metadata.extras.is_empty() {
        return Found::Other;
    }
    match has_content(&file, content, buffer) {
        Ok(true) => {}
        Ok(false) => return Found::Other,
        Err(_) => return Found::Odd,
    }
    if metadata.is_as_declared(declared.common.permissions) {
        Found::InSync
    } else if metadata.n_links == 1 {
        Found::Permissions(file, metadata)
    } else {
        // Under another name it may be somebody else's.
        Found::Other
    }
}

fn has_content(file: &File, content: &Content, buffer: &mut Vec<u8>) -> io::Result<bool> {
    buffer.clear();
    // One byte more shows a file that grows.
    let limit = u64::try_from(content.len()).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(buffer)?;
    Ok(content.is(buffer))
}
