//! `setting`: which keys or lines, written how.

use std::collections::HashSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use super::{Reader, Reported};
use crate::policy::diagnostic::Diagnostic;
use crate::policy::schema::{Fields, Text};
use crate::resource::setting::{self, Edits, Entry, Missing, block};
use crate::resource::{AbsPath, Desired};

/// A format with keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Space,
    Ssh,
    Equals,
    Ini,
}

/// A key of the policy and where it stands.
struct Key<'v> {
    section: &'v str,
    /// Where the section stands; of no meaning without one.
    section_range: Range<usize>,
    key: &'v str,
    range: Range<usize>,
}

/// Keys with their values, or without one when they are to be absent.
type Keys<'v> = Vec<(Key<'v>, Option<&'v Spanned<DeValue<'v>>>)>;

impl<'v> Reader<'_, 'v> {
    pub(super) fn setting(&mut self) -> Option<Desired> {
        let path = self.setting_path();
        let owner = self.principal("owner");
        let group = self.principal("group");
        let mode = match self.fields.text("mode") {
            Some(_) => self.mode(0).map(Some),
            None => Ok(None),
        };
        let edits = self.edits();
        let spec = setting::Spec {
            edits: edits.ok()?,
            missing: if self.fields.boolean("create") == Some(true) { Missing::Create } else { Missing::Refuse },
            owner: owner.ok()?,
            group: group.ok()?,
            mode: mode.ok()?,
        };
        Some(Desired::Setting(setting::Desired { path: path.ok()?, spec: Box::new(spec) }))
    }

    fn setting_path(&mut self) -> Result<AbsPath, Reported> {
        let named = AbsPath::from_shared(&self.id.name);
        match (named, self.fields.text("path")) {
            (Ok(path), None) => Ok(path),
            (Ok(_), Some(text)) => {
                let title = format!("`{}` has a path in its name and another in `path`", self.id);
                self.refuse("contradiction", title, &text.place, "one of the two");
                Err(Reported)
            }
            (Err(_), Some(_)) => self.path_in("path")?.ok_or(Reported),
            (Err(_), None) if self.fields.is_damaged => Err(Reported),
            (Err(_), None) => {
                let title = format!("`{}` says no file", self.id);
                self.refuse("missing-key", title, self.name, "a `path`, or the path as its name");
                Err(Reported)
            }
        }
    }

    fn edits(&mut self) -> Result<Edits, Reported> {
        let Some(format) = self.fields.text("format") else {
            if !self.fields.is_damaged {
                let title = format!("`{}` has no `format`", self.id);
                let expected = "`format`, one of `space`, `ssh`, `equals`, `ini`, `line`, `block`";
                self.refuse("missing-key", title, self.name, expected);
            }
            return Err(Reported);
        };
        let (of_format, keyed): (&[&str], _) = match format.text {
            "line" => (&["lines", "absent"], None),
            "block" => (&["lines", "comment"], None),
            "space" => (&["values", "absent"], Some(Format::Space)),
            "ssh" => (&["values", "absent"], Some(Format::Ssh)),
            "equals" => (&["values", "absent"], Some(Format::Equals)),
            _ => (&["values", "absent"], Some(Format::Ini)),
        };
        let mut result = Ok(());
        for name in ["values", "absent", "lines", "comment"] {
            if let Some(field) = self.fields.get(name).filter(|_| !of_format.contains(&name)) {
                let place = self.fields.place(field.key.clone());
                self.out.push(
                    Diagnostic::error("format", format!("`{name}` means nothing with `format = \"{}\"`", format.text))
                        .at(place, "")
                        .also(format.place.clone(), "this format")
                        .expected(format!("`{}`", of_format.join("` or `"))),
                );
                result = Err(Reported);
            }
        }
        result?;
        let has_any = of_format.iter().any(|name| *name != "comment" && self.fields.get(name).is_some());
        if !has_any && !self.fields.is_damaged {
            let title = format!("`{}` edits nothing", self.id);
            let expected = format!("`{}`", of_format.join("` or `"));
            self.refuse("missing-key", title, self.name, &expected);
            return Err(Reported);
        }
        match keyed {
            Some(format) => {
                let entries = self.entries(format)?;
                Ok(match format {
                    Format::Space => Edits::Space(entries),
                    Format::Ssh => Edits::Ssh(entries),
                    Format::Equals => Edits::Equals(entries),
                    Format::Ini => Edits::Ini(entries),
                })
            }
            None if format.text == "line" => {
                let present = self.whole_lines("lines");
                let absent = self.whole_lines("absent");
                let (present, absent) = (present?, absent?);
                let both = self.fields.texts("absent").unwrap_or_default();
                if let Some(text) = both.iter().find(|text| present.iter().any(|line| line == text.text)) {
                    let title = format!("a line of `{}` is to be there and absent", self.id);
                    self.refuse("contradiction", title, &text.place, "one of the two");
                    return Err(Reported);
                }
                Ok(Edits::Line { present, absent })
            }
            None => self.block(),
        }
    }

    fn block(&mut self) -> Result<Edits, Reported> {
        let lines = self.whole_lines("lines")?;
        let name = self.id.name.to_string();
        let comment = match self.fields.text("comment") {
            None => "#".to_owned(),
            Some(text)
                if !text.text.is_empty() && text.text.len() <= 16 && !text.text.chars().any(char::is_control) =>
            {
                text.text.to_owned()
            }
            Some(text) => {
                let title = format!("`{}` cannot begin a comment", text.text.escape_debug());
                self.refuse("value", title, &text.place, "a mark such as \"#\" or \"//\"");
                return Err(Reported);
            }
        };
        let marks = [block::begin_mark(&comment, &name), block::end_mark(&comment, &name)];
        let texts = self.fields.texts("lines").unwrap_or_default();
        if let Some(text) = texts.iter().find(|text| marks.iter().any(|mark| mark == text.text)) {
            self.refuse(
                "value",
                format!("a line of `{}` is one of its own marks", self.id),
                &text.place,
                "other lines",
            );
            return Err(Reported);
        }
        Ok(Edits::Block { name, comment, lines })
    }

    /// Lines as a file can hold them. In a block, a line may stand twice, and an empty one is a line.
    fn whole_lines(&mut self, name: &str) -> Result<Vec<String>, Reported> {
        let is_block = self.fields.text("format").is_some_and(|format| format.text == "block");
        if self.fields.get(name).is_some_and(|field| field.value.get_ref().is_table()) {
            self.sections_mean_nothing(name);
            return Err(Reported);
        }
        let mut lines = Vec::new();
        let mut seen = HashSet::new();
        let mut result = Ok(());
        for text in self.fields.texts(name).unwrap_or_default() {
            if text.text.contains(['\n', '\r', '\0']) || text.text.is_empty() && !is_block {
                let title = format!("`{}` is not one line", text.text.escape_debug());
                self.refuse("value", title, &text.place, "a line without its end, and one for each string");
                result = Err(Reported);
            } else if is_block || seen.insert(text.text) {
                lines.push(text.text.to_owned());
            }
        }
        result.map(|()| lines)
    }

    fn sections_mean_nothing(&mut self, name: &str) {
        let Some(field) = self.fields.get(name) else { return };
        let place = self.fields.place(field.value.span());
        let title = format!("`{name}` has sections, which only `format = \"ini\"` has");
        self.refuse("format", title, &place, "keys without sections");
    }

    fn entries(&mut self, format: Format) -> Result<Vec<Entry>, Reported> {
        let mut entries = Vec::new();
        let mut seen: Vec<(String, String, Range<usize>)> = Vec::new();
        let mut result = Ok(());
        for (key, value) in self.keys(format)? {
            if self.check_key(format, &key).is_err() {
                result = Err(Reported);
                continue;
            }
            let folded = if format == Format::Ssh { key.key.to_ascii_lowercase() } else { key.key.to_owned() };
            let earlier = seen.iter().find(|(section, name, _)| section == key.section && *name == folded);
            if let Some((_, _, earlier)) = earlier {
                let place = self.fields.place(earlier.clone());
                self.out.push(
                    Diagnostic::error("duplicate", format!("`{}` is named twice in `{}`", key.key, self.id))
                        .at(self.fields.place(key.range), "named again here")
                        .also(place, "named here")
                        .hint("keep one of the two"),
                );
                result = Err(Reported);
                continue;
            }
            let values = match value {
                None => Ok(Vec::new()),
                Some(value) => self.values_of(format, &key, value),
            };
            seen.push((key.section.to_owned(), folded, key.range.clone()));
            match values {
                Ok(values) => entries.push(Entry { section: key.section.to_owned(), key: key.key.to_owned(), values }),
                Err(Reported) => result = Err(Reported),
            }
        }
        result.map(|()| entries)
    }

    /// Every key that is named, with its value, or without one when it is to be absent.
    fn keys(&mut self, format: Format) -> Result<Keys<'v>, Reported> {
        let mut keys = Vec::new();
        let values = self.fields.get("values").and_then(|field| field.value.get_ref().as_table());
        for (name, value) in values.into_iter().flat_map(|table| table.iter()) {
            match value.get_ref().as_table() {
                None => {
                    let key = Key { section: "", section_range: name.span(), key: name.get_ref(), range: name.span() };
                    keys.push((key, Some(value)));
                }
                Some(section) if format == Format::Ini => {
                    let of_section = section.iter().map(|(key, value)| {
                        let (section, section_range) = (name.get_ref(), name.span());
                        (Key { section, section_range, key: key.get_ref(), range: key.span() }, Some(value))
                    });
                    keys.extend(of_section);
                }
                Some(_) => {
                    self.sections_mean_nothing("values");
                    return Err(Reported);
                }
            }
        }
        let Some(absent) = self.fields.get("absent") else { return Ok(keys) };
        let Some(sections) = absent.value.get_ref().as_table() else {
            self.names_of("", absent.value.span(), absent.value, &mut keys)?;
            return Ok(keys);
        };
        if format != Format::Ini {
            self.sections_mean_nothing("absent");
            return Err(Reported);
        }
        for (section, names) in sections.iter() {
            self.names_of(section.get_ref(), section.span(), names, &mut keys)?;
        }
        Ok(keys)
    }

    fn names_of(
        &mut self,
        section: &'v str,
        section_range: Range<usize>,
        names: &'v Spanned<DeValue<'v>>,
        keys: &mut Keys<'v>,
    ) -> Result<(), Reported> {
        let array = names.get_ref().as_array().ok_or_else(|| self.not_a_name(names))?;
        for name in array.iter() {
            let key = name.get_ref().as_str().ok_or_else(|| self.not_a_name(name))?;
            keys.push((Key { section, section_range: section_range.clone(), key, range: name.span() }, None));
        }
        Ok(())
    }

    fn not_a_name(&mut self, value: &Spanned<DeValue<'v>>) -> Reported {
        let place = self.fields.place(value.span());
        self.refuse(
            "type",
            format!("`{}.absent` has the wrong type", self.id),
            &place,
            "an array with the names of keys",
        );
        Reported
    }

    fn check_key(&mut self, format: Format, key: &Key<'v>) -> Result<(), Reported> {
        let is_blank = |c: char| c.is_whitespace() || c.is_control();
        let begins_comment = key.key.starts_with(['#', ';', '[']);
        let (is_good, expected) = match format {
            Format::Space => (!key.key.contains(is_blank) && !begins_comment, "a key without blanks"),
            Format::Ssh => (key.key.bytes().all(|b| b.is_ascii_alphanumeric()), "a keyword of letters and digits"),
            // A shell sees an order, and we would see `export`, where a key has blanks.
            Format::Equals => (
                !key.key.contains(|c: char| is_blank(c) || c == '=') && !begins_comment,
                "a key without blanks and `=`, not beginning with `#`, `;` or `[`",
            ),
            Format::Ini => (
                !key.key.contains(|c: char| c.is_control() || c == '=') && key.key.trim() == key.key && !begins_comment,
                "a key without `=`, not beginning with `#`, `;` or `[`",
            ),
        };
        let place = self.fields.place(key.range.clone());
        if key.key.is_empty() || key.key.len() > 255 || !is_good {
            self.refuse(
                "name",
                format!("`{}` cannot be a key of this format", key.key.escape_debug()),
                &place,
                expected,
            );
            return Err(Reported);
        }
        if format == Format::Ssh && (key.key.eq_ignore_ascii_case("match") || key.key.eq_ignore_ascii_case("host")) {
            self.out.push(
                Diagnostic::error(
                    "value",
                    format!("`{}` begins a block, and only what is before the first is edited", key.key),
                )
                .at(place, "")
                .hint("declare a file below /etc/ssh/sshd_config.d instead, or use `format = \"block\"`"),
            );
            return Err(Reported);
        }
        if key.section.contains(|c: char| c.is_control() || c == ']') || key.section.trim() != key.section {
            let place = self.fields.place(key.section_range.clone());
            let title = format!("`{}` cannot be a section", key.section.escape_debug());
            self.refuse("name", title, &place, "a name without `]`");
            return Err(Reported);
        }
        Ok(())
    }

    fn values_of(
        &mut self,
        format: Format,
        key: &Key<'v>,
        value: &'v Spanned<DeValue<'v>>,
    ) -> Result<Vec<String>, Reported> {
        let Some(array) = value.get_ref().as_array() else { return Ok(vec![self.scalar(format, key, value)?]) };
        if array.is_empty() {
            let place = self.fields.place(value.span());
            self.out.push(
                Diagnostic::error("value", format!("`{}` has no value", key.key))
                    .at(place, "")
                    .hint(format!("to have it removed write `absent = [\"{}\"]`", key.key)),
            );
            return Err(Reported);
        }
        let values: Vec<_> = array.iter().map(|value| self.scalar(format, key, value)).collect();
        values.into_iter().collect()
    }

    fn scalar(&mut self, format: Format, key: &Key<'v>, value: &'v Spanned<DeValue<'v>>) -> Result<String, Reported> {
        let place = self.fields.place(value.span());
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Boolean(_) if format == Format::Ssh => {
                self.out.push(
                    Diagnostic::error("type", format!("`{}` is true or false, which ssh does not know", key.key))
                        .at(place, "")
                        .expected("a string such as \"yes\" or \"no\""),
                );
                return Err(Reported);
            }
            DeValue::Boolean(answer) => answer.to_string(),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                // An octal number such as 0o27 would lose what it was meant to look like.
                Ok(decimal) if number.radix() == 10 => decimal.to_string(),
                Ok(_) | Err(_) => {
                    self.refuse("type", format!("`{}` is no decimal number", key.key), &place, "the value in quotes");
                    return Err(Reported);
                }
            },
            DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                self.refuse("type", format!("`{}` has the wrong type", key.key), &place, "a string or a number");
                return Err(Reported);
            }
        };
        if has_open_quote(format, &text) {
            let title = format!("the value of `{}` opens a quote and does not close it", key.key);
            self.refuse("value", title, &place, "quotes in pairs: what follows in the file would be part of the value");
            return Err(Reported);
        }
        let may_be_empty = matches!(format, Format::Equals | Format::Ini);
        let is_bad = text.contains(|c: char| c.is_control() && c != '\t')
            || text.trim_matches([' ', '\t']) != text
            || text.is_empty() && !may_be_empty
            || text.ends_with('\\')
            || format == Format::Ssh && text.starts_with(['#', '=']);
        if is_bad || text.len() > 64 * 1024 {
            let title = format!("`{}` cannot be the value of `{}`", text.escape_debug(), key.key);
            let expected = match format {
                Format::Ssh => {
                    "one line, without blanks at its ends, a backslash at its end, and `#` or `=` at its beginning"
                }
                Format::Space | Format::Equals | Format::Ini => {
                    "one line, without blanks at its ends and without a backslash at its end"
                }
            };
            self.refuse("value", title, &place, expected);
            return Err(Reported);
        }
        Ok(text)
    }
}

