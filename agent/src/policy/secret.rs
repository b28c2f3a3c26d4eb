//! Secrets of a policy: files `secrets/NAME.age`, encrypted with age for the keys of the hosts that may know them.
//!
//! Pure computation: the key comes in as bytes. A decrypted secret is [`Content`] that shows itself to nobody: where it would
//! be shown there is a fingerprint, keyed with the host's own key, so that a change shows and a guess cannot be tested.
//! What we hold of it is wiped when it is dropped; copies that the template engine and the kernel make are not.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;

use age::armor::ArmoredReader;
use age::{DecryptError, Decryptor, Identity};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::schema::closest;
use crate::resource::{Content, SecretKey};

/// The directory of the policy in which secrets are.
const DIRECTORY: &str = "secrets/";
/// The end of their names.
const SUFFIX: &str = ".age";
/// Longest secret, in bytes.
const MAX_SECRET: u64 = 1024 * 1024;
/// What the key of fingerprints is derived for.
const PURPOSE: &[u8] = b"rekindle fingerprint of secrets v1";

/// How a compilation reads secrets.
#[derive(Debug, Clone)]
pub enum Secrets {
    /// Not at all: only that they are there, and are age files. For checks of a policy where no host's key is.
    Unread,
    /// With the keys of the host.
    With(Keys),
    /// This host has no key that can be used, and why not.
    Missing(String),
}

/// The private keys of a host.
#[derive(Clone)]
pub struct Keys(Arc<Inner>);

struct Inner {
    text: Zeroizing<Vec<u8>>,
    identities: Vec<age::x25519::Identity>,
    fingerprint: SecretKey,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.0.identities.len())
    }
}

/// A key or a secret that cannot be used. Never quotes either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not what `age-keygen` writes.
    #[error("line {line} is not an age identity: expected `AGE-SECRET-KEY-1…`, as `age-keygen` writes it")]
    Identity {
        /// Line, from 1.
        line: usize,
    },
    /// A file without a key.
    #[error("it holds no age identity: expected a line `AGE-SECRET-KEY-1…`, as `age-keygen` writes it")]
    NoIdentity,
    /// Not a file of age.
    #[error("is not a file of age")]
    NotAge,
    /// This host has no key.
    #[error("cannot be decrypted: this host has no key")]
    NoKey,
    /// Encrypted for others.
    #[error("is not encrypted for this host")]
    NotForUs,
    /// Cut short or changed.
    #[error("is damaged")]
    Damaged,
    /// Longer than a secret may be.
    #[error("is longer than {MAX_SECRET} bytes")]
    TooLong,
}

impl Keys {
    /// Reads what `age-keygen` writes: a key a line, and comments.
    pub fn parse(text: &[u8]) -> Result<Self, SecretError> {
        let mut identities = Vec::new();
        let mut hash = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, PURPOSE));
        for (i, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let wrong = SecretError::Identity { line: i + 1 };
            let word = std::str::from_utf8(line).map_err(|_| wrong)?;
            identities.push(age::x25519::Identity::from_str(word).map_err(|_| wrong)?);
            hash.update(line);
        }
        if identities.is_empty() {
            return Err(SecretError::NoIdentity);
        }
        let fingerprint = SecretKey::new(hash.sign().as_ref());
        Ok(Self(Arc::new(Inner { text: Zeroizing::new(text.to_vec()), identities, fingerprint })))
    }

    /// The text that this was read from, for a process of our own that compiles the same.
    pub fn text(&self) -> &[u8] {
        &self.0.text
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "age's errors, which it may add to")]
    /// Decrypts one file.
    fn decrypt(&self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let decryptor = Decryptor::new_buffered(ArmoredReader::new(bytes)).map_err(|_| SecretError::NotAge)?;
        let keys = self.0.identities.iter().map(|identity| identity as &dyn Identity);
        let reader = decryptor.decrypt(keys).map_err(|error| match error {
            DecryptError::NoMatchingKeys => SecretError::NotForUs,
            DecryptError::UnknownFormat => SecretError::NotAge,
            _ => SecretError::Damaged,
        })?;
        let mut secret = Zeroizing::new(Vec::new());
        reader.take(MAX_SECRET + 1).read_to_end(&mut secret).map_err(|_| SecretError::Damaged)?;
        if u64::try_from(secret.len()).is_ok_and(|length| length > MAX_SECRET) {
            return Err(SecretError::TooLong);
        }
        Ok(secret)
    }
}

impl Secrets {
    /// Decrypts a file of the policy; it is empty where secrets are not read.
    fn decrypt(&self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        if Decryptor::new_buffered(ArmoredReader::new(bytes)).is_err() {
            return Err(SecretError::NotAge);
        }
        match self {
            Self::With(keys) => keys.decrypt(bytes),
            Self::Unread => Ok(Zeroizing::default()),
            Self::Missing(_) => Err(SecretError::NoKey),
        }
    }

    /// Decrypts a secret of a policy by its name. The error is a sentence and a hint; neither quotes a secret.
    pub(super) fn read(
        &self,
        files: &BTreeMap<String, Vec<u8>>,
        name: &str,
    ) -> Result<Zeroizing<Vec<u8>>, (String, String)> {
        let path = path(name).ok_or_else(|| {
            let what = format!("`{name}` cannot be the name of a secret");
            (what, "name `secrets/NAME.age` of the policy as NAME".to_owned())
        })?;
        let bytes = files.get(&path).ok_or_else(|| {
            let known = files.keys().filter_map(|path| path.strip_prefix(DIRECTORY)?.strip_suffix(SUFFIX));
            let hint = match closest(name, known) {
                Some(best) => format!("did you mean `{best}`?"),
                None => format!("write it with `age -r RECIPIENT -o {path}` and commit it"),
            };
            (format!("the policy holds no file `{path}`"), hint)
        })?;
        self.decrypt(bytes).map_err(|error| {
            let hint = match (error, self) {
                (_, Self::Missing(why)) => why.clone(),
                (SecretError::NotForUs, _) => {
                    "encrypt it for this host, too: `age-keygen -y` prints the recipient of a key".to_owned()
                }
                _ => format!("encrypt it again: `age -r RECIPIENT -o {path}`"),
            };
            (format!("the secret `{path}` {error}"), hint)
        })
    }

    /// Tells these from other keys without giving anything of them away.
    pub(super) fn fingerprint(&self) -> String {
        match self {
            Self::With(keys) => keys.0.fingerprint.fingerprint(PURPOSE),
            Self::Unread => "unread".to_owned(),
            Self::Missing(_) => "missing".to_owned(),
        }
    }

    /// Content that shows itself to nobody.
    pub(super) fn conceal(&self, bytes: &[u8]) -> Content {
        match self {
            Self::With(keys) => Content::secret(bytes, keys.0.fingerprint.clone()),
            // Nothing was read that could show.
            Self::Unread | Self::Missing(_) => Content::secret(bytes, SecretKey::new(PURPOSE)),
        }
    }
}

/// The file of the policy that holds a secret; `None` for a name that could leave the directory.
fn path(name: &str) -> Option<String> {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@'))
    };
    name.split('/').all(is_part).then(|| format!("{DIRECTORY}{name}{SUFFIX}"))
}
