//! `status` and `history`: what is, and what was.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::output::{BAD, BOLD, DIM, GOOD, WARN, ago, changes_text, span};
use super::{CliError, Global, Out, Outcome, exit, resource_id, services, settings};
use crate::agent::control::{self, Answer, ControlError, Request};
use crate::agent::status::Status;
use crate::converge::Cause;
use crate::record::{HistoryFilter, Record};
use crate::resource::ResourceId;

/// Arguments of `rekindle status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Show it again every second until interrupted
    #[arg(long)]
    watch: bool,
}

/// Arguments of `rekindle history`.
#[derive(Debug, Args)]
pub(super) struct History {
    /// Show one entry whole
    id: Option<i64>,
    /// Only what happened since: a time such as 2026-11-21T10:00:00Z, or a span such as 2h
    #[arg(long, value_name = "TIME|SPAN", value_parser = since)]
    since: Option<Timestamp>,
    /// Only this resource
    #[arg(long, value_name = "KIND[NAME]", value_parser = resource_id)]
    resource: Option<ResourceId>,
    /// At most this many entries, the newest
    #[arg(long, short = 'n', default_value_t = 50)]
    limit: usize,
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let span = super::duration(text).map_err(|error| format!("{error}, or a time such as 2026-11-21T10:00:00Z"))?;
    jiff::SignedDuration::try_from(span)
        .ok()
        .and_then(|span| Timestamp::now().checked_sub(span).ok())
        .ok_or_else(|| format!("`{text}` reaches before all time"))
}

/// Orphans that are listed for people.
const SHOWN_ORPHANS: usize = 10;

/// Shows the state of the agent.
pub(super) fn status(global: &Global, args: &StatusArgs, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    let runtime = services::current_thread()?;
    loop {
        let answer = runtime.block_on(control::ask(&settings.paths.control(), &Request::Status));
        let status = match answer {
            Ok(Answer::Status(status)) => *status,
            Ok(Answer::Refused(why)) => return Err(CliError::refused(why)),
            Ok(Answer::Done | Answer::Why(_) | Answer::Requested(_)) => {
                return Err(anyhow::anyhow!("the agent gave another answer").into());
            }
            Err(error @ ControlError::NotRunning { .. }) => {
                return Err(CliError::new(exit::UNKNOWN, error));
            }
            Err(error) => return Err(CliError::new(exit::UNKNOWN, error)),
        };
        if args.watch && !out.is_json() {
            out.text("\x1b[2J\x1b[H")?;
        }
        if out.is_json() {
            out.value(&status)?;
        } else {
            show(&status, out)?;
        }
        if !args.watch {
            return Ok(code(&status));
        }
        out.flush()?;
        runtime.block_on(async { tokio::time::sleep(Duration::from_secs(1)).await });
    }
}

fn code(status: &Status) -> u8 {
    if status.policy.is_none() || status.resources.indeterminate > 0 {
        exit::UNKNOWN
    } else if status.out_of_sync.is_empty() && status.debts.is_empty() {
        exit::OK
    } else {
        exit::DRIFT
    }
}

