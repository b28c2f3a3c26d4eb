//! Alerts reach real HTTP receivers: in order, signed, at least once, and not where they are not wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use crate::support::{Host, Request, Server, status};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rekindle::config::EventFilter;
use rekindle::spool::{CourierState, Event, ReimageCall, ReimageReply};

fn ids(requests: &[Request]) -> Vec<String> {
    requests.iter().map(|request| request.headers["webhook-id"].clone()).collect()
}

#[test]
fn alerts_arrive_in_order_signed_and_only_where_wanted() {
    let server = Server::start(|_, n| if n == 1 { status(500) } else { status(204) });
    let mut host = Host::new();
    let secret_file = host.file("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\nan-older-secret-of-ours\n");
    let webhook = host.webhook(&server.url);
    webhook.secret_file = Some(secret_file);
    webhook.events = vec![EventFilter::Family("drift".into()), EventFilter::Exactly(Event::PolicyRejected)];
    let wanted: Vec<String> =
        [Event::DriftRepaired, Event::DriftReported, Event::PolicyRejected, Event::DriftContested]
            .map(|event| host.alert(event))
            .into();
    host.alert(Event::PolicyAccepted);
    host.alert(Event::AgentStarted);
    let outbox = host.outbox();
    host.run_until("the outbox is empty", || outbox.list().unwrap().is_empty());

    let seen = server.seen();
    let (first, rest) = (wanted[0].clone(), wanted[1..].to_vec());
    assert_eq!(
        ids(&seen),
        [vec![first, wanted[1].clone()], rest].concat(),
        "the second was refused once, and repeated"
    );
    for request in &seen {
        assert_eq!(request.line, "POST /");
        assert_eq!(request.headers["content-type"], "application/json");
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body["data"]["event"], body["type"]);
        assert_eq!(body["data"]["time"], body["timestamp"]);
        assert_eq!(body["data"]["resources"][0]["resource"], "file[/etc/motd]");
        let (id, timestamp) = (&request.headers["webhook-id"], &request.headers["webhook-timestamp"]);
        let signed = [format!("{id}.{timestamp}.").as_bytes(), &request.body].concat();
        let secrets =
            [STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap(), b"an-older-secret-of-ours".to_vec()];
        let signatures: Vec<&str> = request.headers["webhook-signature"].split(' ').collect();
        assert_eq!(signatures.len(), 2);
        for (secret, signature) in secrets.iter().zip(signatures) {
            let tag = STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
            hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), &signed, &tag).unwrap();
        }
    }
}

#[test]
fn a_restart_sends_to_each_receiver_what_it_lacks() {
    let answer = Arc::new(AtomicU16::new(503));
    let answers = Arc::clone(&answer);
    let (up, down) =
        (Server::start(|_, _| status(200)), Server::start(move |_, _| status(answers.load(Ordering::SeqCst))));
    let mut host = Host::new();
    host.webhook(&up.url);
    host.webhook(&format!("{}/hook?token=hidden", down.url));
    let sent: Vec<String> = (0..3).map(|_| host.alert(Event::DriftRepaired)).collect();
    let inbox = host.inbox();
    host.run_until("one receiver has everything and the other nothing", || {
        let state = inbox.read_slot::<CourierState>().unwrap();
        up.seen().len() == 3
            && state.is_some_and(|state| {
                state.receivers.iter().any(|r| r.error.as_ref().is_some_and(|e| e.contains("503")))
            })
    });
    let state = inbox.read_slot::<CourierState>().unwrap().unwrap();
    assert_eq!(state.queued, 3);
    assert_eq!(state.receivers[0].name, format!("{}", up.url));
    assert!(state.receivers[0].delivered.is_some() && state.receivers[0].error.is_none());
    assert_eq!(state.receivers[1].name, format!("{}/hook", down.url), "a secret in the query is not shown");
    assert!(state.receivers[1].delivered.is_none() && state.receivers[1].retry_at.is_some());
    assert!(ids(&down.seen()).iter().all(|id| *id == sent[0]), "nothing overtakes the first");

    answer.store(200, Ordering::SeqCst);
    let outbox = host.outbox();
    host.run_until("everyone has everything", || outbox.list().unwrap().is_empty());
    assert_eq!(ids(&up.seen()), sent, "nothing is repeated where it arrived");
    let mut later = ids(&down.seen());
    later.dedup();
    assert_eq!(later, sent);
}

