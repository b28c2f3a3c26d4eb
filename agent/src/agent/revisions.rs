//! Which revision is in force, which converged here last, and whether a fetched commit may replace it.
//!
//! A commit is accepted only when its signature counts, it descends from the newest revision ever accepted here, and it
//! compiles for this host. Otherwise the policy in force stays, whatever the commit says.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::status::Refused;
use super::trial::{self, Known};
use crate::config::{self, Paths, TrustSettings};
use crate::host::{gpgv, memory};
use crate::policy::compile::Inputs;
use crate::policy::compiled::{self, Kept};
use crate::policy::trust::{self, AllowedSigners, Keyring, Trust, Verified};
use crate::policy::{DesiredState, Revision, candidate};
use crate::record::newest::{self, Newest};
use crate::resource::chain;
use crate::resource::content::Store;

/// What is remembered about revisions, under the key `revisions` of the record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Revisions {
    /// The revision that resources are held to.
    pub in_force: Option<Revision>,
    /// Since when.
    #[serde(default)]
    pub in_force_since: Option<Timestamp>,
    /// The last revision under which everything converged here.
    pub last_good: Option<Revision>,
    /// The newest revision ever accepted: what replaces it must descend from it. Kept outside the state, too
    /// ([`crate::record::newest`]): each of the two counts while the other is lost.
    pub high_water: Option<Revision>,
    /// The revision that was backed out because it fails here; it is not taken up again.
    pub backed_out: Option<Revision>,
    /// The revision of which a full run has ended: later changes under it are corrective.
    pub settled: Option<Revision>,
    /// The newest refused revision.
    pub refused: Option<Refused>,
    /// The revision whose trial came to no end: this process does not try it again.
    #[serde(skip)]
    pub endless: Option<Revision>,
}

/// The policy in force.
#[derive(Debug)]
pub struct InForce {
    /// Its resources, compiled for this host.
    pub state: DesiredState,
    /// Who signed it.
    pub signer: Option<String>,
    /// Where the contents of its files lie; `None` when they are in memory.
    pub store: Option<Arc<Store>>,
}

impl InForce {
    /// Puts the contents of the files on the disk, beside the stored tree, with everything else that compiling came to. Where
    /// that cannot be done, and where some are secret, they stay in memory.
    fn write_down(self, paths: &Paths, inputs: &Inputs<'_>) -> Made {
        let revision = self.state.revision();
        if self.state.holds_secrets() {
            forget_compiled(paths, revision);
            return Made::InMemory(Box::new(self));
        }
        let home = paths.policies().join(revision.as_str());
        match compiled::write(&home, &key(revision, inputs), self.signer.as_deref(), &self.state) {
            Ok(()) => Made::OnDisk,
            Err(error) => {
                tracing::warn!("the policy takes more memory, and longer to start with: {}", chain(&error));
                Made::InMemory(Box::new(self))
            }
        }
    }
}

/// What compiling came to.
enum Made {
    InMemory(Box<InForce>),
    /// It is beside the stored tree.
    OnDisk,
}

impl Made {
    fn take_up(self, paths: &Paths, revision: &Revision, inputs: &Inputs<'_>) -> Result<InForce, String> {
        match self {
            Self::InMemory(in_force) => Ok(*in_force),
            Self::OnDisk => {
                // What comes back from the disk is to stay, and would do so between what compiling took.
                memory::give_back();
                look_up(paths, revision, inputs)
            }
        }
    }
}

impl From<Kept> for InForce {
    fn from(Kept { state, signer, store }: Kept) -> Self {
        Self { state, signer, store: Some(store) }
    }
}

/// Where the contents of files are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// On the disk, beside the stored tree.
    OnDisk,
    /// In memory, because the disk cannot be relied on.
    InMemory,
}

/// What a compiled form beside the stored tree depends on.
fn key(revision: &Revision, inputs: &Inputs<'_>) -> compiled::Key {
    // Each build is another file. Should it not be found, no form fits but one that was made in the same plight.
    let program = std::fs::metadata("/proc/self/exe").ok();
    let program = program.map(|file| (file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()));
    compiled::Key::new(&format!("{} {program:?}", env!("CARGO_PKG_VERSION")), revision, inputs)
}

