//! The editors of `setting`: whoever reads the file finds what was wanted, every other byte stays, and twice is once.
//!
//! The input names a format and keys, a line each, then `---`, then the file. What no policy could ask for is no finding.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle::policy::diagnostic::Diagnostics;
use rekindle::resource::setting::{Edits, Entry};
use rekindle_fuzz::{compiled, parted, policy};

#[path = "../../agent/tests/policy_suite/settings_read.rs"]
mod settings_read;

fuzz_target!(|data: &[u8]| {
    let Some((wanted, content)) = parted(data) else { return };
    let Some(edits) = edits(wanted) else { return };
    let Ok(edited) = edits.edit(content) else { return };
    if let Err(why) = settings_read::check(&edits, content, &edited)
        && let Err(refused) = accepted(&edits)
    {
        // Only a policy that would be refused may ask for what cannot be.
        assert!(!refused.is_empty(), "{why}\n{edits:?}");
    }
});

/// `[s]` begins a section, `k=v` is a value, `k` alone is to be absent; in `line` and `block`, `+x` and `-x` are lines.
fn edits(text: &str) -> Option<Edits> {
    let mut lines = text.split('\n');
    let format = lines.next()?;
    if matches!(format, "line" | "block") {
        let (mut present, mut absent) = (Vec::new(), Vec::new());
        for line in lines {
            match line.split_at_checked(1)? {
                ("+", line) => present.push(line.to_owned()),
                ("-", line) => absent.push(line.to_owned()),
                _ => return None,
            }
        }
        let block = || Edits::Block { name: "x".into(), comment: "#".into(), lines: present.clone() };
        return Some(if format == "block" { block() } else { Edits::Line { present, absent } });
    }
    let mut entries: Vec<Entry> = Vec::new();
    let mut section = String::new();
    for line in lines {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let (key, value) = line.split_once('=').map_or((line, None), |(key, value)| (key, Some(value.to_owned())));
        match entries.iter_mut().find(|entry| entry.section == section && entry.key == key) {
            Some(entry) => entry.values.extend(value),
            None => entries.push(Entry {
                section: section.clone(),
                key: key.to_owned(),
                values: value.into_iter().collect(),
            }),
        }
    }
    match format {
        // Others have no sections.
        "space" | "ssh" | "equals" if entries.iter().any(|entry| !entry.section.is_empty()) => None,
        "space" => Some(Edits::Space(entries)),
        "ssh" => Some(Edits::Ssh(entries)),
        "equals" => Some(Edits::Equals(entries)),
        "ini" => Some(Edits::Ini(entries)),
        _ => None,
    }
}

/// Has a policy ask for the edits: an error without diagnostics when it may.
fn accepted(edits: &Edits) -> Result<(), Diagnostics> {
    let mut setting = toml::Table::new();
    let list = |lines: &[String]| toml::Value::from(lines.to_vec());
    let (format, entries): (_, &[Entry]) = match edits {
        Edits::Space(entries) => ("space", entries),
        Edits::Ssh(entries) => ("ssh", entries),
        Edits::Equals(entries) => ("equals", entries),
        Edits::Ini(entries) => ("ini", entries),
        Edits::Line { present, absent } => {
            setting.insert("lines".to_owned(), list(present));
            setting.insert("absent".to_owned(), list(absent));
            ("line", &[])
        }
        Edits::Block { comment, lines, .. } => {
            setting.insert("comment".to_owned(), comment.as_str().into());
            setting.insert("lines".to_owned(), list(lines));
            ("block", &[])
        }
    };
    setting.insert("format".to_owned(), format.into());
    setting.insert("path".to_owned(), "/etc/x".into());
    let (mut values, mut absent) = (toml::Table::new(), toml::Table::new());
    for Entry { section, key, values: wanted } in entries {
        let at = if wanted.is_empty() { &mut absent } else { &mut values };
        if section.is_empty() && !wanted.is_empty() {
            at.insert(key.clone(), list(wanted));
            continue;
        }
        let of_section = at.entry(section).or_insert_with(|| toml::Table::new().into());
        let Some(of_section) = of_section.as_table_mut() else { continue };
        of_section.insert(key.clone(), list(wanted));
    }
    if format == "ini" {
        let names = absent.into_iter().map(|(section, keys)| {
            let keys: Vec<String> = keys.as_table().into_iter().flat_map(|keys| keys.keys().cloned()).collect();
            (section, toml::Value::from(keys))
        });
        setting.insert("absent".to_owned(), names.collect::<toml::Table>().into());
    } else if !entries.is_empty() {
        let keys = absent.get("").and_then(toml::Value::as_table);
        let keys: Vec<String> = keys.into_iter().flat_map(|keys| keys.keys().cloned()).collect();
        setting.insert("absent".to_owned(), keys.into());
    }
    if !values.is_empty() {
        setting.insert("values".to_owned(), values.into());
    }
    let of_kind: toml::Table = [("x".to_owned(), toml::Value::from(setting))].into_iter().collect();
    let document: toml::Table = [("setting".to_owned(), toml::Value::from(of_kind))].into_iter().collect();
    match compiled(&policy(&[("policy.toml", document.to_string().as_bytes())]), None) {
        Ok(_) => Err(Diagnostics::default()),
        Err(diagnostics) => Err(diagnostics),
    }
}
