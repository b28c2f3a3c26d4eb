//! Scenes of hints, runs and time.

use jiff::Timestamp;

use super::*;
use crate::config::ConvergeSettings;
use crate::converge::DebtReport;
use crate::policy::Revision;
use crate::resource::{Action, Change, Kind};

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
        while scene.schedule.held_until(&id(A), scene.now).is_some() {
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
    assert_eq!(scene.schedule.contested(scene.now).map(|fight| fight.resource.clone()).collect::<Vec<_>>(), [id(A)]);
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
    let until = scene.schedule.held_until(&id(A), scene.now).unwrap();
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

/// Somebody else's content arrives; a run puts it away.
fn displace(scene: &mut Scene, sha256: &str, actor: &str) {
    scene.hint(&[A]);
    while scene.schedule.held_until(&id(A), scene.now).is_some() {
        scene.expect_wait();
    }
    scene.expect_run(&only(&[A]));
    let mut repaired = report(false, &[(A, changed())]);
    repaired.resources.iter_mut().for_each(|resource| resource.displaced = Some(sha256.repeat(8)));
    scene.report(&repaired);
    scene.schedule.displaced(&id(A), Displaced::content(&sha256.repeat(8), Some(actor)));
}

/// The sentence about the one contested resource.
#[track_caller]
fn sentence(scene: &Scene) -> String {
    let contested: Vec<Contested<'_>> = scene.schedule.contested(scene.now).collect();
    let [fight] = contested.as_slice() else { panic!("{contested:?}") };
    fight.contest.sentence(fight.resource, Some("sha256 3f3f3f3f3f3f…"))
}

#[test]
fn case_31_a_second_enforcer_every_half_second_gets_bounded_repairs_and_its_name_told() {
    let mut scene = Scene::new(&Settings::default());
    let end = scene.now + SECOND * 600;
    let mut n_repairs = 0;
    let mut rewritten = scene.now;
    while scene.now < end {
        scene.hint(&[A]);
        if let Next::Run { scope, .. } = scene.schedule.next(scene.now) {
            assert_eq!(scope, only(&[A]));
            scene.report(&report(false, &[(A, changed())]));
            scene.schedule.displaced(&id(A), Displaced::content("9a41c0ffee00112233", Some("puppet.service")));
            n_repairs += 1;
        }
        rewritten += MS * 500;
        scene.now = rewritten;
    }
    // Two a second use up what is free in a minute; then 1, 2, 4, 8, 16, 32 s, and once a minute.
    assert!((60 + 10..=60 * 2 + 20).contains(&n_repairs), "{n_repairs} repairs in ten minutes");
    let text = sentence(&scene);
    assert!(text.starts_with("file[/a] is fought over by puppet.service ("), "{text}");
    assert!(
        text.ends_with(": the policy wants sha256 3f3f3f3f3f3f…, it keeps coming back as sha256 9a41c0ffee00…"),
        "{text}"
    );
    let since = scene.schedule.contested(scene.now).next().unwrap().since;
    assert!(scene.now - since > SECOND * 400, "contested {:?}", scene.now - since);
    let told = scene.schedule.fights_change_at(scene.now).unwrap();
    assert!(told <= since + Settings::default().health.flapping_for, "the end of patience is known in advance");
}

#[test]
fn case_32_a_toucher_that_changes_no_content_is_looked_at_and_causes_no_repair() {
    let mut scene = Scene::new(&Settings::default());
    let end = scene.now + SECOND * 10;
    let mut n_runs = 0;
    while scene.now < end {
        scene.hint(&[A]);
        scene.expect_run(&only(&[A]));
        scene.report(&report(false, &[(A, Outcome::Unchanged)]));
        n_runs += 1;
        scene.pass(MS * 5);
    }
    assert_eq!(n_runs, 2000);
    assert_eq!(scene.schedule.contested(scene.now).count(), 0);
    assert_eq!(scene.schedule.held(scene.now).count(), 0);
    assert_eq!(scene.schedule.fights_change_at(scene.now), None, "nothing is remembered, so nothing wakes the agent");
}

#[test]
fn repairs_that_no_run_made_count_like_those_of_runs() {
    let mut scene = Scene::new(&Settings::default());
    for _ in 0..59 {
        scene.schedule.repaired(&id(A), scene.now);
    }
    assert_eq!(scene.schedule.held(scene.now).count(), 0);
    scene.schedule.repaired(&id(A), scene.now);
    assert_eq!(scene.schedule.held(scene.now).collect::<Vec<_>>(), [(&id(A), scene.now + SECOND)]);
}

#[test]
fn two_other_enforcers_are_told_from_one() {
    let mut scene = Scene::new(&Settings::default());
    for _ in 0..35 {
        displace(&mut scene, "aaaa0000", "puppet.service");
        displace(&mut scene, "bbbb0000", "chef.service");
    }
    let text = sentence(&scene);
    assert!(text.contains("by chef.service (") && text.contains(" and puppet.service ("), "{text}");
    assert!(
        text.contains("it keeps coming back as sha256 aaaa0000aaaa… and as sha256 bbbb0000bbbb… in turn"),
        "{text}"
    );
    for _ in 0..8 {
        displace(&mut scene, "aaaa0000", "puppet.service");
    }
    assert!(sentence(&scene).ends_with("it keeps coming back as sha256 aaaa0000aaaa…"), "{}", sentence(&scene));
}

#[test]
fn ever_other_contents_are_no_second_enforcer() {
    let mut contest = Contest::default();
    for digest in 0..20 {
        contest.note(Displaced::content(&format!("{digest:064x}"), None));
    }
    assert_eq!(contest.alternating(), None);
}

#[test]
fn no_more_than_16_names_are_kept_and_the_most_frequent_comes_first() {
    let mut contest = Contest::default();
    for name in 0..40 {
        for _ in 0..=(name % 7) {
            contest.count();
            contest.note(Displaced::content("00", Some(&format!("unit-{name}.service"))));
        }
    }
    let actors = contest.actors();
    assert_eq!(actors.len(), 16);
    assert_eq!(actors.first(), Some(&("unit-13.service", 7)));
    assert!(actors.is_sorted_by_key(|(_, times)| std::cmp::Reverse(*times)));
}

#[test]
fn what_is_told_of_a_value_is_bounded_and_harmless() {
    let noise = format!("a\n\u{1b}[31m{}", "x".repeat(1000));
    let change = Change::value("target", Some(noise), Some("b".into()));
    let outcome = Outcome::Changed { changes: vec![change], action: Action::Update };
    let report = ResourceReport { resource: id(A), step: None, overtaken: false, displaced: None, who: None, outcome };
    let mut contest = Contest::default();
    contest.note(Displaced::of(&report, Some(&"y".repeat(1000))).unwrap());
    let text = contest.sentence(&id(A), None);
    assert!(text.len() < 500 && !text.contains(['\n', '\u{1b}']), "{text}");
    assert!(text.contains("the policy wants target b, it keeps coming back as target a"), "{text}");
}

#[test]
fn removals_are_told_as_what_they_are() {
    let mut contest = Contest::default();
    contest.count();
    contest.note(Displaced::nothing(Some("/usr/bin/rm")));
    let text = contest.sentence(&id(A), None);
    assert_eq!(
        text,
        "file[/a] is fought over by /usr/bin/rm (1 of 1 times): the policy wants it, it keeps being removed"
    );
}

/// Names of many resources.
fn many(n: usize) -> Vec<String> {
    (0..n).map(|number| format!("/many/{number}")).collect()
}

/// A run that repaired one resource, which somebody hinted at.
fn repair_one(scene: &mut Scene, name: &str) {
    scene.hint(&[name]);
    scene.expect_run(&only(&[name]));
    scene.report(&report(false, &[(name, changed())]));
}

#[test]
fn too_many_repairs_of_all_resources_are_made_in_single_passes_until_it_is_calm() {
    let mut scene = Scene::new(&Settings::default());
    let names = many(501);
    for name in &names {
        assert_eq!(scene.schedule.storm(scene.now), None);
        repair_one(&mut scene, name);
    }
    assert_eq!(scene.schedule.storm(scene.now), Some(scene.now));
    assert_eq!(scene.schedule.contested(scene.now).count(), 0, "each was repaired once: nobody fights over one");
    // Passes are made at once, and then at most every 2 s, however many hints there are.
    let everything = report(true, &[(A, changed()), (B, Outcome::Unchanged)]);
    let mut n_passes = 0;
    let end = scene.now + SECOND * 10;
    while scene.now < end {
        scene.hint(&[A, "/many/1"]);
        if let Next::Run { scope, .. } = scene.schedule.next(scene.now) {
            assert_eq!(scope, Scope::Everything);
            scene.report(&everything);
            n_passes += 1;
        }
        scene.pass(MS * 10);
    }
    assert_eq!(n_passes, 5);
    scene.expect_run(&Scope::Everything);
    scene.report(&report(true, &[(A, Outcome::Unchanged), (B, Outcome::Unchanged)]));
    // Half a minute later, hints are followed one by one again.
    let calm = scene.schedule.fights_change_at(scene.now).unwrap();
    assert!(calm <= scene.now + SECOND * 31, "{:?}", calm - scene.now);
    scene.now = calm;
    assert_eq!(scene.schedule.storm(scene.now), None);
    scene.hint(&[B]);
    scene.expect_run(&only(&[B]));
}

#[test]
fn a_slow_pass_in_a_storm_is_followed_by_a_longer_rest() {
    let mut scene = Scene::new(&Settings::default());
    for name in many(501) {
        repair_one(&mut scene, &name);
    }
    scene.hint(&[A]);
    scene.expect_run(&Scope::Everything);
    let slow = RunReport { duration_us: 3_000_000, ..report(true, &[(A, changed()), (B, Outcome::Unchanged)]) };
    scene.report(&slow);
    scene.hint(&[A]);
    assert_eq!(scene.expect_wait(), SECOND * 12);
    scene.expect_run(&Scope::Everything);
}

#[test]
fn one_pass_that_repairs_a_lot_is_no_storm() {
    let mut scene = Scene::new(&Settings::default());
    let names = many(5000);
    let outcomes: Vec<(&str, Outcome)> = names.iter().map(|name| (name.as_str(), changed())).collect();
    scene.schedule.hint(Hint::Everything { why: "a pause changes" }, scene.now);
    scene.expect_run(&Scope::Everything);
    scene.report(&report(true, &outcomes));
    assert_eq!(scene.schedule.storm(scene.now), None);
}

#[test]
fn a_new_revision_is_the_end_of_fights_and_new_settings_are_not() {
    let mut scene = Scene::new(&Settings::default());
    fight(&mut scene, 65);
    let now = scene.now;
    let old = std::mem::replace(&mut scene.schedule, Schedule::new(&Settings::default(), 1, now));
    scene.schedule = old.reconfigured(&Settings::default(), 2, now);
    assert_eq!(scene.schedule.contested(now).count(), 1);
    assert!(scene.schedule.held_until(&id(A), now).is_some());
    scene.expect_run(&Scope::Everything);
    let outcomes = [(A, changed()), (B, Outcome::Unchanged)];
    scene.report(&RunReport { cause: Cause::NewRevision, ..report(true, &outcomes) });
    assert_eq!(scene.schedule.contested(now).count(), 0);
    assert_eq!(scene.schedule.held_until(&id(A), now), None);
}

#[test]
fn a_fight_that_ends_is_told_without_any_event() {
    let mut scene = Scene::new(&Settings::default());
    fight(&mut scene, 61);
    let until = scene.schedule.held_until(&id(A), scene.now).unwrap();
    scene.now = until;
    scene.expect_run(&only(&[A]));
    scene.report(&report(false, &[(A, Outcome::Unchanged)]));
    let over = scene.schedule.fights_change_at(scene.now).unwrap();
    assert_eq!(scene.schedule.contested(scene.now).count(), 1);
    scene.now = over;
    assert_eq!(scene.schedule.contested(scene.now).count(), 0);
    assert!(scene.schedule.fights_change_at(scene.now).is_none_or(|at| at > scene.now), "a wake-up in the past spins");
}
