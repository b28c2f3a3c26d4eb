//! Whole runs: order, blocking, scope, what is left alone, and what happens when the journal fails.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::*;
use crate::host::packages::{PackageEntry, PackageStatus};

fn request<'a>(desired: &'a DesiredState, scope: &[&str]) -> Request<'a> {
    let scope: BTreeSet<ResourceId> = scope.iter().map(|id| id.parse().unwrap()).collect();
    let scope = if scope.is_empty() { Scope::Everything } else { Scope::Only(scope) };
    Request { scope, ..everything(desired) }
}

#[test]
fn a_run_in_sync_writes_nothing() {
    let mut world = World::new();
    let desired = desired(vec![a_file("/f", "x"), a_directory("/d")]);
    let first = world.converge(&desired);
    assert!(first.converged() && first.run > 0 && first.full);
    let before = (world.n_history(), tree(world.root.path()));
    world.record.refuse_writes();
    let second = world.converge(&desired);
    assert_eq!(outcomes(&second), ["unchanged file[/f]", "unchanged directory[/d]"]);
    assert_eq!((second.run, world.record.take_trouble()), (0, None));
    assert_eq!((world.n_history(), tree(world.root.path())), before);
}

#[test]
fn what_depends_on_a_failure_is_skipped_and_names_it() {
    let mut world = World::new();
    world.write("/bad/inside", "");
    let desired = desired(vec![
        no_directory("/bad"),
        a_file("/b", "x").requires(Kind::Directory, "/bad"),
        a_file("/c", "x").requires(Kind::File, "/b"),
        a_file("/free", "x"),
    ]);
    let report = world.converge(&desired);
    assert_eq!(
        outcomes(&report),
        [
            "failed directory[/bad]",
            "skipped by directory[/bad]: file[/b]",
            "skipped by file[/b]: file[/c]",
            "changed file[/free]"
        ]
    );
    assert!(!report.converged());
}

#[test]
fn signatures_name_no_host() {
    let mut world = World::new();
    world.fakes.packages.fail_writes(true);
    let report = world.converge(&desired(vec![a_package("nginx")]));
    let (error, signature) = error_of(&report, 0);
    assert_eq!(signature, "package manager: exit status 100");
    assert!(error.starts_with("cannot change the packages: ") && error.ends_with("made to fail"), "{error}");
}

#[test]
fn what_policy_leaves_alone_is_reported_and_blocks_nothing() {
    let resources = || {
        desired(vec![
            a_file("/a", "x").on_drift(OnDrift::Report),
            a_file("/b", "x").on_drift(OnDrift::Reimage),
            a_file("/c", "x").requires(Kind::File, "/a"),
        ])
    };
    let mut world = World::new();
    let desired = resources();
    let report = world.converge(&desired);
    assert_eq!(outcomes(&report), ["reported file[/a]", "reported file[/b]", "changed file[/c]"]);
    let n_history = world.n_history();
    assert_eq!(outcomes(&world.converge(&desired))[0], "reported file[/a]");
    assert_eq!(world.n_history(), n_history, "a standing drift is recorded once");
    for cause in [Cause::NewRevision, Cause::Operator] {
        let report = World::new().converge_with(&Request { cause, ..request(&desired, &[]) });
        assert!(report.converged(), "{report:?}");
    }
}

#[test]
fn what_is_held_is_reported() {
    let mut world = World::new();
    let desired = desired(vec![a_file("/a", "x"), a_file("/b", "x")]);
    let hold = |id: &ResourceId| (&*id.name == "/a").then(|| "paused until 14:00 by ops".to_owned());
    let report = world.converge_with(&Request { hold: &hold, ..request(&desired, &[]) });
    assert_eq!(outcomes(&report), ["reported file[/a]", "changed file[/b]"]);
    assert!(matches!(&report.resources[0].outcome, Outcome::Reported { why, .. } if why.starts_with("paused")));
}

