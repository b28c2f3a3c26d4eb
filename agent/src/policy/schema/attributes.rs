//! What each kind can be declared with: the one table that everything else about the language is made from.

use super::{Attribute, Shape, attribute};
use crate::resource::Kind;

const STATE: Attribute =
    attribute("state", Shape::Word(&["present", "absent"]), "Whether it is to be there. Default `present`.");
const MODE: Attribute = attribute("mode", Shape::Text, "Permission bits: four octal digits, such as \"0644\".");
const FILE_OWNER: Attribute = attribute("owner", Shape::Account, "Owner, by name or id. Default root.");
const FILE_GROUP: Attribute = attribute("group", Shape::Account, "Group, by name or id. Default root.");
const SYSTEM: Attribute =
    attribute("system", Shape::Bool, "Says that an account of the system itself, below the ids of people, is meant.");

/// Keys that every resource has. `file`, `directory` and `setting` have an `owner` of their own, which hides the one here.
const COMMON: &[Attribute] = &[
    attribute(
        "when",
        Shape::Text,
        "Expression over `facts`, `roles`, `vars` and `host`; the resource exists only where it is true.",
    ),
    attribute(
        "requires",
        Shape::Texts,
        "Resources, as `kind[name]`, that come first; if one fails, this one is skipped.",
    ),
    attribute("restarts", Shape::Texts, "Services that are owed a restart when this changes."),
    attribute("reloads", Shape::Texts, "Services that are owed a reload when this changes."),
    attribute("on_drift", Shape::Word(&["repair", "report", "reimage"]), "What to do about drift. Default `repair`."),
    attribute(
        "confirm",
        Shape::Table(&[
            attribute("within", Shape::Text, "How long the proof may take, from \"1s\" to \"1h\"."),
            attribute(
                "by",
                Shape::Proof,
                "`endpoint`: a check-in is answered. `ssh`: somebody logs in. Or a command that exits with 0.",
            ),
        ]),
        "What has to prove, after a new revision changed this, that an operator can still get in; otherwise it is put back.",
    ),
    attribute("description", Shape::Text, "Free text for people."),
    attribute("owner", Shape::Text, "Who answers for it."),
    attribute("tags", Shape::Texts, "Free words for filters and routing."),
];

/// Keys that a resource with `state = "absent"` may have beside [`COMMON`].
pub(in crate::policy) const WITH_ABSENT: [&str; 2] = ["state", "system"];

const VALIDATE: Attribute = attribute(
    "validate",
    Shape::Texts,
    "Program and arguments that must succeed before new content is put in place; `{}` stands for the path. It sees all files of the \
     run as they will be, and nobody else does. Never a line for a shell.",
);

