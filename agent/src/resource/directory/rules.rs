//! What may be beneath a directory, and whose it is: rules over a tree, in one resource.
//!
//! Pure: each entry is judged by itself, from its path, its metadata and the time. Names are bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use gix::bstr::ByteSlice;
use gix::glob::wildmatch;

use crate::host::attic::FOREIGN_ATTIC;
use crate::host::root::{FileType, Metadata, is_temporary};
use crate::host::stage::FOREIGN_STAGE;
use crate::resource::{AbsPath, Mode, Principal};

/// What holds beneath a directory.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Rules {
    /// What is not declared is removed.
    pub purge: Option<Purge>,
    /// Who owns what is beneath, and with which modes.
    pub recurse: Option<Recurse>,
    /// What the policy declares there: known from its other resources.
    #[serde(skip)]
    pub declared: Declared,
}

/// What is removed when nobody declares it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Purge {
    /// How far down.
    pub depth: Depth,
    /// Patterns of what stays, with everything in it and the directories above it: of names at any depth, or with a slash of
    /// paths from the directory.
    pub keep: Box<[Box<str>]>,
    /// Most entries that are removed in one step, all that is in removed directories included.
    pub limit: u64,
}

/// How far down a directory is purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Depth {
    /// Nothing is: a purge of a directory above ends here.
    Nothing,
    /// What is in the directory itself and no directory.
    Entries,
    /// Everything beneath it, directories with all that is in them.
    Recursive,
}

/// Owner, group and modes of what is beneath; `None` is not looked at. Links and special files are left alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Recurse {
    /// Owner of all.
    pub owner: Option<Principal>,
    /// Group of all.
    pub group: Option<Principal>,
    /// Permission bits of regular files.
    pub file_mode: Option<Mode>,
    /// Permission bits of directories.
    pub directory_mode: Option<Mode>,
}

/// The paths beneath a directory that a policy speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Declared {
    /// Whole paths, in order of their bytes, each once.
    pub paths: Box<[Arc<str>]>,
    /// Those of directories that say themselves what is purged in them, in order.
    pub with_purge: Box<[Arc<str>]>,
    /// Those of directories that say themselves whose everything in them is, in order.
    pub with_recurse: Box<[Arc<str>]>,
    /// Directories beneath in which a recursive purge has to notice what comes.
    pub inner: Box<[AbsPath]>,
}

/// What a policy says of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// It is declared.
    Declared,
    /// Something beneath it is declared.
    Above,
    /// Nothing.
    Nothing,
}

/// What is to be done about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Nobody declares it: it goes, unless it is a directory and something in it is [kept](Judge::keeps).
    Undeclared,
    /// Its owner, group and mode are the rule's.
    Ruled,
    /// Nothing; whether to look at what is in it, if it is a directory.
    Enter,
    /// Nothing, nor anything in it.
    Pass,
}

/// What a directory and its rules say, entry by entry.
#[derive(Debug)]
pub struct Judge<'a> {
    rules: &'a Rules,
    /// The whole path of an entry; kept for its memory.
    whole: Vec<u8>,
    /// Length of the directory's own path with its slash.
    n_own: usize,
    /// Nanoseconds since the epoch.
    now_ns: i128,
}

/// Time for which what an editor or a package manager leaves is spared.
const SPARED_NS: i128 = 3600 * 1_000_000_000;

impl<'a> Judge<'a> {
    /// For the rules of the directory at `path`.
    pub fn new(path: &AbsPath, rules: &'a Rules, now: jiff::Timestamp) -> Self {
        let mut whole = path.as_path().as_os_str().as_bytes().to_vec();
        if whole != b"/" {
            whole.push(b'/');
        }
        Self { rules, n_own: whole.len(), whole, now_ns: now.as_nanosecond() }
    }

    /// Judges by the rule about what may be there.
    pub fn purge(&mut self, path: &Path, metadata: &Metadata) -> Judgement {
        let Some(purge) = &self.rules.purge else { return Judgement::Pass };
        let relative = path.as_os_str().as_bytes();
        let name = name_of(relative);
        // What is mounted somewhere was put there by somebody who knew, and holds what is not here.
        if is_store(name, metadata) || metadata.is_mount || purge.keeps(relative) {
            return Judgement::Pass;
        }
        match (self.says(relative), purge.depth) {
            (_, Depth::Nothing) | (Says::Declared | Says::Above, Depth::Entries) => Judgement::Pass,
            (Says::Declared, Depth::Recursive) if holds(&self.rules.declared.with_purge, &self.whole) => {
                Judgement::Pass
            }
            (Says::Declared | Says::Above, Depth::Recursive) => Judgement::Enter,
            (Says::Nothing, Depth::Entries) if metadata.file_type == FileType::Directory => Judgement::Pass,
            // What is kept there may be about to come, as what is declared may.
            (Says::Nothing, Depth::Recursive)
                if metadata.file_type == FileType::Directory && purge.directories().any(|path| path == relative) =>
            {
                Judgement::Enter
            }
            (Says::Nothing, _) if is_leftover(name, metadata) && self.is_fresh(metadata) => Judgement::Pass,
            (Says::Nothing, _) => Judgement::Undeclared,
        }
    }

