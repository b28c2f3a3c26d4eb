//! Finds and reads configuration files. Reads only; refuses what others than root (or the user it runs as) could have written.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::ConfigError;

/// Far more than a person would write.
const MAX_SIZE: u64 = 1024 * 1024;

/// One file's text.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// The files of a host, in order of rising precedence.
pub(super) fn of_host(root: &Path) -> Result<Vec<Source>, ConfigError> {
    let etc = root.join("etc/rekindle");
    let directories =
        [root.join("usr/lib/rekindle/agent.toml.d"), root.join("run/rekindle/agent.toml.d"), etc.join("agent.toml.d")];
    let mut listed = Vec::new();
    for directory in &directories {
        listed.push(drop_ins(directory)?);
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    let last = listed.len().saturating_sub(1);
    for (i, names) in listed.iter().enumerate() {
        if i == last {
            paths.extend(existing(&etc.join("agent.toml"))?);
        }
        let is_shadowed = |name: &OsString| listed.iter().skip(i + 1).any(|later| later.contains_key(name));
        paths.extend(names.iter().filter(|(name, _)| !is_shadowed(name)).map(|(_, path)| path.clone()));
    }
    paths.into_iter().map(read).collect()
}

/// One file and its drop-ins.
pub(super) fn of_file(path: &Path) -> Result<Vec<Source>, ConfigError> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let mut sources = vec![read(path.to_owned())?];
    for (_, path) in drop_ins(Path::new(&directory))? {
        sources.push(read(path)?);
    }
    Ok(sources)
}

fn existing(path: &Path) -> Result<Option<PathBuf>, ConfigError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(Some(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

/// The `.toml` files of a directory by name; hidden files are what editors leave behind.
fn drop_ins(directory: &Path) -> Result<BTreeMap<OsString, PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !is_hidden && path.extension().is_some_and(|extension| extension == "toml") {
            found.insert(entry.file_name(), path);
        }
    }
    Ok(found)
}

fn read(path: PathBuf) -> Result<Source, ConfigError> {
    let bytes = read_guarded(&path)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source { path, text }),
        Err(error) => {
            let source = io::Error::new(io::ErrorKind::InvalidData, error.utf8_error());
            Err(ConfigError::Read { path, source })
        }
    }
}

/// The content of a file that others than root must not decide.
pub(super) fn read_guarded(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let metadata = fs::metadata(directory).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    // In a sticky directory nobody can replace another's file.
    let others_may_replace = metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0;
    refuse_exposed(directory, &metadata, others_may_replace)?;
    let not_a_file = |found| Err(ConfigError::NotAFile { path: path.to_owned(), found });
    match read_bytes(path) {
        Ok((metadata, bytes)) => {
            refuse_exposed(path, &metadata, metadata.mode() & 0o022 != 0)?;
            match bytes {
                Some(bytes) => Ok(bytes),
                None if metadata.is_dir() => not_a_file("a directory"),
                None if metadata.is_file() => not_a_file("larger than 1 MiB"),
                None => not_a_file("a special file"),
            }
        }
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

/// The content of a regular file, and the metadata of the very inode that was read.
fn read_bytes(path: &Path) -> io::Result<(Metadata, Option<Vec<u8>>)> {
    // A FIFO would block the opening.
    if !fs::metadata(path)?.is_file() {
        return Ok((fs::metadata(path)?, None));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_SIZE {
        return Ok((metadata, None));
    }
    let mut bytes = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut bytes)?;
    Ok((metadata, Some(bytes)))
}

const MAY_DECIDE: &str = "decide what the agent does";

/// Refuses a file that others than its owner may read.
pub(super) fn refuse_readable(path: &Path) -> Result<(), ConfigError> {
    let metadata = fs::metadata(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(ConfigError::Exposed {
        path: path.to_owned(),
        found: format!("has mode {:04o}", metadata.mode() & 0o7777),
        may: "read the key in it",
        hint: format!("run `chmod 0600 {}`, and make a new key if somebody did", path.display()),
    })
}

fn refuse_exposed(path: &Path, metadata: &Metadata, others_may_write: bool) -> Result<(), ConfigError> {
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != me {
        return Err(ConfigError::Exposed {
            path: path.to_owned(),
            found: format!("belongs to user {}", metadata.uid()),
            may: MAY_DECIDE,
            hint: format!("run `chown root: {}`, once you have read what it says", path.display()),
        });
    }
    if others_may_write {
        return Err(ConfigError::Exposed {
            path: path.to_owned(),
            found: format!("has mode {:04o}", metadata.mode() & 0o7777),
            may: MAY_DECIDE,
            hint: format!("run `chmod go-w {}`, once you have read what it says", path.display()),
        });
    }
    Ok(())
}
