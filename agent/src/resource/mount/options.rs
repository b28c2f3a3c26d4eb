//! Mount options: which exclude one another, and which of them a mount shows.

/// Options of the mount itself, not of the file system on it, each with what it excludes. The kernel shows the first of a pair.
const FLAGS: [(&str, &str); 6] = [
    ("ro", "rw"),
    ("nosuid", "suid"),
    ("nodev", "dev"),
    ("noexec", "exec"),
    ("nodiratime", "diratime"),
    ("nosymfollow", "symfollow"),
];
/// Of these one is in effect; without any, `relatime` is.
const ATIMES: [&str; 4] = ["noatime", "relatime", "strictatime", "atime"];
/// Options that the kernel shows whenever they are not the default, with a value.
const SHOWN: [&str; 4] = ["size", "nr_inodes", "hidepid", "subset"];

/// Whether two options cannot both be.
fn exclude(a: &str, b: &str) -> bool {
    let are = |x: &str, y: &str| a == x && b == y || a == y && b == x;
    if FLAGS.iter().any(|(x, y)| are(x, y)) || ATIMES.contains(&a) && ATIMES.contains(&b) {
        return a != b;
    }
    match (a.split_once('='), b.split_once('=')) {
        // These may stand several times.
        (Some((x, _)), Some((y, _))) => x == y && a != b && !x.starts_with("x-systemd.") && x != "comment",
        (Some(_) | None, _) => false,
    }
}

/// An option list that has at least the wanted ones: what excludes them is left out, what is missing comes last.
pub(super) fn merged(now: &str, wanted: &[String]) -> String {
    let is_kept = |option: &&str| !option.is_empty() && !wanted.iter().any(|wanted| exclude(wanted, option));
    let mut options: Vec<&str> = now.split(',').filter(is_kept).collect();
    let n_kept = options.len();
    for option in wanted {
        if !options.contains(&option.as_str()) {
            options.push(option);
        }
    }
    if options.len() == n_kept && n_kept == now.split(',').count() { now.to_owned() } else { options.join(",") }
}

/// Two wanted options that cannot both be.
pub(crate) fn contradiction(options: &[String]) -> Option<(&str, &str)> {
    let pairs = options.iter().enumerate().flat_map(|(i, a)| options.iter().skip(i + 1).map(move |b| (a, b)));
    pairs.map(|(a, b)| (a.as_str(), b.as_str())).find(|(a, b)| exclude(a, b))
}

/// What a remount has to bring about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Missing {
    /// Options of the mount itself.
    pub(super) flags: Vec<String>,
    /// Options of the file system.
    pub(super) others: Vec<String>,
}

impl Missing {
    pub(super) fn is_empty(&self) -> bool {
        self.flags.is_empty() && self.others.is_empty()
    }
}

/// Which wanted options are not in effect, by what mountinfo shows of the mount and of its file system. Of an option that the kernel
/// need not show nothing can be told, and it counts as in effect.
pub(super) fn missing(mount: &[String], super_options: &[String], wanted: &[String]) -> Missing {
    let mut missing = Missing::default();
    let has = |options: &[String], option: &str| options.iter().any(|shown| shown == option);
    let is_ro = has(mount, "ro") || has(super_options, "ro");
    for option in wanted {
        let word = option.as_str();
        if word == "ro" || word == "rw" {
            if is_ro != (word == "ro") {
                // A file system that is read-only itself has to be made writable as a whole.
                let all = word == "rw" && has(super_options, "ro");
                if all { &mut missing.others } else { &mut missing.flags }.push(option.clone());
            }
        } else if let Some((shown, _)) = FLAGS.iter().find(|(a, b)| *a == word || *b == word) {
            if has(mount, shown) != (*shown == word) {
                missing.flags.push(option.clone());
            }
        } else if ATIMES.contains(&word) {
            let now = ["noatime", "relatime"].into_iter().find(|atime| has(mount, atime)).unwrap_or("strictatime");
            let wanted = if word == "atime" { "relatime" } else { word };
            if now != wanted {
                missing.flags.push(wanted.to_owned());
            }
        } else if let Some((key, value)) = word.split_once('=') {
            let shown = super_options.iter().find_map(|shown| shown.strip_prefix(key)?.strip_prefix('='));
            let differs = match shown {
                Some(shown) => is_comparable(value) && normal(key, shown) != normal(key, value),
                None => SHOWN.contains(&key) && is_comparable(value) && !is_default(key, value),
            };
            if differs {
                missing.others.push(option.clone());
            }
        }
    }
    missing
}