const FILE: &[Attribute] = &[
    STATE,
    attribute("content", Shape::Text, "The whole content."),
    attribute("source", Shape::Text, "A file of the policy whose bytes are the content."),
    attribute("template", Shape::Text, "A file of the policy that is rendered to the content."),
    attribute("secret", Shape::Text, "The name of a secret, secrets/NAME.age in the policy, that is the content."),
    FILE_OWNER,
    FILE_GROUP,
    MODE,
    attribute(
        "symlink",
        Shape::Word(&["replace", "follow", "refuse"]),
        "What to do about a symbolic link at the path. `replace`: the file takes its place, what it led to is not touched. `follow`: \
         what it leads to is the file, if nobody but root could have made the link. `refuse`: the step fails. Default `replace`.",
    ),
    attribute(
        "hardlink",
        Shape::Word(&["break", "in-place", "refuse"]),
        "What to do when the file has other names and is out of sync. `break`: it is replaced, the other names keep what they \
         have. `in-place`: it is written to, not at once, and all names show the same. `refuse`: the step fails. Default `break`.",
    ),
    attribute(
        "allow_empty",
        Shape::Bool,
        "Whether a file that has content may be emptied when its template or source comes out empty. Default false: the step \
         fails. `content = \"\"` needs no leave.",
    ),
    VALIDATE,
];
const DIRECTORY: &[Attribute] = &[
    STATE,
    FILE_OWNER,
    FILE_GROUP,
    MODE,
    attribute(
        "purge",
        Shape::Switch(&["recursive"]),
        "`true`: what is in the directory, is no directory and is not declared is drift, and is moved to the attic. \
         `\"recursive\"`: whatever is beneath it, directories with everything in them included. `false`: a recursive purge of a \
         directory above ends here. Default: nothing is looked at.",
    ),
    attribute(
        "keep",
        Shape::Texts,
        "What a purge leaves alone, with everything in it and the directories above it: names and patterns of names at any depth, \
         or with a slash of paths from the directory. `*` and `?` match within a name, `**` any number of directories.",
    ),
    attribute(
        "purge_limit",
        Shape::Count,
        "Most entries that a purge removes at once; if there are more, they are reported and none is removed. Default 1000.",
    ),
    attribute(
        "recurse",
        Shape::Table(&[
            attribute("owner", Shape::Account, "Owner of everything, by name or id."),
            attribute("group", Shape::Account, "Group of everything, by name or id."),
            attribute("file_mode", Shape::Text, "Permission bits of regular files: four octal digits."),
            attribute("directory_mode", Shape::Text, "Permission bits of directories: four octal digits."),
        ]),
        "Owner, group and modes of everything beneath the directory that is not declared itself; links, special files and other \
         file systems excepted. What is left out is not looked at. Changes in subdirectories are noticed by full scans only.",
    ),
];
const SYMLINK: &[Attribute] = &[STATE, attribute("target", Shape::Text, "What the link holds; it need not exist.")];
const USER: &[Attribute] = &[
    STATE,
    attribute("uid", Shape::Id, "Numeric id."),
    attribute("group", Shape::Account, "Primary group. Default a group of the user's own name."),
    attribute("groups", Shape::Texts, "Supplementary groups: at least these."),
    attribute("groups_exact", Shape::Bool, "Whether `groups` are all there may be. Default false."),
    attribute("shell", Shape::Text, "Login shell."),
    attribute("home", Shape::Text, "Home directory; made at creation, never moved."),
    attribute("comment", Shape::Text, "The GECOS field."),
    attribute(
        "password",
        Shape::Table(&[
            attribute("locked", Shape::Bool, "`true`: no password opens the account."),
            attribute("hash", Shape::Text, "A crypt(3) hash, never the password itself."),
            attribute(
                "secret",
                Shape::Text,
                "The name of a secret that is such a hash, secrets/NAME.age in the policy.",
            ),
        ]),
        "State of the password.",
    ),
    attribute("authorized_keys", Shape::Texts, "Lines of ~/.ssh/authorized_keys."),
    attribute("authorized_keys_exact", Shape::Bool, "Whether other lines are drift. Default false."),
    SYSTEM,
];
const GROUP: &[Attribute] = &[STATE, attribute("gid", Shape::Id, "Numeric id."), SYSTEM];
const PACKAGE: &[Attribute] = &[STATE, attribute("version", Shape::Text, "Exactly this version. Default any.")];
const SERVICE: &[Attribute] = &[
    attribute("enabled", Shape::Bool, "Whether it starts at boot. Not looked at when absent."),
    attribute("state", Shape::Word(&["running", "stopped", "masked"]), "Run state. Not looked at when absent."),
];

const RUN: Attribute =
    attribute("run", Shape::Texts, "Program and arguments, by absolute path and in words: never a line for a shell.");
const DEADLINE: &str = "After this long it is killed, with all that it started.";
const RUN_AS: Attribute = attribute("user", Shape::Text, "Whom it runs as. Default root.");
const CWD: Attribute = attribute("cwd", Shape::Text, "The directory that it starts in. Default `/`.");
const ENV: Attribute = attribute(
    "env",
    Shape::Environment,
    "Its environment, besides `PATH`, `LANG` and `HOME`. Not for secrets: every user of the host may read it while it runs.",
);
const EXIT_CODES: Attribute =
    attribute("exit_codes", Shape::Codes, "Codes with which it ends when all is well. Default [0].");
const COMMAND: &[Attribute] = &[
    RUN,
    attribute("onlyif", Shape::Texts, "A program that changes nothing; the command runs only when it ends with 0."),
    attribute("unless", Shape::Texts, "A program that changes nothing; when it ends with 0 there is nothing to do."),
    attribute("creates", Shape::Text, "A path; when something is there, there is nothing to do."),
    attribute(
        "owed_by",
        Shape::Texts,
        "Resources, as `kind[name]`, whose change it follows, whatever `unless` and `creates` say. They come first.",
    ),
    attribute("deadline", Shape::Text, DEADLINE),
    RUN_AS,
    CWD,
    ENV,
    EXIT_CODES,
];
const CHECK: &[Attribute] = &[
    RUN,
    attribute("deadline", Shape::Text, DEADLINE),
    RUN_AS,
    CWD,
    ENV,
    EXIT_CODES,
    attribute(
        "waiver",
        Shape::Table(&[
            attribute("until", Shape::Date, "When it ends by itself: at the beginning of this day, UTC."),
            attribute("reason", Shape::Text, "Why the failure is accepted."),
            attribute("owner", Shape::Text, "Who answers for that."),
        ]),
        "For how long, why and by whom its failure is accepted; a year at most.",
    ),
];

