//! `repository`: for which package manager, where, and signed by whom.

use super::{Reader, Reported};
use crate::policy::diagnostic::{Diagnostic, Place};
use crate::policy::schema::Fields;
use crate::policy::trust::openpgp;
use crate::resource::repository::{self, Form, Index, Key, Name, Source, Spec};
use crate::resource::{Desired, Ensure};

use super::super::load::missing_file;

/// The tables of which a repository has one.
const MANAGERS: [&str; 3] = ["apt", "dnf", "zypper"];
/// Longest key file.
const MAX_KEY: usize = 1024 * 1024;

impl Reader<'_, '_> {
    pub(super) fn repository(&mut self, is_absent: bool) -> Option<Desired> {
        let name = Name::new(&self.id.name).ok()?;
        let ensure = if is_absent { Ensure::Absent } else { Ensure::Present(self.repository_spec()?) };
        Some(Desired::Repository(Box::new(repository::Desired { name, ensure })))
    }

    fn repository_spec(&mut self) -> Option<Spec> {
        const EXPECTED: &str = "exactly one of `apt`, `dnf` and `zypper`";
        let given: Vec<_> = MANAGERS
            .into_iter()
            .filter_map(|name| self.fields.table(name).map(|(fields, place)| (name, fields, place)))
            .collect();
        let ((manager, fields, place), second) = match given.as_slice() {
            [] => {
                if !self.fields.is_damaged {
                    self.refuse(
                        "missing-key",
                        format!("`{}` says nothing of where it is", self.id),
                        self.name,
                        EXPECTED,
                    );
                }
                return None;
            }
            [first, rest @ ..] => (first, rest.first()),
        };
        if let Some((_, _, second)) = second {
            self.out.push(
                Diagnostic::error("value", format!("`{}` is for two package managers", self.id))
                    .at(second.clone(), "and for another")
                    .also(place.clone(), "for one")
                    .expected(EXPECTED)
                    .hint("declare two, each with a `when`"),
            );
            return None;
        }
        let is_apt = *manager == "apt";
        let key = self.repository_key(fields, place, is_apt);
        let uris = self.repository_words(
            fields,
            place,
            "uris",
            is_uri(is_apt),
            "https, http or file addresses without blanks",
        );
        if is_apt {
            let types = self.repository_words(
                fields,
                place,
                "types",
                |text| matches!(text, "deb" | "deb-src"),
                "`deb` or `deb-src`",
            );
            let suites = self.repository_words(fields, place, "suites", is_word, "releases such as \"bookworm\"");
            let components = self.repository_words(fields, place, "components", is_word, "parts such as \"main\"");
            let architectures =
                self.repository_words(fields, place, "architectures", is_word, "architectures such as \"amd64\"");
            let (uris, suites, components) = (uris.ok()?, suites.ok()?, components.ok()?);
            // apt wants components exactly where a suite is not the path of a directory.
            let is_flat = suites.iter().all(|suite| suite.ends_with('/'));
            if is_flat != components.is_empty() || suites.iter().any(|suite| suite.ends_with('/') != is_flat) {
                self.refuse(
                    "value",
                    format!("the suites and components of `{}` do not fit together", self.id),
                    place,
                    "`components`, such as [\"main\"]; or none, and every suite with a slash at its end",
                );
                return None;
            }
            let types = types.ok()?;
            let types = if types.is_empty() { vec!["deb".to_owned()] } else { types };
            let source = Source::Apt { types, uris, suites, components, architectures: architectures.ok()? };
            return Some(Spec { source, key: key.ok()? });
        }
        let reader = if *manager == "dnf" { repository::Reader::Dnf } else { repository::Reader::Zypper };
        let index = if fields.boolean("signed_index") == Some(true) { Index::Signed } else { Index::Plain };
        Some(Spec { source: Source::Rpm { reader, uris: uris.ok()?, index }, key: key.ok()? })
    }

    /// The words of a list, each checked. `uris` and `suites` must not be empty.
    fn repository_words(
        &mut self,
        fields: &Fields<'_>,
        place: &Place,
        name: &'static str,
        is_good: impl Fn(&str) -> bool,
        expected: &str,
    ) -> Result<Vec<String>, Reported> {
        let texts = fields.texts(name).unwrap_or_default();
        if texts.is_empty() && matches!(name, "uris" | "suites") {
            self.refuse("missing-key", format!("`{}` has no `{name}`", self.id), place, expected);
            return Err(Reported);
        }
        let mut words = Vec::new();
        let mut result = Ok(());
        for text in &texts {
            if has_credentials(text.text) {
                self.out.push(
                    Diagnostic::error("value", "an address holds a password".to_owned())
                        .at(text.place.clone(), "everybody on the host could read it")
                        .hint("put it into a file in /etc/apt/auth.conf.d, from a secret"),
                );
                result = Err(Reported);
            } else if text.text.len() <= 2000 && is_good(text.text) {
                words.push(text.text.to_owned());
            } else {
                self.refuse("value", format!("`{}` cannot be used in `{name}`", text.text), &text.place, expected);
                result = Err(Reported);
            }
        }
        result.map(|()| words)
    }

    fn repository_key(&mut self, fields: &Fields<'_>, place: &Place, is_apt: bool) -> Result<Key, Reported> {
        let Some(path) = fields.text("key") else {
            self.out.push(
                Diagnostic::error("unauthenticated", format!("`{}` has no `key`", self.id))
                    .at(place.clone(), "whoever is on the way could serve anything")
                    .expected("`key`, a file of the policy with the public keys that it is signed by"),
            );
            return Err(Reported);
        };
        let Some(bytes) = self.files.get(path.text) else {
            self.out.push(missing_file(self.files, path.text, path.place.clone(), "key"));
            return Err(Reported);
        };
        let keys = if bytes.len() > MAX_KEY { Err("it is longer than 1 MiB") } else { openpgp::public_keys(bytes) };
        let keys = match keys {
            Ok(keys) => keys,
            Err(why) => {
                self.refuse(
                    "key",
                    format!("`{}` is no key: {why}", path.text),
                    &path.place,
                    "what `gpg --export` writes, with or without `--armor`",
                );
                return Err(Reported);
            }
        };
        let form = if bytes.first().is_some_and(|first| first & 0x80 != 0) { Form::Binary } else { Form::Armored };
        if form == Form::Binary && !is_apt {
            self.refuse(
                "key",
                format!("`{}` is not armored", path.text),
                &path.place,
                "what `gpg --export --armor` writes: rpm reads nothing else",
            );
            return Err(Reported);
        }
        Ok(Key { bytes: bytes.clone(), form, expires: openpgp::last_to_expire(&keys) })
    }
}

fn is_uri(is_apt: bool) -> impl Fn(&str) -> bool {
    move |text| {
        let rest = ["https://", "http://", "file:/"].into_iter().find_map(|scheme| text.strip_prefix(scheme));
        // dnf and zypper put the host's release and architecture in place of `$releasever` and the like.
        let is_fit = |b: u8| b.is_ascii_graphic() && !b"\"'`\\<>{}|^#[]".contains(&b) && (b != b'$' || !is_apt);
        rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(is_fit))
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/'))
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/:+~-".contains(&b))
        && !text.split('/').any(|part| part == "..")
}

fn has_credentials(uri: &str) -> bool {
    let authority = uri.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default());
    authority.is_some_and(|authority| authority.contains('@'))
}
