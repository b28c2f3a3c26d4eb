//! Who may say what this host should be. Holds the only constructors of [`Verified`].
//!
//! [`verify`] decides by a signature, by `trust = "none"` written out, or by a person at this host having named the directory.
//! [`load_stored`] takes back a tree that this agent itself verified and stored.
//! Nothing here falls back: a missing, odd, expired or foreign signature is an error.

mod certificate;
pub(in crate::policy) mod openpgp;
mod signers;
mod sshsig;
mod store;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use openpgp::{Gpgv, Keyring, Question};
pub use signers::AllowedSigners;
pub(in crate::policy) use store::{check_owned, check_owner};
pub use store::{forget, load_stored, store};

use super::Revision;
use super::candidate::{Candidate, Origin};

/// The namespace that git signs in.
const NAMESPACE: &str = "git";

/// Whose word counts.
#[derive(Debug, Clone)]
pub enum Trust {
    /// These SSH keys.
    Signers(AllowedSigners),
    /// These OpenPGP keys, as gpgv judges.
    OpenPgp {
        /// The keys.
        keyring: Keyring,
        /// What runs gpgv.
        gpgv: Gpgv,
    },
    /// Anyone who may push: `trust = "none"`, written out in the configuration.
    Unsigned,
    /// A person at this host, who named the directory or the commit.
    Operator,
}

/// A policy that somebody trusted vouched for.
#[derive(Debug, Clone)]
pub struct Verified {
    revision: Revision,
    signer: Option<String>,
    files: Arc<BTreeMap<String, Vec<u8>>>,
}

impl Verified {
    /// The revision.
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// Who signed it, as allowed_signers names them; `None` when no signature was asked for.
    pub fn signer(&self) -> Option<&str> {
        self.signer.as_deref()
    }

    /// Every file, by its path inside the policy.
    pub fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    /// The same files, shared.
    pub(super) fn shared_files(&self) -> Arc<BTreeMap<String, Vec<u8>>> {
        Arc::clone(&self.files)
    }
}

/// Why a policy is not to be trusted, or a trusted one could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A line of allowed_signers that cannot be honoured.
    #[error("line {line} of the allowed signers: {why}")]
    AllowedSigners {
        /// Line, from 1.
        line: usize,
        /// What is wrong, and what to write instead.
        why: String,
    },
    /// A list of signers without a signer.
    #[error(
        "the allowed signers name no key: expected lines such as `ops@example.org namespaces=\"git\" ssh-ed25519 AAAA…`"
    )]
    NoSigners,
    /// Signatures are wanted and the policy is a plain directory.
    #[error("the policy `{revision}` is a plain directory and carries no signature")]
    NotACommit {
        /// Which policy.
        revision: Revision,
    },
    /// A keyring that cannot be used.
    #[error("the OpenPGP keyring cannot be used: {why}\nhint: `gpg --export KEY… > FILE` writes one")]
    Keyring {
        /// What is wrong.
        why: String,
    },
    /// gpgv did not answer.
    #[error("cannot have the OpenPGP signature of commit `{revision}` checked")]
    Gpgv {
        /// Which commit.
        revision: Revision,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The commit is not signed.
    #[error("commit `{revision}` is not signed\nhint: sign it with `git commit -S` and a key that `trust` names")]
    Unsigned {
        /// Which commit.
        revision: Revision,
    },
    /// The commit is signed in another way than `trust` names keys of.
    #[error("commit `{revision}` has a signature that is not an {expected} signature\nhint: {hint}")]
    OtherSignature {
        /// Which commit.
        revision: Revision,
        /// `SSH` or `OpenPGP`.
        expected: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// The signature does not hold.
    #[error("the signature of commit `{revision}` is not valid: {why}")]
    BadSignature {
        /// Which commit.
        revision: Revision,
        /// Why not.
        why: &'static str,
    },
    /// The key is nobody's.
    #[error("commit `{revision}` is signed with the key {fingerprint}, which is not among the trusted keys")]
    UnknownKey {
        /// Which commit.
        revision: Revision,
        /// `SHA256:…` as ssh-keygen prints it, or that of OpenPGP.
        fingerprint: String,
    },
    /// The authority of a certificate is nobody's.
    #[error(
        "commit `{revision}` is signed with a certificate of the authority {fingerprint}, which no line of the allowed \
         signers names with `cert-authority`"
    )]
    UnknownAuthority {
        /// Which commit.
        revision: Revision,
        /// `SHA256:…` as ssh-keygen prints it.
        fingerprint: String,
    },
    /// The key is known, and not for this use or not now.
    #[error("commit `{revision}` is signed with the key of `{signer}`, {why}")]
    NotAllowed {
        /// Which commit.
        revision: Revision,
        /// Whose key.
        signer: String,
        /// Why it does not count.
        why: &'static str,
    },
    /// A stored tree could not be read or written.
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A stored tree could not be read.
    #[error("cannot load the stored policy `{}`", path.display())]
    Load {
        /// Which tree.
        path: PathBuf,
        /// Why not.
        #[source]
        source: super::candidate::CandidateError,
    },
    /// A stored tree is not what its manifest says.
    #[error("the stored policy `{}` is damaged: {why}", path.display())]
    Damaged {
        /// Which tree.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Decides whether a candidate may become the policy.
///
/// The validity of keys and certificates is judged at `now`, not at the date in the commit, which the author chooses.
pub fn verify(candidate: Candidate, trust: &Trust, now: jiff::Timestamp) -> Result<Verified, TrustError> {
    let signer = match trust {
        Trust::Unsigned | Trust::Operator => None,
        Trust::Signers(signers) => Some(verify_ssh(&candidate, signers, now)?),
        Trust::OpenPgp { keyring, gpgv } => Some(verify_openpgp(&candidate, keyring, *gpgv)?),
    };
    Ok(Verified { revision: candidate.revision, signer, files: candidate.files })
}

/// The signature of a candidate, which begins as one of its kind does, and what it signs.
fn signature_of<'a>(
    candidate: &'a Candidate,
    begin: &str,
    expected: &'static str,
    hint: &'static str,
) -> Result<(&'a str, &'a [u8]), TrustError> {
    let revision = || candidate.revision.clone();
    match &candidate.origin {
        Origin::Directory(_) => Err(TrustError::NotACommit { revision: revision() }),
        Origin::Commit { signature: None, .. } => Err(TrustError::Unsigned { revision: revision() }),
        Origin::Commit { signature: Some(signature), payload } => {
            let armored = std::str::from_utf8(signature).ok().filter(|text| text.trim_start().starts_with(begin));
            let error = || TrustError::OtherSignature { revision: revision(), expected, hint };
            Ok((armored.ok_or_else(error)?, payload))
        }
    }
}

