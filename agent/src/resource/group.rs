//! `group`: a local group.

use super::{Action, ApplyError, Change, Drift, Ensure, GroupName, Observation, Snapshot, Verdict, user};
use crate::host::Host;
use crate::host::accounts::GroupEntry;

/// What a group should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// Its name.
    pub name: GroupName,
    /// There with this specification, or not there.
    pub ensure: Ensure<Spec>,
}

/// The specification of a present group.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spec {
    /// Numeric id; whatever the host chooses when `None`.
    pub gid: Option<u32>,
    /// A group below the system maximum.
    pub system: bool,
}

/// A group of the local database.
pub type Observed = GroupEntry;

/// Looks the group up in the local database; a directory service is never asked.
pub fn observe(host: &Host, snapshot: &mut Snapshot, desired: &Desired) -> Observation<Observed> {
    match snapshot.accounts(host) {
        Err(why) => Observation::Unknown(why),
        Ok(accounts) => match accounts.group(desired.name.as_str()) {
            Some(entry) => Observation::Present(entry.clone()),
            None => Observation::Absent,
        },
    }
}

/// Compares. Members belong to the users, not to the group.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    match (&desired.ensure, observation) {
        (_, Observation::Unknown(why)) => Verdict::Indeterminate(why.clone()),
        (Ensure::Absent, Observation::Absent) => Verdict::InSync,
        (Ensure::Absent, Observation::Present(entry)) => Verdict::Drift(Drift::value(
            Action::Remove,
            "state",
            Some(format!("present (gid {})", entry.gid)),
            Some("absent".to_owned()),
        )),
        (Ensure::Present(spec), Observation::Absent) => {
            let mut changes = vec![Change::value("state", None, Some("present".to_owned()))];
            if let Some(gid) = spec.gid {
                changes.push(Change::value("gid", None, Some(gid.to_string())));
            }
            Verdict::Drift(Drift { action: Action::Create, changes })
        }
        (Ensure::Present(spec), Observation::Present(entry)) => match spec.gid {
            Some(gid) if gid != entry.gid => {
                Verdict::Drift(Drift::value(Action::Update, "gid", Some(entry.gid.to_string()), Some(gid.to_string())))
            }
            Some(_) | None => Verdict::InSync,
        },
    }
}

/// Puts the group in sync with what was desired, starting from what was observed.
pub fn apply(
    host: &mut Host,
    snapshot: &mut Snapshot,
    desired: &Desired,
    observation: &Observation<Observed>,
) -> Result<(), ApplyError> {
    let name = &desired.name;
    let result = match (&desired.ensure, observation) {
        (_, Observation::Unknown(why)) => Err(ApplyError::Vanished { what: name.to_string(), why: why.clone() }),
        (Ensure::Absent, Observation::Absent) => Ok(()),
        (Ensure::Absent, Observation::Present(entry)) => {
            if entry.gid < user::FIRST_REGULAR_ID || entry.gid == user::NOBODY {
                Err(ApplyError::Protected {
                    operation: "remove the group",
                    name: name.to_string(),
                    why: "it is a system group",
                })
            } else {
                host.accounts.remove_group(name).map_err(ApplyError::from)
            }
        }
        (Ensure::Present(spec), Observation::Absent) => {
            host.accounts.create_group(name, spec.gid, spec.system).map_err(ApplyError::from)
        }
        (Ensure::Present(spec), Observation::Present(entry)) => match spec.gid {
            Some(gid) if gid != entry.gid => host.accounts.change_group(name, gid).map_err(ApplyError::from),
            Some(_) | None => Ok(()),
        },
    };
    snapshot.forget_accounts();
    result
}
