//! A throwaway ssh-ed25519 key that signs the demo's commits, so that the agent's real trust check has something to check.
//!
//! Format: OpenSSH's PROTOCOL.sshsig.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const KEY_TYPE: &[u8] = b"ssh-ed25519";
const NAMESPACE: &[u8] = b"git";
const HASH: &[u8] = b"sha512";

/// A key that exists for one demo.
#[derive(Debug)]
pub(super) struct Signer(Ed25519KeyPair);

impl Signer {
    /// Makes a key.
    pub(super) fn generate() -> anyhow::Result<Self> {
        Ok(Self(Ed25519KeyPair::generate().map_err(|_opaque| anyhow::anyhow!("cannot generate a key"))?))
    }

    fn public(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        put(&mut blob, KEY_TYPE);
        put(&mut blob, self.0.public_key().as_ref());
        blob
    }

    /// A line for an allowed_signers file.
    pub(super) fn allowed_signer(&self, who: &str) -> String {
        format!("{who} namespaces=\"git\" ssh-ed25519 {}\n", STANDARD.encode(self.public()))
    }

    /// The key as OpenSSH writes it.
    pub(super) fn public_key(&self, who: &str) -> String {
        format!("ssh-ed25519 {} {who}", STANDARD.encode(self.public()))
    }

    /// An armoured signature over a commit without its `gpgsig` header.
    pub(super) fn sign(&self, payload: &[u8]) -> String {
        let mut signed = b"SSHSIG".to_vec();
        put(&mut signed, NAMESPACE);
        put(&mut signed, b"");
        put(&mut signed, HASH);
        put(&mut signed, digest::digest(&digest::SHA512, payload).as_ref());
        let mut signature = Vec::new();
        put(&mut signature, KEY_TYPE);
        put(&mut signature, self.0.sign(&signed).as_ref());

        let mut blob = b"SSHSIG".to_vec();
        blob.extend(1u32.to_be_bytes());
        for part in [&self.public()[..], NAMESPACE, b"", HASH, &signature] {
            put(&mut blob, part);
        }
        let text = STANDARD.encode(blob);
        let mut armour = String::from("-----BEGIN SSH SIGNATURE-----\n");
        for line in text.as_bytes().chunks(70) {
            armour.push_str(&String::from_utf8_lossy(line));
            armour.push('\n');
        }
        armour.push_str("-----END SSH SIGNATURE-----");
        armour
    }
}

/// An SSH string: length, then bytes.
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}
