//! Secrets: encrypted with the real `age`, used wherever a policy can use them, and seen nowhere.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rekindle::agent::revisions::{self, Contents};
use rekindle::config::Paths;
use rekindle::policy::compile::{Compiled, Inputs, compile};
use rekindle::policy::compiled;
use rekindle::policy::diagnostic::Diagnostics;
use rekindle::policy::secret::{Keys, Secrets};
use rekindle::policy::trust::{Trust, Verified, store, verify};
use rekindle::resource::{Desired, Ensure, digest};

use crate::support::{facts, host, write_files};

/// A policy in a directory, and a key beside it.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    recipient: String,
}

#[expect(clippy::disallowed_methods, reason = "a test's own tool, on its own directory")]
fn run(program: &str, arguments: &[&str], input: &[u8]) -> Output {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} is needed by this test: {e}"));
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("age.key").display().to_string();
        assert!(run("age-keygen", &["-o", &key], b"").status.success());
        let recipient = String::from_utf8(run("age-keygen", &["-y", &key], b"").stdout).unwrap().trim().to_owned();
        Self { dir, recipient }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn encrypt(&self, name: &str, secret: &[u8], options: &[&str]) {
        let output = run("age", &[&["-r", &self.recipient], options].concat(), secret);
        assert!(output.status.success());
        write_files(self.dir.path(), &[(&format!("policy/secrets/{name}.age"), &output.stdout)]);
    }

    fn policy(&self, text: &str, others: &[(&str, &str)]) {
        write_files(self.dir.path(), &[("policy/policy.toml", format!("[policy]\nname = 'x'\n{text}").as_bytes())]);
        for (path, text) in others {
            write_files(self.dir.path(), &[(&format!("policy/{path}"), text.as_bytes())]);
        }
    }

    pub(crate) fn keys(&self) -> Keys {
        Keys::parse(&std::fs::read(self.at("age.key")).unwrap()).unwrap()
    }

    fn verified(&self) -> Verified {
        let candidate = rekindle::policy::candidate::from_directory(&self.at("policy")).unwrap();
        verify(candidate, &Trust::Operator, jiff::Timestamp::UNIX_EPOCH).unwrap()
    }

    fn compile(&self, secrets: &Secrets) -> Result<Compiled, Diagnostics> {
        compile(&self.verified(), &Inputs { facts: &facts(), roles: &[], host: Some(&host()), secrets })
    }
}

fn content(compiled: &Compiled, path: &str) -> (Vec<u8>, bool) {
    let resource = compiled.state.resources().iter().find(|r| &*r.id.name == path).unwrap();
    let Desired::File(file) = &resource.desired else { panic!("{resource:?}") };
    let Ensure::Present(spec) = &file.ensure else { panic!("{resource:?}") };
    (spec.content.bytes().unwrap().into_owned(), spec.content.is_secret())
}

const HASH: &str = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/";

#[test]
fn secrets_are_content_templates_and_passwords() {
    let place = Place::new();
    place.encrypt("token", b"hunter2", &[]);
    place.encrypt("db/armored", b"\x00binary\xff", &["--armor"]);
    place.encrypt("hash", format!("{HASH}\n").as_bytes(), &[]);
    place.policy(
        "[file.'/etc/a']\nsecret = 'token'\n[file.'/etc/b']\nsecret = 'db/armored'\n[file.'/etc/c']\ntemplate = 'c.j2'\n\
         [file.'/etc/d']\ntemplate = 'd.j2'\n[file.'/etc/e']\ncontent = 'hunter2'\n\
         [user.ops]\nhome = '/home/ops'\npassword = { secret = 'hash' }\n",
        &[("c.j2", "{% include 'part.j2' %}"), ("part.j2", "token={{ secret('token') }}\n"), ("d.j2", "plain\n")],
    );
    let secrets = Secrets::With(place.keys());
    let compiled = place.compile(&secrets).unwrap();
    assert_eq!(content(&compiled, "/etc/a"), (b"hunter2".to_vec(), true));
    assert_eq!(content(&compiled, "/etc/b"), (b"\x00binary\xff".to_vec(), true));
    assert_eq!(content(&compiled, "/etc/c"), (b"token=hunter2\n".to_vec(), true));
    assert_eq!(content(&compiled, "/etc/d"), (b"plain\n".to_vec(), false));
    assert_eq!(content(&compiled, "/etc/e"), (b"hunter2".to_vec(), false));
    let debug = format!("{compiled:?} {secrets:?}").replace("/etc/e", "");
    assert!(!debug.contains("hunter2") && !debug.contains(HASH) && !debug.contains("AGE-SECRET"), "{debug}");

    // Without the key of a host they only have to be there.
    assert!(place.compile(&Secrets::Unread).is_ok());
    place.encrypt("token", b"other", &["-r", &Place::new().recipient]);
    assert!(place.compile(&secrets).is_ok(), "several recipients");
}

