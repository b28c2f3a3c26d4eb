//! How resources fit together: everything that no single declaration shows.
//!
//! Each check reports all that it finds. None looks at the host: what the host has is in the [`HostView`], and without one
//! the checks that need it are left out or become warnings.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::load::{Declaration, Loaded};
use super::lower::{Lowered, setting};
use crate::policy::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::policy::facts::HostView;
use crate::policy::schema::closest;
use crate::resource::{Desired, Ensure, Kind, Principal, ResourceId, directory, file};

mod lockout;
mod protected;
mod reach;
mod settings;
mod trees;

/// Most names that a "did you mean" is looked for in.
const MAX_SUGGESTIONS: usize = 2000;

/// The active declarations, what they mean, and the ways to find them.
pub(super) struct Graph<'a, 'v> {
    loaded: &'a Loaded<'v>,
    lowered: &'a [Option<Lowered>],
    host: Option<&'a HostView>,
    /// The first of each name; later ones are refused.
    index: HashMap<&'a ResourceId, usize>,
    /// The first of each path, whatever its kind.
    paths: HashMap<&'a str, usize>,
    /// Packages by name without architecture.
    packages: HashMap<&'a str, usize>,
    /// Settings by the file that they edit.
    settings: HashMap<&'a str, Vec<usize>>,
    /// Mounts by mount point.
    mounts: HashMap<&'a str, usize>,
    gids: HashMap<u32, usize>,
}

impl<'a, 'v> Graph<'a, 'v> {
    pub(super) fn new(loaded: &'a Loaded<'v>, lowered: &'a [Option<Lowered>], host: Option<&'a HostView>) -> Self {
        let mut graph = Self {
            loaded,
            lowered,
            host,
            index: HashMap::with_capacity(lowered.len()),
            paths: HashMap::new(),
            packages: HashMap::new(),
            settings: HashMap::new(),
            mounts: HashMap::new(),
            gids: HashMap::new(),
        };
        for (i, declaration) in loaded.active.iter().enumerate() {
            let id = &declaration.id;
            graph.index.entry(id).or_insert(i);
            match id.kind {
                Kind::File | Kind::Directory | Kind::Symlink => {
                    graph.paths.entry(&id.name).or_insert(i);
                }
                Kind::Package => {
                    graph.packages.entry(without_architecture(&id.name)).or_insert(i);
                }
                Kind::Group => {
                    if let Some((gid, _)) = declaration.fields.id("gid") {
                        graph.gids.entry(gid).or_insert(i);
                    }
                }
                Kind::Setting => {
                    if let Some(path) = path_of(declaration) {
                        graph.settings.entry(path).or_default().push(i);
                    }
                }
                Kind::Mount => {
                    graph.mounts.entry(&id.name).or_insert(i);
                }
                Kind::User
                | Kind::Service
                | Kind::Sysctl
                | Kind::Repository
                | Kind::KernelModule
                | Kind::Command
                | Kind::Check
                | Kind::Sweep => {}
            }
        }
        graph
    }

    pub(super) fn len(&self) -> usize {
        self.lowered.len()
    }

    pub(super) fn declaration(&self, i: usize) -> Option<&'a Declaration<'v>> {
        self.loaded.active.get(i)
    }

    pub(super) fn lowered(&self, i: usize) -> Option<&'a Lowered> {
        self.lowered.get(i).and_then(Option::as_ref)
    }

    pub(super) fn find(&self, id: &ResourceId) -> Option<usize> {
        self.index.get(id).copied()
    }

    pub(super) fn package(&self, name: &str) -> Option<usize> {
        self.packages.get(name).copied()
    }

    pub(super) fn group_with_gid(&self, gid: u32) -> Option<usize> {
        self.gids.get(&gid).copied()
    }

    /// The resource that makes sure that a group is there: the group, or a user that brings a group of its own name.
    pub(super) fn group_provider(&self, name: &str) -> Option<usize> {
        let group = self.find(&ResourceId::new(Kind::Group, name)).filter(|i| !self.is_absent(*i));
        group.or_else(|| {
            let user = self.find(&ResourceId::new(Kind::User, name)).filter(|i| !self.is_absent(*i))?;
            self.declaration(user)?.fields.get("group").is_none().then_some(user)
        })
    }

    /// Whether the policy wants it gone.
    pub(super) fn is_absent(&self, i: usize) -> bool {
        self.declaration(i).and_then(|declaration| declaration.fields.text("state")).is_some_and(|s| s.text == "absent")
    }

    /// The nearest declared path above one, of whatever kind.
    pub(super) fn nearest_ancestor(&self, path: &str) -> Option<usize> {
        ancestors(path).find_map(|above| self.paths.get(above).copied())
    }

    /// The nearest declared mount at or above a path that is to be mounted.
    pub(super) fn mount_of(&self, path: &str) -> Option<usize> {
        let nearest = std::iter::once(path).chain(ancestors(path)).find_map(|above| self.mounts.get(above).copied());
        nearest.filter(|mount| {
            let state = self.declaration(*mount).and_then(|declaration| declaration.fields.text("state"));
            state.is_none_or(|state| state.text == "mounted")
        })
    }

    fn active(&self) -> impl Iterator<Item = (usize, &'a Declaration<'v>)> {
        self.loaded.active.iter().enumerate()
    }
}

