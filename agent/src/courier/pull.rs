//! The inside of the fetch child: brings one branch of a git repository into the bare policy repository.
//!
//! It runs in a process of its own because git's wire formats are the most complex input that this program takes from
//! strangers: its memory and file sizes are limited, and its parent ends it at the deadline, also while `ssh` hangs.
//! It never checks anything out and never judges a commit: the agent verifies what it reads from the repository.
//!
//! Objects reach the repository before the reference that needs them, and parents before children, so an object that is
//! there has all its ancestors. A repository that is damaged all the same, say by a power cut, is built anew beside the old
//! one and exchanged for it.

use std::collections::HashSet;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gix::objs::Write as _;
use gix::objs::tree::EntryKind;
use gix::protocol::transport::client::blocking_io::http;
use gix::refs::transaction::PreviousValue;
use gix::remote::Direction;
use gix::url::Scheme;
use gix::{ObjectId, Repository};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::http::{certificates, chain, read_token};

/// The reference that a pull moves.
pub(super) const REFERENCE: &str = "refs/policy/current";

/// Address space of the child, in bytes.
const MAX_MEMORY: u64 = 1024 * 1024 * 1024;

/// Largest file that the child may write: a pack, in bytes.
const MAX_FILE: u64 = 512 * 1024 * 1024;

/// Packs that may pile up before the repository is built anew; every pull that brings something adds one.
const MAX_PACKS: usize = 64;

/// Directories inside directories that a policy may have.
const MAX_DEPTH: usize = 128;

/// What the parent asks for, as JSON on standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PullRequest {
    pub(super) url: String,
    pub(super) branch: String,
    pub(super) repository: PathBuf,
    pub(super) ca: Option<PathBuf>,
    pub(super) ssh_key: Option<PathBuf>,
    pub(super) known_hosts: Option<PathBuf>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) timeout: Duration,
    pub(super) check: Check,
}

/// Whether what an earlier pull stored is read through first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Once after each start: a power cut may have torn objects that were not yet on the disk.
    Stored,
    /// On every other pull.
    Nothing,
}

/// What the child answers, as JSON on standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum PullAnswer {
    /// The branch's head is stored whole, and this is it.
    Head(String),
    /// The whole chain of errors.
    Failed(String),
}

