//! `check`, `plan`, `apply`: what a policy says, what it would change, and changing it once.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::output::{BAD, BOLD, DIM, GOOD, WARN, changes_text, paint, span};
use super::{CliError, Global, Out, Outcome, exit, resource_id, services, settings};
use super::{against, facts};
use crate::agent::confirming::last_answer;
use crate::agent::control::{self, Answer, Request};
use crate::agent::revisions::{self, Revisions};
use crate::agent::secrets;
use crate::agent::trial::{self, Known};
use crate::config::{self, Paths, Settings};
use crate::converge::{self, Cause, Memory, Outcome as ResourceOutcome, RunReport, Scope, confirm};
use crate::host::{self, Host};
use crate::policy::compile::{Compiled, Inputs, expiring_keys};
use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::policy::secret::Secrets;
use crate::policy::trust::{self, Trust};
use crate::policy::{DesiredState, Orphans, Revision, candidate};
use crate::record::{self, Opened, Record, RecordError, RunLock};
use crate::resource::service::{Desired as Service, RunState};
use crate::resource::{Desired, Kind, Resource, ResourceId, chain};
use crate::spool::{CourierState, Spool};

/// Arguments of `rekindle check`.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// Directory of the policy
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// Compile for a host with these roles, instead of those in the file of facts
    #[arg(long, value_delimiter = ',', value_name = "ROLE")]
    roles: Option<Vec<String>>,
    /// Compile for the host whose facts are in this file (`rekindle facts --json`), instead of this host
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
}

/// Which policy, on which host.
#[derive(Debug, Clone, Args)]
pub(super) struct Target {
    /// Use the policy in this directory instead of the one in force
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// Work on the image tree in this directory instead of the running host
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Roles, instead of those in the configuration
    #[arg(long, value_delimiter = ',', value_name = "ROLE")]
    roles: Option<Vec<String>>,
    /// Look only at this resource, and what it requires
    #[arg(long, value_name = "KIND[NAME]", value_parser = resource_id)]
    only: Vec<ResourceId>,
}

/// Arguments of `rekindle plan`.
#[derive(Debug, Args)]
pub(super) struct Plan {
    #[command(flatten)]
    target: Target,
    /// Plan for the captured host in this tar of its root directory, instead of the running one
    #[arg(long, value_name = "SNAPSHOT", requires = "policy", conflicts_with = "root")]
    against: Option<PathBuf>,
}

/// Arguments of `rekindle apply`.
#[derive(Debug, Args)]
pub(super) struct Apply {
    #[command(flatten)]
    target: Target,
    /// Compute and report the plan, change nothing
    #[arg(long)]
    noop: bool,
}

/// Validates a policy.
pub(super) fn check(args: &Check, out: &mut Out) -> Outcome {
    let (facts, known_roles) = match &args.facts {
        Some(file) => {
            let document = facts::read(file)?;
            (document.facts, document.roles)
        }
        None => (host::facts::gather(&Host::open(Path::new("/"))?.root), None),
    };
    // What is asked for goes before what the file of facts says.
    let roles = args.roles.clone().or(known_roles).unwrap_or_default();
    facts::check_roles(&roles).map_err(facts::invalid)?;
    // Whoever has no key, or checks for another host, learns at least that the secrets are there.
    let secrets = match secrets::load(&Settings::default()) {
        secrets @ Secrets::With(_) if args.facts.is_none() => secrets,
        Secrets::With(_) | Secrets::Unread | Secrets::Missing(_) => Secrets::Unread,
    };
    let inputs = Inputs { facts: &facts, roles: &roles, host: None, secrets: &secrets };
    let candidate = candidate::from_directory(&args.directory)?;
    let verified = trust::verify(candidate, &Trust::Operator, Timestamp::now())?;
    match trial::compile(&Paths::default().program, &verified, &inputs, Known::New) {
        Ok(mut compiled) => {
            compiled.warnings.extend(expiring_keys(&compiled.state, Timestamp::now()));
            let n = compiled.state.resources().len();
            if out.is_json() {
                let warnings = Diagnostics::from(compiled.warnings);
                out.value(&json!({ "version": 1, "valid": true, "policy": compiled.state.name(), "resources": n,
                    "errors": [], "warnings": warnings.to_json() }))?;
            } else {
                print_warnings(compiled.warnings, out)?;
                out.line(format_args!("{GOOD}valid{GOOD:#}: {} with {n} resources", compiled.state.name()))?;
            }
            Ok(exit::OK)
        }
        Err(errors) => {
            if out.is_json() {
                out.value(&json!({ "version": 1, "valid": false, "errors": errors.to_json() }))?;
            } else {
                out.line(errors.render(out.has_color()))?;
                let n = errors.len();
                out.line(format_args!("{BAD}invalid{BAD:#}: {n} error{}", if n == 1 { "" } else { "s" }))?;
            }
            Ok(exit::INVALID)
        }
    }
}

