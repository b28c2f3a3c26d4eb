//! `sysctl`: a setting of the kernel, now and at the next boot.
//!
//! - Now is /proc/sys. Values are compared as the kernel prints them: what separates several numbers does not matter.
//! - The next boot reads a file of this resource alone, `/etc/sysctl.d/60-rekindle-NAME.conf`. So the keys do not depend on one another,
//!   and a file whose key has left the policy is known by its name, and removed.
//! - A file that is read after that one may say something else. Then the value would not survive a boot: that is drift, and since
//!   the file is not ours to change, the step sets what it can and fails with the file's name.
//!
//! In an image only the file is looked at.

mod files;

use std::fmt::Write as _;

pub(super) use files::Assignments;

use super::{
    AbsPath, Action, ApplyError, Change, Drift, InvalidName, Observation, Snapshot, Verdict, chain, file, own,
};
use crate::host::Host;

/// What a setting should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// Which.
    pub key: Key,
    /// Its value, as it is written.
    pub value: String,
    /// Whether the next boot is told.
    pub persist: Persist,
    /// What to do where the kernel has no such setting.
    pub missing: Missing,
}

/// Whether the next boot is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Persist {
    /// By a file.
    File,
    /// No.
    Not,
}

/// What to do where the kernel has no such setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Missing {
    /// Fail.
    Refuse,
    /// Write the file, in case that it comes.
    Ignore,
}

/// The name of a setting.
///
/// As sysctl.d(5) reads names: when the first separator is a dot, dots separate and a slash stands for a dot inside a part; when it is
/// a slash, the other way round. So `net.ipv4.conf.eth0/100.rp_filter` and `net/ipv4/conf/eth0.100/rp_filter` are one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Key(Box<str>);

impl TryFrom<String> for Key {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::new(&text)
    }
}

impl Key {
    /// Reads a name in either form.
    ///
    /// # Errors
    ///
    /// When it could not be one.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let invalid = |why| InvalidName { what: "sysctl name", text: text.to_owned(), why };
        let path = to_path(text);
        let parts: Vec<&str> = path.split('/').collect();
        if parts.len() < 2 {
            return Err(invalid("it has only one part"));
        }
        if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
            return Err(invalid("it has an empty part"));
        }
        if text.len() > 200 || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./@+~%,".contains(&b)) {
            return Err(invalid("only letters, digits and `_-./@+~%,` are allowed, at most 200"));
        }
        Ok(Self(path.into()))
    }

    /// Its path below /proc/sys.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// The form with dots.
    pub fn name(&self) -> String {
        swapped(&self.0)
    }
}

fn to_path(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes().get(at)) {
        Some(Some(b'.')) => swapped(name),
        Some(_) | None => name.to_owned(),
    }
}

fn swapped(name: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    name.chars().map(swap).collect()
}

impl Desired {
    /// The file that tells the next boot, or that must not be there.
    pub fn files(&self) -> [file::Desired; 1] {
        [self.file()]
    }

    fn file(&self) -> file::Desired {
        let name = self.key.name();
        let path = format!("/etc/sysctl.d/{}", self.file_name());
        let path = AbsPath::new(&path).expect("the name was checked, and is short");
        if self.persist == Persist::Not {
            return own::absent(path);
        }
        // With dots inside a part only the other form is read alike by everybody.
        let key = if name.contains('/') { self.key.path() } else { &name };
        // Without the mark a missing key fails the unit that reads the file.
        let mark = if self.missing == Missing::Ignore { "-" } else { "" };
        let mut content = format!("# Written by rekindle for sysctl[{name}]: what is changed here is changed back.\n");
        // Writing to a string cannot fail.
        writeln!(content, "{mark}{key} = {}", self.value).ok();
        own::present(path, content)
    }

    fn file_name(&self) -> String {
        own::file_name("60-rekindle-", &self.key.name())
    }
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    live: Live,
    files: Vec<own::Seen>,
    /// What is read after our file and says something of the same key; the last of it counts. Or why that could not be told.
    later: Result<Option<Assignment>, String>,
    /// What the last file says of the key, ours left out.
    elsewhere: Option<Assignment>,
}

/// The value now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Live {
    /// This.
    Value(String),
    /// The kernel has no such key.
    Missing,
    /// No kernel runs.
    NotRunning,
}

/// A line of a file that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The value.
    pub value: String,
}

/// Looks at the kernel, at our file, and at everybody else's.
pub fn observe(host: &Host, snapshot: &mut Snapshot, desired: &Desired) -> Observation<Observed> {
    let live = if host.kernel.is_running() {
        match host.kernel.sysctl(desired.key.path()) {
            Ok(Some(value)) => Live::Value(value),
            Ok(None) => Live::Missing,
            Err(e) => return Observation::Unknown(chain(&e)),
        }
    } else {
        Live::NotRunning
    };
    let files = own::observe(&host.root, &desired.files());
    let assignments = snapshot.sysctls(&host.root);
    let (later, elsewhere) = match &assignments {
        Ok(assignments) => {
            let (later, last) = assignments.others(desired.key.path(), &desired.file_name());
            (Ok(later.cloned()), last.cloned())
        }
        Err(why) => (Err(why.clone()), None),
    };
    Observation::Present(Observed { live, files, later, elsewhere })
}

