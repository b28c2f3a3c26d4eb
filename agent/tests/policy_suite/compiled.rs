//! The compiled form of a policy: what is read back is what was compiled, or nothing.

use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rekindle::policy::compile::Inputs;
use rekindle::policy::compiled::{self, Kept, Key};
use rekindle::policy::secret::Secrets;
use rekindle::policy::trust::{Verified, store};
use rekindle::policy::{DesiredState, Orphans};
use rekindle::resource::{Content, Desired, Ensure, Kind};

use crate::support::{compile, facts, host, policy, write_files};

const EVERYTHING: &str = r#"
[policy]
name = "everything"
orphans = "remove"
lock_out = "allow"
break_glass = ["deploy"]

[user.deploy]
group = "adm"
groups = ["sudo"]
shell = "/bin/bash"
home = "/home/deploy"
comment = "Deployment"
password = { hash = "$6$saltsaltsalt$CX9cWsXhJCTxfVFcsOJKHLcLtJbLTNyLHvIyCa.CWwyZrMmUEGoFcXBTRHuHzNEq0Lr1MS4mMAw1HnkbWrQ930" }
authorized_keys = []

[user.gone]
state = "absent"

[group.web]
gid = 1050

[package.nginx]
version = "1.22.1-9"

[package.telnetd]
state = "absent"

[repository.internal]
apt = { uris = ["https://apt.acme.example"], suites = ["bookworm"], components = ["main"], key = "keys/acme.asc" }

[service.nginx]
state = "running"
enabled = true

[directory."/etc/nginx"]
mode = "0750"
purge = "recursive"
keep = ["*.local"]
recurse = { group = "adm", file_mode = "0640" }

[directory."/etc/nginx/sites/on"]

[symlink."/etc/nginx/on"]
target = "/etc/nginx/nginx.conf"

[file."/etc/nginx/nginx.conf"]
source = "files/nginx.conf"
owner = "deploy"
mode = "0640"
reloads = ["nginx"]
requires = ["package[nginx]"]
on_drift = "report"
validate = ["/usr/sbin/nginx", "-t", "-c", "{}"]
hardlink = "in-place"
description = "the web server"
tags = ["web"]

[setting."/etc/login.defs"]
format = "space"
values = { UMASK = "027", PASS_MAX_DAYS = 365 }
confirm = { within = "2m", by = "ssh" }

[sysctl."net.ipv4.conf.eth0/100.rp_filter"]
value = 1

[kernel_module.usb-storage]
state = "blocked"

[mount."/srv"]
source = "/dev/vdb1"
fstype = "ext4"
options = ["nodev"]

[command.index]
run = ["/usr/bin/index"]
owed_by = ["file[/etc/copy]"]
env = { A = "b" }

[check.mail]
run = ["/usr/bin/true"]
waiver = { until = 2099-01-01, reason = "known", owner = "ops" }

[sweep.setuid]
under = ["/usr"]
match = { setuid = true }
except = ["/usr/lib/x"]

[file."/etc/copy"]
source = "files/nginx.conf"

[file."/etc/empty"]
content = ""

[file."/etc/none"]
state = "absent"
"#;

const NGINX: &str = "worker_processes 1;\n";

/// A stored policy that has everything in it, compiled and written down.
struct Fixture {
    _dir: tempfile::TempDir,
    home: PathBuf,
    verified: Verified,
    state: DesiredState,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let verified = policy(&[
            ("policy.toml", EVERYTHING),
            ("files/nginx.conf", NGINX),
            ("keys/acme.asc", include_str!("acme.asc")),
        ]);
        let compiled =
            compile(&verified, Some(&host())).unwrap_or_else(|diagnostics| panic!("{}", diagnostics.render(false)));
        let home = store(&verified, dir.path()).unwrap();
        let fixture = Self { _dir: dir, home, verified, state: compiled.state };
        fixture.write();
        fixture
    }

    fn write(&self) {
        compiled::write(&self.home, &self.key("program"), Some("ops@example.org"), &self.state).unwrap();
    }

    fn key(&self, program: &str) -> Key {
        let secrets = Secrets::Unread;
        let inputs = Inputs { facts: &facts(), roles: &[], host: Some(&host()), secrets: &secrets };
        Key::new(program, self.verified.revision(), &inputs)
    }

    fn load(&self) -> Result<Option<Kept>, String> {
        let loaded = compiled::load(&self.home, self.verified.revision(), &self.key("program"));
        loaded.map_err(|error| rekindle::resource::chain(&error))
    }

    fn path(&self) -> PathBuf {
        self.home.join("compiled")
    }
}

