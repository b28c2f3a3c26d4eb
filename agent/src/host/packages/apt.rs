//! Packages of Debian and its kin: dpkg's database read natively, changed by apt-get.
//!
//! apt-get is never given an option that skips authentication, downgrades, breaks a hold or removes an essential package. It
//! is simulated first, and the real run is refused when the simulation removes what nobody asked to remove or does not
//! mention what was asked for (a name that apt-get took for a pattern).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::dpkg::Records;
use super::{PackageDb, PackageError, PackageManager, PackageStatus, Transaction};
use crate::host::exec::{self, Command, Output};
use crate::host::root::{Permissions, Root};
use crate::resource::{AbsPath, Mode, PackageName};

const STATUS: &str = "/var/lib/dpkg/status";
/// Held by apt-get and its likes for as long as they work.
const FRONTEND_LOCK: &str = "var/lib/dpkg/lock-frontend";
const UPDATES: &str = "/var/lib/dpkg/updates";
const MAX_STATUS: u64 = 256 * 1024 * 1024;
const MAX_UPDATES: usize = 10_000;
const SIMULATION_DEADLINE: Duration = Duration::from_secs(120);
const UPDATE_DEADLINE: Duration = Duration::from_secs(600);
const REFRESH_DEADLINE: Duration = Duration::from_secs(180);
/// Longer than the largest upgrade on the slowest disk: killing dpkg half-way is the worse evil.
const TRANSACTION_DEADLINE: Duration = Duration::from_secs(3600);
/// How many lines of the manager's output an error shows.
const MAX_LINES: usize = 12;

/// Set for every run: nothing asks, nothing restarts services behind our back.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("DEBIAN_PRIORITY", "critical"),
    ("APT_LISTCHANGES_FRONTEND", "none"),
    ("APT_LISTBUGS_FRONTEND", "none"),
    ("NEEDRESTART_SUSPEND", "1"),
    ("UCF_FORCE_CONFFOLD", "1"),
];

/// Options of every run. A changed configuration file is kept (`confold`) unless it was never changed (`confdef`).
const OPTIONS: [&str; 6] = [
    "Dpkg::Options::=--force-confdef",
    "Dpkg::Options::=--force-confold",
    "Dpkg::Use-Pty=0",
    "DPkg::Lock::Timeout=300",
    "Acquire::Retries=2",
    "APT::Color=0",
];

/// apt and dpkg of the host or image at a root directory.
#[derive(Debug)]
pub struct Apt {
    root: PathBuf,
}

