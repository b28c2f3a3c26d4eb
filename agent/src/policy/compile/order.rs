//! Edges between resources, explicit and automatic, and an order in which requirements come first.

use std::collections::{BTreeMap, HashSet};

use super::check::{Graph, path_of};
use super::load::service_name;
use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::resource::place::Ownership;
use crate::resource::{Argv, Desired, Ensure, Kind, Principal, ResourceId, user};

/// For each resource what it requires, without duplicates, and why.
#[derive(Debug)]
pub(super) struct Edges(Vec<Vec<(usize, Reason)>>);

/// Where an edge comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// Written in `requires`.
    Declared,
    /// Follows from what the resources are; in words, "because …".
    Automatic(&'static str),
}

impl Edges {
    /// What a resource requires.
    pub(super) fn requires(&self, i: usize) -> impl Iterator<Item = usize> {
        self.0.get(i).into_iter().flatten().map(|(target, _)| *target)
    }

    fn of(&self, i: usize) -> &[(usize, Reason)] {
        self.0.get(i).map_or(&[], Vec::as_slice)
    }
}

/// Directories that a package of their name owns, by convention.
const PACKAGE_PARENTS: [&str; 7] = ["/etc", "/etc/default", "/usr/share", "/usr/lib", "/var/lib", "/var/log", "/opt"];

/// Collects every edge. References to what does not exist were reported by [`super::check`].
pub(super) fn edges(graph: &Graph<'_, '_>, out: &mut Diagnostics) -> Edges {
    let n = graph.len();
    let mut builder = Builder { lists: vec![Vec::new(); n], declared: HashSet::new(), known: HashSet::new() };
    for i in 0..n {
        let (Some(declaration), Some(lowered)) = (graph.declaration(i), graph.lowered(i)) else { continue };
        for (target, place) in &lowered.requires {
            let Some(target) = graph.find(target) else { continue };
            if target == i {
                out.push(
                    Diagnostic::error("cycle", format!("`{}` requires itself", declaration.id))
                        .at(place.clone(), "")
                        .hint("remove it from `requires`"),
                );
                continue;
            }
            builder.declared.insert((i, target));
            builder.known.insert((i, target));
            if let Some(list) = builder.lists.get_mut(i) {
                list.push((target, Reason::Declared));
            }
        }
    }
    for i in 0..n {
        automatic(graph, i, &mut builder);
    }
    repositories_first(graph, &mut builder);
    Edges(builder.lists)
}

struct Builder {
    lists: Vec<Vec<(usize, Reason)>>,
    declared: HashSet<(usize, usize)>,
    known: HashSet<(usize, usize)>,
}

impl Builder {
    /// Everything that some need, however far.
    fn needed(&self, these: impl IntoIterator<Item = usize>) -> HashSet<usize> {
        let mut needed = HashSet::new();
        let mut open: Vec<usize> = these.into_iter().collect();
        while let Some(i) = open.pop() {
            let targets = self.lists.get(i).into_iter().flatten().map(|(to, _)| *to);
            open.extend(targets.filter(|to| needed.insert(*to)));
        }
        needed
    }

    /// Makes `from` wait for `to`, unless the policy says the opposite or it is the same resource.
    fn automatic(&mut self, from: usize, to: Option<usize>, why: &'static str) {
        let Some(to) = to.filter(|to| *to != from) else { return };
        if self.declared.contains(&(to, from)) || !self.known.insert((from, to)) {
            return;
        }
        if let Some(list) = self.lists.get_mut(from) {
            list.push((to, Reason::Automatic(why)));
        }
    }
}

/// What apt reads before it fetches anything.
const FOR_REPOSITORIES: [&str; 3] = ["/etc/apt/auth.conf.d/", "/etc/apt/apt.conf.d/", "/etc/apt/keyrings"];
/// What decides which version of a package comes.
const FOR_PACKAGES: [&str; 1] = ["/etc/apt/preferences.d/"];

