//! Until when public keys sign, by what they say of themselves.
//!
//! Their own signatures are not checked: whoever brings the keys vouches for them. What is read here is only told of.

use super::{fingerprint, packets, packets_of};

/// A primary key with its subkeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) struct PublicKey {
    fingerprint: String,
    /// When nothing of it signs any more, in seconds since 1970.
    expires: Option<i64>,
}

/// What a key or subkey says of itself.
struct Part<'a> {
    body: &'a [u8],
    is_primary: bool,
    /// Of its newest own signature: when that was made, for how long the key counts, and what it is for.
    said: Option<Said>,
}

#[derive(Clone, Copy)]
struct Said {
    made: u32,
    /// Seconds after the key was made; 0 is for ever.
    lasts: u32,
    signs: Option<bool>,
}

/// Reads a keyring, armored or not.
///
/// # Errors
///
/// When it is none, or holds no public key, or one that is revoked.
pub(in crate::policy) fn public_keys(bytes: &[u8]) -> Result<Vec<PublicKey>, &'static str> {
    let bytes = packets_of(bytes)?;
    let mut keys: Vec<Vec<Part<'_>>> = Vec::new();
    for (tag, body) in packets(&bytes)? {
        match (tag, keys.last_mut()) {
            (6, _) => keys.push(vec![Part { body, is_primary: true, said: None }]),
            (14, Some(parts)) => parts.push(Part { body, is_primary: false, said: None }),
            (2, Some(parts)) => add_signature(parts, body)?,
            _ => {}
        }
    }
    if keys.is_empty() {
        return Err("it holds no public key");
    }
    keys.iter().map(|parts| read(parts)).collect()
}

/// When the last of several keys stops signing; `None` when one of them does not.
pub(in crate::policy) fn last_to_expire(keys: &[PublicKey]) -> Option<i64> {
    keys.iter().map(|key| key.expires).reduce(|a, b| Some(a?.max(b?)))?
}

fn read(parts: &[Part<'_>]) -> Result<PublicKey, &'static str> {
    let primary = parts.first().ok_or("it holds no public key")?;
    let end_of_primary = end(primary);
    // What has no word on what it is for may sign, too.
    let signs = |part: &Part<'_>| part.said.and_then(|said| said.signs).unwrap_or(part.is_primary);
    let ends = parts.iter().filter(|part| signs(part)).map(|part| match (end(part), end_of_primary) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    });
    let expires = ends.reduce(|a, b| Some(a?.max(b?))).unwrap_or(end_of_primary);
    Ok(PublicKey { fingerprint: fingerprint(primary.body)?, expires })
}

/// When a key or subkey stops counting, in seconds since 1970.
fn end(part: &Part<'_>) -> Option<i64> {
    let made = part.body.get(1..5).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes)?;
    let lasts = part.said.map(|said| said.lasts).filter(|lasts| *lasts != 0)?;
    Some(i64::from(made) + i64::from(lasts))
}

/// Adds what a signature says of the newest key or subkey, if it is that key's own. RFC 9580, section 5.2.
fn add_signature(parts: &mut [Part<'_>], body: &[u8]) -> Result<(), &'static str> {
    let Some(primary) = parts.first().map(|part| part.body) else { return Ok(()) };
    let Some(part) = parts.last_mut() else { return Ok(()) };
    let [4, kind, ..] = *body else { return Ok(()) };
    let is_about = match kind {
        0x10..=0x13 | 0x1f => part.is_primary,
        0x18 => !part.is_primary,
        0x20 => part.is_primary,
        _ => false,
    };
    if !is_about {
        return Ok(());
    }
    let (Some(hashed), rest) = section(body.get(4..).unwrap_or_default()) else { return Ok(()) };
    let (unhashed, _) = section(rest);
    let mut said = Said { made: 0, lasts: 0, signs: None };
    let mut is_own = false;
    let own = fingerprint(primary)?;
    for (kind, value) in subpackets(hashed).chain(subpackets(unhashed.unwrap_or_default())) {
        let hex = || value.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
        match kind {
            16 => is_own |= own.ends_with(&hex()) && value.len() == 8,
            33 => {
                is_own |= value.split_first().is_some_and(|(_, fingerprint)| {
                    fingerprint.iter().map(|byte| format!("{byte:02X}")).collect::<String>() == own
                })
            }
            _ => {}
        }
    }
    // Only what the signature covers says anything.
    for (kind, value) in subpackets(hashed) {
        let number = || value.try_into().map(u32::from_be_bytes).unwrap_or_default();
        match kind {
            2 => said.made = number(),
            9 => said.lasts = number(),
            27 => said.signs = value.first().map(|flags| flags & 2 != 0),
            _ => {}
        }
    }
    if !is_own {
        return Ok(());
    }
    if kind == 0x20 {
        return Err("it holds a key that was revoked");
    }
    if part.said.is_none_or(|before| before.made <= said.made) {
        part.said = Some(said);
    }
    Ok(())
}

/// A run of subpackets with its length before it, and what comes after it.
fn section(bytes: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let Some((length, rest)) = bytes.split_at_checked(2) else { return (None, &[]) };
    let length = length.iter().fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte));
    rest.split_at_checked(length).map_or((None, &[]), |(section, rest)| (Some(section), rest))
}

/// The kinds and values of subpackets, up to the first that is damaged.
fn subpackets(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (first, rest) = bytes.split_first()?;
        let (length, rest) = match first {
            0..192 => (usize::from(*first), rest),
            192..255 => {
                let (second, rest) = rest.split_first()?;
                (((usize::from(*first) - 192) << 8) + usize::from(*second) + 192, rest)
            }
            255 => {
                let (length, rest) = rest.split_at_checked(4)?;
                (length.iter().fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte)), rest)
            }
        };
        let (packet, rest) = rest.split_at_checked(length)?;
        bytes = rest;
        packet.split_first().map(|(kind, value)| (kind & 0x7f, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_expire_counts() {
        let key = |expires| PublicKey { fingerprint: String::new(), expires };
        assert_eq!(last_to_expire(&[key(Some(1)), key(Some(3)), key(Some(2))]), Some(3));
        assert_eq!(last_to_expire(&[key(Some(1)), key(None)]), None);
        assert_eq!(last_to_expire(&[]), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_too_damaged(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), signature in proptest::collection::vec(proptest::num::u8::ANY, 0..120)) {
            drop(public_keys(&bytes));
            // A primary key, and a signature of any content.
            let mut key = vec![0xc6, 6, 4, 0, 0, 0, 1, 22];
            key.extend([0xc2, u8::try_from(signature.len() + 1).unwrap(), 4]);
            key.extend(signature);
            drop(public_keys(&key));
            key.append(&mut bytes);
            drop(public_keys(&key));
        }
    }
}
