//! What stands in a file's way, and what the policy says of it.

use super::{Desired, Spec};
use crate::host::root::Root;
use crate::resource::place::{Node, Observed};
use crate::resource::{AbsPath, Ensure, Observation};

/// What to do where a regular file is not simply replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
pub struct Care {
    /// A symbolic link at the path.
    pub symlink: Symlink,
    /// Another name of the file.
    pub hardlink: HardLink,
    /// Content in a file that would become empty.
    pub empty: Empty,
}

/// What to do about a symbolic link at a file's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
pub enum Symlink {
    /// The file takes its place; what it led to is not touched.
    #[default]
    Replace,
    /// What it leads to is the file, as long as nobody but root could have made it lead there.
    Follow,
    /// The step fails.
    Refuse,
}

/// What to do about a file with several names that is out of sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
pub enum HardLink {
    /// It is replaced under this name; the others keep what they have.
    #[default]
    Break,
    /// It is written to, so that all names show the same. A reader, and whoever comes after a power cut, may see a part.
    InPlace,
    /// The step fails.
    Refuse,
}

/// What to do where declared content came out empty and the file has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
pub enum Empty {
    /// The file is emptied: the policy says so.
    #[default]
    Allow,
    /// The step fails: a template or a source that is empty is a mistake more often than not.
    Refuse,
}

impl Care {
    /// Whether the file can be put back by exchanging it for a copy, without a closer look.
    pub fn is_simple(self, spec: &Spec) -> bool {
        self.symlink == Symlink::Replace
            && self.hardlink == HardLink::Break
            && (self.empty == Empty::Allow || !spec.content.is_empty())
    }
}

impl Desired {
    /// The path that is acted on: its own, or where a link that is to be followed leads.
    pub fn acts_on(&self, root: &Root) -> std::io::Result<AbsPath> {
        match &self.ensure {
            Ensure::Present(spec) if spec.care.symlink == Symlink::Follow => root.follow(&self.path),
            Ensure::Present(_) | Ensure::Absent => Ok(self.path.clone()),
        }
    }
}

/// Why a difference must not be put right, if so, with a word for the reason. Pure.
pub fn refusal(desired: &Desired, observation: &Observation<Observed>) -> Option<(String, &'static str)> {
    let Ensure::Present(spec) = &desired.ensure else { return None };
    let Observation::Present(observed) = observation else { return None };
    let Care { symlink, hardlink, empty } = spec.care;
    let path = &desired.path;
    match &observed.node {
        Node::Symlink(target) if symlink == Symlink::Refuse => {
            let target = target.display();
            Some((
                format!("refused to replace `{path}`: it is a symbolic link to `{target}`, and `symlink = \"refuse\"`"),
                "symlink",
            ))
        }
        Node::File(_) | Node::Unread if observed.metadata.n_links > 1 && hardlink == HardLink::Refuse => {
            let n = observed.metadata.n_links;
            Some((
                format!("refused to change `{path}`: the file has {n} names, and `hardlink = \"refuse\"`"),
                "hard link",
            ))
        }
        Node::File(_) | Node::Unread
            if spec.content.is_empty() && observed.metadata.size > 0 && empty == Empty::Refuse =>
        {
            let n = observed.metadata.size;
            Some((
                format!(
                    "refused to empty `{path}`, which has {n} bytes: its template or source came out empty (hint: if that is meant, write `allow_empty = true`)"
                ),
                "empty",
            ))
        }
        Node::File(_) | Node::Unread | Node::Directory | Node::Symlink(_) | Node::Special => None,
    }
}
