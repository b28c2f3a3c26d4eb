use std::process::Stdio;

use tempfile::TempDir;

use super::*;

/// A policy repository made by git itself, and the bare one that is pulled into.
pub(super) struct Pair {
    dir: TempDir,
}

impl Pair {
    pub(super) fn new() -> Self {
        let pair = Self { dir: tempfile::tempdir().unwrap() };
        pair.git(&["init", "-q", "-b", "main", "."]);
        pair
    }

    pub(super) fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn git(&self, args: &[&str]) -> String {
        std::fs::create_dir_all(self.source()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test needs a repository made by git itself")]
        let mut git = std::process::Command::new("git");
        git.args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]);
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        let output =
            git.args(args).current_dir(self.source()).stderr(Stdio::inherit()).output().expect("git is installed");
        assert!(output.status.success(), "git {args:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(super) fn commit(&self, name: &str, content: &str) -> String {
        let path = self.source().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "nobody else reads the test's work tree")]
        std::fs::write(path, content).unwrap();
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", name]);
        self.git(&["rev-parse", "HEAD"])
    }

    pub(super) fn request(&self) -> PullRequest {
        PullRequest {
            url: format!("file://{}", self.source().display()),
            branch: "main".into(),
            repository: self.dir.path().join("policy.git"),
            ca: None,
            ssh_key: None,
            known_hosts: None,
            token_file: None,
            timeout: Duration::from_secs(30),
            check: Check::Stored,
        }
    }

    pub(super) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        #[expect(clippy::disallowed_methods, reason = "nobody reads it yet")]
        std::fs::write(&path, content).unwrap();
        path
    }

    fn pull(&self) -> Result<String, String> {
        pull(&self.request()).map(|id| id.to_string()).map_err(|error| chain(&error))
    }

    /// What git itself says about the pulled repository: the log of its head, after checking every object.
    pub(super) fn log(&self) -> Vec<String> {
        let git_dir = self.request().repository;
        let git_dir = format!("--git-dir={}", git_dir.display());
        self.git(&[&git_dir, "fsck", "--strict", "--no-dangling"]);
        self.git(&[&git_dir, "log", "--format=%H", REFERENCE]).lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_local_branch_arrives_whole_and_grows() {
    let pair = Pair::new();
    let first = pair.commit("policy.toml", "one");
    assert_eq!(pair.pull().unwrap(), first);
    assert_eq!(pair.log(), std::slice::from_ref(&first));
    let second = pair.commit("deep/er/file", "two");
    let third = pair.commit("policy.toml", "three");
    assert_eq!(pair.pull().unwrap(), third);
    assert_eq!(pair.log(), [third.clone(), second.clone(), first.clone()]);
    assert_eq!(pair.pull().unwrap(), third, "an unchanged head is answered again");
    // A branch that was forced back is brought as it is; the agent refuses it.
    pair.git(&["reset", "-q", "--hard", &second]);
    assert_eq!(pair.pull().unwrap(), second);
    assert_eq!(pair.log(), [second, first]);
}

#[test]
fn merges_and_packed_sources_arrive() {
    let pair = Pair::new();
    pair.commit("a", "1");
    pair.git(&["checkout", "-q", "-b", "side"]);
    pair.commit("b", "2");
    pair.git(&["checkout", "-q", "main"]);
    pair.commit("c", "3");
    pair.git(&["merge", "-q", "--no-ff", "-m", "merge", "side"]);
    pair.git(&["gc", "-q"]);
    let head = pair.git(&["rev-parse", "HEAD"]);
    assert_eq!(pair.pull().unwrap(), head);
    assert_eq!(pair.log().len(), 4);
}

#[test]
fn a_pull_never_checks_out() {
    let pair = Pair::new();
    pair.commit("policy.toml", "one");
    pair.pull().unwrap();
    let repo = gix::open_opts(pair.request().repository, gix::open::Options::isolated()).unwrap();
    assert!(repo.is_bare());
    assert!(!pair.request().repository.join("policy.toml").exists());
}

#[test]
fn damage_is_repaired_by_building_anew() {
    let damage = |what: &str, harm: fn(&Path)| {
        let pair = Pair::new();
        pair.commit("policy.toml", "one");
        let head = pair.commit("policy.toml", "two");
        pair.pull().unwrap();
        harm(&pair.request().repository);
        assert_eq!(pair.pull().as_ref(), Ok(&head), "{what}");
        assert_eq!(pair.log().len(), 2, "{what}");
        let stray: Vec<_> = std::fs::read_dir(pair.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(stray.len(), 2, "{what}: {stray:?}");
    };
    damage("no HEAD", |repo| std::fs::remove_file(repo.join("HEAD")).unwrap());
    damage("no configuration", |repo| truncate(&repo.join("config")));
    damage("an empty reference", |repo| truncate(&repo.join(REFERENCE)));
    damage("empty objects", |repo| {
        for dir in std::fs::read_dir(repo.join("objects")).unwrap() {
            for object in std::fs::read_dir(dir.unwrap().path()).unwrap() {
                if object.as_ref().unwrap().path().is_file() {
                    truncate(&object.unwrap().path());
                }
            }
        }
    });
    damage("no objects", |repo| std::fs::remove_dir_all(repo.join("objects")).unwrap());
}

fn truncate(path: &Path) {
    let mut permissions = std::fs::metadata(path).unwrap().permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "git writes its objects read-only, and this is a test")]
    permissions.set_readonly(false);
    std::fs::set_permissions(path, permissions).unwrap();
    std::fs::OpenOptions::new().write(true).truncate(true).open(path).unwrap();
}

#[test]
fn what_cannot_be_pulled_says_why() {
    let pair = Pair::new();
    pair.commit("policy.toml", "one");
    let check = |change: fn(&mut PullRequest), expected: &str| {
        let mut request = pair.request();
        change(&mut request);
        let error = chain(&pull(&request).expect_err(expected));
        assert!(error.contains(expected), "expected `{expected}`: {error}");
    };
    check(|r| r.branch = "absent".into(), "there is no branch `absent` in `file://");
    check(|r| r.branch = "*".into(), "there is no branch `*`");
    check(|r| r.branch = "a:b".into(), "there is no branch `a:b`");
    check(|r| r.branch = "../x".into(), "there is no branch `../x`");
    check(|r| r.url = "file:///nowhere/at/all".into(), "cannot open the repository `/nowhere/at/all`");
    check(|r| r.url = "http://git.example.org/p.git".into(), "is not a usable git URL");
    check(|r| r.url = "git://git.example.org/p.git".into(), "is not a usable git URL");
    check(|r| r.url = "ext::sh -c id".into(), "is not a usable git URL");
    check(|r| r.url = "https://127.0.0.1:1/p.git".into(), "cannot fetch from `https://127.0.0.1:1/p.git`");
    check(
        |r| {
            r.url = "https://127.0.0.1:1/p.git".into();
            r.token_file = Some("/nowhere/token".into());
        },
        "cannot use `/nowhere/token`",
    );
}
