//! `equals`: `KEY=value` or `KEY = value`, `export` before it allowed, as in /etc/default and /etc/sysctl.conf. Of several
//! values the last counts. Quotes stay where the file has them; without quotes the rest of the line is the value.

use std::ops::Range;

use super::keyed::{self, Syntax, Wins};
use super::space::whole;
use super::{EditError, Edited, Entry};
use crate::resource::lines::{Lines, indentation, spliced, trim, trimmed_range};

/// Puts every key to its values, and removes those without.
///
/// # Errors
///
/// When a value goes on in the next line, or the line's quotes cannot hold the new one.
pub fn edit(content: &[u8], entries: &[Entry]) -> Result<Edited, EditError> {
    let mut lines = Lines::of(content);
    let mut changes = Vec::new();
    for Entry { key, values, .. } in entries {
        let scope = whole(&lines);
        changes.extend(keyed::set(&Equals, &mut lines, &scope, key, key, values)?);
    }
    Ok(Edited { content: lines.to_bytes(), changes })
}

/// Where a line's value is, after `KEY =`, when the key begins at `start`.
pub(super) fn value_at(body: &[u8], start: usize, key: &str) -> Option<Range<usize>> {
    let rest = body.get(start..)?.strip_prefix(key.as_bytes())?;
    let equals = start + key.len() + indentation(rest);
    (body.get(equals) == Some(&b'=')).then(|| trimmed_range(body, equals + 1))
}

/// Where a line's value is.
fn value_of(body: &[u8], key: &str) -> Option<Range<usize>> {
    value_at(body, key_start(body), key)
}

/// Where the key begins: after blanks and `export`, unless that is the key itself.
fn key_start(body: &[u8]) -> usize {
    let start = indentation(body);
    let rest = body.get(start..).unwrap_or_default();
    match rest.strip_prefix(b"export") {
        Some(after) if indentation(after) > 0 && !trim(after).starts_with(b"=") => {
            start + b"export".len() + indentation(after)
        }
        Some(_) | None => start,
    }
}

/// What stands between two equal quotes at the beginning of a value, when nothing in it is escaped and only blanks or a comment
/// follow; with its range.
fn quoted(value: &[u8]) -> Option<Range<usize>> {
    let quote = value.first().filter(|byte| matches!(byte, b'"' | b'\''))?;
    let end = value.iter().skip(1).position(|byte| byte == quote)? + 1;
    let after = value.get(end + 1..)?;
    let is_plain = value.get(1..end).is_some_and(|inner| !inner.contains(&b'\\'));
    let is_end = after.is_empty() || indentation(after) > 0 && trim(after).starts_with(b"#");
    (is_plain && is_end).then_some(1..end)
}

/// How a line writes its assignment, when the key begins at `start`: what is before the key, and from its end to its value.
pub(super) fn style(body: &[u8], start: usize) -> (&[u8], &[u8]) {
    let plain: (&[u8], &[u8]) = (b"", b"=");
    let Some(equals) = body.iter().position(|byte| *byte == b'=').filter(|at| *at > start) else { return plain };
    let before = body.get(start..equals).map_or(equals, |key| start + trim(key).len());
    let after = equals + 1 + indentation(body.get(equals + 1..).unwrap_or_default());
    let after = if after == body.len() { equals + 1 } else { after };
    (body.get(..start).unwrap_or_default(), body.get(before..after).unwrap_or(b"="))
}

/// A value as a line of this style can hold it. A shell reads `KEY=a b` as an order to run `b`.
fn guarded(separator: &[u8], wanted: &str) -> String {
    let is_shell = separator == b"=";
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:,@%+=^".contains(&byte);
    let can_be_quoted = !wanted.contains(['"', '\'', '\\', '$', '`']);
    if is_shell && can_be_quoted && !wanted.bytes().all(is_safe) { format!("\"{wanted}\"") } else { wanted.to_owned() }
}

struct Equals;

impl Syntax for Equals {
    const WINS: Wins = Wins::Last;

    fn value(&self, body: &[u8], key: &str) -> Option<Range<usize>> {
        value_of(body, key)
    }

    fn is_setting(&self, body: &[u8]) -> bool {
        let text = trim(body);
        !text.starts_with(b"#") && !text.starts_with(b";") && text.contains(&b'=')
    }

    fn is_commented(&self, body: &[u8], key: &str) -> bool {
        let text = trim(body);
        text.strip_prefix(b"#").or_else(|| text.strip_prefix(b";")).is_some_and(|rest| value_of(rest, key).is_some())
    }

    fn continues(&self, body: &[u8], _next: &[u8]) -> bool {
        if body.ends_with(b"\\") {
            return true;
        }
        // A quote that is not closed. Comments have apostrophes, values hardly ever.
        let Some(equals) = body.iter().position(|byte| *byte == b'=') else { return false };
        let value = trim(body.get(equals + 1..).unwrap_or_default());
        match value.first() {
            Some(quote @ (b'"' | b'\'')) => value.iter().filter(|byte| *byte == quote).count() == 1,
            Some(_) | None => false,
        }
    }

    fn is_same(&self, found: &[u8], wanted: &str) -> bool {
        found == wanted.as_bytes()
            || quoted(found).and_then(|inner| found.get(inner)).is_some_and(|inner| inner == wanted.as_bytes())
    }

    fn rewritten(&self, body: &[u8], value: Range<usize>, wanted: &str) -> Option<Vec<u8>> {
        let found = body.get(value.clone())?;
        let is_quoted_by_policy = quoted(wanted.as_bytes()).is_some();
        if let Some(inner) = quoted(found).filter(|_| !is_quoted_by_policy) {
            let quote = found.first().copied()?;
            let is_held = !wanted.bytes().any(|byte| byte == quote || byte == b'\\');
            return is_held
                .then(|| spliced(body, value.start + inner.start..value.start + inner.end, wanted.as_bytes()));
        }
        let (_, separator) = style(body, key_start(body));
        Some(spliced(body, value, guarded(separator, wanted).as_bytes()))
    }

    fn fresh(&self, like: Option<&[u8]>, key: &str, wanted: &str) -> Vec<u8> {
        let separator = like.map_or(&b"="[..], |body| style(body, key_start(body)).1);
        [key.as_bytes(), separator, guarded(separator, wanted).as_bytes()].concat()
    }
}
