//! Real processes, and what is left of them when they are gone.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// A process of the test; killed and waited for in the end.
struct Process(Child);

impl Process {
    fn start(program: &str, arguments: &[&str]) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a test needs processes to look at")]
        let mut command = Command::new(program);
        // A pipe, so that what reads from it waits, and ends with this process at the latest.
        let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn pidfd(&self) -> OwnedFd {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
    }

    /// Waits until it runs its own program rather than a copy of this one.
    fn running(self, exe: &str) -> Self {
        // The arguments are there a moment later than the program.
        until(|| {
            let proc = format!("/proc/{}", self.0.id());
            link(CWD, &format!("{proc}/exe")).is_some_and(|link| link.ends_with(exe))
                && read(CWD, &format!("{proc}/cmdline")).is_some_and(|arguments| !arguments.is_empty())
        });
        self
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended, and been waited for.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[track_caller]
fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to pass");
        std::thread::yield_now();
    }
}

#[test]
fn a_running_process_is_known_whole_but_for_its_secrets() {
    let cat = Process::start("cat", &["-", "--"]).running("cat");
    let seen = witness(Some(cat.0.id()), Some(cat.pidfd()));
    assert!(!seen.is_self());
    let actor = identify(&seen, &mut UnitMap::new());
    assert_eq!((actor.confidence, actor.pid), (Confidence::Exact, Some(cat.0.id())));
    assert!(actor.exe.as_ref().is_some_and(|exe| exe.ends_with("/cat")), "{actor:?}");
    assert_eq!(actor.command.as_deref(), Some("cat - --"));
    assert_eq!(actor.name.as_deref(), Some("cat"));
    assert_eq!(actor.uid, Some(crate::host::current_ids().0));
    assert!(actor.cgroup.is_some(), "{actor:?}");

    let secret = Process::start("sh", &["-c", "read line; true", "--token", "hunter2"]).running("sh");
    let actor = identify(&witness(Some(secret.0.id()), Some(secret.pidfd())), &mut UnitMap::new());
    assert_eq!(actor.command.as_deref(), Some("sh -c 'read line; true' --token ***"));
}

#[test]
fn a_process_that_was_waited_for_has_no_pid() {
    let mut cat = Process::start("cat", &[]).running("cat");
    let (before, after) = (cat.pidfd(), cat.pidfd());
    let pid = cat.0.id();
    let seen = witness(Some(pid), Some(before));
    cat.end();
    // Seen while it lived: its number was proven then.
    let early = identify(&seen, &mut UnitMap::new());
    let late = witness(Some(pid), Some(after));
    assert_eq!(late.info.and_then(|info| info.pid), None);
    let late = identify(&late, &mut UnitMap::new());
    assert_eq!((late.pid, late.exe, late.command, late.name), (None, None, None, None));
    assert_ne!(late.confidence, Confidence::Exact);
    if seen.info.is_some() {
        assert_eq!((early.confidence, early.pid), (Confidence::Exact, Some(pid)));
        assert_eq!((early.exe, early.command, early.name), (None, None, None));
    }
}

#[test]
fn a_process_that_ended_and_was_not_waited_for_still_has_a_name() {
    let ended = Process::start("true", &[]);
    let pidfd = ended.pidfd();
    until(|| {
        let mut fds = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, 100_u16).unwrap() == 1
    });
    let actor = identify(&witness(Some(ended.0.id()), Some(pidfd)), &mut UnitMap::new());
    assert_eq!((actor.confidence, actor.pid), (Confidence::Exact, Some(ended.0.id())));
    assert_eq!(actor.name.as_deref(), Some("true"));
    assert_eq!((actor.exe, actor.command), (None, None));
}

#[test]
fn a_pid_that_is_not_that_of_its_pidfd_is_never_believed() {
    let one = Process::start("cat", &[]).running("cat");
    let other = Process::start("cat", &[]).running("cat");
    for pid in [Some(other.0.id()), Some(1), None] {
        let seen = witness(pid, Some(one.pidfd()));
        let actor = identify(&seen, &mut UnitMap::new());
        assert_eq!((actor.pid, actor.exe, actor.command), (None, None, None), "{pid:?}");
        assert_ne!(actor.confidence, Confidence::Exact);
    }
    let alone = identify(&witness(Some(one.0.id()), None), &mut UnitMap::new());
    assert_eq!(alone, Actor::default());
}

#[test]
fn without_a_pidfd_only_a_process_older_than_the_event_is_believed() {
    let before = now_in_ticks();
    let cat = Process::start("cat", &[]).running("cat");
    assert_eq!(identify(&witness_since(cat.0.id(), before), &mut UnitMap::new()), Actor::default());
    let started = start_ticks(&read(CWD, &format!("/proc/{}/stat", cat.0.id())).unwrap()).unwrap();
    until(|| now_in_ticks() > started);
    let actor = identify(&witness_since(cat.0.id(), now_in_ticks()), &mut UnitMap::new());
    assert_eq!((actor.confidence, actor.pid), (Confidence::Exact, Some(cat.0.id())));
    assert_eq!(identify(&witness_since(0, u64::MAX), &mut UnitMap::new()), Actor::default());
}

#[test]
fn files_of_proc_are_read_as_the_kernel_writes_them() {
    let hybrid = "9:name=systemd:/user.slice/user-1000.slice/session-3.scope\n4:memory:/x\n0::/\n";
    let check = |unified: Option<&str>, proc: Option<&str>, expected: Option<&str>| {
        assert_eq!(best_place(unified.map(str::to_owned), proc).as_deref(), expected, "{unified:?} {proc:?}");
    };
    check(Some("/"), Some(hybrid), Some("/user.slice/user-1000.slice/session-3.scope"));
    check(Some("/a.service"), Some(hybrid), Some("/a.service"));
    check(Some("/group"), Some("0::/group\n"), Some("/group"));
    check(None, Some("0::/a.service (deleted)\n"), Some("/a.service"));
    check(None, Some("4:memory:/a.service\n"), None);
    check(Some("/"), None, Some("/"));
    check(None, None, None);
    assert_eq!(real_uid("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(1000));
    let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20\n";
    assert_eq!(start_ticks(stat), Some(777));
}