/// One spelling of a value: as the kernel prints it, with one blank between numbers.
fn spelled(value: &str) -> String {
    let word = |word: &str| match word.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
        Some(number) => number.to_string(),
        None => word.to_owned(),
    };
    value.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// Compares.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    let observed = match observation.always() {
        Ok(observed) => observed,
        Err(why) => return Verdict::Indeterminate(why),
    };
    let mut changes = Vec::new();
    let wanted = Some(desired.value.clone());
    match &observed.live {
        Live::Value(value) if spelled(value) == spelled(&desired.value) => {}
        Live::Value(value) => {
            changes.push(Change::value("value", Some(value.clone()), wanted));
            if let Some(other) = observed.elsewhere.as_ref().filter(|other| spelled(&other.value) == spelled(value)) {
                let says = format!("{} line {}", other.file, other.line);
                changes.push(Change::value("set by", Some(says), None));
            }
        }
        Live::Missing if desired.missing == Missing::Refuse => changes.push(Change::value("value", None, wanted)),
        Live::Missing | Live::NotRunning => {}
    }
    let own::Differences { changes: of_file, unknown } = own::differences(&desired.files(), &observed.files);
    if let Some(why) = unknown {
        return Verdict::Indeterminate(why);
    }
    changes.extend(of_file);
    if let Some(other) = overriding(desired, observed) {
        let says = format!("{} by {} line {}, which is read later", other.value, other.file, other.line);
        changes.push(Change::value("at boot", Some(says), Some(desired.value.clone())));
    }
    match &observed.later {
        Err(why) if desired.persist == Persist::File && changes.is_empty() => Verdict::Indeterminate(why.clone()),
        Err(_) | Ok(_) if changes.is_empty() => Verdict::InSync,
        Err(_) | Ok(_) => Verdict::Drift(Drift { action: Action::Update, changes }),
    }
}

/// What would undo ours at the next boot.
fn overriding<'o>(desired: &Desired, observed: &'o Observed) -> Option<&'o Assignment> {
    let later = observed.later.as_ref().ok()?.as_ref()?;
    (desired.persist == Persist::File && spelled(&later.value) != spelled(&desired.value)).then_some(later)
}

/// Sets it, for the next boot and now. What somebody else's file says is only told.
pub fn apply(host: &mut Host, desired: &Desired, observation: &Observation<Observed>) -> Result<(), ApplyError> {
    let observed = match observation {
        Observation::Present(observed) => observed,
        Observation::Unknown(why) => {
            return Err(ApplyError::Vanished { what: desired.key.name(), why: why.clone() });
        }
        Observation::Absent => return Ok(()),
    };
    own::apply(&host.root, &desired.files(), &observed.files)?;
    match &observed.live {
        Live::Value(value) if spelled(value) != spelled(&desired.value) => {
            host.kernel.set_sysctl(desired.key.path(), &desired.value)?;
        }
        Live::Missing if desired.missing == Missing::Refuse => {
            return Err(ApplyError::NoSuchSysctl { name: desired.key.name() });
        }
        Live::Value(_) | Live::Missing | Live::NotRunning => {}
    }
    match overriding(desired, observed) {
        None => Ok(()),
        Some(other) => Err(ApplyError::Overridden {
            name: desired.key.name(),
            value: other.value.clone(),
            file: other.file.clone(),
            line: other.line,
        }),
    }
}

/// The bytes that a step would overwrite.
pub(super) fn replaced<'o>(desired: &Desired, observed: &'o Observed) -> Vec<&'o [u8]> {
    own::replaced(&desired.files(), &observed.files)
}

/// Where drift of it shows.
pub(super) fn watched(desired: &Desired) -> Vec<AbsPath> {
    let mut paths = vec![desired.file().path];
    paths.extend(AbsPath::new(&format!("/proc/sys/{}", desired.key.path())));
    if desired.persist == Persist::File {
        paths.extend(AbsPath::new("/etc/sysctl.conf"));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_two_forms() {
        #[track_caller]
        fn check(text: &str, path: &str, name: &str) {
            let key = Key::new(text).unwrap();
            assert_eq!((key.path(), key.name().as_str()), (path, name));
        }
        check("net.ipv4.ip_forward", "net/ipv4/ip_forward", "net.ipv4.ip_forward");
        check("net/ipv4/ip_forward", "net/ipv4/ip_forward", "net.ipv4.ip_forward");
        check(
            "net.ipv4.conf.eth0/100.rp_filter",
            "net/ipv4/conf/eth0.100/rp_filter",
            "net.ipv4.conf.eth0/100.rp_filter",
        );
        check(
            "net/ipv4/conf/eth0.100/rp_filter",
            "net/ipv4/conf/eth0.100/rp_filter",
            "net.ipv4.conf.eth0/100.rp_filter",
        );
        for bad in [
            "",
            "kernel",
            "kernel.",
            "a..b",
            "net.ipv4.conf.*.rp_filter",
            "../../etc/passwd",
            "a/../b",
            "-a.b\n",
            "a.b c",
            "a.//.b",
        ] {
            assert!(Key::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_are_compared_as_the_kernel_prints_them() {
        for (found, wanted) in [("4096\t131072\t6291456", "4096 131072  6291456"), ("16", "0x10"), ("0", " 0 ")] {
            assert_eq!(spelled(found), spelled(wanted));
        }
        assert_ne!(spelled("|/bin/a b"), spelled("|/bin/a"));
    }
}
