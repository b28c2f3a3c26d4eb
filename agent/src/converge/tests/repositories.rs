//! Repositories of packages: their files, and who reads them.

use super::*;
use crate::resource::Action;
use crate::resource::repository::{self, Form, Key, Name, Source, Spec};

const SOURCES: &str = "/etc/apt/sources.list.d/internal.sources";
const KEY: &str = "/etc/apt/keyrings/rekindle-internal.asc";

fn named(ensure: Ensure<Spec>) -> DesiredState {
    let desired = repository::Desired { name: Name::new("internal").unwrap(), ensure };
    desired_of(resource(Kind::Repository, "internal", Desired::Repository(Box::new(desired))))
}

fn desired_of(resource: Resource) -> DesiredState {
    super::desired(vec![resource])
}

pub(super) fn internal(form: Form, expires: Option<i64>) -> DesiredState {
    let words = |word: &str| vec![word.to_owned()];
    let source = Source::Apt {
        types: words("deb"),
        uris: words("https://apt.acme.example"),
        suites: words("bookworm"),
        components: words("main"),
        architectures: Vec::new(),
    };
    named(Ensure::Present(Spec { source, key: Key { bytes: b"key\n".to_vec(), form, expires } }))
}

#[test]
fn its_files_come_are_kept_and_go() {
    let mut world = World::new();
    let declared = internal(Form::Armored, None);
    insta::assert_snapshot!(world.plan(&declared).to_text(), @"
    create repository[internal]  (drift; policy.toml:3:1)
        file: (none) → /etc/apt/keyrings/rekindle-internal.asc
        file: (none) → /etc/apt/sources.list.d/internal.sources
    1 to change, 0 in sync
    ");
    assert!(world.converge(&declared).converged());
    assert_eq!((world.read(KEY).as_str(), world.mode(KEY), world.mode(SOURCES)), ("key\n", 0o644, 0o644));
    assert_eq!(world.fakes.packages.refreshed(), [SOURCES]);
    assert!(world.plan(&declared).is_empty());

    // Whatever is done to either is undone, and the package manager hears of it.
    world.write(SOURCES, "Types: deb\nTrusted: yes\n");
    world.write(KEY, "another key\n");
    let plan = world.plan(&declared).to_text();
    assert!(plan.contains("update repository[internal]") && plan.contains("-Trusted: yes"), "{plan}");
    assert!(plan.contains("-another key") && plan.contains("+key"), "{plan}");
    assert!(world.converge(&declared).converged());
    assert!(world.read(SOURCES).contains(&format!("\nSigned-By: {KEY}\n")), "{}", world.read(SOURCES));
    assert_eq!(world.fakes.packages.refreshed().len(), 2);

    // Both are kept, and the history names what people know.
    for replaced in ["Types: deb\nTrusted: yes\n", "another key\n"] {
        let kept = crate::record::kept(world.state.path(), &crate::resource::digest(replaced.as_bytes())).unwrap();
        assert_eq!(kept.as_deref(), Some(replaced.as_bytes()));
    }

    // A key of the other form has another name; the old one is of no use to anybody.
    assert!(world.converge(&internal(Form::Binary, None)).converged());
    assert!(!world.path(KEY).exists() && world.path("/etc/apt/keyrings/rekindle-internal.gpg").exists());

    let absent = named(Ensure::Absent);
    assert_eq!(world.plan(&absent).steps[0].action, Action::Remove);
    assert!(world.converge(&absent).converged());
    assert!(!world.path(SOURCES).exists() && !world.path("/etc/apt/keyrings/rekindle-internal.gpg").exists());
    assert!(world.plan(&absent).is_empty());
    assert_eq!(world.fakes.packages.refreshed().len(), 3, "there is nothing to read any more");
}

#[test]
fn a_key_that_ends_soon_is_told_of_and_holds_nothing_up() {
    let mut world = World::new();
    let soon = jiff::Timestamp::now().as_second() + 86_400;
    let declared = internal(Form::Armored, Some(soon));
    let report = world.converge(&declared);
    assert_eq!(outcomes(&report), ["changed repository[internal]"]);
    let report = world.converge(&declared);
    assert_eq!(outcomes(&report), ["reported repository[internal]"]);
    assert!(report.converged_but_reports());
    let plan = world.plan(&declared).to_text();
    assert!(plan.contains("failing repository[internal]") && plan.contains("key: expires on "), "{plan}");
    assert_eq!(world.fakes.packages.refreshed().len(), 1);
    assert!(world.converge(&internal(Form::Armored, Some(soon + 60 * 86_400))).converged());
}
