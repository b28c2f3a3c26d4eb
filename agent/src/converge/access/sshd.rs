//! Whom sshd lets in by a key, as far as its configuration is simple.
//!
//! The first value of a keyword counts, as for sshd, and what a `Match` block says before what is said for all. Whether a condition
//! about users and groups holds is known here; of any other, such as an address, it is not: then the answer is what sshd would say
//! whether it holds or not, and unknown where that differs. A block of an included file counts only where the block that includes
//! the file does.

use super::{Access, Account, Answer, Files, pam};

const CONFIGURATIONS: [&str; 2] = ["/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config"];
const MAX_DEPTH: usize = 8;
/// Conditions that are not known, of which every combination is tried.
const MAX_UNKNOWN: usize = 5;
/// What decides who gets in.
const DECIDES: [&str; 13] = [
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
    "refuseconnection",
    "chrootdirectory",
];

/// A keyword in small letters, and its arguments.
type Line = (String, Vec<String>);

/// The arguments of a `Match`.
type Condition = Vec<String>;

/// What is said where several conditions hold: that of a `Match`, and those of the blocks that include its file.
struct Block {
    conditions: Vec<Condition>,
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
                    sshd.add(files, &text, &[], MAX_DEPTH);
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

    /// Adds what a file says, which is included where these conditions hold.
    fn add(&mut self, files: &dyn Files, text: &str, outer: &[Condition], depth: usize) {
        let mut conditions = outer.to_vec();
        for line in text.lines() {
            let mut words = words(line).into_iter();
            let Some(keyword) = words.next().map(|word| word.to_ascii_lowercase()) else { continue };
            let arguments: Vec<String> = words.collect();
            match keyword.as_str() {
                "match" => {
                    conditions.truncate(outer.len());
                    conditions.push(arguments);
                }
                "include" => arguments.iter().for_each(|pattern| self.include(files, pattern, &conditions, depth)),
                _ => self.push(&conditions, (keyword, arguments)),
            }
        }
    }

    /// Adds a line behind all others: also behind the blocks of a file that was included in the middle of its own.
    fn push(&mut self, conditions: &[Condition], line: Line) {
        if conditions.is_empty() {
            self.lines.push(line);
            return;
        }
        match self.blocks.last_mut().filter(|block| block.conditions == conditions) {
            Some(block) => block.lines.push(line),
            None => self.blocks.push(Block { conditions: conditions.to_vec(), lines: vec![line] }),
        }
    }

    fn include(&mut self, files: &dyn Files, pattern: &str, conditions: &[Condition], depth: usize) {
        let whole = if pattern.starts_with('/') { pattern.to_owned() } else { format!("/etc/ssh/{pattern}") };
        let (directory, name) = whole.rsplit_once('/').unwrap_or(("", &whole));
        let (false, Some(depth)) = (directory.contains(['*', '?', '[']), depth.checked_sub(1)) else {
            self.doubt = Some(format!("sshd includes `{pattern}`"));
            return;
        };
        let names = if name.contains(['*', '?', '[']) { files.names(directory) } else { Ok(vec![name.to_owned()]) };
        let texts = names.and_then(|names| {
            let names = names.iter().filter(|found| is_globbed(name, found));
            names.map(|name| files.text(&format!("{directory}/{name}"))).collect::<Result<Vec<_>, _>>()
        });
        match texts {
            Ok(texts) => texts.into_iter().flatten().for_each(|text| self.add(files, &text, conditions, depth)),
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
        let mut unknown: Vec<&Condition> = Vec::new();
        let mut blocks: Vec<(&[Line], Vec<usize>)> = Vec::new();
        for block in self.blocks.iter().filter(decides) {
            let conditions: Vec<(&Condition, Access)> =
                block.conditions.iter().map(|condition| (condition, holds(condition, account))).collect();
            if conditions.iter().any(|(_, holds)| *holds == Access::Closed) {
                continue;
            }
            let mut needs = Vec::new();
            for (condition, _) in conditions.into_iter().filter(|(_, holds)| *holds == Access::Unknown) {
                // The same condition holds everywhere or nowhere.
                needs.push(unknown.iter().position(|known| *known == condition).unwrap_or(unknown.len()));
                if needs.last() == Some(&unknown.len()) {
                    unknown.push(condition);
                }
            }
            blocks.push((&block.lines, needs));
        }
        let doubt =
            || Answer::unknown(format!("sshd_config has a `Match` block that may be about `{}`", account.name()));
        if unknown.len() > MAX_UNKNOWN {
            return doubt();
        }
        let mut answers = (0..1_u32 << unknown.len()).map(|hold| {
            let is_in_force = |needs: &[usize]| needs.iter().all(|nth| hold >> nth & 1 == 1);
            let matched = blocks.iter().filter(|(_, needs)| is_in_force(needs)).map(|(lines, _)| *lines).collect();
            InForce { matched, lines: &self.lines }.lets_in(files, account)
        });
        let first = answers.next().unwrap_or(Answer::NO);
        if answers.all(|other| other.access == first.access) { first } else { doubt() }
    }
}

/// Whether a line says anything about whether an account gets in.
fn decides((keyword, _): &Line, account: &Account<'_>) -> bool {
    DECIDES.contains(&keyword.as_str()) && (keyword != "permitrootlogin" || account.user.uid == 0)
}

/// Whether a condition holds for an account. Only users and groups are known here.
fn holds(condition: &Condition, account: &Account<'_>) -> Access {
    let groups: Vec<&str> = account.groups.iter().map(|(name, _)| *name).collect();
    let mut all = Access::Open;
    // `User git` may be written `User=git`.
    let mut words = condition.iter().flat_map(|word| word.splitn(2, '=')).filter(|word| !word.is_empty());
    while let Some(kind) = words.next() {
        let holds = match kind.to_ascii_lowercase().as_str() {
            "all" => Access::Open,
            "invalid-user" => Access::Closed,
            kind @ ("user" | "group") => {
                let list = words.next().unwrap_or_default();
                let is_in = if kind == "user" { in_list(list, &[account.name()]) } else { in_list(list, &groups) };
                if is_in { Access::Open } else { Access::Closed }
            }
            _ => {
                words.next();
                Access::Unknown
            }
        };
        all = all.min(holds);
    }
    all
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
        Answer::when(!self.is("refuseconnection", "yes"))
            .and(|| self.admits(account))
            .and(|| Answer::when(!self.is("pubkeyauthentication", "no")))
            .and(|| self.gives_a_shell())
            .and(|| self.wants_a_key_alone())
            .and(|| self.has_key(files, account))
            .and(|| Answer::when(self.is("usepam", "no")).or(|| pam::lets_through(files, "sshd", "account")))
    }

