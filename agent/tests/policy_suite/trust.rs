//! Who is trusted: real keys, real signatures, real repositories, and what an attacker could make of them.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rekindle::policy::candidate::{CandidateError, Origin, from_commit, from_directory, is_ancestor};
use rekindle::policy::trust::{AllowedSigners, Trust, TrustError, Verified, load_stored, store, verify};

use crate::repository::{POLICY, Repository, now, why};
use crate::support::write_files;

#[test]
fn commits_signed_by_git_with_every_kind_of_key() {
    for kind in [
        &["-t", "ed25519"][..],
        &["-t", "ecdsa", "-b", "256"],
        &["-t", "ecdsa", "-b", "384"],
        &["-t", "ecdsa", "-b", "521"],
        &["-t", "rsa", "-b", "2048"],
    ] {
        let repository = Repository::new();
        let key = repository.key("key", kind);
        let commit = repository.signed_commit("key", POLICY);
        let verified = repository.verify(&commit, &format!("# ours\nops@acme {key} comment\n")).expect("it is signed");
        assert_eq!(verified.signer(), Some("ops@acme"), "{kind:?}");
        assert_eq!(verified.revision().as_str(), commit);
        let files: Vec<_> = verified.files().iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
        assert_eq!(files, [("files/deep/er", &b"\x00\xff"[..]), ("policy.toml", b"[policy]\nname = 'x'\n")]);
    }
}

#[test]
fn what_allowed_signers_say() {
    let repository = Repository::new();
    let key = repository.key("key", &["-t", "ed25519"]);
    let other = repository.key("other", &["-t", "ed25519"]);
    let commit = repository.signed_commit("key", POLICY);
    let check = |signers: String, expected: Result<&str, &str>| {
        let actual = repository.verify(&commit, &signers).map(|v| v.signer().unwrap().to_owned());
        match (&actual, expected) {
            (Ok(actual), Ok(expected)) => assert_eq!(actual, expected, "{signers}"),
            (Err(actual), Err(expected)) => assert!(actual.to_string().contains(expected), "{actual}\n{signers}"),
            (actual, expected) => panic!("{actual:?}, expected {expected:?}, of {signers}"),
        }
    };
    check(format!("a,b {key}"), Ok("a,b"));
    check(format!("\"a b\" {key}"), Ok("a b"));
    check(format!("a namespaces=\"git\" {key}"), Ok("a"));
    check(format!("a namespaces=\"file,git\",valid-after=\"20260101Z\",valid-before=202701010000Z {key}"), Ok("a"));
    check(format!("a namespaces=\"g*\" {key}"), Ok("a"));
    check(format!("a NAMESPACES=\"?it\" {key}"), Ok("a"));
    check(format!("a namespaces=\"*,!git\" {key}"), Err("not allowed for git"));
    check(format!("a namespaces=\"file\" {key}"), Err("not allowed for git"));
    check(format!("a valid-before=\"20260101Z\" {key}"), Err("not valid any more"));
    check(format!("a valid-after=\"20270101Z\" {key}"), Err("not valid yet"));
    check(format!("a valid-before=\"20260101Z\" {key}\nb {key}"), Ok("b"));
    check(format!("a {other}"), Err("is not among the trusted keys"));
    check(format!("a valid-after=\"20260101UTC\" {key}"), Ok("a"));
    // An authority signs certificates; its own signature of a commit counts for nothing.
    check(format!("a cert-authority {key}"), Err("is not among the trusted keys"));
    check(format!("a cert-authority,cert-authority {key}"), Err("given twice"));
    check(format!("a {key}\nb no-touch-required {key}"), Err("line 2 of the allowed signers: `no-touch-required`"));
    check(format!("a namespaces=\"git {key}"), Err("a quote is not closed"));
    check(format!("a namespaces=git,namespaces=git {key}"), Err("given twice"));
    check(format!("a valid-after=2026 {key}"), Err("`2026` is not a time"));
    check(format!("a valid-after=20261399Z {key}"), Err("is not a time"));
    check("a ssh-ed25519".to_owned(), Err("the key is missing"));
    check("a ssh-ed25519 AAAA".to_owned(), Err("not of the type"));
    check("a ssh-ed25519 §".to_owned(), Err("not base64"));
    check("a ssh-dss AAAA".to_owned(), Err("not a key type that can be verified here"));
    check("a".to_owned(), Err("expected a key type"));
    check("# nobody\n\n".to_owned(), Err("name no key"));
}