#[test]
fn a_delivery_that_was_cut_off_is_repeated() {
    let (entered, n) = (Arc::new(AtomicUsize::new(0)), 3);
    let count = Arc::clone(&entered);
    // The answer never leaves while the first courier lives.
    let server = Server::start(move |_, before| {
        count.fetch_add(1, Ordering::SeqCst);
        if before == 0 { None } else { status(200) }
    });
    let mut host = Host::new();
    host.webhook(&server.url);
    let sent: Vec<String> = (0..n).map(|_| host.alert(Event::DriftRepaired)).collect();
    host.run_and_kill_when("the first alert is on its way", || entered.load(Ordering::SeqCst) > 0);
    assert_eq!(host.outbox().list().unwrap(), sent, "nothing left the outbox");
    let outbox = host.outbox();
    host.run_until("the outbox is empty", || outbox.list().unwrap().is_empty());
    let mut seen = ids(&server.seen());
    assert_eq!(seen[0], sent[0]);
    seen.dedup();
    assert_eq!(seen, sent);
}

#[test]
fn a_receiver_that_is_gone_is_left_alone_until_its_configuration_changes() {
    let server = Server::start(|_, n| if n == 0 { status(410) } else { status(200) });
    let mut host = Host::new();
    host.webhook(&server.url);
    host.alert(Event::DriftRepaired);
    host.alert(Event::DriftRepaired);
    let (outbox, inbox) = (host.outbox(), host.inbox());
    host.run_until("nobody waits for the alerts", || outbox.list().unwrap().is_empty());
    host.alert(Event::DriftRepaired);
    host.run_until("nor after a restart", || outbox.list().unwrap().is_empty());
    assert_eq!(server.seen().len(), 1);
    let state = inbox.read_slot::<CourierState>().unwrap().unwrap();
    assert!(state.receivers[0].error.as_ref().unwrap().contains("410"), "{state:?}");

    host.settings.webhooks[0].events = vec![EventFilter::Family("drift".into())];
    let id = host.alert(Event::DriftRepaired);
    host.run_until("it is asked again", || outbox.list().unwrap().is_empty());
    assert_eq!(ids(&server.seen())[1..], [id]);
}

#[test]
fn alerts_that_are_added_while_it_runs_go_out_at_once() {
    let server = Server::start(|_, _| status(200));
    let mut host = Host::new();
    host.webhook(&server.url);
    let outbox = host.outbox();
    let (mut added, mut sent) = (0, Vec::new());
    host.run_until("twenty alerts are delivered one after another", || {
        if server.seen().len() == added && outbox.list().unwrap().is_empty() && added < 20 {
            sent.push(host.alert(Event::DriftRepaired));
            added += 1;
        }
        added == 20 && outbox.list().unwrap().is_empty()
    });
    assert_eq!(ids(&server.seen()), sent);
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = Server::start(|_, _| status(200));
    let url = elsewhere.url.clone();
    let server = Server::start(move |_, n| match n {
        0 => Some((307, vec![("location", url.clone())], String::new())),
        _ => status(200),
    });
    let mut host = Host::new();
    host.webhook(&server.url);
    host.alert(Event::DriftRepaired);
    let outbox = host.outbox();
    host.run_until("the outbox is empty", || outbox.list().unwrap().is_empty());
    assert_eq!((server.seen().len(), elsewhere.seen().len()), (2, 0));
}

#[test]
fn what_nobody_waits_for_leaves_the_outbox() {
    let host = Host::new();
    host.alert(Event::DriftRepaired);
    let request = ReimageCall::Request {
        request: "r1".into(),
        reason: "failed".into(),
        summary: "s".into(),
        dossier: serde_json::Value::Null,
    };
    host.call(request);
    let (outbox, inbox) = (host.outbox(), host.inbox());
    host.run_until("the outbox is empty", || outbox.list().unwrap().is_empty());
    let reply = inbox.read_slot::<ReimageReply>().unwrap().unwrap();
    assert_eq!((reply.request.as_str(), reply.state.as_str()), ("r1", "denied"));
}

#[test]
fn a_message_that_cannot_be_read_holds_nobody_up() {
    let server = Server::start(|_, _| status(200));
    let mut host = Host::new();
    host.webhook(&server.url);
    host.file("state/outbox/1763764200000-00000000000000ff.json", "{\"version\":1,");
    let id = host.alert(Event::DriftRepaired);
    let outbox = host.outbox();
    host.run_until("the outbox is empty", || outbox.list().unwrap().is_empty());
    assert_eq!(ids(&server.seen()), [id]);
    assert!(host.settings.paths.outbox().join("1763764200000-00000000000000ff.bad").exists());
}
