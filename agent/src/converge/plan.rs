//! The plan: what would be done and why, as a value that a person reads before anything happens.
//!
//! This module is pure. It never looks at the host, and nothing in it can change anything.

use std::fmt::Write as _;

use serde::Serialize;

use super::Cause;
use super::beside::Beside;
use crate::policy::Revision;
use crate::record::Debt;
use crate::resource::{
    Action, Argv, Change, ChangeDetail, Notify, Resource, ResourceId, SourceLocation, UnitName, Verdict,
};

/// Everything that one convergence would do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Plan {
    /// The revision that it would converge to.
    pub revision: Revision,
    /// Why it would run.
    pub cause: Cause,
    /// What is out of sync, requirements first; with those that would be left alone.
    pub steps: Vec<Step>,
    /// What could not be told.
    pub indeterminate: Vec<Indeterminate>,
    /// What is in sync.
    pub unchanged: Vec<ResourceId>,
    /// Restarts and reloads that are owed already.
    pub owed: Vec<Owed>,
    /// What a package manager laid beside declared files. It is told, and is no drift.
    pub beside: Vec<Beside>,
    /// Why it cannot be told what is owed already, if so.
    pub owed_unknown: Option<String>,
    /// Why content that may be a secret is not shown, if so: it cannot be told where secrets stand.
    pub concealed: Option<String>,
}

/// One resource that is out of sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub resource: ResourceId,
    /// The verb.
    pub action: Action,
    /// Every difference.
    pub changes: Vec<Change>,
    /// Where it was declared; `None` for a file of the agent's own whose resource is declared no longer.
    pub source: Option<SourceLocation>,
    /// What the step will owe.
    pub owes: Vec<(Notify, UnitName)>,
    /// Why it would be left alone, if so.
    pub held: Option<String>,
    /// What looks at it before it is put in place, as one line. A plan never runs it.
    pub validator: Option<String>,
    /// What would have to confirm it, in words.
    pub confirm: Option<String>,
    /// The commands that it will owe a run.
    pub runs: Vec<ResourceId>,
}

/// One resource that could not be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indeterminate {
    /// Which.
    pub resource: ResourceId,
    /// Why.
    pub reason: String,
    /// Where it was declared.
    pub source: SourceLocation,
}

/// A restart or reload that is owed already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// What.
    pub notify: Notify,
    /// To which unit.
    pub unit: UnitName,
    /// Because of which resource.
    pub because_of: ResourceId,
}

/// One resource and how it compares.
#[derive(Debug)]
pub struct Finding<'a> {
    /// The resource.
    pub resource: &'a Resource,
    /// How it compares.
    pub verdict: Verdict,
    /// Why a step would be left alone, if so.
    pub held: Option<String>,
    /// What looks at it before it is put in place.
    pub validator: Option<&'a Argv>,
    /// The commands that its change owes a run.
    pub runs: &'a [ResourceId],
}

impl Plan {
    /// Makes a plan of findings, which are in order, and of what is owed, or why that cannot be told. `concealed` is why the findings
    /// show no content, if so.
    pub fn new(
        revision: Revision,
        cause: Cause,
        findings: Vec<Finding<'_>>,
        debts: Result<Vec<Debt>, String>,
        concealed: Option<String>,
    ) -> Self {
        let (debts, owed_unknown) = debts.map_or_else(|why| (Vec::new(), Some(why)), |debts| (debts, None));
        let mut plan = Self {
            revision,
            cause,
            steps: Vec::new(),
            indeterminate: Vec::new(),
            unchanged: Vec::new(),
            owed: Vec::new(),
            beside: Vec::new(),
            owed_unknown,
            concealed,
        };
        for Finding { resource, verdict, held, validator, runs } in findings {
            let source = resource.source.clone();
            match verdict {
                Verdict::InSync => plan.unchanged.push(resource.id.clone()),
                Verdict::Indeterminate(reason) => {
                    plan.indeterminate.push(Indeterminate { resource: resource.id.clone(), reason, source });
                }
                Verdict::Drift(drift) => plan.steps.push(Step {
                    resource: resource.id.clone(),
                    action: drift.action,
                    changes: drift.changes,
                    source: Some(source),
                    owes: resource.notifies.to_vec(),
                    runs: runs.to_vec(),
                    held,
                    validator: validator
                        .filter(|_| matches!(drift.action, Action::Create | Action::Update))
                        .map(ToString::to_string),
                    confirm: resource
                        .confirm()
                        .filter(|_| cause != Cause::Drift)
                        .map(|c| format!("{} within {} s", super::confirm::words(&c.by), c.within.as_secs())),
                }),
            }
        }
        plan.owed = debts
            .iter()
            .map(|debt| Owed { notify: debt.notify, unit: debt.unit.clone(), because_of: debt.because_of.clone() })
            .collect();
        plan
    }

