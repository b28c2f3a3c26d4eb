//! A host that was captured as the README says, and is planned for on another.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::support::World;

/// The command that the README gives, word for word.
fn command() -> &'static str {
    let readme = include_str!("../../../README.md");
    let commands = readme.split('`').filter(|code| code.starts_with("ssh HOST sudo tar "));
    let commands: Vec<&str> = commands.collect();
    let [command] = commands[..] else { panic!("the README has one such command: {commands:?}") };
    command
}

/// A world with `host.tar`, made by that command on a host whose `/etc` and package database are those in `tree`. Only how it gets
/// to the host is another: into a mount namespace.
fn captured() -> Option<World> {
    let world = World::new()?;
    let write = |name: &str, text: &str| {
        world.write(&format!("tree/{name}"), text);
        fs::set_permissions(world.path(&format!("tree/{name}")), fs::Permissions::from_mode(0o644)).unwrap();
    };
    write("etc/motd", "hello\n");
    write("etc/passwd", "root:x:0:0::/root:/bin/sh\nops:x:1001:1001::/home/ops:/bin/sh\n");
    write("etc/shadow", "root:*:::::::\nops:!:::::::\n");
    write("etc/group", "root:x:0:\nops:x:1001:\n");
    write("etc/systemd/system/app.service", "[Service]\nExecStart=/bin/app\n[Install]\nWantedBy=multi-user.target\n");
    let units = world.path("tree/etc/systemd/system");
    fs::create_dir(units.join("multi-user.target.wants")).unwrap();
    symlink("/usr/lib/systemd/system/ssh.service", units.join("multi-user.target.wants/ssh.service")).unwrap();
    symlink("/dev/null", units.join("cups.service")).unwrap();
    symlink("../usr/lib/os-release", world.path("tree/etc/os-release")).unwrap();
    write("os-release", "ID=somebian\nID_LIKE=\"ubuntu debian\"\n");
    write(
        "status",
        "Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.21.22\n\n\
         Package: nginx\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.22.1-9\n\n\
         Package: telnetd\nStatus: install ok installed\nArchitecture: amd64\nVersion: 0.17\n",
    );
    let script = format!(
        "set -e\ncd {0}\nssh() {{ shift 2; unshare -m sh -ec '\n\
         mount --bind {0}/tree/etc /etc\nmount --bind {0}/tree/os-release /usr/lib/os-release\n\
         mount --bind {0}/tree/status /var/lib/dpkg/status\nexec \"$@\"' - \"$@\"; }}\n{1}\n",
        world.at(),
        command()
    );
    let made = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    Some(world)
}

fn plan(world: &World, snapshot: &str) -> crate::support::Said {
    let (policy, host) = (world.path("policy"), world.path(snapshot));
    world.run(&["plan", "--policy", policy.to_str().unwrap(), "--against", host.to_str().unwrap()])
}

#[test]
fn the_command_of_the_readme_captures_what_a_plan_needs() {
    let Some(world) = captured() else { return };
    world.policy(
        "[file.'/etc/motd']\ncontent = \"hello\\n\"\n\
         [user.ops]\nshell = '/bin/sh'\npassword = { locked = true }\n\
         [package]\nnginx = {}\ntelnetd = { state = 'absent' }\n\
         [package.curl]\nwhen = \"facts.os_family == 'debian'\"\n\
         [service]\nssh = { enabled = true, state = 'running' }\napp = { enabled = true }\ncups = { state = 'masked' }\n\
         nginx = { enabled = true }\n",
    );
    let plan = plan(&world, "host.tar");
    assert_eq!(plan.code, 2, "{plan:?}");
    for expected in [
        "package[telnetd]",
        "package[curl]",
        "service[app]",
        "enabled: disabled → enabled",
        "whether `nginx.service` is enabled cannot be told: nothing in `/etc/systemd/system` enables it",
        "a capture does not tell what runs",
    ] {
        assert!(plan.text.contains(expected), "{expected}: {}", plan.text);
    }
    // What is in order is not named, and nothing is unknown but what cannot be told.
    for unexpected in ["file[/etc/motd]", "user[ops]", "package[nginx]", "service[ssh]", "service[cups]", "not found"] {
        assert!(!plan.text.contains(unexpected), "{unexpected}: {}", plan.text);
    }
    assert_eq!(plan.text.matches("unknown ").count(), 1, "{}", plan.text);
}

#[test]
fn a_compressed_capture_is_said_to_be_one() {
    let Some(world) = captured() else { return };
    world.policy("[file.'/etc/motd']\ncontent = \"hello\\n\"\n");
    let done = Command::new("gzip").args(["-k", "-S", ".gz", world.path("host.tar").to_str().unwrap()]).status();
    assert!(done.unwrap().success());
    let plan = plan(&world, "host.tar.gz");
    assert_eq!(plan.code, 1, "{plan:?}");
    assert!(plan.text.contains("host.tar.gz` is compressed with gzip") && plan.text.contains("gzip -dc "), "{plan:?}");
}