impl Apt {
    /// Takes the root directory; reads nothing yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    fn open(&self) -> Result<Root, PackageError> {
        Root::open(&self.root).map_err(|source| PackageError::Read { path: self.root.display().to_string(), source })
    }

    /// The records of `status` and of every numbered update, and whether there was any update.
    fn records(&self) -> Result<(Records, Updates), PackageError> {
        let root = self.open()?;
        let mut records = Records::default();
        let text = read_text(&root, STATUS)?.ok_or_else(|| read_error(STATUS, std::io::ErrorKind::NotFound.into()))?;
        add(&mut records, STATUS, &text)?;
        let names = root
            .list_names(&path_of(UPDATES)?, MAX_UPDATES)
            .map_err(|source| read_error(UPDATES, source))?
            .unwrap_or_default();
        let mut updates = Updates::None;
        for name in
            names.iter().filter_map(|name| name.to_str()).filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        {
            updates = Updates::Pending;
            let path = format!("{UPDATES}/{name}");
            // One that is gone by now has been merged into `status`; the watch on the directory brings the next look.
            if let Some(text) = read_text(&root, &path)? {
                add(&mut records, &path, &text)?;
            }
        }
        Ok((records, updates))
    }

    /// Runs a program of the host or image, inside it.
    fn command(&self, program: &'static str) -> Command {
        let command = if self.root == Path::new("/") {
            Command::new(program)
        } else {
            // In an image nothing may be started; `policy-rc.d` says so to scripts, this to systemctl.
            Command::new("chroot").args([self.root.clone().into(), OsString::from(program)]).env("SYSTEMD_OFFLINE", "1")
        };
        ENVIRONMENT.iter().fold(command, |command, (name, value)| command.env(*name, *value))
    }

    fn apt_get(&self, args: &[String], deadline: Duration) -> Result<Output, PackageError> {
        let options = OPTIONS.iter().flat_map(|option| ["-o", *option]);
        let mut command = self.command("apt-get").args(["-q", "-y"]).args(options).args(args);
        command.deadline = deadline;
        exec::run(&command).map_err(|source| PackageError::Run { program: "apt-get", source })
    }

    /// Finishes what a killed dpkg began; every later run would refuse otherwise.
    fn finish_interrupted(&self) -> Result<(), PackageError> {
        let (records, updates) = self.records()?;
        let db = records.finish().map_err(|source| read_error(STATUS, std::io::Error::other(source)))?;
        let is_broken = db.packages.values().any(|entry| entry.status == PackageStatus::Broken);
        if !is_broken && updates == Updates::None {
            return Ok(());
        }
        if self.is_locked() {
            // Somebody's dpkg is at work: this is its unfinished business, and apt-get waits for its end.
            return Ok(());
        }
        tracing::warn!("a run of dpkg was interrupted; finishing it with `dpkg --configure -a`");
        let mut command = self.command("dpkg").args(["--force-confdef", "--force-confold", "--configure", "-a"]);
        command.deadline = TRANSACTION_DEADLINE;
        let output = exec::run(&command).map_err(|source| PackageError::Run { program: "dpkg", source })?;
        if !output.success() {
            // Not the end: the transaction itself may bring what is missing, and its own error is the one to report.
            tracing::warn!(status = output.status, output = %last_lines(&output), "`dpkg --configure -a` did not succeed");
        }
        Ok(())
    }

    /// Whether another process holds the lock that dpkg's front ends take. Asks only, and takes nothing.
    fn is_locked(&self) -> bool {
        use nix::fcntl::{FcntlArg, fcntl};
        let Ok(file) = std::fs::File::open(self.root.join(FRONTEND_LOCK)) else { return false };
        let mut lock = nix::libc::flock {
            l_type: i16::try_from(nix::libc::F_WRLCK).unwrap_or_default(),
            l_whence: i16::try_from(nix::libc::SEEK_SET).unwrap_or_default(),
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && i32::from(lock.l_type) != nix::libc::F_UNLCK
    }

    /// Asks apt-get what it would do; with a fresh index once, if it does not know what was asked for.
    fn simulate(&self, args: &[String]) -> Result<Simulation, PackageError> {
        let mut simulation_args = vec!["-s".to_owned()];
        simulation_args.extend_from_slice(args);
        let mut output = self.apt_get(&simulation_args, SIMULATION_DEADLINE)?;
        if !output.success() && lacks_candidate(&output) {
            self.update()?;
            output = self.apt_get(&simulation_args, SIMULATION_DEADLINE)?;
        }
        if output.success() { Ok(Simulation::parse(&output.stdout)) } else { Err(manager_error(args, &output)) }
    }

    /// Fetches package indexes. A repository that does not answer must not block installs from the others, so its failure is
    /// only logged: the simulation that follows tells whether it mattered.
    fn update(&self) -> Result<(), PackageError> {
        let output = self.apt_get(&["update".to_owned()], UPDATE_DEADLINE)?;
        if !output.success() {
            tracing::warn!(status = output.status, output = %last_lines(&output), "`apt-get update` did not succeed");
        }
        Ok(())
    }
}

/// Whether dpkg has changes that are not yet in its main file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Updates {
    None,
    Pending,
}

impl PackageManager for Apt {
    fn read(&self) -> Result<PackageDb, PackageError> {
        let (records, _) = self.records()?;
        records.finish().map_err(|source| read_error(STATUS, std::io::Error::other(source)))
    }

