//! The compiled form of a stored policy, kept beside its tree: a start reads one file instead of ten thousand, compiles nothing,
//! and leaves the contents of files on the disk.
//!
//! The form is worth nothing by itself. [`load`] takes it only when nobody else can have written it, when it was made by this
//! very program from this very revision for a host that looks the same ([`Key`]), and when all of it is as it was written.
//! Whatever else is there is compiled again from the tree and written anew. So no other version of this program ever has to
//! read it, and the nouns are written as they are in memory: a field that is added changes the program, and with it the key.
//!
//! The file: [`MAGIC`], the key, the length of the head, its SHA-256, the length of all contents; the head; the contents, one
//! after the other. The head is read at once and checked. Contents are read one by one when they are needed, and checked then:
//! see [`crate::resource::content`]. It comes into its place with one rename. It is synced before, but nothing relies on that: what a
//! power cut leaves is as it was written or not taken.
//!
//! Nothing secret is ever in it: of a policy that holds any there is no compiled form, and each start decrypts it again. Decrypting
//! only the secrets, by reference, would not do: a template that asks for one has to be rendered for that, with all it includes.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::compile::{Inputs, beneath};
use super::trust::{self, TrustError};
use super::{DesiredState, LockOut, Orphans, Revision};
use crate::resource::content::{self, Print, Store};
use crate::resource::place::Ownership;
use crate::resource::{
    AbsPath, Argv, Content, Desired, Ensure, Kind, Notes, Notify, OnDrift, Resource, ResourceId, SourceLocation,
    UnitName, file,
};

/// Name of the file beside the tree.
const NAME: &str = "compiled";
const MAGIC: [u8; 8] = *b"rekindle";
/// Bytes before the head.
const PREFACE: usize = 8 + 32 + 8 + 32 + 8;
/// Longest head: 200,000 resources with long names fit.
const MAX_HEAD: u64 = 512 * 1024 * 1024;

/// Everything that a compiled form depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// `program` tells this program from every other build of it.
    pub fn new(program: &str, revision: &Revision, inputs: &Inputs<'_>) -> Self {
        // Named one by one: what is added to them has to be added here.
        let Inputs { facts, roles, host, secrets } = inputs;
        let text = serde_json::to_vec(&(program, revision, facts, roles, host, secrets.fingerprint()));
        // Texts, numbers and lists can always be written.
        Self(Sha256::digest(text.expect("the inputs are plain values")).into())
    }
}

/// What a compiled form holds.
#[derive(Debug)]
pub struct Kept {
    /// What should be; its contents lie in `store`.
    pub state: DesiredState,
    /// Who signed it.
    pub signer: Option<String>,
    /// Where its contents lie.
    pub store: Arc<Store>,
}

/// Why there is no compiled form to be had.
#[derive(Debug, thiserror::Error)]
pub enum CompiledError {
    /// It could not be read, written or removed.
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It may be somebody else's.
    #[error("the compiled policy is not trusted")]
    Foreign(#[source] TrustError),
    /// It is not as it was written.
    #[error("the compiled policy `{}` is damaged: {why}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It holds secrets, which are decrypted into memory and nowhere else.
    #[error("what a policy with secrets compiles to is not written down")]
    Secret,
    /// Something in the policy cannot be written down.
    #[error("the compiled policy cannot be written down")]
    Unwritable(#[source] postcard::Error),
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CompiledError {
    let path = path.to_path_buf();
    move |source| CompiledError::Io { operation, path, source }
}

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    name: &'a str,
    orphans: Orphans,
    lock_out: LockOut,
    signer: Option<&'a str>,
    /// The key of the prints.
    key: [u64; 4],
    contents: Vec<ContentRow>,
    ownerships: Vec<Ownership>,
    /// Files of the policy that declare something.
    sources: Vec<&'a str>,
    #[serde(borrow)]
    resources: Vec<Row<'a>>,
    /// By the number of a row.
    validators: Vec<(u32, Argv)>,
}

/// In the order in which they lie in the file.
#[derive(Serialize, Deserialize)]
struct ContentRow {
    length: u64,
    sha256: [u8; 32],
    print: Print,
}

/// One resource. What many share is named by its number.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    kind: Kind,
    name: &'a str,
    desired: What,
    /// Numbers of earlier rows.
    requires: Vec<u32>,
    notifies: Vec<(Notify, UnitName)>,
    on_drift: OnDrift,
    notes: Option<Notes>,
    source: u32,
    line: u32,
    column: u32,
}

#[derive(Serialize, Deserialize)]
enum What {
    /// A file at the path that is its name.
    File(Ensure<FileRow>),
    Other(Desired),
}

#[derive(Serialize, Deserialize)]
struct FileRow {
    content: u32,
    ownership: u32,
    care: file::Care,
}

/// Numbers things in the order in which they are first seen.
struct Numbers<T> {
    known: HashMap<T, u32>,
    all: Vec<T>,
}

impl<T: Clone + Eq + std::hash::Hash> Numbers<T> {
    fn new() -> Self {
        Self { known: HashMap::new(), all: Vec::new() }
    }

