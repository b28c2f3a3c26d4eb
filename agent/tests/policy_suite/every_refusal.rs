//! That every refusal of the language is made somewhere in these tests, and the rare ones.

use std::path::{Path, PathBuf};

use crate::refusals::check;
use crate::support::{compile, host, policy, policy_of};
use rekindle::policy::compile::cut_short;
use rekindle::policy::diagnostic::Diagnostics;

/// Calls whose text is not written where they stand, as they are written there; and what each says, `*` for what is filled in.
const SAYS: &[(&str, &str, &[&str])] = &[
    (
        "check/settings.rs",
        r#"Diagnostic::error("conflict", title)"#,
        &[
            "two settings give `*` to different owners",
            "two settings give `*` to different groups",
            "two settings give `*` different modes",
            "two settings read `*` in different formats",
            "a line of `*` sets a key that `*` declares",
        ],
    ),
    (
        "load.rs",
        r#"Diagnostic::error("missing-file", title)"#,
        &["`*` is not a path inside the policy", "the policy holds no file `*`"],
    ),
    ("load.rs", r#"Diagnostic::error("syntax", title)"#, &["`*` is longer than * MiB", "`*` is not UTF-8"]),
    ("load.rs", r#"Diagnostic::error("syntax", error.message())"#, &["unclosed table, expected `]`"]),
    (
        "load.rs",
        "Diagnostic::error(what, error.to_string())",
        &["invalid path `*`: it must be absolute", "invalid name `*`: only letters*"],
    ),
    // Whose text is its argument.
    ("lower.rs", "Diagnostic::error(code, title)", &[]),
    (
        "lower.rs",
        r#"self.refuse("name", error.to_string(), &text.place, "the name of a systemd unit")"#,
        &["invalid unit name `*`: *"],
    ),
    (
        "user.rs",
        r#"self.refuse("name", error.to_string(), &text.place, "the name of a group")"#,
        &["invalid group name `*`: *"],
    ),
    (
        "lower.rs",
        r#"self.refuse( "path", error.to_string(), &text.place, "an absolute path without `.`, `..` or a trailing slash", )"#,
        &["invalid path `*`: it must be absolute"],
    ),
    (
        "sweep.rs",
        r#"self.refuse("path", error.to_string(), &text.place, EXPECTED_PATH)"#,
        &["invalid path `*`: it must be absolute"],
    ),
    (
        "sweep.rs",
        r#"self.refuse("path", error.to_string(), &text.place, expected)"#,
        &["invalid path `*`: it must be absolute"],
    ),
    (
        "lower.rs",
        r#"Diagnostic::error("secret", what)"#,
        &["`*` cannot be the name of a secret", "the policy holds no file `*`", "the secret `*` is *"],
    ),
    (
        "template.rs",
        r#"Diagnostic::error("when", title)"#,
        &["`when` cannot be evaluated: *", "`when` gives a *, not true or false"],
    ),
];

/// Every place in the source that makes a diagnostic has each of its texts in a snapshot: of a policy that was refused, as people
/// read it.
#[test]
fn every_place_that_refuses_has_a_snapshot() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shown: String = files(&top.join("tests/policy_suite/snapshots"), "snap")
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let titles: Vec<(&str, &str)> = shown.lines().filter_map(title).collect();
    let mut missing = Vec::new();
    let mut n_places = 0;
    let mut used: Vec<&(&str, &str, &[&str])> = Vec::new();
    for file in files(&top.join("src/policy"), "rs") {
        let source = std::fs::read_to_string(&file).unwrap();
        // The tests of a module are at its end.
        let source = source.split("#[cfg(test)]").next().unwrap();
        for call in ["Diagnostic::error(", "Diagnostic::warning(", "self.refuse("] {
            for (at, _) in source.match_indices(call) {
                n_places += 1;
                let place = format!("{}:{}", file.display(), source[..at].matches('\n').count() + 1);
                let whole = &source[at..at + call.len() + end_of_arguments(&source[at + call.len()..])];
                let known = SAYS.iter().find(|(of, call, _)| file.ends_with(Path::new(of)) && words(whole) == *call);
                used.extend(known);
                let code = literals(whole.split(',').next().unwrap()).pop();
                let texts = match known {
                    Some((.., texts)) => Some(texts.iter().map(|text| (*text).to_owned()).collect()),
                    None => texts(&source[..at], whole),
                };
                if texts.is_none() {
                    missing.push(format!("{place}: its text is not written there: add it to `SAYS`"));
                }
                let is_shown = |text: &String| {
                    titles
                        .iter()
                        .any(|(of, title)| code.as_deref().is_none_or(|code| code == *of) && is_like(title, text))
                };
                let unshown = texts.unwrap_or_default().into_iter().filter(|text| !is_shown(text));
                missing.extend(unshown.map(|text| format!("{place}: {code:?} {text}")));
            }
        }
    }
    assert!(n_places > 120, "the source is not read as it should be: {n_places}");
    assert!(missing.is_empty(), "no refused policy shows these:\n{}", missing.join("\n"));
    let stale: Vec<_> = SAYS.iter().filter(|say| !used.contains(say)).collect();
    assert!(stale.is_empty(), "nothing in the source is written so: {stale:?}");
}

/// The code and the title of a line such as `error[type]: …`.
fn title(line: &str) -> Option<(&str, &str)> {
    let rest = ["error[", "warning["].into_iter().find_map(|severity| line.trim_start().strip_prefix(severity))?;
    rest.split_once("]: ")
}

/// What a call says; `None` where that cannot be told.
fn texts(before: &str, call: &str) -> Option<Vec<String>> {
    let (_, title) = call.split_once(',').unwrap();
    let title = title[..end_of_argument(title)].trim();
    // One that was made ready before: all that it may say.
    let made = before.rfind(&format!("let {title} ="));
    let made = made.map(|at| &before[at..at + before[at..].find(";\n").unwrap()]);
    let texts: Vec<String> = literals(made.unwrap_or(title)).iter().map(|text| pattern(text)).collect();
    Some(texts).filter(|texts| !texts.is_empty())
}

fn words(source: &str) -> String {
    source.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a piece of source has in quotes.
fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some((_, after)) = rest.split_once('"') {
        let end = end_of_literal(after);
        found.push(after[..end].to_owned());
        rest = &after[end + 1..];
    }
    found
}

fn end_of_literal(text: &str) -> usize {
    let mut is_escaped = false;
    let is_end = |c: char| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    };
    text.find(is_end).unwrap()
}

