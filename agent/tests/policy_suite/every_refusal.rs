//! That every refusal of the language is made somewhere in these tests, and the rare ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::refusals::check;
use crate::support::{compile, host, policy};
use rekindle::policy::compile::cut_short;
use rekindle::policy::diagnostic::Diagnostics;

/// Every code that the source gives a diagnostic stands in a snapshot: of a policy that was refused, with its text as people
/// read it.
#[test]
fn every_code_has_a_snapshot() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut codes = BTreeSet::new();
    for file in files(&top.join("src/policy"), "rs") {
        let source = std::fs::read_to_string(&file).unwrap();
        for call in ["Diagnostic::error(", "Diagnostic::warning(", "self.refuse("] {
            for (at, _) in source.match_indices(call) {
                let arguments = source[at + call.len()..].trim_start();
                let literal = arguments.strip_prefix('"').and_then(|rest| rest.split('"').next());
                // A code that is handed on was written down by whoever hands it.
                codes.extend(literal.map(str::to_owned));
            }
        }
    }
    assert!(codes.len() > 30, "the source is not read as it should be: {codes:?}");
    let snapshots: String = files(&top.join("tests/policy_suite/snapshots"), "snap")
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let is_missing = |code: &&String| {
        !["error", "warning"].iter().any(|severity| snapshots.contains(&format!("{severity}[{code}]: ")))
    };
    let missing: Vec<&String> = codes.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "no refused policy shows these: {missing:?}");
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
    check(
        "rare_mistakes",
        Some(&host()),
        &[
            (&setting("format = 'block'\ncomment = ''\nlines = ['a']"), &["value"]),
            (&setting("format = 'ini'\nabsent = { s = 'a' }"), &["type"]),
            (&setting("format = 'ini'\nvalues = { 'a]' = { b = 1 } }"), &["name"]),
            ("[file.'/etc/x']\ntemplate = 'templates/empty.j2'\n", &["empty"]),
            ("[command.x]\nrun = ['/bin/a']\ncreates = '/x'\nenv = { A = \"\\u0000\" }\n", &["value"]),
            (&format!("[sweep.x]\nunder = ['/usr']\nexcept = [{names}]\nmatch = {{ setuid = true }}\n"), &["value"]),
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
    let text = [none, large, cut, last].map(|all| format!("{}\n\n{all}\n", all.render(false))).join("\n");
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("limits", text);
    });
}
