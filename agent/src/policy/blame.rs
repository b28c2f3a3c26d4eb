//! Who declared something: the last commit that changed a resource's declaration, or a file that it takes its content from.
//!
//! A commit's author is what the commit says, and nobody checks it; who *signed* the revision in force is another question.
//! Every object is hashed again, as everything read from the courier's repository is.

use std::path::Path;

use gix::ObjectId;
use gix::bstr::ByteSlice as _;

use super::candidate::{self, CandidateError, MAX_BYTES, MAX_METADATA_OBJECT};
use super::edit;
use crate::resource::ResourceId;

/// Most commits that are looked at.
const MAX_WALK: usize = 5_000;

/// A commit, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Its id.
    pub id: String,
    /// Its author's name and address.
    pub author: String,
    /// When it was written, in seconds since the epoch.
    pub time: i64,
    /// The first line of its message.
    pub subject: String,
}

/// What came of looking for a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blame {
    /// This one declared it as it is.
    Commit(Commit),
    /// It was not found among the commits that were looked at; it is older than this one.
    OlderThan(Commit),
}

/// Finds the commit, at or before `head`, that made a declaration what it is there. `files` are the file that declares it,
/// and those that it takes its content from.
pub fn blame(repository: &Path, head: &str, id: &ResourceId, files: &[String]) -> Result<Blame, CandidateError> {
    let repo = candidate::open(repository)?;
    let mut at = candidate::parse_id(head)?;
    let (declaring, sources) = files.split_first().map_or(("", files), |(first, rest)| (first.as_str(), rest));
    let mut here = State::read(&repo, at, id, declaring, sources)?;
    for _ in 0..MAX_WALK {
        // A merge took the declaration over from whichever side has the same.
        let mut same = None;
        for parent in &here.parents {
            let there = match State::read_beside(&repo, *parent, id, declaring, sources, &here) {
                Ok(there) => there,
                // A shallow history ends here.
                Err(CandidateError::Object { .. }) => return Ok(Blame::OlderThan(here.commit)),
                Err(error) => return Err(error),
            };
            if there.says_the_same(&here) {
                same = Some((*parent, there));
                break;
            }
        }
        match same {
            Some((parent, there)) => (at, here) = (parent, there),
            None => return Ok(Blame::Commit(here.commit)),
        }
    }
    tracing::debug!(commit = %at, "looked no further");
    Ok(Blame::OlderThan(here.commit))
}

/// One commit, and what it says about the resource.
struct State {
    commit: Commit,
    parents: Vec<ObjectId>,
    declaring: Option<ObjectId>,
    sources: Vec<Option<ObjectId>>,
    declaration: Option<String>,
}

impl State {
    fn read(
        repo: &gix::Repository,
        at: ObjectId,
        id: &ResourceId,
        declaring: &str,
        sources: &[String],
    ) -> Result<Self, CandidateError> {
        let mut state = Self::read_commit(repo, at, declaring, sources)?;
        state.declaration = declaration(repo, state.declaring, id)?;
        Ok(state)
    }

    /// The same, without parsing a file that is the one that `other` has.
    fn read_beside(
        repo: &gix::Repository,
        at: ObjectId,
        id: &ResourceId,
        declaring: &str,
        sources: &[String],
        other: &Self,
    ) -> Result<Self, CandidateError> {
        let mut state = Self::read_commit(repo, at, declaring, sources)?;
        state.declaration = if state.declaring == other.declaring {
            other.declaration.clone()
        } else {
            declaration(repo, state.declaring, id)?
        };
        Ok(state)
    }

    fn read_commit(
        repo: &gix::Repository,
        at: ObjectId,
        declaring: &str,
        sources: &[String],
    ) -> Result<Self, CandidateError> {
        let data = candidate::read_object(repo, at, gix::objs::Kind::Commit, MAX_METADATA_OBJECT)?;
        let broken = |source| CandidateError::Object { kind: "commit", id: at.to_string(), source };
        let commit = gix::objs::CommitRef::from_bytes(&data, at.kind()).map_err(broken)?;
        let author = commit.author().map_err(broken)?.trim();
        let text = |bytes: &gix::bstr::BStr| bytes.to_str_lossy().into_owned();
        let sources = sources.iter().map(|path| find(repo, commit.tree(), path)).collect::<Result<_, _>>()?;
        Ok(Self {
            commit: Commit {
                id: at.to_string(),
                author: format!("{} <{}>", text(author.name), text(author.email)),
                time: author.seconds(),
                subject: text(commit.message().summary().as_ref()),
            },
            parents: commit.parents().collect(),
            declaring: find(repo, commit.tree(), declaring)?,
            sources,
            declaration: None,
        })
    }

    fn says_the_same(&self, other: &Self) -> bool {
        self.sources == other.sources && self.declaration == other.declaration
    }
}

/// The id of a file of a tree, by its path.
fn find(repo: &gix::Repository, tree: ObjectId, path: &str) -> Result<Option<ObjectId>, CandidateError> {
    let mut at = tree;
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        let data = candidate::read_object(repo, at, gix::objs::Kind::Tree, MAX_METADATA_OBJECT)?;
        let entries = gix::objs::TreeRef::from_bytes(&data, at.kind()).map_err(|source| CandidateError::Object {
            kind: "tree",
            id: at.to_string(),
            source,
        })?;
        let Some(entry) = entries.entries.iter().find(|entry| entry.filename == part.as_bytes()) else {
            return Ok(None);
        };
        if entry.mode.is_tree() != parts.peek().is_some() {
            return Ok(None);
        }
        at = entry.oid.to_owned();
    }
    Ok(Some(at))
}

fn declaration(
    repo: &gix::Repository,
    blob: Option<ObjectId>,
    id: &ResourceId,
) -> Result<Option<String>, CandidateError> {
    let Some(blob) = blob else { return Ok(None) };
    let data = candidate::read_object(repo, blob, gix::objs::Kind::Blob, MAX_BYTES)?;
    Ok(std::str::from_utf8(&data).ok().and_then(|text| edit::declaration(text, id)))
}
