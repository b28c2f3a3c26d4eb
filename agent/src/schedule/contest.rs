//! Who fights over a resource, and with which value: what is said about it, in a bounded memory.
//!
//! Pure. It decides nothing: how often a contested resource is repaired is decided by [`super::fights`].

use std::collections::{BTreeMap, VecDeque};

use crate::converge::{Outcome, ResourceReport};
use crate::resource::{Action, Change, ChangeDetail};

/// Names kept of those who changed one resource; what later names did is only counted.
const MAX_ACTORS: usize = 16;

/// Displaced values that are remembered.
const MAX_RECENT: usize = 8;

/// Values that must have been displaced before two enforcers are told apart from one.
const MIN_ALTERNATION: usize = 4;

/// Longest value or name that is shown, in characters.
const MAX_SHOWN: usize = 120;

/// Hexadecimal digits of a digest that are shown: enough to tell contents apart and to find one in the backup store.
const SHOWN_DIGITS: usize = 12;

/// How a value that is not there is written.
const ABSENT: &str = "absent";

/// What one repair put away, and who had put it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Displaced {
    /// What was found, such as `sha256 9a41…` or `mode 0666`. Equal for equal values.
    found: String,
    /// What the policy wants instead, when the differences say it.
    wanted: Option<String>,
    /// Who: a unit, or else a program. `None` when nobody could be named.
    actor: Option<String>,
}

impl Displaced {
    /// Content with this SHA-256, in hexadecimal.
    pub fn content(sha256: &str, actor: Option<&str>) -> Self {
        Self { found: short_digest(sha256), wanted: None, actor: actor.map(bounded) }
    }

    /// Nothing: the resource had been removed.
    pub fn nothing(actor: Option<&str>) -> Self {
        Self { found: ABSENT.to_owned(), wanted: None, actor: actor.map(bounded) }
    }

    /// What one repair says: its differences, its verb, and the SHA-256 of the content that it put away.
    pub fn by(changes: &[Change], action: Action, displaced: Option<&str>, actor: Option<&str>) -> Option<Self> {
        match action {
            Action::Create => Some(Self::nothing(actor)),
            Action::Run | Action::Report | Action::Waive => None,
            Action::Update | Action::Remove => {
                let found = changes.iter().filter_map(|change| found(change, displaced));
                let found = bounded(&found.collect::<Vec<_>>().join(", "));
                if found.is_empty() {
                    return None;
                }
                // A diff of text does not say what the whole would be.
                let wanted: Option<Vec<String>> = changes.iter().map(wanted).collect();
                let wanted = wanted.map(|wanted| bounded(&wanted.join(", ")));
                Some(Self { found, wanted, actor: actor.map(bounded) })
            }
        }
    }

    /// What a run's report says of one resource; `None` when the run did not change it, or does not say what was there.
    pub fn of(report: &ResourceReport, actor: Option<&str>) -> Option<Self> {
        match &report.outcome {
            Outcome::Changed { changes, action } => Self::by(changes, *action, report.displaced.as_deref(), actor),
            Outcome::Unchanged
            | Outcome::Reported { .. }
            | Outcome::Failed { .. }
            | Outcome::Indeterminate { .. }
            | Outcome::Skipped { .. } => None,
        }
    }
}

fn found(change: &Change, displaced: Option<&str>) -> Option<String> {
    match (&change.detail, displaced) {
        (ChangeDetail::Text { .. } | ChangeDetail::Opaque { .. }, Some(digest)) => Some(short_digest(digest)),
        (ChangeDetail::Text { .. }, None) => Some(format!("other {}", change.attribute)),
        (ChangeDetail::Opaque { from, .. }, None) => Some(side(&change.attribute, from.as_deref())),
        // What comes with a replaced file is not what the fight is about.
        (ChangeDetail::Value { from: None, .. }, _) => None,
        (ChangeDetail::Value { from, .. }, _) => Some(side(&change.attribute, from.as_deref())),
    }
}

fn wanted(change: &Change) -> Option<String> {
    match &change.detail {
        ChangeDetail::Text { .. } => None,
        ChangeDetail::Value { to, .. } => Some(side(&change.attribute, to.as_deref())),
        ChangeDetail::Opaque { to, .. } => to.as_deref().map(shorten_digest),
    }
}

fn side(attribute: &str, value: Option<&str>) -> String {
    value.map_or_else(|| ABSENT.to_owned(), |value| format!("{attribute} {}", shorten_digest(value)))
}