#[test]
fn what_is_not_signed_or_not_for_this() {
    let repository = Repository::new();
    let key = repository.key("key", &["-t", "ed25519"]);
    let signers = format!("ops {key}");
    let unsigned = repository.plain_commit(POLICY);
    assert!(matches!(repository.verify(&unsigned, &signers), Err(TrustError::Unsigned { .. })));

    let signed = repository.signed_commit("key", POLICY);
    let candidate = from_commit(&repository.path().join(".git"), &signed).unwrap();
    let Origin::Commit { signature: Some(signature), .. } = candidate.origin() else { panic!("{candidate:?}") };
    let armored = String::from_utf8(signature.clone()).unwrap();

    // A good signature of another commit.
    let moved = repository.commit_with_signature(&repository.payload(&unsigned), &armored);
    assert_eq!(why(repository.verify(&moved, &signers)), "it does not match the commit");

    // A good signature by the right key, made for another purpose.
    let payload = repository.payload(&unsigned);
    let key_path = repository.path().join("key").display().to_string();
    let sign = |namespace: &str| {
        let armored =
            repository.run("ssh-keygen", &["-q", "-Y", "sign", "-f", &key_path, "-n", namespace], payload.as_bytes());
        repository.commit_with_signature(&payload, &String::from_utf8(armored).unwrap())
    };
    assert!(repository.verify(&sign("git"), &signers).is_ok());
    assert_eq!(
        why(repository.verify(&sign("file"), &signers)),
        "it was made for another purpose than signing git commits"
    );

    // Envelopes that are not what they seem.
    let raw = |body: &[u8]| {
        let armored = format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----", STANDARD.encode(body));
        why(repository.verify(&repository.commit_with_signature(&payload, &armored), &signers))
    };
    let body: String = armored.lines().filter(|line| !line.starts_with('-')).collect();
    let body = STANDARD.decode(body).unwrap();
    assert_eq!(raw(&[body.as_slice(), b"x"].concat()), "something follows its end");
    assert_eq!(raw(&body[..body.len() - 1]), "it is cut short");
    assert_eq!(raw(b"SSHSIG\0\0\0\x02"), "its version is not 1");
    assert_eq!(raw(b"SSHSIG\0\0\0\x01\xff\xff\xff\xff"), "it is cut short");
    assert_eq!(raw(b"PGP"), "it is cut short");

    let pgp =
        repository.commit_with_signature(&payload, "-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----");
    assert!(matches!(repository.verify(&pgp, &signers), Err(TrustError::OtherSignature { expected: "SSH", .. })));

    let directory = from_directory(repository.path()).unwrap();
    let trust = Trust::Signers(AllowedSigners::parse(&signers).unwrap());
    assert!(matches!(verify(directory.clone(), &trust, now()), Err(TrustError::NotACommit { .. })));
    assert_eq!(verify(directory, &Trust::Operator, now()).unwrap().signer(), None);
    let candidate = from_commit(&repository.path().join(".git"), &unsigned).unwrap();
    assert_eq!(verify(candidate, &Trust::Unsigned, now()).unwrap().signer(), None);
}

