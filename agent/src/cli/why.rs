//! `why`: everything that is known about one resource, or one path.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::output::{BOLD, DIM, GOOD, WARN, ago};
use super::policy::{Held, held};
use super::{CliError, Global, Out, Outcome, exit, services, settings};
use crate::agent::control::{self, Answer, Insight, Request};
use crate::config::Settings;
use crate::converge::Cause;
use crate::converge::beside::{self, Beside};
use crate::converge::plan::visible;
use crate::host::packages::owner::{self, Owner};
use crate::policy::blame::{self, Blame, Commit};
use crate::policy::edit;
use crate::record::{HistoryEntry, HistoryFilter, Record};
use crate::resource::{AbsPath, Kind, Notes, Notify, OnDrift, Resource, ResourceId, Stood};

/// Arguments of `rekindle why`.
#[derive(Debug, Args)]
pub(super) struct Why {
    /// A resource, such as `file[/etc/motd]`, or an absolute path
    #[arg(value_name = "KIND[NAME]|PATH")]
    what: String,
}

/// Everything about one resource. Its JSON is stable; fields are only ever added.
#[derive(Debug, Serialize)]
struct About {
    version: u32,
    resource: ResourceId,
    policy: PolicyOf,
    declared: DeclaredAt,
    commit: Option<CommitOf>,
    /// Why no commit is named, where none is.
    commit_unknown: Option<String>,
    on_drift: &'static str,
    description: Option<String>,
    owner: Option<String>,
    tags: Vec<String>,
    requires: Vec<ResourceId>,
    required_by: Vec<ResourceId>,
    notifies: Vec<Notified>,
    owed: Vec<Owed>,
    last_change: Option<HistoryEntry>,
    last_drift: Option<HistoryEntry>,
    paused: Vec<Paused>,
    /// Packages that the file belongs to, where it is one.
    packages: Vec<Owner>,
    /// Why they are not known, if so.
    packages_unknown: Option<String>,
    /// Other versions of the file that a package manager laid beside it.
    beside: Vec<Beside>,
    /// What the running agent says; `None` when none runs.
    agent: Option<Insight>,
}

#[derive(Debug, Serialize)]
struct PolicyOf {
    name: String,
    revision: String,
    signer: Option<String>,
}

#[derive(Debug, Serialize)]
struct DeclaredAt {
    file: String,
    line: u32,
    column: u32,
}

#[derive(Debug, Serialize)]
struct CommitOf {
    id: String,
    author: String,
    time: Option<Timestamp>,
    subject: String,
    /// Whether it is only the oldest that was looked at, and the declaration is older.
    or_older: bool,
}

#[derive(Debug, Serialize)]
struct Notified {
    notify: &'static str,
    unit: String,
}

#[derive(Debug, Serialize)]
struct Owed {
    notify: &'static str,
    unit: String,
    since: Timestamp,
    error: String,
}

#[derive(Debug, Serialize)]
struct Paused {
    id: i64,
    until: Timestamp,
    by: String,
    reason: String,
}

/// A path that no resource declares.
#[derive(Debug, Serialize)]
struct Undeclared {
    version: u32,
    path: String,
    resource: Option<ResourceId>,
    /// What is there now.
    there: String,
    /// The nearest declared directory above it.
    below: Option<ResourceId>,
    /// Packages that own it.
    packages: Vec<String>,
    /// As what they own it.
    owners: Vec<Owner>,
    /// Why they are not known, if so.
    packages_unknown: Option<String>,
}

/// Says why something is as it is.
pub(super) fn why(global: &Global, args: &Why, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    let held = held(&settings)?;
    let found = find(&held, &args.what)?;
    match found {
        Found::Resource(resource) => about(&settings, &held, resource, out),
        Found::Path(path) => undeclared(&settings, &held, path, out),
    }
}

enum Found<'a> {
    Resource(&'a Resource),
    Path(AbsPath),
}

