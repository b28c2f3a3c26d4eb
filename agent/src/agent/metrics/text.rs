//! Numbers to the text that Prometheus reads. Pure. What it shows is what `rekindle status` shows, and the counters beside it.
//!
//! Times are given as such and not as ages, so that a text which is read late is not wrong.

use std::fmt::{Display, Write as _};
use std::sync::atomic::Ordering;

use jiff::Timestamp;

use super::numbers::{BOUNDS_US, Numbers, Tally};
use crate::agent::status::Status;
use crate::converge::health;
use crate::guard::Readiness;
use crate::watch;

/// Everything that a text is made of.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What `rekindle status` shows.
    pub status: &'a Status,
    /// Counters.
    pub numbers: &'a Numbers,
    /// Counters of the watcher.
    pub watcher: watch::Stats,
    /// Declared paths by how changes are noticed, and by whose events: the words and how many.
    pub coverage: &'a [(&'static str, &'static str, usize)],
    /// Times that the watcher failed its self-test.
    pub n_failed_tests: u64,
    /// What the guard has ready.
    pub guard: Readiness,
}

/// Writes the text.
pub fn render(facts: &Facts<'_>) -> String {
    let Facts { status, numbers, watcher, coverage, n_failed_tests, guard } = facts;
    let mut text = Text::default();
    let policy = status.policy.as_ref();
    text.family("rekindle_info", GAUGE, "Which agent, mode and policy.");
    text.sample(
        "rekindle_info",
        &[
            ("version", &status.agent_version),
            ("mode", &status.mode),
            ("policy", policy.map_or("", |policy| &policy.name)),
            ("revision", policy.map_or("", |policy| &policy.revision)),
        ],
        1,
    );
    if let Some(started) = status.started {
        text.time("rekindle_start_timestamp_seconds", "When the agent started.", started);
    }
    if let Some(since) = policy.and_then(|policy| policy.since) {
        text.time("rekindle_policy_timestamp_seconds", "When the policy in force was accepted.", since);
    }
    if let Some(fetch) = &status.fetch {
        text.time("rekindle_fetch_timestamp_seconds", "When the last pull of the policy ended.", fetch.at);
        text.gauge(
            "rekindle_fetch_failed",
            "Whether the last pull of the policy failed.",
            u8::from(fetch.error.is_some()),
        );
    }

    text.family("rekindle_health", GAUGE, "1 for the state of the host's health, 0 for all others.");
    for word in health::WORDS {
        text.sample("rekindle_health", &[("state", word)], u8::from(status.health.state == word));
    }
    text.time("rekindle_health_timestamp_seconds", "Since when it is in that state.", status.health.since);
    text.gauge(
        "rekindle_reimage_requested",
        "Whether a request to be reimaged is open.",
        u8::from(status.health.request.is_some()),
    );
    text.gauge(
        "rekindle_record_in_memory",
        "Whether the record cannot be written to its disk, and is in memory alone.",
        u8::from(status.record_in_memory.is_some()),
    );

    let n = &status.resources;
    text.family("rekindle_resources", GAUGE, "Resources of the policy in force, by their last verdict.");
    for (verdict, count) in [
        ("in_sync", n.in_sync),
        ("drifted", n.drifted),
        ("waived", n.waived),
        ("failed", n.failed),
        ("indeterminate", n.indeterminate),
        ("skipped", n.skipped),
    ] {
        text.sample("rekindle_resources", &[("verdict", verdict)], count);
    }
    text.gauge("rekindle_contested", "Resources that somebody keeps changing.", status.contested.len());
    text.gauge(
        "rekindle_storm",
        "Whether there is too much drift to follow change by change.",
        u8::from(status.storm_since.is_some()),
    );
    text.gauge(
        "rekindle_orphans",
        "Resources that an earlier revision declared and the one in force does not.",
        status.n_orphans,
    );
    text.gauge("rekindle_pauses", "Pauses in force.", status.pauses.len());
    if let Some(until) = status.pauses.iter().map(|pause| pause.until).max() {
        text.time("rekindle_pause_end_timestamp_seconds", "When the last of the pauses in force ends.", until);
    }
    text.gauge("rekindle_debts", "Restarts and reloads that are owed.", status.debts.len());

    let (by_guard, by_run) = (numbers.by_guard.tally(), numbers.by_run.tally());
    text.family("rekindle_drifts_total", COUNTER, "Drift found, by what became of it.");
    let n_left = numbers.n_left.load(Ordering::Relaxed);
    for (answer, count) in [("repaired_by_guard", by_guard.n), ("repaired_by_run", by_run.n), ("left", n_left)] {
        text.sample("rekindle_drifts_total", &[("answer", answer)], count);
    }
    let name = "rekindle_repair_duration_seconds";
    text.family(
        name,
        "histogram",
        "Repairs of drift: the guard's from event to repair, the others as long as their run.",
    );
    text.histogram(name, "guard", &by_guard);
    text.histogram(name, "run", &by_run);

    text.family("rekindle_runs_total", COUNTER, "Runs, by what they looked at.");
    for (scope, counter) in [("everything", &numbers.n_full_runs), ("hinted", &numbers.n_partial_runs)] {
        text.sample("rekindle_runs_total", &[("scope", scope)], counter.load(Ordering::Relaxed));
    }
    if let Some(run) = &status.last_run {
        text.time("rekindle_last_run_timestamp_seconds", "When the last run began.", run.started);
        text.gauge("rekindle_last_run_duration_seconds", "How long it took.", seconds(run.duration_us));
    }
    if let Some(verified) = status.verified {
        text.time(
            "rekindle_verified_timestamp_seconds",
            "When everything that the policy declares was last looked at.",
            verified,
        );
    }

    text.family("rekindle_watches", GAUGE, "Declared paths, by how changes of them are noticed.");
    for (how, source, count) in *coverage {
        text.sample("rekindle_watches", &[("coverage", how), ("source", source)], *count);
    }
    text.gauge("rekindle_kernel_watches", "Watches and marks held in the kernel.", watcher.n_watches);
    text.counter("rekindle_watch_events_total", "Events read from the kernel.", watcher.n_events);
    text.counter("rekindle_watch_overflows_total", "Times that the kernel's queue overflowed.", watcher.n_overflows);
    text.counter("rekindle_watch_failed_tests_total", "Times that the watcher failed its self-test.", *n_failed_tests);
    text.gauge("rekindle_guarded_files", "Files that would be put back at once.", guard.n_guarded);
    text.gauge("rekindle_staged_copies", "Copies that lie ready for that.", guard.n_copies);

    text.gauge("rekindle_outbox_messages", "Messages that wait for delivery.", status.outbox);
    if let Some(oldest) = status.outbox_oldest {
        text.time("rekindle_outbox_oldest_timestamp_seconds", "When the oldest of them was queued.", oldest);
    }
    text.0
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// A text under way.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, GAUGE, help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, COUNTER, help);
        self.sample(name, &[], value);
    }

    fn time(&mut self, name: &str, help: &str, time: Timestamp) {
        let millisecond = time.as_millisecond();
        self.gauge(name, help, format_args!("{}.{:03}", millisecond.div_euclid(1000), millisecond.rem_euclid(1000)));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(key, text)| format!("{key}=\"{}\"", escaped(text))).collect();
        match labels.as_slice() {
            [] => self.push(format_args!("{name} {value}\n")),
            labels => self.push(format_args!("{name}{{{}}} {value}\n", labels.join(","))),
        }
    }

    fn histogram(&mut self, name: &str, path: &str, tally: &Tally) {
        let bucket = format!("{name}_bucket");
        for (bound, count) in BOUNDS_US.iter().zip(tally.at_most) {
            self.sample(&bucket, &[("path", path), ("le", &seconds(*bound))], count);
        }
        self.sample(&bucket, &[("path", path), ("le", "+Inf")], tally.n);
        self.sample(&format!("{name}_sum"), &[("path", path)], seconds(tally.sum_us));
        self.sample(&format!("{name}_count"), &[("path", path)], tally.n);
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a string can always grow, or the process has ended");
    }
}

/// Microseconds as seconds, without a rounding of floating point and without needless zeros.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A label's value, as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