fn print_warnings(warnings: Vec<Diagnostic>, out: &mut Out) -> Result<(), CliError> {
    if !warnings.is_empty() {
        let text = Diagnostics::from(warnings).render(out.has_color());
        out.line(text)?;
    }
    Ok(())
}

/// Everything that `plan` and `apply` need.
struct Prepared {
    settings: Settings,
    host: Host,
    state: DesiredState,
    scope: Scope,
}

/// What is going to be done with a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// It is put in its declared state.
    Converge,
    /// It is looked at.
    Look,
    /// It was captured elsewhere, and is looked at.
    LookAtCapture,
}

fn prepare(global: &Global, target: &Target, purpose: Purpose, out: &mut Out) -> Result<Prepared, CliError> {
    let mut settings = settings(global)?;
    if let Some(root) = &target.root {
        let root = std::fs::canonicalize(root).map_err(|e| anyhow::anyhow!("cannot open `{}`: {e}", root.display()))?;
        // An image keeps its own record: nothing outside the tree is touched.
        settings.paths = Paths {
            state: root.join("var/lib/rekindle"),
            runtime: root.join("var/lib/rekindle"),
            root,
            ..Paths::default()
        };
    }
    if let Some(roles) = &target.roles {
        settings.roles.clone_from(roles);
    }
    let purpose = match (purpose, settings.mode) {
        (Purpose::Converge, config::Mode::Noop) => Purpose::Look,
        (purpose, _) => purpose,
    };
    let mut host = match (&target.root, purpose) {
        (Some(_), Purpose::LookAtCapture) => Host::captured(&settings.paths.root)?,
        (Some(_), Purpose::Converge | Purpose::Look) => Host::at(&settings.paths.root)?,
        (None, Purpose::Look) if settings.paths.root == Path::new("/") && !rustix::process::geteuid().is_root() => {
            let note = "note: what only root may read is shown as unknown; run as root, this tells more";
            drop(writeln!(anstream::stderr(), "{note}"));
            Host::seen_by_anybody()?
        }
        (None, _) => Host::open(&settings.paths.root)?,
    };
    host.programs.set_scratch(&settings.paths.runtime);
    host.programs.set_validation(settings.converge.validate_timeout);
    let facts = host::facts::gather(&host.root);
    let view = host::facts::view(&host);
    let secrets = secrets::load(&settings);
    let inputs = Inputs { facts: &facts, roles: &settings.roles, host: view.as_ref(), secrets: &secrets };
    let state = match &target.policy {
        Some(directory) => {
            let candidate = candidate::from_directory(directory)?;
            let verified = trust::verify(candidate, &Trust::Operator, Timestamp::now())?;
            match trial::compile(&settings.paths.program, &verified, &inputs, Known::New) {
                Ok(Compiled { state, warnings, .. }) => {
                    if !out.is_json() {
                        print_warnings(warnings, out)?;
                    }
                    state
                }
                Err(errors) => {
                    out.line(errors.render(out.has_color()))?;
                    out.flush()?;
                    return Err(anyhow::anyhow!("the policy in `{}` is invalid", directory.display()).into());
                }
            }
        }
        None => in_force(&settings.paths, &inputs)?,
    };
    for id in &target.only {
        if state.get(id).is_none() {
            return Err(anyhow::anyhow!("the policy has no {id}").into());
        }
    }
    let scope =
        if target.only.is_empty() { Scope::Everything } else { Scope::Only(target.only.iter().cloned().collect()) };
    Ok(Prepared { settings, host, state, scope })
}

/// The policy in force, compiled for this host, with its source.
pub(super) struct Held {
    /// Its resources.
    pub(super) state: DesiredState,
    /// Its files.
    pub(super) verified: trust::Verified,
}

