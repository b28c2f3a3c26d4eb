//! Files that other programs read while they are being written anew: whole or not at all, and not worth a wait for the disk.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags};
use rustix::io::Errno;

/// Replaces a file with new content, atomically and not durably. Another's link or file under the temporary name is removed and
/// never followed, so the directory may belong to whoever reads the file. Without a group the file keeps the agent's.
///
/// # Errors
///
/// When the directory does not exist, or cannot be written.
pub fn replace(path: &Path, content: &[u8], mode: u32, group: Option<u32>) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it names no file"));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, Mode::empty())?;
    // Collectors read what ends like the name itself.
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    match rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&directory, &temporary, flags, Mode::empty())?);
    let written = file.write_all(content).and_then(|()| {
        if let Some(group) = group {
            rustix::fs::fchown(&file, None, Some(Gid::from_raw(group)))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        rustix::fs::renameat(&directory, &temporary, &directory, name)?;
        Ok(())
    });
    // The first error is the one to tell; a leftover is removed by the next attempt.
    written.inspect_err(|_| rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rekindle.prom");
        for content in ["a 1\n", "b 2\n"] {
            replace(&path, content.as_bytes(), 0o644, None).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left over");
        assert!(replace(&dir.path().join("missing/x"), b"", 0o644, None).is_err());
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        replace(&victim, b"precious", 0o600, None).unwrap();
        let path = dir.path().join("rekindle.prom");
        symlink(&victim, &path).unwrap();
        symlink(&victim, dir.path().join(".rekindle.prom.new")).unwrap();
        replace(&path, b"a 1\n", 0o644, None).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
    }
}
