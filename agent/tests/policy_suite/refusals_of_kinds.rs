//! What single kinds of resources refuse: as `refusals.rs`, which holds what all of them have in common.

use crate::refusals::check;
use crate::support::host;

#[test]
fn repositories() {
    let apt = |more: &str| {
        format!("[repository.x]\napt = {{ uris = ['https://a'], suites = ['s'], components = ['c'], {more} }}\n")
    };
    let keyed = |what: &str| format!("[repository.x]\n{what} = {{ uris = ['https://a'], key = 'keys/acme.asc', ");
    let (deb, dnf) = (keyed("apt"), keyed("dnf"));
    check(
        "repositories",
        Some(&host()),
        &[
            (&apt("key = 'keys/acme.asc'"), &[]),
            (&format!("{dnf}signed_index = true }}\n"), &[]),
            (
                "[repository.x]\nzypper = { uris = ['http://a/$releasever', 'file:/srv/x'], key = 'keys/acme.asc' }\n",
                &[],
            ),
            ("[repository.x]\nstate = 'absent'\n", &[]),
            // Nothing comes in that is not signed.
            (&apt(""), &["unauthenticated"]),
            ("[repository.x]\ndnf = { uris = ['https://a'] }\n", &["unauthenticated"]),
            (&apt("trusted = true"), &["unknown-key"]),
            (
                "[repository.x]\ndnf = { uris = ['https://a'], gpgcheck = false, key = 'keys/acme.asc' }\n",
                &["unknown-key"],
            ),
            (&apt("key = 'keys/none.asc'"), &["missing-file"]),
            (&apt("key = 'files/motd'"), &["key"]),
            (&apt("key = 'keys/private.asc'"), &["key"]),
            // One of them, with all that it needs.
            ("[repository.x]\n", &["missing-key"]),
            (&format!("{deb}suites = ['s'], components = ['c'] }}\ndnf = {{ uris = ['https://a'] }}\n"), &["value"]),
            (&format!("{deb}components = ['c'] }}\n"), &["missing-key"]),
            ("[repository.x]\ndnf = { key = 'keys/acme.asc' }\n", &["missing-key"]),
            (&format!("{deb}suites = ['s'] }}\n"), &["value"]),
            (&format!("{deb}suites = ['./'], components = ['c'] }}\n"), &["value"]),
            (&format!("{deb}suites = ['./', 's'] }}\n"), &["value"]),
            (&format!("{deb}suites = ['./'] }}\n"), &[]),
            ("[repository.x]\nstate = 'absent'\ndnf = { uris = ['https://a'], key = 'keys/acme.asc' }\n", &["absent"]),
            // No word can be two, or a line of its own.
            (&format!("{deb}suites = [\"s\\nTrusted: yes\"], components = ['c'] }}\n"), &["value"]),
            (&format!("{deb}suites = ['s'], components = ['c d', '-c', '..'] }}\n"), &["value", "value", "value"]),
            (
                &format!("{deb}suites = ['s'], components = ['c'], types = ['rpm'], architectures = [''] }}\n"),
                &["value", "value"],
            ),
            (
                "[repository.x]\ndnf = { uris = [\"https://a\\ngpgcheck=0\", 'ftp://a', 'https://', 'https://a b', '/srv'], key = 'keys/acme.asc' }\n",
                &["value", "value", "value", "value", "value"],
            ),
            ("[repository.x]\ndnf = { uris = ['https://me:secret@a/x'], key = 'keys/acme.asc' }\n", &["value"]),
            ("[repository.'a/b']\nstate = 'absent'\n[repository.'-x']\nstate = 'absent'\n", &["name", "name"]),
            // Its files are its own.
            (
                &format!(
                    "{}[file.'/etc/apt/keyrings/rekindle-x.gpg']\nstate = 'absent'\n",
                    apt("key = 'keys/acme.asc'")
                ),
                &["conflict"],
            ),
            (
                &format!(
                    "{}[setting.'/etc/apt/sources.list.d/x.sources']\nformat = 'line'\nlines = ['Trusted: yes']\n",
                    apt("key = 'keys/acme.asc'")
                ),
                &["conflict"],
            ),
        ],
    );
}

