//! `repository`: where packages come from, for apt, dnf or zypper, with the key that everything from there is signed by.
//!
//! Two files of this resource alone: one that names the repository, and one that holds its key, which counts for nothing else. What
//! is not signed by it is not installed: there is no way to say otherwise. Names, addresses and words were checked where they
//! were declared, so that none can add a line.
//!
//! After a change the package manager reads that one repository. If it cannot be read that is logged and no failure: a
//! repository that is down must not keep packages of others from being installed.

use jiff::Timestamp;

use super::{AbsPath, Action, ApplyError, Change, Drift, Ensure, InvalidName, Observation, Verdict, chain, file, own};
use crate::host::Host;

/// A key is told of when it has less than this left.
const WARN_SECONDS: i64 = 30 * 86_400;

/// What a repository should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desired {
    /// Its name, and that of its files.
    pub name: Name,
    /// There with this specification, or not there for any package manager.
    pub ensure: Ensure<Spec>,
}

/// The specification of a present repository.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spec {
    /// Who reads it, and what.
    pub source: Source,
    /// The public keys, as the policy has them.
    pub key: Key,
}

/// A repository in the words of a package manager. Each word is one: without blanks, and never empty.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Source {
    /// For apt: a deb822 file in /etc/apt/sources.list.d.
    Apt {
        /// `deb`, `deb-src` or both.
        types: Vec<String>,
        /// Where.
        uris: Vec<String>,
        /// Which releases.
        suites: Vec<String>,
        /// Which parts; none for a suite that ends with a slash.
        components: Vec<String>,
        /// Which architectures; all that the host has when there are none.
        architectures: Vec<String>,
    },
    /// For dnf or zypper: a file in its directory.
    Rpm {
        /// Which of the two.
        reader: Reader,
        /// Where.
        uris: Vec<String>,
        /// Whether the repository's own index is signed, too.
        index: Index,
    },
}

/// Who reads a repository of rpm packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Reader {
    /// dnf and yum.
    Dnf,
    /// zypper.
    Zypper,
}

/// Whether the index of a repository of rpm packages is signed. The packages always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Index {
    /// It is, and one that is not is not read.
    Signed,
    /// It need not be.
    Plain,
}

/// Public keys.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Key {
    /// The bytes of the file.
    pub bytes: Vec<u8>,
    /// How they are written.
    pub form: Form,
    /// When the last of them stops signing, in seconds since 1970; `None` when one does not.
    pub expires: Option<i64>,
}

/// How public keys are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Form {
    /// As text.
    Armored,
    /// As they are.
    Binary,
}

/// The name of a repository.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Name(Box<str>);

impl Name {
    /// Reads a name, from which names of files are made.
    ///
    /// # Errors
    ///
    /// When it could not be one.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let invalid = |why| InvalidName { what: "repository name", text: text.to_owned(), why };
        // Where dnf has its own settings.
        if text == "main" {
            return Err(invalid("dnf takes a section of this name for its own settings"));
        }
        if text.is_empty() || text.len() > 100 {
            return Err(invalid("it is empty or longer than 100 bytes"));
        }
        // apt reads no file with other characters in its name, and says so to nobody.
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
            return Err(invalid("only letters, digits, `_`, `.` and `-` are allowed"));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(invalid("it must begin with a letter or a digit"));
        }
        Ok(Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn path(&self, directory: &str, prefix: &str, suffix: &str) -> AbsPath {
        AbsPath::new(&format!("{directory}/{prefix}{}{suffix}", self.0)).expect("the name was checked, and is short")
    }

    fn apt_source(&self) -> AbsPath {
        self.path("/etc/apt/sources.list.d", "", ".sources")
    }

    fn apt_key(&self, form: Form) -> AbsPath {
        let suffix = match form {
            Form::Armored => ".asc",
            Form::Binary => ".gpg",
        };
        self.path("/etc/apt/keyrings", "rekindle-", suffix)
    }

    fn rpm_source(&self, reader: Reader) -> AbsPath {
        let directory = match reader {
            Reader::Dnf => "/etc/yum.repos.d",
            Reader::Zypper => "/etc/zypp/repos.d",
        };
        self.path(directory, "", ".repo")
    }

    fn rpm_key(&self) -> AbsPath {
        self.path("/etc/pki/rpm-gpg", "rekindle-", ".asc")
    }
}

