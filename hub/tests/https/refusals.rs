//! What strangers and misbehaving hosts get to hear.

use crate::common::{Host, Setup, Site, content_digest, enrolment, expect, expect_problem, expect_status};
use rekindle_hub::control::{self, ControlRequest};
use rekindle_protocol::MAX_EVIDENCE;
use serde_json::{Value, json};

#[tokio::test]
async fn strangers() {
    let site = Site::start(&Setup::default()).await;
    let host = site.host("web-1").await;
    for token in ["", "nonsense", "rkb_0123456789abcdef"] {
        let stranger = Host { token: token.to_owned(), ..host.clone() };
        expect_problem(stranger.check_in(&site, 1, "converged").await, 401, "unauthenticated").await;
        expect_problem(stranger.ask(&site, "r1", None).await, 401, "unauthenticated").await;
    }
    let get = async |path: &str| site.client().get(site.url(path)).send().await.unwrap();
    expect_problem(get("/v2/checkin").await, 404, "not_found").await;
    expect_problem(get("/v1/checkin").await, 405, "method_not_allowed").await;
    assert_eq!(get("/healthz").await.text().await.unwrap(), "ok\n");
    let document: Value = get("/openapi.json").await.json().await.unwrap();
    assert_eq!(document, rekindle_protocol::openapi());
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    let port = site.running.as_ref().unwrap().addr.port();
    assert!(plain.get(format!("http://127.0.0.1:{port}/healthz")).send().await.is_err(), "no plain HTTP");
}

#[tokio::test]
async fn a_host_sees_only_its_own_requests() {
    let site = Site::start(&Setup::default()).await;
    let (host, other) = (site.host("web-1").await, site.host("web-2").await);
    let asked = expect_status(host.ask(&site, "r1", None).await, 201).await;
    let id = asked.id.as_str();
    site.admin().approve(id).await.unwrap();
    for what in ["ready", "cancel", "complete"] {
        expect_problem(other.act(&site, id, what).await, 404, "not_found").await;
    }
    expect_problem(other.get(&site, &format!("/v1/reimages/{id}")).await, 404, "not_found").await;
    let digest = content_digest(b"{}");
    expect_problem(other.put_evidence(&site, id, b"{}".to_vec(), &digest).await, 404, "not_found").await;
    expect_problem(host.act(&site, id, "complete").await, 409, "stale_incarnation").await;
    expect_status(other.ask(&site, "r1", None).await, 201).await;
    assert!(site.engine_calls().is_empty());
}

#[tokio::test]
async fn bodies() {
    let site = Site::start(&Setup::default()).await;
    let host = site.host("web-1").await;
    let check = async |path: &str, body: String, status: u16, reason: &str| {
        let request = site.client().post(site.url(path)).header("idempotency-key", "r1").bearer_auth(&host.token);
        expect_problem(request.body(body).send().await.unwrap(), status, reason).await;
    };
    let with = |mut value: Value, key: &str, field: Value| {
        value[key] = field;
        value.to_string()
    };
    check("/v1/checkin", "{".to_owned(), 422, "malformed").await;
    check("/v1/checkin", "x".repeat(100_000), 413, "too_large").await;
    check("/v1/checkin", with(host.checkin(1, "converged"), "sudo", json!(true)), 422, "malformed").await;
    check("/v1/checkin", with(host.checkin(1, "converged"), "host_id", json!("web-2")), 409, "stale_incarnation").await;
    check("/v1/checkin", with(host.checkin(1, "converged"), "incarnation", json!(2)), 409, "stale_incarnation").await;
    check("/v1/enroll", with(enrolment("web-3", "rkj_0123456789abcdef"), "host_id", json!("*")), 422, "malformed")
        .await;
    let ask = json!({ "request": "r1", "reason": "failed", "summary": "s", "incarnation": 1 });
    check("/v1/reimages", with(ask.clone(), "reason", json!("boredom")), 422, "malformed").await;
    check("/v1/reimages", with(ask.clone(), "request", json!("r2")), 422, "malformed").await;
    check("/v1/reimages", with(ask.clone(), "hosts", json!(["*"])), 422, "malformed").await;
    check("/v1/reimages", with(ask.clone(), "evidence", json!("xyz")), 422, "malformed").await;
    check("/v1/reimages", with(ask.clone(), "incarnation", json!(7)), 409, "stale_incarnation").await;
}

#[tokio::test]
async fn a_hosts_words_are_cut_and_cleaned() {
    let site = Site::start(&Setup::default()).await;
    let host = site.host("web-1").await;
    let mut checkin = host.checkin(1, "failing");
    checkin["policy"] = json!(format!("\u{1b}[2J{}", "x".repeat(3000)));
    expect(site.post("/v1/checkin", &checkin).bearer_auth(&host.token).send().await.unwrap(), 200).await;
    let policy = site.admin().list_hosts().await.unwrap().remove(0).policy.unwrap();
    assert!(policy.starts_with(" [2Jxxx") && policy.len() == 1024, "{policy}");
}

