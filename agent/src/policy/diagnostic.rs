//! What is wrong with a policy, and where: code, file, line, column, caret, what was expected, and a hint.
//!
//! A diagnostic shows lines of the policy and never the value of a variable or fact, which could be secret.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Patch, Renderer, Snippet};

use crate::resource::SourceLocation;

/// Longest stretch of a file that is drawn; beyond it only the position is given.
const MAX_DRAWN: usize = 8 * 1024;
/// Two places in one file this near are drawn together.
const NEAR_LINES: u32 = 20;

/// One file of the policy, with an index of its lines.
pub(super) struct Source {
    path: Arc<str>,
    text: String,
    line_starts: Vec<usize>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the text: it may be long.
        f.debug_struct("Source").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Arc<Self> {
        let line_starts = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1))
            .collect();
        Arc::new(Self { path: path.into(), text: text.to_owned(), line_starts })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Line, from 0, and where it begins.
    fn line_of(&self, offset: usize) -> (usize, usize) {
        let line = self.line_starts.partition_point(|start| *start <= offset).saturating_sub(1);
        (line, self.line_starts.get(line).copied().unwrap_or(0))
    }

    fn line_and_column(&self, offset: usize) -> (u32, u32) {
        let (line, start) = self.line_of(offset);
        // Counting characters of a very long line again and again would be quadratic; bytes will do there.
        let column = match self.text.get(start..offset) {
            Some(before) if before.len() <= MAX_DRAWN => before.chars().count(),
            Some(_) | None => offset - start,
        };
        (u32::try_from(line + 1).unwrap_or(u32::MAX), u32::try_from(column + 1).unwrap_or(u32::MAX))
    }

    /// The whole lines that hold a range: the text, its offset and the number of its first line.
    fn lines(&self, range: &Range<usize>) -> (&str, usize, usize) {
        let (line, start) = self.line_of(range.start);
        let rest = self.text.get(range.end..).unwrap_or("");
        let end = range.end + rest.find('\n').unwrap_or(rest.len());
        (self.text.get(start..end).unwrap_or(""), start, line + 1)
    }
}

/// A range of bytes in one file of the policy.
#[derive(Clone)]
pub struct Place {
    source: Arc<Source>,
    range: Range<usize>,
}

impl Place {
    /// Points at a range, moved to character boundaries inside the file.
    pub(super) fn new(source: &Arc<Source>, range: Range<usize>) -> Self {
        let floor = |mut at: usize| {
            at = at.min(source.text.len());
            while !source.text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let start = floor(range.start);
        Self { source: Arc::clone(source), range: start..floor(range.end).max(start) }
    }

    /// File, line and column.
    pub fn location(&self) -> SourceLocation {
        let (line, column) = self.source.line_and_column(self.range.start);
        SourceLocation { file: Arc::clone(&self.source.path), line, column }
    }

    fn end(&self) -> (u32, u32) {
        self.source.line_and_column(self.range.end)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SourceLocation { file, line, column } = self.location();
        write!(f, "{file}:{line}:{column}")
    }
}

/// Whether a policy with this can be in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can; somebody should look.
    Warning,
}

impl Severity {
    /// The word in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

#[derive(Debug, Clone)]
struct Label {
    place: Place,
    text: String,
}

/// One thing that is wrong, or odd.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    severity: Severity,
    code: &'static str,
    title: String,
    primary: Option<Label>,
    others: Vec<Label>,
    expected: Option<String>,
    hint: Option<String>,
    replacement: Option<String>,
    is_secret: bool,
}

