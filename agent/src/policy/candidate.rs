//! An untrusted tree of bytes: a policy as it was found, before anybody vouched for it.
//!
//! Everything read here may have been written by an attacker: sizes are bounded before memory is given out, symbolic
//! links and submodules are refused instead of followed, and each git object is hashed again, because the bare repository
//! belongs to the unprivileged courier and a commit's signature covers nothing but its own bytes.
//! This module never checks anything out and never runs a program.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest, Sha256};

use super::Revision;

/// Most bytes in all files of a policy together.
pub const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Most files in a policy.
pub const MAX_FILES: usize = 20_000;
/// Deepest nesting of directories in a policy.
pub const MAX_DEPTH: usize = 32;
/// Largest single commit or tree object.
pub(super) const MAX_METADATA_OBJECT: u64 = 8 * 1024 * 1024;
/// Most commits that [`is_ancestor`] looks at before it says that it cannot tell.
const MAX_WALK: usize = 200_000;

/// A policy that nobody has vouched for yet.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub(super) revision: Revision,
    pub(super) origin: Origin,
    pub(super) files: Arc<BTreeMap<String, Vec<u8>>>,
}

/// Where a candidate was found, with what that place offers as proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A plain directory. It proves nothing.
    Directory(PathBuf),
    /// A commit.
    Commit {
        /// The armored signature of the commit, when it has one.
        signature: Option<Vec<u8>>,
        /// The bytes that the signature covers; they name the tree that the files were read from.
        payload: Vec<u8>,
    },
}

impl Candidate {
    /// The revision that this claims to be.
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// Where it was found.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

/// Why a tree of bytes cannot be a policy.
#[derive(Debug, thiserror::Error)]
pub enum CandidateError {
    /// Something on disk could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A symbolic link, submodule, device, socket or FIFO.
    #[error("the policy holds {what} at `{path}`; a policy consists of regular files alone")]
    NotAFile {
        /// Where, inside the policy.
        path: String,
        /// What it is, with its article.
        what: &'static str,
    },
    /// A file name that is not plain UTF-8 text, or that other programs read in a special way.
    #[error("the policy holds a file with the name `{path}`, which {why}")]
    Name {
        /// The name, with bad bytes replaced.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than a policy may hold.
    #[error("the policy has more than {limit}")]
    TooLarge {
        /// The limit that was passed, in words.
        limit: String,
    },
    /// A text that is not a commit id.
    #[error("`{text}` is not a commit id: expected 40 or 64 lower-case hexadecimal digits")]
    CommitId {
        /// The text.
        text: String,
    },
    /// The repository could not be opened.
    #[error("cannot open the repository `{}`", path.display())]
    Open {
        /// Which repository.
        path: PathBuf,
        /// Why not.
        #[source]
        source: gix::Error,
    },
    /// An object is missing or cannot be decoded.
    #[error("cannot read the {kind} `{id}` of the repository")]
    Object {
        /// What it should be.
        kind: &'static str,
        /// Its id.
        id: String,
        /// Why not.
        #[source]
        source: gix::Error,
    },
    /// An object is not what its id says.
    #[error("the {kind} `{id}` of the repository is {found}; the repository is damaged or was tampered with")]
    Mismatch {
        /// What it should be.
        kind: &'static str,
        /// Its id.
        id: String,
        /// What was found.
        found: String,
    },
    /// The history is longer than is looked at.
    #[error("cannot tell whether `{ancestor}` is an ancestor of `{descendant}` within {MAX_WALK} commits")]
    HistoryTooLong {
        /// The older commit.
        ancestor: String,
        /// The newer commit.
        descendant: String,
    },
}

/// Counts what was read against the limits of a policy.
#[derive(Debug, Default)]
struct Budget {
    n_bytes: u64,
    n_files: usize,
}

impl Budget {
    fn add_file(&mut self) -> Result<(), CandidateError> {
        self.n_files += 1;
        if self.n_files > MAX_FILES {
            return Err(CandidateError::TooLarge { limit: format!("{MAX_FILES} files") });
        }
        Ok(())
    }

    fn remaining(&self) -> u64 {
        MAX_BYTES.saturating_sub(self.n_bytes)
    }

