//! A hub on loopback over TLS, and hosts that talk to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use rekindle_hub::admin::NewToken;
use rekindle_hub::{Admin, Approval, Engine, Group, HubOptions, Running, TlsIdentity};
use rekindle_protocol::{EnrollAnswer, ReimageState, ReimageStatus};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Longest that a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A hub that can be stopped and started again on the same database.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    tls: TlsIdentity,
    client: Client,
    pub(crate) running: Option<Running>,
}

/// What differs between tests.
pub(crate) struct Setup {
    pub(crate) opted_in: bool,
    pub(crate) approval: Approval,
    /// Shell script; the intent is on its standard input, `$1` is a file to append to.
    pub(crate) engine: Option<&'static str>,
    pub(crate) engine_timeout: Duration,
    pub(crate) grant: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            opted_in: true,
            approval: Approval::One,
            engine: Some("cat >>\"$1\"; echo >>\"$1\""),
            engine_timeout: Duration::from_secs(30),
            grant: Duration::from_secs(3600),
        }
    }
}

impl Site {
    /// Starts a hub with one group, `web`.
    pub(crate) async fn start(setup: &Setup) -> Self {
        let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let certificate = issued.cert.pem();
        let root = reqwest::Certificate::from_pem(certificate.as_bytes()).unwrap();
        let client = Client::builder().tls_certs_only([root]).no_proxy().timeout(PATIENCE).build().unwrap();
        let tls = TlsIdentity::Pem { certificate, key: issued.signing_key.serialize_pem() };
        let mut site = Self { dir: tempfile::tempdir().unwrap(), tls, client, running: None };
        site.restart(setup).await;
        site
    }

    /// Starts the hub again.
    pub(crate) async fn restart(&mut self, setup: &Setup) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
        let calls = self.calls_file().display().to_string();
        let exec = |script: &str| ["/bin/sh", "-c", script, "engine", &calls].map(str::to_owned).to_vec();
        let engine = setup.engine.map(|script| Engine { exec: exec(script), timeout: setup.engine_timeout });
        let group = Group {
            opted_in: setup.opted_in,
            approval: setup.approval,
            engine,
            grant: setup.grant,
            ..Group::default()
        };
        let mut options = HubOptions::new(self.database(), "127.0.0.1:0".parse().unwrap());
        options.tls = Some(self.tls.clone());
        options.groups = BTreeMap::from([("web".to_owned(), group)]);
        options.control = Some(self.control());
        self.running = Some(rekindle_hub::start(options).await.unwrap());
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.path().join("hub.db")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn calls_file(&self) -> PathBuf {
        self.dir.path().join("engine-calls")
    }

    /// Returns the intents that the engine was given, one a call.
    pub(crate) fn engine_calls(&self) -> Vec<Value> {
        read_lines(&self.calls_file())
    }

    pub(crate) fn admin(&self) -> Admin {
        self.running.as_ref().unwrap().admin()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.running.as_ref().unwrap().addr.port())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(self.url(path)).body(body.to_string())
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) async fn join_token(&self, host: Option<&str>) -> String {
        let new = NewToken {
            group: "web".to_owned(),
            host: host.map(|host| host.parse().unwrap()),
            uses: 1,
            expires: Duration::from_secs(60),
        };
        self.admin().create_token(new).await.unwrap().token.reveal().to_owned()
    }

    pub(crate) async fn enroll(&self, host: &str, token: &str) -> Response {
        self.post("/v1/enroll", &enrolment(host, token)).send().await.unwrap()
    }

    /// Enrols a host with a fresh token.
    pub(crate) async fn host(&self, name: &str) -> Host {
        let answer = self.enroll(name, &self.join_token(None).await).await;
        Host::from_answer(expect(answer, 201).await)
    }

    /// Waits until a request is in a state.
    pub(crate) async fn until(&self, id: &str, state: ReimageState) {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let reached = async {
            loop {
                tick.tick().await;
                let found = self.admin().show(id).await.unwrap().reimage.state;
                if found == state {
                    return;
                }
                assert!(!found.is_terminal(), "{id} ended as {found:?} instead of {state:?}");
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{id} never became {state:?}"));
    }
}

/// A host with an identity.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    pub(crate) token: String,
}

impl Host {
    pub(crate) fn from_answer(answer: Value) -> Self {
        let answer: EnrollAnswer = serde_json::from_value(answer).unwrap();
        Self {
            name: answer.host_id.to_string(),
            incarnation: answer.incarnation,
            token: answer.token.reveal().to_owned(),
        }
    }

    pub(crate) fn checkin(&self, seq: u64, health: &str) -> Value {
        json!({
            "host_id": self.name, "incarnation": self.incarnation, "boot_id": format!("boot-{}", self.incarnation),
            "seq": seq, "agent": "0.1.0", "policy": "abc", "health": health, "since": "2026-11-01T00:00:00Z",
            "born_converged": health == "converged", "counters": { "resources": 3, "repairs": 0 },
            "failing": [{ "resource": "package[nginx]", "signature": "apt: no such package" }],
        })
    }

    pub(crate) async fn check_in(&self, site: &Site, seq: u64, health: &str) -> Response {
        site.post("/v1/checkin", &self.checkin(seq, health)).bearer_auth(&self.token).send().await.unwrap()
    }

    pub(crate) async fn ask(&self, site: &Site, key: &str, evidence: Option<&[u8]>) -> Response {
        let ask = json!({
            "request": key, "reason": "failed", "summary": "package[nginx] cannot be installed",
            "incarnation": self.incarnation, "policy": "abc", "evidence": evidence.map(sha256_hex),
        });
        site.post("/v1/reimages", &ask).header("idempotency-key", key).bearer_auth(&self.token).send().await.unwrap()
    }

    pub(crate) async fn put_evidence(&self, site: &Site, id: &str, body: Vec<u8>, digest: &str) -> Response {
        let url = site.url(&format!("/v1/reimages/{id}/evidence"));
        let request = site.client().put(url).header("content-digest", digest).body(body);
        request.bearer_auth(&self.token).send().await.unwrap()
    }

    pub(crate) async fn act(&self, site: &Site, id: &str, what: &str) -> Response {
        let request = site.client().post(site.url(&format!("/v1/reimages/{id}/{what}")));
        request.bearer_auth(&self.token).send().await.unwrap()
    }

    pub(crate) async fn get(&self, site: &Site, path: &str) -> Response {
        site.client().get(site.url(path)).bearer_auth(&self.token).send().await.unwrap()
    }
}

pub(crate) fn enrolment(host: &str, token: &str) -> Value {
    json!({ "token": token, "host_id": host, "hostname": host, "boot_id": "b1", "machine": { "os": "Debian" } })
}

/// Returns an answer's body, which must come with a status.
pub(crate) async fn expect(response: Response, status: u16) -> Value {
    let (found, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(found, StatusCode::from_u16(status).unwrap(), "{text}");
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

/// Checks that an answer is a problem document with a status and a reason.
pub(crate) async fn expect_problem(response: Response, status: u16, reason: &str) -> Value {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem = expect(response, status).await;
    assert_eq!(problem["reason"], reason, "{problem}");
    assert_eq!(problem["status"], status);
    problem
}

pub(crate) async fn expect_status(response: Response, status: u16) -> ReimageStatus {
    serde_json::from_value(expect(response, status).await).unwrap()
}

pub(crate) fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", base64::engine::general_purpose::STANDARD.encode(Sha256::digest(body)))
}

fn sha256_hex(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_lines(path: &Path) -> Vec<Value> {
    match std::fs::read_to_string(path) {
        Ok(text) => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}
