//! One declaration to one desired state: what each attribute means, by itself. How resources fit together is [`super::check`].

mod care;
mod directory;
mod kernel_module;
mod mount;
mod program;
mod repository;
pub(super) mod setting;
mod sweep;
mod sysctl;
mod user;

use std::collections::{BTreeMap, HashSet};

use zeroize::Zeroizing;

use super::load::{Declaration, missing_file, resource_id};
use super::shared::Shared;
use crate::policy::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::policy::schema::{self, Fields, Text};
use crate::policy::template::{Engine, Rendered};
use crate::resource::place::Ownership;
use crate::resource::{
    AbsPath, Argv, Confirm, Content, Desired, Ensure, GroupName, Kind, Mode, Notes, Notify, OnDrift, PackageName,
    Principal, Proof, ResourceId, UnitName, file, group, package, service, symlink,
};

/// One declaration with its own mistakes sorted out.
#[derive(Debug)]
pub(super) struct Lowered {
    pub(super) desired: Desired,
    /// What it explicitly needs, with where it says so.
    pub(super) requires: Vec<(ResourceId, Place)>,
    pub(super) notifies: Vec<(Notify, UnitName)>,
    pub(super) on_drift: OnDrift,
    pub(super) notes: Option<Box<Notes>>,
    /// What looks at the candidate before it is put in place.
    pub(super) validate: Option<Argv>,
}

/// Gives a declaration its meaning. `None` after an error that was reported.
pub(super) fn lower<'v>(
    declaration: &Declaration<'v>,
    files: &BTreeMap<String, Vec<u8>>,
    engine: &mut Engine,
    shared: &mut Shared<'v>,
    out: &mut Diagnostics,
) -> Option<Lowered> {
    let id = &declaration.id;
    let fields = &declaration.fields;
    let is_absent = is_absent(declaration, out);
    let mut reader = Reader { id, name: &declaration.name, fields, files, engine, shared, out };
    // The common attributes come first, so that their mistakes are reported beside those of the kind.
    let mut requires = reader.references("requires");
    let owed_by = reader.owed_by();
    let notifies = reader.notifies();
    let validate = reader.argv("validate");
    let desired = match id.kind {
        Kind::File => reader.file(is_absent),
        Kind::Directory => reader.directory(is_absent),
        Kind::Symlink => reader.symlink(is_absent),
        Kind::User => reader.user(is_absent),
        Kind::Group => reader.group(is_absent),
        Kind::Package => reader.package(is_absent),
        Kind::Repository => reader.repository(is_absent),
        Kind::Service => reader.service(),
        Kind::Command => reader.command(&owed_by),
        Kind::Check => reader.check(),
        Kind::Sweep => reader.sweep(),
        Kind::Setting => reader.setting(),
        Kind::Sysctl => reader.sysctl(),
        Kind::KernelModule => reader.kernel_module(),
        Kind::Mount => reader.mount(),
    }?;
    requires.extend(owed_by);
    let owner =
        if matches!(id.kind, Kind::File | Kind::Directory | Kind::Setting) { None } else { fields.text("owner") };
    let on_drift = match fields.text("on_drift").map(|word| word.text) {
        Some("report") => OnDrift::Report,
        Some("reimage") => OnDrift::Reimage,
        None if id.kind == Kind::Check => OnDrift::Report,
        None if id.kind == Kind::Sweep => match fields.text("action").map(|word| word.text) {
            Some("reimage") => OnDrift::Reimage,
            Some("strip-setuid") => OnDrift::Repair,
            Some(_) | None => OnDrift::Report,
        },
        Some(_) | None => OnDrift::Repair,
    };
    let confirm = reader.confirm().ok()?;
    let notes = Notes {
        confirm,
        description: fields.text("description").map(|text| text.text.to_owned()),
        owner: owner.map(|text| text.text.to_owned()),
        tags: fields.texts("tags").unwrap_or_default().iter().map(|text| text.text.to_owned()).collect(),
    };
    Some(Lowered {
        desired,
        requires,
        notifies,
        on_drift,
        notes: Some(notes).filter(|notes| *notes != Notes::default()).map(Box::new),
        validate: validate.unwrap_or_default(),
    })
}

