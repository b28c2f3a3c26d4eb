//! A file as lines of bytes, each with its own end, so that whatever is not edited stays as it is.

use std::borrow::Cow;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// What it says, without its end.
    pub(super) body: Cow<'a, [u8]>,
    /// `\n`, `\r\n`, or at the end of a file that does not end with either nothing, or the half of one that is there.
    end: &'a [u8],
}

/// A file's lines. Put together again they are the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lines<'a> {
    lines: Vec<Line<'a>>,
}

impl<'a> Lines<'a> {
    pub(super) fn of(content: &'a [u8]) -> Self {
        let lines = content.split_inclusive(|byte| *byte == b'\n').map(|line| {
            let (body, end) = match line {
                [.., b'\r', b'\n'] => line.split_at(line.len() - 2),
                // Half an end is no part of what is said: the line would say something else once the other half comes.
                [.., b'\n' | b'\r'] => line.split_at(line.len() - 1),
                _ => (line, &[][..]),
            };
            Line { body: Cow::Borrowed(body), end }
        });
        Self { lines: lines.collect() }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.lines.iter().map(|line| line.body.len() + line.end.len()).sum());
        for line in &self.lines {
            bytes.extend_from_slice(&line.body);
            bytes.extend_from_slice(line.end);
        }
        bytes
    }

    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// A line without its end; nothing beyond the last.
    pub(super) fn body(&self, at: usize) -> &[u8] {
        self.lines.get(at).map_or(&[], |line| &line.body)
    }

    pub(super) fn bodies(&self) -> impl DoubleEndedIterator<Item = (usize, &[u8])> + ExactSizeIterator {
        self.lines.iter().enumerate().map(|(at, line)| (at, &*line.body))
    }

    pub(super) fn replace(&mut self, at: usize, body: Vec<u8>) {
        if let Some(line) = self.lines.get_mut(at) {
            line.body = Cow::Owned(body);
        }
    }

    pub(super) fn remove(&mut self, at: usize) {
        if at < self.lines.len() {
            self.lines.remove(at);
        }
    }

    /// Puts a line before the one at `at`, or at the end; it ends as its neighbours do. A last line without an end gets one
    /// when something comes after it.
    pub(super) fn insert(&mut self, at: usize, body: Vec<u8>) {
        let at = at.min(self.lines.len());
        let end = self.lines.iter().map(|line| line.end).find(|end| end.ends_with(b"\n")).unwrap_or(b"\n");
        if let Some(before) = at.checked_sub(1).and_then(|before| self.lines.get_mut(before))
            && !before.end.ends_with(b"\n")
        {
            before.end = if before.end.is_empty() { end } else { b"\r\n" };
        }
        self.lines.insert(at, Line { body: Cow::Owned(body), end });
    }
}

/// Blanks and tabs at both ends are not part of what is said.
pub(super) fn trim(bytes: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = bytes.iter().position(|byte| !is_blank(byte)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !is_blank(byte)).map_or(start, |at| at + 1);
    bytes.get(start..end).unwrap_or_default()
}

/// How far a line is indented.
pub(super) fn indentation(body: &[u8]) -> usize {
    body.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

/// Where the trimmed part of `body[from..]` lies in it.
pub(super) fn trimmed_range(body: &[u8], from: usize) -> std::ops::Range<usize> {
    let rest = body.get(from..).unwrap_or_default();
    let start = from + indentation(rest);
    start..start + trim(rest).len()
}

/// A line with the bytes of a range replaced.
pub(super) fn spliced(body: &[u8], range: std::ops::Range<usize>, with: &[u8]) -> Vec<u8> {
    let mut line = body.get(..range.start).unwrap_or_default().to_vec();
    line.extend_from_slice(with);
    line.extend_from_slice(body.get(range.end..).unwrap_or_default());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_as_its_neighbours_do() {
        #[track_caller]
        fn check(content: &str, at: usize, expected: &str) {
            let mut lines = Lines::of(content.as_bytes());
            lines.insert(at, b"new".to_vec());
            assert_eq!(String::from_utf8(lines.to_bytes()).unwrap(), expected);
        }
        check("", 0, "new\n");
        check("a\nb\n", 1, "a\nnew\nb\n");
        check("a\r\nb\r\n", 2, "a\r\nb\r\nnew\r\n");
        check("a\nb", 2, "a\nb\nnew\n");
        check("a\nb", 0, "new\na\nb");
        check("a", 1, "a\nnew\n");
        check("a\r", 1, "a\r\nnew\n");
        check("a\nb\r", 2, "a\nb\r\nnew\n");
    }

    #[test]
    fn lines_are_the_file() {
        for content in [&b""[..], b"\n", b"a", b"\r", b"a\r\n\xff\n\r\r\n", b"\0\n\n"] {
            assert_eq!(Lines::of(content).to_bytes(), content);
        }
    }
}
