//! Policies as long as they come: 10,000 resources in every test run, 100,000 when asked for.

use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rekindle::resource::{Desired, Ensure, Resource, file};

use crate::support::{compile, host, policy};

/// Files whose content is one of these many sources.
const N_SOURCES: usize = 16;
/// Declarations in one module: it must stay below 8 MiB.
const PER_MODULE: usize = 20_000;

/// Where the content of the declared files comes from.
#[derive(Clone, Copy)]
enum Content {
    /// One of [`N_SOURCES`] files of 4 KiB.
    Shared,
    /// A short text of its own in each declaration.
    Inline,
}

/// The policy's files: so many declared files, a hundred in a directory.
fn long_policy(n_files: usize, content: Content) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> =
        (0..N_SOURCES).map(|i| (format!("files/{i:02}"), format!("{:<4095}\n", format!("# source {i}")))).collect();
    let mut modules = Vec::new();
    for first in (0..n_files).step_by(PER_MODULE) {
        let mut module = String::new();
        for i in first..n_files.min(first + PER_MODULE) {
            let content = match content {
                Content::Shared => format!("source = \"files/{:02}\"", i % N_SOURCES),
                Content::Inline => format!("content = \"value = {i}\\n\""),
            };
            module.push_str(&format!(
                "[file.\"/srv/tree/d{:04}/file{i:06}.conf\"]\n{content}\nmode = \"0640\"\n\n",
                i / 100
            ));
        }
        let name = format!("modules/part{:02}.toml", modules.len());
        files.push((name.clone(), module));
        modules.push(name);
    }
    files.push(("policy.toml".to_owned(), format!("include = {modules:?}\n\n[policy]\nname = \"long\"\n")));
    files
}

/// Time that this thread has had a processor: other programs of a busy machine are not in it.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// How many files: 10,000, or as many as `REKINDLE_SCALE_FILES` says.
fn n_files() -> usize {
    std::env::var("REKINDLE_SCALE_FILES").map_or(10_000, |text| text.parse().unwrap())
}

#[test]
fn a_long_policy_compiles_in_a_moment() {
    for content in [Content::Shared, Content::Inline] {
        let files = long_policy(n_files(), content);
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let policy = policy(&files);
        let start = spent();
        let compiled = compile(&policy, Some(&host())).expect("it is valid");
        let took = spent() - start;
        eprintln!("{} resources in {took:?}", n_files());
        assert_eq!(compiled.state.resources().len(), n_files());
        // A tenth of a second in a release build; a debug build of a loaded machine must pass as well.
        let limit = Duration::from_secs(3) * u32::try_from(n_files().div_ceil(10_000)).unwrap();
        assert!(took < limit, "{took:?}");
        let last = format!("file[/srv/tree/d0099/file{:06}.conf]", 9_999).parse().unwrap();
        assert!(compiled.state.get(&last).is_some());
    }
}

#[test]
fn equal_contents_and_ownerships_are_held_once() {
    let policy = policy(&[
        ("files/a", "same\n"),
        ("files/b", "same\n"),
        ("c.j2", "{{ 'same' }}\n"),
        (
            "policy.toml",
            "[file]\n'/1' = { source = 'files/a' }\n'/2' = { source = 'files/a' }\n'/3' = { source = 'files/b' }\n\
             '/4' = { content = \"same\\n\" }\n'/5' = { template = 'c.j2', mode = '0644' }\n'/6' = { content = 'other', mode = '0600' }\n",
        ),
    ]);
    let compiled = compile(&policy, Some(&host())).expect("it is valid");
    let specs: Vec<&file::Spec> = compiled.state.resources().iter().map(spec).collect();
    let (last, same) = specs.split_last().unwrap();
    assert_eq!(same.len(), 5);
    for spec in same {
        assert!(spec.content.is_shared_with(&same[0].content));
        assert!(Arc::ptr_eq(&spec.ownership, &same[0].ownership));
    }
    assert!(!last.content.is_shared_with(&same[0].content));
    assert!(!Arc::ptr_eq(&last.ownership, &same[0].ownership));
}

fn spec(resource: &Resource) -> &file::Spec {
    let Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) = &resource.desired else {
        panic!("not a present file: {resource:?}")
    };
    spec
}