/// Whether whoever reads the file would look for the end of the value in the lines after it.
fn has_open_quote(format: Format, value: &str) -> bool {
    let quote = match format {
        Format::Space | Format::Ini => None,
        Format::Ssh => Some('"'),
        Format::Equals => value.chars().next().filter(|first| matches!(first, '"' | '\'')),
    };
    quote.is_some_and(|quote| value.matches(quote).count() % 2 == 1)
}

/// The file that a setting edits, as far as its declaration says so.
pub(in crate::policy::compile) fn path_of<'a>(name: &'a str, path: Option<&Text<'a>>) -> Option<&'a str> {
    if name.starts_with('/') { Some(name) } else { path.map(|text| text.text) }
}

/// A key, or a line, that a declaration of a setting claims.
#[derive(Debug)]
pub(in crate::policy::compile) struct Claimed {
    /// As people read it.
    pub(in crate::policy::compile) name: String,
    /// Where it stands in its file.
    pub(in crate::policy::compile) range: Range<usize>,
    /// Whether it is to be there, for lines: two may want the same line.
    pub(in crate::policy::compile) wants: Option<bool>,
}

/// Everything that a declaration claims, whether or not it is right.
pub(in crate::policy::compile) fn claimed(fields: &Fields<'_>) -> Vec<Claimed> {
    let format = fields.text("format").map(|format| format.text);
    let is_line = format == Some("line");
    let fold = |key: &str| if format == Some("ssh") { key.to_ascii_lowercase() } else { key.to_owned() };
    let mut all = Vec::new();
    let mut claim = |section: &str, key: &str, range, wants| {
        let key = fold(key);
        let name = if section.is_empty() { key } else { format!("{section}.{key}") };
        all.push(Claimed { name, range, wants });
    };
    if is_line {
        for (attribute, wants) in [("lines", true), ("absent", false)] {
            for text in fields.texts(attribute).unwrap_or_default() {
                claim("", text.text, text.range, Some(wants));
            }
        }
        return all;
    }
    let values = fields.get("values").and_then(|field| field.value.get_ref().as_table());
    for (name, value) in values.into_iter().flat_map(|table| table.iter()) {
        match value.get_ref().as_table() {
            None => claim("", name.get_ref(), name.span(), None),
            Some(section) => section.keys().for_each(|key| claim(name.get_ref(), key.get_ref(), key.span(), None)),
        }
    }
    let mut claim_names = |section: &str, names: &Spanned<DeValue<'_>>| {
        for name in names.get_ref().as_array().into_iter().flat_map(|names| names.iter()) {
            if let Some(key) = name.get_ref().as_str() {
                claim(section, key, name.span(), None);
            }
        }
    };
    if let Some(absent) = fields.get("absent") {
        match absent.value.get_ref().as_table() {
            None => claim_names("", absent.value),
            Some(sections) => sections.iter().for_each(|(section, names)| claim_names(section.get_ref(), names)),
        }
    }
    all
}
