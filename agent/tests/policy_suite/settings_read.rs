//! Settings files as the programs that own them read them: the reader that the editors of `setting` are held to.
//!
//! Written apart from the editors and as plainly as possible. [`check`] is what every edit keeps to.

use rekindle::resource::setting::{Edited, Edits, Entry, block};

/// A line without its end, and its end.
type Line<'a> = (&'a [u8], &'a [u8]);

fn lines(content: &[u8]) -> Vec<Line<'_>> {
    content
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| {
            let length = line.strip_suffix(b"\n").unwrap_or(line);
            line.split_at(length.strip_suffix(b"\r").unwrap_or(length).len())
        })
        .collect()
}

fn trim(bytes: &[u8]) -> &[u8] {
    let is_blank = |byte: &&u8| matches!(**byte, b' ' | b'\t');
    let n_before = bytes.iter().take_while(is_blank).count();
    let rest = &bytes[n_before..];
    &rest[..rest.len() - rest.iter().rev().take_while(is_blank).count()]
}

/// `rest` when the text begins with the word and something else than more of it.
fn after_word<'a>(text: &'a [u8], word: &[u8], ends: &[u8]) -> Option<&'a [u8]> {
    let rest = text.strip_prefix(word)?;
    rest.first().is_none_or(|byte| ends.contains(byte)).then_some(rest)
}

/// What a line says the key is, if it says so.
fn value<'a>(edits: &Edits, body: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let text = trim(body);
    let assigned = |text: &'a [u8]| {
        let rest = trim(text.strip_prefix(key.as_bytes())?);
        rest.strip_prefix(b"=").map(trim)
    };
    match edits {
        Edits::Space(_) => after_word(text, key.as_bytes(), b" \t").map(trim),
        Edits::Ssh(_) => {
            let length = text.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
            let (word, rest) = text.split_at(length);
            let is_word = rest.first().is_none_or(|byte| b" \t=".contains(byte));
            let rest = trim(rest);
            (is_word && word.eq_ignore_ascii_case(key.as_bytes()))
                .then(|| trim(rest.strip_prefix(b"=").unwrap_or(rest)))
        }
        Edits::Equals(_) => {
            let is_word = |rest: &&[u8]| trim(rest).len() < rest.len() && !trim(rest).starts_with(b"=");
            assigned(text.strip_prefix(b"export").filter(is_word).map_or(text, trim))
        }
        Edits::Ini(_) => assigned(text).or_else(|| (text == key.as_bytes()).then_some(&[])),
        Edits::Line { .. } | Edits::Block { .. } => None,
    }
}

/// The section that each line is in; `None` for headers, and for lines that are not edited.
fn sections<'a>(edits: &Edits, lines: &[Line<'a>]) -> Vec<Option<&'a [u8]>> {
    let mut now: Option<&[u8]> = Some(b"");
    lines
        .iter()
        .map(|(body, _)| {
            let text = trim(body);
            match edits {
                Edits::Ini(_) => {
                    let header = text.strip_prefix(b"[").and_then(|rest| {
                        rest.split(|byte| *byte == b']').next().filter(|name| name.len() < rest.len())
                    });
                    if let Some(name) = header {
                        now = Some(trim(name));
                        return None;
                    }
                }
                Edits::Ssh(_) if value(edits, body, "match").or(value(edits, body, "host")).is_some() => now = None,
                Edits::Ssh(_) | Edits::Space(_) | Edits::Equals(_) | Edits::Line { .. } | Edits::Block { .. } => {}
            }
            now
        })
        .collect()
}

fn entries(edits: &Edits) -> &[Entry] {
    match edits {
        Edits::Space(entries) | Edits::Ssh(entries) | Edits::Equals(entries) | Edits::Ini(entries) => entries,
        Edits::Line { .. } | Edits::Block { .. } => &[],
    }
}

/// Every value that the file has for a key, in its order.
fn read<'a>(edits: &Edits, content: &'a [u8], entry: &Entry) -> Vec<&'a [u8]> {
    let lines = lines(content);
    let sections = sections(edits, &lines);
    let in_section = lines.iter().zip(sections).filter(|(_, section)| *section == Some(entry.section.as_bytes()));
    in_section.filter_map(|((body, _), _)| value(edits, body, &entry.key)).collect()
}

/// A value as its reader understands it.
fn understood(edits: &Edits, value: &[u8]) -> Vec<Vec<u8>> {
    match edits {
        Edits::Ssh(_) => words(value),
        // A shell, as far as the file does not ask for more of one.
        Edits::Equals(_) => match value.first() {
            Some(quote @ (b'"' | b'\'')) if !value.contains(&b'\\') => {
                let inner = &value[1..];
                match inner.iter().position(|byte| byte == quote) {
                    Some(end) if inner[end + 1..].is_empty() || after_comment(&inner[end + 1..]) => {
                        vec![inner[..end].to_vec()]
                    }
                    Some(_) | None => vec![value.to_vec()],
                }
            }
            Some(_) | None => vec![value.to_vec()],
        },
        Edits::Space(_) | Edits::Ini(_) | Edits::Line { .. } | Edits::Block { .. } => vec![value.to_vec()],
    }
}

fn after_comment(rest: &[u8]) -> bool {
    trim(rest).len() < rest.len() && trim(rest).starts_with(b"#")
}

