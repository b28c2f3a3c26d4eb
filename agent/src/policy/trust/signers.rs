//! OpenSSH allowed_signers: `principals [options] key-type base64-key [comment]`, one signer a line (see ssh-keygen(1)).
//!
//! An option that is not honoured here is an error: to skip a restriction would widen whom the file trusts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::certificate::Certificate;
use super::{TrustError, sshsig};

/// Longest file that is read, in bytes.
const MAX_LENGTH: usize = 1024 * 1024;

/// Keys whose signatures count, each with who holds it, for what, and from when to when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedSigners(Vec<Signer>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Signer {
    /// A pattern list; it selects among the names of certificates, and otherwise names the holder of the key.
    principals: String,
    role: Role,
    /// Patterns of namespaces; every namespace when `None`.
    namespaces: Option<Vec<String>>,
    valid_after: Option<Timestamp>,
    valid_before: Option<Timestamp>,
    key: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The key signs commits.
    Signer,
    /// The key signs certificates of keys that sign commits: `cert-authority`.
    Authority,
}

/// What the list says about a key or a certificate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It may sign this, now.
    Allowed(String),
    /// It is listed, and may not.
    NotAllowed {
        /// Whose key it is.
        signer: String,
        /// Why not; reads after "the key of X, ".
        why: &'static str,
    },
    /// It is not listed.
    Unknown,
}

impl AllowedSigners {
    /// Reads the text of an allowed_signers file. Times without `Z` are in the host's time zone, as for ssh-keygen.
    pub fn parse(text: &str) -> Result<Self, TrustError> {
        if text.len() > MAX_LENGTH {
            return Err(TrustError::AllowedSigners {
                line: 1,
                why: format!("the file is longer than {MAX_LENGTH} bytes"),
            });
        }
        let mut signers = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let signer = parse_line(line).map_err(|why| TrustError::AllowedSigners { line: i + 1, why })?;
            signers.push(signer);
        }
        if signers.is_empty() { Err(TrustError::NoSigners) } else { Ok(Self(signers)) }
    }

    /// Says what the list has on a key. Several lines may name one key: one that allows it is enough.
    pub(super) fn find(&self, key: &[u8], namespace: &str, now: Timestamp) -> Found {
        let mut found = Found::Unknown;
        for signer in self.0.iter().filter(|signer| signer.role == Role::Signer && signer.key == key) {
            let name = signer.principals.clone();
            match signer.objection(namespace, now) {
                None => return Found::Allowed(name),
                Some(why) => found = Found::NotAllowed { signer: name, why },
            }
        }
        found
    }

    /// Says what the list has on a certificate, whose authority has signed it. The authority's line must match one of the
    /// names in it.
    pub(super) fn find_certified(&self, certificate: &Certificate<'_>, namespace: &str, now: Timestamp) -> Found {
        let mut found = Found::Unknown;
        let lines = self.0.iter().filter(|line| line.role == Role::Authority && line.key == certificate.authority());
        for line in lines {
            let patterns: Vec<String> = line.principals.split(',').map(str::to_owned).collect();
            let named: Vec<&str> =
                certificate.principals().iter().copied().filter(|name| matches_list(&patterns, name)).collect();
            let everybody = certificate.principals().join(",");
            let objection = if everybody.is_empty() {
                // To ssh-keygen, too, such a certificate is nobody's.
                Some("whose certificate names no principal")
            } else if named.is_empty() {
                Some("whom the line of the certificate's authority does not allow")
            } else {
                line.objection(namespace, now).or_else(|| certificate.objection(now))
            };
            match objection {
                None => return Found::Allowed(named.join(",")),
                Some(why) => found = Found::NotAllowed { signer: everybody, why },
            }
        }
        found
    }

    /// Whether a key is an authority of the list.
    pub(super) fn has_authority(&self, key: &[u8]) -> bool {
        self.0.iter().any(|line| line.role == Role::Authority && line.key == key)
    }
}

impl Signer {
    fn objection(&self, namespace: &str, now: Timestamp) -> Option<&'static str> {
        if self.namespaces.as_ref().is_some_and(|patterns| !matches_list(patterns, namespace)) {
            return Some("which is not allowed for git (`namespaces=`)");
        }
        if self.valid_after.is_some_and(|after| now < after) {
            return Some("which is not valid yet (`valid-after=`)");
        }
        if self.valid_before.is_some_and(|before| now > before) {
            return Some("which is not valid any more (`valid-before=`)");
        }
        None
    }
}

