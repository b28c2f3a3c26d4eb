//! The last way in: a plan must not take away the last account that can log in and become root.
//!
//! The compiler refuses what is certain from the policy alone; here the host is known. Before a step that may close a way in, the
//! host as it is is compared with the host as the step would leave it ([`super::access`]). A step that would take the host from a
//! known way in to none that is known is put off until everything else is done, because what comes later may open another one;
//! if it still would, it is refused. Everything else goes on.
//!
//! - A host that nobody can get into loses nothing, and hears nothing of this.
//! - What cannot be told is no way in, and is named in the refusal.
//! - A repair restores what was accepted once ([`Cleared`]): whoever opened a way of their own since must not keep it by being
//!   the last who has one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::access::{self, Access, Files, Scene};
use super::{Cause, Memory};
use crate::host::Host;
use crate::host::accounts::{AccountDb, GroupEntry, shadow};
use crate::host::exec::view::{Becomes, Candidate};
use crate::host::root::{Permissions, Root};
use crate::policy::{LockOut, Revision};
use crate::record::Record;
use crate::resource::{
    self, AbsPath, Content, Desired, Ensure, Mode, Observation, Observed, Resource, ResourceId, Sighting, Snapshot,
    UnitName, chain, service, user,
};

/// How a refusal is known again.
pub(super) const SIGNATURE: &str = "refused: lock-out";
/// Longest file of those that say who gets in.
const MAX_FILE: u64 = 1024 * 1024;
/// More names than any directory of such files holds.
const MAX_NAMES: usize = 10_000;
/// As many links as the kernel itself would follow.
const MAX_LINKS: usize = 40;
/// Accounts that a refusal names.
const MAX_NAMED: usize = 5;

const DATABASES: [&str; 3] = ["/etc/passwd", "/etc/shadow", "/etc/group"];
const SUDOERS: [&str; 2] = ["/etc/sudoers", "/usr/etc/sudoers"];
const SSHD: [&str; 2] = ["/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config"];
const SSH_UNITS: [&str; 4] = ["ssh.service", "sshd.service", "ssh.socket", "sshd.socket"];
const DIRECTORIES: [&str; 4] = ["/etc/sudoers.d", "/etc/ssh/sshd_config.d", "/etc/ssh", "/etc/pam.d"];

/// Whether a step for this may close a way in.
fn is_relevant(desired: &Desired) -> bool {
    let is_such = |path: &AbsPath| {
        let path = path.to_string();
        let is_in = |directory: &str| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
        SUDOERS.contains(&path.as_str())
            || DATABASES.contains(&path.as_str())
            || DIRECTORIES.iter().any(|directory| is_in(directory))
            || path.contains("/.ssh/")
            || path.contains("authorized_keys")
    };
    let is_above = |path: &AbsPath| {
        let path = path.to_string();
        path.ends_with("/.ssh")
            || DIRECTORIES.iter().any(|place| *place == path || place.starts_with(&format!("{path}/")))
    };
    match desired {
        Desired::User(_) | Desired::Group(_) => true,
        Desired::File(file) => is_such(&file.path),
        Desired::Symlink(link) => is_such(&link.path),
        Desired::Setting(setting) => is_such(&setting.path),
        Desired::Directory(directory) => {
            is_above(&directory.path) && directory.rules().is_some_and(|rules| rules.purge.is_some())
        }
        Desired::Package(package) => package.ensure == Ensure::Absent && lost_with(package.name.as_str()).is_some(),
        Desired::Service(service) => stops_ssh(service),
        Desired::Repository(_)
        | Desired::Sysctl(_)
        | Desired::KernelModule(_)
        | Desired::Mount(_)
        | Desired::Command(_)
        | Desired::Check(_)
        | Desired::Sweep(_) => false,
    }
}

/// The files that say nothing any more once a package is gone. Debian's `ssh` is only a name for the server and the client.
fn lost_with(package: &str) -> Option<[&'static str; 2]> {
    match package {
        "openssh-server" | "openssh" => Some(SSHD),
        "sudo" => Some(SUDOERS),
        _ => None,
    }
}

fn stops_ssh(service: &service::Desired) -> bool {
    let is_ssh = SSH_UNITS.contains(&service.unit.as_str());
    is_ssh && service.stops()
}

