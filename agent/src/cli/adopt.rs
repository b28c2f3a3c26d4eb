//! `adopt`: what drifted, as a patch of the policy, for a person to read and commit. Nothing is changed here.
//!
//! The patch goes to standard output and nothing else does, so that it can be piped into `git apply`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::output::changes_text;
use super::policy::{Held, held, held_in};
use super::undo::entry;
use super::{CliError, Global, Out, Outcome, exit, settings};
use crate::config::Settings;
use crate::converge::SecretPaths;
use crate::host::Host;
use crate::policy::edit::{self, New, Origin};
use crate::record::{self, HistoryEntry, Record};
use crate::resource::place::Ownership;
use crate::resource::{
    Change, ChangeDetail, Desired, Ensure, Kind, Names, Resource, ResourceId, Snapshot, Stood, digest, user,
};

/// Arguments of `rekindle adopt`.
#[derive(Debug, Args)]
pub(super) struct Adopt {
    /// The entry of the history whose drift is to become policy
    id: i64,
    /// Patch the policy in this directory instead of the one in force
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
}

/// The state of a resource that is to become policy.
enum Wanted {
    /// What stood at its path.
    Path(Stood, Option<Vec<u8>>),
    /// The values that differed.
    Values(Vec<(String, Option<String>)>),
}

/// Prints the patch.
pub(super) fn adopt(global: &Global, args: &Adopt, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    let record = Record::open_read_only(&settings.paths.state)?;
    let entry = entry(&record, args.id)?;
    let held = match &args.policy {
        Some(directory) => held_in(&settings, directory, out)?,
        None => held(&settings)?,
    };
    let Some(resource) = held.state.get(&entry.resource) else {
        return Err(CliError::refused(format!(
            "{} {} has no {} any more: there is nothing to patch",
            held.state.name(),
            held.state.revision().short(),
            entry.resource
        )));
    };
    let wanted = wanted(&settings, &record, &entry, resource)?;
    let changed = match wanted {
        Wanted::Path(stood, content) => adopt_path(&settings, &held, resource, &stood, content)?,
        Wanted::Values(values) => adopt_values(&held, resource, &values)?,
    };
    let patch = edit::patch(held.verified.files(), &changed).map_err(|error| CliError::refused(error.to_string()))?;
    if patch.is_empty() {
        return Err(CliError::refused(format!("the policy declares {} so already", entry.resource)));
    }
    if out.is_json() {
        let files: Vec<&String> = changed.keys().collect();
        out.value(&json!({ "version": 1, "adopted": entry.id, "resource": entry.resource, "files": files,
            "revision": held.state.revision(), "patch": patch }))?;
    } else {
        out.text(&patch)?;
        note_shared(&held, resource, &changed);
    }
    Ok(exit::OK)
}

fn refuse(text: impl Into<String>) -> CliError {
    CliError::refused(text)
}

fn may_be_secret(id: &ResourceId) -> CliError {
    refuse(format!(
        "what was found in {id} is, or may be, a secret: it belongs into no policy in clear\n\
         hint: encrypt the new value yourself"
    ))
}