fn show(status: &Status, out: &mut Out) -> Result<(), CliError> {
    let style = match status.health.state.as_str() {
        "converged" => GOOD,
        "degraded" | "unknown" | "on_last_good" => WARN,
        _ => BAD,
    };
    out.line(format_args!(
        "{BOLD}{}{BOLD:#}  {style}{}{style:#} since {}, mode {}",
        status.host,
        status.health.state.replace('_', " "),
        ago(status.health.since),
        status.mode,
    ))?;
    match &status.policy {
        Some(policy) => {
            let signer = policy.signer.as_ref().map_or_else(|| "unsigned".to_owned(), |who| format!("signed by {who}"));
            let short = policy.revision.get(..12).unwrap_or(&policy.revision);
            let good = if policy.last_good.as_deref() == Some(&policy.revision) { ", converged here" } else { "" };
            out.line(format_args!("policy     {} {short}, {signer}{good}", policy.name))?;
        }
        None => out.line(format_args!("policy     {WARN}none in force yet{WARN:#}"))?,
    }
    let n = &status.resources;
    out.line(format_args!(
        "resources  {} in sync of {}{}{}{}{}{}",
        n.in_sync,
        n.total,
        some(n.drifted, "drifted"),
        some(n.waived, "waived"),
        some(n.failed, "failed"),
        some(n.indeterminate, "unknown"),
        some(n.skipped, "skipped"),
    ))?;
    if let Some(run) = &status.last_run {
        out.line(format_args!(
            "last run   {} in {}, {} changed, {} failed; {} repairs since start",
            ago(run.started),
            span(Duration::from_micros(run.duration_us)),
            run.changed,
            run.failed,
            status.n_repairs,
        ))?;
    }
    match status.verified {
        Some(at) => out.line(format_args!("verified   everything {}", ago(at)))?,
        None if status.policy.is_some() => out.line(format_args!("verified   not everything yet"))?,
        None => {}
    }
    let counts = status.watches;
    let counts = [
        (counts.fanotify, "by fanotify"),
        (counts.inotify, "by inotify"),
        (counts.polled, "polled"),
        (counts.blind, "by scans only"),
    ];
    let counts: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, how)| format!("{n} {how}")).collect();
    out.line(format_args!(
        "watching   {} paths{}{}{}",
        status.n_watched,
        if counts.is_empty() { "" } else { ", " },
        counts.join(", "),
        if status.degraded_watches.is_empty() { "" } else { ":" }
    ))?;
    for line in &status.degraded_watches {
        out.line(format_args!("           {WARN}{line}{WARN:#}"))?;
    }
    if status.n_guarded > 0 {
        let files = if status.n_guarded == 1 { "file" } else { "files" };
        out.line(format_args!("guarding   {} {files}, put back at once from copies", status.n_guarded))?;
    }
    for resource in &status.scanned_trees {
        out.line(format_args!("scanning   {resource}: owners and modes in subdirectories, with full scans only"))?;
    }
    for resource in &status.scanned_strays {
        out.line(format_args!(
            "scanning   {resource}: undeclared directories that hold something kept, with full scans only"
        ))?;
    }
    if !status.activity.is_empty() {
        out.line(format_args!("now        {}", status.activity))?;
    }
    show_delivery(status, out)?;
    for pause in &status.pauses {
        let what = if pause.only.is_empty() {
            "everything".to_owned()
        } else {
            pause.only.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        out.line(format_args!(
            "{WARN}paused{WARN:#}     {what} until {:.0} by {}: {} {DIM}(#{}){DIM:#}",
            pause.until, pause.by, pause.reason, pause.id
        ))?;
    }
    for waiting in &status.confirmations {
        let until = waiting.until.map_or_else(String::new, |until| format!(" until {until:.0}"));
        out.line(format_args!(
            "{WARN}confirm{WARN:#}    {BOLD}{}{BOLD:#} waits{until} for {}; otherwise it is put back",
            waiting.resource, waiting.by
        ))?;
    }
    for debt in &status.debts {
        out.line(format_args!(
            "{WARN}owed{WARN:#}       {} of {} because of {}{}{}",
            debt.notify,
            debt.unit,
            debt.because_of,
            if debt.error.is_empty() { "" } else { ": " },
            debt.error
        ))?;
    }
    for (id, why) in &status.out_of_sync {
        out.line(format_args!("{WARN}out{WARN:#}        {BOLD}{id}{BOLD:#} {why}"))?;
    }
    for beside in &status.beside {
        out.line(format_args!("{WARN}beside{WARN:#}     {BOLD}{}{BOLD:#}: {beside}", beside.resource))?;
    }
    for orphan in status.orphans.iter().take(SHOWN_ORPHANS) {
        let revision = orphan.left_out_by.get(..12).unwrap_or(&orphan.left_out_by);
        let note = if orphan.note.is_empty() { String::new() } else { format!(": {}", orphan.note) };
        let locked = if orphan.locked.is_some() { ", locked" } else { "" };
        out.line(format_args!(
            "{WARN}orphan{WARN:#}     {BOLD}{}{BOLD:#} left out by {revision} {}{locked}{note} {DIM}(was in {}){DIM:#}",
            orphan.resource,
            ago(orphan.since),
            orphan.declared,
        ))?;
    }
    if status.n_orphans > SHOWN_ORPHANS {
        let more = status.n_orphans.saturating_sub(SHOWN_ORPHANS);
        out.line(format_args!("           and {more} more orphans: `rekindle --json status` lists a hundred"))?;
    }
    for fight in &status.contested {
        out.line(format_args!(
            "{BAD}contested{BAD:#}  {} {DIM}(since {}, repaired every {} s){DIM:#}",
            fight.summary,
            ago(fight.since),
            fight.every_s
        ))?;
    }
    if let Some(since) = status.storm_since {
        out.line(format_args!(
            "{BAD}storm{BAD:#}      since {}: too much drift to follow change by change; everything is looked at in single passes",
            ago(since)
        ))?;
    }
    if let Some(refused) = &status.refused {
        let short = refused.revision.get(..12).unwrap_or(&refused.revision);
        out.line(format_args!("{BAD}refused{BAD:#}    revision {short}, {}: {}", ago(refused.at), refused.reason))?;
    }
    if let Some(damage) = &status.health.damage {
        out.line(format_args!("{BAD}damaged{BAD:#}    {damage}"))?;
    }
    if let Some(request) = &status.health.request {
        out.line(format_args!("{BAD}reimage{BAD:#}    request {request} is open"))?;
    }
    if let Some(why) = &status.record_in_memory {
        out.line(format_args!("{BAD}record{BAD:#}     in memory alone: {why}"))?;
    }
    for warning in &status.warnings {
        out.line(format_args!("{WARN}warning{WARN:#}    {warning}"))?;
    }
    Ok(())
}

