//! The nouns: what a policy can declare, one file for each kind.
//!
//! Each kind has a `Desired` (from the policy), an `Observed` (from the host), a pure `diff` between the two,
//! and an `apply` that carries out one step. Nothing here decides order, retries or alerts: that is [`crate::converge`].

use std::sync::Arc;

pub mod check;
pub mod command;
pub mod content;
pub mod directory;
pub mod file;
pub mod group;
pub mod kernel_module;
pub mod mount;
pub mod package;
pub mod place;
pub mod program;
pub mod repository;
pub mod service;
pub mod setting;
pub mod sweep;
pub mod symlink;
pub mod sysctl;
pub mod user;

mod argv;
mod becomes;
mod error;
mod id;
mod kinds;
mod lines;
mod mask;
mod names;
mod own;
mod snapshot;
pub mod stood;
mod text;

pub use argv::{Argv, InvalidArgv};
pub use becomes::becomes;
pub use content::{Content, SecretKey};
pub use error::{ApplyError, chain};
pub use id::{InvalidResourceId, Kind, ResourceId};
pub use kinds::{Observed, Replaced, Sighting, Watched, apply, diff, excess, observe, purges, refusal, replaced};
pub use mask::Mask;
pub use names::{AbsPath, GroupName, InvalidName, Mode, PackageName, Principal, RuleName, UnitName, UserName};
pub use own::{Stray, remove_stray, strays};
pub use snapshot::{Names, Snapshot};
pub use stood::Stood;
pub use text::{digest, hex, text_change};

/// What a resource should be: there, with a specification, or not there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Ensure<T> {
    /// It exists and matches.
    Present(T),
    /// It does not exist.
    Absent,
}

impl<T> Ensure<T> {
    /// The specification of what is to be there.
    pub fn present(&self) -> Option<&T> {
        match self {
            Self::Present(spec) => Some(spec),
            Self::Absent => None,
        }
    }
}

/// The desired state of one resource, by kind.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Desired {
    /// A regular file.
    File(file::Desired),
    /// A directory.
    Directory(directory::Desired),
    /// A symbolic link.
    Symlink(symlink::Desired),
    /// A local user.
    User(Box<user::Desired>),
    /// A local group.
    Group(group::Desired),
    /// A package of the host's package manager.
    Package(package::Desired),
    /// Where packages come from.
    Repository(Box<repository::Desired>),
    /// A systemd unit.
    Service(service::Desired),
    /// Keys or lines inside a file.
    Setting(setting::Desired),
    /// A setting of the kernel.
    Sysctl(Box<sysctl::Desired>),
    /// A kernel module.
    KernelModule(Box<kernel_module::Desired>),
    /// Something that is mounted.
    Mount(Box<mount::Desired>),
    /// A program that is run when needed.
    Command(Box<command::Desired>),
    /// A program that only says whether all is well.
    Check(Box<check::Desired>),
    /// A rule over whole trees.
    Sweep(Box<sweep::Desired>),
}

/// What to do when a resource is found out of sync under an unchanged revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum OnDrift {
    /// Put it back.
    #[default]
    Repair,
    /// Report it and leave it.
    Report,
    /// Leave it, and ask for the host to be reimaged: it is no longer to be trusted.
    Reimage,
}

/// Whether a service that is owed something is to be restarted or reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Notify {
    /// Reload if it can, otherwise restart; never start a stopped service.
    Reload,
    /// Restart if it runs; never start a stopped service.
    Restart,
}

/// Where in the policy something was declared. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceLocation {
    /// Path inside the policy, such as `modules/base.toml`; one text for all that it declares.
    pub file: Arc<str>,
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

/// One managed thing: its desired state and everything the policy says about it.
///
/// A policy may hold 100,000 of these, so what few of them have is boxed and what many of them share is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// `kind[name]`.
    pub id: ResourceId,
    /// What it should be.
    pub desired: Desired,
    /// Resources that must be in sync first: declared ones and automatic edges, without duplicates.
    pub requires: Box<[ResourceId]>,
    /// Services owed a restart or reload when this resource changes.
    pub notifies: Box<[(Notify, UnitName)]>,
    /// What to do about drift.
    pub on_drift: OnDrift,
    /// What people wrote about it, if anything.
    pub notes: Option<Box<Notes>>,
    /// Where it was declared.
    pub source: SourceLocation,
}

