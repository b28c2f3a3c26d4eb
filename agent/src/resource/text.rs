//! Differences of content, for people: bounded in size and time, because what is on the host is hostile.

use std::time::Duration;

use sha2::{Digest, Sha256};
use similar::TextDiff;

use super::{Change, ChangeDetail, Content, MAX_DIFF};

/// Content longer than this is compared by digest only: a line diff of it would cost more than it tells.
const MAX_DIFF_INPUT: usize = 256 * 1024;

/// How long a diff may think before it settles for a coarser one.
const DIFF_DEADLINE: Duration = Duration::from_millis(100);

/// The change from `from` to `to` as a unified diff, or as digests when either is not text or too long.
pub(super) fn content_change(attribute: &str, from: Option<&[u8]>, to: Option<&[u8]>) -> Change {
    if from.unwrap_or_default().is_empty() && to.unwrap_or_default().is_empty() {
        // There is no line to show.
        let side = |content: Option<&[u8]>| content.map(|_| "empty".to_owned());
        return Change::value(attribute, side(from), side(to));
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
    fn one_line_differs() {
        let change = content_change("content", Some(b"a\nb\n"), Some(b"a\nc\n"));
        assert_eq!(change.detail, ChangeDetail::Text { diff: "@@ -1,2 +1,2 @@\n a\n-b\n+c\n".to_owned() });
    }
}
