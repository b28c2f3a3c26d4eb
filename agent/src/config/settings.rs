//! The merged document to validated [`Settings`]: what each key means, its default and its bounds.

use std::path::PathBuf;
use std::time::Duration;

use super::document::{Found, Problems, Table, closest, merge};
use super::files::Source;
use super::{
    ConfigError, ConvergeSettings, EventFilter, HealthSettings, MetricsSettings, Mode, Paths, PolicySettings, Problem,
    ReimageSettings, Settings, TrustSettings, WebhookSettings, values,
};
use crate::spool::Event;

/// Events whose names share the part before the dot.
const FAMILIES: [&str; 7] = ["drift", "convergence", "policy", "reimage", "pause", "watch", "agent"];

/// What `failed` stands for.
const FAILED: (&str, &str) = ("failed", "convergence");

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Reads files, the first having the lowest precedence.
pub(super) fn from_sources(sources: &[Source]) -> Result<Settings, ConfigError> {
    let mut problems = Problems::new();
    let mut root = merge(sources, &mut problems);
    // A key that is cut off by a syntax error would be reported as missing.
    if !problems.is_empty() {
        return Err(ConfigError::Invalid { problems });
    }
    let p = &mut problems;
    let settings = Settings {
        mode: mode(&mut root, p),
        roles: roles(&mut root, p),
        age_identity: root.path("age_identity", p),
        policy: root.table("policy", p).and_then(|table| policy(table, p)),
        converge: root.table("converge", p).map_or_else(ConvergeSettings::default, |table| converge(table, p)),
        health: root.table("health", p).map_or_else(HealthSettings::default, |table| health(table, p)),
        reimage: root.table("reimage", p).and_then(|table| reimage(table, p)),
        webhooks: root.tables("webhook", p).into_iter().filter_map(|table| webhook(table, p)).collect(),
        metrics: root.table("metrics", p).map_or_else(MetricsSettings::default, |table| metrics(table, p)),
        paths: root.table("paths", p).map_or_else(Paths::default, |table| paths(table, p)),
    };
    root.finish(p);
    if problems.is_empty() { Ok(settings) } else { Err(ConfigError::Invalid { problems }) }
}

fn mode(root: &mut Table, problems: &mut Problems) -> Mode {
    let parse = |text: &str| match text {
        "enforce" => Ok(Mode::Enforce),
        "noop" => Ok(Mode::Noop),
        _ => Err(format!("expected \"enforce\" or \"noop\"; found \"{text}\"")),
    };
    root.parsed("mode", parse, problems).map(|found| found.value).unwrap_or_default()
}

/// Whether a text can be a role.
pub fn is_role(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':'))
}

fn roles(root: &mut Table, problems: &mut Problems) -> Vec<String> {
    let mut roles = Vec::new();
    for Found { value, place } in root.texts("roles", problems) {
        if !is_role(&value) {
            let message = format!("`roles`: expected letters, digits and `-_.:`; found \"{value}\"");
            problems.push(Problem { place, message, hint: None });
        } else if !roles.contains(&value) {
            roles.push(value);
        }
    }
    roles
}

fn policy(mut table: Table, problems: &mut Problems) -> Option<PolicySettings> {
    let place = table.place().clone();
    let n_problems = problems.len();
    let url = table.parsed("url", |text| values::repository(text).map(|()| text.to_owned()), problems);
    let trust = |text: &str| match text {
        "none" => Ok(TrustSettings::None),
        path if path.starts_with('/') => values::path(path).map(TrustSettings::Keys),
        _ => Err(format!(
            "expected the absolute path of an allowed_signers file or of an OpenPGP keyring, or \"none\"; found \"{text}\""
        )),
    };
    let trust = table.parsed("trust", trust, problems);
    let branch = table.parsed("branch", branch, problems).map_or_else(|| "main".to_owned(), |found| found.value);
    let interval = table.duration("interval", SECOND, MINUTE, problems);
    let timeout = table.duration("timeout", SECOND, 2 * MINUTE, problems);
    let ca = table.path("ca", problems);
    let ssh_key = table.path("ssh_key", problems);
    let known_hosts = table.path("known_hosts", problems);
    let token_file = table.path("token_file", problems);
    if problems.len() == n_problems {
        if url.is_none() {
            problems.push(Problem {
                place: place.clone(),
                message: "`policy` has no `url`".to_owned(),
                hint: Some("name the git repository, such as url = \"https://git.example/policy.git\"".to_owned()),
            });
        } else if trust.is_none() {
            problems.push(Problem {
                place,
                message: "`policy` does not say whose signatures count: `trust` is missing".to_owned(),
                hint: Some(
                    "write trust = \"/etc/rekindle/allowed_signers\" to accept only commits signed by a key in that file, \
                     or trust = \"none\" to let whoever can push to the repository decide what root does here"
                        .to_owned(),
                ),
            });
        }
    }
    table.finish(problems);
    Some(PolicySettings {
        url: url?.value,
        branch,
        interval,
        trust: trust?.value,
        ca,
        ssh_key,
        known_hosts,
        token_file,
        timeout,
    })
}

