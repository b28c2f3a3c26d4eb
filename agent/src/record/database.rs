//! Opening the database: its settings, its tables, and what happens when it is corrupt.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{LOST, RecordError, database};

/// Written to `user_version`. An older database is brought up to it by [`MIGRATIONS`]; one of a later rekindle is set aside.
pub(super) const VERSION: i64 = 2;

/// What makes each version out of the one before. A database that these were applied to is the same as a new one.
const MIGRATIONS: &[(i64, &str)] = &[(1, "ALTER TABLE step ADD COLUMN actor TEXT;")];

/// The first version in which steps say who.
pub(super) const VERSION_WITH_ACTOR: i64 = 2;

const TABLES: &str = "
CREATE TABLE run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started INTEGER NOT NULL,
    revision TEXT NOT NULL,
    cause TEXT NOT NULL,
    full INTEGER NOT NULL
) STRICT;
CREATE TABLE step (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    time INTEGER NOT NULL,
    resource TEXT NOT NULL,
    cause TEXT NOT NULL,
    action TEXT,
    outcome TEXT,
    changes TEXT NOT NULL,
    error TEXT,
    duration INTEGER,
    backup TEXT,
    actor TEXT
) STRICT;
CREATE INDEX step_resource ON step (resource, time);
CREATE INDEX step_time ON step (time);
CREATE INDEX step_open ON step (id) WHERE outcome IS NULL;
CREATE TABLE debt (
    unit TEXT NOT NULL,
    because_of TEXT NOT NULL,
    notify TEXT NOT NULL,
    since INTEGER NOT NULL,
    error TEXT NOT NULL,
    PRIMARY KEY (unit, because_of)
) STRICT;
CREATE TABLE pause (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    begins INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    reason TEXT NOT NULL,
    by TEXT NOT NULL,
    only TEXT NOT NULL
) STRICT;
CREATE TABLE value (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
";

/// Beside the other tables, because a database without them is as good: made when missing, and not known to older versions.
///
/// - `untold`: steps that no alert in the outbox tells of yet.
/// - `place`: what stood at the paths of a step, before and after it.
/// - `origin`: what stood at a path before a policy was first carried out there, or whether an account or package was there.
/// - `confirmation`: steps that wait for a proof, and those that never got one.
/// - `orphan`: what a policy declared once and declares no longer.
const BESIDE: &str = "
CREATE TABLE IF NOT EXISTS untold (step INTEGER PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS place (
    step INTEGER NOT NULL,
    path TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT,
    PRIMARY KEY (step, path)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origin (name TEXT PRIMARY KEY, stood TEXT NOT NULL, time INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS confirmation (
    step INTEGER PRIMARY KEY,
    resource TEXT NOT NULL,
    revision TEXT NOT NULL,
    confirm TEXT NOT NULL,
    armed INTEGER NOT NULL,
    until INTEGER,
    unit TEXT,
    notifies TEXT NOT NULL,
    failed TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS orphan (
    resource TEXT PRIMARY KEY,
    what TEXT NOT NULL,
    declared TEXT NOT NULL,
    left_out_by TEXT NOT NULL,
    since INTEGER NOT NULL,
    locked INTEGER,
    note TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Makes a directory and its parents with this mode, unless it exists.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), RecordError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|error| {
        if error.kind() != io::ErrorKind::AlreadyExists {
            return error;
        }
        // Something is there, and is no directory, or could not be looked at.
        std::fs::metadata(path).err().unwrap_or(io::ErrorKind::NotADirectory.into())
    });
    made.map_err(|source| RecordError::File { operation: "make the directory", path: path.to_path_buf(), source })
}

/// Opens the database; a corrupt one is moved aside first. Returns where it was moved.
pub(super) fn open_or_replace(path: &Path) -> Result<(Connection, Option<PathBuf>), RecordError> {
    match open(path) {
        Ok(Some(connection)) => Ok((connection, None)),
        Ok(None) => replace(path),
        Err(error) if is_corrupt(&error) => replace(path),
        Err(error) => Err(error),
    }
}

/// Opens the database; a corrupt one stays where it is.
pub(super) fn open_sound(path: &Path) -> Result<Connection, RecordError> {
    match open(path) {
        Ok(Some(connection)) => Ok(connection),
        Err(error) if !is_corrupt(&error) => Err(error),
        Ok(None) | Err(_) => Err(RecordError::Damaged { path: path.to_path_buf() }),
    }
}

fn replace(path: &Path) -> Result<(Connection, Option<PathBuf>), RecordError> {
    let aside = set_aside(path)?;
    let connection = open(path)?
        .ok_or(RecordError::Database { operation: "make the tables", source: rusqlite::Error::InvalidQuery })?;
    Ok((connection, Some(aside)))
}

/// Opens and checks the database, making it when it is missing. `None` when its content is not sound or not ours.
fn open(path: &Path) -> Result<Option<Connection>, RecordError> {
    let file_error = |operation, source| RecordError::File { operation, path: path.to_path_buf(), source };
    // The mode is set before SQLite writes anything; its side files take over the mode of the main one. A file that is there is
    // not opened for it: to close it again would give up all locks that this process has on the database.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made.map(drop) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(file_error("open", e)),
    }
    let for_root = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, for_root).map_err(|e| file_error("set the mode of", e))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(database("open"))?;
    configure(&connection).map_err(database("set the mode"))?;
    let sound: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(database("check"))?;
    if sound != "ok" {
        return Ok(None);
    }
    Ok(make_tables(&connection, || was_lost(path))?.then_some(connection))
}

fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -256)?;
    connection.pragma_update(None, "journal_size_limit", 1024 * 1024)?;
    // A database of hostile making must not run code of its own through views or triggers.
    connection.pragma_update(None, "trusted_schema", false)
}