impl Diagnostic {
    pub(super) fn error(code: &'static str, title: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            title: title.into(),
            primary: None,
            others: Vec::new(),
            expected: None,
            hint: None,
            replacement: None,
            is_secret: false,
        }
    }

    pub(super) fn warning(code: &'static str, title: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, title) }
    }

    /// Where it is, and what to write under the caret.
    pub(super) fn at(mut self, place: Place, label: impl Into<String>) -> Self {
        self.primary = Some(Label { place, text: label.into() });
        self
    }

    /// Another place that matters.
    pub(super) fn also(mut self, place: Place, label: impl Into<String>) -> Self {
        self.others.push(Label { place, text: label.into() });
        self
    }

    pub(super) fn expected(mut self, text: impl Into<String>) -> Self {
        self.expected = Some(text.into());
        self
    }

    pub(super) fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = Some(text.into());
        self
    }

    /// Text that could stand where the caret points.
    pub(super) fn replacement(mut self, text: impl Into<String>) -> Self {
        self.replacement = Some(text.into());
        self
    }

    /// Gives the position alone, because the lines may hold a password.
    pub(super) fn secret(mut self) -> Self {
        self.is_secret = true;
        self
    }

    /// Whether it refuses the policy.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// A stable word for programs, such as `unknown-key`.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The main sentence.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// File, line and column; `None` when it concerns no place, such as a missing policy.toml.
    pub fn location(&self) -> Option<SourceLocation> {
        self.primary.as_ref().map(|label| label.place.location())
    }

    /// Draws it for people.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(self.title.as_str()).id(self.code));
        if let Some(primary) = self.primary.as_ref().filter(|_| self.is_secret) {
            group = group.element(position(&primary.place));
        } else if let Some(primary) = &self.primary {
            let near = |label: &&Label| is_near(&label.place, &primary.place);
            group = draw(group, primary, &self.others.iter().filter(near).collect::<Vec<_>>());
            for label in self.others.iter().filter(|label| !near(label)) {
                group = draw(group, label, &[]);
            }
        }
        if let Some(expected) = &self.expected {
            group = group.element(Level::NOTE.with_name("expected").message(expected.as_str()));
        }
        let mut groups = vec![group];
        if let Some(hint) = &self.hint {
            let title = Level::HELP.with_name("hint").secondary_title(hint.as_str());
            groups.push(match (&self.primary, &self.replacement) {
                (Some(primary), Some(replacement)) if primary.place.range.len() < MAX_DRAWN => {
                    let (text, start, line) = primary.place.source.lines(&primary.place.range);
                    let range = primary.place.range.start - start..primary.place.range.end - start;
                    let snippet = Snippet::source(text)
                        .path(primary.place.source.path())
                        .line_start(line)
                        .patch(Patch::new(range, replacement.as_str()));
                    let is_drawn = text.len() <= MAX_DRAWN && !text.contains("password") && !text.contains("hash");
                    if is_drawn { title.element(snippet) } else { Group::with_title(title) }
                }
                _ => Group::with_title(title),
            });
        }
        renderer.render(&groups)
    }

    /// The same for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let label = |label: &Label| {
            let SourceLocation { file, line, column } = label.place.location();
            let (end_line, end_column) = label.place.end();
            serde_json::json!({
                "file": file, "line": line, "column": column, "end_line": end_line, "end_column": end_column,
                "label": label.text,
            })
        };
        serde_json::json!({
            "severity": self.severity.as_str(),
            "code": self.code,
            "title": self.title,
            "at": self.primary.as_ref().map(label),
            "related": self.others.iter().map(label).collect::<Vec<_>>(),
            "expected": self.expected,
            "hint": self.hint,
            "replacement": self.replacement,
        })
    }
}

/// One line: where, what, and the hint.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(primary) = &self.primary {
            write!(f, "{}: ", primary.place)?;
        }
        write!(f, "{}[{}]: {}", self.severity.as_str(), self.code, self.title)?;
        // With a replacement at hand the hint says enough for one line.
        if let Some(expected) = self.expected.as_ref().filter(|_| self.replacement.is_none()) {
            write!(f, "; expected {expected}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

fn is_near(a: &Place, b: &Place) -> bool {
    Arc::ptr_eq(&a.source, &b.source) && a.location().line.abs_diff(b.location().line) <= NEAR_LINES
}

fn position(place: &Place) -> Origin<'_> {
    let (line, column) = place.source.line_and_column(place.range.start);
    let number = |n| usize::try_from(n).unwrap_or(usize::MAX);
    Origin::path(place.source.path()).line(number(line)).char_column(number(column))
}

fn draw<'a>(group: Group<'a>, primary: &'a Label, others: &[&'a Label]) -> Group<'a> {
    let ranges = || std::iter::once(primary).chain(others.iter().copied()).map(|label| &label.place.range);
    let first = ranges().map(|range| range.start).min().unwrap_or(0);
    let last = ranges().map(|range| range.end).max().unwrap_or(first);
    let source = &primary.place.source;
    let (text, start, line) = source.lines(&(first..last));
    // A password in clear is a mistake that must not spread to logs and alerts, whatever the diagnostic is about.
    if text.len() > MAX_DRAWN || text.contains("password") || text.contains("hash") {
        return group.element(position(&primary.place));
    }
    let annotation = |kind: AnnotationKind, label: &'a Label| {
        let range = label.place.range.start - start..label.place.range.end - start;
        let annotation = kind.span(range);
        if label.text.is_empty() { annotation } else { annotation.label(label.text.as_str()) }
    };
    let snippet = Snippet::source(text)
        .path(source.path())
        .line_start(line)
        .annotation(annotation(AnnotationKind::Primary, primary))
        .annotations(others.iter().map(|label| annotation(AnnotationKind::Context, label)));
    group.element(snippet)
}

/// Everything that refuses a policy, and the warnings beside it. Never empty when it is an error.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    pub(super) fn has_errors(&self) -> bool {
        self.0.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    pub(super) fn into_vec(self) -> Vec<Diagnostic> {
        self.0
    }

    /// In the order of discovery, which follows the files.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Draws all of them for people, an empty line between two.
    pub fn render(&self, color: bool) -> String {
        let drawn: Vec<_> = self.0.iter().map(|diagnostic| diagnostic.render(color)).collect();
        drawn.join("\n\n")
    }

    /// The same for programs: an array.
    pub fn to_json(&self) -> serde_json::Value {
        self.0.iter().map(Diagnostic::to_json).collect()
    }
}

impl From<Vec<Diagnostic>> for Diagnostics {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        Self(diagnostics)
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One line each.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}