/// The rules of git for the name of a branch, a little stricter.
fn branch(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+' | '@');
    let is_part = |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with(".lock");
    if text.chars().all(is_allowed) && text.split('/').all(is_part) && !text.contains("..") && !text.contains("@{") {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" is no name of a branch"))
    }
}

fn converge(mut table: Table, problems: &mut Problems) -> ConvergeSettings {
    let default = ConvergeSettings::default();
    let place = table.place().clone();
    let settings = ConvergeSettings {
        full_scan: table.duration("full_scan", SECOND, default.full_scan, problems),
        settle: table.duration("settle", Duration::ZERO, default.settle, problems),
        settle_max: table.duration("settle_max", Duration::ZERO, default.settle_max, problems),
        validate_timeout: table.duration("validate_timeout", SECOND, default.validate_timeout, problems),
    };
    if settings.settle > settings.settle_max {
        problems.push(Problem {
            place,
            message: format!(
                "`converge.settle` ({}) is longer than `converge.settle_max` ({})",
                values::show(settings.settle),
                values::show(settings.settle_max)
            ),
            hint: Some("raise settle_max, the longest wait for a writer that never stops".to_owned()),
        });
    }
    table.unsupported("deep_scan", "remove it: every full scan reads all content again", problems);
    table.finish(problems);
    settings
}

fn health(mut table: Table, problems: &mut Problems) -> HealthSettings {
    let mut settings = HealthSettings::default();
    if let Some(mut retry) = table.table("retry", problems) {
        let place = retry.place().clone();
        settings.retry_first = retry.duration("first", Duration::from_millis(10), settings.retry_first, problems);
        settings.retry_max = retry.duration("max", Duration::from_millis(10), settings.retry_max, problems);
        if settings.retry_first > settings.retry_max {
            let message = "`health.retry.first` is longer than `health.retry.max`".to_owned();
            problems.push(Problem { place, message, hint: None });
        }
        retry.finish(problems);
    }
    if let Some(mut give_up) = table.table("give_up", problems) {
        settings.give_up_attempts = give_up.count("attempts", settings.give_up_attempts, problems);
        settings.give_up_after = give_up.duration("after", Duration::ZERO, settings.give_up_after, problems);
        give_up.finish(problems);
    }
    if let Some(mut flapping) = table.table("flapping", problems) {
        settings.flapping_repairs = flapping.count("repairs", settings.flapping_repairs, problems);
        settings.flapping_within = flapping.duration("within", SECOND, settings.flapping_within, problems);
        settings.flapping_for = flapping.duration("for", SECOND, settings.flapping_for, problems);
        flapping.finish(problems);
    }
    settings.cool_down = table.duration("cool_down", Duration::ZERO, settings.cool_down, problems);
    table.unsupported("max_age", "remove it: this version never asks for a reimage because of age", problems);
    table.unsupported("window", "remove it: this version never asks for a reimage because of age", problems);
    table.finish(problems);
    settings
}

