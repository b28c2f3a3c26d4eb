//! The wire types of phone home: what an agent says to a central endpoint, and what it answers.
//!
//! JSON over HTTPS under `/v1`, described by the OpenAPI document that [`openapi`] generates from these very types. This
//! crate does no I/O and knows no HTTP library; both sides convert by hand to types of their own.
//!
//! # Invariants
//!
//! - What an endpoint parses (`*Request`, [`CheckIn`], [`ReimageAsk`]) refuses unknown keys: a misspelt
//!   key is an error of the sender, never a default.
//! - What an agent parses (`*Answer`, [`ReimageStatus`], [`Problem`]) ignores unknown keys and reads an unknown word of a
//!   vocabulary as its `Unknown` variant, so that an endpoint may grow. `Unknown` permits nothing: it is never terminal,
//!   never a grant, never a directive to act on.
//! - Identifiers are validated once, here, where they enter. A selector cannot be empty or a wildcard: the host that a
//!   request concerns is always the one that its bearer token names.
//!
//! # Identity, in this version
//!
//! A host enrols with a join token and receives a bearer token of its own for `Authorization: Bearer …`. The endpoint
//! stores hashes of both. From the dispatch of a reimage on, the old incarnation's bearer token is answered with
//! 410 and [`Reason::Superseded`]; only the new incarnation, with the single-use token that the engine handed to it,
//! may enrol under the same name.

mod checkin;
mod identity;
mod openapi;
mod problem;
mod reimage;

pub use checkin::{CheckIn, CheckInAnswer, Counters, Directive, Failing, Health, Hold};
pub use identity::{
    BootId, EnrollAnswer, EnrollRequest, HostId, InvalidIdentifier, InvalidToken, MachineFacts, ReimageId, RequestKey,
    Token,
};
pub use openapi::openapi;
pub use problem::{Problem, Reason};
pub use reimage::{
    CancelRequest, EvidenceAnswer, Failure, IllegalTransition, ReimageAsk, ReimageEvent, ReimageState, ReimageStatus,
    Why,
};

/// Largest evidence that an endpoint accepts, in bytes.
pub const MAX_EVIDENCE: u64 = 8 * 1024 * 1024;

/// Largest body of any other call that an endpoint accepts, in bytes.
pub const MAX_BODY: u64 = 64 * 1024;

/// Most failing resources and holds that one check-in may list.
pub const MAX_LISTED: usize = 32;

/// Longest `?wait=` that an endpoint honours, in seconds.
pub const MAX_WAIT_S: u64 = 30;

/// Media type of a [`Problem`].
pub const PROBLEM_TYPE: &str = "application/problem+json";

/// Header with the [`RequestKey`] of a `POST /v1/reimages`.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Header with the digest of an evidence body: RFC 9530, `sha-256=:<base64>:`.
pub const CONTENT_DIGEST: &str = "content-digest";
