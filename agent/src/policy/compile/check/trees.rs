//! Rules over trees that would do more harm than anybody means.

use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::resource::{Desired, Ensure, Kind, directory};

use super::Graph;
use super::protected::is_beneath;

/// Directories that hold what the host is made of, or everybody's own things: no rule may be made for all that is in one of
/// them. Those above them are meant as well.
const SHARED: &[&str] = &[
    "/bin",
    "/boot",
    "/boot/efi",
    "/dev",
    "/etc",
    "/etc/alternatives",
    "/etc/pam.d",
    "/etc/rekindle",
    "/etc/selinux",
    "/etc/ssl",
    "/etc/systemd",
    "/etc/systemd/system",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/include",
    "/usr/lib",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local",
    "/usr/local/lib",
    "/usr/sbin",
    "/usr/share",
    "/usr/src",
    "/var",
    "/var/backups",
    "/var/cache",
    "/var/lib",
    "/var/lib/dpkg",
    "/var/lib/rpm",
    "/var/lib/systemd",
    "/var/lock",
    "/var/log",
    "/var/mail",
    "/var/run",
    "/var/spool",
    "/var/tmp",
];

/// Directories beneath which everything is somebody else's business: the kernel's, or the agent's own.
const FOREIGN: &[&str] =
    &["/dev", "/etc/rekindle", "/proc", "/run/rekindle", "/sys", "/usr/lib/rekindle", "/var/lib/rekindle"];

/// Refuses rules over directories that are no policy's own, and warns of a purge that leaves nothing.
pub(super) fn check(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    let homes = homes(graph);
    for (i, declaration) in graph.active() {
        let Some(Desired::Directory(directory)) = graph.lowered(i).map(|lowered| &lowered.desired) else { continue };
        let Some(rules) = directory.rules() else { continue };
        let purge = rules.purge.as_ref().filter(|purge| purge.depth != directory::Depth::Nothing);
        for attribute in ["purge", "recurse"] {
            let is_meant = if attribute == "purge" { purge.is_some() } else { rules.recurse.is_some() };
            let homes = if attribute == "purge" { homes.as_slice() } else { &[] };
            let Some(field) = declaration.fields.get(attribute).filter(|_| is_meant) else { continue };
            let depth = purge.map_or(directory::Depth::Nothing, |purge| purge.depth);
            let Some(why) = refused(&declaration.id.name, depth, homes) else { continue };
            out.push(
                Diagnostic::error("protected", format!("`{}` must not have `{attribute}`: {why}", declaration.id))
                    .at(declaration.fields.place(field.key.clone()), "")
                    .expected("a directory that holds nothing but what the policy speaks of, such as `/etc/sudoers.d`"),
            );
        }
        if let Some(purge) = purge
            && declaration.fields.get("keep").is_none()
            && !has_anything_beneath(graph, &declaration.id.name, purge.depth)
        {
            out.push(
                Diagnostic::warning("purge", format!("nothing beneath `{}` is declared", declaration.id.name))
                    .at(declaration.name.clone(), "everything in it will be removed")
                    .hint("if that is meant, add `keep = []`"),
            );
        }
    }
}

fn refused(path: &str, purge: directory::Depth, homes: &[&str]) -> Option<String> {
    if let Some(shared) = SHARED.iter().find(|shared| is_beneath(shared, path)) {
        return Some(if *shared == path {
            "the system itself is in it".to_owned()
        } else {
            format!("`{shared}`, in which the system itself is, is beneath it")
        });
    }
    if let Some(foreign) = FOREIGN.iter().find(|foreign| is_beneath(path, foreign)) {
        return Some(format!("what is in `{foreign}` is no policy's business"));
    }
    // What somebody keeps at home is their own.
    let is_purged = |home: &str| home == path || purge == directory::Depth::Recursive && is_beneath(home, path);
    let home = homes.iter().find(|home| is_purged(home))?;
    Some(format!("`{home}` is the home of a declared user"))
}

fn homes<'a>(graph: &Graph<'a, '_>) -> Vec<&'a str> {
    let mut homes = Vec::new();
    for (i, declaration) in graph.active() {
        if declaration.id.kind == Kind::User
            && let Some(Desired::User(user)) = graph.lowered(i).map(|lowered| &lowered.desired)
            && let Ensure::Present(spec) = &user.ensure
        {
            homes.extend(spec.home.as_ref().and_then(|home| home.as_path().to_str()));
        }
    }
    homes
}

/// Whether a purge of the directory leaves anything for which it was declared.
fn has_anything_beneath(graph: &Graph<'_, '_>, path: &str, depth: directory::Depth) -> bool {
    graph.active().any(|(i, other)| {
        let rest = other.id.name.strip_prefix(path).and_then(|rest| rest.strip_prefix('/'));
        let is_near = |rest: &str| depth == directory::Depth::Recursive || !rest.contains('/');
        other.id.kind.is_place() && rest.is_some_and(is_near) && !graph.is_absent(i)
    })
}
