//! Settings of the kernel, now and at the next boot.

use super::*;
use crate::resource::sysctl::{self, Key, Missing, Persist};

const FILE: &str = "/etc/sysctl.d/60-rekindle-net.ipv4.ip_forward.conf";
const KEY: &str = "net/ipv4/ip_forward";

fn a_sysctl(name: &str, value: &str, change: impl FnOnce(&mut sysctl::Desired)) -> Resource {
    let key = Key::new(name).unwrap();
    let name = key.name();
    let mut desired =
        sysctl::Desired { key, value: value.to_owned(), persist: Persist::File, missing: Missing::Refuse };
    change(&mut desired);
    resource(Kind::Sysctl, &name, Desired::Sysctl(Box::new(desired)))
}

pub(super) fn forward() -> Resource {
    a_sysctl("net.ipv4.ip_forward", "0", |_| {})
}

#[test]
fn a_value_is_set_now_and_for_the_next_boot() {
    let mut world = World::new();
    world.fakes.kernel.put_sysctl(KEY, "1");
    let state = desired(vec![forward()]);
    insta::assert_snapshot!(world.plan(&state).to_text(), @"
    update sysctl[net.ipv4.ip_forward]  (drift; policy.toml:3:1)
        value: 1 → 0
        file: (none) → /etc/sysctl.d/60-rekindle-net.ipv4.ip_forward.conf
    1 to change, 0 in sync
    ");
    assert!(world.converge(&state).converged());
    insta::assert_snapshot!(world.read(FILE), @"
    # Written by rekindle for sysctl[net.ipv4.ip_forward]: what is changed here is changed back.
    net.ipv4.ip_forward = 0
    ");
    assert!(world.plan(&state).is_empty());
    world.fakes.kernel.put_sysctl(KEY, "1");
    world.write(FILE, "net.ipv4.ip_forward = 1\n");
    let report = world.converge(&state);
    assert!(report.converged(), "{report:?}");
    let kept = report.resources[0].displaced.as_deref().unwrap();
    assert_eq!(crate::record::kept(world.state.path(), kept).unwrap().unwrap(), b"net.ipv4.ip_forward = 1\n");
    // With several numbers the kernel's tabs are no difference.
    let rmem = a_sysctl("net.ipv4.tcp_rmem", "4096 131072  6291456", |_| {});
    world.fakes.kernel.put_sysctl("net/ipv4/tcp_rmem", "1\t2\t3");
    let state = desired(vec![forward(), rmem]);
    assert!(world.converge(&state).converged());
    assert!(world.plan(&state).is_empty());
}

#[test]
fn what_is_read_later_is_named() {
    let mut world = World::new();
    world.fakes.kernel.put_sysctl(KEY, "1");
    world.write("/usr/lib/sysctl.d/99-router.conf", "# Routers forward.\nnet.ipv4.ip_forward = 1\n");
    let state = desired(vec![forward()]);
    insta::assert_snapshot!(world.plan(&state).to_text(), @"
    update sysctl[net.ipv4.ip_forward]  (drift; policy.toml:3:1)
        value: 1 → 0
        set by: /usr/lib/sysctl.d/99-router.conf line 2 → (none)
        file: (none) → /etc/sysctl.d/60-rekindle-net.ipv4.ip_forward.conf
        at boot: 1 by /usr/lib/sysctl.d/99-router.conf line 2, which is read later → 0
    1 to change, 0 in sync
    ");
    let (error, signature) = error_of(&world.converge(&state), 0);
    insta::assert_snapshot!(error, @"`net.ipv4.ip_forward` will be 1 at the next boot: /usr/lib/sysctl.d/99-router.conf line 2 is read later (hint: remove the line, or declare that file, or an empty one of its name in /etc/sysctl.d)");
    assert_eq!(signature, "sysctl: overridden by a later file");
    // All that could be done is done.
    assert_eq!(world.fakes.kernel.log(), ["set net/ipv4/ip_forward 0"]);
    // An empty file of its name hides it, in the same run.
    let hide = a_file("/etc/sysctl.d/99-router.conf", "");
    assert!(world.converge(&desired(vec![hide, forward()])).converged());
}

#[test]
fn a_key_that_the_kernel_does_not_have_is_an_error_unless_ignored() {
    let mut world = World::new();
    let (error, _) = error_of(&world.converge(&desired(vec![forward()])), 0);
    insta::assert_snapshot!(error, @"the kernel has no `net.ipv4.ip_forward` (hint: a module may bring it: declare that as kernel_module and require it; or write `ignore_missing = true`)");
    let ignored = a_sysctl("net.ipv4.ip_forward", "0", |desired| desired.missing = Missing::Ignore);
    let state = desired(vec![ignored]);
    assert!(world.converge(&state).converged());
    assert!(world.read(FILE).ends_with("\n-net.ipv4.ip_forward = 0\n"));
    assert!(world.plan(&state).is_empty());
}

#[test]
fn a_refusal_is_a_failure() {
    let mut world = World::new();
    world.fakes.kernel.put_sysctl(KEY, "1");
    world.fakes.kernel.refuse_sysctl(KEY);
    let (error, _) = error_of(&world.converge(&desired(vec![forward()])), 0);
    assert_eq!(
        error,
        "cannot change the kernel: cannot write `/proc/sys/net/ipv4/ip_forward`: Invalid argument (os error 22)"
    );
}

#[test]
fn without_persist_there_is_no_file() {
    let mut world = World::new();
    world.fakes.kernel.put_sysctl(KEY, "1");
    assert!(!world.converge(&desired(vec![forward()])).converged() || world.path(FILE).exists());
    let state = desired(vec![a_sysctl("net.ipv4.ip_forward", "0", |desired| desired.persist = Persist::Not)]);
    assert!(world.converge(&state).converged());
    assert!(!world.path(FILE).exists());
}

#[test]
fn the_file_of_a_key_that_left_the_policy_goes() {
    let mut world = World::new();
    world.fakes.kernel.put_sysctl(KEY, "1");
    let vlan = a_sysctl("net/ipv4/conf/eth0.100/rp_filter", "1", |desired| desired.missing = Missing::Ignore);
    assert!(world.converge(&desired(vec![forward(), vlan.clone()])).converged());
    let of_vlan = "/etc/sysctl.d/60-rekindle-net.ipv4.conf.eth0:100.rp_filter.conf";
    assert!(world.read(of_vlan).ends_with("\n-net/ipv4/conf/eth0.100/rp_filter = 1\n"));
    world.write("/etc/sysctl.d/60-mine.conf", "");
    let left = desired(vec![vlan]);
    // Whoever looks first sees what will go.
    insta::assert_snapshot!(world.plan(&left).to_text(), @"
    remove sysctl[net.ipv4.ip_forward]  (drift; declared nowhere)
        file: /etc/sysctl.d/60-rekindle-net.ipv4.ip_forward.conf (no longer declared) → (none)
    1 to change, 1 in sync
    ");
    // Nothing goes in a run that only looks, or only at a part.
    let mut request = everything(&left);
    request.mode = Mode::Noop;
    drop(world.converge_with(&request));
    request.mode = Mode::Enforce;
    request.scope = Scope::Only([ResourceId::new(Kind::Sysctl, "net.ipv4.conf.eth0/100.rp_filter")].into());
    drop(world.converge_with(&request));
    assert!(world.path(FILE).exists());
    request.scope = Scope::Everything;
    let paused = |id: &ResourceId| (id.name.contains("ip_forward")).then(|| "paused".to_owned());
    request.hold = &paused;
    let plan = observe_and_plan(&world.host, Memory::Record(&world.record), &request);
    insta::assert_snapshot!(plan.to_text(), @"
    remove sysctl[net.ipv4.ip_forward]  (drift; declared nowhere)
        file: /etc/sysctl.d/60-rekindle-net.ipv4.ip_forward.conf (no longer declared) → (none)
        left as it is: paused
    0 to change, 1 in sync, 1 left alone
    ");
    let report = world.converge_with(&request);
    assert!(world.path(FILE).exists());
    let left_alone = Outcome::Reported {
        changes: plan.steps[0].changes.clone(),
        action: resource::Action::Remove,
        why: "paused".into(),
    };
    assert_eq!(report.resources[0].outcome, left_alone);
    request.hold = &hold_nothing;
    let report = world.converge_with(&request);
    assert!(!world.path(FILE).exists());
    // A run reports what the plan named, and nothing else.
    assert_eq!(
        report.changed().map(|entry| entry.resource.to_string()).collect::<Vec<_>>(),
        ["sysctl[net.ipv4.ip_forward]"]
    );
    let backup = report.resources[0].displaced.clone().unwrap();
    assert!(crate::record::kept(world.state.path(), &backup).unwrap().unwrap().ends_with(b"net.ipv4.ip_forward = 0\n"));
    assert!(world.plan(&left).is_empty());
    assert!(world.path(of_vlan).exists() && world.path("/etc/sysctl.d/60-mine.conf").exists());
    let filter = crate::record::HistoryFilter { limit: 1, ..Default::default() };
    let entry = world.record.history(&filter).unwrap().remove(0);
    assert_eq!(entry.resource.to_string(), "sysctl[net.ipv4.ip_forward]");
}

#[test]
fn a_kill_at_any_step_is_healed_by_the_next_run() {
    // The file is there and the value is not, as after a kill between the two.
    let mut world = World::new();
    world.fakes.kernel.put_sysctl(KEY, "1");
    let state = desired(vec![forward()]);
    assert!(world.converge(&state).converged());
    world.fakes.kernel.put_sysctl(KEY, "1");
    assert!(world.converge(&state).converged());
    std::fs::remove_file(world.path(FILE)).unwrap();
    assert!(world.converge(&state).converged());
    assert!(world.plan(&state).is_empty());
}
