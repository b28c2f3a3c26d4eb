//! A private view of the file system in which candidates stand at their final paths before they stand there for anybody else.
//!
//! A program that checks a configuration reads more than the one file: what it includes, what that includes, keys, maps. So it
//! gets a mount namespace of its own in which *all* files of the run look as they will, and runs there on real paths.
//!
//! The agent starts a child of its own program, outside its sandbox, that makes the namespace and becomes the validator
//! ([`enter`]). The contents go through its standard input: they are never on a disk, a kill leaves nothing behind, and the
//! namespace ends with the last process in it. systemd's own `BindReadOnlyPaths=` was weighed and left: it makes missing mount
//! points on the real file system, follows symbolic links, and cannot hide a file that is to be removed.

pub mod enter;

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Command, ExecError, Output, run};
use crate::host::root::Permissions;
use crate::resource::{AbsPath, Content};

/// What a path will be.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Which.
    pub path: AbsPath,
    /// What.
    pub becomes: Becomes,
}

/// What stands at a path once a step is done.
#[derive(Debug, Clone)]
pub enum Becomes {
    /// A regular file.
    File {
        /// The whole content.
        content: Content,
        /// Owner, group and mode.
        permissions: Permissions,
        /// The SELinux label, where one is named.
        label: Option<String>,
    },
    /// A symbolic link to this.
    Symlink(String),
    /// A directory, with what is in it if it is one already.
    Directory(Permissions),
    /// Nothing.
    Absent,
}

/// A program that could not be run among the candidates.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// It could not be started at all.
    #[error("cannot run the validator")]
    Run {
        /// Why.
        #[source]
        source: ExecError,
    },
    /// The candidates could not be shown to it.
    #[error("cannot show the candidates to the validator: {why}")]
    Enter {
        /// Why.
        why: String,
    },
    /// What is declared cannot be read any more.
    #[error("cannot read the candidate for `{path}`")]
    Read {
        /// Where it was to be.
        path: AbsPath,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is too much to show.
    #[error("cannot show the candidates to the validator: they are more than {} MiB", MAX_CONTENTS / 1024 / 1024)]
    TooMuch,
}

/// The hidden subcommand.
pub const ENTER_COMMAND: &str = "__enter";

/// Most bytes of all candidates together. They are in memory, of the agent and of the validator's namespace.
const MAX_CONTENTS: usize = 512 * 1024 * 1024;

/// How the child says that it failed before it became the validator. A validator may end with the same code, but says something else.
const FAILED: u8 = 125;
const FAILED_TEXT: &str = "rekindle: cannot enter the view: ";

/// What goes before the contents, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// The root directory that the validator gets.
    root: PathBuf,
    /// A directory to mount on.
    scratch: PathBuf,
    argv: Vec<String>,
    entries: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    node: Node,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Node {
    File { length: usize, uid: u32, gid: u32, mode: u32, label: Option<String> },
    Symlink { target: String },
    Directory { uid: u32, gid: u32, mode: u32 },
    Absent,
}

/// Runs a program where the candidates are in place. `scratch` is a directory that nothing else needs to see meanwhile.
pub(in crate::host) fn run_among(
    candidates: &[Candidate],
    root: &Path,
    scratch: &Path,
    argv: &[String],
    deadline: Duration,
) -> Result<Output, ViewError> {
    let stdin = encode(candidates, root, scratch, argv)?;
    let base = argv.first().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
    let name = super::survivor::name_for("validate", &format!("{base}-{}", crate::host::random_hex()));
    let command = Command {
        stdin,
        deadline,
        name: Some(name),
        is_alone: true,
        ..Command::new(super::survivor::own_program()).args([ENTER_COMMAND])
    };
    let output = run(&command).map_err(|source| ViewError::Run { source })?;
    if output.code == Some(FAILED.into())
        && let Some(why) = String::from_utf8_lossy(&output.stderr).strip_prefix(FAILED_TEXT)
    {
        return Err(ViewError::Enter { why: super::escape(why.as_bytes()) });
    }
    Ok(output)
}

/// Eight bytes of length, the header, the contents.
fn encode(candidates: &[Candidate], root: &Path, scratch: &Path, argv: &[String]) -> Result<Vec<u8>, ViewError> {
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    // What is above comes first.
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut contents: Vec<Cow<'_, [u8]>> = Vec::new();
    let mut n_bytes = 0_usize;
    let mut entries = Vec::with_capacity(sorted.len());
    for Candidate { path, becomes } in sorted {
        let node = match becomes {
            Becomes::File { content, permissions, label } => {
                n_bytes = n_bytes.saturating_add(content.len());
                if n_bytes > MAX_CONTENTS {
                    return Err(ViewError::TooMuch);
                }
                contents.push(content.bytes().map_err(|source| ViewError::Read { path: path.clone(), source })?);
                let Permissions { uid, gid, mode } = *permissions;
                Node::File { length: content.len(), uid, gid, mode: mode.bits(), label: label.clone() }
            }
            Becomes::Symlink(target) => Node::Symlink { target: target.clone() },
            Becomes::Directory(Permissions { uid, gid, mode }) => {
                Node::Directory { uid: *uid, gid: *gid, mode: mode.bits() }
            }
            Becomes::Absent => Node::Absent,
        };
        entries.push(Entry { path: path.to_string(), node });
    }
    let header = Header { root: root.to_owned(), scratch: scratch.to_owned(), argv: argv.to_vec(), entries };
    // Texts and numbers: there is nothing that JSON could not hold but a path that is no text.
    let header = serde_json::to_vec(&header).map_err(|error| ViewError::Enter { why: error.to_string() })?;
    let mut bytes = u64::try_from(header.len()).unwrap_or(u64::MAX).to_le_bytes().to_vec();
    bytes.extend(header);
    contents.iter().for_each(|content| bytes.extend_from_slice(content));
    Ok(bytes)
}

/// The header, and the content of each file in order.
fn decode(bytes: &[u8]) -> Option<(Header, Vec<&[u8]>)> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (header, mut rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let header: Header = serde_json::from_slice(header).ok()?;
    let mut contents = Vec::new();
    for entry in &header.entries {
        if let Node::File { length, .. } = entry.node {
            let (content, after) = rest.split_at_checked(length)?;
            contents.push(content);
            rest = after;
        }
    }
    rest.is_empty().then_some((header, contents))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Mode;

    #[test]
    fn what_is_written_is_read_and_parents_come_first() {
        let permissions = Permissions { uid: 1, gid: 2, mode: Mode::from_bits(0o640) };
        let candidate = |path: &str, becomes| Candidate { path: AbsPath::new(path).unwrap(), becomes };
        let candidates = [
            candidate("/etc/x/b", Becomes::File { content: Content::new(b"two"), permissions, label: None }),
            candidate("/etc/x", Becomes::Directory(permissions)),
            candidate("/etc/x/a", Becomes::File { content: Content::new(b"\0one"), permissions, label: None }),
            candidate("/etc/y", Becomes::Absent),
            candidate("/etc/z", Becomes::Symlink("y".to_owned())),
        ];
        let bytes = encode(&candidates, Path::new("/"), Path::new("/run"), &["/bin/true".to_owned()]).unwrap();
        let (header, contents) = decode(&bytes).unwrap();
        let paths: Vec<&str> = header.entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["/etc/x", "/etc/x/a", "/etc/x/b", "/etc/y", "/etc/z"]);
        assert_eq!(contents, [b"\0one".as_slice(), b"two"]);
        for cut in [0, 7, 8, 20, bytes.len() - 1] {
            assert!(decode(&bytes[..cut]).is_none(), "{cut}");
        }
    }
}
