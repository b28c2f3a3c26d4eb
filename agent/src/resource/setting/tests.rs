use proptest::prelude::*;

use super::*;
use crate::resource::ChangeDetail;

#[derive(Clone, Copy)]
enum Format {
    Space,
    Ssh,
    Equals,
    Ini,
}

fn entry(key: &str, values: &[&str]) -> Entry {
    let (section, key) = key.rsplit_once('/').unwrap_or(("", key));
    Entry { section: section.to_owned(), key: key.to_owned(), values: values.iter().map(|v| (*v).to_owned()).collect() }
}

fn edits(format: Format, entries: Vec<Entry>) -> Edits {
    match format {
        Format::Space => Edits::Space(entries),
        Format::Ssh => Edits::Ssh(entries),
        Format::Equals => Edits::Equals(entries),
        Format::Ini => Edits::Ini(entries),
    }
}

/// Edits, checks the result, the change in words, and that a second time changes nothing.
#[track_caller]
fn check(edits: &Edits, content: &str, expected: &str, change: &[&str]) {
    let edited = edits.edit(content.as_bytes()).unwrap();
    assert_eq!(String::from_utf8_lossy(&edited.content), expected);
    let told: Vec<String> = edited.changes.iter().map(told).collect();
    assert_eq!(told, change);
    let again = edits.edit(&edited.content).unwrap();
    assert_eq!((again.content, again.changes), (edited.content, vec![]));
}

fn told(change: &Change) -> String {
    match &change.detail {
        ChangeDetail::Value { from, to } => {
            format!("{}: {} → {}", change.attribute, from.as_deref().unwrap_or("-"), to.as_deref().unwrap_or("-"))
        }
        ChangeDetail::Text { diff } => format!("{}: {diff}", change.attribute),
        ChangeDetail::Opaque { .. } => change.attribute.clone(),
    }
}

#[track_caller]
fn one(format: Format, key: &str, values: &[&str], content: &str, expected: &str, change: &[&str]) {
    check(&edits(format, vec![entry(key, values)]), content, expected, change);
}

#[test]
fn space_edits_login_defs() {
    #[track_caller]
    fn umask(content: &str, expected: &str, change: &[&str]) {
        one(Format::Space, "UMASK", &["027"], content, expected, change);
    }
    umask("UMASK\t027\n", "UMASK\t027\n", &[]);
    umask("  UMASK \t 022  \nA 1\n", "  UMASK \t 027  \nA 1\n", &["UMASK: 022 → 027"]);
    // The last counts, and keeps its place.
    umask("UMASK 022\nA 1\nUMASK 027\n", "A 1\nUMASK 027\n", &["UMASK: 022 | 027 → 027"]);
    umask("UMASK 027\nUMASK 022\n", "UMASK 027\n", &["UMASK: 027 | 022 → 027"]);
    // After its default, not after prose, written as the file writes.
    umask("# UMASK is\n#UMASK\t022\nA\t1\n", "# UMASK is\n#UMASK\t022\nUMASK\t027\nA\t1\n", &["UMASK: - → 027"]);
    umask("A\t1\n# UMASK is", "A\t1\n# UMASK is\nUMASK\t027\n", &["UMASK: - → 027"]);
    umask("UMASKED 1\r\nA 1\r\n", "UMASKED 1\r\nA 1\r\nUMASK 027\r\n", &["UMASK: - → 027"]);
    umask("UMASK", "UMASK 027", &["UMASK:  → 027"]);
    umask("UMASK\r", "UMASK 027\r", &["UMASK:  → 027"]);
    umask("", "UMASK 027\n", &["UMASK: - → 027"]);
    one(Format::Space, "A", &[], "A 1\nB 2\nA 3", "B 2\n", &["A: 1 | 3 → -"]);
    one(Format::Space, "A", &[], "#A 1\n", "#A 1\n", &[]);
    one(Format::Space, "S", &["a", "b"], "S x\nB 2\nS y\nS z\n", "S a\nB 2\nS b\n", &["S: x | y | z → a | b"]);
    one(Format::Space, "S", &["a", "b"], "B 2\nS a\nC 3\n", "B 2\nS a\nS b\nC 3\n", &["S: a → a | b"]);
}

