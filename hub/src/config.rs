//! `hub.toml` to inert [`HubOptions`]. An unknown key is an error, and nothing falls back to a weaker default.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::HubError;

/// Everything a hub needs to know. Constructing it touches nothing.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// The SQLite file; made when it does not exist.
    pub database: PathBuf,
    /// Where to listen; port 0 picks one.
    pub listen: SocketAddr,
    /// Certificate and key. Without it the hub speaks plain HTTP, and then only on a loopback address.
    pub tls: Option<TlsIdentity>,
    /// What may be done to the hosts of each group.
    pub groups: BTreeMap<String, Group>,
    /// Unix socket for operators; `None` for an embedded hub.
    pub control: Option<PathBuf>,
    /// Time between check-ins that hosts are told.
    pub checkin: Duration,
}

impl HubOptions {
    /// Returns options for an embedded hub: no TLS, no groups, no control socket.
    pub fn new(database: PathBuf, listen: SocketAddr) -> Self {
        Self { database, listen, tls: None, groups: BTreeMap::new(), control: None, checkin: DEFAULT_CHECKIN }
    }
}

/// The server's certificate chain and private key.
#[derive(Debug, Clone)]
pub enum TlsIdentity {
    /// PEM files.
    Files {
        /// Certificate chain, the server's own first.
        certificate: PathBuf,
        /// Private key.
        key: PathBuf,
    },
    /// PEM text.
    Pem {
        /// Certificate chain, the server's own first.
        certificate: String,
        /// Private key.
        key: String,
    },
}

/// What may be done to the hosts of a group.
#[derive(Debug, Clone)]
pub struct Group {
    /// Whether its hosts may be reimaged at all; `false` unless written out.
    pub opted_in: bool,
    /// Who says yes.
    pub approval: Approval,
    /// What re-creates a host; without it none is.
    pub engine: Option<Engine>,
    /// How long a host has from its grant to its `ready`; default 1 h.
    pub grant: Duration,
    /// How long a new incarnation has from the engine's success to its enrolment; default 30 min.
    pub birth: Duration,
    /// How long it then has to converge; default 1 h.
    pub verify: Duration,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            opted_in: false,
            approval: Approval::One,
            engine: None,
            grant: Duration::from_secs(3600),
            birth: Duration::from_secs(1800),
            verify: Duration::from_secs(3600),
        }
    }
}

/// Who says yes to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// One person.
    #[default]
    One,
    /// Nobody needs to, unless the host was reimaged within the last day.
    Auto,
}

/// What re-creates a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Program by absolute path, and its arguments. It gets the intent as JSON on standard input.
    pub exec: Vec<String>,
    /// How long it may run; default 10 min.
    pub timeout: Duration,
}

const DEFAULT_CHECKIN: Duration = Duration::from_secs(300);
const DEFAULT_ENGINE_TIMEOUT: Duration = Duration::from_secs(600);

/// Returns the options that a file holds.
pub fn load(path: &Path) -> Result<HubOptions, HubError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| HubError::ReadConfig { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// Returns the options that a text holds; `path` is for messages only.
pub fn parse(text: &str, path: &Path) -> Result<HubOptions, HubError> {
    let file: File = toml::from_str(text)
        .map_err(|source| HubError::ParseConfig { path: path.to_owned(), source: Box::new(source) })?;
    let tls = match (file.certificate, file.key) {
        (Some(certificate), Some(key)) => Some(TlsIdentity::Files { certificate, key }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(HubError::Settings {
                what: format!("`{}` names only one of `certificate` and `key`", path.display()),
                hint: "name both PEM files",
            });
        }
    };
    let groups = file.groups.into_iter().map(|(name, group)| Ok((name.clone(), group.validate(&name)?)));
    Ok(HubOptions {
        database: file.database,
        listen: file.listen,
        tls,
        groups: groups.collect::<Result<_, HubError>>()?,
        control: Some(file.control),
        checkin: duration(file.checkin, DEFAULT_CHECKIN, || "`checkin`".to_owned())?,
    })
}

/// The file, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    #[serde(default = "default_database")]
    database: PathBuf,
    #[serde(default = "default_control")]
    control: PathBuf,
    checkin: Option<String>,
    #[serde(default)]
    groups: BTreeMap<String, GroupTable>,
}

