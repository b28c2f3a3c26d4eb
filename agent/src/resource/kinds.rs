//! One way in to every kind: which function observes, compares and applies a resource, and what else is asked of all of them.
//!
//! Nothing here decides anything; it only matches the kind of what is desired with the kind of what was seen.
//!
//! # A new kind
//!
//! It gets a line in the list of [`super::Kind`], a variant of [`Desired`] and of [`Observed`], and a file of its own beside this
//! one. From there the compiler leads on: what every kind has to answer is matched without a wildcard, here and in
//! - `policy/schema/attributes.rs`: what it can be declared with; `policy/compile/load.rs`: how it is named;
//!   `policy/compile/lower/`: what its attributes mean;
//! - `policy/compile/check.rs`, `policy/compile/check/` and `policy/compile/order.rs`: what it must not do to others, which accounts
//!   it names, and what comes before it;
//! - `converge/first.rs`, `converge/apply/step.rs` and `converge/lockout.rs`: whether it waits for anybody, what proves that a step
//!   took effect, and whether one may close a way in; `agent/escalate.rs`: whether it is the agent's own.
//!
//! What concerns one kind alone is asked with `if let`, and a new kind need not be told of it.

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

/// Matches what is desired with what was seen, kind by kind and without a wildcard: the compiler asks of a new kind what is asked
/// of all. Nothing is ever observed as another kind; if it were, `otherwise` is the answer.
macro_rules! of_both {
    ($desired:expr, $observed:expr, otherwise $otherwise:expr, { $($kind:ident($d:pat, $o:pat) => $answer:expr,)+ }) => {
        match $desired {
            $(Desired::$kind($d) => if let Observed::$kind($o) = $observed { $answer } else { $otherwise },)+
        }
    };
}

/// Reads what there is to know about one resource. Changes nothing.
pub fn observe(host: &Host, snapshot: &mut Snapshot, desired: &Desired) -> Sighting {
    let mut names = Names::default();
    let mut ruled = Names::default();
    let mut missing_parents = Vec::new();
    let root = &host.root;
    let observed = match desired {
        Desired::File(file) => {
            let mut seen = file::observe(root, file);
            if let Ensure::Present(spec) = &file.ensure {
                add_names(&mut seen, &mut names, Names::resolve(host, snapshot, &spec.ownership));
                add_parents(&mut seen, &mut missing_parents, root, &file.path);
            }
            Observed::File(seen)
        }
        Desired::Directory(directory) => {
            let recurse = directory.rules().and_then(|rules| rules.recurse.as_ref());
            let (owner, group) = recurse.map_or((None, None), |rule| (rule.owner.as_ref(), rule.group.as_ref()));
            let mut seen = match Names::of(host, snapshot, owner, group) {
                Ok(resolved) => {
                    ruled = resolved;
                    directory::observe(root, directory, ruled)
                }
                Err(why) => Observation::Unknown(why),
            };
            if let Ensure::Present(spec) = &directory.ensure {
                add_names(&mut seen, &mut names, Names::resolve(host, snapshot, &spec.ownership));
                add_parents(&mut seen, &mut missing_parents, root, &directory.path);
            }
            Observed::Directory(seen)
        }
        Desired::Symlink(symlink) => {
            let mut seen = symlink::observe(root, symlink);
            if let Ensure::Present(_) = &symlink.ensure {
                add_parents(&mut seen, &mut missing_parents, root, &symlink.path);
            }
            Observed::Symlink(seen)
        }
        Desired::Setting(setting) => {
            let mut seen = setting::observe(root, setting);
            add_names(&mut seen, &mut names, Names::resolve(host, snapshot, &setting.spec.ownership()));
            add_parents(&mut seen, &mut missing_parents, root, &setting.path);
            Observed::Setting(seen)
        }
        Desired::User(user) => Observed::User(Box::new(user::observe(host, snapshot, user))),
        Desired::Group(group) => Observed::Group(group::observe(host, snapshot, group)),
        Desired::Package(package) => Observed::Package(package::observe(host, snapshot, package)),
        Desired::Repository(repository) => Observed::Repository(Box::new(repository::observe(host, repository))),
        Desired::Service(service) => Observed::Service(service::observe(host, service)),
        Desired::Sysctl(sysctl) => Observed::Sysctl(Box::new(sysctl::observe(host, snapshot, sysctl))),
        Desired::KernelModule(module) => Observed::KernelModule(Box::new(kernel_module::observe(host, module))),
        Desired::Mount(mount) => Observed::Mount(Box::new(mount::observe(host, mount))),
        Desired::Command(command) => Observed::Command(command::observe(host, snapshot, command)),
        Desired::Check(check) => Observed::Check(check::observe(host, snapshot, check)),
        Desired::Sweep(sweep) => Observed::Sweep(sweep::observe(host, snapshot, sweep)),
    };
    Sighting { observed, names, ruled, missing_parents }
}

