//! OpenPGP: keys made by `gpg`, commits signed by `git commit -S`, checked by `gpgv`.

use rekindle::host::gpgv;
use rekindle::policy::candidate::from_commit;
use rekindle::policy::trust::{Keyring, Trust, TrustError, Verified, verify};

use crate::repository::{POLICY, Repository, now, why};

/// A repository whose home has a gpg of its own.
struct Signer {
    repository: Repository,
}

impl Signer {
    fn new() -> Self {
        let repository = Repository::new();
        repository.run("mkdir", &["-m", "700", ".gnupg"], b"");
        Self { repository }
    }

    fn gpg(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let fixed = ["--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""];
        self.repository.run("gpg", &[&fixed[..], arguments].concat(), input)
    }

    /// Makes a key that signs, and returns its fingerprint.
    fn key(&self, name: &str, kind: &str, expires: &str, options: &[&str]) -> String {
        self.gpg(&[options, &["--quick-generate-key", name, kind, "sign", expires]].concat(), b"");
        let listed = self.gpg(&["--with-colons", "--list-keys", name], b"");
        let listed = String::from_utf8(listed).unwrap();
        listed.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).unwrap().trim_end_matches(':').to_owned()
    }

    fn keyring(&self, options: &[&str]) -> Vec<u8> {
        self.gpg(&[options, &["--export"]].concat(), b"")
    }

    fn commit(&self, key: &str) -> String {
        let key = format!("user.signingkey={key}!");
        self.repository.commit(POLICY, &["-c", "gpg.format=openpgp", "-c", &key, "commit", "-S"])
    }

    fn verify(&self, commit: &str, keyring: &[u8]) -> Result<Verified, TrustError> {
        let candidate = from_commit(&self.repository.path().join(".git"), commit).unwrap();
        verify(candidate, &Trust::OpenPgp { keyring: Keyring::parse(keyring)?, gpgv: gpgv::ask }, now())
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.repository.try_to_run("gpgconf", &["--kill", "all"], b"");
    }
}

#[test]
fn commits_signed_by_git_with_keys_of_gpg() {
    for kind in ["ed25519", "rsa2048", "nistp256"] {
        let signer = Signer::new();
        let fingerprint = signer.key("Ops <ops@acme.example>", kind, "never", &[]);
        let commit = signer.commit(&fingerprint);
        for options in [&[][..], &["--armor"]] {
            let keyring = signer.keyring(options);
            assert!(Keyring::is_one(&keyring));
            let verified = signer.verify(&commit, &keyring).expect(kind);
            assert_eq!(verified.signer(), Some("Ops <ops@acme.example>"));
        }
        // Two armored blocks in one file, and prose around them.
        let armored = String::from_utf8(signer.keyring(&["--armor"])).unwrap();
        assert!(signer.verify(&commit, format!("Ours:\n{armored}\nagain:\n{armored}").as_bytes()).is_ok());

        // The same signature of another commit.
        let text = signer.repository.payload(&commit);
        let armored = text.split("gpgsig ").nth(1).unwrap().split("\n\n").next().unwrap().replace("\n ", "\n");
        let other = signer.repository.payload(&signer.repository.plain_commit(&[("x", b"y")]));
        let moved = signer.repository.commit_with_signature(&other, &armored);
        assert_eq!(why(signer.verify(&moved, &signer.keyring(&[]))), "it does not match the commit");

        let stranger = Signer::new();
        stranger.key("Stranger <s@example>", "ed25519", "never", &[]);
        match signer.verify(&commit, &stranger.keyring(&[])) {
            Err(TrustError::UnknownKey { fingerprint: named, .. }) => assert_eq!(named, fingerprint),
            other => panic!("{other:?}"),
        }
    }
}

/// gpgv succeeds for both of these.
#[test]
fn threat_keys_that_expired_or_were_revoked() {
    let signer = Signer::new();
    let fingerprint = signer.key("Ops <ops@acme.example>", "ed25519", "never", &[]);
    let commit = signer.commit(&fingerprint);
    assert!(signer.verify(&commit, &signer.keyring(&[])).is_ok());
    // The key expires after the signature, and long ago.
    let yesterday = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let shown = |time: jiff::Timestamp| time.strftime("%Y%m%dT%H%M%S").to_string();
    // Making a key takes a while, and none signs before it was made.
    let (yesterday, later) = (shown(yesterday), shown(yesterday + jiff::SignedDuration::from_secs(30)));
    let early = Signer::new();
    let expired = early.key("Ops <ops@acme.example>", "ed25519", "seconds=60", &["--faked-system-time", &yesterday]);
    let script = format!("#!/bin/sh\nexec gpg --faked-system-time {later} \"$@\"\n");
    crate::support::write_files(early.repository.path(), &[("gpg-of-yesterday", script.as_bytes())]);
    early.repository.run("chmod", &["755", "gpg-of-yesterday"], b"");
    let program = format!("gpg.program={}", early.repository.path().join("gpg-of-yesterday").display());
    let key = format!("user.signingkey={expired}!");
    let old =
        early.repository.commit(POLICY, &["-c", "gpg.format=openpgp", "-c", &program, "-c", &key, "commit", "-S"]);
    match early.verify(&old, &early.keyring(&[])) {
        Err(TrustError::NotAllowed { why, .. }) => assert_eq!(why, "which has expired"),
        other => panic!("{other:?}"),
    }

    let certificate = signer.repository.path().join(format!(".gnupg/openpgp-revocs.d/{fingerprint}.rev"));
    let certificate = std::fs::read_to_string(certificate).unwrap().replace(":-----BEGIN", "-----BEGIN");
    signer.gpg(&["--import"], certificate.as_bytes());
    match signer.verify(&commit, &signer.keyring(&[])) {
        Err(TrustError::NotAllowed { why, signer, .. }) => {
            assert_eq!((why, signer.as_str()), ("which has been revoked", "Ops <ops@acme.example>"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_kind_of_trust_wants_its_own_kind_of_signature() {
    let signer = Signer::new();
    let fingerprint = signer.key("Ops <ops@acme.example>", "ed25519", "never", &[]);
    let ssh = signer.repository.key("key", &["-t", "ed25519"]);
    let by_ssh = signer.repository.signed_commit("key", POLICY);
    let by_gpg = signer.commit(&fingerprint);
    let error = signer.verify(&by_ssh, &signer.keyring(&[])).unwrap_err().to_string();
    assert!(error.contains("not an OpenPGP signature") && error.contains("hint: "), "{error}");
    let error = signer.repository.verify(&by_gpg, &format!("ops {ssh}")).unwrap_err().to_string();
    assert!(error.contains("not an SSH signature") && error.contains("hint: "), "{error}");
    let private = signer.gpg(&["--armor", "--export-secret-keys"], b"");
    let error = signer.verify(&by_gpg, &private).unwrap_err().to_string();
    assert!(error.contains("it holds a private key"), "{error}");
}