#[test]
fn ssh_edits_what_holds_for_everybody() {
    #[track_caller]
    fn root(content: &str, expected: &str, change: &[&str]) {
        one(Format::Ssh, "PermitRootLogin", &["no"], content, expected, change);
    }
    root("permitrootlogin \"no\" # really\n", "permitrootlogin \"no\" # really\n", &[]);
    root("PermitRootLogin=yes # hm\n", "PermitRootLogin=no # hm\n", &["PermitRootLogin: yes → no"]);
    root("PermitRootLogin=#yes\n", "PermitRootLogin=no #yes\n", &["PermitRootLogin:  → no"]);
    root("PermitRootLogin = yes\n", "PermitRootLogin = no\n", &["PermitRootLogin: yes → no"]);
    // The first counts.
    root(
        "PermitRootLogin yes\nPort 22\nPermitRootLogin no\n",
        "PermitRootLogin no\nPort 22\n",
        &["PermitRootLogin: yes | no → no"],
    );
    root(
        "#PermitRootLogin prohibit-password\nPort 22\n\nMatch User bob\n\tPermitRootLogin yes\n",
        "#PermitRootLogin prohibit-password\nPermitRootLogin no\nPort 22\n\nMatch User bob\n\tPermitRootLogin yes\n",
        &["PermitRootLogin: - → no"],
    );
    root(
        "Port 22\n\n# Bob\nmatch user bob\n  #PermitRootLogin no\n",
        "Port 22\nPermitRootLogin no\n\n# Bob\nmatch user bob\n  #PermitRootLogin no\n",
        &["PermitRootLogin: - → no"],
    );
    root("Host *\n  X yes\n", "PermitRootLogin no\nHost *\n  X yes\n", &["PermitRootLogin: - → no"]);
    root("HostKey /a\n", "HostKey /a\nPermitRootLogin no\n", &["PermitRootLogin: - → no"]);
    one(
        Format::Ssh,
        "AcceptEnv",
        &["LANG LC_*", "TZ"],
        "AcceptEnv LANG   LC_*\nPort 22\nAcceptEnv FOO\nAcceptEnv TZ\n",
        "AcceptEnv LANG   LC_*\nPort 22\nAcceptEnv TZ\n",
        &["AcceptEnv: LANG   LC_* | FOO | TZ → LANG LC_* | TZ"],
    );
    one(Format::Ssh, "Banner", &["/a b"], "Banner \"/a b\"\n", "Banner /a b\n", &["Banner: \"/a b\" → /a b"]);
    one(Format::Ssh, "Banner", &[], "Match all\nBanner x\n", "Match all\nBanner x\n", &[]);
}

