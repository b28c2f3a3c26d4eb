//! Parsers of single values. Each takes text and says in words what is wrong with it.

use std::path::PathBuf;
use std::time::Duration;

/// Longest duration accepted: times are added to clocks, and must not overflow them.
const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Parses a whole number and a unit, such as `250ms`, `1m`, `30d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a whole number and one of ms, s, m, h, d, such as \"90s\"; found \"{text}\"");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60 * 1000),
        "h" => number.checked_mul(60 * 60 * 1000),
        "d" => number.checked_mul(24 * 60 * 60 * 1000),
        _ => return Err(wrong()),
    };
    milliseconds
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX_DURATION)
        .ok_or_else(|| format!("\"{text}\" is longer than ten years"))
}

/// A duration as [`duration`] reads it.
pub(super) fn show(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds.is_multiple_of(1000) { format!("{}s", milliseconds / 1000) } else { format!("{milliseconds}ms") }
}

/// Parses an absolute path.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.contains('\0') {
        return Err("a path cannot contain a NUL byte".to_owned());
    }
    if text.starts_with('/') {
        Ok(PathBuf::from(text))
    } else {
        Err(format!("expected an absolute path; found \"{text}\""))
    }
}

/// Checks the URL of a git repository.
pub(super) fn repository(text: &str) -> Result<(), String> {
    plain(text)?;
    if let Some((scheme, rest)) = text.split_once("://") {
        return match scheme {
            "https" | "ssh" => authority(rest),
            "file" if rest.starts_with('/') => Ok(()),
            "file" => Err("expected three slashes, as in \"file:///srv/policy.git\"".to_owned()),
            "http" | "git" => Err(format!(
                "`{scheme}` shows the policy to everyone on the way and lets them hold it back; use https or ssh"
            )),
            _ => Err(format!("expected an https, ssh or file URL; found \"{text}\"")),
        };
    }
    match text.split_once(':') {
        Some((host, path)) if host.contains('@') && !path.is_empty() && !host.contains('/') => authority(host),
        Some(_) | None if text.starts_with('/') => {
            Err(format!("expected a URL; found a path; write \"file://{text}\""))
        }
        Some(_) | None => Err(format!("expected an https, ssh or file URL, or user@host:path; found \"{text}\"")),
    }
}

/// Checks the base URL of the endpoint.
pub(super) fn endpoint(text: &str) -> Result<(), String> {
    plain(text)?;
    let rest = match text.split_once("://") {
        Some(("https", rest)) => rest,
        Some(("http", _)) => {
            return Err("`http` would let anyone on the way grant a reimage; the endpoint must be https".to_owned());
        }
        Some(_) | None => return Err(format!("expected an https URL; found \"{text}\"")),
    };
    if rest.contains(['?', '#', '@']) {
        return Err("the endpoint's URL cannot have a query, a fragment or a user".to_owned());
    }
    authority(rest)
}

/// Checks the URL of a webhook receiver.
pub(super) fn webhook(text: &str) -> Result<(), String> {
    plain(text)?;
    match text.split_once("://") {
        Some(("https" | "http", rest)) => authority(rest),
        Some(_) | None => Err(format!("expected an https or http URL; found \"{text}\"")),
    }
}

fn plain(text: &str) -> Result<(), String> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("a URL cannot contain spaces or control characters".to_owned());
    }
    Ok(())
}

/// A host that begins with a dash would be an option to the program that connects to it.
fn authority(rest: &str) -> Result<(), String> {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || host.starts_with(':') {
        return Err("the URL names no host".to_owned());
    }
    if authority.starts_with('-') || host.starts_with('-') {
        return Err("a host or user cannot begin with `-`".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_duration(text: &str, expected: Option<Duration>) {
        assert_eq!(duration(text).ok(), expected, "{text}");
    }

    #[test]
    fn durations_are_a_number_and_a_unit() {
        check_duration("0ms", Some(Duration::ZERO));
        check_duration("250ms", Some(Duration::from_millis(250)));
        check_duration("90s", Some(Duration::from_secs(90)));
        check_duration("1m", Some(Duration::from_secs(60)));
        check_duration("2h", Some(Duration::from_secs(7200)));
        check_duration("30d", Some(Duration::from_secs(30 * 86400)));
        for wrong in [
            "",
            "1",
            "m",
            "-1s",
            "+1s",
            "1 s",
            "1.5s",
            "1h30m",
            "1S",
            "١s",
            "99999999999999999999s",
            "18446744073709551615d",
            "4000d",
        ] {
            check_duration(wrong, None);
        }
    }

    #[track_caller]
    fn check_url(parse: fn(&str) -> Result<(), String>, good: &[&str], bad: &[&str]) {
        for url in good {
            assert_eq!(parse(url), Ok(()), "{url}");
        }
        for url in bad {
            assert!(parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn urls_are_what_they_are_for() {
        check_url(
            repository,
            &[
                "https://git.example/p.git",
                "ssh://git@git.example/p",
                "git@git.example:acme/p.git",
                "file:///srv/p.git",
            ],
            &[
                "",
                "http://git.example/p",
                "git://git.example/p",
                "/srv/p.git",
                "file://srv/p",
                "https://",
                "https:///p",
                "ssh://-oProxyCommand=x/p",
                "-x@host:p",
                "user@-oX:p",
                "https://a b/c",
                "ext::sh -c x",
                "host:path",
            ],
        );
        check_url(
            endpoint,
            &["https://hub.example", "https://hub.example:8443/base"],
            &["http://127.0.0.1:1", "http://hub.example", "hub.example", "https://u@hub", "https://hub/?a", "https://"],
        );
        check_url(webhook, &["http://127.0.0.1:9/x?y=z", "https://a.example/h"], &["ftp://x", "x", "https://"]);
    }
}
