//! Pauses, as the worker sees them: told when they begin, before they end, and when they have ended; and shown to whoever logs
//! in. What was told is remembered, so that a restart neither tells it again nor forgets that an end is still to be told.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::worker::{Worker, recall};
use crate::converge::plan::visible;
use crate::converge::{Outcome, RunReport};
use crate::host::root::{FileType, Permissions};
use crate::record::{Pause, Record};
use crate::resource::{AbsPath, Desired, Mode, ResourceId, Stood, chain, digest};
use crate::spool::{Event as AlertEvent, OutgoingBody};

/// What pam_motd shows at login. On a tmpfs, so that it is gone after a boot even if the agent never starts again.
const NOTICE: &str = "/run/motd.d/50-rekindle-pause";

/// Key of what was told, in the record.
const KEY: &str = "pauses_told";

/// What people were told of pauses, as it is remembered.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Told {
    /// Pauses whose beginning was told and whose end was not.
    pub(super) known: BTreeMap<i64, Pause>,
    /// Those of them whose coming end was told.
    pub(super) expiring: BTreeSet<i64>,
}

impl Told {
    /// What an earlier process told.
    pub(super) fn recall(record: &Record) -> Self {
        recall(record, KEY).unwrap_or_default()
    }
}

impl Worker {
    /// Tells people about pauses that began or ended since the last run.
    pub(super) fn note_pauses(&mut self, pauses: &[Pause], now: Timestamp) {
        let current: BTreeMap<i64, Pause> = pauses.iter().map(|p| (p.id, p.clone())).collect();
        let began: Vec<Pause> = current.values().filter(|p| !self.known_pauses.contains_key(&p.id)).cloned().collect();
        let ended: Vec<Pause> = self.known_pauses.values().filter(|p| !current.contains_key(&p.id)).cloned().collect();
        self.known_pauses = current;
        self.show_notice();
        if began.is_empty() && ended.is_empty() {
            return;
        }
        for pause in began {
            let what = what(&pause);
            self.announce(
                AlertEvent::PauseStarted,
                format!("repair of {what} is paused until {:.0} by {}: {}", pause.until, pause.by, pause.reason),
            );
        }
        for pause in ended {
            self.announced_pauses.remove(&pause.id);
            let how = if pause.until <= now { "expired" } else { "was ended early" };
            self.announce(AlertEvent::PauseEnded, format!("the pause by {} ({}) {how}", pause.by, pause.reason));
        }
        // Told before it is remembered: a kill between the two tells it twice, and never not at all.
        self.remember_pauses();
        if let Err(error) = self.record.end_expired_pauses(now) {
            self.warn(format!("cannot forget the pauses that are over: {}", chain(&error)));
        }
    }

    fn remember_pauses(&mut self) {
        let told = Told { known: self.known_pauses.clone(), expiring: self.announced_pauses.clone() };
        self.remember(KEY, &told);
    }

    /// Shows the pauses to whoever logs in, or takes the notice away. Looked at every time: it is one system call.
    fn show_notice(&self) {
        let root = &self.host.root;
        let is_directory = |path: &str| {
            let path = AbsPath::new(path).ok();
            let metadata = path.and_then(|path| root.metadata(&path).ok().flatten());
            metadata.is_some_and(|metadata| metadata.file_type == FileType::Directory)
        };
        let Ok(path) = AbsPath::new(NOTICE) else { return };
        let text = notice(self.known_pauses.values());
        let wanted = if text.is_empty() {
            Stood::Nothing
        } else if is_directory("/run") {
            let (uid, gid) = crate::host::current_ids();
            let permissions = Permissions { uid, gid, mode: Mode::from_bits(0o644) };
            Stood::File { digest: digest(text.as_bytes()), permissions }
        } else {
            return;
        };
        if Stood::look(root, &path).as_ref() == Some(&wanted) {
            return;
        }
        if let Err(error) = wanted.put_back(root, &path, |_| Ok(Some(text.into_bytes()))) {
            self.warn(format!("cannot show at login that repair is paused: {}", chain(&error)));
        }
    }

    /// Before a pause ends, says what will be undone.
    pub(super) fn announce_expiring(&mut self, report: &RunReport, now: Timestamp) {
        // What a run that did not look at everything left is not all that will be undone.
        if !report.full {
            return;
        }
        let due: Vec<Pause> = self
            .known_pauses
            .values()
            .filter(|p| notice_at(p) <= now && !self.announced_pauses.contains(&p.id))
            .cloned()
            .collect();
        for pause in due {
            self.announced_pauses.insert(pause.id);
            let left: Vec<ResourceId> = report
                .resources
                .iter()
                .filter(|r| matches!(r.outcome, Outcome::Reported { .. }))
                .filter(|r| pause.only.is_empty() || pause.only.contains(&r.resource))
                .map(|r| r.resource.clone())
                .collect();
            let speaker = self.speaker();
            let then = match left.as_slice() {
                [] => "nothing is out of sync".to_owned(),
                [one] => format!("drift in {one} is then undone"),
                several => format!("drift in {} resources is then undone", several.len()),
            };
            let summary = format!("the pause by {} ends at {:.0}; {then}", pause.by, pause.until);
            let mut alert = speaker
                .reported(report, &left, now)
                .unwrap_or_else(|| speaker.alert(AlertEvent::PauseExpiring, String::new(), Vec::new(), now));
            alert.event = AlertEvent::PauseExpiring;
            alert.summary = summary;
            self.enqueue(OutgoingBody::Alert(alert));
            self.remember_pauses();
        }
    }

    /// When a pause or a waiver ends, or the end of a pause is to be announced.
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        let now = Timestamp::now();
        let pauses = self
            .known_pauses
            .values()
            .map(|p| if self.announced_pauses.contains(&p.id) { p.until } else { notice_at(p) });
        let resources = self.in_force.iter().flat_map(|policy| policy.state.resources());
        let waivers = resources.filter_map(|resource| {
            let Desired::Check(check) = &resource.desired else { return None };
            check.waiver.as_ref().map(|waiver| waiver.until).filter(|until| *until > now)
        });
        pauses.chain(waivers).min()
    }
}

/// What is paused, in words.
fn what(pause: &Pause) -> String {
    match pause.only.as_slice() {
        [] => "everything".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// What whoever logs in reads; empty when nothing is paused.
fn notice<'a>(pauses: impl Iterator<Item = &'a Pause>) -> String {
    pauses.fold(String::new(), |mut text, pause| {
        text.push_str(&format!(
            "rekindle does not repair {} on this host until {:.0}.\n  {} paused it: {}\n  `rekindle resume {}` ends it; drift is seen and recorded meanwhile.\n",
            visible(&what(pause)),
            pause.until,
            visible(&pause.by),
            visible(&pause.reason),
            pause.id,
        ));
        text
    })
}

/// When the end of a pause is announced: a tenth of its length before, five minutes at most.
fn notice_at(pause: &Pause) -> Timestamp {
    let tenth = pause.until.duration_since(pause.from).as_secs().checked_div(10).unwrap_or(0).clamp(0, 300);
    pause.until.checked_sub(SignedDuration::from_secs(tenth)).unwrap_or(pause.until)
}
