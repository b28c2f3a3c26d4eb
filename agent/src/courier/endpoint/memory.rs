//! What the courier must remember about the endpoint, and what it says about this host.

use std::path::Path;

use rekindle_protocol::{
    BootId, CheckIn, Counters, Failing, Health, HostId, MAX_LISTED, MachineFacts, ReimageId, RequestKey, Token,
};
use serde::{Deserialize, Serialize};

use crate::spool::{CheckInState, Slot};

/// Who this host is at the endpoint. File `identity.json`, readable by the courier alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    pub(super) version: u32,
    pub(super) host_id: HostId,
    pub(super) incarnation: u64,
    pub(super) token: Token,
}

impl Slot for Identity {
    const NAME: &'static str = "identity.json";
    const MODE: u32 = 0o600;
    fn version(&self) -> u32 {
        self.version
    }
}

/// What must survive a restart. File `endpoint.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    pub(super) version: u32,
    /// Number of the newest check-in that may have been sent.
    pub(super) seq: u64,
    /// The newest request of the agent's that the endpoint has answered.
    pub(super) open: Option<Open>,
    /// The reimage that this incarnation was born from.
    pub(super) birth: Option<ReimageId>,
    /// Why the endpoint will never speak to this incarnation again.
    pub(super) superseded: Option<String>,
}

/// A request that the endpoint knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Open {
    /// The agent's name for it.
    pub(super) request: String,
    /// The endpoint's name for it.
    pub(super) id: ReimageId,
    /// Whether the evidence is stored there, or will never be.
    pub(super) evidence: Evidence,
    /// Whether nothing can change it any more.
    pub(super) ended: bool,
}

/// Where the evidence of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Evidence {
    /// Still to be sent.
    Owed,
    /// At the endpoint, or refused by it.
    Settled,
}

impl Default for Memory {
    fn default() -> Self {
        Self { version: 1, seq: 0, open: None, birth: None, superseded: None }
    }
}

impl Slot for Memory {
    const NAME: &'static str = "endpoint.json";
    const MODE: u32 = 0o600;
    fn version(&self) -> u32 {
        self.version
    }
}

impl Memory {
    /// The open request, if it is this one of the agent's.
    pub(super) fn open(&self, request: &str) -> Option<&Open> {
        self.open.as_ref().filter(|open| open.request == request)
    }
}

/// The body of a check-in.
pub(super) fn checkin(identity: &Identity, boot_id: &BootId, seq: u64, state: &CheckInState) -> CheckIn {
    let failing = state.failing.iter().take(MAX_LISTED).map(|(resource, signature)| Failing {
        resource: resource.to_string(),
        signature: signature.clone(),
        class: None,
    });
    CheckIn {
        host_id: identity.host_id.clone(),
        incarnation: identity.incarnation,
        boot_id: boot_id.clone(),
        seq,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        policy: state.revision.clone(),
        image: None,
        health: Health::from_word(&state.health),
        since: state.since,
        born_converged: state.born_converged,
        counters: Counters { resources: state.n_resources.into(), repairs: state.n_repairs },
        failing: failing.collect(),
        holds: Vec::new(),
        snowflake: None,
        reimage: state.request.clone().and_then(|request| RequestKey::try_from(request).ok()),
    }
}

/// Whether the endpoint should hear at once that `old` became `new`. Counters can wait.
pub(super) fn is_news(old: &CheckInState, new: &CheckInState) -> bool {
    old.revision != new.revision
        || old.health != new.health
        || old.request != new.request
        || old.born_converged != new.born_converged
        || old.failing != new.failing
        || old.confirming != new.confirming
}

/// The slot's name: configured, or the machine's DMI UUID, or the host's name. Never the machine id, which a reimage changes.
pub(super) fn host_id(configured: Option<&str>) -> Option<HostId> {
    if let Some(name) = configured {
        return name.parse().ok();
    }
    let uuid = line("/sys/class/dmi/id/product_uuid").map(|uuid| uuid.to_lowercase());
    // Firmware without a UUID of its own says one of these.
    let uuid = uuid.filter(|uuid| !uuid.starts_with("00000000-0000") && !uuid.starts_with("ffffffff-ffff"));
    uuid.and_then(|uuid| uuid.parse().ok()).or_else(|| hostname().parse().ok())
}

/// The host's name, as the kernel has it.
pub(super) fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// The kernel's boot id.
pub(super) fn boot_id() -> Option<BootId> {
    line("/proc/sys/kernel/random/boot_id")?.parse().ok()
}

/// What people see of this machine in a list of hosts.
pub(super) fn machine() -> MachineFacts {
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    let kernel = line("/proc/sys/kernel/osrelease").unwrap_or_default();
    MachineFacts {
        os: os.trim_matches('"').to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        kernel,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn line(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new(path)).ok()?;
    Some(text.lines().next()?.trim().to_owned()).filter(|line| !line.is_empty())
}
