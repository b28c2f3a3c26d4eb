//! PAM, as far as it plainly lets nobody through: no module that could say yes stands before one that always says no.

use super::{Answer, Files};

/// Deeper includes are not followed.
const MAX_DEPTH: usize = 8;
const DIRECTORIES: [&str; 3] = ["/etc/pam.d", "/usr/lib/pam.d", "/usr/etc/pam.d"];

/// Whether a service's stack of one type can let somebody through. What its modules want is not looked at.
pub(super) fn lets_through(files: &dyn Files, service: &str, kind: &str) -> Answer {
    let modules = match modules_of(files, service, kind) {
        Ok(modules) => modules,
        Err(why) => return Answer::unknown(why),
    };
    match modules {
        // A host without PAM.
        None => Answer::YES,
        Some(modules) => {
            let is_no = |module: &String| module == "pam_deny";
            let says_nothing =
                |module: &String| matches!(module.as_str(), "pam_env" | "pam_faildelay" | "pam_warn" | "pam_echo");
            Answer::when(modules.iter().find(|module| !says_nothing(module)).is_some_and(|first| !is_no(first)))
        }
    }
}

/// Whether something other than a password of this host could prove who somebody is.
pub(super) fn knows_more_than_passwords(files: &dyn Files, service: &str) -> bool {
    let local =
        ["pam_unix", "pam_deny", "pam_permit", "pam_env", "pam_faildelay", "pam_faillock", "pam_cap", "pam_succeed_if"];
    match modules_of(files, service, "auth") {
        Ok(modules) => modules.unwrap_or_default().iter().any(|module| !local.contains(&module.as_str())),
        Err(_) => true,
    }
}

/// The modules of a stack in order; `None` where there is no file for the service, nor for all others.
fn modules_of(files: &dyn Files, service: &str, kind: &str) -> Result<Option<Vec<String>>, String> {
    for name in [service, "other"] {
        let mut modules = Vec::new();
        if add_modules(files, name, kind, &mut modules, MAX_DEPTH)? && !(modules.is_empty() && name != "other") {
            return Ok(Some(modules));
        }
    }
    Ok(None)
}

/// Returns whether there is such a file.
fn add_modules(
    files: &dyn Files,
    name: &str,
    kind: &str,
    modules: &mut Vec<String>,
    depth: usize,
) -> Result<bool, String> {
    let mut text = None;
    for directory in DIRECTORIES {
        text = files.text(&format!("{directory}/{name}"))?;
        if text.is_some() {
            break;
        }
    }
    let (Some(text), Some(depth)) = (text, depth.checked_sub(1)) else { return Ok(false) };
    for line in text.replace("\\\n", " ").lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "@include" {
            if let Some(included) = words.next() {
                add_modules(files, included, kind, modules, depth)?;
            }
            continue;
        }
        if !first.trim_start_matches('-').eq_ignore_ascii_case(kind) {
            continue;
        }
        let rest = line.trim_start().trim_start_matches(first).trim_start();
        let (control, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((control, rest)) => (control, rest),
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        let Some(module) = rest.split_whitespace().next() else { continue };
        if matches!(control, "include" | "substack") {
            add_modules(files, module, kind, modules, depth)?;
        } else {
            let module = module.rsplit('/').next().unwrap_or(module);
            modules.push(module.trim_end_matches(".so").to_owned());
        }
    }
    Ok(true)
}
