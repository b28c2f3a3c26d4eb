//! The life of a request.

use std::time::Duration;

use crate::common::{Host, Setup, Site, content_digest, enrolment, expect, expect_problem, expect_status};
use rekindle_hub::Approval;
use rekindle_protocol::{Reason, ReimageState};
use serde_json::json;

const DOSSIER: &[u8] = br#"{"failed":["package[nginx]"]}"#;

/// Takes a host from its request to the dispatch of its engine.
async fn dispatched(site: &Site, host: &Host) -> String {
    let asked = expect_status(host.ask(site, "r1", None).await, 201).await;
    site.admin().approve(asked.id.as_str()).await.unwrap();
    expect_status(host.act(site, asked.id.as_str(), "ready").await, 202).await;
    asked.id.to_string()
}

#[tokio::test]
async fn a_host_is_reborn() {
    let site = Site::start(&Setup::default()).await;
    let old = site.host("web-1").await;
    assert_eq!(old.incarnation, 1);
    let answer = expect(old.check_in(&site, 1, "failing").await, 200).await;
    assert_eq!(answer["directive"], json!({ "kind": "none" }));
    assert_eq!(answer["next_checkin_s"], 300);

    let asked = expect_status(old.ask(&site, "r1", Some(DOSSIER)).await, 201).await;
    assert_eq!((asked.state, asked.code), (ReimageState::Requested, Some(Reason::ApprovalPending)));
    let id = asked.id.as_str();
    let again = expect_status(old.ask(&site, "r1", Some(DOSSIER)).await, 200).await;
    assert_eq!(again, asked);
    let another_key = expect_status(old.ask(&site, "r2", None).await, 200).await;
    assert_eq!(another_key, asked, "one open request a host");

    expect(old.put_evidence(&site, id, DOSSIER.to_vec(), &content_digest(DOSSIER)).await, 201).await;
    expect(old.put_evidence(&site, id, DOSSIER.to_vec(), &content_digest(DOSSIER)).await, 201).await;
    let shown = site.admin().show(id).await.unwrap();
    assert_eq!(shown.evidence, Some(json!({ "failed": ["package[nginx]"] })));

    expect_problem(old.act(&site, id, "ready").await, 409, "illegal_state").await;
    assert!(site.engine_calls().is_empty(), "nothing happens without approval");
    site.admin().approve(id).await.unwrap();
    let answer = expect(old.check_in(&site, 2, "requested").await, 200).await;
    assert_eq!(answer["directive"], json!({ "kind": "drain" }));
    assert_eq!(answer["reimage"]["state"], "awaiting_ready");
    assert!(answer["reimage"]["grant_ends"].is_string());

    expect_status(old.act(&site, id, "ready").await, 202).await;
    for response in [
        old.check_in(&site, 3, "handed_over").await,
        old.act(&site, id, "ready").await,
        old.act(&site, id, "cancel").await,
        old.get(&site, &format!("/v1/reimages/{id}")).await,
        old.ask(&site, "r3", None).await,
    ] {
        expect_problem(response, 410, "superseded").await;
    }
    site.until(id, ReimageState::AwaitingCheckin).await;
    let calls = site.engine_calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0]["reimage_id"], id);
    assert_eq!(calls[0]["host_id"], "web-1");
    assert_eq!((&calls[0]["incarnation"], &calls[0]["next_incarnation"]), (&json!(1), &json!(2)));

    let token = calls[0]["enroll_token"].as_str().unwrap();
    expect_problem(site.enroll("web-2", token).await, 403, "token_invalid").await;
    let answer = expect(site.enroll("web-1", token).await, 201).await;
    assert_eq!(answer["reimage"]["state"], "verifying");
    let new = Host::from_answer(answer);
    assert_eq!(new.incarnation, 2);
    expect_problem(new.act(&site, id, "complete").await, 409, "not_converged").await;
    expect(new.check_in(&site, 1, "degraded").await, 200).await;
    expect_problem(new.act(&site, id, "complete").await, 409, "not_converged").await;
    expect_problem(site.enroll("web-1", token).await, 403, "token_invalid").await;
    let answer = expect(new.check_in(&site, 2, "converged").await, 200).await;
    assert_eq!(answer["reimage"]["id"], id);
    assert_eq!(answer["reimage"]["state"], "verifying");
    let done = expect_status(new.act(&site, id, "complete").await, 200).await;
    assert_eq!(done.state, ReimageState::Succeeded);
    assert_eq!(expect_status(new.act(&site, id, "complete").await, 200).await, done, "complete can be repeated");
    expect_problem(old.check_in(&site, 4, "converged").await, 410, "superseded").await;

    let shown = site.admin().show(id).await.unwrap();
    let states = shown.audit.iter().map(|entry| entry.action.as_str()).collect::<Vec<_>>();
    let expected =
        "requested evidence approved awaiting_ready dispatching engine_running awaiting_checkin verifying succeeded";
    assert_eq!(states, expected.split(' ').map(|word| format!("reimage.{word}")).collect::<Vec<_>>());
    assert_eq!(shown.engine_calls.len(), 1);
    assert_eq!(shown.engine_calls[0].outcome.as_deref(), Some("done"));
    let check = site.admin().verify_audit().await.unwrap();
    assert_eq!(check.broken, None);
    assert!(check.n_entries >= 12, "{check:?}");
}

