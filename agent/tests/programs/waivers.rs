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
const DEADLINE: Duration = Duration::from_secs(120);

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_waiver_ends_while_the_agent_runs() {
    // How long an agent takes until it says that something is waived is up to the machine: one that took longer than the waiver
    // counted is asked again with a longer one.
    for seconds in [4, 16, 64] {
        let Some(world) = World::new() else { return };
        let until = Timestamp::now() + SignedDuration::from_secs(seconds);
        let agent = start(&world, until);
        let status = wait(&world, &["resources  0 in sync of 1, 1 waived", "resources  0 in sync of 1, 1 drifted"]);
        if !status.contains("1 waived") {
            assert!(Timestamp::now() >= until - SignedDuration::from_secs(1), "{status}");
            continue;
        }
        // Nothing changes, nobody asks, and the next full scan is half an hour away.
        let status = wait(&world, &["resources  0 in sync of 1, 1 drifted"]);
        assert!(Timestamp::now() >= until - SignedDuration::from_secs(1), "{status}");
        assert!(status.contains("out        check[relay] drifted, left: "), "{status}");
        let history = world.run(&["history"]).text;
        assert!(history.contains("the waiver by ops ended"), "{history}");
        drop(agent);
        return;
    }
    panic!("no agent came up while its waiver counted");
}

/// An agent whose policy has a check that fails, and is waived until then.
fn start(world: &World, until: Timestamp) -> Agent {
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
    Agent(agent.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// The first status that says one of these.
fn wait(world: &World, wanted: &[&str]) -> String {
    let started = Instant::now();
    loop {
        let status = world.run(&["status"]).text;
        if wanted.iter().any(|wanted| status.contains(wanted)) {
            return status;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain for {wanted:?}: {status}");
        // The pace of whoever asks; nothing depends on it.
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
