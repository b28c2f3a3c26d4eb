//! `sweep`: what is looked for, and where.

use super::{Reader, Reported};

use crate::policy::diagnostic::{Diagnostic, Place};
use crate::resource::sweep::{Desired as Sweep, Mend, Rule, Traits};
use crate::resource::{AbsPath, Desired};

const EXPECTED_PATH: &str = "an absolute path without `.`, `..` or a trailing slash";
/// Most paths of an allowlist, and most directories and exceptions.
const MAX_ALLOWED: usize = 100_000;
const MAX_NAMED: usize = 1000;

impl Reader<'_, '_> {
    pub(super) fn sweep(&mut self) -> Option<Desired> {
        if let Some(field) = self.fields.get("on_drift") {
            let diagnostic = Diagnostic::error("contradiction", format!("`{}` has `on_drift`", self.id))
                .at(self.fields.place(field.key.clone()), "")
                .hint("`action` says what is done: `report`, `strip-setuid` or `reimage`");
            self.out.push(diagnostic);
        }
        let mend = match self.fields.text("action").map(|word| word.text) {
            Some("strip-setuid") => Mend::StripSetuid,
            Some(_) | None => Mend::Report,
        };
        if mend == Mend::Report {
            self.refuse_consequences("it changes nothing, so it owes nothing");
        }
        let under = self.under();
        let matches = self.matches(mend);
        let except = self.except();
        let (traits, allowed) = matches.ok()?;
        let rule = Rule { under: under.ok()?, traits, allowed, except: except.ok()?, mend };
        Some(Desired::Sweep(Box::new(Sweep::new(rule))))
    }

    fn under(&mut self) -> Result<Vec<AbsPath>, Reported> {
        let texts = self.fields.texts("under").unwrap_or_default();
        if texts.is_empty() || texts.len() > MAX_NAMED {
            if !self.fields.is_damaged {
                let title = format!("`{}` names no directory, or too many", self.id);
                let at = self.place_of("under");
                self.refuse("missing-key", title, &at, "`under`, an array of directories");
            }
            return Err(Reported);
        }
        let mut under = Vec::new();
        let mut result = Ok(());
        for text in texts {
            match AbsPath::new(text.text) {
                Ok(path) => under.push(path),
                Err(error) => {
                    self.refuse("path", error.to_string(), &text.place, EXPECTED_PATH);
                    result = Err(Reported);
                }
            }
        }
        result.map(|()| under)
    }

    fn except(&mut self) -> Result<Vec<String>, Reported> {
        let mut except = Vec::new();
        let mut result = Ok(());
        for text in self.fields.texts("except").unwrap_or_default() {
            // A pattern is spelled as a path is.
            match AbsPath::new(text.text) {
                Ok(_) if except.len() < MAX_NAMED && text.text.matches("**").count() <= 2 => {
                    except.push(text.text.to_owned());
                }
                Ok(_) if except.len() < MAX_NAMED => {
                    let title = format!("the pattern `{}` has `**` more than twice", text.text);
                    self.refuse("value", title, &text.place, "`**` twice at most: each looks at all that is below it");
                    result = Err(Reported);
                }
                Ok(_) => {
                    let title = format!("`{}` has too many patterns in `except`", self.id);
                    self.refuse("value", title, &text.place, &format!("at most {MAX_NAMED}"));
                    result = Err(Reported);
                }
                Err(error) => {
                    let expected = "an absolute path, in which `*`, `**` and `?` may stand for names";
                    self.refuse("path", error.to_string(), &text.place, expected);
                    result = Err(Reported);
                }
            }
        }
        result.map(|()| except)
    }

    fn matches(&mut self, mend: Mend) -> Result<(Traits, Vec<String>), Reported> {
        let place = self.place_of("match");
        let Some(fields) = self.fields.table("match").map(|(table, _)| table) else {
            if !self.fields.is_damaged {
                let title = format!("`{}` does not say what it looks for", self.id);
                self.refuse(
                    "missing-key",
                    title,
                    &place,
                    "`match`, such as { setuid = true, not_in = [\"/usr/bin/sudo\"] }",
                );
            }
            return Err(Reported);
        };
        let is = |name: &str| fields.boolean(name).unwrap_or(false);
        let traits = Traits {
            setuid: is("setuid"),
            setgid: is("setgid"),
            world_writable: is("world_writable"),
            no_owner: is("no_owner"),
            capabilities: is("capabilities"),
        };
        if traits == Traits::default() {
            let title = format!("`{}` looks for nothing", self.id);
            let expected = "one of `setuid`, `setgid`, `world_writable`, `no_owner` and `capabilities` to be true";
            self.refuse("value", title, &place, expected);
            return Err(Reported);
        }
        if mend == Mend::StripSetuid && (traits.world_writable || traits.no_owner || traits.capabilities) {
            self.out.push(
                Diagnostic::error("contradiction", format!("`{}` would strip bits from what has others", self.id))
                    .at(place, "")
                    .expected("`setuid` and `setgid` alone with `action = \"strip-setuid\"`")
                    .hint("make two sweeps of it"),
            );
            return Err(Reported);
        }
        let mut paths: Vec<(String, Place)> = match (fields.text("not_in"), fields.texts("not_in")) {
            (Some(file), _) => {
                let bytes = self.policy_file(&file, "not_in")?;
                let lines = String::from_utf8_lossy(bytes).into_owned();
                let lines = lines.lines().map(|line| line.split('#').next().unwrap_or_default().trim().to_owned());
                lines.filter(|line| !line.is_empty()).map(|line| (line, file.place.clone())).collect()
            }
            (None, texts) => {
                texts.unwrap_or_default().into_iter().map(|text| (text.text.to_owned(), text.place)).collect()
            }
        };
        paths.truncate(MAX_ALLOWED);
        let mut result = Ok(());
        for (path, place) in &paths {
            if let Err(error) = AbsPath::new(path) {
                self.refuse("path", format!("`not_in` of `{}`: {error}", self.id), place, EXPECTED_PATH);
                result = Err(Reported);
            }
        }
        let mut allowed: Vec<String> = paths.into_iter().map(|(path, _)| path).collect();
        allowed.sort();
        allowed.dedup();
        result.map(|()| (traits, allowed))
    }
}
