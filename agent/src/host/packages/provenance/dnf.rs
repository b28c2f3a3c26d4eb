//! The histories of dnf 4 and of dnf 5, which are SQLite databases.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, Row};

use super::{Found, user};
use crate::actor::{Transaction, command};
use crate::host::root::Root;

/// Where each keeps its history, and how one asks it for the newest rows about a package. Both give: begin, end, user, command
/// line, action, epoch, version, release.
const HISTORIES: [(&str, &str); 2] = [
    (
        "usr/lib/sysimage/libdnf5/transaction_history.sqlite",
        "SELECT t.id, t.dt_begin, t.dt_end, t.user_id, t.description, a.name, r.epoch, r.version, r.release
         FROM trans t JOIN trans_item i ON i.trans_id = t.id JOIN trans_item_action a ON a.id = i.action_id
         JOIN rpm r ON r.item_id = i.item_id JOIN pkg_name n ON n.id = r.name_id
         WHERE n.name = ?1 ORDER BY t.id DESC, i.id LIMIT 8",
    ),
    (
        "var/lib/dnf/history.sqlite",
        "SELECT t.id, t.dt_begin, t.dt_end, t.user_id, t.cmdline, CASE i.action WHEN 1 THEN 'Install' WHEN 2 THEN 'Downgrade'
             WHEN 5 THEN 'Obsoleted' WHEN 6 THEN 'Upgrade' WHEN 8 THEN 'Remove' WHEN 9 THEN 'Reinstall' ELSE 'Replaced' END,
             r.epoch, r.version, r.release
         FROM trans t JOIN trans_item i ON i.trans_id = t.id JOIN rpm r ON r.item_id = i.item_id
         WHERE r.name = ?1 ORDER BY t.id DESC, i.id LIMIT 8",
    ),
];

/// One package in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    transaction: i64,
    began: i64,
    ended: Option<i64>,
    /// The user who logged in; the largest number, or one below zero, is nobody.
    user: i64,
    line: Option<String>,
    action: String,
    version: String,
}

/// The newest transaction that names a package, in whichever history is newer.
pub(super) fn newest(root: &Root, package: &str) -> Option<Found> {
    let found = HISTORIES.iter().filter_map(|(path, question)| {
        // SQLite takes a path. It is only read, and by no means what a policy names.
        let items = read(&root.path().join(path), question, package).ok()?;
        found(&items, |uid| user(root, uid))
    });
    found.max_by_key(|found| found.transaction.at)
}

fn read(path: &std::path::Path, question: &str, package: &str) -> Result<Vec<Item>, rusqlite::Error> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_millis(200))?;
    connection.pragma_update(None, "trusted_schema", false)?;
    let mut statement = connection.prepare(question)?;
    statement.query_map([package], item)?.collect()
}

fn item(row: &Row<'_>) -> Result<Item, rusqlite::Error> {
    let (epoch, version, release): (i64, String, String) = (row.get(6)?, row.get(7)?, row.get(8)?);
    let version = if epoch == 0 { format!("{version}-{release}") } else { format!("{epoch}:{version}-{release}") };
    Ok(Item {
        transaction: row.get(0)?,
        began: row.get(1)?,
        ended: row.get(2)?,
        user: row.get(3)?,
        line: row.get(4)?,
        action: row.get(5)?,
        version,
    })
}

