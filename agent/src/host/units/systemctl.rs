//! Units through `systemctl`: for a running systemd that has no D-Bus daemon (yet), and for an image, where only links are
//! made and nothing is started.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{UnitError, UnitStatus, UnitVerb, Units};
use crate::host::exec::{self, Command, Output};
use crate::resource::{UnitName, chain};

const DEADLINE: Duration = Duration::from_secs(95);

/// `systemctl`, for the running system or for an image.
#[derive(Debug, Clone)]
pub struct Systemctl {
    /// The image; `None` is the running system.
    image: Option<PathBuf>,
}

impl Systemctl {
    /// For the running system.
    pub fn live() -> Self {
        Self { image: None }
    }

    /// For an image at a directory: units can be enabled and masked there, and nothing runs.
    pub fn image(root: &Path) -> Self {
        Self { image: Some(root.to_path_buf()) }
    }

    fn call(&self, args: &[&str], unit: Option<&UnitName>) -> Result<Output, UnitError> {
        let mut command = Command::new("systemctl").args(["--no-ask-password", "--no-pager"]);
        command.deadline = DEADLINE;
        if let Some(image) = &self.image {
            let mut root = OsString::from("--root=");
            root.push(image);
            command = command.args([root]);
        }
        command = command.args(args.iter().copied());
        if let Some(unit) = unit {
            command = command.args(["--", unit.as_str()]);
        }
        let output = match self.image {
            // It only asks process 1, which does the work whatever becomes of the asker.
            None => exec::run_direct(&command),
            Some(_) => exec::run(&command),
        };
        output.map_err(|error| UnitError::Connect { reason: chain(&error) })
    }
}

impl Units for Systemctl {
    fn status(&self, unit: &UnitName) -> Result<UnitStatus, UnitError> {
        if self.image.is_some() {
            let output = self.call(&["is-enabled"], Some(unit))?;
            return parse_is_enabled(&output)
                .ok_or_else(|| UnitError::Connect { reason: exec::escape(&output.stderr) });
        }
        let properties = "--property=LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload";
        let output = self.call(&["show", properties], Some(unit))?;
        parse_show(&String::from_utf8_lossy(&output.stdout))
            .filter(|_| output.success())
            .ok_or_else(|| UnitError::Connect { reason: exec::escape(&output.stderr) })
    }

    fn carry_out(&mut self, unit: &UnitName, verb: UnitVerb) -> Result<(), UnitError> {
        if self.image.is_some() {
            match verb {
                UnitVerb::Start => {
                    return Err(UnitError::Unsupported {
                        why: format!(
                            "`{unit}` cannot be started in an image; enable it, and it starts when a host boots from it"
                        ),
                    });
                }
                // Nothing runs in an image.
                UnitVerb::Stop | UnitVerb::TryRestart | UnitVerb::ReloadOrTryRestart | UnitVerb::ResetFailed => {
                    return Ok(());
                }
                UnitVerb::Enable | UnitVerb::Disable | UnitVerb::Mask | UnitVerb::Unmask => {}
            }
        }
        let output = self.call(&[verb.as_str()], Some(unit))?;
        let stderr = exec::escape(&output.stderr);
        if output.success() || is_already_so(verb, &stderr) {
            return Ok(());
        }
        let (verb, unit_name) = (verb.as_str(), unit.to_string());
        if stderr.contains("Job for ") || output.code.is_none() {
            let result = if output.code.is_none() { output.status } else { "failed".to_owned() };
            return Err(UnitError::Job { verb, unit: unit_name, result, journal: journal(unit) });
        }
        Err(UnitError::Call { verb, unit: unit_name, reason: stderr })
    }

    fn daemon_reload(&mut self) -> Result<(), UnitError> {
        if self.image.is_some() {
            return Ok(());
        }
        let output = self.call(&["daemon-reload"], None)?;
        if output.success() { Ok(()) } else { Err(UnitError::Connect { reason: exec::escape(&output.stderr) }) }
    }
}

