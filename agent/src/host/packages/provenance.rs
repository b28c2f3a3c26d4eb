//! Which transaction changed a package, by what the package managers themselves wrote down.
//!
//! The parsers are pure. Only the end of a log is read, and rotated logs are not: what is older than that was seen at an earlier
//! look. Nothing here starts a process or changes anything, and whatever cannot be read means "not known".

mod apt;
mod dnf;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::actor::{Actor, Transaction};
use crate::host::root::Root;
use crate::resource::AbsPath;

const APT_HISTORY: &str = "/var/log/apt/history.log";
const DPKG_LOG: &str = "/var/log/dpkg.log";
/// How much of the end of a log is read, in bytes.
const MAX_LOG: u64 = 512 * 1024;
const MAX_PASSWD: u64 = 4 * 1024 * 1024;
/// A transaction that ended this long ago may still be writing files, or have its files looked at, in seconds.
const AFTERGLOW_S: i64 = 60;

/// One transaction found in a log, and when it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    transaction: Transaction,
    /// `None` while it runs, or when the log does not say.
    ended: Option<Timestamp>,
    /// The agent's own run of the package manager.
    is_own: bool,
}

/// The newest transaction that changed a package, unless that was before `since` or the agent's own. Logs count in whole seconds.
pub fn of_package(root: &Root, package: &str, since: Option<Timestamp>) -> Option<Transaction> {
    let zone = TimeZone::system();
    let from_apt = text(root, APT_HISTORY).and_then(|log| apt::newest(&log, package, &zone));
    let from_dpkg = text(root, DPKG_LOG).and_then(|log| apt::newest_of_dpkg(&log, package, &zone));
    let debian = match (from_apt, from_dpkg) {
        // dpkg logs what apt has it do as well. What it did after apt had ended was asked of it by somebody else.
        (Some(apt), Some(dpkg)) => {
            let is_apart = apt.ended.is_some_and(|ended| dpkg.transaction.at > ended);
            Some(if is_apart { dpkg } else { apt })
        }
        (apt, dpkg) => apt.or(dpkg),
    };
    let newest = debian.or_else(|| dnf::newest(root, package)).filter(|found| !found.is_own)?;
    let is_recent = since.is_none_or(|since| newest.transaction.at.as_second() >= since.as_second());
    is_recent.then_some(newest.transaction)
}

/// The transaction that runs now, or has just ended.
fn under_way(root: &Root, now: Timestamp) -> Option<Transaction> {
    let found = text(root, APT_HISTORY).and_then(|log| apt::last(&log, &TimeZone::system()))?;
    let is_near = found.ended.is_none_or(|ended| now.as_second() - ended.as_second() < AFTERGLOW_S);
    (is_near && !found.is_own).then_some(found.transaction)
}

/// The transaction that a process is a part of, if it belongs to a package manager.
pub fn of_actor(root: &Root, actor: &Actor, now: Timestamp) -> Option<Transaction> {
    let program = actor.exe.as_deref().or(actor.name.as_deref())?;
    if is_package_manager(program) { under_way(root, now) } else { None }
}

/// Whether a program by this name is a part of a package manager, whose files are those of a transaction.
fn is_package_manager(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or(program);
    matches!(
        name,
        "dpkg" | "dpkg-deb" | "apt" | "apt-get" | "aptitude" | "unattended-upgr" | "unattended-upgrade" | "ucf"
    )
}

fn text(root: &Root, path: &str) -> Option<String> {
    let path = AbsPath::new(path).ok()?;
    let bytes = root.read_end(&path, MAX_LOG).ok().flatten()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The name of a user of this host.
fn user(root: &Root, uid: u32) -> String {
    let passwd = AbsPath::new("/etc/passwd").ok().and_then(|path| root.read(&path, MAX_PASSWD).ok().flatten());
    let name = passwd.and_then(|(bytes, _)| crate::host::process::passwd_name(&String::from_utf8_lossy(&bytes), uid));
    name.unwrap_or_else(|| format!("uid {uid}"))
}

#[cfg(test)]
mod tests;
