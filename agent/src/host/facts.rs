//! Facts of a host, read from files and the kernel: no network, and nothing that can hang.
//!
//! Facts of an image are only what its own files say. What the machine that builds it happens to be (kernel, memory,
//! interfaces) is left empty, because the hosts born from the image will differ.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::Host;
use super::exec::{self, Command};
use super::root::Root;
use crate::policy::facts::{Facts, HostView};
use crate::resource::AbsPath;

/// None of the files read here is longer.
const MAX_FILE: u64 = 256 * 1024;

/// Gathers the facts of the host or image at a root. What cannot be told is left empty.
pub fn gather(root: &Root) -> Facts {
    let uname = nix::sys::utsname::uname().ok();
    let uname = |field: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        uname.as_ref().map(|uname| field(uname).to_string_lossy().into_owned()).unwrap_or_default()
    };
    let os = parse_os_release(&os_release(root));
    let of_os = |key: &str| os.get(key).cloned().unwrap_or_default();
    let name = if root.is_live() { uname(|u| u.nodename()) } else { line(root, "/etc/hostname") };
    let mut facts = Facts {
        os: of_os("ID"),
        os_version: of_os("VERSION_ID"),
        os_codename: of_os("VERSION_CODENAME"),
        os_family: os_family(&of_os("ID"), &of_os("ID_LIKE")).to_owned(),
        architecture: uname(|u| u.machine()),
        fqdn: fqdn(&name, &text(root, "/etc/hosts")),
        hostname: name.split('.').next().unwrap_or_default().to_owned(),
        machine_id: Some(line(root, "/etc/machine-id")).filter(|id| id != "uninitialized").unwrap_or_default(),
        instance_id: instance_id(root),
        ..Facts::default()
    };
    if root.is_live() {
        facts.kernel = uname(|u| u.release());
        facts.cpus = processors();
        facts.memory_mib = memory_mib(&text(root, "/proc/meminfo"));
        facts.virtualization = virtualization(root);
        facts.init = init(root);
        facts.interfaces = interfaces();
    } else if root.path().join("usr/lib/systemd/systemd").exists() {
        facts.init = "systemd".to_owned();
    }
    facts
}

/// What the host has, as far as a policy is judged by it; `None` when its accounts cannot be read, because an account that was
/// not seen is not one that is missing. Where packages cannot be read none counts as essential here, and the package manager
/// itself refuses to remove those.
pub fn view(host: &Host) -> Option<HostView> {
    let accounts = host.accounts.read().ok()?;
    let packages = host.packages.read().unwrap_or_default();
    let login_defs = text(&host.root, "/etc/login.defs");
    Some(HostView {
        users: accounts.users.into_iter().map(|user| user.name).collect(),
        groups: accounts.groups.into_iter().map(|group| group.name).collect(),
        essential_packages: packages.packages.into_iter().filter(|(_, p)| p.essential).map(|(name, _)| name).collect(),
        uid_min: login_def(&login_defs, "UID_MIN"),
        gid_min: login_def(&login_defs, "GID_MIN"),
    })
}

/// The first id of people's accounts; 1000 where the file does not say, as in shadow-utils.
fn login_def(login_defs: &str, key: &str) -> u32 {
    let value = |line: &str| {
        let mut words = line.split_whitespace();
        if words.next() == Some(key) { words.next()?.parse().ok() } else { None }
    };
    login_defs.lines().find_map(value).unwrap_or(1000)
}

fn text(root: &Root, path: &str) -> String {
    let read = AbsPath::new(path).ok().and_then(|path| root.read(&path, MAX_FILE).ok().flatten());
    read.map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn line(root: &Root, path: &str) -> String {
    text(root, path).lines().next().unwrap_or_default().trim().to_owned()
}

/// `/etc/os-release` is usually a link, which `Root` does not follow; what it links to has a fixed place.
fn os_release(root: &Root) -> String {
    ["/etc/os-release", "/usr/lib/os-release"]
        .iter()
        .map(|path| text(root, path))
        .find(|t| !t.is_empty())
        .unwrap_or_default()
}

/// Parses `KEY=value` lines with the shell quoting that os-release(5) allows.
pub(crate) fn parse_os_release(text: &str) -> HashMap<String, String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), unquote(value.trim())))
        .collect()
}

fn unquote(value: &str) -> String {
    if let Some(literal) = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return literal.to_owned();
    }
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    let mut plain = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    plain
}

/// `debian`, `redhat` or `suse`, by the id of a system and those it is like; empty for another.
pub fn os_family(id: &str, id_like: &str) -> &'static str {
    let words = || std::iter::once(id).chain(id_like.split_whitespace());
    let is = |names: &[&str]| words().any(|word| names.contains(&word) || names.iter().any(|n| word.starts_with(n)));
    if is(&["debian", "ubuntu"]) {
        "debian"
    } else if is(&["rhel", "fedora", "centos"]) {
        "redhat"
    } else if is(&["suse", "opensuse", "sles"]) {
        "suse"
    } else {
        ""
    }
}

/// The full name from /etc/hosts: a resolver would mean the network.
fn fqdn(name: &str, hosts: &str) -> String {
    if name.contains('.') || name.is_empty() {
        return name.to_owned();
    }
    let begins_with_name = |word: &&str| word.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    hosts
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .find_map(|line| line.split_whitespace().skip(1).find(begins_with_name))
        .unwrap_or(name)
        .to_owned()
}

