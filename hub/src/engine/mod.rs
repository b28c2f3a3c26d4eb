//! Calls engines and records what came of it.
//!
//! What arrives here is already committed: the request is `dispatching`, the old incarnation fenced off, the token bound.
//! Never calls an engine twice for one intent, and never takes an engine's success for a success of the request.

pub(crate) mod exec;

use std::sync::Arc;

use jiff::Timestamp;
use rekindle_protocol::{Failure, Reason, ReimageEvent, ReimageState, Token};
use serde::Serialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::CallError;
use crate::config::Engine;
use crate::hub::{Hub, stopped};
use crate::store::reimages::{Reimage, Step};
use crate::store::{self, audit};

/// A committed intent on its way to its engine.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) reimage: Reimage,
    /// Number of the intent on record.
    pub(crate) call: i64,
    pub(crate) token: Token,
    pub(crate) engine: Engine,
}

/// What an engine is told, as JSON on its standard input.
#[derive(Debug, Serialize)]
pub(crate) struct Intent<'a> {
    /// Format version, 1.
    version: u32,
    reimage_id: &'a str,
    host_id: &'a str,
    group: &'a str,
    /// The incarnation to be destroyed.
    incarnation: u64,
    /// The incarnation that the token lets in.
    next_incarnation: u64,
    /// Single-use join token: the engine hands it to the new system.
    enroll_token: &'a str,
}

/// What came of a call.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The engine says done.
    Done {
        /// What it wrote, bounded.
        output: String,
    },
    /// The engine says that it failed, or could not be started at all.
    Failed {
        /// How.
        how: String,
        /// What it wrote, bounded.
        output: String,
    },
    /// It is not known whether the engine acted.
    Lost {
        /// Why.
        why: String,
        /// What it wrote, bounded.
        output: String,
    },
}

impl Outcome {
    /// Takes a secret out of what the engine wrote: an engine that prints its intent must not store the token for it.
    fn without(self, secret: &str) -> Self {
        let masked = |text: String| text.replace(secret, "[token]");
        match self {
            Self::Done { output } => Self::Done { output: masked(output) },
            Self::Failed { how, output } => Self::Failed { how, output: masked(output) },
            Self::Lost { why, output } => Self::Lost { why, output: masked(output) },
        }
    }
}

/// Runs until it is told to stop; every engine call is a task of its own and is joined.
pub(crate) async fn run(
    hub: Arc<Hub>,
    mut intents: mpsc::UnboundedReceiver<Dispatch>,
    mut stop: watch::Receiver<bool>,
) {
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            intent = intents.recv() => match intent {
                Some(dispatch) => {
                    calls.spawn(call(Arc::clone(&hub), dispatch, stop.clone()));
                }
                None => break,
            },
            Some(_) = calls.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    // An engine in flight is not killed: half a reimage is worse than one that nobody watched. Its call ends as lost.
    while calls.join_next().await.is_some() {}
}

async fn call(hub: Arc<Hub>, dispatch: Dispatch, stop: watch::Receiver<bool>) {
    let Dispatch { reimage, call, token, engine } = dispatch;
    let intent = Intent {
        version: 1,
        reimage_id: reimage.id.as_str(),
        host_id: reimage.host.as_str(),
        group: &reimage.group,
        incarnation: reimage.incarnation,
        next_incarnation: reimage.incarnation.saturating_add(1),
        enroll_token: token.reveal(),
    };
    let input = json!(intent).to_string();
    let outcome = match exec::start(&engine, input.into_bytes()) {
        Err(error) => {
            Outcome::Failed { how: format!("cannot start `{}`: {error}", program(&engine)), output: String::new() }
        }
        Ok(running) => {
            if let Err(error) = called(&hub, &reimage, Timestamp::now()).await {
                tracing::error!(reimage = %reimage.id, error = %chain(&error), "cannot record that the engine was called");
            }
            running.wait(engine.timeout, stop).await
        }
    };
    let outcome = outcome.without(token.reveal());
    match result(&hub, &reimage, call, &outcome, Timestamp::now()).await {
        Ok(()) => {
            let outcome = match &outcome {
                Outcome::Done { .. } => "done".to_owned(),
                Outcome::Failed { how, .. } => how.clone(),
                Outcome::Lost { why, .. } => why.clone(),
            };
            tracing::warn!(host = %reimage.host, reimage = %reimage.id, outcome, "engine ended");
        }
        // The request's deadline, or the next start of the hub, holds it for a person.
        Err(error) => {
            tracing::error!(reimage = %reimage.id, error = %chain(&error), "cannot record the engine's result");
        }
    }
}

fn program(engine: &Engine) -> &str {
    engine.exec.first().map_or("", String::as_str)
}

/// Records that the engine was called.
async fn called(hub: &Hub, reimage: &Reimage, now: Timestamp) -> Result<(), CallError> {
    let mut tx = hub.store.begin().await?;
    if let Some(mut reimage) = store::reimages::find(&mut tx, reimage.id.as_str()).await?
        && reimage.state == ReimageState::Dispatching
    {
        let mut step = Step::new(ReimageEvent::EngineCalled, "hub");
        step.deadline = reimage.deadline;
        store::reimages::advance(&mut tx, &mut reimage, step, now).await?;
        store::commit(tx).await?;
        hub.announce();
    }
    Ok(())
}

/// Records what came of a call.
async fn result(hub: &Hub, reimage: &Reimage, call: i64, outcome: &Outcome, now: Timestamp) -> Result<(), CallError> {
    let (word, output) = match outcome {
        Outcome::Done { output } => ("done", output),
        Outcome::Failed { output, .. } => ("failed", output),
        Outcome::Lost { output, .. } => ("unknown", output),
    };
    let mut tx = hub.store.begin().await?;
    store::reimages::put_result(&mut tx, call, word, output, now).await?;
    let id = reimage.id.as_str();
    let mut reimage = store::reimages::find(&mut tx, id)
        .await?
        .ok_or_else(|| crate::StoreError::Corrupt { what: format!("an engine call of no reimage `{id}`") })?;
    let in_flight = matches!(reimage.state, ReimageState::Dispatching | ReimageState::EngineRunning);
    if in_flight {
        if reimage.state == ReimageState::Dispatching && matches!(outcome, Outcome::Done { .. }) {
            store::reimages::advance(&mut tx, &mut reimage, Step::new(ReimageEvent::EngineCalled, "hub"), now).await?;
        }
        let step = match outcome {
            Outcome::Done { .. } => {
                Step::new(ReimageEvent::EngineDone, "hub").until(hub.after(now, hub.group(&reimage.group).birth))
            }
            Outcome::Failed { how, .. } => {
                Step::new(ReimageEvent::Fail(Failure::Engine), "hub").because(Reason::EngineFailed, how.as_str())
            }
            Outcome::Lost { why, .. } => Step::new(ReimageEvent::EngineLost, "hub")
                .because(Reason::EngineUnknown, format!("{why}; look whether the engine acted")),
        };
        store::reimages::advance(&mut tx, &mut reimage, step, now).await?;
        if reimage.state == ReimageState::Failed {
            store::hosts::drop_join_tokens(&mut tx, &reimage.id, now).await?;
        }
    } else {
        // The new incarnation was faster than its engine, or a person gave up waiting: that stands.
        let detail = json!({ "outcome": word, "state": reimage.state });
        audit::append(&mut tx, now, "hub", "engine.ended", id, detail).await?;
    }
    store::commit(tx).await?;
    hub.announce();
    Ok(())
}

/// Returns an error with all its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
