//! What is shown of content at paths where secrets stand, stood, or may stand.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::record::LOST;
use crate::resource::Change;
use crate::resource::content::SecretKey;

const SECRET: &str = "hunter2-8f3a";
const KEY: &str = "secret_paths";

fn a_secret(path: &str) -> Resource {
    let mut file = a_file(path, "");
    if let Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) = &mut file.desired {
        spec.content = Content::secret(SECRET.as_bytes(), SecretKey::new(b"a key"));
    }
    file
}

/// A host on which a secret stands, and a policy that says no more that it is one.
fn world() -> (World, DesiredState) {
    let mut world = World::new();
    let report = world.converge(&desired(vec![a_secret("/token"), a_file("/motd", "hello\n")]));
    assert_eq!(outcomes(&report), ["changed file[/token]", "changed file[/motd]"]);
    (world, desired(vec![a_file("/token", "plain\n"), a_file("/motd", "welcome\n")]))
}

/// Everything that a plan says.
fn said(plan: &Plan) -> String {
    format!("{}{}{plan:?}", plan.to_text(), plan.to_json())
}

/// A plan that shows no content and says why.
#[track_caller]
fn assert_all_concealed(plan: &Plan, why: &str) {
    let said = said(plan);
    assert!(!said.contains(SECRET) && !said.contains("-hello"), "{said}");
    assert!(plan.concealed.as_ref().is_some_and(|concealed| concealed.contains(why)), "{said}");
    assert!(
        plan.to_text().contains("what may be a secret is not shown, because it cannot be told where secrets stand"),
        "{said}"
    );
    assert!(plan.steps.iter().all(|step| step.changes.iter().any(Change::is_concealed)), "{said}");
}

/// Whether anything that the record holds has the secret in it.
fn is_recorded(world: &World) -> bool {
    let filter = crate::record::HistoryFilter { limit: 100, ..Default::default() };
    format!("{:?}", world.record.history(&filter).unwrap()).contains(SECRET)
}

#[test]
fn a_former_secret_is_hidden_and_nothing_else() {
    let (mut world, desired) = world();
    let plan = world.plan(&desired);
    assert!(!said(&plan).contains(SECRET) && said(&plan).contains("-hello"), "{}", said(&plan));
    assert_eq!((&plan.concealed, &plan.owed_unknown), (&None, &None));
    assert!(world.converge(&desired).converged());
    assert!(!is_recorded(&world));
    world.write("/token", "edited\n");
    assert!(said(&world.plan(&desired)).contains("-edited"), "it is a secret no more");
    // A host on which nothing was ever recorded hides nothing.
    let plan = observe_and_plan(&world.host, Memory::Nothing, &everything(&desired));
    assert!(said(&plan).contains("-edited") && plan.concealed.is_none());
}

#[test]
fn threat_a_record_that_cannot_be_read_hides_every_content() {
    let (world, desired) = world();
    let error = Record::open_read_only(&world.state.path().join("nowhere")).unwrap_err();
    let plan = observe_and_plan(&world.host, Memory::Unreadable(&error), &everything(&desired));
    assert_all_concealed(&plan, "cannot open in the state database");
    // Nor can it be told what is owed, so that a plan without a step is not empty.
    let in_sync = self::desired(vec![a_file("/motd", "hello\n")]);
    let plan = observe_and_plan(&world.host, Memory::Unreadable(&error), &everything(&in_sync));
    assert!(plan.steps.is_empty() && plan.owed_unknown.is_some() && !plan.is_empty(), "{}", plan.to_text());
}

#[test]
fn threat_what_is_remembered_of_secrets_is_damaged() {
    let (mut world, desired) = world();
    world.record.save(KEY, &"damaged").unwrap();
    assert_all_concealed(&world.plan(&desired), "cannot read the stored `secret_paths`");
    // A run over one thing clears that thing, and leaves everything else in doubt: nobody forgets what was not read.
    let only = Request { scope: Scope::Only([ResourceId::new(Kind::File, "/motd")].into()), ..everything(&desired) };
    let report = world.converge_with(&only);
    assert_eq!(outcomes(&report), ["changed file[/motd]"]);
    assert_eq!(report.resources[0].displaced, None, "a digest lets a guess be tested");
    let places = world.record.places(report.resources[0].step.unwrap()).unwrap();
    let kept = crate::record::kept(world.state.path(), places[0].before.content_name().unwrap()).unwrap();
    assert_eq!(kept.as_deref(), Some(&b"hello\n"[..]), "nothing is lost meanwhile");
    assert!(!format!("{report:?}").contains("-hello"), "{report:?}");
    assert_all_concealed(&world.plan(&desired), "was lost");
    world.write("/motd", "edited\n");
    assert!(said(&world.plan(&desired)).contains("-edited"), "what was found as declared is no secret");
    // Once everything was, there is no doubt left.
    assert!(world.converge(&desired).converged());
    assert!(!is_recorded(&world));
    assert_eq!(world.record.load::<Vec<String>>(LOST).unwrap(), None);
    assert_eq!(world.record.load::<Vec<String>>(KEY).unwrap(), Some(Vec::new()));
    world.write("/token", "edited\n");
    let plan = world.plan(&desired);
    assert!(said(&plan).contains("-edited") && plan.concealed.is_none(), "{}", said(&plan));
}

