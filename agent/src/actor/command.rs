//! From the arguments of a process to one line that may be kept and shown: bounded, escaped, and without secrets.
//!
//! A secret cannot be told from another word with certainty. The rules err towards masking: what is lost is a detail of who did
//! it; what would be shown is somebody's password, in a history and in alerts.

/// Longest text, in characters, of a command line or any other text about a process.
pub const MAX_LENGTH: usize = 240;

/// What a secret becomes.
const MASK: &str = "***";

/// Parts of a name whose value is a secret.
const SECRET_NAMES: &[&str] = &[
    "pass",
    "pwd",
    "secret",
    "token",
    "apikey",
    "api-key",
    "api_key",
    "accesskey",
    "access-key",
    "access_key",
    "privatekey",
    "private-key",
    "private_key",
    "credential",
    "authorization",
    "cookie",
    "hash",
    "bearer",
];

/// How the tokens of well-known services begin.
const SECRET_PREFIXES: &[&str] = &[
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "AKIA",
    "ASIA",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "sk-",
    "eyJ",
    "whsec_",
    "hvs.",
    "AGE-SECRET-KEY-",
    "npm_",
    "dop_v1_",
    "$1$",
    "$2a$",
    "$2b$",
    "$2y$",
    "$5$",
    "$6$",
    "$y$",
    "$argon2",
];

/// Programs that read a secret from an option of one letter, with those letters.
const SECRET_LETTERS: &[(&str, &str)] = &[
    ("mysql", "p"),
    ("mysqldump", "p"),
    ("mysqladmin", "p"),
    ("mariadb", "p"),
    ("mariadb-dump", "p"),
    ("sshpass", "p"),
    ("useradd", "p"),
    ("usermod", "p"),
    ("groupadd", "p"),
    ("groupmod", "p"),
    ("curl", "uHEb"),
    ("wget", "H"),
    ("ldapsearch", "w"),
    ("ldapmodify", "w"),
    ("ldapadd", "w"),
    ("smbclient", "U"),
    ("redis-cli", "a"),
    ("zip", "P"),
    ("unzip", "P"),
    ("7z", "p"),
    ("mosquitto_pub", "P"),
    ("mosquitto_sub", "P"),
    ("ipmitool", "P"),
    ("snmpget", "cAX"),
    ("docker", "p"),
    ("podman", "p"),
];

/// Programs of which nothing but the name is shown, because a bare argument of theirs can be a secret.
const SECRET_PROGRAMS: &[&str] = &[
    "passwd",
    "chpasswd",
    "chgpasswd",
    "htpasswd",
    "htdigest",
    "mkpasswd",
    "sshpass",
    "openssl",
    "smbpasswd",
    "kinit",
    "expect",
    "vault",
    "gpg",
    "cryptsetup",
    "secret-tool",
];

