//! `user`: a local user with its groups, password lock or hash, and authorized keys.
//!
//! Only what differs is changed: a tool is never called for a user that is in sync. A password hash is never shown, not even
//! in part. What lies in the user's home directory is written by [`keys`], which distrusts it.

mod keys;
mod project;

use std::collections::BTreeSet;

use super::{
    AbsPath, Action, ApplyError, Change, ChangeDetail, Drift, Ensure, GroupName, Observation, Principal, Snapshot,
    UserName, Verdict,
};
use crate::host::Host;
use crate::host::accounts::{AccountDb, Hash, NewUser, PasswordChange, UserChange, UserEntry};

pub use keys::KeysObserved;
pub use project::project;

/// Accounts below this id belong to the system and are never removed.
pub(super) const FIRST_REGULAR_ID: u32 = 1000;

/// The overflow account, which is nobody's.
pub(super) const NOBODY: u32 = 65534;

/// What a user should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// Its name.
    pub name: UserName,
    /// There with this specification, or not there.
    pub ensure: Ensure<Spec>,
}

/// The specification of a present user. `None` means "as it is; at creation what the host chooses".
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spec {
    /// Numeric id.
    pub uid: Option<u32>,
    /// Primary group, by name or id; a group of the user's own name is made when `None`.
    pub group: Option<Principal>,
    /// Supplementary groups.
    pub groups: Vec<GroupName>,
    /// Whether `groups` are the least or the exact membership.
    pub membership: Membership,
    /// Login shell.
    pub shell: Option<AbsPath>,
    /// Home directory; made at creation, never moved.
    pub home: Option<AbsPath>,
    /// The GECOS field.
    pub comment: Option<String>,
    /// Password state.
    pub password: Option<Password>,
    /// Lines of `~/.ssh/authorized_keys`.
    pub authorized_keys: Option<AuthorizedKeys>,
    /// A user below the system maximum.
    pub system: bool,
}

/// How declared supplementary groups compare with actual ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Membership {
    /// At least the declared ones.
    #[default]
    AtLeast,
    /// Exactly the declared ones.
    Exactly,
}

/// What the password should be. Never in clear.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Password {
    /// Locked: the hash kept behind a `!`, so that unlocking restores it.
    Locked,
    /// This crypt(3) hash.
    Hash(String),
    /// This crypt(3) hash, which the policy holds encrypted only. It is never written but where hashes belong.
    #[serde(skip)]
    Secret(String),
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Locked => "Locked",
            Self::Hash(_) => "Hash(masked)",
            Self::Secret(_) => "Secret",
        })
    }
}

/// Keys that may log in as the user.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AuthorizedKeys {
    /// Whole lines, in the order of the policy.
    pub keys: Vec<String>,
    /// Whether other lines are drift.
    pub exact: bool,
}

/// A user of the local databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its row.
    pub entry: UserEntry,
    /// The names that the database has for its primary group: usually one, none when it is missing.
    pub primary: BTreeSet<String>,
    /// The id that the desired primary group stands for here; `None` when none is desired or the host has no such group.
    pub wanted_gid: Option<u32>,
    /// Groups that list it as a member, sorted, without the primary one.
    pub groups: BTreeSet<String>,
    /// Its authorized keys; `None` when the policy does not speak of them.
    pub keys: Option<KeysObserved>,
}

/// Looks the user up in the local databases; a directory service is never asked.
pub fn observe(host: &Host, snapshot: &mut Snapshot, desired: &Desired) -> Observation<Observed> {
    let accounts = match snapshot.accounts(host) {
        Ok(accounts) => accounts,
        Err(why) => return Observation::Unknown(why),
    };
    let Some(entry) = accounts.user(desired.name.as_str()) else { return Observation::Absent };
    if let (Ensure::Present(Spec { password: Some(_), .. }), Some(why)) = (&desired.ensure, &accounts.hashes_unread) {
        return Observation::Unknown(why.clone());
    }
    let primary = accounts.groups.iter().filter(|g| g.gid == entry.gid).map(|g| g.name.clone()).collect();
    let groups = accounts
        .groups
        .iter()
        .filter(|g| g.gid != entry.gid && g.members.contains(&entry.name))
        .map(|g| g.name.clone())
        .collect();
    let (wanted_gid, keys) = match &desired.ensure {
        Ensure::Absent => (None, None),
        Ensure::Present(spec) => {
            let keys = match &spec.authorized_keys {
                None => None,
                Some(_) => match keys::observe(&host.root, entry, spec.home.as_ref()) {
                    Ok(observed) => Some(observed),
                    Err(why) => return Observation::Unknown(why),
                },
            };
            (spec.group.as_ref().and_then(|group| group_id(&accounts, group)), keys)
        }
    };
    Observation::Present(Observed { entry: entry.clone(), primary, wanted_gid, groups, keys })
}

fn group_id(accounts: &AccountDb, group: &Principal) -> Option<u32> {
    match group {
        Principal::Agent => Some(rustix::process::getegid().as_raw()),
        Principal::Id(id) => Some(*id),
        Principal::Name(name) => accounts.group(name).map(|g| g.gid),
    }
}

