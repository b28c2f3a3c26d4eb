//! What a policy must not take from a host by mistake: accounts of the system, packages without which it does not boot or obey,
//! and the agent itself.

use super::{Graph, without_architecture};
use crate::policy::compile::load::Declaration;
use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::resource::{Desired, Kind, service};

/// First uid and gid of people where the host does not say.
const DEFAULT_MIN: u32 = 1000;
/// Accounts that belong to the system on one of the supported distributions, whatever their number.
pub(super) const SYSTEM_ACCOUNTS: &[&str] = &[
    "root",
    "daemon",
    "bin",
    "sys",
    "sync",
    "games",
    "man",
    "lp",
    "mail",
    "news",
    "uucp",
    "proxy",
    "www-data",
    "backup",
    "list",
    "irc",
    "gnats",
    "nobody",
    "nogroup",
    "_apt",
    "messagebus",
    "sshd",
    "polkitd",
    "tss",
    "dbus",
    "adm",
    "wheel",
    "sudo",
    "shadow",
    "utmp",
    "tty",
    "disk",
    "kmem",
    "dialout",
    "audio",
    "video",
    "input",
    "render",
    "kvm",
    "staff",
    "users",
    "operator",
    "halt",
    "shutdown",
    "ftp",
    "chrony",
    "rpc",
    "nscd",
    "syslog",
    "systemd-network",
    "systemd-resolve",
    "systemd-timesync",
    "systemd-coredump",
    "systemd-journal",
    "systemd-oom",
    "rekindle",
];
/// Accounts that can never be removed.
const IRREMOVABLE_ACCOUNTS: [&str; 4] = ["root", "nobody", "nogroup", "rekindle"];
/// Packages without which a host does not boot, install, or obey, on one of the supported distributions.
const ESSENTIAL_PACKAGES: &[&str] = &[
    "apt",
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "dbus",
    "debianutils",
    "dnf",
    "dnf5",
    "dpkg",
    "filesystem",
    "glibc",
    "grep",
    "init",
    "init-system-helpers",
    "libc-bin",
    "libc6",
    "libzypp",
    "login",
    "microdnf",
    "passwd",
    "python3-dnf",
    "rpm",
    "sed",
    "setup",
    "shadow",
    "shadow-utils",
    "systemd",
    "systemd-sysv",
    "tar",
    "util-linux",
    "yum",
    "zypper",
];
/// The agent's own package, and the beginning of the names of its units.
const AGENT: &str = "rekindle";

pub(super) fn check(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    for (i, declaration) in graph.active() {
        match declaration.id.kind {
            Kind::User => account(graph, i, declaration, "uid", out),
            Kind::Group => account(graph, i, declaration, "gid", out),
            Kind::Package if graph.is_absent(i) => package(graph, declaration, out),
            Kind::Service => service(graph, i, declaration, out),
            Kind::Package
            | Kind::File
            | Kind::Directory
            | Kind::Symlink
            | Kind::Setting
            | Kind::Sysctl
            | Kind::Repository
            | Kind::KernelModule
            | Kind::Mount
            | Kind::Command
            | Kind::Check
            | Kind::Sweep => {}
        }
    }
}

fn account(graph: &Graph<'_, '_>, i: usize, declaration: &Declaration<'_>, key: &'static str, out: &mut Diagnostics) {
    let id = &declaration.id;
    if graph.is_absent(i) && IRREMOVABLE_ACCOUNTS.contains(&&*id.name) {
        let title = format!("`{id}` belongs to the system and cannot be removed");
        out.push(Diagnostic::error("protected", title).at(declaration.name.clone(), "").hint("remove this resource"));
        return;
    }
    if declaration.fields.boolean("system") == Some(true) {
        return;
    }
    let number = declaration.fields.id(key);
    let minimum = graph.host.map_or(DEFAULT_MIN, |host| if key == "uid" { host.uid_min } else { host.gid_min });
    let (title, place) = match number {
        // Zero is refused for another reason already.
        Some((0, _)) if &*id.name != "root" => return,
        Some((number, place)) if number < minimum => {
            (format!("`{id}` has the {key} {number}, which is below {minimum}, the first of people's"), place)
        }
        Some(_) | None if SYSTEM_ACCOUNTS.contains(&&*id.name) || id.name.starts_with("systemd-") => {
            (format!("`{id}` is an account of the system"), declaration.name.clone())
        }
        Some(_) | None => return,
    };
    out.push(Diagnostic::error("protected", title).at(place, "").hint("if that is meant, add `system = true`"));
}

fn package(graph: &Graph<'_, '_>, declaration: &Declaration<'_>, out: &mut Diagnostics) {
    let id = &declaration.id;
    let name = without_architecture(&id.name);
    let title = if name == AGENT {
        "the policy would remove the agent that carries it out".to_owned()
    } else if ESSENTIAL_PACKAGES.contains(&name)
        || graph
            .host
            .is_some_and(|host| host.essential_packages.contains(name) || host.essential_packages.contains(&*id.name))
    {
        format!("`{id}` is essential to the host and cannot be removed")
    } else {
        return;
    };
    out.push(Diagnostic::error("protected", title).at(declaration.name.clone(), "").hint("remove this resource"));
}

fn service(graph: &Graph<'_, '_>, i: usize, declaration: &Declaration<'_>, out: &mut Diagnostics) {
    let name = &*declaration.id.name;
    let is_ours = name.strip_prefix(AGENT).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.', '@']));
    if !is_ours || name.starts_with("rekindle-hub") {
        return;
    }
    let Some(Desired::Service(desired)) = graph.lowered(i).map(|lowered| &lowered.desired) else { return };
    if desired.stops() || desired.enabled == Some(service::Enablement::Disabled) {
        out.push(
            Diagnostic::error("protected", "the policy would stop the agent that carries it out")
                .at(declaration.name.clone(), "")
                .hint("to let the host be for a while, use `rekindle pause`"),
        );
    }
}
