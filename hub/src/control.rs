//! The unix socket that carries [`Admin`] to the command line: one line of JSON each way, one request a connection.
//!
//! Only root and the user that the hub runs as may use it: the socket's mode says so, and the peer's user id is checked.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rekindle_protocol::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::NewToken;
use crate::engine::chain;
use crate::hub::{Hub, stopped};
use crate::{Admin, CallError, HubError};

/// Largest request, in bytes.
const MAX_REQUEST: u64 = 64 * 1024;

/// Largest answer that a client reads, in bytes: evidence, and room for the rest.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

/// Deadline of one exchange.
const DEADLINE: Duration = Duration::from_secs(30);

/// What an operator asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlRequest {
    /// See [`Admin::create_token`].
    CreateToken(NewToken),
    /// See [`Admin::list_hosts`].
    Hosts,
    /// See [`Admin::list_reimages`].
    Reimages,
    /// See [`Admin::show`].
    Show {
        /// Which request.
        id: String,
    },
    /// See [`Admin::approve`].
    Approve {
        /// Which request.
        id: String,
    },
    /// See [`Admin::dispatch_again`].
    DispatchAgain {
        /// Which request.
        id: String,
    },
    /// See [`Admin::deny`].
    Deny {
        /// Which request.
        id: String,
        /// Why.
        reason: String,
        /// How long the host may not ask again.
        for_span: Duration,
    },
    /// See [`Admin::release`].
    Release {
        /// Which request.
        id: String,
    },
    /// See [`Admin::audit`].
    Audit {
        /// How many of the newest entries.
        limit: u32,
    },
    /// See [`Admin::verify_audit`].
    VerifyAudit,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ControlAnswer {
    Done(Value),
    Refused(Box<Problem>),
    Failed(String),
}

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Binds the socket under another name and renames it, so that it is never there with a wider mode, and so that one
    /// left by a crash is replaced.
    pub(crate) fn bind(path: PathBuf) -> Result<Self, HubError> {
        let wrong = |source| HubError::Control { path: path.clone(), source };
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        match std::fs::remove_file(&fresh) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(wrong(error)),
        }
        let listener = UnixListener::bind(&fresh).map_err(wrong)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).map_err(wrong)?;
        std::fs::rename(&fresh, &path).map_err(wrong)?;
        Ok(Self { path, listener })
    }
}

/// Serves until it is told to stop.
pub(crate) async fn serve(socket: Socket, hub: Arc<Hub>, mut stop: watch::Receiver<bool>) {
    let mut exchanges = JoinSet::new();
    loop {
        tokio::select! {
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => {
                    exchanges.spawn(tokio::time::timeout(DEADLINE, exchange(stream, Arc::clone(&hub))));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an operator");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = exchanges.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    while exchanges.join_next().await.is_some() {}
    if let Err(error) = std::fs::remove_file(&socket.path) {
        tracing::debug!(%error, "cannot remove the control socket");
    }
}

async fn exchange(mut stream: UnixStream, hub: Arc<Hub>) {
    let uid = match stream.peer_cred() {
        Ok(peer) => peer.uid(),
        Err(error) => return tracing::warn!(%error, "an operator without credentials"),
    };
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return tracing::warn!(uid, "a stranger at the control socket");
    }
    let answer = match read_line(&mut stream).await {
        Ok(line) => match serde_json::from_slice(&line) {
            Ok(request) => answer(&Admin::new(hub, format!("operator:uid:{uid}")), request).await,
            Err(error) => ControlAnswer::Failed(format!("the request does not fit: {error}")),
        },
        Err(error) => ControlAnswer::Failed(format!("cannot read the request: {error}")),
    };
    let mut line = serde_json::json!(answer).to_string();
    line.push('\n');
    if let Err(error) = stream.write_all(line.as_bytes()).await {
        tracing::debug!(%error, "an operator left before the answer");
    }
}

async fn read_line(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0_u8; 4096];
    let mut bounded = stream.take(MAX_REQUEST);
    loop {
        let n = bounded.read(&mut chunk).await?;
        line.extend(chunk.iter().take(n));
        if n == 0 || line.ends_with(b"\n") {
            return Ok(line);
        }
    }
}

async fn answer(admin: &Admin, request: ControlRequest) -> ControlAnswer {
    fn done<T: Serialize>(result: Result<T, CallError>) -> ControlAnswer {
        match result {
            Ok(value) => match serde_json::to_value(value) {
                Ok(value) => ControlAnswer::Done(value),
                Err(error) => ControlAnswer::Failed(error.to_string()),
            },
            Err(CallError::Refused(problem)) => ControlAnswer::Refused(problem),
            Err(error @ (CallError::Store(_) | CallError::Random)) => ControlAnswer::Failed(chain(&error)),
        }
    }
    match request {
        ControlRequest::CreateToken(new) => done(admin.create_token(new).await),
        ControlRequest::Hosts => done(admin.list_hosts().await),
        ControlRequest::Reimages => done(admin.list_reimages().await),
        ControlRequest::Show { id } => done(admin.show(&id).await),
        ControlRequest::Approve { id } => done(admin.approve(&id).await),
        ControlRequest::DispatchAgain { id } => done(admin.dispatch_again(&id).await),
        ControlRequest::Deny { id, reason, for_span } => done(admin.deny(&id, &reason, for_span).await),
        ControlRequest::Release { id } => done(admin.release(&id).await),
        ControlRequest::Audit { limit } => done(admin.audit(limit).await),
        ControlRequest::VerifyAudit => done(admin.verify_audit().await),
    }
}

/// Why an operator got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens there.
    #[error(
        "cannot reach the hub at `{path}`\nhint: is `rekindle-hub serve` running, and are you root or its user? \
         name another socket with --control"
    )]
    Connect {
        /// Which socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The exchange broke off.
    #[error("cannot talk to the hub at `{path}`")]
    Talk {
        /// Which socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The answer cannot be understood.
    #[error("the hub's answer does not fit: is it of another version?")]
    Answer(#[source] serde_json::Error),
    /// The hub refused.
    #[error("{}", .0.detail.as_deref().unwrap_or(&.0.title))]
    Refused(Box<Problem>),
    /// The hub failed.
    #[error("the hub failed: {0}")]
    Failed(String),
}

/// Asks a running hub.
pub async fn call(path: &Path, request: &ControlRequest) -> Result<Value, ControlError> {
    let mut stream =
        UnixStream::connect(path).await.map_err(|source| ControlError::Connect { path: path.to_owned(), source })?;
    let talk = |source| ControlError::Talk { path: path.to_owned(), source };
    let mut line = serde_json::to_string(request).map_err(ControlError::Answer)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await.map_err(talk)?;
    let mut bytes = Vec::new();
    let mut stream = stream.take(MAX_ANSWER);
    let read = stream.read_to_end(&mut bytes);
    tokio::time::timeout(DEADLINE, read).await.map_err(|late| talk(late.into()))?.map_err(talk)?;
    match serde_json::from_slice(&bytes).map_err(ControlError::Answer)? {
        ControlAnswer::Done(value) => Ok(value),
        ControlAnswer::Refused(problem) => Err(ControlError::Refused(problem)),
        ControlAnswer::Failed(why) => Err(ControlError::Failed(why)),
    }
}