/// A share of the memory is shown as a number.
fn is_comparable(value: &str) -> bool {
    !value.ends_with('%')
}

fn is_default(key: &str, value: &str) -> bool {
    key == "hidepid" && matches!(value, "0" | "off")
}

/// One spelling of a value: bytes for a size, a word for a number that the kernel shows as one.
fn normal(key: &str, value: &str) -> String {
    if key == "hidepid" {
        let words = ["off", "noaccess", "invisible", "", "ptraceable"];
        let number = value.parse::<usize>().ok();
        return number.and_then(|number| words.get(number)).copied().unwrap_or(value).to_owned();
    }
    let lower = value.to_ascii_lowercase();
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        Some(b't') => (&lower[..lower.len() - 1], 40),
        Some(_) | None => (lower.as_str(), 0),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)) {
        // Whole pages, as the kernel counts.
        Some(bytes) if key == "size" => bytes.div_ceil(4096).to_string(),
        Some(number) => number.to_string(),
        None => value.to_owned(),
    }
}

/// The flags of a mount with those that are wanted, as a remount has to name all of them.
pub(super) fn all_flags(mount: &[String], wanted: &[String]) -> Vec<String> {
    let is_flag =
        |option: &&String| FLAGS.iter().any(|(a, b)| a == option || b == option) || ATIMES.contains(&option.as_str());
    let kept = mount.iter().filter(is_flag).filter(|option| !wanted.iter().any(|wanted| exclude(wanted, option)));
    let mut flags: Vec<String> = kept.cloned().collect();
    for option in wanted {
        if !flags.contains(option) {
            flags.push(option.clone());
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(options: &str) -> Vec<String> {
        options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn what_excludes_the_wanted_goes() {
        #[track_caller]
        fn check(now: &str, wanted: &str, expected: &str) {
            assert_eq!(merged(now, &owned(wanted)), expected);
        }
        check("defaults", "nodev,nosuid", "defaults,nodev,nosuid");
        check("dev,exec,ro", "nodev,rw", "exec,nodev,rw");
        check("noatime,size=1G", "relatime,size=2G", "relatime,size=2G");
        check("nodev", "nodev", "nodev");
        check("x-systemd.after=a", "x-systemd.after=b", "x-systemd.after=a,x-systemd.after=b");
        check("rw,,dev", "dev", "rw,dev");
        assert_eq!(contradiction(&owned("nodev,ro,dev")), Some(("nodev", "dev")));
        assert_eq!(contradiction(&owned("nodev,ro")), None);
    }

    #[test]
    fn what_the_kernel_shows_is_compared() {
        #[track_caller]
        fn check(mount: &str, of_super: &str, wanted: &str, flags: &str, others: &str) {
            let missing = missing(&owned(mount), &owned(of_super), &owned(wanted));
            assert_eq!((missing.flags.join(","), missing.others.join(",")), (flags.to_owned(), others.to_owned()));
        }
        check("rw,nosuid,relatime", "rw", "nosuid,nodev,relatime,rw,defaults,nofail,suid", "nodev,suid", "");
        check("rw,relatime", "ro", "rw,noatime", "noatime", "rw");
        check("rw,relatime", "rw", "ro,atime", "ro", "");
        check("ro", "rw", "rw,strictatime", "rw", "");
        check("rw", "rw,size=1048576k,mode=755", "size=1G,mode=755", "", "");
        check("rw", "rw,size=1048576k", "size=2g,mode=1777,nr_inodes=5", "", "size=2g,nr_inodes=5");
        check("rw", "rw,size=1048576k", "size=50%", "", "");
        check("rw", "rw,hidepid=invisible", "hidepid=2", "", "");
        check("rw", "rw", "hidepid=2", "", "hidepid=2");
        assert_eq!(all_flags(&owned("rw,nosuid,relatime"), &owned("nodev,noatime")), owned("rw,nosuid,nodev,noatime"));
    }
}