/// What came of considering a commit.
#[derive(Debug)]
pub enum Consideration {
    /// It is in force already, was backed out, or was refused for the same reason before.
    Nothing,
    /// It is refused; the policy in force stays.
    Refused(Refused),
    /// It is now in force.
    Accepted(InForce),
}

/// Considers the commit that the courier fetched. Nothing that the courier wrote is believed without being checked here.
/// `revisions` is changed in memory; the caller persists it.
pub fn consider(
    paths: &Paths,
    trust: &TrustSettings,
    revisions: &mut Revisions,
    commit: &str,
    inputs: &Inputs<'_>,
    contents: Contents,
    now: Timestamp,
) -> Consideration {
    let revision = Revision::new(commit);
    let known = [&revisions.in_force, &revisions.backed_out, &revisions.endless];
    if known.into_iter().any(|known| known.as_ref() == Some(&revision)) {
        return Consideration::Nothing;
    }
    let made = memory::aside(|| {
        let (verified, state) = examine(paths, trust, revisions, commit, inputs)?;
        trust::store(&verified, &paths.policies()).map_err(|e| format!("cannot keep it on disk: {}", chain(&e)))?;
        let in_force = InForce { state, signer: verified.signer().map(str::to_owned), store: None };
        // The tree goes first: its bytes are in the compiled state, too.
        drop(verified);
        Ok(match contents {
            Contents::OnDisk => in_force.write_down(paths, inputs),
            Contents::InMemory => Made::InMemory(Box::new(in_force)),
        })
    });
    let in_force = match made.and_then(|made| made.take_up(paths, &revision, inputs)) {
        Ok(in_force) => in_force,
        Err(reason) => return refuse(revisions, commit, reason, now),
    };
    // Before anything is done under it: a kill in between leaves a mark that this commit itself satisfies.
    match newest::save(&paths.newest(), &revision) {
        Ok(()) => {}
        // Where nothing can be written there is nothing to wait for.
        Err(error) if error.is_read_only() => {
            tracing::warn!("{}; losing {} would let an older policy in", chain(&error), paths.state.display());
        }
        Err(error) => return refuse(revisions, commit, chain(&error), now),
    }
    revisions.in_force = Some(revision.clone());
    revisions.in_force_since = Some(now);
    revisions.high_water = Some(revision);
    revisions.backed_out = None;
    revisions.refused = None;
    Consideration::Accepted(in_force)
}

/// A refusal is reported once for each commit and reason.
fn refuse(revisions: &mut Revisions, commit: &str, reason: String, now: Timestamp) -> Consideration {
    if revisions.refused.as_ref().is_some_and(|r| r.revision == commit && r.reason == reason) {
        return Consideration::Nothing;
    }
    let refused = Refused { revision: commit.to_owned(), reason, at: now };
    revisions.refused = Some(refused.clone());
    Consideration::Refused(refused)
}

fn examine(
    paths: &Paths,
    trust: &TrustSettings,
    revisions: &mut Revisions,
    commit: &str,
    inputs: &Inputs<'_>,
) -> Result<(Verified, DesiredState), String> {
    let repository = paths.repository();
    let trust = match trust {
        TrustSettings::None => Trust::Unsigned,
        TrustSettings::Keys(file) => read_keys(file)?,
    };
    for mark in marks(paths, revisions)? {
        let descends = candidate::is_ancestor(&repository, mark.as_str(), commit).map_err(|e| chain(&e))?;
        if !descends {
            return Err(format!(
                "it does not descend from {}, the newest revision accepted here: history was rewritten or moved backwards\n\
                 hint: push a commit on top of the accepted one; `git revert` goes back without rewriting history. If another \
                 history is meant, run `echo none > {}` on this host",
                mark.short(),
                paths.newest().display()
            ));
        }
    }
    let candidate = candidate::from_commit(&repository, commit).map_err(|e| chain(&e))?;
    let verified = trust::verify(candidate, &trust, Timestamp::now()).map_err(|e| chain(&e))?;
    let compiled = trial::compile(&paths.program, &verified, inputs, Known::New).map_err(|diagnostics| {
        if trial::is_limit(&diagnostics) {
            revisions.endless = Some(verified.revision().clone());
        }
        diagnostics.render(false)
    })?;
    Ok((verified, compiled.state))
}

