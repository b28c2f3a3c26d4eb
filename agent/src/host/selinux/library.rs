//! The functions of libselinux that are used, found at run time.
//!
//! Nothing else calls the library. It is never unloaded, so a function that was found stays one.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use nix::libc;

use super::SelinuxError;
use crate::host::root::FileType;

/// A description of labels that the library has read. Closed with the process: the library cannot be unloaded either, and
/// one is opened only when the policy changes.
#[derive(Debug)]
pub(super) struct Handle {
    raw: NonNull<c_void>,
    close: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: the library keeps no thread-local state behind a handle, and each is used under a lock.
unsafe impl Send for Handle {}

impl Handle {
    pub(super) fn open(library: &Library, contexts: Option<&CStr>) -> io::Result<Self> {
        const FILE_BACKEND: c_uint = 0;
        const OPTION_PATH: c_int = 3;
        let option = SelinuxOption { kind: OPTION_PATH, value: contexts.map_or(std::ptr::null(), CStr::as_ptr) };
        let n_options = if contexts.is_some() { 1 } else { 0 };
        // SAFETY: the option and the path that it points to outlive the call, and the library copies what it keeps.
        let raw = unsafe { (library.open)(FILE_BACKEND, &raw const option, n_options) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { raw, close: library.close })
    }

    pub(super) fn lookup(&self, library: &Library, path: &Path, file_type: FileType) -> io::Result<Option<String>> {
        let kind = match file_type {
            FileType::File => libc::S_IFREG,
            FileType::Directory => libc::S_IFDIR,
            FileType::Symlink => libc::S_IFLNK,
            // Of no interest: what is declared is one of the others.
            FileType::Special => return Ok(None),
        };
        let kind = c_int::try_from(kind).map_err(io::Error::other)?;
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut label: *mut c_char = std::ptr::null_mut();
        // SAFETY: the handle is open; path and label outlive the call.
        let result = unsafe { (library.lookup)(self.raw.as_ptr(), &raw mut label, path.as_ptr(), kind) };
        if result != 0 {
            let error = io::Error::last_os_error();
            // No entry matches, or the one that does says `<<none>>`.
            return if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) };
        }
        if label.is_null() {
            return Ok(None);
        }
        // SAFETY: the library returned success and a string that ends with a zero byte.
        let text = unsafe { CStr::from_ptr(label) }.to_str().map(str::to_owned);
        // SAFETY: the string is the library's, and is not used any more.
        unsafe { (library.free)(label) };
        text.map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is open and nothing uses it afterwards.
        unsafe { (self.close)(self.raw.as_ptr()) };
    }
}

/// `struct selinux_opt`.
#[repr(C)]
struct SelinuxOption {
    kind: c_int,
    value: *const c_char,
}

/// The functions used, as `selinux/label.h` and `selinux/selinux.h` declare them.
#[derive(Debug)]
pub(super) struct Library {
    enabled: unsafe extern "C" fn() -> c_int,
    open: unsafe extern "C" fn(c_uint, *const SelinuxOption, c_uint) -> *mut c_void,
    close: unsafe extern "C" fn(*mut c_void),
    lookup: unsafe extern "C" fn(*mut c_void, *mut *mut c_char, *const c_char, c_int) -> c_int,
    free: unsafe extern "C" fn(*mut c_char),
    contexts: unsafe extern "C" fn() -> *const c_char,
    contexts_local: unsafe extern "C" fn() -> *const c_char,
    contexts_homes: unsafe extern "C" fn() -> *const c_char,
    customizable: unsafe extern "C" fn() -> *const c_char,
}

impl Library {
    pub(super) fn open() -> Result<Self, SelinuxError> {
        // SAFETY: the name ends with a zero byte; the library is the host's own and runs no code of ours on loading.
        let library = unsafe { libc::dlopen(c"libselinux.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let library = NonNull::new(library).ok_or_else(|| SelinuxError::Library { why: loader_error() })?;
        let symbol = |name: &CStr| {
            // SAFETY: the library is open, and is never closed.
            let symbol = unsafe { libc::dlsym(library.as_ptr(), name.as_ptr()) };
            NonNull::new(symbol).ok_or_else(|| SelinuxError::Library { why: loader_error() })
        };
        // SAFETY: each type is that of the function's declaration in the library's headers, which is part of its ABI.
        unsafe {
            Ok(Self {
                enabled: std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn() -> c_int>(symbol(
                    c"is_selinux_enabled",
                )?),
                open: std::mem::transmute::<
                    NonNull<c_void>,
                    unsafe extern "C" fn(c_uint, *const SelinuxOption, c_uint) -> *mut c_void,
                >(symbol(c"selabel_open")?),
                close: std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn(*mut c_void)>(symbol(
                    c"selabel_close",
                )?),
                lookup: std::mem::transmute::<
                    NonNull<c_void>,
                    unsafe extern "C" fn(*mut c_void, *mut *mut c_char, *const c_char, c_int) -> c_int,
                >(symbol(c"selabel_lookup_raw")?),
                free: std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn(*mut c_char)>(symbol(c"freecon")?),
                contexts: path_function(symbol(c"selinux_file_context_path")?),
                contexts_local: path_function(symbol(c"selinux_file_context_local_path")?),
                contexts_homes: path_function(symbol(c"selinux_file_context_homedir_path")?),
                customizable: path_function(symbol(c"selinux_customizable_types_path")?),
            })
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        // SAFETY: it takes nothing and returns a number.
        unsafe { (self.enabled)() == 1 }
    }

    pub(super) fn context_paths(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> =
            [self.contexts, self.contexts_local, self.contexts_homes].into_iter().map(path_from).collect();
        if let Some(contexts) = paths.first() {
            let mut compiled = contexts.clone().into_os_string();
            compiled.push(".bin");
            paths.push(compiled.into());
        }
        paths
    }

    pub(super) fn customizable_types_path(&self) -> PathBuf {
        path_from(self.customizable)
    }
}

type PathFunction = unsafe extern "C" fn() -> *const c_char;

/// # Safety
/// The symbol must be a function that takes nothing and returns a static string or nothing.
unsafe fn path_function(symbol: NonNull<c_void>) -> PathFunction {
    // SAFETY: the caller promises the type.
    unsafe { std::mem::transmute::<NonNull<c_void>, PathFunction>(symbol) }
}

fn path_from(function: PathFunction) -> PathBuf {
    // SAFETY: it takes nothing and returns a static string or nothing.
    let path = unsafe { function() };
    if path.is_null() {
        return PathBuf::new();
    }
    // SAFETY: the string is static and ends with a zero byte.
    let path = unsafe { CStr::from_ptr(path) };
    PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()))
}

fn loader_error() -> String {
    // SAFETY: it returns the last error of this thread, or nothing.
    let error = unsafe { libc::dlerror() };
    if error.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: the string ends with a zero byte and lives until the next call of the loader on this thread.
    unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()
}
