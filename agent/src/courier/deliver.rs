//! Delivers alerts to webhooks by Standard Webhooks: signed, in order for each receiver, at least once.
//!
//! What a receiver has is written down before a message leaves the outbox, so a crash can repeat a delivery but not lose
//! one. One attempt runs for each receiver at a time; a slow or failing receiver holds up nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Done;
use super::backoff::{random, wait};
use super::http::{body, chain, client, excerpt, read_small, retry_after};
use super::queue::{Kind, Queue};
use super::sign::Secrets;
use crate::config::{EventFilter, WebhookSettings};
use crate::spool::{Alert, Event, Outgoing, OutgoingBody, ReceiverState, Slot, Spool};

/// Deadline of one attempt.
const TIMEOUT: Duration = Duration::from_secs(20);

/// First wait after a failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Age after which an alert is given up, when it was also tried [`TRIES_OF_THE_OLD`] times.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

/// Attempts that even an old alert gets: after an outage, or with a clock that jumped.
const TRIES_OF_THE_OLD: u32 = 10;

/// Attempts of an alert that its receiver refuses.
const TRIES_OF_THE_REFUSED: u32 = 10;

/// Which receiver has which of the queued messages. File `delivery.json` of the courier's own directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeliveryState {
    version: u32,
    receivers: BTreeMap<String, Delivered>,
}

/// What is remembered of one receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Delivered {
    /// Messages that it has, or that were given up, and that still wait for others.
    has: BTreeSet<String>,
    /// It said 410: nothing more is sent until its configuration changes.
    gone: bool,
}

impl Slot for DeliveryState {
    const NAME: &'static str = "delivery.json";
    const MODE: u32 = 0o600;
    fn version(&self) -> u32 {
        self.version
    }
}

/// How one attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The receiver has it.
    Accepted,
    /// 410: the receiver wants nothing more.
    Gone,
    /// The receiver does not want this message as it is.
    Refused { why: String },
    /// It may work later.
    Later { why: String, after: Option<Duration> },
}

/// What follows from an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    Delivered,
    Disabled,
    GivenUp { why: String },
    Again { why: String, after: Option<Duration> },
}

/// Decides what follows from attempt number `tries` of an alert of this age.
fn next(attempt: Attempt, tries: u32, age: SignedDuration) -> Next {
    match attempt {
        Attempt::Accepted => Next::Delivered,
        Attempt::Gone => Next::Disabled,
        Attempt::Refused { why } if tries >= TRIES_OF_THE_REFUSED => Next::GivenUp { why },
        Attempt::Later { why, .. } if tries >= TRIES_OF_THE_OLD && age >= MAX_AGE => Next::GivenUp { why },
        Attempt::Refused { why } => Next::Again { why, after: None },
        Attempt::Later { why, after } => Next::Again { why, after },
    }
}

/// One receiver.
#[derive(Debug)]
struct Receiver {
    settings: WebhookSettings,
    name: String,
    key: String,
    memory: Delivered,
    client: Option<reqwest::Client>,
    busy: bool,
    tries: u32,
    not_before: Option<Instant>,
    delivered: Option<Timestamp>,
    error: Option<String>,
    retry_at: Option<Timestamp>,
}

impl Receiver {
    fn wants(&self, event: Event) -> bool {
        !self.memory.gone && (self.settings.events.is_empty() || self.settings.events.iter().any(|f| matches(f, event)))
    }
}

/// All receivers.
#[derive(Debug)]
pub(super) struct Deliveries {
    receivers: Vec<Receiver>,
    stored: DeliveryState,
}