    /// What differs and is not accepted for now.
    pub fn drift(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.action != Action::Waive)
    }

    /// Whether there is nothing to do, nothing owed and nothing that could not be told. What is waived is in order for now.
    pub fn is_empty(&self) -> bool {
        let nothing_owed = self.owed.is_empty() && self.owed_unknown.is_none();
        self.drift().next().is_none() && self.indeterminate.is_empty() && nothing_owed
    }

    /// The plan for people, without colours. Control characters from the host are escaped.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let cause = match self.cause {
            Cause::NewRevision => "new revision",
            Cause::Drift => "drift",
            Cause::Operator => "operator",
        };
        for step in &self.steps {
            let verb = match step.action {
                Action::Create => "create",
                Action::Update => "update",
                Action::Remove => "remove",
                Action::Run => "run",
                Action::Report => "failing",
                Action::Waive => "waived",
            };
            let source = step.source.as_ref().map_or_else(|| "declared nowhere".to_owned(), place);
            line(&mut text, format_args!("{verb} {}  ({cause}; {source})", step.resource));
            for change in &step.changes {
                change_text(&mut text, change);
            }
            for (notify, unit) in &step.owes {
                line(&mut text, format_args!("    owes a {} to {unit}", notify_word(*notify)));
            }
            for command in &step.runs {
                line(&mut text, format_args!("    owes a run to {command}"));
            }
            if let Some(validator) = step.validator.as_ref().filter(|_| step.held.is_none()) {
                line(&mut text, format_args!("    validated first by {validator}"));
            }
            if let Some(proof) = &step.confirm {
                line(&mut text, format_args!("    put back unless confirmed by {}", visible(proof)));
            }
            // A failure that nothing mends says so by its verb.
            let is_told = matches!(step.action, Action::Report | Action::Waive);
            if let Some(why) = step.held.as_ref().filter(|_| !is_told) {
                line(&mut text, format_args!("    left as it is: {}", visible(why)));
            }
        }
        for item in &self.indeterminate {
            line(&mut text, format_args!("unknown {}  ({})", item.resource, place(&item.source)));
            line(&mut text, format_args!("    {}", visible(&item.reason)));
        }
        for owed in &self.owed {
            line(
                &mut text,
                format_args!("{} {}  (owed because of {})", notify_word(owed.notify), owed.unit, owed.because_of),
            );
        }
        for beside in &self.beside {
            line(&mut text, format_args!("beside {}\n    {beside}", beside.resource));
        }
        if let Some(why) = &self.concealed {
            line(
                &mut text,
                format_args!("what may be a secret is not shown, because it cannot be told where secrets stand"),
            );
            line(&mut text, format_args!("    {}", visible(why)));
        }
        if let Some(why) = &self.owed_unknown {
            line(&mut text, format_args!("unknown what is owed already"));
            line(&mut text, format_args!("    {}", visible(why)));
        }
        let n_of = |is: &dyn Fn(&Step) -> bool| self.steps.iter().filter(|step| is(step)).count();
        let n_waived = n_of(&|step| step.action == Action::Waive);
        let n_failing = n_of(&|step| step.action == Action::Report);
        let n_held = n_of(&|step| step.held.is_some()) - n_waived - n_failing;
        let n_steps = self.steps.len() - n_held - n_waived - n_failing;
        let mut summary = format!("{n_steps} to change, {} in sync", self.unchanged.len());
        for (n, what) in [
            (n_held, "left alone"),
            (n_failing, "failing"),
            (n_waived, "waived"),
            (self.indeterminate.len(), "unknown"),
            (self.owed.len(), "owed"),
        ] {
            if n > 0 {
                summary.push_str(&format!(", {n} {what}"));
            }
        }
        line(&mut text, format_args!("{summary}"));
        text
    }

    /// The plan for machines; fields are only ever added.
    pub fn to_json(&self) -> serde_json::Value {
        let document = Document {
            version: 1,
            revision: self.revision.as_str(),
            cause: self.cause,
            steps: self
                .steps
                .iter()
                .map(|step| StepDocument {
                    resource: &step.resource,
                    action: step.action,
                    changes: &step.changes,
                    source: step.source.as_ref().map(source_document),
                    owes: step
                        .owes
                        .iter()
                        .map(|(notify, unit)| (notify_word(*notify), unit.as_str()))
                        .map(owes)
                        .collect(),
                    runs: &step.runs,
                    held: step.held.as_deref(),
                    validator: step.validator.as_deref(),
                    confirm: step.confirm.as_deref(),
                })
                .collect(),
            indeterminate: self
                .indeterminate
                .iter()
                .map(|item| IndeterminateDocument {
                    resource: &item.resource,
                    reason: &item.reason,
                    source: source_document(&item.source),
                })
                .collect(),
            unchanged: &self.unchanged,
            owed: self
                .owed
                .iter()
                .map(|owed| OwedDocument {
                    notify: notify_word(owed.notify),
                    unit: owed.unit.as_str(),
                    because_of: &owed.because_of,
                })
                .collect(),
            beside: &self.beside,
            owed_unknown: self.owed_unknown.as_deref(),
            concealed: self.concealed.as_deref(),
        };
        serde_json::to_value(document).unwrap_or(serde_json::Value::Null)
    }
}

