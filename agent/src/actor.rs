//! Who changed something: what can be said of a process, and how sure that is.
//!
//! Pure: nothing here looks at the host; [`crate::host::process`] does, and fills in what it found. A pid is only ever given
//! with [`Confidence::Exact`]. A command line is bounded, escaped, and stripped of what looks like a secret before it gets
//! here, because it is kept in the history and sent to webhooks.

pub mod command;
pub mod place;

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How sure it is which process did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// Neither the process nor its unit is known.
    #[default]
    Unknown,
    /// The process is gone, but the kernel kept its control group: the unit or session is certain, the process is not known.
    Unit,
    /// The process was still identified through its pidfd when it was read, so that its pid is not another's. It may have
    /// started another program between the change and the reading.
    Exact,
}

/// Who changed something. Everything that is not known is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Actor {
    /// How sure it is.
    pub confidence: Confidence,
    /// Process id as the agent sees it; only with [`Confidence::Exact`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The program's file, as the process itself sees it: in a container that is a path of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// The name that the kernel keeps of a process, which outlives its command line; 15 bytes at most, and its own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The command line on one line: bounded, escaped, secrets masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Real user id of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Name of that user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user who once logged in, whatever `sudo` has made of them since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// Name of that user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_user: Option<String>,
    /// The systemd unit, such as `puppet.service` or `session-3.scope`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The unit of a user's own service manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_unit: Option<String>,
    /// The login session's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The container or virtual machine, such as `docker 3f2a91c04b7d`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The control group itself, as a path beneath the root of the hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The package transaction that changed it, by the log of the package manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction: Option<Transaction>,
}

/// One transaction of a package manager, as its log tells it. Whoever can write the log can lie in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// `apt`, `dpkg` or `dnf`.
    pub manager: String,
    /// When it began.
    pub at: Timestamp,
    /// The command line, bounded, escaped and masked; unknown where the log has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The user who asked for it, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What it did to the package, such as `upgrade 1.22.1-9 -> 1.22.1-9+deb12u1`.
    pub what: String,
}

impl Actor {
    /// Somebody about whom only a package transaction is known.
    pub fn from_transaction(transaction: Transaction) -> Self {
        Self { transaction: Some(transaction), ..Self::default() }
    }

    /// Whether nothing at all is known.
    pub fn is_unknown(&self) -> bool {
        self.confidence == Confidence::Unknown && self.transaction.is_none()
    }

    /// Whether it is a program that the agent started in a unit of its own, or beside itself.
    pub fn is_step(&self) -> bool {
        self.unit.as_deref().is_some_and(|unit| unit.starts_with("rekindle-") && unit.ends_with(".service"))
    }

    /// Takes over where the process runs.
    pub fn put_in(&mut self, cgroup: &str) {
        let place = place::of_cgroup(cgroup);
        self.unit = place.unit;
        self.user_unit = place.user_unit;
        self.session = place.session;
        self.container = place.container;
        self.cgroup = Some(command::escaped(cgroup, command::MAX_LENGTH));
        if self.login_uid.is_none() {
            self.login_uid = place.uid;
        }
    }

    /// A name under which all that it does can be counted: the unit that it is in, or else the program. `None` for nobody.
    pub fn short(&self) -> Option<String> {
        if self.is_unknown() {
            return None;
        }
        let program = self.exe.clone().or_else(|| self.name.clone());
        // People are known by what they run, services by what they are.
        let of_person = || {
            program.as_ref().map(|program| match self.person() {
                Some(person) => format!("{program} of {person}"),
                None => program.clone(),
            })
        };
        let named = match (&self.container, &self.session) {
            (Some(container), _) => Some(format!("container {container}")),
            (None, Some(session)) => Some(of_person().unwrap_or_else(|| format!("session {session}"))),
            (None, None) => self.user_unit.clone().or_else(|| self.unit.clone()),
        };
        let manager = || self.transaction.as_ref().map(|transaction| transaction.manager.clone());
        named.or_else(of_person).or_else(|| self.home()).or_else(manager).or_else(|| self.person())
    }

    /// Everything that is known, for people: one line for each fact.
    pub fn details(&self) -> Vec<String> {
        let confidence = match self.confidence {
            Confidence::Exact => "identified while it was there",
            Confidence::Unit => "gone when it was looked at; its unit is certain",
            Confidence::Unknown => "not known",
        };
        let user = |name: &Option<String>, uid: u32| match name {
            Some(name) => format!("{name} ({uid})"),
            None => uid.to_string(),
        };
        let facts = [
            ("process", Some(confidence.to_owned())),
            ("pid", self.pid.map(|pid| pid.to_string())),
            ("program", self.exe.clone().or_else(|| self.name.clone())),
            ("command", self.command.clone()),
            ("user", self.uid.map(|uid| user(&self.user, uid))),
            ("logged in as", self.login_uid.map(|uid| user(&self.login_user, uid))),
            ("session", self.session.clone()),
            ("unit", self.unit.clone()),
            ("user unit", self.user_unit.clone()),
            ("container", self.container.clone()),
            ("control group", self.cgroup.clone()),
            ("transaction", self.transaction.as_ref().map(|t| format!("{} at {:.0}: {}", t.manager, t.at, t.what))),
        ];
        facts.into_iter().filter_map(|(what, fact)| Some(format!("{what}: {}", fact?))).collect()
    }

