//! The courier enrols, checks in and carries a reimage request through a scripted endpoint.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use rekindle::config::ReimageSettings;
use rekindle::resource::{Kind, ResourceId};
use rekindle::spool::{CheckInState, CourierState, ReimageCall, ReimageReply};
use rekindle_protocol::{
    CheckIn, CheckInAnswer, Directive, EnrollAnswer, EnrollRequest, EvidenceAnswer, Problem, Reason, ReimageAsk,
    ReimageState, ReimageStatus,
};
use sha2::{Digest as _, Sha256};

use crate::support::{Answer, Host, Request, Server};

/// An endpoint of one host, in memory.
#[derive(Default)]
struct Hub {
    /// Answered instead of the next calls.
    trouble: Vec<Answer>,
    state: Option<ReimageState>,
    request: Option<String>,
    announced: Option<String>,
    evidence: Option<Vec<u8>>,
    checkins: Vec<CheckIn>,
    superseded: bool,
}

fn json(status: u16, body: &impl serde::Serialize) -> Answer {
    Some((status, vec![("content-type", "application/json".into())], serde_json::to_string(body).unwrap()))
}

fn problem(reason: Reason) -> Answer {
    json(reason.status(), &Problem::new(reason, "because the test says so"))
}

impl Hub {
    fn status(&self) -> ReimageStatus {
        ReimageStatus {
            id: "R-1".parse().unwrap(),
            request: self.request.clone().unwrap().parse().unwrap(),
            state: self.state.unwrap(),
            code: None,
            reason: None,
            retry_after: None,
            grant_ends: None,
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        if !self.trouble.is_empty() {
            return self.trouble.remove(0);
        }
        let authorized =
            request.headers.get("authorization").map(String::as_str) == Some("Bearer rkh_0123456789abcdef");
        if request.line != "POST /v1/enroll" && !authorized {
            return problem(Reason::Unauthenticated);
        }
        if self.superseded {
            return problem(Reason::Superseded);
        }
        match request.line.as_str() {
            "POST /v1/enroll" => {
                let body: EnrollRequest = serde_json::from_slice(&request.body).unwrap();
                if body.token.reveal() != "rkj_0123456789abcdef" {
                    return problem(Reason::TokenInvalid);
                }
                let token = "rkh_0123456789abcdef".to_owned().try_into().unwrap();
                json(201, &EnrollAnswer { host_id: body.host_id, incarnation: 3, token, reimage: None })
            }
            "POST /v1/checkin" => {
                let body: CheckIn = serde_json::from_slice(&request.body).unwrap();
                if let Some(last) = self.checkins.last().filter(|last| last.seq >= body.seq) {
                    let mut problem = Problem::new(Reason::StaleSequence, "stale");
                    problem.last_seq = Some(last.seq);
                    return json(409, &problem);
                }
                self.checkins.push(body);
                json(
                    200,
                    &CheckInAnswer {
                        next_checkin_s: 300,
                        lease_end: Timestamp::now(),
                        directive: Directive::None,
                        policy_revision: None,
                        epoch: 1,
                        reimage: self.state.map(|_| self.status()),
                    },
                )
            }
            "POST /v1/reimages" => {
                let body: ReimageAsk = serde_json::from_slice(&request.body).unwrap();
                assert_eq!(request.headers["idempotency-key"], body.request.as_str());
                assert_eq!(body.incarnation, 3);
                let status = if self.state.is_some() { 200 } else { 201 };
                self.request = Some(body.request.to_string());
                self.announced = body.evidence;
                self.state.get_or_insert(ReimageState::Requested);
                json(status, &self.status())
            }
            "PUT /v1/reimages/R-1/evidence" => {
                let sha256: String = Sha256::digest(&request.body).iter().map(|b| format!("{b:02x}")).collect();
                assert_eq!(self.announced.as_deref(), Some(sha256.as_str()));
                assert!(request.headers["content-digest"].starts_with("sha-256=:"));
                let size = request.body.len() as u64;
                self.evidence = Some(request.body.clone());
                json(201, &EvidenceAnswer { sha256, size })
            }
            "POST /v1/reimages/R-1/ready" if self.state == Some(ReimageState::AwaitingReady) => {
                assert!(self.evidence.is_some(), "evidence before ready");
                self.state = Some(ReimageState::Dispatching);
                json(202, &self.status())
            }
            "POST /v1/reimages/R-1/cancel" if self.state == Some(ReimageState::Dispatching) => {
                problem(Reason::AlreadyDispatched)
            }
            "POST /v1/reimages/R-1/cancel" => {
                self.state = Some(ReimageState::Cancelled);
                json(200, &self.status())
            }
            line if line.starts_with("GET /v1/reimages/R-1") => {
                // It does not hold answers back, as a simple endpoint may not.
                json(200, &self.status())
            }
            _ => problem(Reason::NotFound),
        }
    }
}

struct Setup {
    hub: Arc<Mutex<Hub>>,
    server: Server,
    host: Host,
}

impl Setup {
    fn new() -> Self {
        let hub: Arc<Mutex<Hub>> = Arc::default();
        let answering = Arc::clone(&hub);
        let server = Server::start(move |request, _| answering.lock().unwrap().answer(request));
        let mut host = Host::new();
        host.settings.reimage = Some(ReimageSettings {
            endpoint: format!("{}/", server.url),
            ca: None,
            join_token_file: Some(host.file("join", "rkj_0123456789abcdef\n")),
            token_file: None,
            host_id: Some("web-1".into()),
            checkin: Duration::from_secs(300),
            drain: vec![],
            drain_timeout: Duration::from_secs(600),
            local_command: vec![],
        });
        let setup = Self { hub, server, host };
        setup.says("converged", None);
        setup
    }