/// Programs that take a script as an argument.
const SHELLS: &[&str] = &["sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "su", "runuser", "script", "env", "sudo"];

/// One line from the arguments of a process, as the kernel keeps them: each ended by a zero byte.
pub fn line(arguments: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(arguments);
    let words: Vec<&str> = text.strip_suffix('\0').unwrap_or(&text).split('\0').collect();
    let (first, others) = words.split_first()?;
    if others.iter().all(|word| word.is_empty()) && first.contains(' ') {
        // A process that gave itself a title, such as `nginx: worker process`, wrote it over all of its arguments.
        return line_of_text(first);
    }
    if words.iter().all(|word| word.is_empty()) {
        return None;
    }
    let masked: Vec<String> = mask(&words).iter().map(|word| quoted(word)).collect();
    Some(escaped(&masked.join(" "), MAX_LENGTH))
}

/// One line from a command line that somebody already joined, such as a package manager in its log.
pub fn line_of_text(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() { None } else { Some(escaped(&mask(&words).join(" "), MAX_LENGTH)) }
}

/// What a program said, one line of it, with what looks like a secret replaced.
pub fn masked_text(line: &str) -> String {
    let mut masked: Vec<String> = Vec::new();
    let mut next_is_secret = false;
    for word in line.split_whitespace() {
        let (shown, after) = mask_word(word, "");
        masked.push(if next_is_secret { MASK.to_owned() } else { shown });
        next_is_secret = after == After::Secret;
    }
    masked.join(" ")
}

/// Bounds a text to `max` characters and makes it fit for one line of a terminal. What is cut off is marked.
pub fn escaped(text: &str, max: usize) -> String {
    let mut line = String::new();
    let mut n_chars = 0;
    for c in text.chars() {
        // Bidirectional controls are not "control characters" to Unicode, but reorder what a person reads.
        let is_unsafe =
            c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let piece = if is_unsafe { c.escape_default().to_string() } else { c.to_string() };
        n_chars += piece.chars().count();
        if n_chars > max {
            line.push('…');
            break;
        }
        line.push_str(&piece);
    }
    line
}

/// Replaces what looks like a secret among the words of one command.
fn mask(words: &[&str]) -> Vec<String> {
    let mut masked = Vec::with_capacity(words.len());
    let mut program = "";
    // What the next word is, because of this one.
    let mut next_is_secret = false;
    for (index, word) in words.iter().enumerate() {
        if index == 0 || SHELLS.contains(&program) && !word.starts_with('-') {
            let name = base_name(word);
            if SECRET_PROGRAMS.contains(&name) {
                masked.push((*word).to_owned());
                if index + 1 < words.len() {
                    masked.push(MASK.to_owned());
                }
                return masked;
            }
            if index == 0 || !word.contains(char::is_whitespace) && !word.contains('=') {
                program = name;
            }
        }
        if next_is_secret {
            next_is_secret = false;
            // `--token --verbose` is a flag and a flag, but a password may begin with a dash as well.
            masked.push(MASK.to_owned());
            continue;
        }
        if word.contains(char::is_whitespace) {
            masked.push(if hides_a_secret(word) { MASK.to_owned() } else { (*word).to_owned() });
            continue;
        }
        let (shown, after) = mask_word(word, program);
        next_is_secret = after == After::Secret;
        masked.push(shown);
    }
    masked
}

/// What a word says of the one after it.
#[derive(Debug, PartialEq, Eq)]
enum After {
    Anything,
    Secret,
}

fn mask_word(word: &str, program: &str) -> (String, After) {
    if is_token(word) {
        return (MASK.to_owned(), After::Anything);
    }
    // At every sign: `--setopt=main.password=abc` is one word.
    let assignments = word.match_indices('=').filter_map(|(at, _)| Some((word.get(..at)?, word.get(at + 1..)?)));
    for (name, value) in assignments {
        if !value.is_empty() && (is_secret_name(name) || is_token(value)) {
            return (format!("{name}={MASK}"), After::Anything);
        }
    }
    if let Some(url) = mask_url(word) {
        return (url, After::Anything);
    }
    if let Some(option) = word.strip_prefix("--") {
        let after = if !option.contains('=') && is_secret_name(option) { After::Secret } else { After::Anything };
        return (word.to_owned(), after);
    }
    if let Some(option) = word.strip_prefix('-')
        && let Some(letter) = option.chars().next()
        && SECRET_LETTERS.iter().any(|(name, letters)| *name == program && letters.contains(letter))
    {
        return if option.len() == letter.len_utf8() {
            (word.to_owned(), After::Secret)
        } else {
            (format!("-{letter}{MASK}"), After::Anything)
        };
    }
    if let Some(option) = word.strip_prefix('-')
        && is_secret_name(option)
    {
        return (word.to_owned(), After::Secret);
    }
    // A header or an assignment with a colon: `X-Token:abc`, `password:abc`.
    if let Some((name, value)) = word.split_once(':')
        && is_secret_name(name)
        && !name.contains('/')
    {
        let after = if value.is_empty() { After::Secret } else { After::Anything };
        return (format!("{name}:{MASK}"), after);
    }
    (word.to_owned(), After::Anything)
}

/// `scheme://user:password@host` without the password.
fn mask_url(word: &str) -> Option<String> {
    let (scheme, rest) = word.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map(|(_, host)| host);
    let path = if path.contains('?') { path.split('?').next().map(|path| format!("{path}?{MASK}")) } else { None };
    match (host, path, rest) {
        (None, None, _) => None,
        (Some(host), None, rest) => {
            let path = rest.get(authority.len()..).unwrap_or_default();
            Some(format!("{scheme}://{MASK}@{host}{path}"))
        }
        (Some(host), Some(path), _) => Some(format!("{scheme}://{MASK}@{host}{path}")),
        (None, Some(path), _) => Some(format!("{scheme}://{authority}{path}")),
    }
}

fn is_secret_name(name: &str) -> bool {
    // `/etc/passwd` is a place, not the name of a secret, and so is `/etc/shadow`.
    if name.contains('/') {
        return false;
    }
    let lower = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|part| lower.contains(part)) || lower.trim_start_matches('-') == "pin"
}

