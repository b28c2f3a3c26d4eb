//! The running kernel: its settings, modules and mounts.
//!
//! An image has none, and neither has a sandbox: there only files say what will be. Nothing here looks into a file system that
//! is mounted: one on a network would make the agent wait for it.

pub mod fake;
mod live;
mod modules;
pub(crate) mod mounts;

use std::fmt;
use std::io;

pub use live::LiveKernel;

use crate::resource::AbsPath;

/// Something of the kernel that could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading, or writing by the agent itself.
    #[error("cannot {operation} `{what}`")]
    Access {
        /// The operation in words.
        operation: &'static str,
        /// What it was about.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program that could not be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: super::exec::ExecError,
    },
    /// A program that did not succeed.
    #[error("{program}: {status}: {stderr}")]
    Tool {
        /// The program and its arguments.
        program: String,
        /// How it ended.
        status: String,
        /// What it said, escaped.
        stderr: String,
    },
    /// There is no kernel to change.
    #[error("no kernel runs here: this is an image or a sandbox")]
    NotRunning,
}

/// A module, as the running kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Module {
    /// No module of this kernel has the name.
    Unknown,
    /// It is there, and not loaded.
    NotLoaded,
    /// It is part of the kernel itself.
    Builtin,
    /// The name is another one of these.
    AliasOf(Vec<String>),
    /// It is loaded.
    Loaded {
        /// How many uses it has.
        n_references: u32,
        /// Modules that use it.
        users: Vec<String>,
    },
}

/// Something that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub target: String,
    /// What, as the kernel shows it.
    pub source: String,
    /// File system type.
    pub fstype: String,
    /// Options of the mount.
    pub options: Vec<String>,
    /// Options of the file system.
    pub super_options: Vec<String>,
}

/// The kernel that runs, if one does.
pub trait Kernel: fmt::Debug + Send {
    /// Whether there is one; all else is only asked then.
    fn is_running(&self) -> bool;

    /// The value of a setting by its path below /proc/sys, without the line's end; `None` when the kernel has no such setting.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn sysctl(&self, path: &str) -> Result<Option<String>, KernelError>;

    /// Sets one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    fn set_sysctl(&mut self, path: &str, value: &str) -> Result<(), KernelError>;

    /// What is known of a module, by its name with underscores.
    ///
    /// # Errors
    ///
    /// When the lists of modules cannot be read.
    fn module(&self, name: &str) -> Result<Module, KernelError>;

    /// Loads a module and what it needs.
    ///
    /// # Errors
    ///
    /// When modprobe fails.
    fn load_module(&mut self, name: &str) -> Result<(), KernelError>;

    /// Unloads a module that nobody uses.
    ///
    /// # Errors
    ///
    /// When rmmod fails.
    fn unload_module(&mut self, name: &str) -> Result<(), KernelError>;

    /// Everything that is mounted, in the order in which it was.
    ///
    /// # Errors
    ///
    /// When the kernel's table cannot be read.
    fn mounts(&self) -> Result<Vec<Mount>, KernelError>;

    /// Mounts what /etc/fstab says of a mount point.
    ///
    /// # Errors
    ///
    /// When mount(8) fails.
    fn mount(&mut self, target: &AbsPath) -> Result<(), KernelError>;

    /// Changes options of a mounted file system. Flags of the mount that are not named may be lost.
    ///
    /// # Errors
    ///
    /// When mount(8) fails.
    fn remount(&mut self, target: &AbsPath, options: &[String]) -> Result<(), KernelError>;

    /// Gives a mount these flags, and no others.
    ///
    /// # Errors
    ///
    /// When mount(8) fails.
    fn set_mount_flags(&mut self, target: &AbsPath, flags: &[String]) -> Result<(), KernelError>;

    /// Unmounts.
    ///
    /// # Errors
    ///
    /// When umount(8) fails, as it does while somebody uses what is mounted.
    fn unmount(&mut self, target: &AbsPath) -> Result<(), KernelError>;

    /// Processes that use what is mounted, as `1234 (sshd)`; some of them, when there are many.
    fn mount_users(&self, target: &AbsPath) -> Vec<String>;
}

/// Where none runs.
#[derive(Debug)]
pub struct NoKernel;

impl Kernel for NoKernel {
    fn is_running(&self) -> bool {
        false
    }

    fn sysctl(&self, _path: &str) -> Result<Option<String>, KernelError> {
        Err(KernelError::NotRunning)
    }

    fn set_sysctl(&mut self, _path: &str, _value: &str) -> Result<(), KernelError> {
        Err(KernelError::NotRunning)
    }

    fn module(&self, _name: &str) -> Result<Module, KernelError> {
        Err(KernelError::NotRunning)
    }

    fn load_module(&mut self, _name: &str) -> Result<(), KernelError> {
        Err(KernelError::NotRunning)
    }

    fn unload_module(&mut self, _name: &str) -> Result<(), KernelError> {
        Err(KernelError::NotRunning)
    }

    fn mounts(&self) -> Result<Vec<Mount>, KernelError> {
        Err(KernelError::NotRunning)
    }

    fn mount(&mut self, _target: &AbsPath) -> Result<(), KernelError> {
        Err(KernelError::NotRunning)
    }

    fn remount(&mut self, _target: &AbsPath, _options: &[String]) -> Result<(), KernelError> {
        Err(KernelError::NotRunning)
    }

    fn set_mount_flags(&mut self, _target: &AbsPath, _flags: &[String]) -> Result<(), KernelError> {
        Err(KernelError::NotRunning)
    }

    fn unmount(&mut self, _target: &AbsPath) -> Result<(), KernelError> {
        Err(KernelError::NotRunning)
    }

    fn mount_users(&self, _target: &AbsPath) -> Vec<String> {
        Vec::new()
    }
}