/// Compares.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    match (&desired.ensure, observation) {
        (_, Observation::Unknown(why)) => Verdict::Indeterminate(why.clone()),
        (Ensure::Absent, Observation::Absent) => Verdict::InSync,
        (Ensure::Absent, Observation::Present(observed)) => Verdict::Drift(Drift::value(
            Action::Remove,
            "state",
            Some(format!("present (uid {})", observed.entry.uid)),
            Some("absent".to_owned()),
        )),
        (Ensure::Present(spec), Observation::Absent) => {
            Verdict::Drift(Drift { action: Action::Create, changes: creation(spec) })
        }
        (Ensure::Present(spec), Observation::Present(observed)) => {
            let (_, mut changes) = delta(spec, observed);
            if let (Some(wanted), Some(found)) = (&spec.authorized_keys, &observed.keys) {
                changes.extend(keys::diff(wanted, found, &observed.entry));
            }
            if changes.is_empty() { Verdict::InSync } else { Verdict::Drift(Drift { action: Action::Update, changes }) }
        }
    }
}

fn creation(spec: &Spec) -> Vec<Change> {
    let mut changes = vec![Change::value("state", None, Some("present".to_owned()))];
    let mut add = |attribute: &str, value: Option<String>| {
        if value.is_some() {
            changes.push(Change::value(attribute, None, value));
        }
    };
    add("uid", spec.uid.map(|id| id.to_string()));
    add("group", spec.group.as_ref().map(ToString::to_string));
    add("groups", (!spec.groups.is_empty()).then(|| join(spec.groups.iter().map(GroupName::as_str))));
    add("shell", spec.shell.as_ref().map(ToString::to_string));
    add("home", spec.home.as_ref().map(ToString::to_string));
    add("comment", spec.comment.clone());
    add(
        "password",
        spec.password.as_ref().map(|password| match password {
            Password::Locked => "locked".to_owned(),
            Password::Hash(_) | Password::Secret(_) => "set".to_owned(),
        }),
    );
    add("authorized_keys", spec.authorized_keys.as_ref().map(|keys| join(keys.keys.iter().map(String::as_str))));
    changes
}

fn join<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

/// What must change in the databases, and how that reads. Both come from one place, so that a step never does what its plan
/// did not show.
fn delta(spec: &Spec, observed: &Observed) -> (UserChange, Vec<Change>) {
    let entry = &observed.entry;
    let mut change = UserChange::default();
    let mut shown = Vec::new();
    if let Some(uid) = spec.uid.filter(|uid| *uid != entry.uid) {
        shown.push(Change::value("uid", Some(entry.uid.to_string()), Some(uid.to_string())));
        change.uid = Some(uid);
    }
    if let Some(group) = &spec.group
        && observed.wanted_gid != Some(entry.gid)
    {
        let from = observed.primary.first().cloned().unwrap_or_else(|| entry.gid.to_string());
        let to = match (group, observed.wanted_gid) {
            (Principal::Agent, Some(gid)) => gid.to_string(),
            (Principal::Agent | Principal::Id(_) | Principal::Name(_), _) => group.to_string(),
        };
        shown.push(Change::value("group", Some(from), Some(to.clone())));
        change.group = Some(to);
    }
    // The primary group is a membership already; listing it again would never settle.
    let declared: BTreeSet<String> =
        spec.groups.iter().map(ToString::to_string).filter(|name| !observed.primary.contains(name)).collect();
    let after: BTreeSet<String> = match spec.membership {
        Membership::AtLeast => observed.groups.union(&declared).cloned().collect(),
        Membership::Exactly => declared,
    };
    if after != observed.groups {
        shown.push(Change::value(
            "groups",
            Some(join(observed.groups.iter().map(String::as_str))),
            Some(join(after.iter().map(String::as_str))),
        ));
        // A name that rekindle would refuse was put there by others; it cannot be passed on, so it is not kept.
        change.groups = Some(after.iter().filter_map(|name| GroupName::new(name).ok()).collect());
    }
    if let Some(shell) = spec.shell.as_ref().filter(|shell| shell.to_string() != entry.shell) {
        shown.push(Change::value("shell", Some(entry.shell.clone()), Some(shell.to_string())));
        change.shell = Some(shell.clone());
    }
    if let Some(home) = spec.home.as_ref().filter(|home| home.to_string() != entry.home) {
        shown.push(Change::value("home", Some(entry.home.clone()), Some(home.to_string())));
        change.home = Some(home.clone());
    }
    if let Some(comment) = spec.comment.as_ref().filter(|comment| **comment != entry.comment) {
        shown.push(Change::value("comment", Some(entry.comment.clone()), Some(comment.clone())));
        change.comment = Some(comment.clone());
    }
    if let Some((wanted, shown_change)) =
        spec.password.as_ref().and_then(|password| password_delta(password, entry.hash.as_ref()))
    {
        change.password = Some(wanted);
        shown.push(shown_change);
    }
    (change, shown)
}

