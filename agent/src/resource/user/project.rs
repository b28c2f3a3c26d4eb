//! What the databases and a user's keys read once a step is done: for whoever has to know before it is.

use super::{Desired, Ensure, Observed, Password, Spec, delta, keys};
use crate::host::accounts::{AccountDb, Hash, PasswordChange, UserEntry};
use crate::resource::{AbsPath, Observation};

/// What stands in for an id that the host will choose.
const SOME_ID: u32 = u32::MAX;

/// Changes the databases as a step would. Returns the file of keys and what it would hold, where the policy speaks of keys.
pub fn project(
    accounts: &mut AccountDb,
    desired: &Desired,
    observation: &Observation<Observed>,
) -> Option<(AbsPath, Vec<u8>)> {
    let name = desired.name.as_str();
    let Ensure::Present(spec) = &desired.ensure else {
        accounts.users.retain(|user| user.name != name);
        accounts.groups.iter_mut().for_each(|group| group.members.retain(|member| member != name));
        return None;
    };
    let found = match observation {
        Observation::Present(observed) => {
            change(accounts, spec, observed);
            observed.keys.as_ref().and_then(keys::KeysObserved::content)
        }
        Observation::Absent => {
            create(accounts, name, spec);
            None
        }
        Observation::Unknown(_) => return None,
    };
    let wanted = spec.authorized_keys.as_ref()?;
    let home = accounts.user(name).and_then(|entry| AbsPath::new(&entry.home).ok())?;
    Some((keys::path_in(&home).ok()?, keys::wanted_content(wanted, found)))
}

fn create(accounts: &mut AccountDb, name: &str, spec: &Spec) {
    let gid = spec.group.as_ref().and_then(|group| super::group_id(accounts, group)).unwrap_or(SOME_ID);
    let hash = match &spec.password {
        Some(Password::Hash(hash) | Password::Secret(hash)) => hash.clone(),
        Some(Password::Locked) | None => "!".to_owned(),
    };
    accounts.users.push(UserEntry {
        name: name.to_owned(),
        uid: spec.uid.unwrap_or(SOME_ID),
        gid,
        comment: String::new(),
        home: spec.home.as_ref().map_or_else(|| format!("/home/{name}"), ToString::to_string),
        shell: spec.shell.as_ref().map_or_else(|| "/bin/sh".to_owned(), ToString::to_string),
        hash: Some(Hash(hash)),
    });
    for group in
        accounts.groups.iter_mut().filter(|group| spec.groups.iter().any(|wanted| wanted.as_str() == group.name))
    {
        group.members.push(name.to_owned());
    }
}

fn change(accounts: &mut AccountDb, spec: &Spec, observed: &Observed) {
    let (change, _) = delta(spec, observed);
    let name = &observed.entry.name;
    let gid = change.group.as_ref().and(observed.wanted_gid);
    if let Some(entry) = accounts.users.iter_mut().find(|user| user.name == *name) {
        entry.uid = change.uid.unwrap_or(entry.uid);
        entry.gid = gid.unwrap_or(entry.gid);
        entry.shell = change.shell.map_or_else(|| entry.shell.clone(), |shell| shell.to_string());
        entry.home = change.home.map_or_else(|| entry.home.clone(), |home| home.to_string());
        match change.password {
            None => {}
            Some(PasswordChange::Set(hash)) => entry.hash = Some(hash),
            Some(PasswordChange::Lock) => {
                let hash = entry.hash.as_ref().map(|hash| hash.0.as_str()).unwrap_or_default();
                entry.hash = Some(Hash(format!("!{hash}")));
            }
        }
    }
    if let Some(groups) = change.groups {
        for group in &mut accounts.groups {
            let is_wanted = groups.iter().any(|wanted| wanted.as_str() == group.name);
            let is_member = group.members.iter().any(|member| member == name);
            if is_wanted && !is_member {
                group.members.push(name.clone());
            }
            if !is_wanted {
                group.members.retain(|member| member != name);
            }
        }
    }
}
