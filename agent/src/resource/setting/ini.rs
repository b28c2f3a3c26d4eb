//! `ini`: `key = value` below `[section]`, as in systemd's and many others' files. Keys before the first section belong to the
//! section without a name. Sections of one name are one; of several values the last counts. The rest of the line is the value.

use std::ops::Range;

use super::equals::{style, value_at};
use super::keyed::{self, Scope, Syntax, Wins};
use super::{EditError, Edited, Entry};
use crate::resource::lines::{Lines, indentation, spliced, trim};

/// Puts every key of every section to its values, and removes those without.
///
/// # Errors
///
/// When a value goes on in the next line.
pub fn edit(content: &[u8], entries: &[Entry]) -> Result<Edited, EditError> {
    let mut lines = Lines::of(content);
    let mut changes = Vec::new();
    for Entry { section, key, values } in entries {
        let name = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        let scope = match scope(&lines, section) {
            Some(scope) => scope,
            None if values.is_empty() => continue,
            None => {
                if lines.bodies().next_back().is_some_and(|(_, body)| !trim(body).is_empty()) {
                    lines.insert(lines.len(), Vec::new());
                }
                lines.insert(lines.len(), format!("[{section}]").into_bytes());
                Scope { ranges: Vec::new(), end: lines.len() }
            }
        };
        // A new section has no lines to be like; those of the file will do.
        let like = scope.ranges.is_empty().then(|| lines.bodies().rfind(|(_, body)| Ini::default().is_setting(body)));
        let syntax = Ini { otherwise: like.flatten().map(|(_, body)| body.to_vec()) };
        changes.extend(keyed::set(&syntax, &mut lines, &scope, key, &name, values)?);
    }
    Ok(Edited { content: lines.to_bytes(), changes })
}

/// The lines of all sections of a name; a new one goes after the last line of the last of them that is not blank.
fn scope(lines: &Lines<'_>, section: &str) -> Option<Scope> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut begins = section.is_empty().then_some(0);
    for (at, body) in lines.bodies() {
        let Some(name) = header(body) else { continue };
        if let Some(begin) = begins.take() {
            ranges.push(begin..at);
        }
        if name == section.as_bytes() {
            begins = Some(at + 1);
        }
    }
    ranges.extend(begins.map(|begin| begin..lines.len()));
    let last = ranges.last()?.clone();
    let end = last.clone().rfind(|at| !trim(lines.body(*at)).is_empty()).map_or(last.start, |at| at + 1);
    Some(Scope { ranges, end })
}

fn header(body: &[u8]) -> Option<&[u8]> {
    let text = trim(body).strip_prefix(b"[")?;
    let end = text.iter().position(|byte| *byte == b']')?;
    text.get(..end).map(trim)
}

/// `otherwise` is a line to write like where the section has none.
#[derive(Default)]
struct Ini {
    otherwise: Option<Vec<u8>>,
}

impl Syntax for Ini {
    const WINS: Wins = Wins::Last;

    /// A key may stand alone.
    fn value(&self, body: &[u8], key: &str) -> Option<Range<usize>> {
        let is_alone = trim(body) == key.as_bytes();
        value_at(body, indentation(body), key)
            .or_else(|| is_alone.then(|| indentation(body) + key.len()..indentation(body) + key.len()))
    }

    fn is_setting(&self, body: &[u8]) -> bool {
        let text = trim(body);
        !text.starts_with(b"#") && !text.starts_with(b";") && !text.starts_with(b"[") && text.contains(&b'=')
    }

    fn is_commented(&self, body: &[u8], key: &str) -> bool {
        let text = trim(body);
        text.strip_prefix(b"#")
            .or_else(|| text.strip_prefix(b";"))
            .is_some_and(|rest| value_at(rest, indentation(rest), key).is_some())
    }

    /// By a backslash, or because the next line is indented further and says nothing of its own.
    fn continues(&self, body: &[u8], next: &[u8]) -> bool {
        let text = trim(next);
        let says_something =
            text.is_empty() || matches!(text.first(), Some(b'#' | b';' | b'[')) || text.contains(&b'=');
        body.ends_with(b"\\") || indentation(next) > indentation(body) && !says_something
    }

    fn is_same(&self, found: &[u8], wanted: &str) -> bool {
        found == wanted.as_bytes()
    }

    fn rewritten(&self, body: &[u8], value: Range<usize>, wanted: &str) -> Option<Vec<u8>> {
        let wanted = if body.contains(&b'=') { wanted.to_owned() } else { format!("={wanted}") };
        Some(spliced(body, value, wanted.as_bytes()))
    }

    fn fresh(&self, like: Option<&[u8]>, key: &str, wanted: &str) -> Vec<u8> {
        let like = like.or(self.otherwise.as_deref());
        let (before, separator) = like.map_or((&b""[..], &b"="[..]), |body| style(body, indentation(body)));
        [before, key.as_bytes(), separator, wanted.as_bytes()].concat()
    }
}
