//! One way in to every kind: which function observes, compares and applies a resource.
//!
//! Nothing here decides anything; it only matches the kind of what is desired with the kind of what was seen.

use std::io;

use super::place::{self, Node};
use super::{
    AbsPath, ApplyError, Desired, Ensure, Names, Observation, Resource, Snapshot, UnitName, Verdict, check, command,
    directory, file, group, kernel_module, mount, package, repository, service, setting, sweep, symlink, sysctl, user,
};
use crate::host::Host;
use crate::host::root::Root;

/// Everything read from the host for one resource: an observation, and what its names stand for here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// What is there.
    pub observed: Observed,
    /// What the desired owner and group stand for on this host.
    pub names: Names,
    /// What the owner and group of its rule for what is beneath it stand for.
    pub ruled: Names,
    /// Parents of an absent path that do not exist either, outermost first.
    pub missing_parents: Vec<AbsPath>,
}

/// What is there, by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the observation of the kind of its name")]
pub enum Observed {
    File(Observation<place::Observed>),
    Directory(Observation<directory::Observed>),
    Symlink(Observation<place::Observed>),
    User(Box<Observation<user::Observed>>),
    Group(Observation<group::Observed>),
    Package(Observation<package::Observed>),
    Service(Observation<service::Observed>),
    Setting(Observation<place::Observed>),
    Sysctl(Box<Observation<sysctl::Observed>>),
    KernelModule(Box<Observation<kernel_module::Observed>>),
    Mount(Box<Observation<mount::Observed>>),
    Repository(Box<Observation<repository::Observed>>),
    Command(Observation<command::Observed>),
    Check(Observation<check::Observed>),
    Sweep(Observation<sweep::Observed>),
}

/// Reads what there is to know about one resource. Changes nothing.
pub fn observe(host: &Host, snapshot: &mut Snapshot, desired: &Desired) -> Sighting {
    let mut sighting = Sighting {
        observed: Observed::Group(Observation::Absent),
        names: Names::default(),
        ruled: Names::default(),
        missing_parents: Vec::new(),
    };
    let root = &host.root;
    match desired {
        Desired::File(file) => {
            let mut seen = file::observe(root, file);
            if let Ensure::Present(spec) = &file.ensure {
                add_names(&mut seen, &mut sighting, Names::resolve(host, snapshot, &spec.ownership));
                add_parents(&mut seen, &mut sighting, root, &file.path);
            }
            sighting.observed = Observed::File(seen);
        }
        Desired::Directory(directory) => {
            let recurse = directory.rules().and_then(|rules| rules.recurse.as_ref());
            let (owner, group) = recurse.map_or((None, None), |rule| (rule.owner.as_ref(), rule.group.as_ref()));
            let mut seen = match Names::of(host, snapshot, owner, group) {
                Ok(ruled) => {
                    sighting.ruled = ruled;
                    directory::observe(root, directory, ruled)
                }
                Err(why) => Observation::Unknown(why),
            };
            if let Ensure::Present(spec) = &directory.ensure {
                add_names(&mut seen, &mut sighting, Names::resolve(host, snapshot, &spec.ownership));
                add_parents(&mut seen, &mut sighting, root, &directory.path);
            }
            sighting.observed = Observed::Directory(seen);
        }
        Desired::Symlink(symlink) => {
            let mut seen = symlink::observe(root, symlink);
            if let Ensure::Present(_) = &symlink.ensure {
                add_parents(&mut seen, &mut sighting, root, &symlink.path);
            }
            sighting.observed = Observed::Symlink(seen);
        }
        Desired::User(user) => {
            sighting.observed = Observed::User(Box::new(user::observe(host, snapshot, user)));
        }
        Desired::Group(group) => sighting.observed = Observed::Group(group::observe(host, snapshot, group)),
        Desired::Package(package) => {
            sighting.observed = Observed::Package(package::observe(host, snapshot, package));
        }
        Desired::Service(service) => sighting.observed = Observed::Service(service::observe(host, service)),
        Desired::Command(command) => sighting.observed = Observed::Command(command::observe(host, snapshot, command)),
        Desired::Check(check) => sighting.observed = Observed::Check(check::observe(host, snapshot, check)),
        Desired::Sweep(sweep) => sighting.observed = Observed::Sweep(sweep::observe(host, snapshot, sweep)),
        Desired::Setting(setting) => {
            let mut seen = setting::observe(root, setting);
            add_names(&mut seen, &mut sighting, Names::resolve(host, snapshot, &setting.spec.ownership()));
            add_parents(&mut seen, &mut sighting, root, &setting.path);
            sighting.observed = Observed::Setting(seen);
        }
        Desired::Sysctl(sysctl) => {
            sighting.observed = Observed::Sysctl(Box::new(sysctl::observe(host, snapshot, sysctl)));
        }
        Desired::KernelModule(module) => {
            sighting.observed = Observed::KernelModule(Box::new(kernel_module::observe(host, module)));
        }
        Desired::Repository(repository) => {
            sighting.observed = Observed::Repository(Box::new(repository::observe(host, repository)));
        }
        Desired::Mount(mount) => sighting.observed = Observed::Mount(Box::new(mount::observe(host, mount))),
    }
    sighting
}

