//! Who becomes root by sudo. The last rule that matches counts, as for sudo.
//!
//! Rules for some commands only are no way to become root, unless the command is a shell. Host names are not compared.

use std::collections::BTreeMap;

use super::{Account, Answer, Files, pam};

const FILES: [&str; 2] = ["/etc/sudoers", "/usr/etc/sudoers"];
const MAX_DEPTH: usize = 8;

/// Who may run what.
#[derive(Debug)]
struct Rule {
    users: Vec<String>,
    hosts: Vec<String>,
    commands: Vec<Command>,
}

/// One command of a rule, with what was said before it.
#[derive(Debug)]
struct Command {
    as_root: bool,
    asks_for_password: bool,
    /// Times and the like.
    is_limited: bool,
    command: String,
}

/// All of sudoers.
#[derive(Debug)]
pub(super) struct Sudoers {
    rules: Vec<Rule>,
    /// Of all four kinds: their names are seldom shared, and never on purpose.
    aliases: BTreeMap<String, Vec<String>>,
    asks_for_password: bool,
    /// What could not be understood.
    doubt: Option<String>,
    /// Whether it may be somebody else's password that is asked for, or none.
    odd_password: bool,
}

impl Sudoers {
    pub(super) fn read(files: &dyn Files) -> Self {
        let mut sudoers = Self {
            rules: Vec::new(),
            aliases: BTreeMap::new(),
            asks_for_password: true,
            doubt: None,
            odd_password: false,
        };
        for path in FILES {
            match files.text(path) {
                Ok(None) => continue,
                Ok(Some(text)) => sudoers.add(files, &text, MAX_DEPTH),
                Err(why) => sudoers.doubt = Some(why),
            }
            break;
        }
        sudoers
    }

    fn add(&mut self, files: &dyn Files, text: &str, depth: usize) {
        for line in text.replace("\\\n", " ").lines() {
            let line = line.trim();
            let first = line.split_whitespace().next().unwrap_or_default();
            let rest = line.get(first.len()..).unwrap_or_default().trim();
            if matches!(first, "@include" | "#include" | "@includedir" | "#includedir") {
                self.include(files, first.ends_with("dir"), rest.trim_matches('"'), depth);
            } else if first.starts_with("Defaults") {
                self.defaults(first, rest);
            } else if matches!(first, "User_Alias" | "Runas_Alias" | "Host_Alias" | "Cmnd_Alias" | "Cmd_Alias") {
                for alias in without_comment(rest).split(" : ") {
                    if let Some((name, items)) = alias.split_once('=') {
                        let items = items.split(',').map(|item| item.trim().to_owned()).collect();
                        self.aliases.insert(name.trim().to_owned(), items);
                    }
                }
            } else {
                let rule = without_comment(line);
                match parse(&rule) {
                    _ if rule.trim().is_empty() => {}
                    Some(rule) => self.rules.push(rule),
                    None => self.doubt = Some("a line of sudoers is not understood".to_owned()),
                }
            }
        }
    }

    fn include(&mut self, files: &dyn Files, is_directory: bool, path: &str, depth: usize) {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/etc/{path}") };
        let Some(depth) = depth.checked_sub(1).filter(|_| !path.contains('%')) else {
            self.doubt = Some(format!("sudoers includes `{path}`"));
            return;
        };
        let paths = if is_directory {
            let names = files.names(&path);
            names.map(|names| {
                let names = names.into_iter().filter(|name| !name.contains('.') && !name.ends_with('~'));
                names.map(|name| format!("{path}/{name}")).collect()
            })
        } else {
            Ok(vec![path])
        };
        let texts: Result<Vec<_>, _> = paths.and_then(|paths| paths.iter().map(|path| files.text(path)).collect());
        match texts {
            Ok(texts) => texts.into_iter().flatten().for_each(|text| self.add(files, &text, depth)),
            Err(why) => self.doubt = Some(why),
        }
    }

    fn defaults(&mut self, first: &str, rest: &str) {
        let options: Vec<&str> = rest.split(',').map(str::trim).collect();
        let is_set = |option: &str| options.contains(&option);
        if is_set("!authenticate") {
            // Of some users, hosts or commands only.
            if first == "Defaults" { self.asks_for_password = false } else { self.odd_password = true }
        }
        self.odd_password |= ["targetpw", "rootpw", "runaspw"].into_iter().any(is_set);
    }

    /// Whether sudo makes the account root.
    pub(super) fn lets_become_root(&self, files: &dyn Files, account: &Account<'_>) -> Answer {
        let mut last = Answer::NO;
        for rule in self.rules.iter().filter(|rule| self.is_about(&rule.users, account)) {
            let here = self.is_everywhere(&rule.hosts);
            for command in rule.commands.iter().filter(|command| command.as_root) {
                let (names, is_not) = match command.command.strip_prefix('!') {
                    Some(command) => (self.expand(command), true),
                    None => (self.expand(&command.command), false),
                };
                if !names.iter().any(|name| name == "ALL" || (!is_not && is_shell(name))) {
                    continue;
                }
                let answer = if is_not {
                    Answer::NO
                } else if command.is_limited
                    || rule
                        .commands
                        .iter()
                        .any(|other| is_shell(other.command.trim_start_matches('!')) && other.command.starts_with('!'))
                {
                    Answer::unknown(format!("what sudo lets `{}` do has exceptions", account.name()))
                } else if command.asks_for_password && self.asks_for_password {
                    self.password(files, account)
                } else {
                    Answer::YES
                };
                last = if here {
                    answer
                } else {
                    last.or(|| Answer::unknown(format!("sudo lets `{}` become root on some hosts", account.name())))
                };
            }
        }
        let last = match &self.doubt {
            Some(why) => last.or(|| Answer::unknown(why.clone())),
            None => last,
        };
        last.and(|| pam::lets_through(files, "sudo", "account"))
    }

