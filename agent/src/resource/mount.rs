//! `mount`: what is mounted where, with which options, now and at the next boot.
//!
//! - Now is the kernel's own table; options are put in effect by a remount, which names every flag that the mount has, so that
//!   none is lost. Nothing looks into the mounted file system, which may be on a network.
//! - The next boot is the line in /etc/fstab, edited in place. Where a systemd unit mounts it, its options count: one that goes
//!   before fstab is only told of; one that fstab goes before (a distribution's `tmp.mount`) gives the new line what it says.
//! - A mount in use is never forced: the step fails with the processes.
//!
//! Options are *at least these*. Of an option that the kernel does not show, only fstab is looked at. In an image only fstab is.

pub mod fstab;
mod options;
mod units;

pub(crate) use options::contradiction;

use super::place::{self, Node};
use super::{AbsPath, Action, ApplyError, Change, Drift, Mode, Observation, Verdict, chain};
use crate::host::Host;
use crate::host::kernel::Mount;
use crate::host::root::{Keep, Permissions};
use fstab::Wanted;
use units::Unit;

/// What a mount point should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// The mount point.
    pub path: AbsPath,
    /// What should be there.
    pub state: State,
}

/// What should be at a mount point.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum State {
    /// Mounted now and at every boot.
    Mounted(Spec),
    /// Not mounted now; what boots say stays.
    Unmounted,
    /// Not mounted, now or at any boot.
    Absent,
}

/// How something is mounted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spec {
    /// At least these options.
    pub options: Vec<String>,
    /// What is mounted, as fstab writes it; `None` leaves it.
    pub source: Option<String>,
    /// File system type; `None` leaves it.
    pub fstype: Option<String>,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    live: Live,
    /// /etc/fstab.
    table: Observation<place::Observed>,
    /// A systemd unit that mounts it, besides what is made of fstab.
    unit: Option<Unit>,
}

/// What is mounted now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Live {
    /// This.
    Mounted(Box<Mount>),
    /// Nothing.
    NotMounted,
    /// Nothing yet: it is mounted when somebody goes there.
    Automount,
    /// No kernel runs.
    NotRunning,
}

/// The table of mounts.
pub(super) fn table() -> AbsPath {
    AbsPath::new("/etc/fstab").expect("this is a path")
}

/// Looks at the kernel's table, at /etc/fstab and at units.
pub fn observe(host: &Host, desired: &Desired) -> Observation<Observed> {
    let path = desired.path.to_string();
    let live = if host.kernel.is_running() {
        match host.kernel.mounts() {
            // The last to be mounted is the one that is seen.
            Ok(mounts) => match mounts.into_iter().rfind(|mount| mount.target == path) {
                Some(mount) if mount.fstype == "autofs" => Live::Automount,
                Some(mount) => Live::Mounted(Box::new(mount)),
                None => Live::NotMounted,
            },
            Err(e) => return Observation::Unknown(chain(&e)),
        }
    } else {
        Live::NotRunning
    };
    let unit = match units::find(&host.root, &path) {
        Ok(unit) => unit,
        Err(why) => return Observation::Unknown(why),
    };
    Observation::Present(Observed { live, table: place::observe_content(&host.root, &table(), 0), unit })
}

/// What /etc/fstab holds, or why that cannot be told.
fn content(observed: &Observed) -> Result<&[u8], ApplyError> {
    let refuse = |why: &str| ApplyError::NotEditable {
        path: table(),
        why: why.to_owned(),
        hint: "make it a regular file, or take the mount out of the policy",
    };
    match &observed.table {
        Observation::Absent => Ok(&[]),
        Observation::Unknown(why) => Err(ApplyError::Vanished { what: table().to_string(), why: why.clone() }),
        Observation::Present(place::Observed { node: Node::File(content), .. }) => Ok(content),
        Observation::Present(place::Observed { node: Node::Unread, .. }) => Err(refuse("it is longer than 16 MiB")),
        Observation::Present(other) => Err(refuse(&format!("it is a {}", other.node.describe()))),
    }
}

