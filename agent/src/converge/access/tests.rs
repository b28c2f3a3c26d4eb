//! Who can get in, from texts.

mod real_sshd;

use std::collections::BTreeMap;

use super::*;
use crate::host::accounts::shadow;

/// Files in memory; one whose text is `!` cannot be read.
struct Texts(BTreeMap<String, String>);

impl Files for Texts {
    fn text(&self, path: &str) -> Result<Option<String>, String> {
        match self.0.get(path) {
            Some(text) if text == "!" => Err(format!("cannot read `{path}`: permission denied")),
            text => Ok(text.cloned()),
        }
    }

    fn names(&self, directory: &str) -> Result<Vec<String>, String> {
        let parts = self.0.keys().filter_map(|path| path.rsplit_once('/'));
        Ok(parts.filter(|(parent, _)| *parent == directory).map(|(_, name)| name.to_owned()).collect())
    }
}

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBk6 ops@example.org\n";

/// A cloud image's host: root is locked, `ops` has a key and sudo without a password.
const HOST: [(&str, &str); 8] = [
    (
        "/etc/passwd",
        "root:x:0:0::/root:/bin/bash\nops:x:1000:1000::/home/ops:/bin/bash\nweb:x:33:33::/var/www:/usr/sbin/nologin\n",
    ),
    ("/etc/shadow", "root:*:19000:0:99999:7:::\nops:!:19000:0:99999:7:::\nweb:*:19000::::::\n"),
    ("/etc/group", "root:x:0:\nsudo:x:27:ops\nops:x:1000:\n"),
    (
        "/etc/sudoers",
        "Defaults env_reset\nroot ALL=(ALL:ALL) ALL\n%sudo ALL=(ALL:ALL) NOPASSWD: ALL\n@includedir /etc/sudoers.d\n",
    ),
    ("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n#PermitRootLogin prohibit-password\nUsePAM yes\n"),
    ("/home/ops/.ssh/authorized_keys", KEY),
    ("/etc/pam.d/sudo", "@include common-auth\n@include common-account\n"),
    ("/etc/pam.d/common-auth", "auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\n"),
];

/// What the best of all accounts can do on that host, with some files otherwise.
#[track_caller]
fn check(files: &[(&str, &str)], expected: Access) {
    check_for(&[], files, expected);
}

#[track_caller]
fn check_for(break_glass: &[&str], files: &[(&str, &str)], expected: Access) {
    let (found, ways) = best_for(break_glass, files);
    assert_eq!(found, expected, "{ways:?}");
}

fn best_for(break_glass: &[&str], files: &[(&str, &str)]) -> (Access, Vec<Way>) {
    let texts = Texts(HOST.iter().chain(files).map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect());
    let database = |path: &str| texts.text(path).ok().flatten().unwrap_or_default();
    let accounts = shadow::parse(&database("/etc/passwd"), &database("/etc/shadow"), &database("/etc/group"));
    let break_glass: Vec<String> = break_glass.iter().map(ToString::to_string).collect();
    let scene = Scene { accounts: &accounts, files: &texts, today: 20_000, break_glass: &break_glass };
    (best(scene), ways(scene).collect())
}

fn sshd(text: &str) -> [(&str, &str); 1] {
    [("/etc/ssh/sshd_config", text)]
}

fn sudoers(text: &str) -> [(&str, &str); 1] {
    [("/etc/sudoers", text)]
}

fn keys(text: &str) -> [(&str, &str); 1] {
    [("/home/ops/.ssh/authorized_keys", text)]
}

use Access::{Closed, Open, Unknown};

#[test]
fn an_account_with_a_key_and_sudo_is_a_way_in() {
    check(&[], Open);
    check(&keys(""), Closed);
    check(&keys("# none\n\n"), Closed);
    check(&keys("!"), Unknown);
    check(&keys(&format!("command=\"/bin/backup all\" {KEY}")), Closed);
    check(&keys(&format!("from=\"10.0.0.0/8\",no-pty {KEY}")), Open);
    check(&keys(&format!("cert-authority {KEY}")), Unknown);
    check(&keys(&format!("cert-authority {KEY}{KEY}")), Open);
    check(&keys("ssh-ed25519\n"), Closed);
}

