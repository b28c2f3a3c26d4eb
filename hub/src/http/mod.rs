//! Translates HTTP to calls and refusals to problem documents. It decides nothing.
//!
//! Bodies are bounded before they are read, every request has a deadline, and nothing of a body is ever logged.

pub(crate) mod listener;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rekindle_protocol::{
    CONTENT_DIGEST, CancelRequest, CheckIn, EnrollRequest, IDEMPOTENCY_KEY, MAX_BODY, MAX_EVIDENCE, MAX_WAIT_S,
    PROBLEM_TYPE, Problem, Reason, ReimageAsk,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::hosts::{self, Identity};
use crate::hub::Hub;
use crate::reimages::{self, Made};
use crate::{CallError, config, engine};

/// Longest that a request may take, long polls and slow uploads included.
const DEADLINE: Duration = Duration::from_secs(90);

/// What a busy hub asks of those it turns away, in seconds.
const RETRY_AFTER_S: &str = "30";

type Answer = Result<Response, CallError>;

/// Returns all routes.
pub(crate) fn router(hub: Arc<Hub>) -> Router {
    let limit = |bytes: u64| DefaultBodyLimit::max(usize::try_from(bytes).unwrap_or(usize::MAX));
    Router::new()
        .route("/v1/enroll", post(enroll))
        .route("/v1/checkin", post(check_in))
        .route("/v1/reimages", post(ask))
        .route("/v1/reimages/{id}", get(status))
        .route("/v1/reimages/{id}/ready", post(ready))
        .route("/v1/reimages/{id}/cancel", post(cancel))
        .route("/v1/reimages/{id}/complete", post(complete))
        .layer(limit(MAX_BODY))
        .merge(Router::new().route("/v1/reimages/{id}/evidence", put(evidence)).layer(limit(MAX_EVIDENCE)))
        .route("/openapi.json", get(openapi))
        .route("/healthz", get(health))
        .fallback(async || CallError::refused(Reason::NotFound, "there is nothing at this path"))
        .method_not_allowed_fallback(async || CallError::refused(Reason::MethodNotAllowed, "not with this method"))
        .layer(middleware::from_fn(deadline))
        .with_state(hub)
}

async fn deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => CallError::refused(Reason::Busy, "the request took too long").into_response(),
    }
}

impl IntoResponse for CallError {
    fn into_response(self) -> Response {
        let problem = match self {
            Self::Refused(problem) => *problem,
            Self::Store(error) if error.is_retryable() => {
                tracing::warn!(error = %engine::chain(&error), "busy");
                Problem::new(Reason::Busy, "the endpoint is busy; try again later")
            }
            // What failed inside is for the log; a stranger learns only that it did.
            Self::Store(error) => {
                tracing::error!(error = %engine::chain(&error), "a call failed");
                Problem::new(Reason::Internal, "the endpoint failed; its log says why")
            }
            Self::Random => {
                tracing::error!("the random number generator failed");
                Problem::new(Reason::Internal, "the endpoint failed; its log says why")
            }
        };
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        response
    }
}

/// Returns a body, or the problem with it.
fn body(read: Result<Bytes, BytesRejection>) -> Result<Bytes, CallError> {
    read.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => CallError::refused(Reason::TooLarge, "the body is larger than accepted here"),
        _ => CallError::refused(Reason::Malformed, "the body did not arrive whole"),
    })
}

fn parse<T: DeserializeOwned>(read: Result<Bytes, BytesRejection>) -> Result<T, CallError> {
    serde_json::from_slice(&body(read)?).map_err(|error| {
        let detail = format!("the body does not fit: {error}").chars().take(400).collect::<String>();
        CallError::refused(Reason::Malformed, detail)
    })
}

/// Returns one header's value as text, if there is exactly one.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        (None, _) | (Some(_), Some(_)) => None,
    }
}

async fn identify(hub: &Hub, headers: &HeaderMap) -> Result<Identity, CallError> {
    let token = only(headers, header::AUTHORIZATION.as_str())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && token.len() <= 256)
        .map(|(_, token)| token)
        .ok_or_else(|| {
            CallError::refused(Reason::Unauthenticated, "send `Authorization: Bearer <token>`; enrol first")
        })?;
    hosts::authenticate(hub, token).await
}