#[test]
fn what_is_wrong_with_secrets() {
    let place = Place::new();
    let stranger = Place::new();
    place.encrypt("token", b"hunter2-and-more", &[]);
    place.encrypt("password", b"hunter2-in-clear", &[]);
    place.encrypt("binary", b"\xff", &[]);
    write_files(place.dir.path(), &[("policy/secrets/text.age", b"hunter2"), ("policy/secrets/plain", b"x")]);
    let output = run("age", &["-r", &stranger.recipient], b"x").stdout;
    write_files(place.dir.path(), &[("policy/secrets/theirs.age", &output)]);
    let mut damaged = std::fs::read(place.at("policy/secrets/token.age")).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    write_files(place.dir.path(), &[("policy/secrets/damaged.age", &damaged)]);
    place.policy(
        "[vars]\nname = 'token'\n[file.'/etc/a']\nsecret = 'tokn'\n[file.'/etc/b']\nsecret = '../policy'\n[file.'/etc/c']\nsecret = 'text'\n\
         [file.'/etc/d']\nsecret = 'theirs'\n[file.'/etc/e']\nsecret = 'damaged'\n[file.'/etc/f']\nsecret = 'token'\ncontent = ''\n\
         [file.'/etc/g']\ntemplate = 'g.j2'\n[file.'/etc/h']\ntemplate = 'h.j2'\n[file.'/etc/i']\ntemplate = 'i.j2'\n\
         [file.'/etc/j']\ntemplate = 'j.j2'\n[file.'/etc/k']\ncontent = ''\nwhen = \"secret('token') == 'x'\"\n\
         [file.'/etc/l']\nsecret = 'token'\nsymlink = 'follow'\n[file.'/etc/m']\nsecret = 'token'\nmode = '0644'\n\
         [user.ops]\npassword = { secret = 'password' }\n[user.dev]\npassword = { secret = 'token', locked = true }\n",
        &[
            ("g.j2", "{{ secret('tokn') }}"),
            ("h.j2", "{{ secret('binary') }}"),
            ("i.j2", "{% include secret('token') %}"),
            ("j.j2", "{{ secret(secret('token')) }}"),
        ],
    );
    let diagnostics = place.compile(&Secrets::With(place.keys())).unwrap_err();
    let text = diagnostics.render(false);
    assert!(!text.contains("hunter2"), "{text}");
    assert!(text.contains("the password of `user[dev]` is neither"), "{text}");
    insta::assert_snapshot!(text);
    let unread = place.compile(&Secrets::Unread).unwrap_err().to_string();
    assert!(unread.contains("`secrets/text.age` is not a file of age"), "{unread}");
    assert!(!unread.contains("theirs"), "whether it is for a host is not known without its key: {unread}");
    let missing =
        place.compile(&Secrets::Missing("there is no `/etc/rekindle/age.key`".into())).unwrap_err().to_string();
    assert!(missing.contains("`secrets/token.age` cannot be decrypted: this host has no key"), "{missing}");
    assert!(missing.contains("hint: there is no `/etc/rekindle/age.key`"), "{missing}");
}