/// Whether another unit lets people in by ssh now: a socket in place of the service, or the other way round.
fn is_served_otherwise(host: &Host, snapshot: &mut Snapshot, so_far: &After, service: &service::Desired) -> bool {
    let is_other = |unit: &&str| *unit != service.unit.as_str() && !so_far.stopped.contains(*unit);
    let others = SSH_UNITS.into_iter().filter(is_other);
    others.filter_map(|unit| UnitName::new(unit).ok()).any(|unit| snapshot.is_active(host, &unit))
}

/// Whether those whom a file is to let in could not use it: sshd and sudo refuse what others may write to, and sshd reads a key as the
/// user whose it is.
fn is_refused(path: &str, permissions: Permissions) -> bool {
    let Permissions { uid, mode, .. } = permissions;
    let has = |bits: u32| mode.bits() & bits != 0;
    let is_sudoers = SUDOERS.contains(&path) || path.starts_with("/etc/sudoers.d/");
    let is_key = path.contains("/.ssh/") || path.contains("authorized_keys");
    let is_unreadable = uid == 0 && !has(0o004) && !path.starts_with("/root/");
    is_sudoers && (uid != 0 || has(0o002)) || is_key && (has(0o022) || is_unreadable)
}

/// What is relevant and was accepted under one revision: found in sync, or put there. In the record under [`Cleared::KEY`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cleared {
    revision: Option<Revision>,
    resources: BTreeSet<ResourceId>,
}

impl Cleared {
    const KEY: &str = "cleared";

    /// What is remembered of a host.
    pub(super) fn of(memory: Memory<'_>) -> Self {
        match memory {
            Memory::Record(record) => Self::recall(record),
            Memory::Nothing | Memory::Unreadable(_) => Self::default(),
        }
    }

    /// What a record remembers. What cannot be read counts as nothing: it is looked at again.
    pub(super) fn recall(record: &Record) -> Self {
        let loaded = record.load(Self::KEY).unwrap_or_else(|error| {
            tracing::debug!(error = %chain(&error), "cannot read what was accepted");
            None
        });
        loaded.unwrap_or_default()
    }

    /// Remembers what a run found, or put, in sync.
    pub(super) fn add<'r>(record: &mut Record, revision: &Revision, in_sync: impl Iterator<Item = &'r Resource>) {
        let mut relevant =
            in_sync.filter(|resource| is_relevant(&resource.desired)).map(|resource| &resource.id).peekable();
        if relevant.peek().is_none() {
            return;
        }
        let mut cleared = Self::recall(record);
        let before = cleared.clone();
        if cleared.revision.as_ref() != Some(revision) {
            cleared = Self { revision: Some(revision.clone()), resources: BTreeSet::new() };
        }
        cleared.resources.extend(relevant.cloned());
        if cleared != before
            && let Err(error) = record.save(Self::KEY, &cleared)
        {
            record.note_trouble(&error);
        }
    }

    /// Whether a step for a resource may close a way in and nobody has accepted that yet.
    pub(super) fn wants_a_look(&self, rule: &LockOut, cause: Cause, revision: &Revision, resource: &Resource) -> bool {
        let is_repair =
            cause == Cause::Drift && self.revision.as_ref() == Some(revision) && self.resources.contains(&resource.id);
        !rule.is_meant && !is_repair && is_relevant(&resource.desired)
    }
}

/// How a host would differ from what it is now, as far as it matters here.
#[derive(Debug, Clone, Default)]
pub(super) struct After {
    /// `None` until a step changes them.
    accounts: Option<AccountDb>,
    /// `None` for a file that would be gone.
    files: BTreeMap<String, Option<String>>,
    /// Units of ssh that others serve in place of.
    stopped: BTreeSet<String>,
}

/// Why a step is to be refused, if it would close the last way in that is known. Compares the host after what was decided so far
/// with the host after one more step, which is added to that unless it is refused.
pub(super) fn refuses(
    host: &Host,
    snapshot: &mut Snapshot,
    rule: &LockOut,
    so_far: &mut After,
    (resource, sighting): (&Resource, &Sighting),
) -> Option<String> {
    let (now, base) = match snapshot.accounts(host).and_then(|now| Ok((now, HostFiles::new(host)?))) {
        Ok(found) => found,
        Err(why) => {
            return Some(format!("refused, because it cannot be told whether anybody could log in after it: {why}"));
        }
    };
    if let Desired::Service(service) = &resource.desired
        && is_served_otherwise(host, snapshot, so_far, service)
    {
        so_far.stopped.insert(service.unit.to_string());
        return None;
    }
    if only_adds(resource, sighting) {
        so_far.take(&base, &now, resource, sighting);
        return None;
    }
    let mut after = so_far.clone();
    after.take(&base, &now, resource, sighting);
    let today = Timestamp::now().as_second().div_euclid(86_400);
    let break_glass: Vec<String> = rule.break_glass.iter().map(ToString::to_string).collect();
    let (files_before, files_after) = (so_far.over(&base), after.over(&base));
    let mut before = Scene {
        accounts: so_far.accounts.as_ref().unwrap_or(&now),
        files: &files_before,
        today,
        break_glass: &break_glass,
    };
    // A name that nobody has, or that cannot get in yet, must not leave the host without a guard.
    if access::best(before) == Access::Closed {
        before.break_glass = &[];
    }
    let then = Scene { accounts: after.accounts.as_ref().unwrap_or(&now), files: &files_after, ..before };
    let was = access::best(before);
    if was > Access::Closed && access::best(then) < was {
        return Some(refusal(before, then, was));
    }
    *so_far = after;
    None
}

