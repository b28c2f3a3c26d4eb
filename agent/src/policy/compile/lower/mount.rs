//! `mount`: what, where from, with which options.

use super::{Reader, Reported};
use crate::policy::diagnostic::Diagnostic;
use crate::resource::Desired;
use crate::resource::mount::{self, Spec, State, contradiction};

/// Mount points without which a host does not run.
const PROTECTED: [&str; 9] = ["/", "/dev", "/etc", "/proc", "/run", "/sys", "/usr", "/var", "/boot"];

impl Reader<'_, '_> {
    pub(super) fn mount(&mut self) -> Option<Desired> {
        let path = self.path()?;
        let state = self.fields.text("state");
        let word = state.as_ref().map_or("mounted", |state| state.text);
        if word == "mounted" {
            let options = self.mount_options();
            let source = self.mount_field(
                "source",
                |text| !text.contains(char::is_control),
                "a device, a share, `UUID=…` or `tmpfs`",
            );
            let is_type = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            let fstype = self.mount_field("fstype", is_type, "the name of a file system, such as \"ext4\"");
            let spec = Spec { options: options.ok()?, source: source.ok()?, fstype: fstype.ok()? };
            return Some(Desired::Mount(Box::new(mount::Desired { path, state: State::Mounted(spec) })));
        }
        let place = state.map(|state| state.place)?;
        if PROTECTED.contains(&&*self.id.name) {
            self.out.push(
                Diagnostic::error("protected", format!("`{}` is needed by the host and stays mounted", self.id))
                    .at(place, "")
                    .hint("remove this resource"),
            );
            return None;
        }
        if word == "absent" {
            // What it has besides was refused already.
            return Some(Desired::Mount(Box::new(mount::Desired { path, state: State::Absent })));
        }
        for name in ["options", "source", "fstype"] {
            if let Some(field) = self.fields.get(name) {
                let at = self.fields.place(field.key.clone());
                self.out.push(
                    Diagnostic::error("absent", format!("`{}` is not to be mounted and has `{name}`", self.id))
                        .at(at, "means nothing for what is not mounted")
                        .also(place.clone(), "not mounted")
                        .hint(format!("remove `{name}`, or the `state`")),
                );
                return None;
            }
        }
        Some(Desired::Mount(Box::new(mount::Desired { path, state: State::Unmounted })))
    }

    fn mount_options(&mut self) -> Result<Vec<String>, Reported> {
        let mut options: Vec<String> = Vec::new();
        let mut result = Ok(());
        let texts = self.fields.texts("options").unwrap_or_default();
        for text in &texts {
            let is_bad = |c: char| c.is_control() || c == ',';
            if text.text.is_empty()
                || text.text.len() > 1000
                || text.text.contains(is_bad)
                || text.text.starts_with('-')
            {
                let title = format!("`{}` is not a mount option", text.text.escape_debug());
                self.refuse(
                    "value",
                    title,
                    &text.place,
                    "one option for each string, such as \"nodev\" or \"size=1G\"",
                );
                result = Err(Reported);
            } else if matches!(text.text, "remount" | "defaults") {
                let title = format!("`{}` says nothing about how it should be mounted", text.text);
                self.refuse("value", title, &text.place, "an option such as \"nodev\"");
                result = Err(Reported);
            } else if !options.iter().any(|option| option == text.text) {
                options.push(text.text.to_owned());
            }
        }
        if let Some((a, b)) = contradiction(&options) {
            let at = |option: &str| texts.iter().find(|text| text.text == option).map(|text| text.place.clone());
            if let (Some(first), Some(second)) = (at(a), at(b)) {
                self.out.push(
                    Diagnostic::error("contradiction", format!("`{}` is to be both `{a}` and `{b}`", self.id))
                        .at(second, "")
                        .also(first, "")
                        .hint("remove one of the two"),
                );
            }
            return Err(Reported);
        }
        result.map(|()| options)
    }

    fn mount_field(
        &mut self,
        name: &str,
        is_good: impl Fn(&str) -> bool,
        expected: &str,
    ) -> Result<Option<String>, Reported> {
        let Some(text) = self.fields.text(name) else { return Ok(None) };
        if text.text.is_empty() || text.text.len() > 4095 || text.text.starts_with(['-', '#']) || !is_good(text.text) {
            self.refuse(
                "value",
                format!("`{}` cannot be the `{name}` of a mount", text.text.escape_debug()),
                &text.place,
                expected,
            );
            return Err(Reported);
        }
        Ok(Some(text.text.to_owned()))
    }
}