/// Loads the policy in force.
pub(super) fn held(settings: &Settings) -> Result<Held, CliError> {
    let host = Host::open(&settings.paths.root)?;
    let facts = host::facts::gather(&host.root);
    let view = host::facts::view(&host);
    let secrets = secrets::load(settings);
    let inputs = Inputs { facts: &facts, roles: &settings.roles, host: view.as_ref(), secrets: &secrets };
    let revision = revision_in_force(&settings.paths)?;
    let verified = trust::load_stored(&settings.paths.policies().join(revision.as_str()))?;
    let state = in_force(&settings.paths, &inputs)?;
    Ok(Held { state, verified })
}

/// Loads the policy in a directory.
pub(super) fn held_in(settings: &Settings, directory: &Path, out: &mut Out) -> Result<Held, CliError> {
    let host = Host::open(&settings.paths.root)?;
    let facts = host::facts::gather(&host.root);
    let view = host::facts::view(&host);
    let secrets = secrets::load(settings);
    let inputs = Inputs { facts: &facts, roles: &settings.roles, host: view.as_ref(), secrets: &secrets };
    let verified = trust::verify(candidate::from_directory(directory)?, &Trust::Operator, Timestamp::now())?;
    match trial::compile(&settings.paths.program, &verified, &inputs, Known::New) {
        Ok(compiled) => Ok(Held { state: compiled.state, verified }),
        Err(errors) => {
            out.line(errors.render(out.has_color()))?;
            out.flush()?;
            Err(anyhow::anyhow!("the policy in `{}` is invalid", directory.display()).into())
        }
    }
}

fn revision_in_force(paths: &Paths) -> Result<Revision, CliError> {
    revision_if_any(paths)?.ok_or_else(|| {
        anyhow::anyhow!(
            "no policy is in force on this host yet\nhint: name one with --policy DIR, or set `[policy] url` in agent.toml"
        )
        .into()
    })
}

/// The revision in force; `None` where none ever was.
fn revision_if_any(paths: &Paths) -> Result<Option<Revision>, RecordError> {
    let Some(record) = Record::open_if_any(&paths.state)? else { return Ok(None) };
    let revisions: Option<Revisions> = record.load("revisions")?;
    Ok(revisions.and_then(|revisions| revisions.in_force))
}

fn in_force(paths: &Paths, inputs: &Inputs<'_>) -> Result<DesiredState, CliError> {
    let revision = revision_in_force(paths)?;
    let in_force = revisions::look_up(paths, &revision, inputs).map_err(anyhow::Error::msg)?;
    Ok(in_force.state)
}

/// Shows what would change.
pub(super) fn plan(global: &Global, args: &Plan, out: &mut Out) -> Outcome {
    let Some(snapshot) = &args.against else {
        let prepared = prepare(global, &args.target, Purpose::Look, out)?;
        return show_plan(&prepared, out);
    };
    let tree = against::unpack(snapshot)?;
    if !rustix::process::geteuid().is_root() {
        drop(writeln!(
            anstream::stderr(),
            "warning: without root the owners in a snapshot cannot be kept: everything seems to belong to you"
        ));
    }
    let target = Target { root: Some(tree.path().to_path_buf()), ..args.target.clone() };
    let mut prepared = prepare(global, &target, Purpose::LookAtCapture, out)?;
    let is_of_running = |resource: &Resource| {
        matches!(
            &resource.desired,
            Desired::Service(Service { state: Some(RunState::Running | RunState::Stopped), .. })
        )
    };
    if prepared.state.resources().iter().any(is_of_running) {
        let note = "note: a capture does not tell what runs: of services only what is enabled and masked is compared";
        drop(writeln!(anstream::stderr(), "{note}"));
    }
    // A state database that came with the snapshot is nobody's word.
    prepared.settings.paths.state = tree.path().with_extension("no-state");
    show_plan(&prepared, out)
}