/// A package may come from any repository, so all of them come before it, and what tells apt how to get it: but for packages that
/// these themselves need.
fn repositories_first(graph: &Graph<'_, '_>, builder: &mut Builder) {
    let all = |is_one: &dyn Fn(&ResourceId) -> bool| -> Vec<usize> {
        (0..graph.len()).filter(|i| graph.declaration(*i).is_some_and(|declaration| is_one(&declaration.id))).collect()
    };
    let repositories = all(&|id| id.kind == Kind::Repository);
    let beneath =
        |places: &[&str]| all(&|id| id.kind.is_place() && places.iter().any(|place| id.name.starts_with(place)));
    if !repositories.is_empty() {
        for file in beneath(&FOR_REPOSITORIES) {
            let needed = builder.needed([file]);
            for repository in repositories.iter().filter(|repository| !needed.contains(repository)) {
                builder.automatic(*repository, Some(file), "apt reads it when it fetches from the repository");
            }
        }
    }
    let preferences = beneath(&FOR_PACKAGES);
    let needed = builder.needed(repositories.iter().chain(&preferences).copied());
    for package in all(&|id| id.kind == Kind::Package).into_iter().filter(|package| !needed.contains(package)) {
        for repository in &repositories {
            builder.automatic(package, Some(*repository), "the package may come from the repository");
        }
        for file in &preferences {
            builder.automatic(package, Some(*file), "the file decides which version of a package comes");
        }
    }
}

fn automatic(graph: &Graph<'_, '_>, i: usize, builder: &mut Builder) {
    let Some(lowered) = graph.lowered(i) else { return };
    for (_, unit) in &lowered.notifies {
        let service = graph.find(&ResourceId::new(Kind::Service, service_name(unit)));
        // A service that is owed something by another service's change is no earlier than it either.
        if let Some(service) = service {
            builder.automatic(service, Some(i), "it restarts or reloads the service");
        }
    }
    if let Some(argv) = &lowered.validate {
        builder.automatic(i, file_of(graph, argv), "the file is the program that looks at it");
    }
    match &lowered.desired {
        Desired::Command(command) => {
            let argvs = [Some(&command.program.argv), command.onlyif.as_ref(), command.unless.as_ref()];
            runs(graph, i, argvs.into_iter().flatten(), command.program.user.as_deref(), builder);
        }
        Desired::Check(check) => {
            runs(graph, i, [&check.program.argv], check.program.user.as_deref(), builder);
        }
        Desired::File(file) => path(graph, i, file.ensure.present().map(|spec| &*spec.ownership), builder),
        Desired::Directory(directory) => {
            path(graph, i, directory.ensure.present().map(|spec| &*spec.ownership), builder);
            if let Some(rule) = directory.rules().and_then(|rules| rules.recurse.as_ref()) {
                owned_by(graph, i, rule.owner.as_ref(), rule.group.as_ref(), builder);
            }
        }
        Desired::Symlink(_) => path(graph, i, None, builder),
        Desired::Setting(setting) => path(graph, i, Some(&setting.spec.ownership()), builder),
        Desired::Repository(_) | Desired::Sysctl(_) | Desired::KernelModule(_) | Desired::Sweep(_) => {}
        Desired::Mount(_) => {
            let Some(declaration) = graph.declaration(i) else { return };
            let name = &*declaration.id.name;
            if let Some(parent) = graph.nearest_ancestor(name).filter(|parent| !graph.is_absent(*parent)) {
                builder.automatic(i, Some(parent), "the mount point is below it");
            }
            let above = name.rsplit_once('/').map(|(above, _)| if above.is_empty() { "/" } else { above });
            builder.automatic(i, above.and_then(|above| graph.mount_of(above)), "it is mounted below that mount");
        }
        Desired::User(user) => {
            if let Ensure::Present(spec) = &user.ensure {
                user_groups(graph, i, user.name.as_str(), spec, builder);
                let home = spec.home.as_ref().map(ToString::to_string);
                builder.automatic(i, home.and_then(|home| graph.mount_of(&home)), "the home is in the mount");
            }
        }
        Desired::Group(group) => {
            if group.ensure == Ensure::Absent {
                // groupdel refuses the primary group of a user that is still there.
                let user = graph.find(&ResourceId::new(Kind::User, group.name.as_str()));
                builder.automatic(i, user.filter(|user| graph.is_absent(*user)), "the user leaves before its group");
            }
        }
        Desired::Package(package) => {
            if package.ensure == Ensure::Absent {
                let name = package.name.as_str().split(':').next().unwrap_or_default();
                let service = graph.find(&ResourceId::new(Kind::Service, name));
                let stops = service.filter(|service| stops(graph, *service));
                builder.automatic(i, stops, "the service stops before its package goes");
            }
        }
        Desired::Service(service) => {
            let name = service_name(&service.unit);
            let package = graph.package(name.split(['@', '.']).next().unwrap_or_default());
            builder.automatic(
                i,
                package.filter(|package| !graph.is_absent(*package)),
                "the package brings the service",
            );
        }
    }
}