/// Names that could not be looked up make the whole observation unknown: an owner must never be guessed.
fn add_names<T>(seen: &mut Observation<T>, sighting: &mut Sighting, names: Result<Names, String>) {
    match names {
        Ok(names) => sighting.names = names,
        Err(why) => *seen = Observation::Unknown(why),
    }
}

fn add_parents<T>(seen: &mut Observation<T>, sighting: &mut Sighting, root: &Root, path: &AbsPath) {
    if matches!(seen, Observation::Absent) {
        match place::missing_parents(root, path) {
            Ok(missing) => sighting.missing_parents = missing,
            Err(e) => *seen = Observation::Unknown(format!("cannot look for the parents of `{path}`: {e}")),
        }
    }
}

/// Compares what was seen with what is desired. Pure.
pub fn diff(desired: &Desired, sighting: &Sighting) -> Verdict {
    let Sighting { observed, names, missing_parents, .. } = sighting;
    match (desired, observed) {
        (Desired::File(d), Observed::File(o)) => file::diff(d, o, *names, missing_parents),
        (Desired::Directory(d), Observed::Directory(o)) => directory::diff(d, o, *names, missing_parents),
        (Desired::Symlink(d), Observed::Symlink(o)) => symlink::diff(d, o, missing_parents),
        (Desired::User(d), Observed::User(o)) => user::diff(d, o),
        (Desired::Group(d), Observed::Group(o)) => group::diff(d, o),
        (Desired::Package(d), Observed::Package(o)) => package::diff(d, o),
        (Desired::Service(d), Observed::Service(o)) => service::diff(d, o),
        (Desired::Command(d), Observed::Command(o)) => command::diff(d, o),
        (Desired::Check(d), Observed::Check(o)) => check::diff(d, o),
        (Desired::Sweep(d), Observed::Sweep(o)) => sweep::diff(d, o),
        (Desired::Setting(d), Observed::Setting(o)) => setting::diff(d, o, *names, missing_parents),
        (Desired::Sysctl(d), Observed::Sysctl(o)) => sysctl::diff(d, o),
        (Desired::KernelModule(d), Observed::KernelModule(o)) => kernel_module::diff(d, o),
        (Desired::Mount(d), Observed::Mount(o)) => mount::diff(d, o),
        (Desired::Repository(d), Observed::Repository(o)) => repository::diff(d, o),
        (
            Desired::File(_)
            | Desired::Directory(_)
            | Desired::Symlink(_)
            | Desired::User(_)
            | Desired::Group(_)
            | Desired::Package(_)
            | Desired::Repository(_)
            | Desired::Service(_)
            | Desired::Command(_)
            | Desired::Check(_)
            | Desired::Sweep(_)
            | Desired::Setting(_)
            | Desired::Sysctl(_)
            | Desired::KernelModule(_)
            | Desired::Mount(_),
            _,
        ) => Verdict::Indeterminate("observed as another kind".to_owned()),
    }
}

