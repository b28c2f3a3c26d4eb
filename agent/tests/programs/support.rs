//! A policy, a state directory, and a place to manage, all in one temporary directory of the real root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// See the crate's text.
pub(crate) struct World {
    dir: TempDir,
}

/// What a command printed, and its exit code.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl World {
    /// `None`, and said so, for anybody but root.
    pub(crate) fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root may do this");
            return None;
        }
        let world = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["policy", "state", "run", "bin", "etc"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["state", "run"] {
            fs::set_permissions(world.path(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        let config = format!("[paths]\nroot = \"/\"\nstate = \"{0}/state\"\nruntime = \"{0}/run\"\n", world.at());
        world.write("agent.toml", &config);
        Some(world)
    }

    /// The directory, as text for policies.
    pub(crate) fn at(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// A shell script; `$T` in it is the directory.
    pub(crate) fn script(&self, name: &str, text: &str) {
        let path = self.path(&format!("bin/{name}"));
        fs::write(&path, format!("#!/bin/sh\nT={}\n{text}", self.at())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// Writes the policy; `$T` in it is the directory.
    pub(crate) fn policy(&self, toml: &str) {
        self.write("policy/policy.toml", &toml.replace("$T", &self.at()));
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rekindle"));
        command.arg("--config").arg(self.path("agent.toml")).args(args).env("NO_COLOR", "1");
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Said {
        said(&self.command(args).output().unwrap())
    }

    /// `rekindle apply` with this policy.
    #[track_caller]
    pub(crate) fn apply(&self, toml: &str) -> Said {
        self.policy(toml);
        self.run(&["apply", "--policy", self.path("policy").to_str().unwrap()])
    }

    /// `rekindle plan` with this policy.
    #[track_caller]
    pub(crate) fn plan(&self, toml: &str) -> Said {
        self.policy(toml);
        self.run(&["plan", "--policy", self.path("policy").to_str().unwrap()])
    }
}

pub(crate) fn said(output: &Output) -> Said {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    Said { code: output.status.code().unwrap_or(-1), text: String::from_utf8_lossy(&text).into_owned() }
}

/// Names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
