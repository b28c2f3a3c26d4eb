//! Certificates of OpenSSH: made by `ssh-keygen -s`, used by `git commit -S`, and judged as `git verify-commit` judges them.

use rekindle::policy::trust::TrustError;

use crate::repository::{POLICY, Repository, why};

/// Signs a key and returns the name under which git uses its certificate.
fn certify(repository: &Repository, authority: &str, key: &str, options: &[&str]) -> String {
    let at = |name: &str| repository.path().join(name).display().to_string();
    let (authority, public) = (at(authority), at(&format!("{key}.pub")));
    let fixed = ["-q", "-s", &authority, "-I", "a key id"];
    repository.run("ssh-keygen", &[&fixed[..], options, &[&public]].concat(), b"");
    format!("{key}-cert.pub")
}

const OPS: &[&str] = &["-n", "ops@acme.example,root", "-V", "20260101Z:20270101Z"];

/// What git and ssh-keygen say of a commit.
fn git_accepts(repository: &Repository, commit: &str, signers: &str) -> bool {
    crate::support::write_files(repository.path(), &[("allowed", signers.as_bytes())]);
    let file = format!("gpg.ssh.allowedSignersFile={}", repository.path().join("allowed").display());
    repository.try_to_run("git", &["-c", &file, "verify-commit", commit], b"").status.success()
}

#[track_caller]
fn check(repository: &Repository, commit: &str, signers: &str, expected: Result<&str, &str>) {
    let actual = repository.verify(commit, signers).map(|v| v.signer().unwrap().to_owned());
    match (&actual, expected) {
        (Ok(actual), Ok(expected)) => assert_eq!(actual, expected, "{signers}"),
        (Err(actual), Err(expected)) => assert!(actual.to_string().contains(expected), "{actual}\n{signers}"),
        (actual, expected) => panic!("{actual:?}, expected {expected:?}, of {signers}"),
    }
}

#[test]
fn authorities_and_keys_of_every_kind() {
    let kinds: [&[&str]; 5] = [
        &["-t", "ed25519"],
        &["-t", "ecdsa", "-b", "256"],
        &["-t", "ecdsa", "-b", "384"],
        &["-t", "ecdsa", "-b", "521"],
        &["-t", "rsa", "-b", "2048"],
    ];
    for (i, kind) in kinds.iter().enumerate() {
        let repository = Repository::new();
        let authority = repository.key("ca", kind);
        let other = repository.key("other", &["-t", "ed25519"]);
        // Each kind once as authority, once as key.
        repository.key("key", kinds[(i + 2) % kinds.len()]);
        let certificate = certify(&repository, "ca", "key", OPS);
        let commit = repository.signed_commit(&certificate, POLICY);
        let signers = format!("*@acme.example cert-authority,namespaces=\"git\" {authority}\n");
        check(&repository, &commit, &signers, Ok("ops@acme.example"));
        assert!(git_accepts(&repository, &commit, &signers), "{kind:?}");
        let foreign = format!("*@acme.example cert-authority {other}\n");
        check(&repository, &commit, &foreign, Err("which no line of the allowed signers names with `cert-authority`"));
        assert!(!git_accepts(&repository, &commit, &foreign));
        // Tampering with the commit.
        let armored = repository.payload(&commit);
        let signature = armored.split("gpgsig ").nth(1).unwrap().split("\n\n").next().unwrap().replace("\n ", "\n");
        let unsigned = repository.payload(&repository.plain_commit(&[("x", b"y")]));
        let moved = repository.commit_with_signature(&unsigned, &signature);
        assert_eq!(why(repository.verify(&moved, &signers)), "it does not match the commit");
    }
}

#[test]
fn what_the_line_of_an_authority_allows() {
    let repository = Repository::new();
    let authority = repository.key("ca", &["-t", "ed25519"]);
    let key = repository.key("key", &["-t", "ed25519"]);
    let certificate = certify(&repository, "ca", "key", OPS);
    let commit = repository.signed_commit(&certificate, POLICY);
    let agree = |signers: String, expected: Result<&str, &str>| {
        check(&repository, &commit, &signers, expected);
        assert_eq!(git_accepts(&repository, &commit, &signers), expected.is_ok(), "{signers}");
    };
    agree(format!("* cert-authority {authority}"), Ok("ops@acme.example,root"));
    agree(format!("root cert-authority {authority}"), Ok("root"));
    agree(format!("!root,* cert-authority {authority}"), Ok("ops@acme.example"));
    agree(format!("*@other.example cert-authority {authority}"), Err("whom the line of the certificate's authority"));
    agree(format!("* cert-authority,namespaces=\"file\" {authority}"), Err("not allowed for git"));
    agree(format!("* cert-authority,valid-before=\"20260101Z\" {authority}"), Err("not valid any more"));
    agree(format!("* cert-authority,valid-after=\"20270101Z\" {authority}"), Err("not valid yet"));
    agree(format!("*@x cert-authority {authority}\nroot cert-authority {authority}"), Ok("root"));
    // Neither is the key itself allowed because its certificate is, nor the other way round.
    agree(format!("* {authority}"), Err("which no line of the allowed signers names"));
    agree(format!("* {key}"), Err("which no line of the allowed signers names"));
    agree(format!("* cert-authority {key}"), Err("which no line of the allowed signers names"));
}