impl Deliveries {
    /// Reads what each configured receiver has. A damaged state file means that alerts are sent once more.
    pub(super) fn load(webhooks: &[WebhookSettings], own: &Spool) -> Self {
        let stored = own.read_slot::<DeliveryState>().unwrap_or_else(|error| {
            warn!(error = %chain(&error), "delivery state is lost; queued alerts may arrive twice");
            None
        });
        let stored = stored.unwrap_or_default();
        let receivers = webhooks.iter().map(|settings| {
            let key = fingerprint(settings);
            let memory = stored.receivers.get(&key).cloned().unwrap_or_default();
            let name = settings.url.split(['?', '#']).next().unwrap_or_default().to_owned();
            let error = memory.gone.then(|| GONE.to_owned());
            Receiver {
                settings: settings.clone(),
                name,
                key,
                memory,
                client: None,
                busy: false,
                tries: 0,
                not_before: None,
                delivered: None,
                error,
                retry_at: None,
            }
        });
        Self { receivers: receivers.collect(), stored }
    }

    /// Removes messages that every receiver has, and starts an attempt for each receiver that has none under way.
    pub(super) fn look(&mut self, queue: &mut Queue, outbox: &Spool, own: &Spool, tasks: &mut JoinSet<Done>) {
        self.settle(queue, outbox, own);
        let now = Instant::now();
        for (index, receiver) in self.receivers.iter_mut().enumerate() {
            if receiver.busy || receiver.not_before.is_some_and(|time| time > now) {
                continue;
            }
            // A time that has come must not wake the loop again, also when nothing waits any more.
            receiver.not_before = None;
            let first = queue.iter().find(|(id, kind)| match kind {
                Kind::Alert(event) => receiver.wants(*event) && !receiver.memory.has.contains(*id),
                Kind::Reimage => false,
            });
            let Some((id, _)) = first else { continue };
            let alert = match outbox.read(id) {
                Ok(Some(Outgoing { body: OutgoingBody::Alert(alert), .. })) => alert,
                // Gone or changed since: the next look at the outbox tells.
                Ok(Some(Outgoing { body: OutgoingBody::Reimage(_), .. }) | None) => continue,
                Err(error) => {
                    error!(id, error = %chain(&error), "cannot read an alert");
                    receiver.not_before = Some(now + FIRST_WAIT);
                    continue;
                }
            };
            let client = match &receiver.client {
                Some(client) => Ok(client.clone()),
                None => client(receiver.settings.ca.as_deref(), TIMEOUT),
            };
            receiver.busy = true;
            receiver.client = client.as_ref().ok().cloned();
            let (id, settings) = (id.to_owned(), receiver.settings.clone());
            tasks.spawn(async move {
                let attempt = match client {
                    Ok(client) => send(&client, &settings, &id, &alert).await,
                    Err(error) => Attempt::Later { why: chain(&error), after: None },
                };
                Done::Delivery { receiver: index, id, attempt }
            });
        }
    }

    /// Takes the end of an attempt.
    pub(super) fn finish(&mut self, index: usize, id: String, attempt: Attempt, now: Timestamp) {
        let Some(receiver) = self.receivers.get_mut(index) else { return };
        receiver.busy = false;
        receiver.tries = receiver.tries.saturating_add(1);
        if attempt != Attempt::Accepted {
            // Certificate authorities may have changed; a new client reads them again.
            receiver.client = None;
        }
        let outcome = next(attempt, receiver.tries, now.duration_since(born(&id).unwrap_or(now)));
        if !matches!(outcome, Next::Again { .. }) {
            receiver.tries = 0;
            receiver.not_before = None;
            receiver.retry_at = None;
        }
        match outcome {
            Next::Delivered => {
                if receiver.error.take().is_some() {
                    info!(receiver = %receiver.name, "alerts are delivered again");
                }
                receiver.delivered = Some(now);
                receiver.memory.has.insert(id);
            }
            Next::Disabled => {
                error!(receiver = %receiver.name, "{GONE}");
                receiver.error = Some(GONE.to_owned());
                receiver.memory.gone = true;
            }
            Next::GivenUp { why } => {
                error!(receiver = %receiver.name, id, why, "gave an alert up; `rekindle history` has what it told");
                receiver.error = Some(format!("gave up alert {id}: {why}"));
                receiver.memory.has.insert(id);
            }
            Next::Again { why, after } => {
                let delay = after.unwrap_or_default().max(wait(receiver.tries, FIRST_WAIT, random()));
                warn!(receiver = %receiver.name, id, why, tries = receiver.tries, wait = ?delay, "cannot deliver an alert yet");
                receiver.error = Some(why);
                receiver.not_before = Some(Instant::now() + delay);
                receiver.retry_at = SignedDuration::try_from(delay).ok().and_then(|delay| now.checked_add(delay).ok());
            }
        }
    }

