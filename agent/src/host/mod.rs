//! The only door to the operating system.
//!
//! Everything that reads or changes the managed host goes through [`Host`]: paths through [`root::Root`], which cannot be
//! led outside by a symbolic link or `..`; accounts, packages and units through three small traits with one real and one
//! stateful fake implementation each; child processes through [`exec`] alone.

pub mod accounts;
pub mod attic;
pub mod background;
pub mod exec;
pub mod facts;
pub mod fake;
pub mod fanotify;
pub mod filesystems;
pub mod gpgv;
pub mod kernel;
pub mod memory;
pub mod nest;
pub mod packages;
pub mod process;
pub mod programs;
pub mod publish;
pub mod root;
pub mod selinux;
pub mod sessions;
pub mod stage;
pub mod sweep;
pub mod thread;
pub mod tree;
pub mod units;
mod uring;
pub mod verify;
mod writeback;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use accounts::Accounts;
use kernel::Kernel;
use packages::PackageManager;
use programs::Programs;
use root::Root;
use units::Units;

/// One managed host.
#[derive(Debug)]
pub struct Host {
    /// Its file system.
    pub root: Root,
    /// Its local users and groups.
    pub accounts: Box<dyn Accounts>,
    /// Its package manager.
    pub packages: Box<dyn PackageManager>,
    /// Its service manager.
    pub units: Box<dyn Units>,
    /// Its kernel.
    pub kernel: Box<dyn Kernel>,
    /// Where programs that its policy names run.
    pub programs: Programs,
}

impl Host {
    /// The running host.
    pub fn live() -> io::Result<Self> {
        Self::at(Path::new("/"))
    }

    /// The host or image at a root directory. In an image files, accounts, packages and the enablement of units can be
    /// managed; nothing is started, stopped or restarted there.
    pub fn at(root: &Path) -> io::Result<Self> {
        let root = open_root(root)?;
        let accounts = Box::new(accounts::shadow::ShadowUtils::new(root.path()));
        let packages = packages::detect(root.path());
        let units = units::detect(root.path());
        let kernel: Box<dyn Kernel> =
            if root.is_live() { Box::new(kernel::LiveKernel) } else { Box::new(kernel::NoKernel) };
        let programs = Programs::at(root.path());
        Ok(Self { root, accounts, packages, units, kernel, programs })
    }

    /// A captured host, unpacked in a directory, to be looked at: no program of it is run, and nothing is changed. Whoever made
    /// the capture would run its programs as whoever looks at it.
    pub fn captured(root: &Path) -> io::Result<Self> {
        Ok(Self {
            packages: packages::detect_captured(root)?,
            units: units::detect_captured(root)?,
            programs: Programs::nowhere("a captured host runs no programs"),
            ..Self::at(root)?
        })
    }

    /// The running host as somebody who is not root sees it, to be looked at: what nobody is named for would be root's, who
    /// applies a policy, and what only root may read is unknown. The programs that a policy names are for root to run.
    pub fn seen_by_anybody() -> io::Result<Self> {
        let mut host = Self::live()?;
        host.root = host.root.with_owner((0, 0));
        host.programs = Programs::nowhere("only root runs what a policy names");
        Ok(host)
    }

    /// A tree of files that is no host. Any user may manage one.
    pub fn sandbox(root: &Path) -> io::Result<Self> {
        let why = "this is a sandbox of files, not a host";
        Ok(Self {
            root: Root::open(root)?,
            accounts: Box::new(accounts::NoAccounts::new(why)),
            packages: Box::new(packages::NoPackages::new(why)),
            units: Box::new(units::NoUnits::new(why)),
            kernel: Box::new(kernel::NoKernel),
            programs: Programs::nowhere(why),
        })
    }

    /// What the services manage at a root directory: the running host as root, otherwise a tree of files.
    pub fn open(root: &Path) -> io::Result<Self> {
        if root == Path::new("/") && current_ids().0 == 0 { Self::live() } else { Self::sandbox(root) }
    }

    /// A host for tests; [`fake::host`] also hands out what looks behind it.
    pub fn fake(root: &Path) -> io::Result<Self> {
        fake::host(root).map(|(host, _)| host)
    }
}

/// Opens a root as the agent works on it: on the running host labels are kept as its policy names them. An image is labelled
/// when it is finished, by its own policy.
pub fn open_root(path: &Path) -> io::Result<Root> {
    let root = Root::open(path)?;
    if !root.is_live() {
        return Ok(root);
    }
    match selinux::Labels::of_host() {
        Ok(Some(labels)) => Ok(root.with_labels(labels)),
        Ok(None) => Ok(root),
        Err(e) => {
            tracing::warn!(error = %crate::resource::chain(&e), "SELinux labels are not looked at");
            Ok(root)
        }
    }
}

/// Sixteen hexadecimal digits that nobody can foretell, for temporary names.
fn random_hex() -> String {
    use std::hash::{BuildHasher, Hasher};
    // The standard library keys this hasher from the kernel's random numbers.
    format!("{:016x}", std::hash::RandomState::new().build_hasher().finish())
}

/// The path of an open file, as this process sees it.
pub(crate) fn path_of(file: BorrowedFd<'_>) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The id that the kernel gave itself when it was booted.
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim_end().to_owned())
}

/// The user and group that the agent runs as.
pub fn current_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}