impl Desired {
    /// Its files. Each is there or must not be. The key comes before what names it.
    pub fn files(&self) -> Vec<file::Desired> {
        let name = &self.name;
        let Ensure::Present(Spec { source, key }) = &self.ensure else {
            let sources = [name.apt_source(), name.rpm_source(Reader::Dnf), name.rpm_source(Reader::Zypper)];
            let keys = [name.apt_key(Form::Armored), name.apt_key(Form::Binary), name.rpm_key()];
            return sources.into_iter().chain(keys).map(own::absent).collect();
        };
        let text = self.text(source, key);
        match source {
            Source::Apt { .. } => {
                let other = match key.form {
                    Form::Armored => Form::Binary,
                    Form::Binary => Form::Armored,
                };
                vec![
                    own::present(name.apt_key(key.form), &key.bytes),
                    own::absent(name.apt_key(other)),
                    own::present(name.apt_source(), text.as_bytes()),
                ]
            }
            Source::Rpm { reader, .. } => {
                vec![own::present(name.rpm_key(), &key.bytes), own::present(name.rpm_source(*reader), text.as_bytes())]
            }
        }
    }

    fn text(&self, source: &Source, key: &Key) -> String {
        let name = self.name.as_str();
        let note = format!("# Written by rekindle for repository[{name}]: what is changed here is changed back.\n");
        match source {
            Source::Apt { types, uris, suites, components, architectures } => {
                let mut text = note;
                let fields = [
                    ("Types", types),
                    ("URIs", uris),
                    ("Suites", suites),
                    ("Components", components),
                    ("Architectures", architectures),
                ];
                for (field, words) in fields.into_iter().filter(|(_, words)| !words.is_empty()) {
                    text.push_str(&format!("{field}: {}\n", words.join(" ")));
                }
                text.push_str(&format!("Signed-By: {}\n", self.name.apt_key(key.form)));
                text
            }
            Source::Rpm { reader, uris, index } => {
                let index = match index {
                    Index::Signed => 1,
                    Index::Plain => 0,
                };
                let more = match reader {
                    Reader::Dnf => "",
                    Reader::Zypper => "type=rpm-md\nautorefresh=1\n",
                };
                format!(
                    "{note}[{name}]\nname={name}\nbaseurl={}\nenabled=1\ngpgcheck=1\nrepo_gpgcheck={index}\ngpgkey=file://{}\n{more}",
                    uris.join("\n        "),
                    self.name.rpm_key(),
                )
            }
        }
    }
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    files: Vec<own::Seen>,
    /// When the key stops signing, if that is soon.
    expires: Option<Timestamp>,
}

/// Looks at its files, and at the time.
pub fn observe(host: &Host, desired: &Desired) -> Observation<Observed> {
    let files = own::observe(&host.root, &desired.files());
    let expires = match &desired.ensure {
        Ensure::Present(spec) => spec.key.expires_soon(Timestamp::now()),
        Ensure::Absent => None,
    };
    Observation::Present(Observed { files, expires })
}

impl Key {
    /// When it stops signing, if that is so soon that somebody should know.
    pub fn expires_soon(&self, now: Timestamp) -> Option<Timestamp> {
        let is_soon = |at: &i64| *at < now.as_second().saturating_add(WARN_SECONDS);
        self.expires.filter(is_soon).and_then(|at| Timestamp::from_second(at).ok())
    }
}

/// Compares. A key that stops signing soon is only told of: a new one has to come with the policy.
pub fn diff(desired: &Desired, observation: &Observation<Observed>) -> Verdict {
    let observed = match observation.always() {
        Ok(observed) => observed,
        Err(why) => return Verdict::Indeterminate(why),
    };
    let own::Differences { changes, unknown } = own::differences(&desired.files(), &observed.files);
    if let Some(why) = unknown {
        return Verdict::Indeterminate(why);
    }
    match (changes.is_empty(), observed.expires) {
        (true, None) => Verdict::InSync,
        (true, Some(expires)) => {
            let to = Some("a key that signs for 30 days and more".to_owned());
            Verdict::Drift(Drift::value(Action::Report, "key", Some(format!("expires on {expires:.0}")), to))
        }
        (false, _) => Verdict::Drift(Drift { action: action(desired, &changes), changes }),
    }
}

