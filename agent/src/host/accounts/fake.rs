//! Accounts in memory: what is created is there at the next reading.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{AccountDb, AccountError, Accounts, GroupEntry, Hash, NewUser, PasswordChange, UserChange, UserEntry};
use crate::resource::{GroupName, UserName};

/// Accounts in memory. Clones share one state, so that a test keeps one while the host owns another.
#[derive(Debug, Clone, Default)]
pub struct FakeAccounts {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    db: AccountDb,
    n_changes: usize,
    reads_fail: bool,
    writes_fail: bool,
}

impl FakeAccounts {
    /// A host with the user and group `root`, and nothing else.
    pub fn new() -> Self {
        let fake = Self::default();
        fake.edit(|db| {
            db.users.push(UserEntry {
                name: "root".to_owned(),
                uid: 0,
                gid: 0,
                comment: "root".to_owned(),
                home: "/root".to_owned(),
                shell: "/bin/bash".to_owned(),
                hash: Some(Hash("*".to_owned())),
            });
            db.groups.push(GroupEntry { name: "root".to_owned(), gid: 0, members: Vec::new() });
        });
        fake
    }

    /// Changes the state behind the back of whoever manages it, as a person on the host would.
    pub fn edit(&self, change: impl FnOnce(&mut AccountDb)) {
        change(&mut self.lock().db);
    }

    /// Makes every reading fail from now on, or succeed again.
    pub fn fail_reads(&self, fail: bool) {
        self.lock().reads_fail = fail;
    }

    /// Makes every change fail from now on, or succeed again.
    pub fn fail_writes(&self, fail: bool) {
        self.lock().writes_fail = fail;
    }

    /// How many changes were carried out.
    pub fn n_changes(&self) -> usize {
        self.lock().n_changes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(
        &self,
        program: &'static str,
        subject: &str,
        change: impl FnOnce(&mut AccountDb) -> Result<(), String>,
    ) -> Result<(), AccountError> {
        let mut state = self.lock();
        let result = if state.writes_fail { Err("made to fail".to_owned()) } else { change(&mut state.db) };
        match result {
            Ok(()) => {
                state.n_changes += 1;
                Ok(())
            }
            Err(stderr) => Err(AccountError::Tool {
                program,
                subject: subject.to_owned(),
                status: "exit status 1".to_owned(),
                stderr,
            }),
        }
    }
}

impl Accounts for FakeAccounts {
    fn read(&self) -> Result<AccountDb, AccountError> {
        let state = self.lock();
        if state.reads_fail {
            let source = std::io::ErrorKind::PermissionDenied.into();
            return Err(AccountError::Read { path: "/etc/shadow".to_owned(), source });
        }
        Ok(state.db.clone())
    }

    fn create_group(&mut self, name: &GroupName, gid: Option<u32>, system: bool) -> Result<(), AccountError> {
        self.change("groupadd", name.as_str(), |db| add_group(db, name.as_str(), gid, system).map(drop))
    }

    fn change_group(&mut self, name: &GroupName, gid: u32) -> Result<(), AccountError> {
        self.change("groupmod", name.as_str(), |db| {
            if db.groups.iter().any(|g| g.gid == gid && g.name != name.as_str()) {
                return Err(format!("GID '{gid}' already exists"));
            }
            let group = db.groups.iter_mut().find(|g| g.name == name.as_str()).ok_or("no such group")?;
            let old = std::mem::replace(&mut group.gid, gid);
            db.users.iter_mut().filter(|u| u.gid == old).for_each(|u| u.gid = gid);
            Ok(())
        })
    }

    fn remove_group(&mut self, name: &GroupName) -> Result<(), AccountError> {
        self.change("groupdel", name.as_str(), |db| {
            let gid = db.group(name.as_str()).ok_or("no such group")?.gid;
            if let Some(user) = db.users.iter().find(|u| u.gid == gid) {
                return Err(format!("cannot remove the primary group of user '{}'", user.name));
            }
            db.groups.retain(|g| g.name != name.as_str());
            Ok(())
        })
    }

    fn create_user(&mut self, user: &NewUser) -> Result<(), AccountError> {
        let name = user.name.as_str();
        self.change("useradd", name, |db| {
            if db.user(name).is_some() {
                return Err(format!("user '{name}' already exists"));
            }
            let uid = match user.uid {
                Some(uid) if db.users.iter().any(|u| u.uid == uid) => return Err(format!("UID {uid} is not unique")),
                Some(uid) => uid,
                None => free_id(user.system, |id| db.users.iter().any(|u| u.uid == id))?,
            };
            let gid = match &user.group {
                Some(group) => find_gid(db, group)?,
                None => match db.group(name) {
                    Some(group) => group.gid,
                    None => add_group(db, name, None, user.system)?,
                },
            };
            db.users.push(UserEntry {
                name: name.to_owned(),
                uid,
                gid,
                comment: user.comment.clone().unwrap_or_default(),
                home: user.home.as_ref().map_or_else(|| format!("/home/{name}"), ToString::to_string),
                shell: user.shell.as_ref().map_or_else(|| "/bin/sh".to_owned(), ToString::to_string),
                hash: Some(Hash("!".to_owned())),
            });
            set_groups(db, name, &user.groups)
        })
    }