#[test]
fn equals_keeps_quotes() {
    #[track_caller]
    fn a(wanted: &str, content: &str, expected: &str, change: &[&str]) {
        one(Format::Equals, "A", &[wanted], content, expected, change);
    }
    a("1", "A=1\n", "A=1\n", &[]);
    a("1", "A=\"1\" # one\nexport A='2'\n", "export A='1'\n", &["A: \"1\" # one | '2' → 1"]);
    a("x y", "A=\"old\" # note\n", "A=\"x y\" # note\n", &["A: \"old\" # note → x y"]);
    a("x y", "A=old\n", "A=\"x y\"\n", &["A: old → x y"]);
    a("x y", "A = old\n", "A = x y\n", &["A: old → x y"]);
    a("x y", "B = 1\n# A = 2\nC = 3\n", "B = 1\n# A = 2\nA = x y\nC = 3\n", &["A: - → x y"]);
    a("x y", "B=1", "B=1\nA=\"x y\"\n", &["A: - → x y"]);
    a("'q'", "A=\"old\"\n", "A='q'\n", &["A: \"old\" → 'q'"]);
    a("", "A=1\n", "A=\n", &["A: 1 → "]);
    // Only blanks are copied with it.
    a("1", "B\r=2\n", "B\r=2\nA=1\n", &["A: - → 1"]);
    a("1", "A1=2\nA.b=3\n", "A1=2\nA.b=3\nA=1\n", &["A: - → 1"]);
    a("1", "A=2 # note\n", "A=1\n", &["A: 2 # note → 1"]);
    one(Format::Equals, "export", &["1"], "export = 2\nexport A=3\n", "export = 1\nexport A=3\n", &["export: 2 → 1"]);
    let a = edits(Format::Equals, vec![entry("A", &["say \"hi\""])]);
    assert!(matches!(a.edit(b"A=\"x\"\n"), Err(EditError::Quote { line: 1, .. })));
    for content in ["A=1 \\\n2\n", "A=\"1\n2\"\n"] {
        assert!(matches!(a.edit(content.as_bytes()), Err(EditError::Continued { line: 1, .. })), "{content}");
    }
}

#[test]
fn ini_knows_sections() {
    #[track_caller]
    fn a(content: &str, expected: &str, change: &[&str]) {
        one(Format::Ini, "s/a", &["1"], content, expected, change);
    }
    a("[s]\na = 1\n[t]\na = 2\n", "[s]\na = 1\n[t]\na = 2\n", &[]);
    a("[s]\na=2\n\n[t]\na = 3\n", "[s]\na=1\n\n[t]\na = 3\n", &["s.a: 2 → 1"]);
    a("[s]\nb=2\n\n[t]\na = 3\n", "[s]\nb=2\na=1\n\n[t]\na = 3\n", &["s.a: - → 1"]);
    a("[s]\n;a = 2\nb = 2\n", "[s]\n;a = 2\na = 1\nb = 2\n", &["s.a: - → 1"]);
    a("[s]\n;a = 2\n  more\nb = 2\n", "[s]\n;a = 2\n  more\na = 1\nb = 2\n", &["s.a: - → 1"]);
    a("[s]\n\n[t]\nb = 3\n", "[s]\na=1\n\n[t]\nb = 3\n", &["s.a: - → 1"]);
    a("[s]\na=2\n[t]\n[s]\na=3\n", "[s]\n[t]\n[s]\na=1\n", &["s.a: 2 | 3 → 1"]);
    a("[t]\nb = 3", "[t]\nb = 3\n\n[s]\na = 1\n", &["s.a: - → 1"]);
    a("", "[s]\na=1\n", &["s.a: - → 1"]);
    a("[s]\n\tb = 1\n", "[s]\n\tb = 1\n\ta = 1\n", &["s.a: - → 1"]);
    a("[s]\na\n", "[s]\na=1\n", &["s.a:  → 1"]);
    // Nothing but a shell exports.
    a("[s]\nexport a = 2\n", "[s]\nexport a = 2\na = 1\n", &["s.a: - → 1"]);
    one(Format::Ini, "s/export a", &["1"], "[s]\nexport a = 2\n", "[s]\nexport a = 1\n", &["s.export a: 2 → 1"]);
    one(Format::Ini, "a", &["1"], "# x\n\n[s]\na = 2\n", "# x\na=1\n\n[s]\na = 2\n", &["a: - → 1"]);
    one(Format::Ini, "a", &["1"], "[s]\na = 2\n", "a=1\n[s]\na = 2\n", &["a: - → 1"]);
    one(Format::Ini, "s/a", &[], "[s]\na = 1\n", "[s]\n", &["s.a: 1 → -"]);
    one(Format::Ini, "u/a", &[], "[s]\na = 1\n", "[s]\na = 1\n", &[]);
    one(
        Format::Ini,
        "Service/Environment",
        &["A=1", "B=2"],
        "[Service]\nEnvironment=A=1\nType=x\n",
        "[Service]\nEnvironment=A=1\nEnvironment=B=2\nType=x\n",
        &["Service.Environment: A=1 → A=1 | B=2"],
    );
    let a = edits(Format::Ini, vec![entry("s/a", &["1"])]);
    for content in ["[s]\na = 1\n  2\n", "[s]\na = 1 \\\n2\n"] {
        assert!(matches!(a.edit(content.as_bytes()), Err(EditError::Continued { line: 2, .. })), "{content}");
    }
}