/// Where the parenthesis closes that was open before, and after it.
fn end_of_arguments(source: &str) -> usize {
    end(source, |_| false)
}

fn end_of_argument(source: &str) -> usize {
    end(&format!("{source})"), |c| c == ',').saturating_sub(1)
}

/// Behind the first character outside all brackets that ends it: a closing one, or another.
fn end(source: &str, ends: impl Fn(char) -> bool) -> usize {
    let mut depth = 0;
    let mut at = 0;
    loop {
        let c = source[at..].chars().next().unwrap();
        at += c.len_utf8();
        match c {
            '"' => at += end_of_literal(&source[at..]) + 1,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth > 0 => depth -= 1,
            ')' | ']' | '}' => return at,
            c if depth == 0 && ends(c) => return at,
            _ => {}
        }
    }
}

/// What a text of the source looks like when its places are filled: `*` for each of them.
fn pattern(literal: &str) -> String {
    let mut pattern = String::new();
    let mut rest = literal.replace("\\\"", "\"");
    // A line that goes on in the next one.
    while let Some((before, after)) = rest.split_once("\\\n") {
        rest = format!("{before}{}", after.trim_start());
    }
    let mut text = rest.as_str();
    while let Some(at) = text.find(['{', '}']) {
        pattern.push_str(&text[..at]);
        let brace = &text[at..=at];
        let after = &text[at + 1..];
        if let Some(after) = after.strip_prefix(brace) {
            pattern.push_str(brace);
            text = after;
        } else {
            pattern.push('*');
            text = after.split_once('}').map_or("", |(_, after)| after);
        }
    }
    pattern + text
}

fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found
}

#[test]
fn confirmations() {
    let of = |confirm: &str| format!("[file.'/etc/motd']\ncontent = 'x'\nconfirm = {confirm}\n");
    check(
        "confirmations",
        Some(&host()),
        &[
            (&of("{ within = '60s', by = 'endpoint' }"), &[]),
            (&of("{ within = '1h', by = ['/usr/bin/curl', '-f', 'http://localhost/'] }"), &[]),
            (&of("{ within = '60s' }"), &["confirm"]),
            (&of("{ within = '2h', by = 'ssh' }"), &["confirm"]),
            (&of("{ within = 'soon', by = 'ssh' }"), &["confirm"]),
            (&of("{ within = '60s', by = ['curl', '-f'] }"), &["confirm"]),
            (&of("{ within = '60s', by = 'sshd' }"), &["type"]),
            (&of("'ssh'"), &["type"]),
            ("[package.nginx]\nconfirm = { within = '60s', by = 'ssh' }\n", &["confirm"]),
        ],
    );
}