/// Carries out the step that the difference calls for.
pub fn apply(
    host: &mut Host,
    snapshot: &mut Snapshot,
    desired: &Desired,
    sighting: &Sighting,
) -> Result<(), ApplyError> {
    let Sighting { observed, names, ruled, .. } = sighting;
    // Whatever the step is about, it may write what was read.
    snapshot.forget_files();
    match (desired, observed) {
        (Desired::File(d), Observed::File(o)) => file::apply(&host.root, d, o, *names),
        (Desired::Directory(d), Observed::Directory(o)) => directory::apply(&host.root, d, o, *names, *ruled),
        (Desired::Symlink(d), Observed::Symlink(o)) => symlink::apply(&host.root, d, o),
        (Desired::User(d), Observed::User(o)) => user::apply(host, snapshot, d, o),
        (Desired::Group(d), Observed::Group(o)) => group::apply(host, snapshot, d, o),
        (Desired::Package(d), Observed::Package(o)) => package::apply(host, snapshot, d, o),
        (Desired::Service(d), Observed::Service(o)) => service::apply(host, d, o),
        (Desired::Command(d), Observed::Command(_)) => command::apply(host, snapshot, d),
        (Desired::Sweep(d), Observed::Sweep(o)) => sweep::apply(host, d, o),
        (Desired::Check(_), Observed::Check(_)) => Err(ApplyError::Protected {
            operation: "repair",
            name: "a check".to_owned(),
            why: "it only says whether all is well",
        }),
        (Desired::Setting(d), Observed::Setting(o)) => setting::apply(&host.root, d, o, *names),
        (Desired::Sysctl(d), Observed::Sysctl(o)) => sysctl::apply(host, d, o),
        (Desired::KernelModule(d), Observed::KernelModule(o)) => kernel_module::apply(host, d, o),
        (Desired::Mount(d), Observed::Mount(o)) => mount::apply(host, d, o),
        (Desired::Repository(d), Observed::Repository(o)) => repository::apply(host, d, o),
        (
            Desired::File(_)
            | Desired::Directory(_)
            | Desired::Symlink(_)
            | Desired::User(_)
            | Desired::Group(_)
            | Desired::Package(_)
            | Desired::Repository(_)
            | Desired::Service(_)
            | Desired::Command(_)
            | Desired::Check(_)
            | Desired::Sweep(_)
            | Desired::Setting(_)
            | Desired::Sysctl(_)
            | Desired::KernelModule(_)
            | Desired::Mount(_),
            _,
        ) => Err(ApplyError::Vanished { what: "the step".to_owned(), why: "observed as another kind".to_owned() }),
    }
}

/// Why a difference is to be left as it is whatever the policy says of drift, if so.
pub fn excess(desired: &Desired, sighting: &Sighting) -> Option<String> {
    match (desired, &sighting.observed) {
        (Desired::Directory(d), Observed::Directory(o)) => directory::excess(d, o),
        _ => None,
    }
}

/// Why a step must not be attempted although it is due, with a word for the reason, if so.
pub fn refusal(desired: &Desired, sighting: &Sighting) -> Option<(String, &'static str)> {
    match (desired, &sighting.observed) {
        (Desired::File(d), Observed::File(o)) => file::refusal(d, o),
        _ => None,
    }
}

/// The directory from which a step removes what nobody declares, if it is such a step.
pub fn purges<'a>(desired: &'a Desired, sighting: &Sighting) -> Option<&'a directory::Desired> {
    match (desired, &sighting.observed) {
        (Desired::Directory(d), Observed::Directory(o)) => directory::purges(o).then_some(d),
        _ => None,
    }
}

