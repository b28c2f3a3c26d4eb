//! Several settings of one file: they may share it, but nothing in it.

use std::collections::HashMap;

use super::Graph;
use crate::policy::compile::load::Declaration;
use crate::policy::compile::lower::setting::{Claimed, claimed};
use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::resource::Desired;
use crate::resource::setting::{self, Edits, Entry};

pub(super) fn check(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    let mut paths: Vec<_> = graph.settings.iter().filter(|(_, settings)| settings.len() > 1).collect();
    paths.sort_unstable_by_key(|(_, settings)| settings.first());
    for (path, settings) in paths {
        let n_before = out.len();
        same_keys(graph, path, settings, out);
        if out.len() == n_before {
            pairs(graph, path, settings, out);
        }
    }
}

fn same_keys(graph: &Graph<'_, '_>, path: &str, settings: &[usize], out: &mut Diagnostics) {
    let mut seen: HashMap<String, (usize, Claimed)> = HashMap::new();
    for i in settings {
        let Some(declaration) = graph.declaration(*i) else { continue };
        for claim in claimed(&declaration.fields) {
            let Some((other, earlier)) = seen.get(&claim.name) else {
                seen.insert(claim.name.clone(), (*i, claim));
                continue;
            };
            // A line that both want is no contradiction, and twice in one declaration is that one's own business.
            if other == i || claim.wants.is_some() && claim.wants == earlier.wants {
                continue;
            }
            let Some(first) = graph.declaration(*other) else { continue };
            out.push(
                Diagnostic::error("conflict", format!("two settings claim `{}` in `{path}`", claim.name))
                    .at(declaration.fields.place(claim.range.clone()), "claimed again here")
                    .also(first.fields.place(earlier.range.clone()), format!("`{}` claims it here", first.id))
                    .hint("keep it in one of the two"),
            );
        }
    }
}

/// What two settings of one file cannot both have.
fn pairs(graph: &Graph<'_, '_>, path: &str, settings: &[usize], out: &mut Diagnostics) {
    let of = |i: &usize| {
        let Desired::Setting(setting) = &graph.lowered(*i)?.desired else { return None };
        Some((graph.declaration(*i)?, &*setting.spec))
    };
    for (n, i) in settings.iter().enumerate() {
        for j in settings.iter().take(n) {
            let (Some((second, b)), Some((first, a))) = (of(i), of(j)) else { continue };
            let problem = if is_other(a.owner.as_ref(), b.owner.as_ref()) {
                Some(("owner", format!("two settings give `{path}` to different owners")))
            } else if is_other(a.group.as_ref(), b.group.as_ref()) {
                Some(("group", format!("two settings give `{path}` to different groups")))
            } else if is_other(a.mode.as_ref(), b.mode.as_ref()) {
                Some(("mode", format!("two settings give `{path}` different modes")))
            } else {
                match (keyed(&a.edits), keyed(&b.edits)) {
                    (Some(a), Some(b)) if a != b => {
                        Some(("format", format!("two settings read `{path}` in different formats")))
                    }
                    (Some(_), None) if sets_a_key_of(&b.edits, a) => Some(("lines", sets(second, first))),
                    (None, Some(_)) if sets_a_key_of(&a.edits, b) => Some(("lines", sets(first, second))),
                    _ => None,
                }
            };
            let Some((attribute, title)) = problem else { continue };
            let place = |declaration: &Declaration<'_>| {
                let field = declaration.fields.get(attribute);
                field.map_or(declaration.name.clone(), |field| declaration.fields.place(field.value.span()))
            };
            out.push(
                Diagnostic::error("conflict", title)
                    .at(place(second), "")
                    .also(place(first), format!("and `{}` here", first.id))
                    .hint("decide for one of the two"),
            );
        }
    }
}

fn sets(lines: &Declaration<'_>, keys: &Declaration<'_>) -> String {
    format!("a line of `{}` sets a key that `{}` declares", lines.id, keys.id)
}

fn is_other<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a != b)
}

/// The word for a format with keys.
fn keyed(edits: &Edits) -> Option<&'static str> {
    match edits {
        Edits::Space(_) => Some("space"),
        Edits::Ssh(_) => Some("ssh"),
        Edits::Equals(_) => Some("equals"),
        Edits::Ini(_) => Some("ini"),
        Edits::Line { .. } | Edits::Block { .. } => None,
    }
}

/// Whether the lines set one of the keys: each would undo the other for ever.
fn sets_a_key_of(lines: &Edits, keys: &setting::Spec) -> bool {
    let text = match lines {
        Edits::Line { present: lines, .. } | Edits::Block { lines, .. } => lines.join("\n"),
        Edits::Space(_) | Edits::Ssh(_) | Edits::Equals(_) | Edits::Ini(_) => return false,
    };
    // In sections, whichever the lines come to stand in.
    let none = |entries: &[Entry], section: &str| {
        let none = |entry: &Entry| Entry { section: section.to_owned(), values: Vec::new(), ..entry.clone() };
        entries.iter().map(none).collect::<Vec<_>>()
    };
    let without = match &keys.edits {
        Edits::Space(entries) => Edits::Space(none(entries, "")),
        Edits::Ssh(entries) => Edits::Ssh(none(entries, "")),
        Edits::Equals(entries) => Edits::Equals(none(entries, "")),
        Edits::Ini(entries) => Edits::Ini(none(entries, "")),
        Edits::Line { .. } | Edits::Block { .. } => return false,
    };
    without.edit(text.as_bytes()).map_or(true, |edited| !edited.changes.is_empty())
}
