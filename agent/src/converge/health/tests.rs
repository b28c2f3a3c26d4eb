use super::*;
use crate::converge::{Cause, Outcome, ResourceReport, lockout};
use crate::resource::{Action, Change, Kind};

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
    settings: HealthSettings,
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
            settings: settings(),
            ids: 0,
        }
    }

    fn feed(&mut self, input: Input<'_>, second: i64) {
        self.ids += 1;
        let new_id = format!("request-{}", self.ids);
        let (health, effects) = self.health.clone().next(input, &self.settings, at(second), || new_id);
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
                    who: None,
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
fn a_fault_of_the_host_is_no_policys() {
    let spoilt = |name: &str, signature: &str| {
        (id(name), Outcome::Failed { changes: Vec::new(), error: "no".into(), signature: signature.into() })
    };
    let check = |signature: &str, state: &str, effect: &str| {
        let mut host = Host::new();
        host.last_good = Some(Revision::new("r0"));
        for second in [0, 5] {
            host.run(second, vec![spoilt("/a", signature)]);
        }
        host.run(11, vec![spoilt("/a", signature)]).check(state, &[effect]);
        host
    };
    for signature in ["replace: errno 30", "create: errno 28", "replace: errno 5", "back up: errno 122"] {
        // No older revision would do better, so it is the host that is asked for.
        let mut host = check(signature, "requested", "Ask");
        let request = host.health.request().unwrap();
        assert!(request.summary.starts_with("a fault of the host: file[/a] failed 3 times"), "{}", request.summary);
        host.run(20, vec![unchanged("/a")]).check("converged", &["Withdraw", "AlertRestored"]);
    }
    check("replace: errno 13", "on_last_good", "RollBack");
    // Where the policy may be to blame for something else as well, it is the first suspect.
    let mut both = Host::new();
    both.last_good = Some(Revision::new("r0"));
    for second in [0, 5] {
        both.run(second, vec![spoilt("/a", "replace: errno 30"), failed("/b")]);
    }
    both.run(11, vec![spoilt("/a", "replace: errno 30"), failed("/b")]).check("on_last_good", &["RollBack"]);
}

#[test]
fn a_refusal_to_lock_everybody_out_asks_for_no_other_host() {
    let refused = |name: &str| {
        let signature = lockout::SIGNATURE.to_owned();
        (id(name), Outcome::Failed { changes: Vec::new(), error: "no".into(), signature })
    };
    // A rebuilt host would refuse the same.
    let mut host = Host::new();
    for second in [0, 5, 11, 20] {
        host.run(second, vec![refused("/a")]);
    }
    host.check("failing", &[]);
    let since = host.health.since;
    host.run(30, vec![refused("/a")]).check("failing", &[]);
    assert_eq!(host.health.since, since);
    host.run(40, vec![unchanged("/a")]).check("converged", &["AlertRestored", "RunEverything"]);
    // An older policy may do better; and what else fails has its own way.
    let mut host = Host::new();
    host.last_good = Some(Revision::new("r0"));
    for second in [0, 5, 11] {
        host.run(second, vec![refused("/a")]);
    }
    host.check("on_last_good", &["RollBack"]);
    let mut host = Host::new();
    for second in [0, 5, 11] {
        host.run(second, vec![refused("/a"), failed("/b")]);
    }
    host.check("requested", &["Ask"]);
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

fn contested(name: &str, since: i64) -> Contested {
    let summary = format!("file[{name}] is fought over by puppet.service");
    Contested { resource: id(name), since: at(since), n_repairs: 70, summary }
}

impl Host {
    fn fights(&mut self, second: i64, fights: &[Contested], ended: &[ResourceId]) -> &mut Self {
        let may_ask = self.may_ask;
        self.feed(Input::Fights { fights, ended, may_ask }, second);
        self
    }

    fn damage(&mut self, second: i64) -> &mut Self {
        let may_ask = self.may_ask;
        let what = "fs-error: the ext4 file system on vda1 has found 3 errors in itself";
        self.feed(Input::FileSystemError { device: "vda1", what, may_ask }, second);
        self
    }

    fn own_drift(&mut self, second: i64) -> &mut Self {
        let may_ask = self.may_ask;
        self.feed(Input::OwnDrift { resources: &[id("/usr/bin/rekindle")], may_ask }, second);
        self
    }
}

#[test]
fn case_31_a_fight_that_does_not_end_asks_for_a_reimage_and_its_end_withdraws_it() {
    let mut host = Host::new();
    host.run(0, vec![unchanged("/a")]).check("converged", &[]);
    host.fights(899, &[contested("/a", 0)], &[]).check("converged", &[]);
    host.fights(900, &[contested("/a", 0)], &[]).check("requested", &["Ask"]);
    let request = host.health.request().unwrap().clone();
    assert_eq!(request.reason.as_str(), "flapping");
    assert_eq!(request.summary, "file[/a] is fought over by puppet.service");
    // Each repair converges; that does not end the fight.
    host.run(960, vec![unchanged("/a")]).check("requested", &[]);
    host.fights(961, &[contested("/a", 0)], &[]).check("requested", &[]);
    host.fights(1200, &[], &[id("/a")]).check("converged", &["Withdraw", "AlertRestored"]);
    // Not twice within the cool-down of 100 s.
    host.fights(1250, &[contested("/a", 300)], &[]).check("failing", &["AlertUnhealthy"]);
    host.fights(1300, &[contested("/a", 300)], &[]).check("requested", &["Ask"]);
}

#[test]
fn a_fight_that_does_not_end_is_told_of_where_nobody_may_be_asked() {
    let mut host = Host::new();
    host.may_ask = MayAsk::No;
    host.run(0, vec![unchanged("/a")]);
    host.fights(900, &[contested("/a", 0)], &[]).check("failing", &["AlertUnhealthy"]);
    assert_eq!(host.health.failing.get(&id("/a")).map(|f| (f.attempts, f.signature.as_str())), Some((70, "flapping")));
    host.fights(960, &[contested("/a", 0)], &[]).check("failing", &[]);
    host.run(961, vec![unchanged("/a")]).check("failing", &[]);
    // Once the pause is over, it asks.
    host.may_ask = MayAsk::Yes;
    host.fights(1000, &[contested("/a", 0)], &[]).check("requested", &["Ask"]);

    let mut host = Host::new();
    host.may_ask = MayAsk::No;
    host.run(0, vec![unchanged("/a")]);
    host.fights(900, &[contested("/a", 0)], &[]).check("failing", &["AlertUnhealthy"]);
    host.fights(1200, &[], &[id("/a")]).check("converged", &["AlertRestored", "RunEverything"]);
}

#[test]
fn a_fight_that_an_earlier_process_saw_is_forgotten_when_it_does_not_begin_again() {
    let mut host = Host::new();
    host.fights(900, &[contested("/a", 0)], &[]).check("requested", &["Ask"]);
    host.run(1000, vec![unchanged("/a")]).check("requested", &[]);
    host.run(900 + 1801, vec![unchanged("/a")]).check("converged", &["Withdraw", "AlertRestored"]);
}

#[test]
fn what_cannot_be_repaired_fails_whether_or_not_it_is_fought_over() {
    let mut host = Host::new();
    host.may_ask = MayAsk::No;
    host.fights(900, &[contested("/a", 0)], &[]).check("failing", &["AlertUnhealthy"]);
    host.run(901, vec![failed("/a")]);
    host.fights(902, &[contested("/a", 0)], &[]);
    assert_eq!(host.health.failing.get(&id("/a")).map(|f| (f.attempts, f.signature.as_str())), Some((1, "no")));
    host.run(903, vec![unchanged("/a")]);
    host.fights(904, &[contested("/a", 0)], &[]).check("failing", &["AlertUnhealthy"]);
}

#[test]
fn the_same_error_five_times_in_a_minute_is_a_convergence_failure_told_once() {
    let mut host = Host { settings: HealthSettings::default(), ..Host::new() };
    host.run(0, vec![failed("/a")]).check("degraded", &["AlertFailed"]);
    for second in [15, 30, 45, 60] {
        host.run(second, vec![failed("/a")]).check("degraded", &[]);
    }
    let failure = host.health.failing.get(&id("/a")).unwrap();
    assert_eq!((failure.attempts, failure.signature.as_str(), failure.since), (5, "no", at(0)));
    // The give-up limits, and nothing sooner, decide when it leads to a request.
    host.run(15 * 60, vec![failed("/a")]).check("requested", &["Ask"]);
}

#[test]
fn case_44_a_damaged_file_system_asks_for_a_reimage_and_convergence_does_not_withdraw_it() {
    let mut host = Host::new();
    host.run(0, vec![unchanged("/a")]);
    host.damage(1).check("requested", &["Ask"]);
    let request = host.health.request().unwrap().clone();
    assert_eq!(request.reason.as_str(), "failed");
    assert!(request.summary.starts_with("fs-error: "), "{}", request.summary);
    host.run(2, vec![unchanged("/a")]).check("requested", &[]);
    host.damage(3).check("requested", &[]);
}

#[test]
fn a_damaged_file_system_waits_until_somebody_may_be_asked_or_it_was_mended() {
    let mut host = Host::new();
    host.may_ask = MayAsk::No;
    host.run(0, vec![unchanged("/a")]);
    host.damage(1).check("failing", &["AlertUnhealthy"]);
    host.damage(2).check("failing", &[]);
    host.run(3, vec![unchanged("/a")]).check("failing", &[]);
    host.feed(Input::NewRevision(&Revision::new("r2")), 4);
    host.revision = Revision::new("r2");
    host.run(5, vec![failed("/a")]).check("failing", &["AlertFailed"]);
    host.may_ask = MayAsk::Yes;
    host.run(6, vec![unchanged("/a")]).check("requested", &["Ask"]);

    let mut host = Host::new();
    host.may_ask = MayAsk::No;
    host.run(0, vec![unchanged("/a")]);
    host.damage(1);
    host.feed(Input::FileSystemSound { device: "sdb1" }, 2);
    host.run(3, vec![unchanged("/a")]).check("failing", &[]);
    host.feed(Input::FileSystemSound { device: "vda1" }, 4);
    host.run(5, vec![unchanged("/a")]).check("converged", &["AlertRestored", "RunEverything"]);
}

#[test]
fn the_second_drift_of_the_agent_itself_within_an_hour_asks() {
    let mut host = Host::new();
    host.run(0, vec![unchanged("/a")]);
    host.own_drift(0).check("converged", &[]);
    host.own_drift(3601).check("converged", &[]);
    host.own_drift(3700).check("requested", &["Ask"]);
    assert_eq!(host.health.request().unwrap().reason.as_str(), "tampered");
    let mut paused = Host::new();
    paused.may_ask = MayAsk::No;
    paused.own_drift(0);
    paused.own_drift(1).check("unknown", &[]);
}

#[test]
fn what_still_fails_after_the_agent_was_started_anew_is_given_up_without_waiting() {
    let fail_twice = || {
        let mut host = Host::new();
        host.run(0, vec![failed("/a")]);
        host.run(1, vec![failed("/a")]).check("degraded", &[]);
        host
    };
    let mut host = fail_twice();
    host.run(2, vec![failed("/a")]).check("degraded", &[]);
    let mut restarted = fail_twice();
    restarted.feed(Input::Restarted, 2);
    restarted.check("degraded", &[]);
    restarted.run(2, vec![failed("/a")]).check("requested", &["Ask"]);

    // One attempt too few.
    let mut early = Host::new();
    early.run(0, vec![failed("/a")]);
    early.feed(Input::Restarted, 1);
    early.run(1, vec![failed("/a")]).check("degraded", &[]);
    early.run(2, vec![failed("/a")]).check("requested", &["Ask"]);

    // Another cause than before.
    let mut other = fail_twice();
    other.feed(Input::Restarted, 2);
    let (resource, _) = failed("/a");
    let outcome = Outcome::Failed { changes: Vec::new(), error: "else".into(), signature: "else".into() };
    other.run(2, vec![(resource, outcome)]).check("degraded", &[]);
    other.run(3, vec![failed("/a")]).check("degraded", &[]);

    // It was mended in between.
    let mut mended = fail_twice();
    mended.feed(Input::Restarted, 2);
    mended.run(2, vec![unchanged("/a")]).check("converged", &["AlertRestored", "RunEverything"]);
    for second in 3..6 {
        mended.run(second, vec![failed("/a")]);
    }
    mended.check("degraded", &[]);

    // The policy is suspected first, as ever.
    let mut with_another = fail_twice();
    with_another.last_good = Some(Revision::new("r0"));
    with_another.feed(Input::Restarted, 2);
    with_another.run(2, vec![failed("/a")]).check("on_last_good", &["RollBack"]);
}
