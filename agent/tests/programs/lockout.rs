//! The real binary on a tree with real account databases: what would lock everybody out is refused, the rest is done.

use std::fs;

use crate::support::World;

/// A tree of which `ops` is the only one who can become root.
fn host(world: &World) -> String {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBk6OXwUt8V2Xb5Hk7KzV0l2ZC1qN6nQ0kq2VnTtT1xE ops@example.org\n";
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nops:x:1000:1000::/home/ops:/bin/bash\n"),
        ("etc/shadow", "root:*:19000:0:99999:7:::\nops:!:19000:0:99999:7:::\n"),
        ("etc/group", "root:x:0:\nops:x:1000:\n"),
        ("etc/sudoers", "@includedir /etc/sudoers.d\n"),
        ("etc/sudoers.d/90-ops", "ops ALL=(ALL) NOPASSWD: ALL\n"),
        ("etc/ssh/sshd_config", "PermitRootLogin no\n"),
        ("home/ops/.ssh/authorized_keys", key),
    ] {
        world.write(&format!("image/{path}"), text);
    }
    for directory in ["home/ops", "home/ops/.ssh", "home/ops/.ssh/authorized_keys"] {
        std::os::unix::fs::chown(world.path("image").join(directory), Some(1000), Some(1000)).unwrap();
    }
    fs::create_dir_all(world.path("image/var/lib/rekindle")).unwrap();
    world.path("image").to_str().unwrap().to_owned()
}

const POLICY: &str = "[file.'/etc/sudoers.d/90-ops']\nstate = 'absent'\n[file.'/etc/motd']\ncontent = 'hello'\n";

#[test]
fn a_plan_that_locks_everybody_out_is_refused_and_the_rest_is_done() {
    let Some(world) = World::new() else { return };
    let root = host(&world);
    world.policy(POLICY);
    let policy = world.path("policy").to_str().unwrap().to_owned();
    let planned = world.run(&["plan", "--policy", &policy, "--root", &root]);
    assert_eq!(planned.code, 2, "{planned:?}");
    assert!(planned.text.contains("left as it is: refused, because nobody"), "{planned:?}");
    assert!(planned.text.contains("1 to change"), "{planned:?}");
    let applied = world.run(&["apply", "--policy", &policy, "--root", &root]);
    assert_eq!(applied.code, 2, "{applied:?}");
    assert!(applied.text.contains("now `ops` can"), "{applied:?}");
    assert_eq!(world.read("image/etc/motd"), "hello");
    assert!(world.exists("image/etc/sudoers.d/90-ops"));
}

#[test]
fn unless_the_policy_means_it() {
    let Some(world) = World::new() else { return };
    let root = host(&world);
    world.policy(&format!("[policy]\nlock_out = 'allow'\n{POLICY}"));
    let policy = world.path("policy").to_str().unwrap().to_owned();
    let applied = world.run(&["apply", "--policy", &policy, "--root", &root]);
    assert_eq!(applied.code, 0, "{applied:?}");
    assert!(!world.exists("image/etc/sudoers.d/90-ops"));
}
