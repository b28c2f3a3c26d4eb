//! The declared files: 4 KiB each, a hundred in a directory, their content one of a few that the policy holds.
//!
//! A policy has at most 64 MiB, so a hundred thousand files share contents: as on a real host, where most files of a kind do.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rekindle_tests::put;
use rustix::fs::{CWD, Mode, OFlags, open, syncfs};

/// Bytes in each file.
pub const SIZE: usize = 4096;

/// Files in each directory.
pub const PER_DIRECTORY: usize = 100;

/// Different contents.
pub const CONTENTS: usize = 64;

/// Most declarations in one TOML file of the policy.
const PER_TOML: usize = 20_000;

/// Permission bits of each file.
pub const MODE: u32 = 0o644;

/// A declared tree below a managed root.
#[derive(Debug, Clone)]
pub struct Tree {
    /// How many files.
    pub n_files: usize,
    /// Files in each directory.
    pub per_directory: usize,
    /// Where it is, as the managed host names it, such as `/srv/bench`.
    pub home: String,
}

impl Tree {
    /// So many files, a hundred in a directory.
    pub fn new(n_files: usize) -> Self {
        Self { n_files, per_directory: PER_DIRECTORY, home: "/srv/bench".to_owned() }
    }

    /// How many directories.
    pub fn n_directories(&self) -> usize {
        self.n_files.div_ceil(self.per_directory)
    }

    /// The directory of a file, as the managed host names it.
    pub fn directory(&self, file: usize) -> String {
        format!("{}/d{:05}", self.home, file / self.per_directory)
    }

    /// A file, as the managed host names it.
    pub fn path(&self, file: usize) -> String {
        format!("{}/f{file:06}", self.directory(file))
    }

    /// Where a file is, below the host's root.
    pub fn place_of(&self, root: &Path, file: usize) -> PathBuf {
        root.join(self.path(file).trim_start_matches('/'))
    }

    /// Every file below the host's root.
    pub fn places(&self, root: &Path) -> Vec<PathBuf> {
        (0..self.n_files).map(|file| self.place_of(root, file)).collect()
    }

    /// Every directory below the host's root.
    pub fn directories(&self, root: &Path) -> Vec<PathBuf> {
        let files = (0..self.n_files).step_by(self.per_directory);
        files.map(|file| root.join(self.directory(file).trim_start_matches('/'))).collect()
    }

    /// Puts every file in place as declared, and everything on the disk.
    pub fn make(&self, root: &Path) -> Result<()> {
        for (file, place) in self.places(root).iter().enumerate() {
            put(place, content(file))?;
            std::fs::set_permissions(place, std::fs::Permissions::from_mode(MODE))
                .with_context(|| format!("cannot set the mode of `{}`", place.display()))?;
        }
        let root = open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        syncfs(root).context("cannot bring the files to the disk")
    }

    /// The policy that declares it, by path inside the policy.
    pub fn policy(&self) -> Vec<(String, Vec<u8>)> {
        policy(std::slice::from_ref(self))
    }
}

/// What file number `file` holds.
pub fn content(file: usize) -> Vec<u8> {
    let class = file % CONTENTS;
    let mut text = format!("# Kept by rekindle; content {class:02}.\n").into_bytes();
    let mut line = 0;
    while text.len() < SIZE {
        text.extend(format!("key_{line:03} = value {class:02} of line {line:03}\n").into_bytes());
        line += 1;
    }
    text.truncate(SIZE - 1);
    text.push(b'\n');
    text
}

/// The policy that declares several trees.
pub fn policy(trees: &[Tree]) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> =
        (0..CONTENTS).map(|class| (format!("content/{class:02}"), content(class))).collect();
    let mut parts = Vec::new();
    for tree in trees {
        for first in (0..tree.n_files).step_by(PER_TOML) {
            let mut text = String::new();
            for file in first..(first + PER_TOML).min(tree.n_files) {
                let (path, class) = (tree.path(file), file % CONTENTS);
                text.push_str(&format!("[file.{path:?}]\nsource = \"content/{class:02}\"\n\n"));
            }
            parts.push(text);
        }
    }
    let names: Vec<String> = (0..parts.len()).map(|part| format!("part-{part:02}.toml")).collect();
    let root = format!("include = {names:?}\n\n[policy]\nname = \"bench\"\n");
    files.push(("policy.toml".to_owned(), root.into_bytes()));
    files.extend(names.into_iter().zip(parts.into_iter().map(String::into_bytes)));
    files
}

/// Brings everything below a directory to the disk, and makes sure that nothing of it is still being written.
pub fn settle(directory: &Path) -> Result<()> {
    let directory = rustix::fs::openat(CWD, directory, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    syncfs(directory).context("cannot bring a file system to the disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_have_one_size_and_differ() {
        assert!((0..CONTENTS).all(|class| content(class).len() == SIZE));
        assert_ne!(content(0), content(1));
        assert_eq!(content(1), content(1 + CONTENTS));
    }

    #[test]
    fn the_policy_is_one_that_rekindle_accepts() {
        use rekindle::policy::{candidate, compile, facts::Facts, trust};

        let directory = tempfile::tempdir().unwrap();
        let trees = [Tree::new(250), Tree { home: "/srv/more".to_owned(), ..Tree::new(10) }];
        for (name, bytes) in policy(&trees) {
            put(directory.path().join(name), bytes).unwrap();
        }
        let candidate = candidate::from_directory(directory.path()).unwrap();
        let verified =
            trust::verify(candidate, &trust::Trust::Operator, "2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
        let inputs = compile::Inputs { facts: &Facts::default(), roles: &[], host: None };
        let compiled = compile::compile(&verified, &inputs).unwrap();
        assert_eq!(compiled.state.resources().len(), 260);
    }
}
