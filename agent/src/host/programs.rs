//! Where the programs that a policy names run: on the host, in an image, or nowhere.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::exec::view::{Candidate, ViewError, run_among};
use super::exec::{self, Command, ExecError, Output};

/// Where a new mount namespace is built, unless somebody says otherwise.
const SCRATCH: &str = "/run/rekindle";

/// A program that validates is killed after this long, unless somebody says otherwise.
const VALIDATION: Duration = Duration::from_secs(60);

/// Where programs run.
#[derive(Debug, Clone)]
pub struct Programs {
    place: Place,
    scratch: PathBuf,
    validation: Duration,
}

#[derive(Debug, Clone)]
enum Place {
    Host,
    /// With this directory as their root: an image's own programs.
    Image(PathBuf),
    Nowhere(&'static str),
}

impl Programs {
    /// On the host, or with the root of an image as their own.
    pub fn at(root: &Path) -> Self {
        let place = if root == Path::new("/") { Place::Host } else { Place::Image(root.to_owned()) };
        Self { place, scratch: PathBuf::from(SCRATCH), validation: VALIDATION }
    }

    /// Nowhere, and why.
    pub fn nowhere(why: &'static str) -> Self {
        Self { place: Place::Nowhere(why), scratch: PathBuf::from(SCRATCH), validation: VALIDATION }
    }

    /// Builds mount namespaces on this directory, which has to exist by then: the agent's runtime directory.
    pub fn set_scratch(&mut self, directory: &Path) {
        directory.clone_into(&mut self.scratch);
    }

    /// Kills programs that validate after this long.
    pub fn set_validation(&mut self, deadline: Duration) {
        self.validation = deadline;
    }

    /// Runs a program outside the agent's sandbox, as [`exec::run`].
    pub fn run(&self, command: &Command) -> Result<Output, ExecError> {
        match &self.place {
            Place::Host => exec::run(command),
            Place::Image(root) => ran(command, exec::run(&inside(root, command))?),
            Place::Nowhere(why) => Err(unsupported(command, why)),
        }
    }

    /// Runs a program where the candidates stand at their paths already, for it alone.
    pub fn validate(&self, candidates: &[Candidate], argv: &[String]) -> Result<Output, ViewError> {
        let root = match &self.place {
            Place::Host => Path::new("/"),
            Place::Image(root) => root,
            Place::Nowhere(why) => {
                let command = Command::new(argv.first().map(String::as_str).unwrap_or_default());
                return Err(ViewError::Run { source: unsupported(&command, why) });
            }
        };
        run_among(candidates, root, &self.scratch, argv, self.validation)
    }
}

/// Codes with which chroot(1) ends when it did not get as far as the program; a program may end with them as well.
const CHROOT_FAILED: std::ops::RangeInclusive<i32> = 125..=127;

/// The end of a program in an image, unless it was chroot's own: a program that is not there has answered nothing.
fn ran(command: &Command, output: Output) -> Result<Output, ExecError> {
    let is_chroots = output.code.is_some_and(|code| CHROOT_FAILED.contains(&code));
    let named = output.stderr.split(|byte| *byte == b':').next().unwrap_or_default();
    if !is_chroots || !named.ends_with(b"/chroot") {
        return Ok(output);
    }
    let source = io::Error::other(exec::last_words(&output));
    Err(ExecError::Start { program: command.program.display().to_string(), source })
}

fn unsupported(command: &Command, why: &'static str) -> ExecError {
    let source = io::Error::new(io::ErrorKind::Unsupported, why);
    ExecError::Start { program: command.program.display().to_string(), source }
}

/// The same program with an image as its root. Nothing is started there: `SYSTEMD_OFFLINE` says so to systemctl.
fn inside(root: &Path, command: &Command) -> Command {
    let mut args: Vec<OsString> = Vec::new();
    if let Some(user) = &command.user {
        let groups: Vec<String> = user.groups.iter().map(ToString::to_string).collect();
        args.push(format!("--userspec={}:{}", user.uid, user.gid).into());
        args.push(format!("--groups={}", groups.join(",")).into());
    }
    args.push(root.into());
    args.push(command.program.clone());
    args.extend(command.args.iter().cloned());
    let mut inside = Command { user: None, directory: PathBuf::from("/"), ..command.clone() };
    inside.program = "chroot".into();
    inside.args = args;
    inside.env("SYSTEMD_OFFLINE", "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_an_image_lacks_has_answered_nothing() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root may change its root directory");
            return;
        }
        let image = Programs { place: Place::Image(PathBuf::from("/")), ..Programs::at(Path::new("/")) };
        let error = image.run(&Command::new("/nowhere/guard")).unwrap_err();
        assert!(error.to_string().contains("cannot start `/nowhere/guard`"), "{error}");
        let output = image.run(&Command::new("/bin/sh").args(["-c", "exit 127"])).unwrap();
        assert_eq!(output.code, Some(127), "a program's own end");
    }
}