#[test]
fn so_is_a_password_that_is_not_locked() {
    let shadow = |row: &'static str| [("/etc/shadow", row)];
    check(&shadow("root:$y$x:19000::::::\nops:!:19000::::::\n"), Open);
    check_for(&["root"], &shadow("root:$y$x:19000::::::\n"), Open);
    check_for(&["root"], &shadow("root:!$y$x:19000::::::\n"), Closed);
    check_for(&["root"], &shadow("root::19000::::::\n"), Unknown);
    check_for(&["root"], &[], Closed);
    check_for(&["ops"], &[], Open);
    check_for(&["nobody"], &[], Closed);
}

#[test]
fn an_account_without_a_shell_or_that_has_expired_is_none() {
    check(&[("/etc/passwd", "ops:x:1000:1000::/home/ops:/usr/sbin/nologin\n")], Closed);
    check(&[("/etc/passwd", "ops:x:1000:1000::/home/ops:\n")], Open);
    let expires = |day: &'static str| [("/etc/shadow", day)];
    check(&expires("ops:!:19000:0:99999:7::19999:\n"), Closed);
    check(&expires("ops:!:19000:0:99999:7::20000:\n"), Closed);
    check(&expires("ops:!:19000:0:99999:7::20001:\n"), Open);
    check(&expires("ops:!:19000:0:99999:7::soon:\n"), Unknown);
}

#[test]
fn sshd_says_whom_it_lets_in() {
    check(&sshd(""), Open);
    check(&sshd("PubkeyAuthentication no\n"), Closed);
    check(&sshd("PubkeyAuthentication=no\n"), Closed);
    check(&sshd("PubkeyAuthentication yes\nPubkeyAuthentication no\n"), Open);
    check(&sshd("AllowUsers deploy\n"), Closed);
    check(&sshd("AllowUsers deploy\nAllowUsers op?\n"), Open);
    check(&sshd("AllowUsers ops@10.0.0.*\n"), Open);
    check(&sshd("AllowUsers *\nDenyUsers \"ops\"\n"), Closed);
    check(&sshd("DenyUsers ops@evil.example\n"), Unknown);
    check(&sshd("DenyUsers ops@*\n"), Unknown);
    check(&sshd("DenyUsers ops@* o*\n"), Closed);
    check(&sshd("DenyUsers git@*\n"), Open);
    // Nothing is left out of these lists: it is a name that nobody has.
    check(&sshd("DenyUsers * !ops\n"), Closed);
    check(&sshd("AllowUsers ops !ops\n"), Open);
    check(&sshd("DenyUsers [o]ps\nAllowUsers \\ops *s\n"), Open);
    check(&sshd("allowgroups sudo\n"), Open);
    check(&sshd("AllowGroups wheel\n"), Closed);
    check(&sshd("AllowGroups sudo@lan\n"), Closed);
    check(&sshd("DenyGroups s*\n"), Closed);
    check(&sshd("DenyGroups * !sudo\n"), Closed);
    check(&sshd("RefuseConnection yes\n"), Closed);
    check(&sshd("RefuseConnection no\nRefuseConnection yes\n"), Open);
    check(&sshd("Match User ops\n  RefuseConnection yes\n"), Closed);
    check(&sshd("ChrootDirectory /srv/jail\n"), Unknown);
    check(&sshd("ChrootDirectory none\n"), Open);
    check(&sshd("ChrootDirectory /srv/jail\nForceCommand internal-sftp\n"), Closed);
    check(&sshd("Match Group sudo\n  ChrootDirectory %h\n"), Unknown);
    check(&sshd("AuthenticationMethods publickey\n"), Open);
    check(&sshd("AuthenticationMethods publickey,keyboard-interactive\n"), Unknown);
    check(&sshd("AuthorizedKeysFile /etc/ssh/keys/%u\n"), Closed);
    check(&[sshd("AuthorizedKeysFile /etc/ssh/keys/%u\n")[0], ("/etc/ssh/keys/ops", KEY)], Open);
    check(&sshd("AuthorizedKeysFile /etc/ssh/keys/%U\n"), Unknown);
    check(&sshd("AuthorizedKeysFile none\nAuthorizedKeysCommand /usr/bin/sss_ssh_authorizedkeys\n"), Unknown);
    check(&sshd("!"), Unknown);
}

