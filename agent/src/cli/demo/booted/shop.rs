//! Where the machine's packages come from: an apt repository in a directory, with one small package.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aws_lc_rs::digest;

use super::super::files::{make, place};
use super::program;

/// Where the machine has its copy.
const INSIDE: &str = "srv/apt";

const DEB: &str = "demo-hello_1.0_all.deb";

const CONTROL: &str = "Package: demo-hello
Version: 1.0
Architecture: all
Maintainer: Demo <demo@rekindle.invalid>
Description: service of the rekindle demo
";

const UNIT: &str = "[Unit]
Description=Service of the rekindle demo

[Service]
ExecStart=/usr/lib/demo-hello/demo-hello

[Install]
WantedBy=multi-user.target
";

/// A script, so that the process has the name of the service.
const PROGRAM: &str = "#!/bin/sh\nwhile :; do sleep 3600; done\n";

/// Like the package of a database, it never installs itself over data that it cannot read.
const PREINST: &str = r#"#!/bin/sh
set -e
store=/var/lib/demo-hello/store
if [ -e "$store" ] && [ "$(cat "$store")" != intact ]; then
    echo "the data in $store is damaged" >&2
    exit 1
fi
"#;

const POSTINST: &str = r#"#!/bin/sh
set -e
mkdir -p /var/lib/demo-hello
echo intact > /var/lib/demo-hello/store
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
"#;

const PRERM: &str = r#"#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl stop demo-hello.service; fi
"#;

const POSTRM: &str = r#"#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
"#;

/// The finished repository.
#[derive(Debug)]
pub(super) struct Shop {
    directory: PathBuf,
    index: String,
}

/// Builds the package in an empty directory, and the index of the repository.
pub(super) async fn build(directory: &Path) -> anyhow::Result<Shop> {
    let tree = directory.join("tree");
    make(&tree, 0o755)?;
    for (path, content, mode) in [
        ("DEBIAN/control", CONTROL, 0o644),
        ("DEBIAN/preinst", PREINST, 0o755),
        ("DEBIAN/postinst", POSTINST, 0o755),
        ("DEBIAN/prerm", PRERM, 0o755),
        ("DEBIAN/postrm", POSTRM, 0o755),
        ("usr/lib/demo-hello/demo-hello", PROGRAM, 0o755),
        ("usr/lib/systemd/system/demo-hello.service", UNIT, 0o644),
    ] {
        place(&tree.join(path), content, mode)?;
    }
    let deb = directory.join(DEB);
    // gzip is read by every dpkg, whatever this host's own writes by default.
    let mut build = program::command("dpkg-deb");
    program::run(build.args(["-Zgzip", "--root-owner-group", "--build"]).arg(&tree).arg(&deb)).await?;
    let content = std::fs::read(&deb).with_context(|| format!("cannot read `{}`", deb.display()))?;
    let sha256: String =
        digest::digest(&digest::SHA256, &content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let index = format!("{CONTROL}Filename: ./{DEB}\nSize: {}\nSHA256: {sha256}\n", content.len());
    Ok(Shop { directory: directory.to_path_buf(), index })
}

impl Shop {
    /// Puts the repository on a disk, as the only one.
    pub(super) fn stock(&self, disk: &Path) -> anyhow::Result<()> {
        let inside = disk.join(INSIDE);
        place(&inside.join("Packages"), &self.index, 0o644)?;
        let deb = inside.join(DEB);
        std::fs::copy(self.directory.join(DEB), &deb).with_context(|| format!("cannot write `{}`", deb.display()))?;
        place(&disk.join("etc/apt/sources.list"), format!("deb [trusted=yes] file:/{INSIDE} ./\n"), 0o644)?;
        // A throwaway disk need not survive a power cut.
        place(&disk.join("etc/dpkg/dpkg.cfg.d/demo"), "force-unsafe-io\n", 0o644)
    }
}
