//! Programs that a policy names, and the kinds that are little more than one.

use std::time::Duration;

use jiff::Timestamp;

use super::{Reader, Reported};
use crate::config::parse_duration;
use crate::policy::diagnostic::{Diagnostic, Place};
use crate::resource::program::Program;
use crate::resource::{Argv, Desired, Kind, ResourceId, check, command};

/// Shortest and longest deadline.
const DEADLINES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
/// Most variables of an environment, and the longest value, in bytes.
const MAX_ENVIRONMENT: (usize, usize) = (100, 16 * 1024);

impl Reader<'_, '_> {
    /// A program with its arguments, in words.
    pub(super) fn argv(&mut self, name: &str) -> Result<Option<Argv>, Reported> {
        let Some(texts) = self.fields.texts(name) else { return Ok(None) };
        let words = texts.iter().map(|text| text.text.to_owned()).collect();
        Argv::new(words).map(Some).map_err(|error| {
            let place = match error.word.and_then(|word| texts.get(word)) {
                Some(text) => text.place.clone(),
                None => self.place_of(name),
            };
            let mut diagnostic = Diagnostic::error("program", format!("`{name}` of `{}`: {}", self.id, error.why))
                .at(place, "")
                .expected("an array of words, the absolute path of a program first");
            if let Some(hint) = error.hint {
                diagnostic = diagnostic.hint(hint);
            }
            self.out.push(diagnostic);
            Reported
        })
    }

    /// Where the value of a key stands.
    pub(super) fn place_of(&self, name: &str) -> Place {
        self.fields.get(name).map_or_else(|| self.name.clone(), |field| self.fields.place(field.value.span()))
    }

    /// What a command or check runs, and how.
    fn program(&mut self, deadline: Duration) -> Result<Program, Reported> {
        let argv = self.argv("run").and_then(|argv| {
            argv.ok_or_else(|| {
                if !self.fields.is_damaged {
                    let title = format!("`{}` has no `run`", self.id);
                    let expected = "`run`, an array of words, the absolute path of a program first";
                    self.refuse("missing-key", title, &self.name.clone(), expected);
                }
                Reported
            })
        });
        let deadline = self.deadline(deadline);
        let user = self.user_name();
        let directory = self.path_in("cwd");
        let env = self.environment();
        let exit_codes = self.fields.integers("exit_codes").unwrap_or_else(|| vec![0]);
        Ok(Program { argv: argv?, deadline: deadline?, user: user?, directory: directory?, env: env?, exit_codes })
    }

    fn deadline(&mut self, default: Duration) -> Result<Duration, Reported> {
        let Some(text) = self.fields.text("deadline") else { return Ok(default) };
        match parse_duration(text.text).ok().filter(|deadline| (DEADLINES.0..=DEADLINES.1).contains(deadline)) {
            Some(deadline) => Ok(deadline),
            None => {
                let title = format!("`{}` is not a deadline", text.text);
                self.refuse("value", title, &text.place, "a time from \"1s\" to \"24h\", such as \"10m\"");
                Err(Reported)
            }
        }
    }

    fn user_name(&mut self) -> Result<Option<String>, Reported> {
        let Some(text) = self.fields.text("user") else { return Ok(None) };
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let starts = text.text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts || text.text.len() > 64 || !text.text.chars().all(is_allowed) {
            self.refuse(
                "name",
                format!("`{}` is not the name of a user", text.text),
                &text.place,
                "the name of a user",
            );
            return Err(Reported);
        }
        Ok(Some(text.text.to_owned()).filter(|name| name != "root"))
    }

    fn environment(&mut self) -> Result<Vec<(String, String)>, Reported> {
        let mut env = Vec::new();
        let mut result = Ok(());
        for (name, text) in self.fields.environment("env") {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            if !starts || !name.chars().all(is_allowed) || name.len() > 128 {
                let title = format!("`{name}` cannot be the name of a variable");
                self.refuse("name", title, &text.place, "letters, digits and `_`, not beginning with a digit");
                result = Err(Reported);
            } else if text.text.contains('\0') || text.text.len() > MAX_ENVIRONMENT.1 || env.len() >= MAX_ENVIRONMENT.0
            {
                let expected = "at most 100 variables of at most 16 KiB, without zero bytes";
                self.refuse("value", format!("`{name}` cannot be a variable"), &text.place, expected);
                result = Err(Reported);
            } else {
                env.push((name.to_owned(), text.text.to_owned()));
            }
        }
        result.map(|()| env)
    }