#[test]
fn root_comes_in_unless_it_must_not() {
    let root = |config: &'static str| [sshd(config)[0], ("/root/.ssh/authorized_keys", KEY)];
    check_for(&["root"], &root(""), Open);
    check_for(&["root"], &root("PermitRootLogin without-password\n"), Open);
    check_for(&["root"], &root("PermitRootLogin no\n"), Closed);
    check_for(&["root"], &root("PermitRootLogin forced-commands-only\n"), Closed);
}

#[test]
fn files_that_sshd_includes_count_where_they_are_included() {
    let include = "Include sshd_config.d/*.conf\nPubkeyAuthentication yes\n";
    let dropin = |name, text| [sshd(include)[0], (name, text)];
    check(&dropin("/etc/ssh/sshd_config.d/10.conf", "PubkeyAuthentication no\n"), Closed);
    check(&dropin("/etc/ssh/sshd_config.d/10.txt", "PubkeyAuthentication no\n"), Open);
    check(&dropin("/etc/ssh/sshd_config.d/10.conf", "!"), Unknown);
    check(&sshd("Include /etc/*/sshd.conf\n"), Unknown);
    check(&sshd("Include /etc/ssh/sshd_config\n"), Unknown);
    check(&dropin("/etc/ssh/sshd_config.d/.10.conf", "PubkeyAuthentication no\n"), Open);
}

/// Each of these was asked of sshd itself (`sshd -T -C user=ops,…`).
#[test]
fn a_block_of_an_included_file_counts_where_the_block_that_includes_it_does() {
    let including = |config: &'static str, x: &'static str| {
        [sshd(config)[0], ("/etc/ssh/x", x), ("/etc/ssh/y", "PubkeyAuthentication yes\n")]
    };
    let in_block = |user: &str, x: &'static str| {
        let config = format!("PubkeyAuthentication no\nMatch User {user}\nInclude x\n");
        let files = [
            ("/etc/ssh/sshd_config", config.as_str()),
            ("/etc/ssh/x", x),
            ("/etc/ssh/y", "PubkeyAuthentication yes\n"),
        ];
        best_for(&[], &files).0
    };
    assert_eq!(in_block("sftp", "Match User ops\nPubkeyAuthentication yes\n"), Closed);
    assert_eq!(in_block("sftp", "Match all\nInclude y\n"), Closed);
    assert_eq!(in_block("ops", "Match User ops\nPubkeyAuthentication yes\n"), Open);
    assert_eq!(in_block("ops", "Match User git\nX11Forwarding no\nMatch Group sudo\nInclude y\n"), Open);
    assert_eq!(in_block("ops", "Match Address 10.0.0.0/8\nInclude y\n"), Unknown);
    // The file's block ends with the file, and comes before what follows.
    let no = "Match all\nPubkeyAuthentication no\n";
    check(&including("Match User ops\nInclude x\nPubkeyAuthentication yes\n", no), Closed);
    check(&including("Match User ops\nX11Forwarding no\nInclude x\nPubkeyAuthentication yes\n", no), Closed);
    check(&including("Match User ops\nPubkeyAuthentication yes\nInclude x\n", no), Open);
    check(
        &including(
            "PubkeyAuthentication no\nMatch User ops\nInclude x\nInclude y\n",
            "Match User git\nForceCommand x\n",
        ),
        Open,
    );
    check(&including("Include x\nPubkeyAuthentication no\n", "Match User git\nPubkeyAuthentication yes\n"), Closed);
    // What goes on after it is under the same condition, which is not counted twice.
    let address = "PubkeyAuthentication no\nMatch Address 10.0.0.0/8\nAuthorizedKeysFile none\nInclude x\nPubkeyAuthentication yes\n";
    check(&including(address, "Match User ops\nX11Forwarding no\n"), Closed);
}

