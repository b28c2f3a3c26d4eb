//! The editor of policies: the attribute has its new value, everything else means what it meant, and no comment is lost.
//!
//! The input is `KIND[NAME]`, an attribute and a value, a line each, then `---`, then the policy.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use rekindle::policy::edit::{New, absent, declaration, origin, patch, set};
use rekindle::resource::{Kind, ResourceId};
use rekindle_fuzz::parted;

fuzz_target!(|data: &[u8]| {
    let Some((wanted, policy)) = parted(data) else { return };
    let Ok(policy) = std::str::from_utf8(policy) else { return };
    let mut lines = wanted.splitn(3, '\n');
    let Some(Ok(id)) = lines.next().map(str::parse::<ResourceId>) else { return };
    let (Some(attribute), value) = (lines.next(), lines.next()) else { return };
    declaration(policy, &id);
    origin(policy, &id);
    check(policy, &id, &absent(policy, &id));
    let new = match value.and_then(|value| value.split_at_checked(1)) {
        None => New::Gone,
        Some(("=", word)) => New::Word(word.to_owned()),
        Some((",", texts)) => New::Texts(texts.split(',').map(str::to_owned).collect()),
        Some((_, text)) => New::Text(text.to_owned()),
    };
    check(policy, &id, &[(attribute.to_owned(), new)]);
});

fn check(policy: &str, id: &ResourceId, changes: &[(String, New)]) {
    let Ok(edited) = set("policy.toml", policy, id, changes) else { return };
    let mut expected: toml::Table = policy.parse().expect("it was edited, so it was TOML");
    let found: toml::Table = edited.parse().unwrap_or_else(|error| panic!("no TOML any more: {error}\n{edited}"));
    let Some(declared) = declared(&mut expected, id) else { panic!("{id} was edited and is not declared") };
    for (attribute, new) in changes {
        match new {
            New::Gone => drop(declared.remove(attribute)),
            New::Text(text) => drop(declared.insert(attribute.clone(), text.as_str().into())),
            New::Texts(texts) => drop(declared.insert(attribute.clone(), texts.clone().into())),
            New::Word(word) => {
                let mut found = found.clone();
                let value = self::declared(&mut found, id).and_then(|declared| declared.get(attribute)).cloned();
                let value = value.unwrap_or_else(|| panic!("`{attribute}` was set and is not there\n{edited}"));
                let is_word = value.as_str() == Some(word)
                    || value.as_integer().is_some_and(|number| word.parse() == Ok(number))
                    || value.as_bool().is_some_and(|answer| word.parse() == Ok(answer));
                assert!(is_word, "`{attribute}` is {value:?}\n{edited}");
                declared.insert(attribute.clone(), value);
            }
        }
    }
    assert_eq!(found, expected, "something else was changed\n{edited}");
    // Without strings of several lines, a line that begins with # is a comment.
    let is_plain = |text: &str| !text.contains("\"\"\"") && !text.contains("'''");
    if is_plain(policy) && is_plain(&edited) && !changes.iter().any(|(_, new)| *new == New::Gone) {
        let comments = |text: &str| text.lines().filter(|line| line.trim_start().starts_with('#')).count();
        assert_eq!(comments(policy), comments(&edited), "a comment was lost\n{edited}");
    }
    let files = |text: &str| BTreeMap::from([("policy.toml".to_owned(), text.as_bytes().to_vec())]);
    if let Ok(patch) = patch(&files(policy), &files(&edited)) {
        assert_eq!(patch.is_empty(), policy == edited, "{patch}");
    }
}

fn declared<'a>(document: &'a mut toml::Table, id: &ResourceId) -> Option<&'a mut toml::Table> {
    let of_kind = document.get_mut(id.kind.as_str())?.as_table_mut()?;
    let is_named = |key: &str| {
        let key = if id.kind == Kind::Service { key.strip_suffix(".service").unwrap_or(key) } else { key };
        key == &*id.name
    };
    let (_, declared) = of_kind.iter_mut().find(|(key, _)| is_named(key))?;
    declared.as_table_mut()
}
