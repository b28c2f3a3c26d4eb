//! TOML files merged into one tree that remembers where each value was written, and a reader that knows what was asked of it.
//!
//! Tables are merged key by key; any other value of a later file, lists included, replaces the earlier one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::files::Source;
use super::{Place, Problem, values};

/// A value and where it was written.
#[derive(Debug)]
struct Entry {
    key_place: Place,
    place: Place,
    node: Node,
}

#[derive(Debug)]
enum Node {
    Table(BTreeMap<String, Entry>),
    List(Vec<Entry>),
    Text(String),
    Integer(Option<u32>),
    Other(&'static str),
}

impl Node {
    fn describe(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::List(_) => "a list",
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Other(what) => what,
        }
    }
}

/// What is wrong so far.
pub(super) type Problems = Vec<Problem>;

/// Parses and merges files, the first having the lowest precedence.
pub(super) fn merge(sources: &[Source], problems: &mut Problems) -> Table {
    let mut entries = BTreeMap::new();
    for source in sources {
        let (table, errors) = DeTable::parse_recoverable(&source.text);
        for error in &errors {
            let place = place(source, &error.span().unwrap_or_default());
            problems.push(Problem { place, message: error.message().to_owned(), hint: None });
        }
        merge_tables(&mut entries, convert_table(source, table.get_ref()));
    }
    let file = sources.last().map(|source| source.path.clone()).unwrap_or_default();
    Table { name: String::new(), place: Place { file, line: 1, column: 1 }, entries, asked: Vec::new() }
}

fn merge_tables(into: &mut BTreeMap<String, Entry>, from: BTreeMap<String, Entry>) {
    for (key, entry) in from {
        match (into.get_mut(&key), entry) {
            (Some(Entry { node: Node::Table(earlier), .. }), Entry { node: Node::Table(later), .. }) => {
                merge_tables(earlier, later);
            }
            (_, entry) => {
                into.insert(key, entry);
            }
        }
    }
}

fn convert_table(source: &Source, table: &DeTable<'_>) -> BTreeMap<String, Entry> {
    let entries = table.iter().map(|(key, value)| {
        let entry = convert(source, &key.span(), value);
        (key.get_ref().to_string(), entry)
    });
    entries.collect()
}

fn convert(source: &Source, key: &Range<usize>, value: &Spanned<DeValue<'_>>) -> Entry {
    let node = match value.get_ref() {
        DeValue::Table(table) => Node::Table(convert_table(source, table)),
        DeValue::Array(items) => Node::List(items.iter().map(|item| convert(source, &item.span(), item)).collect()),
        DeValue::String(text) => Node::Text(text.to_string()),
        DeValue::Integer(integer) => Node::Integer(u32::from_str_radix(integer.as_str(), integer.radix()).ok()),
        DeValue::Float(_) => Node::Other("a float"),
        DeValue::Boolean(_) => Node::Other("a boolean"),
        DeValue::Datetime(_) => Node::Other("a date"),
    };
    Entry { key_place: place(source, key), place: place(source, &value.span()), node }
}

