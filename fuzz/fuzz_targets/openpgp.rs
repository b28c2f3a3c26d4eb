//! What `gpgv` says of a signature, and keyrings: only one good signature by a key of the ring lets a commit in.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use rekindle::fuzzing;
use rekindle::policy::trust::{Keyring, Question, Trust, verify};

/// The smallest key of version 4; nobody asks whether it is one.
const KEYRING: &[u8] = b"\x98\x06\x04\0\0\0\0\x01";
const COMMIT: &[u8] = b"tree 616fbaedaaf0e1a805af7a4c785afd25d309084a\nauthor O <o@example.org> 1 +0000\ncommitter O <o@example.org> 1 +0000\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n -----END PGP SIGNATURE-----\n\nx\n";

thread_local! {
    static STATUS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn gpgv(_: &Question<'_>) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(STATUS.with_borrow(Clone::clone))
}

fuzz_target!(|data: &[u8]| {
    if let Err(error) = Keyring::parse(data) {
        assert!(!error.to_string().is_empty());
    }
    STATUS.set(data.to_vec());
    let keyring = Keyring::parse(KEYRING).expect("it is a keyring");
    let candidate = fuzzing::commit(COMMIT).expect("it is a commit");
    let Ok(verified) = verify(candidate, &Trust::OpenPgp { keyring, gpgv }, jiff::Timestamp::UNIX_EPOCH) else {
        return;
    };
    let signer = verified.signer().expect("somebody signed it");
    assert!(!signer.is_empty() && !signer.chars().any(char::is_control));
    let text = String::from_utf8_lossy(data);
    let count = |word: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix("[GNUPG:] "));
        lines.filter(|line| line.split(' ').next() == Some(word)).count()
    };
    assert_eq!((count("GOODSIG"), count("VALIDSIG")), (1, 1), "not one good signature");
    for bad in ["BADSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "ERRSIG", "NODATA"] {
        assert_eq!(count(bad), 0, "{bad} was let in");
    }
});