fn contents(state: &DesiredState) -> Vec<(&str, &Content)> {
    let resources = state.resources().iter();
    resources.filter_map(|resource| content(&resource.desired).map(|content| (&*resource.id.name, content))).collect()
}

fn content(desired: &Desired) -> Option<&Content> {
    match desired {
        Desired::File(file) => match &file.ensure {
            Ensure::Present(spec) => Some(&spec.content),
            Ensure::Absent => None,
        },
        Desired::Directory(_) | Desired::Symlink(_) | Desired::User(_) | Desired::Group(_) => None,
        Desired::Package(_) | Desired::Repository(_) | Desired::Service(_) | Desired::Setting(_) => None,
        Desired::Command(_) | Desired::Check(_) | Desired::Sweep(_) => None,
        Desired::Sysctl(_) | Desired::KernelModule(_) | Desired::Mount(_) => None,
    }
}

#[test]
fn what_is_read_back_is_what_was_compiled() {
    let fixture = Fixture::new();
    let kept = fixture.load().unwrap().expect("it was just written");
    assert_eq!(kept.signer.as_deref(), Some("ops@example.org"));
    assert_eq!(kept.state.name(), "everything");
    assert_eq!(kept.state.orphans(), Orphans::Remove);
    assert_eq!(kept.state.lock_out(), fixture.state.lock_out());
    assert!(kept.state.lock_out().is_meant);
    assert_eq!(kept.state.revision(), fixture.state.revision());
    assert_eq!(kept.state.resources(), fixture.state.resources());
    for resource in fixture.state.resources() {
        assert_eq!(kept.state.validator(&resource.id), fixture.state.validator(&resource.id), "{}", resource.id);
    }
    let kinds: Vec<Kind> =
        Kind::ALL.into_iter().filter(|kind| kept.state.resources().iter().all(|r| r.id.kind != *kind)).collect();
    assert_eq!(kinds, [], "kinds that are not in this test");

    let contents = contents(&kept.state);
    assert_eq!(contents.len(), 3);
    for (name, content) in &contents {
        assert!(content.store().is_some(), "{name} is in memory");
        let expected = if *name == "/etc/empty" { "" } else { NGINX };
        assert_eq!(content.bytes().unwrap(), expected.as_bytes(), "{name}");
    }
    let shared: Vec<&Content> = contents.iter().filter(|(name, _)| *name != "/etc/empty").map(|(_, c)| *c).collect();
    assert!(shared[0].is_shared_with(shared[1]), "equal contents are held once");
    let metadata = std::fs::metadata(fixture.path()).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
}

#[test]
fn what_was_made_from_something_else_is_not_taken() {
    let fixture = Fixture::new();
    let revision = fixture.verified.revision();
    let facts = facts();
    let view = host();
    let same = Inputs { facts: &facts, roles: &[], host: Some(&view), secrets: &Secrets::Unread };
    let load = |program: &str, inputs: &Inputs<'_>| {
        compiled::load(&fixture.home, revision, &Key::new(program, revision, inputs)).unwrap().is_some()
    };
    assert!(load("program", &same));
    assert!(!load("another build", &same));
    assert!(!load("program", &Inputs { roles: &["web".to_owned()], ..same }));
    assert!(!load("program", &Inputs { host: None, ..same }));
    assert!(!load("program", &Inputs { secrets: &Secrets::Missing("why".into()), ..same }));
    let [one, other] = [(); 2].map(|()| Secrets::With(crate::secrets::Place::new().keys()));
    let with = |secrets| Key::new("program", revision, &Inputs { secrets, ..same });
    assert_ne!(with(&one), with(&Secrets::Unread));
    assert_ne!(with(&one), with(&other));
    assert_eq!(with(&one), with(&one.clone()));
    let mut more = host();
    more.users.insert("new".to_owned());
    assert!(!load("program", &Inputs { host: Some(&more), ..same }));
    let mut other = facts.clone();
    other.hostname = "web2".to_owned();
    assert!(!load("program", &Inputs { facts: &other, ..same }));
}

