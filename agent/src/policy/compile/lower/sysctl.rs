//! `sysctl`: which value, and for how long.

use toml::de::DeValue;

use super::Reader;
use crate::policy::diagnostic::Diagnostic;
use crate::resource::Desired;
use crate::resource::sysctl::{self, Key, Missing, Persist};

impl Reader<'_, '_> {
    pub(super) fn sysctl(&mut self) -> Option<Desired> {
        let key = Key::new(&self.id.name).ok()?;
        let Some(field) = self.fields.get("value") else {
            if !self.fields.is_damaged {
                self.refuse("missing-key", format!("`{}` has no `value`", self.id), self.name, "`value`");
            }
            return None;
        };
        let place = self.fields.place(field.value.span());
        let value = match field.value.get_ref() {
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok()?.to_string(),
            DeValue::String(text) => text.trim().to_owned(),
            DeValue::Boolean(_) | DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                return None;
            }
        };
        if value.is_empty() || value.len() > 4000 || value.contains(|c: char| c.is_control() && c != '\t') {
            let title = format!("the value of `{}` cannot be used", self.id);
            self.refuse("value", title, &place, "one line of at most 4000 bytes");
            return None;
        }
        let persist = if self.fields.boolean("persist") == Some(false) { Persist::Not } else { Persist::File };
        let missing =
            if self.fields.boolean("ignore_missing") == Some(true) { Missing::Ignore } else { Missing::Refuse };
        if missing == Missing::Ignore && persist == Persist::Not {
            self.out.push(
                Diagnostic::warning(
                    "no-effect",
                    format!("`{}` does nothing where the kernel has no such key", self.id),
                )
                .at(self.name.clone(), "not kept for the next boot either")
                .hint("remove `persist = false`, so that the key is set when it comes"),
            );
        }
        Some(Desired::Sysctl(Box::new(sysctl::Desired { key, value, persist, missing })))
    }
}
