//! A list of allowed signers, and a commit that was signed in earnest: only a list that names the key lets it in.

#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use rekindle::fuzzing;
use rekindle::policy::trust::{AllowedSigners, Trust, verify};

const BY_KEY: &[u8] = include_bytes!("../seeds/signed/by_key");
const BY_CERTIFICATE: &[u8] = include_bytes!("../seeds/signed/by_certificate");
const KEY: &str = include_str!("../seeds/signed/key.pub");
const AUTHORITY: &str = include_str!("../seeds/signed/authority.pub");

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let signers = match AllowedSigners::parse(text) {
        Ok(signers) => signers,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let now = Timestamp::from_second(1_796_000_000).expect("it is a time");
    for (commit, key) in [(BY_KEY, KEY), (BY_CERTIFICATE, AUTHORITY)] {
        let candidate = fuzzing::commit(commit).expect("it is a commit");
        let Ok(verified) = verify(candidate, &Trust::Signers(signers.clone()), now) else { continue };
        assert!(verified.signer().is_some_and(|signer| !signer.is_empty()));
        let key = key.split(' ').nth(1).expect("the key is the second word");
        let names = |line: &str| !line.trim().starts_with('#') && line.replace('"', "").contains(key);
        assert!(text.lines().any(names), "a list without the key let its commit in");
    }
});