/// Where the control socket is unless the configuration says otherwise.
pub const DEFAULT_CONTROL: &str = "/run/rekindle-hub/control.sock";

fn default_database() -> PathBuf {
    "/var/lib/rekindle-hub/hub.db".into()
}

fn default_control() -> PathBuf {
    DEFAULT_CONTROL.into()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupTable {
    #[serde(default)]
    opted_in: bool,
    #[serde(default)]
    approval: Approval,
    engine: Option<EngineTable>,
    grant: Option<String>,
    birth: Option<String>,
    verify: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EngineTable {
    exec: Vec<String>,
    timeout: Option<String>,
}

impl GroupTable {
    fn validate(self, name: &str) -> Result<Group, HubError> {
        let defaults = Group::default();
        let engine = match self.engine {
            None => None,
            Some(engine) => {
                if !engine.exec.first().is_some_and(|program| Path::new(program).is_absolute()) {
                    return Err(HubError::Settings {
                        what: format!("`engine.exec` of group `{name}` does not begin with an absolute path"),
                        hint: "write it as a list, such as exec = [\"/usr/local/sbin/reimage\", \"--fast\"]",
                    });
                }
                let what = || format!("`engine.timeout` of group `{name}`");
                let timeout = duration(engine.timeout, DEFAULT_ENGINE_TIMEOUT, what)?;
                Some(Engine { exec: engine.exec, timeout })
            }
        };
        Ok(Group {
            opted_in: self.opted_in,
            approval: self.approval,
            engine,
            grant: duration(self.grant, defaults.grant, || format!("`grant` of group `{name}`"))?,
            birth: duration(self.birth, defaults.birth, || format!("`birth` of group `{name}`"))?,
            verify: duration(self.verify, defaults.verify, || format!("`verify` of group `{name}`"))?,
        })
    }
}

/// Returns the time span that a text such as `90s`, `10m` or `1h` names; it must be positive and at most a year.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let span = text.parse::<jiff::SignedDuration>().ok()?;
    let span = Duration::try_from(span).ok()?;
    (span > Duration::ZERO && span <= Duration::from_secs(366 * 24 * 3600)).then_some(span)
}

fn duration(text: Option<String>, default: Duration, what: impl Fn() -> String) -> Result<Duration, HubError> {
    match text {
        None => Ok(default),
        Some(text) => parse_duration(&text).ok_or_else(|| HubError::Settings {
            what: format!("{} is `{text}`, which is not a time span", what()),
            hint: "write a number and a unit, such as 90s, 10m or 1h, at most a year",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "listen = \"127.0.0.1:8443\"\ndatabase = \"/tmp/hub.db\"\n";

    fn parsed(rest: &str) -> Result<HubOptions, HubError> {
        parse(&format!("{BASE}{rest}"), Path::new("hub.toml"))
    }

    #[test]
    fn a_group_is_not_opted_in_unless_written_out() {
        let options = parsed("[groups.web]\nengine = { exec = [\"/bin/true\"], timeout = \"2m\" }\n").unwrap();
        let group = &options.groups["web"];
        assert!(!group.opted_in);
        assert_eq!(group.approval, Approval::One);
        assert_eq!(group.engine.as_ref().unwrap().timeout, Duration::from_secs(120));
    }

    #[test]
    fn wrong_files_are_refused() {
        let check = |rest: &str, words: &str| {
            let error = parsed(rest).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let text = format!("{error}: {source}");
            assert!(text.contains(words), "{rest:?}: {text}");
        };
        check("lisen = 1\n", "lisen");
        check("[groups.web]\nopt_in = true\n", "opt_in");
        check("[groups.web]\napproval = \"maybe\"\n", "maybe");
        check("[groups.web]\nengine = { exec = [] }\n", "absolute path");
        check("[groups.web]\nengine = { exec = [\"reimage\"] }\n", "absolute path");
        check("[groups.web]\ngrant = \"soon\"\n", "`grant` of group `web`");
        check("checkin = \"0s\"\n", "`checkin`");
        check("checkin = \"-5m\"\n", "`checkin`");
        check("certificate = \"/a.pem\"\n", "only one of");
    }
}
