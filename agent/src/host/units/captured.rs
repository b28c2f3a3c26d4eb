//! Units of a captured host, as far as its files tell: no program is asked, and nothing is changed.
//!
//! A capture may hold `/etc` and none of the units that packages bring. A link that enables a unit or masks it is certain even
//! so; that there is none says little about a unit whose file was left out, and is never taken for "not found" or "disabled".

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use super::{UnitError, UnitStatus, UnitVerb, Units};
use crate::host::root::{FileType, Root};
use crate::resource::{AbsPath, UnitName};

/// Where an administrator's units are, and the links that enable and mask units.
pub(super) const LOCAL: &str = "/etc/systemd/system";
/// Directories of links that enable a unit end with one of these.
const ENABLING: [&str; 3] = [".wants", ".requires", ".upholds"];
/// No directory of units has more names.
const MAX_NAMES: usize = 50_000;
/// No unit file is longer.
const MAX_UNIT: u64 = 1024 * 1024;

/// A captured host whose capture lacks the units of packages.
#[derive(Debug)]
pub struct Captured {
    root: Root,
}

impl Captured {
    /// Takes the directory in which the capture was unpacked.
    pub fn new(root: &Path) -> io::Result<Self> {
        Ok(Self { root: Root::open(root)? })
    }

    fn unit_file_state(&self, unit: &UnitName) -> Result<&'static str, String> {
        let lost = |path: &str, error: &dyn std::fmt::Display| format!("cannot read `{path}` of the capture: {error}");
        let path = |path: &str| AbsPath::new(path).map_err(|error| lost(path, &error));
        let names = |at: &str| self.root.list_names(&path(at)?, MAX_NAMES).map_err(|error| lost(at, &error));
        let Some(local) = names(LOCAL)? else { return Err(format!("the capture has no `{LOCAL}`")) };
        let name = OsStr::new(unit.as_str());
        let own = format!("{LOCAL}/{unit}");
        let found = self.root.metadata(&path(&own)?).map_err(|error| lost(&own, &error))?;
        let is_link = found.as_ref().is_some_and(|found| found.file_type == FileType::Symlink);
        if is_link {
            let target = self.root.read_link(&path(&own)?).map_err(|error| lost(&own, &error))?;
            if target.is_some_and(|target| target == Path::new("/dev/null")) {
                return Ok("masked");
            }
        }
        for directory in local.iter().filter_map(|name| name.to_str()) {
            if !ENABLING.iter().any(|ending| directory.ends_with(ending)) {
                continue;
            }
            if names(&format!("{LOCAL}/{directory}"))?.is_some_and(|links| links.iter().any(|link| link == name)) {
                return Ok("enabled");
            }
        }
        match found {
            // Another name of a unit, which is enabled under its own.
            Some(_) if is_link => Ok("alias"),
            Some(_) => {
                let read = self.root.read(&path(&own)?, MAX_UNIT).map_err(|error| lost(&own, &error))?;
                let text = read.map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
                Ok(if text.lines().any(|line| line.trim() == "[Install]") { "disabled" } else { "static" })
            }
            None => Err(format!(
                "nothing in `{LOCAL}` enables it, and its own file is not in the capture: it may be disabled, need no \
                 enabling, or not be there at all; a capture with `usr/lib/systemd/system` tells"
            )),
        }
    }
}

impl Units for Captured {
    fn status(&self, unit: &UnitName) -> Result<UnitStatus, UnitError> {
        let state = self.unit_file_state(unit).map_err(|why| UnitError::Untold { unit: unit.to_string(), why })?;
        Ok(UnitStatus {
            load_state: if state == "masked" { "masked" } else { "loaded" }.to_owned(),
            active_state: "offline".to_owned(),
            sub_state: "dead".to_owned(),
            unit_file_state: state.to_owned(),
            need_daemon_reload: false,
        })
    }

    fn carry_out(&mut self, unit: &UnitName, _verb: UnitVerb) -> Result<(), UnitError> {
        Err(UnitError::Unsupported { why: format!("`{unit}` is a captured host's, which is only looked at") })
    }

    fn daemon_reload(&mut self) -> Result<(), UnitError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_certain_and_their_absence_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let units = || Captured::new(dir.path()).unwrap();
        let unit = |name: &str| UnitName::with_default_suffix(name).unwrap();
        let check = |name: &str, expected: &str| {
            let found = units().status(&unit(name));
            let text = match &found {
                Ok(status) => status.unit_file_state.clone(),
                Err(UnitError::Untold { why, .. }) => why.clone(),
                Err(error) => error.to_string(),
            };
            assert!(text.starts_with(expected), "{name}: {text}");
        };
        check("ssh", "the capture has no `/etc/systemd/system`");
        let local = dir.path().join("etc/systemd/system");
        std::fs::create_dir_all(local.join("multi-user.target.wants")).unwrap();
        let link = |name: &str, target: &str| std::os::unix::fs::symlink(target, local.join(name)).unwrap();
        link("multi-user.target.wants/ssh.service", "/usr/lib/systemd/system/ssh.service");
        link("cups.service", "/dev/null");
        link("sshd.service", "/usr/lib/systemd/system/ssh.service");
        let write = |name: &str, text: &str| {
            std::io::Write::write_all(&mut std::fs::File::create_new(local.join(name)).unwrap(), text.as_bytes())
                .unwrap();
        };
        write("app.service", "[Service]\nExecStart=/bin/app\n[Install]\nWantedBy=multi-user.target\n");
        write("helper.service", "[Service]\nExecStart=/bin/helper\n");
        check("ssh", "enabled");
        check("cups", "masked");
        check("sshd", "alias");
        check("app", "disabled");
        check("helper", "static");
        check("nginx", "nothing in `/etc/systemd/system` enables it, and its own file is not in the capture");
        assert!(units().carry_out(&unit("ssh"), UnitVerb::Disable).is_err());
    }
}
