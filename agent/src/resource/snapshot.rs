//! What is read once for a whole run: the account and package databases, and what else several looks ask for.
//!
//! A snapshot is filled when first asked and forgotten when a step changes the database behind it, so two hundred users
//! cost one reading. An unreadable database stays an error text and becomes [`super::Observation::Unknown`], never "absent".

use std::collections::HashMap;
use std::sync::Arc;

use super::place::Ownership;
use super::sysctl::Assignments;
use super::{Principal, UnitName, error};
use crate::host::Host;
use crate::host::accounts::AccountDb;
use crate::host::packages::PackageDb;
use crate::host::root::Root;

/// Databases read during one run.
#[derive(Debug, Default)]
pub struct Snapshot {
    accounts: Option<Result<Arc<AccountDb>, String>>,
    packages: Option<Result<Arc<PackageDb>, String>>,
    sysctls: Option<Result<Arc<Assignments>, String>>,
    active: HashMap<UnitName, bool>,
}

impl Snapshot {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The account databases, read now unless they were read before.
    pub fn accounts(&mut self, host: &Host) -> Result<Arc<AccountDb>, String> {
        self.accounts.get_or_insert_with(|| host.accounts.read().map(Arc::new).map_err(|e| error::chain(&e))).clone()
    }

    /// The package database, read now unless it was read before.
    pub fn packages(&mut self, host: &Host) -> Result<Arc<PackageDb>, String> {
        self.packages.get_or_insert_with(|| host.packages.read().map(Arc::new).map_err(|e| error::chain(&e))).clone()
    }

    /// What files say of the kernel's settings, read now unless they were read before.
    pub(super) fn sysctls(&mut self, root: &Root) -> Result<Arc<Assignments>, String> {
        self.sysctls.get_or_insert_with(|| Assignments::read(root).map(Arc::new)).clone()
    }

    /// Whether a unit is known to be active, asked now unless it was asked before.
    pub fn is_active(&mut self, host: &Host, unit: &UnitName) -> bool {
        let ask = |unit: &UnitName| host.units.status(unit).is_ok_and(|status| status.active_state == "active");
        *self.active.entry(unit.clone()).or_insert_with_key(ask)
    }

    /// Reads again what any step may have changed.
    pub fn forget_files(&mut self) {
        self.sysctls = None;
        self.active.clear();
    }

    /// Reads the account databases again when next asked.
    pub fn forget_accounts(&mut self) {
        self.accounts = None;
    }

    /// Reads the package database again when next asked. Packages bring accounts with them, so these are forgotten too.
    pub fn forget_packages(&mut self) {
        self.packages = None;
        self.accounts = None;
        self.forget_files();
    }
}

/// The numeric ids that a policy's owner and group stand for on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Names {
    /// The owner's id; `None` when the host has no such user (yet).
    pub uid: Option<u32>,
    /// The group's id; `None` when the host has no such group (yet).
    pub gid: Option<u32>,
}

impl Names {
    /// Looks both up. The databases are read only when one of them is a name.
    pub fn resolve(host: &Host, snapshot: &mut Snapshot, ownership: &Ownership) -> Result<Self, String> {
        Self::of(host, snapshot, Some(&ownership.owner), Some(&ownership.group))
    }

    /// Looks up one, both or none.
    pub fn of(
        host: &Host,
        snapshot: &mut Snapshot,
        owner: Option<&Principal>,
        group: Option<&Principal>,
    ) -> Result<Self, String> {
        let uid = match owner {
            None => None,
            Some(Principal::Agent) => Some(host.root.owner().0),
            Some(Principal::Id(id)) => Some(*id),
            Some(Principal::Name(name)) => snapshot.accounts(host)?.user(name).map(|u| u.uid),
        };
        let gid = match group {
            None => None,
            Some(Principal::Agent) => Some(host.root.owner().1),
            Some(Principal::Id(id)) => Some(*id),
            Some(Principal::Name(name)) => snapshot.accounts(host)?.group(name).map(|g| g.gid),
        };
        Ok(Self { uid, gid })
    }
}
