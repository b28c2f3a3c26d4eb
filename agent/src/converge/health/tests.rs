use super::*;
use crate::converge::{Cause, ResourceReport};
use crate::resource::{Action, Change};

const T0: i64 = 1_800_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(T0 + second).unwrap()
}

fn settings() -> HealthSettings {
    HealthSettings {
        retry_first: Duration::from_secs(1),
        retry_max: Duration::from_secs(60),
        give_up_attempts: 3,
        give_up_after: Duration::from_secs(10),
        flapping_repairs: 5,
        flapping_within: Duration::from_secs(600),
        flapping_for: Duration::from_secs(900),
        cool_down: Duration::from_secs(100),
    }
}

fn id(name: &str) -> ResourceId {
    ResourceId::new(Kind::File, name)
}

fn failed(name: &str) -> (ResourceId, Outcome) {
    let changes = vec![Change::value("state", None, Some("present".into()))];
    (id(name), Outcome::Failed { changes, error: "no".into(), signature: "no".into() })
}

fn unchanged(name: &str) -> (ResourceId, Outcome) {
    (id(name), Outcome::Unchanged)
}

fn reported(name: &str) -> (ResourceId, Outcome) {
    let changes = vec![Change::value("mode", None, None)];
    (id(name), Outcome::Reported { changes, action: Action::Update, why: "on_drift".into() })
}

fn unknown(name: &str) -> (ResourceId, Outcome) {
    (id(name), Outcome::Indeterminate { reason: "cannot read".into() })
}

/// Drives one host through runs and answers, and keeps what was asked of the caller.
struct Host {
    health: Health,
    effects: Vec<Effect>,
    revision: Revision,
    last_good: Option<Revision>,
    may_ask: MayAsk,
    ids: u32,
}

impl Host {
    fn new() -> Self {
        let revision = Revision::new("r1");
        Self {
            health: Health::unknown(at(0)),
            effects: Vec::new(),
            revision,
            last_good: None,
            may_ask: MayAsk::Yes,
            ids: 0,
        }
    }

    fn feed(&mut self, input: Input<'_>, second: i64) {
        self.ids += 1;
        let new_id = format!("request-{}", self.ids);
        let (health, effects) = self.health.clone().next(input, &settings(), at(second), || new_id);
        self.health = health;
        self.effects = effects;
    }

    fn run(&mut self, second: i64, resources: Vec<(ResourceId, Outcome)>) -> &mut Self {
        self.run_tampered(second, resources, Vec::new())
    }

    fn run_tampered(
        &mut self,
        second: i64,
        resources: Vec<(ResourceId, Outcome)>,
        tampered: Vec<ResourceId>,
    ) -> &mut Self {
        let report = RunReport {
            run: second,
            revision: self.revision.clone(),
            cause: Cause::Drift,
            full: true,
            started: at(second),
            duration_us: 1,
            resources: resources
                .into_iter()
                .map(|(resource, outcome)| ResourceReport {
                    resource,
                    step: None,
                    overtaken: false,
                    displaced: None,
                    outcome,
                })
                .collect(),
            debts: Vec::new(),
            interrupted: false,
        };
        let (last_good, may_ask) = (self.last_good.clone(), self.may_ask);
        self.feed(Input::Report { report: &report, tampered, last_good: last_good.as_ref(), may_ask }, second);
        self
    }

    fn answer(&mut self, second: i64, answer: Answer) -> &mut Self {
        let request = self.health.request().map(|r| r.id.clone()).unwrap_or_default();
        self.feed(Input::Answer { request: &request, answer }, second);
        self
    }

    /// A host that has given up and asked.
    fn asked() -> Self {
        let mut host = Self::new();
        for second in [0, 5, 11] {
            host.run(second, vec![failed("/a")]);
        }
        assert_eq!(host.health.word(), "requested");
        host
    }

