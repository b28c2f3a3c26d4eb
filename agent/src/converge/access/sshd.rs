//! Whom sshd lets in by a key, as far as its configuration is simple.
//!
//! The first value of a keyword counts, as for sshd, and what a `Match` block says before what is said for all. Whether a block is
//! about users and groups alone is known here; of any other condition, such as an address, it is not: then the answer is what
//! sshd would say whether the condition holds or not, and unknown where that differs.

use super::{Access, Account, Answer, Files, pam};

const CONFIGURATIONS: [&str; 2] = ["/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config"];
const MAX_DEPTH: usize = 8;
/// Blocks whose conditions are not known, of which every combination is tried.
const MAX_UNKNOWN: usize = 5;
/// What decides who gets in.
const DECIDES: [&str; 11] = [
    "allowusers",
    "denyusers",
    "allowgroups",
    "denygroups",
    "permitrootlogin",
    "pubkeyauthentication",
    "authenticationmethods",
    "authorizedkeysfile",
    "authorizedkeyscommand",
    "forcecommand",
    "trustedusercakeys",
];

/// A keyword in small letters, and its arguments.
type Line = (String, Vec<String>);

/// What a `Match` block is about, and what it says.
struct Block {
    criteria: Vec<String>,
    lines: Vec<Line>,
}

/// sshd's configuration.
#[derive(Default)]
pub(super) struct Sshd {
    is_there: bool,
    lines: Vec<Line>,
    blocks: Vec<Block>,
    doubt: Option<String>,
}

impl Sshd {
    pub(super) fn read(files: &dyn Files) -> Self {
        let mut sshd = Self::default();
        for path in CONFIGURATIONS {
            match files.text(path) {
                Ok(None) => continue,
                Ok(Some(text)) => {
                    sshd.is_there = true;
                    sshd.add(files, &text, None, MAX_DEPTH);
                }
                Err(why) => {
                    sshd.is_there = true;
                    sshd.doubt = Some(why);
                }
            }
            break;
        }
        sshd
    }

    /// Adds what a file says, in the block in which it is included if it is in one.
    fn add(&mut self, files: &dyn Files, text: &str, outer: Option<usize>, depth: usize) {
        let mut block = outer;
        for line in text.lines() {
            let mut words = words(line).into_iter();
            let Some(keyword) = words.next().map(|word| word.to_ascii_lowercase()) else { continue };
            let arguments: Vec<String> = words.collect();
            match keyword.as_str() {
                "match" => {
                    block = Some(self.blocks.len());
                    self.blocks.push(Block { criteria: arguments, lines: Vec::new() });
                }
                "include" => arguments.iter().for_each(|pattern| self.include(files, pattern, block, depth)),
                _ => match block.and_then(|block| self.blocks.get_mut(block)) {
                    Some(block) => block.lines.push((keyword, arguments)),
                    None => self.lines.push((keyword, arguments)),
                },
            }
        }
    }

    fn include(&mut self, files: &dyn Files, pattern: &str, block: Option<usize>, depth: usize) {
        let whole = if pattern.starts_with('/') { pattern.to_owned() } else { format!("/etc/ssh/{pattern}") };
        let (directory, name) = whole.rsplit_once('/').unwrap_or(("", &whole));
        let (false, Some(depth)) = (directory.contains(['*', '?', '[']), depth.checked_sub(1)) else {
            self.doubt = Some(format!("sshd includes `{pattern}`"));
            return;
        };
        let names = if name.contains(['*', '?', '[']) { files.names(directory) } else { Ok(vec![name.to_owned()]) };
        let texts = names.and_then(|names| {
            let names = names.iter().filter(|found| matches_pattern(name, found));
            names.map(|name| files.text(&format!("{directory}/{name}"))).collect::<Result<Vec<_>, _>>()
        });
        match texts {
            Ok(texts) => texts.into_iter().flatten().for_each(|text| self.add(files, &text, block, depth)),
            Err(why) => self.doubt = Some(why),
        }
    }

