//! The metrics of the agent on a loopback port, when one is configured: the agent itself opens no network socket.
//!
//! It reads one file, which the agent writes, and gives away nothing else. Everybody on this host may read it there.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use crate::config::Settings;
use crate::scrape;

/// Time between two attempts to open the port.
const RETRY: Duration = Duration::from_secs(30);

/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most collectors at a time; the next waits.
const MAX_SESSIONS: usize = 8;

/// Longest text that is passed on, in bytes.
const MAX_TEXT: u64 = 4 * 1024 * 1024;

/// Age at which a text is no longer passed on: the agent writes it four times as often.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Serves until it is dropped; without a port it waits for ever.
pub(super) async fn serve(settings: &Settings) -> Infallible {
    let Some(port) = settings.metrics.port else { return pending().await };
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => {
                info!(port, "metrics on the loopback interface");
                answer_all(&listener, settings).await;
            }
            Err(error) => error!(port, "cannot open the port for metrics: {error}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Answers until nobody can be accepted any more.
async fn answer_all(listener: &TcpListener, settings: &Settings) {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = sessions.join_next(), if !sessions.is_empty() => {
                if let Err(error) = ended {
                    error!("a session for metrics died: {error}");
                }
            }
            accepted = listener.accept(), if sessions.len() < MAX_SESSIONS => match accepted {
                Ok((stream, _)) => {
                    let file = settings.paths.metrics_file();
                    sessions.spawn(async move {
                        match tokio::time::timeout(PATIENCE, answer(stream, &file)).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => debug!("metrics: {error}"),
                            Err(_elapsed) => debug!("metrics: the collector is too slow"),
                        }
                    });
                }
                Err(error) => {
                    warn!("cannot accept a collector of metrics: {error}");
                    return;
                }
            },
        }
    }
}

async fn answer(mut stream: TcpStream, file: &Path) -> io::Result<()> {
    let mut head = Vec::new();
    while !scrape::is_whole(&head) {
        let room = scrape::MAX_HEAD.saturating_sub(u64::try_from(head.len()).unwrap_or(u64::MAX));
        if (&mut stream).take(room).read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let text = read(file);
    let metrics = text.as_deref().map_err(String::as_str);
    stream.write_all(&scrape::answer(scrape::asked(&head), metrics)).await?;
    stream.shutdown().await
}

/// What the agent wrote; `Err` says why there is nothing.
fn read(file: &Path) -> Result<String, String> {
    let cannot = |error: io::Error| format!("cannot read what the agent writes: {error}\n");
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let opened = std::fs::File::options().read(true).custom_flags(flags).open(file).map_err(cannot)?;
    let written = opened.metadata().and_then(|metadata| metadata.modified()).map_err(cannot)?;
    if written.elapsed().is_ok_and(|age| age > MAX_AGE) {
        return Err("the agent has written nothing for more than a minute\n".to_owned());
    }
    let mut text = String::new();
    opened.take(MAX_TEXT).read_to_string(&mut text).map_err(cannot)?;
    Ok(text)
}