    /// When the next attempt is due, if one waits for its time.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.receivers.iter().filter(|receiver| !receiver.busy).filter_map(|receiver| receiver.not_before).min()
    }

    /// How delivery goes, for `rekindle status`.
    pub(super) fn states(&self) -> impl Iterator<Item = ReceiverState> {
        self.receivers.iter().map(|receiver| ReceiverState {
            name: receiver.name.clone(),
            delivered: receiver.delivered,
            error: receiver.error.clone(),
            retry_at: receiver.retry_at,
        })
    }

    pub(super) fn settle(&mut self, queue: &mut Queue, outbox: &Spool, own: &Spool) {
        let done: Vec<String> = queue
            .iter()
            .filter(|(id, kind)| match kind {
                Kind::Alert(event) => self.receivers.iter().all(|r| !r.wants(*event) || r.memory.has.contains(*id)),
                Kind::Reimage => false,
            })
            .map(|(id, _)| id.to_owned())
            .collect();
        for id in done {
            queue.remove(outbox, &id);
        }
        let waiting: BTreeSet<&str> = queue.iter().map(|(id, _)| id).collect();
        let mut state = DeliveryState { version: 1, receivers: BTreeMap::new() };
        for receiver in &mut self.receivers {
            receiver.memory.has.retain(|id| waiting.contains(id.as_str()));
            if receiver.memory != Delivered::default() {
                state.receivers.insert(receiver.key.clone(), receiver.memory.clone());
            }
        }
        if state.receivers != self.stored.receivers {
            match own.write_slot(&state) {
                Ok(()) => self.stored = state,
                Err(error) => warn!(error = %chain(&error), "cannot store what was delivered; it may be repeated"),
            }
        }
    }
}

const GONE: &str =
    "the receiver answered 410 (gone): nothing is sent to it until its `[[webhook]]` changes in the configuration";

fn matches(filter: &EventFilter, event: Event) -> bool {
    match filter {
        EventFilter::Exactly(wanted) => *wanted == event,
        EventFilter::Family(family) => {
            let family = if family == "failed" { "convergence" } else { family };
            word(event).split('.').next() == Some(family)
        }
    }
}

/// The wire name of an event.
fn word(event: Event) -> String {
    match serde_json::to_value(event) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(_) | Err(_) => String::new(),
    }
}

/// Names a receiver's configuration: when it changes, the receiver is a new one.
fn fingerprint(settings: &WebhookSettings) -> String {
    let text = format!("{:?}", (&settings.url, &settings.secret_file, &settings.ca, &settings.events));
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// When a message was made, by its id.
fn born(id: &str) -> Option<Timestamp> {
    Timestamp::from_millisecond(id.get(..13)?.parse().ok()?).ok()
}

#[derive(Serialize)]
struct Envelope<'a> {
    r#type: Event,
    timestamp: Timestamp,
    data: &'a Alert,
}