    fn change_user(&mut self, name: &UserName, change: &UserChange) -> Result<(), AccountError> {
        let name = name.as_str();
        self.change("usermod", name, |db| {
            let gid = change.group.as_ref().map(|group| find_gid(db, group)).transpose()?;
            if change.uid.is_some_and(|uid| db.users.iter().any(|u| u.uid == uid && u.name != name)) {
                return Err("the UID is not unique".to_owned());
            }
            let user = db.users.iter_mut().find(|u| u.name == name).ok_or("no such user")?;
            user.uid = change.uid.unwrap_or(user.uid);
            user.gid = gid.unwrap_or(user.gid);
            if let Some(shell) = &change.shell {
                user.shell = shell.to_string();
            }
            if let Some(home) = &change.home {
                user.home = home.to_string();
            }
            if let Some(comment) = &change.comment {
                user.comment.clone_from(comment);
            }
            match &change.password {
                None => {}
                Some(PasswordChange::Set(hash)) => user.hash = Some(hash.clone()),
                Some(PasswordChange::Lock) => {
                    let hash = user.hash.take().map(|hash| hash.0).unwrap_or_default();
                    user.hash = Some(Hash(if hash.starts_with('!') { hash } else { format!("!{hash}") }));
                }
            }
            match &change.groups {
                Some(groups) => set_groups(db, name, groups),
                None => Ok(()),
            }
        })
    }

    fn remove_user(&mut self, name: &UserName) -> Result<(), AccountError> {
        let name = name.as_str();
        self.change("userdel", name, |db| {
            let gid = db.user(name).ok_or("no such user")?.gid;
            db.users.retain(|u| u.name != name);
            db.groups.iter_mut().for_each(|g| g.members.retain(|member| member != name));
            // As userdel does: the user's own group goes with it unless somebody else is in it.
            let in_use = db.users.iter().any(|u| u.gid == gid);
            db.groups.retain(|g| !(g.name == name && g.gid == gid && g.members.is_empty() && !in_use));
            Ok(())
        })
    }
}

fn add_group(db: &mut AccountDb, name: &str, gid: Option<u32>, system: bool) -> Result<u32, String> {
    if db.group(name).is_some() {
        return Err(format!("group '{name}' already exists"));
    }
    let gid = match gid {
        Some(gid) if db.groups.iter().any(|g| g.gid == gid) => return Err(format!("GID '{gid}' already exists")),
        Some(gid) => gid,
        None => free_id(system, |id| db.groups.iter().any(|g| g.gid == id))?,
    };
    db.groups.push(GroupEntry { name: name.to_owned(), gid, members: Vec::new() });
    Ok(gid)
}

fn free_id(system: bool, is_taken: impl Fn(u32) -> bool) -> Result<u32, String> {
    let mut range = if system { 100..1000 } else { 1000..60000 };
    range.find(|id| !is_taken(*id)).ok_or_else(|| "no free id".to_owned())
}

fn find_gid(db: &AccountDb, group: &str) -> Result<u32, String> {
    let by_name = db.group(group).map(|g| g.gid);
    let by_id = || group.parse().ok().filter(|gid| db.groups.iter().any(|g| g.gid == *gid));
    by_name.or_else(by_id).ok_or_else(|| format!("group '{group}' does not exist"))
}

fn set_groups(db: &mut AccountDb, user: &str, groups: &[GroupName]) -> Result<(), String> {
    if let Some(missing) = groups.iter().find(|group| db.group(group.as_str()).is_none()) {
        return Err(format!("group '{missing}' does not exist"));
    }
    for group in &mut db.groups {
        group.members.retain(|member| member != user);
        if groups.iter().any(|wanted| wanted.as_str() == group.name) {
            group.members.push(user.to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_can_be_read_back() {
        let fake = FakeAccounts::new();
        let mut accounts = fake.clone();
        let name = UserName::new("deploy").unwrap();
        let adm = GroupName::new("adm").unwrap();
        accounts.create_group(&adm, Some(4), true).unwrap();
        let user = NewUser {
            name: name.clone(),
            uid: None,
            group: None,
            groups: vec![adm.clone()],
            shell: None,
            home: None,
            comment: None,
            system: false,
        };
        accounts.create_user(&user).unwrap();
        assert!(accounts.create_user(&user).is_err(), "it exists");
        assert_eq!(fake.read().unwrap().user("deploy").unwrap().uid, 1000);
        assert_eq!(fake.read().unwrap().group("adm").unwrap().members, ["deploy"]);
        let set = |password| UserChange { password: Some(password), groups: Some(Vec::new()), ..UserChange::default() };
        accounts.change_user(&name, &set(PasswordChange::Set(Hash("$y$1".to_owned())))).unwrap();
        accounts.change_user(&name, &set(PasswordChange::Lock)).unwrap();
        assert_eq!(fake.read().unwrap().user("deploy").unwrap().hash, Some(Hash("!$y$1".to_owned())));
        assert!(fake.read().unwrap().group("adm").unwrap().members.is_empty());
        accounts.remove_user(&name).unwrap();
        assert!(fake.read().unwrap().user("deploy").is_none() && fake.read().unwrap().group("deploy").is_none());
        assert_eq!(fake.n_changes(), 5);
        fake.fail_writes(true);
        assert!(accounts.remove_group(&adm).is_err());
        fake.fail_reads(true);
        assert!(accounts.read().is_err());
    }
}
