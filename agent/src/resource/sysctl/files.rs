//! Who else sets a key at boot: the files of sysctl.d(5), in the order in which they are read.
//!
//! A file in an earlier directory hides those of its name in later ones, whatever it holds; a link to /dev/null hides them and
//! holds nothing. They are read in the order of their names, whatever their directory, and the last to set a key has it.
//! A pattern never has a key that some file names, and ours does, so patterns are left out. /etc/sysctl.conf is read last: by
//! procps always, and by systemd through the link `99-sysctl.conf`, which then is the one that is named.

use std::collections::{BTreeMap, HashMap};
use std::io;

use super::{Assignment, to_path};
use crate::host::root::Root;
use crate::resource::AbsPath;

/// The directories, the strongest first. The last is where /lib is no link.
const DIRECTORIES: [&str; 5] =
    ["/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d"];
const LAST: &str = "/etc/sysctl.conf";
/// Longest file, and most files in a directory, that are read.
const MAX_FILE: u64 = 1024 * 1024;
const MAX_FILES: usize = 10_000;
/// As many hops as the kernel follows.
const MAX_HOPS: usize = 40;

/// Every key that files set, and by which lines, in the order in which they are read.
#[derive(Debug, Default)]
pub(in crate::resource) struct Assignments(HashMap<String, Vec<(Turn, Assignment)>>);

/// When a file is read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// By its name, among those of the directories.
    Name(String),
    /// After those.
    Last,
}

impl Assignments {
    /// Reads all of them. The error names what could not be read.
    pub(in crate::resource) fn read(root: &Root) -> Result<Self, String> {
        let mut files: BTreeMap<Turn, AbsPath> = BTreeMap::new();
        for directory in DIRECTORIES {
            let path = AbsPath::new(directory).map_err(|e| e.to_string())?;
            let names = root.list_names(&path, MAX_FILES).map_err(|e| format!("cannot list `{directory}`: {e}"))?;
            for name in names.into_iter().flatten() {
                let Some(name) = name.to_str().filter(|name| name.ends_with(".conf")) else { continue };
                if let Ok(path) = path.join(name) {
                    files.entry(Turn::Name(name.to_owned())).or_insert(path);
                }
            }
        }
        files.insert(Turn::Last, AbsPath::new(LAST).map_err(|e| e.to_string())?);
        let mut assignments = Self::default();
        let mut is_linked = false;
        for (turn, path) in files {
            let (path_read, content) =
                content(root, &path).map_err(|e| format!("cannot read `{path}`: {e}"))?.unwrap_or_default();
            if turn == Turn::Last && is_linked {
                continue;
            }
            is_linked |= path_read == LAST;
            assignments.add(&turn, &path.to_string(), &content);
        }
        Ok(assignments)
    }

    fn add(&mut self, turn: &Turn, file: &str, content: &[u8]) {
        for (at, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let Some((key, value)) = parse(&line) else { continue };
            let assignment = Assignment { file: file.to_owned(), line: at + 1, value: value.to_owned() };
            self.0.entry(to_path(key)).or_default().push((turn.clone(), assignment));
        }
    }

    /// What is said of a key after the file of this name in /etc/sysctl.d, and what is said last; that file left out.
    pub(super) fn others(&self, path: &str, ours: &str) -> (Option<&Assignment>, Option<&Assignment>) {
        let ours = Turn::Name(ours.to_owned());
        let others = || self.0.get(path).into_iter().flatten().filter(|(turn, _)| *turn != ours);
        let later = others().rfind(|(turn, _)| *turn > ours).map(|(_, assignment)| assignment);
        (later, others().next_back().map(|(_, assignment)| assignment))
    }
}

/// `key = value`, a mark before it allowed; `None` for everything else.
fn parse(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with(['#', ';']) {
        return None;
    }
    let (key, value) = line.split_once('=')?;
    let key = key.trim();
    let key = key.strip_prefix('-').unwrap_or(key).trim();
    let is_name = !key.is_empty() && !key.contains(['*', '?', '[']);
    is_name.then(|| (key, value.trim()))
}

