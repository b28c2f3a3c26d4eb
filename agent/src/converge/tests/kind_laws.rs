//! The laws of `laws.rs` over what is held by more, or less, than one whole file: purged directories, settings, sweeps, commands,
//! repositories, and what the kernel is told.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use proptest::prelude::*;

use super::laws::cut_short;
use super::*;
use crate::host::kernel::{Module, Mount};
use crate::host::programs::Programs;
use crate::resource::directory::Depth;
use crate::resource::repository::Form;
use crate::resource::setting::{Edits, Entry, Missing};
use crate::resource::{Argv, command, kernel_module, mount, program, setting, sweep, sysctl};

const SYSCTL_FILE: &str = "/etc/sysctl.d/60-rekindle-net.ipv4.ip_forward.conf";
const MODULE_FILES: [&str; 2] =
    ["/etc/modprobe.d/60-rekindle-usb_storage.conf", "/etc/modules-load.d/60-rekindle-usb_storage.conf"];
const REPOSITORY_FILES: [&str; 2] =
    ["/etc/apt/keyrings/rekindle-internal.asc", "/etc/apt/sources.list.d/internal.sources"];
/// What a command makes, and where it says that it ran.
const MADE: &str = "/made";
const RAN: &str = "/ran";

/// What a host has before the run.
#[derive(Debug, Clone)]
struct Mess {
    login_defs: Option<Vec<&'static str>>,
    ip_forward: &'static str,
    own_files: Vec<Option<&'static str>>,
    is_module_loaded: bool,
    live_options: Vec<&'static str>,
    fstab: Vec<&'static str>,
    strays: Vec<&'static str>,
    setuid: Vec<&'static str>,
    is_made: bool,
}

