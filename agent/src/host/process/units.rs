//! From the number of a control group to its path, and from the number of a user to a name.
//!
//! The number is the inode of a directory of the unified hierarchy, and is not given away again while the host is up; so what
//! was found once stays true, also when the group is gone. A group that was gone before it was ever looked up stays unknown.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{link, read};

/// Most control groups remembered; beyond it all are forgotten and looked up again.
const MAX_KNOWN: usize = 8192;
/// Most directories looked at in one walk.
const MAX_WALK: usize = 20_000;
/// Longest `passwd` that is searched, in bytes.
const MAX_PASSWD: u64 = 4 * 1024 * 1024;

/// What is known of control groups and users. Built lazily; making one does nothing.
#[derive(Debug, Default)]
pub struct UnitMap {
    hierarchy: Option<Hierarchy>,
    paths: HashMap<u64, String>,
    users: HashMap<u32, Option<String>>,
}

/// Where the unified hierarchy is mounted.
#[derive(Debug)]
struct Hierarchy {
    mount: PathBuf,
    directory: OwnedFd,
    /// Whether the kernel opens groups by their number for us.
    by_number: Ability,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ability {
    Untried,
    Works,
    Refused,
}

impl UnitMap {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns every control group that there is now, so that those that end later are known too. Call it at the start, and never
    /// on a path that is in a hurry. Returns how many there are.
    pub fn learn(&mut self) -> usize {
        self.open();
        self.walk();
        self.paths.len()
    }

    /// The path of a control group beneath the root of the hierarchy, `/` itself included.
    pub fn path(&mut self, id: u64) -> Option<String> {
        if let Some(path) = self.paths.get(&id) {
            return Some(path.clone());
        }
        self.open();
        let hierarchy = self.hierarchy.as_mut()?;
        if hierarchy.by_number != Ability::Refused {
            match open_by_number(hierarchy.directory.as_fd(), id) {
                Ok(directory) => {
                    hierarchy.by_number = Ability::Works;
                    let path = hierarchy.path_of(directory.as_fd())?;
                    self.remember(id, path.clone());
                    return Some(path);
                }
                // The group is gone.
                Err(nix::Error::ESTALE | nix::Error::ENOENT) => return None,
                Err(errno) => {
                    if hierarchy.by_number == Ability::Untried {
                        tracing::debug!(%errno, "control groups cannot be opened by number; walking instead");
                    }
                    hierarchy.by_number = Ability::Refused;
                }
            }
        }
        self.walk();
        self.paths.get(&id).cloned()
    }

    /// The name of a user of this host, from `/etc/passwd`, or from what systemd noted at the login of one who is not in it.
    pub fn user(&mut self, uid: u32) -> Option<String> {
        if self.users.len() > MAX_KNOWN {
            self.users.clear();
        }
        // No name service is asked: it may hang, and may need the network.
        self.users.entry(uid).or_insert_with(|| user_in_passwd(uid).or_else(|| user_at_login(uid))).clone()
    }

    /// Forgets names of users: they may have been changed.
    pub fn forget_users(&mut self) {
        self.users.clear();
    }

    fn open(&mut self) {
        if self.hierarchy.is_none() {
            self.hierarchy = Hierarchy::open();
        }
    }

    fn remember(&mut self, id: u64, path: String) {
        if self.paths.len() >= MAX_KNOWN {
            self.paths.clear();
        }
        self.paths.insert(id, path);
    }

    fn walk(&mut self) {
        let Some(hierarchy) = &self.hierarchy else { return };
        let mount = hierarchy.mount.clone();
        let root = std::fs::symlink_metadata(&mount).map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata));
        if let Ok(id) = root {
            self.remember(id, "/".to_owned());
        }
        let mut open = vec![mount.clone()];
        let mut n_seen = 0;
        while let Some(directory) = open.pop() {
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                n_seen += 1;
                if n_seen > MAX_WALK {
                    return;
                }
                let path = entry.path();
                if let Ok(beneath) = path.strip_prefix(&mount) {
                    self.remember(entry.ino(), format!("/{}", beneath.display()));
                }
                open.push(path);
            }
        }
    }
}

