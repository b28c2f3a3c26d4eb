//! What the policy tests share.

use std::path::Path;

use rekindle::policy::candidate::from_directory;
use rekindle::policy::compile::{Compiled, Inputs};
use rekindle::policy::diagnostic::Diagnostics;
use rekindle::policy::facts::{Facts, HostView};
use rekindle::policy::secret::Secrets;
use rekindle::policy::trust::{Trust, Verified, verify};

/// Writes files below a directory, making directories on the way.
pub(crate) fn write_files(dir: &Path, files: &[(&str, &[u8])]) {
    for (path, content) in files {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "nobody reads it meanwhile")]
        std::fs::write(path, content).unwrap();
    }
}

/// A verified policy of these files, by the way that an operator's directory takes.
pub(crate) fn policy(files: &[(&str, &str)]) -> Verified {
    policy_of(&files.iter().map(|(path, text)| (*path, text.as_bytes())).collect::<Vec<_>>())
}

/// As [`policy`], of files that need not be text.
pub(crate) fn policy_of(files: &[(&str, &[u8])]) -> Verified {
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), files);
    verify(from_directory(dir.path()).unwrap(), &Trust::Operator, jiff::Timestamp::UNIX_EPOCH).unwrap()
}

/// Facts of a small Debian host.
pub(crate) fn facts() -> Facts {
    Facts { os: "debian".into(), os_version: "12".into(), hostname: "web1".into(), cpus: 2, ..Facts::default() }
}

/// What a small Debian host has.
pub(crate) fn host() -> HostView {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    HostView {
        users: set(&["root", "www-data", "nobody"]),
        groups: set(&["root", "adm", "sudo", "www-data"]),
        essential_packages: set(&["e2fsprogs"]),
        uid_min: 1000,
        gid_min: 1000,
    }
}

/// Compiles for a host without roles.
pub(crate) fn compile(policy: &Verified, host: Option<&HostView>) -> Result<Compiled, Diagnostics> {
    rekindle::policy::compile::compile(policy, &Inputs { facts: &facts(), roles: &[], host, secrets: &Secrets::Unread })
}