/// Names that could not be looked up make the whole observation unknown: an owner must never be guessed.
fn add_names<T>(seen: &mut Observation<T>, names: &mut Names, resolved: Result<Names, String>) {
    match resolved {
        Ok(resolved) => *names = resolved,
        Err(why) => *seen = Observation::Unknown(why),
    }
}

fn add_parents<T>(seen: &mut Observation<T>, missing_parents: &mut Vec<AbsPath>, root: &Root, path: &AbsPath) {
    if matches!(seen, Observation::Absent) {
        match place::missing_parents(root, path) {
            Ok(missing) => *missing_parents = missing,
            Err(e) => *seen = Observation::Unknown(format!("cannot look for the parents of `{path}`: {e}")),
        }
    }
}

/// Compares what was seen with what is desired. Pure.
pub fn diff(desired: &Desired, sighting: &Sighting) -> Verdict {
    let Sighting { observed, names, missing_parents, .. } = sighting;
    let otherwise = || Verdict::Indeterminate("observed as another kind".to_owned());
    of_both!(desired, observed, otherwise otherwise(), {
        File(d, o) => file::diff(d, o, *names, missing_parents),
        Directory(d, o) => directory::diff(d, o, *names, missing_parents),
        Symlink(d, o) => symlink::diff(d, o, missing_parents),
        Setting(d, o) => setting::diff(d, o, *names, missing_parents),
        User(d, o) => user::diff(d, o),
        Group(d, o) => group::diff(d, o),
        Package(d, o) => package::diff(d, o),
        Repository(d, o) => repository::diff(d, o),
        Service(d, o) => service::diff(d, o),
        Sysctl(d, o) => sysctl::diff(d, o),
        KernelModule(d, o) => kernel_module::diff(d, o),
        Mount(d, o) => mount::diff(d, o),
        Command(d, o) => command::diff(d, o),
        Check(d, o) => check::diff(d, o),
        Sweep(d, o) => sweep::diff(d, o),
    })
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
    let otherwise =
        || Err(ApplyError::Vanished { what: "the step".to_owned(), why: "observed as another kind".to_owned() });
    of_both!(desired, observed, otherwise otherwise(), {
        File(d, o) => file::apply(&host.root, d, o, *names),
        Directory(d, o) => directory::apply(&host.root, d, o, *names, *ruled),
        Symlink(d, o) => symlink::apply(&host.root, d, o),
        Setting(d, o) => setting::apply(&host.root, d, o, *names),
        User(d, o) => user::apply(host, snapshot, d, o),
        Group(d, o) => group::apply(host, snapshot, d, o),
        Package(d, o) => package::apply(host, snapshot, d, o),
        Repository(d, o) => repository::apply(host, d, o),
        Service(d, o) => service::apply(host, d, o),
        Sysctl(d, o) => sysctl::apply(host, d, o),
        KernelModule(d, o) => kernel_module::apply(host, d, o),
        Mount(d, o) => mount::apply(host, d, o),
        Command(d, _) => command::apply(host, snapshot, d),
        Check(_, _) => Err(ApplyError::Protected {
            operation: "repair",
            name: "a check".to_owned(),
            why: "it only says whether all is well",
        }),
        Sweep(d, o) => sweep::apply(host, d, o),
    })
}

/// Why a difference is to be left as it is whatever the policy says of drift, if so.
pub fn excess(desired: &Desired, sighting: &Sighting) -> Option<String> {
    let (Desired::Directory(d), Observed::Directory(o)) = (desired, &sighting.observed) else { return None };
    directory::excess(d, o)
}

/// Why a step must not be attempted although it is due, with a word for the reason, if so.
pub fn refusal(desired: &Desired, sighting: &Sighting) -> Option<(String, &'static str)> {
    let (Desired::File(d), Observed::File(o)) = (desired, &sighting.observed) else { return None };
    file::refusal(d, o)
}

