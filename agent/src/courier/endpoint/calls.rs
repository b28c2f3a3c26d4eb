//! The calls of the protocol over HTTP, and what their answers mean.
//!
//! Only a problem document with a reason that this version knows counts as an answer of the endpoint. Everything else, from
//! a proxy's error page to half an answer, means "try again later" and never more.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rekindle_protocol::{
    CONTENT_DIGEST, CancelRequest, CheckIn, CheckInAnswer, EnrollAnswer, EnrollRequest, EvidenceAnswer,
    IDEMPOTENCY_KEY, Problem, Reason, ReimageAsk, ReimageId, ReimageStatus, Token,
};
use reqwest::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::super::http::{body, chain, excerpt, retry_after};

/// How long the endpoint may hold an answer back while nothing changes.
const WAIT: &str = "30s";

/// Deadline of a call that the endpoint holds back.
const WAIT_TIMEOUT: Duration = Duration::from_secs(50);

/// Deadline of sending a dossier, for slow lines.
const EVIDENCE_TIMEOUT: Duration = Duration::from_secs(300);

/// Why a call brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum CallError {
    /// It may work later.
    Later { why: String, after: Option<Duration> },
    /// The endpoint understood and said no.
    Refused { reason: Reason, why: String, after: Option<Duration>, last_seq: Option<u64> },
    /// Another incarnation has taken this one's place, for good.
    Superseded { why: String },
}

impl CallError {
    /// The sentence for a person.
    pub(super) fn why(&self) -> &str {
        match self {
            Self::Later { why, .. } | Self::Refused { why, .. } | Self::Superseded { why } => why,
        }
    }

    /// The wait that the endpoint asked for.
    pub(super) fn after(&self) -> Option<Duration> {
        match self {
            Self::Later { after, .. } | Self::Refused { after, .. } => *after,
            Self::Superseded { .. } => None,
        }
    }
}

/// A way to the endpoint.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) client: reqwest::Client,
    /// Without a slash at its end.
    pub(super) base: String,
    pub(super) token: Option<Token>,
}

/// What a request's state was, and a mark to wait for its change with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Polled {
    Unchanged,
    State { status: ReimageStatus, mark: Option<String> },
}

impl Caller {
    pub(super) async fn enroll(&self, request: &EnrollRequest) -> Result<EnrollAnswer, CallError> {
        self.json(Method::POST, "/v1/enroll", request, |r| r).await
    }

    pub(super) async fn checkin(&self, request: &CheckIn) -> Result<CheckInAnswer, CallError> {
        self.json(Method::POST, "/v1/checkin", request, |r| r).await
    }

    pub(super) async fn ask(&self, ask: &ReimageAsk) -> Result<ReimageStatus, CallError> {
        self.json(Method::POST, "/v1/reimages", ask, |r| r.header(IDEMPOTENCY_KEY, ask.request.as_str())).await
    }

    pub(super) async fn evidence(
        &self,
        id: &ReimageId,
        dossier: &serde_json::Value,
    ) -> Result<EvidenceAnswer, CallError> {
        let path = format!("/v1/reimages/{id}/evidence");
        let digest = format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(bytes(dossier)?)));
        self.json(Method::PUT, &path, dossier, |r| r.header(CONTENT_DIGEST, digest).timeout(EVIDENCE_TIMEOUT)).await
    }

    pub(super) async fn ready(&self, id: &ReimageId) -> Result<ReimageStatus, CallError> {
        self.send(self.request(Method::POST, &format!("/v1/reimages/{id}/ready"))).await
    }

    pub(super) async fn cancel(&self, id: &ReimageId, why: &str) -> Result<ReimageStatus, CallError> {
        let request = CancelRequest { why: why.to_owned() };
        self.json(Method::POST, &format!("/v1/reimages/{id}/cancel"), &request, |r| r).await
    }

    pub(super) async fn complete(&self, id: &ReimageId) -> Result<ReimageStatus, CallError> {
        self.send(self.request(Method::POST, &format!("/v1/reimages/{id}/complete"))).await
    }

    pub(super) async fn status(&self, id: &ReimageId) -> Result<ReimageStatus, CallError> {
        self.send(self.request(Method::GET, &format!("/v1/reimages/{id}"))).await
    }

    /// Waits, for a while, until a request's state differs from what `mark` stands for.
    pub(super) async fn poll(&self, id: &ReimageId, mark: Option<&str>) -> Result<Polled, CallError> {
        let mut request = self.request(Method::GET, &format!("/v1/reimages/{id}?wait={WAIT}")).timeout(WAIT_TIMEOUT);
        if let Some(mark) = mark {
            request = request.header(IF_NONE_MATCH, mark);
        }
        let response = sent(request).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(Polled::Unchanged);
        }
        let mark = response.headers().get(ETAG).and_then(|mark: &HeaderValue| mark.to_str().ok()).map(str::to_owned);
        Ok(Polled::State { status: read(response).await?, mark })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token.reveal()),
            None => request,
        }
    }

    async fn json<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content: &impl Serialize,
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<A, CallError> {
        let request = self.request(method, path).header(CONTENT_TYPE, "application/json").body(bytes(content)?);
        self.send(with(request)).await
    }

    async fn send<A: DeserializeOwned>(&self, request: RequestBuilder) -> Result<A, CallError> {
        read(sent(request).await?).await
    }
}

