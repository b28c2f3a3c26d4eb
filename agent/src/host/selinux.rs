//! The SELinux label that a path should have, asked of the host's own libselinux.
//!
//! The library is opened at run time and only where SELinux is enabled, so that the agent needs it nowhere else. What the
//! labels should be is the host's policy's business (`file_contexts`), never a resource's: the rule is that of restorecon(8)
//! without `-F`. A wrong *type* is drift and is set, keeping user, role and range; a type that the administrator may
//! customise (`customizable_types`) is left alone, also on a replacement; what is new, or has no label, gets the whole label
//! that `matchpathcon` names. This module never sets anything.

#[expect(unsafe_code, reason = "a C library that is opened at run time")]
mod library;

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::root::FileType;
use library::{Handle, Library};

/// Where selinuxfs is mounted when SELinux is enabled and has a policy.
const SELINUXFS: &str = "/sys/fs/selinux/enforce";

/// Why labels cannot be told. The agent then manages everything but labels, and says so.
#[derive(Debug, thiserror::Error)]
pub enum SelinuxError {
    /// The library is not there, or is not what it should be.
    #[error("cannot use `libselinux.so.1`: {why}")]
    Library {
        /// What the loader says.
        why: String,
    },
    /// The host's own description of its labels could not be read.
    #[error("cannot read the file contexts of the SELinux policy")]
    Contexts {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The labels of a policy.
#[derive(Debug)]
pub struct Labels {
    library: Library,
    files: Files,
    opened: Mutex<Opened>,
    /// By device: whether files there can have labels of their own.
    labelled: Mutex<HashMap<u64, bool>>,
}

/// Where a policy describes its labels.
#[derive(Debug)]
struct Files {
    /// `None` for the policy in force.
    contexts: Option<CString>,
    customizable: PathBuf,
    /// Whatever the library may read: when one of them changes, it is read again.
    all: Vec<PathBuf>,
}

/// What was read, and how the files looked then.
#[derive(Debug)]
struct Opened {
    handle: Handle,
    customizable: BTreeSet<String>,
    stamps: Vec<Option<Stamp>>,
}

/// Device, inode, size and change time.
type Stamp = (u64, u64, u64, i64, i64);

impl Labels {
    /// The labels of the running host's policy; `None` where SELinux is not enabled.
    pub fn of_host() -> Result<Option<Self>, SelinuxError> {
        if !Path::new(SELINUXFS).exists() {
            return Ok(None);
        }
        let library = Library::open()?;
        if !library.is_enabled() {
            return Ok(None);
        }
        let mut all: Vec<PathBuf> = library.context_paths();
        let customizable = library.customizable_types_path();
        all.push(customizable.clone());
        Self::open(library, Files { contexts: None, customizable, all }).map(Some)
    }

    /// Labels that are described in a `file_contexts` file of one's own, and types that may be customised, one a line.
    pub fn from_files(contexts: &Path, customizable: &Path) -> Result<Self, SelinuxError> {
        let name = CString::new(contexts.as_os_str().as_bytes())
            .map_err(|e| SelinuxError::Contexts { source: io::Error::new(io::ErrorKind::InvalidInput, e) })?;
        let files = Files {
            contexts: Some(name),
            customizable: customizable.to_owned(),
            all: vec![contexts.to_owned(), customizable.to_owned()],
        };
        Self::open(Library::open()?, files)
    }

    fn open(library: Library, files: Files) -> Result<Self, SelinuxError> {
        let opened = Opened::read(&library, &files)?;
        Ok(Self { library, files, opened: Mutex::new(opened), labelled: Mutex::new(HashMap::new()) })
    }

    /// The label to set on what is at a path and has the label `found`, so that restorecon would find nothing to do; `None` when
    /// that is so already, or where the policy names none.
    pub fn correction(&self, path: &Path, file_type: FileType, found: Option<&str>) -> io::Result<Option<String>> {
        self.with_current(|opened| {
            let wanted = opened.handle.lookup(&self.library, path, file_type)?;
            Ok(wanted.and_then(|wanted| correction(found, &wanted, &opened.customizable)))
        })
    }

    /// The label of what is made at a path, or replaces something with the label `old`: what the policy names, unless the old
    /// one was customised; `None` where the policy names none.
    pub fn of_new(&self, path: &Path, file_type: FileType, old: Option<&str>) -> io::Result<Option<String>> {
        self.with_current(|opened| {
            let wanted = opened.handle.lookup(&self.library, path, file_type)?;
            Ok(wanted.map(|wanted| match old {
                Some(old) if is_customizable(old, &opened.customizable) => old.to_owned(),
                Some(_) | None => wanted,
            }))
        })
    }

    /// Whether files on a device can have labels of their own: not where the whole mount has one (`context=`), nor where the
    /// file system keeps none.
    pub fn are_kept_on(&self, device: u64) -> bool {
        // A description of one's own says nothing about mounts.
        if self.files.contexts.is_some() {
            return true;
        }
        let mut labelled = self.labelled.lock().unwrap_or_else(PoisonError::into_inner);
        *labelled.entry(device).or_insert_with(|| {
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            has_labels(&mounts, device)
        })
    }

    /// Reads the description again when it has changed since: `semanage fcontext` takes effect without a restart.
    fn with_current<T>(&self, ask: impl FnOnce(&Opened) -> io::Result<T>) -> io::Result<T> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if stamps(&self.files.all) != opened.stamps {
            // Of no kind that says something about the path that was asked for.
            *opened =
                Opened::read(&self.library, &self.files).map_err(|e| io::Error::other(crate::resource::chain(&e)))?;
        }
        ask(&opened)
    }
}

impl Opened {
    fn read(library: &Library, files: &Files) -> Result<Self, SelinuxError> {
        // Before the files are read: what changes meanwhile is read again.
        let stamps = stamps(&files.all);
        let handle =
            Handle::open(library, files.contexts.as_deref()).map_err(|source| SelinuxError::Contexts { source })?;
        // Few policies lack the list; then nothing may be customised.
        let types = std::fs::read_to_string(&files.customizable).unwrap_or_default();
        let customizable = types.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
        Ok(Self { handle, customizable, stamps })
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp =
        |path: &PathBuf| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino(), m.size(), m.ctime(), m.ctime_nsec()));
    files.iter().map(stamp).collect()
}