/// What was kept in doubt may be a secret for ever: also when it is put back because nobody confirmed its successor.
#[test]
fn threat_what_was_kept_in_doubt_is_put_back_after_the_doubt() {
    let mut world = World::new();
    world.write("/token", SECRET);
    world.record.save(LOST, &[0_u8; 0]).unwrap();
    let mut token = a_file("/token", "plain\n");
    let by = crate::resource::Proof::Command(vec!["/bin/false".to_owned()]);
    let confirm = crate::resource::Confirm { within: std::time::Duration::from_secs(60), by };
    token.notes = Some(Box::new(crate::resource::Notes { confirm: Some(confirm), ..Default::default() }));
    let desired = desired(vec![token]);
    let request = Request { cause: Cause::NewRevision, ..everything(&desired) };
    assert!(world.converge_with(&request).converged());
    assert_eq!(world.record.load::<Vec<String>>(LOST).unwrap(), None, "the doubt has ended");
    let origin = world.record.origin("/token").unwrap().unwrap();
    assert!(matches!(origin, crate::resource::Stood::Hidden { .. }), "nobody puts that back unasked: {origin:?}");
    let [one] = &world.record.confirmations().unwrap()[..] else { panic!() };
    crate::converge::confirm::put_back(&mut world.host, &mut world.record, world.state.path(), one, "none").unwrap();
    assert_eq!(world.read("/token"), SECRET);
    let filter = crate::record::HistoryFilter { limit: 1, ..Default::default() };
    let undone = world.record.history(&filter).unwrap().remove(0);
    assert_eq!(undone.outcome, "undone");
    assert!(undone.changes.iter().any(Change::is_concealed), "{undone:?}");
    let plan = world.plan(&desired);
    assert!(!said(&plan).contains(SECRET) && said(&plan).contains("perhaps a secret"), "{}", said(&plan));
    world.reopen();
    assert!(!said(&world.plan(&desired)).contains(SECRET), "the next process knows it too");
    // As long as it stands there.
    assert!(world.converge(&desired).converged());
    assert!(!is_recorded(&world));
    world.write("/token", "edited\n");
    assert!(said(&world.plan(&desired)).contains("-edited"));
}

#[test]
fn threat_a_lost_record_has_forgotten_where_secrets_stand() {
    let (mut world, desired) = world();
    let database = world.state.path().join("state.db");
    let elsewhere = tempfile::tempdir().unwrap();
    world.record = Record::open(elsewhere.path()).unwrap().record;
    for side in ["state.db-wal", "state.db-shm"] {
        std::fs::remove_file(world.state.path().join(side)).ok();
    }
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(&database).unwrap(),
        &[0xff; 4096],
        0,
    )
    .unwrap();
    let opened = Record::open(world.state.path()).unwrap();
    assert!(opened.set_aside.is_some());
    drop(opened);
    // The next process does not know of it any more, and knows.
    world.reopen();
    assert_all_concealed(&world.plan(&desired), "the state database was lost");
    // What was cut short, or is only reported, leaves the doubt.
    let interrupted = Request { mode: Mode::Noop, ..everything(&desired) };
    assert!(!format!("{:?}", world.converge_with(&interrupted)).contains(SECRET));
    assert_all_concealed(&world.plan(&desired), "the state database was lost");
    assert!(world.converge(&desired).converged());
    assert!(!is_recorded(&world));
    world.write("/token", "edited\n");
    assert!(said(&world.plan(&desired)).contains("-edited"));
}

#[test]
fn threat_a_private_key_that_no_policy_knows_of() {
    let mut world = World::new();
    let key = format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n");
    world.write("/replaced", &key);
    world.write("/removed", &format!("password = {SECRET}\n"));
    world.write("/public", "-hello of somebody\n");
    std::fs::set_permissions(world.path("/removed"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::set_permissions(world.path("/public"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let desired = desired(vec![a_file("/replaced", "plain\n"), no_file("/removed"), no_file("/public")]);
    let said = said(&world.plan(&desired));
    assert!(!said.contains(SECRET) && said.contains("hello of somebody"), "{said}");
    let report = world.converge(&desired);
    assert!(report.converged() && !format!("{report:?}").contains(SECRET), "{report:?}");
    assert!(!is_recorded(&world));
    // It can be put back all the same.
    let entry = report.resources.iter().find(|entry| &*entry.resource.name == "/replaced").unwrap();
    let places = world.record.places(entry.step.unwrap()).unwrap();
    let kept = crate::record::kept(world.state.path(), places[0].before.content_name().unwrap()).unwrap();
    assert_eq!(kept, Some(key.into_bytes()));
}