    /// Whether the account can answer when it is asked for a password.
    fn password(&self, files: &dyn Files, account: &Account<'_>) -> Answer {
        if self.odd_password {
            return Answer::unknown("sudo does not always ask for the password of who calls it");
        }
        let own = Answer::when(account.has_password()).and(|| pam::lets_through(files, "sudo", "auth"));
        own.or(|| match pam::knows_more_than_passwords(files, "sudo") {
            true => {
                Answer::unknown(format!("`{}` has no password, and sudo may ask for something else", account.name()))
            }
            false => Answer::NO,
        })
    }

    fn expand(&self, name: &str) -> Vec<String> {
        self.aliases.get(name).cloned().unwrap_or_else(|| vec![name.to_owned()])
    }

    fn is_everywhere(&self, hosts: &[String]) -> bool {
        hosts.iter().flat_map(|host| self.expand(host)).any(|host| host == "ALL")
    }

    fn is_about(&self, users: &[String], account: &Account<'_>) -> bool {
        let mut is_about = false;
        for item in users.iter().flat_map(|user| self.expand(user)) {
            let (item, is_not) = item.strip_prefix('!').map_or((item.as_str(), false), |item| (item, true));
            let is_it = match item.strip_prefix('%') {
                Some(group) => match group.strip_prefix('#') {
                    Some(gid) => account.groups.iter().any(|(_, found)| gid == found.to_string()),
                    None => account.groups.iter().any(|(found, _)| group == *found),
                },
                None => {
                    item == "ALL"
                        || item == account.name()
                        || item.strip_prefix('#').is_some_and(|uid| uid == account.user.uid.to_string())
                }
            };
            if is_it {
                is_about = !is_not;
            }
        }
        is_about
    }
}

/// A line up to its comment; `#` before a digit is an id.
fn without_comment(line: &str) -> String {
    let is_comment = |(at, c): &(usize, char)| {
        *c == '#' && !line.get(at + 1..).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let end = line.char_indices().find(is_comment).map_or(line.len(), |(at, _)| at);
    line.get(..end).unwrap_or_default().to_owned()
}

fn is_shell(command: &str) -> bool {
    let name = command.split_whitespace().next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    matches!(name, "su" | "sh" | "bash" | "dash" | "zsh" | "ksh") && command.split_whitespace().count() == 1
}

/// Reads a rule: `users hosts = (as) TAG: command, command`.
fn parse(line: &str) -> Option<Rule> {
    let (left, right) = line.split_once('=')?;
    // Several hosts with commands of their own in one line are rare.
    if right.contains(" : ") {
        return None;
    }
    let left = left.split(',').map(str::trim).collect::<Vec<_>>().join(",");
    let mut words = left.split_whitespace();
    let mut list = || words.next().map(|word| word.split(',').map(str::to_owned).collect::<Vec<_>>());
    let (users, hosts) = (list()?, list()?);
    if words.next().is_some() {
        return None;
    }
    let (mut as_root, mut asks_for_password, mut is_limited) = (true, true, false);
    let mut commands = Vec::new();
    let mut rest = right.trim_start();
    while !rest.is_empty() {
        if let Some((runas, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            let users = runas.split(':').next().unwrap_or_default();
            as_root = users.split(',').map(str::trim).any(|user| matches!(user, "ALL" | "root" | "#0"));
            // An alias may hold root.
            is_limited |= !as_root && users.chars().next().is_some_and(char::is_uppercase);
            as_root |= is_limited;
            rest = after.trim_start();
            continue;
        }
        let word = rest.find(|c: char| !(c.is_ascii_uppercase() || c == '_')).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word);
        if let Some(after) = after.strip_prefix(':').filter(|_| !word.is_empty()) {
            match word {
                "NOPASSWD" => asks_for_password = false,
                "PASSWD" => asks_for_password = true,
                _ => {}
            }
            rest = after.trim_start();
            continue;
        }
        if after.starts_with('=') && !word.is_empty() {
            is_limited |= matches!(word, "NOTBEFORE" | "NOTAFTER");
            rest = after.split_once(char::is_whitespace).map_or("", |(_, rest)| rest).trim_start();
            continue;
        }
        let (command, after) = rest.split_once(',').unwrap_or((rest, ""));
        let command = command.trim().to_owned();
        commands.push(Command { as_root, asks_for_password, is_limited, command });
        rest = after.trim_start();
    }
    (!commands.is_empty()).then_some(Rule { users, hosts, commands })
}
