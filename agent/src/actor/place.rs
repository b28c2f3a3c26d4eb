//! From the path of a control group to what systemd, or a container engine, calls it. Pure.
//!
//! The first component of the path that is not a slice is the unit. Paths may begin with something else, where systemd itself
//! runs in a control group of a container, and end in something else, where a unit makes control groups of its own.

/// What a control group is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The unit of the system's service manager.
    pub unit: Option<String>,
    /// The unit of a user's service manager.
    pub user_unit: Option<String>,
    /// The login session.
    pub session: Option<String>,
    /// The container or virtual machine.
    pub container: Option<String>,
    /// The user whose slice it is in.
    pub uid: Option<u32>,
}

/// Reads the path of a control group, as it stands in `/proc/PID/cgroup`.
pub fn of_cgroup(path: &str) -> Place {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).map(unescape_cgroup).collect();
    let mut place = Place { container: names.iter().rev().find_map(|name| container(name)), ..Place::default() };
    // A plain identifier says what it is only through the name before it: `docker/ID`, `kubepods/…/podUID/ID`.
    if place.container.is_none() {
        let mut engine = None;
        for name in &names {
            match *name {
                "docker" | "lxc" | "actions_job" => engine = Some(*name),
                "kubepods" => engine = Some("kubernetes"),
                id if is_identifier(id) => {
                    place.container = engine.map(|engine| format!("{engine} {}", short(id)));
                }
                _ => {}
            }
        }
    }
    let mut rest = names.into_iter();
    place.unit = rest
        .by_ref()
        .inspect(|name| place.uid = place.uid.or_else(|| user_slice(name)))
        .find(|name| is_unit(name))
        .map(str::to_owned);
    let Some(unit) = &place.unit else { return place };
    place.session = unit.strip_prefix("session-").and_then(|rest| rest.strip_suffix(".scope")).map(str::to_owned);
    if let Some(uid) = unit.strip_prefix("user@").and_then(|rest| rest.strip_suffix(".service")) {
        place.uid = uid.parse().ok().or(place.uid);
        place.user_unit = rest.find(|name| is_unit(name)).map(str::to_owned);
    }
    place
}

/// The suffixes of units that have processes. A slice only groups them.
fn is_unit(name: &str) -> bool {
    let suffixes = [".service", ".scope", ".socket", ".mount", ".swap"];
    suffixes.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(|stem| !stem.is_empty()))
}

/// `user-1000.slice` belongs to user 1000.
fn user_slice(name: &str) -> Option<u32> {
    name.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok()
}

