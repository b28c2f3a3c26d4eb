//! systemd's own mount units, as far as they decide about options. Those that are made of fstab are not looked at.

use super::options;
use crate::host::root::Root;
use crate::resource::AbsPath;

/// Where units are that go before those made of fstab, and where those are that come after.
const BEFORE: [&str; 2] = ["/etc/systemd/system", "/run/systemd/system"];
const AFTER: [&str; 3] = ["/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
const MAX_UNIT: u64 = 1024 * 1024;
const MAX_DROP_INS: usize = 1000;

/// A unit that mounts something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    /// The file whose options count.
    pub(super) path: String,
    /// `What=`.
    pub(super) source: String,
    /// `Type=`.
    pub(super) fstype: String,
    /// `Options=`.
    pub(super) options: String,
    /// Whether it decides even where fstab has a line.
    pub(super) goes_first: bool,
}

impl Unit {
    /// Whether it has all of these options.
    pub(super) fn has(&self, wanted: &[String]) -> bool {
        options::merged(&self.options, wanted) == self.options
    }
}

/// The unit of a mount point, if there is one; the error is why that could not be told.
pub(super) fn find(root: &Root, target: &str) -> Result<Option<Unit>, String> {
    let name = unit_name(target);
    let mut unit = None;
    let places = BEFORE.iter().map(|place| (place, true)).chain(AFTER.iter().map(|place| (place, false)));
    for (directory, goes_first) in places {
        let path = format!("{directory}/{name}");
        if let Some(text) = read(root, &path)? {
            let mut found =
                Unit { path, source: String::new(), fstype: String::new(), options: String::new(), goes_first };
            found.take(&text);
            unit = Some(found);
            break;
        }
    }
    // A drop-in changes a unit whatever that is made of.
    let directory = format!("/etc/systemd/system/{name}.d");
    let names = match AbsPath::new(&directory) {
        Ok(path) => root.list_names(&path, MAX_DROP_INS).map_err(|e| format!("cannot list `{directory}`: {e}"))?,
        Err(_) => None,
    };
    for drop_in in
        names.into_iter().flatten().filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".conf"))
    {
        let path = format!("{directory}/{drop_in}");
        let Some(text) = read(root, &path)? else { continue };
        let mut over =
            Unit { path, source: String::new(), fstype: String::new(), options: String::new(), goes_first: true };
        if over.take(&text) {
            let base = unit.take();
            let (source, fstype) = base.map(|unit| (unit.source, unit.fstype)).unwrap_or_default();
            unit = Some(Unit { source, fstype, ..over });
        }
    }
    Ok(unit)
}

impl Unit {
    /// Takes what a unit file says. Returns whether it says options.
    fn take(&mut self, text: &str) -> bool {
        let mut in_mount = false;
        let mut says = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                in_mount = line == "[Mount]";
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| in_mount && !line.starts_with(['#', ';'])) else {
                continue;
            };
            let value = value.trim().replace("%%", "%");
            match key.trim() {
                "What" => self.source = value,
                "Type" => self.fstype = value,
                "Options" => {
                    self.options = value;
                    says = true;
                }
                _ => {}
            }
        }
        says
    }
}

/// A unit file's text; `None` where there is none, or something that is no file, such as the link that masks a unit.
fn read(root: &Root, path: &str) -> Result<Option<String>, String> {
    let Ok(path) = AbsPath::new(path) else { return Ok(None) };
    match root.read(&path, MAX_UNIT) {
        Ok(found) => Ok(found.map(|(content, _)| String::from_utf8_lossy(&content).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => Ok(None),
        Err(e) => Err(format!("cannot read `{path}`: {e}")),
    }
}

/// The name of a mount point's unit, as `systemd-escape --path --suffix=mount` makes it.
fn unit_name(target: &str) -> String {
    let path = target.trim_matches('/');
    if path.is_empty() {
        return "-.mount".to_owned();
    }
    let mut name = String::new();
    for (at, byte) in path.bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            byte if byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_' | b'.') => name.push(char::from(byte)),
            byte => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    name + ".mount"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_the_names_that_systemd_gives_them() {
        for (target, name) in [
            ("/", "-.mount"),
            ("/tmp", "tmp.mount"),
            ("/var/tmp", "var-tmp.mount"),
            ("/.a-b c", "\\x2ea\\x2db\\x20c.mount"),
        ] {
            assert_eq!(unit_name(target), name);
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test writes what an administrator would")]
    fn drop_ins_have_the_last_word() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(find(&root, "/tmp"), Ok(None));
        put(
            "usr/lib/systemd/system/tmp.mount",
            "[Unit]\nOptions=no\n[Mount]\nWhat=tmpfs\nType=tmpfs\nOptions=mode=1777,size=50%%,nosuid\n",
        );
        let unit = find(&root, "/tmp").unwrap().unwrap();
        assert_eq!(
            (unit.goes_first, unit.options.as_str(), unit.source.as_str()),
            (false, "mode=1777,size=50%,nosuid", "tmpfs")
        );
        assert!(unit.has(&["nosuid".to_owned()]) && !unit.has(&["nodev".to_owned()]));
        put("etc/systemd/system/tmp.mount.d/x.conf", "[Mount]\nOptions=nodev\n");
        let unit = find(&root, "/tmp").unwrap().unwrap();
        assert_eq!((unit.goes_first, unit.options.as_str(), unit.fstype.as_str()), (true, "nodev", "tmpfs"));
    }
}
