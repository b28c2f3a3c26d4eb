//! What proves that an operator can still get in, and putting back what nobody proved.
//!
//! Nothing here waits: whoever waits asks again. A proof is never guessed: what cannot be told is no proof.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::host::units::{UnitVerb, Units};
use crate::host::{Host, exec, sessions};
use crate::record::{self, Confirmation, HistoryFilter, Place, Record, RunInfo, Undone};
use crate::resource::{Action, Change, Notify, Proof, Stood, UnitName, chain, conceal_in_undoing, stood};

use super::Cause;
use super::secrets::SecretPaths;

/// Longest time that one call of a command may take.
const ONE_CALL: Duration = Duration::from_secs(10);

/// What is known besides the host itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known {
    /// When the endpoint last answered a check-in.
    pub answered: Option<Timestamp>,
}

/// What proves a step, in words.
pub fn words(proof: &Proof) -> String {
    match proof {
        Proof::Endpoint => "a check-in that the endpoint answers".to_owned(),
        Proof::Ssh => "a new login over ssh".to_owned(),
        Proof::Command(command) => format!("`{}`", command.join(" ")),
    }
}

/// Whether the proof has come.
pub fn is_proven(host: &Host, confirmation: &Confirmation, known: Known) -> bool {
    match &confirmation.confirm.by {
        Proof::Endpoint => known.answered.is_some_and(|at| at > confirmation.since()),
        Proof::Ssh => sessions::has_logged_in_since(&host.root, confirmation.since()),
        Proof::Command(command) => {
            let Some((program, args)) = command.split_first() else { return false };
            let left = confirmation.until.map_or(ONE_CALL, |until| {
                Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
            });
            let outcome = exec::run(&exec::Command {
                deadline: left.clamp(Duration::from_millis(500), ONE_CALL),
                ..exec::Command::new(program).args(args)
            });
            outcome.is_ok_and(|output| output.code == Some(0))
        }
    }
}

/// Puts back what a step replaced: bytes, owner and mode, the unit's state, and then what had been restarted for it. May be
/// repeated after a kill at any moment. The lock is the caller's.
///
/// # Errors
///
/// When a path is not as it was.
pub fn put_back(
    host: &mut Host,
    record: &mut Record,
    state: &Path,
    confirmation: &Confirmation,
    why: &str,
) -> Result<(), String> {
    let places = record.places(confirmation.step).map_err(|error| chain(&error))?;
    let secrets = SecretPaths::recall(record);
    let step = changes_of(record, confirmation.step)?;
    // Whoever was locked out must get in again, whatever can be written down.
    if let Err(error) = SecretPaths::suspect(record, places.iter().map(|place| &place.path), &step) {
        record.note_trouble(&error);
    }
    let mut done = Vec::new();
    let mut changes: Vec<Change> = Vec::new();
    let mut backup = None;
    for place in places {
        let path = &place.path;
        let now = Stood::look(&host.root, path).ok_or_else(|| format!("cannot look at `{path}`"))?;
        // A secret that the step brought is kept nowhere, and the policy has it. A step that was cut short did not say so.
        let is_secret = matches!(place.after, Some(Stood::Hidden { .. })) || secrets.contains(path);
        let now = if is_secret { now.hidden() } else { now };
        if now == place.before {
            continue;
        }
        if let Stood::File { .. } = &now
            && let Some((content, _)) = host
                .root
                .read(path, crate::resource::place::MAX_CONTENT)
                .map_err(|error| format!("cannot read `{path}` to keep it: {error}"))?
        {
            backup = Some(record.keep(&content).map_err(|error| chain(&error))?);
        }
        let kept = |name: &str| record::kept(state, name).map_err(|error| chain(&error));
        place.before.put_back(&host.root, path, kept).map_err(|error| chain(&error))?;
        changes.extend(stood::changes(&now, &place.before, None, None));
        done.push(Place { path: path.clone(), before: now, after: Some(place.before) });
    }
    conceal_in_undoing(&mut changes, &step);
    if let Some(before) = &confirmation.unit {
        let verbs = [
            if before.enabled { UnitVerb::Enable } else { UnitVerb::Disable },
            if before.ran { UnitVerb::Start } else { UnitVerb::Stop },
        ];
        for verb in verbs {
            if let Err(error) = host.units.carry_out(&before.unit, verb) {
                tracing::error!(unit = %before.unit, "the unit is not as it was before: {}", chain(&error));
            }
        }
        changes.push(Change::value("state", None, Some("as it was before".to_owned())));
    }
    // Not a debt: a debt starts nothing that has fallen, and this may have fallen because of the step.
    for (notify, unit) in &confirmation.notifies {
        if let Err(error) = bring_back(host.units.as_mut(), *notify, unit) {
            tracing::error!(unit = %unit, "what was put back is not taken up: {error}");
            if let Err(error) = record.owe(*notify, unit, &confirmation.resource) {
                record.note_trouble(&error);
            }
        }
    }
    let time = Timestamp::now();
    let run = RunInfo {
        id: None,
        started: time,
        revision: confirmation.revision.clone(),
        cause: Cause::Operator,
        full: false,
    };
    let note = format!("put back what #{} replaced: {why}", confirmation.step);
    let undone = Undone {
        resource: &confirmation.resource,
        action: Action::Update,
        changes: &changes,
        backup: backup.as_deref(),
        note: &note,
        places: &done,
        time,
    };
    record
        .record_undone(&run, &undone)
        .and_then(|_| record.unconfirmed(confirmation.step, why))
        .map_err(|error| chain(&error))
}

/// What a step changed.
fn changes_of(record: &Record, step: i64) -> Result<Vec<Change>, String> {
    let filter = HistoryFilter { id: Some(step), ..HistoryFilter::default() };
    let entry = record.history(&filter).map_err(|error| chain(&error))?.pop();
    Ok(entry.map(|entry| entry.changes).unwrap_or_default())
}

/// Has a unit take up what was put back; one that fell is started.
fn bring_back(units: &mut dyn Units, notify: Notify, unit: &UnitName) -> Result<(), String> {
    let failed = |error: crate::host::units::UnitError| chain(&error);
    let status = match units.status(unit) {
        Ok(status) => status,
        // Where no services can be managed, none was restarted.
        Err(crate::host::units::UnitError::Unsupported { .. }) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if status.need_daemon_reload {
        units.daemon_reload().map_err(failed)?;
    }
    if status.active_state == "failed" {
        units.carry_out(unit, UnitVerb::ResetFailed).map_err(failed)?;
        return units.carry_out(unit, UnitVerb::Start).map_err(failed);
    }
    let verb = match notify {
        Notify::Restart => UnitVerb::TryRestart,
        Notify::Reload => UnitVerb::ReloadOrTryRestart,
    };
    units.carry_out(unit, verb).map_err(failed)
}
