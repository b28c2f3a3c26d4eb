//! Pulls the policy: starts the fetch child, ends it at its deadline, and turns its answer into a sentence for an operator.
//!
//! This is the second place that starts a process, next to `host/exec.rs`, and it starts one program only: this very binary,
//! as `rekindle __fetch`. The child in turn runs `ssh` for `ssh` URLs. Both are in a process group of their own, which is
//! killed as a whole, so that a hanging `ssh` never outlives the pull.

use std::io;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::http::excerpt;
pub use super::pull::Check;
use super::pull::{PullAnswer, PullRequest};
use crate::config::Settings;

/// Longest answer of the child and longest kept part of its errors, in bytes.
const MAX_OUTPUT: u64 = 64 * 1024;

/// Variables that the child keeps: where programs and certificates are, and which proxy to use.
const ENVIRONMENT: [&str; 11] = [
    "PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "HOME",
];

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No `[policy]`.
    #[error("no policy is configured: set `url` in `[policy]` of /etc/rekindle/agent.toml")]
    NotConfigured,
    /// The child could not be run.
    #[error("cannot run the fetch child `{program}`")]
    Run {
        /// Its program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The deadline passed.
    #[error("cannot fetch from `{url}`: it took longer than {}{hint}", seconds(*.timeout))]
    Timeout {
        /// From where.
        url: String,
        /// The deadline.
        timeout: Duration,
        /// What `ssh` said last, if it did.
        hint: String,
    },
    /// The child ended without an answer.
    #[error("cannot fetch from `{url}`: {why}")]
    Died {
        /// From where.
        url: String,
        /// What its end means.
        why: String,
    },
    /// The child answered that it failed.
    #[error("{explanation}")]
    Failed {
        /// The sentence for an operator.
        explanation: String,
    },
}

/// Runs the hidden subcommand `__fetch`: one request on standard input, one answer on standard output.
pub fn child_main() -> ExitCode {
    super::pull::child_main()
}

/// Pulls the configured branch into the policy repository and returns its head as hexadecimal. `exe` is this binary.
pub async fn fetch(settings: &Settings, exe: &Path, check: Check) -> Result<String, FetchError> {
    let policy = settings.policy.as_ref().ok_or(FetchError::NotConfigured)?;
    let request = PullRequest {
        url: policy.url.clone(),
        branch: policy.branch.clone(),
        repository: settings.paths.repository(),
        ca: policy.ca.clone(),
        ssh_key: policy.ssh_key.clone(),
        known_hosts: policy.known_hosts.clone(),
        token_file: policy.token_file.clone(),
        timeout: policy.timeout,
        check,
    };
    let run_failed = |source| FetchError::Run { program: exe.display().to_string(), source };
    let text = serde_json::to_vec(&request).map_err(|error| run_failed(error.into()))?;
    let mut child = start(exe).map_err(run_failed)?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let send = async {
        if let Some(mut stdin) = stdin {
            // A child that died early says so by its status.
            stdin.write_all(&text).await.ok();
        }
    };
    let mut said = Vec::new();
    let talk = async {
        let ((), answer, (), status) =
            tokio::join!(send, read_bounded(stdout), read_into(stderr, &mut said), child.wait());
        (answer, status)
    };
    let ended = tokio::time::timeout(policy.timeout, talk).await;
    // Also what the child left running, such as an `ssh` that hangs.
    drop(group);
    match ended {
        Err(_) => {
            child.wait().await.ok();
            let hint = last_line(&said).map(|line| format!("; ssh said: {line}")).unwrap_or_default();
            Err(FetchError::Timeout { url: policy.url.clone(), timeout: policy.timeout, hint })
        }
        Ok((_, Err(source))) => Err(run_failed(source)),
        Ok((answer, Ok(status))) => match serde_json::from_slice(&answer) {
            Ok(PullAnswer::Head(head)) => Ok(head),
            Ok(PullAnswer::Failed(why)) => Err(FetchError::Failed { explanation: explain(&why, &said) }),
            Err(_) => Err(FetchError::Died { url: policy.url.clone(), why: obituary(status, &said) }),
        },
    }
}

