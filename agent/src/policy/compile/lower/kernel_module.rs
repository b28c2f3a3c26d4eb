//! `kernel_module`: loaded or blocked.

use super::Reader;
use crate::resource::Desired;
use crate::resource::kernel_module::{self, Name, State};

impl Reader<'_, '_> {
    pub(super) fn kernel_module(&mut self) -> Option<Desired> {
        let name = Name::new(&self.id.name).ok()?;
        let state = match self.fields.text("state").map(|state| state.text) {
            Some("loaded") => State::Loaded,
            Some(_) => State::Blocked,
            None => {
                if !self.fields.is_damaged {
                    let title = format!("`{}` has no `state`", self.id);
                    self.refuse("missing-key", title, self.name, "`state`, \"loaded\" or \"blocked\"");
                }
                return None;
            }
        };
        Some(Desired::KernelModule(Box::new(kernel_module::Desired { name, state })))
    }
}
