//! A template and a condition: they end, within their fuel, and say where they fail.
//!
//! The length of the input is what bounds memory here. In the agent, a trial with a memory limit does.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_fuzz::{compiled, policy};

const POLICY: &[u8] = b"[vars]\nport = 22\nname = 'n'\nlist = [1, 'a', true]\n[vars.map]\nkey = 'v'\n[file.'/etc/a']\ntemplate = 'templates/a.j2'\n";

fuzz_target!(|data: &[u8]| {
    let other = b"{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ vars.port }}";
    drop(compiled(&policy(&[("policy.toml", POLICY), ("templates/a.j2", data), ("templates/b.j2", other)]), None));
    // The same text as a condition.
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(when) = toml_string(text)
    {
        let toml = format!("[vars]\nport = 22\n[file.'/etc/a']\ncontent = ''\nwhen = {when}\n");
        drop(compiled(&policy(&[("policy.toml", toml.as_bytes())]), None));
    }
});

fn toml_string(text: &str) -> Result<String, toml::ser::Error> {
    let mut out = String::new();
    serde::Serialize::serialize(text, toml::ser::ValueSerializer::new(&mut out))?;
    Ok(out)
}