/// Bytes that a step overwrites or removes.
#[derive(Debug)]
pub enum Replaced {
    /// Nothing is lost, or nothing that has bytes.
    Nothing,
    /// These contents, at least one; the first is the one that people look for.
    Contents(Vec<Vec<u8>>),
    /// A regular file longer than [`place::MAX_CONTENT`]: too long to keep.
    TooLong,
    /// A regular file that cannot be read now.
    Unread {
        /// Where.
        path: AbsPath,
        /// Why.
        source: io::Error,
    },
}

/// What a step would overwrite or remove. Reads the file when the observation did not.
pub fn replaced(root: &Root, desired: &Desired, sighting: &Sighting) -> Replaced {
    let (path, observation, keeps_same_content) = match (desired, &sighting.observed) {
        (Desired::File(d), Observed::File(Observation::Present(o))) => {
            let same = match (&d.ensure, &o.node) {
                (Ensure::Present(spec), Node::File(content)) => spec.content.is(content),
                (
                    Ensure::Present(_) | Ensure::Absent,
                    Node::File(_) | Node::Unread | Node::Directory | Node::Symlink(_) | Node::Special,
                ) => false,
            };
            (&d.path, o, same)
        }
        (Desired::Directory(d), Observed::Directory(Observation::Present(o))) => (&d.path, &o.place, false),
        (Desired::Symlink(d), Observed::Symlink(Observation::Present(o))) => (&d.path, o, false),
        (Desired::Setting(d), Observed::Setting(Observation::Present(o))) => {
            // What cannot be edited is not touched.
            return match &o.node {
                Node::File(content) if setting::replacement(d, content).is_some() => {
                    Replaced::Contents(vec![content.clone()])
                }
                Node::File(_) | Node::Unread | Node::Directory | Node::Symlink(_) | Node::Special => Replaced::Nothing,
            };
        }
        (Desired::Sysctl(d), Observed::Sysctl(observation)) => {
            return own_files(observation, |o| sysctl::replaced(d, o));
        }
        (Desired::KernelModule(d), Observed::KernelModule(observation)) => {
            return own_files(observation, |o| kernel_module::replaced(d, o));
        }
        (Desired::Repository(d), Observed::Repository(observation)) => {
            return own_files(observation, |o| repository::replaced(d, o));
        }
        (Desired::Mount(d), Observed::Mount(observation)) => {
            return own_files(observation, |o| mount::replaced(d, o).into_iter().collect());
        }
        (Desired::User(_), Observed::User(observation)) => {
            return match observation.as_ref() {
                Observation::Present(o) => {
                    user::overwritten_keys(o).map_or(Replaced::Nothing, |keys| Replaced::Contents(vec![keys.to_vec()]))
                }
                Observation::Absent | Observation::Unknown(_) => Replaced::Nothing,
            };
        }
        _ => return Replaced::Nothing,
    };
    // What stands where a secret belongs may be the one before it. It is not kept in clear, and nobody could read it otherwise.
    if desired.is_secret() {
        return Replaced::Nothing;
    }
    match &observation.node {
        Node::File(_) if keeps_same_content => Replaced::Nothing,
        Node::File(content) => Replaced::Contents(vec![content.clone()]),
        Node::Symlink(target) => {
            Replaced::Contents(vec![std::os::unix::ffi::OsStrExt::as_bytes(target.as_os_str()).to_vec()])
        }
        Node::Directory | Node::Special => Replaced::Nothing,
        Node::Unread => match root.read(path, place::MAX_CONTENT) {
            Ok(Some((content, _))) => Replaced::Contents(vec![content]),
            Ok(None) => Replaced::Nothing,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Replaced::TooLong,
            Err(source) => Replaced::Unread { path: path.clone(), source },
        },
    }
}

