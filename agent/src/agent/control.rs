//! The control socket: how the command line talks to the running agent. One JSON request and one JSON answer a connection.
//!
//! The socket is mode 0600 and belongs to root, so the kernel decides who may connect. Requests are bounded and unknown keys
//! are refused. Nothing here waits for a run: `status` is answered from memory.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::status::Status;
use crate::resource::ResourceId;

/// Largest request, in bytes.
const MAX_REQUEST: u64 = 64 * 1024;
/// Largest answer that the command line accepts, in bytes.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command", deny_unknown_fields)]
pub enum Request {
    /// The state of the agent.
    Status,
    /// What the agent knows of one resource.
    Why {
        /// Which.
        resource: ResourceId,
    },
    /// Look at everything now: a pause began or ended, or a person asked.
    Look,
    /// Ask to be reimaged.
    Reimage {
        /// Why.
        reason: String,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Why`].
    Why(Box<Insight>),
    /// Understood; it happens now.
    Done,
    /// The id of the reimage request.
    Requested(String),
    /// Refused, and why.
    Refused(String),
}

/// What the agent knows of one resource. Its JSON is stable; fields are only ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Insight {
    /// How it compared when it was last looked at; `None` for in sync.
    pub verdict: Option<String>,
    /// Who fights over it, in a sentence.
    pub contested: Option<String>,
    /// Its paths that events do not cover, and why.
    pub not_watched: Vec<String>,
    /// Whether the guard puts it back at once, from a copy.
    pub guarded: bool,
}

/// A dialogue that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens: the agent does not run.
    #[error("the agent does not answer on `{socket}`\nhint: `systemctl status rekindle-agent`")]
    NotRunning {
        /// Where.
        socket: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The dialogue broke off.
    #[error("the dialogue with the agent broke off")]
    Broken(#[source] std::io::Error),
    /// The other side does not speak this language.
    #[error("the agent and the command line do not understand each other: is one of another version?")]
    Language(#[source] serde_json::Error),
    /// The agent did not answer in time.
    #[error("the agent did not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

/// Reads one request.
pub async fn read_request(stream: &mut UnixStream) -> Result<Request, ControlError> {
    let bytes = within(read_all(stream, MAX_REQUEST)).await?;
    serde_json::from_slice(&bytes).map_err(ControlError::Language)
}

/// Writes one answer and closes.
pub async fn write_answer(stream: &mut UnixStream, answer: &Answer) -> Result<(), ControlError> {
    let bytes = serde_json::to_vec(answer).map_err(ControlError::Language)?;
    within(async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    })
    .await
}

/// Asks the running agent. Used by the command line.
pub async fn ask(socket: &Path, request: &Request) -> Result<Answer, ControlError> {
    let mut stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ControlError::NotRunning { socket: socket.display().to_string(), source })?;
    let bytes = serde_json::to_vec(request).map_err(ControlError::Language)?;
    let answer = within(async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        read_all(&mut stream, MAX_ANSWER).await
    })
    .await?;
    serde_json::from_slice(&answer).map_err(ControlError::Language)
}

async fn read_all(stream: &mut UnixStream, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(limit).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

async fn within<T>(work: impl Future<Output = std::io::Result<T>>) -> Result<T, ControlError> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => result.map_err(ControlError::Broken),
        Err(_elapsed) => Err(ControlError::Silent),
    }
}
