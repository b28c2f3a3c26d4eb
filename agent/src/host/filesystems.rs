//! What the kernel says about damage in file systems. Reads only; nothing here mounts, checks or mends anything.
//!
//! ext4 counts the errors that it found in its metadata, in the superblock, until `e2fsck` clears them; so the count survives
//! a reboot, and tells of errors that happened while nobody looked.

use std::io;

use jiff::Timestamp;

use super::root::Root;
use crate::resource::AbsPath;

/// Where ext4 says it, one directory for each mounted file system.
const EXT4: &str = "/sys/fs/ext4";

/// More file systems than any host mounts.
const MAX_FILE_SYSTEMS: usize = 10_000;

/// Longest content of one of these files that is read.
const MAX_FILE: u64 = 4096;

/// What one mounted ext4 file system says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ext4 {
    /// The device's name, such as `vda1`.
    pub device: String,
    /// The device's number, as in [`super::root::Metadata::identity`], when it could be told.
    pub number: Option<u64>,
    /// Errors since the last `e2fsck`.
    pub n_errors: u64,
    /// When the first of them happened.
    pub first_error: Option<Timestamp>,
    /// When the last of them happened.
    pub last_error: Option<Timestamp>,
}

/// Reads what every mounted ext4 file system says; empty where there is none.
///
/// # Errors
///
/// When the list cannot be read. A file system that is unmounted meanwhile is left out.
pub fn ext4(root: &Root) -> io::Result<Vec<Ext4>> {
    let Some(names) = root.list_names(&path(EXT4)?, MAX_FILE_SYSTEMS)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for name in names {
        let Some(device) = name.to_str() else { continue };
        let value = |file: &str| read(root, &format!("{EXT4}/{device}/{file}"));
        // `features` is beside the devices and counts nothing.
        let Some(n_errors) = value("errors_count").and_then(|text| text.parse().ok()) else { continue };
        let time = |file: &str| {
            let second: i64 = value(file)?.parse().ok()?;
            if second == 0 { None } else { Timestamp::from_second(second).ok() }
        };
        found.push(Ext4 {
            device: device.to_owned(),
            number: read(root, &format!("/sys/class/block/{device}/dev")).and_then(|text| number(&text)),
            n_errors,
            first_error: time("first_error_time"),
            last_error: time("last_error_time"),
        });
    }
    found.sort_by(|a, b| a.device.cmp(&b.device));
    Ok(found)
}

fn path(text: &str) -> io::Result<AbsPath> {
    AbsPath::new(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

fn read(root: &Root, text: &str) -> Option<String> {
    let (bytes, _) = root.read(&path(text).ok()?, MAX_FILE).ok().flatten()?;
    Some(String::from_utf8(bytes).ok()?.trim().to_owned())
}

/// `254:1` as one number.
fn number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test makes the files of a kernel")]
    fn put(root: &std::path::Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn case_44_errors_are_read_as_the_kernel_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(ext4(&root).unwrap(), []);
        put(dir.path(), "sys/fs/ext4/features/lazy_itable_init", "supported\n");
        for (device, count, first, last) in [("vda1", "3", "1800000000", "1800000060"), ("dm-0", "0", "0", "0")] {
            put(dir.path(), &format!("sys/fs/ext4/{device}/errors_count"), &format!("{count}\n"));
            put(dir.path(), &format!("sys/fs/ext4/{device}/first_error_time"), &format!("{first}\n"));
            put(dir.path(), &format!("sys/fs/ext4/{device}/last_error_time"), &format!("{last}\n"));
        }
        put(dir.path(), "sys/class/block/vda1/dev", "254:1\n");
        let time = |second| Some(Timestamp::from_second(second).unwrap());
        let sound = Ext4 { device: "dm-0".into(), number: None, n_errors: 0, first_error: None, last_error: None };
        let damaged = Ext4 {
            device: "vda1".into(),
            number: Some(rustix::fs::makedev(254, 1)),
            n_errors: 3,
            first_error: time(1_800_000_000),
            last_error: time(1_800_000_060),
        };
        assert_eq!(ext4(&root).unwrap(), [sound, damaged]);
    }

    #[test]
    fn what_the_kernel_would_never_write_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        put(dir.path(), "sys/fs/ext4/a/errors_count", "many");
        put(dir.path(), "sys/fs/ext4/b/errors_count", "");
        put(dir.path(), "sys/fs/ext4/c/errors_count", &"1".repeat(10_000));
        put(dir.path(), "sys/fs/ext4/d/errors_count", "1\n");
        put(dir.path(), "sys/fs/ext4/d/first_error_time", "-99999999999999999\n");
        let found = ext4(&root).unwrap();
        assert_eq!(found.iter().map(|ext4| ext4.device.as_str()).collect::<Vec<_>>(), ["d"]);
        assert_eq!(found.first().unwrap().first_error, None);
    }
}
