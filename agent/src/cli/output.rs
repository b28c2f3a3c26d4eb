//! Writing to standard output: never panics on a closed pipe, colours only on a terminal.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

/// Standard output, as text or JSON. What is written is kept until [`Out::flush`].
pub struct Out {
    stdout: anstream::AutoStream<io::Stdout>,
    buffer: String,
    json: bool,
    color: bool,
}

impl std::fmt::Debug for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Out").field("json", &self.json).field("color", &self.color).finish_non_exhaustive()
    }
}

impl Out {
    /// Opens standard output.
    pub fn new(json: bool) -> Self {
        let choice = anstream::AutoStream::choice(&io::stdout());
        let stdout = anstream::AutoStream::new(io::stdout(), choice);
        Self { stdout, buffer: String::new(), json, color: !matches!(choice, anstream::ColorChoice::Never) }
    }

    /// Whether the caller asked for JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether colours are shown.
    pub fn has_color(&self) -> bool {
        self.color
    }

    /// Writes text as it is.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        self.buffer.push_str(text);
        self.drain()
    }

    /// Writes one line.
    pub fn line(&mut self, text: impl std::fmt::Display) -> io::Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// Writes a value as one JSON object.
    pub fn value(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        self.line(text)
    }

    /// Makes everything written so far visible.
    pub fn flush(&mut self) -> io::Result<()> {
        self.stdout.write_all(self.buffer.as_bytes())?;
        self.buffer.clear();
        self.stdout.flush()
    }

    /// Keeps the buffer small without a system call a line.
    fn drain(&mut self) -> io::Result<()> {
        if self.buffer.len() < 32 * 1024 { Ok(()) } else { self.flush() }
    }
}

/// Good news.
pub(super) const GOOD: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));
/// Something to look at.
pub(super) const WARN: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Yellow)));
/// Bad news.
pub(super) const BAD: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));
/// Headings and names.
pub(super) const BOLD: Style = Style::new().bold();
/// Side remarks.
pub(super) const DIM: Style = Style::new().dimmed();

/// A span for people: `1.2 ms`, `3.4 s`, `5 min`, `2 h`, `3 d`.
pub(super) fn span(duration: std::time::Duration) -> String {
    let us = duration.as_micros();
    let seconds = duration.as_secs();
    match seconds {
        0 if us < 1000 => format!("{us} µs"),
        0 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How long ago something was, for people.
pub(super) fn ago(then: jiff::Timestamp) -> String {
    match std::time::Duration::try_from(jiff::Timestamp::now().duration_since(then)) {
        Ok(elapsed) if elapsed.as_secs() == 0 => "just now".to_owned(),
        Ok(elapsed) => format!("{} ago", span(elapsed)),
        Err(_in_the_future) => "in the future".to_owned(),
    }
}

/// Text of plans and diffs with colours: added lines green, removed ones red, verbs bold.
pub(super) fn paint(text: &str, color: bool) -> String {
    if !color {
        return text.to_owned();
    }
    let mut painted = String::with_capacity(text.len() * 2);
    for line in text.lines() {
        let style = match line.trim_start() {
            added if added.starts_with('+') => GOOD,
            removed if removed.starts_with('-') => BAD,
            _ if !line.starts_with(' ') => BOLD,
            _ => Style::new(),
        };
        painted.push_str(&format!("{style}{line}{style:#}\n"));
    }
    painted
}

/// Differences, indented below the line that they belong to.
pub(super) fn changes_text(changes: &[crate::resource::Change], color: bool) -> String {
    let mut text = String::new();
    for change in changes {
        crate::converge::plan::change_text(&mut text, change);
    }
    paint(&text, color)
}