    /// Whether a pattern of the purge matches a path, or its name.
    pub fn keeps(&self, path: &Path) -> bool {
        self.rules.purge.as_ref().is_some_and(|purge| purge.keeps(path.as_os_str().as_bytes()))
    }

    /// Judges by the rule about whose it is.
    pub fn recurse(&mut self, path: &Path, metadata: &Metadata) -> Judgement {
        let relative = path.as_os_str().as_bytes();
        let name = name_of(relative);
        if self.rules.recurse.is_none() || is_store(name, metadata) || is_temporary(OsStr::from_bytes(name)) {
            return Judgement::Pass;
        }
        // The root of what is mounted there is another file system's, and is looked after where that is.
        if metadata.is_mount {
            return Judgement::Pass;
        }
        match (self.says(relative), metadata.file_type) {
            (_, FileType::Symlink | FileType::Special) => Judgement::Pass,
            (Says::Declared, FileType::Directory) if !holds(&self.rules.declared.with_recurse, &self.whole) => {
                Judgement::Enter
            }
            (Says::Declared, FileType::File | FileType::Directory) => Judgement::Pass,
            (Says::Above | Says::Nothing, FileType::File | FileType::Directory) => Judgement::Ruled,
        }
    }

    fn says(&mut self, relative: &[u8]) -> Says {
        self.whole.truncate(self.n_own);
        self.whole.extend_from_slice(relative);
        let paths = &self.rules.declared.paths;
        if holds(paths, &self.whole) {
            return Says::Declared;
        }
        self.whole.push(b'/');
        let next = paths.partition_point(|path| path.as_bytes() < self.whole.as_slice());
        let is_above = paths.get(next).is_some_and(|path| path.as_bytes().starts_with(&self.whole));
        self.whole.pop();
        if is_above { Says::Above } else { Says::Nothing }
    }

    /// Whether its inode changed a moment ago. The time of that, unlike the time of its content, is the kernel's own.
    fn is_fresh(&self, metadata: &Metadata) -> bool {
        let age = self.now_ns - metadata.ctime_ns;
        (-60 * 1_000_000_000..SPARED_NS).contains(&age)
    }
}

impl Purge {
    /// Whether a pattern matches a path, or its name.
    fn keeps(&self, relative: &[u8]) -> bool {
        let name = name_of(relative);
        self.keep.iter().any(|pattern| {
            let text = if pattern.contains('/') { relative } else { name };
            wildmatch(pattern.as_bytes().as_bstr(), text.as_bstr(), wildmatch::Mode::NO_MATCH_SLASH_LITERAL)
        })
    }

    /// The directories that patterns lead through and name without a wildcard, as paths from the directory.
    pub fn directories(&self) -> impl Iterator<Item = &[u8]> {
        self.keep.iter().flat_map(|pattern| {
            let above = pattern.match_indices('/').filter_map(|(at, _)| pattern.get(..at));
            above.take_while(|path| !is_wild(path)).map(str::as_bytes)
        })
    }

    /// Whether something may be kept in a directory that nobody names.
    pub fn keeps_anywhere(&self) -> bool {
        self.keep.iter().any(|pattern| pattern.rsplit_once('/').is_none_or(|(above, _)| is_wild(above)))
    }
}

/// Whether a pattern may match something that it does not spell.
fn is_wild(pattern: &str) -> bool {
    pattern.contains(['*', '?', '[', '\\'])
}

fn holds(paths: &[Arc<str>], whole: &[u8]) -> bool {
    paths.binary_search_by(|path| path.as_bytes().cmp(whole)).is_ok()
}

fn name_of(relative: &[u8]) -> &[u8] {
    relative.rsplit(|byte| *byte == b'/').next().unwrap_or(relative)
}