#[tokio::test]
async fn a_denied_host_stays_and_may_not_ask_again_at_once() {
    let site = Site::start(&Setup::default()).await;
    let host = site.host("web-1").await;
    let asked = expect_status(host.ask(&site, "r1", None).await, 201).await;
    site.admin().deny(asked.id.as_str(), "it is being looked at", Duration::from_secs(3600)).await.unwrap();
    let status = expect_status(host.get(&site, &format!("/v1/reimages/{}", asked.id)).await, 200).await;
    assert_eq!((status.state, status.reason.as_deref()), (ReimageState::Denied, Some("it is being looked at")));
    assert!(status.retry_after.is_some());
    expect_problem(host.ask(&site, "r2", None).await, 403, "operator").await;
    expect_problem(host.act(&site, asked.id.as_str(), "ready").await, 409, "illegal_state").await;
    assert!(site.admin().approve(asked.id.as_str()).await.is_err());
    let mut checkin = host.checkin(1, "requested");
    checkin["reimage"] = json!("r1");
    let answer = site.post("/v1/checkin", &checkin).bearer_auth(&host.token).send().await.unwrap();
    assert_eq!(expect(answer, 200).await["directive"], json!({ "kind": "abort" }));
    assert!(site.engine_calls().is_empty());
}

#[tokio::test]
async fn a_host_that_converged_after_all_cancels() {
    let site = Site::start(&Setup::default()).await;
    let host = site.host("web-1").await;
    let asked = expect_status(host.ask(&site, "r1", None).await, 201).await;
    site.admin().approve(asked.id.as_str()).await.unwrap();
    let cancelled = expect_status(host.act(&site, asked.id.as_str(), "cancel").await, 200).await;
    assert_eq!(cancelled.state, ReimageState::Cancelled);
    expect_status(host.act(&site, asked.id.as_str(), "cancel").await, 200).await;
    expect_problem(host.act(&site, asked.id.as_str(), "ready").await, 409, "illegal_state").await;
    expect_status(host.ask(&site, "r2", None).await, 201).await;
    assert!(site.engine_calls().is_empty());
}

#[tokio::test]
async fn a_crash_between_intent_and_result_holds_and_sends_nothing() {
    let setup = Setup::default();
    for state in ["dispatching", "engine_running"] {
        let mut site = Site::start(&setup).await;
        let host = site.host("web-1").await;
        let asked = expect_status(host.ask(&site, "r1", None).await, 201).await;
        let id = asked.id.as_str();
        site.admin().approve(id).await.unwrap();
        site.running.take().unwrap().stop().await;
        crash_in(&site, id, state).await;

        site.restart(&setup).await;
        let shown = site.admin().show(id).await.unwrap().reimage;
        assert_eq!((shown.state, shown.code), (ReimageState::Held, Some(Reason::EngineUnknown)));
        assert!(site.engine_calls().is_empty(), "the engine is never called blindly");
        let refusal = site.admin().approve(id).await.unwrap_err().to_string();
        assert!(refusal.contains("--dispatch-again"), "{refusal}");
        assert!(site.admin().deny(id, "no", Duration::from_secs(1)).await.is_err());

        site.admin().dispatch_again(id).await.unwrap();
        site.until(id, ReimageState::AwaitingCheckin).await;
        assert_eq!(site.engine_calls().len(), 1);
        site.restart(&setup).await;
        assert_eq!(site.admin().show(id).await.unwrap().reimage.state, ReimageState::AwaitingCheckin);
        let token = site.engine_calls()[0]["enroll_token"].as_str().unwrap().to_owned();
        let reborn = Host::from_answer(expect(site.enroll("web-1", &token).await, 201).await);
        assert_eq!(reborn.incarnation, 2);
    }
}