    /// What owes a command a run, with where it says so.
    pub(super) fn owed_by(&mut self) -> Vec<(ResourceId, Place)> {
        let owed_by = self.references("owed_by");
        for (id, place) in &owed_by {
            if matches!(id.kind, Kind::Check | Kind::Sweep) {
                let diagnostic =
                    Diagnostic::error("reference", format!("`{id}` never changes, so it never owes a run"));
                self.out.push(diagnostic.at(place.clone(), "").hint("name the resource whose change is meant"));
            }
        }
        owed_by
    }

    pub(super) fn command(&mut self, owed_by: &[(ResourceId, Place)]) -> Option<Desired> {
        let program = self.program(Duration::from_secs(600));
        let onlyif = self.argv("onlyif");
        let unless = self.argv("unless");
        let creates = self.path_in("creates");
        let desired = command::Desired {
            name: self.id.name.to_string(),
            program: program.ok()?,
            onlyif: onlyif.ok()?,
            unless: unless.ok()?,
            creates: creates.ok()?,
            owed_by: owed_by.iter().map(|(id, _)| id.clone()).collect(),
        };
        let has_guard = desired.onlyif.is_some() || desired.unless.is_some() || desired.creates.is_some();
        // A list with a mistake in it was one.
        if !has_guard && self.fields.get("owed_by").is_none() && !self.fields.is_damaged {
            self.out.push(
                Diagnostic::error("forever", format!("`{}` would be run again and again", self.id))
                    .at(self.name.clone(), "nothing says when it has been done")
                    .expected("`unless`, `onlyif` or `creates`; or `owed_by`, the resources whose change it follows")
                    .hint("`unless` is a program that ends with 0 when there is nothing to do"),
            );
            return None;
        }
        Some(Desired::Command(Box::new(desired)))
    }

    pub(super) fn check(&mut self) -> Option<Desired> {
        self.refuse_consequences("a check changes nothing, so it owes nothing");
        if let Some(word) = self.fields.text("on_drift").filter(|word| word.text == "repair") {
            self.out.push(
                Diagnostic::error("contradiction", format!("`{}` is never repaired", self.id))
                    .at(word.place, "")
                    .expected("`report`, the default, or `reimage`")
                    .hint("to repair something, declare it, or a `command` with this as its `unless`"),
            );
        }
        let program = self.program(Duration::from_secs(60));
        let waiver = self.waiver();
        Some(Desired::Check(Box::new(check::Desired { program: program.ok()?, waiver: waiver.ok()? })))
    }

    /// Refuses `restarts` and `reloads` where nothing ever changes.
    pub(super) fn refuse_consequences(&mut self, why: &str) {
        for name in ["restarts", "reloads"] {
            if let Some(field) = self.fields.get(name) {
                let place = self.fields.place(field.key.clone());
                self.out.push(
                    Diagnostic::error("contradiction", format!("`{}` has `{name}`: {why}", self.id))
                        .at(place, "")
                        .hint(format!("remove `{name}`")),
                );
            }
        }
    }

    fn waiver(&mut self) -> Result<Option<check::Waiver>, Reported> {
        let Some(waiver) = self.fields.waiver("waiver") else { return Ok(None) };
        let place = self.place_of("waiver");
        let (Some((until, at)), Some(reason), Some(owner)) = (waiver.until, waiver.reason, waiver.owner) else {
            let title = format!("the waiver of `{}` does not say until when, why and whose it is", self.id);
            self.refuse("missing-key", title, &place, "{ until = 2027-03-01, reason = \"…\", owner = \"…\" }");
            return Err(Reported);
        };
        let is_bad = |text: &str| text.trim().is_empty() || text.len() > 500 || text.chars().any(char::is_control);
        if is_bad(&reason) || is_bad(&owner) {
            let title = format!("the waiver of `{}` has an unusable reason or owner", self.id);
            self.refuse("value", title, &place, "texts of one line and at most 500 bytes");
            return Err(Reported);
        }
        match end(&until) {
            Some(until) => Ok(Some(check::Waiver { until, reason, owner })),
            None => {
                let title = format!("`{until}` is not the end of a waiver");
                self.refuse(
                    "value",
                    title,
                    &at,
                    "a date such as 2027-03-01, or a time with its zone such as 2027-03-01T09:00:00Z",
                );
                Err(Reported)
            }
        }
    }
}

/// A date is its beginning in UTC: a waiver never lasts longer than anybody would read it to.
fn end(until: &str) -> Option<Timestamp> {
    if let Ok(time) = until.parse::<Timestamp>() {
        return Some(time);
    }
    let date: jiff::civil::Date = until.parse().ok().filter(|_| until.len() == 10)?;
    date.at(0, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}
