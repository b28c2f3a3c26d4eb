//! What `command` and `check` have in common: a program that a policy names, and how it is run.

use std::path::PathBuf;
use std::time::Duration;

use super::{AbsPath, ApplyError, Argv, Snapshot};
use crate::host::Host;
use crate::host::exec::{self, Output, RunAs};

/// A program with everything that it is run with.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Program {
    /// Program and arguments.
    pub argv: Argv,
    /// After this long everything that it started is killed.
    pub deadline: Duration,
    /// Whom it runs as; `None` for root.
    pub user: Option<String>,
    /// Where it starts; `None` for `/`.
    pub directory: Option<AbsPath>,
    /// Its environment, besides `PATH`, `LANG`, `HOME`, `USER` and `LOGNAME`.
    pub env: Vec<(String, String)>,
    /// The codes with which it ends when all is well.
    pub exit_codes: Vec<i32>,
}

/// A guard that takes longer is killed.
const GUARD_DEADLINE: Duration = Duration::from_secs(60);

/// Codes with which systemd ends a unit whose program never ran: the directory, the program, the group or the user is not there.
const NEVER_RAN: [i32; 4] = [200, 203, 216, 217];

impl Program {
    /// How another program is run beside this one: a guard, with the same user, directory and environment.
    pub(super) fn guard(&self, argv: &Argv) -> Self {
        Self { argv: argv.clone(), deadline: self.deadline.min(GUARD_DEADLINE), ..self.clone() }
    }

    /// Runs it to its end; `name` lets a later process find it.
    pub(super) fn run(&self, host: &Host, snapshot: &mut Snapshot, name: Option<String>) -> Result<Output, ApplyError> {
        let user = self.run_as(host, snapshot)?;
        let mut command = exec::Command::new(self.argv.program()).args(self.argv.args());
        command.deadline = self.deadline;
        command.directory =
            self.directory.as_ref().map_or_else(|| PathBuf::from("/"), |path| path.as_path().to_owned());
        command.user = user;
        command.name = name;
        command.env.extend(self.env.iter().map(|(name, value)| (name.into(), value.into())));
        host.programs.run(&command).map_err(|source| ApplyError::Exec { source })
    }

    /// The number of the user that it runs as.
    pub(super) fn uid(&self, host: &Host, snapshot: &mut Snapshot) -> Result<u32, ApplyError> {
        Ok(self.run_as(host, snapshot)?.map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid))
    }

    /// The account, by this host's own databases: a name service may hang.
    fn run_as(&self, host: &Host, snapshot: &mut Snapshot) -> Result<Option<RunAs>, ApplyError> {
        let Some(name) = &self.user else { return Ok(None) };
        let vanished = |why: String| ApplyError::Vanished { what: format!("the user `{name}`"), why };
        let accounts = snapshot.accounts(host).map_err(vanished)?;
        let user = accounts.user(name).ok_or_else(|| ApplyError::NoSuchUser { name: name.clone() })?;
        let groups = accounts.groups.iter().filter(|group| group.members.contains(name)).map(|group| group.gid);
        let groups = std::iter::once(user.gid).chain(groups).collect();
        Ok(Some(RunAs { name: name.clone(), uid: user.uid, gid: user.gid, groups, home: user.home.clone() }))
    }

    /// Whether it ended as it should.
    pub(super) fn is_well(&self, output: &Output) -> bool {
        output.code.is_some_and(|code| self.exit_codes.contains(&code))
    }
}

/// How a program that answers a question ended.
pub(super) enum Answer {
    /// With this code.
    Code(i32, Output),
    /// It gave no answer, and why.
    None(String),
}

/// Runs a program that answers a question. One that cannot be run, or that is killed, answers nothing.
pub(super) fn ask(program: &Program, host: &Host, snapshot: &mut Snapshot) -> Answer {
    let line = &program.argv;
    match program.run(host, snapshot, None) {
        Err(error) => Answer::None(format!("`{line}` cannot be run: {}", error.chain())),
        Ok(output) => match output.code {
            Some(code) if NEVER_RAN.contains(&code) => {
                Answer::None(format!("`{line}` cannot be run: {}", described(&output)))
            }
            Some(code) => Answer::Code(code, output),
            None => Answer::None(format!("`{line}` gave no answer: {}", described(&output))),
        },
    }
}

/// How a program ended, and the last that it said.
pub(super) fn described(output: &Output) -> String {
    let said = exec::last_words(output);
    if said.is_empty() { output.status.clone() } else { format!("{}: {said}", output.status) }
}
