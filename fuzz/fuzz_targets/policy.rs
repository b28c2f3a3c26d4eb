//! A policy of one file: it is compiled or refused, never with a panic, and every refusal can be drawn and points into the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_fuzz::{compiled, host, policy};

fuzz_target!(|data: &[u8]| {
    let policy = policy(&[
        ("policy.toml", data),
        ("files/a", b"a\n"),
        ("templates/a.j2", b"{{ facts.os }}\n"),
        ("modules/a.toml", b"[file.'/etc/a']\ncontent = 'a'\n"),
    ]);
    let host = Some(host()).filter(|_| data.len().is_multiple_of(2));
    drop(compiled(&policy, host.as_ref()));
});
