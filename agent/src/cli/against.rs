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

use crate::resource::directory::shown;

/// Most bytes of all files together.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;
/// Most entries.
const MAX_ENTRIES: usize = 500_000;

/// A tar is made of blocks of this size.
const BLOCK: u64 = 512;
/// Where in the first of an entry its sum is.
const SUM: std::ops::Range<usize> = 148..156;

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// It cannot be read, or is no tar.
    #[error("cannot read the snapshot `{}`", shown(path))]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is compressed.
    #[error(
        "the snapshot `{0}` is compressed with {with}, and is read as it is\nhint: `{with} -dc {0} > host.tar`, and give `host.tar`",
        shown(path)
    )]
    Compressed {
        /// Which.
        path: PathBuf,
        /// By which program.
        with: &'static str,
    },
    /// It is something else.
    #[error("the snapshot `{}` is no tar archive", shown(path))]
    NoTar {
        /// Which.
        path: PathBuf,
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
    #[error("cannot unpack `{}` of the snapshot", shown(name))]
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
    let unreadable = |source: io::Error| {
        // The library quotes what it cannot read, whatever bytes those are.
        let source = io::Error::new(source.kind(), shown(Path::new(&source.to_string())));
        SnapshotError::Read { path: snapshot.to_path_buf(), source }
    };
    let mut file = File::open(snapshot).map_err(unreadable)?;
    let mut start = Vec::new();
    (&mut file).take(BLOCK).read_to_end(&mut start).map_err(unreadable)?;
    check_start(snapshot, &start)?;
    let directory = tempfile::Builder::new()
        .prefix("rekindle-snapshot-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(unreadable)?;
    let as_root = rustix::process::geteuid().is_root();
    let mut archive = tar::Archive::new(io::Cursor::new(start).chain(io::BufReader::new(file)));
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

/// Tells by the first block whether it is a tar, and what else it is.
fn check_start(snapshot: &Path, start: &[u8]) -> Result<(), SnapshotError> {
    const COMPRESSED: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gzip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ];
    let path = snapshot.to_path_buf();
    if let Some((_, with)) = COMPRESSED.into_iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(SnapshotError::Compressed { path, with });
    }
    let Ok(block) = <[u8; 512]>::try_from(start) else { return Err(SnapshotError::NoTar { path }) };
    // The sum is made with spaces where it is written itself. A block of nothing but zeros ends an archive.
    let sum: u32 = block.iter().enumerate().map(|(i, byte)| if SUM.contains(&i) { 32 } else { u32::from(*byte) }).sum();
    let is_header = tar::Header::from_byte_slice(&block).cksum().is_ok_and(|written| written == sum);
    if is_header || block.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(SnapshotError::NoTar { path }) }
}

/// A name as a path beneath the tree, whatever it says of the root.
fn inside(name: &Path) -> Result<PathBuf, SnapshotError> {
    let mut inside = PathBuf::new();
    for part in name.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => inside.push(part),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(SnapshotError::Escapes { name: shown(name) });
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
    fn what_is_no_tar_is_said_to_be_what_it_is_and_shows_no_raw_bytes() {
        let check = |bytes: &[u8], expected: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("host.tgz");
            std::io::Write::write_all(&mut File::create_new(&path).unwrap(), bytes).unwrap();
            let error = anyhow::Error::new(unpack(&path).unwrap_err());
            let text = format!("{error:#}");
            assert!(text.contains(expected), "{text}");
            assert!(!text.replace("\nhint: ", "").contains(char::is_control), "{text:?}");
        };
        check(b"\x1f\x8b\x08\0\x1b[2J", "is compressed with gzip, and is read as it is\nhint: `gzip -dc ");
        check(b"\xfd7zXZ\0\0\x04", "is compressed with xz");
        check(b"\x28\xb5\x2f\xfd\0", "is compressed with zstd");
        check(b"", "is no tar archive");
        check(&b"\x1b[2J\x07".repeat(200), "is no tar archive");
        // The second entry is damaged.
        let (_dir, good) = snapshot(&[("a", EntryType::Regular, "x"), ("b", EntryType::Regular, "x")]);
        let mut bytes = std::fs::read(good).unwrap();
        bytes[1024 + 124..1024 + 136].copy_from_slice(b"\x1b[2J\xff\x07\x1b[31mx");
        let sum: u32 =
            bytes[1024..1536].iter().enumerate().map(|(i, b)| if SUM.contains(&i) { 32 } else { u32::from(*b) }).sum();
        bytes[1024 + 148..1024 + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        check(&bytes, "cannot read the snapshot");
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