#[test]
fn a_match_block_counts_for_whom_it_is_about() {
    check(&sshd("Match User git\n  ForceCommand git-shell\n"), Open);
    check(&sshd("Match User=git\n  ForceCommand git-shell\n"), Open);
    check(&sshd("Match User o*,!root\n  ForceCommand backup\n"), Unknown);
    check(&sshd("Match Group sftp,s*\n  ForceCommand internal-sftp\n"), Closed);
    check(&sshd("ForceCommand internal-sftp\nMatch User ops\n  ForceCommand none\n"), Open);
    check(&sshd("Match all\n  PubkeyAuthentication no\n"), Closed);
    check(&sshd("PubkeyAuthentication no\nMatch User ops\n  PubkeyAuthentication yes\n"), Open);
    check(&sshd("Match User ops\n  PubkeyAuthentication yes\nMatch all\n  PubkeyAuthentication no\n"), Open);
    check(&sshd("AllowUsers ops\nMatch Group sudo\n  AllowUsers deploy\n"), Closed);
    check(&sshd("Match invalid-user\n  PubkeyAuthentication no\n"), Open);
    check(&sshd("Match User = ops\n  PubkeyAuthentication no\n"), Closed);
    check(&sshd("Match User ops@lan,git\n  PubkeyAuthentication no\n"), Open);
    check(&sshd("Match User *,!o?s\n  PubkeyAuthentication no\n"), Open);
    check(&sshd("Match User !git\n  PubkeyAuthentication no\n"), Open);
    check(&sshd("Match Group sudo,!ops\n  PubkeyAuthentication no\n"), Open);
}

#[test]
fn a_match_block_whose_condition_is_not_known_counts_where_it_would_matter() {
    check(&sshd("Match Address 10.0.0.0/8\n  PubkeyAuthentication no\n"), Unknown);
    check(&sshd("Match Address 10.0.0.0/8\n  X11Forwarding no\n"), Open);
    check(&sshd("Match User git Address 10.0.0.0/8\n  PubkeyAuthentication no\n"), Open);
    check(&sshd("Match Address 10.0.0.0/8\n  PubkeyAuthentication yes\n"), Open);
    check(&sshd("AllowUsers git\nMatch LocalPort 22\n  PubkeyAuthentication yes\n"), Closed);
    // Only about root, who has no key here.
    let root = "PermitRootLogin no\nMatch Address 10.0.0.0/8,192.168.0.0/16\n  PermitRootLogin yes\n";
    check(&sshd(root), Open);
    check_for(&["root"], &sshd(root), Closed);
    let keyed = |config: &'static str| [sshd(config)[0], ("/root/.ssh/authorized_keys", KEY)];
    check_for(&["root"], &keyed(root), Unknown);
    check_for(&["root"], &keyed("Match Address 10.0.0.0/8\n  PermitRootLogin prohibit-password\n"), Open);
    let both =
        "PermitRootLogin no\nMatch Address 10.0.0.0/8\n  X11Forwarding yes\nMatch User root\n  PermitRootLogin yes\n";
    check_for(&["root"], &keyed(both), Open);
    // Any of them may hold, alone or together.
    let several = "Match Address 10.0.0.0/8\n  AllowUsers git\nMatch Host *.lan\n  AllowUsers ops\n";
    check(&sshd(several), Unknown);
    let hosts = |n: usize| (0..n).map(|n| format!("Match Host {n}\n  PubkeyAuthentication yes\n")).collect::<String>();
    check(&sshd(&hosts(5)), Open);
    check(&sshd(&hosts(6)), Unknown);
    // The same condition holds everywhere or nowhere.
    check(&sshd(&hosts(3).repeat(3)), Open);
    let twice = "PubkeyAuthentication no\nMatch Host a\n  AllowUsers git\nMatch Host *\n  X11Forwarding no\n\
        Match Host a\n  PubkeyAuthentication yes\n";
    check(&sshd(twice), Closed);
}

