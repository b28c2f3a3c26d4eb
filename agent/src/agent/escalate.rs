//! What the worker notices beside failed steps and passes on to health: damage in file systems, and drift of what the agent
//! itself is made of.

use std::path::Path;

use jiff::Timestamp;
use tracing::warn;

use super::worker::{Worker, recall};
use crate::converge::health::Input;
use crate::host;
use crate::host::filesystems::{self, Ext4};
use crate::resource::{AbsPath, Kind, ResourceId, chain};

/// Until when errors of file systems have been dealt with, by the clock that they are stamped with.
const KEY_FS_ERRORS: &str = "fs_errors_seen";

/// The boot in which an agent runs that did not say that it ends.
pub(super) const KEY_RUNNING: &str = "running";

/// Directories that hold nothing but what the agent is made of.
const OWN_DIRECTORIES: [&str; 3] = ["/etc/rekindle", "/usr/lib/rekindle", "/run/rekindle"];

/// The two services.
const OWN_UNITS: [&str; 2] = ["rekindle-agent", "rekindle-courier"];

impl Worker {
    /// Notes that an agent runs, and passes on when the last one ended unasked in the same boot: what fails now as it did then is
    /// not mended by starting anew.
    pub(super) fn note_start(&mut self) {
        let boot = host::boot_id();
        let last: Option<String> = recall::<Option<String>>(&self.record, KEY_RUNNING).flatten();
        if last.is_some() && last == boot {
            warn!("the agent ended unasked and was started again");
            self.feed_health(Input::Restarted);
        }
        if last != boot {
            self.remember(KEY_RUNNING, &boot);
        }
    }

    /// Notes that the agent was told to end.
    pub(super) fn note_end(&mut self) {
        self.remember(KEY_RUNNING, &None::<String>);
    }

    /// Looks whether a file system has reported damage since the last look. Errors from before the first look are only told of:
    /// whoever installed the agent on such a host did not ask for it to be rebuilt.
    pub(super) fn look_at_file_systems(&mut self) {
        let found = match filesystems::ext4(&self.host.root) {
            Ok(found) => found,
            Err(error) => return self.warn(format!("cannot ask ext4 about errors: {}", chain(&error))),
        };
        let sound: Vec<String> =
            found.iter().filter(|ext4| ext4.n_errors == 0).map(|ext4| ext4.device.clone()).collect();
        for device in &sound {
            if self.health.damage.as_ref().is_some_and(|damage| damage.device == *device) {
                self.feed_health(Input::FileSystemSound { device });
            }
        }
        let seen: Option<Timestamp> = recall(&self.record, KEY_FS_ERRORS);
        let newest = found.iter().filter(|ext4| ext4.n_errors > 0).filter_map(|ext4| ext4.last_error).max();
        // Before the errors are dealt with: a kill in between repeats nothing that it should not.
        if seen.is_none() || newest > seen {
            self.remember(KEY_FS_ERRORS, &newest.unwrap_or(Timestamp::UNIX_EPOCH));
        }
        for ext4 in found.iter().filter(|ext4| ext4.n_errors > 0) {
            let what = sentence(ext4);
            match seen {
                None => self.warn(format!("{what}; it was so before rekindle came")),
                Some(seen) if ext4.last_error.is_none_or(|at| at <= seen) => {}
                Some(_) if self.concerns(ext4) => {
                    let may_ask = self.may_ask();
                    self.warn(what.clone());
                    self.feed_health(Input::FileSystemError { device: &ext4.device, what: &what, may_ask });
                }
                Some(_) => self.warn(format!("{what}; nothing declared is on it")),
            }
        }
    }

    /// Whether the root directory or something declared is on this file system. What cannot be told concerns.
    fn concerns(&self, ext4: &Ext4) -> bool {
        let Some(number) = ext4.number else { return true };
        let is_on_it = |path: &AbsPath| {
            self.host.root.metadata(path).is_ok_and(|found| found.is_some_and(|found| found.identity.0 == number))
        };
        let Some(in_force) = &self.in_force else { return true };
        AbsPath::new("/").is_ok_and(|root| is_on_it(&root))
            || in_force.state.resources().iter().any(|resource| resource.watched().paths.iter().any(is_on_it))
    }

    /// Passes on which of the resources that drifted and were repaired the agent itself is made of.
    pub(super) fn note_own_drift<'a>(&mut self, repaired: impl Iterator<Item = &'a ResourceId>) {
        let exe = std::env::current_exe().ok().filter(|_| self.host.root.is_live());
        let own: Vec<ResourceId> = repaired.filter(|resource| is_own(resource, exe.as_deref())).cloned().collect();
        if !own.is_empty() {
            let may_ask = self.may_ask();
            self.feed_health(Input::OwnDrift { resources: &own, may_ask });
        }
    }
}

fn sentence(ext4: &Ext4) -> String {
    let since = ext4.first_error.map(|at| format!(", the first at {at:.0}")).unwrap_or_default();
    let n = ext4.n_errors;
    format!("fs-error: the ext4 file system on {} has found {n} errors in itself{since}", ext4.device)
}

/// Whether a resource is the agent's program, its configuration, or one of its units. `exe` is the program that runs.
fn is_own(resource: &ResourceId, exe: Option<&Path>) -> bool {
    let name: &str = &resource.name;
    match resource.kind {
        Kind::File | Kind::Directory | Kind::Symlink | Kind::Setting => {
            let path = Path::new(name);
            let is_of_unit = |part: &str| OWN_UNITS.iter().any(|unit| part.starts_with(&format!("{unit}.service")));
            exe == Some(path)
                || OWN_DIRECTORIES.iter().any(|directory| path.starts_with(directory))
                || path.components().any(|part| part.as_os_str().to_str().is_some_and(is_of_unit))
        }
        Kind::Service => OWN_UNITS.contains(&name.strip_suffix(".service").unwrap_or(name)),
        Kind::Package => name == "rekindle",
        Kind::User | Kind::Group => name == "rekindle",
        Kind::Repository
        | Kind::Sysctl
        | Kind::KernelModule
        | Kind::Mount
        | Kind::Command
        | Kind::Check
        | Kind::Sweep => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: Kind, name: &str, expected: bool) {
        let exe = Path::new("/usr/bin/rekindle");
        assert_eq!(is_own(&ResourceId::new(kind, name), Some(exe)), expected, "{name}");
    }

    #[test]
    fn the_agent_knows_what_it_is_made_of() {
        check(Kind::File, "/usr/bin/rekindle", true);
        check(Kind::File, "/etc/rekindle/agent.toml", true);
        check(Kind::File, "/etc/rekindle/agent.toml.d/10-site.toml", true);
        check(Kind::File, "/usr/lib/systemd/system/rekindle-agent.service", true);
        check(Kind::File, "/etc/systemd/system/rekindle-agent.service.d/override.conf", true);
        check(Kind::Service, "rekindle-courier", true);
        check(Kind::Package, "rekindle", true);
        check(Kind::File, "/etc/motd", false);
        check(Kind::File, "/etc/rekindle-other/x", false);
        check(Kind::File, "/usr/bin/rekindle-hub", false);
        check(Kind::Service, "rekindle-hub", false);
    }
}