/// Whether it is a directory in which the agent keeps things on a mount that its own state is not on.
fn is_store(name: &[u8], metadata: &Metadata) -> bool {
    (name == FOREIGN_STAGE.as_bytes() || name == FOREIGN_ATTIC.as_bytes())
        && metadata.file_type == FileType::Directory
        // Somebody who only looks meets root's.
        && (metadata.uid == crate::host::current_ids().0 || metadata.uid == 0)
        && metadata.mode == Mode::from_bits(0o700)
}

/// What editors and package managers leave for a moment, or for a person to look at.
fn is_leftover(name: &[u8], metadata: &Metadata) -> bool {
    const SUFFIXES: [&[u8]; 19] = [
        b"~",
        b".swp",
        b".swo",
        b".swx",
        b".swpx",
        b".dpkg-new",
        b".dpkg-tmp",
        b".dpkg-dist",
        b".dpkg-old",
        b".dpkg-bak",
        b".dpkg-inst",
        b".ucf-new",
        b".ucf-dist",
        b".ucf-old",
        b".ucftmp",
        b".rpmnew",
        b".rpmsave",
        b".rpmorig",
        b".rpmmoved",
    ];
    if SUFFIXES.iter().any(|suffix| name.len() > suffix.len() && name.ends_with(suffix)) {
        return true;
    }
    if is_temporary(OsStr::from_bytes(name)) {
        return true;
    }
    // Emacs: a link to who edits the file, and its content so far.
    if name.starts_with(b".#") || name.starts_with(b"#") && name.ends_with(b"#") {
        return true;
    }
    // rpm unpacks beside the file: `name;5f3c2a1b`.
    if let Some((_, [b';', digits @ ..])) = name.split_last_chunk::<9>()
        && digits.iter().all(u8::is_ascii_hexdigit)
    {
        return true;
    }
    // Vim tries whether it can make a file; a cron job of that name would have something in it.
    name == b"4913" && metadata.size == 0
}

