//! Keeps verified trees on disk, so that the policy in force survives a restart without the repository.
//!
//! A stored tree is `<revision>/tree/…` and `<revision>/MANIFEST`, which lists every file with its SHA-256. It becomes visible
//! with one rename, after everything is on disk. Only the agent's own user may have written it: [`load_stored`] checks that.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{TrustError, Verified};
use crate::policy::Revision;
use crate::policy::candidate::{self, hex};

const MANIFEST: &str = "MANIFEST";
const TREE: &str = "tree";
const FORMAT: u32 = 1;
/// 20 000 files with long names fit.
const MAX_MANIFEST: u64 = 16 * 1024 * 1024;

#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    revision: Revision,
    signer: Option<String>,
    /// Path to lower-case hexadecimal SHA-256.
    files: BTreeMap<String, String>,
}

/// Writes a verified tree below `policies_dir` under its revision and returns where. One that is there and whole is left.
pub fn store(verified: &Verified, policies_dir: &Path) -> Result<PathBuf, TrustError> {
    let name = verified.revision.as_str();
    let home = policies_dir.join(name);
    if !is_safe_name(name) {
        return Err(TrustError::Damaged { path: home, why: "its revision cannot be a directory name".to_owned() });
    }
    if load_stored(&home).is_ok() {
        return Ok(home);
    }
    make_directory(policies_dir)?;
    let temporary = policies_dir.join(format!(".{name}.{}.tmp", std::process::id()));
    remove_tree(&temporary)?;
    let result = write_tree(verified, &temporary).and_then(|()| {
        // What is there is damaged, or loading it would have succeeded.
        remove_tree(&home)?;
        fs::rename(&temporary, &home).map_err(io_error("move into place", &home))?;
        sync_directory(policies_dir)
    });
    if result.is_err() {
        // The first error is the one to tell; a leftover is removed by the next attempt.
        drop(remove_tree(&temporary));
    }
    result.map(|()| home)
}

/// Removes a stored tree that is no longer needed. One that is not there is no error.
pub fn forget(policies_dir: &Path, revision: &Revision) -> Result<(), TrustError> {
    if is_safe_name(revision.as_str()) { remove_tree(&policies_dir.join(revision.as_str())) } else { Ok(()) }
}

/// Reads a tree that [`store`] wrote, and checks each file against the manifest.
pub fn load_stored(dir: &Path) -> Result<Verified, TrustError> {
    let damaged = |why: String| TrustError::Damaged { path: dir.to_path_buf(), why };
    check_owned(dir)?;
    let path = dir.join(MANIFEST);
    check_owned(&path)?;
    let mut text = String::new();
    let file = File::open(&path).map_err(io_error("open", &path))?;
    file.take(MAX_MANIFEST).read_to_string(&mut text).map_err(io_error("read", &path))?;
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|e| damaged(format!("its manifest cannot be read: {e}")))?;
    if manifest.format != FORMAT {
        return Err(damaged(format!("its manifest has format {}, expected {FORMAT}", manifest.format)));
    }
    if dir.file_name().and_then(|name| name.to_str()) != Some(manifest.revision.as_str()) {
        return Err(damaged(format!("its manifest is that of `{}`", manifest.revision)));
    }
    let tree = dir.join(TREE);
    check_owned(&tree)?;
    let candidate =
        candidate::from_directory(&tree).map_err(|source| TrustError::Load { path: dir.to_path_buf(), source })?;
    if candidate.files.len() != manifest.files.len() {
        return Err(damaged(format!("it has {} files, expected {}", candidate.files.len(), manifest.files.len())));
    }
    for (path, content) in candidate.files.iter() {
        match manifest.files.get(path) {
            Some(digest) if *digest == hex(&Sha256::digest(content)) => {}
            Some(_) => return Err(damaged(format!("`{path}` was changed"))),
            None => return Err(damaged(format!("`{path}` does not belong to it"))),
        }
    }
    Ok(Verified { revision: manifest.revision, signer: manifest.signer, files: candidate.files })
}

/// A revision as [`candidate`] makes them: nothing that could leave the directory.
fn is_safe_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TrustError {
    let path = path.to_path_buf();
    move |source| TrustError::Io { operation, path, source }
}

/// Refuses what another user may have put there: the tree was verified by us, or it is nothing.
pub(in crate::policy) fn check_owned(path: &Path) -> Result<(), TrustError> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    check_owner(path, &metadata)
}

/// As [`check_owned`], for what was looked at already.
pub(in crate::policy) fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), TrustError> {
    let why = if metadata.file_type().is_symlink() {
        "is a symbolic link"
    } else if metadata.uid() != rustix::process::geteuid().as_raw() {
        "belongs to another user"
    } else if metadata.mode() & 0o022 != 0 {
        "may be written by others"
    } else {
        return Ok(());
    };
    Err(TrustError::Damaged { path: path.to_path_buf(), why: format!("`{}` {why}", path.display()) })
}

fn make_directory(path: &Path) -> Result<(), TrustError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create the directory", path))
}

fn write_tree(verified: &Verified, to: &Path) -> Result<(), TrustError> {
    let tree = to.join(TREE);
    make_directory(&tree)?;
    let mut directories = std::collections::BTreeSet::from([to.to_path_buf(), tree.clone()]);
    let mut digests = BTreeMap::new();
    for (path, content) in verified.files.iter() {
        let target = tree.join(path);
        if let Some(parent) = target.parent().filter(|parent| !directories.contains(*parent)) {
            make_directory(parent)?;
            directories.extend(parent.ancestors().take_while(|above| *above != tree).map(Path::to_path_buf));
        }
        write_file(&target, content)?;
        digests.insert(path.clone(), hex(&Sha256::digest(content)));
    }
    let manifest = Manifest {
        format: FORMAT,
        revision: verified.revision.clone(),
        signer: verified.signer.clone(),
        files: digests,
    };
    let path = to.join(MANIFEST);
    let mut text = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| TrustError::Damaged { path: path.clone(), why: format!("its manifest cannot be written: {e}") })?;
    text.push(b'\n');
    write_file(&path, &text)?;
    directories.iter().try_for_each(|directory| sync_directory(directory))
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), TrustError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io_error("create", path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io_error("write", path))
}

fn sync_directory(path: &Path) -> Result<(), TrustError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("sync", path))
}

fn remove_tree(path: &Path) -> Result<(), TrustError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