fn place(source: &Source, span: &Range<usize>) -> Place {
    let before = source.text.get(..span.start).unwrap_or(&source.text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Place {
        file: source.path.clone(),
        line: before.matches('\n').count() + 1,
        column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
    }
}

/// A value taken from a table.
#[derive(Debug, Clone)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// A table being read. Every key that is asked for is a known one; what is left in the end is not.
#[derive(Debug)]
#[must_use = "unknown keys are found by `finish`"]
pub(super) struct Table {
    name: String,
    place: Place,
    entries: BTreeMap<String, Entry>,
    asked: Vec<&'static str>,
}

impl Table {
    /// Where the table begins.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    fn take(&mut self, key: &'static str) -> Option<Entry> {
        self.asked.push(key);
        self.entries.remove(key)
    }

    fn path_of(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn wrong_type(&self, key: &str, expected: &str, entry: &Entry, problems: &mut Problems) {
        let message = format!("`{}`: expected {expected}; found {}", self.path_of(key), entry.node.describe());
        problems.push(Problem { place: entry.place.clone(), message, hint: None });
    }

    /// A table.
    pub(super) fn table(&mut self, key: &'static str, problems: &mut Problems) -> Option<Table> {
        let entry = self.take(key)?;
        let name = self.path_of(key);
        match entry {
            Entry { node: Node::Table(entries), key_place, .. } => {
                Some(Table { name, place: key_place, entries, asked: Vec::new() })
            }
            entry => {
                self.wrong_type(key, "a table", &entry, problems);
                None
            }
        }
    }

    /// A list of tables.
    pub(super) fn tables(&mut self, key: &'static str, problems: &mut Problems) -> Vec<Table> {
        let Some(entry) = self.take(key) else { return Vec::new() };
        let name = self.path_of(key);
        let Entry { node: Node::List(items), .. } = entry else {
            self.wrong_type(key, &format!("a list of tables, written [[{key}]]"), &entry, problems);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items {
            match item {
                Entry { node: Node::Table(entries), place, .. } => {
                    tables.push(Table { name: name.clone(), place, entries, asked: Vec::new() });
                }
                item => self.wrong_type(key, "a table", &item, problems),
            }
        }
        tables
    }

    /// A string.
    pub(super) fn text(&mut self, key: &'static str, problems: &mut Problems) -> Option<Found<String>> {
        match self.take(key)? {
            Entry { node: Node::Text(value), place, .. } => Some(Found { value, place }),
            entry => {
                self.wrong_type(key, "a string", &entry, problems);
                None
            }
        }
    }

    /// A string that `parse` accepts.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
        problems: &mut Problems,
    ) -> Option<Found<T>> {
        let Found { value, place } = self.text(key, problems)?;
        match parse(&value) {
            Ok(value) => Some(Found { value, place }),
            Err(why) => {
                problems.push(Problem { place, message: format!("`{}`: {why}", self.path_of(key)), hint: None });
                None
            }
        }
    }

    /// An absolute path.
    pub(super) fn path(&mut self, key: &'static str, problems: &mut Problems) -> Option<PathBuf> {
        self.parsed(key, values::path, problems).map(|found| found.value)
    }

    /// A duration of at least `least`, or `default`.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        least: Duration,
        default: Duration,
        problems: &mut Problems,
    ) -> Duration {
        let parse = |text: &str| match values::duration(text)? {
            duration if duration < least => Err(format!("expected at least {}; found \"{text}\"", values::show(least))),
            duration => Ok(duration),
        };
        self.parsed(key, parse, problems).map_or(default, |found| found.value)
    }

    /// A whole number of at least 1, or `default`.
    pub(super) fn count(&mut self, key: &'static str, default: u32, problems: &mut Problems) -> u32 {
        match self.take(key) {
            None => default,
            Some(Entry { node: Node::Integer(Some(number)), .. }) if number > 0 => number,
            Some(entry) => {
                self.wrong_type(key, "a whole number of at least 1", &entry, problems);
                default
            }
        }
    }

    /// A port that needs no privilege, if there is one.
    pub(super) fn port(&mut self, key: &'static str, problems: &mut Problems) -> Option<u16> {
        let entry = self.take(key)?;
        let port = match &entry.node {
            Node::Integer(Some(number)) => u16::try_from(*number).ok().filter(|port| *port >= 1024),
            Node::Table(_) | Node::List(_) | Node::Text(_) | Node::Integer(None) | Node::Other(_) => None,
        };
        if port.is_none() {
            self.wrong_type(key, "a port from 1024 to 65535", &entry, problems);
        }
        port
    }

    /// A list of strings; empty when there is none.
    pub(super) fn texts(&mut self, key: &'static str, problems: &mut Problems) -> Vec<Found<String>> {
        let Some(entry) = self.take(key) else { return Vec::new() };
        let Entry { node: Node::List(items), .. } = entry else {
            self.wrong_type(key, "a list of strings", &entry, problems);
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items {
            match item {
                Entry { node: Node::Text(value), place, .. } => texts.push(Found { value, place }),
                item => self.wrong_type(key, "a string", &item, problems),
            }
        }
        texts
    }

    /// Refuses a key that this version knows of and cannot carry out.
    pub(super) fn unsupported(&mut self, key: &'static str, hint: &str, problems: &mut Problems) {
        if let Some(entry) = self.entries.remove(key) {
            let message = format!("`{}` is not supported by this version", self.path_of(key));
            problems.push(Problem { place: entry.key_place, message, hint: Some(hint.to_owned()) });
        }
    }

    /// Refuses every key that nobody asked for.
    pub(super) fn finish(self, problems: &mut Problems) {
        for (key, entry) in &self.entries {
            let hint = match closest(key, self.asked.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here are {}", self.asked.join(", ")),
            };
            let message = format!("unknown key `{}`", self.path_of(key));
            problems.push(Problem { place: entry.key_place.clone(), message, hint: Some(hint) });
        }
    }
}

/// The known word that was probably meant.
pub(super) fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::damerau_levenshtein(word, known), known))
        .filter(|(distance, known)| *distance <= (word.len().max(known.len()) / 3).max(1))
        .min()
        .map(|(_, known)| known)
}