fn action(desired: &Desired, changes: &[Change]) -> Action {
    let is_new = |change: &Change| matches!(&change.detail, super::ChangeDetail::Value { from: None, .. });
    match desired.ensure {
        Ensure::Absent => Action::Remove,
        Ensure::Present(_) if changes.iter().all(is_new) => Action::Create,
        Ensure::Present(_) => Action::Update,
    }
}

/// Puts its files in place or removes them, and has the package manager read the repository.
pub fn apply(host: &mut Host, desired: &Desired, observation: &Observation<Observed>) -> Result<(), ApplyError> {
    let name = desired.name.as_str();
    let observed = match observation {
        Observation::Present(observed) => observed,
        Observation::Unknown(why) => return Err(ApplyError::Vanished { what: name.to_owned(), why: why.clone() }),
        Observation::Absent => return Ok(()),
    };
    own::apply(&host.root, &desired.files(), &observed.files)?;
    if let Ensure::Present(Spec { source: Source::Apt { .. }, .. }) = &desired.ensure
        && let Err(error) = host.packages.refresh(&desired.name.apt_source())
    {
        tracing::warn!(repository = name, error = %chain(&error), "the repository could not be read; its packages are not known yet");
    }
    Ok(())
}

/// The bytes that a step would overwrite: what names the repository, before its key.
pub(super) fn replaced<'o>(desired: &Desired, observed: &'o Observed) -> Vec<&'o [u8]> {
    let mut replaced = own::replaced(&desired.files(), &observed.files);
    replaced.reverse();
    replaced
}

/// Its paths.
pub(super) fn paths(desired: &Desired) -> Vec<AbsPath> {
    desired.files().into_iter().map(|file| file.path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(source: Source, form: Form) -> Desired {
        let key = Key { bytes: b"key".to_vec(), form, expires: Some(1_000_000_000) };
        Desired { name: Name::new("internal").unwrap(), ensure: Ensure::Present(Spec { source, key }) }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Every file that is to be there, with its path.
    fn shown(desired: &Desired) -> String {
        let mut text = String::new();
        for file in desired.files() {
            match file.ensure {
                Ensure::Present(spec) => {
                    let content = String::from_utf8(spec.content.bytes().unwrap().into_owned()).unwrap();
                    text.push_str(&format!("== {}\n{content}\n", file.path));
                }
                Ensure::Absent => text.push_str(&format!("no {}\n", file.path)),
            }
        }
        text
    }

    #[test]
    fn each_package_manager_has_its_own_files() {
        let apt = Source::Apt {
            types: words(&["deb"]),
            uris: words(&["https://apt.acme.example", "file:/srv/apt"]),
            suites: words(&["bookworm"]),
            components: words(&["main"]),
            architectures: Vec::new(),
        };
        let dnf = Source::Rpm {
            reader: Reader::Dnf,
            uris: words(&["https://a/$releasever", "https://b"]),
            index: Index::Plain,
        };
        let zypper = Source::Rpm { reader: Reader::Zypper, uris: words(&["https://a"]), index: Index::Signed };
        let absent = Desired { name: Name::new("internal").unwrap(), ensure: Ensure::Absent };
        let all = [
            shown(&desired(apt, Form::Binary)),
            shown(&desired(dnf, Form::Armored)),
            shown(&desired(zypper, Form::Armored)),
            shown(&absent),
        ];
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn a_key_is_told_of_a_month_before_its_end() {
        let key = Key { bytes: Vec::new(), form: Form::Armored, expires: Some(10_000_000) };
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(key.expires_soon(at(10_000_000 - WARN_SECONDS)), None);
        assert_eq!(key.expires_soon(at(10_000_001 - WARN_SECONDS)), Some(at(10_000_000)));
        assert_eq!(key.expires_soon(at(20_000_000)), Some(at(10_000_000)));
        assert_eq!(Key { expires: None, ..key }.expires_soon(at(20_000_000)), None);
    }

    #[test]
    fn what_is_no_name() {
        for good in ["internal", "nodesource-20.x", "1", "A_b"] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-x", "a b", "a/b", "a\nb", "ä", &"x".repeat(101)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }
}
