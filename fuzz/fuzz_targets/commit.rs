//! A commit object with a signature: nothing but what was signed in earnest is let in.

#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use rekindle::fuzzing;
use rekindle::policy::candidate::Origin;
use rekindle::policy::trust::{AllowedSigners, Trust, verify};

const KEY: &str = include_str!("../seeds/signed/key.pub");
const AUTHORITY: &str = include_str!("../seeds/signed/authority.pub");
const SIGNED: [&[u8]; 2] = [include_bytes!("../seeds/signed/by_key"), include_bytes!("../seeds/signed/by_certificate")];

fuzz_target!(|data: &[u8]| {
    let Ok(candidate) = fuzzing::commit(data) else { return };
    let list = format!("ops@example.org {KEY}\n*@example.org cert-authority {AUTHORITY}\n");
    let signers = AllowedSigners::parse(&list).expect("it is a list of signers");
    let now = Timestamp::from_second(1_796_000_000).expect("it is a time");
    let payload = payload(candidate.origin());
    match verify(candidate, &Trust::Signers(signers), now) {
        Ok(_) => {
            let is_known = |commit: &&[u8]| fuzzing::commit(commit).is_ok_and(|c| self::payload(c.origin()) == payload);
            assert!(SIGNED.iter().any(is_known), "a commit that nobody signed was let in");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn payload(origin: &Origin) -> Vec<u8> {
    match origin {
        Origin::Commit { payload, .. } => payload.clone(),
        Origin::Directory(_) => Vec::new(),
    }
}
