//! Modules of the kernel.

use super::*;
use crate::host::kernel::Module;
use crate::resource::kernel_module::{self, Name, State};

const BLOCKS: &str = "/etc/modprobe.d/60-rekindle-usb_storage.conf";
const LOADS: &str = "/etc/modules-load.d/60-rekindle-usb_storage.conf";

pub(super) fn usb(state: State) -> DesiredState {
    let name = Name::new("usb-storage").unwrap();
    let id = name.as_str().to_owned();
    let desired = kernel_module::Desired { name, state };
    desired_of(resource(Kind::KernelModule, &id, Desired::KernelModule(Box::new(desired))))
}

fn desired_of(resource: Resource) -> DesiredState {
    super::desired(vec![resource])
}

fn loaded(n_references: u32, users: &[&str]) -> Module {
    Module::Loaded { n_references, users: users.iter().map(|user| (*user).to_owned()).collect() }
}

#[test]
fn a_blocked_module_is_unloaded_and_cannot_come_back() {
    let mut world = World::new();
    world.fakes.kernel.put_module("usb_storage", loaded(0, &[]));
    insta::assert_snapshot!(world.plan(&usb(State::Blocked)).to_text(), @"
    update kernel_module[usb_storage]  (drift; policy.toml:3:1)
        state: loaded → blocked
        file: (none) → /etc/modprobe.d/60-rekindle-usb_storage.conf
    1 to change, 0 in sync
    ");
    assert!(world.converge(&usb(State::Blocked)).converged());
    insta::assert_snapshot!(world.read(BLOCKS), @"
    # Written by rekindle for kernel_module[usb_storage]: what is changed here is changed back.
    blacklist usb_storage
    install usb_storage /bin/false
    ");
    assert_eq!(world.fakes.kernel.log(), ["unload usb_storage"]);
    assert!(world.plan(&usb(State::Blocked)).is_empty());
    // And the other way round.
    assert!(world.converge(&usb(State::Loaded)).converged());
    assert!(!world.path(BLOCKS).exists());
    assert!(world.read(LOADS).ends_with("\nusb_storage\n"));
    assert_eq!(world.fakes.kernel.log(), ["unload usb_storage", "load usb_storage"]);
    assert!(world.plan(&usb(State::Loaded)).is_empty());
    // What is no longer declared leaves no file behind.
    assert!(world.converge(&super::desired(vec![])).converged());
    assert!(!world.path(LOADS).exists());
}

#[test]
fn a_module_in_use_is_blocked_for_later_and_its_users_are_named() {
    let mut world = World::new();
    for (module, by) in [(loaded(1, &["uas"]), "uas"), (loaded(3, &[]), "loaded, in use 3 times")] {
        world.fakes.kernel.put_module("usb_storage", module);
        let (error, signature) = error_of(&world.converge(&usb(State::Blocked)), 0);
        assert_eq!(
            error,
            format!("cannot unload `usb_storage`: blocked by {by} (hint: stop what uses it; it is tried again)")
        );
        assert_eq!(signature, "unload: in use");
        assert!(world.path(BLOCKS).exists());
        assert!(world.fakes.kernel.log().is_empty());
    }
}

#[test]
fn what_is_built_in_is_loaded_and_cannot_be_blocked() {
    let mut world = World::new();
    world.fakes.kernel.put_module("usb_storage", Module::Builtin);
    assert!(world.converge(&usb(State::Loaded)).converged());
    let (error, _) = error_of(&world.converge(&usb(State::Blocked)), 0);
    assert!(
        error.starts_with("cannot change the kernel module `usb_storage`: it is built into the kernel (hint: "),
        "{error}"
    );
    world.fakes.kernel.put_module("usb_storage", Module::AliasOf(vec!["other".to_owned()]));
    let (error, _) = error_of(&world.converge(&usb(State::Blocked)), 0);
    assert_eq!(
        error,
        "cannot change the kernel module `usb_storage`: it is an alias of other (hint: name the module itself)"
    );
}

#[test]
fn a_module_that_there_is_not_is_blocked_and_cannot_be_loaded() {
    let mut world = World::new();
    assert!(world.converge(&usb(State::Blocked)).converged());
    assert!(world.plan(&usb(State::Blocked)).is_empty());
    let (error, _) = error_of(&world.converge(&usb(State::Loaded)), 0);
    assert_eq!(error, "cannot change the kernel: modprobe -- usb_storage: exit status 1: it does not work");
}