fn show_delivery(status: &Status, out: &mut Out) -> Result<(), CliError> {
    match &status.fetch {
        Some(fetch) => match (&fetch.error, &fetch.commit) {
            (Some(error), _) => {
                out.line(format_args!("fetch      {BAD}failed{BAD:#} {}: {error}", ago(fetch.at)))?;
            }
            (None, Some(commit)) => {
                let short = commit.get(..12).unwrap_or(commit);
                out.line(format_args!("fetch      {short}, {}", ago(fetch.at)))?;
            }
            (None, None) => out.line("fetch      nothing yet")?,
        },
        None => out.line(format_args!("fetch      {DIM}nothing heard from the courier yet{DIM:#}"))?,
    }
    out.line(format_args!("outbox     {} waiting", status.outbox))?;
    let Some(courier) = &status.courier else { return Ok(()) };
    for receiver in &courier.receivers {
        match (&receiver.error, receiver.delivered) {
            (Some(error), _) => {
                out.line(format_args!("           {BAD}{}{BAD:#}: {error}", receiver.name))?;
            }
            (None, Some(at)) => out.line(format_args!("           {}: delivered {}", receiver.name, ago(at)))?,
            (None, None) => out.line(format_args!("           {}: nothing to deliver yet", receiver.name))?,
        }
    }
    Ok(())
}

/// `, 3 failed` when there are any.
fn some(n: usize, what: &str) -> String {
    if n == 0 { String::new() } else { format!(", {n} {what}") }
}

/// Shows the history.
pub(super) fn history(global: &Global, args: &History, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    let record = Record::open_read_only(&settings.paths.state)?;
    let filter = HistoryFilter { since: args.since, id: args.id, resource: args.resource.clone(), limit: args.limit };
    let entries = record.history(&filter)?;
    if out.is_json() {
        out.value(&json!({ "version": 1, "entries": entries }))?;
        return Ok(exit::OK);
    }
    if let (Some(id), true) = (args.id, entries.is_empty()) {
        return Err(anyhow::anyhow!("the history has no entry {id}").into());
    }
    if entries.is_empty() {
        out.line("nothing has been changed yet")?;
    }
    for entry in &entries {
        let style = match entry.outcome.as_str() {
            "changed" => GOOD,
            "failed" => BAD,
            _ => WARN,
        };
        let cause = match entry.cause {
            Cause::NewRevision => "new revision",
            Cause::Drift => "drift",
            Cause::Operator => "operator",
        };
        out.line(format_args!(
            "{DIM}#{:<5} {}{DIM:#} {style}{:<11}{style:#} {BOLD}{}{BOLD:#} ({cause}{})",
            entry.id,
            entry.time.strftime("%Y-%m-%d %H:%M:%S"),
            entry.outcome,
            entry.resource,
            entry.duration_us.map_or_else(String::new, |us| format!(", {}", span(Duration::from_micros(us)))),
        ))?;
        if let Some(error) = &entry.error {
            out.line(format_args!("       {BAD}{error}{BAD:#}"))?;
        }
        if let Some(actor) = &entry.actor {
            out.line(format_args!("       by {actor}"))?;
            if args.id.is_some() {
                for line in actor.details() {
                    out.line(format_args!("          {DIM}{line}{DIM:#}"))?;
                }
            }
        }
        out.text(&changes_text(&entry.changes, out.has_color()))?;
    }
    Ok(exit::OK)
}
