//! OpenPGP signatures, judged by what `gpgv` says of them and by a keyring of nobody but signers of the policy.
//!
//! This module runs nothing: whoever verifies brings a [`Gpgv`]. `gpgv` succeeds for keys that were revoked or have expired,
//! so its exit status is not asked; its status lines are, and only one good signature with nothing else beside it counts.

use std::error::Error;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::TrustError;

mod expiry;

pub(in crate::policy) use expiry::{last_to_expire, public_keys};

const BEGIN_KEY: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END_KEY: &str = "-----END PGP PUBLIC KEY BLOCK-----";
/// First line of an armored signature.
pub(super) const BEGIN_SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----";
/// Longest signature, in bytes: one by RSA-16384 with notations is far below.
const MAX_SIGNATURE: usize = 64 * 1024;
/// What each status line of gpgv begins with.
const STATUS: &str = "[GNUPG:] ";

/// Runs `gpgv` and returns its status lines. Given by the caller, because nothing here looks at the host.
pub type Gpgv = fn(&Question<'_>) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;

/// What `gpgv` is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The keyring, not armored.
    pub keyring: &'a [u8],
    /// The signature, armored.
    pub signature: &'a [u8],
    /// What it signs.
    pub message: &'a [u8],
}

/// Public keys of those who sign the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyring {
    packets: Vec<u8>,
    /// Fingerprints of the primary keys, in upper-case hexadecimal.
    primaries: Vec<String>,
}

/// Why a signature does not count.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It does not hold.
    Bad(&'static str),
    /// The key is nobody's: its fingerprint, or its id where the signature has no more.
    Unknown(String),
    /// The key is known, and does not count.
    NotAllowed {
        /// Whose key.
        signer: String,
        /// Why; reads after "the key of X, ".
        why: &'static str,
    },
}

impl Keyring {
    /// Whether a trust file is a keyring, armored or not, rather than a list of SSH keys. Each packet of OpenPGP begins with a
    /// byte that no text begins with.
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.first().is_some_and(|first| first & 0x80 != 0)
            || std::str::from_utf8(bytes).is_ok_and(|text| text.contains("-----BEGIN PGP "))
    }

    /// Reads a keyring as `gpg --export` writes it, with or without `--armor`.
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustError> {
        let keyring = |why: &str| TrustError::Keyring { why: why.to_owned() };
        let packets = packets_of(bytes).map_err(keyring)?;
        let primaries = primaries(&packets).map_err(keyring)?;
        if primaries.is_empty() { Err(keyring("it holds no public key")) } else { Ok(Self { packets, primaries }) }
    }

    /// Who signed a message, by what gpgv says.
    pub(super) fn judge(
        &self,
        signature: &[u8],
        message: &[u8],
        gpgv: Gpgv,
    ) -> Result<Result<String, Refusal>, Box<dyn Error + Send + Sync>> {
        if signature.len() > MAX_SIGNATURE {
            return Ok(Err(Refusal::Bad("it is too long")));
        }
        let status = gpgv(&Question { keyring: &self.packets, signature, message })?;
        Ok(judge(&String::from_utf8_lossy(&status), &self.primaries))
    }
}

/// Judges the status lines of gpgv (doc/DETAILS of GnuPG).
fn judge(status: &str, primaries: &[String]) -> Result<String, Refusal> {
    let mut good = Vec::new();
    let mut valid = Vec::new();
    for line in status.lines().filter_map(|line| line.strip_prefix(STATUS)) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let signer = || named(rest.split_once(' ').map_or("", |(_, user)| user));
        match word {
            "GOODSIG" => good.push(signer()),
            "VALIDSIG" => valid.push(rest.split(' ').collect::<Vec<_>>()),
            "BADSIG" => return Err(Refusal::Bad("it does not match the commit")),
            "EXPSIG" => return Err(Refusal::NotAllowed { signer: signer(), why: "and the signature has expired" }),
            "EXPKEYSIG" => return Err(Refusal::NotAllowed { signer: signer(), why: "which has expired" }),
            "REVKEYSIG" => return Err(Refusal::NotAllowed { signer: signer(), why: "which has been revoked" }),
            "ERRSIG" => {
                let fields: Vec<&str> = rest.split(' ').collect();
                let key = fields.get(6).filter(|f| f.len() >= 40).or_else(|| fields.first()).copied().unwrap_or("?");
                // 9 is a missing key; 4 an unknown algorithm.
                return Err(match fields.get(5) {
                    Some(&"9") => Refusal::Unknown(named(key)),
                    Some(_) | None => Refusal::Bad("gpgv cannot check it: its algorithm is unknown or too weak"),
                });
            }
            "NODATA" => return Err(Refusal::Bad("it is not an OpenPGP signature")),
            _ => {}
        }
    }
    let ([signer], [fields]) = (good.as_slice(), valid.as_slice()) else {
        return Err(Refusal::Bad("gpgv does not call it one good signature"));
    };
    let field = |i: usize| fields.get(i).copied().unwrap_or_default();
    // MD5, SHA-1 and RIPEMD-160.
    if matches!(field(7), "1" | "2" | "3") {
        return Err(Refusal::Bad("its hash is too weak to prove anything; set `digest-algo SHA512` in gpg.conf"));
    }
    if !matches!(field(8), "00" | "01") {
        return Err(Refusal::Bad("it was made for another purpose than signing text"));
    }
    if !primaries.iter().any(|primary| primary == field(9)) {
        return Err(Refusal::Unknown(named(field(9))));
    }
    Ok(signer.clone())
}