fn start(exe: &Path) -> io::Result<Child> {
    let kept = ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    Command::new(exe)
        .arg("__fetch")
        .env_clear()
        .envs(kept)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// The child's process group; killed when the pull ends, however it ends.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It is usually gone already.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

async fn read_bounded(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut content = Vec::new();
    read_into(pipe, &mut content).await;
    content
}

/// Keeps the first [`MAX_OUTPUT`] bytes and drains the rest, so that the writer never blocks.
async fn read_into(pipe: Option<impl AsyncRead + Unpin>, content: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    if (&mut pipe).take(MAX_OUTPUT).read_to_end(content).await.is_ok() {
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await.ok();
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

fn last_line(said: &[u8]) -> Option<String> {
    said.split(|byte| *byte == b'\n').rev().map(excerpt).find(|line| !line.is_empty())
}

/// What it means that the child ended without an answer.
fn obituary(status: ExitStatus, said: &[u8]) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    let what = match status.signal() {
        Some(25) => "the repository is larger than the fetch child may write (512 MiB in one file)".to_owned(),
        Some(6) => {
            "the fetch child aborted, most likely because the repository needs more than 1 GiB of memory".to_owned()
        }
        Some(9) => "the fetch child was killed, most likely because the host or the unit ran out of memory".to_owned(),
        Some(signal) => format!("the fetch child was ended by signal {signal}"),
        None => format!("the fetch child ended without an answer ({status})"),
    };
    match last_line(said) {
        Some(line) => format!("{what}: {line}"),
        None => what,
    }
}

/// Puts what an operator can do about it before what the libraries said. `said` is the child's standard error, where `ssh`
/// gives its reasons.
pub(super) fn explain(why: &str, said: &[u8]) -> String {
    let ssh = excerpt_all(said);
    let any = |needles: &[&str]| needles.iter().any(|needle| why.contains(needle) || ssh.contains(needle));
    let hint = if any(&["No credentials were returned", "401 Unauthorized", "status code 401"]) {
        "the server wants credentials (401): set `token_file` in `[policy]`, or renew the token in it"
    } else if any(&["403 Forbidden", "status code 403"]) {
        "the server refuses these credentials (403): does the token have read access to this repository?"
    } else if any(&["404 Not Found", "status code 404"]) {
        "the server has no such repository (404): check `url` in `[policy]`; some servers also say this for a missing token"
    } else if any(&["UnknownIssuer", "BadSignature"]) {
        "the server's certificate is from an unknown authority: set `ca` in `[policy]` to the PEM file of the one that issued it"
    } else if any(&["certificate expired", "CertExpired", "Expired"]) {
        "the server's certificate has expired, or this host's clock is wrong"
    } else if any(&["NotValidForName", "certificate not valid for name"]) {
        "the server's certificate is for another name than the one in `url`"
    } else if any(&["Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED"]) {
        "the server's host key is not the one in `known_hosts` of `[policy]`: verify it out of band, then add it there"
    } else if any(&["Permission denied (os error"]) {
        "the courier may not read it: it runs as the user rekindle"
    } else if any(&["Permission denied (", "Load key"]) {
        "the ssh server refuses the key: check `ssh_key` in `[policy]`, that the courier may read it, and the server's access list"
    } else if any(&["Could not resolve hostname", "dns error", "failed to lookup address"]) {
        "the server's name cannot be resolved"
    } else if any(&["Connection refused"]) {
        "nothing listens at the server's address (connection refused)"
    } else if any(&["operation timed out", "Connection timed out", "timed out"]) {
        "the server did not answer in time"
    } else if any(&["No such file or directory"]) && any(&["`ssh"]) {
        "the program ssh is not installed"
    } else {
        ""
    };
    let mut text = why.to_owned();
    if !hint.is_empty() {
        // The first sentence says what was attempted; the reason follows it at once.
        let (attempt, rest) = why.split_once(": ").unwrap_or((why, ""));
        text = format!("{attempt}: {hint}");
        if !rest.is_empty() {
            text.push_str(&format!(" ({rest})"));
        }
    }
    if !ssh.is_empty() {
        text.push_str(&format!("; ssh said: {ssh}"));
    }
    text
}

fn excerpt_all(said: &[u8]) -> String {
    let lines: Vec<String> = said.split(|byte| *byte == b'\n').map(excerpt).filter(|line| !line.is_empty()).collect();
    lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join(" / ")
}
