//! `file`: what stands in its way.

use super::{Reader, Reported};
use crate::policy::diagnostic::Diagnostic;
use crate::resource::Mode;
use crate::resource::file::{Care, Empty, HardLink, Symlink};

/// The bit by which everybody may read.
const READ_BY_ALL: u32 = 0o004;

impl Reader<'_, '_> {
    /// What to do where a regular file is not simply replaced. The words were checked with their shape.
    pub(super) fn care(&self) -> Care {
        let word = |name: &str| self.fields.text(name).map(|word| word.text);
        // Who writes `content = ""` says that the file is to be empty.
        let says_empty = self.fields.get("content").is_some() || self.fields.boolean("allow_empty") == Some(true);
        Care {
            symlink: match word("symlink") {
                Some("follow") => Symlink::Follow,
                Some("refuse") => Symlink::Refuse,
                Some(_) | None => Symlink::Replace,
            },
            hardlink: match word("hardlink") {
                Some("in-place") => HardLink::InPlace,
                Some("refuse") => HardLink::Refuse,
                Some(_) | None => HardLink::Break,
            },
            empty: if says_empty { Empty::Allow } else { Empty::Refuse },
        }
    }

    /// A secret is for those alone who are named.
    pub(super) fn care_for_secret(&mut self, care: &Care, mode: Mode) -> Result<(), Reported> {
        if care.symlink == Symlink::Follow
            && let Some(word) = self.fields.text("symlink")
        {
            let title = format!("`{}` holds a secret, and would follow a link with it", self.id);
            self.out.push(
                Diagnostic::error("secret", title)
                    .at(word.place, "")
                    .expected("`replace` or `refuse`")
                    .hint("whoever can put a link there would choose where the secret goes"),
            );
            return Err(Reported);
        }
        if mode.bits() & READ_BY_ALL != 0 {
            let place = self.fields.text("mode").map_or_else(|| self.name.clone(), |mode| mode.place);
            self.out.push(
                Diagnostic::warning("secret", format!("`{}` holds a secret that everybody may read", self.id))
                    .at(place, format!("the mode is {mode}"))
                    .hint("write `mode = \"0600\"`"),
            );
        }
        Ok(())
    }
}