#[test]
fn rules_over_trees() {
    check(
        "rules_over_trees",
        Some(&host()),
        &[
            (
                "[directory.'/etc/x.d']\npurge = 'all'\npurge_limit = 0\nkeep = 'README'\n",
                &["unknown-value", "type", "type"],
            ),
            ("[directory.'/etc/x.d']\npurge = 1\n", &["type"]),
            ("[directory.'/etc/x.d']\npurge = true\nkeep = ['', '/etc/x.d/a', '../a', 'a/', 'ok/*']\n", &["value"; 4]),
            ("[directory.'/etc/x.d']\nkeep = ['README']\npurge_limit = 5\n", &["missing-key", "missing-key"]),
            ("[directory.'/etc/x.d']\nstate = 'absent'\npurge = true\n", &["absent"]),
            ("[directory.'/etc/x.d']\nrecurse = {}\n", &["missing-key"]),
            (
                "[directory.'/etc/x.d']\nrecurse = { ownr = 'root', owner = '12', file_mode = '644', directory_mode = 755 }\n",
                &["unknown-key", "type"],
            ),
            ("[directory.'/etc/x.d']\nrecurse = { owner = '12', file_mode = '644' }\n", &["name", "mode"]),
            ("[directory.'/etc/x.d']\nrecurse = { owner = 'nosuch' }\n", &["account"]),
            ("[directory.'/']\npurge = true\nkeep = []\n", &["protected"]),
            ("[directory.'/etc']\npurge = 'recursive'\nkeep = []\nrecurse = { group = 'root' }\n", &["protected"; 2]),
            ("[directory.'/var/lib/rekindle/backup']\npurge = true\nkeep = []\n", &["protected"; 2]),
            (
                "[user.app]\nhome = '/srv/app/home'\n[directory.'/srv/app']\npurge = 'recursive'\nrecurse = { owner = 'app' }\n",
                &["protected", "purge"],
            ),
            ("[directory.'/etc/x.d']\npurge = true\n", &["purge"]),
            ("[directory.'/etc/x.d']\npurge = true\n[file.'/etc/x.d/a/b']\ncontent = ''\n", &["purge"]),
            ("[directory.'/etc/x.d']\npurge = true\n[file.'/etc/x.d/a']\ncontent = ''\n", &[]),
            ("[directory.'/etc/x.d']\npurge = true\nkeep = []\n[directory.'/etc/x.d/a']\npurge = false\n", &[]),
        ],
    );
}