    /// Writes the agent's state.
    fn says(&self, health: &str, request: Option<&str>) {
        let state = CheckInState {
            version: 1,
            revision: Some("0123abcd".into()),
            health: health.into(),
            since: Timestamp::now(),
            failing: vec![(ResourceId::new(Kind::Package, "nginx"), "apt: not found".into())],
            n_resources: 12,
            n_repairs: 3,
            request: request.map(str::to_owned),
            born_converged: true,
            confirming: None,
        };
        self.host.outbox().write_slot(&state).unwrap();
    }

    fn asks(&self, request: &str) {
        self.host.call(ReimageCall::Request {
            request: request.into(),
            reason: "failed".into(),
            summary: "nginx cannot be installed".into(),
            dossier: serde_json::json!({ "failing": ["package[nginx]"] }),
        });
    }

    fn hub<T>(&self, look: impl FnOnce(&mut Hub) -> T) -> T {
        look(&mut self.hub.lock().unwrap())
    }

    fn told(&self) -> Option<String> {
        self.host.inbox().read_slot::<ReimageReply>().unwrap().map(|reply| format!("{} {}", reply.request, reply.state))
    }

    fn state(&self) -> Option<CourierState> {
        self.host.inbox().read_slot().unwrap()
    }

    fn outbox_is_empty(&self) -> bool {
        self.host.outbox().list().unwrap().is_empty()
    }
}

#[test]
fn a_host_enrols_once_and_checks_in_with_rising_numbers() {
    let setup = Setup::new();
    setup.host.run_until("a check-in", || setup.hub(|hub| !hub.checkins.is_empty()));
    setup.host.run_until("another after a restart", || setup.hub(|hub| hub.checkins.len() > 1));
    setup.says("degraded", None);
    setup.host.run_until("another at once, for there is news", || {
        setup.hub(|hub| hub.checkins.last().unwrap().health == rekindle_protocol::Health::Degraded)
            && setup.state().is_some_and(|state| state.incarnation == Some(3))
    });
    let lines: Vec<String> = setup.server.seen().into_iter().map(|request| request.line).collect();
    assert_eq!(lines.iter().filter(|line| *line == "POST /v1/enroll").count(), 1);
    setup.hub(|hub| {
        assert!(hub.checkins.windows(2).all(|pair| pair[0].seq < pair[1].seq));
        let first = &hub.checkins[0];
        assert_eq!((first.host_id.as_str(), first.incarnation), ("web-1", 3));
        assert_eq!(first.failing[0].resource, "package[nginx]");
    });
    assert_eq!(setup.state().unwrap().host_id.as_deref(), Some("web-1"));
    use std::os::unix::fs::PermissionsExt as _;
    let identity = setup.host.settings.paths.courier().join("identity.json");
    assert_eq!(std::fs::metadata(identity).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_request_goes_through_to_the_end() {
    let setup = Setup::new();
    setup.asks("q-1");
    setup.says("requested", Some("q-1"));
    setup.host.run_until("the request and its evidence are there", || {
        setup.hub(|hub| hub.evidence.is_some()) && setup.outbox_is_empty()
    });
    assert_eq!(setup.told().as_deref(), Some("q-1 requested"));
    setup.hub(|hub| hub.state = Some(ReimageState::AwaitingReady));
    setup.host.run_until("the grant reaches the agent", || setup.told().as_deref() == Some("q-1 awaiting_ready"));
    setup.host.call(ReimageCall::Ready { request: "q-1".into() });
    setup.host.run_until("ready is called", || setup.told().as_deref() == Some("q-1 dispatching"));
    setup.hub(|hub| hub.superseded = true);
    let superseded = || {
        setup.state().is_some_and(|state| state.receivers[0].error.as_ref().is_some_and(|e| e.contains("superseded")))
    };
    setup.host.run_until("it says that it was superseded", superseded);
    let before = setup.server.seen().len();
    setup.says("failing", None);
    setup.host.run_until("a restart says so at once", superseded);
    assert_eq!(setup.server.seen().len(), before, "and calls nobody");
    assert_eq!(setup.told().as_deref(), Some("q-1 dispatching"));
}

#[test]
fn trouble_and_garbage_only_mean_another_attempt() {
    let check = |name: &str, trouble: Answer| {
        let setup = Setup::new();
        setup.host.run_until("enrolled", || setup.hub(|hub| !hub.checkins.is_empty()));
        setup.asks("q-1");
        setup.hub(|hub| hub.trouble = vec![trouble.clone(), trouble]);
        setup.host.run_until(name, || setup.outbox_is_empty());
        assert_eq!(setup.told().as_deref(), Some("q-1 requested"), "{name}");
        let asks = setup.server.seen().iter().filter(|r| r.line == "POST /v1/reimages").count();
        assert!(asks >= 2, "{name}: {asks}");
    };
    check("no answer", None);
    check("an error", Some((500, vec![], String::new())));
    check("busy", Some((503, vec![("retry-after", "0".into())], String::new())));
    check("a proxy's refusal", Some((403, vec![], "<html>no</html>".into())));
    check("a proxy's gone", Some((410, vec![], "gone".into())));
    check("garbage", Some((200, vec![], "{\"state\":".into())));
    check("another shape", Some((201, vec![], "{\"state\":\"dispatching\"}".into())));
    check("endless", Some((200, vec![], "x".repeat(300 * 1024))));
}

#[test]
fn a_refusal_is_told_to_the_agent() {
    let setup = Setup::new();
    setup.host.run_until("enrolled", || setup.hub(|hub| !hub.checkins.is_empty()));
    setup.asks("q-1");
    setup.hub(|hub| hub.trouble = vec![problem(Reason::NotOptedIn)]);
    setup.host.run_until("it is settled", || setup.outbox_is_empty());
    assert_eq!(setup.told().as_deref(), Some("q-1 denied"));
    let reply = setup.host.inbox().read_slot::<ReimageReply>().unwrap().unwrap();
    assert!(reply.reason.unwrap().contains("not_opted_in"));
}

#[test]
fn a_cancel_is_answered_with_what_is_true() {
    let check = |state: ReimageState, expected: &str| {
        let setup = Setup::new();
        setup.asks("q-1");
        setup.host.run_until("asked", || setup.outbox_is_empty());
        setup.hub(|hub| hub.state = Some(state));
        setup.host.call(ReimageCall::Cancel { request: "q-1".into(), why: "it converged".into() });
        setup.host.run_until("settled", || setup.outbox_is_empty() && setup.told().as_deref() == Some(expected));
    };
    check(ReimageState::Requested, "q-1 cancelled");
    check(ReimageState::Dispatching, "q-1 dispatching");
}

#[test]
fn a_lost_memory_is_learnt_again() {
    let setup = Setup::new();
    setup.asks("q-1");
    setup.says("requested", Some("q-1"));
    setup.host.run_until("asked", || setup.outbox_is_empty());
    std::fs::remove_file(setup.host.settings.paths.courier().join("endpoint.json")).unwrap();
    setup.hub(|hub| hub.state = Some(ReimageState::AwaitingReady));
    setup.host.call(ReimageCall::Ready { request: "q-1".into() });
    setup.host.run_until("ready is called all the same", || setup.told().as_deref() == Some("q-1 dispatching"));
    setup.host.call(ReimageCall::Ready { request: "q-unknown".into() });
    setup
        .host
        .run_until("an unknown request is said to be over", || setup.told().as_deref() == Some("q-unknown expired"));
}
