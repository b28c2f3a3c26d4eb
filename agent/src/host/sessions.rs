//! Who has logged in from elsewhere, as logind keeps it.
//!
//! Its files are called private. They are read all the same, because the answer is only ever used as a proof that somebody got
//! in: if they change or are missing there is no proof, and never a false one.

use jiff::Timestamp;

use super::root::Root;
use crate::resource::AbsPath;

const SESSIONS: &str = "/run/systemd/sessions";
const MAX_SESSIONS: usize = 10_000;
const MAX_FILE: u64 = 64 * 1024;

/// Whether somebody has opened a session through sshd, from another machine, after a time. A session that was open before
/// proves nothing: it survives what would keep a new one out.
pub fn has_logged_in_since(root: &Root, since: Timestamp) -> bool {
    let Ok(directory) = AbsPath::new(SESSIONS) else { return false };
    let Ok(Some(names)) = root.list_names(&directory, MAX_SESSIONS) else { return false };
    names.iter().filter_map(|name| name.to_str()).filter(|name| !name.ends_with(".ref")).any(|name| {
        let path = AbsPath::new(&format!("{SESSIONS}/{name}")).ok();
        let content = path.and_then(|path| root.read(&path, MAX_FILE).ok().flatten());
        content.is_some_and(|(content, _)| is_proof(&String::from_utf8_lossy(&content), since))
    })
}

fn is_proof(text: &str, since: Timestamp) -> bool {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let is_remote = field("REMOTE") == Some("1") && field("REMOTE_HOST").is_some_and(|host| !is_loopback(host));
    let began =
        field("REALTIME").and_then(|text| text.parse().ok()).and_then(|us| Timestamp::from_microsecond(us).ok());
    field("SERVICE") == Some("sshd")
        && is_remote
        && field("CLASS").is_none_or(|class| class.starts_with("user"))
        && began.is_some_and(|began| began > since)
}

/// A login from the host itself passes no firewall.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host == "::1" || host.starts_with("127.") || host.starts_with("::ffff:127.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_session_of_sshd_from_elsewhere_is_a_proof() {
        let since = Timestamp::from_microsecond(1_000).unwrap();
        let session = |service: &str, remote: &str, host: &str, at: &str| {
            format!(
                "# private\nUID=0\nCLASS=user\nSERVICE={service}\nREMOTE={remote}\nREMOTE_HOST={host}\nREALTIME={at}\n"
            )
        };
        for (service, remote, host, at, expected) in [
            ("sshd", "1", "192.0.2.7", "1001", true),
            ("sshd", "1", "192.0.2.7", "1000", false),
            ("sshd", "1", "192.0.2.7", "soon", false),
            ("sshd", "1", "127.0.0.1", "1001", false),
            ("sshd", "0", "", "1001", false),
            ("login", "1", "192.0.2.7", "1001", false),
        ] {
            let text = session(service, remote, host, at);
            assert_eq!(is_proof(&text, since), expected, "{text}");
        }
    }
}
