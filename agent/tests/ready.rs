//! What a real agent process has done by the time that it says it is ready.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test's helpers fail as its body does")]

use std::fs::{self, File, FileTimes};
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gix::objs::Write as _;
use jiff::Timestamp;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use rekindle::agent::revisions::Revisions;
use rekindle::policy::trust::{self, Trust};
use rekindle::policy::{Revision, candidate};
use rekindle::record::Record;
use tempfile::TempDir;

/// Longer than any busy machine needs; reached only by a test that fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// A host's root, the agent's state, and the socket on which systemd would listen.
struct Sandbox {
    dir: TempDir,
    notify: UnixDatagram,
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Agent {
    /// As systemd stops it.
    fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Sandbox {
    /// With a policy in force that no run has carried out yet.
    fn new(policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["root/etc", "state/outbox", "state/inbox", "state/courier", "state/policy", "run"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        for name in ["state", "run"] {
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        let commit = commit(&path("policy.git"), policy);
        let candidate = candidate::from_commit(&path("policy.git"), &commit).unwrap();
        let verified = trust::verify(candidate, &Trust::Unsigned, Timestamp::now()).unwrap();
        trust::store(&verified, &path("state/policy")).unwrap();
        let in_force = Some(Revision::new(&commit));
        let revisions = Revisions { in_force: in_force.clone(), high_water: in_force, ..Revisions::default() };
        Record::open(&path("state")).unwrap().record.save("revisions", &revisions).unwrap();
        let config = format!(
            "[policy]\nurl = \"file:///nowhere\"\ntrust = \"none\"\n[paths]\nroot = \"{0}/root\"\nstate = \"{0}/state\"\nruntime = \"{0}/run\"\n",
            dir.path().display()
        );
        fs::write(path("agent.toml"), config).unwrap();
        fs::set_permissions(path("agent.toml"), fs::Permissions::from_mode(0o600)).unwrap();
        let notify = UnixDatagram::bind(path("notify")).unwrap();
        notify.set_read_timeout(Some(DEADLINE)).unwrap();
        setsockopt(&notify, sockopt::ReceiveTimestampns, &true).unwrap();
        Self { dir, notify }
    }

    fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.host(path)).unwrap_or_default()
    }

    fn start(&self) -> Agent {
        let log = File::options().append(true).create(true).open(self.dir.path().join("agent.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_rekindle"))
            .arg("--config")
            .arg(self.dir.path().join("agent.toml"))
            .arg("agent")
            .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Agent(child)
    }

    /// Waits until the agent says something that contains `text`. Returns when it said so, by the kernel's clock.
    fn wait_for(&self, text: &str) -> TimeSpec {
        let ends = Instant::now() + DEADLINE;
        while Instant::now() < ends {
            let mut buffer = [0; 4096];
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let mut ancillary = nix::cmsg_space!(TimeSpec);
            let message =
                recvmsg::<()>(self.notify.as_raw_fd(), &mut parts, Some(&mut ancillary), MsgFlags::empty()).unwrap();
            let at = message
                .cmsgs()
                .unwrap()
                .find_map(|part| if let ControlMessageOwned::ScmTimestampns(at) = part { Some(at) } else { None });
            let length = message.bytes;
            if String::from_utf8_lossy(&buffer[..length]).contains(text) {
                return at.unwrap();
            }
        }
        panic!("the agent does not say `{text}`:\n{}", fs::read_to_string(self.dir.path().join("agent.log")).unwrap());
    }
}

/// Commits a policy to a new repository. Returns the commit's id.
fn commit(repository: &Path, policy: &str) -> String {
    gix::init_bare(repository).unwrap();
    let repository = gix::open_opts(repository, gix::open::Options::isolated()).unwrap();
    let oid = repository.write_blob(policy.as_bytes()).unwrap().detach();
    let mode = gix::objs::tree::EntryKind::Blob.into();
    let entries = vec![gix::objs::tree::Entry { mode, filename: "policy.toml".into(), oid }];
    let tree = repository.write_object(&gix::objs::Tree { entries }).unwrap();
    let who = "Test <test@example.org> 1700000000 +0000";
    let commit = format!("tree {tree}\nauthor {who}\ncommitter {who}\n\nTest\n");
    repository.objects.write_buf(gix::objs::Kind::Commit, commit.as_bytes()).unwrap().to_string()
}

const POLICY: &str = r#"[policy]
name = "test"

[file."/etc/motd"]
content = "kept by rekindle\n"

[directory."/etc/app"]
mode = "0755"

[file."/etc/app/conf"]
content = "listen 8080\n"

[symlink."/etc/app/current"]
target = "conf"
"#;

#[test]
fn case_28_what_drifted_while_the_agent_was_down_is_repaired_before_it_is_ready() {
    let sandbox = Sandbox::new(POLICY);
    let agent = sandbox.start();
    // The run that settles the revision.
    sandbox.wait_for("4 of 4 resources in sync");
    agent.stop();

    // The same size, and the times put back: only the content tells, and a change time that nobody remembers.
    let motd = sandbox.host("/etc/motd");
    let before = fs::metadata(&motd).unwrap();
    fs::write(&motd, "kept by an other\n").unwrap();
    let times = FileTimes::new().set_modified(before.modified().unwrap()).set_accessed(before.accessed().unwrap());
    File::options().write(true).open(&motd).unwrap().set_times(times).unwrap();
    let after = fs::metadata(&motd).unwrap();
    assert_eq!((after.len(), after.modified().unwrap()), (before.len(), before.modified().unwrap()));
    // Kinds of drift besides content, in a tree of its own.
    fs::set_permissions(sandbox.host("/etc/app"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::remove_file(sandbox.host("/etc/app/conf")).unwrap();
    fs::remove_file(sandbox.host("/etc/app/current")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", sandbox.host("/etc/app/current")).unwrap();

    let agent = sandbox.start();
    let ready = sandbox.wait_for("READY=1");
    for path in ["/etc/motd", "/etc/app", "/etc/app/conf", "/etc/app/current"] {
        let metadata = fs::symlink_metadata(sandbox.host(path)).unwrap();
        let repaired = TimeSpec::new(metadata.ctime(), metadata.ctime_nsec());
        assert!(repaired <= ready, "`{path}` was put right at {repaired}, after READY=1 at {ready}");
    }
    assert_eq!(sandbox.read("/etc/motd"), "kept by rekindle\n");
    assert_eq!(sandbox.read("/etc/app/conf"), "listen 8080\n");
    assert_eq!(fs::read_link(sandbox.host("/etc/app/current")).unwrap(), Path::new("conf"));
    assert_eq!(fs::metadata(sandbox.host("/etc/app")).unwrap().mode() & 0o7777, 0o755);
    sandbox.wait_for("4 of 4 resources in sync");
    agent.stop();
}

#[test]
fn a_revision_that_was_never_carried_out_is_not_begun_before_the_agent_is_ready() {
    let sandbox = Sandbox::new(POLICY);
    fs::write(sandbox.host("/etc/motd"), "as it was\n").unwrap();
    let agent = sandbox.start();
    let ready = sandbox.wait_for("READY=1");
    sandbox.wait_for("4 of 4 resources in sync");
    let metadata = fs::metadata(sandbox.host("/etc/motd")).unwrap();
    assert_eq!(sandbox.read("/etc/motd"), "kept by rekindle\n");
    assert!(TimeSpec::new(metadata.ctime(), metadata.ctime_nsec()) > ready);
    agent.stop();
}
