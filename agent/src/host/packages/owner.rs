//! Which package a path belongs to, and as what: for a person who asks about it. Nothing is decided by the answer.
//!
//! dpkg's database is read from its own files. That of rpm is not: only [`owners`] asks rpm, for one path; [`recorded`] starts no
//! process and says that it does not know.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::exec;
use crate::host::root::Root;
use crate::resource::AbsPath;

const DPKG_LISTS: &str = "/var/lib/dpkg/info";
/// What ucf looks after for packages: `package path`, one a line.
const UCF_REGISTRY: &str = "/var/lib/ucf/registry";
const RPM_DATABASES: [&str; 2] = ["/var/lib/rpm", "/usr/lib/sysimage/rpm"];
/// Longest list of files of one package.
const MAX_LIST: u64 = 16 * 1024 * 1024;
/// Most lists.
const MAX_LISTS: usize = 200_000;
/// Directories that are links into `/usr` on a merged host, where lists may name either.
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// A package that a path belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// Its name.
    pub package: String,
    /// As what it has the path.
    pub claim: Claim,
}

/// As what a package has a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// As configuration that dpkg keeps when somebody changed it.
    Conffile,
    /// As configuration that ucf keeps for it.
    Ucf,
    /// As one of its files, replaced with each upgrade.
    File,
    /// The database was not asked.
    Unknown,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let package = &self.package;
        match self.claim {
            Claim::Conffile => write!(f, "{package} (a conffile)"),
            Claim::Ucf => write!(f, "{package} (kept by ucf)"),
            Claim::File => write!(f, "{package} (no conffile)"),
            Claim::Unknown => write!(f, "{package}"),
        }
    }
}

/// The packages that a path belongs to, by the host's package database; none when none has it.
///
/// # Errors
///
/// In words, when it could not be told.
pub fn owners(root: &Root, path: &AbsPath) -> Result<Vec<Owner>, String> {
    if root.is_live() && dpkg_lists(root)?.is_empty() && has_rpm(root)? {
        return ask_rpm(path);
    }
    let recorded = recorded(root, &BTreeSet::from([path.clone()]))?;
    Ok(recorded.into_values().next().unwrap_or_default())
}

/// The packages that each of these paths belongs to, by the files of the host's package database. Reads all of them once.
///
/// # Errors
///
/// In words, when it could not be told.
pub fn recorded(root: &Root, paths: &BTreeSet<AbsPath>) -> Result<BTreeMap<AbsPath, Vec<Owner>>, String> {
    let mut owners: BTreeMap<AbsPath, Vec<Owner>> = paths.iter().map(|path| (path.clone(), Vec::new())).collect();
    let lists = dpkg_lists(root)?;
    if lists.is_empty() {
        // No list of dpkg's is a host of another kind, or one of which only a part is here: it says nothing of who has what.
        let why = if has_rpm(root)? {
            "the database of rpm is not read".to_owned()
        } else {
            format!("`{DPKG_LISTS}` has no lists of files, and there is no database of rpm")
        };
        return Err(why);
    }
    let spelled: HashMap<String, &AbsPath> =
        paths.iter().flat_map(|path| spellings(&path.to_string()).into_iter().map(move |text| (text, path))).collect();
    for stem in lists {
        let has = lines_among(root, &format!("{DPKG_LISTS}/{stem}.list"), &spelled)?;
        if has.is_empty() {
            continue;
        }
        let conffiles = lines_among(root, &format!("{DPKG_LISTS}/{stem}.conffiles"), &spelled)?;
        let package = stem.split(':').next().unwrap_or_default();
        for path in has {
            let claim = if conffiles.contains(path) { Claim::Conffile } else { Claim::File };
            owners.entry(path.clone()).or_default().push(Owner { package: package.to_owned(), claim });
        }
    }
    for line in read(root, UCF_REGISTRY)?.unwrap_or_default().lines() {
        if let Some((package, path)) = line.trim().split_once(char::is_whitespace)
            && let Some(path) = spelled.get(path.trim())
        {
            let owner = Owner { package: package.to_owned(), claim: Claim::Ucf };
            owners.entry((*path).clone()).or_default().push(owner);
        }
    }
    for owners in owners.values_mut() {
        owners.sort();
        // The same package of two architectures.
        owners.dedup();
    }
    Ok(owners)
}

/// The paths that a list names, one a line.
fn lines_among<'a>(
    root: &Root,
    list: &str,
    spelled: &HashMap<String, &'a AbsPath>,
) -> Result<BTreeSet<&'a AbsPath>, String> {
    Ok(read(root, list)?.unwrap_or_default().lines().filter_map(|line| spelled.get(line).copied()).collect())
}

fn read(root: &Root, path: &str) -> Result<Option<String>, String> {
    let read = root.read(&absolute(path)?, MAX_LIST).map_err(|error| format!("cannot read `{path}`: {error}"))?;
    Ok(read.map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned()))
}

fn absolute(path: &str) -> Result<AbsPath, String> {
    AbsPath::new(path).map_err(|error| error.to_string())
}

/// The packages whose files dpkg has a list of, as it names them. There is none where dpkg was only installed as a tool.
fn dpkg_lists(root: &Root) -> Result<Vec<String>, String> {
    let lists = absolute(DPKG_LISTS)?;
    let names = root.list_names(&lists, MAX_LISTS).map_err(|error| format!("cannot list `{lists}`: {error}"))?;
    let stem = |name: std::ffi::OsString| name.to_str()?.strip_suffix(".list").map(str::to_owned);
    Ok(names.unwrap_or_default().into_iter().filter_map(stem).collect())
}

