//! Modules: what is loaded by /proc/modules, what there is by the lists that depmod made for the running kernel.

use std::io;
use std::path::Path;

use super::live::{access, read};
use super::{KernelError, Module};

/// Longest of these lists.
const MAX_LIST: u64 = 64 * 1024 * 1024;

/// What is known of a module, by its name with underscores.
pub(super) fn module(root: &Path, name: &str) -> Result<Module, KernelError> {
    if let Some(loaded) = loaded(&list(&root.join("proc/modules"))?, name) {
        return Ok(loaded);
    }
    let release = list(&root.join("proc/sys/kernel/osrelease"))?;
    let directory = root.join("lib/modules").join(release.trim());
    // A kernel without these lists has no modules that anybody could load by name.
    if has_file(&list(&directory.join("modules.builtin"))?, name) || root.join("sys/module").join(name).is_dir() {
        return Ok(Module::Builtin);
    }
    if has_file(&list(&directory.join("modules.dep"))?, name) {
        return Ok(Module::NotLoaded);
    }
    let names = aliased(&list(&directory.join("modules.alias"))?, name);
    Ok(if names.is_empty() { Module::Unknown } else { Module::AliasOf(names) })
}

/// A list; empty where there is none.
fn list(path: &Path) -> Result<String, KernelError> {
    match read(path, MAX_LIST) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(access("read", path, source)),
    }
}

/// `name size references users state address`.
fn loaded(modules: &str, name: &str) -> Option<Module> {
    let mut fields = modules
        .lines()
        .map(str::split_whitespace)
        .find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    let n_references = fields.nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
    let users = fields.next().unwrap_or("-").split(',').filter(|user| !matches!(*user, "" | "-" | "[permanent]"));
    Some(Module::Loaded { n_references, users: users.map(str::to_owned).collect() })
}

/// Whether a list of paths, each up to a colon, has the file of a module.
fn has_file(list: &str, name: &str) -> bool {
    list.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split_once(".ko").is_some_and(|(stem, _)| stem.replace('-', "_") == name)
    })
}

/// `alias NAME MODULE`.
fn aliased(aliases: &str, name: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for line in aliases.lines() {
        let mut fields = line.split_whitespace();
        if (fields.next(), fields.next().map(|alias| alias.replace('-', "_"))) == (Some("alias"), Some(name.to_owned()))
        {
            names.extend(fields.next().map(str::to_owned));
        }
    }
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test makes the files of a kernel")]
    fn a_module_is_known_by_the_lists_of_its_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put(
            "proc/modules",
            "uas 1 0 - Live 0x0\nusb_storage 8 2 uas,other, Live 0x0\nkeep 1 1 [permanent], Live 0x0\n",
        );
        put("proc/sys/kernel/osrelease", "6.1.0-1\n");
        put("lib/modules/6.1.0-1/modules.builtin", "kernel/fs/ext4/ext4.ko\n");
        put("lib/modules/6.1.0-1/modules.dep", "kernel/fs/jfs/jfs.ko.xz: kernel/a/x.ko\nkernel/net/nf-x.ko:\n");
        put("lib/modules/6.1.0-1/modules.alias", "# Aliases\nalias fs-jfs jfs\nalias usb:v* x\n");
        std::fs::create_dir_all(dir.path().join("sys/module/printk")).unwrap();
        let check = |name: &str, expected: Module| assert_eq!(module(dir.path(), name).unwrap(), expected, "{name}");
        let loaded = |n_references, users: &[&str]| Module::Loaded {
            n_references,
            users: users.iter().map(|u| (*u).to_owned()).collect(),
        };
        check("uas", loaded(0, &[]));
        check("usb_storage", loaded(2, &["uas", "other"]));
        check("keep", loaded(1, &[]));
        check("ext4", Module::Builtin);
        check("printk", Module::Builtin);
        check("jfs", Module::NotLoaded);
        check("nf_x", Module::NotLoaded);
        check("x", Module::Unknown);
        check("fs_jfs", Module::AliasOf(vec!["jfs".to_owned()]));
    }
}
