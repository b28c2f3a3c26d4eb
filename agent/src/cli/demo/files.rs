//! Files that the demo makes, each whole and with the mode that it is to have, whatever the umask.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::Context as _;

/// Makes a directory with its parents.
pub(super) fn make(path: &Path, mode: u32) -> anyhow::Result<()> {
    let make = || fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    make().with_context(|| format!("cannot make `{}`", path.display()))
}

/// Makes a file, with the directories above it.
pub(super) fn place(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        make(parent, 0o755)?;
    }
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content.as_ref())
    };
    write().with_context(|| format!("cannot write `{}`", path.display()))
}
