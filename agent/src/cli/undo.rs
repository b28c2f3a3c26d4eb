//! `undo`: puts back what a step replaced, and pauses the resource, so that the agent does not undo the undoing.

use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::operate::{look, operator};
use super::{CliError, Global, Out, Outcome, duration, exit, settings};
use crate::config::Settings;
use crate::converge::{Cause, SecretPaths};
use crate::host::root::Root;
use crate::policy::Revision;
use crate::record::{self, HistoryEntry, HistoryFilter, NewPause, Place, Record, RunInfo, RunLock, Undone};
use crate::resource::{Action, Change, ChangeDetail, Stood, chain, conceal_in_undoing, stood};

/// Arguments of `rekindle undo`.
#[derive(Debug, Args)]
pub(super) struct Undo {
    /// The entry of the history whose step is to be undone
    id: i64,
    /// How long the resource is paused, so that what is put back stays
    #[arg(long = "for", value_name = "SPAN", value_parser = duration, default_value = "4h")]
    span: Duration,
    /// Why; shown in status and alerts
    #[arg(long, default_value = "undone by hand")]
    reason: String,
}

/// Reads one entry of the history.
pub(super) fn entry(record: &Record, id: i64) -> Result<HistoryEntry, CliError> {
    let filter = HistoryFilter { id: Some(id), ..HistoryFilter::default() };
    record
        .history(&filter)?
        .pop()
        .ok_or_else(|| anyhow::anyhow!("the history has no entry {id}\nhint: `rekindle history` lists them").into())
}

/// Undoes a step.
pub(super) fn undo(global: &Global, args: &Undo, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    super::operate::check_span(args.span)?;
    let known = Record::open_read_only(&settings.paths.state)?;
    let entry = entry(&known, args.id)?;
    let places = known.places(args.id)?;
    drop(known);
    refuse_what_cannot_be_undone(&entry, &places)?;

    let _lock = RunLock::acquire(&settings.paths.runtime, "undo", Duration::from_secs(10))
        .map_err(|held| CliError::refused(chain(&held)))?;
    let root = crate::host::open_root(&settings.paths.root)?;
    let due = due(&settings, &root, &entry, &places)?;
    if due.is_empty() {
        if out.is_json() {
            out.value(&json!({ "version": 1, "undone": entry.id, "changed": false }))?;
        } else {
            out.line(format_args!("nothing to do: {} is as it was before #{}", entry.resource, entry.id))?;
        }
        return Ok(exit::OK);
    }

    let mut record = Record::open_for_operator(&settings.paths.state)?;
    let now = Timestamp::now();
    let until = now.checked_add(SignedDuration::try_from(args.span)?)?;
    // The pause comes first, and the agent is told at once: what is put back must not be taken for drift.
    let pause = record.pause(NewPause {
        from: now,
        until,
        reason: format!("#{}: {}", entry.id, args.reason),
        by: operator(),
        only: vec![entry.resource.clone()],
    })?;
    look(&settings)?;
    let done = put_back(&settings, &root, &mut record, &entry, &due);
    // Told again: the directory changed beside what the agent watches, and what was just put back is to be reported.
    if let Err(error) = done {
        record.resume(Some(pause.id))?;
        look(&settings)?;
        return Err(error);
    }
    let (step, changes) = done?;
    if out.is_json() {
        out.value(&json!({ "version": 1, "undone": entry.id, "changed": true, "history": step, "changes": changes,
            "pause": { "id": pause.id, "until": pause.until } }))?;
        return Ok(exit::OK);
    }
    out.line(format_args!(
        "put back {} as it was before #{} of {:.0} (now #{step})",
        entry.resource, entry.id, entry.time
    ))?;
    out.text(&super::output::changes_text(&changes, out.has_color()))?;
    out.line(format_args!(
        "{} is paused until {:.0} (#{}); then the policy holds again",
        entry.resource, until, pause.id
    ))?;
    out.line(format_args!(
        "`rekindle adopt {step}` makes it policy; `rekindle resume {}` gives it back to the agent now",
        pause.id
    ))?;
    Ok(exit::OK)
}

fn refuse_what_cannot_be_undone(entry: &HistoryEntry, places: &[Place]) -> Result<(), CliError> {
    let (id, resource) = (entry.id, &entry.resource);
    let why = match entry.outcome.as_str() {
        "orphaned" => format!("#{id} changed nothing: it only says that {resource} left the policy"),
        "reported" | "indeterminate" | "contested" => {
            format!(
                "#{id} changed nothing: it only says that {resource} was out of sync\nhint: `rekindle adopt {id}` makes what is there policy"
            )
        }
        _ if places.is_empty() && kept_in(entry).is_some() => format!(
            "#{id} moved several things away: put back what you want with `mv`\n\
             hint: `{}/manifest` says where each was; `rekindle pause` first, or declare or `keep` it, or it goes again",
            kept_in(entry).unwrap_or_default()
        ),
        _ if places.is_empty() => format!(
            "#{id} cannot be undone: what a step on {resource} replaced is not held by a path alone, or was not recorded\n\
             hint: change the policy; `rekindle history {id}` shows what differed"
        ),
        "started" => format!("#{id} is still under way"),
        _ if places.iter().any(|place| is_hidden(&place.before) || place.after.as_ref().is_some_and(is_hidden)) => {
            format!(
                "#{id} cannot be undone: {resource} holds a secret, and nothing of secrets is kept\n\
             hint: change the policy, or the secret in it"
            )
        }
        _ => return Ok(()),
    };
    Err(CliError::refused(why))
}

