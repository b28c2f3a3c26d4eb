//! A kernel in memory: what is set is there at the next look.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Kernel, KernelError, Module, Mount};
use crate::resource::AbsPath;

/// A kernel in memory. Clones share one state, so that a test keeps one while the host owns another.
#[derive(Debug, Clone, Default)]
pub struct FakeKernel {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    sysctls: BTreeMap<String, String>,
    modules: BTreeMap<String, Module>,
    mounts: Vec<Mount>,
    hides_mounts: bool,
    /// What `mount` finds in fstab.
    mountable: BTreeMap<String, Mount>,
    mount_users: BTreeMap<String, Vec<String>>,
    /// Those that refuse every value.
    stubborn: BTreeSet<String>,
    log: Vec<String>,
}

impl FakeKernel {
    /// A kernel without settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives it a setting, or changes one behind the back of whoever manages it.
    pub fn put_sysctl(&self, path: &str, value: &str) {
        self.lock().sysctls.insert(path.to_owned(), value.to_owned());
    }

    /// Makes a setting refuse every value from now on.
    pub fn refuse_sysctl(&self, path: &str) {
        self.lock().stubborn.insert(path.to_owned());
    }

    /// Gives it a module, or changes one.
    pub fn put_module(&self, name: &str, module: Module) {
        self.lock().modules.insert(name.to_owned(), module);
    }

    /// What it has mounted.
    pub fn edit_mounts(&self, change: impl FnOnce(&mut Vec<Mount>)) {
        change(&mut self.lock().mounts);
    }

    /// Makes its table of mounts unreadable.
    pub fn hide_mounts(&self) {
        self.lock().hides_mounts = true;
    }

    /// What mounting a mount point brings.
    pub fn put_mountable(&self, mount: Mount) {
        self.lock().mountable.insert(mount.target.clone(), mount);
    }

    /// Makes processes use a mount, so that it cannot be unmounted.
    pub fn use_mount(&self, target: &str, by: &[&str]) {
        self.lock().mount_users.insert(target.to_owned(), by.iter().map(|by| (*by).to_owned()).collect());
    }

    /// What was asked of it, in order.
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for FakeKernel {
    fn is_running(&self) -> bool {
        true
    }

    fn sysctl(&self, path: &str) -> Result<Option<String>, KernelError> {
        Ok(self.lock().sysctls.get(path).cloned())
    }

    fn set_sysctl(&mut self, path: &str, value: &str) -> Result<(), KernelError> {
        let mut state = self.lock();
        state.log.push(format!("set {path} {value}"));
        if state.stubborn.contains(path) || !state.sysctls.contains_key(path) {
            let source = io::Error::from_raw_os_error(22);
            return Err(KernelError::Access { operation: "write", what: format!("/proc/sys/{path}"), source });
        }
        // The kernel prints several numbers with tabs between them.
        state.sysctls.insert(path.to_owned(), value.split_whitespace().collect::<Vec<_>>().join("\t"));
        Ok(())
    }
    fn module(&self, name: &str) -> Result<Module, KernelError> {
        Ok(self.lock().modules.get(name).cloned().unwrap_or(Module::Unknown))
    }

    fn load_module(&mut self, name: &str) -> Result<(), KernelError> {
        let mut state = self.lock();
        state.log.push(format!("load {name}"));
        match state.modules.get_mut(name) {
            Some(module) => {
                *module = Module::Loaded { n_references: 0, users: Vec::new() };
                Ok(())
            }
            None => Err(failed("modprobe", name)),
        }
    }

    fn unload_module(&mut self, name: &str) -> Result<(), KernelError> {
        let mut state = self.lock();
        state.log.push(format!("unload {name}"));
        match state.modules.get_mut(name) {
            Some(module @ Module::Loaded { n_references: 0, .. }) => {
                *module = Module::NotLoaded;
                Ok(())
            }
            Some(_) | None => Err(failed("rmmod", name)),
        }
    }

    fn mounts(&self) -> Result<Vec<Mount>, KernelError> {
        let state = self.lock();
        if state.hides_mounts {
            let source = io::Error::from_raw_os_error(13);
            return Err(KernelError::Access {
                operation: "read",
                what: "/proc/thread-self/mountinfo".to_owned(),
                source,
            });
        }
        Ok(state.mounts.clone())
    }

    fn mount(&mut self, target: &AbsPath) -> Result<(), KernelError> {
        let target = target.to_string();
        let mut state = self.lock();
        state.log.push(format!("mount {target}"));
        let mount = state.mountable.get(&target).cloned().ok_or_else(|| failed("mount", &target))?;
        state.mounts.push(mount);
        Ok(())
    }

    fn remount(&mut self, target: &AbsPath, options: &[String]) -> Result<(), KernelError> {
        self.change(target, "remount", options, |mount| {
            for option in options {
                let key = option.split('=').next().unwrap_or_default();
                mount.super_options.retain(|shown| shown.split('=').next() != Some(key));
                mount.super_options.push(option.clone());
            }
        })
    }

    fn set_mount_flags(&mut self, target: &AbsPath, flags: &[String]) -> Result<(), KernelError> {
        self.change(target, "flags", flags, |mount| mount.options = flags.to_vec())
    }

    fn unmount(&mut self, target: &AbsPath) -> Result<(), KernelError> {
        let target = target.to_string();
        let mut state = self.lock();
        state.log.push(format!("unmount {target}"));
        if state.mount_users.contains_key(&target) {
            return Err(failed("umount", &target));
        }
        state.mounts.retain(|mount| mount.target != target);
        Ok(())
    }

    fn mount_users(&self, target: &AbsPath) -> Vec<String> {
        self.lock().mount_users.get(&target.to_string()).cloned().unwrap_or_default()
    }
}

impl FakeKernel {
    fn change(
        &self,
        target: &AbsPath,
        verb: &str,
        options: &[String],
        change: impl FnOnce(&mut Mount),
    ) -> Result<(), KernelError> {
        let target = target.to_string();
        let mut state = self.lock();
        state.log.push(format!("{verb} {target} {}", options.join(",")));
        let mount = state.mounts.iter_mut().rfind(|mount| mount.target == target);
        mount.map(change).ok_or_else(|| failed("mount", &target))
    }
}

fn failed(program: &str, what: &str) -> KernelError {
    KernelError::Tool {
        program: format!("{program} -- {what}"),
        status: "exit status 1".to_owned(),
        stderr: "it does not work".to_owned(),
    }
}