/// The path that a declaration is about, if it is about one.
pub(super) fn path_of<'a>(declaration: &'a Declaration<'_>) -> Option<&'a str> {
    let Declaration { id, fields, .. } = declaration;
    if id.kind.is_place() {
        return Some(&id.name);
    }
    if id.kind == Kind::Setting { setting::path_of(&id.name, fields.text("path").as_ref()) } else { None }
}

/// The paths above one, the nearest first, `/` last.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        let at = rest.rfind('/')?;
        let (above, _) = rest.split_at_checked(at)?;
        rest = above;
        Some(if above.is_empty() { "/" } else { above })
    })
    .filter(move |above| *above != path)
}

fn without_architecture(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

/// Reports everything that does not fit together.
pub(super) fn check(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    duplicates(graph, out);
    numbers(graph, out);
    paths(graph, out);
    settings::check(graph, out);
    own_files(graph, out);
    mounts(graph, out);
    references(graph, out);
    accounts(graph, out);
    protected::check(graph, out);
    lockout::check(graph, out);
    reach::check(graph, out);
    trees::check(graph, out);
}

fn duplicates(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    for (i, declaration) in graph.active() {
        let id = &declaration.id;
        let first = graph.find(id).filter(|first| *first != i);
        let path = path_of(declaration);
        let other = path.and_then(|path| graph.paths.get(path)).copied().filter(|first| *first != i);
        let diagnostic = if first.is_some() {
            let hint = if id.kind == Kind::Setting {
                "give one of the two another name, and the file as its `path`"
            } else {
                "keep one of the two, or give them conditions (`when`) that exclude each other"
            };
            Diagnostic::error("duplicate", format!("`{id}` is declared twice")).hint(hint)
        } else if other.is_some() {
            let title = format!("two resources claim the path `{}`", path.unwrap_or_default());
            let hint = if id.kind == Kind::Setting {
                "edit a part of the file or declare all of it, not both"
            } else {
                "decide which kind it is, and remove the other"
            };
            Diagnostic::error("conflict", title).hint(hint)
        } else {
            continue;
        };
        let diagnostic = diagnostic.at(declaration.name.clone(), "declared again here");
        out.push(match first.or(other).and_then(|first| graph.declaration(first)) {
            Some(first) => diagnostic.also(first.name.clone(), format!("`{}` is declared here", first.id)),
            None => diagnostic,
        });
    }
}

/// The number of an account, under which attribute, and where.
fn number_of(declaration: &Declaration<'_>) -> Option<(&'static str, u32, Place)> {
    let key = if declaration.id.kind == Kind::User {
        "uid"
    } else if declaration.id.kind == Kind::Group {
        "gid"
    } else {
        return None;
    };
    declaration.fields.id(key).map(|(number, place)| (key, number, place))
}

/// Whether a number may be anybody's is [`protected`]; here, whether two have the same.
fn numbers(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    let mut claimed: HashMap<(Kind, u32), &Declaration<'_>> = HashMap::new();
    for (_, declaration) in graph.active() {
        let Some((key, number, place)) = number_of(declaration) else { continue };
        let Some(first) = claimed.get(&(declaration.id.kind, number)) else {
            claimed.insert((declaration.id.kind, number), declaration);
            continue;
        };
        let title = format!("`{}` and `{}` claim the {key} {number}", first.id, declaration.id);
        let mut diagnostic = Diagnostic::error("conflict", title).at(place, "claimed again here");
        if let Some((_, _, first)) = number_of(first) {
            diagnostic = diagnostic.also(first, "claimed here");
        }
        out.push(diagnostic.hint("give each its own number"));
    }
}

fn paths(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    for (i, declaration) in graph.active() {
        let id = &declaration.id;
        let Some(path) = path_of(declaration) else { continue };
        if path == "/" && (id.kind != Kind::Directory || graph.is_absent(i)) {
            out.push(
                Diagnostic::error("protected", "`/` is a directory and stays one").at(declaration.name.clone(), ""),
            );
            continue;
        }
        // One above is enough: whatever is wrong further up is reported for that one.
        let Some(above) = graph.nearest_ancestor(path) else { continue };
        let Some(other) = graph.declaration(above) else { continue };
        let (what, hint) = if graph.is_absent(above) {
            // What is to be gone below something that is to be gone is well.
            if graph.is_absent(i) {
                continue;
            }
            ("is to be absent", "remove one of the two")
        } else if other.id.kind == Kind::Symlink {
            ("is a symbolic link", "name the path that the link leads to, or declare a directory instead of the link")
        } else if other.id.kind == Kind::File {
            ("is a file", "a file has nothing below it: declare a directory")
        } else {
            continue;
        };
        out.push(
            Diagnostic::error("path", format!("`{id}` lies below `{}`, which {what}", other.id.name))
                .at(declaration.name.clone(), "")
                .also(other.name.clone(), format!("this {what}"))
                .hint(hint),
        );
    }
}

/// A mount point is a directory, and /etc/fstab is edited line by line.
fn mounts(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    let first = graph.active().find(|(_, declaration)| declaration.id.kind == Kind::Mount);
    let table = graph.paths.get("/etc/fstab").copied().or_else(|| graph.settings.get("/etc/fstab")?.first().copied());
    if let (Some((_, mount)), Some(table)) = (first, table.and_then(|table| graph.declaration(table))) {
        out.push(
            Diagnostic::error("conflict", format!("`{}` and `{}` both write /etc/fstab", table.id, mount.id))
                .at(table.name.clone(), "")
                .also(mount.name.clone(), "this edits its own line")
                .hint("declare every mount in the one way or in the other"),
        );
    }
    for (_, declaration) in graph.active().filter(|(_, declaration)| declaration.id.kind == Kind::Mount) {
        let other = graph.paths.get(&*declaration.id.name).and_then(|other| graph.declaration(*other));
        let Some(other) = other.filter(|other| other.id.kind != Kind::Directory) else { continue };
        out.push(
            Diagnostic::error("conflict", format!("two resources claim the path `{}`", declaration.id.name))
                .at(declaration.name.clone(), "a mount point is a directory")
                .also(other.name.clone(), format!("`{}` is declared here", other.id))
                .hint("remove one of the two"),
        );
    }
}

/// Files that the agent writes for other kinds, and that nobody else may claim.
fn own_files(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    for (i, declaration) in graph.active() {
        let Some(lowered) = graph.lowered(i) else { continue };
        for path in lowered.desired.own_files() {
            let path = path.to_string();
            let claim =
                graph.paths.get(path.as_str()).copied().or_else(|| graph.settings.get(path.as_str())?.first().copied());
            let Some(other) = claim.and_then(|other| graph.declaration(other)) else { continue };
            let title = format!("`{}` and `{}` claim the path `{path}`", declaration.id, other.id);
            out.push(
                Diagnostic::error("conflict", title)
                    .at(other.name.clone(), "claimed here")
                    .also(declaration.name.clone(), "this resource writes the file")
                    .hint("remove one of the two"),
            );
        }
    }
}

fn references(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    for (i, _) in graph.active() {
        let Some(lowered) = graph.lowered(i) else { continue };
        for (id, place) in &lowered.requires {
            if graph.find(id).is_some() {
                continue;
            }
            if let Some(inactive) = graph.loaded.inactive.get(id) {
                out.push(
                    Diagnostic::error("reference", format!("`{id}` does not exist on this host"))
                        .at(place.clone(), "required here")
                        .also(inactive.clone(), "declared here, under a condition (`when`) that is false")
                        .hint("give both the same condition"),
                );
                continue;
            }
            // It may be one of those that an error already hides.
            if graph.loaded.damaged {
                continue;
            }
            let diagnostic = Diagnostic::error("reference", format!("`{id}` is not declared")).at(place.clone(), "");
            let best = if graph.len() <= MAX_SUGGESTIONS {
                let names = graph.active().map(|(_, other)| &other.id).filter(|other| other.kind == id.kind);
                closest(&id.name, names.map(|other| &*other.name))
            } else {
                None
            };
            out.push(match best {
                Some(best) => diagnostic
                    .hint(format!("did you mean `{}[{best}]`?", id.kind))
                    .replacement(format!("\"{}[{best}]\"", id.kind)),
                None => diagnostic.hint("declare it, or remove it from `requires`"),
            });
        }
    }
}

/// An account that something names.
#[derive(Debug, Clone, Copy)]
struct Named<'n> {
    /// `User` or `Group`.
    kind: Kind,
    name: &'n str,
    /// The attribute that names it.
    attribute: &'static str,
}

