//! The SSHSIG envelope: what `ssh-keygen -Y sign` and `git commit -S` write with `gpg.format = ssh`.
//!
//! Verifies only; it holds no private key. The format is PROTOCOL.sshsig of OpenSSH. Input is hostile: each field is taken
//! with its length checked, and bytes left over are an error. SHA-1 and DSA are not known here.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

/// First line of an armored signature.
pub(super) const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
const MAGIC: &[u8] = b"SSHSIG";
/// An RSA-8192 signature armors to less than 6 KiB.
const MAX_ARMORED: usize = 16 * 1024;

/// A parsed signature that says nothing until it is verified.
#[derive(Debug)]
pub(super) struct Signature {
    key: Vec<u8>,
    namespace: Vec<u8>,
    hash: Vec<u8>,
    signature: Vec<u8>,
}

impl Signature {
    /// Reads an armored signature.
    pub(super) fn parse(armored: &str) -> Result<Self, &'static str> {
        if armored.len() > MAX_ARMORED {
            return Err("it is too long");
        }
        let body = armored
            .trim()
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.strip_suffix(END))
            .ok_or("it is not an armored SSH signature")?;
        let text: String = body.split_ascii_whitespace().collect();
        let raw = STANDARD.decode(text).map_err(|_| "its base64 is damaged")?;
        let mut reader = Reader(&raw);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err("it does not begin with SSHSIG");
        }
        if reader.number()? != 1 {
            return Err("its version is not 1");
        }
        let key = reader.string()?.to_vec();
        let namespace = reader.string()?.to_vec();
        let _reserved = reader.string()?;
        let hash = reader.string()?.to_vec();
        let signature = reader.string()?.to_vec();
        reader.end()?;
        Ok(Self { key, namespace, hash, signature })
    }

    /// The public key or certificate that it claims to be made with, in wire form.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Checks that it is a signature of `message` in `namespace` by `key`, which is the key that it claims or the one that the
    /// certificate that it claims is about.
    pub(super) fn verify(
        &self,
        key: &[u8],
        holder: Holder,
        namespace: &str,
        message: &[u8],
    ) -> Result<(), &'static str> {
        if self.namespace != namespace.as_bytes() {
            return Err("it was made for another purpose than signing git commits");
        }
        let algorithm = match self.hash.as_slice() {
            b"sha256" => &digest::SHA256,
            b"sha512" => &digest::SHA512,
            _ => return Err("its hash is neither sha256 nor sha512"),
        };
        let mut signed = MAGIC.to_vec();
        put(&mut signed, &self.namespace)?;
        put(&mut signed, b"")?;
        put(&mut signed, &self.hash)?;
        put(&mut signed, digest::digest(algorithm, message).as_ref())?;
        verify_raw(key, &self.signature, &signed, holder)
    }
}

/// The fingerprint of a key, as ssh-keygen prints it.
pub(super) fn fingerprint(key: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(digest::digest(&digest::SHA256, key)))
}

/// The type that a public key in wire form names at its beginning.
pub(super) fn key_type(key: &[u8]) -> Result<&[u8], &'static str> {
    Reader(key).string()
}

/// What whoever holds a security key must have done for a signature. Other keys cannot prove either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// Touched it.
    Touched,
    /// Touched it, and proven to be its owner by PIN or finger.
    Verified,
}

/// Whether signatures by keys of this type can be verified here.
pub(super) fn is_supported(key_type: &str) -> bool {
    matches!(
        key_type,
        "ssh-ed25519"
            | "sk-ssh-ed25519@openssh.com"
            | "sk-ecdsa-sha2-nistp256@openssh.com"
            | "ecdsa-sha2-nistp256"
            | "ecdsa-sha2-nistp384"
            | "ecdsa-sha2-nistp521"
            | "ssh-rsa"
    )
}