    fn of(&mut self, thing: &T) -> u32 {
        if let Some(number) = self.known.get(thing) {
            return *number;
        }
        let number = u32::try_from(self.all.len()).expect("a policy has bounded resources");
        self.known.insert(thing.clone(), number);
        self.all.push(thing.clone());
        number
    }
}

/// Writes the compiled form into the home of a stored tree, durably, in place of the one that is there.
///
/// # Errors
///
/// When it cannot be written. What was there before is still there then.
pub fn write(home: &Path, key: &Key, signer: Option<&str>, state: &DesiredState) -> Result<(), CompiledError> {
    let path = home.join(NAME);
    let temporary = home.join(format!(".{NAME}.tmp"));
    remove_file(&temporary)?;
    let result = write_to(&temporary, key, signer, state).and_then(|()| {
        fs::rename(&temporary, &path).map_err(io_error("move into place", &path))?;
        File::open(home).and_then(|dir| dir.sync_all()).map_err(io_error("sync", home))
    });
    if result.is_err() {
        // The first error is the one to tell; a leftover is removed by the next attempt.
        drop(remove_file(&temporary));
    }
    result
}

/// Removes the compiled form, if there is one.
///
/// # Errors
///
/// When it is there and cannot be removed.
pub fn remove(home: &Path) -> Result<(), CompiledError> {
    remove_file(&home.join(NAME))
}

fn remove_file(path: &Path) -> Result<(), CompiledError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write_to(path: &Path, key: &Key, signer: Option<&str>, state: &DesiredState) -> Result<(), CompiledError> {
    if state.holds_secrets() {
        return Err(CompiledError::Secret);
    }
    // Here, and of each resource, all is named one by one: what is added has to be added here, or the next start would lose it.
    let DesiredState { revision: _, name, resources: all, by_id: _, orphans, lock_out, validators, mask: _, runs: _ } =
        state;
    let mut contents = Numbers::new();
    let mut ownerships = Numbers::new();
    let mut sources = Numbers::new();
    let mut resources = Vec::with_capacity(all.len());
    for resource in all {
        let Resource { id, desired, requires, notifies, on_drift, notes, source } = resource;
        let desired = if let Desired::File(file::Desired { path: _, ensure }) = desired {
            What::File(match ensure {
                Ensure::Absent => Ensure::Absent,
                Ensure::Present(file::Spec { content, ownership, care }) => {
                    let (content, ownership) = (contents.of(content), ownerships.of(ownership));
                    Ensure::Present(FileRow { content, ownership, care: *care })
                }
            })
        } else {
            What::Other(desired.clone())
        };
        resources.push(Row {
            kind: id.kind,
            name: &id.name,
            desired,
            requires: requires.iter().filter_map(|id| state.index_of(id)).collect(),
            notifies: notifies.to_vec(),
            on_drift: *on_drift,
            notes: notes.as_deref().cloned(),
            source: sources.of(&source.file),
            line: source.line,
            column: source.column,
        });
    }
    let number = |(id, argv): (&ResourceId, &Argv)| Some((state.index_of(id)?, argv.clone()));
    let validators = validators.iter().filter_map(number).collect();
    let (contents, ownerships, sources) = (contents.all, ownerships.all, sources.all);
    let print_key = random_key();
    let bytes = |content: &Content| content.bytes().map(|bytes| bytes.into_owned());
    let mut rows = Vec::with_capacity(contents.len());
    for content in &contents {
        let print = content::print(print_key, &content.bytes().map_err(io_error("read a content for", path))?);
        rows.push(ContentRow { length: as_u64(content.len()), sha256: *content.sha256(), print });
    }
    let n_bytes = rows.iter().map(|row| row.length).sum::<u64>();
    let head = Head {
        name,
        orphans: *orphans,
        lock_out: lock_out.clone(),
        signer,
        key: print_key,
        contents: rows,
        ownerships: ownerships.iter().map(|ownership: &Arc<Ownership>| Ownership::clone(ownership)).collect(),
        sources: sources.iter().map(|source| &**source).collect(),
        resources,
        validators,
    };
    let head = postcard::to_stdvec(&head).map_err(CompiledError::Unwritable)?;

    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = io::BufWriter::new(file.map_err(io_error("create", path))?);
    let digest: [u8; 32] = Sha256::digest(&head).into();
    let preface = [&MAGIC[..], &key.0, &as_u64(head.len()).to_le_bytes(), &digest, &n_bytes.to_le_bytes()].concat();
    file.write_all(&preface)
        .and_then(|()| file.write_all(&head))
        .and_then(|()| contents.iter().try_for_each(|content| file.write_all(&bytes(content)?)))
        .and_then(|()| file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all())
        .map_err(io_error("write", path))
}

/// A key that nobody can guess: the standard library keys its hashers from the kernel's random numbers.
fn random_key() -> [u64; 4] {
    [0_u8; 4].map(|_| RandomState::new().hash_one(0_u8))
}

/// Reads the compiled form beside a stored tree. `None` when there is none, or it was made from something else.
///
/// # Errors
///
/// When it cannot be read, may be somebody else's, or is damaged.
pub fn load(home: &Path, revision: &Revision, key: &Key) -> Result<Option<Kept>, CompiledError> {
    let path = home.join(NAME);
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).expect("flags of open(2) are an int");
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", &path)(error)),
    };
    let damaged = |why| CompiledError::Damaged { path: path.clone(), why };
    trust::check_owned(home).map_err(CompiledError::Foreign)?;
    let metadata = file.metadata().map_err(io_error("look at", &path))?;
    trust::check_owner(&path, &metadata).map_err(CompiledError::Foreign)?;

    let mut preface = [0; PREFACE];
    file.read_exact(&mut preface).map_err(io_error("read", &path))?;
    let mut rest = preface.as_slice();
    let mut next = |n: usize| rest.split_off(..n).unwrap_or_default();
    let (magic, made_from, head_length, digest, n_bytes) = (next(8), next(32), next(8), next(32), next(8));
    if magic != MAGIC {
        return Err(damaged("it does not begin as one"));
    }
    if made_from != key.0 {
        return Ok(None);
    }
    let number = |bytes: &[u8]| bytes.try_into().map_or(u64::MAX, u64::from_le_bytes);
    let (head_length, n_bytes) = (number(head_length), number(n_bytes));
    let length = as_u64(PREFACE).checked_add(head_length).and_then(|length| length.checked_add(n_bytes));
    if head_length > MAX_HEAD || !metadata.is_file() || length != Some(metadata.len()) {
        return Err(damaged("it has another length"));
    }
    let mut head = vec![0; usize::try_from(head_length).unwrap_or_default()];
    file.read_exact(&mut head).map_err(io_error("read", &path))?;
    if Sha256::digest(&head)[..] != *digest {
        return Err(damaged("it was changed"));
    }
    let head: Head<'_> = postcard::from_bytes(&head).map_err(|_| damaged("it cannot be decoded"))?;
    let store = Arc::new(Store::new(file, head.key));
    let signer = head.signer.map(str::to_owned);
    let state = state(revision, head, &store, as_u64(PREFACE) + head_length, n_bytes);
    Ok(Some(Kept { state: state.ok_or_else(|| damaged("its numbers fit nothing"))?, signer, store }))
}

