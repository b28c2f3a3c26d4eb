//! Following a link at the end of a path, for who asks for it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use super::Root;
use super::metadata::{FileType, stat_at, stat_of};
use super::resolve::{Place, is_ours, only_we_may_write};
use crate::resource::AbsPath;

/// As many links as the kernel itself would follow.
const MAX_LINKS: usize = 40;

impl Root {
    /// Where the links at the end of a path lead; the path itself when there is none. What they lead to need not exist, its
    /// directory must. A link is followed only when nobody but root (or the agent's own user) could have made it: it, its
    /// directory and those above belong to them, and nobody else may write there.
    pub fn follow(&self, path: &AbsPath) -> io::Result<AbsPath> {
        let mut path = path.clone();
        for _ in 0..MAX_LINKS {
            let Some(Place::Entry { dir, name }) = self.place(&path)? else { return Ok(path) };
            match stat_at(&dir, &name)? {
                Some(found) if found.file_type == FileType::Symlink => {
                    if !is_ours(&found) || !only_we_may_write(&stat_of(&dir)?) || !self.is_firm(&path)? {
                        let why = format!("`{path}` is a symbolic link that others may change, so it is not followed");
                        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
                    }
                }
                Some(_) | None => return Ok(path),
            }
            let target = rustix::fs::readlinkat(&dir, &name, Vec::new())?.into_bytes();
            path = self.target(&path, &target)?;
        }
        Err(Errno::LOOP.into())
    }

    /// Whether nobody else may replace a directory on the way to a path.
    fn is_firm(&self, path: &AbsPath) -> io::Result<bool> {
        let mut above = path.parent();
        while let Some(directory) = above {
            let Some(found) = self.metadata(&directory)? else { return Ok(false) };
            let is_sticky = found.mode.bits() & 0o1000 != 0;
            if !is_ours(&found) || !only_we_may_write(&found) && !is_sticky {
                return Ok(false);
            }
            above = directory.parent();
        }
        Ok(true)
    }

    /// The path that a link's target stands for, with the real path of its directory.
    fn target(&self, link: &AbsPath, target: &[u8]) -> io::Result<AbsPath> {
        let target = Path::new(OsStr::from_bytes(target));
        let whole = link.as_path().parent().unwrap_or(Path::new("/")).join(target);
        let invalid = |why: &str| {
            let text = format!("the symbolic link `{link}` leads to `{}`: {why}", target.display());
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
            return Err(invalid("that is no file"));
        };
        let dir = self.directory(parent)?.ok_or_else(|| invalid("that directory does not exist"))?;
        let real = crate::host::tree::real_path(self, std::os::fd::AsFd::as_fd(&dir))
            .ok_or_else(|| invalid("its directory cannot be told"))?;
        let text = real.join(name);
        let text = text.to_str().ok_or_else(|| invalid("that is no text"))?;
        AbsPath::new(text).map_err(|error| invalid(error.why))
    }
}
