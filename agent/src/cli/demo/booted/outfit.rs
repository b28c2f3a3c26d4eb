//! What the machine has from birth: this very executable with its units, a configuration, and where packages come from.
//!
//! The shipped files are compiled in, so that an installed executable plays the demo as well as a fresh build.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;

use super::super::files::place;
use super::super::peers::Peers;
use super::super::repository::Repository;
use super::machine::{self, Machine};
use super::shop::Shop;

/// Where the machine has its configuration.
const ETC: &str = "/etc/rekindle";

/// The file that the drain hook leaves behind.
pub(super) const DRAINED: &str = "var/lib/rekindle-demo-drained";

const DRAIN: &str = "#!/bin/sh\necho \"$REKINDLE_REQUEST\" > /var/lib/rekindle-demo-drained\n";

const SHIPPED: &[(&str, &str)] = &[
    (
        "usr/lib/systemd/system/rekindle-agent.service",
        include_str!("../../../../../systemd/system/rekindle-agent.service"),
    ),
    (
        "usr/lib/systemd/system/rekindle-courier.service",
        include_str!("../../../../../systemd/system/rekindle-courier.service"),
    ),
    ("usr/lib/sysusers.d/rekindle.conf", include_str!("../../../../../systemd/sysusers.d/rekindle.conf")),
    ("usr/lib/tmpfiles.d/rekindle.conf", include_str!("../../../../../systemd/tmpfiles.d/rekindle.conf")),
];

/// What the package's own scripts do, and what an operator does before the services start: keys are the courier's to read.
const FINISH: &str = "set -e
systemd-sysusers
systemd-tmpfiles --create
cd /etc/rekindle
chgrp rekindle join.token webhook.key ca.pem
chmod 0640 join.token webhook.key ca.pem
systemctl daemon-reload
";

/// What every machine of the demo gets.
#[derive(Debug)]
pub(super) struct Outfit<'a> {
    /// Its packages.
    pub(super) shop: Shop,
    /// Its policy.
    pub(super) repository: &'a Repository,
}

impl Outfit<'_> {
    /// Puts everything on a disk that is not booted yet.
    pub(super) fn place_on(&self, disk: &Path, peers: &Peers, token: Option<&str>) -> anyhow::Result<()> {
        // Without an id systemd would take this for its first boot and apply every preset of the distribution.
        place(&disk.join("etc/machine-id"), format!("{}\n", crate::agent::random_id()), 0o444)?;
        place(&disk.join("etc/hostname"), "demo-host\n", 0o644)?;
        place(&disk.join("etc/hosts"), "127.0.0.1 localhost demo-host\n", 0o644)?;
        self.shop.stock(disk)?;
        for (path, content) in SHIPPED {
            place(&disk.join(path), content, 0o644)?;
        }
        let program = disk.join("usr/bin/rekindle");
        place(&program, "", 0o755)?;
        std::fs::copy(std::env::current_exe()?, &program)
            .with_context(|| format!("cannot copy this program to `{}`", program.display()))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;

        let etc = disk.join(ETC.trim_start_matches('/'));
        place(&etc.join("agent.toml"), peers.agent_toml(Path::new(machine::REPOSITORY), Path::new(ETC)), 0o644)?;
        place(&etc.join("allowed_signers"), self.repository.allowed_signers(), 0o644)?;
        for (name, content) in peers.credentials(token) {
            place(&etc.join(name), content, 0o600)?;
        }
        place(&etc.join("drain.d/10-leave"), DRAIN, 0o755)
    }

    /// Does in the booted machine what needs its accounts and its service manager.
    pub(super) async fn finish(&self, machine: &Machine) -> anyhow::Result<()> {
        machine.run(&["rekindle", "--version"]).await.context(
            "this program does not run in the machine: it needs a newer C library than the image has\n\
             hint: name an image of the release that it was built on with `--image`",
        )?;
        machine.run(&["sh", "-c", FINISH]).await?;
        Ok(())
    }
}
