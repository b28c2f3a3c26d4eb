//! Templates that ask for more than there is: the child that tries them out ends, and whoever compiles goes on.

use std::path::Path;
use std::time::Duration;

use rekindle::agent::trial::compile_with;
use rekindle::policy::compile::Inputs;
use rekindle::policy::secret::Secrets;

use crate::support::{facts, policy};

/// Long enough for all but an attack that takes time instead of memory.
const DEADLINE: Duration = Duration::from_secs(5);

/// Compiles a policy whose one file is this template, and returns its content or the refusal.
fn render(template: &str, others: &[(&str, &str)]) -> Result<String, String> {
    let root = "[policy]\nname = 'x'\n[file.\"/etc/x\"]\ntemplate = \"templates/x.j2\"\n";
    let files = [&[("policy.toml", root), ("templates/x.j2", template)], others].concat();
    compile(&files, DEADLINE)
}

fn compile(files: &[(&str, &str)], deadline: Duration) -> Result<String, String> {
    let verified = policy(files);
    let inputs = Inputs { facts: &facts(), roles: &[], host: None, secrets: &Secrets::Unread };
    match compile_with(Path::new(env!("CARGO_BIN_EXE_rekindle")), deadline, &verified, &inputs) {
        Ok(compiled) => Ok(compiled.state.name().to_owned()),
        Err(diagnostics) => Err(diagnostics.to_string()),
    }
}

#[test]
fn threat_templates_that_ask_for_all_memory() {
    let double: String = std::iter::repeat_n("{% set a = a ~ a %}\n", 40).collect();
    let add: String = std::iter::repeat_n("{% set a = a + a %}\n", 40).collect();
    let list: String = std::iter::repeat_n("{% set l = l + l %}\n", 40).collect();
    let replace = format!("{{{{ 'x'{} }}}}", "|replace('x', 'xxxxxxxxxx')".repeat(12));
    let attacks = [
        format!("{{% set a = 'aaaaaaaaaaaaaaaa' %}}\n{double}"),
        format!("{{% set a = 'aaaaaaaaaaaaaaaa' %}}\n{double}{{{{ a|length }}}}"),
        format!("{{% set a = 'aaaaaaaaaaaaaaaa' %}}\n{add}"),
        format!("{{% set l = [1, 2, 3] %}}\n{list}{{{{ l|list|length }}}}"),
        format!("{{% set l = ['aaaaaaaa'] %}}\n{list}{{{{ l|join|length }}}}"),
        replace,
        format!("{{% set a = 'aaaaaaaaaaaaaaaa' %}}{}", "{% set a %}{{ a }}{{ a }}{% endset %}".repeat(40)),
        "{% macro f(s, n) %}{% if n > 0 %}{{ f(s ~ s, n - 1) }}{% endif %}{% endmacro %}{{ f('aaaaaaaa', 40) }}".into(),
        "{% set n = namespace(a='aaaaaaaa') %}{% for i in range(40) %}{% set n.a = n.a ~ n.a %}{% endfor %}".into(),
        "{{ range(1000000000)|list|length }}".into(),
        "{{ 'aaaaaaaa' * 1000000000 }}".into(),
        "{{ ['a'] * 1000000000 }}".into(),
        "{{ '%1000000000d'|format(1) }}".into(),
        "{{ range(99999)|map('string')|join('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'*1000)|length }}".into(),
        "{{ ('a\n' * 100000)|indent(100000)|length }}".into(),
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}".into(),
    ];
    for attack in attacks {
        let error = render(&attack, &[]).expect_err(&attack);
        assert!(error.contains("template `templates/x.j2`"), "{error}\n{attack}");
        assert!(error.contains("hint: "), "{error}\n{attack}");
    }
    let template = format!("{{% set a = 'aaaaaaaaaaaaaaaa' %}}\n{double}");
    let root = "[policy]\nname = 'x'\n[file.\"/etc/x\"]\ntemplate = \"templates/x.j2\"\n";
    let files = [("policy.toml", root), ("templates/x.j2", &template)];
    let error = compile(&files, Duration::from_secs(60)).unwrap_err();
    assert_eq!(
        error,
        "policy.toml:4:12: error[limit]: the template `templates/x.j2` cannot be evaluated: it needs more than 512 MiB of \
         memory; hint: make the template do less, or the policy smaller"
    );
}

