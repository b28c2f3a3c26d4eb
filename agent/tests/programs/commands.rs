//! `command` and `check`: when they run, as whom, and what becomes of it when somebody or something is killed.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::World;

/// Longer than any busy machine needs; reached only by a test that fails.
const DEADLINE: Duration = Duration::from_secs(60);

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < DEADLINE, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn guards_decide_and_a_plan_asks_them_but_runs_nothing() {
    let Some(world) = World::new() else { return };
    world.script("run", "echo run >> $T/log; touch $T/etc/done");
    world.script("is-done", "echo asked >> $T/asked; [ -e $T/etc/done ]");
    let policy = "[command.a]\nrun = ['$T/bin/run', 'x y']\nunless = ['$T/bin/is-done']\n\
        [command.b]\nrun = ['$T/bin/run']\nonlyif = ['/bin/false']\ncreates = '$T/etc/none'\n\
        [command.c]\nrun = ['$T/bin/run']\ncreates = '$T/etc/done'\n";
    let plan = world.plan(policy);
    assert_eq!(plan.code, 2, "{plan:?}");
    let expected = format!(
        "run command[a]  (operator; policy.toml:1:10)\n    run: (none) → {0}/bin/run 'x y'\n    \
         unless: exit status 1 → exit status 0\n\
         run command[c]  (operator; policy.toml:8:10)\n    run: (none) → {0}/bin/run\n    \
         creates: (none) → {0}/etc/done\n2 to change, 1 in sync\n",
        world.at()
    );
    assert_eq!(plan.text, expected);
    assert!(!world.exists("log") && world.exists("asked"));
    let applied = world.apply(policy);
    assert_eq!(applied.code, 0, "{applied:?}");
    assert_eq!(world.read("log"), "run\n", "the second had been done by the first");
    assert_eq!(world.apply(policy).code, 0);
    assert_eq!(world.read("log"), "run\n");
}

#[test]
fn a_guard_that_is_never_content_is_a_failure_and_one_that_cannot_run_is_unknown() {
    let Some(world) = World::new() else { return };
    let applied = world.apply("[command.a]\nrun = ['/bin/true']\nunless = ['/bin/false']\n");
    assert_eq!(applied.code, 2, "{applied:?}");
    assert!(applied.text.contains("it ran and ended well, but `unless` still says that it has to run"), "{applied:?}");
    let applied = world.apply("[command.a]\nrun = ['/bin/touch', '$T/ran']\nunless = ['$T/none']\n");
    assert_eq!(applied.code, 3, "{applied:?}");
    assert!(applied.text.contains("/none` cannot be run"), "{applied:?}");
    world.script("hangs", "kill -9 $$");
    let applied = world.apply("[command.a]\nrun = ['/bin/touch', '$T/ran']\nonlyif = ['$T/bin/hangs']\n");
    assert_eq!(applied.code, 3, "{applied:?}");
    assert!(applied.text.contains("gave no answer: signal 9"), "{applied:?}");
    assert!(!world.exists("ran"));
}

#[test]
fn a_run_is_owed_until_it_has_ended_well() {
    let Some(world) = World::new() else { return };
    world.script("run", "echo run >> $T/log; [ -e $T/may ] || { echo not yet >&2; exit 4; }");
    let policy = |content: &str| {
        format!(
            "[command.a]\nrun = ['$T/bin/run']\nunless = ['/bin/true']\nowed_by = ['file[$T/etc/in]']\n\
             [file.'$T/etc/in']\ncontent = '{content}'\n[file.'$T/etc/after']\ncontent = ''\nrequires = ['command[a]']\n"
        )
    };
    let plan = world.plan(&policy("1"));
    assert!(plan.text.contains("    owes a run to command[a]\n"), "{plan:?}");
    let applied = world.apply(&policy("1"));
    assert_eq!(applied.code, 2, "{applied:?}");
    assert!(applied.text.contains("failed   command[a]: `"), "{applied:?}");
    assert!(applied.text.contains("exit status 4: not yet\n"), "{applied:?}");
    assert!(applied.text.contains("owed     run of command[a] because of file["), "{applied:?}");
    assert!(applied.text.contains("blocked by command[a]"), "{applied:?}");
    // Nothing differs any more, and its guard says that it has been done; it is owed all the same.
    world.write("may", "");
    let applied = world.apply(&policy("1"));
    assert_eq!(applied.code, 0, "{applied:?}");
    assert!(applied.text.contains("owed_by: file["), "{applied:?}");
    assert!(world.exists("etc/after"));
    assert_eq!(world.apply(&policy("1")).code, 0);
    assert_eq!(world.read("log"), "run\nrun\n");
    assert_eq!(world.apply(&policy("2")).code, 0);
    assert_eq!(world.read("log"), "run\nrun\nrun\n");
    let history = world.run(&["history"]);
    assert!(history.text.contains("command[a]"), "{history:?}");
}

