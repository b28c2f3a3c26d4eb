//! Pauses, as the worker sees them: told when they begin, before they end, and when they have ended.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::worker::Worker;
use crate::converge::{Outcome, RunReport};
use crate::record::Pause;
use crate::resource::ResourceId;
use crate::spool::{Event as AlertEvent, OutgoingBody};

impl Worker {
    /// Tells people about pauses that began or ended since the last run.
    pub(super) fn note_pauses(&mut self, pauses: &[Pause], now: Timestamp) {
        let current: BTreeMap<i64, Pause> = pauses.iter().map(|p| (p.id, p.clone())).collect();
        let began: Vec<Pause> = current.values().filter(|p| !self.known_pauses.contains_key(&p.id)).cloned().collect();
        let ended: Vec<Pause> = self.known_pauses.values().filter(|p| !current.contains_key(&p.id)).cloned().collect();
        self.known_pauses = current;
        for pause in began {
            self.announce(
                AlertEvent::PauseStarted,
                format!("repair is paused until {:.0} by {}: {}", pause.until, pause.by, pause.reason),
            );
        }
        for pause in ended {
            self.announced_pauses.remove(&pause.id);
            let how = if pause.until <= now { "expired" } else { "was ended early" };
            self.announce(AlertEvent::PauseEnded, format!("the pause by {} ({}) {how}", pause.by, pause.reason));
        }
    }

    /// Before a pause ends, says what will be undone.
    pub(super) fn announce_expiring(&mut self, report: &RunReport, now: Timestamp) {
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
            let summary = format!(
                "the pause by {} ends at {:.0}; drift in {} resources is then undone",
                pause.by,
                pause.until,
                left.len()
            );
            let mut alert = speaker
                .reported(report, &left, now)
                .unwrap_or_else(|| speaker.alert(AlertEvent::PauseExpiring, String::new(), Vec::new(), now));
            alert.event = AlertEvent::PauseExpiring;
            alert.summary = summary;
            self.enqueue(OutgoingBody::Alert(alert));
        }
    }

    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        self.known_pauses
            .values()
            .map(|p| if self.announced_pauses.contains(&p.id) { p.until } else { notice_at(p) })
            .min()
    }
}

/// When the end of a pause is announced: a tenth of its length before, five minutes at most.
fn notice_at(pause: &Pause) -> Timestamp {
    let tenth = pause.until.duration_since(pause.from).as_secs().checked_div(10).unwrap_or(0).clamp(0, 300);
    pause.until.checked_sub(SignedDuration::from_secs(tenth)).unwrap_or(pause.until)
}