/// The table as it should be; `None` where it is not what decides at boot.
fn edited(desired: &Desired, observed: &Observed) -> Result<Option<fstab::Edited>, ApplyError> {
    let path = desired.path.to_string();
    let content = content(observed)?;
    let spec = match &desired.state {
        State::Unmounted => return Ok(None),
        State::Absent => return Ok(fstab::edit(content, &path, Wanted::Nothing).ok()),
        State::Mounted(spec) => spec,
    };
    let is_there = fstab::entry(content, &path).is_some();
    if let Some(unit) = &observed.unit
        && (unit.goes_first || !is_there && unit.has(&spec.options) && spec.source.is_none())
    {
        return Ok(None);
    }
    // What a new line is made of where the policy does not say: the unit that it takes the place of, or what is there.
    let live = match &observed.live {
        Live::Mounted(mount)
            if matches!(mount.fstype.as_str(), "tmpfs" | "proc" | "sysfs" | "devpts" | "hugetlbfs") =>
        {
            Some(mount)
        }
        Live::Mounted(_) | Live::NotMounted | Live::Automount | Live::NotRunning => None,
    };
    let unit = observed.unit.as_ref().filter(|_| !is_there);
    let all;
    let mut options = &spec.options;
    if let Some(unit) = unit {
        all = options::merged(&unit.options, &spec.options).split(',').map(str::to_owned).collect();
        options = &all;
    }
    let pick = |wanted: &Option<String>, of_unit: Option<&str>, of_live: Option<&str>| {
        let known = if is_there { None } else { of_unit.filter(|text| !text.is_empty()).or(of_live) };
        wanted.as_deref().or(known).map(str::to_owned)
    };
    let source = pick(&spec.source, unit.map(|unit| unit.source.as_str()), live.map(|mount| mount.source.as_str()));
    let fstype = pick(&spec.fstype, unit.map(|unit| unit.fstype.as_str()), live.map(|mount| mount.fstype.as_str()));
    let wanted = Wanted::Line { source: source.as_deref(), fstype: fstype.as_deref(), options };
    match fstab::edit(content, &path, wanted) {
        Ok(edited) => Ok(Some(edited)),
        Err(fstab::Incomplete) => {
            let why = match &observed.live {
                Live::Mounted(_) | Live::Automount => "/etc/fstab has no line for it".to_owned(),
                Live::NotMounted | Live::NotRunning => {
                    "nothing is mounted there, and /etc/fstab has no line for it".to_owned()
                }
            };
            Err(ApplyError::Mount { path: desired.path.clone(), why, hint: "write its `source` and `fstype`" })
        }
    }
}

/// Compares.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    let observed = match observation.always() {
        Ok(observed) => observed,
        Err(why) => return Verdict::Indeterminate(why),
    };
    let mut changes = Vec::new();
    match (&desired.state, &observed.live) {
        (State::Mounted(_), Live::NotMounted) => {
            changes.push(Change::value("state", Some("not mounted".to_owned()), Some("mounted".to_owned())));
        }
        (State::Mounted(spec), Live::Mounted(mount)) => {
            if let Some(fstype) = other_fstype(spec, mount) {
                changes.push(Change::value("fstype", Some(mount.fstype.clone()), Some(fstype.to_owned())));
            }
            let missing = options::missing(&mount.options, &mount.super_options, &spec.options);
            if !missing.is_empty() {
                let missing = [missing.flags, missing.others].concat().join(",");
                changes.push(Change::value("options", Some(mount.options.join(",")), Some(missing)));
            }
        }
        (State::Unmounted | State::Absent, Live::Mounted(mount)) => {
            let from = format!("mounted ({} {})", mount.source, mount.fstype);
            changes.push(Change::value("state", Some(from), Some("not mounted".to_owned())));
        }
        (State::Mounted(_), Live::Automount | Live::NotRunning)
        | (State::Unmounted | State::Absent, Live::NotMounted | Live::Automount | Live::NotRunning) => {}
    }
    match edited(desired, observed) {
        Ok(edited) => changes.extend(edited.into_iter().flat_map(|edited| edited.changes)),
        Err(ApplyError::Vanished { why, .. }) if changes.is_empty() => return Verdict::Indeterminate(why),
        Err(ApplyError::Vanished { .. }) => {}
        // The step says what is missing.
        Err(_) => changes.push(Change::value("fstab", None, Some("a line".to_owned()))),
    }
    if let Some(unit) = deciding(desired, observed) {
        let says = format!("{} by {}", unit.options, unit.path);
        let wanted = options::merged(&unit.options, wanted_options(desired));
        changes.push(Change::value("at boot", Some(says), Some(wanted)));
    }
    let action = match &desired.state {
        State::Mounted(_) => Action::Update,
        State::Unmounted | State::Absent => Action::Remove,
    };
    if changes.is_empty() { Verdict::InSync } else { Verdict::Drift(Drift { action, changes }) }
}

fn wanted_options(desired: &Desired) -> &[String] {
    match &desired.state {
        State::Mounted(spec) => &spec.options,
        State::Unmounted | State::Absent => &[],
    }
}

/// The unit that decides at boot, whatever fstab says, and does not say what is wanted.
fn deciding<'o>(desired: &Desired, observed: &'o Observed) -> Option<&'o Unit> {
    observed.unit.as_ref().filter(|unit| unit.goes_first && !unit.has(wanted_options(desired)))
}

fn other_fstype<'s>(spec: &'s Spec, mount: &Mount) -> Option<&'s str> {
    // These are not types, but ways to find one, or to mount a part of another mount.
    spec.fstype.as_deref().filter(|wanted| *wanted != mount.fstype && !matches!(*wanted, "auto" | "none" | "bind"))
}

