//! The backup store: replaced content, one file for each distinct content, named by its SHA-256.
//!
//! Never more than [`CAPACITY`] bytes: the oldest go first. Files appear whole or not at all, readable by the agent's user alone.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{RecordError, database::make_directory};
use crate::resource::digest;

/// Most bytes kept.
const CAPACITY: u64 = 256 * 1024 * 1024;

/// Prefix of files that are being written.
const TEMPORARY: &str = ".new-";

/// The store of one host.
#[derive(Debug)]
pub(super) struct BackupStore {
    directory: PathBuf,
    capacity: u64,
    /// Bytes in the store; counted when first needed.
    total: Option<u64>,
    n_written: u64,
    /// Whether a name may be there that a power cut would take away again: one of a process before, or after a failed sync.
    is_unsynced: bool,
}

impl BackupStore {
    /// Opens the store, making its directory and removing what a killed writer left.
    pub(super) fn open(directory: &Path) -> Result<Self, RecordError> {
        make_directory(directory, 0o700)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(at("set the mode of", directory))?;
        let entries = fs::read_dir(directory).map_err(at("list", directory))?;
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
                fs::remove_file(entry.path()).map_err(at("remove", &entry.path()))?;
            }
        }
        Ok(Self {
            directory: directory.to_path_buf(),
            capacity: CAPACITY,
            total: None,
            n_written: 0,
            is_unsynced: true,
        })
    }

    /// The attic beside the store.
    pub(super) fn attic(&self) -> PathBuf {
        self.directory.with_file_name("attic")
    }

    /// Another handle of an open store. Each counts for itself how full it is, so together they may keep twice as much for a
    /// while.
    pub(super) fn open_beside(directory: &Path) -> Self {
        Self {
            directory: directory.to_path_buf(),
            capacity: CAPACITY,
            total: None,
            n_written: 1 << 32,
            is_unsynced: true,
        }
    }

    #[cfg(test)]
    pub(super) fn with_capacity(directory: &Path, capacity: u64) -> Result<Self, RecordError> {
        Ok(Self { capacity, ..Self::open(directory)? })
    }

    /// Keeps content durably. Content that is there already becomes the newest.
    pub(super) fn keep(&mut self, content: &[u8]) -> Result<String, RecordError> {
        let name = digest(content);
        let path = self.directory.join(&name);
        let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.len() == size) {
            let times = FileTimes::new().set_modified(SystemTime::now());
            // Only the order of dropping depends on this.
            if let Err(e) = File::open(&path).and_then(|file| file.set_times(times)) {
                tracing::debug!(path = %path.display(), error = %e, "could not mark a backup as the newest");
            }
            if self.is_unsynced {
                self.sync().map_err(at("sync", &self.directory))?;
            }
            return Ok(name);
        }
        self.make_room(self.capacity.saturating_sub(size))?;
        match self.write(&path, content) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                // What was there today matters more than what was there long ago.
                let half = self.total.unwrap_or(0) / 2;
                self.make_room(half)?;
                self.write(&path, content).map_err(at("write", &path))?;
            }
            Err(e) => return Err(at("write", &path)(e)),
        }
        self.total = self.total.map(|total| total.saturating_add(size));
        Ok(name)
    }

    fn write(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.n_written += 1;
        let temporary = self.directory.join(format!("{TEMPORARY}{}-{}", std::process::id(), self.n_written));
        let result = write_synced(&temporary, content).and_then(|()| fs::rename(&temporary, path));
        if result.is_err() {
            // The error that counts is the first one; the leftover is removed at the next start at the latest.
            if let Err(e) = fs::remove_file(&temporary) {
                tracing::debug!(path = %temporary.display(), error = %e, "could not remove a temporary file");
            }
        }
        result?;
        self.is_unsynced = true;
        self.sync()
    }

    fn sync(&mut self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()?;
        self.is_unsynced = false;
        Ok(())
    }

    /// Drops the oldest until at most `limit` bytes are left.
    fn make_room(&mut self, limit: u64) -> Result<(), RecordError> {
        if self.total.is_some_and(|total| total <= limit) {
            return Ok(());
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(at("list", &self.directory))?.flatten() {
            if let Ok(metadata) = entry.metadata() {
                files.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), entry.path()));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if total <= limit {
                break;
            }
            fs::remove_file(&path).map_err(at("remove", &path))?;
            total = total.saturating_sub(size);
        }
        self.total = Some(total);
        Ok(())
    }
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Reads what was kept under a name; `None` when it has been dropped, or when the name is none that the store gives out.
pub(super) fn read(directory: &Path, name: &str) -> Result<Option<Vec<u8>>, RecordError> {
    if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let path = directory.join(name);
    match fs::read(&path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at("read", &path)(e)),
    }
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_path_buf();
    move |source| RecordError::File { operation, path, source }
}
