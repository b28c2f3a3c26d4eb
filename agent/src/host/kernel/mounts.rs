//! The kernel's table of mounts, and who uses one. Nothing here opens anything that is mounted.

use std::path::{Path, PathBuf};

use super::Mount;

/// Processes that are named.
const MAX_USERS: usize = 10;

/// Reads `/proc/thread-self/mountinfo`. Lines that are not understood are left out.
pub(crate) fn parse(table: &[u8]) -> Vec<Mount> {
    String::from_utf8_lossy(table).lines().filter_map(line).collect()
}

/// `id parent device root target options [tags …] - type source options`
fn line(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(4);
    let mut after = after.split(' ');
    let text = |field: &str| unescaped(field);
    let list = |field: &str| field.split(',').map(str::to_owned).collect();
    let (target, options) = (text(before.next()?), list(before.next()?));
    let (fstype, source) = (text(after.next()?), text(after.next()?));
    Some(Mount { target, source, fstype, options, super_options: list(after.next().unwrap_or_default()) })
}

/// Resolves the octal escapes of blanks and backslashes.
fn unescaped(field: &str) -> String {
    let mut text = String::new();
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        let (plain, escape) = rest.split_at(at);
        text.push_str(plain);
        match escape.get(1..4).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                rest = escape.get(4..).unwrap_or_default();
            }
            None => {
                text.push('\\');
                rest = escape.get(1..).unwrap_or_default();
            }
        }
    }
    text + rest
}

/// Processes with something open, or their directory, root or program, at or below a path, by the names that the kernel has for these: no
/// file system is asked.
pub(super) fn users(target: &Path) -> Vec<String> {
    let mut users = Vec::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter(|process| process.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
    {
        if users.len() == MAX_USERS {
            users.push("others".to_owned());
            break;
        }
        let path = process.path();
        let open = std::fs::read_dir(path.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path());
        let links = ["cwd", "root", "exe"].map(|name| path.join(name)).into_iter().chain(open);
        let is_in = |link: PathBuf| std::fs::read_link(link).is_ok_and(|at| at.starts_with(target));
        if links.into_iter().any(is_in) {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            users.push(format!("{} ({})", process.file_name().display(), name.trim().escape_debug()));
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_as_the_kernel_writes_it() {
        let table = b"22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro\n\
            30 22 0:26 / /mnt/a\\040b\\134 rw,nosuid - tmpfs none rw,size=1024k\nbroken\n40 1 0:1 / /x ro - t \\040\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 3);
        assert_eq!(
            (mounts[0].target.as_str(), mounts[0].source.as_str(), mounts[0].fstype.as_str()),
            ("/", "/dev/vda1", "ext4")
        );
        assert_eq!(
            (mounts[1].target.as_str(), mounts[1].options.join(","), mounts[1].super_options.join(",")),
            ("/mnt/a b\\", "rw,nosuid".to_owned(), "rw,size=1024k".to_owned())
        );
    }

    #[test]
    fn whoever_is_in_a_directory_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::File::open(dir.path()).unwrap();
        let me = format!("{} (", std::process::id());
        assert!(users(dir.path()).iter().any(|user| user.starts_with(&me)), "{:?}", users(dir.path()));
        drop(open);
        assert_eq!(users(Path::new("/nobody/is/here")), Vec::<String>::new());
    }
}