async fn enroll(State(hub): State<Arc<Hub>>, read: Result<Bytes, BytesRejection>) -> Answer {
    let request: EnrollRequest = parse(read)?;
    let answer = hosts::enroll(&hub, &request, Timestamp::now()).await?;
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

async fn check_in(State(hub): State<Arc<Hub>>, headers: HeaderMap, read: Result<Bytes, BytesRejection>) -> Answer {
    let identity = identify(&hub, &headers).await?;
    let checkin: CheckIn = parse(read)?;
    Ok(Json(hosts::check_in(&hub, &identity, &checkin, Timestamp::now()).await?).into_response())
}

async fn ask(State(hub): State<Arc<Hub>>, headers: HeaderMap, read: Result<Bytes, BytesRejection>) -> Answer {
    let identity = identify(&hub, &headers).await?;
    let request: ReimageAsk = parse(read)?;
    // The header may be a quoted string, as its draft says, or bare, as everybody sends it.
    let key = only(&headers, IDEMPOTENCY_KEY).map(|key| key.trim_matches('"'));
    if key != Some(request.request.as_str()) {
        return Err(CallError::refused(
            Reason::Malformed,
            "the header `Idempotency-Key` and `request` are not the same",
        ));
    }
    let (made, status) = reimages::ask(&hub, &identity, &request, Timestamp::now()).await?;
    let code = match made {
        Made::Now => StatusCode::CREATED,
        Made::Before => StatusCode::OK,
    };
    let location = HeaderValue::try_from(format!("/v1/reimages/{}", status.id)).ok();
    let mut response = (code, Json(status)).into_response();
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

#[derive(Debug, Deserialize)]
struct Wait {
    wait: Option<String>,
}

async fn status(
    State(hub): State<Arc<Hub>>,
    Path(id): Path<String>,
    Query(Wait { wait }): Query<Wait>,
    headers: HeaderMap,
) -> Answer {
    let wait = match wait.as_deref() {
        None => Duration::ZERO,
        Some(text) => config::parse_duration(text)
            .ok_or_else(|| CallError::refused(Reason::Malformed, "`wait` is not a time span such as 30s"))?,
    };
    let ends = tokio::time::Instant::now() + wait.min(Duration::from_secs(MAX_WAIT_S));
    let (mut changes, mut stopping) = (hub.changes(), hub.stopping());
    let known = only(&headers, header::IF_NONE_MATCH.as_str()).map(str::to_owned);
    let mut first = None;
    loop {
        changes.mark_unchanged();
        // Each time anew: a long poll must not outlive the identity that it was begun with.
        let identity = identify(&hub, &headers).await?;
        let (version, status) = reimages::status(&hub, &identity, &id).await?;
        let tag = format!("\"{version}\"");
        let unchanged = match &known {
            Some(known) => *known == tag,
            None => *first.get_or_insert(version) == version,
        };
        let over = status.state.is_terminal() || *stopping.borrow_and_update() || tokio::time::Instant::now() >= ends;
        if !unchanged || over {
            let etag = [(header::ETAG, tag)];
            return Ok(if unchanged && known.is_some() {
                (StatusCode::NOT_MODIFIED, etag).into_response()
            } else {
                (etag, Json(status)).into_response()
            });
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = stopping.changed() => {}
            () = tokio::time::sleep_until(ends) => {}
        }
    }
}

async fn evidence(
    State(hub): State<Arc<Hub>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    read: Result<Bytes, BytesRejection>,
) -> Answer {
    let identity = identify(&hub, &headers).await?;
    let bytes = body(read)?;
    let digest = only(&headers, CONTENT_DIGEST).and_then(content_digest).ok_or_else(|| {
        CallError::refused(Reason::Malformed, "send `Content-Digest: sha-256=:<base64 of the body's SHA-256>:`")
    })?;
    let answer = reimages::put_evidence(&hub, &identity, &id, &digest, &bytes, Timestamp::now()).await?;
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// Returns the SHA-256 that a `Content-Digest` header names, as hexadecimal.
fn content_digest(header: &str) -> Option<String> {
    header.split(',').find_map(|item| {
        let encoded = item.trim().strip_prefix("sha-256=:")?.strip_suffix(':')?;
        let bytes = STANDARD.decode(encoded).ok()?;
        (bytes.len() == 32).then(|| crate::secret::hex(&bytes))
    })
}

async fn ready(State(hub): State<Arc<Hub>>, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    let identity = identify(&hub, &headers).await?;
    let status = reimages::ready(&hub, &identity, &id, Timestamp::now()).await?;
    Ok((StatusCode::ACCEPTED, Json(status)).into_response())
}

async fn cancel(
    State(hub): State<Arc<Hub>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    read: Result<Bytes, BytesRejection>,
) -> Answer {
    let identity = identify(&hub, &headers).await?;
    let bytes = body(read)?;
    let request = if bytes.is_empty() { CancelRequest::default() } else { parse(Ok(bytes))? };
    Ok(Json(reimages::cancel(&hub, &identity, &id, &request.why, Timestamp::now()).await?).into_response())
}

async fn complete(State(hub): State<Arc<Hub>>, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    let identity = identify(&hub, &headers).await?;
    Ok(Json(reimages::complete(&hub, &identity, &id, Timestamp::now()).await?).into_response())
}

async fn openapi() -> Response {
    Json(rekindle_protocol::openapi()).into_response()
}

/// Answers 200 when the database answers.
async fn health(State(hub): State<Arc<Hub>>) -> Answer {
    hub.store.epoch().await?;
    Ok((StatusCode::OK, "ok\n").into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests() {
        let check =
            |header: &str, expected: Option<&str>| assert_eq!(content_digest(header).as_deref(), expected, "{header}");
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        check("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", Some(empty));
        check("sha-512=:AA==:, sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", Some(empty));
        check("sha-256=:AA==:", None);
        check("sha-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", None);
        check("", None);
    }
}
