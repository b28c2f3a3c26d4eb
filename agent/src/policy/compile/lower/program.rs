//! Programs that a policy names.

use super::{Reader, Reported};
use crate::policy::diagnostic::Diagnostic;
use crate::resource::Argv;

impl Reader<'_, '_> {
    /// A program with its arguments, in words.
    pub(super) fn argv(&mut self, name: &str) -> Result<Option<Argv>, Reported> {
        let Some(texts) = self.fields.texts(name) else { return Ok(None) };
        let words = texts.iter().map(|text| text.text.to_owned()).collect();
        Argv::new(words).map(Some).map_err(|error| {
            let place = match error.word.and_then(|word| texts.get(word)) {
                Some(text) => text.place.clone(),
                None => self
                    .fields
                    .get(name)
                    .map_or_else(|| self.name.clone(), |field| self.fields.place(field.value.span())),
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
}
