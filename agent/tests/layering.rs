//! The import rules of the crate, read from its source: which module may name which other module, crate or system call.
//!
//! It resolves `use` trees, `self`, `super`, renames and inline paths, and ignores comments, strings and test modules. It
//! does not expand macros or follow re-exports: a rule that somebody wants to break can be broken, but not by accident.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// What only some files may name.
struct Rule {
    /// In words.
    rule: &'static str,
    /// Paths, with everything beneath them.
    forbidden: &'static [&'static str],
    /// Paths beneath those that are harmless.
    but: &'static [&'static str],
    /// Files and directories of `src` to which the rule applies; empty means all.
    applies_to: &'static [&'static str],
    /// Files and directories of `src` that are excepted, each for a reason.
    except: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        rule: "policy turns bytes into desired state and never looks at the host",
        forbidden: &[
            "crate::host",
            "crate::converge",
            "crate::watch",
            "crate::record",
            "crate::courier",
            "crate::agent",
        ],
        but: &[],
        applies_to: &["policy"],
        except: &[],
    },
    Rule {
        rule: "the courier has the network, and knows no more of the host than the spool tells it",
        forbidden: &[
            "crate::resource",
            "crate::converge",
            "crate::host",
            "crate::record",
            "crate::policy",
            "crate::watch",
        ],
        but: &[
            "crate::resource::ResourceId",
            "crate::resource::Kind",
            "crate::resource::Change",
            "crate::resource::ChangeDetail",
        ],
        applies_to: &["courier"],
        except: &[],
    },
    Rule {
        rule: "root opens no network connection",
        forbidden: &[
            "reqwest",
            "hyper",
            "rustls",
            "tokio_rustls",
            "std::net",
            "tokio::net::TcpStream",
            "tokio::net::TcpListener",
        ],
        but: &[],
        applies_to: &[],
        // The demo plays all parts at once: anyone in a sandbox, root around a throwaway machine.
        except: &["courier", "cli"],
    },
    Rule {
        rule: "only the two services, and what speaks D-Bus, are asynchronous",
        forbidden: &["tokio"],
        but: &[],
        applies_to: &[],
        // The command line starts the runtimes. The bus has no blocking interface.
        except: &["agent", "courier", "cli", "watch/units.rs", "host/units/systemd.rs"],
    },
    Rule {
        rule: "child processes start in one place, which bounds their time and output",
        forbidden: &[
            "std::process::Command",
            "tokio::process",
            "std::os::unix::process::CommandExt",
            "nix::unistd::execve",
        ],
        but: &[],
        applies_to: &[],
        // The courier fetches in a child of itself, with a deadline of its own: it may not use the host's door.
        // The demo runs this very binary as the services of its sandbox, and the programs that make, boot and enter its machine.
        except: &["host/exec.rs", "host/exec", "courier/fetch.rs", "cli/demo", "cli/demo.rs"],
    },
    Rule {
        rule: "files are written through the root handle, the record, the spool and the two stores",
        forbidden: WRITES,
        but: &[],
        applies_to: &[],
        // The agent makes way for its own control socket and says who may connect to it.
        // The policy store and the compiled form in it are root's own; the repository and the delivery state are the courier's own.
        except: &[
            "host",
            "record",
            "spool.rs",
            "spool",
            "policy/trust/store.rs",
            "policy/trust.rs",
            "agent/sockets.rs",
            "policy/compiled.rs",
            "courier",
            "cli",
        ],
    },
    Rule {
        rule: "the shape of the TOML stays inside the policy module",
        forbidden: &["crate::policy::schema"],
        but: &["crate::policy::schema::json_schema"],
        applies_to: &[],
        // `rekindle schema` prints what editors read.
        except: &["policy"],
    },
    Rule {
        rule: "the nouns know nothing of the verbs",
        forbidden: &[
            "crate::converge",
            "crate::watch",
            "crate::schedule",
            "crate::agent",
            "crate::courier",
            "crate::cli",
        ],
        but: &[],
        applies_to: &["resource", "host"],
        except: &[],
    },
    Rule {
        rule: "the schedule, the health state machine and what is said of an actor are pure",
        forbidden: &[
            "crate::host",
            "std::fs",
            "std::thread",
            "std::time::Instant::now",
            "std::time::SystemTime::now",
            "jiff::Timestamp::now",
        ],
        but: &[],
        applies_to: &[
            "actor.rs",
            "actor",
            "schedule.rs",
            "schedule",
            "converge/health.rs",
            "converge/health",
            "converge/plan.rs",
            "converge/plan",
        ],
        except: &["schedule/tests.rs"],
    },
];