/// Damages what is there.
type Damage = fn(&Path);

#[test]
fn what_is_damaged_or_foreign_is_never_taken() {
    let cases: [(&str, Damage); 7] = [
        ("something behind it", |path| {
            let file = open(path);
            file.write_all_at(b"x", file.metadata().unwrap().len()).unwrap();
        }),
        ("writable by its group", |path| chmod(path, 0o620)),
        ("writable by others", |path| chmod(path, 0o602)),
        ("another owner", |path| std::os::unix::fs::chown(path, Some(65534), None).unwrap()),
        ("a home that others may write", |path| chmod(path.parent().unwrap(), 0o777)),
        ("a link", |path| {
            std::fs::rename(path, path.with_extension("elsewhere")).unwrap();
            symlink(path.with_extension("elsewhere"), path).unwrap();
        }),
        ("a FIFO", |path| {
            std::fs::remove_file(path).unwrap();
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap();
        }),
    ];
    for (what, damage) in cases {
        let fixture = Fixture::new();
        damage(&fixture.path());
        let error = fixture.load().err();
        assert!(error.is_some(), "{what} was taken");
        chmod(&fixture.home, 0o700);
        // It is written anew in its place.
        fixture.write();
        assert!(fixture.load().unwrap().is_some(), "{what}");
    }
}

#[test]
fn no_bit_can_be_changed_unseen() {
    let fixture = Fixture::new();
    let whole = std::fs::read(fixture.path()).unwrap();
    let file = open(&fixture.path());
    let n_contents = NGINX.len();
    for at in 0..whole.len() {
        for bit in [1, 1 << 7] {
            file.write_all_at(&[whole[at] ^ bit], at.try_into().unwrap()).unwrap();
            match fixture.load() {
                // The key is another then.
                Ok(None) => assert!((8..40).contains(&at), "byte {at}"),
                Err(error) => assert!(error.contains("is damaged"), "byte {at}: {error}"),
                Ok(Some(kept)) => {
                    // Contents are looked at when they are read.
                    assert!(at >= whole.len() - n_contents, "byte {at} of {}", whole.len());
                    let (damaged, sound): (Vec<_>, Vec<_>) =
                        contents(&kept.state).into_iter().partition(|(_, content)| content.bytes().is_err());
                    assert_eq!((damaged.len(), sound.len()), (2, 1), "byte {at}: {damaged:?} {sound:?}");
                    assert!(kept.store.is_damaged());
                }
            }
        }
        file.write_all_at(&[whole[at]], at.try_into().unwrap()).unwrap();
    }
    assert!(fixture.load().unwrap().is_some());
}

#[test]
fn what_is_cut_short_is_never_taken() {
    let fixture = Fixture::new();
    let whole = std::fs::read(fixture.path()).unwrap();
    for length in (0..whole.len()).rev() {
        open(&fixture.path()).set_len(length.try_into().unwrap()).unwrap();
        assert!(fixture.load().is_err(), "{length} of {} bytes were taken", whole.len());
    }
    fixture.write();
    assert!(fixture.load().unwrap().is_some());
}

#[test]
fn what_a_kill_left_is_in_nobodys_way() {
    let fixture = Fixture::new();
    compiled::remove(&fixture.home).unwrap();
    compiled::remove(&fixture.home).unwrap();
    assert!(fixture.load().unwrap().is_none());
    write_files(&fixture.home, &[(".compiled.tmp", b"left by a kill")]);
    fixture.write();
    assert!(fixture.load().unwrap().is_some());
    assert!(!fixture.home.join(".compiled.tmp").exists());
    // Nobody but root can have done this: it is told, and stays.
    std::fs::remove_file(fixture.path()).unwrap();
    std::fs::create_dir(fixture.path()).unwrap();
    assert!(fixture.load().is_err());
    assert!(compiled::write(&fixture.home, &fixture.key("program"), None, &fixture.state).is_err());
    assert!(!fixture.home.join(".compiled.tmp").exists());
}

fn open(path: &Path) -> std::fs::File {
    std::fs::File::options().read(true).write(true).open(path).unwrap()
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
