//! What the host says of itself: accounts, packages, mounts, units, its release and its table of file systems.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle::fuzzing;
use rekindle::resource::mount::fstab::{Wanted, edit, entry};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let accounts = fuzzing::accounts(&text, &text, &text);
    assert!(accounts.users.iter().all(|user| !user.name.is_empty()));
    // A record that cannot be read makes the whole database one that cannot be believed.
    if let Ok(packages) = fuzzing::packages(&[&text]) {
        assert!(packages.packages.contains_key("dpkg"));
    }
    fuzzing::mounts(data);
    fuzzing::os_release(&text);
    fuzzing::unit(&text);
    fstab(data);
});

/// Edited is edited, and the lines of other mount points stay.
fn fstab(content: &[u8]) {
    let options = ["nodev".to_owned(), "size=1g".to_owned()];
    let line = Wanted::Line { source: Some("a b"), fstype: Some("tmpfs"), options: &options };
    for wanted in [line, Wanted::Nothing] {
        let edited = edit(content, "/tmp", wanted).expect("all is known that a line needs");
        assert_eq!(edited.changes.is_empty(), edited.content == content);
        let again = edit(&edited.content, "/tmp", wanted).expect("all is known that a line needs");
        assert!(again.changes.is_empty() && again.content == edited.content, "a second time changes something");
        let found = entry(&edited.content, "/tmp");
        match wanted {
            Wanted::Nothing => assert_eq!(found, None),
            Wanted::Line { .. } => {
                let found = found.expect("the line is there");
                assert_eq!((found.source.as_str(), found.fstype.as_str()), ("a b", "tmpfs"));
                let has = |option: &String| found.options.split(',').any(|found| found == option);
                assert!(options.iter().all(has), "{found:?}");
            }
        }
        // A last line without an end gets the one of its neighbours, which may have a carriage return.
        let others = |content: &[u8]| {
            let lines =
                content.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec());
            lines.filter(|line| entry(line, "/tmp").is_none() && !line.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(others(content), others(&edited.content), "another line was changed");
    }
}