    fn transact(&mut self, transaction: &Transaction) -> Result<(), PackageError> {
        if transaction.install.is_empty() && transaction.remove.is_empty() {
            return Ok(());
        }
        let _guard = if self.root == Path::new("/") { None } else { Some(NoServices::begin(self.open()?)?) };
        self.finish_interrupted()?;
        let (records, _) = self.records()?;
        let native = records.native_architecture().unwrap_or_default().to_owned();
        let db = self.read()?;
        let essential: Vec<String> = transaction
            .remove
            .iter()
            .filter(|name| db.packages.get(name.as_str()).is_some_and(|entry| entry.essential))
            .map(ToString::to_string)
            .collect();
        if !essential.is_empty() {
            return Err(PackageError::Essential { packages: essential });
        }
        let args = transaction_args(transaction)?;
        let simulation = self.simulate(&args)?;
        simulation.check(transaction, &db, &native)?;
        let mut output = self.apt_get(&args, TRANSACTION_DEADLINE)?;
        if !output.success() && index_is_old(&output) {
            self.update()?;
            let simulation = self.simulate(&args)?;
            simulation.check(transaction, &db, &native)?;
            output = self.apt_get(&args, TRANSACTION_DEADLINE)?;
        }
        if output.success() { Ok(()) } else { Err(manager_error(&args, &output)) }
    }

    fn refresh(&mut self, source: &AbsPath) -> Result<(), PackageError> {
        let mut args = vec!["update".to_owned()];
        // This one alone, and what is known of the others stays. A server that does not answer is not waited for long.
        for option in [
            &format!("Dir::Etc::sourcelist={source}"),
            "Dir::Etc::sourceparts=/dev/null",
            "APT::Get::List-Cleanup=0",
            "Acquire::http::Timeout=20",
            "Acquire::https::Timeout=20",
            "APT::Update::Error-Mode=any",
        ] {
            args.extend(["-o".to_owned(), option.to_owned()]);
        }
        let output = self.apt_get(&args, REFRESH_DEADLINE)?;
        if output.success() { Ok(()) } else { Err(manager_error(&["update".to_owned()], &output)) }
    }

    fn database_paths(&self) -> Vec<PathBuf> {
        vec![PathBuf::from("/var/lib/dpkg/status")]
    }
}

/// What apt-get says it would do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Simulation {
    installs: BTreeSet<String>,
    removes: BTreeSet<String>,
}

impl Simulation {
    /// Reads lines such as `Inst zlib1g:i386 [1.2] (1.3 Debian:12/stable [i386])` and `Remv nginx [1.22]`.
    fn parse(stdout: &[u8]) -> Self {
        let mut simulation = Self::default();
        for line in String::from_utf8_lossy(stdout).lines() {
            let mut words = line.split(' ');
            match (words.next(), words.next()) {
                (Some("Inst"), Some(name)) => simulation.installs.insert(name.to_owned()),
                (Some("Remv" | "Purg"), Some(name)) => simulation.removes.insert(name.to_owned()),
                (Some(_), _) | (None, _) => false,
            };
        }
        simulation
    }

    /// Refuses what nobody asked for.
    fn check(&self, transaction: &Transaction, db: &PackageDb, native: &str) -> Result<(), PackageError> {
        let bare = |name: &str| match name.split_once(':') {
            Some((base, architecture)) if architecture == native || architecture == "all" => base.to_owned(),
            Some(_) | None => name.to_owned(),
        };
        let asked: BTreeSet<String> = transaction.remove.iter().map(|name| bare(name.as_str())).collect();
        let unasked: Vec<String> =
            self.removes.iter().map(|name| bare(name)).filter(|name| !asked.contains(name)).collect();
        if !unasked.is_empty() {
            return Err(PackageError::WouldRemove { packages: unasked });
        }
        let planned: BTreeSet<String> = self.installs.iter().map(|name| bare(name)).collect();
        for (name, version) in &transaction.install {
            // A broken one that is new enough is only configured, which the simulation does not show as an installation.
            let is_there = db.packages.get(&bare(name.as_str())).is_some_and(|entry| {
                matches!(entry.status, PackageStatus::Installed | PackageStatus::Broken)
                    && version.as_ref().is_none_or(|version| *version == entry.version)
            });
            if !is_there && !planned.contains(&bare(name.as_str())) {
                return Err(PackageError::Manager {
                    command: "apt-get -s install".to_owned(),
                    status: "exit status 0".to_owned(),
                    output: format!(
                        "no package has exactly the name `{name}`; it may be a virtual package or a pattern, which are not installed by guess"
                    ),
                });
            }
        }
        Ok(())
    }
}

