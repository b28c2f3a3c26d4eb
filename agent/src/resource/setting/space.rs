//! `space`: `KEY value`, as in login.defs. The rest of the line is the value; of several the last counts.

use std::ops::Range;

use super::keyed::{self, Scope, Syntax, Wins};
use super::{EditError, Edited, Entry};
use crate::resource::lines::{Lines, indentation, spliced, trim, trimmed_range};

/// Puts every key to its values, and removes those without.
///
/// # Errors
///
/// When a value goes on in the next line.
pub fn edit(content: &[u8], entries: &[Entry]) -> Result<Edited, EditError> {
    let mut lines = Lines::of(content);
    let mut changes = Vec::new();
    for Entry { key, values, .. } in entries {
        let scope = whole(&lines);
        changes.extend(keyed::set(&Space, &mut lines, &scope, key, key, values)?);
    }
    Ok(Edited { content: lines.to_bytes(), changes })
}

/// All lines, with new ones at the end.
pub(super) fn whole(lines: &Lines<'_>) -> Scope {
    Scope { ranges: std::iter::once(0..lines.len()).collect(), end: lines.len() }
}

struct Space;

impl Syntax for Space {
    const WINS: Wins = Wins::Last;

    fn value(&self, body: &[u8], key: &str) -> Option<Range<usize>> {
        let start = indentation(body);
        let rest = body.get(start..)?.strip_prefix(key.as_bytes())?;
        (rest.is_empty() || rest.starts_with(b" ") || rest.starts_with(b"\t"))
            .then(|| trimmed_range(body, start + key.len()))
    }

    fn is_setting(&self, body: &[u8]) -> bool {
        let text = trim(body);
        !text.starts_with(b"#") && text.iter().any(|byte| matches!(byte, b' ' | b'\t'))
    }

    /// Only `#KEY`: prose has a blank after its mark.
    fn is_commented(&self, body: &[u8], key: &str) -> bool {
        trim(body)
            .strip_prefix(b"#")
            .is_some_and(|rest| !rest.starts_with(b" ") && !rest.starts_with(b"\t") && self.value(rest, key).is_some())
    }

    fn continues(&self, body: &[u8], _next: &[u8]) -> bool {
        body.ends_with(b"\\")
    }

    fn is_same(&self, found: &[u8], wanted: &str) -> bool {
        found == wanted.as_bytes()
    }

    fn rewritten(&self, body: &[u8], value: Range<usize>, wanted: &str) -> Option<Vec<u8>> {
        Some(with_value(body, value, wanted))
    }

    fn fresh(&self, like: Option<&[u8]>, key: &str, wanted: &str) -> Vec<u8> {
        [key.as_bytes(), separator(like), wanted.as_bytes()].concat()
    }
}

/// The line with another value; a key that stood alone gets a blank.
pub(super) fn with_value(body: &[u8], value: Range<usize>, wanted: &str) -> Vec<u8> {
    let is_apart =
        value.start.checked_sub(1).and_then(|at| body.get(at)).is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'='));
    let wanted = if is_apart { wanted.to_owned() } else { format!(" {wanted}") };
    spliced(body, value, wanted.as_bytes())
}

/// A tab where the file has them between key and value.
pub(super) fn separator(like: Option<&[u8]>) -> &'static [u8] {
    let first = like.map(trim).and_then(|text| text.iter().find(|byte| matches!(byte, b' ' | b'\t')));
    if first == Some(&b'\t') { b"\t" } else { b" " }
}
