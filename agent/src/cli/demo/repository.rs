//! The demo's policy repository: a real bare git repository, whose every commit is signed.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use gix::objs::tree::{Entry, EntryKind};
use gix::objs::{Kind, Tree, Write as _};
use jiff::Timestamp;

use super::signer::Signer;

/// Who signs.
pub(super) const SIGNER: &str = "demo@rekindle";

/// A bare repository and the key that signs its commits.
#[derive(Debug)]
pub(super) struct Repository {
    path: PathBuf,
    signer: Signer,
    head: Option<String>,
}

impl Repository {
    /// Makes an empty repository and a key.
    pub(super) fn init(path: PathBuf) -> anyhow::Result<Self> {
        gix::init_bare(&path).context("cannot make a git repository")?;
        Ok(Self { path, signer: Signer::generate()?, head: None })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Content of the allowed_signers file that trusts its commits.
    pub(super) fn allowed_signers(&self) -> String {
        self.signer.allowed_signer(SIGNER)
    }

    /// The key as a line of an authorized_keys file.
    pub(super) fn public_key(&self) -> String {
        self.signer.public_key(SIGNER)
    }

    /// Commits these files to `main`, signed. Returns the commit's id.
    pub(super) fn commit(&mut self, message: &str, files: &[(&str, &str)]) -> anyhow::Result<String> {
        let repository = gix::open_opts(&self.path, gix::open::Options::isolated())?;
        let mut entries = Vec::new();
        for (name, content) in files {
            let oid = repository.write_blob(content.as_bytes())?.detach();
            entries.push(Entry { mode: EntryKind::Blob.into(), filename: (*name).into(), oid });
        }
        entries.sort();
        let tree = repository.write_object(&Tree { entries })?.detach();
        let parent = self.head.as_ref().map_or(String::new(), |head| format!("parent {head}\n"));
        let who = format!("Demo <demo@rekindle.invalid> {} +0000", Timestamp::now().as_second());
        let header = format!("tree {tree}\n{parent}author {who}\ncommitter {who}\n");
        let payload = format!("{header}\n{message}\n");
        let signature = self.signer.sign(payload.as_bytes()).replace('\n', "\n ");
        let commit = format!("{header}gpgsig {signature}\n\n{message}\n");
        let id = repository
            .objects
            .write_buf(Kind::Commit, commit.as_bytes())
            .map_err(|e| anyhow::anyhow!("cannot write a commit: {e}"))?;
        repository.reference("refs/heads/main", id, gix::refs::transaction::PreviousValue::Any, "demo")?;
        let id = id.to_string();
        self.head = Some(id.clone());
        Ok(id)
    }
}