impl Hierarchy {
    fn open() -> Option<Self> {
        let mount = unified_mount(&read(CWD, "/proc/self/mountinfo")?)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, &mount, flags, Mode::empty()).ok()?;
        Some(Self { mount, directory, by_number: Ability::Untried })
    }

    fn path_of(&self, directory: BorrowedFd<'_>) -> Option<String> {
        let full = link(CWD, &format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        let beneath = Path::new(&full).strip_prefix(&self.mount).ok()?;
        Some(format!("/{}", beneath.display()))
    }
}

/// Where the unified hierarchy is mounted, by `/proc/self/mountinfo`: `/sys/fs/cgroup`, or on hybrid hosts beneath it.
fn unified_mount(mountinfo: &str) -> Option<PathBuf> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let is_unified = after.split(' ').next() == Some("cgroup2");
        let point = before.split(' ').nth(4)?;
        is_unified.then(|| PathBuf::from(std::ffi::OsStr::from_bytes(&unescape_octal(point))))
    };
    mountinfo.lines().find_map(mount)
}

/// The kernel writes white space and backslashes of a mount point as `\040`.
fn unescape_octal(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.split_at_checked(3).filter(|_| *first == b'\\');
        let value = digits.and_then(|(digits, _)| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (value, digits) {
            (Some(value), Some((_, after))) => {
                bytes.push(value);
                rest = after;
            }
            (_, _) => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

fn user_in_passwd(uid: u32) -> Option<String> {
    let mut bytes = Vec::new();
    let file = openat(CWD, "/etc/passwd", OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).ok()?;
    std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(file), MAX_PASSWD), &mut bytes).ok()?;
    passwd_name(&String::from_utf8_lossy(&bytes), uid)
}

/// The name of a user in the text of `/etc/passwd`.
pub(in crate::host) fn passwd_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| crate::actor::command::escaped(name, 64))
    })
}

/// `NAME=` in what logind keeps of each user who is logged in: also of those whom a directory service knows.
fn user_at_login(uid: u32) -> Option<String> {
    let text = read(CWD, &format!("/run/systemd/users/{uid}"))?;
    text.lines().find_map(|line| line.strip_prefix("NAME=")).map(|name| crate::actor::command::escaped(name, 64))
}

/// A file handle of kernfs: the inode number and nothing else.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: u64,
}

/// `FILEID_KERNFS` of linux/exportfs.h.
const KERNFS: i32 = 0xfe;

/// Opens a control group by its number. Needs CAP_DAC_READ_SEARCH.
#[expect(unsafe_code, reason = "no crate here has open_by_handle_at")]
fn open_by_number(mount: BorrowedFd<'_>, id: u64) -> Result<OwnedFd, nix::Error> {
    let mut handle = Handle { bytes: 8, kind: KERNFS, id };
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the handle is laid out as `struct file_handle` with 8 bytes behind its header, as its first field says, and
    // outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), std::ptr::from_mut(&mut handle), flags)
    };
    let fd = i32::try_from(nix::errno::Errno::result(fd)?).map_err(|_| nix::Error::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_among_the_mounts() {
        let check = |mountinfo: &str, expected: Option<&str>| {
            assert_eq!(unified_mount(mountinfo), expected.map(PathBuf::from), "{mountinfo}");
        };
        check(
            "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
            Some("/sys/fs/cgroup"),
        );
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        check(hybrid, Some("/sys/fs/cgroup/unified"));
        check("41 31 0:38 / /mnt/a\\040b rw - cgroup2 cgroup2 rw\n", Some("/mnt/a b"));
        check("40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n", None);
        check("nonsense", None);
    }

    #[test]
    fn users_are_found_in_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nanna:x:1000:1000::/home/anna:/bin/sh\nbella:x:1000:1::/:/x\n";
        let check = |uid: u32, expected: Option<&str>| assert_eq!(passwd_name(passwd, uid).as_deref(), expected);
        check(0, Some("root"));
        check(1000, Some("anna"));
        check(7, None);
    }
}