    /// The person behind it: who logged in, or else whom it runs as, unless that is root.
    fn person(&self) -> Option<String> {
        let named = |name: &Option<String>, uid: u32| name.clone().unwrap_or_else(|| format!("uid {uid}"));
        match (self.login_uid, self.uid) {
            (Some(login), _) => Some(named(&self.login_user, login)),
            (None, Some(0) | None) => None,
            (None, Some(uid)) => Some(named(&self.user, uid)),
        }
    }

    /// Where it runs, for people.
    fn home(&self) -> Option<String> {
        if let Some(container) = &self.container {
            return Some(format!("container {container}"));
        }
        if let Some(session) = &self.session {
            return Some(format!("session {session}"));
        }
        self.user_unit.clone().or_else(|| self.unit.clone()).or_else(|| self.cgroup.clone().filter(|path| path != "/"))
    }
}

/// One line for people.
impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(transaction) = &self.transaction {
            return transaction.fmt(f);
        }
        let program = self.command.as_ref().or(self.exe.as_ref()).or(self.name.as_ref());
        match (self.confidence, program, self.pid) {
            (Confidence::Unknown, _, _) => return f.write_str("unknown"),
            (Confidence::Unit, _, _) | (Confidence::Exact, None, None) => {
                return match (self.home(), self.person()) {
                    (Some(home), Some(person)) => write!(f, "{home} of {person}"),
                    (Some(home), None) => f.write_str(&home),
                    (None, Some(person)) => f.write_str(&person),
                    (None, None) => f.write_str("unknown"),
                };
            }
            (Confidence::Exact, Some(program), _) => write!(f, "`{program}`")?,
            (Confidence::Exact, None, Some(pid)) => write!(f, "process {pid}")?,
        }
        if let Some(person) = self.person() {
            write!(f, " by {person}")?;
        }
        match self.home() {
            Some(home) => write!(f, " ({home})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.command {
            Some(command) => write!(f, "`{command}`")?,
            None => f.write_str(&self.manager)?,
        }
        if let Some(by) = &self.by {
            write!(f, " by {by}")?;
        }
        write!(f, " ({})", self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact() -> Actor {
        Actor { confidence: Confidence::Exact, pid: Some(4711), ..Actor::default() }
    }

    #[test]
    fn an_actor_is_one_line() {
        let check = |actor: Actor, expected: &str| assert_eq!(actor.to_string(), expected);
        let some = |text: &str| Some(text.to_owned());
        check(Actor::default(), "unknown");
        let mut anna = Actor { command: some("vim /etc/motd"), uid: Some(0), user: some("root"), ..exact() };
        anna.put_in("/user.slice/user-1000.slice/session-3.scope");
        check(anna.clone(), "`vim /etc/motd` by uid 1000 (session 3)");
        anna.login_user = some("anna");
        check(anna.clone(), "`vim /etc/motd` by anna (session 3)");
        check(Actor { confidence: Confidence::Unit, command: None, pid: None, ..anna }, "session 3 of anna");
        let mut puppet = Actor { confidence: Confidence::Unit, uid: Some(0), ..Actor::default() };
        puppet.put_in("/system.slice/puppet.service");
        check(puppet.clone(), "puppet.service");
        check(
            Actor { confidence: Confidence::Exact, name: some("ruby"), pid: Some(7), ..puppet },
            "`ruby` (puppet.service)",
        );
        check(
            Actor { exe: some("/usr/bin/x"), uid: Some(33), user: some("www-data"), ..exact() },
            "`/usr/bin/x` by www-data",
        );
        check(exact(), "process 4711");
        let mut user = Actor { confidence: Confidence::Unit, ..Actor::default() };
        user.put_in("/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service");
        check(user, "sync.service of uid 1000");
        let mut docker = exact();
        docker.put_in(&format!("/system.slice/docker-{}.scope", "3f2a91c04b7d".repeat(6).get(..64).unwrap()));
        check(docker, "process 4711 (container docker 3f2a91c04b7d)");
    }

    #[test]
    fn a_transaction_is_named_before_the_process() {
        let transaction = Transaction {
            manager: "apt".to_owned(),
            at: Timestamp::UNIX_EPOCH,
            command: Some("apt-get install nginx".to_owned()),
            by: Some("anna".to_owned()),
            what: "install 1.22.1-9".to_owned(),
        };
        let actor = Actor { transaction: Some(transaction.clone()), ..exact() };
        assert_eq!(actor.to_string(), "`apt-get install nginx` by anna (install 1.22.1-9)");
        let bare = Transaction { manager: "dpkg".to_owned(), command: None, by: None, ..transaction };
        assert_eq!(Actor::from_transaction(bare).to_string(), "dpkg (install 1.22.1-9)");
    }

    #[test]
    fn what_is_not_known_is_left_out_of_the_json() {
        let json = serde_json::to_value(exact()).unwrap();
        assert_eq!(json, serde_json::json!({ "confidence": "exact", "pid": 4711 }));
        assert_eq!(serde_json::from_value::<Actor>(json).unwrap(), exact());
        // A later version may say more.
        let later = serde_json::json!({ "confidence": "unit", "unit": "a.service", "colour": "red" });
        assert_eq!(serde_json::from_value::<Actor>(later).unwrap().unit.as_deref(), Some("a.service"));
    }
}