/// Whether a word is a secret by its looks: the prefix of a service, or a long mixture of letters and digits.
fn is_token(word: &str) -> bool {
    if SECRET_PREFIXES.iter().any(|prefix| word.len() >= prefix.len() + 6 && word.starts_with(prefix)) {
        return true;
    }
    let is_plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'=' | b'_' | b'-'));
    let n_digits = word.bytes().filter(u8::is_ascii_digit).count();
    let n_letters = word.bytes().filter(u8::is_ascii_alphabetic).count();
    word.len() >= 24 && is_plain && n_digits >= 4 && n_letters >= 4 && !word.contains("--")
}

/// Whether a script, which is one argument, may hold a secret anywhere. It is shown whole or not at all.
fn hides_a_secret(script: &str) -> bool {
    // Quotes and operators of the shell end a word as white space does; `/`, `=` and `:` are inside words here.
    let words: Vec<&str> = script
        .split(|c: char| {
            c.is_whitespace()
                || matches!(c, '\'' | '"' | '`' | ';' | '|' | '&' | '(' | ')' | '<' | '>' | ',' | '{' | '}')
        })
        .filter(|word| !word.is_empty())
        .collect();
    words.iter().any(|word| {
        let program = base_name(word);
        SECRET_PROGRAMS.contains(&program)
            || SECRET_LETTERS.iter().any(|(name, _)| *name == program)
            || is_secret_name(word)
            || mask_word(word, "") != ((*word).to_owned(), After::Anything)
    })
}

fn base_name(word: &str) -> &str {
    let name = word.rsplit('/').next().unwrap_or(word);
    name.strip_prefix('-').unwrap_or(name)
}