/// What is not loaded does not run and has not failed.
fn is_already_so(verb: UnitVerb, stderr: &str) -> bool {
    match verb {
        UnitVerb::Stop | UnitVerb::ResetFailed => stderr.contains("not loaded"),
        UnitVerb::Start
        | UnitVerb::TryRestart
        | UnitVerb::ReloadOrTryRestart
        | UnitVerb::Enable
        | UnitVerb::Disable
        | UnitVerb::Mask
        | UnitVerb::Unmask => false,
    }
}

/// Reads `Name=value` lines; `None` when one is missing.
pub(crate) fn parse_show(text: &str) -> Option<UnitStatus> {
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(|value| value.trim().to_owned())
    };
    Some(UnitStatus {
        load_state: value("LoadState").filter(|state| !state.is_empty())?,
        active_state: value("ActiveState").filter(|state| !state.is_empty())?,
        sub_state: value("SubState")?,
        unit_file_state: value("UnitFileState")?,
        need_daemon_reload: value("NeedDaemonReload")? == "yes",
    })
}

/// Reads the one word of `is-enabled`, which exits with 1 for most of them. `None` when it says neither a word nor that there
/// is no such unit.
fn parse_is_enabled(output: &Output) -> Option<UnitStatus> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let (load_state, unit_file_state) = match stdout.lines().next().map(str::trim) {
        Some("not-found") => ("not-found", ""),
        Some(state @ ("masked" | "masked-runtime")) => ("masked", state),
        Some(state) if !state.is_empty() => ("loaded", state),
        Some(_) | None if stderr.contains("No such file") => ("not-found", ""),
        Some(_) | None => return None,
    };
    Some(UnitStatus {
        load_state: load_state.to_owned(),
        active_state: "offline".to_owned(),
        sub_state: "dead".to_owned(),
        unit_file_state: unit_file_state.to_owned(),
        need_daemon_reload: false,
    })
}

/// The last lines that a unit and systemd wrote about it, for an error text; empty when they cannot be had.
pub(super) fn journal(unit: &UnitName) -> String {
    let run = |args: &[&str]| {
        let mut command = Command::new("journalctl").args(args.iter().copied());
        command.deadline = Duration::from_secs(10);
        exec::run_direct(&command)
    };
    // What the unit wrote a moment ago may still be on its way.
    run(&["--sync"]).ok();
    let unit_arg = format!("--unit={unit}");
    match run(&["--no-pager", "--quiet", "--output=cat", "--lines=20", &unit_arg]) {
        Ok(output) => exec::escape_lines(&output.stdout).join("\n"),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_shows_is_read() {
        let text =
            "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\nNeedDaemonReload=yes\n";
        let status = parse_show(text).unwrap();
        assert_eq!(status.unit_file_state, "enabled");
        assert!(status.need_daemon_reload);
        assert_eq!(parse_show("LoadState=loaded\n"), None);
        assert_eq!(parse_show(""), None);
    }

    #[test]
    fn a_unit_of_an_image_is_enabled_or_not() {
        let check = |stdout: &str, stderr: &str, expected: Option<(&str, &str)>| {
            let output = Output {
                code: Some(1),
                status: String::new(),
                stdout: stdout.as_bytes().to_vec(),
                stderr: stderr.as_bytes().to_vec(),
            };
            let found = parse_is_enabled(&output);
            let found = found.as_ref().map(|s| (s.load_state.as_str(), s.unit_file_state.as_str()));
            assert_eq!(found, expected, "{stdout} {stderr}");
        };
        check("enabled\n", "", Some(("loaded", "enabled")));
        check("disabled\n", "", Some(("loaded", "disabled")));
        check("masked\n", "", Some(("masked", "masked")));
        check("not-found\n", "", Some(("not-found", "")));
        check("", "Failed to get unit file state for x.service: No such file or directory", Some(("not-found", "")));
        check("", "Permission denied", None);
    }

    #[test]
    fn nothing_is_started_in_an_image() {
        let mut units = Systemctl::image(Path::new("/nonexistent"));
        let unit = UnitName::new("ssh.service").unwrap();
        assert!(matches!(units.carry_out(&unit, UnitVerb::Start), Err(UnitError::Unsupported { .. })));
        units.carry_out(&unit, UnitVerb::Stop).unwrap();
        units.carry_out(&unit, UnitVerb::TryRestart).unwrap();
    }
}