/// Whatever the agent keeps of a policy lies on the disk in clear, so nothing is kept of one that holds a secret.
#[test]
fn threat_a_secret_in_what_a_policy_compiles_to() {
    let place = Place::new();
    let paths = Paths {
        root: place.at("root"),
        state: place.at("state"),
        runtime: place.at("run"),
        program: env!("CARGO_BIN_EXE_rekindle").into(),
    };
    place.encrypt("token", b"hunter2", &[]);
    place.encrypt("hash", HASH.as_bytes(), &[]);
    let secrets = Secrets::With(place.keys());
    let (facts, host) = (facts(), host());
    let inputs = Inputs { facts: &facts, roles: &[], host: Some(&host), secrets: &secrets };
    for (declared, is_secret) in [
        ("[file.'/etc/a']\nsecret = 'token'\n", true),
        ("[file.'/etc/a']\ntemplate = 'a.j2'\n", true),
        ("[user.ops]\nhome = '/home/ops'\npassword = { secret = 'hash' }\n", true),
        ("[file.'/etc/a']\ncontent = 'x'\n", false),
    ] {
        place.policy(&format!("{declared}[file.'/etc/b']\ncontent = 'x'\n"), &[("a.j2", "{{ secret('token') }}")]);
        let verified = place.verified();
        let home = store(&verified, &paths.policies()).unwrap();
        // What a form of before would be, had the policy held no secret for other facts.
        write_files(&home, &[("compiled", b"of before")]);
        let in_force = revisions::load(&paths, verified.revision(), &inputs, Contents::OnDisk).unwrap();
        assert_eq!(in_force.state.holds_secrets(), is_secret, "{declared}");
        assert_eq!(in_force.store.is_none(), is_secret, "{declared}");
        assert_eq!(home.join("compiled").exists(), !is_secret, "{declared}");
        let key = compiled::Key::new("program", verified.revision(), &inputs);
        let written = compiled::write(&home, &key, None, &in_force.state);
        assert_eq!(written.is_err(), is_secret, "{declared} {written:?}");
        assert_eq!(std::fs::read_dir(&home).unwrap().count(), if is_secret { 2 } else { 3 }, "{declared}");
        for secret in [&b"hunter2"[..], HASH.as_bytes()] {
            assert_eq!(holders(place.dir.path(), secret), Vec::<PathBuf>::new(), "{declared}");
        }
    }
}

#[test]
fn what_is_no_key() {
    for (text, expected) in [
        ("", "no age identity"),
        ("# public key: age1\n", "no age identity"),
        ("\nage1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n", "line 2 is not"),
        ("AGE-SECRET-KEY-1QQQ", "line 1 is not"),
    ] {
        let error = Keys::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Every file below a directory that holds these bytes.
fn holders(dir: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(holders(&entry.path(), bytes));
        } else if entry.file_type().unwrap().is_file() {
            let content = std::fs::read(entry.path()).unwrap();
            if content.windows(bytes.len()).any(|window| window == bytes) {
                found.push(entry.path());
            }
        }
    }
    found
}

