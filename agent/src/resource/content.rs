//! The bytes that a file is declared with.
//!
//! They are in memory while a policy is compiled. Afterwards a policy of 10,000 files of 4 KiB would keep 40 MiB there for bytes
//! that are needed only to put a file back. So they can lie in a file of the agent's own instead ([`Store`]): whether a file has
//! them is told by a keyed hash, and they are read when they are written somewhere or shown.
//!
//! - Bytes that were read from a store are compared with their SHA-256 before anybody gets them. What is damaged is an error
//!   and marks the [`Store`]; it is never taken for what is declared.
//! - A store is read and never mapped: a file that is cut short must be an error, not a signal.
//! - Two contents are equal when their length and SHA-256 are.
//! - Secret content stays in memory, never lies in a store, shows itself as a fingerprint that only this host could make, and is
//!   wiped when nobody has it any more.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::hmac;
use highway::{HighwayHash, HighwayHasher, Key};
use sha2::{Digest, Sha256};

use zeroize::{Zeroize, Zeroizing};

use super::text::hex;

/// Content of a file, whole. Cheap to clone: clones share the bytes.
#[derive(Clone)]
pub struct Content(Arc<Inner>);

struct Inner {
    length: usize,
    sha256: [u8; 32],
    place: Place,
    /// Makes fingerprints, of content that is secret.
    secret: Option<SecretKey>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let (Some(_), Place::Memory(bytes)) = (&self.secret, &mut self.place) {
            bytes.zeroize();
        }
    }
}

/// What fingerprints of secrets are keyed with: without it a short secret could be guessed from its fingerprint.
#[derive(Clone)]
pub struct SecretKey(Arc<Zeroizing<Vec<u8>>>);

impl SecretKey {
    /// Takes the bytes of the key.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Arc::new(Zeroizing::new(bytes.to_vec())))
    }

    /// What is shown instead of secret bytes.
    pub fn fingerprint(&self, bytes: &[u8]) -> String {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), bytes);
        format!("secret, fingerprint {}", hex(tag.as_ref().get(..8).unwrap_or_default()))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey")
    }
}

enum Place {
    Memory(Box<[u8]>),
    Stored { store: Arc<Store>, offset: u64, print: Print },
}

/// A keyed hash of content. Only who knows the key of the [`Store`] could make other bytes that have it.
pub type Print = [u64; 2];

/// A file of the agent's own in which contents lie.
pub struct Store {
    file: File,
    key: [u64; 4],
    damaged: AtomicBool,
}

impl Store {
    /// `key` is the one that the prints of its contents were made with. Nobody who may write declared files may know it.
    pub fn new(file: File, key: [u64; 4]) -> Self {
        Self { file, key, damaged: AtomicBool::new(false) }
    }

    /// Whether some content could not be read from it, or was not what it should be.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("file", &self.file).field("damaged", &self.damaged).finish_non_exhaustive()
    }
}

/// Makes the print of content.
pub fn print(key: [u64; 4], content: &[u8]) -> Print {
    HighwayHasher::new(Key(key)).hash128(content)
}

impl Content {
    /// Content in memory.
    pub fn new(bytes: &[u8]) -> Self {
        Self::with_digest(bytes, Sha256::digest(bytes).into())
    }

    /// Content in memory, of which the SHA-256 is known.
    pub fn with_digest(bytes: &[u8], sha256: [u8; 32]) -> Self {
        Self(Arc::new(Inner { length: bytes.len(), sha256, place: Place::Memory(bytes.into()), secret: None }))
    }

    /// Content that nobody is shown.
    pub fn secret(bytes: &[u8], key: SecretKey) -> Self {
        let sha256 = Sha256::digest(bytes).into();
        let place = Place::Memory(bytes.into());
        Self(Arc::new(Inner { length: bytes.len(), sha256, place, secret: Some(key) }))
    }

    /// The key of its fingerprints, when it is secret. What is secret may be written where the policy declares it, and nowhere
    /// else but in a copy that waits to be put there.
    pub fn secret_key(&self) -> Option<&SecretKey> {
        self.0.secret.as_ref()
    }

    /// Whether it is secret.
    pub fn is_secret(&self) -> bool {
        self.0.secret.is_some()
    }

    /// Content that lies in a store, of which length, SHA-256 and print are known.
    pub fn stored(store: &Arc<Store>, offset: u64, length: usize, sha256: [u8; 32], print: Print) -> Self {
        let place = Place::Stored { store: Arc::clone(store), offset, print };
        Self(Arc::new(Inner { length, sha256, place, secret: None }))
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.0.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.length == 0
    }

    /// Whether both are one allocation.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The store that it lies in; `None` in memory.
    pub fn store(&self) -> Option<&Arc<Store>> {
        match &self.0.place {
            Place::Memory(_) => None,
            Place::Stored { store, .. } => Some(store),
        }
    }

    /// The bytes: those in memory, or read from the store.
    ///
    /// # Errors
    ///
    /// When the store cannot be read, or what is there is something else.
    pub fn bytes(&self) -> io::Result<Cow<'_, [u8]>> {
        let (store, offset) = match &self.0.place {
            Place::Memory(bytes) => return Ok(Cow::Borrowed(bytes)),
            Place::Stored { store, offset, .. } => (store, *offset),
        };
        let mut bytes = vec![0; self.0.length];
        let read = store.file.read_exact_at(&mut bytes, offset).and_then(|()| {
            if Sha256::digest(&bytes)[..] == self.0.sha256 {
                Ok(())
            } else {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the stored content was changed"))
            }
        });
        match read {
            Ok(()) => Ok(Cow::Owned(bytes)),
            Err(error) => {
                store.damaged.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Whether these are the bytes, all of them. Reads nothing.
    pub fn is(&self, bytes: &[u8]) -> bool {
        match &self.0.place {
            Place::Memory(own) => **own == *bytes,
            Place::Stored { store, print: own, .. } => self.0.length == bytes.len() && *own == print(store.key, bytes),
        }
    }

    /// Compares with bytes that come in parts. Reads nothing.
    pub fn compare(&self) -> Comparison<'_> {
        Comparison(match &self.0.place {
            Place::Memory(bytes) => Left::Bytes(bytes),
            Place::Stored { store, print, .. } => {
                Left::Print { hasher: Box::new(HighwayHasher::new(Key(store.key))), n_left: self.0.length, print }
            }
        })
    }

    /// SHA-256, by which equal content is known on every host.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.0.sha256
    }

