//! The same configurations, asked of sshd itself (`sshd -T -C …`): what is known here is what it says.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::host::exec;

/// From where somebody comes; the conditions below hold for one of them at most.
const ADDRESSES: [&str; 3] = ["10.0.0.1", "192.0.2.1", "203.0.113.1"];

/// Patterns, and whether each is about `root`, as a name and as the group of this name.
const PATTERNS: [(&str, bool); 8] = [
    ("root", true),
    ("r*", true),
    ("r?ot", true),
    ("*o*t", true),
    ("git", false),
    ("!root", false),
    ("!git", false),
    ("[r]oot", false),
];

fn a_line() -> impl Strategy<Value = String> {
    let value = prop_oneof![Just("yes"), Just("no")];
    let switch = prop_oneof![2 => Just("PubkeyAuthentication"), 1 => Just("PermitRootLogin")];
    let list = prop_oneof![Just("AllowUsers"), Just("DenyUsers"), Just("AllowGroups"), Just("DenyGroups")];
    let pattern = || prop::sample::select(&PATTERNS[..]).prop_map(|(pattern, _)| pattern);
    let patterns = prop::collection::vec(pattern(), 1..3);
    let known = (prop_oneof![Just("User"), Just("Group")], prop::collection::vec(pattern(), 1..3))
        .prop_map(|(kind, patterns)| format!("Match {kind} {}", patterns.join(",")));
    let address = prop_oneof![
        Just("Match Address 10.0.0.0/8".to_owned()),
        Just("Match Address 192.0.2.1".to_owned()),
        Just("Match User r* Address 10.0.0.0/8".to_owned()),
        Just("Match Address 10.0.0.0/8 Group git".to_owned()),
    ];
    prop_oneof![
        4 => (switch, value).prop_map(|(keyword, value)| format!("{keyword} {value}")),
        1 => (list, patterns).prop_map(|(keyword, patterns)| format!("{keyword} {}", patterns.join(" "))),
        3 => known,
        1 => Just("Match all".to_owned()),
        1 => address,
        2 => Just("Include $D/x".to_owned()),
        2 => Just("Include $D/y".to_owned()),
    ]
}

fn a_file(without: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::collection::vec(a_line(), 0..7).prop_map(move |lines| {
        let lines = lines.into_iter().filter(|line| !without.contains(&line.as_str()));
        lines.map(|line| line + "\n").collect()
    })
}

/// What this test needs and does not find, each with what to do.
fn missing(programs: &[(&str, &str)]) -> Vec<String> {
    let mut missing: Vec<String> = programs
        .iter()
        .filter(|(program, _)| exec::run_direct(&exec::Command::new(program).args(["-?"])).is_err())
        .map(|(program, package)| format!("there is no `{program}`: `apt-get install {package}`"))
        .collect();
    if crate::host::current_ids().0 != 0 {
        missing.push("only root may make `/run/sshd` and ask about `root`: run the tests as root".to_owned());
    }
    missing
}

#[test]
fn what_is_missing_for_the_real_sshd_is_named() {
    let expected = "there is no `no-such-sshd`: `apt-get install openssh-server`";
    assert_eq!(missing(&[("no-such-sshd", "openssh-server")]).first().map(String::as_str), Some(expected));
}

/// Configurations in a directory, and a host key, without which sshd says nothing.
struct Server {
    directory: tempfile::TempDir,
    key: PathBuf,
}

impl Server {
    fn new() -> Self {
        let lacks = missing(&[("sshd", "openssh-server"), ("ssh-keygen", "openssh-client")]);
        assert!(lacks.is_empty(), "this test asks the real sshd, and cannot: {}", lacks.join("; "));
        // Where nothing has started sshd yet.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        let made = exec::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).args([&key]);
        assert!(exec::run_direct(&made).unwrap().success());
        Self { directory, key }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Whether `root` may come in by a key from an address.
    fn lets_in(&self, address: &str) -> bool {
        let who = format!("user=root,host=h,addr={address}");
        let asked = exec::Command::new("sshd").args(["-T", "-C", &who, "-f"]).args([&self.path().join("main")]);
        let output = exec::run_direct(&asked.args(["-h".as_ref(), self.key.as_os_str()])).unwrap();
        assert!(output.success(), "{}", exec::last_words(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let values = |keyword: &str| -> Vec<&str> {
            text.lines()
                .filter_map(|line| line.split_once(' '))
                .filter(|(k, _)| *k == keyword)
                .map(|(_, v)| v)
                .collect()
        };
        let is_about_root = |pattern: &&str| PATTERNS.iter().any(|(known, is_about)| known == pattern && *is_about);
        let is_admitted = |deny: &str, allow: &str| {
            let allowed = values(allow);
            !values(deny).iter().any(is_about_root) && (allowed.is_empty() || allowed.iter().any(is_about_root))
        };
        values("pubkeyauthentication") == ["yes"]
            && values("permitrootlogin") != ["no"]
            && is_admitted("denyusers", "allowusers")
            && is_admitted("denygroups", "allowgroups")
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test lays out configurations")]
fn what_is_known_of_sshd_is_what_it_says() {
    let server = Server::new();
    let at = |name: &str| server.path().join(name).to_str().unwrap().to_owned();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) };
    let files = (a_file(&[]), a_file(&["Include $D/x"]), a_file(&["Include $D/x", "Include $D/y"]));
    proptest!(config, |((main, x, y) in files)| {
        let [main, x, y] = [main, x, y].map(|text| text.replace("$D", server.path().to_str().unwrap()));
        for (name, text) in [("main", &main), ("x", &x), ("y", &y)] {
            std::fs::write(server.path().join(name), text).unwrap();
        }
        let (at_x, at_y) = (at("x"), at("y"));
        let texts = [
            ("/etc/ssh/sshd_config", main.as_str()), (&at_x, &x), (&at_y, &y), ("/root/.ssh/authorized_keys", KEY),
        ];
        let (known, ways) = best_for(&["root"], &texts);
        let said = ADDRESSES.map(|address| server.lets_in(address));
        match known {
            Open => prop_assert_eq!(said, [true; 3], "{:?}", ways),
            Closed => prop_assert_eq!(said, [false; 3], "{:?}", ways),
            Unknown => prop_assert!([&main, &x, &y].iter().any(|text| text.contains("Address")), "{ways:?}"),
        }
    });
}
