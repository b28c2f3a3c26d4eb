//! `facts`: what a policy may ask about this host, and reading that for a host that is not there.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::output::{BOLD, DIM};
use super::{CliError, Global, Out, Outcome, exit, settings};
use crate::config;
use crate::host;
use crate::policy::facts::Facts as HostFacts;

/// Longest file of facts.
const MAX_FILE: u64 = 1024 * 1024;
/// What this program writes.
const VERSION: u32 = 1;

/// Arguments of `rekindle facts`.
#[derive(Debug, Args)]
pub(super) struct Facts {
    /// The image tree in this directory instead of the running host
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// What `rekindle facts --json` writes, and `rekindle check --facts` reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    version: u32,
    /// The roles in the host's configuration; absent where that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) roles: Option<Vec<String>>,
    pub(super) facts: HostFacts,
}

/// Prints the facts of this host.
pub(super) fn facts(global: &Global, args: &Facts, out: &mut Out) -> Outcome {
    let root = args.root.as_deref().unwrap_or(Path::new("/"));
    let root = host::root::Root::open(root).map_err(|e| anyhow!("cannot open `{}`: {e}", root.display()))?;
    let facts = host::facts::gather(&root);
    // Roles are the running host's; an image has none yet.
    let roles = if args.root.is_some() { Ok(Vec::new()) } else { settings(global).map(|settings| settings.roles) };
    if out.is_json() {
        out.value(&Document { version: VERSION, roles: roles.ok(), facts })?;
        return Ok(exit::OK);
    }
    let document = serde_json::to_value(&facts)?;
    for (name, value) in document.as_object().into_iter().flatten() {
        let words = match value {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(items) => {
                items.iter().filter_map(|item| item.as_str()).collect::<Vec<_>>().join(" ")
            }
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::Number(_)
            | serde_json::Value::Object(_) => value.to_string(),
        };
        let words = crate::converge::plan::visible(&words);
        let words = if words.is_empty() { format!("{DIM}not known{DIM:#}") } else { words };
        out.line(format_args!("{BOLD}{name:<15}{BOLD:#} {words}"))?;
    }
    let roles = match roles {
        Ok(roles) if roles.is_empty() => format!("{DIM}none{DIM:#}"),
        Ok(roles) => roles.join(" "),
        Err(error) => format!("{DIM}not known: {}{DIM:#}", error.error),
    };
    out.line(format_args!("{BOLD}{:<15}{BOLD:#} {roles}", "roles"))?;
    Ok(exit::OK)
}

/// Reads a file of facts: what `rekindle facts --json` wrote, or the facts alone.
pub(super) fn read(path: &Path) -> Result<Document, CliError> {
    let cannot = |why: &dyn std::fmt::Display| anyhow!("cannot read the facts in `{}`: {why}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| cannot(&e))?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| cannot(&e))?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_FILE) {
        return Err(cannot(&"it is longer than 1 MiB").into());
    }
    parse(&text)
        .map_err(|why| anyhow!("{}\nhint: `rekindle facts --json` on the host writes such a file", cannot(&why)).into())
}

fn parse(text: &str) -> Result<Document, String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
    let Some(table) = value.as_object() else { return Err("it is no JSON object".to_owned()) };
    // The text is read again, so that an error names its line.
    let document = if table.contains_key("facts") {
        if table.get("version").and_then(serde_json::Value::as_u64) != Some(VERSION.into()) {
            return Err(format!("its `version` is not {VERSION}: it was written for another version of rekindle"));
        }
        serde_json::from_str(text).map_err(|e| e.to_string())?
    } else {
        Document { version: VERSION, roles: None, facts: serde_json::from_str(text).map_err(|e| e.to_string())? }
    };
    let Document { version, roles, mut facts } = document;
    check_roles(roles.as_deref().unwrap_or_default())?;
    // Who writes the facts by hand names the system, and seldom its family.
    if facts.os_family.is_empty() {
        facts.os_family = host::facts::os_family(&facts.os, "").to_owned();
    }
    Ok(Document { version, roles, facts })
}

/// Refuses what could be no role: it would match nothing, and nobody would know.
pub(super) fn check_roles(roles: &[String]) -> Result<(), String> {
    match roles.iter().find(|role| !config::is_role(role)) {
        Some(role) => Err(format!("`{role}` is no role: letters, digits and `-_.:` make one")),
        None => Ok(()),
    }
}

/// A [`CliError`] of a text.
pub(super) fn invalid(why: String) -> CliError {
    anyhow::Error::msg(why).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err()
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let facts = host::facts::gather(&host::root::Root::open(Path::new("/")).unwrap());
        let document = Document { version: VERSION, roles: Some(vec!["web".to_owned()]), facts };
        let text = serde_json::to_string_pretty(&document).unwrap();
        assert_eq!(parse(&text).unwrap(), document);
    }

    #[test]
    fn facts_alone_will_do_and_name_their_family() {
        let document = parse(r#"{ "os": "ubuntu", "cpus": 4 }"#).unwrap();
        assert_eq!((document.facts.os_family.as_str(), document.facts.cpus, document.roles), ("debian", 4, None));
        assert_eq!(parse(r#"{ "os": "x", "os_family": "suse" }"#).unwrap().facts.os_family, "suse");
    }

    #[test]
    fn what_is_no_file_of_facts_is_told_with_its_place() {
        for (text, expected) in [
            ("", "it is not JSON: EOF"),
            ("[]", "it is no JSON object"),
            ("{\n\"oss\": \"debian\" }", "unknown field `oss`, expected one of `os`"),
            ("{\n\"cpus\": -1 }", "invalid value: integer `-1`, expected u32 at line 2"),
            ("{ \"cpus\": \"2\" }", "invalid type: string \"2\", expected u32"),
            ("{ \"facts\": {} }", "its `version` is not 1"),
            ("{ \"version\": 2, \"facts\": {} }", "its `version` is not 1"),
            ("{ \"version\": 1, \"facts\": {}, \"role\": [] }", "unknown field `role`"),
            ("{ \"version\": 1, \"facts\": {}, \"roles\": [\"a b\"] }", "`a b` is no role"),
        ] {
            assert!(error(text).contains(expected), "{text}: {}", error(text));
        }
    }
}