fn find<'a>(held: &'a Held, what: &str) -> Result<Found<'a>, CliError> {
    if what.starts_with('/') {
        let path = AbsPath::new(what.trim_end_matches('/'))
            .or_else(|error| if what == "/" { AbsPath::new("/") } else { Err(error) })?;
        let by_name = [Kind::File, Kind::Directory, Kind::Symlink]
            .into_iter()
            .find_map(|kind| held.state.get(&ResourceId::new(kind, path.shared())));
        let found =
            by_name.or_else(|| held.state.resources().iter().find(|resource| resource.watched().paths.contains(&path)));
        return Ok(found.map_or(Found::Path(path), Found::Resource));
    }
    let id: ResourceId = what.parse().map_err(|e: crate::resource::InvalidResourceId| {
        anyhow::anyhow!("{e}\nhint: or an absolute path, such as /etc/motd")
    })?;
    held.state.get(&id).map(Found::Resource).ok_or_else(|| {
        anyhow::anyhow!("the policy in force, {} {}, has no {id}", held.state.name(), held.state.revision().short())
            .into()
    })
}

fn about(settings: &Settings, held: &Held, resource: &Resource, out: &mut Out) -> Outcome {
    let id = &resource.id;
    let record = Record::open_read_only(&settings.paths.state)?;
    let entries = |wanted: &dyn Fn(&HistoryEntry) -> bool| -> Result<Option<HistoryEntry>, CliError> {
        let filter = HistoryFilter { resource: Some(id.clone()), limit: 1000, ..HistoryFilter::default() };
        Ok(record.history(&filter)?.into_iter().find(wanted))
    };
    let (commit, commit_unknown) = match find_commit(settings, held, resource) {
        Ok(commit) => (Some(commit), None),
        Err(why) => (None, Some(why)),
    };
    let root = crate::host::open_root(&settings.paths.root)?;
    let packages = match beside::file_of(resource) {
        Some(path) => owner::owners(&root, path),
        None => Ok(Vec::new()),
    };
    let (packages, packages_unknown) = packages.map_or_else(|why| (Vec::new(), Some(why)), |owners| (owners, None));
    let notes = resource.notes.as_deref().cloned().unwrap_or_default();
    let Notes { description, owner, tags, .. } = notes;
    let about = About {
        version: 1,
        resource: id.clone(),
        policy: PolicyOf {
            name: held.state.name().to_owned(),
            revision: held.state.revision().as_str().to_owned(),
            signer: held.verified.signer().map(str::to_owned),
        },
        declared: DeclaredAt {
            file: resource.source.file.to_string(),
            line: resource.source.line,
            column: resource.source.column,
        },
        commit,
        commit_unknown,
        on_drift: match resource.on_drift {
            OnDrift::Repair => "repair",
            OnDrift::Report => "report",
            OnDrift::Reimage => "reimage",
        },
        description,
        owner,
        tags,
        requires: resource.requires.to_vec(),
        required_by: held.state.resources().iter().filter(|r| r.requires.contains(id)).map(|r| r.id.clone()).collect(),
        notifies: resource
            .notifies
            .iter()
            .map(|(notify, unit)| Notified { notify: word(*notify), unit: unit.to_string() })
            .collect(),
        owed: record
            .debts()?
            .into_iter()
            .filter(|debt| debt.because_of == *id)
            .map(|debt| Owed {
                notify: word(debt.notify),
                unit: debt.unit.to_string(),
                since: debt.since,
                error: debt.error,
            })
            .collect(),
        last_change: entries(&|entry| matches!(entry.outcome.as_str(), "changed" | "undone"))?,
        last_drift: entries(&|entry| entry.cause == Cause::Drift && entry.action.is_some())?,
        paused: record
            .pauses(Timestamp::now())?
            .into_iter()
            .filter(|pause| pause.covers(id))
            .map(|pause| Paused { id: pause.id, until: pause.until, by: pause.by, reason: pause.reason })
            .collect(),
        packages,
        packages_unknown,
        beside: beside::look_at(&root, &held.state, std::iter::once(resource)),
        agent: ask(settings, id),
    };
    if out.is_json() {
        out.value(&about)?;
    } else {
        show(&about, out)?;
    }
    Ok(exit::OK)
}

/// The running agent's word; none when it does not run or is older.
fn ask(settings: &Settings, id: &ResourceId) -> Option<Insight> {
    let request = Request::Why { resource: id.clone() };
    match services::current_thread().ok()?.block_on(control::ask(&settings.paths.control(), &request)) {
        Ok(Answer::Why(insight)) => Some(*insight),
        Ok(Answer::Status(_) | Answer::Done | Answer::Requested(_) | Answer::Refused(_)) | Err(_) => None,
    }
}