#[test]
fn lines_are_added_and_removed_whole() {
    #[track_caller]
    fn lines(present: &[&str], absent: &[&str], content: &str, expected: &str, change: &[&str]) {
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        check(&Edits::Line { present: owned(present), absent: owned(absent) }, content, expected, change);
    }
    lines(&["b"], &[], "a\nb\nb\n", "a\nb\nb\n", &[]);
    lines(&["b", "c"], &[], "a\r\n b\r\n", "a\r\n b\r\nb\r\nc\r\n", &["line: - → b", "line: - → c"]);
    lines(&[], &["b"], "b\na\nb", "a\n", &["line: b → -", "line: b → -"]);
}

#[test]
fn blocks_stand_between_their_marks() {
    #[track_caller]
    fn block(lines: &[&str], content: &str, expected: &str, n_changes: usize) {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        let edits = Edits::Block { name: "x".to_owned(), comment: "#".to_owned(), lines };
        let edited = edits.edit(content.as_bytes()).unwrap();
        assert_eq!(String::from_utf8_lossy(&edited.content), expected);
        assert_eq!(edited.changes.len(), n_changes, "{:?}", edited.changes);
        assert_eq!(edits.edit(&edited.content).unwrap(), Edited { content: edited.content.clone(), changes: vec![] });
    }
    let marked = |inner: &str| format!("# BEGIN rekindle: x\n{inner}# END rekindle: x\n");
    block(&["a"], "1\n", &format!("1\n{}", marked("a\n")), 1);
    block(&["a"], &format!("1\n{}2\n", marked("b\nc\n")), &format!("1\n{}2\n", marked("a\n")), 1);
    block(&["a"], &format!("{}2\n{}", marked("a\n"), marked("a\n")), &format!("{}2\n", marked("a\n")), 1);
    block(&["a"], &format!("1\n{}2", marked("a\n")), &format!("1\n{}2", marked("a\n")), 0);
    block(&[], &format!("1\n{}2\n", marked("a\n")), "1\n2\n", 1);
    block(&[], "1\n# END rekindle: x\n", "1\n# END rekindle: x\n", 0);
    let edits = Edits::Block { name: "x".to_owned(), comment: "#".to_owned(), lines: vec!["a".to_owned()] };
    for content in ["1\n# BEGIN rekindle: x\na\n".to_owned(), format!("# BEGIN rekindle: x\n{}", marked(""))] {
        assert!(matches!(edits.edit(content.as_bytes()), Err(EditError::Unended { .. })), "{content}");
    }
}

/// Lines that could be anything, of few words so that keys meet, with bytes that are not text among them.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "A",
        "B",
        "KEY",
        "#A",
        "# A",
        "#A=1",
        ";B=2",
        "=",
        " = ",
        " ",
        "\t",
        "1",
        "\"x\"",
        "'y",
        "[s]",
        "[t]",
        "Match all",
        "Host *",
        "export ",
        "\\",
        "# BEGIN rekindle: x",
        "# END rekindle: x",
        "  ",
        "é",
    ]);
    let end = prop::sample::select(vec!["\n", "\r\n", "\n", ""]);
    let odd = prop::collection::vec(any::<u8>(), 0..4);
    let line = (prop::collection::vec(word, 0..4), odd, end).prop_map(|(words, odd, end)| {
        [words.concat().as_bytes(), if words.len() == 1 { &odd } else { &[] }, end.as_bytes()].concat()
    });
    prop::collection::vec(line, 0..8).prop_map(|lines| lines.concat())
}