fn show_plan(prepared: &Prepared, out: &mut Out) -> Outcome {
    let request = converge::Request {
        desired: &prepared.state,
        scope: prepared.scope.clone(),
        cause: Cause::Operator,
        mode: config::Mode::Noop,
        hold: &converge::hold_nothing,
        claim: &converge::claim_from_nobody,
        seen: &converge::nobody_seen,
    };
    // What is remembered of this host, where secrets stand among it.
    let record = Record::open_if_any(&prepared.settings.paths.state);
    let memory = match &record {
        Ok(None) => Memory::Nothing,
        Ok(Some(record)) => Memory::Record(record),
        Err(error) => Memory::Unreadable(error),
    };
    let plan = converge::observe_and_plan(&prepared.host, memory, &request);
    let left_out = left_out(prepared);
    if out.is_json() {
        let mut value = plan.to_json();
        if let Some(object) = value.as_object_mut() {
            let (known, unknown) = match &left_out {
                Ok(left_out) => (left_out.as_slice(), None),
                Err(why) => (&[][..], Some(why)),
            };
            object.insert("left_out".to_owned(), serde_json::to_value(known)?);
            if let Some(why) = unknown {
                object.insert("left_out_unknown".to_owned(), json!(why));
            }
        }
        out.value(&value)?;
    } else {
        if let Err(why) = &left_out {
            out.line(format_args!("{WARN}unknown{WARN:#} what the policy in force declares and this one does not"))?;
            out.line(format_args!("    {}", converge::plan::visible(why)))?;
        }
        for id in left_out.iter().flatten() {
            let becomes = becomes(prepared.state.orphans(), id.kind);
            out.line(format_args!(
                "{WARN}leave out{WARN:#} {BOLD}{id}{BOLD:#}  (the policy in force declares it; it {becomes})"
            ))?;
        }
        out.text(&paint(&plan.to_text(), out.has_color()))?;
    }
    Ok(if plan.is_empty() {
        exit::OK
    } else if plan.drift().next().is_none() && plan.owed.is_empty() {
        exit::UNKNOWN
    } else {
        exit::DRIFT
    })
}

/// What becomes of something that is left out.
fn becomes(orphans: Orphans, kind: Kind) -> &'static str {
    match (orphans, kind) {
        // Their files are the agent's own, and say at each boot what nobody declares any more.
        (_, Kind::Sysctl | Kind::KernelModule) => "stays as it is until the next boot, and its file is removed",
        (Orphans::Report, _) | (_, Kind::Mount | Kind::Service | Kind::Setting) => "stays as it is",
        (Orphans::Remove, _) => "returns to what was there before, once this revision has converged",
    }
}

/// What the policy in force declares and another one does not, or why that cannot be told. Nothing where none is in force.
fn left_out(prepared: &Prepared) -> Result<Vec<ResourceId>, String> {
    let revision = match revision_if_any(&prepared.settings.paths) {
        Ok(Some(revision)) if revision != *prepared.state.revision() => revision,
        Ok(_) => return Ok(Vec::new()),
        Err(error) => return Err(chain(&error)),
    };
    let host = &prepared.host;
    let facts = host::facts::gather(&host.root);
    let view = host::facts::view(host);
    let secrets = secrets::load(&prepared.settings);
    let inputs = Inputs { facts: &facts, roles: &prepared.settings.roles, host: view.as_ref(), secrets: &secrets };
    let in_force = revisions::look_up(&prepared.settings.paths, &revision, &inputs)?;
    let ids = in_force.state.resources().iter().map(|resource| &resource.id);
    Ok(ids.filter(|id| prepared.state.get(id).is_none()).cloned().collect())
}

/// Says so when an agent would undo at once what is about to be done.
fn warn_of_agent(prepared: &Prepared, record: &Record) -> Result<(), CliError> {
    let revisions: Option<Revisions> = record.load("revisions")?;
    let in_force = revisions.and_then(|revisions| revisions.in_force);
    let Some(in_force) = in_force.filter(|in_force| in_force != prepared.state.revision()) else { return Ok(()) };
    let control = prepared.settings.paths.control();
    // Whoever does not answer is no reason not to apply.
    if services::current_thread()?.block_on(control::ask(&control, &Request::Status)).is_ok() {
        drop(writeln!(
            anstream::stderr(),
            "warning: the agent runs and has revision {in_force} in force: it puts its own back wherever this policy differs\n\
             hint: commit the change, or `systemctl stop rekindle-agent` first"
        ));
    }
    Ok(())
}