#[test]
fn rare_mistakes() {
    let setting = |attributes: &str| format!("[setting.x]\npath = '/etc/x'\n{attributes}\n");
    let names = "'/a/**/b/**/c/**/d'";
    let many = "'/a', ".repeat(1001);
    let two = |a: &str, b: &str| {
        let of = |name: &str, more: &str| {
            format!("[setting.{name}]\npath = '/etc/x'\nformat = 'line'\nlines = ['{name}']\n{more}\n")
        };
        of("a", a) + &of("b", b)
    };
    check(
        "rare_mistakes",
        Some(&host()),
        &[
            (&setting("format = 'block'\ncomment = ''\nlines = ['a']"), &["value"]),
            (&setting("format = 'ini'\nabsent = { s = 'a' }"), &["type"]),
            (&setting("format = 'ini'\nvalues = { 'a]' = { b = 1 } }"), &["name"]),
            (
                "[file.'/etc/x']\ntemplate = 'templates/empty.j2'\n[file.'/etc/y']\nsource = 'files/empty'\n",
                &["empty", "empty"],
            ),
            ("[command.x]\nrun = ['/bin/a']\ncreates = '/x'\nenv = { A = \"\\u0000\" }\n", &["value"]),
            (&format!("[sweep.x]\nunder = ['/usr']\nexcept = [{names}]\nmatch = {{ setuid = true }}\n"), &["value"]),
            (&format!("[sweep.x]\nunder = ['/usr']\nmatch = {{ setuid = true }}\nexcept = [\n{many}]\n"), &["value"]),
            (&two("owner = 'root'", "owner = 'www-data'"), &["conflict"]),
            (&two("group = 'root'", "group = 'adm'"), &["conflict"]),
            ("[user.root]\nsystem = true\nuid = 5\n", &["protected"]),
        ],
    );
}

/// What no policy.toml by itself is refused for.
#[test]
fn limits() {
    let none = compile(&policy(&[("readme", "")]), None).unwrap_err();
    let resources: String = (0..=200_000).map(|i| format!("g{i}={{}}\n")).collect();
    let large = compile(&policy(&[("policy.toml", &format!("[group]\n{resources}"))]), None).unwrap_err();
    let cut = cut_short(&policy(&[("policy.toml", "")]), None, "takes longer than 60 seconds");
    let mistakes = compile(&policy(&[("policy.toml", &"= 1\n".repeat(150))]), None).unwrap_err();
    assert_eq!(mistakes.len(), 101);
    let last = Diagnostics::from(mistakes.iter().last().into_iter().cloned().collect::<Vec<_>>());
    let template = "[file.'/etc/x']\ntemplate = 't.j2'\n";
    let traced =
        serde_json::json!({ "what": "template", "text": "t.j2", "file": "policy.toml", "start": 27, "end": 33 });
    let traced = serde_json::from_value(traced).unwrap();
    let cut_there = cut_short(&policy(&[("policy.toml", template)]), Some(&traced), "needs more than 64 MiB of memory");
    let root: &[u8] = b"include = ['long.toml', 'bytes.toml']\n[repository.x]\n\
        dnf = { uris = ['https://a'], signed_index = true, key = 'keys/binary.gpg' }\n";
    let key: String = include_str!("acme.asc")
        .lines()
        .skip_while(|line| !line.is_empty())
        .take_while(|line| !line.starts_with('='))
        .collect();
    let key = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key).unwrap();
    let files: [(&str, &[u8]); 4] = [
        ("policy.toml", root),
        ("long.toml", &[b'#'; 8 * 1024 * 1024 + 1]),
        ("bytes.toml", b"\xff"),
        ("keys/binary.gpg", &key),
    ];
    let unfit = compile(&policy_of(&files), None).unwrap_err();
    let text =
        [none, large, cut, last, cut_there, unfit].map(|all| format!("{}\n\n{all}\n", all.render(false))).join("\n");
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("limits", text);
    });
}