/// What was there: before a step of ours, or now if nothing was done about it.
fn wanted(settings: &Settings, record: &Record, entry: &HistoryEntry, resource: &Resource) -> Result<Wanted, CliError> {
    let id = &entry.resource;
    let by_path = matches!(resource.desired, Desired::File(_) | Desired::Directory(_) | Desired::Symlink(_));
    let acted = matches!(entry.outcome.as_str(), "changed" | "interrupted" | "undone");
    // What was no secret then may be one now, and the other way round.
    let secrets = SecretPaths::recall(record);
    let mut found = entry.changes.clone();
    secrets.conceal_changes(resource, &mut found);
    if found.iter().any(Change::is_concealed) {
        return Err(may_be_secret(id));
    }
    let shown = |stood: Stood, content| match secrets.may_be_at(resource) {
        true => Wanted::Path(stood.hidden(), None),
        false => Wanted::Path(stood, content),
    };
    if by_path && acted {
        let place = record.places(entry.id)?.into_iter().next();
        let stood = place.map(|place| match entry.outcome.as_str() {
            // What was put back by hand is what somebody wants.
            "undone" => place.after.unwrap_or(place.before),
            _ => place.before,
        });
        let stood = stood.ok_or_else(|| refuse(format!("what stood there before #{} was not recorded", entry.id)))?;
        if let Stood::Hidden { .. } = stood
            && entry.changes.iter().any(|change| change.attribute == "content")
        {
            return Err(refuse(format!(
                "{id} holds a secret, and what was in its place is not kept\nhint: encrypt the new value yourself"
            )));
        }
        let content = match stood.content_name() {
            Some(name) => record::kept(&settings.paths.state, name)?,
            None => None,
        };
        return Ok(shown(stood, content));
    }
    if by_path {
        let root = crate::host::open_root(&settings.paths.root)?;
        let path = crate::resource::AbsPath::new(&id.name)?;
        let stood = Stood::look(&root, &path)
            .ok_or_else(|| CliError::new(exit::UNKNOWN, anyhow::anyhow!("cannot look at `{path}`")))?;
        let content = root
            .read(&path, crate::resource::place::MAX_CONTENT)
            .map_err(|error| CliError::new(exit::UNKNOWN, anyhow::anyhow!("cannot read `{path}`: {error}")))?
            .map(|(content, _)| content);
        return Ok(shown(stood, content));
    }
    let values = entry
        .changes
        .iter()
        .map(|change| match &change.detail {
            ChangeDetail::Value { from, .. } => Ok((change.attribute.clone(), from.clone())),
            ChangeDetail::Text { .. } | ChangeDetail::Opaque { .. } => {
                Err(refuse(format!("`{}` of {id} cannot be taken over by itself", change.attribute)))
            }
        })
        .collect::<Result<_, _>>()?;
    Ok(Wanted::Values(values))
}

/// The text of the file that declares a resource.
fn declaring<'a>(held: &'a Held, resource: &Resource) -> Result<(&'a str, &'a str), CliError> {
    let missing = || refuse(format!("the policy's `{}` cannot be read", resource.source.file));
    let (name, bytes) = held.verified.files().get_key_value(&*resource.source.file).ok_or_else(missing)?;
    Ok((name, std::str::from_utf8(bytes).map_err(|_| missing())?))
}

fn one(file: &str, content: String) -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([(file.to_owned(), content.into_bytes())])
}