/// `!…` is locked, `*` and `!*` never had a password: neither lets anyone in by one. The empty field lets everyone in.
fn password_delta(wanted: &Password, found: Option<&Hash>) -> Option<(PasswordChange, Change)> {
    let found = found.map(|hash| hash.0.as_str());
    let from = match found {
        None => None,
        Some("") => Some("empty".to_owned()),
        Some(hash) if hash.starts_with(['!', '*']) => Some("locked".to_owned()),
        Some(_) => Some("set".to_owned()),
    };
    let (change, to) = match wanted {
        Password::Locked if found.is_some_and(|hash| hash.starts_with(['!', '*'])) => return None,
        Password::Locked => (PasswordChange::Lock, "locked"),
        Password::Hash(hash) | Password::Secret(hash) if found == Some(hash.as_str()) => return None,
        Password::Hash(hash) | Password::Secret(hash) => (PasswordChange::Set(Hash(hash.clone())), "set (as declared)"),
    };
    let detail = ChangeDetail::Opaque { from, to: Some(to.to_owned()) };
    Some((change, Change { attribute: "password".to_owned(), detail }))
}

/// Puts the user in sync with what was desired, starting from what was observed.
pub fn apply(
    host: &mut Host,
    snapshot: &mut Snapshot,
    desired: &Desired,
    observation: &Observation<Observed>,
) -> Result<(), ApplyError> {
    let result = apply_accounts(host, desired, observation);
    snapshot.forget_accounts();
    result?;
    let Ensure::Present(Spec { authorized_keys: Some(wanted), home, .. }) = &desired.ensure else { return Ok(()) };
    // The row may be new, or its id or home another than before: the files go to what it says now.
    let accounts = host.accounts.read()?;
    let Some(entry) = accounts.user(desired.name.as_str()) else {
        return Err(ApplyError::Vanished {
            what: desired.name.to_string(),
            why: "the user is gone after it was changed".to_owned(),
        });
    };
    keys::apply(&host.root, wanted, entry, home.as_ref())
}

fn apply_accounts(host: &mut Host, desired: &Desired, observation: &Observation<Observed>) -> Result<(), ApplyError> {
    let name = &desired.name;
    let protected = |operation, why| ApplyError::Protected { operation, name: name.to_string(), why };
    match (&desired.ensure, observation) {
        (_, Observation::Unknown(why)) => Err(ApplyError::Vanished { what: name.to_string(), why: why.clone() }),
        (Ensure::Absent, Observation::Absent) => Ok(()),
        (Ensure::Absent, Observation::Present(observed)) => {
            let uid = observed.entry.uid;
            if name.as_str() == "root" || uid < FIRST_REGULAR_ID || uid == NOBODY {
                return Err(protected("remove the user", "it is a system account"));
            }
            Ok(host.accounts.remove_user(name)?)
        }
        (Ensure::Present(spec), Observation::Absent) => {
            if spec.uid == Some(0) {
                return Err(protected("create the user", "it would be another root"));
            }
            let group = match &spec.group {
                None => None,
                Some(Principal::Agent) => Some(rustix::process::getegid().as_raw().to_string()),
                Some(group @ (Principal::Id(_) | Principal::Name(_))) => Some(group.to_string()),
            };
            host.accounts.create_user(&NewUser {
                name: name.clone(),
                uid: spec.uid,
                group,
                groups: spec.groups.clone(),
                shell: spec.shell.clone(),
                home: spec.home.clone(),
                comment: spec.comment.clone(),
                system: spec.system,
            })?;
            let password = match &spec.password {
                // A new account has no password: it is locked already.
                None | Some(Password::Locked) => return Ok(()),
                Some(Password::Hash(hash) | Password::Secret(hash)) => PasswordChange::Set(Hash(hash.clone())),
            };
            Ok(host.accounts.change_user(name, &UserChange { password: Some(password), ..UserChange::default() })?)
        }
        (Ensure::Present(spec), Observation::Present(observed)) => {
            let (change, _) = delta(spec, observed);
            if change.uid.is_some() && (observed.entry.uid == 0 || change.uid == Some(0)) {
                return Err(protected("change the uid of", "it is or would become root"));
            }
            if change == UserChange::default() { Ok(()) } else { Ok(host.accounts.change_user(name, &change)?) }
        }
    }
}

/// The file that holds a user's keys, when the policy names the home directory.
pub(super) fn keys_path(desired: &Desired) -> Option<AbsPath> {
    match &desired.ensure {
        Ensure::Present(Spec { authorized_keys: Some(_), home: Some(home), .. }) => keys::path_in(home).ok(),
        Ensure::Present(_) | Ensure::Absent => None,
    }
}

/// What a step would overwrite in the user's home, for the backup.
pub(super) fn overwritten_keys(observed: &Observed) -> Option<&[u8]> {
    observed.keys.as_ref().and_then(KeysObserved::content)
}
