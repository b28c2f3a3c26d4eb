//! Room that is kept for the worst day: on a full disk the journal, the alerts and a request to be reimaged still get out.
//!
//! [`BYTES`] bytes and [`INODES`] names lie in a directory of the state. When something that must be written finds no room,
//! all of it is given back at once, and it is written again. It is taken again when there is plenty of room. What it is for is
//! small and rare; backups, copies and history beyond that do not get it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// Bytes kept.
pub const BYTES: u64 = 8 * 1024 * 1024;

/// Names, and so inodes, kept.
pub const INODES: usize = 64;

/// How much more than the reserve has to be free before it is taken.
const PLENTY: u64 = 4;

/// The name of the file with the bytes.
const FILE: &str = "bytes";

/// The reserve of one state directory. Any number may be open; none holds anything but its place.
#[derive(Debug, Clone)]
pub struct Reserve {
    directory: PathBuf,
}

impl Reserve {
    /// The reserve in a state directory. Nothing is done yet.
    pub fn of(state: &Path) -> Self {
        Self { directory: state.join("reserve") }
    }

    /// Whether it is there, whole.
    pub fn is_held(&self) -> bool {
        fs::symlink_metadata(self.directory.join(FILE)).is_ok_and(|file| file.len() == BYTES)
    }

    /// Takes it unless it is there, and there is so little room that it would soon be needed. Returns whether it is there.
    pub fn take(&self) -> io::Result<bool> {
        if self.is_held() {
            return Ok(true);
        }
        // What an earlier attempt left is no reserve.
        self.release()?;
        let above = self.directory.parent().unwrap_or(&self.directory);
        let room = rustix::fs::statvfs(above)?;
        let has_bytes = room.f_bavail.saturating_mul(room.f_frsize) >= BYTES.saturating_mul(PLENTY);
        // File systems without a table of inodes say that there are none.
        let n_wanted = u64::try_from(INODES).unwrap_or(u64::MAX).saturating_mul(PLENTY);
        if !has_bytes || room.f_files > 0 && room.f_favail < n_wanted {
            return Ok(false);
        }
        let taken = self.fill();
        if taken.is_err() {
            self.release()?;
        }
        taken.map(|()| true)
    }

    fn fill(&self) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(&self.directory)?;
        let new =
            |name: &str| OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.directory.join(name));
        for i in 0..INODES {
            new(&i.to_string())?;
        }
        // Last, because it says that all is there.
        let file = new(FILE)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BYTES) {
            Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => fill_with_zeros(&file)?,
            allocated => allocated?,
        }
        file.sync_all()?;
        File::open(&self.directory)?.sync_all()
    }

    /// Gives all of it back. Returns whether there was any.
    pub fn release(&self) -> io::Result<bool> {
        match fs::remove_dir_all(&self.directory) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives it back because something found no room. Returns whether it is worth while to try again.
    pub fn release_for(&self, what: &str) -> bool {
        match self.release() {
            Ok(true) => {
                tracing::error!(what, "no room for the state: the reserve is given up; make room on its disk");
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::error!(what, %error, "no room for the state, and the reserve cannot be given up");
                false
            }
        }
    }
}

/// Where space cannot be allocated without writing.
fn fill_with_zeros(mut file: &File) -> io::Result<()> {
    let zeros = vec![0_u8; 64 * 1024];
    let mut left = BYTES;
    while let (Ok(n), true) = (usize::try_from(left.min(64 * 1024)), left > 0) {
        file.write_all(zeros.get(..n).unwrap_or_default())?;
        left = left.saturating_sub(u64::try_from(n).unwrap_or(u64::MAX));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_once_and_given_back_whole() {
        let state = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(state.path());
        assert!(!reserve.is_held() && !reserve.release().unwrap());
        assert!(reserve.take().unwrap() && reserve.take().unwrap());
        assert_eq!(fs::read_dir(state.path().join("reserve")).unwrap().count(), INODES + 1);
        assert!(reserve.release_for("a test") && !reserve.release_for("a test"));
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn half_of_it_is_no_reserve() {
        let state = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(state.path());
        fs::create_dir(state.path().join("reserve")).unwrap();
        OpenOptions::new().write(true).create_new(true).open(state.path().join("reserve/bytes")).unwrap();
        assert!(!reserve.is_held());
        assert!(reserve.take().unwrap() && reserve.is_held());
    }
}