/// Checks a signature in wire form by a plain key in wire form.
pub(super) fn verify_raw(key: &[u8], signature: &[u8], signed: &[u8], holder: Holder) -> Result<(), &'static str> {
    let mut key = Reader(key);
    let key_type = key.string()?;
    let mut signature = Reader(signature);
    let signature_type = signature.string()?;
    let bytes = signature.string()?;
    // Only RSA keys make signatures of another type than their own, and only security keys append to them.
    if key_type != b"ssh-rsa" && key_type != signature_type {
        return Err("key and signature are of different types");
    }
    match key_type {
        b"ssh-ed25519" => {
            let public = key.string()?;
            key.end()?;
            signature.end()?;
            check(&ED25519, public, signed, bytes)
        }
        b"sk-ssh-ed25519@openssh.com" => {
            let public = key.string()?;
            let application = key.string()?;
            key.end()?;
            let message = message_of_token(&mut signature, application, signed, holder)?;
            check(&ED25519, public, &message, bytes)
        }
        b"sk-ecdsa-sha2-nistp256@openssh.com" => {
            let curve = key.string()?;
            let point = key.string()?;
            let application = key.string()?;
            key.end()?;
            let message = message_of_token(&mut signature, application, signed, holder)?;
            if curve != b"nistp256" {
                return Err("its key names another curve than its type");
            }
            check(&ECDSA_P256_SHA256_FIXED, point, &message, &fixed(bytes, 32)?)
        }
        b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384" | b"ecdsa-sha2-nistp521" => {
            signature.end()?;
            let curve = key.string()?;
            let point = key.string()?;
            key.end()?;
            let (algorithm, size): (&'static dyn VerificationAlgorithm, usize) = match (key_type, curve) {
                (b"ecdsa-sha2-nistp256", b"nistp256") => (&ECDSA_P256_SHA256_FIXED, 32),
                (b"ecdsa-sha2-nistp384", b"nistp384") => (&ECDSA_P384_SHA384_FIXED, 48),
                (b"ecdsa-sha2-nistp521", b"nistp521") => (&ECDSA_P521_SHA512_FIXED, 66),
                _ => return Err("its key names another curve than its type"),
            };
            check(algorithm, point, signed, &fixed(bytes, size)?)
        }
        b"ssh-rsa" => {
            signature.end()?;
            let e = without_leading_zeros(key.string()?);
            let n = without_leading_zeros(key.string()?);
            key.end()?;
            let parameters: &'static RsaParameters = match signature_type {
                b"rsa-sha2-256" => &RSA_PKCS1_2048_8192_SHA256,
                b"rsa-sha2-512" => &RSA_PKCS1_2048_8192_SHA512,
                _ => return Err("it is an RSA signature with SHA-1, which proves nothing"),
            };
            RsaPublicKeyComponents { n, e }.verify(parameters, signed, bytes).map_err(|_| DOES_NOT_HOLD)
        }
        _ => Err("its key type is not supported"),
    }
}

/// What a security key signs instead of the message, taking what it appends to its signature.
fn message_of_token(
    signature: &mut Reader<'_>,
    application: &[u8],
    signed: &[u8],
    holder: Holder,
) -> Result<Vec<u8>, &'static str> {
    let flags_and_counter = signature.take(5)?;
    signature.end()?;
    let flags = flags_and_counter.first().copied().unwrap_or_default();
    // Bit 0 is user presence: without it, malware could have asked the token behind its owner's back.
    if flags & 1 == 0 {
        return Err("the security key was not touched");
    }
    if holder == Holder::Verified && flags & 4 == 0 {
        return Err("the security key did not verify its owner, as the certificate demands");
    }
    let mut message = digest::digest(&digest::SHA256, application).as_ref().to_vec();
    message.extend_from_slice(flags_and_counter);
    message.extend_from_slice(digest::digest(&digest::SHA256, signed).as_ref());
    Ok(message)
}

/// The two numbers of an ECDSA signature, each in `size` bytes.
fn fixed(bytes: &[u8], size: usize) -> Result<Vec<u8>, &'static str> {
    let mut parts = Reader(bytes);
    let mut fixed = Vec::with_capacity(size * 2);
    put_fixed(&mut fixed, parts.string()?, size)?;
    put_fixed(&mut fixed, parts.string()?, size)?;
    parts.end()?;
    Ok(fixed)
}

const DOES_NOT_HOLD: &str = "it does not match the commit";

fn check(
    algorithm: &'static dyn VerificationAlgorithm,
    public: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), &'static str> {
    UnparsedPublicKey::new(algorithm, public).verify(message, signature).map_err(|_| DOES_NOT_HOLD)
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.split_at_checked(zeros).map_or(bytes, |(_, rest)| rest)
}

/// Appends a length and the bytes.
pub(super) fn put(to: &mut Vec<u8>, bytes: &[u8]) -> Result<(), &'static str> {
    let length = u32::try_from(bytes.len()).map_err(|_| "it is too long")?;
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(bytes);
    Ok(())
}

/// Appends a multi-precision integer in exactly `size` bytes.
fn put_fixed(to: &mut Vec<u8>, integer: &[u8], size: usize) -> Result<(), &'static str> {
    let integer = without_leading_zeros(integer);
    let padding = size.checked_sub(integer.len()).ok_or("a number in it is too large")?;
    to.resize(to.len() + padding, 0);
    to.extend_from_slice(integer);
    Ok(())
}

/// Takes fields from the front of bytes.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or("it is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn number(&mut self) -> Result<u32, &'static str> {
        let bytes = self.take(4)?;
        bytes.try_into().map(u32::from_be_bytes).map_err(|_| "it is cut short")
    }

    pub(super) fn long_number(&mut self) -> Result<u64, &'static str> {
        let bytes = self.take(8)?;
        bytes.try_into().map(u64::from_be_bytes).map_err(|_| "it is cut short")
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| "it is cut short")?)
    }

    pub(super) fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err("something follows its end") }
    }
}
