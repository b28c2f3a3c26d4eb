//! Real repositories, signed by the real programs.

use std::path::Path;
use std::process::Command;

use jiff::Timestamp;
use rekindle::policy::candidate::from_commit;
use rekindle::policy::trust::{AllowedSigners, Trust, TrustError, Verified, verify};

use crate::support::write_files;

/// A repository with a home of its own, so that nobody's git configuration has a say.
pub(crate) struct Repository {
    home: tempfile::TempDir,
}

impl Repository {
    pub(crate) fn new() -> Self {
        let this = Self { home: tempfile::tempdir().unwrap() };
        this.git(&["init", "-q", "-b", "main", "."]);
        this
    }

    pub(crate) fn path(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn run(&self, program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.try_to_run(program, arguments, input);
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    pub(crate) fn try_to_run(&self, program: &str, arguments: &[&str], input: &[u8]) -> std::process::Output {
        use std::io::Write;
        #[expect(clippy::disallowed_methods, reason = "a test's own tool, on its own directory")]
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("TZ", "UTC")
            // What ssh-keygen judges keys by is what we judge them by.
            .envs(["GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"].map(|name| (name, now().to_string())))
            .envs(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"].map(|name| (name, "ops")))
            .envs(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"].map(|name| (name, "ops@acme.example")))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{program} is needed by this test: {e}"));
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.run("git", arguments, b"")).unwrap().trim().to_owned()
    }

    /// Makes a key and returns its public line.
    pub(crate) fn key(&self, name: &str, kind: &[&str]) -> String {
        let path = self.path().join(name).display().to_string();
        self.run("ssh-keygen", &[&["-q", "-N", "", "-C", name, "-f", &path], kind].concat(), b"");
        let line = std::fs::read_to_string(format!("{path}.pub")).unwrap();
        line.split(' ').take(2).collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn commit(&self, files: &[(&str, &[u8])], arguments: &[&str]) -> String {
        write_files(self.path(), files);
        for (path, _) in files {
            self.git(&["add", "--", path]);
        }
        self.git(&[&["-c", "gpg.format=ssh"], arguments, &["--allow-empty", "-q", "-m", "x"]].concat());
        self.git(&["rev-parse", "HEAD"])
    }

    pub(crate) fn signed_commit(&self, key: &str, files: &[(&str, &[u8])]) -> String {
        let key = format!("user.signingkey={}", self.path().join(key).display());
        self.commit(files, &["-c", &key, "commit", "-S"])
    }

    pub(crate) fn plain_commit(&self, files: &[(&str, &[u8])]) -> String {
        self.commit(files, &["commit"])
    }

    /// Writes a commit object with this signature, whatever it is worth.
    pub(crate) fn commit_with_signature(&self, payload: &str, armored: &str) -> String {
        let (headers, message) = payload.split_once("\n\n").unwrap();
        let indented = armored.trim_end().replace('\n', "\n ");
        let object = format!("{headers}\ngpgsig {indented}\n\n{message}");
        let id = self.run("git", &["hash-object", "-t", "commit", "-w", "--stdin"], object.as_bytes());
        String::from_utf8(id).unwrap().trim().to_owned()
    }

    pub(crate) fn payload(&self, commit: &str) -> String {
        String::from_utf8(self.run("git", &["cat-file", "commit", commit], b"")).unwrap()
    }

    pub(crate) fn verify(&self, commit: &str, signers: &str) -> Result<Verified, TrustError> {
        let candidate = from_commit(&self.path().join(".git"), commit).expect("the commit can be read");
        verify(candidate, &Trust::Signers(AllowedSigners::parse(signers)?), now())
    }
}

pub(crate) fn now() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

pub(crate) const POLICY: &[(&str, &[u8])] =
    &[("policy.toml", b"[policy]\nname = 'x'\n"), ("files/deep/er", b"\x00\xff")];

pub(crate) fn why(result: Result<Verified, TrustError>) -> &'static str {
    match result {
        Err(TrustError::BadSignature { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}