    /// Whether sshd lets the account in by a key.
    pub(super) fn lets_in(&self, files: &dyn Files, account: &Account<'_>) -> Answer {
        if !self.is_there {
            return Answer::NO;
        }
        if let Some(why) = &self.doubt {
            return Answer::unknown(why.clone());
        }
        let decides = |block: &&Block| block.lines.iter().any(|line| decides(line, account));
        let blocks: Vec<(&Block, Access)> =
            self.blocks.iter().filter(decides).map(|block| (block, block.is_about(account))).collect();
        let n_unknown = blocks.iter().filter(|(_, about)| *about == Access::Unknown).count();
        let unknown =
            || Answer::unknown(format!("sshd_config has a `Match` block that may be about `{}`", account.name()));
        if n_unknown > MAX_UNKNOWN {
            return unknown();
        }
        let mut answers = (0..1_u32 << n_unknown).map(|holds| {
            let mut holds = (0..n_unknown).map(move |nth| holds >> nth & 1 == 1);
            let mut matched = Vec::new();
            for (block, about) in &blocks {
                if *about == Access::Open || *about == Access::Unknown && holds.next() == Some(true) {
                    matched.push(block.lines.as_slice());
                }
            }
            InForce { matched, lines: &self.lines }.lets_in(files, account)
        });
        let first = answers.next().unwrap_or(Answer::NO);
        if answers.all(|other| other.access == first.access) { first } else { unknown() }
    }
}

/// Whether a line says anything about whether an account gets in.
fn decides((keyword, _): &Line, account: &Account<'_>) -> bool {
    DECIDES.contains(&keyword.as_str()) && (keyword != "permitrootlogin" || account.user.uid == 0)
}

impl Block {
    /// Whether the block is in force for an account. Only users and groups are known here.
    fn is_about(&self, account: &Account<'_>) -> Access {
        let groups: Vec<&str> = account.groups.iter().map(|(name, _)| *name).collect();
        let mut about = Access::Open;
        // `User git` may be written `User=git`.
        let mut words = self.criteria.iter().flat_map(|word| word.splitn(2, '='));
        while let Some(kind) = words.next() {
            let holds = match kind.to_ascii_lowercase().as_str() {
                "all" => Access::Open,
                "invalid-user" => Access::Closed,
                kind @ ("user" | "group") => {
                    let patterns: Vec<&str> = words.next().unwrap_or_default().split(',').collect();
                    let is_in = if kind == "user" {
                        in_list(&patterns, &[account.name()])
                    } else {
                        in_list(&patterns, &groups)
                    };
                    if is_in { Access::Open } else { Access::Closed }
                }
                _ => {
                    words.next();
                    Access::Unknown
                }
            };
            about = about.min(holds);
        }
        about
    }
}

/// What is said to one account under some conditions.
struct InForce<'a> {
    /// The blocks whose conditions hold.
    matched: Vec<&'a [Line]>,
    /// What is said for all.
    lines: &'a [Line],
}

impl<'a> InForce<'a> {
    /// The lines of a keyword that count: those of blocks, or those for all.
    fn lines(&self, keyword: &str) -> Vec<&'a [String]> {
        let of = |lines: &'a [Line]| {
            let found = lines.iter().filter(|(found, _)| found == keyword);
            found.map(|(_, arguments)| arguments.as_slice()).collect::<Vec<_>>()
        };
        let matched: Vec<_> = self.matched.iter().flat_map(|lines| of(lines)).collect();
        if matched.is_empty() { of(self.lines) } else { matched }
    }

    fn first(&self, keyword: &str) -> Option<&'a [String]> {
        self.lines(keyword).into_iter().next()
    }

    fn is(&self, keyword: &str, value: &str) -> bool {
        self.first(keyword).and_then(<[_]>::first).is_some_and(|found| found.eq_ignore_ascii_case(value))
    }

    /// The arguments of all lines of a keyword that gathers them.
    fn list(&self, keyword: &str) -> Vec<&'a str> {
        self.lines(keyword).into_iter().flatten().map(String::as_str).collect()
    }

    fn lets_in(&self, files: &dyn Files, account: &Account<'_>) -> Answer {
        self.admits(account)
            .and(|| Answer::when(!self.is("pubkeyauthentication", "no")))
            .and(|| self.gives_a_shell())
            .and(|| self.wants_a_key_alone())
            .and(|| self.has_key(files, account))
            .and(|| Answer::when(self.is("usepam", "no")).or(|| pam::lets_through(files, "sshd", "account")))
    }

    fn gives_a_shell(&self) -> Answer {
        match self.first("forcecommand").map(|command| command.join(" ")).as_deref() {
            None | Some("none") => Answer::YES,
            Some("internal-sftp") => Answer::NO,
            // It may start the shell after all.
            Some(command) => Answer::unknown(format!("sshd runs `{command}` for whoever logs in")),
        }
    }

    fn admits(&self, account: &Account<'_>) -> Answer {
        if account.user.uid == 0
            && (self.is("permitrootlogin", "no") || self.is("permitrootlogin", "forced-commands-only"))
        {
            return Answer::NO;
        }
        let names = [account.name()];
        let groups: Vec<&str> = account.groups.iter().map(|(name, _)| *name).collect();
        let is_admitted = |deny: &str, allow: &str, names: &[&str]| {
            let allowed = self.list(allow);
            !in_list(&self.list(deny).into_iter().filter(|pattern| !pattern.contains('@')).collect::<Vec<_>>(), names)
                && (allowed.is_empty() || in_list(&allowed, names))
        };
        Answer::when(
            is_admitted("denyusers", "allowusers", &names) && is_admitted("denygroups", "allowgroups", &groups),
        )
    }

    fn wants_a_key_alone(&self) -> Answer {
        let Some(methods) = self.first("authenticationmethods") else { return Answer::YES };
        if methods.iter().any(|method| matches!(method.as_str(), "any" | "publickey")) {
            return Answer::YES;
        }
        Answer::unknown("sshd asks for more than a key (`AuthenticationMethods`)")
    }

    fn has_key(&self, files: &dyn Files, account: &Account<'_>) -> Answer {
        let is_set = |keyword| self.first(keyword).is_some() && !self.is(keyword, "none");
        let elsewhere = ["authorizedkeyscommand", "trustedusercakeys"].into_iter().find(|keyword| is_set(keyword));
        let default = [".ssh/authorized_keys".to_owned(), ".ssh/authorized_keys2".to_owned()];
        let mut answer = Answer::NO;
        for pattern in self.first("authorizedkeysfile").unwrap_or(&default) {
            if pattern.eq_ignore_ascii_case("none") {
                continue;
            }
            answer = answer.or(|| match expand(pattern, account) {
                None => Answer::unknown(format!("`{pattern}` names the keys of `{}`", account.name())),
                Some(path) => match files.text(&path) {
                    Ok(text) => {
                        text.unwrap_or_default().lines().map(is_key).fold(Answer::NO, |all, one| all.or(|| one))
                    }
                    Err(why) => Answer::unknown(why),
                },
            });
        }
        answer.or(|| match elsewhere {
            Some(keyword) => Answer::unknown(format!("sshd also knows keys by `{keyword}`")),
            None => Answer::NO,
        })
    }
}