fn find_commit(settings: &Settings, held: &Held, resource: &Resource) -> Result<CommitOf, String> {
    let revision = held.state.revision();
    if revision.as_str().starts_with("dir-") {
        return Err("the policy in force is a plain directory".to_owned());
    }
    let file = resource.source.file.to_string();
    let text = held.verified.files().get(&file).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
    let mut files = vec![file];
    match edit::origin(text, &resource.id) {
        Some(edit::Origin::Source(path) | edit::Origin::Template(path)) => files.push(path),
        Some(edit::Origin::Secret(_) | edit::Origin::Inline | edit::Origin::None) | None => {}
    }
    let blame = blame::blame(&settings.paths.repository(), revision.as_str(), &resource.id, &files)
        .map_err(|error| crate::resource::chain(&error))?;
    let (Commit { id, author, time, subject }, or_older) = match blame {
        Blame::Commit(commit) => (commit, false),
        Blame::OlderThan(commit) => (commit, true),
    };
    Ok(CommitOf { id, author, time: Timestamp::from_second(time).ok(), subject, or_older })
}

fn word(notify: Notify) -> &'static str {
    match notify {
        Notify::Reload => "reload",
        Notify::Restart => "restart",
    }
}

fn list(ids: &[ResourceId]) -> String {
    const MOST: usize = 12;
    let mut shown: Vec<String> = ids.iter().take(MOST).map(ToString::to_string).collect();
    if ids.len() > MOST {
        shown.push(format!("and {} more", ids.len().saturating_sub(MOST)));
    }
    shown.join(", ")
}

fn show(about: &About, out: &mut Out) -> Result<(), CliError> {
    out.line(format_args!("{BOLD}{}{BOLD:#}", about.resource))?;
    if let Some(description) = &about.description {
        out.line(format_args!("  {}", visible(description)))?;
    }
    let short = about.policy.revision.get(..12).unwrap_or(&about.policy.revision);
    let signer = about.policy.signer.as_ref().map_or_else(String::new, |who| format!(", signed by {who}"));
    out.line(format_args!(
        "  declared      {}:{}:{} of {} {short}{signer}",
        about.declared.file, about.declared.line, about.declared.column, about.policy.name
    ))?;
    match (&about.commit, &about.commit_unknown) {
        (Some(commit), _) => {
            let when = commit.time.map_or_else(String::new, |time| format!(", {}", time.strftime("%Y-%m-%d")));
            let id = commit.id.get(..12).unwrap_or(&commit.id);
            out.line(format_args!(
                "  commit        {id} by {}{when}{}",
                visible(&commit.author),
                if commit.or_older { ", or older: the history here ends there" } else { "" },
            ))?;
            out.line(format_args!("                {DIM}{}{DIM:#}", visible(&commit.subject)))?;
        }
        (None, Some(why)) => out.line(format_args!("  commit        {DIM}not known: {}{DIM:#}", visible(why)))?,
        (None, None) => {}
    }
    if let Some(owner) = &about.owner {
        out.line(format_args!("  owner         {}", visible(owner)))?;
    }
    if !about.tags.is_empty() {
        out.line(format_args!("  tags          {}", visible(&about.tags.join(", "))))?;
    }
    if about.on_drift != "repair" {
        out.line(format_args!("  on drift      {}", about.on_drift))?;
    }
    match &about.agent {
        Some(insight) => {
            let style = if insight.verdict.is_none() { GOOD } else { WARN };
            let state = insight.verdict.as_deref().unwrap_or("in sync");
            out.line(format_args!("  state         {style}{}{style:#}", visible(state)))?;
            let guarded = if insight.guarded { ", put back at once from a copy" } else { "" };
            match insight.not_watched.as_slice() {
                [] => out.line(format_args!("  watched       by events{guarded}"))?,
                several => {
                    for line in several {
                        out.line(format_args!("  watched       {WARN}{line}{WARN:#}{guarded}"))?;
                    }
                }
            }
        }
        None => out.line(format_args!("  state         {WARN}the agent does not run: nothing watches it{WARN:#}"))?,
    }
    show_packages(&about.packages, about.packages_unknown.as_deref(), out)?;
    for beside in &about.beside {
        out.line(format_args!("  {WARN}beside{WARN:#}        {beside}"))?;
    }
    for pause in &about.paused {
        out.line(format_args!(
            "  {WARN}paused{WARN:#}        until {:.0} by {}: {} {DIM}(#{}){DIM:#}",
            pause.until,
            visible(&pause.by),
            visible(&pause.reason),
            pause.id
        ))?;
    }
    show_entry("last change", about.last_change.as_ref(), "none yet", out)?;
    show_entry("last drift", about.last_drift.as_ref(), "none seen", out)?;
    for owed in &about.owed {
        let error = if owed.error.is_empty() { String::new() } else { format!(": {}", visible(&owed.error)) };
        out.line(format_args!(
            "  {WARN}owed{WARN:#}          {} of {} since {}{error}",
            owed.notify,
            owed.unit,
            ago(owed.since)
        ))?;
    }
    for (title, ids) in [("requires", &about.requires), ("required by", &about.required_by)] {
        if !ids.is_empty() {
            out.line(format_args!("  {title:<13} {}", list(ids)))?;
        }
    }
    for Notified { notify, unit } in &about.notifies {
        out.line(format_args!("  {:<13} {unit}", format!("{notify}s")))?;
    }
    Ok(())
}