fn has_rpm(root: &Root) -> Result<bool, String> {
    RPM_DATABASES.iter().try_fold(false, |found, path| Ok(found || has(root, path)?))
}

fn has(root: &Root, path: &str) -> Result<bool, String> {
    let found = root.metadata(&absolute(path)?).map_err(|error| format!("cannot look at `{path}`: {error}"))?;
    Ok(found.is_some())
}

fn spellings(path: &str) -> Vec<String> {
    let mut spellings = vec![path.to_owned()];
    let first = |path: &str| path.split('/').nth(1).is_some_and(|first| MERGED.contains(&first));
    if first(path) {
        spellings.push(format!("/usr{path}"));
    } else if let Some(rest) = path.strip_prefix("/usr").filter(|rest| first(rest)) {
        spellings.push(rest.to_owned());
    }
    spellings
}

fn ask_rpm(path: &AbsPath) -> Result<Vec<Owner>, String> {
    let command = exec::Command {
        deadline: Duration::from_secs(20),
        ..exec::Command::new("rpm").args(["-qf", "--qf", "%{NAME}\\n", "--", &path.to_string()])
    };
    let output = exec::run(&command).map_err(|error| crate::resource::chain(&error))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match output.code {
        Some(0) => {
            Ok(said.lines().map(|package| Owner { package: package.to_owned(), claim: Claim::Unknown }).collect())
        }
        Some(_) if said.contains("is not owned by any package") => Ok(Vec::new()),
        Some(_) | None => Err(format!("`rpm` did not say: {}", exec::last_words(&output))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which these files are.
    #[expect(clippy::disallowed_methods, reason = "a test lays out a database")]
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[track_caller]
    fn check(root: &Root, path: &str, expected: &[&str]) {
        let owners = owners(root, &AbsPath::new(path).unwrap()).unwrap();
        assert_eq!(owners.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{path}");
    }

    #[test]
    fn the_list_that_names_the_path_or_its_merged_twin_names_the_package() {
        let (_dir, root) = host(&[
            ("var/lib/dpkg/info/bash.list", "/.\n/bin\n/bin/bash\n/etc/bash.bashrc\n"),
            ("var/lib/dpkg/info/bash.conffiles", "remove-on-upgrade /bin/bash\n/etc/bash.bashrc\n"),
            ("var/lib/dpkg/info/libc6:amd64.list", "/etc/ld.so.conf.d\n/etc/ld.so.conf.d/x.conf\n"),
            ("var/lib/dpkg/info/libc6:amd64.conffiles", "/etc/ld.so.conf.d/x.conf\n"),
            ("var/lib/dpkg/info/libc6:i386.list", "/etc/ld.so.conf.d\n/etc/ld.so.conf.d/x.conf\n"),
            ("var/lib/dpkg/info/libc6:i386.conffiles", "/etc/ld.so.conf.d/x.conf\n"),
            ("var/lib/dpkg/info/bash.md5sums", "/etc/motd\n"),
            ("var/lib/ucf/registry", "grub-pc\t            /etc/default/grub\n"),
        ]);
        check(&root, "/usr/bin/bash", &["bash (no conffile)"]);
        check(&root, "/bin/bash", &["bash (no conffile)"]);
        check(&root, "/etc/bash.bashrc", &["bash (a conffile)"]);
        check(&root, "/etc/ld.so.conf.d", &["libc6 (no conffile)"]);
        check(&root, "/etc/ld.so.conf.d/x.conf", &["libc6 (a conffile)"]);
        check(&root, "/etc/default/grub", &["grub-pc (kept by ucf)"]);
        check(&root, "/etc/motd", &[]);
    }

    #[test]
    fn what_is_not_known_is_not_taken_for_none() {
        let motd = || BTreeSet::from([AbsPath::new("/etc/motd").unwrap()]);
        let unknown = |files: &[(&str, &str)], expected: &str| {
            let (_dir, root) = host(files);
            assert_eq!(recorded(&root, &motd()).unwrap_err(), expected);
            assert_eq!(owners(&root, &AbsPath::new("/etc/motd").unwrap()).unwrap_err(), expected);
        };
        let nothing = "`/var/lib/dpkg/info` has no lists of files, and there is no database of rpm";
        unknown(&[], nothing);
        // A captured host may have no more than this.
        unknown(&[("var/lib/dpkg/status", "Package: base-files\nStatus: install ok installed\n")], nothing);
        let rpm = ("var/lib/rpm/rpmdb.sqlite", "");
        unknown(&[rpm], "the database of rpm is not read");
        // Where rpm is used, dpkg may be installed as a tool.
        unknown(&[rpm, ("var/lib/dpkg/info/format", "1\n")], "the database of rpm is not read");
        // A list that is none cannot be read.
        let (_dir, root) = host(&[("var/lib/dpkg/info/a.list/x", ""), ("var/lib/dpkg/info/b.list", "/etc/motd\n")]);
        let why = recorded(&root, &motd()).unwrap_err();
        assert!(why.starts_with("cannot read `/var/lib/dpkg/info/a.list`: "), "{why}");
    }
}