/// Arguments as sshd splits them: at blanks outside of quotes, up to a comment.
fn words(text: &[u8]) -> Vec<Vec<u8>> {
    let mut words: Vec<Vec<u8>> = Vec::new();
    let (mut is_open, mut is_quoted) = (false, false);
    for byte in text {
        match byte {
            b' ' | b'\t' if !is_quoted => is_open = false,
            b'#' if !is_open => break,
            byte => {
                if !is_open {
                    words.push(Vec::new());
                    is_open = true;
                }
                if *byte == b'"' {
                    is_quoted = !is_quoted;
                } else {
                    words.last_mut().into_iter().for_each(|word| word.push(*byte));
                }
            }
        }
    }
    words
}

/// The lines that the edit is not about, in their order.
fn others<'a>(edits: &Edits, content: &'a [u8]) -> Vec<Line<'a>> {
    let lines = lines(content);
    let sections = sections(edits, &lines);
    let mut is_inside = false;
    let mut others = lines.clone();
    let mut at = 0;
    others.retain(|(body, _)| {
        let section = sections.get(at).copied().flatten();
        at += 1;
        match edits {
            Edits::Space(_) | Edits::Ssh(_) | Edits::Equals(_) | Edits::Ini(_) => !entries(edits)
                .iter()
                .any(|entry| section == Some(entry.section.as_bytes()) && value(edits, body, &entry.key).is_some()),
            Edits::Line { present, absent } => !present.iter().chain(absent).any(|line| line.as_bytes() == *body),
            Edits::Block { name, comment, .. } => {
                let is_end = is_inside && *body == block::end_mark(comment, name).as_bytes();
                is_inside = (is_inside || *body == block::begin_mark(comment, name).as_bytes()) && !is_end;
                !is_inside && !is_end
            }
        }
    });
    others
}

/// The texts of all blocks of a name.
fn blocks<'a>(content: &'a [u8], begin: &str, end: &str) -> Vec<Vec<&'a [u8]>> {
    let mut blocks = Vec::new();
    let mut open: Option<Vec<&[u8]>> = None;
    for (body, _) in lines(content) {
        if body == begin.as_bytes() {
            open = Some(Vec::new());
        } else if body == end.as_bytes() {
            blocks.extend(open.take());
        } else if let Some(lines) = &mut open {
            lines.push(body);
        }
    }
    blocks
}

/// Checks an edit: whoever reads the file finds what was wanted, every other byte stays, and a second time changes nothing.
///
/// # Errors
///
/// What does not hold.
pub(crate) fn check(edits: &Edits, content: &[u8], edited: &Edited) -> Result<(), String> {
    let after = edited.content.as_slice();
    let differs = |what: &str| Err(format!("{what}: {} → {}", content.escape_ascii(), after.escape_ascii()));
    if edited.changes.is_empty() != (after == content) {
        return differs("the changes are not those of the file");
    }
    match edits.edit(after) {
        Ok(again) if again.changes.is_empty() && again.content == after => {}
        Ok(again) => return differs(&format!("a second time gives {}", again.content.escape_ascii())),
        Err(error) => return differs(&format!("a second time fails: {error}")),
    }
    for entry in entries(edits) {
        let found: Vec<_> = read(edits, after, entry).into_iter().map(|value| understood(edits, value)).collect();
        let wanted: Vec<_> = entry.values.iter().map(|value| understood(edits, value.as_bytes())).collect();
        if found != wanted {
            return differs(&format!("`{}` is read as {found:?}", entry.key));
        }
    }
    match edits {
        Edits::Line { present, absent } => {
            let is_there = |line: &String| lines(after).iter().any(|(body, _)| *body == line.as_bytes());
            if !present.iter().all(is_there) || absent.iter().any(is_there) {
                return differs("not the lines that were wanted");
            }
        }
        Edits::Block { name, comment, lines } => {
            let found = blocks(after, &block::begin_mark(comment, name), &block::end_mark(comment, name));
            let wanted: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
            if found != if lines.is_empty() { vec![] } else { vec![wanted] } {
                return differs("not the block that was wanted");
            }
        }
        Edits::Space(_) | Edits::Ssh(_) | Edits::Equals(_) | Edits::Ini(_) => {}
    }
    if !is_same(edits, &others(edits, content), &others(edits, after), content) {
        return differs("something else was changed");
    }
    Ok(())
}

/// Whether the other lines stayed. A last line without an end gets one when something comes after it; a section that was not there
/// gets a header, and a blank line before it.
fn is_same(edits: &Edits, before: &[Line<'_>], after: &[Line<'_>], content: &[u8]) -> bool {
    let is_unended = !content.ends_with(b"\n");
    let is_line_same = |at: usize| match (before.get(at), after.get(at)) {
        (Some(a), Some(b)) if is_unended && at + 1 == before.len() && !a.1.ends_with(b"\n") => a.0 == b.0,
        (Some(a), Some(b)) => a == b,
        (Some(_) | None, _) => false,
    };
    let is_header = |(body, _): &Line<'_>| {
        let is_of = |entry: &Entry| !entry.section.is_empty() && *body == format!("[{}]", entry.section).as_bytes();
        body.is_empty() || entries(edits).iter().any(is_of)
    };
    (0..before.len()).all(is_line_same)
        && after
            .get(before.len()..)
            .is_some_and(|new| new.is_empty() || matches!(edits, Edits::Ini(_)) && new.iter().all(is_header))
}
