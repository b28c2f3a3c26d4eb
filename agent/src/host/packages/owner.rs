//! Which package a path belongs to: for a person who asks about it. Nothing is decided by the answer.

use std::time::Duration;

use crate::host::exec;
use crate::host::root::Root;
use crate::resource::AbsPath;

const DPKG_LISTS: &str = "/var/lib/dpkg/info";
/// Longest list of files of one package.
const MAX_LIST: u64 = 16 * 1024 * 1024;
/// Most lists.
const MAX_LISTS: usize = 50_000;
/// Directories that are links into `/usr` on a merged host, where lists may name either.
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// The packages that own a path, by the host's package database; none when none does, or there is no database to ask.
pub fn owners(root: &Root, path: &AbsPath) -> Vec<String> {
    let spellings = spellings(&path.to_string());
    let lists = AbsPath::new(DPKG_LISTS).ok().and_then(|lists| root.list_names(&lists, MAX_LISTS).ok().flatten());
    match lists {
        Some(names) => {
            let lists =
                names.into_iter().filter_map(|name| Some((name.to_str()?.strip_suffix(".list")?.to_owned(), name)));
            let mut owners: Vec<String> = lists
                .filter(|(_, name)| {
                    let list = name.to_str().and_then(|name| AbsPath::new(&format!("{DPKG_LISTS}/{name}")).ok());
                    let content = list.and_then(|list| root.read(&list, MAX_LIST).ok().flatten());
                    content.is_some_and(|(content, _)| {
                        content.split(|b| *b == b'\n').any(|line| spellings.iter().any(|s| s.as_bytes() == line))
                    })
                })
                .map(|(package, _)| package.split(':').next().unwrap_or_default().to_owned())
                .collect();
            owners.sort();
            owners.dedup();
            owners
        }
        None if root.is_live() => ask_rpm(path),
        None => Vec::new(),
    }
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

fn ask_rpm(path: &AbsPath) -> Vec<String> {
    let command = exec::Command {
        deadline: Duration::from_secs(20),
        ..exec::Command::new("rpm").args(["-qf", "--qf", "%{NAME}\\n", "--", &path.to_string()])
    };
    match exec::run(&command) {
        Ok(output) if output.code == Some(0) => {
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        }
        Ok(_) | Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test lays out a database")]
    fn the_list_that_names_the_path_or_its_merged_twin_names_the_package() {
        let dir = tempfile::tempdir().unwrap();
        let info = dir.path().join("var/lib/dpkg/info");
        std::fs::create_dir_all(&info).unwrap();
        std::fs::write(info.join("bash.list"), "/.\n/bin\n/bin/bash\n").unwrap();
        std::fs::write(info.join("libc6:amd64.list"), "/etc/ld.so.conf.d\n").unwrap();
        std::fs::write(info.join("bash.md5sums"), "/etc/motd\n").unwrap();
        let root = Root::open(dir.path()).unwrap();
        let owners = |path: &str| owners(&root, &AbsPath::new(path).unwrap());
        assert_eq!(owners("/usr/bin/bash"), ["bash"]);
        assert_eq!(owners("/bin/bash"), ["bash"]);
        assert_eq!(owners("/etc/ld.so.conf.d"), ["libc6"]);
        assert_eq!(owners("/etc/motd"), [] as [&str; 0]);
    }
}