#[test]
fn threat_conditions_that_ask_for_all_memory() {
    let when = format!("'x'{} == 'y'", "|replace('x', 'xxxxxxxxxx')".repeat(12));
    let error = compile(
        &[("policy.toml", &format!("[policy]\nname = 'x'\n[file.\"/etc/x\"]\ncontent = ''\nwhen = \"{when}\"\n"))],
        DEADLINE,
    )
    .unwrap_err();
    assert!(error.starts_with("policy.toml:5:8: error[limit]: the condition cannot be evaluated: it "), "{error}");
    // An include's condition, too, and under a key that is spelt with an escape.
    let root = format!("[policy]\nname = 'x'\ninclude = [{{ path = \"a.toml\", \"wh\\u0065n\" = \"{when}\" }}]\n");
    let error = compile(&[("policy.toml", &root), ("a.toml", "")], DEADLINE).unwrap_err();
    assert!(error.contains("the condition cannot be evaluated"), "{error}");
}

#[test]
fn what_a_template_may_include() {
    let check = |template: &str, others: &[(&str, &str)], expected: Result<(), &str>| match (
        render(template, others),
        expected,
    ) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
        (actual, expected) => panic!("{actual:?}, expected {expected:?} of {template}"),
    };
    let part = [
        ("templates/part.j2", "{{ facts.os }} {{ roles|length }} {{ host.name }}"),
        ("m.j2", "{% macro m() %}1{% endmacro %}"),
    ];
    check("{% include 'templates/part.j2' %}", &part, Ok(()));
    check("{% import 'm.j2' as m %}{{ m.m() }}", &part, Ok(()));
    check("{% from 'm.j2' import m %}{{ m() }}", &part, Ok(()));
    check("{% include 'part.j2' %}", &part, Err("'part.j2'"));
    for escape in ["../x.j2", "/etc/passwd", "templates/../templates/part.j2", "./templates/part.j2"] {
        check(&format!("{{% include '{escape}' %}}"), &part, Err(escape));
        check(&format!("{{% import '{escape}' as x %}}"), &part, Err(escape));
        check(&format!("{{% extends '{escape}' %}}"), &part, Err(escape));
    }
    let cycle = [("a.j2", "{% include 'b.j2' %}"), ("b.j2", "\n{% include 'a.j2' %}")];
    check("{% include 'a.j2' %}", &cycle, Err("nests deeper than 50 levels"));
    check("{% include 'templates/x.j2' %}", &[], Err("nests deeper than 50 levels"));
    check("{% import 'templates/x.j2' as x %}", &[], Err("nests deeper than 50 levels"));
    check("{% extends 'templates/x.j2' %}", &[], Err("template"));
}

/// The place inside the innermost template, and each include on the way there.
#[test]
fn an_error_shows_the_chain_of_includes() {
    let others = [("a.j2", "one\n{% include 'b.j2' %}\n"), ("b.j2", "two\n\n  {{ vars.prot }}\n")];
    let root = "[policy]\nname = 'x'\n[vars]\nport = 1\n[file.\"/etc/x\"]\ntemplate = \"x.j2\"\n";
    let files = [&[("policy.toml", root), ("x.j2", "{% include 'a.j2' %}\n")], &others[..]].concat();
    let verified = policy(&files);
    let inputs = Inputs { facts: &facts(), roles: &[], host: None, secrets: &Secrets::Unread };
    let exe = Path::new(env!("CARGO_BIN_EXE_rekindle"));
    let diagnostics = compile_with(exe, DEADLINE, &verified, &inputs).unwrap_err();
    insta::assert_snapshot!(diagnostics.render(false));
}
