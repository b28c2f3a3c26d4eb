//! `check`: a program that says whether something is as it should be. What it finds is told and never repaired.
//!
//! A failing check can be waived for a while: by whom, why and until when is shown wherever it is. A waiver ends by itself, and
//! counts for a year at most: one that ends later than a year from now does not count yet.

use jiff::{SignedDuration, Timestamp};

use super::program::{self, Answer, Program};
use super::{Action, Change, Drift, Observation, Snapshot, Verdict};
use crate::host::Host;

/// Longest time for which a failure may be accepted.
pub const MAX_WAIVER: SignedDuration = SignedDuration::from_hours(366 * 24);

/// A check.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// What is run, and how it ends when all is well.
    pub program: Program,
    /// For how long its failure is accepted.
    pub waiver: Option<Waiver>,
}

/// Says that a failure is known and accepted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Waiver {
    /// Until when.
    pub until: Timestamp,
    /// Why.
    pub reason: String,
    /// Who answers for it.
    pub owner: String,
}

impl Waiver {
    /// Whether it counts at a time.
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        now < self.until && self.until.duration_since(now) <= MAX_WAIVER
    }

    fn describe(&self, now: Timestamp) -> String {
        let Self { until, reason, owner } = self;
        if self.is_in_force(now) {
            format!("waived until {until:.0} by {owner}: {reason}")
        } else if now >= *until {
            format!("the waiver by {owner} ended {until:.0}: {reason}")
        } else {
            format!("the waiver by {owner} ends {until:.0}, more than a year from now, so it does not count: {reason}")
        }
    }
}

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The code, and the last that it said.
    pub status: String,
    /// Whether that is well.
    pub is_well: bool,
    /// When it was asked.
    pub at: Timestamp,
}

/// Runs the program.
pub fn observe(host: &Host, snapshot: &mut Snapshot, desired: &Desired) -> Observation<Observed> {
    match program::ask(&desired.program, host, snapshot) {
        Answer::Code(_, output) => Observation::Present(Observed {
            status: program::described(&output),
            is_well: desired.program.is_well(&output),
            at: Timestamp::now(),
        }),
        Answer::None(why) => Observation::Unknown(why),
    }
}

/// Compares.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    let observed = match observation {
        Observation::Unknown(why) => return Verdict::Indeterminate(why.clone()),
        Observation::Absent => return Verdict::InSync,
        Observation::Present(observed) if observed.is_well => return Verdict::InSync,
        Observation::Present(observed) => observed,
    };
    let codes: Vec<String> = desired.program.exit_codes.iter().map(ToString::to_string).collect();
    let wanted = format!("exit status {}", codes.join(" or "));
    let mut changes = vec![Change::value("exit", Some(observed.status.clone()), Some(wanted))];
    let mut action = Action::Report;
    if let Some(waiver) = &desired.waiver {
        if waiver.is_in_force(observed.at) {
            action = Action::Waive;
        }
        changes.push(Change::value("waiver", Some(waiver.describe(observed.at)), None));
    }
    Verdict::Drift(Drift { action, changes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Argv;
    use std::time::Duration;

    #[test]
    fn a_waiver_counts_until_it_ends_and_for_a_year_at_most() {
        let until: Timestamp = "2027-03-01T00:00:00Z".parse().unwrap();
        let waiver = Waiver { until, reason: "the relay comes".to_owned(), owner: "ops".to_owned() };
        let desired = Desired {
            program: Program {
                argv: Argv::new(vec!["/bin/false".to_owned()]).unwrap(),
                deadline: Duration::from_secs(1),
                user: None,
                directory: None,
                env: Vec::new(),
                exit_codes: vec![0, 2],
            },
            waiver: Some(waiver),
        };
        let check = |at: &str, action: Action, text: &str| {
            let observed = Observed { status: "exit status 1".to_owned(), is_well: false, at: at.parse().unwrap() };
            let Verdict::Drift(drift) = diff(&desired, &Observation::Present(observed)) else { panic!("no drift") };
            let exit = Change::value("exit", Some("exit status 1".to_owned()), Some("exit status 0 or 2".to_owned()));
            let waiver = Change::value("waiver", Some(text.to_owned()), None);
            assert_eq!(drift, Drift { action, changes: vec![exit, waiver] }, "{at}");
        };
        let waived = "waived until 2027-03-01T00:00:00Z by ops: the relay comes";
        check("2027-02-28T23:59:59Z", Action::Waive, waived);
        check("2026-03-01T00:00:00Z", Action::Waive, waived);
        let ended = "the waiver by ops ended 2027-03-01T00:00:00Z: the relay comes";
        check("2027-03-01T00:00:00Z", Action::Report, ended);
        let far = "the waiver by ops ends 2027-03-01T00:00:00Z, more than a year from now, so it does not count: the relay comes";
        check("2026-02-01T00:00:00Z", Action::Report, far);
    }
}
