//! `pause`, `resume`, `fetch`, `reimage`: what an operator tells the agent.

use std::time::{Duration, Instant};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{CliError, Global, Out, Outcome, duration, exit, resource_id, services, settings};
use crate::agent::control::{self, Answer, ControlError, Request};
use crate::config::Settings;
use crate::record::{NewPause, Record};
use crate::resource::ResourceId;
use crate::spool::{FetchNow, FetchResult, Spool};

/// Longest pause. A host that nobody repairs for longer is a snowflake by decision.
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Arguments of `rekindle pause`.
#[derive(Debug, Args)]
pub(super) struct Pause {
    /// How long, such as 30m, 2h or 1d; a pause always ends by itself
    #[arg(long = "for", value_name = "SPAN", value_parser = duration)]
    span: Duration,
    /// Why; shown in status and alerts
    #[arg(long, value_parser = reason)]
    reason: String,
    /// Only this resource
    #[arg(long, value_name = "KIND[NAME]", value_parser = resource_id)]
    only: Vec<ResourceId>,
}

/// Arguments of `rekindle resume`.
#[derive(Debug, Args)]
pub(super) struct Resume {
    /// Only the pause with this number
    id: Option<i64>,
}

/// Arguments of `rekindle fetch`.
#[derive(Debug, Args)]
pub(super) struct Fetch {
    /// How long to wait for the courier
    #[arg(long, default_value = "60s", value_name = "SPAN", value_parser = duration)]
    timeout: Duration,
}

/// Arguments of `rekindle reimage`.
#[derive(Debug, Args)]
pub(super) struct Reimage {
    /// Why
    #[arg(long, value_parser = reason)]
    reason: String,
}

/// Refuses a pause that would be none, or for too long.
pub(super) fn check_span(span: Duration) -> Result<(), CliError> {
    if span.is_zero() || span > LONGEST_PAUSE {
        return Err(anyhow::anyhow!("a pause lasts longer than nothing and at most 30 days").into());
    }
    Ok(())
}

/// Stops repair for a while.
pub(super) fn pause(global: &Global, args: &Pause, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    check_span(args.span)?;
    // A pause of nothing would look like one of what was meant.
    if let (false, Ok(held)) = (args.only.is_empty(), super::policy::held(&settings))
        && let Some(unknown) = args.only.iter().find(|id| held.state.get(id).is_none())
    {
        return Err(anyhow::anyhow!(
            "the policy in force, {} {}, has no {unknown}",
            held.state.name(),
            held.state.revision().short()
        )
        .into());
    }
    let now = Timestamp::now();
    let until = now.checked_add(SignedDuration::try_from(args.span)?)?;
    let mut record = Record::open_for_operator(&settings.paths.state)?;
    let made = record.pause(NewPause {
        from: now,
        until,
        reason: args.reason.clone(),
        by: operator(),
        only: args.only.clone(),
    })?;
    let id = made.id;
    let told = look(&settings)?;
    if out.is_json() {
        out.value(&json!({ "version": 1, "id": id, "until": until }))?;
    } else {
        out.line(format_args!("paused until {until:.0} (#{id}); `rekindle resume {id}` ends it sooner"))?;
        if told == Told::NotRunning {
            out.line("the agent does not run; it will honour the pause when it starts")?;
        }
    }
    Ok(exit::OK)
}

/// Why a person wants something, on the one line that status, alerts and the message of the day have for it.
fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err("expected a line that says why: whoever logs in next reads it".to_owned());
    }
    Ok(text.to_owned())
}

/// Ends pauses.
pub(super) fn resume(global: &Global, args: &Resume, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    let mut record = Record::open_for_operator(&settings.paths.state)?;
    let n = record.resume(args.id)?.len();
    if n == 0 {
        return Err(match args.id {
            Some(id) => anyhow::anyhow!("there is no pause #{id}\nhint: `rekindle status` lists them"),
            None => anyhow::anyhow!("nothing is paused"),
        }
        .into());
    }
    look(&settings)?;
    if out.is_json() {
        out.value(&json!({ "version": 1, "ended": n }))?;
    } else {
        out.line(format_args!("ended {n} pause{}", if n == 1 { "" } else { "s" }))?;
    }
    Ok(exit::OK)
}