fn reimage(mut table: Table, problems: &mut Problems) -> Option<ReimageSettings> {
    let place = table.place().clone();
    let n_problems = problems.len();
    let endpoint = table.parsed("endpoint", |text| values::endpoint(text).map(|()| text.to_owned()), problems);
    if endpoint.is_none() && problems.len() == n_problems {
        problems.push(Problem {
            place,
            message: "`reimage` has no `endpoint`".to_owned(),
            hint: Some("name it, such as endpoint = \"https://hub.example\"".to_owned()),
        });
    }
    let token_file = table.table("identity", problems).and_then(|mut identity| {
        let hint = "this version knows hosts by token only: write identity = { token_file = \"…\" } or join_token_file";
        identity.unsupported("certificate", hint, problems);
        identity.unsupported("key", hint, problems);
        let token_file = identity.path("token_file", problems);
        identity.finish(problems);
        token_file
    });
    let host_id = table.parsed("host_id", host_id, problems).map(|found| found.value);
    let settings = ReimageSettings {
        endpoint: endpoint.map(|found| found.value.trim_end_matches('/').to_owned()).unwrap_or_default(),
        ca: table.path("ca", problems),
        join_token_file: table.path("join_token_file", problems),
        token_file,
        host_id,
        checkin: table.duration("checkin", SECOND, 5 * MINUTE, problems),
        drain: absolute(table.texts("drain", problems), "reimage.drain", problems),
        drain_timeout: table.duration("drain_timeout", SECOND, 10 * MINUTE, problems),
        local_command: table.texts("local_command", problems).into_iter().map(|found| found.value).collect(),
    };
    table.finish(problems);
    (!settings.endpoint.is_empty()).then_some(settings)
}

fn host_id(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if (1..=255).contains(&text.len()) && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!("expected up to 255 letters, digits and `-_.:`; found \"{text}\""))
    }
}

fn absolute(texts: Vec<Found<String>>, key: &str, problems: &mut Problems) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for Found { value, place } in texts {
        match values::path(&value) {
            Ok(path) => paths.push(path),
            Err(why) => problems.push(Problem { place, message: format!("`{key}`: {why}"), hint: None }),
        }
    }
    paths
}

fn webhook(mut table: Table, problems: &mut Problems) -> Option<WebhookSettings> {
    let place = table.place().clone();
    let n_problems = problems.len();
    let url = table.parsed("url", |text| values::webhook(text).map(|()| text.to_owned()), problems);
    if url.is_none() && problems.len() == n_problems {
        problems.push(Problem { place, message: "a `webhook` has no `url`".to_owned(), hint: None });
    }
    let format = |text: &str| match text {
        "standard" => Ok(()),
        "cloudevents" | "slack" | "pagerduty" | "alertmanager" => {
            Err(format!("\"{text}\" is not supported by this version; only \"standard\" is"))
        }
        _ => Err(format!("expected \"standard\"; found \"{text}\"")),
    };
    table.parsed("format", format, problems);
    let secret_file = table.path("secret_file", problems);
    let ca = table.path("ca", problems);
    let mut events = Vec::new();
    for found in table.texts("events", problems) {
        match event_filter(&found.value) {
            Ok(filter) => events.push(filter),
            Err(hint) => problems.push(Problem {
                place: found.place,
                message: format!("`webhook.events`: there is no event \"{}\"", found.value),
                hint: Some(hint),
            }),
        }
    }
    table.finish(problems);
    Some(WebhookSettings { url: url?.value, secret_file, ca, events })
}

/// `Err` is a hint.
fn event_filter(text: &str) -> Result<EventFilter, String> {
    let (failed, family) = FAILED;
    if text == failed {
        return Ok(EventFilter::Family(family.to_owned()));
    }
    if FAMILIES.contains(&text) {
        return Ok(EventFilter::Family(text.to_owned()));
    }
    let as_json = serde_json::Value::String(text.to_owned());
    serde_json::from_value::<Event>(as_json).map(EventFilter::Exactly).map_err(|_| {
        match closest(text, FAMILIES.into_iter().chain([failed])) {
            Some(known) => format!("did you mean \"{known}\"?"),
            None => format!("write a whole event, such as \"drift.repaired\", or one of {}", FAMILIES.join(", ")),
        }
    })
}

fn metrics(mut table: Table, problems: &mut Problems) -> MetricsSettings {
    let settings = MetricsSettings { textfile: table.path("textfile", problems), port: table.port("port", problems) };
    table.finish(problems);
    settings
}

fn paths(mut table: Table, problems: &mut Problems) -> Paths {
    let default = Paths::default();
    let paths = Paths {
        root: table.path("root", problems).unwrap_or(default.root),
        state: table.path("state", problems).unwrap_or(default.state),
        runtime: table.path("runtime", problems).unwrap_or(default.runtime),
        program: default.program,
    };
    table.finish(problems);
    paths
}
