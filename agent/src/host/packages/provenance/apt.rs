//! apt's `history.log` and dpkg's own log.
//!
//! apt writes one paragraph for each transaction: its beginning when dpkg is about to start, its end when all is done. dpkg writes
//! one line for each thing that it does, whoever asked for it.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::Found;
use crate::actor::{Transaction, command};

/// What rekindle gives apt-get and nobody else does; see [`super::super::apt`].
const OWN_OPTIONS: &str =
    "-q -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0";

/// The fields of a paragraph that list packages, and what they mean.
const ACTIONS: [(&str, &str); 6] = [
    ("Install", "install"),
    ("Reinstall", "reinstall"),
    ("Upgrade", "upgrade"),
    ("Downgrade", "downgrade"),
    ("Remove", "remove"),
    ("Purge", "purge"),
];

/// The newest transaction that names a package.
pub(super) fn newest(history: &str, package: &str, zone: &TimeZone) -> Option<Found> {
    paragraphs(history).find_map(|paragraph| {
        let what = ACTIONS.iter().find_map(|(field, action)| {
            entries(paragraph, field).find(|(name, _)| is_named(name, package)).map(|(_, details)| {
                // `1.0, automatic` and `1.0, 1.1`.
                let versions: Vec<&str> = details.split(", ").filter(|detail| *detail != "automatic").collect();
                format!("{action} {}", versions.join(" -> "))
            })
        })?;
        found(paragraph, what, zone)
    })
}

/// The newest transaction, whatever it is about.
pub(super) fn last(history: &str, zone: &TimeZone) -> Option<Found> {
    let paragraph = paragraphs(history).next()?;
    let mut named = ACTIONS
        .iter()
        .flat_map(|(field, action)| entries(paragraph, field).map(move |(name, _)| format!("{action} {name}")));
    let first = named.next()?;
    let what = match named.count() {
        0 => first,
        n => format!("{first} and {n} more"),
    };
    found(paragraph, what, zone)
}

/// The newest thing that dpkg did to a package by itself or for others.
pub(super) fn newest_of_dpkg(log: &str, package: &str, zone: &TimeZone) -> Option<Found> {
    log.lines().rev().find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [date, time, action @ ("install" | "upgrade" | "remove" | "purge"), name, old, new] = words[..] else {
            return None;
        };
        if !is_named(name, package) {
            return None;
        }
        let what = match action {
            "install" => format!("install {new}"),
            "upgrade" => format!("upgrade {old} -> {new}"),
            other => format!("{other} {old}"),
        };
        let at = local(&format!("{date} {time}"), zone)?;
        let transaction =
            Transaction { manager: "dpkg".to_owned(), at, command: None, by: None, what: command::escaped(&what, 200) };
        Some(Found { transaction, ended: None, is_own: false })
    })
}

/// Whole paragraphs and a last one that is still being written, the newest first.
fn paragraphs(history: &str) -> impl Iterator<Item = &str> {
    // What was cut off at the front has no beginning.
    history.rsplit("\n\n").map(str::trim).filter(|paragraph| paragraph.starts_with("Start-Date: "))
}

fn field<'a>(paragraph: &'a str, name: &str) -> Option<&'a str> {
    paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// `name:arch (details), name:arch (details)`.
fn entries<'a>(paragraph: &'a str, name: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    field(paragraph, name).into_iter().flat_map(|list| list.split("), ")).filter_map(|entry| {
        let (name, details) = entry.split_once(" (")?;
        Some((name, details.trim_end_matches(')')))
    })
}

/// A policy may name an architecture; the logs always do.
fn is_named(logged: &str, package: &str) -> bool {
    logged == package || logged.split_once(':').is_some_and(|(name, _)| name == package)
}

fn found(paragraph: &str, what: String, zone: &TimeZone) -> Option<Found> {
    let at = local(field(paragraph, "Start-Date")?, zone)?;
    let line = field(paragraph, "Commandline");
    // `anna (1000)`.
    let by = field(paragraph, "Requested-By").and_then(|by| by.split(' ').next());
    let transaction = Transaction {
        manager: "apt".to_owned(),
        at,
        command: line.and_then(command::line_of_text),
        by: by.map(|by| command::escaped(by, 64)),
        what: command::escaped(&what, 200),
    };
    let ended = field(paragraph, "End-Date").and_then(|end| local(end, zone));
    Some(Found { transaction, ended, is_own: line.is_some_and(|line| line.contains(OWN_OPTIONS)) })
}