/// The directory from which a step removes what nobody declares, if it is such a step.
pub fn purges<'a>(desired: &'a Desired, sighting: &Sighting) -> Option<&'a directory::Desired> {
    let (Desired::Directory(d), Observed::Directory(o)) = (desired, &sighting.observed) else { return None };
    directory::purges(o).then_some(d)
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
    let at = |path: &AbsPath, node: &Node| {
        // What stands where a secret belongs may be the one before it. It is not kept in clear, and nobody could read it otherwise.
        if desired.is_secret() { Replaced::Nothing } else { at_place(root, path, node) }
    };
    of_both!(desired, &sighting.observed, otherwise Replaced::Nothing, {
        File(d, o) => match (d.ensure.present(), o.present().map(|o| &o.node)) {
            (Some(spec), Some(Node::File(content))) if spec.content.is(content) => Replaced::Nothing,
            (_, Some(node)) => at(&d.path, node),
            (_, None) => Replaced::Nothing,
        },
        Directory(d, o) => o.present().map_or(Replaced::Nothing, |o| at(&d.path, &o.place.node)),
        Symlink(d, o) => o.present().map_or(Replaced::Nothing, |o| at(&d.path, &o.node)),
        Setting(d, o) => match o.present().map(|o| &o.node) {
            // What cannot be edited is not touched.
            Some(Node::File(content)) if setting::replacement(d, content).is_some() => {
                Replaced::Contents(vec![content.clone()])
            }
            Some(Node::File(_) | Node::Unread | Node::Directory | Node::Symlink(_) | Node::Special) | None => {
                Replaced::Nothing
            }
        },
        User(_, o) => contents(o, |o| user::overwritten_keys(o).into_iter().collect()),
        Repository(d, o) => contents(o, |o| repository::replaced(d, o)),
        Sysctl(d, o) => contents(o, |o| sysctl::replaced(d, o)),
        KernelModule(d, o) => contents(o, |o| kernel_module::replaced(d, o)),
        Mount(d, o) => contents(o, |o| mount::replaced(d, o).into_iter().collect()),
        Group(_, _) => Replaced::Nothing,
        Package(_, _) => Replaced::Nothing,
        Service(_, _) => Replaced::Nothing,
        Command(_, _) => Replaced::Nothing,
        Check(_, _) => Replaced::Nothing,
        Sweep(_, _) => Replaced::Nothing,
    })
}

/// What is lost with what stands at a path.
fn at_place(root: &Root, path: &AbsPath, node: &Node) -> Replaced {
    match node {
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

/// What a step overwrites of the agent's own files, or of others that the resource found for itself.
fn contents<'o, T>(observation: &'o Observation<T>, replaced: impl FnOnce(&'o T) -> Vec<&'o [u8]>) -> Replaced {
    let contents: Vec<Vec<u8>> =
        observation.present().map(replaced).into_iter().flatten().map(<[u8]>::to_vec).collect();
    if contents.is_empty() { Replaced::Nothing } else { Replaced::Contents(contents) }
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
    /// The path at which it is what stands there, or which it edits.
    pub fn path(&self) -> Option<&AbsPath> {
        match self {
            Self::File(file) => Some(&file.path),
            Self::Directory(directory) => Some(&directory.path),
            Self::Symlink(symlink) => Some(&symlink.path),
            Self::Setting(setting) => Some(&setting.path),
            Self::User(_)
            | Self::Group(_)
            | Self::Package(_)
            | Self::Repository(_)
            | Self::Service(_)
            | Self::Sysctl(_)
            | Self::KernelModule(_)
            | Self::Mount(_)
            | Self::Command(_)
            | Self::Check(_)
            | Self::Sweep(_) => None,
        }
    }

    /// Whether anything is left when it is no longer declared: what was declared absent leaves nothing, and what runs or looks
    /// at something is nothing that could be left.
    pub fn leaves_something(&self) -> bool {
        match self {
            Self::File(d) => d.ensure != Ensure::Absent,
            Self::Directory(d) => d.ensure != Ensure::Absent,
            Self::Symlink(d) => d.ensure != Ensure::Absent,
            Self::User(d) => d.ensure != Ensure::Absent,
            Self::Group(d) => d.ensure != Ensure::Absent,
            Self::Package(d) => d.ensure != Ensure::Absent,
            Self::Repository(d) => d.ensure != Ensure::Absent,
            Self::Mount(_) | Self::Service(_) | Self::Setting(_) | Self::Sysctl(_) | Self::KernelModule(_) => true,
            Self::Command(_) | Self::Check(_) | Self::Sweep(_) => false,
        }
    }

    /// Whether it holds what the policy holds encrypted only.
    pub fn is_secret(&self) -> bool {
        match self {
            Self::File(file) => file.ensure.present().is_some_and(|spec| spec.content.is_secret()),
            Self::User(user) => {
                user.ensure.present().is_some_and(|spec| matches!(spec.password, Some(user::Password::Secret(_))))
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