/// What a commit must descend from to be accepted.
fn marks(paths: &Paths, revisions: &Revisions) -> Result<Vec<Revision>, String> {
    let mut marks: Vec<Revision> = revisions.high_water.iter().cloned().collect();
    match newest::load(&paths.newest()).map_err(|e| chain(&e))? {
        Newest::Unwritten => {}
        // The word of a person, who may write there.
        Newest::Any => marks.clear(),
        Newest::Revision(kept) if marks.contains(&kept) => {}
        Newest::Revision(kept) => marks.push(kept),
    }
    Ok(marks)
}

/// Writes the newest accepted revision down again where somebody removed it.
pub fn keep_newest(paths: &Paths, revisions: &Revisions) -> Result<(), newest::NewestError> {
    match (&revisions.high_water, newest::load(&paths.newest())?) {
        (Some(revision), Newest::Unwritten) => newest::save(&paths.newest(), revision),
        (Some(_), Newest::Revision(_) | Newest::Any) | (None, _) => Ok(()),
    }
}

fn read_keys(file: &Path) -> Result<Trust, String> {
    let bytes = config::read_guarded(file).map_err(|e| format!("whom to trust is not known: {}", chain(&e)))?;
    let wrong = |e: trust::TrustError| format!("in `{}`: {}", file.display(), chain(&e));
    if Keyring::is_one(&bytes) {
        let keyring = Keyring::parse(&bytes).map_err(wrong)?;
        return Ok(Trust::OpenPgp { keyring, gpgv: gpgv::ask });
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        format!("`{}` is neither an allowed_signers file of OpenSSH nor an OpenPGP keyring", file.display())
    })?;
    AllowedSigners::parse(&text).map(Trust::Signers).map_err(wrong)
}

/// Loads a revision that was verified and stored earlier, and writes down what compiling it came to.
pub fn load(paths: &Paths, revision: &Revision, inputs: &Inputs<'_>, contents: Contents) -> Result<InForce, String> {
    match contents {
        Contents::InMemory => compile_stored(paths, revision, inputs),
        Contents::OnDisk => match recall(paths, revision, inputs) {
            Some(in_force) => Ok(in_force),
            None => memory::aside(|| Ok(compile_stored(paths, revision, inputs)?.write_down(paths, inputs)))
                .and_then(|made: Made| made.take_up(paths, revision, inputs)),
        },
    }
}

/// As [`load`], and writes nothing.
pub fn look_up(paths: &Paths, revision: &Revision, inputs: &Inputs<'_>) -> Result<InForce, String> {
    recall(paths, revision, inputs).map_or_else(|| compile_stored(paths, revision, inputs), Ok)
}

/// What compiling came to last time, if it would come to the same now.
fn recall(paths: &Paths, revision: &Revision, inputs: &Inputs<'_>) -> Option<InForce> {
    let home = paths.policies().join(revision.as_str());
    match compiled::load(&home, revision, &key(revision, inputs)) {
        Ok(kept) => kept.map(InForce::from),
        Err(error) => {
            tracing::warn!("{}; it is compiled again", chain(&error));
            None
        }
    }
}

/// Forgets what compiling a revision came to.
pub fn forget_compiled(paths: &Paths, revision: &Revision) {
    if let Err(error) = compiled::remove(&paths.policies().join(revision.as_str())) {
        tracing::warn!("{}", chain(&error));
    }
}

fn compile_stored(paths: &Paths, revision: &Revision, inputs: &Inputs<'_>) -> Result<InForce, String> {
    let verified = trust::load_stored(&paths.policies().join(revision.as_str())).map_err(|e| chain(&e))?;
    let compiled = trial::compile(&paths.program, &verified, inputs, Known::Before)
        .map_err(|diagnostics| diagnostics.render(false))?;
    Ok(InForce { state: compiled.state, signer: verified.signer().map(str::to_owned), store: None })
}