/// The version of the tables; 0 when there are none.
pub(super) fn version(connection: &Connection) -> Result<i64, RecordError> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(database("read the version"))
}

/// Makes the tables of an empty database, or brings those of an older version up to this one, with what is in them. `false` when
/// there are tables that no version up to this one made. In the place of one that `was_lost` an empty one says so: what it does not
/// know may have been known before.
fn make_tables(connection: &Connection, was_lost: impl FnOnce() -> bool) -> Result<bool, RecordError> {
    let mut version = version(connection)?;
    if version != 0 {
        while let Some((_, change)) = MIGRATIONS.iter().find(|(from, _)| *from == version) {
            version += 1;
            // A kill leaves the version before, whole.
            connection
                .execute_batch(&format!("BEGIN IMMEDIATE; {change} PRAGMA user_version = {version}; COMMIT;"))
                .map_err(database("bring the tables up to date"))?;
        }
        if version != VERSION {
            return Ok(false);
        }
        connection.execute_batch(BESIDE).map_err(database("make the tables"))?;
        return Ok(true);
    }
    let lost = if was_lost() { format!("INSERT INTO value VALUES ('{LOST}', '[]');") } else { String::new() };
    connection
        .execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} {BESIDE} {lost} PRAGMA user_version = {VERSION}; COMMIT;"))
        .map_err(database("make the tables"))?;
    Ok(true)
}

/// Whether an error says that the file is damaged, rather than that the disk is full or the file is locked.
fn is_corrupt(error: &RecordError) -> bool {
    match error {
        RecordError::Database { source, .. } => {
            matches!(source.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        }
        RecordError::File { .. }
        | RecordError::Value { .. }
        | RecordError::Lost { .. }
        | RecordError::Unread { .. }
        | RecordError::Damaged { .. }
        | RecordError::NoBackupStore => false,
    }
}

/// The directory of the backups, which is made after the database.
pub(super) const BACKUPS: &str = "backup";

/// What the name of a database that was set aside has after its own.
const ASIDE: &str = ".corrupt-";

/// Whether there was a database here: one was set aside, or is gone and its backups are not. Where that cannot be told, there may
/// have been.
pub(super) fn was_lost(path: &Path) -> bool {
    let backups = path.with_file_name(BACKUPS);
    if !matches!(std::fs::symlink_metadata(backups), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return true;
    }
    let is_aside = |name: &std::ffi::OsStr| {
        let own = path.file_name().map(std::ffi::OsStr::as_encoded_bytes);
        let rest = own.and_then(|own| name.as_encoded_bytes().strip_prefix(own));
        rest.is_some_and(|rest| rest.starts_with(ASIDE.as_bytes()))
    };
    match path.parent().map(std::fs::read_dir) {
        Some(Ok(mut entries)) => entries.any(|entry| entry.map_or(true, |entry| is_aside(&entry.file_name()))),
        // Where there is no directory there never was anything.
        Some(Err(error)) => error.kind() != io::ErrorKind::NotFound,
        None => true,
    }
}

/// Renames the database and its side files. A side file left behind would be replayed into the new database.
fn set_aside(path: &Path) -> Result<PathBuf, RecordError> {
    let suffixed = |suffix: &str| {
        let mut name = path.as_os_str().to_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let stamp = format!("{ASIDE}{}", Timestamp::now().as_microsecond());
    let aside = suffixed(&stamp);
    let rename = |from: PathBuf, to: PathBuf| match std::fs::rename(&from, to) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(RecordError::File { operation: "move aside", path: from, source }),
    };
    for side in ["-wal", "-shm"] {
        rename(suffixed(side), suffixed(&format!("{stamp}{side}")))?;
    }
    rename(path.to_path_buf(), aside.clone())?;
    Ok(aside)
}

/// Opens an existing database for reading.
///
/// SQLite makes files beside it for that. Where nothing can be written it is read as it is, which is whole as long as there is no
/// journal beside it: whoever was there last has ended as they should.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, RecordError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(database("open"))?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(database("set the mode"))?;
    let Err(error) = look_into(&connection) else { return Ok(connection) };
    let is_shut = matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly));
    let here = path.parent().unwrap_or(path);
    if !is_shut || !matches!(rustix::fs::access(here, rustix::fs::Access::WRITE_OK), Err(rustix::io::Errno::ROFS)) {
        return Err(database("read the tables")(error));
    }
    let journal = PathBuf::from(format!("{}-wal", path.display()));
    match std::fs::symlink_metadata(&journal) {
        Ok(file) if file.len() > 0 => return Err(RecordError::Unread { path: journal, source: error }),
        Err(why) if why.kind() != io::ErrorKind::NotFound => {
            return Err(RecordError::File { operation: "look at", path: journal, source: why });
        }
        Ok(_) | Err(_) => {}
    }
    let flags = flags | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(unchanging(path), flags).map_err(database("open"))?;
    look_into(&connection).map_err(database("read the tables"))?;
    Ok(connection)
}

fn look_into(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
}

/// What tells SQLite that nobody writes to a file.
fn unchanging(path: &Path) -> String {
    use std::fmt::Write as _;
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            // Writing to a string does not fail.
            write!(uri, "%{byte:02X}").ok();
        }
    }
    uri + "?immutable=1"
}

/// Opens a new database in memory, in the place of one that `was_lost` or not.
pub(super) fn open_in_memory(was_lost: impl FnOnce() -> bool) -> Result<Connection, RecordError> {
    let connection = Connection::open_in_memory().map_err(database("open"))?;
    make_tables(&connection, was_lost)?;
    Ok(connection)
}