const SWEEP: &[Attribute] = &[
    attribute(
        "under",
        Shape::Texts,
        "Directories. Other file systems mounted in them are not entered: name them as well.",
    ),
    attribute(
        "match",
        Shape::Table(&[
            attribute("setuid", Shape::Bool, "Programs with the set-user-id bit."),
            attribute("setgid", Shape::Bool, "Programs with the set-group-id bit."),
            attribute(
                "world_writable",
                Shape::Bool,
                "Files that anybody may write to, and such directories that are not sticky.",
            ),
            attribute("no_owner", Shape::Bool, "What belongs to a user or group that the host does not have."),
            attribute("capabilities", Shape::Bool, "Programs with file capabilities."),
            attribute(
                "not_in",
                Shape::List,
                "Paths that may be so: an array, or a file of the policy with one path a line and `#` before remarks.",
            ),
        ]),
        "What is found: whatever any of these is true of.",
    ),
    attribute(
        "except",
        Shape::Texts,
        "Paths that are not looked at, with what is beneath them; `*`, `**` and `?` work.",
    ),
    attribute(
        "action",
        Shape::Word(&["report", "strip-setuid", "reimage"]),
        "What is done about what is found. Default `report`.",
    ),
];

pub(super) const POLICY: &[Attribute] = &[
    attribute("name", Shape::Text, "Name of the policy in reports."),
    attribute("requires", Shape::Text, "Versions of the agent that understand it, such as `>=0.1`."),
    attribute(
        "orphans",
        Shape::Word(&["report", "remove"]),
        "What becomes of resources that the policy declares no longer. Default `report`: they stay as they are.",
    ),
    attribute(
        "lock_out",
        Shape::Word(&["refuse", "allow"]),
        "What becomes of a step after which nobody would be known to be able to log in and become root. Default `refuse`.",
    ),
    attribute(
        "break_glass",
        Shape::Texts,
        "Accounts of which one has to keep its way in, whatever others can do. Default: any account will do.",
    ),
    // Written below [policy], as most people will, the key belongs to that table.
    attribute("include", Shape::Includes, INCLUDE_DOC),
];
pub(super) const INCLUDE_DOC: &str = "Further TOML files of the policy, by path from its root.";
pub(super) const PROOF: &str = "`endpoint`, `ssh`, or a command as an array of strings";
pub(super) const INCLUDES: &str = "an array of paths or of { path = …, when = … }";
pub(super) const INCLUDE: &[Attribute] = &[
    attribute("path", Shape::Text, "A TOML file of the policy."),
    attribute("when", Shape::Text, "Expression; the file counts only where it is true."),
];

const SETTING: &[Attribute] = &[
    attribute("path", Shape::Text, "The file, where the name of the resource is not its path."),
    attribute(
        "format",
        Shape::Word(&["space", "ssh", "equals", "ini", "line", "block"]),
        "How the file is written: `space` KEY value; `ssh` sshd_config; `equals` KEY=value; `ini` with sections; `line` whole lines; `block` lines between two marks.",
    ),
    attribute(
        "values",
        Shape::Values,
        "What keys are to be: a text, a number, or several of them for a key that stands several times. With `ini`, keys by section.",
    ),
    attribute(
        "absent",
        Shape::Names,
        "Keys, or with `line` lines, that must not be there. With `ini`, keys by section.",
    ),
    attribute(
        "lines",
        Shape::Texts,
        "With `line`: lines that must be there. With `block`: all lines of the block; none removes it.",
    ),
    attribute("comment", Shape::Text, "With `block`: what a comment of the file begins with. Default `#`."),
    attribute("create", Shape::Bool, "Whether a missing file is made. Default false: it is an error."),
    attribute("owner", Shape::Account, "Owner, by name or id. Default as it is."),
    attribute("group", Shape::Account, "Group, by name or id. Default as it is."),
    attribute("mode", Shape::Text, "Permission bits: four octal digits, such as \"0644\". Default as they are."),
    VALIDATE,
];

