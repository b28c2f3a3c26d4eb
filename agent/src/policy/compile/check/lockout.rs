//! A declared lock-out: a policy that takes the ways into a host away and declares nobody who still has one.
//!
//! It is refused only where it is certain from the policy itself: root is declared and cannot log in, the whole of
//! /etc/sudoers is declared, or sshd is told whom to admit, and no declared account can both log in and become root.
//! A policy that touches sudoers, sshd or root in another way, and names nobody, gets a warning.

use super::Graph;
use crate::policy::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::resource::{Desired, Ensure, user};

const SUDOERS: &str = "/etc/sudoers";
const SUDOERS_DIRECTORY: &str = "/etc/sudoers.d/";
const SSHD: &str = "/etc/ssh/sshd_config";
const SSHD_DIRECTORY: &str = "/etc/ssh/sshd_config.d/";
/// Groups that a distribution's own sudoers lets become root.
const ADMINISTRATORS: [&str; 3] = ["sudo", "wheel", "admin"];

pub(super) fn check(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    check_break_glass(graph, out);
    if graph.loaded.lock_out.is_meant {
        return;
    }
    let mut ways = Ways::default();
    let mut accounts = Vec::new();
    for (i, declaration) in graph.active() {
        let Some(lowered) = graph.lowered(i) else {
            // A declaration with mistakes of its own could be the way in.
            return;
        };
        if let Desired::File(file) = &lowered.desired {
            // While a policy is compiled all of it is in memory.
            let content = file.ensure.present().and_then(|spec| spec.content.bytes().ok());
            let text = content.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            ways.file(&file.path.to_string(), text, &declaration.name);
        } else if let Desired::Setting(setting) = &lowered.desired {
            // Of a file that stays otherwise as it is, only what is added counts.
            if let Ok(edited) = setting.spec.edits.edit(&[]) {
                let text = String::from_utf8_lossy(&edited.content).into_owned();
                ways.part(&setting.path.to_string(), text, &declaration.name);
            }
        } else if let Desired::User(user) = &lowered.desired {
            accounts.push((user, &declaration.name));
        }
    }
    for (account, place) in &accounts {
        if account.name.as_str() == "root" {
            ways.touched.get_or_insert_with(|| (*place).clone());
            if !can_log_in(graph, account) {
                ways.taken.get_or_insert_with(|| ((*place).clone(), "root cannot log in"));
            }
        }
    }
    if accounts.iter().any(|(account, _)| can_log_in(graph, account) && can_become_root(graph, account, &ways)) {
        return;
    }
    let hint = "declare the account that administers this host, with a key and the group `sudo` or `wheel`";
    if let Some((place, why)) = ways.taken {
        out.push(
            Diagnostic::error("lock-out", "no declared account could still log in and become root")
                .at(place, why)
                .expected(
                    "an account with a password hash or a key that is root, or may become it by a group or sudoers",
                )
                .hint(format!("{hint}; or set `lock_out = \"allow\"` under [policy] if this is meant")),
        );
    } else if let Some(place) = ways.touched {
        out.push(
            Diagnostic::warning("lock-out", "no declared account can log in and become root")
                .at(place, "this decides who has access")
                .hint(hint),
        );
    }
}

/// An account that has to keep its way in must not be declared without one.
fn check_break_glass(graph: &Graph<'_, '_>, out: &mut Diagnostics) {
    let named = graph.loaded.lock_out.break_glass.iter().zip(&graph.loaded.break_glass);
    for (name, place) in named {
        let is_absent = |desired: &Desired| matches!(desired, Desired::User(user) if user.name == *name && user.ensure == Ensure::Absent);
        let mut declared = graph.active().filter(|(i, _)| graph.lowered(*i).is_some_and(|one| is_absent(&one.desired)));
        let declared = declared.next().map(|(_, declaration)| &declaration.name);
        if let Some(declared) = declared {
            out.push(
                Diagnostic::error("lock-out", format!("`{name}` has to keep its way in, and is declared absent"))
                    .at(place.clone(), "named here")
                    .also(declared.clone(), "and removed here")
                    .hint("take it out of `break_glass`, or keep the account"),
            );
        }
    }
}