    fn gives_a_shell(&self) -> Answer {
        let command = match self.first("forcecommand").map(|command| command.join(" ")).as_deref() {
            None | Some("none") => Answer::YES,
            Some("internal-sftp") => Answer::NO,
            // It may start the shell after all.
            Some(command) => Answer::unknown(format!("sshd runs `{command}` for whoever logs in")),
        };
        // A shell in there is not one of the host, unless it is the host's own root.
        command.and(|| match self.first("chrootdirectory").and_then(<[_]>::first) {
            Some(directory) if !directory.eq_ignore_ascii_case("none") => {
                Answer::unknown(format!("sshd shuts whoever logs in up in `{directory}`"))
            }
            Some(_) | None => Answer::YES,
        })
    }

    fn admits(&self, account: &Account<'_>) -> Answer {
        if account.user.uid == 0
            && (self.is("permitrootlogin", "no") || self.is("permitrootlogin", "forced-commands-only"))
        {
            return Answer::NO;
        }
        self.admits_user(account.name()).and(|| {
            let is_in = |keyword| {
                let patterns = self.list(keyword);
                patterns.iter().any(|pattern| account.groups.iter().any(|(group, _)| matches_pattern(pattern, group)))
            };
            Answer::when(!is_in("denygroups") && (self.list("allowgroups").is_empty() || is_in("allowgroups")))
        })
    }

    /// What `DenyUsers` and `AllowUsers` say, which know no `!`. Whoever is let in from some hosts only is let in; of one who is
    /// refused from some hosts nobody knows whether there are others.
    fn admits_user(&self, name: &str) -> Answer {
        let refused = self.list("denyusers").into_iter().map(|pattern| match pattern.rsplit_once('@') {
            None => Answer::when(!matches_pattern(pattern, name)),
            Some((user, _)) if matches_pattern(user, name) => Answer::unknown(format!("sshd refuses `{pattern}`")),
            Some(_) => Answer::YES,
        });
        let allowed = self.list("allowusers");
        let is_allowed =
            |pattern: &&str| matches_pattern(pattern.rsplit_once('@').map_or(pattern, |(user, _)| user), name);
        refused
            .fold(Answer::YES, |all, one| all.and(|| one))
            .and(|| Answer::when(allowed.is_empty() || allowed.iter().any(is_allowed)))
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

/// Whether one of the names is in a list of a `Match`, and none of them is one of those that the list leaves out.
fn in_list(list: &str, names: &[&str]) -> bool {
    let is_about = |pattern: &str| names.iter().any(|name| matches_pattern(pattern, name));
    let mut is_in = false;
    for pattern in list.split(',') {
        match pattern.strip_prefix('!') {
            Some(left_out) if is_about(left_out) => return false,
            Some(_) => {}
            None => is_in |= is_about(pattern),
        }
    }
    is_in
}

/// sshd's patterns know `*` and `?`, and nothing else.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut from) = (0, 0);
    // Where the last `*` was, and what it has taken so far.
    let mut star = None;
    while let Some(byte) = text.get(from) {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted == byte => {
                at += 1;
                from += 1;
            }
            Some(_) | None => match &mut star {
                Some((before, taken)) => {
                    *taken += 1;
                    at = *before + 1;
                    from = *taken;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|byte| *byte == b'*')
}

/// Whether an `Include` is about a file of this name. As for every glob, what is hidden has to be named so.
fn is_globbed(pattern: &str, name: &str) -> bool {
    use gix::bstr::ByteSlice;
    let mode = gix::glob::wildmatch::Mode::empty();
    (pattern.starts_with('.') || !name.starts_with('.'))
        && gix::glob::wildmatch(pattern.as_bytes().as_bstr(), name.as_bytes().as_bstr(), mode)
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
