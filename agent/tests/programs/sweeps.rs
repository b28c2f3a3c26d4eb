//! `sweep`: what is found in a tree, and what is done about it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::World;

fn put(world: &World, name: &str, mode: u32) {
    world.write(name, "x");
    fs::set_permissions(world.path(name), fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_is_found_is_told_with_who_and_what_and_what_is_allowed_is_not() {
    let Some(world) = World::new() else { return };
    put(&world, "etc/bin/good", 0o4755);
    put(&world, "etc/bin/bad", 0o4755);
    put(&world, "etc/open", 0o666);
    put(&world, "etc/skip/open", 0o666);
    nix::unistd::chown(&world.path("etc/bin/bad"), Some(0.into()), Some(54321.into())).unwrap();
    fs::set_permissions(world.path("etc/bin/bad"), fs::Permissions::from_mode(0o4755)).unwrap();
    world.write("policy/allow", &format!("# what may be so\n{}/etc/bin/good   # because\n\n", world.at()));
    let policy = |action: &str| {
        format!(
            "[sweep.x]\nunder = ['$T/etc', '$T/none']\nmatch = {{ setuid = true, world_writable = true, not_in = 'allow' }}\n\
             except = ['$T/etc/sk*']\naction = '{action}'\n"
        )
    };
    let plan = world.plan(&policy("report"));
    assert_eq!(plan.code, 2, "{plan:?}");
    let expected = format!(
        "failing sweep[x]  (operator; policy.toml:1:8)\n    found: {0}/etc/bin/bad 4755 root:54321 (no package) → (none)\n    \
         found: {0}/etc/open 0666 root:root (no package) → (none)\n0 to change, 0 in sync, 1 failing\n",
        world.at()
    );
    assert_eq!(plan.text, expected);
    let applied = world.apply(&policy("report"));
    assert_eq!(applied.code, 2, "{applied:?}");
    assert!(applied.text.contains("left     sweep[x]: it is only told of"), "{applied:?}");
    let mode = |name: &str| fs::metadata(world.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("etc/bin/bad"), 0o4755);
}

#[test]
fn stripped_bits_are_in_the_history() {
    let Some(world) = World::new() else { return };
    put(&world, "etc/a", 0o6755);
    put(&world, "etc/b", 0o4711);
    let policy = "[sweep.x]\nunder = ['$T/etc']\nmatch = { setuid = true, setgid = true }\naction = 'strip-setuid'\n";
    let plan = world.plan(policy);
    assert!(
        plan.text.contains("update sweep[x]") && plan.text.contains("etc/a 6755 root:root (no package) → 0755"),
        "{plan:?}"
    );
    let applied = world.apply(policy);
    assert_eq!(applied.code, 0, "{applied:?}");
    let mode = |name: &str| fs::metadata(world.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("etc/a"), mode("etc/b")), (0o755, 0o711));
    let history = world.run(&["history", "--json"]);
    assert!(history.text.contains("etc/a 6755 root:root") && history.text.contains("etc/b 4711"), "{history:?}");
    assert_eq!(world.apply(policy).code, 0);
}
