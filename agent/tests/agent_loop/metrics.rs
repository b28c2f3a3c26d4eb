//! What collectors read.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use crate::support::{Host, Running, write};

fn scrape(agent: &Running) -> String {
    let mut stream = UnixStream::connect(agent.settings().paths.metrics_socket()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_socket_and_the_files_say_what_happened() {
    let mut host = Host::new();
    let collected = host.at("/collector");
    std::fs::create_dir_all(&collected).unwrap();
    host.settings.metrics.textfile = Some(collected.join("rekindle.prom"));
    host.settings.metrics.port = Some(1024);
    let agent = host.guard(&["/etc/motd"]);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&agent.settings().paths.metrics_socket()), 0o600);
    for (file, expected) in [(collected.join("rekindle.prom"), 0o644), (agent.settings().paths.metrics_file(), 0o640)] {
        let text = agent.wait_for_file(&file, |text| !text.is_empty());
        assert!(text.starts_with("# HELP rekindle_info "), "{text}");
        assert_eq!(mode(&file), expected);
    }
    write(&agent.at("/etc/motd"), "evil\n");
    let status = agent.wait("the drift to be repaired", |status| status.n_repairs > 0);
    let text = scrape(&agent);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    let value = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let by = |who: &str| value(&format!("rekindle_drifts_total{{answer=\"repaired_by_{who}\"}}"));
    assert_eq!(by("guard") + by("run"), status.n_repairs);
    assert_eq!(value("rekindle_resources{verdict=\"in_sync\"}"), 1);
    assert_eq!(value("rekindle_health{state=\"converged\"}"), 1);
    assert!(value("rekindle_runs_total{scope=\"everything\"}") >= 1);
    assert!(value("rekindle_watch_events_total") >= 1);
}