#[test]
fn a_scope_brings_what_it_requires_only_when_needed() {
    let mut world = World::new();
    let resources =
        || vec![a_directory("/d"), a_file("/d/f", "x").requires(Kind::Directory, "/d"), a_file("/other", "x")];
    let desired = desired(resources());
    let report = world.converge_with(&request(&desired, &["file[/d/f]"]));
    assert_eq!(outcomes(&report), ["changed directory[/d]", "changed file[/d/f]"]);
    assert!(!report.full);
    let report = world.converge_with(&request(&desired, &["file[/d/f]"]));
    assert_eq!(outcomes(&report), ["unchanged file[/d/f]"]);
    let report = world.converge_with(&request(&desired, &["file[/not/declared]"]));
    assert_eq!(outcomes(&report), Vec::<String>::new());
}

#[test]
fn a_stop_ends_the_run_after_the_step_in_hand() {
    let mut world = World::new();
    let desired = desired(vec![a_file("/a", "x"), a_file("/b", "x")]);
    world.stop.store(true, Ordering::SeqCst);
    let report = world.converge(&desired);
    assert_eq!((outcomes(&report), report.interrupted), (Vec::<String>::new(), true));
    world.reopen();
    assert!(world.converge(&desired).converged());
}

#[test]
fn packages_change_together() {
    let mut world = World::new();
    for name in ["a", "b"] {
        world.fakes.packages.add_available(name, "1.0");
    }
    let installed = PackageEntry { version: "1".into(), status: PackageStatus::Installed, essential: false };
    world.fakes.packages.edit(|db| {
        db.packages.insert("old".to_owned(), installed.clone());
        db.packages.insert("half".to_owned(), PackageEntry { status: PackageStatus::Broken, ..installed.clone() });
        db.packages.insert("libc6".to_owned(), PackageEntry { essential: true, ..installed.clone() });
    });
    let desired = desired(vec![
        a_package("a"),
        a_file("/between", "x").requires(Kind::Package, "a"),
        a_package("b").requires(Kind::Package, "a"),
        a_package("late").requires(Kind::File, "/after"),
        a_file("/after", "x"),
        no_package("old"),
        no_package("half"),
        no_package("libc6"),
        no_package("never"),
    ]);
    let report = world.converge(&desired);
    assert_eq!(
        outcomes(&report),
        [
            "changed package[a]",
            "changed file[/between]",
            "changed package[b]",
            "failed package[late]",
            "changed file[/after]",
            "changed package[old]",
            "changed package[half]",
            "failed package[libc6]",
            "unchanged package[never]"
        ]
    );
    let transactions = world.fakes.packages.transactions();
    assert_eq!(transactions.len(), 1, "{transactions:?}");
    assert_eq!((transactions[0].install.len(), transactions[0].remove.len()), (2, 2));
}

#[test]
fn a_package_that_fails_holds_no_other_back() {
    let mut world = World::new();
    world.fakes.packages.add_available("good", "1.0");
    let desired = desired(vec![a_package("missing"), a_package("good")]);
    let report = world.converge(&desired);
    assert_eq!(outcomes(&report), ["failed package[missing]", "changed package[good]"]);
    assert!(error_of(&report, 0).0.contains("Unable to locate package missing"));
    let words: Vec<String> =
        world.record.history(&Default::default()).unwrap().into_iter().map(|e| e.outcome).collect();
    assert_eq!(words, ["changed", "failed"]);
}

#[test]
fn a_failing_journal_stops_nothing() {
    let mut world = World::new();
    world.fakes.units.add("nginx.service", "active", "enabled");
    world.record.refuse_writes();
    let report = world.converge(&desired(vec![a_file("/f", "x").notifies(Notify::Restart, "nginx.service")]));
    assert_eq!(outcomes(&report), ["changed file[/f]"]);
    assert_eq!(world.fakes.units.log(), ["try-restart nginx.service"]);
    assert!(report.debts.is_empty(), "{report:?}");
    assert!(world.record.take_trouble().is_some());
}

#[test]
fn noop_changes_nothing() {
    let mut world = World::new();
    world.write("/f", "old");
    let desired = desired(vec![
        a_file("/f", "x").notifies(Notify::Restart, "nginx.service"),
        a_directory("/d"),
        a_package("nginx"),
        a_user("deploy", user_spec()),
    ]);
    let before = tree(world.root.path());
    let report = world.converge_with(&Request { mode: Mode::Noop, ..request(&desired, &[]) });
    assert_eq!(report.resources.len(), 4);
    assert!(report.resources.iter().all(|r| matches!(r.outcome, Outcome::Reported { .. })), "{report:?}");
    assert_eq!(tree(world.root.path()), before);
    assert_eq!(world.record.debts().unwrap(), vec![]);
    assert_eq!((world.fakes.accounts.n_changes(), world.fakes.packages.transactions().len()), (0, 0));
}

