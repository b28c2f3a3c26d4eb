//! `line`: whole lines that must be there, or must not. A missing one is added at the end; where the others stand, and how
//! often, is not looked at.

use std::collections::HashSet;

use super::{Edited, shown};
use crate::resource::Change;
use crate::resource::lines::Lines;

/// Adds what is missing of `present`, in that order, and removes every line that is in `absent`.
pub fn edit(content: &[u8], present: &[String], absent: &[String]) -> Edited {
    let mut lines = Lines::of(content);
    let mut changes = Vec::new();
    let unwanted: HashSet<&[u8]> = absent.iter().map(String::as_bytes).collect();
    let gone: Vec<usize> = lines.bodies().filter(|(_, body)| unwanted.contains(body)).map(|(at, _)| at).collect();
    for at in gone.iter().rev() {
        changes.push(Change::value("line", Some(shown(lines.body(*at))), None));
        lines.remove(*at);
    }
    changes.reverse();
    let there: HashSet<Vec<u8>> = if present.is_empty() {
        HashSet::new()
    } else {
        let wanted: HashSet<&[u8]> = present.iter().map(String::as_bytes).collect();
        lines.bodies().filter(|(_, body)| wanted.contains(body)).map(|(_, body)| body.to_vec()).collect()
    };
    for line in present.iter().filter(|line| !there.contains(line.as_bytes())) {
        changes.push(Change::value("line", None, Some(line.clone())));
        lines.insert(lines.len(), line.clone().into_bytes());
    }
    Edited { content: lines.to_bytes(), changes }
}