/// The arguments after the options: one command for installs and removes together, so that both happen or neither.
fn transaction_args(transaction: &Transaction) -> Result<Vec<String>, PackageError> {
    if transaction.install.is_empty() {
        let names = transaction.remove.iter().map(ToString::to_string);
        return Ok(["remove".to_owned(), "--".to_owned()].into_iter().chain(names).collect());
    }
    let mut args = vec!["install".to_owned()];
    if transaction.remove.is_empty() {
        // Against a change of mind between the simulation and the run.
        args.push("--no-remove".to_owned());
    }
    args.push("--".to_owned());
    for (name, version) in &transaction.install {
        match version {
            None => args.push(name.to_string()),
            Some(version) if is_version(version) => args.push(format!("{name}={version}")),
            Some(version) => {
                return Err(PackageError::Unsupported {
                    why: format!("`{version}` is not a version of Debian's form"),
                });
            }
        }
    }
    args.extend(transaction.remove.iter().map(|name: &PackageName| format!("{name}-")));
    Ok(args)
}

fn is_version(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'~' | b':'))
}

fn lacks_candidate(output: &Output) -> bool {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ["Unable to locate package", "has no installation candidate", "was not found", "Couldn't find any package"]
        .iter()
        .any(|text| stderr.contains(text))
}

/// The index names files that the server has replaced by newer ones.
fn index_is_old(output: &Output) -> bool {
    let stderr = String::from_utf8_lossy(&output.stderr);
    stderr.contains("404 ") || stderr.contains("Unable to fetch some archives")
}

fn manager_error(args: &[String], output: &Output) -> PackageError {
    PackageError::Manager {
        command: format!("apt-get {}", args.join(" ")),
        status: output.status.clone(),
        output: last_lines(output),
    }
}

/// What went wrong is said on standard error, and comes first; which package it was, often only on standard output.
fn last_lines(output: &Output) -> String {
    let errors = exec::escape_lines(&output.stderr);
    let lines = exec::escape_lines(&output.stdout);
    let room = MAX_LINES.saturating_sub(errors.len());
    let lines = lines.iter().skip(lines.len().saturating_sub(room));
    let errors = errors.iter().skip(errors.len().saturating_sub(MAX_LINES));
    errors.chain(lines).map(String::as_str).collect::<Vec<_>>().join("\n")
}

fn path_of(path: &str) -> Result<AbsPath, PackageError> {
    AbsPath::new(path).map_err(|invalid| read_error(path, std::io::Error::other(invalid)))
}

fn read_error(path: &str, source: std::io::Error) -> PackageError {
    PackageError::Read { path: path.to_owned(), source }
}

fn read_text(root: &Root, path: &str) -> Result<Option<String>, PackageError> {
    let read = root.read(&path_of(path)?, MAX_STATUS).map_err(|source| read_error(path, source))?;
    // Maintainers' names are not always UTF-8; what is needed here always is.
    Ok(read.map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned()))
}

