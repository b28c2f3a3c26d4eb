//! What the formats with keys have in common: finding a key, and making it stand exactly as often as it has values.

use std::ops::Range;

use super::{EditError, shown};
use crate::resource::Change;
use crate::resource::lines::Lines;

/// Which of several values of one key a reader of the format takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wins {
    First,
    Last,
}

/// How one format writes a key and its value.
pub(super) trait Syntax {
    /// Which value counts where there are several.
    const WINS: Wins;

    /// Where in the line the value is, when the line sets this key.
    fn value(&self, body: &[u8], key: &str) -> Option<Range<usize>>;

    /// Whether the line sets any key, so that a new line can be written like it.
    fn is_setting(&self, body: &[u8]) -> bool;

    /// Whether the line is this key's default, commented out.
    fn is_commented(&self, body: &[u8], key: &str) -> bool;

    /// Whether the value in `body` goes on in `next`.
    fn continues(&self, body: &[u8], next: &[u8]) -> bool;

    /// Whether what stands there means what is wanted.
    fn is_same(&self, found: &[u8], wanted: &str) -> bool;

    /// The line with another value; `None` when the line's quotes cannot hold it.
    fn rewritten(&self, body: &[u8], value: Range<usize>, wanted: &str) -> Option<Vec<u8>>;

    /// A line of its own, written as `like` is.
    fn fresh(&self, like: Option<&[u8]>, key: &str, wanted: &str) -> Vec<u8>;
}

/// The part of a file that is edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    /// Lines that may set the key.
    pub(super) ranges: Vec<Range<usize>>,
    /// Where a line goes that nothing else gives a place to.
    pub(super) end: usize,
}

/// Makes `key` stand once for each of `wanted`, in that order, and nowhere else in the scope. Returns what differed, under
/// `name`.
pub(super) fn set<S: Syntax>(
    syntax: &S,
    lines: &mut Lines<'_>,
    scope: &Scope,
    key: &str,
    name: &str,
    wanted: &[String],
) -> Result<Option<Change>, EditError> {
    let in_scope = || scope.ranges.iter().cloned().flatten();
    let found: Vec<(usize, Range<usize>)> =
        in_scope().filter_map(|at| Some((at, syntax.value(lines.body(at), key)?))).collect();
    let value = |(at, range): &(usize, Range<usize>)| lines.body(*at).get(range.clone()).unwrap_or_default();
    let is_same = |found: &(usize, Range<usize>), wanted: &str| syntax.is_same(value(found), wanted);
    // Half of a value would be compared, or left behind.
    if let Some((at, _)) = found.iter().find(|(at, _)| syntax.continues(lines.body(*at), lines.body(at + 1))) {
        return Err(EditError::Continued { key: name.to_owned(), line: at + 1 });
    }
    if found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| is_same(found, wanted)) {
        return Ok(None);
    }
    let from: Vec<String> = found.iter().map(|found| shown(value(found))).collect();
    let change = Change::value(name, joined(&from), joined(wanted));
    // One value stays where the one stood that counted.
    let n_kept = wanted.len().min(found.len());
    let first = if S::WINS == Wins::Last && wanted.len() == 1 { found.len() - n_kept } else { 0 };
    let kept = found.get(first..first + n_kept).unwrap_or_default();
    let like =
        kept.first().map(|(at, _)| *at).or_else(|| in_scope().filter(|at| syntax.is_setting(lines.body(*at))).last());
    let like = like.map(|at| lines.body(at).to_vec());
    let commented = || {
        let mut commented = in_scope().filter(|at| syntax.is_commented(lines.body(*at), key));
        match S::WINS {
            Wins::First => commented.next(),
            Wins::Last => commented.last(),
        }
    };
    let place = kept.last().map(|(at, _)| *at).or_else(commented).map_or(scope.end, |at| at + 1);
    let mut rewritten = Vec::new();
    for (found, wanted) in kept.iter().zip(wanted).filter(|(found, wanted)| !is_same(found, wanted)) {
        let (at, range) = found;
        let body = syntax.rewritten(lines.body(*at), range.clone(), wanted);
        rewritten.push((*at, body.ok_or_else(|| EditError::Quote { key: name.to_owned(), line: at + 1 })?));
    }
    for (at, body) in rewritten {
        lines.replace(at, body);
    }
    let fresh: Vec<Vec<u8>> =
        wanted.iter().skip(n_kept).map(|wanted| syntax.fresh(like.as_deref(), key, wanted)).collect();
    // What a commented line goes on in stays with it, and does not become the end of ours.
    let free = |last: &Vec<u8>| (place..=lines.len()).find(|at| !syntax.continues(last, lines.body(*at)));
    let place = fresh.last().and_then(free).unwrap_or(place);
    for line in fresh.into_iter().rev() {
        lines.insert(place, line);
    }
    // From the back, so that what is before keeps its place. There is nothing to remove where something was added.
    for (at, _) in found.iter().skip(first + n_kept).rev().chain(found.iter().take(first).rev()) {
        lines.remove(*at);
    }
    Ok(Some(change))
}

/// Several values of one key as one text.
fn joined(values: &[String]) -> Option<String> {
    (!values.is_empty()).then(|| values.join(" | "))
}