#[test]
fn what_certificates_themselves_allow() {
    let repository = Repository::new();
    let authority = repository.key("ca", &["-t", "ed25519"]);
    repository.key("key", &["-t", "ed25519"]);
    let signers = format!("* cert-authority {authority}");
    let try_with = |options: &[&str]| {
        let certificate = certify(&repository, "ca", "key", options);
        repository.signed_commit(&certificate, POLICY)
    };
    let agree = |options: &[&str], expected: Result<&str, &str>| {
        let commit = try_with(options);
        check(&repository, &commit, &signers, expected);
        assert_eq!(git_accepts(&repository, &commit, &signers), expected.is_ok(), "{options:?}");
    };
    agree(&["-n", "a", "-V", "always:forever"], Ok("a"));
    agree(&["-n", "a", "-V", "20260101Z:20260601120001Z"], Ok("a"));
    agree(&["-n", "a", "-V", "20260101Z:20260601120000Z"], Err("whose certificate has expired"));
    agree(&["-n", "a", "-V", "20260601120001Z:20270101Z"], Err("whose certificate is not valid yet"));
    agree(&["-h", "-n", "a"], Err("for hosts, not for people"));
    agree(&[], Err("whose certificate names no principal"));
    // ssh-keygen does not look at critical options when it verifies signatures. They are restrictions, so we do.
    for option in ["force-command=/bin/true", "source-address=10.0.0.0/8", "critical:invented@acme.example=x"] {
        check(
            &repository,
            &try_with(&["-n", "a", "-O", option]),
            &signers,
            Err("a critical option that cannot be honoured"),
        );
    }
    let commit = try_with(&["-n", "a", "-O", "clear", "-O", "extension:x@acme.example=1"]);
    check(&repository, &commit, &signers, Ok("a"));
}

/// The signature of the authority is checked, and nothing that the certificate says is believed before.
#[test]
fn threat_a_certificate_that_its_authority_never_made() {
    let repository = Repository::new();
    let authority = repository.key("ca", &["-t", "ed25519"]);
    repository.key("evil-ca", &["-t", "ed25519"]);
    repository.key("key", &["-t", "ed25519"]);
    let certificate = certify(&repository, "evil-ca", "key", OPS);
    let commit = repository.signed_commit(&certificate, POLICY);
    let signers = format!("* cert-authority {authority}");
    assert!(matches!(repository.verify(&commit, &signers), Err(TrustError::UnknownAuthority { .. })));

    // The key of the real authority in the place of the one that signed.
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let text = repository.payload(&commit);
    let armored = text.split("gpgsig ").nth(1).unwrap().split("\n\n").next().unwrap().replace("\n ", "\n");
    let body: String = armored.lines().filter(|line| !line.starts_with('-')).collect();
    let mut bytes = STANDARD.decode(body).unwrap();
    let wire = |name: &str| {
        let line = std::fs::read_to_string(repository.path().join(format!("{name}.pub"))).unwrap();
        STANDARD.decode(line.split(' ').nth(1).unwrap()).unwrap()
    };
    let (evil, real) = (wire("evil-ca"), wire("ca"));
    let at = bytes.windows(evil.len()).position(|window| window == evil).unwrap();
    bytes[at..at + evil.len()].copy_from_slice(&real);
    let forged = format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----", STANDARD.encode(&bytes));
    let (head, message) = text.split_once("\n\n").unwrap();
    let unsigned = format!("{}\n\n{message}", head.split("\ngpgsig ").next().unwrap());
    let forged = repository.commit_with_signature(&unsigned, &forged);
    assert_eq!(
        why(repository.verify(&forged, &signers)),
        "its certificate is not signed by the authority that it names"
    );
}
