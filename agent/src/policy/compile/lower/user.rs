//! `user`: what its attributes mean. A clear password is never taken for a hash, nor anything else for a public key.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Reader, Reported};
use crate::policy::diagnostic::Diagnostic;
use crate::policy::schema::Text;
use crate::policy::secret::Secrets;
use crate::resource::{Desired, Ensure, GroupName, UserName, user};

impl<'v> Reader<'_, 'v> {
    pub(super) fn user(&mut self, is_absent: bool) -> Option<Desired> {
        let name = UserName::new(&self.id.name).ok()?;
        if is_absent {
            return Some(Desired::User(Box::new(user::Desired { name, ensure: Ensure::Absent })));
        }
        let group = self.principal("group");
        let groups = self.groups();
        let shell = self.path_in("shell");
        let home = self.path_in("home");
        let comment = self.comment();
        let password = self.password();
        let authorized_keys = self.authorized_keys();
        let exactly = self.fields.boolean("groups_exact").unwrap_or(false);
        let spec = user::Spec {
            uid: self.fields.id("uid").map(|(uid, _)| uid),
            group: group.ok()?,
            groups: groups.ok()?,
            membership: if exactly { user::Membership::Exactly } else { user::Membership::AtLeast },
            shell: shell.ok()?,
            home: home.ok()?,
            comment: comment.ok()?,
            password: password.ok()?,
            authorized_keys: authorized_keys.ok()?,
            system: self.fields.boolean("system").unwrap_or(false),
        };
        Some(Desired::User(Box::new(user::Desired { name, ensure: Ensure::Present(spec) })))
    }

    fn groups(&mut self) -> Result<Vec<GroupName>, Reported> {
        let mut groups = Vec::new();
        let mut seen = HashSet::new();
        let mut result = Ok(());
        for text in self.fields.texts("groups").unwrap_or_default() {
            match GroupName::new(text.text) {
                Ok(group) if !seen.insert(group.clone()) => {}
                Ok(group) => groups.push(group),
                Err(error) => {
                    self.refuse("name", error.to_string(), &text.place, "the name of a group");
                    result = Err(Reported);
                }
            }
        }
        result.map(|()| groups)
    }

    fn comment(&mut self) -> Result<Option<String>, Reported> {
        let Some(text) = self.fields.text("comment") else { return Ok(None) };
        if text.text.len() > 256 || text.text.contains(|c: char| c == ':' || c.is_control()) {
            let expected = "at most 256 bytes without `:` and control characters";
            self.refuse("value", "the comment cannot stand in /etc/passwd".to_owned(), &text.place, expected);
            return Err(Reported);
        }
        Ok(Some(text.text.to_owned()))
    }

    fn password(&mut self) -> Result<Option<user::Password>, Reported> {
        let Some(field) = self.fields.get("password") else { return Ok(None) };
        let key = self.fields.place(field.key.clone());
        let Some(table) = field.value.get_ref().as_table() else { return Err(Reported) };
        let locked = table.get("locked").and_then(|value| value.get_ref().as_bool());
        let hash = table.get("hash").and_then(|value| value.get_ref().as_str());
        let secret = table.get("secret").and_then(|value| Some((value.get_ref().as_str()?, value.span())));
        if let (Some((text, range)), None, None) = (&secret, locked, hash) {
            let secret = Text { text, place: self.fields.place(range.clone()), range: range.clone() };
            return self.secret_hash(&secret);
        }
        match (locked.filter(|_| secret.is_none()), hash.filter(|_| secret.is_none())) {
            (Some(true), None) => Ok(Some(user::Password::Locked)),
            (None, Some(hash)) if is_crypt_hash(hash) => Ok(Some(user::Password::Hash(hash.to_owned()))),
            (None, Some(_)) => {
                let title = format!("the password of `{}` is not a crypt(3) hash", self.id);
                self.out.push(
                    // The line is not drawn: it may hold the password itself, and this text goes to logs and alerts.
                    Diagnostic::error("password", title)
                        .at(key, "")
                        .secret()
                        .expected("a hash such as `$y$…`, never the password itself")
                        .hint("make one with `mkpasswd` or `openssl passwd -6`, and change this password: it has been in the policy"),
                );
                Err(Reported)
            }
            (Some(_), _) | (None, None) => {
                let title = format!("the password of `{}` is neither locked nor a hash", self.id);
                self.out.push(
                    Diagnostic::error("password", title)
                        .at(key, "")
                        .secret()
                        .expected("`{ locked = true }`, `{ hash = \"$y$…\" }` or `{ secret = \"NAME\" }`"),
                );
                Err(Reported)
            }
        }
    }

    /// A secret that is a crypt(3) hash, with or without a line break.
    fn secret_hash(&mut self, name: &Text<'v>) -> Result<Option<user::Password>, Reported> {
        let bytes = self.secret(name)?;
        if matches!(self.engine.secrets(), Secrets::Unread) {
            return Ok(Some(user::Password::Locked));
        }
        match std::str::from_utf8(&bytes).map(str::trim_end) {
            Ok(hash) if is_crypt_hash(hash) => Ok(Some(user::Password::Secret(hash.to_owned()))),
            Ok(_) | Err(_) => {
                let title = format!("the secret `{}` is not a crypt(3) hash", name.text);
                self.out.push(
                    Diagnostic::error("password", title)
                        .at(name.place.clone(), "")
                        .expected("a hash such as `$y$…`, never the password itself")
                        .hint("make one with `mkpasswd` or `openssl passwd -6`, and encrypt that"),
                );
                Err(Reported)
            }
        }
    }

    fn authorized_keys(&mut self) -> Result<Option<user::AuthorizedKeys>, Reported> {
        let exact = self.fields.boolean("authorized_keys_exact").unwrap_or(false);
        let Some(texts) = self.fields.texts("authorized_keys") else {
            if exact {
                let title = format!("`{}` has `authorized_keys_exact` and no `authorized_keys`", self.id);
                self.out.push(
                    Diagnostic::error("missing-key", title)
                        .at(self.name.clone(), "")
                        .hint("to allow no key at all write `authorized_keys = []`"),
                );
                return Err(Reported);
            }
            return Ok(None);
        };
        let mut keys: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        let mut result = Ok(());
        for text in texts {
            match check_authorized_key(text.text) {
                Ok(()) if !seen.insert(text.text) => {}
                Ok(()) => keys.push(text.text.to_owned()),
                Err(why) => {
                    let expected = "a line such as `ssh-ed25519 AAAA… name`, options before it allowed";
                    self.refuse("authorized-key", format!("this is not a public key: {why}"), &text.place, expected);
                    result = Err(Reported);
                }
            }
        }
        result.map(|()| Some(user::AuthorizedKeys { keys, exact }))
    }
}

