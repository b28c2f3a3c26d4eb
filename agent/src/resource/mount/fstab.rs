//! /etc/fstab as bytes: the fields of one mount point are edited in place, and every other byte stays.

use std::borrow::Cow;
use std::ops::Range;

use super::options;
use crate::resource::Change;
use crate::resource::lines::Lines;

/// What the line of a mount point should say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// A line with at least these options.
    Line {
        /// The first field; `None` leaves it.
        source: Option<&'a str>,
        /// The third field; `None` leaves it.
        fstype: Option<&'a str>,
        /// At least these options.
        options: &'a [String],
    },
    /// No line.
    Nothing,
}

/// An edited table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// Its content.
    pub content: Vec<u8>,
    /// What differed; empty exactly when nothing was changed.
    pub changes: Vec<Change>,
}

/// There is no line, and too little is known to write one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incomplete;

/// One line's fields, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What is mounted.
    pub source: String,
    /// File system type.
    pub fstype: String,
    /// Options, as they stand there.
    pub options: String,
}

/// The first line of a mount point; the last field may be missing.
pub fn entry(content: &[u8], target: &str) -> Option<Entry> {
    let lines = Lines::of(content);
    let (_, body) = lines.bodies().find(|(_, body)| is_for(body, target))?;
    let fields = fields(body);
    let field = |at: usize| fields.get(at).map(|range| decoded(body, range)).unwrap_or_default();
    Some(Entry { source: field(0), fstype: field(2), options: field(3) })
}

/// Edits the lines of a mount point. Pure.
///
/// # Errors
///
/// When a line has to be added and the source or the type is not known.
pub fn edit(content: &[u8], target: &str, wanted: Wanted<'_>) -> Result<Edited, Incomplete> {
    let mut lines = Lines::of(content);
    let found: Vec<usize> = lines.bodies().filter(|(_, body)| is_for(body, target)).map(|(at, _)| at).collect();
    let mut changes = Vec::new();
    let shown = |body: &[u8]| Some(String::from_utf8_lossy(body).split_whitespace().collect::<Vec<_>>().join(" "));
    match wanted {
        Wanted::Nothing => {
            for at in found.iter().rev() {
                changes.push(Change::value("fstab", shown(lines.body(*at)), None));
                lines.remove(*at);
            }
            changes.reverse();
        }
        Wanted::Line { source, fstype, options } if found.is_empty() => {
            let (Some(source), Some(fstype)) = (source, fstype) else { return Err(Incomplete) };
            let options = if options.is_empty() { "defaults".to_owned() } else { options.join(",") };
            let line = format!("{} {} {} {} 0 0", encoded(source), encoded(target), encoded(fstype), encoded(&options));
            changes.push(Change::value("fstab", None, Some(line.clone())));
            lines.insert(lines.len(), line.into_bytes());
        }
        Wanted::Line { source, fstype, options } => {
            for (nth, at) in found.iter().enumerate() {
                // Only the first of several is what one source and type can be about.
                let (source, fstype) = if nth == 0 { (source, fstype) } else { (None, None) };
                let before = lines.body(*at).to_vec();
                let after = edited(&before, source, fstype, options);
                if after != before {
                    changes.push(Change::value("fstab", shown(&before), shown(&after)));
                    lines.replace(*at, after);
                }
            }
        }
    }
    Ok(Edited { content: lines.to_bytes(), changes })
}

fn edited(body: &[u8], source: Option<&str>, fstype: Option<&str>, options: &[String]) -> Vec<u8> {
    let mut line = body.to_vec();
    let ranges = fields(body);
    // From the back, so that what is before keeps its place.
    match ranges.get(3) {
        Some(range) => {
            let now = decoded(body, range);
            let merged = options::merged(&now, options);
            if merged != now {
                line.splice(range.clone(), encoded(&merged).into_bytes());
            }
        }
        None if options.is_empty() => {}
        None => {
            // A comment may follow.
            let end = ranges.last().map_or(0, |range| range.end);
            line.splice(end..end, format!(" {}", encoded(&options.join(","))).into_bytes());
        }
    }
    for (at, wanted) in [(2, fstype), (0, source)] {
        if let (Some(range), Some(wanted)) = (ranges.get(at), wanted)
            && decoded(body, range) != wanted
        {
            line.splice(range.clone(), encoded(wanted).into_bytes());
        }
    }
    line
}

/// Where the fields of a line are; none in a comment.
fn fields(body: &[u8]) -> Vec<Range<usize>> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let mut fields: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while let Some(start) = body.get(at..).and_then(|rest| rest.iter().position(|byte| !is_blank(byte))) {
        let start = at + start;
        let length = body.get(start..).and_then(|rest| rest.iter().position(is_blank));
        at = length.map_or(body.len(), |length| start + length);
        if body.get(start) == Some(&b'#') {
            break;
        }
        fields.push(start..at);
    }
    fields
}

fn is_for(body: &[u8], target: &str) -> bool {
    let fields = fields(body);
    let Some(range) = fields.get(1).filter(|_| fields.len() >= 3) else { return false };
    let found = decoded(body, range);
    found == target || found.len() > 1 && found.trim_end_matches('/') == target
}