#[test]
fn nothing_is_owed_where_it_must_not_run_and_nothing_runs_before_its_inputs_are_right() {
    let Some(world) = World::new() else { return };
    world.script("run", "echo run >> $T/log");
    let policy = |onlyif: &str| {
        format!(
            "[command.a]\nrun = ['$T/bin/run']\nonlyif = ['{onlyif}']\nowed_by = ['file[$T/etc/in]', 'file[$T/etc/bad]']\n\
             [file.'$T/etc/in']\ncontent = '{onlyif}'\n[file.'$T/etc/bad']\ncontent = 'x'\n"
        )
    };
    world.write("etc/bad/inside", "");
    let applied = world.apply(&policy("/bin/true"));
    assert_eq!(applied.code, 2, "{applied:?}");
    assert!(applied.text.contains("skipped  command[a]: blocked by file["), "{applied:?}");
    assert!(!world.exists("log"));
    std::fs::remove_dir_all(world.path("etc/bad")).unwrap();
    assert_eq!(world.apply(&policy("/bin/false")).code, 0);
    assert!(!world.exists("log"));
    // What it was owed is gone: it does not come back when it may run again. (Its own guard asks for it then.)
    assert!(!world.plan(&policy("/bin/false")).text.contains("owed"));
}

#[test]
fn a_run_goes_on_when_the_agent_is_killed_and_is_not_made_twice_at_once() {
    let Some(world) = World::new() else { return };
    world.script("run", "echo begin >> $T/log; while [ ! -e $T/go ]; do sleep 0.05; done; echo end >> $T/log");
    world.policy(
        "[command.'slow']\nrun = ['$T/bin/run']\nowed_by = ['file[$T/etc/in]']\n[file.'$T/etc/in']\ncontent = 'x'\n",
    );
    let policy = world.path("policy").to_str().unwrap().to_owned();
    let apply = || {
        let mut command = world.command(&["apply", "--policy", &policy]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut first = apply();
    wait_until("it never began", || world.read("log") == "begin\n");
    first.kill().unwrap();
    first.wait().unwrap();
    let mut second = apply();
    // Whoever finds the survivor waits for it; there is no second beginning until the first has ended.
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(1500) {
        assert_eq!(world.read("log"), "begin\n");
        std::thread::yield_now();
    }
    world.write("go", "");
    let status = second.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(world.read("log"), "begin\nend\nbegin\nend\n", "at least once, and never twice at once");
}

#[test]
fn a_program_is_run_as_said_and_killed_at_its_deadline() {
    let Some(world) = World::new() else { return };
    world.script("run", "{ id -un; id -G; pwd; echo \"$A\"; echo \"$HOME\"; umask; } > $T/etc/out");
    std::fs::set_permissions(world.path("etc"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let applied = world.apply(
        "[command.a]\nrun = ['$T/bin/run']\ncreates = '$T/etc/out'\nuser = 'nobody'\ncwd = '/usr'\nenv = { A = 'b $c' }\n",
    );
    assert_eq!(applied.code, 0, "{applied:?}");
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let expected = format!("nobody\n{}\n/usr\nb $c\n{}\n0022\n", nobody.gid, nobody.dir.display());
    assert_eq!(world.read("etc/out"), expected);
    let applied = world.apply("[command.a]\nrun = ['/bin/true']\ncreates = '$T/x'\nuser = 'no-such-user'\n");
    assert!(applied.text.contains("the host has no such user"), "{applied:?}");
    let applied = world.apply("[command.a]\nrun = ['/bin/sleep', '600']\ncreates = '$T/x'\ndeadline = '1s'\n");
    assert!(applied.text.contains("`/bin/sleep 600`: killed after 1 s"), "{applied:?}");
    let applied = world
        .apply("[command.a]\nrun = ['/bin/sh', '-c', 'touch $T/x; exit 3']\ncreates = '$T/x'\nexit_codes = [0, 3]\n");
    assert_eq!(applied.code, 0, "{applied:?}");
}

#[test]
fn no_program_of_a_captured_host_is_run() {
    let Some(world) = World::new() else { return };
    world.write("tree/etc/os-release", "ID=debian\n");
    let tar = std::process::Command::new("tar")
        .args(["-cf", world.path("host.tar").to_str().unwrap(), "-C", world.path("tree").to_str().unwrap(), "."])
        .status();
    assert!(tar.unwrap().success());
    world.policy("[check.a]\nrun = ['/bin/true']\n[command.b]\nrun = ['/bin/true']\nunless = ['/bin/true']\n");
    let (policy, host) = (world.path("policy"), world.path("host.tar"));
    let plan = world.run(&["plan", "--policy", policy.to_str().unwrap(), "--against", host.to_str().unwrap()]);
    assert_eq!(plan.code, 3, "{plan:?}");
    assert_eq!(plan.text.matches("a captured host runs no programs").count(), 2, "{plan:?}");
}

#[test]
fn a_failing_check_is_told_of_and_a_waived_one_is_in_order_for_now() {
    let Some(world) = World::new() else { return };
    let soon = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(240)).unwrap();
    let day = soon.to_string().get(..10).unwrap().to_owned();
    let check = |waiver: &str| {
        format!(
            "[check.a]\nrun = ['/bin/sh', '-c', 'echo no mail relay >&2; exit 1']\n{waiver}\n[check.b]\nrun = ['/bin/true']\n"
        )
    };
    let applied = world.apply(&check(""));
    assert_eq!(applied.code, 2, "{applied:?}");
    assert!(
        applied.text.contains(
            "left     check[a]: it is only told of\n    exit: exit status 1: no mail relay → exit status 0\n"
        ),
        "{applied:?}"
    );
    let plan = world.plan(&check(""));
    assert_eq!(plan.code, 2, "{plan:?}");
    assert!(
        plan.text.contains("failing check[a]  (") && plan.text.ends_with("0 to change, 1 in sync, 1 failing\n"),
        "{plan:?}"
    );
    let waived = check(&format!("waiver = {{ until = {day}, reason = 'it comes', owner = 'ops' }}"));
    let plan = world.plan(&waived);
    assert_eq!(plan.code, 0, "{plan:?}");
    let expected = format!("waiver: waived until {day}T00:00:00Z by ops: it comes → (none)");
    assert!(plan.text.contains("waived check[a]  (") && plan.text.contains(&expected), "{plan:?}");
    let applied = world.apply(&waived);
    assert_eq!(applied.code, 0, "{applied:?}");
    assert!(
        applied.text.contains(&format!("left     check[a]: waived until {day}T00:00:00Z by ops: it comes\n")),
        "{applied:?}"
    );
    let ended = check("waiver = { until = 2020-01-01, reason = 'it comes', owner = 'ops' }");
    let plan = world.plan(&ended);
    assert_eq!(plan.code, 2, "{plan:?}");
    assert!(plan.text.contains("the waiver by ops ended 2020-01-01T00:00:00Z"), "{plan:?}");
    let unknown = world.apply("[check.a]\nrun = ['$T/none']\n");
    assert_eq!(unknown.code, 3, "{unknown:?}");
}