/// A file's content, through links, and where it was found. `None` where there is none, or a link that leads to none.
fn content(root: &Root, path: &AbsPath) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut path = path.clone();
    for _ in 0..MAX_HOPS {
        match root.read(&path, MAX_FILE) {
            Ok(found) => return Ok(found.map(|(content, _)| (path.to_string(), content))),
            // A link, a device such as /dev/null, or a directory.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
            Err(e) => return Err(e),
        }
        let Ok(Some(target)) = root.read_link(&path) else { return Ok(None) };
        let Some(next) = target.to_str().and_then(|target| joined(&path, target)) else { return Ok(None) };
        path = next;
    }
    Ok(None)
}

/// Where a link leads, by its text.
fn joined(link: &AbsPath, target: &str) -> Option<AbsPath> {
    let link = link.to_string();
    let base = if target.starts_with('/') { "" } else { link.rsplit_once('/')?.0 };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    AbsPath::new(&format!("/{}", parts.join("/"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test writes what an administrator would")]
    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                None => std::fs::write(path, content).unwrap(),
            }
        }
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    /// What is said of kernel.x after `60-rekindle-kernel.x.conf`, and what is said last.
    #[track_caller]
    fn check(files: &[(&str, &str)], later: Option<&str>, last: Option<&str>) {
        let (_dir, root) = tree(files);
        let assignments = Assignments::read(&root).unwrap();
        let shown = |found: Option<&Assignment>| found.map(|a| format!("{}:{}={}", a.file, a.line, a.value));
        let (found, found_last) = assignments.others("kernel/x", "60-rekindle-kernel.x.conf");
        assert_eq!((shown(found).as_deref(), shown(found_last).as_deref()), (later, last));
    }

    #[test]
    fn the_last_to_be_read_has_a_key() {
        check(&[], None, None);
        let ours = ("etc/sysctl.d/60-rekindle-kernel.x.conf", "kernel.x = 1\n");
        check(&[ours], None, None);
        let before = ("usr/lib/sysctl.d/50-a.conf", "# c\nkernel.x=2\n");
        check(&[ours, before], None, Some("/usr/lib/sysctl.d/50-a.conf:2=2"));
        let after = ("usr/lib/sysctl.d/99-z.conf", "kernel/x = 3\n -kernel.x = 4 # not a comment\n");
        let found = "/usr/lib/sysctl.d/99-z.conf:2=4 # not a comment";
        check(&[ours, before, after], Some(found), Some(found));
        // Hidden by a file of its name, by an empty one, and by a link to nothing.
        for hiding in ["kernel.y = 1\n", "", "-> /dev/null"] {
            check(
                &[ours, before, after, ("run/sysctl.d/99-z.conf", hiding)],
                None,
                Some("/usr/lib/sysctl.d/50-a.conf:2=2"),
            );
        }
        // Patterns, other keys, other names.
        check(
            &[
                ours,
                ("etc/sysctl.d/99.conf", "kernel.* = 9\n-kernel.x\nkernel.xx = 1\n"),
                ("etc/sysctl.d/99.bak", "kernel.x=7\n"),
            ],
            None,
            None,
        );
    }

    #[test]
    fn sysctl_conf_is_the_last_by_itself_or_by_its_link() {
        let conf = ("etc/sysctl.conf", "kernel.x = 5\n");
        check(&[conf], Some("/etc/sysctl.conf:1=5"), Some("/etc/sysctl.conf:1=5"));
        let link = ("etc/sysctl.d/99-sysctl.conf", "-> ../sysctl.conf");
        check(&[conf, link], Some("/etc/sysctl.d/99-sysctl.conf:1=5"), Some("/etc/sysctl.d/99-sysctl.conf:1=5"));
        let later = ("etc/sysctl.d/zz.conf", "kernel.x = 6\n");
        check(&[conf, link, later], Some("/etc/sysctl.d/zz.conf:1=6"), Some("/etc/sysctl.d/zz.conf:1=6"));
        // A loop of links is nothing to read.
        check(&[("etc/sysctl.d/a.conf", "-> b.conf"), ("etc/sysctl.d/b.conf", "-> a.conf")], None, None);
    }
}