const REPOSITORY: &[Attribute] = &[
    STATE,
    attribute(
        "apt",
        Shape::Table(&[
            URIS,
            attribute("suites", Shape::Texts, "Releases, such as `bookworm`; with a slash at the end, directories."),
            attribute(
                "components",
                Shape::Texts,
                "Parts of the releases, such as `main`; none where suites are directories.",
            ),
            attribute("types", Shape::Texts, "`deb`, `deb-src` or both. Default `deb`."),
            attribute("architectures", Shape::Texts, "Architectures, such as `amd64`. Default: those of the host."),
            REPOSITORY_KEY,
        ]),
        "For apt: a file in /etc/apt/sources.list.d, and the key in /etc/apt/keyrings.",
    ),
    attribute(
        "dnf",
        Shape::Table(RPM_REPOSITORY),
        "For dnf: a file in /etc/yum.repos.d, and the key in /etc/pki/rpm-gpg.",
    ),
    attribute(
        "zypper",
        Shape::Table(RPM_REPOSITORY),
        "For zypper: a file in /etc/zypp/repos.d, and the key in /etc/pki/rpm-gpg.",
    ),
];
const RPM_REPOSITORY: &[Attribute] = &[
    URIS,
    attribute(
        "signed_index",
        Shape::Bool,
        "Whether the index is signed as the packages are, and not read otherwise. Default false.",
    ),
    REPOSITORY_KEY,
];
const URIS: Attribute = attribute("uris", Shape::Texts, "Where: https, http or file addresses.");
const REPOSITORY_KEY: Attribute =
    attribute("key", Shape::Text, "A file of the policy with the public keys that sign, as `gpg --export` writes it.");

const KERNEL_MODULE: &[Attribute] = &[attribute(
    "state",
    Shape::Word(&["loaded", "blocked"]),
    "`loaded` now and at boot, or `blocked`: not loaded now, and modprobe is kept from loading it.",
)];
const MOUNT: &[Attribute] = &[
    attribute(
        "state",
        Shape::Word(&["mounted", "unmounted", "absent"]),
        "`mounted` now and at boot, `unmounted` now, or `absent`: not mounted now, and not in /etc/fstab. Default `mounted`.",
    ),
    attribute("options", Shape::Texts, "Mount options: at least these, now and in /etc/fstab."),
    attribute("source", Shape::Text, "What is mounted, as /etc/fstab writes it. Default as it is."),
    attribute("fstype", Shape::Text, "File system type. Default as it is."),
];
const SYSCTL: &[Attribute] = &[
    attribute("value", Shape::Scalar, "Its value; several numbers with a blank between them."),
    attribute("persist", Shape::Bool, "Whether the next boot is told, by a file in /etc/sysctl.d. Default true."),
    attribute(
        "ignore_missing",
        Shape::Bool,
        "Whether a key that the kernel does not have, as before its module is loaded, is well. Default false.",
    ),
];

/// The attributes of a kind that other kinds need not have, and what the kind is.
pub(super) fn own_attributes(kind: Kind) -> (&'static [Attribute], &'static str) {
    match kind {
        Kind::File => (FILE, "Regular files, by absolute path."),
        Kind::Directory => (DIRECTORY, "Directories, by absolute path."),
        Kind::Symlink => (SYMLINK, "Symbolic links, by absolute path."),
        Kind::User => (USER, "Local users, by name."),
        Kind::Group => (GROUP, "Local groups, by name."),
        Kind::Package => (PACKAGE, "Packages of the host's package manager, by name."),
        Kind::Repository => (
            REPOSITORY,
            "Where packages come from, by a name of your own: for apt, dnf or zypper, and always with the key that signs them.",
        ),
        Kind::Command => (COMMAND, "Programs that are run when needed, by a name of your own."),
        Kind::Sweep => (SWEEP, "Rules over whole trees, by a name of your own."),
        Kind::Check => (CHECK, "Programs that only say whether all is well, by a name of your own."),
        Kind::Service => (SERVICE, "Systemd units, by name; `.service` may be left out."),
        Kind::Setting => (
            SETTING,
            "Keys or lines inside a file that something else owns, by absolute path or by any name with a `path`.",
        ),
        Kind::KernelModule => (KERNEL_MODULE, "Kernel modules, by name; a dash is an underscore."),
        Kind::Mount => (MOUNT, "Mounts, by absolute path of the mount point."),
        Kind::Sysctl => (SYSCTL, "Settings of the kernel, by name, such as \"net.ipv4.ip_forward\"."),
    }
}

/// Every attribute of a kind, its own first.
pub(super) fn attributes(kind: Kind) -> impl Iterator<Item = &'static Attribute> + Clone {
    let own = own_attributes(kind).0;
    own.iter().chain(COMMON.iter().filter(move |common| own.iter().all(|a| a.name != common.name)))
}

/// Whether an attribute is one that every resource has, and not one of the kind's own.
pub(in crate::policy) fn is_common(kind: Kind, name: &str) -> bool {
    COMMON.iter().any(|a| a.name == name) && own_attributes(kind).0.iter().all(|a| a.name != name)
}
