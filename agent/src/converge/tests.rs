//! Convergence on real files, with accounts, packages and units in memory.

mod attributes;
mod confirm;
mod debts;
mod faults;
mod kept;
mod kind_laws;
mod labels;
mod laws;
mod lockout;
mod modules;
mod mounts;
mod paths;
mod repositories;
mod runs;
mod secrets;
mod settings;
mod sysctls;
mod traps;
mod trees;
mod users;
mod verified;
mod who;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;

use super::*;
use crate::host::Host;
use crate::host::fake::{self, Fakes};
use crate::policy::Revision;
use crate::resource::place::Ownership;
use crate::resource::{
    AbsPath, Content, Desired, Ensure, GroupName, Kind, Mode as Permission, Notify, OnDrift, PackageName, Principal,
    Resource, SourceLocation, UnitName, UserName, directory, file, group, package, service, symlink, user,
};

/// A run over everything because of drift, which nobody holds anything back from.
fn everything(desired: &DesiredState) -> Request<'_> {
    Request {
        desired,
        scope: Scope::Everything,
        cause: Cause::Drift,
        mode: Mode::Enforce,
        hold: &hold_nothing,
        claim: &claim_from_nobody,
        seen: &nobody_seen,
    }
}

/// A host, its record, and what looks behind both.
struct World {
    root: TempDir,
    state: TempDir,
    host: Host,
    fakes: Fakes,
    record: Record,
    stop: AtomicBool,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let state = tempfile::tempdir().unwrap();
        let (host, fakes) = fake::host(root.path()).unwrap();
        let record = Record::open(state.path()).unwrap().record;
        Self { root, state, host, fakes, record, stop: AtomicBool::new(false) }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    #[expect(clippy::disallowed_methods, reason = "a test plays the foreign writer, who does truncate")]
    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    fn mode(&self, path: &str) -> u32 {
        use std::os::unix::fs::PermissionsExt;
        std::fs::symlink_metadata(self.path(path)).unwrap().permissions().mode() & 0o7777
    }

    fn converge(&mut self, desired: &DesiredState) -> RunReport {
        self.converge_with(&everything(desired))
    }

    fn converge_with(&mut self, request: &Request<'_>) -> RunReport {
        let mut context = Context { host: &mut self.host, record: &mut self.record, stop: &self.stop };
        converge(&mut context, request)
    }

    fn plan(&self, desired: &DesiredState) -> Plan {
        observe_and_plan(&self.host, Memory::Record(&self.record), &everything(desired))
    }

    /// Opens the record again, as the next process does after a kill.
    fn reopen(&mut self) {
        self.record = Record::open(self.state.path()).unwrap().record;
        self.stop = AtomicBool::new(false);
    }

    fn n_history(&self) -> usize {
        let filter = crate::record::HistoryFilter { limit: 10_000, ..Default::default() };
        self.record.history(&filter).unwrap().len()
    }
}

/// The words for the outcomes of a run, in order, such as `changed file[/a]`.
fn outcomes(report: &RunReport) -> Vec<String> {
    report
        .resources
        .iter()
        .map(|resource| {
            let word = match &resource.outcome {
                Outcome::Unchanged => "unchanged".to_owned(),
                Outcome::Changed { .. } => "changed".to_owned(),
                Outcome::Reported { .. } => "reported".to_owned(),
                Outcome::Failed { .. } => "failed".to_owned(),
                Outcome::Indeterminate { .. } => "indeterminate".to_owned(),
                Outcome::Skipped { blocked_by } => format!("skipped by {blocked_by}:"),
            };
            format!("{word} {}", resource.resource)
        })
        .collect()
}

fn error_of(report: &RunReport, index: usize) -> (String, String) {
    let outcome = &report.resources[index].outcome;
    let Outcome::Failed { error, signature, .. } = outcome else { panic!("expected a failure, found {outcome:?}") };
    (error.clone(), signature.clone())
}

fn desired(resources: Vec<Resource>) -> DesiredState {
    DesiredState::new(Revision::new("r1"), "test".to_owned(), resources)
}

fn resource(kind: Kind, name: &str, desired: Desired) -> Resource {
    Resource {
        id: ResourceId::new(kind, name),
        desired,
        requires: Box::default(),
        notifies: Box::default(),
        on_drift: OnDrift::Repair,
        notes: None,
        source: SourceLocation { file: "policy.toml".into(), line: 3, column: 1 },
    }
}

/// What a test says about a resource beyond its kind.
trait Also {
    fn requires(self, kind: Kind, name: &str) -> Self;
    fn notifies(self, notify: Notify, unit: &str) -> Self;
    fn on_drift(self, on_drift: OnDrift) -> Self;
}