    fn add_bytes(&mut self, n: u64) -> Result<(), CandidateError> {
        if n > self.remaining() {
            return Err(CandidateError::TooLarge { limit: format!("{} MiB", MAX_BYTES / 1024 / 1024) });
        }
        self.n_bytes += n;
        Ok(())
    }
}

/// A tree that another process of this program read, checked, and handed over in memory.
pub fn from_memory(revision: Revision, files: BTreeMap<String, Vec<u8>>) -> Candidate {
    Candidate { revision, origin: Origin::Directory(PathBuf::new()), files: Arc::new(files) }
}

/// Reads a plain directory, leaving out `.git`, following no symbolic link below it.
///
/// The revision is `dir-` and a digest of every path and content, so that equal trees have equal revisions.
pub fn from_directory(dir: &Path) -> Result<Candidate, CandidateError> {
    let read_error = |path: &Path, source: io::Error| CandidateError::Read { path: path.to_path_buf(), source };
    // The directory itself may be reached through links: whoever named it chose the way.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| read_error(dir, e.into()))?;

    let mut files = BTreeMap::new();
    let mut budget = Budget::default();
    let mut pending: Vec<(OwnedFd, String, usize)> = vec![(top, String::new(), 0)];
    while let Some((fd, prefix, depth)) = pending.pop() {
        let here = dir.join(&prefix);
        let entries = rustix::fs::Dir::read_from(&fd).map_err(|e| read_error(&here, e.into()))?;
        for entry in entries {
            let entry = entry.map_err(|e| read_error(&here, e.into()))?;
            let raw = entry.file_name();
            if matches!(raw.to_bytes(), b"." | b".." | b".git") {
                continue;
            }
            let name = checked_name(&prefix, raw.to_bytes())?;
            let path = dir.join(&name);
            // Non-blocking, so that a FIFO cannot hold us; the kind is checked on the open file, not on the name.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let child = match rustix::fs::openat(&fd, raw, flags, Mode::empty()) {
                Ok(child) => child,
                Err(rustix::io::Errno::LOOP) => {
                    return Err(CandidateError::NotAFile { path: name, what: "a symbolic link" });
                }
                Err(rustix::io::Errno::NXIO) => {
                    return Err(CandidateError::NotAFile { path: name, what: "a socket or device" });
                }
                Err(errno) => return Err(read_error(&path, errno.into())),
            };
            let stat = rustix::fs::fstat(&child).map_err(|e| read_error(&path, e.into()))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => {
                    budget.add_file()?;
                    let content =
                        read_at_most(child, stat.st_size, budget.remaining()).map_err(|e| read_error(&path, e))?;
                    budget.add_bytes(u64::try_from(content.len()).unwrap_or(u64::MAX))?;
                    files.insert(name, content);
                }
                FileType::Directory => {
                    if depth >= MAX_DEPTH {
                        return Err(CandidateError::TooLarge { limit: format!("{MAX_DEPTH} levels of directories") });
                    }
                    // Directories count as files, so that a forest of empty ones is bounded too.
                    budget.add_file()?;
                    pending.push((child, name, depth + 1));
                }
                FileType::Symlink => return Err(CandidateError::NotAFile { path: name, what: "a symbolic link" }),
                FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => return Err(CandidateError::NotAFile { path: name, what: "a device or FIFO" }),
            }
        }
    }

    let revision = Revision::new(format!("dir-{}", digest_of_tree(&files)));
    Ok(Candidate { revision, origin: Origin::Directory(dir.to_path_buf()), files: Arc::new(files) })
}