/// Whether a step makes an account or a group where none was: it can close nothing.
fn only_adds(resource: &Resource, sighting: &Sighting) -> bool {
    let is_user = matches!(&sighting.observed, Observed::User(seen) if **seen == Observation::Absent);
    let is_group = matches!(&sighting.observed, Observed::Group(Observation::Absent));
    matches!((&resource.desired, is_user, is_group), (Desired::User(_), true, _) | (Desired::Group(_), _, true))
}

/// What is refused, why, and what to do.
fn refusal(before: Scene<'_>, then: Scene<'_>, was: Access) -> String {
    let list = |names: Vec<String>| {
        let more = names.len().saturating_sub(MAX_NAMED);
        let mut text = names.into_iter().take(MAX_NAMED).collect::<Vec<_>>().join(", ");
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        text
    };
    let who = if before.break_glass.is_empty() { "nobody" } else { "no account in `break_glass`" };
    let now = access::ways(before).filter(|way| way.access == was).map(|way| format!("`{}`", way.account)).collect();
    let mut text = format!(
        "refused, because {who} would be known to be able to log in and become root after it; now {}",
        list(now)
    );
    text.push_str(if was == Access::Open { " can" } else { " perhaps can" });
    let doubts: BTreeSet<String> = access::ways(then).filter_map(|way| way.doubt).collect();
    if !doubts.is_empty() {
        text.push_str(&format!("; could not be told: {}", list(doubts.into_iter().collect())));
    }
    text.push_str(
        ". Declare an account that keeps a key or password and sudo, or set `lock_out = \"allow\"` under [policy]",
    );
    text
}

impl After {
    /// Files as they would be.
    fn over<'a>(&'a self, base: &'a dyn Files) -> Overlay<'a> {
        Overlay { base, files: &self.files }
    }

    /// Adds what a step would do.
    fn take(&mut self, base: &HostFiles<'_>, now: &AccountDb, resource: &Resource, sighting: &Sighting) {
        match (&resource.desired, &sighting.observed) {
            (Desired::User(desired), Observed::User(seen)) => {
                let accounts = self.accounts.get_or_insert_with(|| now.clone());
                if let Some((path, keys)) = user::project(accounts, desired, seen) {
                    self.files.insert(path.to_string(), Some(String::from_utf8_lossy(&keys).into_owned()));
                }
            }
            (Desired::Group(desired), _) => {
                let accounts = self.accounts.get_or_insert_with(|| now.clone());
                let name = desired.name.as_str();
                match &desired.ensure {
                    Ensure::Absent => accounts.groups.retain(|group| group.name != name),
                    Ensure::Present(spec) => match accounts.groups.iter_mut().find(|group| group.name == name) {
                        // Users follow their primary group to its new id.
                        Some(group) => {
                            let old = group.gid;
                            group.gid = spec.gid.unwrap_or(old);
                            let gid = group.gid;
                            accounts.users.iter_mut().filter(|user| user.gid == old).for_each(|user| user.gid = gid);
                        }
                        None => accounts.groups.push(GroupEntry {
                            name: name.to_owned(),
                            gid: spec.gid.unwrap_or(u32::MAX),
                            members: Vec::new(),
                        }),
                    },
                }
            }
            (Desired::Directory(directory), Observed::Directory(Observation::Present(_))) => {
                if resource::purges(&resource.desired, sighting).is_some() {
                    let paths = base.paths_beneath(&directory.path);
                    let walked = resource::directory::each_purged(base.root, directory, &mut |purged| {
                        let gone = paths.iter().filter(|path| Path::new(path).starts_with(purged));
                        self.files.extend(gone.map(|path| (path.clone(), None)));
                    });
                    if let Err(error) = walked {
                        // The step itself will end there, and say so.
                        tracing::debug!(path = %directory.path, error = %chain(&error), "cannot look at all that is purged");
                    }
                }
            }
            (Desired::Package(package), _) => {
                let lost = lost_with(package.name.as_str()).into_iter().flatten();
                self.files.extend(lost.map(|path| (path.to_owned(), None)));
            }
            (Desired::Service(_), _) => self.files.extend(SSHD.map(|path| (path.to_owned(), None))),
            (_, _) => {
                if self.take_file(base, &resource.desired, sighting) {
                    self.read_accounts(base);
                }
            }
        }
    }