/// Whether a text is a modular crypt(3) hash: `$id$…$hash`, so that a clear password is not taken for one.
/// The old DES form is refused: it has no mark that tells it from a word.
fn is_crypt_hash(text: &str) -> bool {
    let mut parts = text.split('$');
    let is_body = |part: &str| {
        part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/' | b',' | b'=' | b'-' | b'_'))
    };
    let (Some(""), Some(id)) = (parts.next(), parts.next()) else { return false };
    let rest: Vec<&str> = parts.collect();
    let Some((hash, parameters)) = rest.split_last() else { return false };
    let least = match id {
        "1" => 22,
        "5" => 43,
        "6" => 86,
        "y" | "gy" | "7" => 43,
        // bcrypt has salt and hash in one part.
        "2a" | "2b" | "2y" => 53,
        _ => return false,
    };
    text.len() <= 512 && !parameters.is_empty() && hash.len() >= least && rest.iter().all(|part| is_body(part))
}

const KEY_TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Checks a line of authorized_keys: options, key type, a key that itself is of that type, a comment.
fn check_authorized_key(line: &str) -> Result<(), &'static str> {
    if line.len() > 16 * 1024 {
        return Err("the line is too long");
    }
    if line.chars().any(char::is_control) {
        return Err("it has a line break or another control character");
    }
    let mut words = Vec::new();
    let mut quoted = false;
    for word in line.split(' ') {
        // Options may hold blanks inside quotes: only what stands outside counts as a word.
        if !quoted && !word.is_empty() {
            words.push(word);
        }
        quoted ^= word.replace("\\\"", "").bytes().filter(|b| *b == b'"').count() % 2 == 1;
    }
    let at = words.iter().take(2).position(|word| KEY_TYPES.contains(word)).ok_or("no known key type")?;
    let (Some(key_type), Some(key)) = (words.get(at), words.get(at + 1)) else { return Err("the key is missing") };
    let blob = STANDARD.decode(key).map_err(|_| "the key is not base64")?;
    let length = u32::try_from(key_type.len()).unwrap_or(u32::MAX).to_be_bytes();
    match blob.strip_prefix(&length).and_then(|rest| rest.strip_prefix(key_type.as_bytes())) {
        Some(rest) if rest.len() >= 32 => Ok(()),
        Some(_) => Err("the key is cut short"),
        None => Err("the key itself is of another type"),
    }
}
