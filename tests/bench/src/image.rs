//! A file system of its own in a file, so that its caches can be emptied without touching anybody else's: mounted again,
//! nothing of it is in memory. Needs root.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rekindle_tests::Invocation;
use rustix::fs::{CWD, Mode, OFlags, ftruncate, openat};

/// A mounted ext4 image, gone when it is dropped.
#[derive(Debug)]
pub struct Image {
    file: PathBuf,
    device: String,
    target: PathBuf,
}

impl Image {
    /// Makes an image of so many bytes in a directory, with room for so many files, and mounts it there.
    pub fn new(directory: &Path, size: u64, n_inodes: u64) -> Result<Self> {
        let (file, target) = (directory.join("image"), directory.join("mounted"));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        ftruncate(openat(CWD, &file, flags, Mode::RUSR | Mode::WUSR)?, size)?;
        std::fs::create_dir(&target)?;
        Invocation::new("mkfs.ext4")
            .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-N", &n_inodes.to_string()])
            .arg(&file)
            .ok()?;
        // Direct: the image itself must not lie in the cache of the file system beneath.
        let device = Invocation::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&file).ok()?;
        let image = Self { file, device: device.trim().to_owned(), target };
        image.mount()?;
        Ok(image)
    }

    /// Where it is mounted.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Unmounts and mounts it: nothing of it is in memory after.
    pub fn forget(&self) -> Result<()> {
        umount2(&self.target, MntFlags::empty()).context("cannot unmount the image")?;
        self.mount()
    }

    fn mount(&self) -> Result<()> {
        mount(Some(self.device.as_str()), &self.target, Some("ext4"), MsFlags::MS_RELATIME, None::<&str>)
            .with_context(|| format!("cannot mount {} on `{}`", self.device, self.target.display()))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // What fails here leaves a loop device behind, which its user sees in `losetup -a`.
        umount2(&self.target, MntFlags::MNT_DETACH).ok();
        drop(Invocation::new("losetup").args(["--detach", &self.device]).output());
        drop(std::fs::remove_file(&self.file));
    }
}