/// The words of a line: separated by space or one `=`, quoted or not, up to a comment.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (word, after) = match rest.strip_prefix('"').and_then(|quoted| quoted.split_once('"')) {
            Some(split) => split,
            None => {
                let is_end = |c: char| c.is_whitespace() || (words.is_empty() && c == '=');
                rest.split_at(rest.find(is_end).unwrap_or(rest.len()))
            }
        };
        words.push(word.to_owned());
        rest = after.trim_start();
        if words.len() == 1 {
            rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
        }
    }
    words
}

/// Whether names are in a list of patterns. Whoever is let in from some hosts only is let in.
fn in_list(patterns: &[&str], names: &[&str]) -> bool {
    let is_about = |pattern: &str| {
        let pattern = pattern.split_once('@').map_or(pattern, |(user, _)| user);
        names.iter().any(|name| matches_pattern(pattern, name))
    };
    let (not, is): (Vec<&str>, Vec<&str>) = patterns.iter().partition(|pattern| pattern.starts_with('!'));
    !not.iter().any(|pattern| is_about(pattern.trim_start_matches('!'))) && is.into_iter().any(is_about)
}

/// sshd's patterns: `*` and `?`.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    use gix::bstr::ByteSlice;
    gix::glob::wildmatch(pattern.as_bytes().as_bstr(), text.as_bytes().as_bstr(), gix::glob::wildmatch::Mode::empty())
}

/// The file that a pattern stands for; `None` for one with other tokens than a user and its home.
fn expand(pattern: &str, account: &Account<'_>) -> Option<String> {
    let path = pattern.replace("%h", &account.user.home).replace("%u", account.name());
    if path.contains('%') {
        return None;
    }
    Some(if path.starts_with('/') { path } else { format!("{}/{path}", account.user.home.trim_end_matches('/')) })
}

/// Whether a line of an authorized_keys file opens a shell.
fn is_key(line: &str) -> Answer {
    let line = line.trim();
    if line.starts_with('#') {
        return Answer::NO;
    }
    let is_kind = |word: &str| ["ssh-", "ecdsa-sha2-", "sk-"].iter().any(|kind| word.starts_with(kind));
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some(at) = words.iter().position(|word| is_kind(word)) else { return Answer::NO };
    let options = words.get(..at).unwrap_or_default().join(" ").to_ascii_lowercase();
    if words.len() <= at + 1 || options.contains("command=") {
        return Answer::NO;
    }
    if ["cert-authority", "expiry-time="].iter().any(|option| options.contains(option)) {
        return Answer::unknown("a key has options that say for whom or how long it counts");
    }
    Answer::YES
}
