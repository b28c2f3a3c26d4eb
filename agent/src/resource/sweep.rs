//! `sweep`: a rule over whole trees instead of a list of files, such as "no set-user-id program but these".
//!
//! A sweep walks everything that it names, so it does so once a day: in between only what was found is looked at again. What it
//! finds is told, or the bits are taken away.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{AbsPath, Action, ApplyError, Change, Drift, Observation, Snapshot, Verdict};
use crate::actor::command::escaped;
use crate::host::Host;
use crate::host::packages::owner;
use crate::host::sweep::{self, Findings, Found, Question};

pub use crate::host::sweep::Traits;

/// How old a result may be.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Most findings that a change lists.
const MAX_LISTED: usize = 50;
/// Most findings of which the package is looked up.
const MAX_OWNERS: usize = 10;
/// Longest path that is shown, in characters.
const MAX_PATH: usize = 300;

/// A sweep.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// The rule.
    pub rule: Rule,
    /// The last result, while this policy is in force.
    #[serde(skip)]
    last: Mutex<Option<(Instant, Findings)>>,
}

/// What is looked for, where, and what is done about it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rule {
    /// Directories.
    pub under: Vec<AbsPath>,
    /// What makes an entry a finding.
    pub traits: Traits,
    /// Paths that may have it, sorted.
    pub allowed: Vec<String>,
    /// Paths, and patterns of paths, that are of no interest, with what is beneath them.
    pub except: Vec<String>,
    /// What is done.
    pub mend: Mend,
}

/// What is done about what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Mend {
    /// It is told.
    Report,
    /// The set-user-id and set-group-id bits are taken away.
    StripSetuid,
}

impl Desired {
    /// Nothing is known yet.
    pub fn new(rule: Rule) -> Self {
        Self { rule, last: Mutex::new(None) }
    }
}

impl Clone for Desired {
    fn clone(&self) -> Self {
        Self::new(self.rule.clone())
    }
}

impl PartialEq for Desired {
    fn eq(&self, other: &Self) -> bool {
        self.rule == other.rule
    }
}

impl Eq for Desired {}

/// What was found, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Those that are listed.
    pub findings: Findings,
    /// For each, one line for people.
    pub lines: Vec<String>,
}

/// Sweeps, or looks again at what the last sweep found.
pub fn observe(host: &Host, snapshot: &mut Snapshot, desired: &Desired) -> Observation<Observed> {
    let accounts = match snapshot.accounts(host) {
        Ok(accounts) => accounts,
        // Without a database nobody's owner is known; only one question needs it.
        Err(why) if desired.rule.traits.no_owner => return Observation::Unknown(why),
        Err(_) => std::sync::Arc::default(),
    };
    let uids: std::collections::HashSet<u32> = accounts.users.iter().map(|user| user.uid).collect();
    let gids: std::collections::HashSet<u32> = accounts.groups.iter().map(|group| group.gid).collect();
    let rule = &desired.rule;
    let question = Question {
        under: &rule.under,
        traits: rule.traits,
        is_owned: &|uid, gid| uids.contains(&uid) && gids.contains(&gid),
        is_excepted: &|path| rule.except.iter().any(|pattern| covers(pattern, path)),
        is_allowed: &|path| {
            path.to_str()
                .is_some_and(|path| rule.allowed.binary_search_by(|allowed| allowed.as_str().cmp(path)).is_ok())
        },
    };
    let mut last = desired.last.lock().unwrap_or_else(PoisonError::into_inner);
    let known = last.take().filter(|(at, _)| at.elapsed() < MAX_AGE);
    let known = known.map(|(at, findings)| (at, again(host, &question, findings)));
    last.clone_from(&known);
    // Where more was found than was kept, and what was kept is mended, it is looked for anew.
    let is_enough = |findings: &Findings| !findings.kept.is_empty() || findings.n_found == 0;
    let findings = match known {
        Some((_, findings)) if is_enough(&findings) => findings,
        Some(_) | None => match sweep::sweep(&host.root, &question) {
            Ok(findings) => {
                tracing::debug!(n_looked = findings.n_looked, n_found = findings.n_found, "swept");
                *last = Some((Instant::now(), findings.clone()));
                findings
            }
            Err(why) => return Observation::Unknown(why),
        },
    };
    let name = |id: u32, name: Option<&str>| name.map_or_else(|| id.to_string(), |name| escaped(name, 64));
    let line = |(n, found): (usize, &Found)| {
        let user = accounts.users.iter().find(|user| user.uid == found.uid).map(|user| user.name.as_str());
        let group = accounts.groups.iter().find(|group| group.gid == found.gid).map(|group| group.name.as_str());
        let packages = if n < MAX_OWNERS { packages(host, &found.path) } else { String::new() };
        let path = escaped(&found.path.to_string_lossy(), MAX_PATH);
        format!("{path} {:04o} {}:{}{packages}", found.mode, name(found.uid, user), name(found.gid, group))
    };
    let lines = findings.kept.iter().take(MAX_LISTED).enumerate().map(line).collect();
    Observation::Present(Observed { findings, lines })
}