/// A path for people and for the manifest: text as it is, with a backslash doubled and what is no text as `\xNN`. No two paths
/// are shown alike.
pub fn shown(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => {
                    let mut bytes = [0; 4];
                    c.encode_utf8(&mut bytes).bytes().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
                }
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: i128 = 1_800_000_000_000_000_000;

    fn metadata(file_type: FileType) -> Metadata {
        Metadata {
            file_type,
            mode: Mode::from_bits(0o644),
            uid: 0,
            gid: 0,
            size: 1,
            n_links: 1,
            identity: (0, 0),
            ctime_ns: NOW_NS - SPARED_NS - 1,
            is_mount: false,
            flags: crate::host::root::Flags::default(),
            extras: crate::host::root::Extras::default(),
        }
    }

    fn rules(depth: Depth, keep: &[&str]) -> Rules {
        let shared = |paths: &[&str]| paths.iter().map(|path| Arc::from(*path)).collect();
        Rules {
            purge: Some(Purge { depth, keep: keep.iter().map(|text| Box::from(*text)).collect(), limit: 1000 }),
            recurse: Some(Recurse { owner: Some(Principal::Id(7)), ..Recurse::default() }),
            declared: Declared {
                paths: shared(&["/d/a", "/d/a.b/c", "/d/own", "/d/own/x", "/d/sub/deep/f", "/d/sub2"]),
                with_purge: shared(&["/d/own"]),
                with_recurse: shared(&["/d/own"]),
                inner: Box::default(),
            },
        }
    }

    fn judge(rules: &Rules, path: &[u8], metadata: &Metadata) -> Judgement {
        let now = jiff::Timestamp::from_nanosecond(NOW_NS).unwrap();
        Judge::new(&AbsPath::new("/d").unwrap(), rules, now).purge(Path::new(OsStr::from_bytes(path)), metadata)
    }

    #[test]
    fn what_is_declared_or_above_it_stays() {
        let rules = rules(Depth::Recursive, &["README", "*.local", "cache/**", "sub/*/kept", "x/y/*.db"]);
        let check = |path: &str, file_type, expected| {
            assert_eq!(judge(&rules, path.as_bytes(), &metadata(file_type)), expected, "{path}");
        };
        use FileType::{Directory, File, Special, Symlink};
        use Judgement::{Enter, Pass, Undeclared};
        check("a", File, Enter);
        check("a.b", Directory, Enter);
        check("a.b/c", File, Enter);
        check("a.b/d", File, Undeclared);
        check("a.", File, Undeclared);
        check("sub", Directory, Enter);
        check("sub/deep", Directory, Enter);
        check("sub/other", Directory, Undeclared);
        check("sub/other/kept", File, Pass);
        check("su", Directory, Undeclared);
        check("own", Directory, Pass);
        check("README", File, Pass);
        check("sub/README", File, Pass);
        check("x.local", Symlink, Pass);
        check("cache/deep/x", File, Pass);
        // What a path leads through stays, as directories and without being there for anything else.
        check("cache", Directory, Enter);
        check("cache", File, Undeclared);
        check("x", Directory, Enter);
        check("x/y", Directory, Enter);
        check("x/y/1.db", File, Pass);
        check("x/y/1.db", Directory, Pass);
        check("x/y/z/1.db", File, Undeclared);
        check("x/z", Directory, Undeclared);
        check("socket", Special, Undeclared);
        check(".rekindle-stage", File, Undeclared);
        let uid = crate::host::current_ids().0;
        let store = Metadata { uid, mode: Mode::from_bits(0o700), ..metadata(Directory) };
        assert_eq!(judge(&rules, b".rekindle-stage", &store), Pass);
        assert_eq!(judge(&rules, b".rekindle-other", &store), Undeclared);
        assert_eq!(judge(&rules, b"\xff", &metadata(File)), Undeclared);
        assert_eq!(judge(&rules, b"mnt", &Metadata { is_mount: true, ..metadata(Directory) }), Pass);
    }

    #[test]
    fn without_recursion_directories_are_left_alone() {
        let rules = rules(Depth::Entries, &[]);
        assert_eq!(judge(&rules, b"other", &metadata(FileType::Directory)), Judgement::Pass);
        assert_eq!(judge(&rules, b"other", &metadata(FileType::File)), Judgement::Undeclared);
        assert_eq!(judge(&rules, b"sub", &metadata(FileType::Directory)), Judgement::Pass);
    }

    #[test]
    fn leftovers_are_spared_for_an_hour_and_no_longer() {
        let rules = rules(Depth::Entries, &[]);
        let check = |name: &str, size, ago_ns: i128, expected| {
            let metadata = Metadata { size, ctime_ns: NOW_NS - ago_ns, ..metadata(FileType::File) };
            assert_eq!(judge(&rules, name.as_bytes(), &metadata), expected, "{name}");
        };
        use Judgement::{Pass, Undeclared};
        for name in [
            ".rekindle-0123456789abcdef.tmp",
            ".x.swp",
            "x~",
            "x.dpkg-new",
            "x.dpkg-dist",
            "x.rpmsave",
            "#x#",
            ".#x",
            "x;5f3c2a1b",
        ] {
            check(name, 5, 1, Pass);
            check(name, 5, SPARED_NS, Undeclared);
            // A clock that was set back must not spare it for longer.
            check(name, 5, -SPARED_NS, Undeclared);
        }
        check("4913", 0, 1, Pass);
        check("4913", 5, 1, Undeclared);
        check("~", 5, 1, Undeclared);
        check("x.conf", 5, 1, Undeclared);
    }

    #[test]
    fn whose_it_is_holds_for_what_is_not_declared_itself() {
        let rules = rules(Depth::Entries, &[]);
        let judge = |path: &str, file_type| {
            let now = jiff::Timestamp::from_nanosecond(NOW_NS).unwrap();
            Judge::new(&AbsPath::new("/d").unwrap(), &rules, now).recurse(Path::new(path), &metadata(file_type))
        };
        use FileType::{Directory, File, Symlink};
        assert_eq!(judge("a", File), Judgement::Pass);
        assert_eq!(judge("sub2", Directory), Judgement::Enter);
        assert_eq!(judge("own", Directory), Judgement::Pass);
        assert_eq!(judge("sub", Directory), Judgement::Ruled);
        assert_eq!(judge("other", File), Judgement::Ruled);
        assert_eq!(judge("other", Symlink), Judgement::Pass);
        let mounted = Metadata { is_mount: true, ..metadata(Directory) };
        let now = jiff::Timestamp::from_nanosecond(NOW_NS).unwrap();
        let mut judge = Judge::new(&AbsPath::new("/d").unwrap(), &rules, now);
        assert_eq!(judge.recurse(Path::new("other"), &mounted), Judgement::Pass);
    }

    #[test]
    fn no_two_paths_are_shown_alike() {
        let check = |bytes: &[u8], expected: &str| {
            assert_eq!(shown(Path::new(OsStr::from_bytes(bytes))), expected);
        };
        check(b"caf\xc3\xa9", "caf\u{e9}");
        check(b"a\xffb", "a\\xffb");
        check(b"a\\xffb", "a\\\\xffb");
        check(b"a\x1b[2J\n", "a\\x1b[2J\\x0a");
    }
}