#[tokio::test]
async fn sequence_numbers_only_grow_within_a_boot() {
    let site = Site::start(&Setup::default()).await;
    let host = site.host("web-1").await;
    expect(host.check_in(&site, 5, "converged").await, 200).await;
    for seq in [5, 4] {
        let problem = expect_problem(host.check_in(&site, seq, "failing").await, 409, "stale_sequence").await;
        assert_eq!(problem["last_seq"], 5);
    }
    expect(host.check_in(&site, 6, "converged").await, 200).await;
    let mut after_reboot = host.checkin(1, "converged");
    after_reboot["boot_id"] = json!("another-boot");
    let answer = site.post("/v1/checkin", &after_reboot).bearer_auth(&host.token).send().await.unwrap();
    expect(answer, 200).await;
}

#[tokio::test]
async fn evidence() {
    let site = Site::start(&Setup::default()).await;
    let host = site.host("web-1").await;
    let dossier = br#"{"a":1}"#;
    let asked = expect_status(host.ask(&site, "r1", Some(dossier)).await, 201).await;
    let id = asked.id.as_str();
    site.admin().approve(id).await.unwrap();
    let put = async |body: &[u8], digest: &str| host.put_evidence(&site, id, body.to_vec(), digest).await;
    expect_problem(host.act(&site, id, "ready").await, 409, "evidence_missing").await;
    expect_problem(put(dossier, "nonsense").await, 422, "malformed").await;
    expect_problem(put(dossier, &content_digest(b"{}")).await, 422, "digest_mismatch").await;
    expect_problem(put(b"{}", &content_digest(b"{}")).await, 422, "digest_mismatch").await;
    expect_problem(put(b"not json", &content_digest(b"not json")).await, 422, "malformed").await;
    let large = vec![b' '; usize::try_from(MAX_EVIDENCE).unwrap() + 1];
    expect_problem(put(&large, &content_digest(&large)).await, 413, "too_large").await;
    expect(put(dossier, &content_digest(dossier)).await, 201).await;
    expect_status(host.act(&site, id, "ready").await, 202).await;
}

#[tokio::test]
async fn the_audit_log_cannot_be_rewritten_unseen() {
    let mut site = Site::start(&Setup::default()).await;
    site.host("web-1").await;
    site.host("web-2").await;
    assert_eq!(site.admin().verify_audit().await.unwrap().broken, None);
    site.running.take().unwrap().stop().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(site.database());
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let forged = sqlx::query("UPDATE audit SET actor = 'nobody' WHERE seq = 2").execute(&pool).await;
    assert!(forged.unwrap_err().to_string().contains("append-only"));
    assert!(sqlx::query("DELETE FROM audit").execute(&pool).await.is_err());
    sqlx::query("DROP TRIGGER audit_is_never_changed").execute(&pool).await.unwrap();
    sqlx::query("UPDATE audit SET actor = 'nobody' WHERE seq = 2").execute(&pool).await.unwrap();
    pool.close().await;
    site.restart(&Setup::default()).await;
    let check = site.admin().verify_audit().await.unwrap();
    assert!(check.broken.as_ref().is_some_and(|how| how.contains("entry 2")), "{check:?}");
}

#[tokio::test]
async fn the_control_socket_carries_the_same_calls() {
    let site = Site::start(&Setup::default()).await;
    let host = site.host("web-1").await;
    let asked = expect_status(host.ask(&site, "r1", None).await, 201).await;
    let socket = site.control();
    let hosts = control::call(&socket, &ControlRequest::Hosts).await.unwrap();
    assert_eq!(hosts[0]["host_id"], "web-1");
    let status = control::call(&socket, &ControlRequest::Approve { id: asked.id.to_string() }).await.unwrap();
    assert_eq!(status["state"], "awaiting_ready");
    let refused = control::call(&socket, &ControlRequest::Approve { id: "ri-none".to_owned() }).await.unwrap_err();
    assert!(refused.to_string().contains("rekindle-hub reimages"), "{refused}");
    let shown = control::call(&socket, &ControlRequest::Show { id: asked.id.to_string() }).await.unwrap();
    assert!(
        shown["audit"].as_array().unwrap().iter().any(|e| e["actor"].as_str().unwrap().starts_with("operator:uid:"))
    );
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(site.database()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn one_hub_a_database_and_no_plain_http_beyond_loopback() {
    let site = Site::start(&Setup::default()).await;
    let second = rekindle_hub::HubOptions::new(site.database(), "127.0.0.1:0".parse().unwrap());
    let error = rekindle_hub::start(second).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("in use by another hub"), "{source}");
    let plain = rekindle_hub::HubOptions::new(site.dir.path().join("other.db"), "0.0.0.0:0".parse().unwrap());
    let error = rekindle_hub::start(plain).await.unwrap_err().to_string();
    assert!(error.contains("loopback"), "{error}");
}
