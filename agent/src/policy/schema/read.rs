//! Reads tables of a policy, and hands on only what has the right shape.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::attributes::{INCLUDE, INCLUDES, POLICY, attributes};
use super::closest::closest;
use super::{Attribute, MAX_COUNT, MAX_ID, Shape, quoted};
use crate::policy::diagnostic::{Diagnostic, Diagnostics, Place, Source};
use crate::resource::Kind;

/// Attributes of the language that this version does not have.
const LATER: &[&str] = &["hold", "verify"];

/// A value with where it stands.
#[derive(Debug, Clone)]
pub(in crate::policy) struct Field<'v> {
    pub(in crate::policy) name: &'v str,
    pub(in crate::policy) key: Range<usize>,
    pub(in crate::policy) value: &'v Spanned<DeValue<'v>>,
}

/// The keys of one table that are known and have the right shape.
///
/// A table without mistakes needs nothing on the heap. What is allocated here would lie between the names of 100,000 resources,
/// which stay, and leave holes there when it goes.
#[derive(Debug, Clone)]
pub(in crate::policy) struct Fields<'v> {
    pub(in crate::policy) source: Arc<Source>,
    table: &'v DeTable<'v>,
    /// Keys that are unknown or have the wrong shape.
    left_out: Vec<&'v str>,
    /// Whether keys were left out because of errors, so that a missing key must not be reported again.
    pub(in crate::policy) is_damaged: bool,
}

/// A waiver as it is written.
#[derive(Debug)]
pub(in crate::policy) struct Waiver {
    /// With where it stands.
    pub(in crate::policy) until: Option<(String, Place)>,
    pub(in crate::policy) reason: Option<String>,
    pub(in crate::policy) owner: Option<String>,
}

/// A text of the policy and where it stands.
#[derive(Debug, Clone)]
pub(in crate::policy) struct Text<'v> {
    pub(in crate::policy) text: &'v str,
    pub(in crate::policy) place: Place,
    /// The same as bytes of the file.
    pub(in crate::policy) range: Range<usize>,
}

impl<'v> Fields<'v> {
    pub(in crate::policy) fn iter(&self) -> impl Iterator<Item = Field<'v>> {
        let fields = self.table.iter().map(|(key, value)| Field { name: key.get_ref(), key: key.span(), value });
        fields.filter(|field| !self.left_out.contains(&field.name))
    }

    /// A table has few keys, so that looking at each is faster than a hash.
    pub(in crate::policy) fn get(&self, name: &str) -> Option<Field<'v>> {
        self.iter().find(|field| field.name == name)
    }

    pub(in crate::policy) fn place(&self, range: Range<usize>) -> Place {
        Place::new(&self.source, range)
    }

    pub(in crate::policy) fn text(&self, name: &str) -> Option<Text<'v>> {
        let value = self.get(name)?.value;
        value.get_ref().as_str().map(|text| Text { text, place: self.place(value.span()), range: value.span() })
    }

    pub(in crate::policy) fn texts(&self, name: &str) -> Option<Vec<Text<'v>>> {
        let array = self.get(name)?.value.get_ref().as_array()?;
        let text = |value: &'v Spanned<DeValue<'v>>| {
            let range = value.span();
            value.get_ref().as_str().map(|text| Text { text, place: self.place(range.clone()), range })
        };
        Some(array.iter().filter_map(text).collect())
    }

    /// The numbers of an array.
    pub(in crate::policy) fn integers(&self, name: &str) -> Option<Vec<i32>> {
        let array = self.get(name)?.value.get_ref().as_array()?;
        Some(array.iter().filter_map(|value| as_code(value.get_ref())).collect())
    }

    /// The keys of a table and its texts, in the order of the policy.
    pub(in crate::policy) fn environment(&self, name: &str) -> Vec<(&'v str, Text<'v>)> {
        let Some(table) = self.get(name).and_then(|field| field.value.get_ref().as_table()) else { return Vec::new() };
        let text = |value: &'v Spanned<DeValue<'v>>| {
            let range = value.span();
            value.get_ref().as_str().map(|text| Text { text, place: self.place(range.clone()), range })
        };
        table.iter().filter_map(|(key, value)| Some((&**key.get_ref(), text(value)?))).collect()
    }

    /// The parts of a waiver that are there.
    pub(in crate::policy) fn waiver(&self, name: &str) -> Option<Waiver> {
        let table = self.get(name)?.value.get_ref().as_table()?;
        let text = |key: &str| table.get(key).and_then(|value| value.get_ref().as_str()).map(str::to_owned);
        let until = table
            .get("until")
            .and_then(|value| value.get_ref().as_datetime().map(|until| (until.to_string(), self.place(value.span()))));
        Some(Waiver { until, reason: text("reason"), owner: text("owner") })
    }

    pub(in crate::policy) fn boolean(&self, name: &str) -> Option<bool> {
        self.get(name)?.value.get_ref().as_bool()
    }

    /// A number of things.
    pub(in crate::policy) fn count(&self, name: &str) -> Option<u64> {
        as_id(self.get(name)?.value.get_ref()).map(u64::from)
    }

    /// A table in this one. Its mistakes were reported with those of this one.
    pub(in crate::policy) fn table(&self, name: &str) -> Option<(Fields<'v>, Place)> {
        let value = self.get(name)?.value;
        let table = value.get_ref().as_table()?;
        let fields = Fields { source: Arc::clone(&self.source), table, left_out: Vec::new(), is_damaged: false };
        Some((fields, self.place(value.span())))
    }

    pub(in crate::policy) fn id(&self, name: &str) -> Option<(u32, Place)> {
        let value = self.get(name)?.value;
        as_id(value.get_ref()).map(|id| (id, self.place(value.span())))
    }
}