/// Converges once.
pub(super) fn apply(global: &Global, args: &Apply, out: &mut Out) -> Outcome {
    let purpose = if args.noop { Purpose::Look } else { Purpose::Converge };
    let mut prepared = prepare(global, &args.target, purpose, out)?;
    if args.noop || prepared.settings.mode == config::Mode::Noop {
        return show_plan(&prepared, out);
    }
    let paths = &prepared.settings.paths;
    // An image has no other place for the lock than its state.
    record::make_home(&paths.state)?;
    // The lock first: whoever has it may have a step in hand, which is not interrupted.
    let _lock = RunLock::acquire(&paths.runtime, "apply", Duration::from_secs(10))
        .map_err(|held| CliError::refused(chain(&held)))?;
    let Opened { mut record, set_aside } = Record::open(&paths.state)?;
    if let Some(aside) = set_aside {
        drop(writeln!(
            anstream::stderr(),
            "warning: the state database was damaged: set aside as `{}`, a new one was made",
            aside.display()
        ));
    }
    warn_of_agent(&prepared, &record)?;
    let now = Timestamp::now();
    if let Some(pause) = record.pauses(now)?.into_iter().find(|p| p.only.is_empty()) {
        return Err(CliError::refused(format!(
            "repair is paused until {:.0} by {}: {}\nhint: `rekindle resume` ends the pause",
            pause.until, pause.by, pause.reason
        )));
    }
    let pauses = record.pauses(now)?;
    let hold = |id: &ResourceId| {
        pauses.iter().find(|p| p.only.contains(id)).map(|p| format!("paused until {:.0} by {}", p.until, p.by))
    };
    settle_leftovers(&prepared.settings, &mut prepared.host, &mut record)?;
    let stop = AtomicBool::new(false);
    let request = converge::Request {
        desired: &prepared.state,
        scope: prepared.scope.clone(),
        cause: Cause::Operator,
        mode: config::Mode::Enforce,
        hold: &hold,
        claim: &converge::claim_from_nobody,
        seen: &converge::nobody_seen,
    };
    let mut context = converge::Context { host: &mut prepared.host, record: &mut record, stop: &stop };
    let report = converge::converge(&mut context, &request);
    show_report(&report, out)?;
    let is_confirmed = wait_for_proof(&prepared.settings, &mut prepared.host, &mut record, out)?;
    if !is_confirmed {
        return Ok(exit::DRIFT);
    }
    let unknown = report.resources.iter().any(|r| matches!(r.outcome, ResourceOutcome::Indeterminate { .. }));
    Ok(if report.converged() {
        exit::OK
    } else if unknown && report.failed().next().is_none() {
        exit::UNKNOWN
    } else {
        exit::DRIFT
    })
}

/// Puts back what an earlier run armed and nobody waits for any more. What the running agent waits for is its own.
fn settle_leftovers(settings: &Settings, host: &mut Host, record: &mut Record) -> Result<(), CliError> {
    let left = record.confirmations()?;
    let Some(first) = left.first() else { return Ok(()) };
    let status = services::current_thread()?.block_on(control::ask(&settings.paths.control(), &Request::Status));
    if let Ok(Answer::Status(status)) = status
        && !status.confirmations.is_empty()
    {
        return Err(CliError::refused(format!(
            "{} waits for {}, and nothing is changed meanwhile\nhint: `rekindle status` shows until when",
            first.resource,
            confirm::words(&first.confirm.by)
        )));
    }
    for one in left {
        confirm::put_back(host, record, &settings.paths.state, &one, "whoever waited for the proof was stopped")
            .map_err(|error| anyhow::anyhow!("cannot put back {}: {error}", one.resource))?;
    }
    Ok(())
}