fn entries(format: Format) -> impl Strategy<Value = Edits> {
    let key = prop::sample::select(vec!["A", "B"]);
    let section = prop::sample::select(vec!["", "s", "u"]);
    let values = prop::collection::vec(prop::sample::select(vec!["1", "x y", "z=2"]), 0..3);
    (key, section, values).prop_map(move |(key, section, values)| {
        let section = if matches!(format, Format::Ini) { section } else { "" };
        let mut entry = entry(key, &values);
        entry.section = section.to_owned();
        edits(format, vec![entry])
    })
}

fn all_edits() -> impl Strategy<Value = Edits> {
    let words = || prop::collection::vec(prop::sample::select(vec!["A=1", "B 2", "new"]), 0..3);
    let owned = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect::<Vec<_>>();
    prop_oneof![
        entries(Format::Space),
        entries(Format::Ssh),
        entries(Format::Equals),
        entries(Format::Ini),
        (words(), prop::sample::select(vec![vec![], vec!["1"]]))
            .prop_map(move |(present, absent)| Edits::Line { present: owned(present), absent: owned(absent) }),
        words().prop_map(move |lines| Edits::Block { name: "x".into(), comment: "#".into(), lines: owned(lines) }),
    ]
}

/// Lines of a file, without their ends, each with how often it stands there.
fn counted(content: &[u8]) -> std::collections::BTreeMap<&[u8], usize> {
    let mut counted = std::collections::BTreeMap::new();
    for line in content.split(|byte| *byte == b'\n') {
        *counted.entry(line.strip_suffix(b"\r").unwrap_or(line)).or_default() += 1;
    }
    counted
}

proptest! {
    /// Edited is edited: the values stand there, and a second time changes nothing.
    #[test]
    fn editing_twice_is_editing_once(edits in all_edits(), content in content()) {
        let Ok(edited) = edits.edit(&content) else { return Ok(()) };
        prop_assert_eq!(edited.changes.is_empty(), edited.content == content);
        let again = edits.edit(&edited.content);
        prop_assert_eq!(again, Ok(Edited { content: edited.content, changes: vec![] }));
    }

    /// No line that is not about what is edited comes, goes or changes.
    #[test]
    fn everything_else_stays(edits in all_edits(), content in content()) {
        let Ok(edited) = edits.edit(&content) else { return Ok(()) };
        let (before, after) = (counted(&content), counted(&edited.content));
        let is_about = |line: &[u8]| match &edits {
            Edits::Space(e) | Edits::Ssh(e) | Edits::Equals(e) | Edits::Ini(e) => {
                let text = line.trim_ascii();
                let is_header = e.first().is_some_and(|e| text == format!("[{}]", e.section).as_bytes());
                let key = text.strip_prefix(b"export").map_or(text, <[u8]>::trim_ascii_start);
                line.is_empty() || is_header || e.first().is_some_and(|e| {
                    key.len() >= e.key.len() && key[..e.key.len()].eq_ignore_ascii_case(e.key.as_bytes())
                })
            }
            Edits::Line { present, absent } => {
                line.is_empty() || present.iter().chain(absent).any(|l| l.as_bytes() == line)
            }
            // What stands between the marks is the block's.
            Edits::Block { lines, .. } => {
                let is_marked = content.windows(5).any(|window| window == b"BEGIN");
                let is_mark = line.ends_with(b" rekindle: x");
                is_marked || is_mark || line.is_empty() || lines.iter().any(|wanted| wanted.as_bytes() == line)
            }
        };
        for line in before.keys().chain(after.keys()).filter(|line| !is_about(line)) {
            prop_assert_eq!(before.get(line), after.get(line), "{:?}", line.escape_ascii().to_string());
        }
    }
}
