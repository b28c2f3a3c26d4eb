//! What a policy must not take from a host by mistake: accounts of the system, packages without which it does not boot or obey,
//! and the agent itself.

use super::{Graph, number_of, without_architecture};
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

/// What the agent keeps: not even a directory there is a policy's.
const STATE: [&str; 4] = ["/var/lib/rekindle", "/run/rekindle", "/var/run/rekindle", "/etc/rekindle/newest-revision"];
/// What it needs to be started with.
const CONFIGURATION: [&str; 2] = ["/etc/rekindle", "/etc/rekindle/agent.toml"];
/// What is beneath is the kernel's.
const KERNEL: [(&str, &str); 3] = [
    ("/dev", "write a rule of udev"),
    ("/proc", "declare a `sysctl`, or a `command` with `unless`"),
    ("/sys", "write a rule of udev or tmpfiles.d, or declare a `command` with `unless`"),
];
/// In the memory file system that every host has there, anybody may keep files.
const SHARED_MEMORY: &str = "/dev/shm";
/// Directories without which nothing starts any more. Where `/usr` is merged, the short ones are links to it.
const SKELETON: [&str; 18] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/sbin",
    "/var",
    "/var/lib",
];

pub(super) fn check(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    for (i, declaration) in graph.active() {
        match declaration.id.kind {
            Kind::User | Kind::Group => account(graph, i, declaration, out),
            Kind::Package if graph.is_absent(i) => package(graph, declaration, out),
            Kind::Service => service(graph, i, declaration, out),
            Kind::File | Kind::Directory | Kind::Symlink | Kind::Setting => place(graph, i, declaration, out),
            Kind::Package
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

fn account(graph: &Graph<'_, '_>, i: usize, declaration: &Declaration<'_>, out: &mut Diagnostics) {
    let id = &declaration.id;
    let number = number_of(declaration);
    let is_root = &*id.name == "root";
    if let Some((key, number, place)) = &number
        && (*number == 0) != is_root
    {
        let title = if is_root {
            format!("`{id}` has the {key} 0 and no other")
        } else {
            format!("`{id}` would have the {key} 0, which is root's")
        };
        out.push(
            Diagnostic::error("protected", title)
                .at(place.clone(), "")
                .hint("to let somebody become root, put the account into the group `sudo` or `wheel`"),
        );
        return;
    }
    if graph.is_absent(i) && IRREMOVABLE_ACCOUNTS.contains(&&*id.name) {
        let title = format!("`{id}` belongs to the system and cannot be removed");
        out.push(Diagnostic::error("protected", title).at(declaration.name.clone(), "").hint("remove this resource"));
        return;
    }
    if declaration.fields.boolean("system") == Some(true) {
        return;
    }
    let minimum =
        graph.host.map_or(DEFAULT_MIN, |host| if id.kind == Kind::User { host.uid_min } else { host.gid_min });
    let (title, place) = match number {
        Some((key, number, place)) if number < minimum => {
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

fn place(graph: &Graph<'_, '_>, i: usize, declaration: &Declaration<'_>, out: &mut Diagnostics) {
    let Some(desired) = graph.lowered(i).map(|lowered| &lowered.desired) else { return };
    let Some(path) = desired.path().and_then(|path| path.as_path().to_str()) else { return };
    let Some((title, hint)) = refused(desired, path, graph.is_absent(i)) else { return };
    out.push(Diagnostic::error("protected", title).at(declaration.name.clone(), "").hint(hint));
}

/// Why something must not be declared at a path, and what to do instead.
fn refused(desired: &Desired, path: &str, is_absent: bool) -> Option<(String, &'static str)> {
    let remove = "remove this resource";
    if let Some(own) = STATE.iter().find(|own| is_beneath(path, own)) {
        return Some((format!("what is in `{own}` is no policy's business, but the agent's own"), remove));
    }
    // `/usr` is merged, or is to be.
    let merged = path.strip_prefix("/usr").unwrap_or(path);
    let is_link = matches!(desired, Desired::Symlink(_));
    let unit = merged
        .strip_prefix("/lib/systemd/system/")
        .or_else(|| path.strip_prefix("/etc/systemd/system/").filter(|_| is_link))
        .filter(|unit| !unit.contains('/') && !unit.ends_with(".d"));
    if merged == "/bin/rekindle" || unit.is_some_and(is_own_unit) {
        let title = format!("`{path}` belongs to the agent that carries the policy out");
        return Some((title, "to change how it runs, write a drop-in of its unit"));
    }
    if is_absent && CONFIGURATION.contains(&path) {
        return Some(("the policy would take its configuration from the agent that carries it out".to_owned(), remove));
    }
    let keeps_skeleton = if let Desired::Symlink(link) = desired {
        link.ensure.present().is_some_and(|target| target.trim_start_matches('/') == format!("usr{path}"))
    } else {
        matches!(desired, Desired::Directory(_)) && !is_absent
    };
    if SKELETON.contains(&path) && !keeps_skeleton {
        return Some((format!("`{path}` is a directory without which the host does not run"), remove));
    }
    if matches!(desired, Desired::Directory(_)) || is_beneath(path, SHARED_MEMORY) {
        return None;
    }
    let (kernels, hint) = KERNEL.into_iter().find(|(kernels, _)| is_beneath(path, kernels))?;
    Some((format!("what is in `{kernels}` is the kernel's, and no file that could be written"), hint))
}

/// Whether a path is another, or beneath it.
pub(super) fn is_beneath(path: &str, above: &str) -> bool {
    above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a unit, with or without its suffix, is one of the agent's.
fn is_own_unit(name: &str) -> bool {
    let is_ours = name.strip_prefix(AGENT).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.', '@']));
    is_ours && !name.starts_with("rekindle-hub")
}

fn service(graph: &Graph<'_, '_>, i: usize, declaration: &Declaration<'_>, out: &mut Diagnostics) {
    if !is_own_unit(&declaration.id.name) {
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