    /// What an earlier step leaves of the file that a setting edits.
    fn earlier(&self, desired: &Desired) -> Option<Candidate> {
        let Desired::Setting(setting) = desired else { return None };
        let text = self.files.get(&setting.path.to_string())?.as_ref()?;
        // Only the content of it is looked at.
        let permissions = Permissions { uid: 0, gid: 0, mode: Mode::from_bits(0o600) };
        let becomes = Becomes::File { content: Content::new(text.as_bytes()), permissions, label: None };
        Some(Candidate { path: setting.path.clone(), becomes })
    }

    /// Returns whether the file is one of the account databases.
    fn take_file(&mut self, base: &HostFiles<'_>, desired: &Desired, sighting: &Sighting) -> bool {
        let earlier = self.earlier(desired);
        let Some(candidate) = resource::becomes(base.root, desired, sighting, earlier.as_ref()) else { return false };
        let text = match candidate.becomes {
            Becomes::File { permissions, .. } if is_refused(&candidate.path.to_string(), permissions) => None,
            Becomes::File { content, .. } => match content.bytes() {
                Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
                // What is declared cannot be read: the step will say so, and not be taken.
                Err(_) => return false,
            },
            Becomes::Symlink(target) => {
                let parent = candidate.path.parent().map(|parent| parent.to_string()).unwrap_or_default();
                let target = if target.starts_with('/') { target } else { format!("{parent}/{target}") };
                base.text(&target).unwrap_or_default()
            }
            Becomes::Directory(_) | Becomes::Absent => None,
        };
        let path = candidate.path.to_string();
        let is_database = DATABASES.contains(&path.as_str());
        self.files.insert(path, text);
        is_database
    }

    /// Accounts as the databases would read. One that cannot be read leaves them as they are: so does the step.
    fn read_accounts(&mut self, base: &HostFiles<'_>) {
        let files = self.over(base);
        let texts: Result<Vec<_>, _> = DATABASES.into_iter().map(|path| files.text(path)).collect();
        if let Ok([passwd, shadow, group]) = texts.as_deref() {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            self.accounts = Some(shadow::parse(&text(passwd), &text(shadow), &text(group)));
        }
    }
}

/// The files of a host, each read once.
struct HostFiles<'a> {
    root: &'a Root,
    /// Where file systems are mounted that may not answer: their targets and types.
    remote: BTreeMap<String, String>,
    /// Which paths were looked at and are here, links and all that is above them included.
    is_here: RefCell<BTreeSet<PathBuf>>,
    read: RefCell<BTreeMap<String, Result<Option<String>, String>>>,
}

impl<'a> HostFiles<'a> {
    /// The error says why it is not known what may not answer.
    fn new(host: &'a Host) -> Result<Self, String> {
        // An image has no mounts of its own.
        let mounts = if host.kernel.is_running() { host.kernel.mounts() } else { Ok(Vec::new()) };
        let mounts = mounts.map_err(|error| chain(&error))?;
        // What is mounted later on the same directory covers what was there.
        let mut remote: BTreeMap<String, String> =
            mounts.into_iter().map(|mount| (mount.target, mount.fstype)).collect();
        remote.retain(|target, fstype| target != "/" && is_remote(fstype));
        Ok(Self { root: &host.root, remote, is_here: RefCell::default(), read: RefCell::default() })
    }