/// The kind that a top-level key names; reports one that names none.
pub(in crate::policy) fn read_kind(
    source: &Arc<Source>,
    key: &Spanned<toml::de::DeString<'_>>,
    out: &mut Diagnostics,
) -> Option<Kind> {
    let name: &str = key.get_ref();
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == name);
    if kind.is_none() {
        let known = Kind::ALL.iter().map(|kind| kind.as_str()).chain(["policy", "include", "vars"]);
        let diagnostic = Diagnostic::error("unknown-kind", format!("unknown kind `{name}`"));
        out.push(suggest(diagnostic, source, key, name, known, &[], "kind"));
    }
    kind
}

/// Reads one resource's table.
pub(in crate::policy) fn read_resource<'v>(
    source: &Arc<Source>,
    kind: Kind,
    name: &str,
    value: &'v Spanned<DeValue<'v>>,
    out: &mut Diagnostics,
) -> Option<Fields<'v>> {
    let Some(table) = value.get_ref().as_table() else {
        out.push(wrong_type(source, value, &format_args!("{kind}[{name}]"), "a table with attributes"));
        return None;
    };
    Some(read_table(source, &format_args!("{kind}[{name}]"), table, attributes(kind), out))
}

/// Reads `[policy]`.
pub(in crate::policy) fn read_policy<'v>(
    source: &Arc<Source>,
    value: &'v Spanned<DeValue<'v>>,
    out: &mut Diagnostics,
) -> Option<Fields<'v>> {
    let Some(table) = value.get_ref().as_table() else {
        out.push(wrong_type(source, value, &"policy", "a table"));
        return None;
    };
    Some(read_table(source, &"policy", table, POLICY.iter(), out))
}

/// One file to include, and on which condition.
#[derive(Debug, Clone)]
pub(in crate::policy) struct Include<'v> {
    pub(in crate::policy) path: Text<'v>,
    pub(in crate::policy) when: Option<Text<'v>>,
}

/// Reads `include`.
pub(in crate::policy) fn read_include<'v>(
    source: &Arc<Source>,
    value: &'v Spanned<DeValue<'v>>,
    out: &mut Diagnostics,
) -> Vec<Include<'v>> {
    let Some(array) = value.get_ref().as_array() else {
        out.push(wrong_type(source, value, &"include", INCLUDES));
        return Vec::new();
    };
    let mut includes = Vec::new();
    for item in array.iter() {
        match item.get_ref() {
            DeValue::String(path) => {
                let (place, range) = (Place::new(source, item.span()), item.span());
                includes.push(Include { path: Text { text: path, place, range }, when: None });
            }
            DeValue::Table(table) => {
                let fields = read_table(source, &"include", table, INCLUDE.iter(), out);
                match fields.text("path") {
                    Some(path) => includes.push(Include { path, when: fields.text("when") }),
                    None if !fields.is_damaged => out.push(
                        Diagnostic::error("missing-key", "an entry of `include` has no `path`")
                            .at(Place::new(source, item.span()), "here")
                            .expected(INCLUDES),
                    ),
                    None => {}
                }
            }
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_) => out.push(wrong_type(source, item, &"include", INCLUDES)),
        }
    }
    includes
}

fn read_table<'v>(
    source: &Arc<Source>,
    what: &dyn fmt::Display,
    table: &'v DeTable<'v>,
    attributes: impl Iterator<Item = &'static Attribute> + Clone,
    out: &mut Diagnostics,
) -> Fields<'v> {
    let mut left_out: Vec<&'v str> = Vec::new();
    for (key, value) in table.iter() {
        let name: &str = key.get_ref();
        let Some(attribute) = attributes.clone().find(|attribute| attribute.name == name) else {
            let diagnostic = Diagnostic::error("unknown-key", format!("unknown key `{name}` in `{what}`"));
            let known = attributes.clone().map(|attribute| attribute.name);
            out.push(suggest(diagnostic, source, key, name, known, LATER, "key"));
            left_out.push(name);
            continue;
        };
        if !has_shape(source, what, attribute, value, out) {
            left_out.push(name);
        }
    }
    let is_damaged = !left_out.is_empty();
    Fields { source: Arc::clone(source), table, left_out, is_damaged }
}

