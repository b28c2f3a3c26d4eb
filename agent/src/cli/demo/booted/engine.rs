//! The hub's engine in the demo: this very program, which hands what it was told to the demo's own process and ends when
//! the demo has re-created the host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rekindle_hub::Engine;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

/// Name of the hidden command.
pub(crate) const COMMAND: &str = "__demo-engine";

/// Largest intent, in bytes.
const MAX_INTENT: u64 = 64 * 1024;

const DONE: &[u8] = b"done\n";

/// What the hub tells its engine, as far as the demo needs it.
#[derive(Debug, Deserialize)]
pub(super) struct Intent {
    /// Which host.
    pub(super) host_id: String,
    /// The incarnation that the token lets in.
    pub(super) next_incarnation: u64,
    /// For the new system.
    pub(super) enroll_token: String,
}

/// Where the engine reaches the demo.
#[derive(Debug)]
pub(super) struct Calls {
    listener: UnixListener,
    socket: PathBuf,
}

/// An engine that waits.
#[derive(Debug)]
pub(super) struct Call {
    /// What it was told.
    pub(super) intent: Intent,
    stream: UnixStream,
}

impl Calls {
    /// Listens.
    pub(super) fn listen(socket: PathBuf) -> anyhow::Result<Self> {
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("cannot listen on `{}`", socket.display()))?;
        Ok(Self { listener, socket })
    }

    /// What the hub is to run.
    pub(super) fn engine(&self) -> anyhow::Result<Engine> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("this program's path is not text");
        let exec = vec![text(&std::env::current_exe()?)?, COMMAND.to_owned(), text(&self.socket)?];
        Ok(Engine { exec, timeout: Duration::from_secs(300) })
    }

    /// Waits for a call.
    pub(super) async fn next(&self) -> anyhow::Result<Call> {
        let (mut stream, _) = self.listener.accept().await.context("cannot take the engine's call")?;
        let mut text = Vec::new();
        (&mut stream).take(MAX_INTENT).read_to_end(&mut text).await?;
        let intent = serde_json::from_slice(&text).context("the hub told its engine what the demo cannot read")?;
        Ok(Call { intent, stream })
    }
}

impl Call {
    /// Lets the engine end well.
    pub(super) async fn done(mut self) -> anyhow::Result<()> {
        self.stream.write_all(DONE).await.context("the engine did not wait")
    }
}

/// The engine's own process: hands standard input on, and fails unless the demo says that the host was re-created.
pub(in super::super) async fn call(socket: &Path) -> anyhow::Result<()> {
    let mut intent = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(std::io::stdin(), MAX_INTENT), &mut intent)?;
    let mut stream = UnixStream::connect(socket).await.context("the demo does not listen")?;
    stream.write_all(&intent).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.take(MAX_INTENT).read_to_end(&mut answer).await?;
    anyhow::ensure!(answer == DONE, "the demo did not re-create the host");
    Ok(())
}
