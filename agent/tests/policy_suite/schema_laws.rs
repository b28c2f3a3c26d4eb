//! Laws of the compiler over policies that the language's own table makes: every kind, every attribute, values of the right shape and of
//! wrong ones.

use std::collections::HashSet;

use proptest::prelude::*;
use proptest::strategy::Union;
use rekindle::policy::DesiredState;
use rekindle::policy::schema::json_schema;
use serde_json::Value;

use crate::support::{compile, host, policy};

/// Names and texts that mean something somewhere, so that references meet what they name.
const WORDS: &[&str] = &[
    "/etc/a",
    "/etc/a/b",
    "/etc",
    "/srv",
    "/",
    "/etc/ssh/sshd_config",
    "/usr/bin/true",
    "a",
    "b",
    "app",
    "root",
    "nginx",
    "ssh",
    "absent",
    "present",
    "running",
    "0644",
    "2755",
    "file[/etc/a]",
    "directory[/srv]",
    "user[app]",
    "group[app]",
    "package[nginx]",
    "service[nginx]",
    "command[a]",
    "check[a]",
    "templates/t.j2",
    "policy.toml",
    "true",
    "facts.os == 'debian'",
    "60s",
    "22",
    "net.ipv4.ip_forward",
    "usb_storage",
    "tmpfs",
    "nodev",
    "*",
    "/etc/*",
    "../x",
    "",
    "é",
];

fn word() -> BoxedStrategy<String> {
    prop::sample::select(WORDS).prop_map(|word| toml::Value::from(word).to_string()).boxed()
}

/// Any value, whatever is asked for.
fn wrong() -> BoxedStrategy<String> {
    const ODD: &[&str] = &[
        "0",
        "-1",
        "2001",
        "4294967295",
        "9223372036854775807",
        "1.5",
        "true",
        "1979-05-27",
        "07:32:00",
        "[]",
        "{}",
        "[1, 'a']",
    ];
    prop_oneof![word(), prop::sample::select(ODD).prop_map(str::to_owned)].boxed()
}

/// A value of the shape that a part of the schema describes; now and then of another.
fn value(schema: &Value) -> BoxedStrategy<String> {
    let right: BoxedStrategy<String> = if let Some(any) = schema["anyOf"].as_array() {
        Union::new(any.iter().map(value)).boxed()
    } else if let Some(words) = schema["enum"].as_array() {
        let words: Vec<String> = words.iter().filter_map(Value::as_str).map(|word| format!("'{word}'")).collect();
        prop::sample::select(words).boxed()
    } else {
        match schema["type"].as_str() {
            Some("boolean") => any::<bool>().prop_map(|answer| answer.to_string()).boxed(),
            Some("integer") => prop::sample::select(vec!["0", "1", "22", "999", "1000", "2001", "65534"])
                .prop_map(str::to_owned)
                .boxed(),
            Some("array") => prop::collection::vec(value(&schema["items"]), 0..3)
                .prop_map(|items| format!("[{}]", items.join(", ")))
                .boxed(),
            Some("object") => table(schema).prop_map(|keys| format!("{{ {} }}", keys.join(", "))).boxed(),
            Some(_) | None => word(),
        }
    };
    prop_oneof![12 => right, 1 => wrong()].boxed()
}

/// Some keys of a table, each with a value: those that it has to have more often than not.
fn table(schema: &Value) -> BoxedStrategy<Vec<String>> {
    let known = schema["properties"].as_object();
    let keys: Vec<BoxedStrategy<Option<String>>> = known
        .into_iter()
        .flatten()
        .map(|(name, schema)| {
            let (name, value) = (name.clone(), value(schema));
            prop::option::weighted(0.25, value.prop_map(move |value| format!("{name} = {value}"))).boxed()
        })
        .collect();
    let free: BoxedStrategy<Vec<String>> = match known {
        Some(_) => Just(Vec::new()).boxed(),
        None => {
            prop::collection::vec((word(), wrong()).prop_map(|(key, value)| format!("{key} = {value}")), 0..3).boxed()
        }
    };
    (keys, free).prop_map(|(keys, free)| keys.into_iter().flatten().chain(free).collect()).boxed()
}

/// One resource of some kind, in a table of its own.
fn resource() -> BoxedStrategy<String> {
    let schema = json_schema();
    let kinds = schema["properties"].as_object().cloned().unwrap_or_default();
    let resources = kinds.into_iter().filter(|(name, _)| !matches!(name.as_str(), "policy" | "include" | "vars"));
    let of_kind = resources.map(|(kind, schema)| {
        let attributes = table(&schema["additionalProperties"]);
        (word(), attributes)
            .prop_map(move |(name, attributes)| format!("[{kind}.{name}]\n{}\n", attributes.join("\n")))
            .boxed()
    });
    Union::new(of_kind).boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_language_allows_is_compiled_or_refused(
        resources in prop::collection::vec(resource(), 1..8),
    ) {
        let toml: String = resources.concat();
        let verified = policy(&[("policy.toml", &toml), ("templates/t.j2", "{{ facts.os }}")]);
        for host in [Some(host()), None] {
            // The same inputs give the same state, or the same refusals, in the same order.
            match (compile(&verified, host.as_ref()), compile(&verified, host.as_ref())) {
                (Ok(compiled), Ok(again)) => {
                    is_ordered(&compiled.state)?;
                    prop_assert_eq!(compiled.state.resources(), again.state.resources());
                }
                (Err(refused), Err(again)) => {
                    prop_assert!(!refused.is_empty());
                    prop_assert_eq!(refused.to_json(), again.to_json());
                    prop_assert!(!refused.render(true).is_empty() && !refused.to_string().is_empty());
                }
                (one, other) => prop_assert!(false, "{one:?}, then {other:?}"),
            }
        }
    }
}

/// Every resource once, after everything that it requires.
fn is_ordered(state: &DesiredState) -> Result<(), TestCaseError> {
    let mut before = HashSet::new();
    for resource in state.resources() {
        for required in &resource.requires {
            prop_assert!(before.contains(required), "{required} is not before {}", resource.id);
        }
        prop_assert!(before.insert(&resource.id), "{} is there twice", resource.id);
    }
    Ok(())
}