/// The declared file that is a program, unless it is to be gone.
fn file_of(graph: &Graph<'_, '_>, argv: &Argv) -> Option<usize> {
    graph.find(&ResourceId::new(Kind::File, argv.program())).filter(|file| !graph.is_absent(*file))
}

fn runs<'p>(
    graph: &Graph<'_, '_>,
    i: usize,
    argvs: impl IntoIterator<Item = &'p Argv>,
    user: Option<&str>,
    builder: &mut Builder,
) {
    for argv in argvs {
        builder.automatic(i, file_of(graph, argv), "the file is the program that it runs");
    }
    let user = user.and_then(|user| graph.find(&ResourceId::new(Kind::User, user)));
    builder.automatic(i, user.filter(|user| !graph.is_absent(*user)), "it runs as the user");
}

fn stops(graph: &Graph<'_, '_>, i: usize) -> bool {
    matches!(graph.lowered(i).map(|lowered| &lowered.desired), Some(Desired::Service(service)) if service.stops())
}

fn path(graph: &Graph<'_, '_>, i: usize, owners: Option<&Ownership>, builder: &mut Builder) {
    let Some(declaration) = graph.declaration(i) else { return };
    let Some(name) = path_of(declaration) else { return };
    if let Some(parent) = graph.nearest_ancestor(name) {
        let is_directory = graph.declaration(parent).is_some_and(|parent| parent.id.kind == Kind::Directory);
        if is_directory && graph.is_absent(parent) {
            // Only an empty directory is removed: what is removed from it goes first.
            builder.automatic(parent, Some(i), "the directory is removed after what is in it");
        } else if is_directory && !graph.is_absent(i) {
            builder.automatic(i, Some(parent), "the directory is above it");
        }
    }
    // What is declared below a mount point, or at it, is what is mounted there.
    builder.automatic(i, graph.mount_of(name), "it is in the mount");
    let Some(Ownership { owner, group, .. }) = owners else { return };
    owned_by(graph, i, Some(owner), Some(group), builder);
    for prefix in PACKAGE_PARENTS {
        let rest = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/'));
        if let Some(first) = rest.and_then(|rest| rest.split('/').next()) {
            let package = graph.package(first).filter(|package| !graph.is_absent(*package));
            builder.automatic(i, package, "the package owns the directory");
        }
    }
}

fn owned_by(
    graph: &Graph<'_, '_>,
    i: usize,
    owner: Option<&Principal>,
    group: Option<&Principal>,
    builder: &mut Builder,
) {
    if let Some(Principal::Name(owner)) = owner {
        builder.automatic(i, graph.find(&ResourceId::new(Kind::User, owner.as_str())), "the user owns it");
    }
    if let Some(Principal::Name(group)) = group {
        builder.automatic(i, graph.group_provider(group), "the group owns it");
    }
}

fn user_groups(graph: &Graph<'_, '_>, i: usize, name: &str, spec: &user::Spec, builder: &mut Builder) {
    let present =
        |group: &str| graph.find(&ResourceId::new(Kind::Group, group)).filter(|group| !graph.is_absent(*group));
    let primary = match &spec.group {
        Some(Principal::Name(group)) => present(group),
        Some(Principal::Id(gid)) => graph.group_with_gid(*gid),
        Some(Principal::Agent) | None => present(name),
    };
    builder.automatic(i, primary, "it is the user's primary group");
    for group in &spec.groups {
        builder.automatic(i, present(group.as_str()), "the user is in the group");
    }
}