/// A field with its escapes (`\040` for a blank) resolved.
fn decoded(body: &[u8], range: &Range<usize>) -> String {
    String::from_utf8_lossy(&unescaped(body.get(range.clone()).unwrap_or_default())).into_owned()
}

/// Resolves the octal escapes that fstab and mountinfo have.
pub(in crate::resource) fn unescaped(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(bytes)
}

fn encoded(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    for (at, c) in field.char_indices() {
        match c {
            // At its beginning it would begin a comment.
            '#' if at == 0 => text.push_str("\\043"),
            ' ' | '\t' | '\n' | '\\' => text.push_str(&format!("\\{:03o}", u32::from(c))),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(options: &[&str]) -> Vec<String> {
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    #[track_caller]
    fn check(content: &str, options: &[&str], expected: &str, n_changes: usize) {
        let options = owned(options);
        let wanted = Wanted::Line { source: None, fstype: None, options: &options };
        let edited = edit(content.as_bytes(), "/tmp", wanted).unwrap();
        assert_eq!(String::from_utf8_lossy(&edited.content), expected);
        assert_eq!(edited.changes.len(), n_changes);
        let again = edit(&edited.content, "/tmp", wanted).unwrap();
        assert_eq!((again.content, again.changes), (edited.content, vec![]));
    }

    #[test]
    fn options_are_merged_where_they_stand() {
        check(
            "# /tmp\nUUID=1  /tmp\text4   defaults\t0  2 # note\n",
            &["nodev"],
            "# /tmp\nUUID=1  /tmp\text4   defaults,nodev\t0  2 # note\n",
            1,
        );
        check(
            "a / ext4 rw 0 1\nt /tmp/ tmpfs dev,size=1G",
            &["nodev"],
            "a / ext4 rw 0 1\nt /tmp/ tmpfs size=1G,nodev",
            1,
        );
        check("t /tmp tmpfs nodev,nosuid 0 0\n", &["nosuid", "nodev"], "t /tmp tmpfs nodev,nosuid 0 0\n", 0);
        check("t /tmp tmpfs\n", &["nodev"], "t /tmp tmpfs nodev\n", 1);
        check("t /tmp tmpfs # note\n", &["nodev"], "t /tmp tmpfs nodev # note\n", 1);
        // What begins with a # would be a comment the next time.
        check("t /tmp tmpfs dev,#\n", &["nodev"], "t /tmp tmpfs \\043,nodev\n", 1);
        check("t /tmp tmpfs rw\nu /tmp tmpfs rw\n", &["nodev"], "t /tmp tmpfs rw,nodev\nu /tmp tmpfs rw,nodev\n", 2);
        check(
            "#t /tmp tmpfs rw\nt /tmp tmpfs nodev\n/tmp\n",
            &["nodev"],
            "#t /tmp tmpfs rw\nt /tmp tmpfs nodev\n/tmp\n",
            0,
        );
    }

    #[test]
    fn lines_are_added_changed_and_removed() {
        let options = owned(&["nodev"]);
        let line = |source, fstype| Wanted::Line { source, fstype, options: &options };
        assert_eq!(edit(b"", "/a b", line(None, Some("xfs"))), Err(Incomplete));
        let edited = edit(b"x / y z", "/a b", line(Some("LABEL=c d"), Some("xfs"))).unwrap();
        assert_eq!(String::from_utf8_lossy(&edited.content), "x / y z\nLABEL=c\\040d /a\\040b xfs nodev 0 0\n");
        assert_eq!(entry(&edited.content, "/a b").unwrap().source, "LABEL=c d");
        let other = edit(&edited.content, "/a b", line(Some("e"), Some("ext4"))).unwrap();
        assert_eq!(String::from_utf8_lossy(&other.content), "x / y z\ne /a\\040b ext4 nodev 0 0\n");
        let gone = edit(&other.content, "/a b", Wanted::Nothing).unwrap();
        assert_eq!(gone.content, b"x / y z\n");
    }

    proptest! {
        #[test]
        fn other_lines_stay(content in prop::collection::vec("[a/#\\\\0-4 \t\n]{0,12}|t /tmp tmpfs [a-z,]{0,9}", 0..6), add in any::<bool>()) {
            let content = content.join("\n");
            let options = owned(&["nodev", "ro"]);
            let wanted = Wanted::Line { source: Some("s"), fstype: Some("f"), options: &options };
            let wanted = if add { wanted } else { Wanted::Nothing };
            let edited = edit(content.as_bytes(), "/tmp", wanted).unwrap();
            prop_assert_eq!(edited.changes.is_empty(), edited.content == content.as_bytes());
            let again = edit(&edited.content, "/tmp", wanted).unwrap();
            prop_assert_eq!((&again.content, again.changes.len()), (&edited.content, 0));
            prop_assert_eq!(entry(&edited.content, "/tmp").is_some(), add);
            let others = |content: &[u8]| -> Vec<Vec<u8>> {
                Lines::of(content).bodies().filter(|(_, body)| !is_for(body, "/tmp")).map(|(_, body)| body.to_vec()).collect()
            };
            prop_assert_eq!(others(content.as_bytes()), others(&edited.content));
        }
    }
}