/// Reads one commit of a bare repository from its object database. Nothing is checked out.
pub fn from_commit(repository: &Path, commit: &str) -> Result<Candidate, CandidateError> {
    let repo = open(repository)?;
    let id = parse_id(commit)?;
    let data = read_object(&repo, id, gix::objs::Kind::Commit, MAX_METADATA_OBJECT)?;
    let (origin, tree) = taken_apart(id, &data)?;

    let mut files = BTreeMap::new();
    let mut budget = Budget::default();
    let mut pending = vec![(tree, String::new(), 0_usize)];
    while let Some((tree, prefix, depth)) = pending.pop() {
        let data = read_object(&repo, tree, gix::objs::Kind::Tree, MAX_METADATA_OBJECT)?;
        let entries = gix::objs::TreeRef::from_bytes(&data, tree.kind()).map_err(|source| CandidateError::Object {
            kind: "tree",
            id: tree.to_string(),
            source,
        })?;
        for entry in entries.entries {
            let name = checked_name(&prefix, entry.filename)?;
            match entry.mode.kind() {
                gix::objs::tree::EntryKind::Blob | gix::objs::tree::EntryKind::BlobExecutable => {
                    budget.add_file()?;
                    let blob = entry.oid.to_owned();
                    let content = read_object(&repo, blob, gix::objs::Kind::Blob, budget.remaining())?;
                    budget.add_bytes(u64::try_from(content.len()).unwrap_or(u64::MAX))?;
                    if files.insert(name.clone(), content).is_some() {
                        return Err(CandidateError::Name { path: name, why: "appears twice in one directory" });
                    }
                }
                gix::objs::tree::EntryKind::Tree => {
                    if depth >= MAX_DEPTH {
                        return Err(CandidateError::TooLarge { limit: format!("{MAX_DEPTH} levels of directories") });
                    }
                    budget.add_file()?;
                    pending.push((entry.oid.to_owned(), name, depth + 1));
                }
                gix::objs::tree::EntryKind::Link => {
                    return Err(CandidateError::NotAFile { path: name, what: "a symbolic link" });
                }
                gix::objs::tree::EntryKind::Commit => {
                    return Err(CandidateError::NotAFile { path: name, what: "a submodule" });
                }
            }
        }
    }
    Ok(Candidate { revision: Revision::new(id.to_string()), origin, files: Arc::new(files) })
}

/// A commit object with its signature taken out, and its tree.
fn taken_apart(id: gix::ObjectId, data: &[u8]) -> Result<(Origin, gix::ObjectId), CandidateError> {
    let decode_error = |source| CandidateError::Object { kind: "commit", id: id.to_string(), source };
    let signature = gix::objs::CommitRefIter::signature(data, id.kind()).map_err(decode_error)?;
    let (signature, payload) = match signature {
        Some((signature, payload)) => (Some(signature.to_vec()), payload.to_bstring().to_vec()),
        None => (None, data.to_vec()),
    };
    // The tree is taken from what the signature covers, so that the two cannot disagree.
    let tree = gix::objs::CommitRef::from_bytes(&payload, id.kind()).map_err(decode_error)?.tree();
    Ok((Origin::Commit { signature, payload }, tree))
}

/// What [`from_commit`] makes of the bytes of a commit, without the files of its tree.
pub(crate) fn without_files(data: &[u8]) -> Result<Candidate, CandidateError> {
    let id = gix::ObjectId::null(gix::hash::Kind::Sha1);
    let (origin, _) = taken_apart(id, data)?;
    Ok(Candidate { revision: Revision::new(id.to_string()), origin, files: Arc::default() })
}

/// Tells whether one commit can be reached from another by going to parents; a commit is its own ancestor.
///
/// A history that is cut short or too long is an error, never "no".
pub fn is_ancestor(repository: &Path, ancestor: &str, descendant: &str) -> Result<bool, CandidateError> {
    let repo = open(repository)?;
    let wanted = parse_id(ancestor)?;
    let start = parse_id(descendant)?;
    let mut seen = HashSet::from([start]);
    let mut queue = VecDeque::from([start]);
    // The missing parents of a shallow history are remembered: the ancestor may still turn up on another line.
    let mut missing = None;
    while let Some(id) = queue.pop_front() {
        if id == wanted {
            return Ok(true);
        }
        let data = match read_object(&repo, id, gix::objs::Kind::Commit, MAX_METADATA_OBJECT) {
            Ok(data) => data,
            Err(error) => {
                missing.get_or_insert(error);
                continue;
            }
        };
        let commit = gix::objs::CommitRef::from_bytes(&data, id.kind()).map_err(|source| CandidateError::Object {
            kind: "commit",
            id: id.to_string(),
            source,
        })?;
        for parent in commit.parents() {
            if seen.insert(parent) {
                if seen.len() > MAX_WALK {
                    let (ancestor, descendant) = (ancestor.to_owned(), descendant.to_owned());
                    return Err(CandidateError::HistoryTooLong { ancestor, descendant });
                }
                queue.push_back(parent);
            }
        }
    }
    missing.map_or(Ok(false), Err)
}