async fn send(client: &reqwest::Client, settings: &WebhookSettings, id: &str, alert: &Alert) -> Attempt {
    let envelope = Envelope { r#type: alert.event, timestamp: alert.time, data: alert };
    let text = match serde_json::to_vec(&envelope) {
        Ok(text) => text,
        Err(error) => return Attempt::Refused { why: error.to_string() },
    };
    let now = Timestamp::now();
    let mut request = client
        .post(&settings.url)
        .header(reqwest::header::CONTENT_TYPE, "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", now.as_second().to_string());
    if let Some(path) = &settings.secret_file {
        // Read for each attempt, so that a rotated secret counts at once.
        let signed = match read_small(path) {
            Ok(content) => Secrets::parse(&content).map(|secrets| secrets.sign(id, now.as_second(), &text)),
            Err(error) => {
                let why = format!("cannot read the secret in `{}`: {error}", path.display());
                return Attempt::Later { why, after: None };
            }
        };
        match signed {
            Ok(signature) => request = request.header("webhook-signature", signature),
            Err(error) => {
                let why = format!("cannot use the secret in `{}`: {error}", path.display());
                return Attempt::Later { why, after: None };
            }
        }
    }
    let response = match request.body(text).send().await {
        Ok(response) => response,
        // The URL may hold a secret of its own.
        Err(error) => return Attempt::Later { why: chain(&error.without_url()), after: None },
    };
    let (status, after) = (response.status(), retry_after(response.headers(), now));
    let said = excerpt(&body(response).await.unwrap_or_default());
    verdict(status, after, &said)
}

fn verdict(status: StatusCode, after: Option<Duration>, said: &str) -> Attempt {
    let why = if said.is_empty() { format!("it answered {status}") } else { format!("it answered {status}: {said}") };
    match status {
        status if status.is_success() => Attempt::Accepted,
        StatusCode::GONE => Attempt::Gone,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => {
            Attempt::Later { why, after }
        }
        status if status.is_server_error() => Attempt::Later { why, after },
        status if status.is_redirection() => {
            Attempt::Refused { why: format!("{why}; redirects are not followed: set `url` to where it leads") }
        }
        _ => Attempt::Refused { why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_means() {
        let check = |status: u16, expected: &str| {
            let attempt = verdict(StatusCode::from_u16(status).unwrap(), None, "");
            let word = match attempt {
                Attempt::Accepted => "accepted",
                Attempt::Gone => "gone",
                Attempt::Refused { .. } => "refused",
                Attempt::Later { .. } => "later",
            };
            assert_eq!(word, expected, "{status}");
        };
        for status in [200, 201, 202, 204] {
            check(status, "accepted");
        }
        for status in [301, 302, 307, 308, 400, 401, 403, 404, 405, 413, 422] {
            check(status, "refused");
        }
        for status in [408, 425, 429, 500, 502, 503, 504] {
            check(status, "later");
        }
        check(410, "gone");
    }

    #[test]
    fn an_alert_is_given_up_only_when_old_or_refused_often() {
        let later = || Attempt::Later { why: "w".into(), after: None };
        let refused = || Attempt::Refused { why: "w".into() };
        let check = |attempt: Attempt, tries: u32, hours: i64, given_up: bool| {
            let next = next(attempt, tries, SignedDuration::from_hours(hours));
            assert_eq!(matches!(next, Next::GivenUp { .. }), given_up, "{next:?} after {tries} tries, {hours} h");
        };
        check(later(), 1, 0, false);
        check(later(), 1000, 23, false);
        check(later(), 9, 1000, false);
        check(later(), 10, 24, true);
        check(later(), 10, -1000, false);
        check(refused(), 9, 1000, false);
        check(refused(), 10, 0, true);
    }

    #[test]
    fn filters_match_events_and_families() {
        let check = |filter: EventFilter, event: Event, expected: bool| {
            assert_eq!(matches(&filter, event), expected, "{filter:?} {event:?}");
        };
        let family = |word: &str| EventFilter::Family(word.into());
        check(EventFilter::Exactly(Event::DriftRepaired), Event::DriftRepaired, true);
        check(EventFilter::Exactly(Event::DriftRepaired), Event::DriftReported, false);
        check(family("drift"), Event::DriftContested, true);
        check(family("drift"), Event::PolicyAccepted, false);
        check(family("failed"), Event::ConvergenceFailed, true);
        check(family("convergence"), Event::ConvergenceRestored, true);
        check(family("reimage"), Event::ReimageDenied, true);
        check(family(""), Event::ReimageDenied, false);
    }
}
