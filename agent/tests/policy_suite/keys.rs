//! When the keys of repositories end, as gpg has it.

use rekindle::policy::compile::{Compiled, expiring_keys};
use rekindle::policy::diagnostic::Diagnostics;
use rekindle::resource::{Desired, Ensure};

use crate::repository::Repository;
use crate::support::{compile, policy};

/// A home with a gpg of its own, whose clock stands at 2026-06-01.
struct Gpg(Repository);

impl Gpg {
    fn new() -> Self {
        let repository = Repository::new();
        repository.run("mkdir", &["-m", "700", ".gnupg"], b"");
        Self(repository)
    }

    fn run(&self, arguments: &[&str]) -> String {
        let fixed = ["--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""];
        let clock = ["--faked-system-time", "20260601T120000!"];
        let output = self.0.run("gpg", &[&fixed[..], &clock, arguments].concat(), b"");
        String::from_utf8(output).unwrap()
    }

    /// The fingerprint of the first key or subkey.
    fn fingerprint(&self) -> String {
        let listed = self.run(&["--with-colons", "--list-keys"]);
        let line = listed.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).unwrap();
        line.trim_end_matches(':').to_owned()
    }

    /// The sixth field of gpg's own listing: when a key or subkey expires.
    fn listed(&self, kind: &str) -> Option<i64> {
        let listed = self.run(&["--with-colons", "--list-keys"]);
        let line = listed.lines().find(|line| line.split(':').next() == Some(kind)).unwrap();
        line.split(':').nth(6).unwrap().parse().ok()
    }

    /// A policy with these keys.
    fn compiled(&self) -> Result<Compiled, String> {
        let key = self.run(&["--armor", "--export"]);
        let toml = "[repository.x]\ndnf = { uris = ['https://a'], key = 'key.asc' }\n";
        compile(&policy(&[("policy.toml", toml), ("key.asc", &key)]), None).map_err(|all| all.to_string())
    }

    /// What it knows of their end.
    fn expires(&self) -> Result<Option<i64>, String> {
        let compiled = self.compiled()?;
        let desired = &compiled.state.resources()[0].desired;
        let Desired::Repository(repository) = desired else { panic!("{desired:?}") };
        let Ensure::Present(spec) = &repository.ensure else { panic!("it is declared") };
        Ok(spec.key.expires)
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        self.0.try_to_run("gpgconf", &["--kill", "all"], b"");
    }
}

#[test]
fn keys_end_when_gpg_says_so() {
    let gpg = Gpg::new();
    gpg.run(&["--quick-generate-key", "one@acme.example", "ed25519", "sign", "1y"]);
    assert_eq!(gpg.expires(), Ok(gpg.listed("pub")));
    assert!(gpg.listed("pub").is_some());
    // The newest word counts, for shorter as for longer.
    let fingerprint = gpg.fingerprint();
    for (time, lasts) in [("20260602T120000!", "2y"), ("20260603T120000!", "3m"), ("20260604T120000!", "never")] {
        gpg.run(&["--faked-system-time", time, "--quick-set-expire", &fingerprint, lasts]);
        assert_eq!(gpg.expires(), Ok(gpg.listed("pub")), "{lasts}");
    }
    // Of several keys in a file the last to end.
    gpg.run(&["--quick-generate-key", "two@acme.example", "rsa2048", "sign", "1m"]);
    assert_eq!(gpg.expires(), Ok(None));
}

#[test]
fn a_subkey_that_signs_ends_before_its_key() {
    let gpg = Gpg::new();
    gpg.run(&["--quick-generate-key", "certifies@acme.example", "ed25519", "cert", "never"]);
    let fingerprint = gpg.fingerprint();
    gpg.run(&["--quick-add-key", &fingerprint, "ed25519", "sign", "6m"]);
    gpg.run(&["--quick-add-key", &fingerprint, "cv25519", "encr", "never"]);
    assert_eq!(gpg.expires(), Ok(gpg.listed("sub")));
    assert!(gpg.listed("sub").is_some());
}

#[test]
fn a_month_before_it_ends_a_key_is_warned_of() {
    let gpg = Gpg::new();
    gpg.run(&["--quick-generate-key", "one@acme.example", "ed25519", "sign", "1y"]);
    let state = gpg.compiled().unwrap().state;
    assert!(expiring_keys(&state, "2027-05-01T00:00:00Z".parse().unwrap()).is_empty());
    let warnings = expiring_keys(&state, "2027-05-20T00:00:00Z".parse().unwrap());
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("keys_that_end", Diagnostics::from(warnings).render(false));
    });
}