#[test]
fn sudoers_say_who_becomes_root() {
    for (text, expected) in [
        ("", Closed),
        ("ops ALL=(ALL) NOPASSWD:ALL\n", Open),
        ("ops ALL=NOPASSWD: ALL\n", Open),
        ("ops\tALL = (root) NOPASSWD: ALL\n", Open),
        ("ops ALL=(www-data) NOPASSWD: ALL\n", Closed),
        ("ops ALL=(:adm) NOPASSWD: ALL\n", Closed),
        ("other, ops ALL=(ALL) NOPASSWD: ALL # all of it\n", Open),
        ("#1000 ALL=(ALL) NOPASSWD: ALL\n", Open),
        ("%#27 ALL=(ALL) NOPASSWD: ALL\n", Open),
        ("%sudo ALL=(ALL:ALL) ALL\n", Closed),
        ("Defaults !authenticate\n%sudo ALL=(ALL:ALL) ALL\n", Open),
        ("Defaults targetpw\n%sudo ALL=(ALL:ALL) ALL\n", Unknown),
        ("Defaults:ops !authenticate\n%sudo ALL=(ALL:ALL) ALL\n", Unknown),
        ("ops ALL=(ALL) NOPASSWD: /usr/bin/systemctl restart x, /usr/bin/id\n", Closed),
        ("ops ALL=(ALL) NOPASSWD: /usr/bin/id, PASSWD: ALL\n", Closed),
        ("ops ALL=(ALL) NOPASSWD: /usr/bin/su\n", Open),
        ("ops ALL=(ALL) NOPASSWD: /usr/bin/su postgres\n", Closed),
        ("ops ALL=(ALL) NOPASSWD: ALL, !/usr/bin/su\n", Unknown),
        ("ops ALL=(ALL) NOPASSWD: ALL\nops ALL=(ALL) !ALL\n", Closed),
        ("ops ALL=(ALL) NOPASSWD: ALL\nops ALL=(ALL) ALL\n", Closed),
        ("ops db1=(ALL) NOPASSWD: ALL\n", Unknown),
        ("ops ALL=(ALL) NOTAFTER=20260101000000Z NOPASSWD: ALL\n", Unknown),
        ("User_Alias ADMINS = jane, \\\n  ops : BOTS = robot\nADMINS ALL=(ALL) NOPASSWD: ALL\n", Open),
        ("User_Alias BOTS = robot\nALL, !ops ALL=(ALL) NOPASSWD: ALL\n", Closed),
        ("what is this\n", Unknown),
        ("@include /etc/missing\n", Closed),
        ("@include sudoers.local\n", Open),
        ("#includedir /etc/sudoers.d\n", Open),
        ("!", Unknown),
    ] {
        let rule = "ops ALL=(ALL) NOPASSWD: ALL\n";
        let dropins =
            [("/etc/sudoers.d/90-ops", rule), ("/etc/sudoers.d/README.txt", "no rule"), ("/etc/sudoers.local", rule)];
        let files: Vec<_> = sudoers(text).into_iter().chain(dropins).collect();
        eprintln!("{text}");
        check(&files, expected);
    }
}

#[test]
fn whoever_is_asked_for_a_password_must_have_one() {
    let rule = sudoers("%sudo ALL=(ALL:ALL) ALL\n")[0];
    check(&[rule], Closed);
    check(&[rule, ("/etc/shadow", "ops:$y$x:19000::::::\n")], Open);
    check(
        &[rule, ("/etc/pam.d/common-auth", "auth sufficient pam_ssh_agent_auth.so\nauth required pam_deny.so\n")],
        Unknown,
    );
}

#[test]
fn pam_that_denies_everybody_closes() {
    let deny = "account required pam_deny.so\n";
    check(&[("/etc/pam.d/sshd", deny)], Closed);
    check(&[sshd("UsePAM no\n")[0], ("/etc/pam.d/sshd", deny)], Open);
    check(&[("/etc/pam.d/sshd", "account required pam_unix.so\n account required pam_deny.so\n")], Open);
    check(&[("/etc/pam.d/sudo", "-account [default=die] pam_deny.so\n")], Closed);
    check(&[("/etc/pam.d/sudo", "!")], Unknown);
    // Without a file of its own a service has that of all others.
    check(&[("/etc/pam.d/other", deny)], Closed);
    check(
        &[
            ("/etc/pam.d/other", deny),
            ("/etc/pam.d/sshd", "@include common-account\n"),
            ("/etc/pam.d/common-account", "account required pam_unix.so\n"),
        ],
        Open,
    );
}

proptest::proptest! {
    #[test]
    fn nothing_that_is_written_there_is_too_odd(text in "[ -~\n]{0,200}", odd in "(Match|Include|@include|User_Alias|Defaults|ops) [ -~]{0,60}") {
        for path in ["/etc/sudoers", "/etc/ssh/sshd_config", "/home/ops/.ssh/authorized_keys", "/etc/pam.d/sshd", "/etc/shadow"] {
            let text = format!("{odd}\n{text}");
            let texts = Texts(HOST.iter().copied().chain([(path, text.as_str())]).map(|(p, t)| (p.to_owned(), t.to_owned())).collect());
            let accounts = shadow::parse(HOST[0].1, HOST[1].1, HOST[2].1);
            let scene = Scene { accounts: &accounts, files: &texts, today: 20_000, break_glass: &[] };
            // The shortcut and the long way agree.
            proptest::prop_assert_eq!(ways(scene).map(|way| way.access).max(), Some(best(scene)));
        }
    }
}
