//! The dpkg database, parsed from its own files.
//!
//! `/var/lib/dpkg/status` holds the last complete state; numbered files in `/var/lib/dpkg/updates` hold what changed since,
//! while dpkg runs or when it was interrupted. Both are read, as dpkg itself does.

use std::collections::{BTreeMap, HashMap};

use super::{PackageDb, PackageEntry, PackageStatus};

/// The agent's own package: without it nobody repairs anything.
const OWN_PACKAGE: &str = "rekindle";

/// Why a database cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DpkgError {
    /// A record lacks what every record has.
    #[error("the record at line {line} has no valid `{field}`")]
    Record {
        /// Where the record begins, counted from 1.
        line: usize,
        /// What is wrong with it.
        field: &'static str,
    },
    /// A database without dpkg in it is truncated or none at all.
    #[error("it has no record of dpkg itself, so it is not complete")]
    NoDpkg,
}

/// Records by name and architecture.
#[derive(Debug, Default)]
pub(crate) struct Records {
    by_name: BTreeMap<(String, String), PackageEntry>,
}

impl Records {
    /// Adds the records of one file; a later record of the same package replaces an earlier one.
    pub(crate) fn add(&mut self, text: &str) -> Result<(), DpkgError> {
        let mut record = Record::default();
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() {
                std::mem::take(&mut record).finish(self)?;
                continue;
            }
            if record.begins_at.is_none() {
                record.begins_at = Some(index + 1);
            }
            // Continuation lines begin with a blank and belong to fields that are not needed here.
            let Some((field, value)) = line.split_once(':').filter(|_| !line.starts_with([' ', '\t'])) else {
                continue;
            };
            let value = value.trim();
            match field {
                "Package" => record.name = Some(value),
                "Status" => record.status = Some(value),
                "Architecture" => record.architecture = Some(value),
                "Version" => record.version = Some(value),
                "Essential" | "Protected" | "Important" => record.essential |= value == "yes",
                _ => {}
            }
        }
        record.finish(self)
    }

    /// The architecture that a bare package name means: dpkg's own.
    pub(super) fn native_architecture(&self) -> Option<&str> {
        self.by_name.keys().find(|(name, _)| name == "dpkg").map(|(_, architecture)| architecture.as_str())
    }

    /// Turns the records into a database: `name:arch` for every record, and the bare name for the host's own architecture.
    pub(crate) fn finish(self) -> Result<PackageDb, DpkgError> {
        let native = self.native_architecture().ok_or(DpkgError::NoDpkg)?.to_owned();
        let mut packages = HashMap::with_capacity(self.by_name.len() * 2);
        for ((name, architecture), entry) in self.by_name {
            packages.insert(format!("{name}:{architecture}"), entry.clone());
            if architecture == native || architecture == "all" {
                // A package that changed between "all" and the host's own leaves two records for a while.
                match packages.get(&name) {
                    Some(PackageEntry { status: PackageStatus::Installed | PackageStatus::Broken, .. }) => {}
                    Some(PackageEntry { status: PackageStatus::ConfigFiles, .. }) | None => {
                        packages.insert(name, entry);
                    }
                }
            }
        }
        Ok(PackageDb { packages })
    }
}

#[derive(Default)]
struct Record<'a> {
    begins_at: Option<usize>,
    name: Option<&'a str>,
    status: Option<&'a str>,
    architecture: Option<&'a str>,
    version: Option<&'a str>,
    essential: bool,
}

impl Record<'_> {
    fn finish(self, records: &mut Records) -> Result<(), DpkgError> {
        let Some(line) = self.begins_at else { return Ok(()) };
        let name = self.name.filter(|name| !name.is_empty()).ok_or(DpkgError::Record { line, field: "Package" })?;
        let status =
            parse_status(self.status.unwrap_or_default()).ok_or(DpkgError::Record { line, field: "Status" })?;
        let key = (name.to_owned(), self.architecture.unwrap_or("all").to_owned());
        match status {
            None => {
                records.by_name.remove(&key);
            }
            Some(status) => {
                let version = self.version.unwrap_or_default().to_owned();
                let essential = self.essential || name == OWN_PACKAGE;
                records.by_name.insert(key, PackageEntry { version, status, essential });
            }
        }
        Ok(())
    }
}