/// Why a pull failed, inside the child.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error("`{url}` is not a usable git URL: expected `https://`, `ssh://`, `user@host:path` or `file:///`")]
    Url { url: String },
    #[error("cannot open the repository `{}`", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: gix::Error,
    },
    #[error("cannot make the repository `{}`", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: gix::Error,
    },
    #[error("cannot exchange the repository `{}`", path.display())]
    Exchange {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use `{}`", path.display())]
    Credential {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there is no branch `{branch}` in `{url}`")]
    NoBranch { url: String, branch: String },
    #[error("cannot fetch from `{url}`")]
    Fetch {
        url: String,
        #[source]
        source: gix::Error,
    },
    #[error("cannot copy `{id}` from `{url}`")]
    Copy {
        url: String,
        id: String,
        #[source]
        source: gix::Error,
    },
    #[error("cannot copy `{id}` from `{url}`: {why}")]
    Refused { url: String, id: String, why: &'static str },
    #[error("cannot move `{REFERENCE}`")]
    Reference {
        #[source]
        source: gix::Error,
    },
    #[error("cannot bring `{}` to the disk", path.display())]
    Sync {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The child's whole life: limits, one request, one answer.
pub(super) fn child_main() -> ExitCode {
    let answer = match confine().and_then(|()| read_request()) {
        Ok(request) => match pull(&request) {
            Ok(head) => PullAnswer::Head(head.to_string()),
            Err(error) => PullAnswer::Failed(chain(&error)),
        },
        Err(error) => PullAnswer::Failed(format!("cannot start the fetch child: {error}")),
    };
    let written = serde_json::to_vec(&answer).map_err(io::Error::from).and_then(|text| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(&text)?;
        stdout.flush()
    });
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn confine() -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    setrlimit(Resource::RLIMIT_AS, MAX_MEMORY, MAX_MEMORY)?;
    setrlimit(Resource::RLIMIT_FSIZE, MAX_FILE, MAX_FILE)?;
    // A core file would hold the token.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}

fn read_request() -> io::Result<PullRequest> {
    let mut text = Vec::new();
    io::stdin().lock().take(64 * 1024).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Brings the branch into the repository and returns its head.
pub(super) fn pull(request: &PullRequest) -> Result<ObjectId, PullError> {
    super::http::install_crypto();
    let options = open_options(request);
    let stored = match request.repository.join("HEAD").symlink_metadata() {
        Ok(_) => open(&request.repository, &options).and_then(|repo| sound(repo, request.check)),
        // A directory without HEAD is what a killed creation leaves; it is built anew as well.
        Err(_) => create(&request.repository, &options),
    };
    match stored {
        Ok(repo) if n_packs(&repo) <= MAX_PACKS => bring(&repo, request),
        Ok(_) | Err(PullError::Open { .. } | PullError::Create { .. } | PullError::Copy { .. }) => {
            rebuild(request, &options)
        }
        Err(error) => Err(error),
    }
}

fn rebuild(request: &PullRequest, options: &gix::open::Options) -> Result<ObjectId, PullError> {
    let path = &request.repository;
    let failed = |source| PullError::Exchange { path: path.clone(), source };
    let (new, old) = (path.with_extension("git.new"), path.with_extension("git.old"));
    for leftover in [&new, &old] {
        remove_tree(leftover).map_err(failed)?;
    }
    let repo = create(&new, options)?;
    let head = bring(&repo, request)?;
    drop(repo);
    // Between the two renames a reader finds no repository; it looks again later, and what it has verified stays in force.
    match std::fs::rename(path, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    std::fs::rename(&new, path).map_err(failed)?;
    remove_tree(&old).map_err(failed)?;
    Ok(head)
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn open_options(request: &PullRequest) -> gix::open::Options {
    let mut ssh = vec![
        "ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o StrictHostKeyChecking=yes \
         -o IdentitiesOnly=yes -o UpdateHostKeys=no"
            .to_owned(),
    ];
    if let Some(path) = &request.known_hosts {
        ssh.push(format!("-o UserKnownHostsFile={} -o GlobalKnownHostsFile=/dev/null", shell_quoted(path)));
    }
    if let Some(path) = &request.ssh_key {
        ssh.push(format!("-i {}", shell_quoted(path)));
    }
    // Isolated: neither the system's nor a user's git configuration has a say.
    gix::open::Options::isolated().config_overrides([
        "pack.threads=1".to_owned(),
        "gitoxide.credentials.terminalPrompt=false".to_owned(),
        "ssh.variant=ssh".to_owned(),
        format!("core.sshCommand={}", ssh.join(" ")),
    ])
}

/// A path as one word of a shell command, inside ssh's own option syntax.
fn shell_quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn open(path: &Path, options: &gix::open::Options) -> Result<Repository, PullError> {
    gix::open_opts(path, options.clone()).map_err(|source| PullError::Open { path: path.to_owned(), source })
}

fn create(path: &Path, options: &gix::open::Options) -> Result<Repository, PullError> {
    let failed = |source| PullError::Create { path: path.to_owned(), source };
    let bare = gix::create::Options { destination_must_be_empty: Some(true), ..Default::default() };
    let repo = gix::ThreadSafeRepository::init_opts(path, gix::create::Kind::Bare, bare, options.clone());
    Ok(repo.map_err(failed)?.to_thread_local())
}

fn n_packs(repo: &Repository) -> usize {
    let Ok(entries) = std::fs::read_dir(repo.git_dir().join("objects/pack")) else { return 0 };
    entries.flatten().filter(|entry| entry.path().extension().is_some_and(|ext| ext == "pack")).count()
}

/// Refuses a repository whose current head cannot be read to its last blob and its first commit.
fn sound(repo: Repository, check: Check) -> Result<Repository, PullError> {
    let path = repo.git_dir().to_owned();
    let damaged = |source| PullError::Open { path: path.clone(), source };
    if check == Check::Stored
        && let Some(mut reference) = repo.try_find_reference(REFERENCE).map_err(damaged)?
    {
        let head = reference.peel_to_id().map_err(damaged)?.detach();
        let tree = repo.find_commit(head).and_then(|commit| Ok(commit.tree_id()?.detach())).map_err(damaged)?;
        copy_tree(&Copying { source: &repo, target: None, url: "the stored policy" }, tree, MAX_DEPTH)?;
        // The agent asks whether a new head descends from the one in force, so the history must be readable too.
        let (mut seen, mut stack) = (HashSet::new(), vec![head]);
        while let Some(id) = stack.pop() {
            if seen.insert(id) {
                stack.extend(repo.find_commit(id).map_err(damaged)?.parent_ids().map(gix::Id::detach));
            }
        }
    }
    Ok(repo)
}

fn bring(repo: &Repository, request: &PullRequest) -> Result<ObjectId, PullError> {
    let bad = || PullError::Url { url: request.url.clone() };
    let url = gix::url::parse(request.url.as_str()).map_err(|_| bad())?;
    let is_loopback = matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]" | "::1"));
    let plain = gix::validate::reference::name_partial(request.branch.as_str().into()).is_ok();
    if !plain || request.branch.contains(['*', ':']) {
        return Err(PullError::NoBranch { url: request.url.clone(), branch: request.branch.clone() });
    }
    match url.scheme {
        Scheme::File => copy_local(repo, request, Path::new(std::str::from_utf8(&url.path).map_err(|_| bad())?)),
        Scheme::Https | Scheme::Ssh => fetch_remote(repo, request),
        // Without TLS only from this very host, as the demo does.
        Scheme::Http if is_loopback => fetch_remote(repo, request),
        Scheme::Http | Scheme::Git | Scheme::Ext | Scheme::Helper(_) | Scheme::HelperUrl(_) => Err(bad()),
    }
}

fn current(repo: &Repository) -> Option<ObjectId> {
    let mut reference = repo.try_find_reference(REFERENCE).ok()??;
    Some(reference.peel_to_id().ok()?.detach())
}

fn sync(repo: &Repository) -> Result<(), PullError> {
    let failed = |source| PullError::Sync { path: repo.git_dir().to_owned(), source };
    let dir = std::fs::File::open(repo.git_dir()).map_err(failed)?;
    rustix::fs::syncfs(&dir).map_err(|errno| failed(errno.into()))
}

fn fetch_remote(repo: &Repository, request: &PullRequest) -> Result<ObjectId, PullError> {
    let failed = |source| PullError::Fetch { url: request.url.clone(), source };
    let spec = format!("+refs/heads/{}:{REFERENCE}", request.branch);
    let remote = repo
        .remote_at(request.url.as_str())
        .and_then(|remote| {
            remote.with_fetch_tags(gix::remote::fetch::Tags::None).with_refspecs([spec.as_str()], Direction::Fetch)
        })
        .map_err(failed)?;
    let mut connection = remote.connect(Direction::Fetch).map_err(failed)?;
    // Nobody is there to be asked, and no helper program is run.
    connection.set_credentials(|_| Ok(None));
    if request.url.starts_with("http") {
        connection.set_transport_options(Box::new(http_options(request)?));
    }
    let mut progress = gix::progress::Discard;
    let prepared = connection.prepare_fetch(&mut progress, Default::default()).map_err(failed)?;
    let wanted = prepared.ref_map().mappings.first().and_then(|mapping| mapping.remote.as_id()).map(ToOwned::to_owned);
    let Some(wanted) = wanted else {
        return Err(PullError::NoBranch { url: request.url.clone(), branch: request.branch.clone() });
    };
    if current(repo) == Some(wanted) {
        return Ok(wanted);
    }
    prepared.receive(&mut progress, &AtomicBool::new(false)).map_err(failed)?;
    sync(repo)?;
    let mut reference = repo.find_reference(REFERENCE).map_err(|source| PullError::Reference { source })?;
    Ok(reference.peel_to_id().map_err(|source| PullError::Reference { source })?.detach())
}

fn http_options(request: &PullRequest) -> Result<http::Options, PullError> {
    let authorities = match &request.ca {
        Some(path) => {
            let read = certificates(path);
            Some(read.map_err(|source| PullError::Credential { path: path.clone(), source })?)
        }
        None => None,
    };
    let extra_headers = match &request.token_file {
        Some(path) => {
            let token = read_token(path).map_err(|source| PullError::Credential { path: path.clone(), source })?;
            vec![format!("Authorization: Bearer {token}")]
        }
        None => Vec::new(),
    };
    let timeout = request.timeout;
    let backend = http::reqwest::Options {
        configure_client: Some(Box::new(move |client| {
            let client = client.timeout(timeout).connect_timeout(Duration::from_secs(10).min(timeout));
            Ok(match &authorities {
                Some(authorities) => client.tls_certs_only(authorities.clone()),
                None => client,
            })
        })),
        configure_request: None,
    };
    Ok(http::Options {
        extra_headers,
        follow_redirects: http::options::FollowRedirects::None,
        user_agent: Some(concat!("rekindle/", env!("CARGO_PKG_VERSION")).to_owned()),
        backend: Some(Arc::new(Mutex::new(backend))),
        ..Default::default()
    })
}

/// Where objects come from and where they go. Without a target they are only read.
struct Copying<'a> {
    source: &'a Repository,
    target: Option<&'a Repository>,
    url: &'a str,
}

/// Copies what is missing from a repository on this host, without git's own server side, which may not be installed.
fn copy_local(repo: &Repository, request: &PullRequest, path: &Path) -> Result<ObjectId, PullError> {
    let mut source = open(path, &gix::open::Options::isolated())?;
    source.object_cache_size_if_unset(4 * 1024 * 1024);
    let failed = |source| PullError::Fetch { url: request.url.clone(), source };
    let name = format!("refs/heads/{}", request.branch);
    let Some(mut reference) = source.try_find_reference(name.as_str()).map_err(failed)? else {
        return Err(PullError::NoBranch { url: request.url.clone(), branch: request.branch.clone() });
    };
    let head = reference.peel_to_id().map_err(failed)?.detach();
    if current(repo) == Some(head) {
        return Ok(head);
    }
    let copying = Copying { source: &source, target: Some(repo), url: &request.url };
    let mut seen = HashSet::new();
    let mut stack = vec![Visit::Enter(head)];
    while let Some(visit) = stack.pop() {
        match visit {
            Visit::Enter(id) => {
                if repo.has_object(id) || !seen.insert(id) {
                    continue;
                }
                let commit = source.find_commit(id).map_err(|source| copying.failed(id, source))?;
                stack.push(Visit::Leave(id));
                stack.extend(commit.parent_ids().map(|parent| Visit::Enter(parent.detach())));
            }
            Visit::Leave(id) => {
                let commit = source.find_commit(id).map_err(|source| copying.failed(id, source))?;
                let tree = commit.tree_id().map_err(|source| copying.failed(id, source))?;
                copy_tree(&copying, tree.detach(), MAX_DEPTH)?;
                copying.copy(id)?;
            }
        }
    }
    sync(repo)?;
    repo.reference(REFERENCE, head, PreviousValue::Any, "policy").map_err(|source| PullError::Reference { source })?;
    Ok(head)
}

/// One step of a walk that leaves a commit only after all its ancestors.
enum Visit {
    Enter(ObjectId),
    Leave(ObjectId),
}

fn copy_tree(copying: &Copying<'_>, id: ObjectId, depth: usize) -> Result<(), PullError> {
    if copying.target.is_some_and(|target| target.has_object(id)) {
        return Ok(());
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Err(copying.refused(id, "its directories are nested too deeply"));
    };
    let tree = copying.source.find_tree(id).map_err(|source| copying.failed(id, source))?;
    for entry in tree.iter() {
        let entry = entry.map_err(|source| copying.failed(id, source))?;
        match entry.mode().kind() {
            EntryKind::Tree => copy_tree(copying, entry.object_id(), depth)?,
            EntryKind::Blob | EntryKind::BlobExecutable | EntryKind::Link => copying.copy(entry.object_id())?,
            // A submodule's commit lives elsewhere.
            EntryKind::Commit => {}
        }
    }
    copying.copy(id)
}

impl Copying<'_> {
    fn copy(&self, id: ObjectId) -> Result<(), PullError> {
        if self.target.is_some_and(|target| target.has_object(id)) {
            return Ok(());
        }
        let object = self.source.find_object(id).map_err(|source| self.failed(id, source))?;
        let Some(target) = self.target else {
            let actual = gix::objs::compute_hash(id.kind(), object.kind, &object.data);
            return match actual.map_err(|source| self.failed(id, source))? == id {
                true => Ok(()),
                false => Err(self.refused(id, "its content does not match its id")),
            };
        };
        let written = target.objects.write_buf(object.kind, &object.data).map_err(|source| self.failed(id, source))?;
        if written == id { Ok(()) } else { Err(self.refused(id, "its content does not match its id")) }
    }

    fn failed(&self, id: ObjectId, source: gix::Error) -> PullError {
        PullError::Copy { url: self.url.to_owned(), id: id.to_string(), source }
    }

    fn refused(&self, id: ObjectId, why: &'static str) -> PullError {
        PullError::Refused { url: self.url.to_owned(), id: id.to_string(), why }
    }
}

#[cfg(test)]
mod https_tests;
#[cfg(test)]
mod ssh_tests;
#[cfg(test)]
mod tests;
