//! A program and its arguments, as a policy writes them: words, never a line for a shell.

use std::fmt;
use std::sync::Arc;

use super::AbsPath;
use crate::actor::command::escaped;

/// Most words.
const MAX_WORDS: usize = 256;
/// Most bytes of all words together.
const MAX_BYTES: usize = 64 * 1024;
/// Longest line for people, in characters.
const MAX_SHOWN: usize = 200;
/// What stands for a path.
const PLACEHOLDER: &str = "{}";
/// Words that only a shell would obey.
const SHELL_WORDS: [&str; 10] = ["|", "||", "&&", ";", "&", ">", ">>", "<", "2>&1", "2>/dev/null"];

/// A program, by absolute path, and its arguments. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Argv(Arc<[String]>);

impl TryFrom<Vec<String>> for Argv {
    type Error = InvalidArgv;

    fn try_from(words: Vec<String>) -> Result<Self, InvalidArgv> {
        Self::new(words)
    }
}

/// Words that are no program with arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct InvalidArgv {
    /// Which word, from 0; `None` for all of them.
    pub word: Option<usize>,
    /// Why, in words.
    pub why: String,
    /// What to do about it.
    pub hint: Option<&'static str>,
}

impl Argv {
    /// Validates words.
    pub fn new(words: Vec<String>) -> Result<Self, InvalidArgv> {
        let refuse = |word, why: String, hint| Err(InvalidArgv { word, why, hint });
        let Some(program) = words.first() else {
            return refuse(None, "no program is named".to_owned(), None);
        };
        if words.len() > MAX_WORDS || words.iter().map(String::len).sum::<usize>() > MAX_BYTES {
            let why = format!("it has more than {MAX_WORDS} words or {} KiB", MAX_BYTES / 1024);
            return refuse(None, why, Some("put it into a script that the policy declares as a file"));
        }
        if AbsPath::new(program).is_err() || (words.len() == 1 && program.contains(' ')) {
            let hint = if program.contains(' ') {
                "write each word as a string of its own; no shell takes them apart"
            } else {
                "write the whole path, as `command -v` prints it"
            };
            return refuse(
                Some(0),
                format!("`{}` is not the absolute path of a program", escaped(program, 80)),
                Some(hint),
            );
        }
        if let Some(at) = words.iter().position(|word| word.contains('\0')) {
            return refuse(Some(at), "a word has a zero byte".to_owned(), None);
        }
        if let Some(at) = words.iter().position(|word| SHELL_WORDS.contains(&word.as_str())) {
            let word = words.get(at).map(String::as_str).unwrap_or_default();
            let why = format!("`{word}` would be passed to the program as it is: there is no shell");
            return refuse(Some(at), why, Some("put the line into a script that the policy declares as a file"));
        }
        Ok(Self(words.into()))
    }

    /// All words, the program first.
    pub fn words(&self) -> &[String] {
        &self.0
    }

    /// The program's path.
    pub fn program(&self) -> &str {
        self.0.first().map(String::as_str).unwrap_or_default()
    }

    /// The last component of the program's path.
    pub fn short(&self) -> &str {
        self.program().rsplit('/').next().unwrap_or_default()
    }

    /// The arguments.
    pub fn args(&self) -> &[String] {
        self.0.get(1..).unwrap_or_default()
    }

    /// The same with a path in the place of each `{}`.
    #[must_use]
    pub fn with_path(&self, path: &AbsPath) -> Self {
        if !self.args().iter().any(|word| word.contains(PLACEHOLDER)) {
            return self.clone();
        }
        let path = path.to_string();
        let args = self.args().iter().map(|word| word.replace(PLACEHOLDER, &path));
        Self(std::iter::once(self.program().to_owned()).chain(args).collect())
    }
}

/// One bounded line, as one would type it.
impl fmt::Display for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%{}^".contains(c);
        let quoted = |word: &String| {
            if !word.is_empty() && word.chars().all(is_plain) { word.clone() } else { format!("'{word}'") }
        };
        let line = self.0.iter().map(quoted).collect::<Vec<_>>().join(" ");
        f.write_str(&escaped(&line, MAX_SHOWN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn what_is_no_program_with_arguments_is_refused() {
        let check = |argv: &[&str], word: Option<usize>| assert_eq!(Argv::new(words(argv)).unwrap_err().word, word);
        check(&[], None);
        check(&["sshd", "-t"], Some(0));
        check(&["/usr/sbin/../sshd"], Some(0));
        check(&["/usr/sbin/sshd -t"], Some(0));
        check(&["/bin/echo", "a", "|", "/bin/cat"], Some(2));
        check(&["/bin/echo", "a\0b"], Some(1));
        check(&["/bin/echo", &"x".repeat(MAX_BYTES)], None);
    }

    #[test]
    fn a_path_takes_the_place_of_braces() {
        let path = AbsPath::new("/etc/a b").unwrap();
        let check = |argv: &[&str], expected: &str| {
            assert_eq!(Argv::new(words(argv)).unwrap().with_path(&path).to_string(), expected);
        };
        check(&["/usr/sbin/sshd", "-t", "-f", "{}"], "/usr/sbin/sshd -t -f '/etc/a b'");
        check(&["/bin/x", "--file={}", ""], "/bin/x '--file=/etc/a b' ''");
        check(&["/usr/sbin/nginx", "-t"], "/usr/sbin/nginx -t");
        check(&["/bin/x", "a\nb"], "/bin/x 'a\\nb'");
    }
}
