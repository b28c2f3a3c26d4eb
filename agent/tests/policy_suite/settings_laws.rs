//! Laws of the editors behind `setting`: edited, a file gives the values to whoever reads it, and has every other byte still.

use proptest::prelude::*;
use rekindle::resource::setting::{Edits, Entry};

use crate::settings_read;

/// Lines of few words, so that keys meet, with ends and bytes that no editor should fall over.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "A",
        "B",
        "KEY",
        "export",
        "#A",
        "# A",
        ";B",
        "=",
        " = ",
        " ",
        "\t",
        "1",
        "2",
        "\"x y\"",
        "'y'",
        "'open",
        "# note",
        "[s]",
        "[t]",
        "[]",
        "Match all",
        "Host *",
        "\\",
        "# BEGIN rekindle: x",
        "# END rekindle: x",
        "é",
        "\u{b}",
    ]);
    let end = prop::sample::select(vec!["\n", "\n", "\n", "\r\n", "", "\r"]);
    let odd = prop::collection::vec(any::<u8>(), 0..3);
    let line = (prop::collection::vec(word, 0..5), odd, end)
        .prop_map(|(words, odd, end)| [words.concat().as_bytes(), &odd, end.as_bytes()].concat());
    prop::collection::vec(line, 0..10).prop_map(|lines| lines.concat())
}

/// Several keys at once, each with several values or none, of the values that a policy may ask for.
fn entries(sections: &'static [&'static str], keys: &'static [&'static str]) -> impl Strategy<Value = Vec<Entry>> {
    let values = prop::sample::select(vec!["1", "x y", "z=2", "\"x y\"", "a#b", "é", "[t]", "-"]);
    let values = prop::collection::vec(values, 0..3);
    let entry =
        (prop::sample::select(sections), prop::sample::select(keys), values).prop_map(|(section, key, values)| {
            let values = values.into_iter().map(str::to_owned).collect();
            Entry { section: section.to_owned(), key: key.to_owned(), values }
        });
    prop::collection::vec(entry, 1..4).prop_map(|mut entries| {
        // A policy that names a key twice is refused.
        let mut seen = std::collections::HashSet::new();
        entries.retain(|entry| seen.insert((entry.section.clone(), entry.key.to_lowercase())));
        entries
    })
}

fn edits() -> impl Strategy<Value = Edits> {
    let lines = || prop::collection::vec(prop::sample::select(vec!["A=1", "B 2", "new", "", "é"]), 0..4);
    let owned = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let whole = move || {
        lines().prop_map(move |lines| {
            let mut seen = std::collections::HashSet::new();
            owned(lines.into_iter().filter(|line| !line.is_empty() && seen.insert(*line)).collect())
        })
    };
    prop_oneof![
        entries(&[""], &["A", "B", "KEY"]).prop_map(Edits::Space),
        entries(&[""], &["A", "b", "KEY"]).prop_map(Edits::Ssh),
        entries(&[""], &["A", "B", "export", "KEY"]).prop_map(Edits::Equals),
        entries(&["", "s", "u"], &["A", "B", "export", "A B"]).prop_map(Edits::Ini),
        (whole(), whole()).prop_map(|(present, absent)| {
            let absent = absent.into_iter().filter(|line| !present.contains(line)).collect();
            Edits::Line { present, absent }
        }),
        lines().prop_map(move |lines| Edits::Block { name: "x".into(), comment: "#".into(), lines: owned(lines) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn edited_it_gives_the_values_and_has_every_other_byte_still(edits in edits(), content in content()) {
        let Ok(edited) = edits.edit(&content) else { return Ok(()) };
        if let Err(why) = settings_read::check(&edits, &content, &edited) {
            prop_assert!(false, "{why}");
        }
    }
}
