//! The Debian root below the machine: named by the user, or bootstrapped once into a cache. It is only ever read.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::super::files::make;
use super::super::narration::{Scenes, unless_interrupted};
use super::program::{self, Contained};
use crate::cli::output::DIM;

/// Where bootstrapped roots are kept, by the name of their release.
const CACHE: &str = "/var/cache/rekindle-demo";

/// The release where this host does not say that it is Debian itself.
const SUITE: &str = "bookworm";

const INCLUDE: &str = "--include=systemd,systemd-sysv,dbus,passwd,ca-certificates";

/// What the machine needs of this host: programs, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[
    ("systemd-nspawn", "systemd-container"),
    ("dpkg-deb", "dpkg"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
];
const BOOTSTRAP: (&str, &str) = ("debootstrap", "debootstrap");

/// A root that is there, or is to be made.
#[derive(Debug)]
pub(in super::super) enum Image {
    /// It is there.
    Ready(PathBuf),
    /// It is to be bootstrapped.
    Missing {
        /// Where.
        path: PathBuf,
        /// Which release.
        suite: String,
    },
}

/// Finds the root, after checking that this host can boot a machine at all.
pub(in super::super) fn find(named: Option<&Path>) -> anyhow::Result<Image> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "`rekindle demo --host` boots a machine, which only root may do\nhint: run it with sudo, or without `--host` as anyone"
    );
    let image = match named {
        Some(path) => {
            let path = path.canonicalize().with_context(|| format!("cannot find the image `{}`", path.display()))?;
            anyhow::ensure!(
                has_systemd(&path),
                "`{}` is no image to boot: it has no /usr/lib/systemd/systemd\nhint: `debootstrap --variant=minbase {INCLUDE} {SUITE} DIR` makes one",
                path.display()
            );
            Image::Ready(path)
        }
        None => {
            let suite = suite();
            let path = Path::new(CACHE).join(&suite);
            if has_systemd(&path) { Image::Ready(path) } else { Image::Missing { path, suite } }
        }
    };
    let mut needed = PROGRAMS.to_vec();
    if let Image::Missing { .. } = image {
        needed.push(BOOTSTRAP);
    }
    needed.retain(|(program, _)| program::find(program).is_none());
    if !needed.is_empty() {
        let programs: Vec<String> = needed.iter().map(|(program, _)| format!("`{program}`")).collect();
        let mut packages: Vec<&str> = needed.iter().map(|(_, package)| *package).collect();
        packages.sort_unstable();
        packages.dedup();
        anyhow::bail!(
            "`rekindle demo --host` needs programs that are not installed: {}\nhint: apt-get install {}",
            programs.join(", "),
            packages.join(" ")
        );
    }
    Ok(image)
}

/// Fails where a machine cannot have its disk.
pub(super) fn check_disk(directory: &Path) -> anyhow::Result<()> {
    let kind = nix::sys::statfs::statfs(directory)?.filesystem_type();
    anyhow::ensure!(
        kind != nix::sys::statfs::OVERLAYFS_SUPER_MAGIC,
        "`{}` is on an overlay, and the disk of a machine cannot be\nhint: name a directory on a plain file system in TMPDIR",
        directory.display()
    );
    // They separate the parts of a mount option.
    anyhow::ensure!(
        !directory.to_string_lossy().contains([',', ':', '\\']),
        "`{}` cannot be named in a mount option\nhint: name another directory in TMPDIR",
        directory.display()
    );
    Ok(())
}

impl Image {
    /// Makes the root where there is none, and returns it.
    pub(super) async fn ready(self, scenes: &mut Scenes<'_>) -> anyhow::Result<PathBuf> {
        let (path, suite) = match self {
            Self::Ready(path) => return Ok(path),
            Self::Missing { path, suite } => (path, suite),
        };
        scenes.say(&format!("{DIM}making the image {}, once: about a minute{DIM:#}\n", path.display()))?;
        make(Path::new(CACHE), 0o755)?;
        let unfinished = tempfile::Builder::new().prefix(".unfinished-").tempdir_in(CACHE)?;
        let (root, log) = (unfinished.path().join("root"), unfinished.path().join("log"));
        let args = ["--variant=minbase".into(), INCLUDE.into(), OsString::from(suite), root.clone().into()];
        let mut bootstrap = Contained::start(BOOTSTRAP.0, &args, &log)?;
        let ended = unless_interrupted(bootstrap.wait()).await;
        // Nothing may write any more where the directory is removed on an error.
        bootstrap.end().await?;
        let status = ended?;
        anyhow::ensure!(
            status.success(),
            "cannot bootstrap the image of the machine: `{}` ended with {status}:\n{}",
            BOOTSTRAP.0,
            program::tail(&std::fs::read_to_string(&log).unwrap_or_default())
        );
        match std::fs::rename(&root, &path) {
            // Another demo was quicker.
            Err(_) if has_systemd(&path) => Ok(path),
            renamed => {
                renamed.with_context(|| format!("cannot move the finished image to `{}`", path.display()))?;
                Ok(path)
            }
        }
    }
}

fn has_systemd(root: &Path) -> bool {
    root.join("usr/lib/systemd/systemd").is_file()
}

/// The release of this host where it is Debian: this very executable runs in the machine and needs a C library that is not
/// older than the one it was built with.
fn suite() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    let named = value("VERSION_CODENAME").filter(|name| name.bytes().all(|b| b.is_ascii_lowercase()));
    match named {
        Some(suite) if value("ID").as_deref() == Some("debian") => suite,
        Some(_) | None => SUITE.to_owned(),
    }
}