/// Pulls the policy now, and waits for what comes of it.
pub(super) fn fetch(global: &Global, args: &Fetch, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    if settings.policy.is_none() {
        return Err(anyhow::anyhow!("no policy is configured\nhint: set `[policy] url` in agent.toml").into());
    }
    let inbox = Spool::open(&settings.paths.inbox())?;
    let before = inbox.read_slot::<FetchResult>()?.and_then(|result| result.answers);
    let asked = Timestamp::now();
    Spool::open(&settings.paths.outbox())?.write_slot(&FetchNow { version: 1, asked })?;
    let runtime = services::current_thread()?;
    let ends = Instant::now() + args.timeout;
    let result = loop {
        // An answer to somebody who asked later is one to this, too; that of a time before the clock was set back is not.
        let is_answer = |result: &FetchResult| result.answers != before && result.answers >= Some(asked);
        if let Some(result) = inbox.read_slot::<FetchResult>()?.filter(is_answer) {
            break result;
        }
        if Instant::now() >= ends {
            return Err(CliError::new(
                exit::UNKNOWN,
                anyhow::anyhow!("the courier did not answer in time\nhint: `systemctl status rekindle-courier`"),
            ));
        }
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    };
    if out.is_json() {
        out.value(&result)?;
    } else if let Some(commit) = result.commit.as_ref().filter(|_| result.error.is_none()) {
        out.line(format_args!("fetched {commit}"))?;
    }
    match result.error {
        Some(error) => Err(anyhow::anyhow!("cannot fetch the policy: {error}").into()),
        None => Ok(exit::OK),
    }
}

/// Asks for a reimage.
pub(super) fn reimage(global: &Global, args: &Reimage, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    let reason = format!("{} asked: {}", operator(), args.reason);
    let answer = services::current_thread()?
        .block_on(control::ask(&settings.paths.control(), &Request::Reimage { reason }))
        .map_err(|e| CliError::new(exit::UNKNOWN, e))?;
    match answer {
        Answer::Requested(id) => {
            if out.is_json() {
                out.value(&json!({ "version": 1, "request": id }))?;
            } else {
                out.line(format_args!("asked: request {id}; `rekindle status` shows how it goes"))?;
            }
            Ok(exit::OK)
        }
        Answer::Refused(why) => Err(CliError::refused(why)),
        Answer::Done | Answer::Why(_) | Answer::Status(_) => {
            Err(anyhow::anyhow!("the agent gave another answer").into())
        }
    }
}

/// Whether the running agent was told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    Yes,
    NotRunning,
}

/// Makes the running agent look at everything now.
pub(super) fn look(settings: &Settings) -> Result<Told, CliError> {
    match services::current_thread()?.block_on(control::ask(&settings.paths.control(), &Request::Look)) {
        Ok(_) => Ok(Told::Yes),
        Err(ControlError::NotRunning { .. }) => Ok(Told::NotRunning),
        Err(error) => Err(CliError::new(exit::UNKNOWN, error)),
    }
}

/// The person at the keyboard: who became root, not root. What sudo and doas say comes first, then who logged in.
pub(super) fn operator() -> String {
    let named = |variable| std::env::var(variable).ok().filter(|name| !name.is_empty() && name != "root");
    let logged_in = || {
        let text = std::fs::read_to_string("/proc/self/loginuid").ok()?;
        // All ones says that nobody did.
        let uid: u32 = text.trim().parse().ok().filter(|uid| *uid != u32::MAX && *uid != 0)?;
        let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        Some(user.map_or_else(|| format!("uid {uid}"), |user| user.name))
    };
    named("SUDO_USER")
        .or_else(|| named("DOAS_USER"))
        .or_else(logged_in)
        .or_else(|| named("USER"))
        .unwrap_or_else(|| "root".to_owned())
}
