//! Tells what was seen, a line for each scene, and waits for what is to be seen.
//!
//! Nothing is told that was not seen: a scene is narrated after its wait has ended well.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Out;
use crate::cli::output::{BOLD, DIM, changes_text};
use crate::resource::Change;

/// How long any one thing may take before the demo calls it not seen.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Nothing is wrong: somebody did not want to see the end.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Interrupted(&'static str);

/// Narrates.
#[derive(Debug)]
pub(super) struct Scenes<'a> {
    out: &'a mut Out,
    n: u32,
    log: Vec<Value>,
}

impl<'a> Scenes<'a> {
    /// A narrator who has said nothing.
    pub(super) fn new(out: &'a mut Out) -> Self {
        Self { out, n: 0, log: Vec::new() }
    }

    /// One numbered line about something that was seen.
    pub(super) fn scene(&mut self, title: &str, text: &str) -> anyhow::Result<()> {
        self.n = self.n.saturating_add(1);
        let plain = anstream::adapter::strip_str(text).to_string();
        self.log.push(serde_json::json!({ "scene": title, "seen": plain }));
        if !self.out.is_json() {
            let n = self.n;
            self.out.line(format_args!("{DIM}{n:>2}{DIM:#}  {BOLD}{title:<9}{BOLD:#} {text}"))?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// A line without a number.
    pub(super) fn say(&mut self, text: &str) -> anyhow::Result<()> {
        if !self.out.is_json() {
            self.out.line(text)?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// The differences of an alert, indented.
    pub(super) fn changes(&mut self, alert: &Value) -> anyhow::Result<()> {
        let changes = alert.pointer("/data/resources/0/changes").cloned().unwrap_or_default();
        let changes: Vec<Change> = serde_json::from_value(changes).context("the alert holds no changes")?;
        if !self.out.is_json() {
            for line in changes_text(&changes, self.out.has_color()).lines() {
                self.out.line(format_args!("              {line}"))?;
            }
        }
        Ok(())
    }

    /// Everything that was told, as one JSON object, where that was asked for.
    pub(super) fn end(&mut self, result: &anyhow::Result<()>) -> anyhow::Result<()> {
        if self.out.is_json() {
            let log = std::mem::take(&mut self.log);
            let error = result.as_ref().err().map(|e| format!("{e:#}"));
            let seen = result.is_ok();
            self.out.value(&serde_json::json!({ "version": 1, "seen": seen, "scenes": log, "error": error }))?;
        }
        Ok(())
    }
}

/// Waits for something to be there.
pub(super) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    until_async(what, async || look()).await
}

/// Waits for something to be there, asking asynchronously.
pub(super) async fn until_async<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> anyhow::Result<T> {
    let ends = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < ends, "waited {} s for {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Plays until the end or until a signal tells it to end, whichever is first: what the demo made is then taken down alike.
pub(super) async fn unless_interrupted<T>(play: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        result = play => result,
        _ = interrupt.recv() => Err(Interrupted("interrupted").into()),
        _ = terminate.recv() => Err(Interrupted("told to end").into()),
        _ = hangup.recv() => Err(Interrupted("the terminal is gone").into()),
    }
}