/// What of the findings still is one.
fn again(host: &Host, question: &Question<'_>, findings: Findings) -> Findings {
    let n_before = findings.kept.len();
    let kept: Vec<Found> = findings
        .kept
        .into_iter()
        // One that cannot be looked at is as it was.
        .filter_map(|found| sweep::look_again(&host.root, question, &found).unwrap_or(Some(found)))
        .collect();
    let n_gone = u64::try_from(n_before - kept.len()).unwrap_or(0);
    Findings { n_found: findings.n_found.saturating_sub(n_gone), kept, ..findings }
}

fn packages(host: &Host, path: &Path) -> String {
    let path = path.to_str().and_then(|path| AbsPath::new(path).ok());
    match path.map(|path| owner::owners(&host.root, &path)) {
        Some(Err(why)) => format!(" (package not known: {why})"),
        Some(Ok(owners)) if !owners.is_empty() => {
            let names: Vec<String> = owners.into_iter().map(|owner| owner.package).collect();
            format!(" (package {})", names.join(", "))
        }
        Some(Ok(_)) | None => " (no package)".to_owned(),
    }
}

/// Compares.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    let observed = match observation {
        Observation::Unknown(why) => return Verdict::Indeterminate(why.clone()),
        Observation::Present(observed) if observed.findings.n_found > 0 => observed,
        Observation::Present(_) | Observation::Absent => return Verdict::InSync,
    };
    let strips = desired.rule.mend == Mend::StripSetuid;
    let mut changes = Vec::new();
    for (found, line) in observed.findings.kept.iter().zip(&observed.lines) {
        let to = strips.then(|| format!("{:04o}", found.mode & 0o1777));
        changes.push(Change::value("found", Some(line.clone()), to));
    }
    let n_more = observed.findings.n_found.saturating_sub(u64::try_from(changes.len()).unwrap_or(0));
    if n_more > 0 {
        changes.push(Change::value("more", Some(n_more.to_string()), None));
    }
    let action = if strips { Action::Update } else { Action::Report };
    Verdict::Drift(Drift { action, changes })
}

/// Takes the bits away from what the plan lists: what the history does not tell of is left to the next run.
pub fn apply(host: &Host, desired: &Desired, observation: &Observation<Observed>) -> Result<(), ApplyError> {
    let Observation::Present(observed) = observation else { return Ok(()) };
    if desired.rule.mend != Mend::StripSetuid {
        return Err(ApplyError::Protected {
            operation: "repair",
            name: "a sweep".to_owned(),
            why: "its action is to report",
        });
    }
    for found in observed.findings.kept.iter().take(observed.lines.len()) {
        sweep::strip(&host.root, found)
            .map_err(|source| ApplyError::Strip { path: escaped(&found.path.to_string_lossy(), MAX_PATH), source })?;
    }
    Ok(())
}

/// Whether a pattern names a path or something above it: `*` is any part of a name, `**` any names, `?` one character of a name.
fn covers(pattern: &str, path: &Path) -> bool {
    let pattern: Vec<&str> = pattern.split('/').skip(1).collect();
    let lossy = path.to_string_lossy();
    let names: Vec<&str> = lossy.split('/').skip(1).collect();
    matches_names(&pattern, &names)
}

fn matches_names(pattern: &[&str], names: &[&str]) -> bool {
    match (pattern.split_first(), names.split_first()) {
        // What is beneath is covered as well.
        (None, _) => true,
        (Some((&"**", rest)), _) => (0..=names.len()).any(|n| matches_names(rest, names.get(n..).unwrap_or_default())),
        (Some(_), None) => false,
        (Some((first, rest)), Some((name, names))) => {
            matches_name(first.as_bytes(), name.as_bytes()) && matches_names(rest, names)
        }
    }
}

/// In one pass with one point to go back to: a hostile pattern costs no more than the product of the lengths.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p, n));
                p += 1;
            }
            Some(b'?') => (p, n) = (p + 1, n + 1),
            Some(byte) if Some(byte) == name.get(n) => (p, n) = (p + 1, n + 1),
            Some(_) | None => match back {
                Some((star, from)) => {
                    back = Some((star, from + 1));
                    (p, n) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_paths_and_what_is_beneath_them() {
        let check = |pattern: &str, path: &str, expected: bool| {
            assert_eq!(covers(pattern, Path::new(path)), expected, "{pattern} {path}");
        };
        check("/opt/app", "/opt/app", true);
        check("/opt/app", "/opt/app/bin/x", true);
        check("/opt/app", "/opt/application", false);
        check("/opt/*/bin", "/opt/a/bin/x", true);
        check("/opt/*/bin", "/opt/a/b/bin", false);
        check("/opt/**/bin", "/opt/a/b/bin", true);
        check("/opt/**/*.so", "/opt/x.so", true);
        check("/opt/a?c", "/opt/abc", true);
        check("/opt/*a*b", "/opt/xaxxab", true);
        check("/opt/*a*b", "/opt/xaxxac", false);
    }
}