/// The word for what is owed.
pub(super) fn notify_word(notify: Notify) -> &'static str {
    match notify {
        Notify::Reload => "reload",
        Notify::Restart => "restart",
    }
}

fn place(source: &SourceLocation) -> String {
    format!("{}:{}:{}", source.file, source.line, source.column)
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    if text.write_fmt(arguments).is_ok() {
        text.push('\n');
    }
}

/// One change, indented. Public to the crate so that histories and reports read as plans do.
pub fn change_text(text: &mut String, change: &Change) {
    let show = |value: &Option<String>| value.as_deref().map_or_else(|| "(none)".to_owned(), visible);
    match &change.detail {
        ChangeDetail::Value { from, to } | ChangeDetail::Opaque { from, to } => {
            line(text, format_args!("    {}: {} → {}", change.attribute, show(from), show(to)));
        }
        ChangeDetail::Text { diff } => {
            line(text, format_args!("    {}:", change.attribute));
            for diff_line in diff.lines() {
                line(text, format_args!("      {}", visible(diff_line)));
            }
        }
    }
}

/// Text in which no control character reaches a terminal.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    revision: &'a str,
    cause: Cause,
    steps: Vec<StepDocument<'a>>,
    indeterminate: Vec<IndeterminateDocument<'a>>,
    unchanged: &'a [ResourceId],
    owed: Vec<OwedDocument<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    beside: &'a [Beside],
    #[serde(skip_serializing_if = "Option::is_none")]
    owed_unknown: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concealed: Option<&'a str>,
}

#[derive(Serialize)]
struct StepDocument<'a> {
    resource: &'a ResourceId,
    action: Action,
    changes: &'a [Change],
    source: Option<SourceDocument<'a>>,
    owes: Vec<OwesDocument<'a>>,
    runs: &'a [ResourceId],
    held: Option<&'a str>,
    validator: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confirm: Option<&'a str>,
}

#[derive(Serialize)]
struct OwesDocument<'a> {
    notify: &'static str,
    unit: &'a str,
}

fn owes<'a>((notify, unit): (&'static str, &'a str)) -> OwesDocument<'a> {
    OwesDocument { notify, unit }
}

#[derive(Serialize)]
struct IndeterminateDocument<'a> {
    resource: &'a ResourceId,
    reason: &'a str,
    source: SourceDocument<'a>,
}

#[derive(Serialize)]
struct OwedDocument<'a> {
    notify: &'static str,
    unit: &'a str,
    because_of: &'a ResourceId,
}

#[derive(Serialize)]
struct SourceDocument<'a> {
    file: &'a str,
    line: u32,
    column: u32,
}

fn source_document(source: &SourceLocation) -> SourceDocument<'_> {
    SourceDocument { file: &source.file, line: source.line, column: source.column }
}
