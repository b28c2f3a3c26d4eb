//! Somebody who is not root looks at the host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::{Said, World, said};

const NOBODY: u32 = 65534;

/// A world that anybody may read, but for what only root may.
fn world() -> Option<World> {
    let world = World::new()?;
    for name in ["policy", "etc", "bin"] {
        fs::set_permissions(world.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(world.path("agent.toml"), fs::Permissions::from_mode(0o644)).unwrap();
    // Where the tests are built need not be a place that others may enter.
    let (built, program) = (env!("CARGO_BIN_EXE_rekindle"), world.path("bin/rekindle"));
    fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop)).unwrap();
    Some(world)
}

fn run(world: &World, toml: &str, args: &[&str]) -> Said {
    world.policy(toml);
    fs::set_permissions(world.path("policy/policy.toml"), fs::Permissions::from_mode(0o644)).unwrap();
    let (config, policy) = (world.path("agent.toml"), world.path("policy"));
    let mut command = Command::new(world.path("bin/rekindle"));
    command.arg("--config").arg(config).args(args).arg("--policy").arg(policy);
    command.env("NO_COLOR", "1").current_dir("/").uid(NOBODY).gid(NOBODY);
    said(&command.output().unwrap())
}

#[test]
fn a_plan_shows_what_root_would_do_and_what_only_root_may_read_as_unknown() {
    let Some(world) = world() else { return };
    for (name, mode) in [("etc/open", 0o644), ("etc/closed", 0o600)] {
        world.write(name, "good\n");
        fs::set_permissions(world.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let policy = "[file.'$T/etc/open']\ncontent = \"good\\n\"\n\
         [file.'$T/etc/closed']\ncontent = \"good\\n\"\nmode = '0600'\n\
         [directory.'$T/etc']\n\
         [group.daemon]\ngid = 1\nsystem = true\n\
         [user.daemon]\nuid = 1\nsystem = true\n\
         [user.nobody]\nsystem = true\npassword = { locked = true }\n\
         [package]\ndpkg = {}\n\
         [check.a]\nrun = ['/bin/true']\n";
    let plan = run(&world, policy, &["plan"]);
    assert_eq!(plan.code, 3, "{plan:?}");
    assert!(plan.text.contains("run as root, this tells more"), "{plan:?}");
    for unexpected in ["owner", "sandbox", "etc/open]", "daemon", "dpkg"] {
        assert!(!plan.text.contains(unexpected), "{unexpected}: {plan:?}");
    }
    for expected in ["etc/closed`", "`/etc/shadow`: Permission denied", "only root runs what a policy names"] {
        assert!(plan.text.contains(expected), "{expected}: {plan:?}");
    }
    assert!(plan.text.contains("0 to change, 5 in sync, 3 unknown"), "{plan:?}");
    fs::write(world.path("etc/open"), "evil\n").unwrap();
    let plan = run(&world, policy, &["plan"]);
    assert_eq!(plan.code, 2, "{plan:?}");
    assert!(plan.text.contains("content: perhaps a secret → not shown") && !plan.text.contains("owner"), "{plan:?}");
    let applied = run(&world, policy, &["apply"]);
    assert_ne!(applied.code, 0, "{applied:?}");
    assert_eq!(world.read("etc/open"), "evil\n");
}

#[test]
fn a_tree_of_ones_own_is_ones_own() {
    let Some(world) = world() else { return };
    fs::create_dir_all(world.path("tree/etc")).unwrap();
    for name in ["tree", "tree/etc", "tree/etc/motd"] {
        if name.ends_with("motd") {
            world.write(name, "good\n");
        }
        fs::set_permissions(
            world.path(name),
            fs::Permissions::from_mode(if name.ends_with("motd") { 0o644 } else { 0o755 }),
        )
        .unwrap();
        chown(world.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let tree = world.path("tree");
    let plan = run(&world, "[file.'/etc/motd']\ncontent = \"good\\n\"\n", &["plan", "--root", tree.to_str().unwrap()]);
    assert_eq!(plan.code, 0, "{plan:?}");
    assert!(!plan.text.contains("run as root"), "{plan:?}");
}
