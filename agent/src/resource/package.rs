//! `package`: a package of the host's own package manager.
//!
//! A package that is half installed is neither present nor absent: it is drift whichever is desired.

use super::{Action, ApplyError, Drift, Ensure, Observation, PackageName, Snapshot, Verdict};
use crate::host::Host;
use crate::host::packages::{PackageEntry, PackageStatus, Transaction};

/// What a package should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// Its name.
    pub name: PackageName,
    /// Installed at this version, or not installed (configuration files may remain).
    pub ensure: Ensure<Version>,
}

/// Which version should be installed.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Version {
    /// Whichever is installed, or the manager's candidate.
    #[default]
    Any,
    /// Exactly this version string.
    Exact(String),
}

/// The record of the package database.
pub type Observed = PackageEntry;

/// Looks the package up in the database, which is read once for all packages.
pub fn observe(host: &Host, snapshot: &mut Snapshot, desired: &Desired) -> Observation<Observed> {
    match snapshot.packages(host) {
        Err(why) => Observation::Unknown(why),
        Ok(packages) => match packages.packages.get(desired.name.as_str()) {
            Some(entry) => Observation::Present(entry.clone()),
            None => Observation::Absent,
        },
    }
}

/// Compares.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    let entry = match observation {
        Observation::Unknown(why) => return Verdict::Indeterminate(why.clone()),
        Observation::Absent => None,
        Observation::Present(entry) => Some(entry),
    };
    let from = entry.and_then(describe);
    match (&desired.ensure, entry.map(|e| e.status)) {
        (Ensure::Present(version), Some(PackageStatus::Installed)) => match version {
            Version::Any => Verdict::InSync,
            Version::Exact(wanted) if entry.is_some_and(|e| e.version == *wanted) => Verdict::InSync,
            Version::Exact(wanted) => {
                Verdict::Drift(Drift::value(Action::Update, "version", from, Some(wanted.clone())))
            }
        },
        (Ensure::Present(version), Some(PackageStatus::Broken)) => {
            Verdict::Drift(Drift::value(Action::Update, "state", from, Some(describe_wanted(version))))
        }
        (Ensure::Present(version), Some(PackageStatus::ConfigFiles) | None) => {
            Verdict::Drift(Drift::value(Action::Create, "state", from, Some(describe_wanted(version))))
        }
        (Ensure::Absent, Some(PackageStatus::Installed | PackageStatus::Broken)) => {
            Verdict::Drift(Drift::value(Action::Remove, "state", from, Some("absent".to_owned())))
        }
        (Ensure::Absent, Some(PackageStatus::ConfigFiles) | None) => Verdict::InSync,
    }
}

fn describe(entry: &PackageEntry) -> Option<String> {
    match entry.status {
        PackageStatus::Installed => Some(entry.version.clone()),
        PackageStatus::ConfigFiles => None,
        PackageStatus::Broken => Some(format!("{} (half installed)", entry.version)),
    }
}

fn describe_wanted(version: &Version) -> String {
    match version {
        Version::Any => "installed".to_owned(),
        Version::Exact(version) => version.clone(),
    }
}

/// Adds what one package needs to a transaction, or refuses when it must not be done.
pub fn plan_into(
    transaction: &mut Transaction,
    desired: &Desired,
    observation: &Observation<Observed>,
) -> Result<(), ApplyError> {
    match &desired.ensure {
        Ensure::Present(Version::Any) => transaction.install.push((desired.name.clone(), None)),
        Ensure::Present(Version::Exact(version)) => {
            transaction.install.push((desired.name.clone(), Some(version.clone())));
        }
        Ensure::Absent => {
            if matches!(observation, Observation::Present(entry) if entry.essential) {
                return Err(ApplyError::Protected {
                    operation: "remove the package",
                    name: desired.name.to_string(),
                    why: "it is essential to the host",
                });
            }
            transaction.remove.push(desired.name.clone());
        }
    }
    Ok(())
}

/// Puts one package in sync in a transaction of its own.
pub fn apply(
    host: &mut Host,
    snapshot: &mut Snapshot,
    desired: &Desired,
    observation: &Observation<Observed>,
) -> Result<(), ApplyError> {
    let mut transaction = Transaction::default();
    plan_into(&mut transaction, desired, observation)?;
    let result = host.packages.transact(&transaction).map_err(ApplyError::from);
    snapshot.forget_packages();
    result
}