#[test]
fn security_keys_must_have_been_touched() {
    let repository = Repository::new();
    let pair = Ed25519KeyPair::generate().unwrap();
    let string = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    let kind = b"sk-ssh-ed25519@openssh.com";
    let key = [string(kind), string(pair.public_key().as_ref()), string(b"ssh:")].concat();
    let signers = format!("ops sk-ssh-ed25519@openssh.com {}", STANDARD.encode(&key));
    let payload = repository.payload(&repository.plain_commit(POLICY));
    let signed = [
        &b"SSHSIG"[..],
        &string(b"git"),
        &string(b""),
        &string(b"sha512"),
        &string(digest(&SHA512, payload.as_bytes()).as_ref()),
    ]
    .concat();
    let check = |flags: u8| {
        let tail = [flags, 0, 0, 0, 7];
        let message = [digest(&SHA256, b"ssh:").as_ref(), &tail, digest(&SHA256, &signed).as_ref()].concat();
        let signature = [string(kind), string(pair.sign(&message).as_ref()), tail.to_vec()].concat();
        let envelope = [
            &b"SSHSIG\0\0\0\x01"[..],
            &string(&key),
            &string(b"git"),
            &string(b""),
            &string(b"sha512"),
            &string(&signature),
        ]
        .concat();
        let armored =
            format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----", STANDARD.encode(envelope));
        repository.verify(&repository.commit_with_signature(&payload, &armored), &signers)
    };
    assert_eq!(check(1).expect("touched").signer(), Some("ops"));
    assert_eq!(why(check(0)), "the security key was not touched");

    // The older kind of token.
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let kind = b"sk-ecdsa-sha2-nistp256@openssh.com";
    let key = [string(kind), string(b"nistp256"), string(pair.public_key().as_ref()), string(b"ssh:")].concat();
    let signers = format!("ops sk-ecdsa-sha2-nistp256@openssh.com {}", STANDARD.encode(&key));
    let check = |flags: u8| {
        let tail = [flags, 0, 0, 0, 7];
        let message = [digest(&SHA256, b"ssh:").as_ref(), &tail, digest(&SHA256, &signed).as_ref()].concat();
        let raw = pair.sign(&aws_lc_rs::rand::SystemRandom::new(), &message).unwrap();
        let (r, s) = raw.as_ref().split_at(32);
        // Numbers in wire form are signed: a leading zero keeps them positive.
        let numbers = [string(&[&[0], r].concat()), string(&[&[0], s].concat())].concat();
        let signature = [string(kind), string(&numbers), tail.to_vec()].concat();
        let envelope = [
            &b"SSHSIG\0\0\0\x01"[..],
            &string(&key),
            &string(b"git"),
            &string(b""),
            &string(b"sha512"),
            &string(&signature),
        ]
        .concat();
        let armored =
            format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----", STANDARD.encode(envelope));
        repository.verify(&repository.commit_with_signature(&payload, &armored), &signers)
    };
    assert_eq!(check(1).expect("touched").signer(), Some("ops"));
    assert_eq!(why(check(0)), "the security key was not touched");
}

