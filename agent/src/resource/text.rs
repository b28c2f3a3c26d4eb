//! Differences of content, for people: bounded in size and time, because what is on the host is hostile.

use std::time::Duration;

use sha2::{Digest, Sha256};
use similar::TextDiff;

use super::{Change, ChangeDetail, Concealed, Content, MAX_DIFF};

/// Content longer than this is compared by digest only: a line diff of it would cost more than it tells.
const MAX_DIFF_INPUT: usize = 256 * 1024;

/// How long a diff may think before it settles for a coarser one.
const DIFF_DEADLINE: Duration = Duration::from_millis(100);

/// The change from `from` to `to` as a unified diff, or as digests when either is not text or too long. What nobody declared may
/// hold a key: a side that does is not shown, because a plan goes to a terminal, and the history out by webhooks.
pub(super) fn content_change(attribute: &str, from: Option<&[u8]>, to: Option<&[u8]>) -> Change {
    if from.unwrap_or_default().is_empty() && to.unwrap_or_default().is_empty() {
        // There is no line to show.
        let side = |content: Option<&[u8]>| content.map(|_| "empty".to_owned());
        return Change::value(attribute, side(from), side(to));
    }
    let conceals = |side: Option<&[u8]>| side.is_some_and(holds_credential);
    if conceals(from) || conceals(to) {
        let side = |side: Option<&[u8]>| side.map(|text| if holds_credential(text) { word() } else { describe(text) });
        let detail = ChangeDetail::Opaque { from: side(from), to: side(to) };
        return Change { attribute: attribute.to_owned(), detail };
    }
    let detail = match (from.map_or(Some(""), as_text), to.map_or(Some(""), as_text)) {
        (Some(old), Some(new)) => ChangeDetail::Text { diff: unified(old, new) },
        _ => ChangeDetail::Opaque { from: from.map(describe), to: to.map(describe) },
    };
    Change { attribute: attribute.to_owned(), detail }
}

/// The change from `from` to what is declared. Where that cannot be read now, its size and digest are shown.
pub(super) fn change_to(attribute: &str, from: Option<&[u8]>, to: &Content) -> Change {
    if let Some(key) = to.secret_key() {
        // What is there instead may be an older secret.
        let to = to.bytes().ok().map(|bytes| key.fingerprint(&bytes));
        let detail = ChangeDetail::Opaque { from: from.map(|bytes| key.fingerprint(bytes)), to };
        return Change { attribute: attribute.to_owned(), detail };
    }
    match to.bytes() {
        Ok(bytes) => content_change(attribute, from, Some(&bytes)),
        Err(_) => {
            let detail = ChangeDetail::Opaque { from: from.map(describe), to: Some(describe_declared(to)) };
            Change { attribute: attribute.to_owned(), detail }
        }
    }
}

fn word() -> String {
    Concealed::Secret.word().to_owned()
}

/// Whether content holds what lets somebody in who reads it: a private key, or the hash of a password. By the marks of the formats
/// in which programs write them: PEM (RFC 7468) and its like of OpenSSH, OpenPGP, SSH.COM and PuTTY; age; crypt(5).
fn holds_credential(content: &[u8]) -> bool {
    content.split(|byte| *byte == b'\n').any(|line| {
        let line = line.trim_ascii();
        let is_key = line.starts_with(b"-----BEGIN ") || line.starts_with(b"---- BEGIN ");
        (is_key && contains(line, b" PRIVATE KEY"))
            || line.starts_with(b"PuTTY-User-Key-File-")
            || contains(line, b"AGE-SECRET-KEY-1")
            || line.split(|byte| b": \t'\"".contains(byte)).any(is_password_hash)
    })
}

/// Whether a word is as crypt(5), or Apache's and argon2's likeness of it, has the hash of a password: `$id$`, then salt and hash.
fn is_password_hash(word: &[u8]) -> bool {
    /// The shortest is that of MD5 without a salt.
    const SHORTEST: usize = 25;
    const IDS: [&[u8]; 14] =
        [b"1", b"2a", b"2b", b"2x", b"2y", b"5", b"6", b"7", b"y", b"gy", b"apr1", b"argon2i", b"argon2d", b"argon2id"];
    // As in `password=$6$…`, and of an account that is locked.
    let Some(start) = word.iter().position(|byte| *byte == b'$') else { return false };
    let (before, word) = word.split_at(start);
    let mut parts = word.split(|byte| *byte == b'$').skip(1);
    matches!(before.last(), None | Some(b'=' | b'!'))
        && word.len() >= SHORTEST
        && parts.next().is_some_and(|id| IDS.contains(&id))
        && parts.next().is_some()
}

fn contains(line: &[u8], what: &[u8]) -> bool {
    line.windows(what.len()).any(|window| window == what)
}

