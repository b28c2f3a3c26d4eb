//! What the fuzz targets share: a host to compile for, and what must hold of whatever a compilation says.
//!
//! A target is a function from bytes to nothing that panics when something that must hold does not.

#![expect(clippy::unwrap_used, reason = "a target's helpers fail as the target does")]

use std::path::PathBuf;
use std::sync::OnceLock;

use jiff::Timestamp;
use rekindle::policy::candidate::from_memory;
use rekindle::policy::compile::{Compiled, Inputs, compile};
use rekindle::policy::diagnostic::{Diagnostic, Diagnostics, Severity};
use rekindle::policy::facts::{Facts, HostView};
use rekindle::policy::secret::Secrets;
use rekindle::policy::trust::{Trust, Verified, verify};
use rekindle::policy::{DesiredState, Revision};

/// A policy of these files, as if an operator had named its directory.
pub fn policy(files: &[(&str, &[u8])]) -> Verified {
    let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect();
    verify(from_memory(Revision::new("fuzz"), files), &Trust::Operator, Timestamp::UNIX_EPOCH).unwrap()
}

/// A small Debian host.
pub fn host() -> HostView {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    HostView {
        users: set(&["root", "www-data"]),
        groups: set(&["root", "adm", "sudo"]),
        essential_packages: set(&["e2fsprogs"]),
        uid_min: 1000,
        gid_min: 1000,
    }
}

/// Compiles for that host, or for one that is not there, and checks what every compilation keeps to.
pub fn compiled(policy: &Verified, host: Option<&HostView>) -> Result<Compiled, Diagnostics> {
    let facts =
        Facts { os: "debian".into(), os_version: "12".into(), hostname: "web1".into(), cpus: 2, ..Facts::default() };
    let roles = ["web".to_owned()];
    let result = compile(policy, &Inputs { facts: &facts, roles: &roles, host, secrets: &Secrets::Unread });
    match &result {
        Ok(compiled) => {
            check_order(&compiled.state);
            for warning in &compiled.warnings {
                assert_eq!(warning.severity(), Severity::Warning, "{warning}");
                check_diagnostic(policy, warning);
            }
        }
        Err(diagnostics) => {
            let is_error = |diagnostic: &Diagnostic| diagnostic.severity() == Severity::Error;
            assert!(diagnostics.iter().any(is_error), "a refusal without an error");
            for diagnostic in diagnostics {
                check_diagnostic(policy, diagnostic);
            }
        }
    }
    result
}

/// Every resource stands there once, after everything that it requires.
fn check_order(state: &DesiredState) {
    let mut before = std::collections::HashSet::new();
    for resource in state.resources() {
        for required in &resource.requires {
            assert!(before.contains(required), "{required} is not before {}", resource.id);
        }
        assert!(before.insert(&resource.id), "{} is there twice", resource.id);
    }
}

/// It can be drawn, and points into the policy.
fn check_diagnostic(policy: &Verified, diagnostic: &Diagnostic) {
    // Once in colour, once not: drawing is what takes the time.
    let text = diagnostic.render(diagnostic.title().len().is_multiple_of(2));
    assert!(text.contains(diagnostic.code()) && diagnostic.to_string().contains(diagnostic.code()));
    let json = diagnostic.to_json();
    let places = json["related"].as_array().unwrap().iter().chain(Some(&json["at"]).filter(|at| !at.is_null()));
    for place in places {
        let bytes = &policy.files()[place["file"].as_str().unwrap()];
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let number = |key: &str| usize::try_from(place[key].as_u64().unwrap()).unwrap();
        let (start, end) = ((number("line"), number("column")), (number("end_line"), number("end_column")));
        assert!(start >= (1, 1) && start <= end, "{diagnostic}: {start:?} to {end:?}");
        for (line, column) in [start, end] {
            let found = text.split('\n').nth(line - 1);
            let length = found.map(str::len);
            assert!(
                length.is_some_and(|length| column <= length + 1),
                "{diagnostic}: {line}:{column} is not in the file"
            );
        }
    }
}

/// A directory of this run. `tests/run fuzz` has it in memory.
pub fn scratch() -> &'static PathBuf {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("rekindle-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    })
}

/// Puts bytes where a parser that opens its file itself finds them.
pub fn put(path: &std::path::Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

/// An input of two parts: lines that say what to do, and after a line `---` what to do it to.
pub fn parted(data: &[u8]) -> Option<(&str, &[u8])> {
    let at = data.windows(5).position(|window| window == b"\n---\n")?;
    Some((std::str::from_utf8(&data[..at]).ok()?, &data[at + 5..]))
}