fn show_entry(title: &str, entry: Option<&HistoryEntry>, none: &str, out: &mut Out) -> Result<(), CliError> {
    let Some(entry) = entry else {
        out.line(format_args!("  {title:<13} {DIM}{none}{DIM:#}"))?;
        return Ok(());
    };
    let cause = match entry.cause {
        Cause::NewRevision => "for a new revision",
        Cause::Drift => "after drift",
        Cause::Operator => "by an operator",
    };
    let what: Vec<&str> = entry.changes.iter().map(|change| change.attribute.as_str()).collect();
    out.line(format_args!(
        "  {title:<13} {} {DIM}(#{}, {}){DIM:#}, {} {cause}: {}",
        entry.time.strftime("%Y-%m-%d %H:%M:%S"),
        entry.id,
        ago(entry.time),
        entry.outcome,
        what.join(", "),
    ))?;
    if let Some(actor) = &entry.actor {
        out.line(format_args!("                by {actor}"))?;
    }
    Ok(())
}

fn undeclared(settings: &Settings, held: &Held, path: AbsPath, out: &mut Out) -> Outcome {
    let root = crate::host::open_root(&settings.paths.root)?;
    let mut below = None;
    let mut above = path.parent();
    while let (None, Some(directory)) = (&below, above) {
        below = held.state.get(&ResourceId::new(Kind::Directory, directory.shared()));
        above = directory.parent();
    }
    let there = Stood::look(&root, &path).map_or("it cannot be looked at", |stood| stood.word());
    let (owners, packages_unknown) =
        owner::owners(&root, &path).map_or_else(|why| (Vec::new(), Some(why)), |owners| (owners, None));
    if out.is_json() {
        let below = below.map(|resource| resource.id.clone());
        out.value(&Undeclared {
            version: 1,
            path: path.to_string(),
            resource: None,
            there: there.to_owned(),
            below,
            packages: owners.iter().map(|owner| owner.package.clone()).collect(),
            owners,
            packages_unknown,
        })?;
        return Ok(exit::OK);
    }
    out.line(format_args!("{BOLD}{path}{BOLD:#}"))?;
    out.line(format_args!(
        "  declared      {WARN}by no resource{WARN:#} of {} {}: rekindle does not change it",
        held.state.name(),
        held.state.revision().short()
    ))?;
    out.line(format_args!("  there         {there}"))?;
    if let Some(directory) = below {
        out.line(format_args!(
            "  below         {}, declared in {}:{}",
            directory.id, directory.source.file, directory.source.line
        ))?;
    }
    if owners.is_empty() && packages_unknown.is_none() {
        out.line(format_args!("  package       {DIM}none owns it{DIM:#}"))?;
    }
    show_packages(&owners, packages_unknown.as_deref(), out)?;
    Ok(exit::OK)
}

fn show_packages(owners: &[Owner], unknown: Option<&str>, out: &mut Out) -> Result<(), CliError> {
    for owner in owners {
        out.line(format_args!("  package       {owner}"))?;
    }
    if let Some(why) = unknown {
        out.line(format_args!("  package       {DIM}not known: {}{DIM:#}", visible(why)))?;
    }
    Ok(())
}