/// What has to prove, after an intended change, that an operator can still get in. Otherwise the change is put back.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Confirm {
    /// How long the proof may take.
    pub within: std::time::Duration,
    /// What it is.
    pub by: Proof,
}

/// What proves that an operator can still get in.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The endpoint answers a check-in.
    Endpoint,
    /// Somebody opens a session over ssh, from another machine.
    Ssh,
    /// A command exits with 0.
    Command(Vec<String>),
}

/// What few resources have: what a policy says about them for people, which changes nothing, and what has to confirm a change.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Notes {
    /// Free text.
    pub description: Option<String>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Free words for filters and routing.
    pub tags: Vec<String>,
    /// What has to prove an intended change.
    pub confirm: Option<Confirm>,
}

impl Resource {
    /// What has to prove an intended change, if anything.
    pub fn confirm(&self) -> Option<&Confirm> {
        self.notes.as_ref()?.confirm.as_ref()
    }
}

/// What the host shows, with the unknowns kept. Unknown never becomes `Absent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation<T> {
    /// It is there.
    Present(T),
    /// It is certainly not there.
    Absent,
    /// It could not be told, and why: an operation and its object, such as "cannot read `/etc/shadow`: permission denied".
    Unknown(String),
}

impl<T> Observation<T> {
    /// What is there.
    pub fn present(&self) -> Option<&T> {
        match self {
            Self::Present(seen) => Some(seen),
            Self::Absent | Self::Unknown(_) => None,
        }
    }

    /// What was seen of something that always is in some way, as a setting of the kernel is; or why it cannot be told.
    fn always(&self) -> Result<&T, String> {
        match self {
            Self::Present(seen) => Ok(seen),
            Self::Absent => Err("nothing was looked at".to_owned()),
            Self::Unknown(why) => Err(why.clone()),
        }
    }
}

/// The comparison of an observation with what is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Nothing to do.
    InSync,
    /// Out of sync, with every difference.
    Drift(Drift),
    /// Could not be told, and why.
    Indeterminate(String),
}

/// How a resource differs from what is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// What a step would do about it.
    pub action: Action,
    /// Every difference, in a stable order. Never empty.
    pub changes: Vec<Change>,
}

/// The verb of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Make what is missing.
    Create,
    /// Change attributes of what is there, or replace it.
    Update,
    /// Remove what should not be there.
    Remove,
    /// Run a program.
    Run,
    /// Nothing: it is only told of.
    Report,
    /// Nothing: somebody accepts it for a while.
    Waive,
}

/// One difference between observed and desired.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Change {
    /// The attribute, as the policy spells it: `content`, `mode`, `groups`, `state`.
    pub attribute: String,
    /// The difference. Secrets are already masked.
    pub detail: ChangeDetail,
}

/// The two sides of a difference.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeDetail {
    /// Two short values; `None` means "not there".
    Value {
        /// What was observed.
        from: Option<String>,
        /// What is desired.
        to: Option<String>,
    },
    /// A unified diff of text, at most [`MAX_DIFF`] bytes, cut at a line with a note when longer.
    Text {
        /// The diff, from observed to desired.
        diff: String,
    },
    /// Content that is not text, or secret: only digests and sizes are shown.
    Opaque {
        /// What was observed, such as "812 bytes, sha256 3f…".
        from: Option<String>,
        /// What is desired.
        to: Option<String>,
    },
}

/// Longest unified diff kept in a plan, an alert or the history, in bytes.
pub const MAX_DIFF: usize = 16 * 1024;

impl Drift {
    /// A drift of one attribute with two short values.
    pub fn value(action: Action, attribute: &str, from: Option<String>, to: Option<String>) -> Self {
        Self { action, changes: vec![Change::value(attribute, from, to)] }
    }
}

