//! The Debian root below every machine: bootstrapped once, then only read.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use crate::run::{Invocation, put};

/// What a small Debian server has, and what the product depends on: the machines have no network to fetch more from.
const PACKAGES: &[&str] = &[
    "adduser",
    "ca-certificates",
    "curl",
    "dbus",
    "openssh-client",
    "openssl",
    "passwd",
    "procps",
    "rpm",
    "sudo",
    "systemd",
    "systemd-sysv",
];

/// What the shipped policies install beyond that.
const SERVERS: &[&str] = &["logrotate", "nginx", "openssh-server"];

/// Timers and consoles that would only disturb measurements.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "systemd-timesyncd.service",
];

/// Counts changes of how the image is finished below, so that an old one is not taken for a new one.
const RECIPE: u32 = 3;

/// A Debian 12 root that nothing writes to.
#[derive(Debug, Clone)]
pub struct BaseImage {
    path: PathBuf,
}

impl BaseImage {
    /// Returns the cached image, after bootstrapping it when there is none. `REKINDLE_TEST_BASE` names a root to use
    /// instead.
    pub fn ready() -> Result<Self> {
        if let Some(path) = std::env::var_os("REKINDLE_TEST_BASE").map(PathBuf::from) {
            ensure!(
                path.join("usr/lib/systemd/systemd").exists(),
                "REKINDLE_TEST_BASE=`{}` has no systemd",
                path.display()
            );
            return Ok(Self { path });
        }
        let mut hasher = DefaultHasher::new();
        (RECIPE, PACKAGES, MASKED).hash(&mut hasher);
        let path = cache_dir()?.join(format!("base-{:016x}", hasher.finish()));
        let _lock = lock("base")?;
        if !path.exists() {
            bootstrap(&path)?;
        }
        Ok(Self { path })
    }

    /// Debian's own packages of the servers that the shipped policies install, with all that they need; fetched once.
    pub fn server_packages() -> Result<Vec<PathBuf>> {
        let mut hasher = DefaultHasher::new();
        (RECIPE, SERVERS).hash(&mut hasher);
        let path = cache_dir()?.join(format!("servers-{:016x}", hasher.finish()));
        let _lock = lock("servers")?;
        if !path.exists() {
            let partial = emptied(path.with_extension("partial"))?;
            Invocation::new("debootstrap")
                .args(["--variant=minbase", "--download-only"])
                .arg(format!("--include={}", SERVERS.join(",")))
                .arg("bookworm")
                .arg(&partial)
                .ok()
                .context("cannot fetch the packages that the shipped policies install")?;
            std::fs::rename(partial.join("var/cache/apt/archives"), &path)
                .with_context(|| format!("cannot move the packages to `{}`", path.display()))?;
            std::fs::remove_dir_all(&partial).with_context(|| format!("cannot remove `{}`", partial.display()))?;
        }
        let entries = std::fs::read_dir(&path).with_context(|| format!("cannot list `{}`", path.display()))?;
        let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(files.filter(|file| file.extension().is_some_and(|extension| extension == "deb")).collect())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The directory for what tests share, `target/tests`.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => workspace().join("target"),
    };
    let dir = target.join("tests");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
    dir.canonicalize().with_context(|| format!("cannot resolve `{}`", dir.display()))
}

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Holds a lock between test processes until it is dropped.
#[expect(clippy::disallowed_methods, reason = "a lock file is empty: there is nothing to see half of")]
pub(crate) fn lock(name: &str) -> Result<Flock<std::fs::File>> {
    let path = cache_dir()?.join(format!("{name}.lock"));
    let file = std::fs::File::create(&path).with_context(|| format!("cannot open `{}`", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("cannot lock {name}"))
}

/// Removes what a killed run left.
fn emptied(partial: PathBuf) -> Result<PathBuf> {
    if partial.exists() {
        std::fs::remove_dir_all(&partial).with_context(|| format!("cannot remove `{}`", partial.display()))?;
    }
    Ok(partial)
}

fn bootstrap(path: &Path) -> Result<()> {
    let partial = emptied(path.with_extension("partial"))?;
    Invocation::new("debootstrap")
        .arg("--variant=minbase")
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("bookworm")
        .arg(&partial)
        .ok()
        .context("cannot bootstrap the Debian root that the machines share")?;
    // Packages come from a test's own repository alone, and a package's files need not survive a power cut.
    put(partial.join("etc/apt/sources.list"), "")?;
    put(partial.join("etc/dpkg/dpkg.cfg.d/unsafe-io"), "force-unsafe-io\n")?;
    for unit in MASKED {
        let link = partial.join("etc/systemd/system").join(unit);
        drop(std::fs::remove_file(&link));
        std::os::unix::fs::symlink("/dev/null", &link).with_context(|| format!("cannot mask {unit}"))?;
    }
    // What apt has fetched, and the indices of a repository that the machines cannot reach.
    for kept in ["var/cache/apt", "var/lib/apt/lists"] {
        drop(std::fs::remove_dir_all(partial.join(kept)));
        std::fs::create_dir_all(partial.join(kept)).with_context(|| format!("cannot empty `{kept}`"))?;
    }
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o755))
        .context("cannot open the root to all")?;
    std::fs::rename(&partial, path).with_context(|| format!("cannot move the finished root to `{}`", path.display()))
}