/// systemd puts `_` before a name that the kernel would take for a file of its own.
fn unescape_cgroup(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

/// The container or virtual machine that a single name stands for.
fn container(name: &str) -> Option<String> {
    if let Some(machine) = name.strip_prefix("lxc.payload.") {
        return Some(format!("lxc {machine}"));
    }
    if let Some(machine) = name.strip_prefix("systemd-nspawn@").and_then(|rest| rest.strip_suffix(".service")) {
        return Some(unescape_unit(machine));
    }
    let stem = name.strip_suffix(".scope")?;
    if let Some(machine) = stem.strip_prefix("machine-") {
        return Some(unescape_unit(machine));
    }
    let (engine, id) = stem.rsplit_once('-')?;
    // `libpod-conmon-ID` watches the container from outside it.
    let engine = match engine {
        "docker" => "docker",
        "libpod" => "podman",
        "crio" => "cri-o",
        "cri-containerd" => "containerd",
        _ => return None,
    };
    is_identifier(id).then(|| format!("{engine} {}", short(id)))
}

/// The engines name containers by 64 hexadecimal digits.
fn is_identifier(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What the engines show of an identifier.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Undoes the `\x2d` of systemd-escape(1). A `-` stays: in the name of a machine it never stands for a slash.
fn unescape_unit(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = after
            .strip_prefix(b"x")
            .and_then(|hex| hex.split_at_checked(2))
            .and_then(|(hex, after)| Some((u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?, after)));
        match (first, escaped) {
            (b'\\', Some((byte, after))) => {
                bytes.push(byte);
                rest = after;
            }
            (_, _) => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    super::command::escaped(&String::from_utf8_lossy(&bytes), super::command::MAX_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2a91c04b7d3f2a91c04b7d3f2a91c04b7d3f2a91c04b7d3f2a91c04b7d3f2a";

    #[track_caller]
    fn check(path: &str, unit: Option<&str>, user_unit: Option<&str>, session: Option<&str>, uid: Option<u32>) {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let expected =
            Place { unit: owned(unit), user_unit: owned(user_unit), session: owned(session), container: None, uid };
        assert_eq!(of_cgroup(path), expected, "{path}");
    }

    #[test]
    fn units_and_sessions_are_read_from_the_path() {
        check("/", None, None, None, None);
        check("", None, None, None, None);
        check("/init.scope", Some("init.scope"), None, None, None);
        check("/system.slice/puppet.service", Some("puppet.service"), None, None, None);
        check("/system.slice/system-getty.slice/getty@tty1.service", Some("getty@tty1.service"), None, None, None);
        check("/system.slice/nginx.service/workers/1", Some("nginx.service"), None, None, None);
        check("/user.slice/user-1000.slice/session-3.scope", Some("session-3.scope"), None, Some("3"), Some(1000));
        check("/user.slice/user-0.slice/session-c1.scope", Some("session-c1.scope"), None, Some("c1"), Some(0));
        let manager = "/user.slice/user-1000.slice/user@1000.service";
        check(manager, Some("user@1000.service"), None, None, Some(1000));
        for (rest, unit) in [
            ("/init.scope", "init.scope"),
            ("/app.slice/sync.service", "sync.service"),
            ("/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1.scope", "vte-spawn-1.scope"),
        ] {
            check(&format!("{manager}{rest}"), Some("user@1000.service"), Some(unit), None, Some(1000));
        }
        // Where systemd runs beneath somebody else's group, and where a name had to be escaped.
        check("/lxc.monitor/x/system.slice/_cpu.service", Some("cpu.service"), None, None, None);
        check(r"/system.slice/srv-a\x2db.mount", Some(r"srv-a\x2db.mount"), None, None, None);
        check("/rekindle.slice", None, None, None, None);
        check("/.service/x", None, None, None, None);
    }

    #[test]
    fn containers_are_read_from_the_path() {
        let check = |path: &str, expected: Option<&str>| {
            assert_eq!(of_cgroup(path).container.as_deref(), expected, "{path}");
        };
        check("/system.slice/docker.service", None);
        check(&format!("/system.slice/docker-{ID}.scope"), Some("docker 3f2a91c04b7d"));
        check(&format!("/docker/{ID}"), Some("docker 3f2a91c04b7d"));
        check(&format!("/machine.slice/libpod-{ID}.scope/container"), Some("podman 3f2a91c04b7d"));
        check(&format!("/machine.slice/libpod-conmon-{ID}.scope"), None);
        check(
            &format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{ID}.scope"
            ),
            Some("containerd 3f2a91c04b7d"),
        );
        check(&format!("/kubepods/besteffort/pod1/{ID}"), Some("kubernetes 3f2a91c04b7d"));
        check(r"/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt", Some("qemu-1-web"));
        check("/machine.slice/systemd-nspawn@web.service/payload/system.slice/a.service", Some("web"));
        check("/lxc.payload.web/system.slice/a.service", Some("lxc web"));
        check(&format!("/{ID}"), None);
        check("/system.slice/docker-short.scope", None);
    }

    #[test]
    fn escapes_of_systemd_are_undone() {
        let check = |text: &str, expected: &str| assert_eq!(unescape_unit(text), expected, "{text}");
        check(r"a\x2db", "a-b");
        check(r"\xc3\xa9", "é");
        check(r"a\x2", r"a\x2");
        check(r"a\xzz\", r"a\xzz\");
        check(r"a\x0ab", r"a\nb");
    }
}