/// What the policy says about the ways into a host.
#[derive(Default)]
struct Ways {
    /// Something that decides on access is declared.
    touched: Option<Place>,
    /// Something that certainly takes a way away, and what.
    taken: Option<(Place, &'static str)>,
    /// The text of all declared sudoers.
    sudoers: Vec<String>,
}

impl Ways {
    fn file(&mut self, path: &str, text: String, place: &Place) {
        let is_sudoers = path == SUDOERS || path.starts_with(SUDOERS_DIRECTORY);
        let is_sshd = path == SSHD || path.starts_with(SSHD_DIRECTORY);
        if !is_sudoers && !is_sshd {
            return;
        }
        self.touched.get_or_insert_with(|| place.clone());
        if path == SUDOERS {
            self.taken.get_or_insert_with(|| (place.clone(), "this replaces all of sudoers"));
        }
        self.part(path, text, place);
    }

    /// What is said in a file, whatever else is in it.
    fn part(&mut self, path: &str, text: String, place: &Place) {
        let admits = |line: &str| {
            let word = line.split_whitespace().next().unwrap_or_default();
            word.eq_ignore_ascii_case("AllowUsers") || word.eq_ignore_ascii_case("AllowGroups")
        };
        if (path == SSHD || path.starts_with(SSHD_DIRECTORY)) && text.lines().any(admits) {
            self.taken.get_or_insert_with(|| (place.clone(), "this says whom sshd admits"));
        }
        if path == SUDOERS || path.starts_with(SUDOERS_DIRECTORY) {
            self.sudoers.push(text);
        }
    }

    /// Whether declared sudoers name the account or one of its groups. Aliases and includes are not followed: they may.
    fn sudoers_name(&self, account: &str, groups: &[&str]) -> bool {
        self.sudoers.iter().flat_map(|text| text.lines()).any(|line| {
            let word = line.split_whitespace().next().unwrap_or_default();
            match word.strip_prefix('%') {
                Some(group) => groups.contains(&group),
                None => {
                    word == account
                        || matches!(
                            word,
                            "ALL" | "User_Alias" | "@include" | "@includedir" | "#include" | "#includedir"
                        )
                }
            }
        })
    }
}

/// Whether the host may have the account already, with what the policy does not say about it.
fn may_exist(graph: &Graph<'_, '_>, name: &str) -> bool {
    graph.host.is_none_or(|host| host.users.contains(name))
}

fn can_log_in(graph: &Graph<'_, '_>, account: &user::Desired) -> bool {
    let Ensure::Present(spec) = &account.ensure else { return false };
    let shell = spec.shell.as_ref().map(ToString::to_string).unwrap_or_default();
    if shell.ends_with("/nologin") || shell.ends_with("/false") {
        return false;
    }
    if spec.authorized_keys.as_ref().is_some_and(|keys| !keys.keys.is_empty()) {
        return true;
    }
    match &spec.password {
        Some(user::Password::Hash(_) | user::Password::Secret(_)) => true,
        Some(user::Password::Locked) => false,
        // As it is: an account that is made now has none.
        None => may_exist(graph, account.name.as_str()),
    }
}

fn can_become_root(graph: &Graph<'_, '_>, account: &user::Desired, ways: &Ways) -> bool {
    let name = account.name.as_str();
    if name == "root" {
        return true;
    }
    let Ensure::Present(spec) = &account.ensure else { return false };
    let mut groups: Vec<&str> = spec.groups.iter().map(|group| group.as_str()).collect();
    match &spec.group {
        Some(crate::resource::Principal::Name(group)) => groups.push(group),
        Some(crate::resource::Principal::Id(_) | crate::resource::Principal::Agent) | None => groups.push(name),
    }
    let is_administrator = groups.iter().any(|group| ADMINISTRATORS.contains(group));
    // Membership that the policy does not exclude may be there already.
    let may_be_member = spec.membership == user::Membership::AtLeast && may_exist(graph, name);

    is_administrator || may_be_member || ways.sudoers_name(name, &groups)
}
