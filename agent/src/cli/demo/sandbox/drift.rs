//! What another process does to the demo's host. The demo itself is that process, so that it can time the repair exactly.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// One way to drift.
pub(super) struct Drift {
    /// For people.
    pub(super) what: &'static str,
    cause: fn(&Path) -> io::Result<()>,
    is_good: fn(&Path) -> bool,
}

const MOTD: &str = "etc/motd";
const CONF: &str = "etc/app/app.conf";

/// Every drift of the demo, in order.
pub(super) fn all() -> Vec<Drift> {
    vec![
        Drift {
            what: "/etc/motd edited in place",
            cause: |root| overwrite(&root.join(MOTD), "Welcome, intruder!\n"),
            is_good: motd_is_good,
        },
        Drift {
            what: "/etc/motd replaced by rename, as sed -i does",
            cause: |root| {
                let temporary = root.join("etc/sedXYZ");
                overwrite(&temporary, "Welcome again!\n")?;
                fs::rename(&temporary, root.join(MOTD))
            },
            is_good: motd_is_good,
        },
        Drift {
            what: "/etc/motd replaced by a symbolic link",
            cause: |root| {
                let temporary = root.join("etc/link");
                symlink("/etc/shadow", &temporary)?;
                fs::rename(&temporary, root.join(MOTD))
            },
            is_good: motd_is_good,
        },
        Drift {
            what: "/etc/app/app.conf made writable for everyone",
            cause: |root| fs::set_permissions(root.join(CONF), fs::Permissions::from_mode(0o666)),
            is_good: |root| {
                fs::symlink_metadata(root.join(CONF)).is_ok_and(|m| m.permissions().mode() & 0o7777 == 0o640)
            },
        },
        Drift {
            what: "/etc/app moved away with all that is in it",
            cause: |root| fs::rename(root.join("etc/app"), root.join("etc/app.old")),
            is_good: |root| {
                fs::read_to_string(root.join("etc/app/current.conf")).is_ok_and(|c| c.contains("listen 8080"))
            },
        },
    ]
}

impl Drift {
    /// Causes the drift and waits for its repair. The time runs from the return of the last call that caused it.
    pub(super) fn cause_and_time(&self, root: &Path, patience: Duration) -> anyhow::Result<Duration> {
        (self.cause)(root).with_context(|| format!("cannot cause: {}", self.what))?;
        let caused = Instant::now();
        while !(self.is_good)(root) {
            anyhow::ensure!(caused.elapsed() < patience, "not repaired: {}", self.what);
            std::thread::yield_now();
        }
        Ok(caused.elapsed())
    }
}

fn motd_is_good(root: &Path) -> bool {
    let path = root.join(MOTD);
    fs::symlink_metadata(&path).is_ok_and(|m| m.is_file())
        && fs::read_to_string(path).is_ok_and(|c| c == "This host is kept by rekindle.\n")
}

fn overwrite(path: &Path, content: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.write_all(content.as_bytes())
}

/// Swaps `/etc/motd` for a directory that holds data, in one step.
pub(super) fn block_with_data(root: &Path) -> anyhow::Result<()> {
    let heap = root.join("etc/heap");
    fs::create_dir(&heap)?;
    overwrite(&heap.join("data"), "somebody's data\n")?;
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        &heap,
        rustix::fs::CWD,
        root.join(MOTD),
        rustix::fs::RenameFlags::EXCHANGE,
    )
    .context("cannot swap /etc/motd for a directory")?;
    Ok(())
}