/// The four parts of `user:role:type:range`; a policy without ranges has three. A range has colons of its own.
pub(super) fn type_of(label: &str) -> Option<&str> {
    label.split(':').nth(2)
}

fn is_customizable(label: &str, customizable: &BTreeSet<String>) -> bool {
    type_of(label).is_some_and(|name| customizable.contains(name))
}

/// restorecon's rule without `-F`.
fn correction(found: Option<&str>, wanted: &str, customizable: &BTreeSet<String>) -> Option<String> {
    let Some(found) = found else { return Some(wanted.to_owned()) };
    if type_of(found) == type_of(wanted) || is_customizable(found, customizable) {
        return None;
    }
    let mut parts: Vec<&str> = found.splitn(4, ':').collect();
    match (parts.get_mut(2), type_of(wanted)) {
        (Some(part), Some(wanted)) => {
            *part = wanted;
            Some(parts.join(":"))
        }
        // No label that could be mended.
        (None, _) | (_, None) => Some(wanted.to_owned()),
    }
}

/// Whether a device's mount says `seclabel`. A device that is not listed has a file system with several: they have labels.
fn has_labels(mountinfo: &str, device: u64) -> bool {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mut options = mountinfo.lines().filter_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        (fields.split(' ').nth(2)? == number).then(|| rest.split(' ').nth(2).unwrap_or_default())
    });
    options.next().is_none_or(|options| options.split(',').any(|option| option == "seclabel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_that_of_restorecon() {
        #[track_caller]
        fn check(found: Option<&str>, wanted: &str, expected: Option<&str>) {
            let customizable = BTreeSet::from(["container_file_t".to_owned()]);
            assert_eq!(correction(found, wanted, &customizable).as_deref(), expected, "{found:?}");
        }
        let wanted = "system_u:object_r:etc_t:s0";
        check(None, wanted, Some(wanted));
        check(Some(wanted), wanted, None);
        check(Some("unconfined_u:object_r:etc_t:s0"), wanted, None);
        check(Some("system_u:object_r:etc_t:s0:c1,c2"), wanted, None);
        check(
            Some("unconfined_u:object_r:user_tmp_t:s0-s0:c0.c1023"),
            wanted,
            Some("unconfined_u:object_r:etc_t:s0-s0:c0.c1023"),
        );
        check(Some("unconfined_u:object_r:container_file_t:s0"), wanted, None);
        check(Some("u:r:a_t"), "u:r:b_t", Some("u:r:b_t"));
        check(Some("nonsense"), wanted, Some(wanted));
    }

    #[test]
    fn a_mount_with_one_label_for_all_is_left_alone() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,seclabel\n\
                      30 22 0:44 / /srv rw - nfs4 server:/srv rw,vers=4.2\n";
        assert!(has_labels(mounts, rustix::fs::makedev(8, 1)));
        assert!(!has_labels(mounts, rustix::fs::makedev(0, 44)));
        assert!(has_labels(mounts, rustix::fs::makedev(0, 99)), "a subvolume has a device of its own");
    }
}
