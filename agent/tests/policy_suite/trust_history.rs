//! A host never goes back to an older policy, whatever was lost or removed.

use std::path::Path;

use rekindle::agent::revisions::{Consideration, Contents, Revisions, consider};
use rekindle::config::{Paths, TrustSettings};
use rekindle::policy::compile::Inputs;
use rekindle::policy::facts::Facts;
use rekindle::policy::secret::Secrets;

use crate::repository::{Repository, now};
use crate::support::write_files;

/// A host, and the repository that its courier fetches from.
struct Host {
    dir: tempfile::TempDir,
    repository: Repository,
    paths: Paths,
    trust: TrustSettings,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::new();
        let key = repository.key("key", &["-t", "ed25519"]);
        write_files(dir.path(), &[("allowed_signers", format!("ops {key}\n").as_bytes())]);
        let at = |name: &str| dir.path().join(name);
        let paths = Paths {
            root: at("root"),
            state: at("state"),
            runtime: at("run"),
            program: env!("CARGO_BIN_EXE_rekindle").into(),
        };
        let trust = TrustSettings::Keys(at("allowed_signers"));
        Self { dir, repository, paths, trust }
    }

    fn commit(&self, text: &str) -> String {
        let policy = format!("[policy]\nname = 'test'\n[file.'/etc/motd']\ncontent = '{text}'\n");
        self.repository.signed_commit("key", &[("policy.toml", policy.as_bytes())])
    }

    /// Fetches everything, as the courier does, and offers one commit.
    fn offer(&self, revisions: &mut Revisions, commit: &str) -> Consideration {
        let target = self.paths.repository();
        std::fs::remove_dir_all(&target).ok();
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        self.repository.git(&["clone", "-q", "--bare", ".", target.to_str().unwrap()]);
        let facts = Facts::default();
        let inputs = Inputs { facts: &facts, roles: &[], host: None, secrets: &Secrets::Unread };
        consider(&self.paths, &self.trust, revisions, commit, &inputs, Contents::OnDisk, now())
    }

    #[track_caller]
    fn accepts(&self, revisions: &mut Revisions, commit: &str) {
        match self.offer(revisions, commit) {
            Consideration::Accepted(_) => {}
            other @ (Consideration::Nothing | Consideration::Refused(_)) => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refuses(&self, revisions: &mut Revisions, commit: &str) -> String {
        match self.offer(revisions, commit) {
            Consideration::Refused(refused) => refused.reason,
            other @ (Consideration::Nothing | Consideration::Accepted(_)) => panic!("{other:?}"),
        }
    }

    fn newest(&self) -> String {
        std::fs::read_to_string(self.paths.newest()).unwrap()
    }

    fn say(&self, text: &str) {
        let path = self.paths.newest();
        let name = path.strip_prefix(self.dir.path()).unwrap().to_str().unwrap();
        write_files(self.dir.path(), &[(name, text.as_bytes())]);
    }
}

fn remove(path: &Path) {
    std::fs::remove_dir_all(path).unwrap();
}

/// Somebody who may write to the repository, or to the state, but not to /etc, brings back a policy with a hole in it.
#[test]
fn threat_an_old_signed_policy_after_the_state_was_removed() {
    let host = Host::new();
    let mut revisions = Revisions::default();
    let old = host.commit("with a hole");
    host.accepts(&mut revisions, &old);
    let new = host.commit("mended");
    host.accepts(&mut revisions, &new);
    assert!(host.newest().contains(&new), "{}", host.newest());

    remove(&host.paths.state);
    let mut revisions = Revisions::default();
    let reason = host.refuses(&mut revisions, &old);
    assert!(reason.contains("does not descend from") && reason.contains(&new[..12]), "{reason}");
    assert!(reason.contains(&format!("echo none > {}", host.paths.newest().display())), "{reason}");
    // The repository itself was replaced by the old one.
    host.repository.git(&["reset", "-q", "--hard", &old]);
    host.repository.git(&["reflog", "expire", "--expire=now", "--all"]);
    host.repository.git(&["gc", "-q", "--prune=now"]);
    let reason = host.refuses(&mut Revisions::default(), &old);
    assert!(reason.contains("does not descend from"), "{reason}");
}

#[test]
fn the_newest_revision_itself_and_what_descends_from_it_are_taken_up_without_the_state() {
    let host = Host::new();
    let first = host.commit("1");
    host.accepts(&mut Revisions::default(), &first);
    remove(&host.paths.state);
    host.accepts(&mut Revisions::default(), &first);
    remove(&host.paths.state);
    let second = host.commit("2");
    host.accepts(&mut Revisions::default(), &second);
    assert!(host.newest().contains(&second));
}

#[test]
fn an_operator_can_let_another_history_in() {
    let host = Host::new();
    let mut revisions = Revisions::default();
    let old = host.commit("1");
    host.accepts(&mut revisions, &old);
    let new = host.commit("2");
    host.accepts(&mut revisions, &new);
    // Removing the file alone changes nothing: the state remembers.
    std::fs::remove_file(host.paths.newest()).unwrap();
    host.refuses(&mut revisions, &old);
    for damaged in ["", "yes\n", "none\nnone\n"] {
        host.say(damaged);
        let reason = host.refuses(&mut revisions, &old);
        assert!(reason.contains("is damaged") && reason.contains("hint: "), "{reason}");
        revisions.refused = None;
    }
    host.say("none\n");
    host.accepts(&mut revisions, &old);
    assert!(host.newest().contains(&old));
    // Once: what is accepted now counts again.
    let side = host.repository.git(&["commit-tree", "-m", "x", &format!("{new}^{{tree}}")]);
    host.refuses(&mut revisions, &side);
}

#[test]
fn whom_to_trust_is_only_read_from_a_file_of_roots_own() {
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::new();
    let commit = host.commit("1");
    let signers = host.dir.path().join("allowed_signers");
    std::fs::set_permissions(&signers, std::fs::Permissions::from_mode(0o666)).unwrap();
    let reason = host.refuses(&mut Revisions::default(), &commit);
    assert!(reason.contains("has mode 0666") && reason.contains("hint: run `chmod go-w"), "{reason}");
    std::fs::set_permissions(&signers, std::fs::Permissions::from_mode(0o644)).unwrap();
    write_files(host.dir.path(), &[("allowed_signers", b"\x00\xff")]);
    let reason = host.refuses(&mut Revisions::default(), &commit);
    assert!(reason.contains("neither an allowed_signers file of OpenSSH nor an OpenPGP keyring"), "{reason}");
    std::fs::remove_file(&signers).unwrap();
    let reason = host.refuses(&mut Revisions::default(), &commit);
    assert!(reason.contains("whom to trust is not known: cannot read"), "{reason}");
}