/// Whether the resource is to be gone; reports attributes that then mean nothing.
fn is_absent(declaration: &Declaration<'_>, out: &mut Diagnostics) -> bool {
    let Declaration { id, fields, .. } = declaration;
    let Some(state) = fields.text("state").filter(|state| state.text == "absent") else { return false };
    for field in fields.iter() {
        if !schema::is_common(id.kind, field.name) && !schema::WITH_ABSENT.contains(&field.name) {
            out.push(
                Diagnostic::error("absent", format!("`{id}` is to be absent and has `{}`", field.name))
                    .at(fields.place(field.key.clone()), "means nothing for what is not there")
                    .also(state.place.clone(), "absent")
                    .hint(format!("remove `{}`, or the `state`", field.name)),
            );
        }
    }
    true
}

struct Reader<'a, 'v> {
    id: &'a ResourceId,
    name: &'a Place,
    fields: &'a Fields<'v>,
    files: &'a BTreeMap<String, Vec<u8>>,
    engine: &'a mut Engine,
    shared: &'a mut Shared<'v>,
    out: &'a mut Diagnostics,
}

impl<'a, 'v> Reader<'a, 'v> {
    fn refuse(&mut self, code: &'static str, title: String, at: &Place, expected: &str) {
        self.out.push(Diagnostic::error(code, title).at(at.clone(), "").expected(expected));
    }

    fn references(&mut self, name: &str) -> Vec<(ResourceId, Place)> {
        let mut requires = Vec::new();
        for text in self.fields.texts(name).unwrap_or_default() {
            match text.text.parse::<ResourceId>() {
                Ok(id) => {
                    if let Some(id) = resource_id(id.kind, &id.name, &text.place, self.out) {
                        requires.push((id, text.place));
                    }
                }
                Err(_) => self.refuse(
                    "reference",
                    format!("`{}` is not a resource", text.text),
                    &text.place,
                    &format!("`kind[name]`, with kind one of {}", Kind::words()),
                ),
            }
        }
        requires
    }

    /// A restart includes what a reload does, so a service named in both is restarted.
    fn notifies(&mut self) -> Vec<(Notify, UnitName)> {
        let mut notifies: Vec<(Notify, UnitName)> = Vec::new();
        let mut seen = HashSet::new();
        for (name, notify) in [("restarts", Notify::Restart), ("reloads", Notify::Reload)] {
            for text in self.fields.texts(name).unwrap_or_default() {
                match UnitName::with_default_suffix(text.text) {
                    Ok(unit) if !seen.insert(unit.clone()) => {}
                    Ok(unit) => notifies.push((notify, unit)),
                    Err(error) => {
                        self.refuse("name", error.to_string(), &text.place, "the name of a systemd unit");
                    }
                }
            }
        }
        notifies
    }

