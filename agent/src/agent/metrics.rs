//! Metrics: on a socket of their own for root, and in files for others when the configuration asks for it.
//!
//! A scrape renders what is in memory; nothing is counted, kept or woken for metrics alone. Files are written only when they
//! are configured, every 15 seconds, and off the loop: a directory that hangs costs them and nothing else. The port is the
//! courier's, because root opens no network socket: it reads what is written here.

pub mod numbers;
pub mod text;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tracing::{debug, warn};

use super::Loop;
use super::worker::Shared;
use crate::host::publish;
use crate::scrape;

/// Time between two writings of the files.
const PERIOD: Duration = Duration::from_secs(15);

/// How long a collector may take for its request, and for the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A file that others read.
#[derive(Debug)]
struct Target {
    path: PathBuf,
    mode: u32,
    group: Option<u32>,
}

impl Loop {
    /// Answers one collector.
    pub(super) fn take_scrape(&mut self, mut stream: UnixStream) {
        let text = self.metrics();
        self.sessions.spawn(async move {
            match tokio::time::timeout(PATIENCE, serve(&mut stream, &text)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!("metrics: {error}"),
                Err(_elapsed) => debug!("metrics: the collector is too slow"),
            }
        });
    }

    /// Writes the configured files, and says when next; without any there is no next time.
    pub(super) fn publish_metrics(&mut self, now: Instant) {
        let targets = self.metrics_targets();
        self.publish_at = (!targets.is_empty()).then(|| now + PERIOD);
        if targets.is_empty() || self.is_publishing.swap(true, Ordering::SeqCst) {
            return;
        }
        let text = self.metrics();
        let (shared, is_publishing) = (Arc::clone(&self.shared), Arc::clone(&self.is_publishing));
        self.sessions.spawn_blocking(move || write(&targets, &text, &shared, &is_publishing));
    }

    fn metrics_targets(&self) -> Vec<Target> {
        let (settings, paths) = (&self.settings.metrics, &self.settings.paths);
        let textfile = settings.textfile.clone().map(|path| Target { path, mode: 0o644, group: None });
        let for_courier = settings.port.map(|_| Target {
            path: paths.metrics_file(),
            mode: 0o640,
            // The courier's own group, as the outbox has it.
            group: std::fs::metadata(paths.outbox()).ok().map(|outbox| outbox.gid()),
        });
        textfile.into_iter().chain(for_courier).collect()
    }

    fn metrics(&self) -> String {
        let coverage = self.watcher.coverage();
        let (watcher, guard) = (self.watcher.stats(), self.guard.readiness());
        text::render(&text::Facts {
            status: &self.shared.status(),
            numbers: &self.shared.numbers,
            watcher,
            coverage: &[
                ("watched", "fanotify", coverage.n_fanotify),
                ("watched", "inotify", coverage.n_inotify),
                ("polled", "none", coverage.n_polled),
                ("blind", "none", coverage.n_blind),
            ],
            n_failed_tests: coverage.n_failed_tests,
            guard,
        })
    }
}

async fn serve(stream: &mut UnixStream, text: &str) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !scrape::is_whole(&head) {
        let room = scrape::MAX_HEAD.saturating_sub(u64::try_from(head.len()).unwrap_or(u64::MAX));
        if (&mut *stream).take(room).read_buf(&mut head).await? == 0 {
            break;
        }
    }
    stream.write_all(&scrape::answer(scrape::asked(&head), Ok(text))).await?;
    stream.shutdown().await
}

/// What cannot be written is said once, in the log and in `status`.
fn write(targets: &[Target], text: &str, shared: &Shared, is_publishing: &AtomicBool) {
    for target in targets {
        let Err(error) = publish::replace(&target.path, text.as_bytes(), target.mode, target.group) else { continue };
        let text = format!("cannot write the metrics to `{}`: {error}", target.path.display());
        let mut status = shared.status();
        if !status.warnings.contains(&text) {
            warn!("{text}");
            status.warnings.push(text);
        }
    }
    is_publishing.store(false, Ordering::SeqCst);
}

#[cfg(test)]
mod tests;