impl Change {
    /// A change between two short values.
    pub fn value(attribute: &str, from: Option<String>, to: Option<String>) -> Self {
        Self { attribute: attribute.to_owned(), detail: ChangeDetail::Value { from, to } }
    }

    /// Takes what was observed out of it, and says what it is instead.
    pub fn conceal(&mut self, what: Concealed) {
        self.conceal_side(Side::Found, what);
    }

    /// Takes one side out of it, and says what it is instead.
    fn conceal_side(&mut self, side: Side, what: Concealed) {
        let word = || what.word().to_owned();
        match &mut self.detail {
            ChangeDetail::Text { .. } => {
                let (concealed, other) = (Some(word()), Some("not shown".to_owned()));
                self.detail = match side {
                    Side::Found => ChangeDetail::Opaque { from: concealed, to: other },
                    Side::Left => ChangeDetail::Opaque { from: other, to: concealed },
                };
            }
            ChangeDetail::Opaque { from, to } => {
                if let Some(text) = side.of(from, to) {
                    *text = word();
                }
            }
            // Owner, group, mode and kind are nobody's secret; the values of a setting are.
            ChangeDetail::Value { from, to } => {
                let is_plain = matches!(
                    self.attribute.as_str(),
                    "state"
                        | "type"
                        | "owner"
                        | "group"
                        | "mode"
                        | "parent"
                        | "acl"
                        | "capabilities"
                        | "flags"
                        | "label"
                );
                if let Some(text) = side.of(from, to).filter(|_| !is_plain) {
                    *text = word();
                }
            }
        }
    }

    /// Whether something was taken out of it.
    pub fn is_concealed(&self) -> bool {
        self.conceals(Side::Found) || self.conceals(Side::Left)
    }

    /// Whether what was observed was taken out of it.
    pub fn conceals_found(&self) -> bool {
        self.conceals(Side::Found)
    }

    fn conceals(&self, side: Side) -> bool {
        let text = match (&self.detail, side) {
            (ChangeDetail::Value { from, .. } | ChangeDetail::Opaque { from, .. }, Side::Found) => from,
            (ChangeDetail::Value { to, .. } | ChangeDetail::Opaque { to, .. }, Side::Left) => to,
            (ChangeDetail::Text { .. }, _) => return false,
        };
        text.as_ref().is_some_and(|text| [Concealed::Secret, Concealed::InDoubt].iter().any(|what| what.word() == text))
    }
}

/// Takes out of what undoes a step whatever the step did not show, as one that may be a secret.
pub fn conceal_in_undoing(changes: &mut [Change], step: &[Change]) {
    for (side, undone) in [(Side::Found, Side::Left), (Side::Left, Side::Found)] {
        if step.iter().any(|change| change.conceals(side)) {
            changes.iter_mut().for_each(|change| change.conceal_side(undone, Concealed::InDoubt));
        }
    }
}

/// A side of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// What there was before.
    Found,
    /// What there is afterwards.
    Left,
}

impl Side {
    fn of<'t>(self, from: &'t mut Option<String>, to: &'t mut Option<String>) -> Option<&'t mut String> {
        match self {
            Self::Found => from.as_mut(),
            Self::Left => to.as_mut(),
        }
    }
}

/// Why what was observed is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concealed {
    /// It is a secret.
    Secret,
    /// It cannot be told whether it is one.
    InDoubt,
}

impl Concealed {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Secret => "a secret",
            Self::InDoubt => "perhaps a secret",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_small() {
        // With 100,000 files every eight bytes here are a megabyte of the agent. What few resources have belongs into a box,
        // what many have in common behind a shared pointer.
        assert!(size_of::<ResourceId>() <= 24, "{}", size_of::<ResourceId>());
        assert!(size_of::<Desired>() <= 48, "{}", size_of::<Desired>());
        assert!(size_of::<Resource>() <= 144, "{}", size_of::<Resource>());
    }
}
