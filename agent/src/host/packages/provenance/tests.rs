//! Which of several logs is believed.

#![expect(clippy::disallowed_methods, reason = "tests write logs as package managers do")]

use super::*;

struct Logs {
    _dir: tempfile::TempDir,
    root: Root,
}

impl Logs {
    fn new(history: &str, dpkg: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("var/log/apt")).unwrap();
        std::fs::write(dir.path().join("var/log/apt/history.log"), history).unwrap();
        std::fs::write(dir.path().join("var/log/dpkg.log"), dpkg).unwrap();
        let root = Root::open(dir.path()).unwrap();
        Self { _dir: dir, root }
    }

    /// The times in logs are the host's, so that the tests compare with what the host makes of them.
    fn of(&self, package: &str, since: Option<Timestamp>) -> Option<(String, String)> {
        of_package(&self.root, package, since).map(|found| (found.manager, found.what))
    }
}

const APT: &str = "Start-Date: 2026-11-30  08:00:00\nCommandline: apt-get install nginx\nInstall: nginx:amd64 (1)\n\
    End-Date: 2026-11-30  08:00:09\n\n";
const DURING: &str = "2026-11-30 08:00:03 install nginx:amd64 <none> 1\n";
const AFTER: &str = "2026-11-30 08:05:00 remove nginx:amd64 1 <none>\n";

#[test]
fn what_dpkg_did_for_apt_is_apts_and_what_it_did_later_is_its_own() {
    let some = |manager: &str, what: &str| Some((manager.to_owned(), what.to_owned()));
    assert_eq!(Logs::new(APT, DURING).of("nginx", None), some("apt", "install 1"));
    assert_eq!(Logs::new(APT, &format!("{DURING}{AFTER}")).of("nginx", None), some("dpkg", "remove 1"));
    assert_eq!(Logs::new("", AFTER).of("nginx", None), some("dpkg", "remove 1"));
    assert_eq!(Logs::new(APT, "").of("nginx", None), some("apt", "install 1"));
    let running = APT.replace("End-Date: 2026-11-30  08:00:09\n", "");
    assert_eq!(Logs::new(&running, &format!("{DURING}{AFTER}")).of("nginx", None), some("apt", "install 1"));
    assert_eq!(Logs::new("", "").of("nginx", None), None);
}

#[test]
fn an_older_transaction_than_the_last_look_is_not_blamed() {
    let logs = Logs::new(APT, DURING);
    let at = of_package(&logs.root, "nginx", None).unwrap().at;
    assert!(logs.of("nginx", Some(at)).is_some());
    // The logs count whole seconds.
    assert!(logs.of("nginx", Some(at + jiff::SignedDuration::from_millis(900))).is_some());
    assert_eq!(logs.of("nginx", Some(at + jiff::SignedDuration::from_secs(1))), None);
}

#[test]
fn only_a_transaction_that_runs_or_has_just_ended_is_under_way() {
    let logs = Logs::new(APT, "");
    let ended = of_package(&logs.root, "nginx", None).unwrap().at + jiff::SignedDuration::from_secs(9);
    assert!(under_way(&logs.root, ended + jiff::SignedDuration::from_secs(59)).is_some());
    assert_eq!(under_way(&logs.root, ended + jiff::SignedDuration::from_secs(60)), None);
    let running = Logs::new(&APT.replace("End-Date: 2026-11-30  08:00:09\n", ""), "");
    assert!(under_way(&running.root, ended + jiff::SignedDuration::from_hours(1)).is_some());
}

#[test]
fn only_the_end_of_a_long_log_is_read() {
    let filler = "2026-11-30 08:00:03 status installed other:amd64 1\n".repeat(20_000);
    let long = Logs::new("", &format!("{AFTER}{filler}"));
    assert_eq!(long.of("nginx", None), None);
    let long = Logs::new("", &format!("{filler}{AFTER}"));
    assert!(long.of("nginx", None).is_some());
}

#[test]
fn package_managers_are_known_by_name() {
    assert!(is_package_manager("/usr/bin/dpkg") && is_package_manager("unattended-upgr"));
    assert!(!is_package_manager("/usr/bin/vim") && !is_package_manager(""));
}
