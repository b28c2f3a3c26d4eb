//! What decides whether a host can be reached at all: its network and its firewall.
//!
//! Nobody can tell from their files whether a change cuts the host off, so that there is no lock-out guard for them. What can
//! be had is that a change is taken back unless somebody proves that they still get in. Where a policy does not ask for that, it
//! gets a warning: one, however many resources there are.

use super::Graph;
use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::resource::{AbsPath, Desired, Ensure, UnitName, directory};

/// Files, and directories with all that is beneath them, on one of the supported distributions.
const FILES: [&str; 19] = [
    "/etc/NetworkManager",
    "/etc/dhcpcd.conf",
    "/etc/ferm",
    "/etc/firewalld",
    "/etc/iptables",
    "/etc/netplan",
    "/etc/network",
    "/etc/nftables",
    "/etc/nftables.conf",
    "/etc/nftables.d",
    "/etc/shorewall",
    "/etc/sysconfig/ip6tables",
    "/etc/sysconfig/iptables",
    "/etc/sysconfig/network",
    "/etc/sysconfig/network-scripts",
    "/etc/sysconfig/nftables.conf",
    "/etc/systemd/network",
    "/etc/ufw",
    "/etc/wpa_supplicant",
];

const SERVICES: [&str; 14] = [
    "NetworkManager.service",
    "ferm.service",
    "firewalld.service",
    "ip6tables.service",
    "iptables.service",
    "netfilter-persistent.service",
    "network.service",
    "networking.service",
    "nftables.service",
    "shorewall.service",
    "systemd-networkd.service",
    "ufw.service",
    "wicked.service",
    "wpa_supplicant.service",
];

pub(super) fn check(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    if graph.loaded.lock_out.is_meant {
        return;
    }
    let mut unconfirmed = graph.active().filter(|(i, _)| {
        graph.lowered(*i).is_some_and(|lowered| {
            decides(&lowered.desired)
                && may_be_confirmed(&lowered.desired)
                && lowered.notes.as_ref().is_none_or(|notes| notes.confirm.is_none())
        })
    });
    let Some((_, first)) = unconfirmed.next() else { return };
    let title = match unconfirmed.count() {
        0 => format!("`{}` decides whether the host can be reached, and nothing takes a change back", first.id),
        n => format!(
            "`{}` and {n} more decide whether the host can be reached, and nothing takes a change back",
            first.id
        ),
    };
    out.push(Diagnostic::warning("unconfirmed", title).at(first.name.clone(), "declared without `confirm`").hint(
        "add `confirm = { within = \"60s\", by = \"ssh\" }`: what stood there comes back unless somebody still gets in",
    ));
}

fn decides(desired: &Desired) -> bool {
    desired.path().is_some_and(is_beneath)
        || matches!(desired, Desired::Service(service) if is_of_network(&service.unit))
}

/// What a secret replaces is not kept and what a purge moves is not put back, so that neither can have `confirm`.
fn may_be_confirmed(desired: &Desired) -> bool {
    let purges = matches!(
        desired,
        Desired::Directory(directory::Desired { ensure: Ensure::Present(spec), .. }) if spec.rules.is_some()
    );
    !purges && !desired.is_secret()
}

fn is_beneath(path: &AbsPath) -> bool {
    FILES.iter().any(|known| path.as_path().starts_with(known))
}

fn is_of_network(unit: &UnitName) -> bool {
    SERVICES.contains(&unit.as_str())
}
