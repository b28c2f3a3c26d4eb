//! A path that is watched, without a text of its own where it is the name of a resource.

use std::ffi::OsStr;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::resource::AbsPath;

/// A path as bytes, cheap to clone. Unlike an [`AbsPath`] it need not be text, nor absolute: what is not is reported as blind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SharedPath(Arc<[u8]>);

impl SharedPath {
    /// The directory and the name in it. The root is the name `.` in itself.
    pub(super) fn split(&self) -> (&OsStr, &OsStr) {
        split(&self.0)
    }

    /// Whether this is the text.
    pub(super) fn is(&self, text: &str) -> bool {
        *self.0 == *text.as_bytes()
    }
}

/// The directory and the name in it of a path. The root is the name `.` in itself.
pub(super) fn split(path: &[u8]) -> (&OsStr, &OsStr) {
    let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) if path.len() == 1 => (&b"/"[..], &b"."[..]),
        Some(0) => (&b"/"[..], path.get(1..).unwrap_or_default()),
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&b""[..], path),
    };
    (OsStr::from_bytes(directory), OsStr::from_bytes(name))
}

impl From<&Arc<str>> for SharedPath {
    fn from(text: &Arc<str>) -> Self {
        // Changes the type of the same allocation.
        Self(Arc::clone(text).into())
    }
}

impl From<&AbsPath> for SharedPath {
    fn from(path: &AbsPath) -> Self {
        Self::from(&path.shared())
    }
}

impl From<&Path> for SharedPath {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().into())
    }
}

impl From<PathBuf> for SharedPath {
    fn from(path: PathBuf) -> Self {
        path.as_path().into()
    }
}

impl From<&str> for SharedPath {
    fn from(path: &str) -> Self {
        Path::new(path).into()
    }
}

impl Deref for SharedPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

impl std::fmt::Debug for SharedPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Path::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_fall_into_a_directory_and_a_name() {
        let check = |path: &str, directory: &str, name: &str| {
            assert_eq!(SharedPath::from(path).split(), (OsStr::new(directory), OsStr::new(name)), "{path}");
        };
        check("/", "/", ".");
        check("/etc", "/", "etc");
        check("/etc/ssh/sshd_config", "/etc/ssh", "sshd_config");
    }

    #[test]
    fn the_path_of_a_resource_is_shared() {
        let name: Arc<str> = "/etc/motd".into();
        let shared = SharedPath::from(&AbsPath::from_shared(&name).unwrap());
        assert_eq!(shared.0.as_ptr(), name.as_ptr());
    }
}