fn add(records: &mut Records, path: &str, text: &str) -> Result<(), PackageError> {
    records.add(text).map_err(|error| read_error(path, std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}

/// While it lives, maintainer scripts in an image start no service: `policy-rc.d` says 101, "not allowed".
struct NoServices {
    root: Root,
    path: AbsPath,
    ours: bool,
}

const POLICY_RC_D: &[u8] =
    b"#!/bin/sh\n# rekindle is installing packages into this image and removes this file afterwards.\nexit 101\n";

impl NoServices {
    fn begin(root: Root) -> Result<Self, PackageError> {
        let path = path_of("/usr/sbin/policy-rc.d")?;
        let error = |source| read_error("/usr/sbin/policy-rc.d", source);
        let found = root.read(&path, 64 * 1024).map_err(error)?;
        // One of ours was left by a killed run; anybody else's stays in force.
        let ours = found.is_none_or(|(content, _)| content == POLICY_RC_D);
        if ours {
            let permissions = Permissions { uid: 0, gid: 0, mode: Mode::from_bits(0o755) };
            root.replace_file(&path, POLICY_RC_D, permissions).map_err(error)?;
        }
        Ok(Self { root, path, ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = self.root.remove_file(&self.path)
        {
            tracing::error!(path = %self.path, %error, "cannot remove our own file; services in this image would not start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::PackageEntry;
    use super::*;

    fn transaction(install: &[(&str, Option<&str>)], remove: &[&str]) -> Transaction {
        let name = |text: &str| PackageName::new(text).unwrap();
        Transaction {
            install: install.iter().map(|(n, version)| (name(n), version.map(str::to_owned))).collect(),
            remove: remove.iter().map(|n| name(n)).collect(),
        }
    }

    #[test]
    fn one_command_does_everything() {
        let check = |transaction: Transaction, expected: &str| {
            assert_eq!(transaction_args(&transaction).unwrap().join(" "), expected);
        };
        check(transaction(&[("nginx", None)], &[]), "install --no-remove -- nginx");
        check(transaction(&[("g++", Some("4:12.2.0-3"))], &["telnetd"]), "install -- g++=4:12.2.0-3 telnetd-");
        check(transaction(&[], &["telnetd", "zlib1g:i386"]), "remove -- telnetd zlib1g:i386");
        assert!(transaction_args(&transaction(&[("x", Some("1 --force-yes"))], &[])).is_err());
    }

    #[test]
    fn a_simulation_is_held_to_what_was_asked() {
        let installed = PackageEntry { version: "1".to_owned(), status: PackageStatus::Installed, essential: false };
        let broken = PackageEntry { version: "1".to_owned(), status: PackageStatus::Broken, essential: false };
        let db = PackageDb { packages: [("there".to_owned(), installed), ("half".to_owned(), broken)].into() };
        let check = |stdout: &str, transaction: Transaction, expected: Result<(), &str>| {
            let result = Simulation::parse(stdout.as_bytes()).check(&transaction, &db, "amd64");
            match (result, expected) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
                (result, expected) => panic!("{stdout}: {result:?} is not {expected:?}"),
            }
        };
        let inst = "Reading…\nInst libx (2 Debian:12/stable [amd64])\nInst nginx [1] (2 Debian:12 [amd64]) []\nConf nginx (2)\n";
        check(inst, transaction(&[("nginx", None)], &[]), Ok(()));
        check(inst, transaction(&[("nginx:amd64", None)], &[]), Ok(()));
        check(inst, transaction(&[("ngin", None)], &[]), Err("exactly the name `ngin`"));
        check("", transaction(&[("there", None)], &[]), Ok(()));
        check("", transaction(&[("half", None)], &[]), Ok(()));
        check("", transaction(&[("there", Some("2"))], &[]), Err("exactly the name"));
        check("Remv exim4 [4]\nInst nginx (2)\n", transaction(&[("nginx", None)], &[]), Err("also remove exim4"));
        check("Remv exim4 [4]\n", transaction(&[], &["exim4"]), Ok(()));
        check("Remv exim4 [4]\nRemv mutt:i386 [1]\n", transaction(&[], &["exim4:amd64"]), Err("also remove mutt:i386"));
    }
}