fn adopt_path(
    settings: &Settings,
    held: &Held,
    resource: &Resource,
    stood: &Stood,
    content: Option<Vec<u8>>,
) -> Result<BTreeMap<String, Vec<u8>>, CliError> {
    let id = &resource.id;
    let (file, text) = declaring(held, resource)?;
    let other = || refuse(format!("there was {} at `{}`, which a {} cannot declare", stood.word(), id.name, id.kind));
    let mut changes = Vec::new();
    let mut changed = BTreeMap::new();
    match (&resource.desired, stood) {
        (_, Stood::Nothing) => changes = edit::absent(text, id),
        (Desired::File(desired), Stood::File { digest: found, .. }) => {
            let declared = match &desired.ensure {
                Ensure::Present(spec) => Some((spec.content.digest(), &spec.ownership)),
                Ensure::Absent => None,
            };
            if declared.as_ref().is_none_or(|(declared, _)| declared != found) {
                let content = content
                    .filter(|content| digest(content) == *found)
                    .ok_or_else(|| refuse(format!("the content that `{}` had is not kept any more", id.name)))?;
                match edit::origin(text, id) {
                    Some(Origin::Source(path)) => {
                        changed.insert(path, content);
                    }
                    Some(Origin::Template(path)) => return Err(cannot_unrender(resource, &path, &content)),
                    Some(Origin::Secret(name)) => {
                        return Err(refuse(format!("{id} holds the secret `{name}`: encrypt the new value yourself")));
                    }
                    Some(Origin::Inline | Origin::None) | None => {
                        let content = String::from_utf8(content).map_err(|_| {
                            refuse(format!(
                                "the content that `{}` had is not text\nhint: declare it with `source`",
                                id.name
                            ))
                        })?;
                        changes.push(("content".to_owned(), New::Text(content)));
                    }
                }
            }
            if declared.is_none() {
                changes.push(("state".to_owned(), New::Gone));
            }
            changes.extend(permissions(settings, declared.map(|(_, ownership)| &**ownership), stood)?);
        }
        (Desired::File(desired), Stood::Hidden { .. }) => match &desired.ensure {
            Ensure::Present(spec) => changes.extend(permissions(settings, Some(&spec.ownership), stood)?),
            Ensure::Absent => return Err(may_be_secret(id)),
        },
        (Desired::Directory(desired), Stood::Directory { .. }) => {
            let declared = match &desired.ensure {
                Ensure::Present(spec) => Some(&*spec.ownership),
                Ensure::Absent => {
                    changes.push(("state".to_owned(), New::Gone));
                    None
                }
            };
            changes.extend(permissions(settings, declared, stood)?);
        }
        (Desired::Symlink(desired), Stood::Link { target }) => {
            if desired.ensure == Ensure::Absent {
                changes.push(("state".to_owned(), New::Gone));
            }
            changes.push(("target".to_owned(), New::Text(target.clone())));
        }
        _ => return Err(other()),
    }
    if !changes.is_empty() {
        let new = edit::set(file, text, id, &changes).map_err(|error| refuse(error.to_string()))?;
        changed.extend(one(file, new));
    }
    Ok(changed)
}

/// Owner, group and mode where they differ from what is declared, by name where this host has one.
fn permissions(
    settings: &Settings,
    declared: Option<&Ownership>,
    stood: &Stood,
) -> Result<Vec<(String, New)>, CliError> {
    let Some(found) = stood.permissions() else { return Ok(Vec::new()) };
    let host = Host::open(&settings.paths.root)?;
    let mut snapshot = Snapshot::new();
    // Without them an owner that did not drift would look like one that did.
    let unreadable = |why: String| refuse(format!("who owns it cannot be named: {why}\nhint: nothing was changed"));
    let names = match declared {
        Some(ownership) => Names::resolve(&host, &mut snapshot, ownership).map_err(unreadable)?,
        None => Names::default(),
    };
    let mut changes = Vec::new();
    if names.uid != Some(found.uid) {
        let accounts = snapshot.accounts(&host).map_err(unreadable)?;
        let name = accounts.users.iter().find(|user| user.uid == found.uid).map(|user| user.name.clone());
        changes.push(("owner".to_owned(), New::Word(name.unwrap_or_else(|| found.uid.to_string()))));
    }
    if names.gid != Some(found.gid) {
        let accounts = snapshot.accounts(&host).map_err(unreadable)?;
        let name = accounts.groups.iter().find(|group| group.gid == found.gid).map(|group| group.name.clone());
        changes.push(("group".to_owned(), New::Word(name.unwrap_or_else(|| found.gid.to_string()))));
    }
    if declared.is_none_or(|ownership| ownership.mode != found.mode) {
        changes.push(("mode".to_owned(), New::Word(found.mode.to_string())));
    }
    Ok(changes)
}

/// A template cannot be guessed from what it was not rendered to; the difference is shown, beside standard output.
fn cannot_unrender(resource: &Resource, template: &str, content: &[u8]) -> CliError {
    if let Desired::File(file) = &resource.desired
        && let Ensure::Present(spec) = &file.ensure
        && !spec.content.is_secret()
        && let Ok(old) = spec.content.bytes()
        && let (Ok(old), Ok(new)) = (std::str::from_utf8(&old), std::str::from_utf8(content))
    {
        let changes = [crate::resource::text_change(old, new)];
        drop(write!(anstream::stderr(), "{}", changes_text(&changes, false)));
    }
    refuse(format!(
        "{} is rendered from the template `{template}`, which cannot be made out of what was found\n\
         hint: change the template so that it renders to the lines marked with `+` above",
        resource.id
    ))
}