fn has_shape(
    source: &Arc<Source>,
    what: &dyn fmt::Display,
    attribute: &Attribute,
    value: &Spanned<DeValue<'_>>,
    out: &mut Diagnostics,
) -> bool {
    let inner = value.get_ref();
    let path = fmt::from_fn(|f| write!(f, "{what}.{}", attribute.name));
    let fits = match attribute.shape {
        Shape::Text => inner.is_str(),
        Shape::Bool => inner.is_bool(),
        Shape::Includes => true,
        Shape::Scalar => inner.is_str() || inner.is_integer(),
        Shape::Values => inner.is_table(),
        Shape::Names => inner.is_array() || inner.is_table(),
        Shape::Proof => match (inner.as_str(), inner.as_array()) {
            (Some(word), _) => matches!(word, "endpoint" | "ssh"),
            (None, Some(words)) => !words.is_empty() && words.iter().all(|word| word.get_ref().is_str()),
            (None, None) => false,
        },
        Shape::Id => as_id(inner).is_some(),
        Shape::Account => inner.is_str() || as_id(inner).is_some(),
        Shape::Count => as_id(inner).is_some_and(|count| (1..=MAX_COUNT).contains(&count)),
        Shape::Switch(_) if inner.is_bool() => true,
        Shape::Texts => match inner.as_array() {
            None => false,
            Some(array) => {
                let wrong: Vec<_> = array.iter().filter(|item| !item.get_ref().is_str()).collect();
                for item in &wrong {
                    out.push(wrong_type(source, item, &path, "a string"));
                }
                return wrong.is_empty();
            }
        },
        Shape::Codes => inner
            .as_array()
            .is_some_and(|codes| !codes.is_empty() && codes.iter().all(|code| as_code(code.get_ref()).is_some())),
        Shape::List => {
            inner.is_str() || inner.as_array().is_some_and(|items| items.iter().all(|item| item.get_ref().is_str()))
        }
        Shape::Date => inner.is_datetime(),
        Shape::Environment => match inner.as_table() {
            None => false,
            Some(table) => {
                let wrong: Vec<_> = table.values().filter(|item| !item.get_ref().is_str()).collect();
                for item in &wrong {
                    out.push(wrong_type(source, item, &path, "a string"));
                }
                return wrong.is_empty();
            }
        },
        Shape::Word(words) | Shape::Switch(words) => match inner.as_str() {
            None => false,
            Some(word) if words.contains(&word) => true,
            Some(word) => {
                let mut diagnostic = Diagnostic::error("unknown-value", format!("unknown value `{word}` of `{path}`"))
                    .at(Place::new(source, value.span()), "not a value of this key")
                    .expected(attribute.shape.describe());
                if let Some(best) = closest(word, words.iter().copied()) {
                    diagnostic = diagnostic.hint(format!("did you mean `{best}`?")).replacement(format!("\"{best}\""));
                }
                out.push(diagnostic);
                return false;
            }
        },
        Shape::Table(attributes) => match inner.as_table() {
            None => false,
            Some(table) => {
                let n_before = out.len();
                read_table(source, &path, table, attributes.iter(), out);
                return out.len() == n_before;
            }
        },
    };
    if !fits {
        let mut diagnostic = wrong_type(source, value, &path, &attribute.shape.describe());
        if inner.is_str() && ["validate", "run", "unless", "onlyif"].contains(&attribute.name) {
            diagnostic =
                diagnostic.hint("write each word as a string: [\"/usr/sbin/sshd\", \"-t\"]; there is no shell");
        }
        if attribute.name.ends_with("mode") {
            diagnostic = diagnostic.hint("write the mode in quotes, as four octal digits");
        }
        out.push(diagnostic);
    }
    fits
}

fn as_code(value: &DeValue<'_>) -> Option<i32> {
    let integer = value.as_integer()?;
    i32::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|code| (0..=255).contains(code))
}

fn as_id(value: &DeValue<'_>) -> Option<u32> {
    let integer = value.as_integer()?;
    u32::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|id| *id <= MAX_ID)
}

fn wrong_type(
    source: &Arc<Source>,
    value: &Spanned<DeValue<'_>>,
    what: &dyn fmt::Display,
    expected: &str,
) -> Diagnostic {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    Diagnostic::error("type", format!("`{what}` has the wrong type"))
        .at(Place::new(source, value.span()), format!("this is {found}"))
        .expected(expected)
}

fn suggest<'k>(
    diagnostic: Diagnostic,
    source: &Arc<Source>,
    key: &Spanned<toml::de::DeString<'_>>,
    name: &str,
    known: impl Iterator<Item = &'k str> + Clone,
    later: &[&str],
    what: &str,
) -> Diagnostic {
    let list = quoted(known.clone());
    let diagnostic = diagnostic.at(Place::new(source, key.span()), format!("not a {what} that is known here"));
    if later.contains(&name) {
        return diagnostic
            .expected(format!("one of {list}"))
            .hint(format!("this version of rekindle does not support `{name}` yet"));
    }
    match closest(name, known) {
        Some(best) => diagnostic
            .expected(format!("one of {list}"))
            .hint(format!("did you mean `{best}`?"))
            .replacement(best.to_owned()),
        None => diagnostic.hint(format!("known {what}s: {list}")),
    }
}
