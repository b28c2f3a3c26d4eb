//! `validate`: what a validator sees, and what becomes of what it refuses.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::{World, names};

#[test]
fn a_validator_sees_every_candidate_in_place_and_nobody_else_does() {
    let Some(world) = World::new() else { return };
    world.write("etc/app/main.conf", "old\n");
    world.write("etc/app/keep", "kept\n");
    world.write("etc/app/gone", "x\n");
    symlink("keep", world.path("etc/app/link")).unwrap();
    fs::create_dir(world.path("etc/app/sub")).unwrap();
    world.write("etc/app/sub/below", "below\n");
    symlink("keep", world.path("etc/app/was-a-link")).unwrap();
    // The log is written on the real file system; this process sees what everybody sees.
    let check = format!("REAL=/proc/{}/root\n", std::process::id());
    world.script(
        "check",
        &(check
            + r#"exec 2>&1
        echo run >> $T/log
        cd $T/etc/app || exit 1
        real=$REAL$T/etc/app
        fail() { echo "failed: $1"; exit 1; }
        [ "$(cat main.conf)" = new ] || fail main
        [ "$(stat -c %a:%u:%g main.conf)" = 640:0:1 ] || fail mode
        [ "$(cat conf.d/a.conf)" = a ] || fail include
        [ "$(cat conf.d/deep/er/b.conf)" = b ] || fail deep
        [ ! -e gone ] || fail gone
        [ "$(cat keep)" = kept ] || fail keep
        [ "$(readlink link)" = keep ] || fail link
        [ "$(cat sub/below)" = below ] || fail below
        [ ! -L was-a-link ] && [ "$(cat was-a-link)" = file ] || fail was-a-link
        [ "$(readlink new-link)" = main.conf ] || fail new-link
        [ "$(cat $real/main.conf)" = old ] || fail real-main
        [ -e $real/gone ] && [ ! -e $real/conf.d ] && [ -L $real/was-a-link ] || fail real
        ls -1 | tr '\n' ' ' > $T/listing
        read line && fail stdin
        exit 0"#),
    );
    let policy = "[file.'$T/etc/app/main.conf']\ncontent = \"new\\n\"\nmode = '0640'\ngroup = 1\nvalidate = ['$T/bin/check']\n\
        [file.'$T/etc/app/conf.d/a.conf']\ncontent = \"a\\n\"\nvalidate = ['$T/bin/check']\n\
        [file.'$T/etc/app/conf.d/deep/er/b.conf']\ncontent = \"b\\n\"\n\
        [file.'$T/etc/app/gone']\nstate = 'absent'\n\
        [file.'$T/etc/app/was-a-link']\ncontent = \"file\\n\"\n\
        [symlink.'$T/etc/app/new-link']\ntarget = 'main.conf'\n";
    let plan = world.plan(policy);
    assert_eq!(plan.code, 2, "{plan:?}");
    assert!(plan.text.contains(&format!("    validated first by {}/bin/check\n", world.at())), "{plan:?}");
    assert!(!world.exists("log"), "a plan runs no validator");
    let applied = world.apply(policy);
    assert_eq!(applied.code, 0, "{applied:?}");
    assert_eq!(world.read("log"), "run\n", "once for all files that name it");
    assert_eq!(world.read("listing"), "conf.d keep link main.conf new-link sub was-a-link ");
    assert_eq!(world.read("etc/app/conf.d/deep/er/b.conf"), "b\n");
    assert_eq!(world.apply(policy).code, 0);
    assert_eq!(world.read("log"), "run\n", "what is in sync needs no validator");
}

#[test]
fn what_is_refused_is_not_touched_and_what_depends_on_it_is_skipped() {
    let Some(world) = World::new() else { return };
    world.write("etc/a", "old\n");
    world.script("refuse", "seq 1 100; echo 'line 3: bad option' >&2; echo 'token=abcdefgh0123 \x1b[31m' >&2; exit 7");
    let policy = "[file.'$T/etc/a']\ncontent = 'new'\nvalidate = ['$T/bin/refuse', '-f', '{}']\n\
        [file.'$T/etc/b']\ncontent = 'b'\nrequires = ['file[$T/etc/a]']\n[file.'$T/etc/c']\ncontent = 'c'\n";
    let applied = world.apply(policy);
    assert_eq!(applied.code, 2, "{applied:?}");
    let expected = format!(
        "failed   file[{0}/etc/a]: not put in place, because `{0}/bin/refuse -f {0}/etc/a` refuses it: exit status 7: \
         line 3: bad option; token=*** \\u{{1b}}[31m\n",
        world.at()
    );
    assert!(applied.text.contains(&expected), "{applied:?}");
    assert!(applied.text.contains(&format!("skipped  file[{}/etc/b]", world.at())), "{applied:?}");
    assert_eq!(world.read("etc/a"), "old\n");
    assert_eq!(names(&world.path("etc")), ["a", "c"], "no candidate is left beside it");
    let history = world.run(&["history"]);
    assert!(history.text.contains("refuses it: exit status 7"), "{history:?}");
    // As soon as it is right it is put in place.
    world.script("refuse", "[ \"$2\" = $T/etc/a ] && [ \"$(cat $2)\" = new ]");
    assert_eq!(world.apply(policy).code, 0);
    assert_eq!(world.read("etc/b"), "b");
}

#[test]
fn files_that_are_refused_together_are_asked_about_once() {
    let Some(world) = World::new() else { return };
    world.script("check", "echo run >> $T/log; exit 1");
    let file =
        |name: &str, validate: &str| format!("[file.'$T/etc/{name}']\ncontent = '{name}'\nvalidate = ['{validate}']\n");
    let both = file("a", "$T/bin/check") + &file("b", "$T/bin/check") + &file("c", "/bin/true");
    let applied = world.apply(&both);
    assert_eq!(applied.code, 2, "{applied:?}");
    assert_eq!(names(&world.path("etc")), ["c"]);
    assert_eq!(world.read("log"), "run\n");
}

#[test]
fn a_validator_that_cannot_run_refuses_and_leaves_nothing_running() {
    let Some(world) = World::new() else { return };
    let policy = "[file.'$T/etc/a']\ncontent = 'x'\nvalidate = ['$T/bin/none']\n";
    let applied = world.apply(policy);
    assert!(applied.text.contains("cannot be validated"), "{applied:?}");
    assert!(applied.text.contains("bin/none"), "{applied:?}");
    assert!(!world.exists("etc/a"));
    // One that prints much and leaves something behind is over when it has ended itself.
    // The lock is held as long as anything of it is there.
    world.script("none", "exec 9>$T/lock; flock 9; sleep 600 & head -c 3000000 /dev/zero | tr '\\0' x; exit 0");
    let applied = world.apply(policy);
    assert_eq!(applied.code, 0, "{applied:?}");
    let free = Command::new("flock").args(["--timeout", "60"]).arg(world.path("lock")).arg("true").status();
    assert!(free.unwrap().success(), "what it left behind still runs");
}

#[test]
fn a_validator_that_hangs_is_killed_with_all_that_it_started() {
    let Some(world) = World::new() else { return };
    world.write("etc/a", "old\n");
    let config = world.read("agent.toml");
    world.write("agent.toml", &format!("{config}[converge]\nvalidate_timeout = \"1s\"\n"));
    // The lock is held as long as anything of it is there; what it starts ignores what it may and is nobody's child.
    world.script(
        "hangs",
        "exec 9>$T/lock; flock 9; setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 600; done' & sleep 600; exit 0",
    );
    let policy = "[file.'$T/etc/a']\ncontent = 'x'\nvalidate = ['$T/bin/hangs']\n[file.'$T/etc/b']\ncontent = 'b'\n";
    let applied = world.apply(policy);
    assert_eq!(applied.code, 2, "{applied:?}");
    assert!(applied.text.contains("refuses it: killed after 1 s"), "{applied:?}");
    assert_eq!((world.read("etc/a").as_str(), world.read("etc/b").as_str()), ("old\n", "b"));
    assert_eq!(names(&world.path("etc")), ["a", "b"], "no candidate is left beside it");
    let free = Command::new("flock").args(["--timeout", "60"]).arg(world.path("lock")).arg("true").status();
    assert!(free.unwrap().success(), "what it started still runs");
    // As soon as it answers in time the file is put in place; a busy machine may take longer than the second for that.
    world.write("agent.toml", &config);
    world.script("hangs", "exit 0");
    assert_eq!(world.apply(policy).code, 0);
    assert_eq!(world.read("etc/a"), "x");
}

#[test]
fn a_file_beside_the_root_directories_can_be_validated() {
    let Some(world) = World::new() else { return };
    let top = format!("/rekindle-test-{}", std::process::id());
    world.script(
        "check",
        &format!("[ \"$(cat {top}/x/y)\" = z ] && [ -d /usr/bin ] && [ ! -e /proc/{}/root{top} ]", std::process::id()),
    );
    let applied = world.apply(&format!("[file.'{top}/x/y']\ncontent = 'z'\nvalidate = ['$T/bin/check']\n"));
    let found = fs::read_to_string(format!("{top}/x/y"));
    fs::remove_dir_all(&top).ok();
    assert_eq!(applied.code, 0, "{applied:?}");
    assert_eq!(found.unwrap(), "z");
}

#[test]
fn owner_and_mode_alone_need_no_validator() {
    let Some(world) = World::new() else { return };
    world.write("etc/a", "x");
    let applied = world.apply("[file.'$T/etc/a']\ncontent = 'x'\nmode = '0644'\nvalidate = ['/bin/false']\n");
    assert_eq!(applied.code, 0, "{applied:?}");
}

#[test]
fn an_image_is_validated_by_its_own_programs() {
    let Some(world) = World::new() else { return };
    let image = world.path("image");
    for path in ["bin", "etc", "var/lib/rekindle", "proc", "dev"] {
        fs::create_dir_all(image.join(path)).unwrap();
    }
    // A shell and what it needs, and nothing else.
    let needed = Command::new("ldd").arg("/bin/sh").output().unwrap();
    let needed = String::from_utf8(needed.stdout).unwrap();
    for file in needed.split_whitespace().filter(|word| word.starts_with('/')).chain(["/bin/sh"]) {
        let to = image.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    world.policy("[file.'/etc/a']\ncontent = 'x'\nvalidate = ['/bin/sh', '-c', 'read x < {}; [ \"$x\" = x ] && [ ! -e /usr/bin ]']\n");
    let (policy, root) = (world.path("policy"), image.to_str().unwrap().to_owned());
    let applied = world.run(&["apply", "--policy", policy.to_str().unwrap(), "--root", &root]);
    assert_eq!(applied.code, 0, "{applied:?}");
}

/// A validator quotes the line that it does not like, and a check may print anything.
#[test]
fn threat_a_program_that_prints_a_secret() {
    let Some(world) = World::new() else { return };
    let secret = "first-secret-8f3a";
    let key = world.path("age.key");
    let made = Command::new("age-keygen").arg("-o").arg(&key).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let recipient = Command::new("age-keygen").arg("-y").arg(&key).output().unwrap().stdout;
    world.write("token", secret);
    fs::create_dir_all(world.path("policy/secrets")).unwrap();
    let sealed = Command::new("age")
        .args(["-r", String::from_utf8(recipient).unwrap().trim(), "-o"])
        .args([world.path("policy/secrets/token.age"), world.path("token")])
        .status();
    assert!(sealed.unwrap().success());
    let config = world.read("agent.toml");
    world.write("agent.toml", &format!("age_identity = \"{}\"\n{config}", key.display()));
    world.write("policy/app.j2", "token={{ secret('token') }}\n");
    world.script("complains", "echo \"bad line: $(cat $1)\"; exit 1");
    world.script("tells", "echo '{\"key\": \"first-secret-8f3a\"}' >&2; exit 1");
    let policy = "[file.'$T/etc/app']\ntemplate = 'app.j2'\nmode = '0600'\nvalidate = ['$T/bin/complains', '{}']\n\
        [check.tells]\nrun = ['$T/bin/tells']\n[command.asked]\nrun = ['/bin/true']\nunless = ['$T/bin/tells']\n";
    world.policy(policy);
    let policy = world.path("policy");
    let mut said = String::new();
    for args in [&["plan"][..], &["apply"], &["--json", "apply"]] {
        said += &world.run(&[args, &["--policy", policy.to_str().unwrap()]].concat()).text;
    }
    assert!(said.contains("bad line: token=***") && said.contains("{\"key\": \"***\"}"), "{said}");
    said += &world.run(&["--json", "history"]).text;
    assert!(!said.contains(secret), "{said}");
    for name in ["state/state.db", "state/state.db-wal"] {
        let kept = fs::read(world.path(name)).unwrap_or_default();
        assert!(!kept.windows(secret.len()).any(|window| window == secret.as_bytes()), "{name}");
    }
}

#[test]
fn a_setting_is_validated_with_every_other_edit_of_its_file() {
    let Some(world) = World::new() else { return };
    world.write("etc/conf", "# kept\na 1\n");
    world.script("check", "echo $(grep -v '#' \"$1\") >> $T/log; ! grep -q '^a 9' \"$1\"");
    let set = |name: &str, key: &str, value: &str| {
        format!(
            "[setting.{name}]\npath = '$T/etc/conf'\nformat = 'space'\nvalues = {{ {key} = '{value}' }}\n\
             validate = ['$T/bin/check', '{{}}']\n"
        )
    };
    let applied = world.apply(&(set("first", "a", "2") + &set("second", "b", "3")));
    assert_eq!(applied.code, 0, "{applied:?}");
    assert_eq!(world.read("etc/conf"), "# kept\na 2\nb 3\n");
    assert_eq!(world.read("log"), "a 2 b 3\n", "once, with both");
    let applied = world.apply(&(set("first", "a", "9") + &set("second", "b", "3")));
    assert_eq!(applied.code, 2, "{applied:?}");
    assert!(applied.text.contains("refuses it: exit status 1"), "{applied:?}");
    assert_eq!(world.read("etc/conf"), "# kept\na 2\nb 3\n");
    let applied = world.apply("[setting.first]\npath = '$T/etc/conf'\nformat = 'space'\nvalues = { a = '2' }\nmode = '0640'\nvalidate = ['/bin/false']\n");
    assert_eq!(applied.code, 0, "owner and mode alone need no validator: {applied:?}");
}