fn mess() -> impl Strategy<Value = Mess> {
    let own = prop::sample::select(vec!["", "# mine\n", "net.ipv4.ip_forward = 1\n", "blacklist usb_storage\n"]);
    let lines =
        vec!["UMASK 022", "UMASK\t027", "#UMASK 077", "A 1", "unwanted", "wanted", "# BEGIN rekindle: other", "", "é"];
    let lines = prop::option::of(prop::collection::vec(prop::sample::select(lines), 0..5));
    let fstab =
        vec!["t /tmp tmpfs dev,size=1g 0 0", "#t /tmp tmpfs rw", "UUID=1 / ext4 rw 0 1", "UUID=2 /tmp/x ext4 rw 0 1"];
    (
        lines,
        prop::sample::select(vec!["0", "1"]),
        prop::collection::vec(prop::option::of(own), 5),
        any::<bool>(),
        prop::sample::subsequence(vec!["nosuid", "nodev", "noexec", "relatime"], 0..4),
        prop::sample::subsequence(fstab, 0..4),
        prop::sample::subsequence(vec!["declared", "kept", "stray", "below/stray", "below/declared"], 0..5),
        prop::sample::subsequence(vec!["/opt/allowed", "/opt/a", "/opt/b/c"], 0..4),
        any::<bool>(),
    )
        .prop_map(
            |(login_defs, ip_forward, own_files, is_module_loaded, live_options, fstab, strays, setuid, is_made)| {
                Mess {
                    login_defs,
                    ip_forward,
                    own_files,
                    is_module_loaded,
                    live_options,
                    fstab,
                    strays,
                    setuid,
                    is_made,
                }
            },
        )
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn world(mess: &Mess) -> World {
    let mut world = World::new();
    world.host.programs = Programs::at(Path::new("/"));
    let lines = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    mess.login_defs.iter().for_each(|all| world.write("/etc/login.defs", &lines(all)));
    world.write("/etc/fstab", &lines(&mess.fstab));
    world.fakes.kernel.put_sysctl("net/ipv4/ip_forward", mess.ip_forward);
    let own = [SYSCTL_FILE].into_iter().chain(MODULE_FILES).chain(REPOSITORY_FILES);
    for (path, content) in own.zip(&mess.own_files) {
        content.iter().for_each(|content| world.write(path, content));
    }
    let loaded = Module::Loaded { n_references: 0, users: Vec::new() };
    world.fakes.kernel.put_module("usb_storage", if mess.is_module_loaded { loaded } else { Module::NotLoaded });
    world.fakes.kernel.edit_mounts(|mounts| {
        mounts.push(Mount {
            target: "/tmp".to_owned(),
            source: "tmpfs".to_owned(),
            fstype: "tmpfs".to_owned(),
            options: [owned(&["rw"]), owned(&mess.live_options)].concat(),
            super_options: owned(&["rw"]),
        });
    });
    std::fs::create_dir_all(world.path("/etc/x.d/below")).unwrap();
    mess.strays.iter().for_each(|name| world.write(&format!("/etc/x.d/{name}"), name));
    for path in &mess.setuid {
        world.write(path, "program");
        std::fs::set_permissions(world.path(path), std::fs::Permissions::from_mode(0o4755)).unwrap();
    }
    if mess.is_made {
        world.write(MADE, "");
    }
    world
}

/// Which of the kinds a policy declares, and how.
#[derive(Debug, Clone)]
struct Choice {
    which: Vec<bool>,
    module: kernel_module::State,
    depth: Depth,
    form: Form,
}

fn choice() -> impl Strategy<Value = Choice> {
    let module = prop::sample::select(vec![kernel_module::State::Blocked, kernel_module::State::Loaded]);
    let depth = prop::sample::select(vec![Depth::Entries, Depth::Recursive]);
    let form = prop::sample::select(vec![Form::Armored, Form::Binary]);
    (prop::collection::vec(any::<bool>(), 9), module, depth, form).prop_map(|(which, module, depth, form)| Choice {
        which,
        module,
        depth,
        form,
    })
}

fn a_setting(name: &str, edits: Edits) -> Resource {
    let spec = setting::Spec { edits, missing: Missing::Create, owner: None, group: None, mode: None };
    resource(
        Kind::Setting,
        name,
        Desired::Setting(setting::Desired { path: abs("/etc/login.defs"), spec: Box::new(spec) }),
    )
}

/// Makes something, says so, and owes nothing to `owed_by` any more.
fn a_command(world: &World, owed_by: &[ResourceId]) -> Resource {
    let made = format!("touch {} && echo >> {}", world.path(MADE).display(), world.path(RAN).display());
    let argv = Argv::new(owned(&["/bin/sh", "-c", &made])).unwrap();
    let (deadline, exit_codes) = (Duration::from_secs(60), vec![0]);
    let program = program::Program { argv, deadline, user: None, directory: None, env: Vec::new(), exit_codes };
    // No other test's, which may run at the same time: what runs under the name already is waited for, and counts.
    let name = format!("of{}", world.root.path().display().to_string().replace(['/', '.'], "-"));
    let command = command::Desired {
        name: name.clone(),
        program,
        onlyif: None,
        unless: None,
        creates: Some(abs(MADE)),
        owed_by: owed_by.into(),
    };
    let mut command = resource(Kind::Command, &name, Desired::Command(Box::new(command)));
    command.requires = owed_by.into();
    command
}

fn policy(choice: &Choice, world: &World) -> DesiredState {
    let umask = vec![Entry { section: String::new(), key: "UMASK".to_owned(), values: owned(&["027"]) }];
    let key = sysctl::Key::new("net.ipv4.ip_forward").unwrap();
    let (persist, missing) = (sysctl::Persist::File, sysctl::Missing::Refuse);
    let forward = sysctl::Desired { key, value: "0".to_owned(), persist, missing };
    let module =
        kernel_module::Desired { name: kernel_module::Name::new("usb-storage").unwrap(), state: choice.module };
    let options = owned(&["nodev", "nosuid"]);
    let mounted =
        mount::State::Mounted(mount::Spec { options, source: Some("tmpfs".into()), fstype: Some("tmpfs".into()) });
    let tmp = mount::Desired { path: abs("/tmp"), state: mounted };
    let rule = sweep::Rule {
        under: vec![abs("/opt")],
        traits: sweep::Traits { setuid: true, ..sweep::Traits::default() },
        allowed: owned(&["/opt/allowed"]),
        except: Vec::new(),
        mend: sweep::Mend::StripSetuid,
    };
    let sweep = sweep::Desired::new(rule);
    let mut declared = vec![
        a_setting("/etc/login.defs", Edits::Space(umask)),
        a_setting("line", Edits::Line { present: owned(&["wanted"]), absent: owned(&["unwanted"]) }),
        a_setting("mark", Edits::Block { name: "mark".into(), comment: "#".into(), lines: owned(&["one"]) }),
        resource(Kind::Sysctl, "net.ipv4.ip_forward", Desired::Sysctl(Box::new(forward))),
        resource(Kind::KernelModule, "usb_storage", Desired::KernelModule(Box::new(module))),
        resource(Kind::Mount, "/tmp", Desired::Mount(Box::new(tmp))),
        super::trees::purged("/etc/x.d", choice.depth, &["kept"], &["/etc/x.d/declared", "/etc/x.d/below/declared"]),
        super::repositories::internal(choice.form, None).resources()[0].clone(),
        resource(Kind::Sweep, "no-setuid", Desired::Sweep(Box::new(sweep))),
    ];
    let mut which = choice.which.iter();
    declared.retain(|_| *which.next().unwrap());
    let inputs = [Kind::Sysctl, Kind::Mount];
    let owed_by: Vec<ResourceId> =
        declared.iter().map(|resource| &resource.id).filter(|id| inputs.contains(&id.kind)).cloned().collect();
    declared.push(a_command(world, &owed_by));
    desired(declared)
}

/// Everything that a run could change.
fn all_of(world: &World) -> (Vec<String>, Vec<String>, usize) {
    (tree(world.root.path()), world.fakes.kernel.log(), world.fakes.packages.refreshed().len())
}

/// What a plan says would change, with the commands that are owed a run by it.
fn planned(plan: &Plan) -> BTreeSet<ResourceId> {
    plan.steps.iter().flat_map(|step| std::iter::once(&step.resource).chain(&step.runs)).cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_planned_is_done_and_done_once(mess in mess(), choice in choice()) {
        let mut world = world(&mess);
        let desired = policy(&choice, &world);
        let plan = world.plan(&desired);
        let first = world.converge(&desired);
        prop_assert!(first.converged(), "{:?}", first);
        let changed: BTreeSet<ResourceId> = first.changed().map(|report| report.resource.clone()).collect();
        prop_assert_eq!(changed, planned(&plan), "{}", plan.to_text());
        prop_assert!(world.plan(&desired).is_empty(), "{}", world.plan(&desired).to_text());
        let before = (all_of(&world), world.n_history());
        let second = world.converge(&desired);
        prop_assert!(second.resources.iter().all(|r| r.outcome == Outcome::Unchanged), "{:?}", second);
        prop_assert_eq!(second.run, 0);
        prop_assert_eq!((all_of(&world), world.n_history()), before);
    }

    #[test]
    fn noop_and_plan_change_nothing_of_any_kind(mess in mess(), choice in choice()) {
        let mut world = world(&mess);
        let desired = policy(&choice, &world);
        let before = all_of(&world);
        let plan = world.plan(&desired);
        let report = world.converge_with(&Request { mode: Mode::Noop, ..everything(&desired) });
        prop_assert_eq!(all_of(&world), before);
        let reported = report.resources.iter().filter(|r| matches!(r.outcome, Outcome::Reported { .. }));
        let reported: BTreeSet<ResourceId> = reported.map(|report| report.resource.clone()).collect();
        let steps: BTreeSet<ResourceId> = plan.steps.iter().map(|step| step.resource.clone()).collect();
        prop_assert_eq!(reported, steps, "noop reports what the plan shows: {}", plan.to_text());
    }

    #[test]
    fn a_kill_at_any_step_of_any_kind_is_healed_by_the_next_run(mess in mess(), choice in choice(), n_steps in 0..9_usize) {
        let mut untouched = world(&mess);
        let whole = policy(&choice, &untouched);
        prop_assert!(untouched.converge(&whole).converged());
        let mut world = world(&mess);
        let desired = policy(&choice, &world);
        let cut_short = cut_short(&mut world, &desired, n_steps);
        world.reopen();
        let healed = world.converge(&desired);
        prop_assert!(healed.converged(), "{:?}\n{:?}", cut_short, healed);
        prop_assert!(world.plan(&desired).is_empty(), "{}", world.plan(&desired).to_text());
        // What was owed a run was run, here as there, and never more than once for each run.
        let ran = |world: &World| std::fs::read_to_string(world.path(RAN)).unwrap_or_default().len();
        prop_assert_eq!(ran(&world) > 0, ran(&untouched) > 0);
        prop_assert!(ran(&world) <= 2);
        // Nothing that nobody declares was lost on the way.
        let content = |world: &World| {
            let mut lines = tree(world.root.path());
            let place = world.root.path().display().to_string();
            // The number of an inode and the place are each world's own; when a command ran is not told by what it made.
            lines.retain(|line| !line.contains(RAN));
            lines.iter().map(|line| without_inode(&line.replace(&place, ""))).collect::<Vec<_>>()
        };
        prop_assert_eq!(content(&world), content(&untouched));
    }
}

/// A line of [`tree`] without the number of the inode.
fn without_inode(line: &str) -> String {
    let (head, rest) = line.split_once('(').expect("a line has ids");
    let (ids, content) = rest.split_once(')').expect("a line has ids");
    format!("{head}{} {content}", ids.rsplit_once(", ").map_or(ids, |(ids, _)| ids))
}
