//! The parent's half of a pull: deadlines, deaths and what it says about them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rekindle::config::{PolicySettings, TrustSettings};
use rekindle::courier::fetch::{Check, FetchError, fetch};
use rekindle::spool::{FetchNow, FetchResult};

use crate::support::Host;

fn policy(url: String) -> PolicySettings {
    PolicySettings {
        url,
        branch: "main".into(),
        interval: Duration::from_secs(60),
        trust: TrustSettings::None,
        ca: None,
        ssh_key: None,
        known_hosts: None,
        token_file: None,
        timeout: Duration::from_secs(20),
    }
}

fn pull(host: &Host, exe: &Path) -> Result<String, FetchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(fetch(&host.settings, exe, Check::Stored))
}

/// A program that stands in for the fetch child.
fn program(host: &Host, script: &str) -> PathBuf {
    let path = host.file("child", &format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_child_that_hangs_is_killed_with_everything_it_started() {
    let mut host = Host::new();
    host.settings.policy = Some(PolicySettings { timeout: Duration::from_millis(500), ..policy("ssh://h/p".into()) });
    let pids = host.dir.path().join("pids");
    let exe =
        program(&host, &format!("echo 'ssh: still waiting' >&2\nsleep 600 & echo $! $$ > {}\nwait", pids.display()));
    let begun = Instant::now();
    let error = pull(&host, &exe).unwrap_err().to_string();
    assert_eq!(error, "cannot fetch from `ssh://h/p`: it took longer than 0.5 s; ssh said: ssh: still waiting");
    assert!(begun.elapsed() < Duration::from_secs(10));
    let pids = std::fs::read_to_string(pids).unwrap();
    for pid in pids.split_whitespace() {
        let deadline = Instant::now() + Duration::from_secs(10);
        let alive = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            // An orphan that nobody has collected yet is as good as gone.
            Ok(stat) => !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'),
            Err(_) => false,
        };
        while alive() {
            assert!(Instant::now() < deadline, "process {pid} outlived the pull");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_child_that_dies_is_explained() {
    let check = |script: &str, expected: &str| {
        let mut host = Host::new();
        host.settings.policy = Some(policy("ssh://h/p".into()));
        let exe = program(&host, script);
        let error = pull(&host, &exe).expect_err(script).to_string();
        assert!(error.contains(expected), "{script}: {error}");
    };
    check("exit 3", "ended without an answer (exit status: 3)");
    check("echo oops >&2; exit 1", "ended without an answer (exit status: 1): oops");
    check("kill -9 $$", "was killed");
    check("kill -6 $$", "needs more than 1 GiB of memory");
    check("kill -25 $$", "larger than the fetch child may write");
    check("echo garbage", "ended without an answer");
    check("head -c 10000000 /dev/zero", "ended without an answer");
    check("head -c 10000000 /dev/zero >&2", "ended without an answer");
    check(
        r#"echo 'Host key verification failed.' >&2; echo '{"failed":"cannot fetch from `ssh://h/p`: failed to fill whole buffer"}'"#,
        "cannot fetch from `ssh://h/p`: the server's host key is not the one in `known_hosts`",
    );
    check(
        r#"echo 'git@h: Permission denied (publickey).' >&2; echo '{"failed":"cannot fetch from `ssh://h/p`: eof"}'"#,
        "the ssh server refuses the key",
    );
}

#[test]
fn a_pull_without_a_policy_or_a_program_says_so() {
    let mut host = Host::new();
    let nowhere = Path::new("/nowhere/rekindle");
    assert!(matches!(pull(&host, nowhere), Err(FetchError::NotConfigured)));
    host.settings.policy = Some(policy("ssh://h/p".into()));
    assert!(matches!(pull(&host, nowhere), Err(FetchError::Run { .. })));
}

/// Runs git in a directory of the host.
fn git(host: &Host, args: &[&str]) -> String {
    let source = host.dir.path().join("source");
    std::fs::create_dir_all(&source).unwrap();
    #[expect(clippy::disallowed_methods, reason = "the test needs a repository made by git itself")]
    let mut git = std::process::Command::new("git");
    git.args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]).args(args);
    git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let output = git.current_dir(source).output().expect("git is installed");
    assert!(output.status.success(), "git {args:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn commit(host: &Host, message: &str) -> String {
    git(host, &["commit", "-q", "--allow-empty", "-m", message]);
    git(host, &["rev-parse", "HEAD"])
}

#[test]
fn the_courier_pulls_in_its_child_and_tells_the_agent() {
    let mut host = Host::new();
    git(&host, &["init", "-q"]);
    let first = commit(&host, "first");
    let url = format!("file://{}", host.dir.path().join("source").display());
    host.settings.policy = Some(PolicySettings { interval: Duration::from_millis(200), ..policy(url) });
    let inbox = host.inbox();
    let result = || inbox.read_slot::<FetchResult>().unwrap();
    let brought = |commit: &str| result().is_some_and(|r| r.commit.as_deref() == Some(commit) && r.error.is_none());
    host.run_until("the first commit", || brought(&first));
    let repo = gix::open_opts(host.settings.paths.repository(), gix::open::Options::isolated()).unwrap();
    assert_eq!(repo.find_reference("refs/policy/current").unwrap().id().to_string(), first);

    let second = commit(&host, "second");
    host.run_until("the second commit after the interval", || brought(&second));

    git(&host, &["branch", "-m", "elsewhere"]);
    host.run_until("an error that keeps the last commit", || {
        result().is_some_and(|r| {
            r.commit.as_deref() == Some(second.as_str())
                && r.error.is_some_and(|e| e.contains("there is no branch `main`"))
        })
    });
    git(&host, &["branch", "-m", "main"]);
    host.run_until("it comes back by itself", || brought(&second));
}

#[test]
fn an_operator_does_not_wait_for_the_interval() {
    let mut host = Host::new();
    git(&host, &["init", "-q"]);
    let first = commit(&host, "first");
    let url = format!("file://{}", host.dir.path().join("source").display());
    host.settings.policy = Some(PolicySettings { interval: Duration::from_secs(3600), ..policy(url) });
    let inbox = host.inbox();
    let brought = |commit: &str, answers: Option<Timestamp>| {
        let result = inbox.read_slot::<FetchResult>().unwrap();
        result.is_some_and(|r| r.commit.as_deref() == Some(commit) && r.answers == answers)
    };
    let ask = || {
        let asked = Timestamp::now();
        host.outbox().write_slot(&FetchNow { version: 1, asked }).unwrap();
        Some(asked)
    };
    let (mut head, mut asked, mut step) = (first, None, 0);
    host.run_until("the second commit, an hour early, and twice an answer that brings nothing new", || {
        if !brought(&head, asked) {
            return false;
        }
        if step == 0 {
            head = commit(&host, "second");
        }
        asked = ask();
        step += 1;
        step > 3
    });
}
