//! `rekindle facts`, and a policy that is checked for a host that is not there.

use serde_json::Value;

use crate::support::World;

const POLICY: &str = "[file.'/etc/x']\ncontent = 'x'\nowner = 'nobody-here'\nrequires = ['package[x]']\nwhen = \"facts.os == 'suse' and 'web' in roles\"\n[package]\nx = {}\n";

#[test]
fn what_a_host_says_of_itself_is_what_a_policy_is_checked_with() {
    let Some(world) = World::new() else { return };
    let said = world.run(&["facts", "--json"]);
    assert_eq!(said.code, 0, "{said:?}");
    let mut document: Value = serde_json::from_str(&said.text).unwrap();
    assert_eq!(document["version"], 1);
    assert!(document["facts"]["cpus"].as_u64() > Some(0), "{document}");
    let table = world.run(&["facts"]);
    let os = document["facts"]["os"].as_str().unwrap().to_owned();
    let lines: Vec<Vec<&str>> = table.text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(lines.contains(&vec!["os", &os]) && lines.contains(&vec!["roles", "none"]), "{table:?}");

    // The same, of another host and with its roles.
    world.policy(POLICY);
    let policy = world.path("policy").to_str().unwrap().to_owned();
    let facts = world.path("host.json").to_str().unwrap().to_owned();
    let check = |more: &[&str]| world.run(&[&["check", &policy, "--facts", &facts, "--json"], more].concat());
    let resources =
        |more: &[&str]| -> Value { serde_json::from_str::<Value>(&check(more).text).unwrap()["resources"].clone() };
    document["facts"]["os"] = "suse".into();
    document["roles"] = serde_json::json!(["web"]);
    world.write("host.json", &document.to_string());
    assert_eq!(resources(&[]), 2);
    assert_eq!(resources(&["--roles", "db"]), 1, "what is asked for goes first");
    assert_eq!(resources(&["--roles", "db,web"]), 2);

    world.write("host.json", "{ \"oss\": \"suse\" }");
    let refused = check(&[]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.text.contains("unknown field `oss`") && refused.text.contains("hint: `rekindle facts --json`"),
        "{refused:?}"
    );
    let refused = world.run(&["check", &policy, "--roles", "a b"]);
    assert!(refused.code == 1 && refused.text.contains("`a b` is no role"), "{refused:?}");
}