/// `sha256 3f…`.
pub fn short_digest(hexadecimal: &str) -> String {
    match hexadecimal.get(..SHOWN_DIGITS) {
        Some(start) => format!("sha256 {start}…"),
        None => format!("sha256 {hexadecimal}"),
    }
}

/// A description such as `812 bytes, sha256 3f…`, with the digest cut short.
fn shorten_digest(text: &str) -> String {
    match text.split_once("sha256 ") {
        Some((_, digest)) => short_digest(digest),
        None => text.to_owned(),
    }
}

fn bounded(text: &str) -> String {
    let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_SHOWN).collect();
    if text.chars().nth(MAX_SHOWN).is_some() { format!("{shown}…") } else { shown }
}

/// What is remembered of a fight over one resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contest {
    n_repairs: u32,
    actors: BTreeMap<String, u32>,
    wanted: Option<String>,
    recent: VecDeque<(String, Option<String>)>,
}

impl Contest {
    /// Counts a repair of which nothing is known but that it happened.
    pub(super) fn count(&mut self) {
        self.n_repairs = self.n_repairs.saturating_add(1);
    }

    /// Takes note of what a counted repair put away.
    pub(super) fn note(&mut self, displaced: Displaced) {
        let Displaced { found, wanted, actor } = displaced;
        self.wanted = wanted;
        if let Some(name) = &actor
            && (self.actors.len() < MAX_ACTORS || self.actors.contains_key(name))
        {
            let times = self.actors.entry(name.clone()).or_insert(0);
            *times = times.saturating_add(1);
        }
        if self.recent.len() == MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((found, actor));
    }

    /// Repairs since it began to look like a fight.
    pub fn n_repairs(&self) -> u32 {
        self.n_repairs
    }

    /// Who changed it how many times, the most frequent first, at most 16.
    pub fn actors(&self) -> Vec<(&str, u32)> {
        let mut actors: Vec<(&str, u32)> = self.actors.iter().map(|(name, times)| (name.as_str(), *times)).collect();
        actors.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
        actors
    }

    /// What the policy wants, when the differences said it.
    pub fn wanted(&self) -> Option<&str> {
        self.wanted.as_deref()
    }

    /// The two values that are put there in turn by two other enforcers, if it looks like it: value A, then B, then A, then B.
    pub fn alternating(&self) -> Option<(&str, &str)> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (found, _) in &self.recent {
            *counts.entry(found).or_default() += 1;
        }
        let mut values: Vec<(&str, usize)> = counts.into_iter().collect();
        values.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
        let [(a, _), (b, _), ..] = values.as_slice() else { return None };
        let theirs: Vec<&str> =
            self.recent.iter().map(|(found, _)| found.as_str()).filter(|found| found == a || found == b).collect();
        let n_switches = theirs.windows(2).filter(|pair| pair.first() != pair.last()).count();
        (theirs.len() >= MIN_ALTERNATION && n_switches >= MIN_ALTERNATION - 1).then_some((*a, *b))
    }

    /// One sentence for a person. `wanted` is what the policy wants where the differences did not say it.
    pub fn sentence(&self, resource: &crate::resource::ResourceId, wanted: Option<&str>) -> String {
        let who = match self.who() {
            Some(who) => format!(" by {who}"),
            None => format!(" ({} repairs; who does it could not be told)", self.n_repairs),
        };
        let wants = match self.wanted().or(wanted) {
            None if self.recent.back().is_some_and(|(found, _)| found == ABSENT) => "the policy wants it".to_owned(),
            None => "the policy wants it otherwise".to_owned(),
            Some(ABSENT) => format!("the policy wants it {ABSENT}"),
            Some(value) => format!("the policy wants {value}"),
        };
        let comes = match (self.alternating(), self.recent.back()) {
            (Some((a, b)), _) => format!("it keeps coming back as {a} and as {b} in turn, so two others enforce it"),
            (None, Some((found, _))) if found == ABSENT => "it keeps being removed".to_owned(),
            (None, Some((found, _))) => format!("it keeps coming back as {found}"),
            (None, None) => "it keeps coming back".to_owned(),
        };
        format!("{resource} is fought over{who}: {wants}, {comes}")
    }

    /// Up to three names with how often; `None` when nobody was ever named.
    pub fn who(&self) -> Option<String> {
        let named: Vec<String> = self
            .actors()
            .into_iter()
            .take(3)
            .map(|(name, times)| format!("{name} ({times} of {} times)", self.n_repairs))
            .collect();
        let (last, others) = named.split_last()?;
        Some(if others.is_empty() { last.clone() } else { format!("{} and {last}", others.join(", ")) })
    }
}