/// The change from one text to another, as a plan would show it.
pub fn text_change(from: &str, to: &str) -> Change {
    content_change("content", Some(from.as_bytes()), Some(to.as_bytes()))
}

/// Size and digest of content, such as `812 bytes, sha256 3f…`.
pub(super) fn describe(content: &[u8]) -> String {
    format!("{} bytes, sha256 {}", content.len(), digest(content))
}

/// Size and digest of declared content, in the same words.
pub(super) fn describe_declared(content: &Content) -> String {
    if content.is_secret() {
        return "secret".to_owned();
    }
    format!("{} bytes, sha256 {}", content.len(), content.digest())
}

/// SHA-256 in hexadecimal.
pub fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// Text that can be shown: short enough, UTF-8, and free of control characters that a terminal would obey.
fn as_text(content: &[u8]) -> Option<&str> {
    if content.len() > MAX_DIFF_INPUT {
        return None;
    }
    let text = std::str::from_utf8(content).ok()?;
    text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t' | '\r')).then_some(text)
}

fn unified(old: &str, new: &str) -> String {
    let diff = TextDiff::configure().timeout(DIFF_DEADLINE).diff_lines(old, new);
    let full = diff.unified_diff().context_radius(3).to_string();
    if full.len() <= MAX_DIFF {
        return full;
    }
    let mut cut = String::new();
    let mut omitted: usize = 0;
    const ROOM_FOR_NOTE: usize = 64;
    for line in full.split_inclusive('\n') {
        if omitted == 0 && cut.len() + line.len() <= MAX_DIFF - ROOM_FOR_NOTE {
            cut.push_str(line);
        } else {
            omitted += 1;
        }
    }
    cut.push_str(&format!("[{omitted} more lines]\n"));
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_diffs_are_cut_at_a_line_with_a_note() {
        let new: String = (0..5000).map(|i| format!("line {i}\n")).collect();
        let ChangeDetail::Text { diff } = content_change("content", None, Some(new.as_bytes())).detail else {
            panic!("text expected");
        };
        assert!(diff.len() <= MAX_DIFF);
        assert!(diff.ends_with(" more lines]\n"), "{}", &diff[diff.len() - 40..]);
    }

    #[test]
    fn what_is_not_text_is_shown_by_digest() {
        for content in [&b"\xff\xfe"[..], b"\x1b[31mred", &vec![b'a'; MAX_DIFF_INPUT + 1]] {
            let change = content_change("content", Some(b"old\n"), Some(content));
            assert!(matches!(change.detail, ChangeDetail::Opaque { .. }), "{change:?}");
        }
    }

    #[test]
    fn what_lets_somebody_in_is_never_shown() {
        for found in [
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n",
            "cert\n-----BEGIN PRIVATE KEY-----\r\nMIIE\n",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\n",
            "-----BEGIN RSA PRIVATE KEY-----\n",
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
            "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\n",
            "PuTTY-User-Key-File-3: ssh-ed25519\n",
            "# created: 2026-01-01\nAGE-SECRET-KEY-1QQPQYRZ\n",
            "root:$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7:19000:0:99999:7:::\n",
            "alice:!$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/:1::\n",
            "www:$apr1$lZL6V/ci$eIMz/iKDkbtys/uU7LEK00\n",
            "rootpw --iscrypted $5$rounds=5000$salt$hashhashhashhash\n",
        ] {
            let (found, other) = (found.as_bytes(), &b"plain\n"[..]);
            let replaced = content_change("content", Some(found), Some(other));
            assert!(replaced.conceals_found(), "{replaced:?}");
            let put_back = content_change("content", Some(other), Some(found));
            assert!(put_back.is_concealed() && !put_back.conceals_found(), "{put_back:?}");
            for change in [replaced, put_back] {
                let told = format!("{change:?}");
                assert!(
                    !found.split(|byte| *byte == b'\n').any(|line| line.len() > 8 && contains(told.as_bytes(), line))
                );
            }
        }
        for plain in [
            "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----\n",
            "-----BEGIN PUBLIC KEY-----\n",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlain comment\n",
            "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n",
            "log_format main '$remote_addr - $remote_user [$time_local] $request$status$body_bytes_sent';\n",
            "PATH=$HOME/bin:$GOPATH$SUFFIX:/usr/local/sbin:/usr/local/bin\n",
            "root:x:0:0:root:/root:/bin/bash\n",
        ] {
            let change = content_change("content", Some(plain.as_bytes()), None);
            assert!(matches!(change.detail, ChangeDetail::Text { .. }), "{plain}");
        }
    }

    #[test]
    fn one_line_differs() {
        let change = content_change("content", Some(b"a\nb\n"), Some(b"a\nc\n"));
        assert_eq!(change.detail, ChangeDetail::Text { diff: "@@ -1,2 +1,2 @@\n a\n-b\n+c\n".to_owned() });
    }
}