/// The bytes of a body; the digest of evidence is over exactly these.
pub(super) fn bytes(content: &impl Serialize) -> Result<Vec<u8>, CallError> {
    serde_json::to_vec(content).map_err(|error| CallError::Later { why: error.to_string(), after: None })
}

async fn sent(request: RequestBuilder) -> Result<reqwest::Response, CallError> {
    request.send().await.map_err(|error| CallError::Later { why: chain(&error), after: None })
}

async fn read<A: DeserializeOwned>(response: reqwest::Response) -> Result<A, CallError> {
    let (status, after) = (response.status(), retry_after(response.headers(), Timestamp::now()));
    let text = body(response).await.map_err(|why| CallError::Later { why, after })?;
    if !status.is_success() {
        return Err(refusal(status, &text, after));
    }
    serde_json::from_slice(&text).map_err(|error| {
        let why =
            format!("the endpoint answered {status} with something that is no answer: {error}: {}", excerpt(&text));
        CallError::Later { why, after }
    })
}

/// What an answer that is no success means.
#[expect(clippy::wildcard_enum_match_arm, reason = "every known reason that is not named is treated alike")]
fn refusal(status: StatusCode, text: &[u8], after: Option<Duration>) -> CallError {
    let Ok(problem) = serde_json::from_slice::<Problem>(text) else {
        return CallError::Later { why: format!("it answered {status}: {}", excerpt(text)), after };
    };
    let why = excerpt(problem.detail.as_deref().unwrap_or(&problem.title).as_bytes());
    let why = format!("it answered {status} ({}): {why}", problem.reason.word());
    match problem.reason {
        Reason::Superseded if status == StatusCode::GONE => CallError::Superseded { why },
        // Whoever does not know us now may know us again, once its database or our configuration is mended.
        Reason::Unknown | Reason::Unauthenticated | Reason::Busy | Reason::Internal | Reason::MethodNotAllowed => {
            CallError::Later { why, after }
        }
        // Any other known reason is the endpoint's own word, unless the status says that it is not meant for us or not final.
        reason => {
            let is_final = status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS;
            match is_final {
                true => CallError::Refused { reason, why, after, last_seq: problem.last_seq },
                false => CallError::Later { why, after },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_reason_is_a_refusal() {
        let check = |status: u16, body: &str, expected: &str| {
            let word = match refusal(StatusCode::from_u16(status).unwrap(), body.as_bytes(), None) {
                CallError::Later { .. } => "later",
                CallError::Refused { .. } => "refused",
                CallError::Superseded { .. } => "superseded",
            };
            assert_eq!(word, expected, "{status} {body}");
        };
        let problem = |reason: Reason| serde_json::to_string(&Problem::new(reason, "because")).unwrap();
        check(403, &problem(Reason::NotOptedIn), "refused");
        check(409, &problem(Reason::StaleIncarnation), "refused");
        check(410, &problem(Reason::Superseded), "superseded");
        check(401, &problem(Reason::Unauthenticated), "later");
        check(503, &problem(Reason::Busy), "later");
        check(500, &problem(Reason::NotOptedIn), "later");
        check(302, &problem(Reason::Superseded), "later");
        check(403, &problem(Reason::Superseded), "refused");
        check(429, &problem(Reason::Paused), "later");
        check(403, r#"{"status":403,"reason":"full_moon"}"#, "later");
        check(403, "<html>Forbidden</html>", "later");
        check(410, "<html>Gone</html>", "later");
        check(410, "", "later");
        check(404, r#"{"error":"not found"}"#, "later");
        check(403, "\u{feff}[[[[", "later");
    }
}