fn accounts(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    let mut warned = HashSet::new();
    for (i, declaration) in graph.active() {
        let Some(lowered) = graph.lowered(i) else { continue };
        let mut named: Vec<Named<'_>> = Vec::new();
        match &lowered.desired {
            Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) => {
                named.extend(owners(Some(&spec.ownership.owner), Some(&spec.ownership.group)));
            }
            Desired::Directory(directory::Desired { ensure: Ensure::Present(spec), .. }) => {
                named.extend(owners(Some(&spec.ownership.owner), Some(&spec.ownership.group)));
                if let Some(rule) = spec.rules.as_ref().and_then(|rules| rules.recurse.as_ref()) {
                    let of_rule = owners(rule.owner.as_ref(), rule.group.as_ref());
                    named.extend(of_rule.map(|named| Named { attribute: "recurse", ..named }));
                }
            }
            Desired::User(user) => {
                if let Ensure::Present(spec) = &user.ensure {
                    named.extend(owners(None, spec.group.as_ref()));
                    let groups = spec.groups.iter();
                    named.extend(groups.map(|g| Named { kind: Kind::Group, name: g.as_str(), attribute: "groups" }));
                }
            }
            Desired::Setting(setting) => {
                named.extend(owners(setting.spec.owner.as_ref(), setting.spec.group.as_ref()));
            }
            Desired::File(_)
            | Desired::Directory(_)
            | Desired::Symlink(_)
            | Desired::Group(_)
            | Desired::Package(_)
            | Desired::Repository(_)
            | Desired::Service(_)
            | Desired::Sysctl(_)
            | Desired::KernelModule(_)
            | Desired::Mount(_)
            | Desired::Command(_)
            | Desired::Check(_)
            | Desired::Sweep(_) => {}
        }
        // A package that was asked for first may bring the account with it.
        let brings = |(id, _): &(ResourceId, _)| {
            id.kind == Kind::Package && graph.find(id).is_some_and(|package| !graph.is_absent(package))
        };
        let may_be_brought = lowered.requires.iter().any(brings);
        for account in named {
            account_exists(graph, declaration, account, may_be_brought, &mut warned, out);
        }
    }
}

