//! Accounts as /etc/passwd, /etc/shadow and /etc/group have them, changed by shadow-utils.
//!
//! State is read from the files themselves, never through NSS: an account of a directory service is not a local one.
//! Changes are left to shadow-utils, which know the locks and the caches. Nothing secret is ever an argument.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{AccountDb, AccountError, Accounts, GroupEntry, Hash, NewUser, PasswordChange, UserChange, UserEntry};
use crate::host::exec::{self, Command};
use crate::host::root::{Metadata, Root};
use crate::resource::{AbsPath, GroupName, UserName};

/// No account database is larger; one that is cannot be told.
const MAX_DATABASE: u64 = 64 * 1024 * 1024;
/// Each tool itself waits 15 s for the locks.
const ATTEMPTS: usize = 3;
const DEADLINE: Duration = Duration::from_secs(120);

/// Local accounts of the host or image at a root directory.
#[derive(Debug)]
pub struct ShadowUtils {
    root: PathBuf,
}

impl ShadowUtils {
    /// Takes the root directory; reads nothing yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    fn tool(&self, program: &'static str, args: &[OsString], stdin: &[u8], subject: &str) -> Result<(), AccountError> {
        let mut command = Command::new(program);
        if self.root != Path::new("/") {
            command = command.args([OsString::from("--root"), self.root.clone().into()]);
        }
        command = command.args(args.iter().cloned());
        command.stdin = stdin.to_vec();
        command.deadline = DEADLINE;
        let mut attempt = 1;
        loop {
            let output = exec::run(&command).map_err(|source| AccountError::Run { program, source })?;
            if output.success() {
                return Ok(());
            }
            let mut stderr = exec::escape(&output.stderr);
            if stderr.contains("cannot lock") && attempt < ATTEMPTS {
                attempt += 1;
                continue;
            }
            if stderr.contains("currently used by process") || stderr.contains("currently logged in") {
                let pids = self.processes_of(subject);
                stderr = format!("{stderr}; its processes are {pids}");
            }
            return Err(AccountError::Tool { program, subject: subject.to_owned(), status: output.status, stderr });
        }
    }

    /// The running processes of a user, in words, for an error text.
    fn processes_of(&self, name: &str) -> String {
        let uid = self.read().ok().and_then(|db| db.user(name).map(|user| user.uid));
        let pids = uid.map(processes_with).unwrap_or_default();
        if pids.is_empty() { "not known".to_owned() } else { pids.join(", ") }
    }
}