#[test]
fn services_are_put_in_the_state_that_systemd_means() {
    use service::{Enablement::*, RunState::*};
    #[track_caller]
    fn check(
        (active, file): (&str, &str),
        enabled: Option<service::Enablement>,
        state: Option<service::RunState>,
        expected: &[&str],
    ) {
        let mut world = World::new();
        world.fakes.units.add("u.service", active, file);
        let desired = desired(vec![a_service("u", enabled, state)]);
        let report = world.converge(&desired);
        let word = if expected.is_empty() { "unchanged" } else { "changed" };
        assert_eq!(outcomes(&report), [format!("{word} service[u]")], "{report:?}");
        let expected: Vec<String> = expected.iter().map(|verb| format!("{verb} u.service")).collect();
        assert_eq!(world.fakes.units.log(), expected);
        assert_eq!(outcomes(&world.converge(&desired)), ["unchanged service[u]"]);
    }
    check(("inactive", "disabled"), Some(Enabled), Some(Running), &["enable", "start"]);
    check(("active", "enabled"), Some(Enabled), Some(Running), &[]);
    check(("failed", "enabled"), Some(Enabled), Some(Running), &["reset-failed", "start"]);
    check(("activating", "enabled"), None, Some(Running), &[]);
    check(("active", "enabled"), Some(Disabled), Some(Stopped), &["disable", "stop"]);
    check(("failed", "disabled"), Some(Disabled), Some(Stopped), &[]);
    for file in ["static", "indirect", "alias", "generated", "linked"] {
        check(("active", file), Some(Enabled), Some(Running), &[]);
        check(("inactive", file), Some(Disabled), Some(Stopped), &[]);
    }
    check(("inactive", "masked"), Some(Enabled), Some(Running), &["unmask", "enable", "start"]);
    check(("inactive", "masked"), Some(Disabled), Some(Stopped), &[]);
    check(("active", "enabled"), None, Some(Masked), &["mask", "stop"]);
    check(("inactive", "masked"), Some(Enabled), Some(Masked), &[]);
    check(("inactive", "disabled"), None, None, &[]);
}

#[test]
fn a_unit_that_came_with_an_earlier_step_is_found_and_one_that_did_not_is_named() {
    use service::RunState::*;
    let mut world = World::new();
    world.fakes.units.add_unread("new.service");
    let report = world.converge(&desired(vec![a_service("new", None, Some(Running))]));
    assert_eq!(outcomes(&report), ["changed service[new]"]);
    let report = world.converge(&desired(vec![a_service("none", None, Some(Running))]));
    assert!(error_of(&report, 0).0.contains("no unit `none.service`"), "{report:?}");
    let report = world.converge(&desired(vec![a_service("none", None, Some(Stopped))]));
    assert_eq!(outcomes(&report), ["unchanged service[none]"]);
}

#[test]
fn free_paths_wait_for_nobody_who_is_out_of_sync() {
    let mut world = World::new();
    let desired = desired(vec![
        a_package("there"),
        a_package("missing"),
        a_file("/free", "x"),
        a_file("/of-there", "x").requires(Kind::Package, "there"),
        a_directory("/of-missing").requires(Kind::Package, "missing"),
        a_file("/of-missing/below", "x").requires(Kind::Directory, "/of-missing"),
        a_symlink("/below-free", "free").requires(Kind::File, "/free"),
    ]);
    world.fakes.packages.add_available("there", "1.0");
    let installed = a_package("there");
    assert!(world.converge(&self::desired(vec![installed])).converged());
    let free: Vec<String> =
        crate::converge::free_paths(&world.host, &desired).into_iter().map(|id| id.to_string()).collect();
    assert_eq!(free, ["file[/free]", "file[/of-there]", "symlink[/below-free]"]);
    assert!(!world.path("/free").exists(), "nothing is changed by asking");
}
