//! Scenes of hints, runs and time.

use jiff::Timestamp;

use super::*;
use crate::config::ConvergeSettings;
use crate::converge::DebtReport;
use crate::policy::Revision;
use crate::resource::{Action, Kind};

/// A schedule, its clock, and what the next run will find.
struct Scene {
    schedule: Schedule,
    start: Instant,
    now: Instant,
}

const A: &str = "/a";
const B: &str = "/b";

fn id(name: &str) -> ResourceId {
    ResourceId::new(Kind::File, name)
}

fn only(names: &[&str]) -> Scope {
    Scope::Only(names.iter().copied().map(id).collect())
}

fn changed() -> Outcome {
    Outcome::Changed { changes: Vec::new(), action: Action::Update }
}

fn failed() -> Outcome {
    Outcome::Failed { changes: Vec::new(), error: "no".into(), signature: "no".into() }
}

fn report(full: bool, outcomes: &[(&str, Outcome)]) -> RunReport {
    RunReport {
        run: 1,
        revision: Revision::new("r"),
        cause: Cause::Drift,
        full,
        started: Timestamp::UNIX_EPOCH,
        duration_us: 1000,
        resources: outcomes
            .iter()
            .map(|(name, outcome)| (id(name), outcome.clone()))
            .map(|(resource, outcome)| ResourceReport { resource, step: None, overtaken: false, outcome })
            .collect(),
        debts: Vec::new(),
        interrupted: false,
    }
}

