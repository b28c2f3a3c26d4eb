//! Laws that hold for every policy and every host: after apply, the plan is empty; apply twice is apply once; noop changes
//! nothing; a kill at any step is healed by the next run, and what was owed is paid.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;

/// What stands at a path before the run.
#[derive(Debug, Clone)]
enum Mess {
    Nothing,
    File(&'static str, u32),
    Directory(u32),
    Link(&'static str),
}

const PATHS: [&str; 6] = ["/a", "/a/b", "/a/b/c", "/d", "/d/e", "/f"];
const UNITS: [&str; 2] = ["one.service", "two.service"];

fn content() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "x\n", "line one\nline two\n", "other\n"])
}

fn mess() -> impl Strategy<Value = Vec<Mess>> {
    let mode = || prop::sample::select(vec![0o644, 0o600, 0o755, 0o700]);
    let one = prop_oneof![
        Just(Mess::Nothing),
        (content(), mode()).prop_map(|(content, mode)| Mess::File(content, mode)),
        prop::sample::select(vec![0o755, 0o700]).prop_map(Mess::Directory),
        prop::sample::select(vec!["nowhere", "/elsewhere"]).prop_map(Mess::Link),
    ];
    prop::collection::vec(one, PATHS.len())
}

/// One resource for some of the paths, and some of everything else; parents are directories, so that no policy contradicts
/// itself, as the compiler guarantees.
fn policy() -> impl Strategy<Value = Vec<Resource>> {
    let leaf = |path: &'static str| {
        prop_oneof![
            content().prop_map(move |content| Some(a_file(path, content))),
            Just(Some(no_file(path))),
            Just(Some(a_symlink(path, "somewhere"))),
            Just(None),
        ]
    };
    let parent = |path: &'static str| prop_oneof![Just(Some(a_directory(path))), Just(None)];
    let paths = (parent("/a"), parent("/a/b"), leaf("/a/b/c"), parent("/d"), leaf("/d/e"), leaf("/f"));
    let others = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let notifies = prop::collection::vec(prop::option::of((any::<bool>(), 0..UNITS.len())), PATHS.len());
    (paths, others, notifies).prop_map(|((a, ab, abc, d, de, f), (group, user, package, service), notifies)| {
        let mut resources: Vec<Resource> = Vec::new();
        for (resource, notify) in [a, ab, abc, d, de, f].into_iter().zip(notifies) {
            let Some(mut resource) = resource else { continue };
            if let Some((restart, unit)) = notify {
                let notify = if restart { Notify::Restart } else { Notify::Reload };
                resource = resource.notifies(notify, UNITS[unit]);
            }
            let parent = Path::new(&*resource.id.name).parent().unwrap().display().to_string();
            let parent = ResourceId::new(Kind::Directory, parent);
            if resources.iter().any(|r| r.id == parent) {
                resource.requires = Box::new([parent]);
            }
            resources.push(resource);
        }
        let mut spec = user_spec();
        spec.groups = if group { vec![GroupName::new("ops").unwrap()] } else { Vec::new() };
        spec.authorized_keys = Some(user::AuthorizedKeys { keys: vec!["ssh-ed25519 AAAA me".into()], exact: true });
        let others = [
            group.then(|| a_group("ops", Some(2001))),
            user.then(|| a_user("deploy", spec)),
            package.then(|| a_package("nginx")),
            service.then(|| a_service("one", Some(service::Enablement::Enabled), Some(service::RunState::Running))),
        ];
        resources.extend(others.into_iter().flatten());
        resources
    })
}

fn world(mess: &[Mess]) -> World {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    for unit in UNITS {
        world.fakes.units.add(unit, "active", "disabled");
    }
    world.fakes.packages.add_available("nginx", "1.0");
    // The user's files belong to whoever runs the test, since nobody else can give files away.
    world.fakes.accounts.edit(|db| {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let root = db.users[0].clone();
        let (name, home) = ("deploy".to_owned(), "/home/deploy".to_owned());
        db.users.push(crate::host::accounts::UserEntry { name, home, uid, gid, ..root });
    });
    std::fs::create_dir(world.path("/elsewhere")).unwrap();
    for (path, mess) in PATHS.iter().zip(mess) {
        let path = world.path(path);
        if path.parent().unwrap().symlink_metadata().is_ok_and(|parent| parent.is_dir()) {
            let chmod = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match mess {
                Mess::Nothing => {}
                Mess::File(content, mode) => {
                    world.write(&format!("/{}", path.strip_prefix(world.root.path()).unwrap().display()), content);
                    chmod(*mode);
                }
                Mess::Directory(mode) => {
                    std::fs::create_dir(&path).unwrap();
                    chmod(*mode);
                }
                Mess::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
            }
        }
    }
    world
}