#[test]
fn settings() {
    let ini = "[setting.'/etc/x.conf']\nformat = 'ini'\n";
    let ssh = "[setting.'/etc/ssh/sshd_config']\nformat = 'ssh'\n";
    check(
        "settings",
        Some(&host()),
        &[
            ("[setting.'/etc/login.defs']\nformat = 'space'\nvalues = { UMASK = '027', PASS_MAX_DAYS = 365 }\n", &[]),
            (
                &format!("{ini}values = {{ a = 1, s = {{ b = ['x', 'y'], c = true }} }}\nabsent = {{ s = ['d'] }}\n"),
                &[],
            ),
            ("[setting.'/etc/x']\nvalues = { A = 1 }\n", &["missing-key"]),
            ("[setting.'/etc/x']\nformat = 'toml'\nvalues = { A = 1 }\n", &["unknown-value"]),
            ("[setting.'/etc/x']\nformat = 'space'\n", &["missing-key"]),
            ("[setting.'/etc/x']\nformat = 'space'\nlines = ['a']\n", &["format"]),
            ("[setting.'/etc/x']\nformat = 'line'\nvalues = { A = 1 }\ncomment = '#'\n", &["format", "format"]),
            ("[setting.x]\nformat = 'line'\nlines = ['a']\n", &["missing-key"]),
            ("[setting.x]\npath = 'etc'\nformat = 'line'\nlines = ['a']\n", &["path"]),
            ("[setting.'/etc/x']\npath = '/etc/y'\nformat = 'line'\nlines = ['a']\n", &["contradiction"]),
            ("[setting.'/etc/../x']\nformat = 'line'\nlines = ['a']\n", &["path"]),
            ("[setting.'/etc/x']\nformat = 'line'\nlines = [\"a\\nb\", '']\nabsent = ['c']\n", &["value", "value"]),
            ("[setting.'/etc/x']\nformat = 'line'\nlines = ['a']\nabsent = ['a']\n", &["contradiction"]),
            ("[setting.x]\npath = '/etc/x'\nformat = 'block'\nlines = ['# END rekindle: x']\n", &["value"]),
            (
                "[setting.'/etc/x']\nformat = 'space'\nvalues = { 'A B' = 1, '#C' = 2, D = '', E = \"x\\ny\", F = 0o27, G = 1.5, H = [] }\n",
                &["name", "name", "value", "value", "type", "type", "value"],
            ),
            ("[setting.'/etc/x']\nformat = 'equals'\nvalues = { A = 1 }\nabsent = ['A']\n", &["duplicate"]),
            (
                "[setting.'/etc/x']\nformat = 'equals'\nvalues = { A = \"'x\", B = '\"x', C = \"it's\", 'export D' = 1 }\n",
                &["value", "value", "name"],
            ),
            (&format!("{ssh}values = {{ Banner = 'a \"b', X = '\"a b\"', Y = '=no' }}\n"), &["value", "value"]),
            (
                &format!(
                    "{ssh}values = {{ PermitRootLogin = false, permitrootlogin = 'no', Match = 'all', A = {{ b = 1 }} }}\n"
                ),
                &["format"],
            ),
            (
                &format!("{ssh}values = {{ PermitRootLogin = false, permitrootlogin = 'no', Match = 'all' }}\n"),
                &["type", "duplicate", "value"],
            ),
            ("[setting.'/etc/x']\nformat = 'space'\nvalues = { A = 1 }\nowner = 'nobodyy'\n", &["account"]),
            (
                "[file.'/etc/x']\ncontent = ''\n[setting.y]\npath = '/etc/x'\nformat = 'line'\nlines = ['a']\n",
                &["conflict"],
            ),
            (
                "[symlink.'/etc/x']\ntarget = 'y'\n[setting.y]\npath = '/etc/x/z'\nformat = 'line'\nlines = ['a']\n",
                &["path"],
            ),
            (
                &format!(
                    "{ssh}values = {{ Port = 22 }}\n[setting.b]\npath = '/etc/ssh/sshd_config'\nformat = 'ssh'\nvalues = {{ port = 23, X = 'y' }}\n"
                ),
                &["conflict"],
            ),
            (
                &format!(
                    "{ssh}values = {{ Port = 22 }}\n[setting.b]\npath = '/etc/ssh/sshd_config'\nformat = 'space'\nvalues = {{ X = 'y' }}\n"
                ),
                &["conflict"],
            ),
            (
                &format!(
                    "{ssh}values = {{ Port = 22 }}\n[setting.b]\npath = '/etc/ssh/sshd_config'\nformat = 'block'\nlines = ['port 22']\n"
                ),
                &["conflict"],
            ),
            (
                &format!(
                    "{ssh}values = {{ Port = 22 }}\nmode = '0600'\n[setting.b]\npath = '/etc/ssh/sshd_config'\nformat = 'line'\nlines = ['# x']\nmode = '0644'\n"
                ),
                &["conflict"],
            ),
            (
                &format!(
                    "{ssh}values = {{ Port = 22 }}\n[setting.b]\npath = '/etc/ssh/sshd_config'\nformat = 'block'\nlines = ['# x']\n"
                ),
                &[],
            ),
            (
                "[setting.a]\npath = '/etc/x'\nformat = 'line'\nlines = ['l']\n[setting.b]\npath = '/etc/x'\nformat = 'line'\nabsent = ['l']\n",
                &["conflict"],
            ),
            (
                "[user.root]\nsystem = true\npassword = { locked = true }\n[setting.'/etc/ssh/sshd_config']\nformat = 'ssh'\nvalues = { AllowUsers = 'bob' }\n",
                &["lock-out"],
            ),
        ],
    );
}

