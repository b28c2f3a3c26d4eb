//! The newest revision that this host ever accepted, in a file of its own outside the state directory.
//!
//! Whoever removes the state of the agent, or reboots into a volume without it, must not be able to offer an older signed
//! policy with it. So the file is beside the configuration, where only root writes, and a person changes it by writing to it:
//! neither a file that is gone nor one that cannot be read means that anything goes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::policy::Revision;

/// The word with which a person lets any history count, once.
const ANY: &str = "none";

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Newest {
    /// There is no file: nothing was accepted yet, or somebody removed it.
    Unwritten,
    /// What replaces this must descend from it.
    Revision(Revision),
    /// A person wrote `none`: the next revision may come from any history.
    Any,
}

/// The file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NewestError {
    /// It could not be read.
    #[error("cannot read the newest accepted revision in `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "`{}` is damaged: expected a commit id, or `none`\nhint: write the id of the newest revision that this host had, or \
         `none` to let it accept any signed one", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It could not be written.
    #[error("cannot write the newest accepted revision to `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl NewestError {
    /// Whether the file is where nothing can ever be written.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Write { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}

/// Reads the file.
pub fn load(path: &Path) -> Result<Newest, NewestError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Newest::Unwritten),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(NewestError::Damaged { path: path.to_path_buf() });
        }
        Err(source) => return Err(NewestError::Read { path: path.to_path_buf(), source }),
    };
    let mut words = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let is_commit = |word: &str| matches!(word.len(), 40 | 64) && word.bytes().all(|b| b.is_ascii_hexdigit());
    match (words.next(), words.next()) {
        (Some(ANY), None) => Ok(Newest::Any),
        (Some(word), None) if is_commit(word) => Ok(Newest::Revision(Revision::new(word.to_ascii_lowercase()))),
        _ => Err(NewestError::Damaged { path: path.to_path_buf() }),
    }
}

/// Writes the file: durable, and never to be seen half-written.
pub fn save(path: &Path, revision: &Revision) -> Result<(), NewestError> {
    let text = format!(
        "# The newest policy revision that this host accepted. Revisions that do not descend from it are refused, so that nobody\n\
         # can bring an old policy back. Written by rekindle-agent. To let the next revision come from another history, write\n\
         # `none` here instead; removing the file does nothing while the agent remembers.\n\
         {revision}\n"
    );
    replace(path, text.as_bytes()).map_err(|source| NewestError::Write { path: path.to_path_buf(), source })
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    // One name, so that a killed writer's leftover is removed by the next.
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let result = File::create_new(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(directory)?.sync_all());
    if result.is_err() {
        // The first error is the one to tell.
        fs::remove_file(&temporary).ok();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_may_say() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/newest-revision");
        assert_eq!(load(&path).unwrap(), Newest::Unwritten);
        let commit = Revision::new("0123456789abcdef0123456789abcdef01234567");
        save(&path, &commit).unwrap();
        assert_eq!(load(&path).unwrap(), Newest::Revision(commit));
        let check = |text: &[u8], expected: Option<Newest>| {
            fs::remove_file(&path).unwrap();
            File::create_new(&path).unwrap().write_all(text).unwrap();
            assert_eq!(load(&path).ok(), expected, "{}", String::from_utf8_lossy(text));
        };
        check(b"# why\n none \n", Some(Newest::Any));
        for damaged in [&b""[..], b"# no word\n", b"0123", b"none\nnone\n", b"HEAD", b"\xff"] {
            check(damaged, None);
        }
        assert_eq!(fs::read_dir(dir.path().join("etc")).unwrap().count(), 1, "nothing is left beside it");
    }
}