    /// What has to prove a change: only of what can be put back by itself.
    fn confirm(&mut self) -> Result<Option<Confirm>, Reported> {
        let Some(field) = self.fields.get("confirm") else { return Ok(None) };
        let Some(table) = field.value.get_ref().as_table() else { return Err(Reported) };
        let key = self.fields.place(field.key.clone());
        if !matches!(self.id.kind, Kind::File | Kind::Directory | Kind::Symlink | Kind::Setting | Kind::Service) {
            self.out.push(
                Diagnostic::error("confirm", format!("`{}` cannot have `confirm`", self.id))
                    .at(key, "what a change of it replaces is not kept whole, and cannot be put back")
                    .expected("`confirm` on a file, directory, symlink, setting or service")
                    .hint("put it on the file that decides who gets in, such as sshd_config or a file in sudoers.d"),
            );
            return Err(Reported);
        }
        let (Some(within), Some(by)) = (table.get("within"), table.get("by")) else {
            self.refuse(
                "confirm",
                "`confirm` is not complete".to_owned(),
                &key,
                "`{ within = \"60s\", by = \"ssh\" }`",
            );
            return Err(Reported);
        };
        let place = self.fields.place(within.span());
        let text = within.get_ref().as_str().unwrap_or_default();
        let within = crate::config::parse_duration(text).ok().filter(|within| (1..=3600).contains(&within.as_secs()));
        let Some(within) = within else {
            self.refuse(
                "confirm",
                format!("`{text}` is not a time for a proof"),
                &place,
                "a time from \"1s\" to \"1h\"",
            );
            return Err(Reported);
        };
        let by = match (by.get_ref().as_str(), by.get_ref().as_array()) {
            (Some("endpoint"), _) => Proof::Endpoint,
            (Some(_), _) => Proof::Ssh,
            (None, words) => {
                let words = words.into_iter().flat_map(|words| words.iter());
                let command: Vec<String> =
                    words.filter_map(|word| word.get_ref().as_str().map(str::to_owned)).collect();
                let is_path = command.first().is_some_and(|program| AbsPath::new(program).is_ok());
                if !is_path {
                    let place = self.fields.place(by.span());
                    let title = "the command of a `confirm` has no path".to_owned();
                    self.refuse("confirm", title, &place, "the program first, by its absolute path");
                    return Err(Reported);
                }
                Proof::Command(command)
            }
        };
        Ok(Some(Confirm { within, by }))
    }

    /// The resource's own name as a path. It was checked when it was declared.
    fn path(&mut self) -> Option<AbsPath> {
        AbsPath::from_shared(&self.id.name).ok()
    }

    fn path_in(&mut self, name: &str) -> Result<Option<AbsPath>, Reported> {
        let Some(text) = self.fields.text(name) else { return Ok(None) };
        match AbsPath::new(text.text) {
            Ok(path) => Ok(Some(path)),
            Err(error) => {
                self.refuse(
                    "path",
                    error.to_string(),
                    &text.place,
                    "an absolute path without `.`, `..` or a trailing slash",
                );
                Err(Reported)
            }
        }
    }

    fn mode(&mut self, default: u32) -> Result<Mode, Reported> {
        match self.fields.text("mode") {
            None => Ok(Mode::from_bits(default)),
            Some(text) => self.parse_mode(&text),
        }
    }

    fn parse_mode(&mut self, text: &Text<'_>) -> Result<Mode, Reported> {
        Mode::parse(text.text).map_err(|_| {
            let title = format!("`{}` is not a mode", text.text);
            self.refuse("mode", title, &text.place, "four octal digits, such as \"0644\"");
            Reported
        })
    }

