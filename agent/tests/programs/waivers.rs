//! A waiver's end, in an agent that runs.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rekindle::agent::revisions::Revisions;
use rekindle::policy::candidate::from_directory;
use rekindle::policy::trust::{Trust, store, verify};
use rekindle::record::Record;

use crate::support::World;

/// Longer than any busy machine needs; reached only by a test that fails.
const DEADLINE: Duration = Duration::from_secs(60);

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_waiver_ends_while_the_agent_runs() {
    let Some(world) = World::new() else { return };
    let until = Timestamp::now() + SignedDuration::from_secs(4);
    world.policy(&format!(
        "[policy]\nname = 'test'\n[check.relay]\nrun = ['/bin/false']\nwaiver = {{ until = {until:.0}, reason = 'it comes', owner = 'ops' }}\n"
    ));
    let verified = verify(from_directory(&world.path("policy")).unwrap(), &Trust::Operator, Timestamp::now()).unwrap();
    for name in ["state/policy", "state/outbox", "state/inbox", "state/courier"] {
        std::fs::create_dir_all(world.path(name)).unwrap();
    }
    store(&verified, &world.path("state/policy")).unwrap();
    let revisions = Revisions { in_force: Some(verified.revision().clone()), ..Revisions::default() };
    Record::open(&world.path("state")).unwrap().record.save("revisions", &revisions).unwrap();
    let mut agent = world.command(&["agent"]);
    let agent = Agent(agent.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let wait = |what: &str| {
        let started = Instant::now();
        loop {
            let status = world.run(&["status"]).text;
            if status.contains(what) {
                return status;
            }
            assert!(started.elapsed() < DEADLINE, "waited in vain for `{what}`: {status}");
            // The pace of whoever asks; nothing depends on it.
            std::thread::park_timeout(Duration::from_millis(50));
        }
    };
    wait("resources  0 in sync of 1, 1 waived");
    // Nothing changes, nobody asks, and the next full scan is half an hour away.
    let status = wait("resources  0 in sync of 1, 1 drifted");
    assert!(Timestamp::now() >= until - SignedDuration::from_secs(1), "{status}");
    assert!(status.contains("out        check[relay] drifted, left: "), "{status}");
    let history = world.run(&["history"]).text;
    assert!(history.contains("the waiver by ops ended"), "{history}");
    drop(agent);
}
