//! `kernel_module`: a module that is loaded, or that cannot be.
//!
//! - *Loaded* is now, by modprobe, and at every boot, by a file of this resource alone in /etc/modules-load.d.
//! - *Blocked* is a file of its own in /etc/modprobe.d that keeps modprobe from loading it, by whatever name, and that it is not loaded now.
//!   A module in use is never forced out: the step fails with who uses it.
//!
//! What is built into the kernel is always loaded and cannot be blocked. A dash in a name is an underscore, as the kernel has it.
//! In an image only the files are looked at. A module that the initial RAM disk loads is blocked there only once that is
//! built again.

use super::{AbsPath, Action, ApplyError, Change, Drift, InvalidName, Observation, Verdict, chain, file, own};
use crate::host::Host;
use crate::host::kernel::Module;

/// What a module should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// Which.
    pub name: Name,
    /// Loaded or blocked.
    pub state: State,
}

/// What a module should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum State {
    /// Loaded now and at every boot.
    Loaded,
    /// Not loaded now, and not to be.
    Blocked,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Blocked => "blocked",
        }
    }
}

/// The name of a module, with underscores.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Name(Box<str>);

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::new(&text)
    }
}

impl Name {
    /// Reads a name with dashes or underscores.
    ///
    /// # Errors
    ///
    /// When it could not be one.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let invalid = |why| InvalidName { what: "module name", text: text.to_owned(), why };
        if text.is_empty() || text.len() > 55 {
            return Err(invalid("it is empty or longer than 55 bytes"));
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) || text.starts_with('-') {
            return Err(invalid("only letters, digits, `_` and `-` are allowed"));
        }
        Ok(Self(text.replace('-', "_").into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Desired {
    /// Its files: the one that blocks it, and the one that loads it at boot. Each is there or must not be.
    pub fn files(&self) -> [file::Desired; 2] {
        let name = self.name.as_str();
        let path = |directory: &str| {
            AbsPath::new(&format!("{directory}/{}", own::file_name("60-rekindle-", name)))
                .expect("the name was checked, and is short")
        };
        let note = format!("# Written by rekindle for kernel_module[{name}]: what is changed here is changed back.\n");
        let (blocks, loads) = (path("/etc/modprobe.d"), path("/etc/modules-load.d"));
        match self.state {
            // The first keeps aliases from leading to it, the second whoever asks for it by name.
            State::Blocked => [
                own::present(blocks, format!("{note}blacklist {name}\ninstall {name} /bin/false\n")),
                own::absent(loads),
            ],
            State::Loaded => [own::absent(blocks), own::present(loads, format!("{note}{name}\n"))],
        }
    }
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// `None` where no kernel runs.
    live: Option<Module>,
    files: Vec<own::Seen>,
}

/// Looks at the kernel and at our files.
pub fn observe(host: &Host, desired: &Desired) -> Observation<Observed> {
    let live = if host.kernel.is_running() {
        match host.kernel.module(desired.name.as_str()) {
            Ok(module) => Some(module),
            Err(e) => return Observation::Unknown(chain(&e)),
        }
    } else {
        None
    };
    Observation::Present(Observed { live, files: own::observe(&host.root, &desired.files()) })
}

/// Compares.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    let observed = match observation.always() {
        Ok(observed) => observed,
        Err(why) => return Verdict::Indeterminate(why),
    };
    let mut changes = Vec::new();
    let to = Some(desired.state.word().to_owned());
    match (desired.state, &observed.live) {
        (State::Loaded, Some(module @ (Module::Unknown | Module::NotLoaded | Module::AliasOf(_)))) => {
            changes.push(Change::value("state", Some(in_words(module)), to));
        }
        (State::Blocked, Some(module @ (Module::Builtin | Module::Loaded { .. } | Module::AliasOf(_)))) => {
            changes.push(Change::value("state", Some(in_words(module)), to));
        }
        (State::Loaded, Some(Module::Builtin | Module::Loaded { .. }) | None)
        | (State::Blocked, Some(Module::Unknown | Module::NotLoaded) | None) => {}
    }
    let own::Differences { changes: of_files, unknown } = own::differences(&desired.files(), &observed.files);
    if let Some(why) = unknown {
        return Verdict::Indeterminate(why);
    }
    changes.extend(of_files);
    if changes.is_empty() { Verdict::InSync } else { Verdict::Drift(Drift { action: Action::Update, changes }) }
}

fn in_words(module: &Module) -> String {
    match module {
        Module::Unknown => "unknown to this kernel".to_owned(),
        Module::NotLoaded => "not loaded".to_owned(),
        Module::Builtin => "built into the kernel".to_owned(),
        Module::AliasOf(names) => format!("an alias of {}", names.join(", ")),
        Module::Loaded { n_references: 0, .. } => "loaded".to_owned(),
        Module::Loaded { n_references, users } if users.is_empty() => format!("loaded, in use {n_references} times"),
        Module::Loaded { users, .. } => format!("loaded, in use by {}", users.join(", ")),
    }
}

/// Loads it, or blocks and unloads it. The files come first: what happens in between finds them.
pub fn apply(host: &mut Host, desired: &Desired, observation: &Observation<Observed>) -> Result<(), ApplyError> {
    let name = desired.name.as_str();
    let observed = match observation {
        Observation::Present(observed) => observed,
        Observation::Unknown(why) => return Err(ApplyError::Vanished { what: name.to_owned(), why: why.clone() }),
        Observation::Absent => return Ok(()),
    };
    // A file for a name that means nothing to modprobe would only look like a block.
    if let Some(Module::AliasOf(names)) = &observed.live {
        let hint = "name the module itself";
        return Err(ApplyError::Module {
            name: name.to_owned(),
            why: format!("it is an alias of {}", names.join(", ")),
            hint,
        });
    }
    own::apply(&host.root, &desired.files(), &observed.files)?;
    match (desired.state, &observed.live) {
        (State::Loaded, Some(Module::NotLoaded | Module::Unknown)) => host.kernel.load_module(name)?,
        (State::Blocked, Some(Module::Loaded { n_references: 0, .. })) => host.kernel.unload_module(name)?,
        (State::Blocked, Some(module @ Module::Loaded { users, .. })) => {
            let by = if users.is_empty() { vec![in_words(module)] } else { users.clone() };
            return Err(ApplyError::InUse { operation: "unload", what: name.to_owned(), by });
        }
        (State::Blocked, Some(Module::Builtin)) => {
            let hint = "for this host it can only be left out of the kernel, or its initialisation by `initcall_blacklist=` on the kernel's command line";
            return Err(ApplyError::Module {
                name: name.to_owned(),
                why: "it is built into the kernel".to_owned(),
                hint,
            });
        }
        (State::Loaded, Some(Module::Loaded { .. } | Module::Builtin | Module::AliasOf(_)) | None)
        | (State::Blocked, Some(Module::NotLoaded | Module::Unknown | Module::AliasOf(_)) | None) => {}
    }
    Ok(())
}

/// The bytes that a step would overwrite.
pub(super) fn replaced<'o>(desired: &Desired, observed: &'o Observed) -> Vec<&'o [u8]> {
    own::replaced(&desired.files(), &observed.files)
}

/// Where drift of it shows.
pub(super) fn watched(desired: &Desired) -> Vec<AbsPath> {
    let mut paths: Vec<AbsPath> = desired.files().into_iter().map(|file| file.path).collect();
    paths.extend(AbsPath::new(&format!("/sys/module/{}", desired.name.as_str())));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dash_is_an_underscore() {
        assert_eq!(Name::new("usb-storage").unwrap().as_str(), "usb_storage");
        for bad in ["", "-r", "a b", "a/b", "a.ko", "ä"] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }
}
