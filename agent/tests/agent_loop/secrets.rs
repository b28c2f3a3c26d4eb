//! The key with which a host reads the secrets of its policy.

use crate::policies::Policies;
use crate::support::{Host, tool, write};

#[test]
fn a_key_that_comes_after_its_secrets_is_found_with_the_next_pull() {
    let mut host = Host::new();
    std::fs::create_dir_all(host.at("/etc/rekindle")).unwrap();
    let policies = Policies::of(&mut host);
    let (key, plain) = (host.beside("age.key"), host.beside("token"));
    tool("age-keygen", &["-o", key.to_str().unwrap()]);
    let recipient = tool("age-keygen", &["-y", key.to_str().unwrap()]);
    write(&plain, "hunter2");
    let sealed = policies.directory().join("secrets/token.age");
    std::fs::create_dir_all(sealed.parent().unwrap()).unwrap();
    tool("age", &["-r", recipient.trim(), "-o", sealed.to_str().unwrap(), plain.to_str().unwrap()]);
    write(&policies.directory().join("token.j2"), "{{ secret('token') }}");
    let policy = "[policy]\nname = 'acme'\n[file.'/etc/token']\ntemplate = 'token.j2'\nmode = '0600'\n";
    policies.commit("ada", policy);
    let agent = host.start();
    let refused = |reason: &str| {
        agent.wait(reason, |status| status.refused.as_ref().is_some_and(|refused| refused.reason.contains(reason)));
    };
    refused("age.key`: make one with");
    // Another host's at first, by mistake.
    let place = agent.at("/etc/rekindle/age.key");
    tool("age-keygen", &["-o", place.to_str().unwrap()]);
    policies.announce();
    refused("secrets/token.age");
    std::fs::rename(&key, place).unwrap();
    policies.announce();
    agent.wait("the policy to be taken", |status| status.refused.is_none() && status.health.state == "converged");
    assert_eq!(std::fs::read_to_string(agent.at("/etc/token")).unwrap(), "hunter2");
}