/// A secret goes to the files that are declared with it, and to no other file and no output, whatever is asked.
#[test]
fn threat_a_secret_in_what_is_recorded_or_shown() {
    let place = Place::new();
    let (first, second) = ("first-secret-8f3a", "second-secret-77c1");
    let text = "[file.'/etc/token']\nsecret = 'token'\nmode = '0600'\n[file.'/etc/app.conf']\ntemplate = 'app.j2'\n";
    place.policy(text, &[("app.j2", "user=app\ntoken={{ secret('token') }}\n")]);
    for name in ["root/etc", "state", "run"] {
        std::fs::create_dir_all(place.at(name)).unwrap();
    }
    let config = format!(
        "age_identity = \"{0}/age.key\"\n[paths]\nroot = \"{0}/root\"\nstate = \"{0}/state\"\nruntime = \"{0}/run\"\n",
        place.dir.path().display()
    );
    write_files(place.dir.path(), &[("agent.toml", config.as_bytes())]);
    let (config, policy) = (place.at("agent.toml").display().to_string(), place.at("policy").display().to_string());
    let mut said = Vec::new();
    let mut rekindle = |arguments: &[&str]| {
        let output = run(env!("CARGO_BIN_EXE_rekindle"), &[&["--config", &config], arguments].concat(), b"");
        let text = [output.stdout, output.stderr].concat();
        said.extend_from_slice(&text);
        String::from_utf8(text).unwrap()
    };
    let read = |name: &str| std::fs::read_to_string(place.at("root").join(name)).unwrap();
    place.encrypt("token", first.as_bytes(), &[]);
    rekindle(&["plan", "--policy", &policy]);
    let applied = rekindle(&["apply", "--policy", &policy]);
    assert_eq!(read("etc/token"), first, "{applied}");
    assert_eq!(read("etc/app.conf"), format!("user=app\ntoken={first}\n"));
    // It changes, and what stood there before is a secret as well.
    place.encrypt("token", second.as_bytes(), &[]);
    let plan = rekindle(&["plan", "--policy", &policy]);
    assert!(plan.contains("secret, fingerprint "), "{plan}");
    rekindle(&["--json", "plan", "--policy", &policy]);
    rekindle(&["--json", "apply", "--policy", &policy]);
    assert_eq!(read("etc/token"), second);
    // Somebody changes it on the host, and the template no longer renders.
    write_files(&place.at("root"), &[("etc/app.conf", format!("token={second}\nadded\n").as_bytes())]);
    rekindle(&["apply", "--policy", &policy]);
    assert_eq!(read("etc/app.conf"), format!("user=app\ntoken={second}\n"));
    for step in ["1", "3"] {
        let refused = rekindle(&["undo", step]);
        assert!(refused.contains("holds a secret, and nothing of secrets is kept"), "{refused}");
    }
    let refused = rekindle(&["adopt", "3", "--policy", &policy]);
    assert!(refused.contains("what was in its place is not kept"), "{refused}");
    assert_eq!(read("etc/token"), second);
    // Declared otherwise, what stands there is a secret still: as long as it does.
    let others = "[file.'/etc/token']\nstate = 'absent'\n[file.'/etc/app.conf']\ncontent = \"user=app\\n\"\n";
    place.policy(others, &[]);
    let plan = rekindle(&["plan", "--policy", &policy]);
    assert!(plan.contains("a secret"), "{plan}");
    // Who cannot read what is remembered is shown nothing, rather than everything.
    let (database, aside) = (place.at("state/state.db"), place.at("state/aside"));
    std::fs::rename(&database, &aside).unwrap();
    std::fs::create_dir(&database).unwrap();
    let plan = rekindle(&["plan", "--policy", &policy]);
    assert!(plan.contains("content: perhaps a secret → not shown"), "{plan}");
    for unknown in ["where secrets stand", "what is owed already", "what the policy in force declares"] {
        assert!(plan.contains(unknown), "{plan}");
    }
    let json: serde_json::Value = serde_json::from_str(&rekindle(&["--json", "plan", "--policy", &policy])).unwrap();
    for unknown in ["concealed", "owed_unknown", "left_out_unknown"] {
        assert!(json[unknown].as_str().is_some_and(|why| why.contains("in the state database")), "{json}");
    }
    std::fs::remove_dir(&database).unwrap();
    std::fs::rename(&aside, &database).unwrap();
    rekindle(&["--json", "apply", "--policy", &policy]);
    let refused = rekindle(&["adopt", "7", "--policy", &policy]);
    assert!(refused.contains("belongs into no policy in clear"), "{refused}");
    assert!(!place.at("root/etc/token").exists());
    assert_eq!(read("etc/app.conf"), "user=app\n");
    write_files(&place.at("root"), &[("etc/app.conf", b"user=other\n")]);
    let plan = rekindle(&["plan", "--policy", &policy]);
    assert!(plan.contains("-user=other"), "what is no secret any more is shown: {plan}");
    rekindle(&["history"]);
    rekindle(&["--json", "history", "5"]);
    place.policy(text, &[("app.j2", "{% set a = secret('token') %}{{ a.x.y }}")]);
    rekindle(&["check", &policy]);
    rekindle(&["plan", "--policy", &policy]);
    for arguments in [
        &["history"][..],
        &["--json", "history"],
        &["history", "1"],
        &["--json", "history", "1"],
        &["history", "3"],
        &["status"],
    ] {
        rekindle(arguments);
    }
    let said = String::from_utf8(said).unwrap();
    for secret in [first, second] {
        assert!(!said.contains(secret), "{said}");
        // A digest lets a guess be tested.
        let rendered = format!("user=app\ntoken={secret}\n");
        for held in [secret.to_owned(), digest(secret.as_bytes()), digest(rendered.as_bytes())] {
            let found: Vec<_> = holders(place.dir.path(), held.as_bytes())
                .into_iter()
                .filter(|path| !path.starts_with(place.at("root")))
                .collect();
            assert!(found.is_empty(), "{held}: {found:?}");
        }
    }
}