/// Waits until everything that has to be confirmed is, or puts it back. Whoever ends this has it put back by the next run.
fn wait_for_proof(settings: &Settings, host: &mut Host, record: &mut Record, out: &mut Out) -> Result<bool, CliError> {
    let mut waiting = record.confirmations()?;
    if waiting.is_empty() {
        return Ok(true);
    }
    let mut all_confirmed = true;
    for one in &waiting {
        if !out.is_json() {
            let until = one.until.map_or_else(String::new, |until| format!(" until {until:.0}"));
            out.line(format_args!(
                "{WARN}confirm{WARN:#}  {BOLD}{}{BOLD:#} waits{until} for {}",
                one.resource,
                confirm::words(&one.confirm.by)
            ))?;
            out.flush()?;
        }
    }
    let runtime = services::current_thread()?;
    // Where no courier ever was, the endpoint answers nobody.
    let inbox = Spool::open(&settings.paths.inbox()).ok();
    while !waiting.is_empty() {
        let courier = inbox.as_ref().and_then(|inbox| inbox.read_slot::<CourierState>().ok().flatten());
        let known = confirm::Known { answered: last_answer(courier.as_ref()) };
        let mut still = Vec::new();
        for one in waiting {
            if confirm::is_proven(host, &one, known) {
                record.confirmed(one.step)?;
                if !out.is_json() {
                    out.line(format_args!("{GOOD}confirmed{GOOD:#} {BOLD}{}{BOLD:#}", one.resource))?;
                }
            } else if one.until.is_none_or(|until| until <= Timestamp::now()) {
                all_confirmed = false;
                let (by, within) = (confirm::words(&one.confirm.by), one.confirm.within.as_secs());
                let why = format!("{by} did not come within {within} s");
                confirm::put_back(host, record, &settings.paths.state, &one, &why).map_err(|error| {
                    CliError::new(exit::DRIFT, anyhow::anyhow!("cannot put back {}: {error}", one.resource))
                })?;
                if !out.is_json() {
                    out.line(format_args!("{BAD}put back{BAD:#} {BOLD}{}{BOLD:#}: {why}", one.resource))?;
                }
            } else {
                still.push(one);
            }
        }
        waiting = still;
        out.flush()?;
        if !waiting.is_empty() {
            runtime.block_on(async { tokio::time::sleep(Duration::from_secs(1)).await });
        }
    }
    Ok(all_confirmed)
}

fn show_report(report: &RunReport, out: &mut Out) -> Result<(), CliError> {
    if out.is_json() {
        let mut value = serde_json::to_value(report)?;
        if let Some(object) = value.as_object_mut() {
            object.insert("version".to_owned(), json!(1));
            object.insert("converged".to_owned(), json!(report.converged()));
        }
        out.value(&value)?;
        return Ok(());
    }
    for entry in &report.resources {
        let id = &entry.resource;
        match &entry.outcome {
            ResourceOutcome::Unchanged => {}
            ResourceOutcome::Changed { changes, .. } => {
                out.line(format_args!("{GOOD}changed{GOOD:#}  {BOLD}{id}{BOLD:#}"))?;
                out.text(&changes_text(changes, out.has_color()))?;
            }
            ResourceOutcome::Reported { why, changes, .. } => {
                out.line(format_args!("{WARN}left{WARN:#}     {BOLD}{id}{BOLD:#}: {why}"))?;
                out.text(&changes_text(changes, out.has_color()))?;
            }
            ResourceOutcome::Failed { error, .. } => {
                out.line(format_args!("{BAD}failed{BAD:#}   {BOLD}{id}{BOLD:#}: {error}"))?;
            }
            ResourceOutcome::Indeterminate { reason } => {
                out.line(format_args!("{WARN}unknown{WARN:#}  {BOLD}{id}{BOLD:#}: {reason}"))?;
            }
            ResourceOutcome::Skipped { blocked_by } => {
                out.line(format_args!("{WARN}skipped{WARN:#}  {BOLD}{id}{BOLD:#}: blocked by {blocked_by}"))?;
            }
        }
    }
    for debt in &report.debts {
        out.line(format_args!(
            "{WARN}owed{WARN:#}     {} of {} because of {}{}",
            debt.notify,
            debt.unit,
            debt.because_of,
            if debt.error.is_empty() { String::new() } else { format!(": {}", debt.error) },
        ))?;
    }
    let count = |f: fn(&ResourceOutcome) -> bool| report.resources.iter().filter(|r| f(&r.outcome)).count();
    out.line(format_args!(
        "{} unchanged, {} changed, {} failed, {} skipped {DIM}in {}{DIM:#}",
        count(|o| matches!(o, ResourceOutcome::Unchanged)),
        count(|o| matches!(o, ResourceOutcome::Changed { .. })),
        count(|o| matches!(o, ResourceOutcome::Failed { .. })),
        count(|o| matches!(o, ResourceOutcome::Skipped { .. })),
        span(Duration::from_micros(report.duration_us)),
    ))?;
    Ok(())
}
