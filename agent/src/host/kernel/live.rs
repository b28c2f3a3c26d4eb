//! The kernel that this process runs on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{Kernel, KernelError, Module, Mount, modules, mounts};
use crate::host::exec::{self, Command};
use crate::resource::AbsPath;

/// Longest value of a setting.
const MAX_VALUE: u64 = 64 * 1024;

/// Longest table of mounts.
const MAX_TABLE: u64 = 64 * 1024 * 1024;

/// The kernel that this process runs on.
#[derive(Debug)]
pub struct LiveKernel;

impl Kernel for LiveKernel {
    fn is_running(&self) -> bool {
        true
    }

    fn sysctl(&self, path: &str) -> Result<Option<String>, KernelError> {
        let path = sysctl_path(path);
        match read(&path, MAX_VALUE) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound && Path::new("/proc/sys").is_dir() => Ok(None),
            Err(source) => Err(access("read", &path, source)),
        }
    }

    fn set_sysctl(&mut self, path: &str, value: &str) -> Result<(), KernelError> {
        let path = sysctl_path(path);
        let line = format!("{value}\n");
        // In one write: the kernel takes each as a whole value.
        let written = open(&path, OFlags::WRONLY).and_then(|file| File::from(file).write_all(line.as_bytes()));
        match written {
            Ok(()) => Ok(()),
            // Some want a capability that the agent's unit does without, such as that for loading modules.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let mut command = Command::new("tee").args(["--", &path.display().to_string()]);
                command.stdin = line.into_bytes();
                run("tee", &command)
            }
            Err(source) => Err(access("write", &path, source)),
        }
    }

    fn module(&self, name: &str) -> Result<Module, KernelError> {
        modules::module(Path::new("/"), name)
    }

    fn load_module(&mut self, name: &str) -> Result<(), KernelError> {
        run("modprobe", &Command::new("modprobe").args(["--", name]))
    }

    fn unload_module(&mut self, name: &str) -> Result<(), KernelError> {
        run("rmmod", &Command::new("rmmod").args(["--", name]))
    }

    fn mounts(&self) -> Result<Vec<Mount>, KernelError> {
        let path = Path::new("/proc/thread-self/mountinfo");
        let table = read(path, MAX_TABLE).map_err(|source| access("read", path, source))?;
        Ok(mounts::parse(&table))
    }

    fn mount(&mut self, target: &AbsPath) -> Result<(), KernelError> {
        run("mount", &Command::new("mount").args(["--".into(), target.as_path().as_os_str().to_os_string()]))
    }

    fn remount(&mut self, target: &AbsPath, options: &[String]) -> Result<(), KernelError> {
        remount(target, &format!("remount,{}", options.join(",")))
    }

    fn set_mount_flags(&mut self, target: &AbsPath, flags: &[String]) -> Result<(), KernelError> {
        remount(target, &format!("remount,bind,{}", flags.join(",")))
    }

    fn unmount(&mut self, target: &AbsPath) -> Result<(), KernelError> {
        run("umount", &Command::new("umount").args(["--".into(), target.as_path().as_os_str().to_os_string()]))
    }

    fn mount_users(&self, target: &AbsPath) -> Vec<String> {
        mounts::users(target.as_path())
    }
}

fn remount(target: &AbsPath, options: &str) -> Result<(), KernelError> {
    let target = target.as_path().as_os_str().to_os_string();
    run("mount", &Command::new("mount").args(["-o".into(), options.into(), "--".into(), target]))
}

fn sysctl_path(path: &str) -> PathBuf {
    Path::new("/proc/sys").join(path)
}

fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// A file of the kernel, as far as it goes.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(open(path, OFlags::RDONLY)?).take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn access(operation: &'static str, path: &Path, source: io::Error) -> KernelError {
    KernelError::Access { operation, what: path.display().to_string(), source }
}

/// Runs a program outside the agent's sandbox; an error unless it succeeds.
fn run(program: &'static str, command: &Command) -> Result<(), KernelError> {
    let output = exec::run(command).map_err(|source| KernelError::Run { program, source })?;
    if output.success() {
        return Ok(());
    }
    let args = command.args.iter().map(|arg| format!(" {}", arg.display())).collect::<String>();
    let stderr = exec::escape(&output.stderr);
    Err(KernelError::Tool { program: format!("{program}{args}"), status: output.status, stderr })
}
