//! One run at a time: an advisory lock on a file, which the kernel lets go of when its holder dies.

use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

/// The right to run, until it is dropped.
#[derive(Debug)]
pub struct RunLock(#[expect(dead_code, reason = "held, not read: closing it lets go of the lock")] std::fs::File);

/// A lock that was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The lock file cannot be used.
    #[error("cannot lock `{path}`")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process runs.
    #[error(
        "another run holds the lock: {holder}\nhint: it ends by itself; `rekindle status` shows what the agent does"
    )]
    Held {
        /// Who, and since when, in the holder's own words.
        holder: String,
    },
}

/// Longest text that a holder leaves in the file, in bytes.
const MAX_HOLDER: u64 = 256;

impl RunLock {
    /// Waits for the lock as long as it takes.
    pub fn wait(directory: &Path, who: &str) -> Result<Self, LockError> {
        let (mut file, path) = open(directory)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| failed(&path, e.into()))?;
        sign(&mut file, who).map_err(|e| failed(&path, e))?;
        Ok(Self(file))
    }

    /// Waits for the lock at most `patience`; then says who holds it.
    pub fn acquire(directory: &Path, who: &str, patience: Duration) -> Result<Self, LockError> {
        let (mut file, path) = open(directory)?;
        let ends = Instant::now() + patience;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < ends => {
                    // The kernel offers no timed flock; a person waits here, not the agent.
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    file.take(MAX_HOLDER).read_to_string(&mut holder).map_err(|e| failed(&path, e))?;
                    return Err(LockError::Held { holder });
                }
                Err(error) => return Err(failed(&path, error.into())),
            }
        }
        sign(&mut file, who).map_err(|e| failed(&path, e))?;
        Ok(Self(file))
    }
}

fn open(directory: &Path) -> Result<(std::fs::File, String), LockError> {
    let path = directory.join("run.lock");
    let shown = path.display().to_string();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|e| failed(&shown, e))?;
    Ok((file, shown))
}

fn failed(path: &str, source: io::Error) -> LockError {
    LockError::File { path: path.to_owned(), source }
}

/// Leaves word of who holds the lock.
fn sign(file: &mut std::fs::File, who: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "`rekindle {who}`, process {}, since {:.0}", std::process::id(), Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_told_who_holds_the_lock_and_gets_it_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(directory.path(), "apply", Duration::ZERO).unwrap();
        let error = RunLock::acquire(directory.path(), "plan", Duration::ZERO).unwrap_err().to_string();
        let expected = format!("another run holds the lock: `rekindle apply`, process {}, since ", std::process::id());
        assert!(error.starts_with(&expected), "{error}");
        drop(first);
        RunLock::acquire(directory.path(), "plan", Duration::ZERO).unwrap();
    }
}