#[test]
fn what_a_commit_may_not_hold() {
    let repository = Repository::new();
    repository.plain_commit(POLICY);
    let git_dir = repository.path().join(".git");
    let blob = repository.git(&["rev-parse", "HEAD:policy.toml"]);
    let commit_of = |entries: &str| {
        let tree = repository.run("git", &["mktree", "--missing"], entries.as_bytes());
        let tree = String::from_utf8(tree).unwrap();
        repository.git(&["commit-tree", "-m", "x", tree.trim()])
    };
    let check = |entries: String, expected: &str| {
        let error = from_commit(&git_dir, &commit_of(&entries)).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(format!("120000 blob {blob}\tlink\n"), "a symbolic link at `link`");
    check(format!("160000 commit {}\tsub\n", repository.git(&["rev-parse", "HEAD"])), "a submodule at `sub`");
    check(format!("100644 blob {blob}\tback\\slash\n"), "a backslash");
    check("100644 blob 1234567890123456789012345678901234567890\tx\n".to_owned(), "cannot read the file `1234");

    let missing = "1234567890123456789012345678901234567890";
    assert!(matches!(from_commit(&git_dir, missing), Err(CandidateError::Object { .. })));
    for id in ["HEAD", "main", "", "12345", "../../x", &missing.to_uppercase().replace('1', "A")] {
        assert!(matches!(from_commit(&git_dir, id), Err(CandidateError::CommitId { .. })), "{id}");
    }
    assert!(matches!(from_commit(&git_dir, &blob), Err(CandidateError::Mismatch { .. })));
    assert!(matches!(from_commit(Path::new("/nowhere"), missing), Err(CandidateError::Open { .. })));
}

/// A checkout would run filters and hooks and rewrite what `.gitattributes` names. Nothing is checked out.
#[test]
fn threat_a_policy_that_would_run_something_when_checked_out() {
    let repository = Repository::new();
    repository.git(&["config", "filter.evil.smudge", "touch pwned; cat"]);
    repository.git(&["config", "filter.evil.clean", "cat"]);
    write_files(repository.path(), &[(".git/hooks/post-checkout", b"#!/bin/sh\ntouch pwned\n")]);
    let hook = repository.path().join(".git/hooks/post-checkout");
    std::fs::set_permissions(hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let attributes = b"*.txt export-subst filter=evil ident text eol=crlf\nsecret.txt export-ignore\n";
    let files: [(&str, &[u8]); 4] = [
        (".gitattributes", attributes),
        ("a.txt", b"$Format:%H$ $Id$\n"),
        ("hooks/post-checkout", b"#!/bin/sh\ntouch pwned\n"),
        ("secret.txt", b"kept\n"),
    ];
    let commit = repository.plain_commit(&files);
    let candidate = from_commit(&repository.path().join(".git"), &commit).unwrap();
    let verified = verify(candidate, &Trust::Unsigned, now()).unwrap();
    let read: Vec<_> = verified.files().iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    assert_eq!(read, files);
    assert!(!repository.path().join("pwned").exists());
}

/// The repository belongs to the courier, which an attacker may have: a signature of the commit says nothing about bytes
/// that were put under the name of another object.
#[test]
fn threat_courier_swaps_a_blob_under_a_signed_commit() {
    let repository = Repository::new();
    repository.key("key", &["-t", "ed25519"]);
    let commit = repository.signed_commit("key", POLICY);
    let git_dir = repository.path().join(".git");
    let object = |id: &str| git_dir.join("objects").join(&id[..2]).join(&id[2..]);
    let honest = repository.git(&["rev-parse", "HEAD:policy.toml"]);
    let evil = repository.run("git", &["hash-object", "-w", "--stdin"], b"[user.evil]\n");
    let evil = String::from_utf8(evil).unwrap();
    std::fs::remove_file(object(&honest)).unwrap();
    std::fs::copy(object(evil.trim()), object(&honest)).unwrap();
    match from_commit(&git_dir, &commit) {
        Err(CandidateError::Mismatch { id, .. }) => assert_eq!(id, honest),
        // The object database may notice by itself.
        Err(CandidateError::Object { id, .. }) => assert_eq!(id, honest),
        other => panic!("{other:?}"),
    }
}

#[test]
fn ancestry() {
    let repository = Repository::new();
    let git_dir = repository.path().join(".git");
    let first = repository.plain_commit(POLICY);
    let second = repository.plain_commit(&[]);
    repository.git(&["checkout", "-q", "-b", "side", &first]);
    let side = repository.plain_commit(&[("x", b"y")]);
    repository.git(&["merge", "-q", "--no-edit", "main"]);
    let merged = repository.git(&["rev-parse", "HEAD"]);
    for (ancestor, descendant, expected) in [
        (&first, &first, true),
        (&first, &second, true),
        (&second, &first, false),
        (&second, &side, false),
        (&second, &merged, true),
        (&merged, &second, false),
    ] {
        assert_eq!(is_ancestor(&git_dir, ancestor, descendant).unwrap(), expected, "{ancestor} {descendant}");
    }
    // A history that was cut short cannot say no.
    let shallow = tempfile::tempdir().unwrap();
    let url = format!("file://{}", repository.path().display());
    let target = shallow.path().join("clone").display().to_string();
    repository.git(&["clone", "-q", "--bare", "--depth", "1", &url, &target]);
    assert!(is_ancestor(Path::new(&target), &first, &merged).is_err());
    assert!(is_ancestor(Path::new(&target), &merged, &merged).unwrap());
}

#[test]
fn what_a_directory_may_not_hold() {
    let check = |prepare: &dyn Fn(&Path), expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        write_files(dir.path(), POLICY);
        prepare(dir.path());
        let error = from_directory(dir.path()).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(&|dir| symlink("/etc/shadow", dir.join("files/link")).unwrap(), "a symbolic link at `files/link`");
    check(&|dir| symlink("/etc", dir.join("etc")).unwrap(), "a symbolic link at `etc`");
    check(
        &|dir| nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap(),
        "a device or FIFO at `fifo`",
    );
    check(
        &|dir| drop(std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap()),
        "a socket or device at `socket`",
    );
    check(
        &|dir| std::fs::File::create_new(dir.join("huge")).unwrap().set_len(65 * 1024 * 1024).unwrap(),
        "more than 64 MiB",
    );
    check(&|dir| write_files(dir, &[("a\nb", b"")]), "a control character");
    check(&|dir| std::fs::create_dir_all(dir.join("d/".repeat(40))).unwrap(), "32 levels");
    check(
        &|dir| {
            use std::os::unix::ffi::OsStrExt;
            let name = std::ffi::OsStr::from_bytes(b"\xff");
            drop(std::fs::File::create_new(dir.join(name)).unwrap());
        },
        "is not UTF-8",
    );
    assert!(matches!(from_directory(Path::new("/nowhere")), Err(CandidateError::Read { .. })));
}

#[test]
fn the_revision_of_a_directory_is_its_content() {
    let revision = |files: &[(&str, &[u8])]| {
        let dir = tempfile::tempdir().unwrap();
        write_files(dir.path(), files);
        from_directory(dir.path()).unwrap().revision().to_string()
    };
    let one = revision(&[("a", b"bc")]);
    assert!(one.starts_with("dir-") && one.len() == 4 + 64, "{one}");
    assert_eq!(one, revision(&[("a", b"bc"), (".git/HEAD", b"x")]));
    assert_ne!(one, revision(&[("ab", b"c")]));
    assert_ne!(one, revision(&[("a", b"bc"), ("d", b"")]));
}

/// Stores a verified policy and returns where.
fn stored() -> (tempfile::TempDir, PathBuf, Verified) {
    let policies = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    write_files(files.path(), POLICY);
    let verified = verify(from_directory(files.path()).unwrap(), &Trust::Operator, now()).unwrap();
    let path = store(&verified, &policies.path().join("policy")).unwrap();
    (policies, path, verified)
}

#[test]
fn a_stored_policy_is_the_same_again() {
    let (policies, path, verified) = stored();
    assert_eq!(path, policies.path().join("policy").join(verified.revision().as_str()));
    let loaded = load_stored(&path).unwrap();
    assert_eq!((loaded.revision(), loaded.signer(), loaded.files()), (verified.revision(), None, verified.files()));
    // Storing once more changes nothing, and leaves nothing beside it.
    assert_eq!(store(&verified, &policies.path().join("policy")).unwrap(), path);
    assert_eq!(std::fs::read_dir(policies.path().join("policy")).unwrap().count(), 1);
}

#[test]
fn a_stored_policy_that_was_touched_is_refused_and_mended_by_storing_it_again() {
    let check = |touch: &dyn Fn(&Path), expected: &str| {
        let (policies, path, verified) = stored();
        touch(&path);
        let error = load_stored(&path).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(store(&verified, &policies.path().join("policy")).unwrap(), path);
        assert_eq!(load_stored(&path).unwrap().files(), verified.files());
    };
    check(&|dir| write_files(dir, &[("tree/policy.toml", b"[user.evil]\n")]), "`policy.toml` was changed");
    check(&|dir| write_files(dir, &[("tree/more", b"")]), "it has 3 files, expected 2");
    check(&|dir| std::fs::remove_file(dir.join("tree/files/deep/er")).unwrap(), "it has 1 files, expected 2");
    check(&|dir| std::fs::rename(dir.join("tree/policy.toml"), dir.join("tree/x")).unwrap(), "`x` does not belong");
    check(&|dir| write_files(dir, &[("MANIFEST", b"{}")]), "its manifest cannot be read");
    check(&|dir| std::fs::remove_file(dir.join("MANIFEST")).unwrap(), "cannot look at");
    check(
        &|dir| std::fs::set_permissions(dir.join("MANIFEST"), std::fs::Permissions::from_mode(0o666)).unwrap(),
        "may be written by others",
    );
    check(
        &|dir| {
            std::fs::remove_dir_all(dir.join("tree")).unwrap();
            symlink("/etc", dir.join("tree")).unwrap();
        },
        "is a symbolic link",
    );
}

/// In production the repository belongs to the courier's user and root reads it.
#[test]
fn a_repository_of_another_user_can_be_read() {
    let repository = Repository::new();
    let commit = repository.plain_commit(POLICY);
    if !nix::unistd::geteuid().is_root() {
        // Nobody else can give files away, and nobody else runs the agent.
        return;
    }
    repository.run("chown", &["-R", "65534:65534", "."], b"");
    let candidate = from_commit(&repository.path().join(".git"), &commit).expect("ownership is no reason to refuse");
    assert_eq!(candidate.revision().as_str(), commit);
    assert!(is_ancestor(&repository.path().join(".git"), &commit, &commit).unwrap());
}
