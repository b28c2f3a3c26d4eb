//! Carries out what health decided: alerts, roll-back, and the reimage dialogue. Health is persisted before anything here runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;

use super::worker::{Event, Worker};
use crate::converge::RunReport;
use crate::converge::health::{Effect, Input, Request};
use crate::host::exec;
use crate::record::HistoryFilter;
use crate::resource::chain;
use crate::spool::{Event as AlertEvent, OutgoingBody, ReimageCall};

/// History entries in a dossier.
const DOSSIER_HISTORY: usize = 200;

impl Worker {
    /// Carries out effects in order. `report` is the run that caused them, if one did.
    pub(super) fn carry_out(&mut self, effects: Vec<Effect>, report: Option<&RunReport>) {
        if let Some(report) = report {
            self.note_last_run(report);
        }
        for effect in effects {
            match effect {
                Effect::AlertFailed(began) => {
                    if let Some(alert) = report.and_then(|r| self.speaker().failed(r, &began, Timestamp::now())) {
                        self.enqueue(OutgoingBody::Alert(alert));
                    }
                }
                Effect::AlertUnhealthy(summary) => self.announce(AlertEvent::ConvergenceFailed, summary),
                Effect::AlertRestored => {
                    self.announce(AlertEvent::ConvergenceRestored, "everything converges again".to_owned());
                }
                Effect::RunEverything => self.tell(Event::RunEverything),
                Effect::RollBack { bad, because } => self.roll_back(&bad, &because),
                Effect::Ask(request) => {
                    let summary = format!("asked to be reimaged: {}", request.summary);
                    self.announce(AlertEvent::ReimageRequested, summary);
                    let dossier = self.dossier(&request);
                    self.enqueue(OutgoingBody::Reimage(ReimageCall::Request {
                        request: request.id,
                        reason: request.reason.as_str().to_owned(),
                        summary: request.summary,
                        dossier,
                    }));
                }
                Effect::Withdraw { request, why } => {
                    let summary = format!("withdrew the reimage request {}: {why}", request.id);
                    self.announce(AlertEvent::ReimageWithdrawn, summary);
                    self.enqueue(OutgoingBody::Reimage(ReimageCall::Cancel { request: request.id, why }));
                }
                Effect::AlertGranted(request) => {
                    let summary = format!("the reimage request {} was granted", request.id);
                    self.announce(AlertEvent::ReimageGranted, summary);
                }
                Effect::AlertDenied { request, why } => {
                    let summary = format!("the reimage request {} ended without a reimage: {why}", request.id);
                    self.announce(AlertEvent::ReimageDenied, summary);
                }
                Effect::Drain(request) => match self.drain(&request) {
                    Ok(()) => self.feed_health(Input::Drained),
                    Err(error) => self.feed_health(Input::DrainFailed { error }),
                },
                Effect::HandOver(request) => self.hand_over(&request),
            }
        }
    }

    /// Puts the last good revision in force. If it cannot be loaded the newest stays, and its failures go on counting.
    fn roll_back(&mut self, bad: &crate::policy::Revision, because: &str) {
        let Some(good) = self.load_last_good() else { return };
        let revision = good.state.revision().clone();
        self.note_orphans(&good.state);
        self.revisions.in_force = Some(revision.clone());
        self.revisions.in_force_since = Some(Timestamp::now());
        self.revisions.settled = Some(revision.clone());
        self.revisions.backed_out = Some(bad.clone());
        self.remember_revisions();
        self.put_in_force(good);
        self.announce(
            AlertEvent::PolicyRolledBack,
            format!(
                "revision {} fails on this host; the last good one, {}, is in force again: {because}",
                bad.short(),
                revision.short()
            ),
        );
        self.tell(Event::RunEverything);
    }

    /// Runs every hook of every drain directory, in the order of their names, within one deadline for all.
    fn drain(&mut self, request: &Request) -> Result<(), String> {
        let Some(reimage) = self.settings.reimage.clone() else { return Ok(()) };
        let ends = Instant::now() + reimage.drain_timeout;
        for hook in hooks(&reimage.drain)? {
            let left = ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("`{}` had no time left of the drain_timeout", hook.display()));
            }
            run_hook(&hook, &request.id, left)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, request: &Request) {
        self.enqueue(OutgoingBody::Reimage(ReimageCall::Ready { request: request.id.clone() }));
        let command = self.settings.reimage.as_ref().map(|r| r.local_command.clone()).unwrap_or_default();
        let Some((program, args)) = command.split_first() else { return };
        let outcome = exec::run(&exec::Command {
            deadline: Duration::from_secs(600),
            ..exec::Command::new(program).args(args).env("REKINDLE_REQUEST", &request.id)
        });
        match outcome {
            Ok(output) if output.code == Some(0) => {}
            Ok(output) => self.warn(format!("local_command `{program}`: {}", output.status)),
            Err(error) => self.warn(format!("local_command: {}", chain(&error))),
        }
    }

    /// The evidence for a request. Everything in it was masked where it was made.
    fn dossier(&self, request: &Request) -> serde_json::Value {
        let history = match self.record.history(&HistoryFilter { limit: DOSSIER_HISTORY, ..HistoryFilter::default() }) {
            Ok(entries) => serde_json::to_value(entries).unwrap_or_default(),
            Err(error) => json!({ "error": chain(&error) }),
        };
        json!({
            "version": 1,
            "request": request.id,
            "reason": request.reason,
            "summary": request.summary,
            "at": Timestamp::now(),
            "agent_version": env!("CARGO_PKG_VERSION"),
            "facts": self.facts,
            "revisions": self.revisions,
            "health": super::publish::health_status(&self.health),
            "history": history,
        })
    }
}

/// Executable files of the drain directories, sorted by name within each. A directory that does not exist has none.
fn hooks(directories: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    use std::os::unix::fs::PermissionsExt;
    let mut hooks = Vec::new();
    for directory in directories {
        let cannot = |e: std::io::Error| format!("cannot read the drain hooks in `{}`: {e}", directory.display());
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(cannot(error)),
        };
        let mut here = Vec::new();
        for entry in entries {
            let entry = entry.map_err(cannot)?;
            let metadata = entry.metadata().map_err(cannot)?;
            if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
                here.push(entry.path());
            }
        }
        here.sort();
        hooks.append(&mut here);
    }
    Ok(hooks)
}

fn run_hook(hook: &Path, request: &str, deadline: Duration) -> Result<(), String> {
    let output = exec::run(&exec::Command { deadline, ..exec::Command::new(hook).env("REKINDLE_REQUEST", request) })
        .map_err(|e| chain(&e))?;
    if output.code == Some(0) {
        return Ok(());
    }
    Err(format!("`{}`: {}: {}", hook.display(), output.status, exec::escape(&output.stderr)))
}
