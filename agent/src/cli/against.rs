//! `plan --against`: a captured host, unpacked where nobody else can look, and gone when the plan is made.
//!
//! A snapshot is any tar of a root tree, and comes from who knows where. Nothing in it can lead out of the directory: names are
//! checked part by part, links are made last, when nothing is written through a path any more, and nothing but files,
//! directories and links is made at all. Number and bytes are bounded.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;
use tempfile::TempDir;

/// Most bytes of all files together.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;
/// Most entries.
const MAX_ENTRIES: usize = 500_000;

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// It cannot be read, or is no tar.
    #[error("cannot read the snapshot `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name that would lead out of the tree.
    #[error("the snapshot holds `{name}`, which would lead out of it")]
    Escapes {
        /// The name.
        name: String,
    },
    /// More than a host needs for a plan.
    #[error("the snapshot holds more than {limit}\nhint: leave out what the policy does not name")]
    TooLarge {
        /// Which limit.
        limit: String,
    },
    /// Something could not be unpacked.
    #[error("cannot unpack `{}` of the snapshot", name.display())]
    Unpack {
        /// What.
        name: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Unpacks a snapshot into a directory of its own. Owners are kept where that is permitted, which is for root.
pub(crate) fn unpack(snapshot: &Path) -> Result<TempDir, SnapshotError> {
    let unreadable = |source| SnapshotError::Read { path: snapshot.to_path_buf(), source };
    let file = File::open(snapshot).map_err(unreadable)?;
    let directory = tempfile::Builder::new()
        .prefix("rekindle-snapshot-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(unreadable)?;
    let as_root = rustix::process::geteuid().is_root();
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    let mut links: Vec<(PathBuf, PathBuf)> = Vec::new();
    let mut modes: Vec<(PathBuf, u32, (u32, u32))> = Vec::new();
    let (mut n_entries, mut n_bytes) = (0_usize, 0_u64);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        n_entries += 1;
        if n_entries > MAX_ENTRIES {
            return Err(SnapshotError::TooLarge { limit: format!("{MAX_ENTRIES} entries") });
        }
        let name = inside(&entry.path().map_err(unreadable)?)?;
        let at = directory.path().join(&name);
        let failed = |source| SnapshotError::Unpack { name: name.clone(), source };
        let header = entry.header();
        let mode = header.mode().map_err(unreadable)? & 0o7777;
        let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let ids = (id(header.uid()), id(header.gid()));
        let kind = header.entry_type();
        if kind == EntryType::Directory {
            make_directory(&at).map_err(failed)?;
            modes.push((at, mode, ids));
        } else if kind.is_file() {
            let left = MAX_BYTES.saturating_sub(n_bytes);
            if let Some(parent) = at.parent() {
                make_directory(parent).map_err(failed)?;
            }
            // What comes twice counts as it comes last.
            match std::fs::remove_file(&at) {
                Ok(()) => modes.retain(|(other, ..)| *other != at),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
            let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at).map_err(failed)?;
            let copied = io::copy(&mut (&mut entry).take(left.saturating_add(1)), &mut out).map_err(failed)?;
            if copied > left {
                return Err(SnapshotError::TooLarge { limit: format!("{} MiB", MAX_BYTES / 1024 / 1024) });
            }
            n_bytes = n_bytes.saturating_add(copied);
            modes.push((at, mode, ids));
        } else if kind == EntryType::Symlink
            && let Some(target) = entry.link_name().map_err(unreadable)?
        {
            links.push((at, target.into_owned()));
        }
        // Devices, FIFOs and hard links are nothing that a plan compares.
    }
    // The deepest first, so that a directory that may not be entered comes after what is in it.
    for (at, mode, (uid, gid)) in modes.into_iter().rev() {
        let failed = |source| SnapshotError::Unpack { name: at.clone(), source };
        if as_root {
            std::os::unix::fs::chown(&at, Some(uid), Some(gid)).map_err(failed)?;
        }
        // Whoever is not root must be able to look into it, and to remove it.
        let mode = if as_root { mode } else { mode | 0o600 | if at.is_dir() { 0o100 } else { 0 } };
        std::fs::set_permissions(&at, Permissions::from_mode(mode)).map_err(failed)?;
    }
    for (at, target) in links {
        let failed = |source| SnapshotError::Unpack { name: at.clone(), source };
        let Some(parent) = at.parent() else { continue };
        // A link where a directory should be would lead the next one elsewhere: only real directories are gone through.
        let is_real = parent
            .ancestors()
            .take_while(|above| *above != directory.path())
            .all(|above| std::fs::symlink_metadata(above).map_or(true, |found| found.is_dir()));
        if !is_real {
            continue;
        }
        make_directory(parent).map_err(failed)?;
        match std::os::unix::fs::symlink(&target, &at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(directory)
}

/// A name as a path beneath the tree, whatever it says of the root.
fn inside(name: &Path) -> Result<PathBuf, SnapshotError> {
    let mut inside = PathBuf::new();
    for part in name.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => inside.push(part),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(SnapshotError::Escapes { name: name.display().to_string() });
            }
        }
    }
    Ok(inside)
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(entries: &[(&str, EntryType, &str)]) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.tar");
        let mut builder = tar::Builder::new(File::create_new(&path).unwrap());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o640);
            let (uid, gid) = crate::host::current_ids();
            header.set_uid(uid.into());
            header.set_gid(gid.into());
            // A name as an attacker writes it: the library would refuse it.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            let data = if *kind == EntryType::Regular { content.as_bytes() } else { b"" };
            if *kind == EntryType::Symlink {
                header.set_link_name(content).unwrap();
            }
            header.set_size(u64::try_from(data.len()).unwrap());
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.finish().unwrap();
        (dir, path)
    }

    #[test]
    fn files_directories_and_links_are_unpacked_with_their_modes() {
        let (_dir, path) = snapshot(&[
            ("./etc/", EntryType::Directory, ""),
            ("/etc/motd", EntryType::Regular, "old"),
            ("etc/motd", EntryType::Regular, "hello"),
            ("etc/link", EntryType::Symlink, "/etc/motd"),
            ("dev/null", EntryType::Char, ""),
        ]);
        let tree = unpack(&path).unwrap();
        assert_eq!(std::fs::read_to_string(tree.path().join("etc/motd")).unwrap(), "hello");
        let mode = std::fs::metadata(tree.path().join("etc/motd")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(std::fs::read_link(tree.path().join("etc/link")).unwrap(), Path::new("/etc/motd"));
        assert!(!tree.path().join("dev/null").exists());
        let top = std::fs::metadata(tree.path()).unwrap().permissions().mode();
        assert_eq!(top & 0o7777, 0o700);
    }

    #[test]
    fn nothing_hostile_gets_out_of_the_tree() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_str().unwrap();
        for name in ["../escaped", "etc/../../escaped"] {
            let (_dir, path) = snapshot(&[(name, EntryType::Regular, "x")]);
            assert!(matches!(unpack(&path), Err(SnapshotError::Escapes { .. })), "{name}");
        }
        // Through a link that the snapshot itself makes, before and after.
        let (_dir, path) = snapshot(&[
            ("a", EntryType::Symlink, target),
            ("a/file", EntryType::Regular, "x"),
            ("b", EntryType::Symlink, target),
            ("b/link", EntryType::Symlink, "x"),
        ]);
        unpack(&path).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
