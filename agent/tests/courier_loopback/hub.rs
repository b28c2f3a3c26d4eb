//! The courier and the reference endpoint, over TLS with a private authority: a host asks, is dispatched, and is reborn.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rekindle::config::ReimageSettings;
use rekindle::spool::{CheckInState, CourierState, ReimageCall, ReimageReply};
use rekindle_hub::admin::NewToken;
use rekindle_hub::{Approval, Engine, Group, HubOptions, TlsIdentity};

use crate::support::Host;

/// A hub on a thread of its own.
struct Hub {
    url: String,
    ca: String,
    join_token: String,
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// Starts a hub whose engine appends its intents to a file.
fn hub(dir: &Path) -> Hub {
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (ca, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    let script = format!("cat >> {}", dir.join("intents").display());
    let engine = Engine { exec: vec!["/bin/sh".into(), "-c".into(), script], timeout: Duration::from_secs(30) };
    let group = Group { opted_in: true, approval: Approval::Auto, engine: Some(engine), ..Group::default() };
    let mut options = HubOptions::new(dir.join("hub.db"), "127.0.0.1:0".parse().unwrap());
    options.tls = Some(TlsIdentity::Pem { certificate: ca.clone(), key });
    options.groups = BTreeMap::from([("web".to_owned(), group)]);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (ready, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let hub = rekindle_hub::start(options).await.unwrap();
            let new = NewToken { group: "web".into(), host: None, uses: 1, expires: Duration::from_secs(600) };
            let token = hub.admin().create_token(new).await.unwrap().token;
            ready.send((hub.addr.port(), token.reveal().to_owned())).unwrap();
            stopped.await.ok();
            hub.stop().await;
        });
    });
    let (port, join_token) = started.recv().unwrap();
    Hub { url: format!("https://localhost:{port}"), ca, join_token, _stop: stop }
}

fn host(hub: &Hub, ca: &str, join_token: &str) -> Host {
    let mut host = Host::new();
    host.settings.reimage = Some(ReimageSettings {
        endpoint: hub.url.clone(),
        ca: Some(host.file("ca.pem", ca)),
        join_token_file: Some(host.file("join", join_token)),
        token_file: None,
        host_id: Some("web-1".into()),
        checkin: Duration::from_secs(300),
        drain: vec![],
        drain_timeout: Duration::from_secs(600),
        local_command: vec![],
    });
    host
}

fn says(host: &Host, health: &str, request: Option<&str>, born_converged: bool) {
    let state = CheckInState {
        version: 1,
        revision: None,
        health: health.into(),
        since: Timestamp::now(),
        failing: vec![],
        n_resources: 1,
        n_repairs: 0,
        request: request.map(str::to_owned),
        born_converged,
        confirming: None,
    };
    host.outbox().write_slot(&state).unwrap();
}

fn told(host: &Host, expected: &str) -> bool {
    host.inbox().read_slot::<ReimageReply>().unwrap().is_some_and(|reply| reply.state == expected)
}

fn endpoint_error(host: &Host) -> Option<String> {
    host.inbox().read_slot::<CourierState>().unwrap()?.receivers.first()?.error.clone()
}

#[test]
fn a_host_asks_is_dispatched_and_is_reborn() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let old = host(&hub, &hub.ca, &hub.join_token);
    says(&old, "requested", Some("q-1"), true);
    old.call(ReimageCall::Request {
        request: "q-1".into(),
        reason: "failed".into(),
        summary: "nginx cannot be installed".into(),
        dossier: serde_json::json!({ "failing": ["package[nginx]"] }),
    });
    old.run_until("the grant", || told(&old, "awaiting_ready") && old.outbox().list().unwrap().is_empty());
    old.call(ReimageCall::Ready { request: "q-1".into() });
    old.run_until("its end", || endpoint_error(&old).is_some_and(|error| error.contains("superseded")));
    assert!(told(&old, "dispatching"));

    let intents: PathBuf = dir.path().join("intents");
    let intent: serde_json::Value = serde_json::from_slice(&std::fs::read(intents).unwrap()).unwrap();
    let new = host(&hub, &hub.ca, intent["enroll_token"].as_str().unwrap());
    says(&new, "degraded", None, false);
    new.call(ReimageCall::Complete);
    new.run_until("the new incarnation enrols", || {
        new.inbox().read_slot::<CourierState>().unwrap().is_some_and(|state| state.incarnation == Some(2))
    });
    assert_eq!(new.outbox().list().unwrap().len(), 1, "nothing is complete before the host converged");
    says(&new, "converged", None, true);
    new.run_until("the reimage is complete", || new.outbox().list().unwrap().is_empty());
    assert_eq!(endpoint_error(&new), None);
}

#[test]
fn an_endpoint_with_a_strange_certificate_gets_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let host = host(&hub, &other.cert.pem(), &hub.join_token);
    says(&host, "converged", None, true);
    host.run_until("the cause is said in full", || {
        endpoint_error(&host).is_some_and(|error| error.contains("invalid peer certificate"))
    });
}
