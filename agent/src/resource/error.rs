//! What can go wrong while one resource is put in sync.

use std::io;

use super::AbsPath;
use crate::host::accounts::AccountError;
use crate::host::exec::ExecError;
use crate::host::kernel::KernelError;
use crate::host::packages::PackageError;
use crate::host::tree::WalkError;
use crate::host::units::UnitError;

/// A step that did not succeed. `Display` never repeats the source: print the chain with [`ApplyError::chain`].
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An operation on a path.
    #[error("cannot {operation} `{path}`{}", hint_suffix(.hint))]
    Path {
        /// The operation in words, such as "replace".
        operation: &'static str,
        /// What it was about.
        path: AbsPath,
        /// What a person can do about it, when that is known.
        hint: Option<&'static str>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory that is in the way, or to be removed, has entries.
    #[error(
        "cannot remove `{path}`: the directory is not empty (hint: its entries are never removed for you; move them away or declare them absent)"
    )]
    NotEmpty {
        /// The directory.
        path: AbsPath,
    },
    /// A file in which something was to be edited.
    #[error("cannot edit `{path}`: {why} (hint: {hint})")]
    NotEditable {
        /// The file.
        path: AbsPath,
        /// What is wrong with it.
        why: String,
        /// What a person can do about it.
        hint: &'static str,
    },
    /// Something beneath a directory that has rules.
    #[error("cannot put in order what is beneath `{path}`")]
    Beneath {
        /// The directory.
        path: AbsPath,
        /// What, and why.
        #[source]
        source: WalkError,
    },
    /// An owner or group that the host does not have.
    #[error("cannot set the owner of `{path}`: the host has no {what} named `{name}` (hint: declare {what}[{name}])")]
    NoSuchPrincipal {
        /// What was to be owned.
        path: AbsPath,
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A home directory through which a foreign user could lead root astray.
    #[error("refused to write `{path}`: {why} (hint: give the directory to the user, as a real directory)")]
    UnsafeHome {
        /// The path that was to be written.
        path: AbsPath,
        /// What is wrong with the way there.
        why: String,
    },
    /// Something whose loss would break the host.
    #[error("refused to {operation} `{name}`: {why}")]
    Protected {
        /// The operation in words.
        operation: &'static str,
        /// What it was about.
        name: String,
        /// Why it is protected.
        why: &'static str,
    },
    /// The account databases.
    #[error("cannot change the accounts")]
    Account {
        /// Why.
        #[source]
        source: AccountError,
    },
    /// The package manager.
    #[error("cannot change the packages")]
    Package {
        /// Why.
        #[source]
        source: PackageError,
    },
    /// systemd.
    #[error("cannot change the service")]
    Unit {
        /// Why.
        #[source]
        source: UnitError,
    },
    /// A program that the policy names could not be run.
    #[error("cannot run the program")]
    Exec {
        /// Why.
        #[source]
        source: ExecError,
    },
    /// A command did not end as it should.
    #[error("`{command}`: {said}")]
    Command {
        /// The name of its program.
        short: String,
        /// The command, as one line.
        command: String,
        /// How it ended.
        status: String,
        /// The same, and the last that it said.
        said: String,
    },
    /// A command is still being run by what an earlier agent started.
    #[error("`{command}` still runs since before the agent was started (process {pid})")]
    StillRuns {
        /// The command, as one line.
        command: String,
        /// The process.
        pid: u32,
    },
    /// Bits of a mode could not be taken away.
    #[error("cannot take the set-user-id and set-group-id bits from `{path}`")]
    Strip {
        /// From what.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host has no such user.
    #[error("cannot run anything as `{name}`: the host has no such user (hint: declare user[{name}])")]
    NoSuchUser {
        /// Their name.
        name: String,
    },
    /// The running kernel.
    #[error("cannot change the kernel")]
    Kernel {
        /// Why.
        #[source]
        source: KernelError,
    },
    /// The kernel has no such setting.
    #[error(
        "the kernel has no `{name}` (hint: a module may bring it: declare that as kernel_module and require it; or write `ignore_missing = true`)"
    )]
    NoSuchSysctl {
        /// The setting.
        name: String,
    },
    /// A setting of the kernel that another file sets after ours at the next boot.
    #[error(
        "`{name}` will be {value} at the next boot: {file} line {line} is read later (hint: remove the line, or declare that file, or an empty one of its name in /etc/sysctl.d)"
    )]
    Overridden {
        /// The setting.
        name: String,
        /// What it will be.
        value: String,
        /// The file that says so.
        file: String,
        /// Its line, from 1.
        line: usize,
    },
    /// A kernel module that cannot be what it should be.
    #[error("cannot change the kernel module `{name}`: {why} (hint: {hint})")]
    Module {
        /// The module.
        name: String,
        /// Why.
        why: String,
        /// What a person can do about it.
        hint: &'static str,
    },
    /// Something that cannot be mounted as it should be.
    #[error("cannot mount `{path}` as declared: {why} (hint: {hint})")]
    Mount {
        /// The mount point.
        path: AbsPath,
        /// Why.
        why: String,
        /// What a person can do about it.
        hint: &'static str,
    },
    /// Something that somebody uses.
    #[error("cannot {operation} `{what}`: blocked by {} (hint: stop what uses it; it is tried again)", by.join(", "))]
    InUse {
        /// The operation in words.
        operation: &'static str,
        /// What it was about.
        what: String,
        /// Who uses it.
        by: Vec<String>,
    },
    /// systemd knows no such unit.
    #[error("systemd has no unit `{unit}` (hint: require the package or file that brings it)")]
    NoSuchUnit {
        /// The unit.
        unit: String,
    },
    /// The host changed between the observation and the step in a way that the step was not made for.
    #[error("cannot apply the step: {what} could not be told any more: {why}")]
    Vanished {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
}

