//! What a replaced file hands on to its successor besides content, owner and mode.
//!
//! Carried: the access control list, the SELinux label, `user.*`. Not carried: `security.capability` (it was given to other
//! content), `security.ima` and `security.evm` (signatures of other content), `trusted.*` (the file system's own).

use std::fs::File;
use std::io;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::resource::Mode;

const ACL: &str = "system.posix_acl_access";
const LABEL: &str = "security.selinux";
/// The kernel's own limits: a list of names, and one value.
const MAX_LIST: usize = 64 * 1024;
const MAX_VALUE: usize = 64 * 1024;

/// Gives `new` the attributes of `old`. The access control list is given with the permissions of `mode`, so that it never
/// grants, even for a moment, more than the new mode does.
pub(super) fn carry_over(old: &File, new: &File, mode: Mode) -> io::Result<()> {
    let names = list(old)?;
    if !names.iter().any(|name| name == ACL) {
        // One that was inherited from the directory at creation is not the old file's.
        match rustix::fs::fremovexattr(new, ACL) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for name in &names {
        if name == ACL {
            let list = with_mode(&get(old, name)?, mode).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "its access control list has a form that is not known")
            })?;
            rustix::fs::fsetxattr(new, name.as_str(), &list, XattrFlags::empty())?;
        } else if name == LABEL {
            let label = get(old, name)?;
            if get(new, name).is_ok_and(|current| current == label) {
                continue;
            }
            match rustix::fs::fsetxattr(new, name.as_str(), &label, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(error) => return Err(error.into()),
            }
        } else if name.starts_with("user.") {
            rustix::fs::fsetxattr(new, name.as_str(), &get(old, name)?, XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn list(file: &File) -> io::Result<Vec<String>> {
    let mut buffer = vec![0_u8; MAX_LIST];
    let length = match rustix::fs::flistxattr(file, buffer.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    buffer.truncate(length);
    // A name that is not UTF-8 is a `user.*` one; it is carried by no tool that we know, and neither here.
    Ok(buffer
        .split(|b| *b == 0)
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

fn get(file: &File, name: &str) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; MAX_VALUE];
    let length = rustix::fs::fgetxattr(file, name, buffer.as_mut_slice())?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Rewrites a `system.posix_acl_access` value so that its owner, mask (or group) and other entries say what `mode` says:
/// what `chmod` would do to it afterwards.
pub(super) fn with_mode(list: &[u8], mode: Mode) -> Option<Vec<u8>> {
    const VERSION: [u8; 4] = [2, 0, 0, 0];
    const OWNER: u16 = 0x01;
    const GROUP: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    let entries = list.strip_prefix(&VERSION)?;
    let (entries, rest) = entries.as_chunks::<8>();
    if !rest.is_empty() {
        return None;
    }
    let tag_of = |&[low, high, ..]: &[u8; 8]| u16::from_le_bytes([low, high]);
    let group_class = if entries.iter().any(|entry| tag_of(entry) == MASK) { MASK } else { GROUP };
    let mut rewritten = VERSION.to_vec();
    for entry in entries {
        let tag = tag_of(entry);
        let shift = if tag == OWNER {
            Some(6)
        } else if tag == group_class {
            Some(3)
        } else if tag == OTHER {
            Some(0)
        } else {
            None
        };
        let [tag_low, tag_high, mut low, mut high, id @ ..] = *entry;
        if let Some(permissions) = shift.and_then(|shift| u16::try_from((mode.bits() >> shift) & 0o7).ok()) {
            [low, high] = permissions.to_le_bytes();
        }
        rewritten.extend_from_slice(&[tag_low, tag_high, low, high]);
        rewritten.extend_from_slice(&id);
    }
    Some(rewritten)
}
