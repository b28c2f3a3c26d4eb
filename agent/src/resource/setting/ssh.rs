//! `ssh`: sshd_config(5) and ssh_config(5). Keywords are of either case, of several values the first counts, and only what
//! stands before the first `Match` or `Host` is edited: below it a line would hold for some alone.

use std::ops::Range;

use super::keyed::{self, Scope, Syntax, Wins};
use super::space::{separator, with_value};
use super::{EditError, Edited, Entry};
use crate::resource::lines::{Lines, indentation, trim};

/// Puts every keyword to its values, and removes those without.
///
/// # Errors
///
/// When a value goes on in the next line.
pub fn edit(content: &[u8], entries: &[Entry]) -> Result<Edited, EditError> {
    let mut lines = Lines::of(content);
    let mut changes = Vec::new();
    for Entry { key, values, .. } in entries {
        let scope = global(&lines);
        changes.extend(keyed::set(&Ssh, &mut lines, &scope, key, key, values)?);
    }
    Ok(Edited { content: lines.to_bytes(), changes })
}

/// What holds for everybody. A new line comes after the last keyword there, or before the first block.
fn global(lines: &Lines<'_>) -> Scope {
    let begins = |body: &[u8]| {
        keyword(body).is_some_and(|(word, _)| word.eq_ignore_ascii_case(b"match") || word.eq_ignore_ascii_case(b"host"))
    };
    let Some(block) = lines.bodies().position(|(_, body)| begins(body)) else { return super::space::whole(lines) };
    let last = lines.bodies().take(block).rfind(|(_, body)| keyword(body).is_some());
    Scope { ranges: std::iter::once(0..block).collect(), end: last.map_or(block, |(at, _)| at + 1) }
}

/// The keyword of a line, and where what follows it begins.
fn keyword(body: &[u8]) -> Option<(&[u8], usize)> {
    let start = indentation(body);
    let rest = body.get(start..)?;
    let length = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let word = rest.get(..length).filter(|word| !word.is_empty())?;
    match rest.get(length) {
        None => Some((word, body.len())),
        Some(b' ' | b'\t' | b'=') => {
            // Blanks, at most one equals sign, blanks.
            let mut at = start + length;
            at += indentation(body.get(at..)?);
            if body.get(at) == Some(&b'=') {
                at += 1;
            }
            Some((word, at + indentation(body.get(at..)?)))
        }
        Some(_) => None,
    }
}

/// Arguments, with what quotes hold as one, up to a comment.
fn arguments(text: &[u8]) -> Vec<Vec<u8>> {
    let mut arguments = Vec::new();
    let mut rest = trim(text);
    while !rest.is_empty() && !rest.starts_with(b"#") {
        let mut argument = Vec::new();
        let mut quoted = false;
        let mut n_read = 0;
        for byte in rest {
            match byte {
                b'"' => quoted = !quoted,
                b' ' | b'\t' if !quoted => break,
                byte => argument.push(*byte),
            }
            n_read += 1;
        }
        arguments.push(argument);
        rest = trim(rest.get(n_read..).unwrap_or_default());
    }
    arguments
}

/// Where the arguments end: before a comment.
fn end_of_arguments(text: &[u8]) -> usize {
    let mut quoted = false;
    let mut end = 0;
    let mut is_apart = true;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b' ' | b'\t' if !quoted => {
                is_apart = true;
                continue;
            }
            b'#' if is_apart && !quoted => break,
            b'"' => quoted = !quoted,
            _ => {}
        }
        is_apart = false;
        end = at + 1;
    }
    end
}

struct Ssh;

impl Syntax for Ssh {
    const WINS: Wins = Wins::First;

    fn value(&self, body: &[u8], key: &str) -> Option<Range<usize>> {
        let (_, start) = keyword(body).filter(|(word, _)| word.eq_ignore_ascii_case(key.as_bytes()))?;
        let length = end_of_arguments(body.get(start..)?);
        Some(start..start + length)
    }

    fn is_setting(&self, body: &[u8]) -> bool {
        keyword(body).is_some()
    }

    /// Only `#Keyword`: prose has a blank after its mark.
    fn is_commented(&self, body: &[u8], key: &str) -> bool {
        trim(body).strip_prefix(b"#").is_some_and(|rest| indentation(rest) == 0 && self.value(rest, key).is_some())
    }

    fn continues(&self, body: &[u8], _next: &[u8]) -> bool {
        body.ends_with(b"\\")
    }

    fn is_same(&self, found: &[u8], wanted: &str) -> bool {
        arguments(found) == arguments(wanted.as_bytes())
    }

    /// A comment that stood where the value comes is kept apart from it: right after it, it would be a part of it.
    fn rewritten(&self, body: &[u8], value: Range<usize>, wanted: &str) -> Option<Vec<u8>> {
        let wanted = if body.get(value.end) == Some(&b'#') { format!("{wanted} ") } else { wanted.to_owned() };
        Some(with_value(body, value, &wanted))
    }

    fn fresh(&self, like: Option<&[u8]>, key: &str, wanted: &str) -> Vec<u8> {
        [key.as_bytes(), separator(like), wanted.as_bytes()].concat()
    }
}