fn hint_suffix(hint: &Option<&'static str>) -> String {
    hint.map(|h| format!(" (hint: {h})")).unwrap_or_default()
}

impl ApplyError {
    /// The whole chain in one line, innermost cause last.
    pub fn chain(&self) -> String {
        chain(self)
    }

    /// A short text that is equal for equal causes on different hosts: operation and error class, no names and no ids.
    pub fn signature(&self) -> String {
        match self {
            Self::Path { operation, source, .. } => format!("{operation}: {}", io_class(source)),
            Self::NotEmpty { .. } => "remove: directory not empty".to_owned(),
            Self::NotEditable { hint, .. } => format!("edit: {hint}"),
            Self::Beneath { source, .. } => format!("{}: {}", source.operation, io_class(&source.source)),
            Self::NoSuchPrincipal { what, .. } => format!("chown: no such {what}"),
            Self::UnsafeHome { .. } => "write: unsafe home directory".to_owned(),
            Self::Protected { operation, .. } => format!("{operation}: protected"),
            Self::Account { source } => match source {
                AccountError::Read { source, .. } => format!("read accounts: {}", io_class(source)),
                AccountError::Tool { program, status, .. } => format!("{program}: {status}"),
                AccountError::Run { program, .. } => format!("{program}: cannot run"),
                AccountError::Unsupported { .. } => "accounts: unsupported".to_owned(),
            },
            Self::Package { source } => match source {
                PackageError::Read { source, .. } => format!("read packages: {}", io_class(source)),
                PackageError::WouldRemove { .. } => "packages: would remove others".to_owned(),
                PackageError::Essential { .. } => "packages: would remove what is essential".to_owned(),
                PackageError::Manager { status, .. } => format!("package manager: {status}"),
                PackageError::Run { program, .. } => format!("{program}: cannot run"),
                PackageError::Unsupported { .. } => "packages: unsupported".to_owned(),
            },
            Self::Unit { source } => match source {
                UnitError::Connect { .. } => "systemd: cannot reach".to_owned(),
                UnitError::Call { verb, .. } => format!("systemd {verb}: refused"),
                UnitError::Job { verb, result, .. } => format!("systemd {verb}: {result}"),
                UnitError::Untold { .. } => "services: cannot tell".to_owned(),
                UnitError::Unsupported { .. } => "services: unsupported".to_owned(),
            },
            Self::Exec { .. } => "program: cannot run".to_owned(),
            Self::Command { short, status, .. } => format!("{short}: {status}"),
            Self::StillRuns { .. } => "program: still runs".to_owned(),
            Self::Strip { source, .. } => format!("strip: {}", io_class(source)),
            Self::NoSuchUser { .. } => "program: no such user".to_owned(),
            Self::Kernel { source } => match source {
                KernelError::Access { operation, source, .. } => format!("kernel: {operation}: {}", io_class(source)),
                KernelError::Run { program, .. } => format!("{program}: cannot run"),
                KernelError::Tool { program, status, .. } => {
                    format!("{}: {status}", program.split(' ').next().unwrap_or_default())
                }
                KernelError::NotRunning => "kernel: not running".to_owned(),
            },
            Self::Mount { hint, .. } => format!("mount: {hint}"),
            Self::Module { hint, .. } => format!("kernel module: {hint}"),
            Self::InUse { operation, .. } => format!("{operation}: in use"),
            Self::NoSuchSysctl { .. } => "sysctl: no such key".to_owned(),
            Self::Overridden { .. } => "sysctl: overridden by a later file".to_owned(),
            Self::NoSuchUnit { .. } => "systemd: no such unit".to_owned(),
            Self::Vanished { .. } => "observation lost".to_owned(),
        }
    }
}

/// An error and all its sources in one line, innermost last.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The class of an I/O error: its errno where there is one, because the text differs between C libraries.
fn io_class(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => format!("errno {errno}"),
        None => error.kind().to_string(),
    }
}

impl From<AccountError> for ApplyError {
    fn from(source: AccountError) -> Self {
        Self::Account { source }
    }
}

impl From<PackageError> for ApplyError {
    fn from(source: PackageError) -> Self {
        Self::Package { source }
    }
}

impl From<KernelError> for ApplyError {
    fn from(source: KernelError) -> Self {
        Self::Kernel { source }
    }
}

impl From<UnitError> for ApplyError {
    fn from(source: UnitError) -> Self {
        Self::Unit { source }
    }
}
