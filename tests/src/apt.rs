//! A signed apt repository with small packages made for the test.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::machine::Machine;
use crate::run::{Invocation, put};

/// Where a machine finds the repository: a copy, because the machine's own disk is always reachable.
const INSIDE: &str = "/srv/apt";

/// A package to build.
#[derive(Debug, Clone, Default)]
pub struct TestPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Files: path, content, mode.
    pub files: Vec<(String, String, u32)>,
    /// A script run when it has been unpacked.
    pub postinst: Option<String>,
}

/// A repository, signed by a key of its own.
#[derive(Debug)]
pub struct AptRepository {
    dir: TempDir,
    pool: PathBuf,
    keys: PathBuf,
}

impl TestPackage {
    /// A package without files.
    pub fn new(name: &str, version: &str) -> Self {
        Self { name: name.to_owned(), version: version.to_owned(), ..Self::default() }
    }

    /// A package with a service of its own name, which the package leaves disabled and stopped.
    pub fn with_service(name: &str, version: &str) -> Self {
        let unit = format!(
            "[Unit]\nDescription=Test service {name}\n\n[Service]\nExecStart=/usr/lib/{name}/run\n\n\
             [Install]\nWantedBy=multi-user.target\n"
        );
        let program = "#!/bin/sh\nexec sleep infinity\n".to_owned();
        Self {
            files: vec![
                (format!("/lib/systemd/system/{name}.service"), unit, 0o644),
                (format!("/usr/lib/{name}/run"), program, 0o755),
            ],
            postinst: Some(
                "#!/bin/sh\nset -e\nif [ -d /run/systemd/system ]; then systemctl daemon-reload; fi\n".to_owned(),
            ),
            ..Self::new(name, version)
        }
    }

    /// A package that unpacks and then always fails to be configured.
    pub fn broken(name: &str, version: &str) -> Self {
        Self {
            postinst: Some("#!/bin/sh\necho 'this package is broken on purpose' >&2\nexit 1\n".to_owned()),
            ..Self::new(name, version)
        }
    }

    fn build(&self, into: &Path) -> Result<()> {
        let tree = tempfile::tempdir().context("no directory to build a package in")?;
        let control = format!(
            "Package: {}\nVersion: {}\nArchitecture: all\nMaintainer: Tests <tests@example.org>\nDescription: {}\n",
            self.name, self.version, "made for a test"
        );
        std::fs::set_permissions(tree.path(), std::fs::Permissions::from_mode(0o755)).context("cannot set a mode")?;
        put(tree.path().join("DEBIAN/control"), control)?;
        let postinst = self.postinst.iter().map(|script| ("/DEBIAN/postinst", script.as_str(), 0o755));
        let files = self.files.iter().map(|(path, content, mode)| (path.as_str(), content.as_str(), *mode));
        for (path, content, mode) in files.chain(postinst) {
            let path = tree.path().join(path.trim_start_matches('/'));
            put(&path, content)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).context("cannot set a mode")?;
        }
        Invocation::new("dpkg-deb").args(["--build", "--root-owner-group"]).arg(tree.path()).arg(into).ok()?;
        Ok(())
    }
}

impl AptRepository {
    /// Makes an empty repository with a new key.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("rekindle-apt-").tempdir().context("no directory")?;
        let (pool, keys) = (dir.path().join("pool"), dir.path().join("keys"));
        for dir in [&pool, &keys] {
            std::fs::create_dir(dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
        }
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o700)).context("cannot set a mode")?;
        let repository = Self { dir, pool, keys };
        repository
            .gpg()
            .args(["--passphrase", "", "--quick-generate-key", "apt@example.org", "ed25519", "sign", "never"])
            .ok()?;
        Ok(repository)
    }

    /// Builds a package and adds it.
    pub fn add(&self, package: &TestPackage) -> Result<()> {
        package.build(&self.pool)
    }

    /// Adds a package that was built elsewhere.
    pub fn add_file(&self, package: &Path) -> Result<()> {
        let name = package.file_name().context("a package has a file name")?;
        std::fs::copy(package, self.pool.join(name)).with_context(|| format!("cannot copy `{}`", package.display()))?;
        Ok(())
    }

    /// Writes and signs the indices, gives the machine the repository as it is now, and lets its apt read it.
    pub fn publish_to(&self, machine: &Machine) -> Result<()> {
        self.publish_below(&machine.root())?;
        machine.run("apt-get").args(["--quiet", "--quiet", "update"]).ok()?;
        Ok(())
    }

    /// As [`Self::publish_to`], on a disk that is not booted: its apt has read nothing yet.
    pub fn publish_below(&self, root: &Path) -> Result<()> {
        let index = Invocation::new("apt-ftparchive").args(["packages", "."]).dir(&self.pool).ok()?;
        put(self.pool.join("Packages"), index)?;
        for old in ["Release", "InRelease"] {
            drop(std::fs::remove_file(self.pool.join(old)));
        }
        let release = Invocation::new("apt-ftparchive").args(["release", "."]).dir(&self.pool).ok()?;
        let signed = self.gpg().args(["--local-user", "apt@example.org", "--clearsign"]).stdin(release).ok()?;
        put(self.pool.join("InRelease"), signed)?;
        let key = self.gpg().args(["--armor", "--export", "apt@example.org"]).ok()?;

        put(root.join("etc/apt/keyrings/rekindle-tests.asc"), key)?;
        let source = format!("deb [signed-by=/etc/apt/keyrings/rekindle-tests.asc] file:{INSIDE} ./\n");
        put(root.join("etc/apt/sources.list.d/rekindle-tests.list"), source)?;
        let target = root.join(INSIDE.trim_start_matches('/'));
        drop(std::fs::remove_dir_all(&target));
        std::fs::create_dir_all(&target).with_context(|| format!("cannot make `{}`", target.display()))?;
        for file in std::fs::read_dir(&self.pool).context("cannot list the pool")? {
            let file = file.context("cannot list the pool")?;
            std::fs::copy(file.path(), target.join(file.file_name())).context("cannot copy the repository")?;
        }
        Ok(())
    }

    fn gpg(&self) -> Invocation {
        Invocation::new("gpg").args(["--batch", "--quiet", "--homedir"]).arg(&self.keys)
    }
}

impl Drop for AptRepository {
    fn drop(&mut self) {
        // The key agent would end by itself when it sees its directory gone, but later than the test.
        let ended = Invocation::new("gpgconf").arg("--homedir").arg(&self.keys).args(["--kill", "all"]).ok();
        if let Err(error) = ended {
            eprintln!("cannot end the key agent of `{}`: {error:#}", self.dir.path().display());
        }
    }
}
