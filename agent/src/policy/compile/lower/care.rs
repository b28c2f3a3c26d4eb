//! `file`: what stands in its way.

use super::Reader;
use crate::resource::file::{Care, Empty, HardLink, Symlink};

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
}
