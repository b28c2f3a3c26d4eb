//! Changing a policy's source and keeping everything else in it: comments, order, spelling.
//!
//! Nothing here writes a file. What comes out is a patch, which a person reads, applies with `git apply`, and commits.

use std::collections::BTreeMap;

use similar::TextDiff;
use toml_edit::{DocumentMut, Item, TableLike, Value};

const BYTE_ORDER_MARK: &str = "\u{feff}";

use super::schema;
use crate::resource::{Kind, ResourceId};

/// Where a file of the policy takes its content from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From the declaration itself.
    Inline,
    /// From this file of the policy.
    Source(String),
    /// From this file of the policy, rendered.
    Template(String),
    /// From an encrypted file of the policy.
    Secret(String),
    /// It has none: it is declared absent, or has no content of its own.
    None,
}

/// A new value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum New {
    /// The attribute goes.
    Gone,
    /// A string.
    Text(String),
    /// A list of strings.
    Texts(Vec<String>),
    /// As its kind wants it: a number where it is one, otherwise a string.
    Word(String),
}

/// Why a policy cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The file does not declare it, or is no TOML.
    #[error("`{file}` of the policy does not declare {resource}")]
    NotDeclared {
        /// The file.
        file: String,
        /// What was looked for.
        resource: ResourceId,
    },
    /// The attribute is a list or a table, whose new value a short text does not say.
    #[error("`{attribute}` of {resource} cannot be taken over by itself")]
    Attribute {
        /// Which.
        attribute: String,
        /// Of what.
        resource: ResourceId,
    },
    /// Bytes that no text diff can carry.
    #[error("`{file}` would not be text, and a patch cannot carry it")]
    NotText {
        /// Which file.
        file: String,
    },
    /// A name that a patch would have to quote.
    #[error("`{file}` has a name that a patch cannot carry")]
    Name {
        /// Which file.
        file: String,
    },
}

/// The text of a resource's declaration in a TOML file; `None` where it has none.
pub fn declaration(text: &str, id: &ResourceId) -> Option<String> {
    let document: DocumentMut = text.parse().ok()?;
    let table = document.get(id.kind.as_str())?.as_table_like()?;
    let (_, item) = table.iter().find(|(name, _)| is_named(id, name))?;
    Some(item.to_string())
}

/// Where a resource takes its content from.
pub fn origin(text: &str, id: &ResourceId) -> Option<Origin> {
    let document: DocumentMut = text.parse().ok()?;
    let table = document.get(id.kind.as_str())?.as_table_like()?;
    let (_, item) = table.iter().find(|(name, _)| is_named(id, name))?;
    let declared = item.as_table_like()?;
    let named = |key: &str| declared.get(key).and_then(Item::as_str).map(str::to_owned);
    Some(if let Some(path) = named("source") {
        Origin::Source(path)
    } else if let Some(path) = named("template") {
        Origin::Template(path)
    } else if let Some(name) = named("secret") {
        Origin::Secret(name)
    } else if declared.contains_key("content") {
        Origin::Inline
    } else {
        Origin::None
    })
}

/// What makes a declaration say that the resource is not there: everything that then means nothing goes.
pub fn absent(text: &str, id: &ResourceId) -> Vec<(String, New)> {
    let names = |document: DocumentMut| -> Option<Vec<String>> {
        let table = document.get(id.kind.as_str())?.as_table_like()?;
        let (_, item) = table.iter().find(|(name, _)| is_named(id, name))?;
        Some(item.as_table_like()?.iter().map(|(name, _)| name.to_owned()).collect())
    };
    let declared = text.parse().ok().and_then(names).unwrap_or_default();
    let means_nothing =
        |name: &String| !schema::is_common(id.kind, name) && !schema::WITH_ABSENT.contains(&name.as_str());
    let mut changes: Vec<(String, New)> =
        declared.into_iter().filter(means_nothing).map(|name| (name, New::Gone)).collect();
    changes.push(("state".to_owned(), New::Text("absent".to_owned())));
    changes
}