fn processors() -> u32 {
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    online.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

fn memory_mib(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn virtualization(root: &Root) -> String {
    let mut command = Command::new("systemd-detect-virt");
    command.deadline = Duration::from_secs(5);
    match exec::run_direct(&command) {
        // It exits with 1 for "none".
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(_) => line(root, "/run/systemd/container"),
    }
}

fn init(root: &Root) -> String {
    if Path::new("/run/systemd/system").is_dir() { "systemd".to_owned() } else { line(root, "/proc/1/comm") }
}

fn interfaces() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return Vec::new() };
    // A bonding driver puts a plain file there too; interfaces are links to directories.
    let is_interface = |entry: &std::fs::DirEntry| entry.path().is_dir();
    let mut names: Vec<String> = entries
        .flatten()
        .filter(is_interface)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "lo")
        .collect();
    names.sort();
    names
}

/// What cloud-init left on the disk; a metadata service would mean the network.
fn instance_id(root: &Root) -> String {
    let id = line(root, "/var/lib/cloud/data/instance-id");
    // cloud-init's own words for "not in a cloud".
    if id == "iid-datasource-none" || id == "nocloud" { String::new() } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_is_unquoted() {
        let os =
            parse_os_release("# c\nID=debian\nVERSION_ID=\"12\"\nNAME='A \"b\"'\nP=\"a \\\"b\\\" \\$c\"\n\nnonsense\n");
        let check = |key: &str, expected: &str| assert_eq!(os.get(key).map(String::as_str), Some(expected), "{key}");
        check("ID", "debian");
        check("VERSION_ID", "12");
        check("NAME", "A \"b\"");
        check("P", "a \"b\" $c");
    }

    #[test]
    fn families_come_from_the_id_or_its_likes() {
        let check = |id: &str, like: &str, expected: &str| assert_eq!(os_family(id, like), expected, "{id} {like}");
        check("debian", "", "debian");
        check("linuxmint", "ubuntu debian", "debian");
        check("rocky", "rhel centos fedora", "redhat");
        check("opensuse-leap", "suse opensuse", "suse");
        check("sles", "suse", "suse");
        check("arch", "", "");
    }

    #[test]
    fn the_full_name_is_found_in_hosts() {
        let hosts = "127.0.0.1 localhost\n# 10.0.0.9 web.old\n10.0.0.1 webby.example web.example.org web\n";
        let check = |name: &str, expected: &str| assert_eq!(fqdn(name, hosts), expected, "{name}");
        check("web", "web.example.org");
        check("db", "db");
        check("db.example.net", "db.example.net");
        check("", "");
    }

    #[test]
    fn facts_of_an_image_are_only_what_its_files_say() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let (uid, gid) = crate::host::current_ids();
        let permissions =
            |mode| crate::host::root::Permissions { uid, gid, mode: crate::resource::Mode::from_bits(mode) };
        root.create_directory(&AbsPath::new("/etc").unwrap(), permissions(0o755)).unwrap();
        for (path, content) in [
            ("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n"),
            ("/etc/hostname", "golden\n"),
            ("/etc/machine-id", "uninitialized\n"),
        ] {
            root.replace_file(&AbsPath::new(path).unwrap(), content.as_bytes(), permissions(0o644)).unwrap();
        }
        let facts = gather(&root);
        assert_eq!(
            (facts.os.as_str(), facts.os_version.as_str(), facts.os_family.as_str()),
            ("debian", "12", "debian")
        );
        assert_eq!((facts.hostname.as_str(), facts.machine_id.as_str(), facts.kernel.as_str()), ("golden", "", ""));
        assert!(facts.interfaces.is_empty() && facts.memory_mib == 0);
    }

    #[test]
    fn a_view_names_accounts_essential_packages_and_first_ids() {
        let dir = tempfile::tempdir().unwrap();
        let (host, fakes) = crate::host::fake::host(dir.path()).unwrap();
        fakes.packages.edit(|db| {
            for (name, essential) in [("bash", true), ("less", false)] {
                let entry = crate::host::packages::PackageEntry {
                    version: "1".to_owned(),
                    status: crate::host::packages::PackageStatus::Installed,
                    essential,
                };
                db.packages.insert(name.to_owned(), entry);
            }
        });
        let seen = view(&host).unwrap();
        assert!(seen.users.contains("root") && seen.groups.contains("root"));
        assert_eq!(seen.essential_packages.into_iter().collect::<Vec<_>>(), ["bash"]);
        assert_eq!((seen.uid_min, seen.gid_min), (1000, 1000));
        assert_eq!(login_def("# UID_MIN 1\nUID_MIN\t\t 500\nSYS_UID_MIN 100\n", "UID_MIN"), 500);
        fakes.accounts.fail_reads(true);
        assert_eq!(view(&host), None);
    }

    #[test]
    fn the_running_host_has_facts() {
        let facts = gather(&Root::open(Path::new("/")).unwrap());
        assert!(!facts.kernel.is_empty() && !facts.architecture.is_empty() && !facts.virtualization.is_empty());
        assert!(facts.cpus > 0 && facts.memory_mib > 0, "{facts:?}");
    }
}
