//! `command`: a program that is run when its guards say so, or when it is owed a run by the change of another resource.
//!
//! - Guards are programs that change nothing, or a path: `onlyif` (it may run), `unless` and `creates` (it has been done). All
//!   must agree. One that gives no answer makes the resource indeterminate: it is never taken for a yes or a no.
//! - A run that is owed is a debt, and is paid whatever `unless` and `creates` say: they look at what was, and something has
//!   changed since. Where `onlyif` says no nothing is owed, as a stopped service is owed no restart.
//! - It is never run twice at the same time: one that outlived the agent that started it is waited for first.

use super::program::{self, Answer, Program};
use super::{AbsPath, Action, ApplyError, Argv, Change, Drift, Observation, ResourceId, Snapshot, Verdict};
use crate::host::Host;
use crate::host::exec::survivor::{self, Waited};

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// Its name in the policy.
    pub name: String,
    /// What is run.
    pub program: Program,
    /// It is not to run when this ends with another code than 0.
    pub onlyif: Option<Argv>,
    /// It has been done when this ends with 0.
    pub unless: Option<Argv>,
    /// It has been done when this is there.
    pub creates: Option<AbsPath>,
    /// What owes it a run by changing.
    pub owed_by: Box<[ResourceId]>,
}

/// What the guards say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// There are none.
    Unguarded,
    /// Run it; which guard says so: its name, what it found, what it would find when it has been run.
    Needed(&'static str, Option<String>, Option<String>),
    /// It has been done.
    Done,
    /// It must not run.
    Barred,
}

/// Asks the guards.
pub fn observe(host: &Host, snapshot: &mut Snapshot, desired: &Desired) -> Observation<Observed> {
    let zero = || "exit status 0".to_owned();
    let mut needed = None;
    if let Some(argv) = &desired.onlyif {
        match program::ask(&desired.program.guard(argv), host, snapshot) {
            Answer::Code(0, _) => needed = Some(Observed::Needed("onlyif", Some(zero()), None)),
            Answer::Code(_, _) => return Observation::Present(Observed::Barred),
            Answer::None(why) => return Observation::Unknown(why),
        }
    }
    if let Some(path) = &desired.creates {
        match host.root.metadata(path) {
            Ok(Some(_)) => return Observation::Present(Observed::Done),
            Ok(None) => needed = Some(Observed::Needed("creates", None, Some(path.to_string()))),
            Err(error) => return Observation::Unknown(format!("cannot look at `{path}`: {error}")),
        }
    }
    if let Some(argv) = &desired.unless {
        match program::ask(&desired.program.guard(argv), host, snapshot) {
            Answer::Code(0, _) => return Observation::Present(Observed::Done),
            Answer::Code(_, output) => needed = Some(Observed::Needed("unless", Some(output.status), Some(zero()))),
            Answer::None(why) => return Observation::Unknown(why),
        }
    }
    Observation::Present(needed.unwrap_or(Observed::Unguarded))
}

/// Compares, without regard to what is owed.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    match observation {
        Observation::Unknown(why) => Verdict::Indeterminate(why.clone()),
        Observation::Present(Observed::Needed(guard, from, to)) => {
            let guard = Change::value(guard, from.clone(), to.clone());
            Verdict::Drift(Drift { action: Action::Run, changes: vec![run_change(desired), guard] })
        }
        Observation::Present(Observed::Unguarded | Observed::Done | Observed::Barred) | Observation::Absent => {
            Verdict::InSync
        }
    }
}

/// The verdict on a command that is owed a run by the changes of these.
pub fn with_debt(
    desired: &Desired,
    observation: &Observation<Observed>,
    verdict: Verdict,
    because_of: &[ResourceId],
) -> Verdict {
    if because_of.is_empty() {
        return verdict;
    }
    match observation {
        Observation::Unknown(_) | Observation::Present(Observed::Barred) => verdict,
        Observation::Present(Observed::Needed(..) | Observed::Unguarded | Observed::Done) | Observation::Absent => {
            let mut changes = match verdict {
                Verdict::Drift(drift) => drift.changes,
                Verdict::InSync | Verdict::Indeterminate(_) => vec![run_change(desired)],
            };
            let owed = because_of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            changes.push(Change::value("owed_by", Some(owed), None));
            Verdict::Drift(Drift { action: Action::Run, changes })
        }
    }
}

fn run_change(desired: &Desired) -> Change {
    Change::value("run", None, Some(desired.program.argv.to_string()))
}

/// Runs it.
pub fn apply(host: &Host, snapshot: &mut Snapshot, desired: &Desired) -> Result<(), ApplyError> {
    let program = &desired.program;
    let name = survivor::name_for("command", &desired.name);
    let uid = program.uid(host, snapshot)?;
    match survivor::wait(&name, uid, program.deadline) {
        Waited::NoneRan => {}
        Waited::Ended => {
            tracing::info!(command = desired.name, "what an earlier agent started has ended");
            if observe(host, snapshot, desired) == Observation::Present(Observed::Done) {
                return Ok(());
            }
        }
        Waited::StillRuns(pid) => {
            return Err(ApplyError::StillRuns { command: program.argv.to_string(), pid });
        }
    }
    let output = program.run(host, snapshot, Some(name))?;
    // It may have changed anything.
    snapshot.forget_packages();
    if program.is_well(&output) {
        tracing::info!(command = desired.name, status = %output.status, "ran");
        return Ok(());
    }
    let said = program::described(&output);
    Err(ApplyError::Command {
        short: program.argv.short().to_owned(),
        command: program.argv.to_string(),
        status: output.status,
        said,
    })
}