/// Calls that change a file system.
const WRITES: &[&str] = &[
    "std::fs::write",
    "std::fs::rename",
    "std::fs::copy",
    "std::fs::remove_file",
    "std::fs::remove_dir",
    "std::fs::remove_dir_all",
    "std::fs::create_dir",
    "std::fs::create_dir_all",
    "std::fs::hard_link",
    "std::fs::set_permissions",
    "std::fs::DirBuilder",
    "std::fs::OpenOptions",
    "std::fs::File::create",
    "std::fs::File::create_new",
    "std::fs::File::options",
    "std::os::unix::fs::symlink",
    "std::os::unix::fs::chown",
    "std::os::unix::fs::lchown",
    "std::os::unix::fs::fchown",
    "rustix::fs::renameat",
    "rustix::fs::renameat_with",
    "rustix::fs::unlinkat",
    "rustix::fs::mkdirat",
    "rustix::fs::linkat",
    "rustix::fs::symlinkat",
    "rustix::fs::fchmod",
    "rustix::fs::chmodat",
    "rustix::fs::fchown",
    "rustix::fs::chownat",
    "nix::unistd::unlink",
    "nix::unistd::mkdir",
    "nix::unistd::chown",
    "tokio::fs",
    "tempfile",
];

/// Removes comments, and empties strings and characters.
fn strip(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::new();
    let mut i = 0;
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    while i < chars.len() {
        let is_word_before = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            ('r', '"' | '#') if !is_word_before => {
                let n_hashes = (i + 1..).take_while(|j| at(*j) == '#').count();
                if at(i + 1 + n_hashes) != '"' {
                    out.push('r');
                    i += 1;
                    continue;
                }
                i += 2 + n_hashes;
                while i < chars.len() && !(at(i) == '"' && (1..=n_hashes).all(|k| at(i + k) == '#')) {
                    i += 1;
                }
                i += 1 + n_hashes;
                out.push_str("\"\"");
            }
            ('"', _) => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
                out.push_str("\"\"");
            }
            ('\'', next) if next == '\\' || at(i + 2) == '\'' => {
                i += if next == '\\' { 3 } else { 2 };
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
                out.push_str("' '");
            }
            (c, _) => {
                out.push(c);
                i += 1;
            }
        }
    }
    out
}

/// Removes modules that exist only in tests.
fn without_tests(source: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let (before, marked) = rest.split_at(at);
        out.push_str(before);
        // The item ends at its first semicolon, or at the brace that closes its first one.
        let mut depth = 0_usize;
        let end = marked.char_indices().find_map(|(i, c)| match c {
            '{' => {
                depth += 1;
                None
            }
            '}' => {
                depth = depth.saturating_sub(1);
                (depth == 0).then_some(i + 1)
            }
            ';' => (depth == 0).then_some(i + 1),
            _ => None,
        });
        rest = end.and_then(|end| marked.get(end..)).unwrap_or("");
    }
    out + rest
}

/// Words, `::` and single punctuation marks.
fn tokens(source: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_alphanumeric() || c == '_' {
            let mut word = c.to_string();
            while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                word.push(c);
            }
            tokens.push(word);
        } else if c == ':' && chars.next_if_eq(&':').is_some() {
            tokens.push("::".to_owned());
        } else if !c.is_whitespace() {
            tokens.push(c.to_string());
        }
    }
    tokens
}

/// Reads one use tree from `tokens` at `i`, adding each leaf with the name that it is known by.
fn use_tree(tokens: &[String], i: &mut usize, prefix: &[String], leaves: &mut Vec<(String, Vec<String>)>) {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(*i) {
        match token.as_str() {
            "::" => *i += 1,
            "{" => {
                *i += 1;
                while tokens.get(*i).is_some_and(|token| token != "}") {
                    use_tree(tokens, i, &path, leaves);
                    if tokens.get(*i).is_some_and(|token| token == ",") {
                        *i += 1;
                    }
                }
                *i += 1;
                return;
            }
            "," | "}" | ";" => break,
            "as" => {
                let name = tokens.get(*i + 1).cloned().unwrap_or_default();
                *i += 2;
                leaves.push((name, path));
                return;
            }
            "self" if path.len() > prefix.len() || !prefix.is_empty() => *i += 1,
            word => {
                path.push(word.to_owned());
                *i += 1;
            }
        }
    }
    leaves.push((path.last().cloned().unwrap_or_default(), path));
}

/// Every path that a module names, made absolute: `crate::…`, or beginning with the name of a crate.
fn named(module: &[String], source: &str) -> BTreeSet<String> {
    let tokens = tokens(&without_tests(&strip(source)));
    let mut uses = Vec::new();
    let mut paths: Vec<Vec<String>> = Vec::new();
    let mut i = 0;
    while let Some(token) = tokens.get(i) {
        if token == "use" {
            i += 1;
            use_tree(&tokens, &mut i, &[], &mut uses);
        } else if token.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            let mut path = vec![token.clone()];
            while tokens.get(i + 1).is_some_and(|token| token == "::") {
                match tokens.get(i + 2) {
                    Some(word) if word.starts_with(|c: char| c.is_alphanumeric() || c == '_') => {
                        path.push(word.clone())
                    }
                    _ => break,
                }
                i += 2;
            }
            paths.push(path);
        }
        i += 1;
    }
    let absolute = |path: &[String]| -> Vec<String> {
        let mut base: Vec<String> = module.to_vec();
        let mut rest = path;
        match path.first().map(String::as_str) {
            Some("crate") => return path.to_vec(),
            Some("self") => rest = &path[1..],
            Some("super") => {
                while let Some(("super", after)) = rest.split_first().map(|(first, after)| (first.as_str(), after)) {
                    base.pop();
                    rest = after;
                }
            }
            _ => return path.to_vec(),
        }
        base.extend(rest.iter().cloned());
        base
    };
    let uses: HashMap<String, Vec<String>> = uses.into_iter().map(|(name, path)| (name, absolute(&path))).collect();
    let inline = paths.iter().map(|path| match path.split_first() {
        Some((first, rest)) if uses.contains_key(first) => [&uses[first][..], rest].concat(),
        _ => absolute(path),
    });
    inline.chain(uses.values().cloned()).map(|path| path.join("::")).collect()
}

