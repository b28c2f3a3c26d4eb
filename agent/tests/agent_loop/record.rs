//! An agent whose state directory cannot be written to when it starts. Needs root, for the mount.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rekindle::spool::Event;

use crate::support::{Host, Running, tool, write};

const POLICY: &str = "[file.'/etc/gone']\ncontent = \"good\\n\"\n\
    [file.'/etc/mode']\ncontent = \"good\\n\"\nmode = '0644'\n\
    [file.'/etc/content']\ncontent = \"good\\n\"\n";

fn remount(state: &Path, how: &str) {
    tool("mount", &["-o", &format!("remount,bind,{how}"), state.to_str().unwrap()]);
}

fn read(agent: &Running, path: &str) -> String {
    std::fs::read_to_string(agent.at(path)).unwrap_or_default()
}

#[test]
fn without_a_disk_for_its_record_it_repairs_what_it_can_and_takes_the_record_up_again() {
    assert_eq!(rekindle::host::current_ids().0, 0, "only root may mount: run the tests as root");
    let mut host = Host::new();
    let state = host.settings.paths.state.clone();
    host.mount_state(&["--bind"], &state);
    let agent = host.run(POLICY);
    let n_before = agent.history().len();
    let host = agent.stop();
    remount(&state, "ro");
    std::fs::remove_file(host.at("/etc/gone")).unwrap();
    std::fs::set_permissions(host.at("/etc/mode"), std::fs::Permissions::from_mode(0o600)).unwrap();
    write(&host.at("/etc/content"), "somebody's\n");

    let agent = host.start();
    let status = agent.wait("what can be repaired", |status| {
        status.resources.in_sync == 2 && status.resources.failed == 1 && status.verified.is_some()
    });
    let why = status.record_in_memory.expect("it says so");
    assert!(why.contains("state.db`: Read-only file system"), "{why}");
    assert_eq!(read(&agent, "/etc/gone"), "good\n");
    assert_eq!(std::fs::metadata(agent.at("/etc/mode")).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(read(&agent, "/etc/content"), "somebody's\n", "what could not be kept is not replaced");
    let failed = format!("{:?}", status.out_of_sync);
    assert!(failed.contains("cannot keep a backup of what is replaced"), "{failed}");
    assert_eq!(status.n_guarded, 0, "what the guard displaced could be forgotten");
    // While it runs as well.
    std::fs::remove_file(agent.at("/etc/gone")).unwrap();
    agent.wait("another repair", |_| read(&agent, "/etc/gone") == "good\n");
    let (_, shown, _) = agent.host().cli(&["status"]);
    assert!(shown.contains("record     in memory alone: "), "{shown}");
    assert_eq!(agent.history().len(), n_before, "the record on the disk can be read, and is as it was");
    let refused = agent.refused(1, &["pause", "--for", "1h", "--reason", "x"]);
    assert!(refused.contains("state.db`: Read-only file system"), "{refused}");

    remount(&state, "rw");
    // It ends as it should, and systemd starts it again.
    let agent = agent.ended().start();
    let status = agent.wait("everything", |status| status.resources.in_sync == 3 && status.n_guarded == 3);
    assert_eq!(status.record_in_memory, None);
    assert_eq!(read(&agent, "/etc/content"), "good\n");
    let told: Vec<String> =
        agent.history()[n_before..].iter().map(|entry| format!("{} {}", entry.outcome, entry.resource)).collect();
    for (word, path, n) in
        [("changed", "gone", 2), ("changed", "mode", 1), ("failed", "content", 1), ("changed", "content", 1)]
    {
        let wanted = format!("{word} file[/etc/{path}]");
        assert!(told.iter().filter(|told| **told == wanted).count() >= n, "no {n} times {wanted} in {told:?}");
    }
    let alerts = agent.alerts();
    let started = alerts.iter().rfind(|alert| alert.event == Event::AgentStarted).unwrap();
    assert!(started.summary.contains(" its record was in memory alone: "), "{}", started.summary);
    let is_told =
        |path: &str| alerts.iter().any(|alert| alert.resources.iter().any(|told| &*told.resource.name == path));
    assert!(is_told("/etc/gone") && is_told("/etc/mode"), "{alerts:?}");
    let host = agent.stop();
    let agent = host.start();
    agent.wait("a second start", |status| status.resources.in_sync == 3);
    let started = agent.alerts().into_iter().rfind(|alert| alert.event == Event::AgentStarted).unwrap();
    assert!(!started.summary.contains("in memory"), "it is told once: {}", started.summary);
}
