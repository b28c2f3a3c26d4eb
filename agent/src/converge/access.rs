//! Who can get in and become root, as far as a host's own files say.
//!
//! Pure: accounts and files come in as values, so that the same question can be asked of a host as it is and as a plan would
//! leave it. Three answers, because two would guess: [`Access::Unknown`] is what cannot be read, or says more than is understood
//! here; it is never taken for a way in, and never for none.
//!
//! A way is an account that can log in (by a password that is not locked, or by a key that sshd lets in) and is root, or becomes
//! it by sudo. Directory services are not asked: what they grant, no policy takes away.

mod pam;
mod sshd;
mod sudoers;

use crate::host::accounts::{AccountDb, UserEntry};

/// Where the files of a host are read, or of a host as it would be.
pub(super) trait Files {
    /// The text of a file; `None` when there is none. The error says why it could not be told.
    fn text(&self, path: &str) -> Result<Option<String>, String>;
    /// The names in a directory, sorted; none when there is no such directory.
    fn names(&self, directory: &str) -> Result<Vec<String>, String>;
}

/// Whether something lets somebody through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// It does not.
    Closed,
    /// It could not be told.
    Unknown,
    /// It does.
    Open,
}

/// Whether something lets somebody through, and why that could not be told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    access: Access,
    doubt: Option<String>,
}

impl Answer {
    const NO: Self = Self { access: Access::Closed, doubt: None };
    const YES: Self = Self { access: Access::Open, doubt: None };

    fn unknown(why: impl Into<String>) -> Self {
        Self { access: Access::Unknown, doubt: Some(why.into()) }
    }

    fn when(holds: bool) -> Self {
        if holds { Self::YES } else { Self::NO }
    }

    /// Both are needed.
    fn and(self, other: impl FnOnce() -> Self) -> Self {
        if self.access == Access::Closed {
            return self;
        }
        let other = other();
        if other.access < self.access { other } else { self }
    }

    /// One of them is enough.
    fn or(self, other: impl FnOnce() -> Self) -> Self {
        if self.access == Access::Open {
            return self;
        }
        let other = other();
        if other.access > self.access { other } else { self }
    }
}

/// A host as it is, or as it would be.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    /// Its local users and groups.
    pub(super) accounts: &'a AccountDb,
    /// Its files.
    pub(super) files: &'a dyn Files,
    /// Days since 1970, as /etc/shadow counts them.
    pub(super) today: i64,
    /// The only accounts that count; all of them when it is empty.
    pub(super) break_glass: &'a [String],
}

/// What one account can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    /// Its name.
    pub(super) account: String,
    /// Whether it can log in and become root.
    pub(super) access: Access,
    /// Why that could not be told.
    pub(super) doubt: Option<String>,
}

/// The best that any account can do. Looks no further than it must.
pub(super) fn best(scene: Scene<'_>) -> Access {
    let mut best = Access::Closed;
    for way in ways(scene) {
        best = best.max(way.access);
        if best == Access::Open {
            break;
        }
    }
    best
}

/// What each account that counts can do.
pub(super) fn ways(scene: Scene<'_>) -> impl Iterator<Item = Way> {
    let sudoers = sudoers::Sudoers::read(scene.files);
    let sshd = sshd::Sshd::read(scene.files);
    let counts = |user: &&UserEntry| scene.break_glass.is_empty() || scene.break_glass.contains(&user.name);
    let users = scene.accounts.users.iter().filter(counts);
    users.map(move |user| {
        let account = Account::new(scene, user);
        let Answer { access, doubt } = account
            .is_usable()
            .and(|| if user.uid == 0 { Answer::YES } else { sudoers.lets_become_root(scene.files, &account) })
            .and(|| account.password_opens().or(|| sshd.lets_in(scene.files, &account)));
        Way { account: user.name.clone(), access, doubt }
    })
}

/// An account and what the databases say of it.
struct Account<'a> {
    user: &'a UserEntry,
    /// The names and ids of all its groups.
    groups: Vec<(&'a str, u32)>,
    scene: Scene<'a>,
}

impl<'a> Account<'a> {
    fn new(scene: Scene<'a>, user: &'a UserEntry) -> Self {
        let is_of =
            |group: &&crate::host::accounts::GroupEntry| group.gid == user.gid || group.members.contains(&user.name);
        let groups = scene.accounts.groups.iter().filter(is_of).map(|group| (group.name.as_str(), group.gid)).collect();
        Self { user, groups, scene }
    }

    fn name(&self) -> &str {
        &self.user.name
    }

    fn has_password(&self) -> bool {
        self.user.hash.as_ref().is_some_and(|hash| !hash.0.is_empty() && !hash.0.starts_with(['!', '*']))
    }

    /// Whether it has a shell and has not expired.
    fn is_usable(&self) -> Answer {
        let shell = self.user.shell.rsplit('/').next().unwrap_or_default();
        if matches!(shell, "nologin" | "false" | "true" | "sync" | "shutdown" | "halt") {
            return Answer::NO;
        }
        let shadow = match self.scene.files.text("/etc/shadow") {
            Ok(shadow) => shadow.unwrap_or_default(),
            Err(why) => return Answer::unknown(why),
        };
        let row = shadow.lines().find(|row| row.split(':').next() == Some(self.name()));
        let expires = row.and_then(|row| row.split(':').nth(7)).filter(|day| !day.is_empty());
        match expires.map(str::parse::<i64>) {
            None => Answer::YES,
            Some(Ok(day)) => Answer::when(day < 0 || day > self.scene.today),
            Some(Err(_)) => Answer::unknown(format!("when `{}` expires cannot be read in `/etc/shadow`", self.name())),
        }
    }

    /// Whether its password lets it in, on a console if nowhere else.
    fn password_opens(&self) -> Answer {
        // Whether an empty password is accepted is a matter of PAM's arguments.
        if self.user.hash.as_ref().is_some_and(|hash| hash.0.is_empty()) {
            return Answer::unknown(format!("`{}` has an empty password", self.name()));
        }
        let files = self.scene.files;
        Answer::when(self.has_password())
            .and(|| pam::lets_through(files, "login", "auth"))
            .and(|| pam::lets_through(files, "login", "account"))
    }
}

#[cfg(test)]
mod tests;
