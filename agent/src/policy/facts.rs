//! What a policy may ask about a host. Gathered by [`crate::host::facts`], or read from a file for a host that is not there.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Facts of one host, as templates and `when` see them under `facts`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facts {
    /// `ID` of os-release, such as `debian`.
    pub os: String,
    /// `VERSION_ID` of os-release, such as `12`.
    pub os_version: String,
    /// `VERSION_CODENAME` of os-release, such as `bookworm`.
    pub os_codename: String,
    /// `debian`, `redhat` or `suse`, from `ID` and `ID_LIKE`.
    pub os_family: String,
    /// Machine architecture as the kernel names it, such as `x86_64`.
    pub architecture: String,
    /// Kernel release.
    pub kernel: String,
    /// Host name, up to the first dot.
    pub hostname: String,
    /// Fully qualified name where known, otherwise the host name.
    pub fqdn: String,
    /// Online processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// As `systemd-detect-virt` names it; `none` on metal.
    pub virtualization: String,
    /// `systemd`, or the name of process 1.
    pub init: String,
    /// /etc/machine-id.
    pub machine_id: String,
    /// Network interfaces but `lo`, sorted by name.
    pub interfaces: Vec<String>,
    /// Cloud instance id where known, otherwise empty.
    pub instance_id: String,
}

/// What a host has, as far as a policy is judged by it. Made by [`crate::host`]; `None` when compiling for a host that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostView {
    /// Names of local users.
    pub users: BTreeSet<String>,
    /// Names of local groups.
    pub groups: BTreeSet<String>,
    /// Packages that the package manager calls essential, required or protected.
    pub essential_packages: BTreeSet<String>,
    /// First uid of people's accounts, `UID_MIN` of login.defs.
    pub uid_min: u32,
    /// First gid of people's groups, `GID_MIN` of login.defs.
    pub gid_min: u32,
}