/// Whether no policy over these could be carried out without a person: a full directory where a file belongs, or an
/// undeclared parent that is a file or a dangling link.
fn is_blocked(report: &RunReport) -> bool {
    let mut signatures = report.failed().filter_map(|failed| match &failed.outcome {
        Outcome::Failed { signature, .. } => Some(signature),
        Outcome::Unchanged
        | Outcome::Changed { .. }
        | Outcome::Reported { .. }
        | Outcome::Indeterminate { .. }
        | Outcome::Skipped { .. } => None,
    });
    let by_a_person = |signature: &String| {
        signature == "remove: directory not empty" || signature.starts_with("look for the parents of")
    };
    report.failed().count() > 0 && signatures.all(by_a_person)
}

/// A run that ends after so many steps.
pub(super) fn cut_short(world: &mut World, desired: &DesiredState, n_steps: usize) -> RunReport {
    let stop = AtomicBool::new(false);
    let n_seen = std::cell::Cell::new(0);
    // Asked once before each step: the run ends after the step in hand, and owes what it owes.
    let hold = |_: &ResourceId| {
        n_seen.set(n_seen.get() + 1);
        stop.store(n_seen.get() > n_steps, Ordering::SeqCst);
        None
    };
    let request = Request { hold: &hold, ..everything(desired) };
    let mut context = Context { host: &mut world.host, record: &mut world.record, stop: &stop };
    converge(&mut context, &request)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_apply_the_plan_is_empty_and_apply_twice_is_apply_once(mess in mess(), policy in policy()) {
        let mut world = world(&mess);
        let desired = desired(policy);
        let first = world.converge(&desired);
        if is_blocked(&first) {
            return Ok(());
        }
        prop_assert!(first.converged(), "{:?}", first);
        let plan = world.plan(&desired);
        prop_assert!(plan.is_empty(), "{}", plan.to_text());
        let before = (tree(world.root.path()), world.n_history(), world.fakes.units.log());
        let second = world.converge(&desired);
        prop_assert!(second.resources.iter().all(|r| r.outcome == Outcome::Unchanged), "{:?}", second);
        prop_assert_eq!(second.run, 0);
        prop_assert_eq!((tree(world.root.path()), world.n_history(), world.fakes.units.log()), before);
    }

    #[test]
    fn noop_and_plan_change_nothing(mess in mess(), policy in policy()) {
        let mut world = world(&mess);
        let desired = desired(policy);
        let before = tree(world.root.path());
        let plan = world.plan(&desired);
        let request = Request { mode: Mode::Noop, ..everything(&desired) };
        let report = world.converge_with(&request);
        prop_assert_eq!(tree(world.root.path()), before);
        prop_assert_eq!(report.changed().count(), 0);
        let n_reported = report.resources.iter().filter(|r| matches!(r.outcome, Outcome::Reported { .. })).count();
        prop_assert_eq!(n_reported, plan.steps.len(), "noop reports what the plan shows");
        prop_assert_eq!(world.fakes.accounts.n_changes(), 0);
        prop_assert_eq!(world.fakes.units.log(), Vec::<String>::new());
        prop_assert_eq!(world.fakes.packages.transactions(), vec![]);
    }

    #[test]
    fn a_kill_at_any_step_is_healed_by_the_next_run(mess in mess(), policy in policy(), n_steps in 0..6_usize) {
        let desired = desired(policy);
        let mut untouched = world(&mess);
        let whole = untouched.converge(&desired);
        if is_blocked(&whole) {
            return Ok(());
        }
        let mut world = world(&mess);
        let cut_short = cut_short(&mut world, &desired, n_steps);
        world.reopen();
        let healed = world.converge(&desired);
        prop_assert!(healed.converged(), "{:?}\n{:?}", cut_short, healed);
        prop_assert!(world.plan(&desired).is_empty());
        // Every unit that the whole run restarted or reloaded was served here too.
        let served = |world: &World| -> std::collections::BTreeSet<String> {
            let notified = |line: &String| line.contains("restart") || line.contains("reload");
            world.fakes.units.log().into_iter().filter(notified).filter_map(|l| l.rsplit(' ').next().map(str::to_owned)).collect()
        };
        prop_assert_eq!(served(&world), served(&untouched));
    }
}