/// What ownership names, leaving out numbers, which need not have a name.
fn owners<'n>(owner: Option<&'n Principal>, group: Option<&'n Principal>) -> impl Iterator<Item = Named<'n>> {
    [(Kind::User, owner, "owner"), (Kind::Group, group, "group")].into_iter().filter_map(
        |(kind, principal, attribute)| match principal? {
            Principal::Name(name) => Some(Named { kind, name, attribute }),
            Principal::Id(_) | Principal::Agent => None,
        },
    )
}

fn account_exists<'n>(
    graph: &Graph<'_, '_>,
    declaration: &Declaration<'_>,
    account: Named<'n>,
    may_be_brought: bool,
    warned: &mut HashSet<(Kind, &'n str)>,
    out: &mut Diagnostics,
) {
    let Named { kind, name, attribute } = account;
    let Some(field) = declaration.fields.get(attribute) else { return };
    let place = declaration.fields.place(field.value.span());
    let id = ResourceId::new(kind, name);
    if let Some(declared) = graph.find(&id) {
        if graph.is_absent(declared) {
            let mut diagnostic =
                Diagnostic::error("contradiction", format!("`{}` needs `{id}`, which is to be absent", declaration.id))
                    .at(place, "needed here");
            if let Some(declared) = graph.declaration(declared) {
                diagnostic = diagnostic.also(declared.name.clone(), "absent");
            }
            out.push(diagnostic.hint("name another account, or keep this one"));
        }
        return;
    }
    if name == "root" || may_be_brought || (kind == Kind::Group && graph.group_provider(name).is_some()) {
        return;
    }
    let missing = |diagnostic: Diagnostic, known: Option<&BTreeSet<String>>| {
        let declared = graph.active().map(|(_, other)| &other.id).filter(|other| other.kind == kind);
        let names = declared.map(|other| &*other.name).chain(known.into_iter().flatten().map(String::as_str));
        let best = if graph.len() <= MAX_SUGGESTIONS { closest(name, names) } else { None };
        let diagnostic = diagnostic.at(place.clone(), "");
        match best {
            Some(best) => diagnostic.hint(format!("did you mean `{best}`?")),
            None => diagnostic
                .hint(format!("declare [{kind}.{name}], or if a package brings it, `requires = [\"package[…]\"]`")),
        }
    };
    match graph.host {
        Some(host) => {
            let known = if kind == Kind::User { &host.users } else { &host.groups };
            if !known.contains(name) {
                let title = format!("the {kind} `{name}` is neither declared nor on the host");
                out.push(missing(Diagnostic::error("account", title), Some(known)));
            }
        }
        // Everybody knows these; the rest is said once for each name.
        None if protected::SYSTEM_ACCOUNTS.contains(&name) => {}
        None => {
            if warned.insert((kind, name)) {
                let title = format!("the {kind} `{name}` is not declared; whether the host has it is not known here");
                out.push(missing(Diagnostic::warning("account", title), None));
            }
        }
    }
}
