use super::*;

fn shell(script: &str) -> Command {
    Command::new("/bin/sh").args(["-c", script])
}

#[test]
fn ends_are_told_apart() {
    let check = |script: &str, code: Option<i32>, status: &str, stdout: &str, stderr: &str| {
        let output = run_direct(&shell(script)).unwrap();
        assert_eq!(output.code, code, "{script}");
        assert_eq!(output.status, status, "{script}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{script}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), stderr, "{script}");
    };
    check("echo out; echo err >&2", Some(0), "exit status 0", "out\n", "err\n");
    check("exit 3", Some(3), "exit status 3", "", "");
    check("kill -9 $$", None, "signal 9", "", "");
    check("echo one; echo two > /dev/stdout; printf three", Some(0), "exit status 0", "two\nthree", "");
}

#[test]
fn the_environment_is_only_what_was_given() {
    let output = run_direct(&Command::new("env").env("A", "b c")).unwrap();
    let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["A=b c", "HOME=/root", "LANG=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
}

#[test]
fn standard_input_is_the_bytes_or_nothing() {
    let mut cat = Command::new("cat");
    assert_eq!(run_direct(&cat).unwrap().stdout, b"");
    cat.stdin = vec![b'x'; 1 << 20];
    let output = run_direct(&cat).unwrap();
    assert_eq!(output.stdout, vec![b'x'; MAX_OUTPUT]);
}

#[test]
fn the_child_leads_a_session_of_its_own_and_has_no_other_descriptors() {
    // As a descriptor that whoever started us left open.
    let inherited = rustix::io::dup(std::io::stderr()).unwrap();
    let output = run_direct(&shell("cut -d' ' -f1,6 /proc/$$/stat; ls /proc/$$/fd")).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    let (pid, session) = lines.next().unwrap().split_once(' ').unwrap();
    assert_eq!(pid, session);
    assert_eq!(lines.filter(|fd| fd.parse::<u32>().unwrap() < 10).collect::<Vec<_>>(), ["0", "1", "2"]);
    drop(inherited);
}

#[test]
fn the_child_may_open_as_many_files_as_programs_expect() {
    crate::host::thread::raise_open_files();
    let output = run_direct(&shell("ulimit -S -n")).unwrap();
    let limit: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
    assert!(limit <= OPEN_FILES, "{limit}");
}

#[test]
fn the_deadline_ends_everything_that_was_started() {
    let mut command = shell("sleep 600 & echo $!; wait");
    command.deadline = Duration::from_millis(300);
    let started = Instant::now();
    let output = run_direct(&command).unwrap();
    assert_eq!((output.code, output.status.as_str()), (None, "killed after 0 s"));
    assert!(started.elapsed() < GRACE);
    let grandchild: i32 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
    let gone = || match std::fs::read_to_string(format!("/proc/{grandchild}/stat")) {
        Err(_) => true,
        Ok(stat) => stat.contains(") Z "),
    };
    while !gone() {
        assert!(started.elapsed() < GRACE, "the grandchild still runs");
        std::thread::yield_now();
    }
}

/// Whoever starts this process with SIGCHLD ignored leaves it nothing to wait for.
#[test]
fn what_is_alone_leaves_nothing_behind_even_when_it_cannot_be_waited_for() {
    const INNER: &str = "REKINDLE_TEST_SIGCHLD_IGNORED";
    let this = "host::exec::tests::what_is_alone_leaves_nothing_behind_even_when_it_cannot_be_waited_for";
    if std::env::var_os(INNER).is_none() {
        let program = std::env::current_exe().unwrap();
        let inner = Command::new("env")
            .args(["--ignore-signal=CHLD".into(), program.into_os_string()])
            .args(["--exact", this, "--nocapture"])
            .env(INNER, "1");
        let output = run_direct(&inner).unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status, "exit status 0", "{said}");
        assert!(said.contains("test result: ok. 1 passed"), "{said}");
        return;
    }
    let name = format!("test-unwaited-{}", std::process::id());
    // It ends when the other is in a session of its own.
    let script = "mkfifo $0 && { setsid sh -c 'echo > $0; exec sleep 600' $0 & read x < $0; }";
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo").into_os_string();
    let command = Command {
        name: Some(name.clone()),
        is_alone: true,
        ..Command::new("/bin/sh").args(["-c", script]).args([fifo])
    };
    let error = run_direct(&command).unwrap_err();
    assert!(matches!(error, ExecError::Wait { .. }), "{error:?}");
    assert_eq!(survivor::kill_found(format!("{}={name}", survivor::MARK).as_bytes()), 0);
}

#[test]
fn a_grandchild_that_keeps_the_output_open_delays_nobody() {
    let started = Instant::now();
    let output = run_direct(&shell("sleep 20 & echo done")).unwrap();
    assert_eq!(output.stdout, b"done\n");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let check = |program: &str| {
        let error = run_direct(&Command::new(program)).unwrap_err();
        assert!(matches!(error, ExecError::Start { .. }), "{error:?}");
    };
    check("no-such-program");
    check("/no/such/program");
    check("../bin/sh");
}

#[test]
fn foreign_output_is_bounded_and_has_no_control_characters() {
    let check = |bytes: &[u8], expected: &str| assert_eq!(escape(bytes), expected);
    check(b"plain", "plain");
    check(b"two\n\n lines \r\n", "two; lines");
    check(b"\x1b[31mred\x07", "\\u{1b}[31mred\\u{7}");
    check("a\u{202e}b".as_bytes(), "a\\u{202e}b");
    check(b"caf\xc3\xa9 \xff", "café \u{fffd}");
    assert_eq!(escape(&[b'x'; 100_000]).len(), MAX_ESCAPED);
}

#[test]
fn dollars_survive_systemd() {
    assert_eq!(double_dollars(OsStr::new("a$b$$")), "a$$b$$$$");
}