/// Writes the line, then mounts, remounts or unmounts.
pub fn apply(host: &mut Host, desired: &Desired, observation: &Observation<Observed>) -> Result<(), ApplyError> {
    let observed = match observation {
        Observation::Present(observed) => observed,
        Observation::Unknown(why) => {
            return Err(ApplyError::Vanished { what: desired.path.to_string(), why: why.clone() });
        }
        Observation::Absent => return Ok(()),
    };
    let path = &desired.path;
    if let (State::Mounted(spec), Live::Mounted(mount)) = (&desired.state, &observed.live)
        && let Some(wanted) = other_fstype(spec, mount)
    {
        let why = format!("a file system of type {} is mounted there, and not {wanted}", mount.fstype);
        let hint = "unmount it first: nothing is mounted over it or taken away for you";
        return Err(ApplyError::Mount { path: path.clone(), why, hint });
    }
    if let Some(edited) = edited(desired, observed)?.filter(|edited| !edited.changes.is_empty()) {
        write(host, observed, &edited.content)?;
        // systemd makes its units of the table when it is told to; until then it goes on with the old ones.
        if observed.live != Live::NotRunning
            && let Err(e) = host.units.daemon_reload()
        {
            tracing::debug!(error = %chain(&e), "systemd does not know of the changed fstab yet");
        }
    }
    match (&desired.state, &observed.live) {
        (State::Mounted(_), Live::NotMounted) => {
            make_mount_point(host, path)?;
            host.kernel.mount(path)?;
        }
        (State::Mounted(spec), Live::Mounted(mount)) => {
            let missing = options::missing(&mount.options, &mount.super_options, &spec.options);
            if !missing.others.is_empty() {
                host.kernel.remount(path, &missing.others)?;
            }
            if !missing.flags.is_empty() {
                host.kernel.set_mount_flags(path, &options::all_flags(&mount.options, &missing.flags))?;
            }
        }
        (State::Unmounted | State::Absent, Live::Mounted(_)) => {
            if let Err(e) = host.kernel.unmount(path) {
                let by = host.kernel.mount_users(path);
                if by.is_empty() {
                    return Err(e.into());
                }
                return Err(ApplyError::InUse { operation: "unmount", what: path.to_string(), by });
            }
        }
        (State::Mounted(_), Live::Automount | Live::NotRunning)
        | (State::Unmounted | State::Absent, Live::NotMounted | Live::Automount | Live::NotRunning) => {}
    }
    match deciding(desired, observed) {
        None => Ok(()),
        Some(unit) => Err(ApplyError::Mount {
            path: path.clone(),
            why: format!("`{}` mounts it at boot with the options {}", unit.path, unit.options),
            hint: "declare a drop-in of that unit with `Options=`: it goes before fstab",
        }),
    }
}

fn write(host: &Host, observed: &Observed, content: &[u8]) -> Result<(), ApplyError> {
    let path = table();
    let root = &host.root;
    let Observation::Present(now) = &observed.table else {
        let (uid, gid) = crate::host::current_ids();
        place::make_parents(root, &path)?;
        let permissions = Permissions { uid, gid, mode: Mode::from_bits(0o644) };
        return place::put(root, &path, content, permissions, "create", None);
    };
    let metadata = &now.metadata;
    // Another mount's step may have written it since the look.
    match (root.read(&path, place::MAX_CONTENT).map_err(place::failure("read", &path, None))?, &now.node) {
        (Some((read, _)), Node::File(seen)) if read == *seen => {}
        _ => {
            let why = "it has changed since it was looked at".to_owned();
            return Err(ApplyError::Vanished { what: path.to_string(), why });
        }
    }
    place::unlock(root, &path, now)?;
    let permissions = Permissions { uid: metadata.uid, gid: metadata.gid, mode: metadata.mode };
    place::put_keeping(root, &path, content, permissions, Keep::AccessList, "edit", Some(metadata))
}

/// Only asked where nothing is mounted, so this looks into no foreign file system but the one above.
fn make_mount_point(host: &Host, path: &AbsPath) -> Result<(), ApplyError> {
    match host.root.metadata(path).map_err(place::failure("look at", path, None))? {
        Some(_) => Ok(()),
        None => {
            place::make_parents(&host.root, path)?;
            let (uid, gid) = crate::host::current_ids();
            let permissions = Permissions { uid, gid, mode: Mode::from_bits(0o755) };
            host.root.create_directory(path, permissions).map_err(place::failure("create", path, None))
        }
    }
}

/// The bytes of the table that a step would overwrite.
pub(super) fn replaced<'o>(desired: &Desired, observed: &'o Observed) -> Option<&'o [u8]> {
    let will_change = edited(desired, observed).ok()?.is_some_and(|edited| !edited.changes.is_empty());
    content(observed).ok().filter(|content| will_change && !content.is_empty())
}