impl Also for Resource {
    fn requires(mut self, kind: Kind, name: &str) -> Self {
        self.requires = self.requires.into_iter().chain([ResourceId::new(kind, name)]).collect();
        self
    }

    fn notifies(mut self, notify: Notify, unit: &str) -> Self {
        self.notifies = self.notifies.into_iter().chain([(notify, UnitName::new(unit).unwrap())]).collect();
        self
    }

    fn on_drift(mut self, on_drift: OnDrift) -> Self {
        self.on_drift = on_drift;
        self
    }
}

fn abs(path: &str) -> AbsPath {
    AbsPath::new(path).unwrap()
}

fn file_spec(content: &str) -> file::Spec {
    file::Spec {
        content: Content::new(content.as_bytes()),
        ownership: Arc::new(Ownership {
            owner: Principal::Agent,
            group: Principal::Agent,
            mode: Permission::from_bits(0o644),
        }),
        care: file::Care::default(),
    }
}

fn a_file(path: &str, content: &str) -> Resource {
    let ensure = Ensure::Present(file_spec(content));
    resource(Kind::File, path, Desired::File(file::Desired { path: abs(path), ensure }))
}

fn no_file(path: &str) -> Resource {
    resource(Kind::File, path, Desired::File(file::Desired { path: abs(path), ensure: Ensure::Absent }))
}

fn a_directory(path: &str) -> Resource {
    let spec = Ownership { owner: Principal::Agent, group: Principal::Agent, mode: Permission::from_bits(0o750) };
    let spec = directory::Spec { ownership: Arc::new(spec), rules: None };
    let desired = directory::Desired { path: abs(path), ensure: Ensure::Present(spec) };
    resource(Kind::Directory, path, Desired::Directory(desired))
}

fn no_directory(path: &str) -> Resource {
    let desired = directory::Desired { path: abs(path), ensure: Ensure::Absent };
    resource(Kind::Directory, path, Desired::Directory(desired))
}

fn a_symlink(path: &str, target: &str) -> Resource {
    let desired = symlink::Desired { path: abs(path), ensure: Ensure::Present(target.to_owned()) };
    resource(Kind::Symlink, path, Desired::Symlink(desired))
}

fn a_package(name: &str) -> Resource {
    let desired =
        package::Desired { name: PackageName::new(name).unwrap(), ensure: Ensure::Present(package::Version::Any) };
    resource(Kind::Package, name, Desired::Package(desired))
}

fn no_package(name: &str) -> Resource {
    let desired = package::Desired { name: PackageName::new(name).unwrap(), ensure: Ensure::Absent };
    resource(Kind::Package, name, Desired::Package(desired))
}

fn a_group(name: &str, gid: Option<u32>) -> Resource {
    let ensure = Ensure::Present(group::Spec { gid, system: false });
    resource(Kind::Group, name, Desired::Group(group::Desired { name: GroupName::new(name).unwrap(), ensure }))
}

fn user_spec() -> user::Spec {
    user::Spec {
        uid: None,
        group: None,
        groups: Vec::new(),
        membership: user::Membership::AtLeast,
        shell: None,
        home: None,
        comment: None,
        password: None,
        authorized_keys: None,
        system: false,
    }
}

fn a_user(name: &str, spec: user::Spec) -> Resource {
    let desired = user::Desired { name: UserName::new(name).unwrap(), ensure: Ensure::Present(spec) };
    resource(Kind::User, name, Desired::User(Box::new(desired)))
}

fn no_user(name: &str) -> Resource {
    let desired = user::Desired { name: UserName::new(name).unwrap(), ensure: Ensure::Absent };
    resource(Kind::User, name, Desired::User(Box::new(desired)))
}

fn a_service(name: &str, enabled: Option<service::Enablement>, state: Option<service::RunState>) -> Resource {
    let unit = UnitName::with_default_suffix(name).unwrap();
    resource(Kind::Service, name, Desired::Service(service::Desired { unit, enabled, state }))
}

/// Every path beneath a directory with what makes it what it is, so that two trees can be compared.
fn tree(directory: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(path) = open.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            String::new()
        } else if metadata.is_symlink() {
            std::fs::read_link(&path).unwrap().display().to_string()
        } else if metadata.is_file() {
            String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
        } else {
            "special".to_owned()
        };
        let ids = (metadata.uid(), metadata.gid(), metadata.ino());
        lines.push(format!("{} {:o} {ids:?} {content:?}", path.display(), metadata.mode()));
    }
    lines.sort();
    lines
}