fn parse_line(line: &str) -> Result<Signer, String> {
    let mut words = split_words(line)?.into_iter();
    let principals = words.next().filter(|word| !word.is_empty()).ok_or("it has no principals")?;
    if principals.chars().any(char::is_control) {
        return Err("its principals have a control character".to_owned());
    }
    let mut signer = Signer {
        principals,
        role: Role::Signer,
        namespaces: None,
        valid_after: None,
        valid_before: None,
        key: Vec::new(),
    };
    let expected = "expected a key type, such as `ssh-ed25519`, then the key";
    let mut word = words.next().ok_or(expected)?;
    if !looks_like_key_type(&word) {
        parse_options(&word, &mut signer)?;
        word = words.next().ok_or(expected)?;
    }
    if !sshsig::is_supported(&word) {
        return Err(format!("`{word}` is not a key type that can be verified here; {expected}"));
    }
    let key = words.next().ok_or("the key is missing")?;
    signer.key = STANDARD.decode(&key).map_err(|_| "the key is not base64".to_owned())?;
    if sshsig::key_type(&signer.key) != Ok(word.as_bytes()) {
        return Err(format!("the key itself is not of the type `{word}`"));
    }
    Ok(signer)
}

fn looks_like_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| word.starts_with(prefix))
}

fn parse_options(word: &str, signer: &mut Signer) -> Result<(), String> {
    for option in split_unquoted(word, ',')? {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name.to_ascii_lowercase(), Some(value)),
            None => (option.to_ascii_lowercase(), None),
        };
        let duplicate = || Err(format!("the option `{name}` is given twice"));
        match (name.as_str(), value) {
            ("namespaces", Some(value)) => {
                let patterns = value.split(',').map(|p| p.trim().to_owned()).collect();
                if signer.namespaces.replace(patterns).is_some() {
                    return duplicate();
                }
            }
            ("valid-after", Some(value)) => {
                if signer.valid_after.replace(parse_time(value)?).is_some() {
                    return duplicate();
                }
            }
            ("valid-before", Some(value)) => {
                if signer.valid_before.replace(parse_time(value)?).is_some() {
                    return duplicate();
                }
            }
            ("cert-authority", None) => {
                if std::mem::replace(&mut signer.role, Role::Authority) == Role::Authority {
                    return duplicate();
                }
            }
            _ => {
                return Err(format!(
                    "`{option}` is neither a key type nor an option: expected `cert-authority`, `namespaces=\"git\"`, `valid-after=\"YYYYMMDD\"` or `valid-before=\"YYYYMMDD\"`"
                ));
            }
        }
    }
    Ok(())
}

/// `YYYYMMDD`, `YYYYMMDDHHMM` or `YYYYMMDDHHMMSS`, with `Z` for UTC.
fn parse_time(text: &str) -> Result<Timestamp, String> {
    let error = || format!("`{text}` is not a time: expected YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, with Z for UTC");
    let (digits, zone) = match text.strip_suffix(['Z', 'z']).or_else(|| text.strip_suffix("UTC")) {
        Some(digits) => (digits, TimeZone::UTC),
        None => (text, TimeZone::system()),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) || !matches!(digits.len(), 8 | 12 | 14) {
        return Err(error());
    }
    let number = |range: std::ops::Range<usize>| digits.get(range).map_or(Ok(0), str::parse::<i16>);
    let small = |range| number(range).ok().and_then(|n| i8::try_from(n).ok()).ok_or_else(error);
    let year = number(0..4).map_err(|_| error())?;
    let time = DateTime::new(year, small(4..6)?, small(6..8)?, small(8..10)?, small(10..12)?, small(12..14)?, 0)
        .map_err(|_| error())?;
    zone.to_timestamp(time).map_err(|_| error())
}

/// Splits at blanks outside quotes. A word that is quoted as a whole loses its quotes.
fn split_words(line: &str) -> Result<Vec<String>, String> {
    let words = split_raw(line, |c| c == ' ' || c == '\t')?;
    Ok(words.into_iter().filter(|w| !w.is_empty()).map(|w| if w.starts_with('"') { unquoted(&w) } else { w }).collect())
}

/// Splits at a separator outside quotes, and drops the quotes.
fn split_unquoted(text: &str, separator: char) -> Result<Vec<String>, String> {
    Ok(split_raw(text, |c| c == separator)?.iter().map(|part| unquoted(part)).collect())
}

fn unquoted(text: &str) -> String {
    text.chars().filter(|c| *c != '"').collect()
}

fn split_raw(text: &str, is_separator: impl Fn(char) -> bool) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        if c == '"' {
            quoted = !quoted;
        }
        if !quoted && is_separator(c) {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    if quoted { Err("a quote is not closed".to_owned()) } else { Ok(parts) }
}

/// OpenSSH's pattern list: one pattern must match, and none that begins with `!`.
fn matches_list(patterns: &[String], text: &str) -> bool {
    let mut matched = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches_pattern(pattern.as_bytes(), text.as_bytes()) => return false,
            Some(_) => {}
            None => matched |= matches_pattern(pattern.as_bytes(), text.as_bytes()),
        }
    }
    matched
}

/// `*` matches any text, `?` any byte. Linear: only the last star is ever tried again.
fn matches_pattern(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                t += 1;
            }
            Some(byte) if text.get(t) == Some(byte) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((star_p, star_t)) => {
                    star = Some((star_p, star_t + 1));
                    p = star_p + 1;
                    t = star_t + 1;
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_none_or(|rest| rest.iter().all(|byte| *byte == b'*'))
}