impl Accounts for ShadowUtils {
    fn read(&self) -> Result<AccountDb, AccountError> {
        let root = Root::open(&self.root)
            .map_err(|source| AccountError::Read { path: self.root.display().to_string(), source })?;
        // A tool may change one file after the other meanwhile; two equal looks around the reading make it one.
        for _ in 0..ATTEMPTS {
            let (passwd, passwd_seen) = read_file(&root, "/etc/passwd")?;
            let (shadow, shadow_seen, hashes_unread) = match read_file(&root, "/etc/shadow") {
                Ok((shadow, seen)) => (shadow, Some(seen), None),
                // Whoever is not root learns who there is, and nothing about passwords.
                Err(AccountError::Read { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                    (String::new(), None, Some(format!("cannot read `/etc/shadow`: {source}")))
                }
                Err(error) => return Err(error),
            };
            let (group, group_seen) = read_file(&root, "/etc/group")?;
            let seen =
                [("/etc/passwd", Some(passwd_seen)), ("/etc/shadow", shadow_seen), ("/etc/group", Some(group_seen))];
            let mut steady = true;
            for (path, before) in seen {
                let Some(before) = before else { continue };
                let now = root.metadata(&database(path)?).map_err(|source| read_error(path, source))?;
                steady &= now.is_some_and(|now| now.identity == before.identity && now.ctime_ns == before.ctime_ns);
            }
            if steady {
                return Ok(AccountDb { hashes_unread, ..parse(&passwd, &shadow, &group) });
            }
        }
        Err(read_error("/etc/passwd", std::io::Error::other("it changes faster than it can be read")))
    }

    fn create_group(&mut self, name: &GroupName, gid: Option<u32>, system: bool) -> Result<(), AccountError> {
        let mut args: Vec<OsString> = Vec::new();
        if let Some(gid) = gid {
            args.extend(["-g".into(), gid.to_string().into()]);
        }
        if system {
            args.push("-r".into());
        }
        args.extend(["--".into(), name.as_str().into()]);
        self.tool("groupadd", &args, b"", name.as_str())
    }

    fn change_group(&mut self, name: &GroupName, gid: u32) -> Result<(), AccountError> {
        let args = ["-g".into(), gid.to_string().into(), "--".into(), name.as_str().into()];
        self.tool("groupmod", &args, b"", name.as_str())
    }

    fn remove_group(&mut self, name: &GroupName) -> Result<(), AccountError> {
        self.tool("groupdel", &["--".into(), name.as_str().into()], b"", name.as_str())
    }

    fn create_user(&mut self, user: &NewUser) -> Result<(), AccountError> {
        let mut attempt = 1;
        loop {
            let name_is_a_group = self.read()?.group(user.name.as_str()).is_some();
            let result = self.tool("useradd", &useradd_args(user, name_is_a_group), b"", user.name.as_str());
            // A `userdel` that is still at work removes the user first and its group a moment later; or somebody made the
            // group since it was looked for.
            let group_changed =
                || self.read().is_ok_and(|db| db.group(user.name.as_str()).is_some() != name_is_a_group);
            if result.is_ok() || attempt >= ATTEMPTS || !group_changed() {
                return result;
            }
            attempt += 1;
        }
    }

    fn change_user(&mut self, name: &UserName, change: &UserChange) -> Result<(), AccountError> {
        let args = usermod_args(change);
        if !args.is_empty() {
            self.tool("usermod", &with_name(args, name), b"", name.as_str())?;
        }
        match &change.password {
            None => Ok(()),
            // The account is not expired as well: an expired one refuses keys too, and a user without a password who logs
            // in with a key is the usual case.
            Some(PasswordChange::Lock) => self.tool("usermod", &with_name(vec!["-L".into()], name), b"", name.as_str()),
            Some(PasswordChange::Set(Hash(hash))) => {
                if hash.contains([':', '\n', '\r', '\0']) {
                    return Err(AccountError::Unsupported {
                        why: format!(
                            "the password hash for `{name}` contains a character that /etc/shadow cannot hold"
                        ),
                    });
                }
                self.tool("chpasswd", &["-e".into()], format!("{name}:{hash}\n").as_bytes(), name.as_str())
            }
        }
    }

    fn remove_user(&mut self, name: &UserName) -> Result<(), AccountError> {
        self.tool("userdel", &["--".into(), name.as_str().into()], b"", name.as_str())
    }
}

fn with_name(mut args: Vec<OsString>, name: &UserName) -> Vec<OsString> {
    args.extend(["--".into(), name.as_str().into()]);
    args
}

/// The arguments of `useradd`; each choice that a distribution may have preset is made explicitly.
fn useradd_args(user: &NewUser, name_is_a_group: bool) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    if let Some(uid) = user.uid {
        args.extend(["-u".into(), uid.to_string().into()]);
    }
    if user.system {
        args.push("-r".into());
    }
    match &user.group {
        Some(group) => args.extend(["-g".into(), group.into()]),
        None if name_is_a_group => args.extend(["-g".into(), user.name.as_str().into()]),
        None => args.push("-U".into()),
    }
    if !user.groups.is_empty() {
        args.extend(["-G".into(), list_of(&user.groups)]);
    }
    common_args(&mut args, user.shell.as_ref(), user.home.as_ref(), user.comment.as_deref());
    args.push(if user.system && user.home.is_none() { "-M" } else { "-m" }.into());
    with_name(args, &user.name)
}

/// The arguments of `usermod` besides the password and the name; empty when there is nothing to change.
fn usermod_args(change: &UserChange) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    if let Some(uid) = change.uid {
        args.extend(["-u".into(), uid.to_string().into()]);
    }
    if let Some(group) = &change.group {
        args.extend(["-g".into(), group.into()]);
    }
    if let Some(groups) = &change.groups {
        args.extend(["-G".into(), list_of(groups)]);
    }
    common_args(&mut args, change.shell.as_ref(), change.home.as_ref(), change.comment.as_deref());
    args
}