impl Scene {
    /// After a first full run that found `A` and `B` in sync.
    fn new(settings: &Settings) -> Self {
        let start = Instant::now();
        let mut scene = Self { schedule: Schedule::new(settings, 1, start), start, now: start };
        scene.expect_run(&Scope::Everything);
        scene.report(&report(true, &[(A, Outcome::Unchanged), (B, Outcome::Unchanged)]));
        scene.pass(Duration::from_secs(2));
        scene
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn hint(&mut self, names: &[&str]) {
        self.schedule.hint(Hint::Look(names.iter().copied().map(id).collect()), self.now);
    }

    fn report(&mut self, report: &RunReport) {
        self.schedule.report(report, self.now);
    }

    #[track_caller]
    fn expect_run(&mut self, expected: &Scope) {
        match self.schedule.next(self.now) {
            Next::Run { scope, .. } => assert_eq!(&scope, expected),
            other @ (Next::WaitUntil(_) | Next::Running) => {
                panic!("expected a run at {:?}, found {other:?}", self.now - self.start)
            }
        }
    }

    /// Asserts that nothing is due, and goes to when something is.
    #[track_caller]
    fn expect_wait(&mut self) -> Duration {
        match self.schedule.next(self.now) {
            Next::WaitUntil(at) => {
                assert!(at > self.now, "a wait for the past spins");
                let waited = at - self.now;
                self.now = at;
                waited
            }
            other @ (Next::Run { .. } | Next::Running) => panic!("expected a wait, found {other:?}"),
        }
    }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_first_hint_runs_at_once_and_others_wait_for_the_run_to_end() {
    let mut scene = Scene::new(&Settings::default());
    scene.hint(&[A]);
    scene.expect_run(&only(&[A]));
    scene.hint(&[A]);
    scene.hint(&[B]);
    assert_eq!(scene.schedule.next(scene.now), Next::Running);
    scene.report(&report(false, &[(A, Outcome::Unchanged)]));
    scene.expect_run(&only(&[A, B]));
    scene.report(&report(false, &[(A, Outcome::Unchanged), (B, Outcome::Unchanged)]));
    scene.expect_wait();
}

#[test]
fn settling_waits_for_the_last_event_but_not_for_a_writer_that_never_stops() {
    let converge = ConvergeSettings { settle: MS * 100, settle_max: MS * 250, ..ConvergeSettings::default() };
    let mut scene = Scene::new(&Settings { converge, ..Settings::default() });
    scene.hint(&[A]);
    assert_eq!(scene.expect_wait(), MS * 100);
    scene.expect_run(&only(&[A]));
    scene.report(&report(false, &[(A, Outcome::Unchanged)]));
    for _ in 0..5 {
        scene.hint(&[A]);
        assert!(matches!(scene.schedule.next(scene.now), Next::WaitUntil(_)));
        scene.pass(MS * 50);
    }
    scene.hint(&[A]);
    scene.expect_run(&only(&[A]));
}

#[test]
fn a_full_scan_comes_by_itself_spread_by_chance() {
    let mut seen = BTreeSet::new();
    for seed in 0..20 {
        let now = Instant::now();
        let mut schedule = Schedule::new(&Settings::default(), seed, now);
        let Next::Run { .. } = schedule.next(now) else { panic!("nothing ran") };
        schedule.report(&report(true, &[]), now);
        let Next::WaitUntil(at) = schedule.next(now) else { panic!("something ran") };
        let wait = at - now;
        assert!(SECOND * 60 * 27 <= wait && wait <= SECOND * 60 * 33, "{wait:?}");
        seen.insert(wait);
        assert!(matches!(schedule.next(at), Next::Run { scope: Scope::Everything, why: "periodic full scan" }));
    }
    assert!(seen.len() > 15, "seeds must matter: {seen:?}");
}

#[test]
fn everything_includes_what_was_hinted_and_does_not_follow_itself_without_rest() {
    let mut scene = Scene::new(&Settings::default());
    scene.hint(&[A]);
    scene.schedule.hint(Hint::Everything { why: "overflow" }, scene.now);
    scene.expect_run(&Scope::Everything);
    scene.schedule.hint(Hint::Everything { why: "overflow" }, scene.now);
    let mut slow = report(true, &[(A, Outcome::Unchanged), (B, Outcome::Unchanged)]);
    slow.duration_us = 100_000;
    scene.report(&slow);
    assert_eq!(scene.expect_wait(), MS * 400);
    scene.expect_run(&Scope::Everything);
}

#[test]
fn a_failure_is_retried_ever_later_and_what_it_blocked_with_it() {
    let mut scene = Scene::new(&Settings::default());
    scene.hint(&[A, B]);
    scene.expect_run(&only(&[A, B]));
    let outcome = [(A, failed()), (B, Outcome::Skipped { blocked_by: id(A) })];
    scene.report(&report(false, &outcome));
    let mut longest = Duration::ZERO;
    let mut limit = SECOND;
    for _ in 0..12 {
        let wait = scene.expect_wait();
        assert!(MS * 500 <= wait && wait <= limit, "{wait:?} of {limit:?}");
        longest = longest.max(wait);
        limit = (limit * 2).min(SECOND * 300);
        scene.expect_run(&only(&[A, B]));
        scene.report(&report(false, &outcome));
    }
    assert!(longest > SECOND * 30, "{longest:?}");
    scene.hint(&[A]);
    assert!(scene.expect_wait() <= SECOND * 15, "a hint shortens the delay");
    scene.expect_run(&only(&[A, B]));
    scene.report(&report(false, &[(A, Outcome::Unchanged), (B, Outcome::Unchanged)]));
    assert!(scene.expect_wait() > SECOND * 60, "nothing is left to retry");
}

#[test]
fn an_unpaid_debt_is_retried_ever_later_through_the_resource_that_owes_it() {
    let mut scene = Scene::new(&Settings::default());
    let mut owing = report(false, &[(A, Outcome::Unchanged)]);
    owing.debts = vec![DebtReport {
        unit: "ssh.service".into(),
        notify: "restart".into(),
        because_of: id(A),
        error: "no".into(),
    }];
    scene.hint(&[A]);
    let mut waited = Duration::ZERO;
    for _ in 0..8 {
        scene.expect_run(&only(&[A]));
        scene.report(&owing);
        waited += scene.expect_wait();
    }
    assert!(waited > SECOND * 10, "{waited:?}");
}

#[test]
fn what_is_no_longer_declared_is_not_retried_for_ever() {
    let mut scene = Scene::new(&Settings::default());
    scene.hint(&[A]);
    scene.expect_run(&only(&[A]));
    scene.report(&report(false, &[(A, failed())]));
    scene.expect_wait();
    scene.expect_run(&only(&[A]));
    scene.report(&report(false, &[]));
    assert!(scene.expect_wait() > SECOND * 60);
}

/// Somebody changes `A` whenever it has been repaired. Returns the waits between repairs.
fn fight(scene: &mut Scene, n_repairs: u32) -> Vec<Duration> {
    let mut waits = Vec::new();
    for _ in 0..n_repairs {
        scene.hint(&[A]);
        let mut wait = Duration::ZERO;
        while scene.schedule.held(&id(A), scene.now).is_some() {
            wait += scene.expect_wait();
        }
        waits.push(wait);
        scene.expect_run(&only(&[A]));
        scene.report(&report(false, &[(A, changed())]));
    }
    waits
}

#[test]
fn a_fight_is_slowed_down_and_never_given_up() {
    let mut scene = Scene::new(&Settings::default());
    let waits = fight(&mut scene, 70);
    let mut expected = vec![Duration::ZERO; 60];
    expected.extend([1, 2, 4, 8, 16, 32, 60, 60, 60, 60].map(Duration::from_secs));
    assert_eq!(waits, expected);
    assert_eq!(scene.schedule.contested(scene.now).map(|(id, _)| id.clone()).collect::<Vec<_>>(), [id(A)]);
    // The other side stops: the resource is looked at once more without any hint, and all is forgotten after a while.
    assert_eq!(scene.expect_wait(), SECOND * 60);
    scene.expect_run(&only(&[A]));
    scene.report(&report(false, &[(A, Outcome::Unchanged)]));
    scene.pass(SECOND * 200);
    assert_eq!(scene.schedule.contested(scene.now).count(), 0);
    assert_eq!(fight(&mut scene, 60), [Duration::ZERO; 60]);
}

#[test]
fn a_full_run_does_not_forget_that_a_resource_is_held() {
    let mut scene = Scene::new(&Settings::default());
    fight(&mut scene, 65);
    let until = scene.schedule.held(&id(A), scene.now).unwrap();
    scene.schedule.hint(Hint::Everything { why: "new revision" }, scene.now);
    scene.expect_run(&Scope::Everything);
    let held = Outcome::Reported { changes: Vec::new(), action: Action::Update, why: "held".into() };
    scene.report(&report(true, &[(A, held), (B, Outcome::Unchanged)]));
    scene.expect_wait();
    assert_eq!(scene.now, until);
    scene.expect_run(&only(&[A]));
}

#[test]
fn slow_drift_is_no_fight_and_tolerance_is_configurable() {
    let mut scene = Scene::new(&Settings::default());
    for _ in 0..100 {
        assert_eq!(fight(&mut scene, 1), [Duration::ZERO]);
        scene.pass(SECOND);
    }
    let mut settings = Settings::default();
    settings.health.flapping_repairs = 2000;
    let mut scene = Scene::new(&settings);
    assert_eq!(fight(&mut scene, 1000), [Duration::ZERO; 1000]);
}

#[test]
fn a_run_that_could_not_be_carried_out_is_tried_again() {
    let mut scene = Scene::new(&Settings::default());
    scene.hint(&[A]);
    scene.expect_run(&only(&[A]));
    scene.schedule.abandoned(scene.now);
    assert_eq!(scene.expect_wait(), SECOND);
    scene.expect_run(&only(&[A]));
    scene.report(&report(false, &[(A, Outcome::Unchanged)]));
    scene.schedule.hint(Hint::Everything { why: "test" }, scene.now);
    scene.expect_run(&Scope::Everything);
    scene.schedule.abandoned(scene.now);
    assert_eq!(scene.expect_wait(), SECOND);
    scene.expect_run(&Scope::Everything);
    let interrupted = RunReport { interrupted: true, ..report(true, &[(A, Outcome::Unchanged)]) };
    scene.report(&interrupted);
    scene.expect_run(&Scope::Everything);
}

#[test]
fn a_hint_does_not_hurry_what_keeps_failing() {
    let mut scene = Scene::new(&Settings::default());
    let mut waits = Vec::new();
    for _ in 0..12 {
        // The failing step itself causes an event.
        scene.hint(&[A]);
        let mut waited = Duration::ZERO;
        while scene.schedule.due(scene.now).is_some_and(|due| due > scene.now) {
            waited += scene.expect_wait();
        }
        waits.push(waited);
        scene.expect_run(&only(&[A]));
        scene.report(&report(false, &[(A, failed())]));
    }
    assert_eq!(waits.first(), Some(&Duration::ZERO), "the first failure was not foreseen");
    assert!(waits.iter().skip(1).all(|wait| *wait > Duration::ZERO), "a failing step hurries itself: {waits:?}");
    assert!(waits.iter().all(|wait| *wait <= SECOND * 15), "a hint is looked at soon: {waits:?}");
}

#[test]
fn what_was_changed_again_before_it_could_be_verified_is_looked_at_at_once() {
    let mut scene = Scene::new(&Settings::default());
    scene.hint(&[A]);
    scene.expect_run(&only(&[A]));
    let mut overtaken = report(false, &[(A, changed())]);
    overtaken.resources.iter_mut().for_each(|resource| resource.overtaken = true);
    scene.report(&overtaken);
    scene.expect_run(&only(&[A]));
}