    /// SHA-256 in hexadecimal.
    pub fn digest(&self) -> String {
        hex(&self.0.sha256)
    }
}

/// The length and the beginning of the digest: content may be long, and secret.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_secret() {
            return f.write_str("Content(secret)");
        }
        let digest = self.digest();
        write!(f, "Content({} bytes, sha256 {})", self.len(), digest.get(..12).unwrap_or(&digest))
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.length, self.0.sha256) == (other.0.length, other.0.sha256)
    }
}

impl Eq for Content {}

impl Hash for Content {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.sha256.hash(state);
    }
}

/// A comparison under way.
#[derive(Debug)]
pub struct Comparison<'a>(Left<'a>);

/// What is still to come.
#[derive(Debug)]
enum Left<'a> {
    Bytes(&'a [u8]),
    Print { hasher: Box<HighwayHasher>, n_left: usize, print: &'a Print },
}

impl Comparison<'_> {
    /// How many bytes are still to come.
    pub fn n_left(&self) -> usize {
        match &self.0 {
            Left::Bytes(bytes) => bytes.len(),
            Left::Print { n_left, .. } => *n_left,
        }
    }

    /// Takes the next bytes. `false` when they are certainly others; there is nothing more to compare then.
    #[must_use]
    pub fn take(&mut self, bytes: &[u8]) -> bool {
        match &mut self.0 {
            Left::Bytes(left) => match left.strip_prefix(bytes) {
                Some(rest) => {
                    *left = rest;
                    true
                }
                None => false,
            },
            Left::Print { hasher, n_left, .. } => match n_left.checked_sub(bytes.len()) {
                Some(rest) => {
                    hasher.append(bytes);
                    *n_left = rest;
                    true
                }
                None => false,
            },
        }
    }

    /// Whether all that was taken was equal and nothing is missing.
    pub fn is_equal(self) -> bool {
        match self.0 {
            Left::Bytes(left) => left.is_empty(),
            Left::Print { hasher, n_left, print } => n_left == 0 && hasher.finalize128() == *print,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const KEY: [u64; 4] = [1, 2, 3, 4];

    /// The same bytes in memory, and in a store behind some others.
    fn both(bytes: &[u8]) -> [Content; 2] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(bytes).unwrap();
        let store = Arc::new(Store::new(file, KEY));
        let memory = Content::new(bytes);
        let stored = Content::stored(&store, 6, bytes.len(), *memory.sha256(), print(KEY, bytes));
        [memory, stored]
    }

    /// Whether it is equal to bytes that come in two parts.
    fn in_parts(content: &Content, bytes: &[u8]) -> bool {
        let mut comparison = content.compare();
        let (first, second) = bytes.split_at(bytes.len() / 3);
        comparison.take(first) && comparison.take(second) && comparison.is_equal()
    }

    #[test]
    fn content_is_the_same_wherever_it_lies() {
        for bytes in [&b""[..], b"x", &[7; 4096], &[8; 100_001]] {
            let both = both(bytes);
            assert_eq!(both[0], both[1]);
            for content in both {
                assert_eq!((content.len(), content.bytes().unwrap().as_ref()), (bytes.len(), bytes));
                assert!(content.is(bytes) && in_parts(&content, bytes));
                let mut others = vec![[bytes, b"y"].concat()];
                if let Some((last, before)) = bytes.split_last() {
                    others.push(before.to_vec());
                    others.push([before, &[last ^ 1]].concat());
                }
                for other in others {
                    assert!(!content.is(&other) && !in_parts(&content, &other), "{content:?} {}", other.len());
                }
            }
        }
    }

    #[test]
    fn damaged_content_is_an_error_and_is_remembered() {
        for damage in ["cut short", "changed"] {
            let [_, content] = both(b"the content");
            let store = content.store().unwrap();
            assert!(!store.is_damaged());
            match damage {
                "cut short" => store.file.set_len(10).unwrap(),
                _ => store.file.write_all_at(b"X", 8).unwrap(),
            }
            assert!(content.bytes().is_err(), "{damage}");
            assert!(store.is_damaged(), "{damage}");
            assert!(content.is(b"the content"), "whether a file is in sync can still be told");
        }
    }

    #[test]
    fn content_does_not_show_in_debug_output() {
        assert_eq!(format!("{:?}", Content::new(b"secret")), "Content(6 bytes, sha256 2bb80d537b1d)");
        assert_eq!(format!("{:?}", Content::secret(b"secret", SecretKey::new(b"key"))), "Content(secret)");
    }

    #[test]
    fn fingerprints_of_secrets_depend_on_the_key() {
        let print = |key: &[u8], bytes: &[u8]| SecretKey::new(key).fingerprint(bytes);
        assert_eq!(print(b"a", b"x"), print(b"a", b"x"));
        assert_ne!(print(b"a", b"x"), print(b"a", b"y"));
        assert_ne!(print(b"a", b"x"), print(b"b", b"x"));
    }
}