/// An order in which requirements come first, as near to the policy's own as that allows. Reports every cycle that it meets.
///
/// A depth-first walk in the order of the policy: linear, and deterministic. It keeps its own stack, because a policy may
/// chain more resources than the thread's stack would bear.
pub(super) fn sort(graph: &Graph<'_, '_>, edges: &Edges, out: &mut Diagnostics) -> Vec<usize> {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let n = graph.len();
    let mut marks = vec![Mark::New; n];
    let mut order = Vec::with_capacity(n);
    for start in 0..n {
        // The resource, and how many of its edges were followed.
        let mut stack: Vec<(usize, usize)> = vec![(start, 0)];
        while let Some((node, followed)) = stack.pop() {
            match (marks.get(node), followed) {
                (Some(Mark::New), 0) | (Some(Mark::Open), 1..) => {}
                (Some(Mark::New | Mark::Open | Mark::Done) | None, _) => continue,
            }
            if let Some(mark) = marks.get_mut(node) {
                *mark = Mark::Open;
            }
            let Some((target, _)) = edges.of(node).get(followed) else {
                if let Some(mark) = marks.get_mut(node) {
                    *mark = Mark::Done;
                }
                order.push(node);
                continue;
            };
            stack.push((node, followed + 1));
            match marks.get(*target) {
                Some(Mark::New) => stack.push((*target, 0)),
                Some(Mark::Open) => {
                    let open: Vec<usize> = stack.iter().map(|(node, _)| *node).collect();
                    let cycle = open.iter().position(|node| node == target).and_then(|at| open.get(at..));
                    report_cycle(graph, edges, cycle.unwrap_or_default(), out);
                }
                Some(Mark::Done) | None => {}
            }
        }
    }
    order
}

fn report_cycle(graph: &Graph<'_, '_>, edges: &Edges, cycle: &[usize], out: &mut Diagnostics) {
    /// More links than a person can follow.
    const MAX_SHOWN: usize = 20;
    let Some(first) = cycle.first().and_then(|i| graph.declaration(*i)) else { return };
    let names: Vec<String> = cycle
        .iter()
        .chain(cycle.first())
        .filter_map(|i| graph.declaration(*i))
        .map(|d| format!("`{}`", d.id))
        .collect();
    let shown = if names.len() > MAX_SHOWN {
        let head = names.get(..MAX_SHOWN).unwrap_or_default().join(" → ");
        format!("{head} → … ({} resources)", cycle.len())
    } else {
        names.join(" → ")
    };
    let mut diagnostic = Diagnostic::error("cycle", format!("resources require each other: {shown}"));
    let mut labels: BTreeMap<usize, String> = BTreeMap::new();
    let mut is_all_automatic = true;
    for (at, node) in cycle.iter().enumerate().take(MAX_SHOWN) {
        let target = cycle.get((at + 1) % cycle.len().max(1)).copied();
        let reason = edges.of(*node).iter().find(|(to, _)| Some(*to) == target).map(|(_, reason)| *reason);
        let name = target.and_then(|to| graph.declaration(to)).map(|d| d.id.to_string()).unwrap_or_default();
        labels.insert(
            at,
            match reason {
                Some(Reason::Automatic(why)) => format!("comes after `{name}`: {why}"),
                Some(Reason::Declared) | None => {
                    is_all_automatic = false;
                    format!("requires `{name}`")
                }
            },
        );
    }
    for (at, node) in cycle.iter().enumerate().take(MAX_SHOWN) {
        let Some(declaration) = graph.declaration(*node) else { continue };
        let label = labels.remove(&at).unwrap_or_default();
        diagnostic = if at == 0 {
            diagnostic.at(first.name.clone(), label)
        } else {
            diagnostic.also(declaration.name.clone(), label)
        };
    }
    let hint =
        if is_all_automatic { "write one `requires` in the direction that you mean" } else { "remove one `requires`" };
    out.push(diagnostic.hint(hint));
}