#[test]
fn commands_and_checks() {
    let command = |attributes: &str| format!("[command.x]\n{attributes}\n");
    let check_of = |attributes: &str| format!("[check.x]\nrun = ['/bin/true']\n{attributes}\n");
    check(
        "commands_and_checks",
        Some(&host()),
        &[
            (&command("run = ['/usr/sbin/update-grub']"), &["forever"]),
            (&command("unless = ['/bin/true']"), &["missing-key"]),
            (&command("run = 'update-grub && reboot'\nunless = ['/bin/true']"), &["type"]),
            (&command("run = ['/bin/a', '&&', '/bin/b']\nunless = ['b']"), &["program", "program"]),
            (&command("run = ['/bin/a']\nowed_by = ['file[/etc/none]']"), &["reference"]),
            (&command("run = ['/bin/a']\nowed_by = ['check[y]']\n[check.y]\nrun = ['/bin/b']"), &["reference"]),
            (&command("run = ['/bin/a']\ncreates = 'x'\ncwd = '../y'\nuser = 'a b'"), &["name", "path", "path"]),
            (&command("run = ['/bin/a']\ncreates = '/x'\ndeadline = '0s'"), &["value"]),
            (&command("run = ['/bin/a']\ncreates = '/x'\nexit_codes = [0, 256]\nenv = { A = 1 }"), &["type", "type"]),
            (&command("run = ['/bin/a']\ncreates = '/x'\nenv = { 'A=B' = 'c' }"), &["name"]),
            (&command("run = ['/bin/a']\ncreates = '/x'\nstate = 'absent'"), &["unknown-key"]),
            ("[command.'a b']\nrun = ['/bin/a']\ncreates = '/x'\n", &["name"]),
            (&check_of("on_drift = 'repair'\nrestarts = ['ssh']"), &["contradiction", "contradiction"]),
            (&check_of("on_drift = 'reimage'"), &[]),
            (&check_of("unless = ['/bin/false']"), &["unknown-key"]),
            (&check_of("waiver = { until = '2027-03-01', reason = 'r', owner = 'o' }"), &["type"]),
            (&check_of("waiver = { until = 2027-03-01, reason = 'r' }"), &["missing-key"]),
            (&check_of("waiver = { until = 2027-03-01, reason = ' ', owner = 'o' }"), &["value"]),
            (&check_of("waiver = { until = 09:00:00, reason = 'r', owner = 'o' }"), &["value"]),
            (&check_of("waiver = { until = 2027-03-01T09:00:00Z, reason = 'r', owner = 'o' }"), &[]),
        ],
    );
}

#[test]
fn sweeps() {
    let sweep = |attributes: &str| format!("[sweep.x]\n{attributes}\n");
    check(
        "sweeps",
        Some(&host()),
        &[
            (&sweep("under = ['/usr']\nmatch = { setuid = true, not_in = 'files/motd' }"), &["path"]),
            (
                &sweep("under = ['/usr']\nmatch = { setuid = true, not_in = ['/usr/bin/sudo'] }\naction = 'reimage'"),
                &[],
            ),
            (&sweep("match = { setuid = true }"), &["missing-key"]),
            (&sweep("under = ['usr']\nexcept = ['*.so']"), &["path", "missing-key", "path"]),
            (&sweep("under = ['/usr']\nmatch = { setuid = false }"), &["value"]),
            (&sweep("under = ['/usr']\nmatch = { setuid = true, not_in = 'suid-allowlist' }"), &["missing-file"]),
            (&sweep("under = ['/usr']\nmatch = { setuid = true, not_in = 5, suid = true }"), &["type", "unknown-key"]),
            (
                &sweep("under = ['/usr']\nmatch = { no_owner = true }\naction = 'strip-setuid'\non_drift = 'report'"),
                &["contradiction", "contradiction"],
            ),
            (&sweep("under = ['/usr']\nmatch = { setuid = true }\nrestarts = ['ssh']"), &["contradiction"]),
            (&sweep("under = ['/usr']\nmatch = { setuid = true }\naction = 'remove'"), &["unknown-value"]),
        ],
    );
}