fn adopt_values(
    held: &Held,
    resource: &Resource,
    values: &[(String, Option<String>)],
) -> Result<BTreeMap<String, Vec<u8>>, CliError> {
    let id = &resource.id;
    let (file, text) = declaring(held, resource)?;
    let mut changes = Vec::new();
    for (attribute, from) in values {
        match (attribute.as_str(), from.as_deref()) {
            ("state", None) => changes = edit::absent(text, id),
            ("state", Some(from)) if id.kind == Kind::Service => {
                changes.push((attribute.clone(), run_state(id, from)?))
            }
            ("enabled", Some(from)) if id.kind == Kind::Service => {
                changes.push((attribute.clone(), enablement(id, from)?))
            }
            // It was to be absent, and is there.
            ("state", Some(_)) => changes.push((attribute.clone(), New::Gone)),
            ("groups", Some(from)) => changes.push((attribute.clone(), groups(resource, from))),
            (_, Some(from)) => changes.push((attribute.clone(), New::Word(from.to_owned()))),
            // Beside a `state` that says that nothing was there.
            (_, None) => {}
        }
    }
    if changes.is_empty() {
        return Err(refuse(format!("nothing of what differed in {id} can be taken over")));
    }
    let new = edit::set(file, text, id, &changes).map_err(|error| refuse(error.to_string()))?;
    Ok(one(file, new))
}

fn run_state(id: &ResourceId, from: &str) -> Result<New, CliError> {
    match from.split_whitespace().next() {
        Some("active" | "activating" | "reloading") => Ok(New::Text("running".to_owned())),
        Some("inactive" | "deactivating") => Ok(New::Text("stopped".to_owned())),
        _ => Err(refuse(format!("{id} was found `{from}`, which is no state to declare"))),
    }
}

fn enablement(id: &ResourceId, from: &str) -> Result<New, CliError> {
    match from {
        "enabled" | "enabled-runtime" => Ok(New::Word("true".to_owned())),
        "disabled" => Ok(New::Word("false".to_owned())),
        _ => Err(refuse(format!("{id} was found `{from}`, which is nothing that `enabled` can say"))),
    }
}

/// What a user was found to be a member of: all of it where the list is exact, otherwise what of the list it still was.
fn groups(resource: &Resource, from: &str) -> New {
    let mut found: Vec<String> =
        from.split(',').map(|group| group.trim().to_owned()).filter(|group| !group.is_empty()).collect();
    if let Desired::User(desired) = &resource.desired
        && let Ensure::Present(spec) = &desired.ensure
        && spec.membership == user::Membership::AtLeast
    {
        found.retain(|group| spec.groups.iter().any(|declared| declared.as_str() == group));
    }
    New::Texts(found)
}

/// Says beside the patch which other resources take their content from a file that it changes.
fn note_shared(held: &Held, resource: &Resource, changed: &BTreeMap<String, Vec<u8>>) {
    let Desired::File(own) = &resource.desired else { return };
    let Ensure::Present(own) = &own.ensure else { return };
    if changed.contains_key(&*resource.source.file) {
        return;
    }
    let shares = |other: &&Resource| {
        let Desired::File(file) = &other.desired else { return false };
        let Ensure::Present(spec) = &file.ensure else { return false };
        other.id != resource.id && spec.content.is_shared_with(&own.content)
    };
    let others: Vec<String> = held.state.resources().iter().filter(shares).map(|other| other.id.to_string()).collect();
    if !others.is_empty() {
        drop(writeln!(anstream::stderr(), "warning: the same content is that of {}", others.join(", ")));
    }
}
