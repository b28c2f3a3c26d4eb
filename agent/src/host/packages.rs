//! Packages: state read natively, changes made by the host's own package manager.

pub mod apt;
pub mod fake;
pub mod owner;
pub mod provenance;

pub(crate) mod dpkg;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::resource::{AbsPath, PackageName};

/// What the package database says, by name (and by `name:arch` for every architecture).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackageDb {
    /// Packages the database has a record of.
    pub packages: HashMap<String, PackageEntry>,
}

/// One record of the package database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageEntry {
    /// Version, with epoch.
    pub version: String,
    /// How far it is installed.
    pub status: PackageStatus,
    /// Whether its removal would break the host (essential, protected, or rekindle itself).
    pub essential: bool,
}

/// How far a package is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageStatus {
    /// Fully.
    Installed,
    /// Removed, its configuration files kept.
    ConfigFiles,
    /// Half-installed, unpacked, half-configured or waiting for triggers: broken, neither present nor absent.
    Broken,
}

/// One change of packages; everything in it happens together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Packages to install, with an exact version where one is wanted.
    pub install: Vec<(PackageName, Option<String>)>,
    /// Packages to remove, keeping configuration files.
    pub remove: Vec<PackageName>,
}

/// A package operation that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The database could not be read.
    #[error("cannot read the package database `{path}`")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The manager would remove what the policy did not ask to remove.
    #[error("refused: the package manager would also remove {}", .packages.join(", "))]
    WouldRemove {
        /// What it would remove.
        packages: Vec<String>,
    },
    /// The policy asks to remove what the host cannot live without.
    #[error("refused: {} would break the host when removed", .packages.join(", "))]
    Essential {
        /// Which of them.
        packages: Vec<String>,
    },
    /// The manager failed; its last lines say why.
    #[error("`{command}` exited with {status}: {output}")]
    Manager {
        /// The command line.
        command: String,
        /// Exit status in words.
        status: String,
        /// Bounded, escaped last lines of its output.
        output: String,
    },
    /// The manager could not be run.
    #[error("cannot run `{program}`")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: super::exec::ExecError,
    },
    /// No package manager that rekindle knows is on this host.
    #[error("packages cannot be managed here: {why}")]
    Unsupported {
        /// Why not.
        why: String,
    },
}

/// The package manager of one host.
pub trait PackageManager: std::fmt::Debug + Send {
    /// Reads the database now, without starting a process.
    fn read(&self) -> Result<PackageDb, PackageError>;
    /// Carries out one transaction: non-interactive, never unauthenticated, simulated first, refused when it would remove
    /// more than it was asked to.
    fn transact(&mut self, transaction: &Transaction) -> Result<(), PackageError>;
    /// Has the manager read one repository anew, by the file that names it. Nothing to do where each transaction reads them all.
    fn refresh(&mut self, _source: &AbsPath) -> Result<(), PackageError> {
        Ok(())
    }
    /// Files whose change or replacement means that the database changed, as the managed host spells them.
    fn database_paths(&self) -> Vec<PathBuf>;
}

/// Finds the package manager of the host or image at `root`.
pub fn detect(root: &Path) -> Box<dyn PackageManager> {
    let has = |path: &str| root.join(path).exists();
    if has("var/lib/dpkg/status") && has("usr/bin/apt-get") {
        Box::new(apt::Apt::new(root))
    } else if has("var/lib/rpm") || has("usr/lib/sysimage/rpm") {
        Box::new(NoPackages::new("the host uses rpm, which this version does not support yet"))
    } else {
        Box::new(NoPackages::new("no package manager that rekindle knows is installed (looked for apt)"))
    }
}

/// Finds the package database of a captured host, unpacked at `root`: by what a capture holds, which need not be any program.
pub fn detect_captured(root: &Path) -> std::io::Result<Box<dyn PackageManager>> {
    let tree = crate::host::root::Root::open(root)?;
    // Only beneath the capture: a link in it leads nowhere else.
    let has = |path: &str| AbsPath::new(path).ok().and_then(|path| tree.metadata(&path).ok().flatten()).is_some();
    if has("/var/lib/dpkg/status") {
        return Ok(Box::new(Captured(apt::Apt::new(root))));
    }
    let family = crate::host::facts::gather(&tree).os_family;
    let why = if family == "debian" {
        "the capture has no `var/lib/dpkg/status`".to_owned()
    } else if has("/var/lib/rpm") || has("/usr/lib/sysimage/rpm") || !family.is_empty() {
        "the host uses rpm, which this version does not support yet".to_owned()
    } else {
        "the capture has neither `var/lib/dpkg/status` nor an os-release that names a system that rekindle knows"
            .to_owned()
    };
    Ok(Box::new(NoPackages::new(why)))
}

/// The packages of a captured host: read, never changed.
#[derive(Debug)]
struct Captured(apt::Apt);

impl PackageManager for Captured {
    fn read(&self) -> Result<PackageDb, PackageError> {
        self.0.read()
    }

    fn transact(&mut self, _transaction: &Transaction) -> Result<(), PackageError> {
        Err(PackageError::Unsupported { why: "a captured host is only looked at".to_owned() })
    }

    fn database_paths(&self) -> Vec<PathBuf> {
        self.0.database_paths()
    }
}

/// A host without a package manager that rekindle knows, or a tree that is no host. Everything is refused.
#[derive(Debug, Clone)]
pub struct NoPackages {
    why: String,
}

impl NoPackages {
    /// Takes the reason that every refusal gives.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

impl PackageManager for NoPackages {
    fn read(&self) -> Result<PackageDb, PackageError> {
        Err(PackageError::Unsupported { why: self.why.clone() })
    }

    fn transact(&mut self, _transaction: &Transaction) -> Result<(), PackageError> {
        Err(PackageError::Unsupported { why: self.why.clone() })
    }

    fn database_paths(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}
