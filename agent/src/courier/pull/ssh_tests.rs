//! Pulls over ssh from a real sshd on loopback, with keys of the test's own.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::tests::Pair;
use super::*;
use crate::courier::fetch::explain;

struct Sshd {
    child: Child,
    url: String,
    key: PathBuf,
    known_hosts: PathBuf,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[expect(clippy::disallowed_methods, reason = "the test needs a real ssh server and its tools")]
fn run(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("`{program}`: {e}; openssh-server and openssh-client are needed"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A new key without a passphrase. Returns the path of the private half and the public line.
fn key(pair: &Pair, name: &str) -> (PathBuf, String) {
    let path = pair.source().parent().unwrap().join(name);
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path.to_str().unwrap()]);
    let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
    (path, public.trim().to_owned())
}

impl Sshd {
    fn start(pair: &Pair) -> Self {
        let (host_key, host_public) = key(pair, "host");
        let (client_key, client_public) = key(pair, "client");
        let authorized = pair.file("authorized", &format!("{client_public}\n"));
        let root = rustix::process::geteuid().is_root();
        if root {
            // Where sshd separates privileges; its package makes it at boot.
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = pair.file(
            "sshd_config",
            &format!(
                "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPidFile none\n\
                 PasswordAuthentication no\nPermitRootLogin yes\nUsePAM {}\n",
                host_key.display(),
                authorized.display(),
                if root { "yes" } else { "no" },
            ),
        );
        #[expect(clippy::disallowed_methods, reason = "the test needs a real ssh server")]
        let child = std::process::Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(config)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssh-server is installed");
        let ends = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < ends, "sshd does not listen");
            std::thread::yield_now();
        }
        let known_hosts = pair.file("known_hosts", &format!("[127.0.0.1]:{port} {host_public}\n"));
        let user = run("id", &["-un"]);
        let url = format!("ssh://{user}@127.0.0.1:{port}{}/.git", pair.source().display());
        Self { child, url, key: client_key, known_hosts }
    }

    fn request(&self, pair: &Pair) -> PullRequest {
        PullRequest {
            url: self.url.clone(),
            ssh_key: Some(self.key.clone()),
            known_hosts: Some(self.known_hosts.clone()),
            ..pair.request()
        }
    }
}

#[test]
fn a_branch_arrives_over_ssh_and_grows() {
    let pair = Pair::new();
    let first = pair.commit("policy.toml", "one");
    let sshd = Sshd::start(&pair);
    let request = sshd.request(&pair);
    assert_eq!(pull(&request).map(|id| id.to_string()).map_err(|error| chain(&error)), Ok(first.clone()));
    let second = pair.commit("policy.toml", "two");
    assert_eq!(pull(&request).unwrap().to_string(), second);
    assert_eq!(pair.log(), [second, first], "the whole history is there");
}

#[test]
fn an_ssh_server_that_is_not_known_or_does_not_know_us_is_refused() {
    let pair = Pair::new();
    pair.commit("policy.toml", "one");
    let sshd = Sshd::start(&pair);
    let check = |change: &dyn Fn(&mut PullRequest)| {
        let mut request = sshd.request(&pair);
        change(&mut request);
        // What `ssh` says goes to the child's standard error, which this test does not collect.
        explain(&chain(&pull(&request).expect_err("the pull is refused")), b"")
    };
    let (stranger, _) = key(&pair, "stranger");
    let unknown = pair.file("unknown_hosts", "");
    for text in [check(&|r| r.ssh_key = Some(stranger.clone())), check(&|r| r.known_hosts = Some(unknown.clone()))] {
        assert!(text.contains("cannot fetch from `ssh://"), "{text}");
    }
    assert!(check(&|r| r.branch = "absent".into()).contains("there is no branch `absent`"));
}