/// `None` when the head does not fit together.
fn state(revision: &Revision, head: Head<'_>, store: &Arc<Store>, mut at: u64, n_bytes: u64) -> Option<DesiredState> {
    let end = at.checked_add(n_bytes)?;
    let mut contents = Vec::with_capacity(head.contents.len());
    for ContentRow { length, sha256, print } in head.contents {
        contents.push(Content::stored(store, at, usize::try_from(length).ok()?, sha256, print));
        at = at.checked_add(length)?;
    }
    if at != end {
        return None;
    }
    let ownerships: Vec<Arc<Ownership>> = head.ownerships.into_iter().map(Arc::new).collect();
    let sources: Vec<Arc<str>> = head.sources.into_iter().map(Arc::from).collect();
    let mut resources: Vec<Resource> = Vec::with_capacity(head.resources.len());
    for row in head.resources {
        let id = ResourceId::new(row.kind, row.name);
        let desired = match row.desired {
            What::Other(desired) => desired,
            What::File(ensure) => Desired::File(file::Desired {
                path: AbsPath::from_shared(&id.name).ok()?,
                ensure: match ensure {
                    Ensure::Absent => Ensure::Absent,
                    Ensure::Present(FileRow { content, ownership, care }) => Ensure::Present(file::Spec {
                        content: at_number(&contents, content)?.clone(),
                        ownership: Arc::clone(at_number(&ownerships, ownership)?),
                        care,
                    }),
                },
            }),
        };
        // Requirements come first, so what is required has its id already.
        let requires = row
            .requires
            .iter()
            .map(|number| Some(at_number(&resources, *number)?.id.clone()))
            .collect::<Option<_>>()?;
        let file = Arc::clone(at_number(&sources, row.source)?);
        resources.push(Resource {
            id,
            desired,
            requires,
            notifies: row.notifies.into_boxed_slice(),
            on_drift: row.on_drift,
            notes: row.notes.map(Box::new),
            source: SourceLocation { file, line: row.line, column: row.column },
        });
    }
    let mut validators = BTreeMap::new();
    for (number, argv) in head.validators {
        validators.insert(at_number(&resources, number)?.id.clone(), argv);
    }
    beneath::declare(&mut resources);
    let state = DesiredState::new(revision.clone(), head.name.to_owned(), resources);
    Some(state.with_orphans(head.orphans).with_lock_out(head.lock_out).with_validators(validators))
}

fn at_number<T>(all: &[T], number: u32) -> Option<&T> {
    all.get(usize::try_from(number).ok()?)
}

fn as_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
