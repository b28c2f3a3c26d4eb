//! OpenSSH certificates: a key that an authority vouches for, naming people, for a time (PROTOCOL.certkeys of OpenSSH).
//!
//! What a certificate says means nothing before [`Certificate::check_authority`] has found the authority's signature good.
//! Input is hostile, as in [`super::sshsig`]. A restriction that is not honoured here is a refusal.

use jiff::Timestamp;

use super::sshsig::{self, Holder, Reader};

/// The end of the name of every type of certificate.
const SUFFIX: &str = "-cert-v01@openssh.com";
/// A certificate of a person; the other kind is of a host.
const USER: u32 = 1;
/// More names than any certificate has reason to hold.
const MAX_PRINCIPALS: usize = 1024;

/// A certificate, taken apart.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    key: Vec<u8>,
    kind: u32,
    principals: Vec<&'a str>,
    valid_after: u64,
    valid_before: u64,
    critical_options: Vec<&'a [u8]>,
    authority: &'a [u8],
    signed: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Takes a certificate apart; `None` when the bytes are a plain key.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Option<Self>, &'static str> {
        let mut reader = Reader(bytes);
        let key_type = std::str::from_utf8(reader.string()?).map_err(|_| "its key type is not supported")?;
        let Some(base) = key_type.strip_suffix(SUFFIX) else { return Ok(None) };
        // What the type of the plain key is called, and how many fields it has.
        let (plain, n_fields) = match base {
            "ssh-ed25519" => (base, 1),
            "ssh-rsa" | "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" | "ecdsa-sha2-nistp521" => (base, 2),
            "sk-ssh-ed25519" => ("sk-ssh-ed25519@openssh.com", 2),
            "sk-ecdsa-sha2-nistp256" => ("sk-ecdsa-sha2-nistp256@openssh.com", 3),
            _ => return Err("its kind of certificate is not supported"),
        };
        let _nonce = reader.string()?;
        let mut key = Vec::new();
        sshsig::put(&mut key, plain.as_bytes())?;
        for _ in 0..n_fields {
            sshsig::put(&mut key, reader.string()?)?;
        }
        let _serial = reader.long_number()?;
        let kind = reader.number()?;
        let _key_id = reader.string()?;
        let principals = principals(reader.string()?)?;
        let valid_after = reader.long_number()?;
        let valid_before = reader.long_number()?;
        let mut options = Reader(reader.string()?);
        let mut critical_options = Vec::new();
        while options.end().is_err() {
            critical_options.push(options.string()?);
            options.string()?;
        }
        // Extensions grant what logins may do, and a signature needs none of it.
        let _extensions = reader.string()?;
        let _reserved = reader.string()?;
        let authority = reader.string()?;
        let n_signed = bytes.len() - reader.0.len();
        let signature = reader.string()?;
        reader.end()?;
        let signed = bytes.get(..n_signed).ok_or("it is cut short")?;
        let certificate =
            Self { key, kind, principals, valid_after, valid_before, critical_options, authority, signed, signature };
        Ok(Some(certificate))
    }

    /// The plain key that the certificate is about, in wire form.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// The key of the authority, in wire form.
    pub(super) fn authority(&self) -> &'a [u8] {
        self.authority
    }

    /// Those whom the certificate names.
    pub(super) fn principals(&self) -> &[&'a str] {
        &self.principals
    }

    /// Checks that the authority signed it.
    pub(super) fn check_authority(&self) -> Result<(), &'static str> {
        // A certificate is no authority: chains do not exist.
        sshsig::verify_raw(self.authority, self.signature, self.signed, Holder::Touched)
            .map_err(|_| "its certificate is not signed by the authority that it names")
    }

    /// Why it does not count at `now`, if it does not; reads after "the key of X, ".
    pub(super) fn objection(&self, now: Timestamp) -> Option<&'static str> {
        let now = u64::try_from(now.as_second()).unwrap_or(0);
        if self.kind != USER {
            return Some("which has a certificate for hosts, not for people");
        }
        if now < self.valid_after {
            return Some("whose certificate is not valid yet");
        }
        if now >= self.valid_before {
            return Some("whose certificate has expired");
        }
        let is_honoured = |option: &&[u8]| *option == VERIFY_REQUIRED;
        if !self.critical_options.iter().all(is_honoured) {
            return Some("whose certificate has a critical option that cannot be honoured for commits");
        }
        None
    }

    /// What its holder must have done.
    pub(super) fn holder(&self) -> Holder {
        if self.critical_options.contains(&VERIFY_REQUIRED) { Holder::Verified } else { Holder::Touched }
    }
}

const VERIFY_REQUIRED: &[u8] = b"verify-required";

fn principals(packed: &[u8]) -> Result<Vec<&str>, &'static str> {
    let mut reader = Reader(packed);
    let mut principals = Vec::new();
    while reader.end().is_err() {
        let principal = std::str::from_utf8(reader.string()?).ok();
        let principal = principal.filter(|p| !p.is_empty() && !p.chars().any(char::is_control));
        principals.push(principal.ok_or("its certificate names somebody whose name is not plain text")?);
        if principals.len() > MAX_PRINCIPALS {
            return Err("its certificate names too many people");
        }
    }
    Ok(principals)
}