/// A name as gpgv gives it, fit for a message.
fn named(text: &str) -> String {
    let name: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if name.is_empty() { "?".to_owned() } else { name }
}

/// The packets of a keyring, armored or not.
fn packets_of(bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => Ok(bytes.to_vec()),
        Some(_) | None => dearmored(std::str::from_utf8(bytes).map_err(|_| "it is not an OpenPGP keyring")?),
    }
}

/// The bytes of every armored key block of a text. The checksum is left to whoever reads the packets: it protects nothing.
fn dearmored(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut packets = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line.starts_with("-----BEGIN PGP PRIVATE KEY") {
            return Err("it holds a private key: export the public keys alone, and change the key that was here");
        }
        if line != BEGIN_KEY {
            continue;
        }
        let mut body = String::new();
        let mut is_header = true;
        loop {
            match lines.next().ok_or("its armor is cut short")? {
                END_KEY => break,
                "" => is_header = false,
                line if is_header && line.contains(':') => {}
                checksum if checksum.starts_with('=') => {}
                line => {
                    is_header = false;
                    body.push_str(line);
                }
            }
        }
        packets.extend(STANDARD.decode(body).map_err(|_| "its base64 is damaged")?);
    }
    Ok(packets)
}

/// The fingerprints of the primary keys of a keyring.
fn primaries(bytes: &[u8]) -> Result<Vec<String>, &'static str> {
    packets(bytes)?.into_iter().filter(|(tag, _)| *tag == 6).map(|(_, body)| fingerprint(body)).collect()
}

/// The tag and body of each packet of a keyring. What is in no keyring of public keys is refused.
fn packets(mut packets: &[u8]) -> Result<Vec<(u8, &[u8])>, &'static str> {
    const CUT: &str = "it is cut short";
    const UNKNOWN: &str = "it is not an OpenPGP keyring";
    let mut found = Vec::new();
    while let Some((first, rest)) = packets.split_first() {
        if first & 0x80 == 0 {
            return Err(UNKNOWN);
        }
        // RFC 9580, section 4.2: the length is in one, two or four bytes, in a new form or an old one.
        let (tag, n_length, offset) = if first & 0x40 != 0 {
            match rest.first().ok_or(CUT)? {
                0..192 => (first & 0x3f, 1, 0),
                192..224 => (first & 0x3f, 2, 0),
                255 => (first & 0x3f, 4, 1),
                224..255 => return Err("it holds a packet of open length"),
            }
        } else {
            match first & 3 {
                0 => (first >> 2 & 0xf, 1, 0),
                1 => (first >> 2 & 0xf, 2, 0),
                2 => (first >> 2 & 0xf, 4, 0),
                _ => return Err("it holds a packet of open length"),
            }
        };
        let (_, rest) = rest.split_at_checked(offset).ok_or(CUT)?;
        let (length, rest) = rest.split_at_checked(n_length).ok_or(CUT)?;
        let number = length.iter().fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte));
        let is_new_pair = first & 0x40 != 0 && n_length == 2;
        let number = if is_new_pair { number - (192 << 8) + 192 } else { number };
        let (body, rest) = rest.split_at_checked(number).ok_or(CUT)?;
        match tag {
            5 | 7 => {
                return Err("it holds a private key: export the public keys alone, and change the key that was here");
            }
            // Signatures, keys, user ids, subkeys, attributes, trust, markers and padding.
            2 | 6 | 10 | 12 | 13 | 14 | 17 | 21 => found.push((tag, body)),
            _ => return Err(UNKNOWN),
        }
        packets = rest;
    }
    Ok(found)
}