/// From the rows of the newest transaction; the others are left out.
fn found(items: &[Item], user: impl Fn(u32) -> String) -> Option<Found> {
    let first = items.first()?;
    let of_it = || items.iter().filter(|item| item.transaction == first.transaction);
    let old = of_it().find(|item| item.action == "Replaced").map(|item| item.version.as_str());
    let new = of_it().find(|item| item.action != "Replaced");
    let what = match (new, old) {
        (Some(new), Some(old)) => format!("{} {old} -> {}", new.action.to_lowercase(), new.version),
        (Some(new), None) => format!("{} {}", new.action.to_lowercase(), new.version),
        (None, old) => format!("replaced {}", old.unwrap_or_default()),
    };
    let line = first.line.as_deref().unwrap_or_default();
    // dnf 4 leaves its own name out.
    let line = if line.is_empty() || line.starts_with("dnf") { line.to_owned() } else { format!("dnf {line}") };
    let by = u32::try_from(first.user).ok().filter(|uid| *uid != u32::MAX).map(user);
    let transaction = Transaction {
        manager: "dnf".to_owned(),
        at: Timestamp::from_second(first.began).ok()?,
        command: command::line_of_text(&line),
        by,
        what: command::escaped(&what, 200),
    };
    let ended = first.ended.and_then(|ended| Timestamp::from_second(ended).ok());
    Some(Found { transaction, ended, is_own: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The tables that are asked, with what dnf 4.14 wrote into them when a package was installed, upgraded and removed.
    const DNF4: &str = "
        CREATE TABLE trans (id INTEGER PRIMARY KEY, dt_begin INTEGER, dt_end INTEGER, user_id INTEGER, cmdline TEXT, state INTEGER);
        INSERT INTO trans VALUES (1, 1796032516, 1796032517, 4294967295, '-y install hello-1.0-1.noarch.rpm', 1);
        INSERT INTO trans VALUES (2, 1796032519, 1796032519, 1000, '-y upgrade hello-1.1-1.noarch.rpm', 1);
        CREATE TABLE rpm (item_id INTEGER, name TEXT, epoch INTEGER, version TEXT, release TEXT, arch TEXT);
        INSERT INTO rpm VALUES (1, 'hello', 0, '1.0', '1', 'noarch'), (2, 'hello', 0, '1.1', '1', 'noarch');
        CREATE TABLE trans_item (id INTEGER PRIMARY KEY, trans_id INTEGER, item_id INTEGER, repo_id INTEGER, action INTEGER,
            reason INTEGER, state INTEGER);
        INSERT INTO trans_item VALUES (1,1,1,1,1,2,1), (2,2,2,1,6,2,1), (3,2,1,2,7,2,1);";

    const REMOVED: &str = "
        INSERT INTO trans VALUES (3, 1796032521, 1796032521, -1, '-y remove hello', 1);
        INSERT INTO trans_item VALUES (4,3,2,2,8,2,1);";

    /// The tables of dnf 5 that are asked, by its source; with rows as it describes them.
    const DNF5: &str = "
        CREATE TABLE trans (id INTEGER PRIMARY KEY, dt_begin INTEGER, dt_end INTEGER, user_id INTEGER, description TEXT);
        INSERT INTO trans VALUES (1, 1796040000, 1796040001, 0, 'dnf install --setopt=x.password=hunter2 hello');
        CREATE TABLE pkg_name (id INTEGER PRIMARY KEY, name TEXT);
        INSERT INTO pkg_name VALUES (1, 'hello');
        CREATE TABLE rpm (item_id INTEGER, name_id INTEGER, epoch INTEGER, version TEXT, release TEXT);
        INSERT INTO rpm VALUES (1, 1, 2, '3.0', '4');
        CREATE TABLE trans_item_action (id INTEGER PRIMARY KEY, name TEXT);
        INSERT INTO trans_item_action VALUES (1, 'Install'), (5, 'Remove'), (6, 'Replaced');
        CREATE TABLE trans_item (id INTEGER PRIMARY KEY, trans_id INTEGER, item_id INTEGER, action_id INTEGER);
        INSERT INTO trans_item VALUES (1, 1, 1, 1);";

    fn make(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        Connection::open(path).unwrap().execute_batch(content).unwrap();
    }

    #[test]
    fn the_newest_transaction_of_a_package_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let check = |expected: Option<(&str, Option<&str>, &str, &str)>| {
            let found = newest(&root, "hello").map(|found| found.transaction);
            let found = found.as_ref().map(|t| {
                let (by, command) = (t.by.as_deref(), t.command.as_deref().unwrap());
                (t.what.as_str(), by, command, t.manager.as_str())
            });
            assert_eq!(found, expected);
        };
        check(None);
        make(dir.path(), "var/lib/dnf/history.sqlite", DNF4);
        let line = "dnf -y upgrade hello-1.1-1.noarch.rpm";
        check(Some(("upgrade 1.0-1 -> 1.1-1", Some("uid 1000"), line, "dnf")));
        make(dir.path(), "var/lib/dnf/history.sqlite", REMOVED);
        check(Some(("remove 1.1-1", None, "dnf -y remove hello", "dnf")));
        make(dir.path(), "usr/lib/sysimage/libdnf5/transaction_history.sqlite", DNF5);
        let line = "dnf install --setopt=x.password=*** hello";
        check(Some(("install 2:3.0-4", Some("uid 0"), line, "dnf")));
        assert_eq!(newest(&root, "other"), None);
    }

    #[test]
    fn what_is_no_history_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        make(dir.path(), "var/lib/dnf/history.sqlite", "CREATE TABLE trans (id INTEGER)");
        assert_eq!(newest(&root, "hello"), None);
        #[expect(clippy::disallowed_methods, reason = "the test damages a file")]
        std::fs::write(dir.path().join("var/lib/dnf/history.sqlite"), "no database").unwrap();
        assert_eq!(newest(&root, "hello"), None);
    }
}