#[test]
fn kernel() {
    check(
        "kernel",
        Some(&host()),
        &[
            (
                "[sysctl]\n'net.ipv4.ip_forward' = { value = 0 }\n'net.ipv4.tcp_rmem' = { value = '1 2 3', persist = false }\n",
                &[],
            ),
            (
                "[sysctl]\n'net.ipv4.ip_forward' = { value = 0 }\n'net/ipv4/ip_forward' = { value = 1 }\n",
                &["duplicate"],
            ),
            (
                "[sysctl]\n'net.ipv4.conf.*.rp_filter' = { value = 1 }\nkernel = { value = 1 }\n'../x' = { value = 1 }\n",
                &["name", "name", "name"],
            ),
            (
                "[sysctl]\n'kernel.a' = {}\n'kernel.b' = { value = true }\n'kernel.c' = { value = '' }\n'kernel.d' = 0\n",
                &["type", "type", "missing-key", "value"],
            ),
            ("[sysctl]\n'kernel.a' = { value = 1, ignore_missing = true, persist = false }\n", &["no-effect"]),
            (
                "[sysctl]\n'kernel.a' = { value = 1 }\n[file.'/etc/sysctl.d/60-rekindle-kernel.a.conf']\ncontent = ''\n",
                &["conflict"],
            ),
            ("[kernel_module]\nusb-storage = { state = 'blocked' }\nnf_conntrack = { state = 'loaded' }\n", &[]),
            (
                "[kernel_module]\nusb-storage = { state = 'blocked' }\nusb_storage = { state = 'loaded' }\n",
                &["duplicate"],
            ),
            (
                "[kernel_module]\na = {}\nb = { state = 'absent' }\n'c.ko' = { state = 'loaded' }\n",
                &["unknown-value", "name", "missing-key"],
            ),
            (
                "[kernel_module.a]\nstate = 'blocked'\n[file.'/etc/modprobe.d/60-rekindle-a.conf']\ncontent = ''\n",
                &["conflict"],
            ),
        ],
    );
}

#[test]
fn mounts() {
    check(
        "mounts",
        Some(&host()),
        &[
            ("[mount.'/tmp']\noptions = ['nodev', 'nosuid', 'noexec']\n", &[]),
            ("[mount.'/srv']\nsource = 'UUID=1'\nfstype = 'ext4'\n[directory.'/srv']\n", &[]),
            ("[mount.'/tmp']\noptions = ['nodev', 'dev']\n", &["contradiction"]),
            ("[mount.'/tmp']\noptions = ['nodev,nosuid', '', 'remount']\n", &["value", "value", "value"]),
            ("[mount.'/tmp']\nsource = '-x'\nfstype = 'a b'\n", &["value", "value"]),
            ("[mount.tmp]\n[mount.'/a/']\n", &["path", "path"]),
            ("[mount.'/usr']\nstate = 'absent'\n[mount.'/']\nstate = 'unmounted'\n", &["protected", "protected"]),
            ("[mount.'/srv']\nstate = 'unmounted'\noptions = ['nodev']\n", &["absent"]),
            ("[mount.'/srv']\nstate = 'absent'\noptions = ['nodev']\n", &["absent"]),
            ("[mount.'/srv']\n[file.'/etc/fstab']\ncontent = ''\n", &["conflict"]),
            ("[mount.'/srv']\n[symlink.'/srv']\ntarget = 'x'\n", &["conflict"]),
        ],
    );
}
