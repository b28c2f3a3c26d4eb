//! A policy repository, and what the courier would make of it.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use rekindle::config::{PolicySettings, TrustSettings};
use rekindle::spool::{FetchResult, Spool};

use crate::support::{Host, tool, write};

/// Where people write policies for a host.
pub(crate) struct Policies {
    work: PathBuf,
    bare: PathBuf,
    inbox: PathBuf,
}

impl Policies {
    /// Makes the repository, and has the host take its policy from there.
    pub(crate) fn of(host: &mut Host) -> Self {
        let work = host.beside("work");
        let bare = host.settings.paths.repository();
        tool("git", &["init", "-q", "--bare", bare.to_str().unwrap()]);
        tool("git", &["init", "-q", "-b", "main", work.to_str().unwrap()]);
        host.settings.policy = Some(PolicySettings {
            url: format!("file://{}", work.display()),
            branch: "main".to_owned(),
            interval: Duration::from_secs(3600),
            trust: TrustSettings::None,
            ca: None,
            ssh_key: None,
            known_hosts: None,
            token_file: None,
            timeout: Duration::from_secs(60),
        });
        Self { work, bare, inbox: host.settings.paths.inbox() }
    }

    /// Where the files are.
    pub(crate) fn directory(&self) -> &std::path::Path {
        &self.work
    }

    /// Commits the text of policy.toml as this author, and puts it where the courier puts what it fetched. Returns the commit.
    pub(crate) fn commit(&self, author: &str, policy: &str) -> String {
        write(&self.work.join("policy.toml"), policy);
        self.commit_all(author)
    }

    /// Commits everything as it is.
    pub(crate) fn commit_all(&self, author: &str) -> String {
        let (work, bare) = (self.work.to_str().unwrap(), self.bare.to_str().unwrap());
        let (name, email) = (format!("user.name={author}"), format!("user.email={author}@example.org"));
        tool("git", &["-C", work, "add", "-A"]);
        let message = format!("policy: Change by {author}");
        let identity = ["-C", work, "-c", &name, "-c", &email, "-c", "commit.gpgsign=false"];
        tool("git", &[&identity[..], &["commit", "-q", "--allow-empty", "-m", &message]].concat());
        tool("git", &["-C", work, "push", "-q", "-f", bare, "HEAD:refs/policy/current"]);
        self.announce()
    }

    /// Says what the courier says after each pull. Returns the commit.
    pub(crate) fn announce(&self) -> String {
        let commit = tool("git", &["-C", self.work.to_str().unwrap(), "rev-parse", "HEAD"]).trim().to_owned();
        let fetched =
            FetchResult { version: 1, at: Timestamp::now(), commit: Some(commit.clone()), error: None, answers: None };
        Spool::open(&self.inbox).unwrap().write_slot(&fetched).unwrap();
        commit
    }
}
