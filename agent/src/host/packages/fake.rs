//! Packages in memory: what is installed is there at the next reading.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::resource::AbsPath;

use super::{PackageDb, PackageEntry, PackageError, PackageManager, PackageStatus, Transaction};

/// Packages in memory. Clones share one state, so that a test keeps one while the host owns another.
#[derive(Debug, Clone, Default)]
pub struct FakePackages {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    db: PackageDb,
    /// Name to candidate version.
    available: BTreeMap<String, String>,
    transactions: Vec<Transaction>,
    refreshed: Vec<String>,
    reads_fail: bool,
    writes_fail: bool,
}

impl FakePackages {
    /// A host without packages and without repositories.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a package into the repository.
    pub fn add_available(&self, name: &str, version: &str) {
        self.lock().available.insert(name.to_owned(), version.to_owned());
    }

    /// Changes the state behind the back of whoever manages it, as a person on the host would.
    pub fn edit(&self, change: impl FnOnce(&mut PackageDb)) {
        change(&mut self.lock().db);
    }

    /// Makes every reading fail from now on, or succeed again.
    pub fn fail_reads(&self, fail: bool) {
        self.lock().reads_fail = fail;
    }

    /// Makes every transaction fail from now on, or succeed again.
    pub fn fail_writes(&self, fail: bool) {
        self.lock().writes_fail = fail;
    }

    /// The transactions that were carried out, in order.
    pub fn transactions(&self) -> Vec<Transaction> {
        self.lock().transactions.clone()
    }

    /// The files of the repositories that were read anew, in order.
    pub fn refreshed(&self) -> Vec<String> {
        self.lock().refreshed.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PackageManager for FakePackages {
    fn read(&self) -> Result<PackageDb, PackageError> {
        let state = self.lock();
        if state.reads_fail {
            let source = std::io::ErrorKind::PermissionDenied.into();
            return Err(PackageError::Read { path: "/var/lib/dpkg/status".to_owned(), source });
        }
        Ok(state.db.clone())
    }

    fn transact(&mut self, transaction: &Transaction) -> Result<(), PackageError> {
        let mut state = self.lock();
        let refused = |output: String| PackageError::Manager {
            command: "apt-get install".to_owned(),
            status: "exit status 100".to_owned(),
            output,
        };
        if state.writes_fail {
            return Err(refused("made to fail".to_owned()));
        }
        let essential = |name: &str| state.db.packages.get(name).is_some_and(|entry| entry.essential);
        let packages: Vec<String> =
            transaction.remove.iter().filter(|name| essential(name.as_str())).map(ToString::to_string).collect();
        if !packages.is_empty() {
            return Err(PackageError::Essential { packages });
        }
        let mut installed = Vec::new();
        for (name, version) in &transaction.install {
            let candidate = state.available.get(name.as_str());
            let candidate = candidate.ok_or_else(|| refused(format!("E: Unable to locate package {name}")))?;
            if version.as_ref().is_some_and(|version| version != candidate) {
                return Err(refused(format!("E: Version for '{name}' was not found")));
            }
            installed.push((name.to_string(), candidate.clone()));
        }
        for (name, version) in installed {
            state
                .db
                .packages
                .insert(name, PackageEntry { version, status: PackageStatus::Installed, essential: false });
        }
        for name in &transaction.remove {
            if let Some(entry) = state.db.packages.get_mut(name.as_str()) {
                entry.status = PackageStatus::ConfigFiles;
            }
        }
        state.transactions.push(transaction.clone());
        Ok(())
    }

    fn refresh(&mut self, source: &AbsPath) -> Result<(), PackageError> {
        self.lock().refreshed.push(source.to_string());
        Ok(())
    }

    fn database_paths(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::PackageName;

    #[test]
    fn changes_can_be_read_back() {
        let fake = FakePackages::new();
        fake.add_available("nginx", "1.22.1-9");
        let mut packages = fake.clone();
        let name = PackageName::new("nginx").unwrap();
        let install = |version: Option<&str>| Transaction {
            install: vec![(name.clone(), version.map(str::to_owned))],
            remove: Vec::new(),
        };
        assert!(packages.transact(&install(Some("2"))).is_err());
        packages.transact(&install(None)).unwrap();
        let status = || fake.read().unwrap().packages.get("nginx").map(|entry| entry.status);
        assert_eq!(status(), Some(PackageStatus::Installed));
        packages.transact(&Transaction { install: Vec::new(), remove: vec![name.clone()] }).unwrap();
        assert_eq!(status(), Some(PackageStatus::ConfigFiles));
        fake.edit(|db| db.packages.values_mut().for_each(|entry| entry.essential = true));
        let remove = Transaction { install: Vec::new(), remove: vec![name.clone()] };
        assert!(matches!(packages.transact(&remove), Err(PackageError::Essential { .. })));
        assert_eq!(fake.transactions().len(), 2);
        fake.fail_writes(true);
        assert!(packages.transact(&install(None)).is_err());
        fake.fail_reads(true);
        assert!(packages.read().is_err());
    }
}