pub(super) fn open(repository: &Path) -> Result<gix::Repository, CandidateError> {
    // Isolated: neither the host's nor the user's git configuration nor the environment has a say.
    let options = gix::open::Options::isolated().open_path_as_is(true);
    gix::open_opts(repository, options)
        .map_err(|source| CandidateError::Open { path: repository.to_path_buf(), source })
}

pub(super) fn parse_id(text: &str) -> Result<gix::ObjectId, CandidateError> {
    let error = || CandidateError::CommitId { text: text.to_owned() };
    if !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(error());
    }
    gix::ObjectId::from_hex(text.as_bytes()).map_err(|_| error())
}

/// Reads one object of the expected kind, at most `limit` bytes, and checks that its bytes hash to its id.
pub(super) fn read_object(
    repo: &gix::Repository,
    id: gix::ObjectId,
    kind: gix::objs::Kind,
    limit: u64,
) -> Result<Vec<u8>, CandidateError> {
    let word = match kind {
        gix::objs::Kind::Commit => "commit",
        gix::objs::Kind::Tree => "tree",
        gix::objs::Kind::Blob => "file",
        gix::objs::Kind::Tag => "tag",
    };
    let object_error = |source| CandidateError::Object { kind: word, id: id.to_string(), source };
    let mismatch = |found: String| CandidateError::Mismatch { kind: word, id: id.to_string(), found };
    // The header comes first: a huge object must be refused before it is unpacked.
    let header = repo.find_header(id).map_err(object_error)?;
    if header.kind() != kind {
        return Err(mismatch(format!("a {}", header.kind())));
    }
    if header.size() > limit {
        return Err(CandidateError::TooLarge { limit: format!("{limit} bytes in one {word} or in all files") });
    }
    let mut object = repo.find_object(id).map_err(object_error)?;
    if object.kind != kind {
        return Err(mismatch(format!("a {}", object.kind)));
    }
    let data = std::mem::take(&mut object.data);
    let actual = gix::objs::compute_hash(id.kind(), kind, &data).map_err(object_error)?;
    if actual != id {
        return Err(mismatch(format!("bytes with the id `{actual}`")));
    }
    Ok(data)
}

/// Joins a directory's path inside the policy with the name of an entry, refusing names that are not plain text.
fn checked_name(prefix: &str, raw: &[u8]) -> Result<String, CandidateError> {
    let join = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
    let refuse = |why| Err(CandidateError::Name { path: join(&String::from_utf8_lossy(raw)), why });
    let Ok(name) = std::str::from_utf8(raw) else { return refuse("is not UTF-8") };
    if name.is_empty() || name.len() > 255 {
        return refuse("is empty or longer than 255 bytes");
    }
    if name == "." || name == ".." || name.contains('/') {
        return refuse("leaves its directory");
    }
    if name.eq_ignore_ascii_case(".git") {
        return refuse("git keeps for itself");
    }
    if name.chars().any(char::is_control) || name.contains('\\') {
        return refuse("has a control character or a backslash");
    }
    Ok(join(name))
}

/// Reads a file that is said to have so many bytes.
fn read_at_most(fd: OwnedFd, length: i64, limit: u64) -> io::Result<Vec<u8>> {
    // With one more the end shows at once.
    let expected = u64::try_from(length).unwrap_or(0).min(limit).saturating_add(1);
    let mut content = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    // One byte more than allowed, so that the caller sees the excess.
    std::fs::File::from(fd).take(limit.saturating_add(1)).read_to_end(&mut content)?;
    Ok(content)
}

/// Digest of a tree: sizes are hashed too, so that no two trees give the same bytes.
pub(super) fn digest_of_tree(files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut hasher = Sha256::new();
    for (path, content) in files {
        for part in [path.as_bytes(), content] {
            hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hasher.update(part);
        }
    }
    hex(&hasher.finalize())
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
