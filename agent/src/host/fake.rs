//! A host for tests: real files beneath a directory; accounts, packages and units in memory, where changes can be read back.

use std::io;
use std::path::Path;

use super::Host;
use super::accounts::fake::FakeAccounts;
use super::kernel::fake::FakeKernel;
use super::packages::fake::FakePackages;
use super::programs::Programs;
use super::root::Root;
use super::units::fake::FakeUnits;

/// What a test keeps of a fake host: each shares its state with the host's own.
#[derive(Debug, Clone)]
pub struct Fakes {
    /// Its accounts.
    pub accounts: FakeAccounts,
    /// Its packages.
    pub packages: FakePackages,
    /// Its units.
    pub units: FakeUnits,
    /// Its kernel.
    pub kernel: FakeKernel,
}

/// Makes a host whose files are beneath `root`, and hands out what a test needs to look behind it.
pub fn host(root: &Path) -> io::Result<(Host, Fakes)> {
    let fakes = Fakes {
        accounts: FakeAccounts::new(),
        packages: FakePackages::new(),
        units: FakeUnits::new(),
        kernel: FakeKernel::new(),
    };
    let host = Host {
        root: Root::open(root)?,
        accounts: Box::new(fakes.accounts.clone()),
        packages: Box::new(fakes.packages.clone()),
        units: Box::new(fakes.units.clone()),
        kernel: Box::new(fakes.kernel.clone()),
        programs: Programs::nowhere("this host is made up"),
    };
    Ok((host, fakes))
}
