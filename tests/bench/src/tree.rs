//! The declared files: 4 KiB each, a hundred in a directory, their content one of those that the policy holds.
//!
//! A policy has at most 64 MiB, so a hundred thousand files have to share contents. How many there are is part of every
//! measurement for which it matters.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rekindle_tests::put;
use rustix::fs::{CWD, Mode, OFlags, open, syncfs};

/// Bytes in each file.
pub const SIZE: usize = 4096;

/// Files in each directory.
pub const PER_DIRECTORY: usize = 100;

/// Most different contents: what a policy can hold with room to spare.
pub const MOST_CONTENTS: usize = 10_000;

/// Most declarations in one TOML file of the policy.
const PER_TOML: usize = 20_000;

/// Permission bits of each file.
pub const MODE: u32 = 0o644;

/// A declared tree below a managed root.
#[derive(Debug, Clone)]
pub struct Tree {
    /// How many files.
    pub n_files: usize,
    /// Different contents.
    pub n_contents: usize,
    /// Files in each directory.
    pub per_directory: usize,
    /// Where it is, as the managed host names it, such as `/srv/bench`.
    pub home: String,
}

impl Tree {
    /// So many files, a hundred in a directory, as different as a policy can have them.
    pub fn new(n_files: usize) -> Self {
        Self {
            n_files,
            n_contents: n_files.clamp(1, MOST_CONTENTS),
            per_directory: PER_DIRECTORY,
            home: "/srv/bench".to_owned(),
        }
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

    /// Number of the content of a file.
    pub fn class(&self, file: usize) -> usize {
        file % self.n_contents
    }

    /// Every file below the host's root, and the number of its content.
    pub fn classed_places(&self, root: &Path) -> Vec<(PathBuf, usize)> {
        self.places(root).into_iter().enumerate().map(|(file, place)| (place, self.class(file))).collect()
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
        for (place, class) in self.classed_places(root) {
            let place = &place;
            put(place, content(class))?;
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

/// The content of this number.
pub fn content(class: usize) -> Vec<u8> {
    let mut text = format!("# Kept by rekindle; content {class:05}.\n").into_bytes();
    let mut line = 0;
    while text.len() < SIZE {
        text.extend(format!("key_{line:03} = value {class:05} of line {line:03}\n").into_bytes());
        line += 1;
    }
    text.truncate(SIZE - 1);
    text.push(b'\n');
    text
}

/// The policy that declares several trees.
pub fn policy(trees: &[Tree]) -> Vec<(String, Vec<u8>)> {
    let n_contents = trees.iter().map(|tree| tree.n_contents.min(tree.n_files)).max().unwrap_or_default();
    let mut files: Vec<(String, Vec<u8>)> =
        (0..n_contents).map(|class| (format!("content/{class:05}"), content(class))).collect();
    let mut parts = Vec::new();
    for tree in trees {
        for first in (0..tree.n_files).step_by(PER_TOML) {
            let mut text = String::new();
            for file in first..(first + PER_TOML).min(tree.n_files) {
                let (path, class) = (tree.path(file), tree.class(file));
                text.push_str(&format!("[file.{path:?}]\nsource = \"content/{class:05}\"\n\n"));
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
        let contents: std::collections::BTreeSet<Vec<u8>> = (0..200).map(content).collect();
        assert_eq!(contents.len(), 200);
        assert!(contents.iter().all(|content| content.len() == SIZE));
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
        let inputs = compile::Inputs {
            facts: &Facts::default(),
            roles: &[],
            host: None,
            secrets: &rekindle::policy::secret::Secrets::Unread,
        };
        let compiled = compile::compile(&verified, &inputs).unwrap();
        assert_eq!(compiled.state.resources().len(), 260);
    }
}
