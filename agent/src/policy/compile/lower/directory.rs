//! `directory`: its own attributes, and the rules for what is beneath it.

use super::{Reader, Reported};
use crate::policy::diagnostic::Diagnostic;
use crate::policy::schema::Field;
use crate::resource::place::Ownership;
use crate::resource::{Desired, Ensure, Mode, Principal, directory};

/// Most entries that a purge removes at once unless the policy says otherwise.
const PURGE_LIMIT: u64 = 1000;

const PATTERN: &str = "a name such as `README`, a pattern such as `*.local`, or with a slash a path from the directory";

impl Reader<'_, '_> {
    pub(super) fn directory(&mut self, is_absent: bool) -> Option<Desired> {
        let path = self.path()?;
        if is_absent {
            return Some(Desired::Directory(directory::Desired { path, ensure: Ensure::Absent }));
        }
        let owner = self.principal("owner");
        let group = self.principal("group");
        let mode = self.mode(0o755);
        let purge = self.purge();
        let recurse = self.recurse();
        let rules = directory::Rules { purge: purge.ok()?, recurse: recurse.ok()?, ..directory::Rules::default() };
        let has_rules = rules.purge.is_some() || rules.recurse.is_some();
        let spec = directory::Spec {
            ownership: self.shared.ownership(Ownership {
                owner: owner.ok()?.unwrap_or(Principal::Agent),
                group: group.ok()?.unwrap_or(Principal::Agent),
                mode: mode.ok()?,
            }),
            rules: has_rules.then(|| Box::new(rules)),
        };
        Some(Desired::Directory(directory::Desired { path, ensure: Ensure::Present(spec) }))
    }

    fn purge(&mut self) -> Result<Option<directory::Purge>, Reported> {
        let depth = match (self.fields.boolean("purge"), self.fields.text("purge")) {
            (Some(true), _) => directory::Depth::Entries,
            // The word was checked with the shape.
            (_, Some(_)) => directory::Depth::Recursive,
            (Some(false), _) | (None, None) => {
                let is_said = self.fields.get("purge").is_some();
                let names = ["keep", "purge_limit"];
                let needless: Vec<Field<'_>> = names.into_iter().filter_map(|name| self.fields.get(name)).collect();
                for field in &needless {
                    let title = format!("`{}` has `{}` and no `purge`", self.id, field.name);
                    self.out.push(
                        Diagnostic::error("missing-key", title)
                            .at(self.fields.place(field.key.clone()), "says what a purge leaves alone")
                            .hint("add `purge = true`, or remove this"),
                    );
                }
                let depth = directory::Depth::Nothing;
                let nothing = || directory::Purge { depth, keep: Box::default(), limit: PURGE_LIMIT };
                return if needless.is_empty() { Ok(is_said.then(nothing)) } else { Err(Reported) };
            }
        };
        let mut keep = Vec::new();
        let mut result = Ok(());
        for text in self.fields.texts("keep").unwrap_or_default() {
            if let Some(why) = bad_pattern(text.text) {
                let title = format!("`{}` can match nothing in the directory: {why}", text.text);
                self.refuse("value", title, &text.place, PATTERN);
                result = Err(Reported);
            }
            keep.push(Box::from(text.text));
        }
        let limit = self.fields.count("purge_limit").unwrap_or(PURGE_LIMIT);
        result.map(|()| Some(directory::Purge { depth, keep: keep.into_boxed_slice(), limit }))
    }

    fn recurse(&mut self) -> Result<Option<directory::Recurse>, Reported> {
        let Some((fields, place)) = self.fields.table("recurse") else { return Ok(None) };
        let mut inner = Reader {
            id: self.id,
            name: self.name,
            fields: &fields,
            files: self.files,
            engine: self.engine,
            shared: self.shared,
            out: self.out,
        };
        let owner = inner.principal("owner");
        let group = inner.principal("group");
        let modes = ["file_mode", "directory_mode"].map(|name| inner.optional_mode(name));
        let is_empty = fields.iter().next().is_none();
        if is_empty {
            let title = format!("the `recurse` of `{}` says nothing", self.id);
            self.refuse("missing-key", title, &place, "`owner`, `group`, `file_mode` or `directory_mode`");
            return Err(Reported);
        }
        let [file_mode, directory_mode] = modes;
        Ok(Some(directory::Recurse {
            owner: owner?,
            group: group?,
            file_mode: file_mode?,
            directory_mode: directory_mode?,
        }))
    }

    fn optional_mode(&mut self, name: &str) -> Result<Option<Mode>, Reported> {
        match self.fields.text(name) {
            None => Ok(None),
            Some(text) => self.parse_mode(&text).map(Some),
        }
    }
}

fn bad_pattern(pattern: &str) -> Option<&'static str> {
    if pattern.is_empty() {
        Some("it is empty")
    } else if pattern.starts_with('/') {
        Some("paths begin at the directory, without a slash")
    } else if pattern.ends_with('/') {
        Some("it ends with a slash")
    } else if pattern.split('/').any(|part| matches!(part, "" | "." | "..")) {
        Some("no name is empty, `.` or `..`")
    } else if pattern.len() > 4095 || pattern.contains('\0') {
        Some("no path is like that")
    } else {
        None
    }
}
