//! Settings, modules and mounts of the kernel that runs. Needs root: each test has a mount and a network namespace of its own
//! thread, with an /etc of its own, so that the host keeps what it has.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]

use rekindle::host::Host;
use rekindle::resource::mount::{self, Spec, State};
use rekindle::resource::sysctl::{self, Key, Missing, Persist};
use rekindle::resource::{self, AbsPath, Desired, Snapshot, Verdict};

/// Runs a test where it may have namespaces, and says so where it may not.
fn in_namespaces(test: fn(&mut Host)) {
    use nix::sched::CloneFlags;
    let is_root = nix::unistd::geteuid().is_root();
    let may = is_root && nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).is_ok();
    assert!(may || std::env::var_os("CI").is_none(), "this needs root and namespaces");
    if !may {
        eprintln!("not run: it needs root and namespaces");
        return;
    }
    // Without /run there is no service manager that would run programs outside the namespaces.
    shell(
        "mount --make-rprivate / && mount -t tmpfs none /mnt && mkdir /mnt/etc /mnt/data && cp -a /etc/. /mnt/etc \
         && mount --bind /mnt/etc /etc && mount -t tmpfs none /run && : > /etc/fstab",
    );
    test(&mut Host::live().unwrap());
}

#[expect(clippy::disallowed_methods, reason = "the test plays the administrator")]
fn shell(script: &str) {
    let status = std::process::Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}");
}

fn verdict(host: &Host, desired: &Desired) -> Verdict {
    resource::diff(desired, &resource::observe(host, &mut Snapshot::new(), desired))
}

#[track_caller]
fn put_in_sync(host: &mut Host, desired: &Desired) {
    let mut snapshot = Snapshot::new();
    let sighting = resource::observe(host, &mut snapshot, desired);
    assert!(
        matches!(resource::diff(desired, &sighting), Verdict::Drift(_)),
        "{:?}",
        resource::diff(desired, &sighting)
    );
    resource::apply(host, &mut snapshot, desired, &sighting).unwrap_or_else(|e| panic!("{}", e.chain()));
    assert_eq!(verdict(host, desired), Verdict::InSync);
}

#[test]
fn a_setting_of_the_kernel_is_set_and_found_again() {
    in_namespaces(|host| {
        let sysctl = |name: &str, value: &str| {
            let (key, value) = (Key::new(name).unwrap(), value.to_owned());
            Desired::Sysctl(Box::new(sysctl::Desired { key, value, persist: Persist::File, missing: Missing::Refuse }))
        };
        let forward = sysctl("net.ipv4.ip_forward", "1");
        put_in_sync(host, &forward);
        shell("test $(cat /proc/sys/net/ipv4/ip_forward) = 1; echo 0 > /proc/sys/net/ipv4/ip_forward");
        put_in_sync(host, &forward);
        // Several numbers, which the kernel prints with tabs.
        put_in_sync(host, &sysctl("net.ipv4.ip_local_port_range", "30000 40000"));
        shell(
            "grep -q '^net.ipv4.ip_local_port_range = 30000 40000$' /etc/sysctl.d/60-rekindle-net.ipv4.ip_local_port_range.conf",
        );
        let missing = sysctl("net.bridge.no-such-key", "1");
        let mut snapshot = Snapshot::new();
        let sighting = resource::observe(host, &mut snapshot, &missing);
        let error = resource::apply(host, &mut snapshot, &missing, &sighting).unwrap_err();
        assert_eq!(error.signature(), "sysctl: no such key");
    });
}

fn tmpfs(path: &str, options: &[&str]) -> Desired {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    let state = State::Mounted(Spec { options, source: Some("tmpfs".to_owned()), fstype: Some("tmpfs".to_owned()) });
    Desired::Mount(Box::new(mount::Desired { path: AbsPath::new(path).unwrap(), state }))
}

#[test]
fn something_is_mounted_remounted_and_unmounted() {
    in_namespaces(|host| {
        let path = "/mnt/data/a b";
        put_in_sync(host, &tmpfs(path, &["nosuid", "size=1m"]));
        shell("grep -q ' /mnt/data/a.040b rw,nosuid,relatime .* rw,size=1024k' /proc/self/mountinfo");
        put_in_sync(host, &tmpfs(path, &["nodev", "noexec", "size=2m"]));
        shell("grep -q ' /mnt/data/a.040b rw,nosuid,nodev,noexec,relatime .* rw,size=2048k' /proc/self/mountinfo");
        // Somebody's remount loses one.
        shell("mount -o remount,bind,dev,nosuid,noexec '/mnt/data/a b'");
        put_in_sync(host, &tmpfs(path, &["nodev"]));
        put_in_sync(host, &tmpfs(path, &["ro"]));
        shell("! touch '/mnt/data/a b/x' 2>/dev/null");
        put_in_sync(host, &tmpfs(path, &["rw"]));
        let gone = |state| Desired::Mount(Box::new(mount::Desired { path: AbsPath::new(path).unwrap(), state }));
        let open = std::fs::File::open(path).unwrap();
        let mut snapshot = Snapshot::new();
        let absent = gone(State::Absent);
        let sighting = resource::observe(host, &mut snapshot, &absent);
        let error = resource::apply(host, &mut snapshot, &absent, &sighting).unwrap_err();
        assert!(error.chain().contains(&format!("blocked by {} (", std::process::id())), "{}", error.chain());
        drop(open);
        put_in_sync(host, &absent);
        shell("! grep -q data /proc/self/mountinfo && ! grep -q data /etc/fstab");
    });
}