fn common_args(args: &mut Vec<OsString>, shell: Option<&AbsPath>, home: Option<&AbsPath>, comment: Option<&str>) {
    if let Some(shell) = shell {
        args.extend(["-s".into(), shell.as_path().into()]);
    }
    if let Some(home) = home {
        args.extend(["-d".into(), home.as_path().into()]);
    }
    if let Some(comment) = comment {
        args.extend(["-c".into(), comment.into()]);
    }
}

fn list_of(groups: &[GroupName]) -> OsString {
    groups.iter().map(GroupName::as_str).collect::<Vec<_>>().join(",").into()
}

fn database(path: &str) -> Result<AbsPath, AccountError> {
    AbsPath::new(path).map_err(|invalid| read_error(path, std::io::Error::other(invalid)))
}

fn read_error(path: &str, source: std::io::Error) -> AccountError {
    AccountError::Read { path: path.to_owned(), source }
}

/// Reads one database. A missing one is an error: without it nothing can be told about any account.
fn read_file(root: &Root, path: &str) -> Result<(String, Metadata), AccountError> {
    match root.read(&database(path)?, MAX_DATABASE) {
        Ok(Some((bytes, metadata))) => Ok((String::from_utf8_lossy(&bytes).into_owned(), metadata)),
        Ok(None) => Err(read_error(path, std::io::ErrorKind::NotFound.into())),
        Err(source) => Err(read_error(path, source)),
    }
}

/// Parses the three databases.
pub(crate) fn parse(passwd: &str, shadow: &str, group: &str) -> AccountDb {
    let mut db = AccountDb::default();
    let hashes: std::collections::HashMap<&str, &str> =
        rows(shadow).filter_map(|row| row.split_once(':')).map(|(name, rest)| (name, first_field(rest))).collect();
    for row in rows(passwd) {
        match parse_user(row) {
            Some(mut user) => {
                user.hash = hashes.get(user.name.as_str()).map(|hash| Hash((*hash).to_owned()));
                db.users.push(user);
            }
            None => db.n_unparsed += 1,
        }
    }
    for row in rows(group) {
        match parse_group(row) {
            Some(group) => db.groups.push(group),
            None => db.n_unparsed += 1,
        }
    }
    db
}

/// Lines that are neither empty nor of the NIS compatibility mode, which names accounts that are not local.
fn rows(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with(['+', '-', '#']))
}

fn first_field(text: &str) -> &str {
    text.split(':').next().unwrap_or(text)
}

fn parse_user(row: &str) -> Option<UserEntry> {
    let mut fields = row.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (comment, home, shell) = (fields.next()?, fields.next()?, fields.next()?);
    if name.is_empty() || fields.next().is_some() {
        return None;
    }
    Some(UserEntry {
        name: name.to_owned(),
        uid,
        gid,
        comment: comment.to_owned(),
        home: home.to_owned(),
        shell: shell.to_owned(),
        hash: None,
    })
}

fn parse_group(row: &str) -> Option<GroupEntry> {
    let mut fields = row.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let (gid, members) = (fields.next()?.parse().ok()?, fields.next()?);
    if name.is_empty() || fields.next().is_some() {
        return None;
    }
    let members = members.split(',').map(str::trim).filter(|member| !member.is_empty()).map(str::to_owned).collect();
    Some(GroupEntry { name: name.to_owned(), gid, members })
}