    #[track_caller]
    fn check(&self, word: &str, effects: &[&str]) {
        let names: Vec<String> = self
            .effects
            .iter()
            .map(|e| format!("{e:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!((self.health.word(), names), (word, effects.iter().map(ToString::to_string).collect::<Vec<_>>()));
    }
}

#[test]
fn a_full_run_without_failures_converges() {
    Host::new().run(0, vec![unchanged("/a"), reported("/b")]).check("converged", &[]);
}

#[test]
fn a_failure_is_told_once_and_retried() {
    let mut host = Host::new();
    host.run(0, vec![failed("/a"), unchanged("/b")]).check("degraded", &["AlertFailed"]);
    host.run(1, vec![failed("/a"), unchanged("/b")]).check("degraded", &[]);
    host.run(2, vec![unchanged("/a"), unchanged("/b")]).check("converged", &["AlertRestored", "RunEverything"]);
}

#[test]
fn both_limits_must_pass_before_giving_up() {
    let mut host = Host::new();
    for second in 0..10 {
        host.run(second, vec![failed("/a")]);
        assert_eq!(host.health.word(), "degraded", "after {second} s: enough attempts, not enough time");
    }
    host.run(10, vec![failed("/a")]).check("requested", &["Ask"]);

    let mut slow = Host::new();
    slow.run(0, vec![failed("/a")]);
    slow.run(1000, vec![failed("/a")]).check("degraded", &[]);
    slow.run(2000, vec![failed("/a")]).check("requested", &["Ask"]);
}

#[test]
fn what_could_not_be_told_never_leads_to_a_request() {
    let mut host = Host::new();
    for second in 0..100 {
        host.run(second * 10, vec![unknown("/a")]);
    }
    host.check("degraded", &[]);
}

#[test]
fn the_policy_is_suspected_before_the_host() {
    let mut host = Host::new();
    host.last_good = Some(Revision::new("r0"));
    for second in [0, 5] {
        host.run(second, vec![failed("/a")]);
    }
    host.run(11, vec![failed("/a")]).check("on_last_good", &["RollBack"]);
    host.revision = Revision::new("r0");
    host.run(12, vec![unchanged("/a")]).check("on_last_good", &[]);
    for second in [20, 25] {
        host.run(second, vec![failed("/a")]);
    }
    host.run(31, vec![failed("/a")]).check("requested", &["Ask"]);
}

#[test]
fn a_revision_that_once_converged_here_blames_the_host() {
    let mut host = Host::new();
    host.last_good = Some(host.revision.clone());
    for second in [0, 5] {
        host.run(second, vec![failed("/a")]);
    }
    host.run(11, vec![failed("/a")]).check("requested", &["Ask"]);
}

#[test]
fn nobody_is_asked_while_asking_is_not_allowed() {
    let mut host = Host::new();
    host.may_ask = MayAsk::No;
    for second in [0, 5, 11] {
        host.run(second, vec![failed("/a")]);
    }
    host.check("failing", &[]);
    host.may_ask = MayAsk::Yes;
    host.run(12, vec![failed("/a")]).check("requested", &["Ask"]);
}

#[test]
fn convergence_withdraws_a_request_and_starts_the_cool_down() {
    let mut host = Host::asked();
    host.run(12, vec![unchanged("/a")]).check("converged", &["Withdraw", "AlertRestored"]);
    for second in [20, 25, 31] {
        host.run(second, vec![failed("/a")]);
    }
    host.check("failing", &[]);
    host.run(120, vec![failed("/a")]).check("requested", &["Ask"]);
}

#[test]
fn a_grant_is_followed_by_one_more_run_and_then_the_drain() {
    let mut host = Host::asked();
    host.answer(12, Answer::Open).check("requested", &[]);
    host.answer(13, Answer::Granted).check("granted", &["AlertGranted", "RunEverything"]);
    host.answer(13, Answer::Granted).check("granted", &[]);
    host.run(14, vec![failed("/a")]).check("draining", &["Drain"]);
    host.feed(Input::Drained, 15);
    host.check("handed_over", &["HandOver"]);
    host.run(16, vec![failed("/a")]).check("handed_over", &[]);
}

#[test]
fn a_grant_is_not_used_when_the_host_converged_meanwhile() {
    let mut host = Host::asked();
    host.answer(13, Answer::Granted);
    host.run(14, vec![unchanged("/a")]).check("converged", &["Withdraw", "AlertRestored"]);
}

#[test]
fn a_failed_drain_calls_the_hand_over_off() {
    let mut host = Host::asked();
    host.answer(13, Answer::Granted);
    host.run(14, vec![failed("/a")]);
    host.feed(Input::DrainFailed { error: "stuck".into() }, 15);
    host.check("failing", &["Withdraw"]);
}

#[test]
fn a_denied_request_is_not_repeated_before_its_time() {
    let mut host = Host::asked();
    let answer = Answer::Ended { why: "denied".into(), retry_after: Some(at(500)) };
    host.answer(12, answer).check("failing", &["AlertDenied", "RunEverything"]);
    host.run(400, vec![failed("/a")]).check("failing", &[]);
    host.run(501, vec![failed("/a")]).check("requested", &["Ask"]);
}

#[test]
fn an_answer_about_another_request_is_ignored() {
    let mut host = Host::asked();
    host.feed(Input::Answer { request: "somebody else's", answer: Answer::Granted }, 12);
    host.check("requested", &[]);
}

#[test]
fn tampering_asks_at_once_and_is_not_withdrawn() {
    let mut host = Host::new();
    host.run_tampered(0, vec![reported("/a")], vec![id("/a")]).check("requested", &["Ask"]);
    host.run(1, vec![unchanged("/a")]).check("requested", &[]);
}

#[test]
fn a_new_revision_forgets_failures_but_not_an_open_request() {
    let mut host = Host::new();
    host.run(0, vec![failed("/a")]);
    host.feed(Input::NewRevision(&Revision::new("r2")), 1);
    host.check("unknown", &[]);
    let mut asked = Host::asked();
    asked.feed(Input::NewRevision(&Revision::new("r2")), 12);
    asked.check("requested", &[]);
}

#[test]
fn health_survives_a_restart() {
    let host = Host::asked();
    let text = serde_json::to_string(&host.health).unwrap();
    assert_eq!(serde_json::from_str::<Health>(&text).unwrap(), host.health);
}