/// Gives attributes of a declared resource new values. Returns the new text of the file.
pub fn set(file: &str, text: &str, id: &ResourceId, changes: &[(String, New)]) -> Result<String, EditError> {
    let missing = || EditError::NotDeclared { file: file.to_owned(), resource: id.clone() };
    // Some editors put a mark of the encoding first, which the parser drops.
    let (mark, text) = text.strip_prefix(BYTE_ORDER_MARK).map_or(("", text), |rest| (BYTE_ORDER_MARK, rest));
    let mut document: DocumentMut = text.parse().map_err(|_| missing())?;
    let kinds = document.get_mut(id.kind.as_str()).and_then(Item::as_table_like_mut).ok_or_else(missing)?;
    let declared = kinds
        .iter_mut()
        .find(|(name, _)| is_named(id, name.get()))
        .and_then(|(_, item)| item.as_table_like_mut())
        .ok_or_else(missing)?;
    for (attribute, new) in changes {
        let refuse = || EditError::Attribute { attribute: attribute.clone(), resource: id.clone() };
        let value: Value = match new {
            New::Gone => {
                declared.remove(attribute);
                continue;
            }
            New::Text(text) => text.as_str().into(),
            New::Texts(texts) => Value::Array(texts.iter().map(String::as_str).collect()),
            New::Word(word) => match schema::simple_shape(id.kind, attribute).ok_or_else(refuse)? {
                schema::Simple::Text => word.as_str().into(),
                schema::Simple::Number => word.parse::<i64>().map_err(|_| refuse())?.into(),
                schema::Simple::Account => word.parse::<i64>().map_or_else(|_| word.as_str().into(), Value::from),
                schema::Simple::Bool => word.parse::<bool>().map_err(|_| refuse())?.into(),
            },
        };
        put(declared, attribute, value);
    }
    Ok(format!("{mark}{document}"))
}

