//! What a collector reads.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::numbers::{Numbers, add};
use super::text::{Facts, render};
use super::*;
use crate::agent::status::{Counts, LastRun, PolicyStatus, Status};
use crate::config::Settings;
use crate::converge::health;
use crate::guard::Readiness;
use crate::watch;

fn status() -> Status {
    let second = |second| Timestamp::from_second(second).unwrap();
    Status {
        agent_version: "1.2.3".into(),
        started: Some(second(1_800_000_000)),
        policy: Some(PolicyStatus {
            name: "a \"quoted\"\nname\\".into(),
            revision: "r1".into(),
            since: Some(second(1_800_000_001)),
            signer: None,
            last_good: None,
        }),
        resources: Counts { total: 12, in_sync: 9, drifted: 2, failed: 1, ..Counts::default() },
        last_run: Some(LastRun {
            started: second(1_800_000_002),
            duration_us: 2_500_010,
            full: true,
            changed: 0,
            failed: 1,
        }),
        verified: Some(second(1_800_000_001)),
        outbox: 3,
        outbox_oldest: crate::spool::queued_at("1800000003250-0123456789abcdef"),
        ..Status::first(&Settings::default())
    }
}

fn rendered() -> String {
    let numbers = Numbers::default();
    numbers.by_guard.add(43);
    numbers.by_guard.add(322);
    numbers.by_run.add(12_000_000);
    add(&numbers.n_left, 4);
    add(&numbers.n_full_runs, 2);
    render(&Facts {
        status: &status(),
        numbers: &numbers,
        watcher: watch::Stats { n_watches: 7, n_events: 99, n_overflows: 1 },
        coverage: &[("watched", "fanotify", 10), ("polled", "none", 1), ("blind", "none", 0)],
        n_failed_tests: 2,
        guard: Readiness { n_guarded: 8, n_copies: 16 },
    })
}

/// Samples by name and labels. Panics on what Prometheus would refuse.
fn parsed(text: &str) -> BTreeMap<String, f64> {
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(helped.insert(rest.split(' ').next().unwrap()), "two families: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(matches!(kind, "gauge" | "counter" | "histogram") && helped.contains(name), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            kinds.insert(name, kind);
        } else {
            let (name_and_labels, value) = line.rsplit_once(' ').unwrap();
            let name = name_and_labels.split('{').next().unwrap();
            let family =
                ["_bucket", "_sum", "_count"].iter().fold(name, |name, end| name.strip_suffix(end).unwrap_or(name));
            assert!(kinds.contains_key(name) || kinds.get(family) == Some(&"histogram"), "no family: {line}");
            let before = samples.insert(name_and_labels.to_owned(), value.parse().unwrap());
            assert_eq!(before, None, "twice: {line}");
        }
    }
    samples
}

#[test]
fn a_text_says_what_status_says_in_the_format_of_prometheus() {
    let text = rendered();
    assert!(text.ends_with('\n'));
    let samples = parsed(&text);
    let check = |name: &str, expected: f64| assert_eq!(samples.get(name), Some(&expected), "{name} in\n{text}");
    check(r#"rekindle_info{version="1.2.3",mode="enforce",policy="a \"quoted\"\nname\\",revision="r1"}"#, 1.0);
    check(r#"rekindle_resources{verdict="in_sync"}"#, 9.0);
    check(r#"rekindle_resources{verdict="drifted"}"#, 2.0);
    check(r#"rekindle_resources{verdict="failed"}"#, 1.0);
    check(r#"rekindle_health{state="unknown"}"#, 1.0);
    check(r#"rekindle_health{state="requested"}"#, 0.0);
    check("rekindle_policy_timestamp_seconds", 1_800_000_001.0);
    check("rekindle_last_run_timestamp_seconds", 1_800_000_002.0);
    check("rekindle_last_run_duration_seconds", 2.50001);
    check("rekindle_verified_timestamp_seconds", 1_800_000_001.0);
    check("rekindle_outbox_messages", 3.0);
    check("rekindle_outbox_oldest_timestamp_seconds", 1_800_000_003.25);
    check(r#"rekindle_drifts_total{answer="repaired_by_guard"}"#, 2.0);
    check(r#"rekindle_drifts_total{answer="repaired_by_run"}"#, 1.0);
    check(r#"rekindle_drifts_total{answer="left"}"#, 4.0);
    check(r#"rekindle_runs_total{scope="everything"}"#, 2.0);
    check(r#"rekindle_watches{coverage="polled",source="none"}"#, 1.0);
    check("rekindle_watch_events_total", 99.0);
    check("rekindle_watch_overflows_total", 1.0);
    check("rekindle_watch_failed_tests_total", 2.0);
    check("rekindle_guarded_files", 8.0);
    check(r#"rekindle_repair_duration_seconds_bucket{path="guard",le="0.00001"}"#, 0.0);
    check(r#"rekindle_repair_duration_seconds_bucket{path="guard",le="0.00005"}"#, 1.0);
    check(r#"rekindle_repair_duration_seconds_bucket{path="guard",le="0.0005"}"#, 2.0);
    check(r#"rekindle_repair_duration_seconds_bucket{path="run",le="10"}"#, 0.0);
    check(r#"rekindle_repair_duration_seconds_bucket{path="run",le="+Inf"}"#, 1.0);
    check(r#"rekindle_repair_duration_seconds_sum{path="guard"}"#, 0.000365);
    check(r#"rekindle_repair_duration_seconds_count{path="guard"}"#, 2.0);
}

#[test]
fn every_state_of_health_has_a_sample() {
    let samples = parsed(&rendered());
    for word in health::WORDS {
        assert!(samples.contains_key(&format!("rekindle_health{{state=\"{word}\"}}")), "{word}");
    }
    let ones = samples.iter().filter(|(name, value)| name.starts_with("rekindle_health{") && **value == 1.0);
    assert_eq!(ones.count(), 1, "the host is in exactly one state");
}

#[test]
fn a_collector_gets_the_text_and_a_silent_one_costs_nothing_but_itself() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |request: &'static [u8]| {
        runtime.block_on(async move {
            let (mut client, mut server) = UnixStream::pair().unwrap();
            let serving = serve(&mut server, "rekindle_info 1\n");
            let asking = async {
                client.write_all(request).await.unwrap();
                client.shutdown().await.unwrap();
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.unwrap();
                answer
            };
            let (served, answer) = tokio::join!(serving, asking);
            served.unwrap();
            answer
        })
    };
    let answer = ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nrekindle_info 1\n"), "{answer}");
    assert!(ask(b"DELETE /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert!(ask(b"").starts_with("HTTP/1.1 400 "));
    assert!(ask(&[b'x'; 20_000]).starts_with("HTTP/1.1 400 "), "a head without end is not read to its end");
}