/// Writes what a hub leaves behind that dies after it committed an intent.
async fn crash_in(site: &Site, id: &str, state: &str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(site.database());
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("UPDATE reimages SET state = $2, dispatched_at = 1, deadline = NULL WHERE id = $1")
        .bind(id)
        .bind(state)
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("INSERT INTO engine_calls (reimage, engine, intent_at) VALUES ($1, '[]', 1)")
        .bind(id)
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("UPDATE bearers SET revoked_at = 1").execute(&pool).await.unwrap();
    pool.close().await;
}

#[tokio::test]
async fn a_stop_while_the_engine_runs_holds_and_a_late_birth_settles_it() {
    let setup = Setup { engine: Some("cat >>\"$1\"; echo >>\"$1\"; exec sleep 20"), ..Setup::default() };
    let mut site = Site::start(&setup).await;
    let host = site.host("web-1").await;
    let id = dispatched(&site, &host).await;
    site.until(&id, ReimageState::EngineRunning).await;
    let written = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while site.engine_calls().is_empty() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(crate::common::PATIENCE, written).await.expect("the engine got its intent");
    site.restart(&setup).await;
    site.until(&id, ReimageState::Held).await;
    assert_eq!(site.engine_calls().len(), 1);
    let token = site.engine_calls()[0]["enroll_token"].as_str().unwrap().to_owned();
    expect(site.enroll("web-1", &token).await, 201).await;
    site.until(&id, ReimageState::Verifying).await;
}

#[tokio::test]
async fn a_failed_engine_keeps_the_slot_until_a_person_releases_it() {
    let setup =
        Setup { engine: Some("tee -a \"$1\"; echo >>\"$1\"; echo no such image >&2; exit 4"), ..Setup::default() };
    let site = Site::start(&setup).await;
    let host = site.host("web-1").await;
    let id = dispatched(&site, &host).await;
    site.until(&id, ReimageState::Failed).await;
    let shown = site.admin().show(&id).await.unwrap();
    assert_eq!(shown.reimage.code, Some(Reason::EngineFailed));
    let token = site.engine_calls()[0]["enroll_token"].as_str().unwrap().to_owned();
    let output = shown.engine_calls[0].output.as_ref().unwrap();
    assert!(output.contains("no such image") && output.contains("\"enroll_token\":\"[token]\""), "{output}");
    assert!(!output.contains(&token), "no secret is stored");
    expect_problem(site.enroll("web-1", &token).await, 403, "token_invalid").await;

    // The host still runs, but is fenced off; an operator lets it in again.
    let token = site.join_token(Some("web-1")).await;
    let again = Host::from_answer(expect(site.enroll("web-1", &token).await, 201).await);
    assert_eq!(again.incarnation, 2);
    expect_problem(again.ask(&site, "r2", None).await, 403, "awaiting_release").await;
    site.admin().release(&id).await.unwrap();
    expect_status(again.ask(&site, "r3", None).await, 201).await;
}

#[tokio::test]
async fn an_engine_that_takes_too_long_is_held() {
    let setup = Setup { engine: Some("sleep 100"), engine_timeout: Duration::from_millis(200), ..Setup::default() };
    let site = Site::start(&setup).await;
    let host = site.host("web-1").await;
    let id = dispatched(&site, &host).await;
    site.until(&id, ReimageState::Held).await;
    assert_eq!(site.admin().show(&id).await.unwrap().reimage.code, Some(Reason::EngineUnknown));
    let status = site.admin().release(&id).await.unwrap();
    assert_eq!(status.state, ReimageState::Failed);
}

#[tokio::test]
async fn a_grant_ends() {
    let setup = Setup { grant: Duration::from_millis(50), ..Setup::default() };
    let site = Site::start(&setup).await;
    let host = site.host("web-1").await;
    let asked = expect_status(host.ask(&site, "r1", None).await, 201).await;
    site.admin().approve(asked.id.as_str()).await.unwrap();
    site.until(asked.id.as_str(), ReimageState::Expired).await;
    expect_problem(host.act(&site, asked.id.as_str(), "ready").await, 409, "grant_expired").await;
    assert!(site.engine_calls().is_empty());
}