    /// A user or group by name or id. Unlike names to be created, any name that a host could have will do.
    fn principal(&mut self, name: &str) -> Result<Option<Principal>, Reported> {
        if let Some((id, _)) = self.fields.id(name) {
            return Ok(Some(Principal::Id(id)));
        }
        let Some(text) = self.fields.text(name) else { return Ok(None) };
        let is_bad = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | ',' | '/');
        if text.text.is_empty() || text.text.len() > 256 || text.text.contains(is_bad) {
            let title = format!("`{}` is not the name of an account", text.text);
            self.refuse("name", title, &text.place, "a name, or a number without quotes");
            return Err(Reported);
        }
        if text.text.bytes().all(|b| b.is_ascii_digit()) {
            self.out.push(
                Diagnostic::error("name", format!("`{}` is a number in quotes", text.text))
                    .at(text.place, "")
                    .expected("a name, or a number without quotes")
                    .hint("remove the quotes")
                    .replacement(text.text),
            );
            return Err(Reported);
        }
        Ok(Some(Principal::Name(text.text.to_owned())))
    }

    fn file(&mut self, is_absent: bool) -> Option<Desired> {
        let path = self.path()?;
        if is_absent {
            return Some(Desired::File(file::Desired { path, ensure: Ensure::Absent }));
        }
        let owner = self.principal("owner");
        let group = self.principal("group");
        let mode = self.mode(0o644);
        let content = self.content().ok()?;
        let ownership = Ownership {
            owner: owner.ok()?.unwrap_or(Principal::Agent),
            group: group.ok()?.unwrap_or(Principal::Agent),
            mode: mode.ok()?,
        };
        let care = self.care();
        // Where no key is, a secret is not known by its content.
        if content.is_secret() || self.fields.get("secret").is_some() {
            self.care_for_secret(&care, ownership.mode).ok()?;
        }
        let spec = file::Spec { content, ownership: self.shared.ownership(ownership), care };
        Some(Desired::File(file::Desired { path, ensure: Ensure::Present(spec) }))
    }

    fn content(&mut self) -> Result<Content, Reported> {
        let given: Vec<_> =
            ["content", "source", "template", "secret"].into_iter().filter_map(|name| self.fields.get(name)).collect();
        let (first, second) = (given.first(), given.get(1));
        if first.is_none() && self.fields.is_damaged {
            return Err(Reported);
        }
        let (Some(first), None) = (first, second) else {
            let expected = "exactly one of `content`, `source`, `template` and `secret`";
            self.out.push(match (first, second) {
                (Some(first), Some(second)) => Diagnostic::error("content", format!("`{}` has two contents", self.id))
                    .at(self.fields.place(second.key.clone()), "and another")
                    .also(self.fields.place(first.key.clone()), "one content")
                    .expected(expected),
                _ => Diagnostic::error("content", format!("`{}` has no content", self.id))
                    .at(self.name.clone(), "")
                    .expected(expected)
                    .hint("for an empty file write `content = \"\"`"),
            });
            return Err(Reported);
        };
        let Some(text) = self.fields.text(first.name) else { return Err(Reported) };
        match first.name {
            "content" => Ok(self.shared.content(text.text.as_bytes())),
            "secret" => self.secret(&text).map(|bytes| self.engine.secrets().conceal(&bytes)),
            "source" => {
                let bytes = self.policy_file(&text, "source")?;
                self.warn_if_empty(bytes, &text);
                Ok(self.shared.source(text.text, bytes))
            }
            _ => {
                self.policy_file(&text, "template")?;
                let rendered = self.engine.render(&text).map_err(|diagnostic| {
                    self.out.push(*diagnostic);
                    Reported
                })?;
                let rendered = match rendered {
                    Rendered::Plain(rendered) => rendered,
                    Rendered::Secret(content) => return Ok(content),
                };
                self.warn_if_empty(&rendered, &text);
                Ok(self.shared.content(&rendered))
            }
        }
    }

    fn warn_if_empty(&mut self, content: &[u8], from: &Text<'v>) {
        if content.is_empty() && self.fields.boolean("allow_empty") != Some(true) {
            let title = format!("nothing comes out of `{}`", from.text);
            self.out.push(
                Diagnostic::warning("empty", title)
                    .at(from.place.clone(), format!("where `{}` has content, it is not emptied", self.id))
                    .hint("if that is meant, write `allow_empty = true`"),
            );
        }
    }

    /// Decrypts a secret.
    fn secret(&mut self, name: &Text<'v>) -> Result<Zeroizing<Vec<u8>>, Reported> {
        self.engine.secret(name.text).map_err(|(what, hint)| {
            self.out.push(Diagnostic::error("secret", what).at(name.place.clone(), "").hint(hint));
            Reported
        })
    }

    fn policy_file(&mut self, text: &Text<'v>, what: &str) -> Result<&'a [u8], Reported> {
        match self.files.get(text.text) {
            Some(bytes) => Ok(bytes),
            None => {
                self.out.push(missing_file(self.files, text.text, text.place.clone(), what));
                Err(Reported)
            }
        }
    }

    fn symlink(&mut self, is_absent: bool) -> Option<Desired> {
        let path = self.path()?;
        if is_absent {
            return Some(Desired::Symlink(symlink::Desired { path, ensure: Ensure::Absent }));
        }
        const EXPECTED: &str = "`target`, 1 to 4095 bytes without control characters";
        let Some(target) = self.fields.text("target") else {
            if !self.fields.is_damaged {
                self.refuse("missing-key", format!("`{}` has no `target`", self.id), self.name, EXPECTED);
            }
            return None;
        };
        if target.text.is_empty() || target.text.len() > 4095 || target.text.chars().any(char::is_control) {
            self.refuse("value", format!("the target of `{}` cannot be used", self.id), &target.place, EXPECTED);
            return None;
        }
        Some(Desired::Symlink(symlink::Desired { path, ensure: Ensure::Present(target.text.to_owned()) }))
    }

    fn group(&mut self, is_absent: bool) -> Option<Desired> {
        let name = GroupName::new(&self.id.name).ok()?;
        let spec = group::Spec {
            gid: self.fields.id("gid").map(|(gid, _)| gid),
            system: self.fields.boolean("system").unwrap_or(false),
        };
        let ensure = if is_absent { Ensure::Absent } else { Ensure::Present(spec) };
        Some(Desired::Group(group::Desired { name, ensure }))
    }

    fn package(&mut self, is_absent: bool) -> Option<Desired> {
        let name = PackageName::new(&self.id.name).ok()?;
        if is_absent {
            return Some(Desired::Package(package::Desired { name, ensure: Ensure::Absent }));
        }
        let version = match self.fields.text("version") {
            None => package::Version::Any,
            Some(text) => {
                let is_allowed =
                    |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b':' | b'~' | b'^' | b'_');
                let starts = text.text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
                if !starts || !text.text.bytes().all(is_allowed) {
                    let mut diagnostic = Diagnostic::error("value", format!("`{}` is not a version", text.text))
                        .at(text.place, "")
                        .expected("the whole version as the package manager prints it, such as \"1.22.1-9\"");
                    if text.text.contains('*') {
                        diagnostic = diagnostic.hint("this version of rekindle does not support patterns yet");
                    }
                    self.out.push(diagnostic);
                    return None;
                }
                package::Version::Exact(text.text.to_owned())
            }
        };
        Some(Desired::Package(package::Desired { name, ensure: Ensure::Present(version) }))
    }

    fn service(&mut self) -> Option<Desired> {
        let unit = UnitName::with_default_suffix(&self.id.name).ok()?;
        let enabled = self
            .fields
            .boolean("enabled")
            .map(|enabled| if enabled { service::Enablement::Enabled } else { service::Enablement::Disabled });
        let state = match self.fields.text("state").map(|word| word.text) {
            Some("running") => Some(service::RunState::Running),
            Some("stopped") => Some(service::RunState::Stopped),
            Some("masked") => Some(service::RunState::Masked),
            Some(_) | None => None,
        };
        if let (Some(service::Enablement::Enabled), Some(service::RunState::Masked)) = (enabled, state) {
            let (enabled, state) = (self.fields.get("enabled")?, self.fields.get("state")?);
            self.out.push(
                Diagnostic::error("contradiction", format!("`{}` is to be both enabled and masked", self.id))
                    .at(self.fields.place(state.value.span()), "masked units cannot be enabled")
                    .also(self.fields.place(enabled.value.span()), "enabled")
                    .hint("remove one of the two"),
            );
            return None;
        }
        if enabled.is_none() && state.is_none() && !self.fields.is_damaged {
            self.out.push(
                Diagnostic::warning("no-effect", format!("`{}` says neither `enabled` nor `state`", self.id))
                    .at(self.name.clone(), "nothing is looked at")
                    .hint("add `state = \"running\"` and `enabled = true`"),
            );
        }
        Some(Desired::Service(service::Desired { unit, enabled, state }))
    }
}

/// The mistake is already among the diagnostics.
#[derive(Debug, Clone, Copy)]
struct Reported;