fn is_within(path: &str, prefix: &str, separator: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}

fn violations(file: &str, names: &BTreeSet<String>) -> Vec<String> {
    let matches = |places: &[&str]| places.iter().any(|place| is_within(file, place, "/"));
    let broken =
        RULES.iter().filter(|rule| (rule.applies_to.is_empty() || matches(rule.applies_to)) && !matches(rule.except));
    let found = broken.flat_map(|rule| {
        let is_in = |name: &str, paths: &[&str]| paths.iter().any(|path| is_within(name, path, "::"));
        let named = names.iter().filter(move |name| is_in(name, rule.forbidden) && !is_in(name, rule.but));
        named.map(|name| format!("src/{file} names `{name}`: {}", rule.rule))
    });
    found.collect()
}

fn source_files(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The path of the module that a file is.
fn module_of(file: &str) -> Vec<String> {
    let stem = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let parts = stem.split('/').filter(|part| !matches!(*part, "lib" | "main"));
    std::iter::once("crate").chain(parts).map(str::to_owned).collect()
}

#[test]
fn every_module_keeps_to_its_layer() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    assert!(files.len() > 30, "the source was not found");
    let mut found = Vec::new();
    for path in files {
        let file = path.strip_prefix(&src).unwrap().to_str().unwrap();
        let is_test = file.ends_with("tests.rs") || file.contains("/tests/");
        if !is_test {
            found.extend(violations(file, &named(&module_of(file), &fs::read_to_string(&path).unwrap())));
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn unsafe_code_is_behind_the_door_to_the_host() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    for path in files {
        let file = path.strip_prefix(&src).unwrap().to_str().unwrap();
        let has_unsafe = tokens(&strip(&fs::read_to_string(&path).unwrap())).iter().any(|token| token == "unsafe");
        assert!(!has_unsafe || is_within(file, "host", "/"), "src/{file} contains unsafe code");
    }
}

/// Whether a file with this text breaks a rule.
#[track_caller]
fn check(file: &str, source: &str, is_violation: bool) {
    let found = violations(file, &named(&module_of(file), source));
    assert_eq!(!found.is_empty(), is_violation, "{source}: {found:?}");
}

#[test]
fn the_reader_sees_through_the_ways_of_naming_things() {
    check("policy/compile.rs", "use crate::host::Host;", true);
    check("policy/compile.rs", "use crate::{resource::Resource, host::{self, root::Root}};", true);
    check("policy/compile.rs", "use super::super::host;", true);
    check("policy/mod.rs", "fn f() { super::host::exec::run(); }", true);
    check(
        "policy/compile.rs",
        "// crate::host\nconst A: &str = \"crate::host\"; /* crate::host */ const C: char = '\"';",
        false,
    );
    check("policy/compile.rs", "#[cfg(test)]\nmod tests { use crate::host::Host; }\nfn f() {}", false);
    check("policy/compile.rs", "#[cfg(test)]\nmod tests;\nuse crate::host::Host;", true);
    check("policy/compile.rs", "use crate::hostname::x; fn host() {} fn g<'a>(host: &'a str) { host::<u8>(); }", false);
    check("record/mod.rs", "use std::process as p; fn f() { p::Command::new(\"x\"); }", true);
    check("host/packages/apt.rs", "use crate::host::exec::Command; fn f() { Command::new(\"x\"); }", false);
    check("converge/mod.rs", "use std::fs; fn f() { fs::write(\"a\", \"b\"); }", true);
    check("converge/mod.rs", "use std::fs; fn f() { fs::read(\"a\"); }", false);
    check("converge/mod.rs", "use std::fs::File as F; fn f() { F::create(\"a\"); }", true);
    check("watch/mod.rs", "async fn f() { tokio::task::yield_now().await }", true);
    check("watch/units.rs", "use tokio::sync::watch;", false);
    check("courier/deliver.rs", "use crate::spool::Outgoing;", false);
    check("courier/deliver.rs", "use crate::resource::ResourceId;", false);
    check("courier/deliver.rs", "use crate::resource::{ResourceId, Resource};", true);
    check("schedule.rs", "use std::time::Instant; fn f() { Instant::now(); }", true);
}