/// Process ids whose owner is `uid`.
fn processes_with(uid: u32) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.uid() == uid))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .take(20)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(args: &[OsString]) -> String {
        args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rows_are_parsed_and_others_counted() {
        let db = parse(
            "root:x:0:0:root:/root:/bin/bash\n+nis::::::\n\nbad:x:many:0:::\nWeird Name:x:7:8:a b:/:\nshort:x:1\n",
            "root:!$y$hash:19000:0:99999:7:::\nghost:*:1::::::\n",
            "root:x:0:\nadm:x:4:root, syslog\nbroken\n",
        );
        assert_eq!(db.n_unparsed, 3);
        assert_eq!(db.users.iter().map(|u| u.name.as_str()).collect::<Vec<_>>(), ["root", "Weird Name"]);
        assert_eq!(db.user("root").unwrap().hash, Some(Hash("!$y$hash".to_owned())));
        assert_eq!(db.user("Weird Name").unwrap().hash, None);
        assert_eq!((db.user("Weird Name").unwrap().uid, db.user("Weird Name").unwrap().gid), (7, 8));
        assert_eq!(db.group("adm").unwrap().members, ["root", "syslog"]);
        assert_eq!(format!("{:?}", db.user("root").unwrap().hash), "Some(Hash(locked))");
    }

    #[test]
    fn a_missing_database_is_an_error_and_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let read = || ShadowUtils::new(dir.path()).read();
        let (uid, gid) = crate::host::current_ids();
        let permissions = crate::host::root::Permissions { uid, gid, mode: crate::resource::Mode::from_bits(0o644) };
        root.create_directory(&AbsPath::new("/etc").unwrap(), permissions).unwrap();
        for (path, content) in [("/etc/passwd", "a:x:1:1:::"), ("/etc/shadow", "a:!:::::::"), ("/etc/group", "a:x:1:")]
        {
            assert!(matches!(read(), Err(AccountError::Read { .. })), "before {path}");
            root.set_permissions(
                &AbsPath::new("/etc").unwrap(),
                crate::host::root::Permissions { mode: crate::resource::Mode::from_bits(0o755), ..permissions },
            )
            .unwrap();
            root.replace_file(&AbsPath::new(path).unwrap(), content.as_bytes(), permissions).unwrap();
        }
        assert_eq!(read().unwrap().user("a").unwrap().gid, 1);
    }

    #[test]
    fn a_new_user_is_spelled_out() {
        let base = NewUser {
            name: UserName::new("deploy").unwrap(),
            uid: None,
            group: None,
            groups: Vec::new(),
            shell: None,
            home: None,
            comment: None,
            system: false,
        };
        let check = |user: NewUser, name_is_a_group: bool, expected: &str| {
            assert_eq!(words(&useradd_args(&user, name_is_a_group)), expected);
        };
        check(base.clone(), false, "-U -m -- deploy");
        check(base.clone(), true, "-g deploy -m -- deploy");
        check(NewUser { system: true, ..base.clone() }, false, "-r -U -M -- deploy");
        check(
            NewUser {
                uid: Some(1500),
                group: Some("users".to_owned()),
                groups: vec![GroupName::new("adm").unwrap(), GroupName::new("www-data").unwrap()],
                shell: Some(AbsPath::new("/bin/bash").unwrap()),
                home: Some(AbsPath::new("/srv/deploy").unwrap()),
                comment: Some("A".to_owned()),
                system: true,
                ..base
            },
            true,
            "-u 1500 -r -g users -G adm,www-data -s /bin/bash -d /srv/deploy -c A -m -- deploy",
        );
    }

    #[test]
    fn a_change_names_only_what_changes() {
        let check = |change: UserChange, expected: &str| assert_eq!(words(&usermod_args(&change)), expected);
        check(UserChange::default(), "");
        check(UserChange { password: Some(PasswordChange::Lock), ..UserChange::default() }, "");
        check(UserChange { groups: Some(Vec::new()), ..UserChange::default() }, "-G ");
        check(UserChange { uid: Some(7), group: Some("7".to_owned()), ..UserChange::default() }, "-u 7 -g 7");
    }

    #[test]
    fn a_hash_cannot_add_a_line_to_the_shadow_file() {
        let mut accounts = ShadowUtils::new(Path::new("/nonexistent"));
        let change =
            UserChange { password: Some(PasswordChange::Set(Hash("x\nroot:".to_owned()))), ..UserChange::default() };
        let error = accounts.change_user(&UserName::new("deploy").unwrap(), &change).unwrap_err();
        assert!(matches!(error, AccountError::Unsupported { .. }), "{error}");
    }
}