/// Reads the three words want, flag and state. The outer `None` is an unknown text, the inner one a package that is not there.
fn parse_status(text: &str) -> Option<Option<PackageStatus>> {
    let mut words = text.split(' ');
    let (_want, flag, state) = (words.next()?, words.next()?, words.next()?);
    let status = match state {
        "not-installed" => return Some(None),
        "config-files" => PackageStatus::ConfigFiles,
        "installed" => PackageStatus::Installed,
        "half-installed" | "unpacked" | "half-configured" | "triggers-awaited" | "triggers-pending" => {
            PackageStatus::Broken
        }
        _ => return None,
    };
    match flag {
        "ok" => Some(Some(status)),
        "reinstreq" => Some(Some(PackageStatus::Broken)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DPKG: &str =
        "Package: dpkg\nEssential: yes\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.21.22\n\n";

    fn parse(files: &[&str]) -> Result<PackageDb, DpkgError> {
        let mut records = Records::default();
        for file in files {
            records.add(file)?;
        }
        records.finish()
    }

    #[test]
    fn a_state_is_what_dpkg_means_by_it() {
        let check = |status: &str, expected: Option<PackageStatus>| {
            let text = format!(
                "{DPKG}Package: x\nStatus: {status}\nArchitecture: all\nVersion: 1:2-3\nDescription: a\n Status: no\n .\n"
            );
            let found = parse(&[&text]).unwrap().packages.get("x").cloned();
            assert_eq!(found.as_ref().map(|entry| entry.status), expected, "{status}");
            assert!(found.is_none_or(|entry| entry.version == "1:2-3"));
        };
        check("install ok installed", Some(PackageStatus::Installed));
        check("hold ok installed", Some(PackageStatus::Installed));
        check("deinstall ok config-files", Some(PackageStatus::ConfigFiles));
        check("install ok half-configured", Some(PackageStatus::Broken));
        check("install ok unpacked", Some(PackageStatus::Broken));
        check("install ok triggers-pending", Some(PackageStatus::Broken));
        check("install reinstreq half-installed", Some(PackageStatus::Broken));
        check("install reinstreq installed", Some(PackageStatus::Broken));
        check("unknown ok not-installed", None);
    }

    #[test]
    fn what_cannot_be_believed_is_an_error_and_not_an_empty_database() {
        let check = |text: &str, expected: DpkgError| assert_eq!(parse(&[text]).unwrap_err(), expected, "{text}");
        check("", DpkgError::NoDpkg);
        check("Package: x\nStatus: install ok installed\n", DpkgError::NoDpkg);
        check(&format!("{DPKG}Package: x\n"), DpkgError::Record { line: 7, field: "Status" });
        check(
            &format!("{DPKG}Package: x\nStatus: install ok dancing\n"),
            DpkgError::Record { line: 7, field: "Status" },
        );
        check(&format!("{DPKG}Status: install ok installed\n"), DpkgError::Record { line: 7, field: "Package" });
    }

    #[test]
    fn architectures_are_kept_apart_and_a_bare_name_is_the_hosts_own() {
        let of = |architecture: &str, version: &str| {
            format!(
                "Package: zlib1g\nStatus: install ok installed\nArchitecture: {architecture}\nVersion: {version}\n\n"
            )
        };
        let db = parse(&[&format!("{DPKG}{}{}", of("i386", "1"), of("amd64", "2"))]).unwrap();
        let version = |key: &str| db.packages.get(key).map(|entry| entry.version.clone());
        assert_eq!(version("zlib1g"), Some("2".to_owned()));
        assert_eq!(version("zlib1g:amd64"), Some("2".to_owned()));
        assert_eq!(version("zlib1g:i386"), Some("1".to_owned()));
        let foreign = parse(&[&format!("{DPKG}{}", of("i386", "1"))]).unwrap();
        assert!(!foreign.packages.contains_key("zlib1g"));
    }

    #[test]
    fn an_interrupted_run_is_seen() {
        let update = "Package: dpkg\nStatus: install ok half-configured\nArchitecture: amd64\nVersion: 1.21.23\n";
        let entry = |files: &[&str]| parse(files).unwrap().packages.get("dpkg").cloned().unwrap();
        assert_eq!(entry(&[DPKG]).status, PackageStatus::Installed);
        assert_eq!(entry(&[DPKG, update]).status, PackageStatus::Broken);
        assert!(entry(&[DPKG]).essential);
    }
}