fn is_hidden(stood: &Stood) -> bool {
    matches!(stood, Stood::Hidden { .. })
}

/// Where what a purge removed is kept.
fn kept_in(entry: &HistoryEntry) -> Option<&str> {
    let kept = entry.changes.iter().find(|change| change.attribute == "kept")?;
    match &kept.detail {
        ChangeDetail::Value { to, .. } => to.as_deref(),
        ChangeDetail::Text { .. } | ChangeDetail::Opaque { .. } => None,
    }
}

/// What there is to put back, once it is sure that it can be.
fn due(settings: &Settings, root: &Root, entry: &HistoryEntry, places: &[Place]) -> Result<Vec<Place>, CliError> {
    let mut due = Vec::new();
    for place in places {
        let path = &place.path;
        let Some(now) = Stood::look(root, path) else {
            return Err(CliError::new(exit::UNKNOWN, anyhow::anyhow!("cannot look at `{path}`")));
        };
        if now == place.before {
            continue;
        }
        match &place.after {
            Some(after) if *after == now => {}
            Some(after) => {
                return Err(CliError::refused(format!(
                    "`{path}` has changed since #{}: {}\nhint: `rekindle history --resource '{}'` shows what came later",
                    entry.id,
                    stood::words_of_difference(after, &now),
                    entry.resource
                )));
            }
            None => {
                return Err(CliError::refused(format!(
                    "#{} was cut short, and nobody looked at what it left at `{path}`",
                    entry.id
                )));
            }
        }
        if let Some(name) = place.before.content_name()
            && now.content_name() != Some(name)
            && record::kept(&settings.paths.state, name)?.is_none()
        {
            return Err(CliError::refused(format!(
                "there is no backup of what was at `{path}` before #{}: the oldest are dropped to make room",
                entry.id
            )));
        }
        due.push(Place { after: Some(now), ..place.clone() });
    }
    Ok(due)
}

/// Puts each path back and records it. Returns the entry's id and the differences.
fn put_back(
    settings: &Settings,
    root: &Root,
    record: &mut Record,
    entry: &HistoryEntry,
    due: &[Place],
) -> Result<(i64, Vec<Change>), CliError> {
    let shows_content = entry.changes.iter().any(|change| {
        change.attribute == "content" && matches!(change.detail, ChangeDetail::Text { .. } | ChangeDetail::Value { .. })
    });
    let revision = revision_in_force(record)?;
    // Without it the difference is told and not shown.
    let content_of = |stood: Option<&Stood>| -> Option<Vec<u8>> {
        record::kept(&settings.paths.state, stood?.content_name()?).ok().flatten()
    };
    let mut changes = Vec::new();
    let mut backup = None;
    SecretPaths::suspect(record, due.iter().map(|place| &place.path), &entry.changes)?;
    for place in due {
        // What the step had left is kept, so that this can be undone as well.
        if let Some(Stood::File { .. }) = &place.after
            && let Some((content, _)) = root.read(&place.path, crate::resource::place::MAX_CONTENT)?
        {
            backup = Some(record.keep(&content)?);
        }
        let sides = (content_of(place.after.as_ref()), content_of(Some(&place.before)));
        let sides = if shows_content { sides } else { (None, None) };
        let after = place.after.clone().unwrap_or(Stood::Nothing);
        changes.extend(stood::changes(&after, &place.before, sides.0.as_deref(), sides.1.as_deref()));
        place
            .before
            .put_back(root, &place.path, |name| {
                record::kept(&settings.paths.state, name).map_err(|error| chain(&error))
            })
            .map_err(|error| CliError::new(exit::DRIFT, error))?;
        if Stood::look(root, &place.path).as_ref() != Some(&place.before) {
            return Err(CliError::new(
                exit::DRIFT,
                anyhow::anyhow!("`{}` was put back, and is not as it was: somebody else changes it", place.path),
            ));
        }
    }
    let places: Vec<Place> = due
        .iter()
        .map(|place| Place {
            path: place.path.clone(),
            before: place.after.clone().unwrap_or(Stood::Nothing),
            after: Some(place.before.clone()),
        })
        .collect();
    conceal_in_undoing(&mut changes, &entry.changes);
    let time = Timestamp::now();
    let run = RunInfo { id: None, started: time, revision, cause: Cause::Operator, full: false };
    let note = format!("undid #{}, by {}", entry.id, operator());
    let undone = Undone {
        resource: &entry.resource,
        action: action(&places),
        changes: &changes,
        backup: backup.as_deref(),
        note: &note,
        places: &places,
        time,
    };
    Ok((record.record_undone(&run, &undone)?, changes))
}

fn revision_in_force(record: &Record) -> Result<Revision, CliError> {
    let revisions: Option<crate::agent::revisions::Revisions> = record.load("revisions")?;
    Ok(revisions.and_then(|revisions| revisions.in_force).unwrap_or_else(|| Revision::new("none")))
}

fn action(places: &[Place]) -> Action {
    match places.first().map(|place| (&place.before, &place.after)) {
        Some((Stood::Nothing, _)) => Action::Create,
        Some((_, Some(Stood::Nothing))) => Action::Remove,
        Some(_) | None => Action::Update,
    }
}