/// Puts a value in the place of the old one, with the comment that stands behind it.
fn put(table: &mut dyn TableLike, key: &str, mut value: Value) {
    match table.get_mut(key) {
        Some(item) => {
            if let Some(old) = item.as_value() {
                *value.decor_mut() = old.decor().clone();
            }
            *item = Item::Value(value);
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

/// A unified diff, as `git apply` takes it, from the files of a policy to what some of them become.
pub fn patch(files: &BTreeMap<String, Vec<u8>>, changed: &BTreeMap<String, Vec<u8>>) -> Result<String, EditError> {
    let mut patch = String::new();
    for (file, new) in changed {
        let not_text = |_| EditError::NotText { file: file.clone() };
        let old = files.get(file).map(Vec::as_slice).unwrap_or_default();
        let (old, new) = (std::str::from_utf8(old).map_err(not_text)?, std::str::from_utf8(new).map_err(not_text)?);
        if old.contains('\0') || new.contains('\0') {
            return Err(EditError::NotText { file: file.clone() });
        }
        if file.chars().any(|c| c.is_control() || !c.is_ascii() || matches!(c, '"' | '\\')) {
            return Err(EditError::Name { file: file.clone() });
        }
        if old == new {
            continue;
        }
        // A name with a blank ends with a tab, as git itself writes it.
        let end = if file.contains(' ') { "\t" } else { "" };
        let diff = TextDiff::from_lines(old, new);
        let mut unified = diff.unified_diff();
        unified.context_radius(3).header(&format!("a/{file}{end}"), &format!("b/{file}{end}"));
        patch.push_str(&unified.to_string());
    }
    Ok(patch)
}

/// Whether a key of a table of resources names this one. A service may be written with its suffix.
fn is_named(id: &ResourceId, key: &str) -> bool {
    let key = if id.kind == Kind::Service { key.strip_suffix(".service").unwrap_or(key) } else { key };
    key == &*id.name
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"# The top.
[policy]
name = "x"

# Says who owns the host.
[file."/etc/motd"]
content = "one\n"   # short
mode    = "0644"    # for all

# One-liners.
[package]
nginx = { version = "1.2-3" } # pinned
[service."nginx.service"]
enabled = true
[user.deploy]
uid = 2001
shell = "/bin/sh"
"#;

    #[track_caller]
    fn check(id: &str, changes: &[(&str, New)], expected: &str) {
        let changes: Vec<_> = changes.iter().map(|(name, new)| ((*name).to_owned(), new.clone())).collect();
        let text = set("policy.toml", POLICY, &id.parse().unwrap(), &changes).unwrap();
        let before = BTreeMap::from([("policy.toml".to_owned(), POLICY.as_bytes().to_vec())]);
        let after = BTreeMap::from([("policy.toml".to_owned(), text.into_bytes())]);
        let patch = patch(&before, &after).unwrap();
        let changed: Vec<&str> =
            patch.lines().skip(2).filter(|line| line.starts_with('+') || line.starts_with('-')).collect();
        assert_eq!(changed.join("\n"), expected);
    }

    fn word(text: &str) -> New {
        New::Word(text.to_owned())
    }

    #[test]
    fn only_what_is_changed_changes() {
        let motd = "file[/etc/motd]";
        check(motd, &[("mode", word("0600"))], "-mode    = \"0644\"    # for all\n+mode    = \"0600\"    # for all");
        check(motd, &[("owner", word("1000"))], "+owner = 1000");
        check(motd, &[("owner", word("www-data"))], "+owner = \"www-data\"");
        check(motd, &[("mode", New::Gone)], "-mode    = \"0644\"    # for all");
        check(
            "package[nginx]",
            &[("version", word("1.2-4"))],
            "-nginx = { version = \"1.2-3\" } # pinned\n+nginx = { version = \"1.2-4\" } # pinned",
        );
        check("service[nginx]", &[("enabled", word("false"))], "-enabled = true\n+enabled = false");
        check("user[deploy]", &[("uid", word("2002"))], "-uid = 2001\n+uid = 2002");
    }

    #[test]
    fn content_of_several_lines_reads_as_several_lines() {
        let content = New::Text("one\ntwo \"quoted\"\n".to_owned());
        let text = set("p", POLICY, &"file[/etc/motd]".parse().unwrap(), &[("content".to_owned(), content)]).unwrap();
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["file"]["/etc/motd"]["content"].as_str(), Some("one\ntwo \"quoted\"\n"));
        assert!(text.contains("# short") && text.contains("two \"quoted\""), "{text}");
    }

    #[test]
    fn the_mark_of_an_editor_stays() {
        let marked = format!("{BYTE_ORDER_MARK}{POLICY}");
        let id = "file[/etc/motd]".parse().unwrap();
        let changed = set("p", &marked, &id, &[("mode".to_owned(), word("0600"))]).unwrap();
        assert!(changed.starts_with("\u{feff}# The top.\n[policy]"), "{changed}");
    }

    #[test]
    fn lists_are_refused() {
        let id: ResourceId = "user[deploy]".parse().unwrap();
        let error = set("policy.toml", POLICY, &id, &[("groups".to_owned(), word("adm"))]).unwrap_err();
        assert_eq!(error.to_string(), "`groups` of user[deploy] cannot be taken over by itself");
        let absent: ResourceId = "user[nobody-here]".parse().unwrap();
        assert!(matches!(set("policy.toml", POLICY, &absent, &[]), Err(EditError::NotDeclared { .. })));
    }

    #[test]
    fn a_declaration_says_where_its_content_comes_from() {
        let id: ResourceId = "file[/a]".parse().unwrap();
        let origin = |line: &str| origin(&format!("[file.\"/a\"]\n{line}\n"), &id).unwrap();
        assert_eq!(origin("content = \"\""), Origin::Inline);
        assert_eq!(origin("source = \"files/a\""), Origin::Source("files/a".to_owned()));
        assert_eq!(origin("template = \"a.j2\""), Origin::Template("a.j2".to_owned()));
        assert_eq!(origin("state = \"absent\""), Origin::None);
    }

    #[test]
    fn what_no_patch_can_carry_is_refused() {
        let one = |file: &str, content: &[u8]| BTreeMap::from([(file.to_owned(), content.to_vec())]);
        assert!(matches!(patch(&BTreeMap::new(), &one("a", b"\xff")), Err(EditError::NotText { .. })));
        assert!(matches!(patch(&BTreeMap::new(), &one("a\"b", b"x")), Err(EditError::Name { .. })));
        let patch = patch(&one("a b", b"x\n"), &one("a b", b"y")).unwrap();
        assert!(patch.starts_with("--- a/a b\t\n+++ b/a b\t\n") && patch.contains("\\ No newline"), "{patch}");
    }
}