/// A time of the host's own clock: `2026-11-30  08:13:41`.
fn local(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let (date, time) = text.split_once(' ')?;
    let local: DateTime = format!("{date}T{}", time.trim()).parse().ok()?;
    Some(local.to_zoned(zone.clone()).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a Debian 12 host, shortened.
    const HISTORY: &str = "2.4.114-1+b1, automatic)
End-Date: 2026-11-28  06:10:00

Start-Date: 2026-11-29  06:12:10
Commandline: /usr/bin/unattended-upgrade
Upgrade: openssh-client:amd64 (1:9.2p1-2+deb12u6, 1:9.2p1-2+deb12u10), less:amd64 (590-2, 590-2.1~deb12u2)
End-Date: 2026-11-29  06:12:15

Start-Date: 2026-11-30  08:13:41
Commandline: apt-get install -q -y nginx
Requested-By: anna (1000)
Install: nginx:amd64 (1.22.1-9+deb12u11), nginx-common:amd64 (1.22.1-9+deb12u11, automatic)
Upgrade: dpkg:amd64 (1.21.22, 1.21.23)
End-Date: 2026-11-30  08:13:56

Start-Date: 2026-11-30  09:00:00
Commandline: apt-get purge less
Purge: less:amd64 (590-2.1~deb12u2)
";

    const LOG: &str = "2026-11-30 08:13:42 startup archives unpack
2026-11-30 08:13:43 install nginx:amd64 <none> 1.22.1-9+deb12u11
2026-11-30 08:13:43 status half-installed nginx:amd64 1.22.1-9+deb12u11
2026-11-30 08:13:44 upgrade dpkg:amd64 1.21.22 1.21.23
2026-11-30 08:13:50 configure nginx:amd64 1.22.1-9+deb12u11 <none>
2026-11-30 08:20:00 remove nginx:amd64 1.22.1-9+deb12u11 <none>
2026-11-30 08:20:01 status config-files nginx:amd64 1.22.1-9+deb12u11
";

    #[test]
    fn the_newest_transaction_of_a_package_is_found() {
        let check = |package: &str, expected: Option<&str>| {
            let found = newest(HISTORY, package, &TimeZone::UTC).map(|found| {
                let Found { transaction: t, ended, .. } = found;
                format!("{} `{}` {:?} {} {}", t.at, t.command.unwrap(), t.by, t.what, ended.is_some())
            });
            assert_eq!(found.as_deref(), expected, "{package}");
        };
        check(
            "nginx",
            Some("2026-11-30T08:13:41Z `apt-get install -q -y nginx` Some(\"anna\") install 1.22.1-9+deb12u11 true"),
        );
        check(
            "nginx-common:amd64",
            Some("2026-11-30T08:13:41Z `apt-get install -q -y nginx` Some(\"anna\") install 1.22.1-9+deb12u11 true"),
        );
        check(
            "openssh-client",
            Some(
                "2026-11-29T06:12:10Z `/usr/bin/unattended-upgrade` None upgrade 1:9.2p1-2+deb12u6 -> 1:9.2p1-2+deb12u10 true",
            ),
        );
        // Still running.
        check("less", Some("2026-11-30T09:00:00Z `apt-get purge less` None purge 590-2.1~deb12u2 false"));
        check("ngin", None);
        check("nginx:i386", None);
    }

    #[test]
    fn the_time_is_that_of_the_host() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(newest(HISTORY, "nginx", &zone).unwrap().transaction.at.to_string(), "2026-11-30T06:13:41Z");
        assert_eq!(local("yesterday", &zone), None);
    }

    #[test]
    fn the_last_transaction_is_summed_up() {
        let check = |history: &str, expected: Option<&str>| {
            assert_eq!(last(history, &TimeZone::UTC).map(|found| found.transaction.what).as_deref(), expected);
        };
        check(HISTORY, Some("purge less:amd64"));
        check(HISTORY.split_once("\n\nStart-Date: 2026-11-30  09").unwrap().0, Some("install nginx:amd64 and 2 more"));
        check("", None);
        check("Start-Date: 2026-11-30  09:00:00\n", None);
    }

    #[test]
    fn what_dpkg_did_is_found() {
        let check = |package: &str, expected: Option<&str>| {
            let found = newest_of_dpkg(LOG, package, &TimeZone::UTC);
            let found = found.map(|found| format!("{} {}", found.transaction.at, found.transaction.what));
            assert_eq!(found.as_deref(), expected, "{package}");
        };
        check("nginx", Some("2026-11-30T08:20:00Z remove 1.22.1-9+deb12u11"));
        check("dpkg", Some("2026-11-30T08:13:44Z upgrade 1.21.22 -> 1.21.23"));
        check("less", None);
    }

    #[test]
    fn runs_of_the_agent_are_its_own() {
        let line = format!(
            "Start-Date: 2026-11-30  09:00:00\nCommandline: apt-get {OWN_OPTIONS} install x\nInstall: x:all (1)\n"
        );
        assert!(newest(&line, "x", &TimeZone::UTC).unwrap().is_own);
        assert!(!newest(HISTORY, "nginx", &TimeZone::UTC).unwrap().is_own);
    }
}
