//! Laws that hold for every policy, whatever somebody writes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rekindle::policy::trust::AllowedSigners;
use rekindle::resource::ResourceId;

use crate::support::{compile, host, policy};

/// Pieces of policies, right and wrong, that random text would never hit upon.
fn piece() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "file",
        "directory",
        "symlink",
        "user",
        "group",
        "package",
        "service",
        "policy",
        "vars",
        "include",
        "sysctl",
        "repository",
        "",
    ]);
    let name = prop::sample::select(vec![
        "'/etc/a'",
        "'/etc/a/b'",
        "'/etc'",
        "'/'",
        "'a'",
        "app",
        "root",
        "nginx",
        "'nginx.service'",
        "\"\\u0000\"",
        "'é/ü'",
        "''",
    ]);
    let key = prop::sample::select(vec![
        "state",
        "content",
        "source",
        "template",
        "owner",
        "group",
        "groups",
        "mode",
        "uid",
        "gid",
        "requires",
        "restarts",
        "when",
        "target",
        "password",
        "authorized_keys",
        "authorized_keys_exact",
        "system",
        "version",
        "enabled",
        "name",
        "include",
        "on_drift",
        "conten",
    ]);
    let value = prop::sample::select(vec![
        "'absent'",
        "'running'",
        "'masked'",
        "''",
        "'x'",
        "0",
        "-1",
        "2001",
        "0xffffffff",
        "true",
        "false",
        "1.5",
        "inf",
        "1979-05-27",
        "[]",
        "['a']",
        "['file[/etc/a]']",
        "['user[app]', 'package[nginx]']",
        "{}",
        "{ locked = true }",
        "{ hash = 'é' }",
        "'true'",
        "'facts.os'",
        "'{{'",
        "'templates/t.j2'",
        "'policy.toml'",
        "'../x'",
        "'root'",
        "\"é\\n\"",
        "[{ path = 'policy.toml' }, 'modules/m.toml']",
    ]);
    prop_oneof![
        (word.clone(), name.clone()).prop_map(|(word, name)| format!("[{word}.{name}]\n")),
        (word.clone(), name, key.clone(), value.clone()).prop_map(|(w, n, k, v)| format!("{w}.{n}.{k} = {v}\n")),
        (key, value).prop_map(|(key, value)| format!("{key} = {value}\n")),
        word.prop_map(|word| format!("[{word}]\n")),
        "[^\\x00]{0,8}",
        Just("[[\n".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn compile_never_panics_and_never_fails_without_an_error(
        root in prop::collection::vec(piece(), 0..24),
        module in prop::collection::vec(piece(), 0..8),
        template in "(\\{\\{|\\}\\}|\\{%|%\\}| |facts|vars|if|for|in|a|\\||é|include|'templates/t.j2'){0,12}",
    ) {
        let (root, module) = (root.concat(), module.concat());
        let policy = policy(&[("policy.toml", &root), ("modules/m.toml", &module), ("templates/t.j2", &template)]);
        for host in [Some(host()), None] {
            match compile(&policy, host.as_ref()) {
                Ok(compiled) => check_order(&compiled.state),
                Err(diagnostics) => {
                    prop_assert!(!diagnostics.is_empty());
                    for text in [diagnostics.render(true), diagnostics.to_string(), diagnostics.to_json().to_string()] {
                        prop_assert!(!text.is_empty());
                    }
                }
            }
        }
    }

    #[test]
    fn text_that_is_no_policy_at_all(text in "\\PC{0,64}") {
        prop_assert!(compile(&policy(&[("policy.toml", &text)]), None).map_or_else(|d| !d.is_empty(), |_| true));
    }

    #[test]
    fn requirements_come_first_or_there_is_a_cycle(edges in prop::collection::vec((0_usize..12, 0_usize..12), 0..20)) {
        let mut requires: HashMap<usize, Vec<String>> = HashMap::new();
        for (from, to) in &edges {
            requires.entry(*from).or_default().push(format!("'file[/f{to}]'"));
        }
        let toml: String = (0..12)
            .map(|i| format!("[file.'/f{i}']\ncontent = ''\nrequires = [{}]\n", requires.get(&i).cloned().unwrap_or_default().join(", ")))
            .collect();
        match compile(&policy(&[("policy.toml", &toml)]), None) {
            Ok(compiled) => {
                prop_assert!(!has_cycle(&edges), "a cycle was not seen in {edges:?}");
                prop_assert_eq!(compiled.state.resources().len(), 12);
                check_order(&compiled.state);
            }
            Err(diagnostics) => {
                prop_assert!(has_cycle(&edges), "{diagnostics} in {edges:?}");
                prop_assert!(diagnostics.iter().all(|d| d.code() == "cycle"), "{diagnostics}");
            }
        }
    }

    #[test]
    fn allowed_signers_never_panic(text in "([a-z,=\"* #\n]|ssh-ed25519 |namespaces=|valid-after=|20260101Z|AAAA){0,24}") {
        prop_assert!(AllowedSigners::parse(&text).map_or_else(|e| !e.to_string().is_empty(), |_| true));
    }
}

/// Every requirement stands before what requires it, and is there.
fn check_order(state: &rekindle::policy::DesiredState) {
    let position: HashMap<&ResourceId, usize> = state.resources().iter().enumerate().map(|(i, r)| (&r.id, i)).collect();
    for (i, resource) in state.resources().iter().enumerate() {
        for required in &resource.requires {
            assert!(position.get(required).is_some_and(|at| *at < i), "{required} comes after {}", resource.id);
        }
    }
}

/// By taking away what requires nothing that is left, until nothing can be taken.
fn has_cycle(edges: &[(usize, usize)]) -> bool {
    let mut left: Vec<(usize, usize)> = edges.to_vec();
    loop {
        let n_before = left.len();
        let open: Vec<usize> = left.iter().map(|(from, _)| *from).collect();
        left.retain(|(_, to)| open.contains(to));
        if left.len() == n_before {
            return !left.is_empty();
        }
    }
}

/// Quadratic work over so many resources would take minutes even where a slow machine takes seconds.
#[test]
fn many_resources_compile_in_linear_time() {
    let n = 5_000;
    let mut toml = String::from("[directory.'/srv/a']\nowner = 'app'\n[user.app]\n");
    for i in 0..n {
        let requires = if i == 0 { String::new() } else { format!("requires = ['file[/srv/a/{}]']\n", i - 1) };
        toml.push_str(&format!(
            "[file.'/srv/a/{i}']\ncontent = 'x'\nowner = 'app'\nwhen = \"facts.os == 'debian'\"\n{requires}restarts = ['app']\n"
        ));
    }
    toml.push_str("[service.app]\nstate = 'running'\n");
    let policy = policy(&[("policy.toml", &toml)]);
    let start = Instant::now();
    let compiled = compile(&policy, Some(&host())).expect("it is valid");
    let took = start.elapsed();
    assert_eq!(compiled.state.resources().len(), n + 3);
    check_order(&compiled.state);
    assert!(took < Duration::from_secs(30), "{took:?}");

    // The same with a mistake in each: as many diagnostics, each drawn.
    let broken = toml.replace("content = 'x'", "conten = 'x'");
    let policy = crate::support::policy(&[("policy.toml", &broken)]);
    let start = Instant::now();
    let diagnostics = compile(&policy, Some(&host())).expect_err("it is not valid");
    assert_eq!(diagnostics.len(), n);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}
