//! The patience with a revision that fails here ends by itself.

use std::time::Duration;

use rekindle::spool::{Event, OutgoingBody, ReimageCall};

use crate::policies::Policies;
use crate::support::{Host, write};

#[test]
fn a_revision_that_fails_here_is_given_up_for_the_last_good_one() {
    let mut host = Host::new().with_endpoint();
    host.settings.health.give_up_attempts = 3;
    host.settings.health.give_up_after = Duration::from_millis(1);
    host.settings.health.retry_first = Duration::from_millis(20);
    host.settings.health.retry_max = Duration::from_millis(40);
    std::fs::create_dir_all(host.at("/etc")).unwrap();
    let policies = Policies::of(&mut host);
    // Nobody declares it, and nothing can be beneath it.
    write(&host.at("/etc/taken"), "a file\n");
    let policy = |content: &str, more: &str| {
        format!("[policy]\nname = \"acme\"\n[file.\"/etc/a\"]\ncontent = \"{content}\\n\"\n{more}")
    };
    let good = policies.commit("ada", &policy("one", ""));
    let agent = host.start();
    let is_in_force = |status: &rekindle::agent::status::Status, commit: &str, health: &str| {
        status.policy.as_ref().is_some_and(|policy| policy.revision == commit) && status.health.state == health
    };
    agent.wait("the first revision to converge", |status| is_in_force(status, &good, "converged"));
    let bad = policies.commit("bob", &policy("two", "[file.\"/etc/taken/below\"]\ncontent = \"x\"\n"));
    agent.wait("the last good revision to be back", |status| is_in_force(status, &good, "on_last_good"));
    agent.wait_for_file(&agent.at("/etc/a"), |text| text == "one\n");
    // What the failed revision put in place was there meanwhile, and none of its failures is lost.
    let n_of =
        |is: &dyn Fn(&rekindle::record::HistoryEntry) -> bool| agent.history().iter().filter(|entry| is(entry)).count();
    agent.wait("one, two, and one again", |_| n_of(&|entry| entry.resource.to_string() == "file[/etc/a]") == 3);
    assert!(n_of(&|entry| entry.resource.to_string() == "file[/etc/taken/below]" && entry.outcome == "failed") > 0);
    let is_told =
        |alert: &rekindle::spool::Alert| alert.event == Event::PolicyRolledBack && alert.summary.contains(&bad[..12]);
    agent.wait("the alert", |_| agent.alerts().iter().any(is_told));
    let is_reimage = |body: &OutgoingBody| matches!(body, OutgoingBody::Reimage(ReimageCall::Request { .. }));
    assert!(!agent.outbox().iter().any(is_reimage), "nobody is asked for a reimage");
    // A third revision is tried as any other.
    let better = policies.commit("bob", &policy("three", ""));
    agent.wait("the next revision to converge", |status| is_in_force(status, &better, "converged"));
    assert_eq!(std::fs::read_to_string(agent.at("/etc/a")).unwrap(), "three\n");
}