    /// Whether a path can be looked at without asking another machine: whoever asks a file server that is down waits for ever, and
    /// the homes of all accounts are looked at. Each part of the path is found to be here before the next one is looked for in it,
    /// and so is what a link leads to.
    fn ensure_here(&self, path: &str) -> Result<(), String> {
        if self.remote.is_empty() {
            return Ok(());
        }
        let mut left: Vec<OsString> = parts(Path::new(path));
        let mut here = PathBuf::from("/");
        let mut n_links = 0;
        while let Some(part) = left.pop() {
            if part == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&part);
            let Some(text) = next.to_str() else { return Err(format!("`{path}` leads to what is no text")) };
            if let Some(fstype) = self.remote.get(text) {
                return Err(format!("`{path}` is on another machine ({fstype}), which is not waited for"));
            }
            if self.is_here.borrow().contains(&next) {
                here = next;
                continue;
            }
            let link = AbsPath::new(text).map_err(|error| error.to_string())?;
            match self.root.read_link(&link) {
                Ok(Some(target)) => {
                    n_links += 1;
                    if n_links > MAX_LINKS {
                        return Err(format!("`{path}` leads through too many links"));
                    }
                    if target.is_absolute() {
                        here = PathBuf::from("/");
                    }
                    left.extend(parts(&target));
                }
                // It is no link.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.is_here.borrow_mut().insert(next.clone());
                    here = next;
                }
                // There is nothing to enter, and whoever reads it is told why.
                Ok(None) | Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    fn read(&self, path: &str) -> Result<Option<String>, String> {
        self.ensure_here(path)?;
        let lost = |error: &dyn std::fmt::Display| format!("cannot read `{path}`: {error}");
        let path = AbsPath::new(path).map_err(|error| lost(&error))?;
        let found = match self.root.read(&path, MAX_FILE) {
            // Some distributions have links where others have files.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.root.follow(&path).and_then(|path| self.root.read(&path, MAX_FILE))
            }
            found => found,
        };
        let found = found.map_err(|error| lost(&error))?;
        Ok(found.map(|(content, _)| String::from_utf8_lossy(&content).into_owned()))
    }

    /// Files that matter here and are in a directory, or beneath it.
    fn paths_beneath(&self, directory: &AbsPath) -> Vec<String> {
        let own = directory.to_string();
        let is_within = |place: &&str| **place == own || place.starts_with(&format!("{own}/"));
        let mut places: Vec<String> =
            DIRECTORIES.iter().filter(|place| is_within(place)).map(ToString::to_string).collect();
        if own.ends_with("/.ssh") {
            places.push(own.clone());
        }
        let paths = |place: String| {
            // What cannot be listed cannot be purged either.
            let names = self.names(&place).unwrap_or_default();
            names.into_iter().map(move |name| format!("{place}/{name}"))
        };
        places.into_iter().flat_map(paths).collect()
    }
}

impl Files for HostFiles<'_> {
    fn text(&self, path: &str) -> Result<Option<String>, String> {
        if let Some(read) = self.read.borrow().get(path) {
            return read.clone();
        }
        let read = self.read(path);
        self.read.borrow_mut().insert(path.to_owned(), read.clone());
        read
    }

    fn names(&self, directory: &str) -> Result<Vec<String>, String> {
        self.ensure_here(directory)?;
        let lost = |error: &dyn std::fmt::Display| format!("cannot list `{directory}`: {error}");
        let path = AbsPath::new(directory).map_err(|error| lost(&error))?;
        let names = self.root.list_names(&path, MAX_NAMES).map_err(|error| lost(&error))?;
        Ok(names.unwrap_or_default().into_iter().filter_map(|name| name.into_string().ok()).collect())
    }
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.rev().collect()
}

/// Whether what is in a file system of this type is asked of another machine. autofs mounts such a one when it is looked at.
fn is_remote(fstype: &str) -> bool {
    const REMOTE: [&str; 19] = [
        "9p",
        "afs",
        "autofs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fuse",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "smb3",
        "smbfs",
    ];
    REMOTE.contains(&fstype) || fstype.starts_with("fuse.")
}

/// Files as they would be.
struct Overlay<'a> {
    base: &'a dyn Files,
    files: &'a BTreeMap<String, Option<String>>,
}

impl Files for Overlay<'_> {
    fn text(&self, path: &str) -> Result<Option<String>, String> {
        match self.files.get(path) {
            Some(text) => Ok(text.clone()),
            None => self.base.text(path),
        }
    }

    fn names(&self, directory: &str) -> Result<Vec<String>, String> {
        let mut names: BTreeSet<String> = self.base.names(directory)?.into_iter().collect();
        for (path, text) in self.files {
            let Some((parent, name)) = path.rsplit_once('/') else { continue };
            match text {
                _ if parent != directory => {}
                Some(_) => drop(names.insert(name.to_owned())),
                None => drop(names.remove(name)),
            }
        }
        Ok(names.into_iter().collect())
    }
}