/// The fingerprint of a key of version 4: what RFC 9580, section 5.5.4.2, takes the hash of.
fn fingerprint(body: &[u8]) -> Result<String, &'static str> {
    if body.first() != Some(&4) {
        return Err("it holds a key of another version than 4, which gpgv of all distributions cannot read");
    }
    let length = u16::try_from(body.len()).map_err(|_| "it holds a key that is too long")?;
    let hashed = [&[0x99][..], &length.to_be_bytes(), body].concat();
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &hashed);
    Ok(hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn check(lines: &str, expected: Result<&str, Refusal>) {
        let status: String = lines.lines().map(|line| format!("{STATUS}{line}\n")).collect();
        assert_eq!(judge(&status, &[PRIMARY.to_owned()]), expected.map(str::to_owned), "{lines}");
    }

    fn valid(hash: &str, class: &str, primary: &str) -> String {
        format!("VALIDSIG {} 2026-01-01 1 0 4 0 22 {hash} {class} {primary}", "B".repeat(40))
    }

    #[test]
    fn only_one_good_signature_by_a_listed_key_counts() {
        let good = "GOODSIG BBBB Ops <ops@acme.example>";
        let bad = |why| Err(Refusal::Bad(why));
        let not = |why| Err(Refusal::NotAllowed { signer: "Ops".to_owned(), why });
        let odd = "gpgv does not call it one good signature";
        let fine = valid("10", "00", PRIMARY);
        check(&format!("NEWSIG\n{good}\n{fine}"), Ok("Ops <ops@acme.example>"));
        check(good, bad(odd));
        check(&fine, bad(odd));
        check("", bad(odd));
        check(&format!("{good}\n{fine}\n{good}\n{fine}"), bad(odd));
        check(&format!("{good}\n{fine}\nBADSIG BBBB Ops"), bad("it does not match the commit"));
        check(&format!("EXPKEYSIG BBBB Ops\n{fine}"), not("which has expired"));
        check(&format!("REVKEYSIG BBBB Ops\n{fine}"), not("which has been revoked"));
        check(&format!("EXPSIG BBBB Ops\n{fine}"), not("and the signature has expired"));
        check(
            &format!("{good}\n{}", valid("2", "00", PRIMARY)),
            bad("its hash is too weak to prove anything; set `digest-algo SHA512` in gpg.conf"),
        );
        check(
            &format!("{good}\n{}", valid("10", "10", PRIMARY)),
            bad("it was made for another purpose than signing text"),
        );
        let other = "C".repeat(40);
        check(&format!("{good}\n{}", valid("10", "00", &other)), Err(Refusal::Unknown(other.clone())));
        check(&format!("ERRSIG BBBB 22 10 00 1 9 {other}"), Err(Refusal::Unknown(other)));
        check("ERRSIG BBBB 22 10 00 1 9", Err(Refusal::Unknown("BBBB".to_owned())));
        check("ERRSIG BBBB 99 10 00 1 4", bad("gpgv cannot check it: its algorithm is unknown or too weak"));
        check("NODATA 4", bad("it is not an OpenPGP signature"));
    }

    #[test]
    fn what_is_no_keyring() {
        let check = |bytes: &[u8], expected: &str| {
            let error = Keyring::parse(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(b"", "no public key");
        check(b"\xc6\x01\x05", "another version than 4");
        check(b"\xc6\xff\xff\xff\xff\xff", "cut short");
        check(b"\x99\x00", "cut short");
        check(b"\xc5\x00", "private key");
        check(b"\xe3\x00", "not an OpenPGP keyring");
        check(b"\xc6\xe0", "open length");
        check(b"\x9b", "open length");
        check(BEGIN_KEY.as_bytes(), "cut short");
        check(b"-----BEGIN PGP PRIVATE KEY BLOCK-----", "private key");
        check(format!("{BEGIN_KEY}\n\n!\n{END_KEY}").as_bytes(), "base64");
    }
}