/// Quotes a word that would otherwise not be seen to be one.
fn quoted(word: &str) -> String {
    let is_plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '`'));
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''").replace('`', "'")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(words: &[&str], expected: &str) {
        let arguments: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
        assert_eq!(line(&arguments).as_deref(), Some(expected), "{words:?}");
    }

    #[test]
    fn ordinary_commands_are_shown() {
        check(&["vim", "/etc/motd"], "vim /etc/motd");
        check(&["sh", "-c", "echo x > f"], "sh -c 'echo x > f'");
        check(&["sh", "-c", "echo evil >> /etc/passwd"], "sh -c 'echo evil >> /etc/passwd'");
        check(&["chmod", "0777", "/etc/shadow"], "chmod 0777 /etc/shadow");
        check(&["sed", "-i", "s/a/b/", "/etc/ssh/sshd_config"], "sed -i s/a/b/ /etc/ssh/sshd_config");
        check(&["/usr/bin/python3", "-u", "/opt/agent.py"], "/usr/bin/python3 -u /opt/agent.py");
        check(&["curl", "https://example.org/a", "-o", "/etc/motd"], "curl https://example.org/a -o /etc/motd");
        check(&["tee", "a b", ""], "tee 'a b' ''");
        check(&["nginx: worker process", "", ""], "nginx: worker process");
        check(&["cp", "-p", "/a", "/etc/b"], "cp -p /a /etc/b");
    }

    #[test]
    fn secrets_are_masked() {
        check(&["x", "--password=hunter2"], "x --password=***");
        check(&["x", "--password", "hunter2", "y"], "x --password *** y");
        check(&["x", "--password", "-hunter2"], "x --password ***");
        check(&["x", "-password", "hunter2"], "x -password ***");
        check(&["env", "DB_PASS=hunter2", "x"], "env DB_PASS=*** x");
        check(&["x", "API_TOKEN=abc", "a=b"], "x API_TOKEN=*** a=b");
        check(&["x", "--setopt=main.password=hunter2"], "x --setopt=main.password=***");
        check(&["mysql", "-uroot", "-phunter2"], "mysql -uroot -p***");
        check(&["/usr/bin/mysql", "-p", "hunter2"], "/usr/bin/mysql -p ***");
        check(&["usermod", "-p", "$6$abcdefgh$ijk", "anna"], "usermod -p *** anna");
        check(&["curl", "-u", "anna:hunter2", "https://x"], "curl -u *** https://x");
        check(&["curl", "-H", "Authorization: Bearer abc"], "curl -H ***");
        check(&["git", "clone", "https://anna:hunter2@git.example.org/x"], "git clone https://***@git.example.org/x");
        check(&["wget", "https://x/a?sig=abc"], "wget https://x/a?***");
        check(&["x", "ghp_0123456789abcdef"], "x ***");
        check(&["x", "t=eyJhbGciOiJIUzI1NiJ9"], "x t=***");
        check(&["x", "AKIAIOSFODNN7EXAMPLE"], "x ***");
        check(&["x", "d41d8cd98f00b204e9800998ecf8427e"], "x ***");
        check(&["x", "X-Auth-Token:abc"], "x X-Auth-Token:***");
        check(&["htpasswd", "-b", "f", "anna", "hunter2"], "htpasswd ***");
        check(&["sudo", "htpasswd", "-b", "f", "anna", "hunter2"], "sudo htpasswd ***");
        check(&["sudo", "mysql", "-phunter2"], "sudo mysql -p***");
        check(&["sh", "-c", "echo anna:hunter2 | chpasswd"], "sh -c ***");
        check(&["bash", "-c", "PASSWORD=hunter2 run"], "bash -c ***");
        check(&["bash", "-c", "mysql -phunter2 < /x"], "bash -c ***");
        check(&["bash", "-c", "x 'token: abc'"], "bash -c ***");
        check(&["bash", "-c", "curl https://a:b@c/"], "bash -c ***");
    }

    #[test]
    fn a_line_stays_one_bounded_line() {
        check(&["a\nb", "\u{1b}[31m", "\u{202e}x"], "'a\\nb' \\u{1b}[31m \\u{202e}x");
        check(&["echo", "`id`"], "echo ''id''");
        let long = "y".repeat(1000);
        let shown = line(format!("x\0{long}\0").as_bytes()).unwrap();
        assert_eq!(shown.chars().count(), MAX_LENGTH + 1);
        assert!(shown.ends_with('…'), "{shown}");
        assert_eq!(line(b""), None);
        assert_eq!(line(b"\0\0"), None);
        assert_eq!(line(b"\xff\0").as_deref(), Some("\u{fffd}"));
    }

    #[test]
    fn a_joined_command_line_is_masked_as_well() {
        assert_eq!(line_of_text("apt-get install -y nginx").as_deref(), Some("apt-get install -y nginx"));
        assert_eq!(line_of_text("x  --token abc").as_deref(), Some("x --token ***"));
        assert_eq!(line_of_text("  "), None);
    }
}
