//! Which revision is in force, which converged here last, and whether a fetched commit may replace it.
//!
//! A commit is accepted only when its signature counts, it descends from the newest revision ever accepted here, and it
//! compiles for this host. Otherwise the policy in force stays, whatever the commit says.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::status::Refused;
use super::trial::{self, Known};
use crate::config::{self, Paths, TrustSettings};
use crate::host::gpgv;
use crate::policy::compile::Inputs;
use crate::policy::trust::{self, AllowedSigners, Keyring, Trust, Verified};
use crate::policy::{DesiredState, Revision, candidate};
use crate::record::newest::{self, Newest};
use crate::resource::chain;

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
    now: Timestamp,
) -> Consideration {
    let revision = Revision::new(commit);
    let known = [&revisions.in_force, &revisions.backed_out, &revisions.endless];
    if known.into_iter().any(|known| known.as_ref() == Some(&revision)) {
        return Consideration::Nothing;
    }
    match examine(paths, trust, revisions, commit, inputs) {
        Ok((verified, state)) => {
            if let Err(error) = trust::store(&verified, &paths.policies()) {
                let reason = format!("cannot keep it on disk: {}", chain(&error));
                return refuse(revisions, commit, reason, now);
            }
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
            Consideration::Accepted(InForce { state, signer: verified.signer().map(str::to_owned) })
        }
        Err(reason) => refuse(revisions, commit, reason, now),
    }
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

/// Loads a revision that was verified and stored earlier.
pub fn load(paths: &Paths, revision: &Revision, inputs: &Inputs<'_>) -> Result<InForce, String> {
    let verified = trust::load_stored(&paths.policies().join(revision.as_str())).map_err(|e| chain(&e))?;
    let compiled = trial::compile(&paths.program, &verified, inputs, Known::Before)
        .map_err(|diagnostics| diagnostics.render(false))?;
    Ok(InForce { state: compiled.state, signer: verified.signer().map(str::to_owned) })
}