fn verify_ssh(candidate: &Candidate, signers: &AllowedSigners, now: jiff::Timestamp) -> Result<String, TrustError> {
    let revision = || candidate.revision.clone();
    let (armored, payload) = signature_of(
        candidate,
        sshsig::BEGIN,
        "SSH",
        "set `gpg.format = ssh` in git, or name an OpenPGP keyring as `trust`",
    )?;
    let bad = |why| TrustError::BadSignature { revision: revision(), why };
    let signature = sshsig::Signature::parse(armored).map_err(bad)?;
    let certificate = certificate::Certificate::parse(signature.key()).map_err(bad)?;
    // Who it is comes before whether it holds: the key of nobody we know is not worth a computation.
    let (found, key, holder) = match &certificate {
        None => (signers.find(signature.key(), NAMESPACE, now), signature.key(), sshsig::Holder::Touched),
        Some(certificate) => {
            if !signers.has_authority(certificate.authority()) {
                let fingerprint = sshsig::fingerprint(certificate.authority());
                return Err(TrustError::UnknownAuthority { revision: revision(), fingerprint });
            }
            certificate.check_authority().map_err(bad)?;
            (signers.find_certified(certificate, NAMESPACE, now), certificate.key(), certificate.holder())
        }
    };
    let signer = match found {
        signers::Found::Allowed(signer) => signer,
        signers::Found::NotAllowed { signer, why } => {
            return Err(TrustError::NotAllowed { revision: revision(), signer, why });
        }
        signers::Found::Unknown => {
            let fingerprint = sshsig::fingerprint(key);
            return Err(TrustError::UnknownKey { revision: revision(), fingerprint });
        }
    };
    signature.verify(key, holder, NAMESPACE, payload).map_err(bad)?;
    Ok(signer)
}

fn verify_openpgp(candidate: &Candidate, keyring: &Keyring, gpgv: Gpgv) -> Result<String, TrustError> {
    let revision = || candidate.revision.clone();
    let (armored, payload) = signature_of(
        candidate,
        openpgp::BEGIN_SIGNATURE,
        "OpenPGP",
        "set `gpg.format = openpgp` in git, or name an allowed_signers file of SSH keys as `trust`",
    )?;
    let judgement = keyring
        .judge(armored.as_bytes(), payload, gpgv)
        .map_err(|source| TrustError::Gpgv { revision: revision(), source })?;
    judgement.map_err(|refusal| match refusal {
        openpgp::Refusal::Bad(why) => TrustError::BadSignature { revision: revision(), why },
        openpgp::Refusal::Unknown(fingerprint) => TrustError::UnknownKey { revision: revision(), fingerprint },
        openpgp::Refusal::NotAllowed { signer, why } => TrustError::NotAllowed { revision: revision(), signer, why },
    })
}