#[tokio::test]
async fn automatic_approval_happens_once_a_day() {
    let setup = Setup { approval: Approval::Auto, ..Setup::default() };
    let site = Site::start(&setup).await;
    let host = site.host("web-1").await;
    let asked = expect_status(host.ask(&site, "r1", None).await, 201).await;
    assert_eq!(asked.state, ReimageState::AwaitingReady);
    let id = asked.id.as_str();
    expect_status(host.act(&site, id, "ready").await, 202).await;
    site.until(id, ReimageState::AwaitingCheckin).await;
    let token = site.engine_calls()[0]["enroll_token"].as_str().unwrap().to_owned();
    let reborn = Host::from_answer(expect(site.enroll("web-1", &token).await, 201).await);
    expect(reborn.check_in(&site, 1, "converged").await, 200).await;
    expect_status(reborn.act(&site, id, "complete").await, 200).await;
    let asked = expect_status(reborn.ask(&site, "r2", None).await, 201).await;
    assert_eq!((asked.state, asked.code), (ReimageState::Requested, Some(Reason::MinInterval)));
}

#[tokio::test]
async fn a_newborn_that_asks_at_once_is_dead_on_arrival() {
    let site = Site::start(&Setup::default()).await;
    let host = site.host("web-1").await;
    let id = dispatched(&site, &host).await;
    site.until(&id, ReimageState::AwaitingCheckin).await;
    let token = site.engine_calls()[0]["enroll_token"].as_str().unwrap().to_owned();
    let reborn = Host::from_answer(expect(site.enroll("web-1", &token).await, 201).await);
    expect_problem(reborn.ask(&site, "r2", None).await, 403, "awaiting_release").await;
    let shown = site.admin().show(&id).await.unwrap().reimage;
    assert_eq!((shown.state, shown.code), (ReimageState::Failed, Some(Reason::DeadOnArrival)));
    expect_problem(reborn.ask(&site, "r3", None).await, 403, "awaiting_release").await;
    assert_eq!(site.engine_calls().len(), 1);
}

#[tokio::test]
async fn nothing_is_permitted_by_default() {
    let check = async |setup: Setup, reason: &str| {
        let site = Site::start(&setup).await;
        let host = site.host("web-1").await;
        expect_problem(host.ask(&site, "r1", None).await, 403, reason).await;
        expect_problem(host.ask(&site, "r1", None).await, 403, reason).await;
        let audit = site.admin().audit(100).await.unwrap();
        assert_eq!(audit.iter().filter(|entry| entry.action == "reimage.refused").count(), 1, "recorded once");
    };
    check(Setup { opted_in: false, ..Setup::default() }, "not_opted_in").await;
    check(Setup { engine: None, ..Setup::default() }, "engine_unbound").await;
}

#[tokio::test]
async fn a_long_poll_ends_when_the_state_changes() {
    let site = Site::start(&Setup::default()).await;
    let host = site.host("web-1").await;
    let asked = expect_status(host.ask(&site, "r1", None).await, 201).await;
    let path = format!("/v1/reimages/{}", asked.id);
    let first = host.get(&site, &path).await;
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    let request = |wait: &str| {
        let url = site.url(&format!("{path}?wait={wait}"));
        site.client().get(url).header("if-none-match", &tag).bearer_auth(&host.token).send()
    };
    assert_eq!(request("1s").await.unwrap().status(), 304);
    let admin = site.admin();
    let (polled, approved) = tokio::join!(request("30s"), admin.approve(asked.id.as_str()));
    approved.unwrap();
    assert_eq!(expect_status(polled.unwrap(), 200).await.state, ReimageState::AwaitingReady);
    expect_problem(host.get(&site, &format!("{path}?wait=soon")).await, 422, "malformed").await;
}

#[tokio::test]
async fn a_lost_answer_to_an_enrolment_is_repeated_until_the_first_check_in() {
    let site = Site::start(&Setup::default()).await;
    let token = site.join_token(None).await;
    let first = Host::from_answer(expect(site.enroll("web-1", &token).await, 201).await);
    let second = Host::from_answer(expect(site.enroll("web-1", &token).await, 201).await);
    assert_eq!((first.incarnation, second.incarnation), (1, 1));
    expect_problem(first.check_in(&site, 1, "converged").await, 401, "unauthenticated").await;
    expect(second.check_in(&site, 1, "converged").await, 200).await;
    expect_problem(site.enroll("web-1", &token).await, 403, "token_invalid").await;
    expect_problem(site.enroll("web-1", &site.join_token(None).await).await, 409, "already_enrolled").await;
    expect(second.check_in(&site, 2, "converged").await, 200).await;
    let mut elsewhere = enrolment("web-9", "rkj_0123456789abcdefghijk");
    elsewhere["machine"] = json!({});
    let answer = site.post("/v1/enroll", &elsewhere).send().await.unwrap();
    expect_problem(answer, 403, "token_invalid").await;
}