/// What a step overwrites of the agent's own files, or of another that the resource found for itself.
fn own_files<'o, T>(observation: &'o Observation<T>, replaced: impl FnOnce(&'o T) -> Vec<&'o [u8]>) -> Replaced {
    let contents = match observation {
        Observation::Present(o) => replaced(o),
        Observation::Absent | Observation::Unknown(_) => Vec::new(),
    };
    match contents.as_slice() {
        [] => Replaced::Nothing,
        contents => Replaced::Contents(contents.iter().map(|content| content.to_vec()).collect()),
    }
}

/// Where drift of a resource shows: what a watcher must look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Watched {
    /// Paths whose existence, content or metadata matter.
    pub paths: Vec<AbsPath>,
    /// Directories in which it matters that a name comes that nobody declares.
    pub entries: Vec<AbsPath>,
    /// Whether the account databases matter.
    pub accounts: bool,
    /// Whether the kernel's table of mounts matters.
    pub mounts: bool,
    /// Whether the package database matters.
    pub packages: bool,
    /// The unit whose state matters.
    pub unit: Option<UnitName>,
}

impl Desired {
    /// Whether it holds what the policy holds encrypted only.
    pub fn is_secret(&self) -> bool {
        match self {
            Self::File(file) => matches!(&file.ensure, Ensure::Present(spec) if spec.content.is_secret()),
            Self::User(user) => {
                matches!(&user.ensure, Ensure::Present(spec) if matches!(spec.password, Some(user::Password::Secret(_))))
            }
            Self::Directory(_)
            | Self::Symlink(_)
            | Self::Group(_)
            | Self::Package(_)
            | Self::Repository(_)
            | Self::Service(_)
            | Self::Setting(_)
            | Self::Command(_)
            | Self::Check(_)
            | Self::Sweep(_)
            | Self::Sysctl(_)
            | Self::KernelModule(_)
            | Self::Mount(_) => false,
        }
    }

    /// Files that the resource writes although its name is not their path.
    pub fn own_files(&self) -> Vec<AbsPath> {
        match self {
            Self::Sysctl(d) => d.files().map(|file| file.path).into(),
            Self::KernelModule(d) => d.files().map(|file| file.path).into(),
            Self::Repository(d) => repository::paths(d),
            Self::File(_)
            | Self::Directory(_)
            | Self::Symlink(_)
            | Self::User(_)
            | Self::Group(_)
            | Self::Package(_)
            | Self::Service(_)
            | Self::Setting(_)
            | Self::Mount(_)
            | Self::Command(_)
            | Self::Check(_)
            | Self::Sweep(_) => Vec::new(),
        }
    }
}

impl Resource {
    /// Where drift of this resource shows. A user's keys are listed only when the policy names its home directory.
    pub fn watched(&self) -> Watched {
        let mut watched = Watched::default();
        match &self.desired {
            Desired::File(d) => watched.paths.push(d.path.clone()),
            Desired::Directory(d) => {
                watched.paths.push(d.path.clone());
                watched.entries = d.watched_entries();
            }
            Desired::Symlink(d) => watched.paths.push(d.path.clone()),
            Desired::User(d) => {
                watched.accounts = true;
                watched.paths.extend(user::keys_path(d));
            }
            Desired::Group(_) => watched.accounts = true,
            Desired::Package(_) => watched.packages = true,
            Desired::Service(d) => watched.unit = Some(d.unit.clone()),
            Desired::Command(d) => watched.paths.extend(d.creates.clone()),
            Desired::Check(_) | Desired::Sweep(_) => {}
            Desired::Setting(d) => watched.paths.push(d.path.clone()),
            Desired::Sysctl(d) => watched.paths.extend(sysctl::watched(d)),
            Desired::KernelModule(d) => watched.paths.extend(kernel_module::watched(d)),
            Desired::Repository(d) => watched.paths.extend(repository::paths(d)),
            Desired::Mount(_) => {
                watched.mounts = true;
                watched.paths.push(mount::table());
            }
        }
        watched
    }
}
