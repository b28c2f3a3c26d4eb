//! The shape of a policy: one table of kinds and attributes, from which both the JSON Schema for editors and the reader here are made.
//!
//! [`read`] reports every unknown key and every value of a wrong type, with its place, and hands on only what has the right
//! shape. What a value means is decided in [`super::compile`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Diagnostics, Place, Source};
use crate::resource::Kind;

/// What a value may look like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// A string.
    Text,
    /// `true` or `false`.
    Bool,
    /// A numeric user or group id.
    Id,
    /// A name or a numeric id.
    Account,
    /// An array of strings.
    Texts,
    /// One of these strings.
    Word(&'static [&'static str]),
    /// `true`, `false` or one of these strings.
    Switch(&'static [&'static str]),
    /// A whole number from 1 up.
    Count,
    /// An array of exit codes.
    Codes,
    /// A table of strings with any keys.
    Environment,
    /// The path of a file of the policy, or an array of strings.
    List,
    /// A date, or a time.
    Date,
    /// A table with these keys.
    Table(&'static [Attribute]),
    /// A string or an integer.
    Scalar,
    /// Values by key, or by section and key; [`super::compile`] looks at them more closely.
    Values,
    /// Names, or names by section; [`super::compile`] looks at them more closely.
    Names,
    /// `endpoint`, `ssh`, or a command.
    Proof,
    /// Files to include; [`read_include`] looks at it more closely.
    Includes,
}

impl Shape {
    fn describe(self) -> String {
        match self {
            Self::Text => "a string".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Id => "a number from 0 to 4294967294".to_owned(),
            Self::Account => "a name or a number from 0 to 4294967294".to_owned(),
            Self::Texts => "an array of strings".to_owned(),
            Self::Codes => "an array of numbers from 0 to 255".to_owned(),
            Self::List => "the path of a file of the policy, or an array of strings".to_owned(),
            Self::Environment => "a table of strings".to_owned(),
            Self::Date => "a date such as 2027-03-01, without quotes".to_owned(),
            Self::Word(words) => format!("one of {}", quoted(words.iter().copied())),
            Self::Switch(words) => format!("true, false or one of {}", quoted(words.iter().copied())),
            Self::Count => format!("a number from 1 to {MAX_COUNT}"),
            Self::Table(attributes) => {
                format!("a table with {}", quoted(attributes.iter().map(|attribute| attribute.name)))
            }
            Self::Scalar => "a string or a whole number".to_owned(),
            Self::Values => "a table of values".to_owned(),
            Self::Names => "an array of strings, or a table of such arrays by section".to_owned(),
            Self::Proof => PROOF.to_owned(),
            Self::Includes => INCLUDES.to_owned(),
        }
    }

    fn to_json(self) -> Value {
        match self {
            Self::Text => json!({ "type": "string" }),
            Self::Bool => json!({ "type": "boolean" }),
            Self::Id => json!({ "type": "integer", "minimum": 0, "maximum": MAX_ID }),
            Self::Account => json!({ "anyOf": [Self::Text.to_json(), Self::Id.to_json()] }),
            Self::Texts => json!({ "type": "array", "items": Self::Text.to_json() }),
            Self::Codes => {
                json!({ "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 255 }, "minItems": 1 })
            }
            Self::List => json!({ "anyOf": [Self::Text.to_json(), Self::Texts.to_json()] }),
            Self::Environment => json!({ "type": "object", "additionalProperties": Self::Text.to_json() }),
            Self::Date => json!({ "type": "string", "description": "A date or a time with its zone, without quotes." }),
            Self::Word(words) => json!({ "enum": words }),
            Self::Switch(words) => json!({ "anyOf": [Self::Bool.to_json(), Self::Word(words).to_json()] }),
            Self::Count => json!({ "type": "integer", "minimum": 1, "maximum": MAX_COUNT }),
            Self::Table(attributes) => table_to_json(attributes.iter()),
            Self::Scalar => json!({ "type": ["string", "integer"] }),
            Self::Values => {
                let scalar = json!({ "type": ["string", "integer", "boolean"] });
                let value = json!({ "anyOf": [scalar.clone(), { "type": "array", "items": scalar }] });
                let section = json!({ "type": "object", "additionalProperties": value.clone() });
                json!({ "type": "object", "additionalProperties": { "anyOf": [value, section] } })
            }
            Self::Names => {
                let names = Self::Texts.to_json();
                json!({ "anyOf": [names.clone(), { "type": "object", "additionalProperties": names }] })
            }
            Self::Proof => json!({ "anyOf": [{ "enum": ["endpoint", "ssh"] }, Self::Texts.to_json()] }),
            Self::Includes => {
                let mut include = table_to_json(INCLUDE.iter());
                if let Some(include) = include.as_object_mut() {
                    include.insert("required".to_owned(), json!(["path"]));
                }
                json!({ "type": "array", "items": { "anyOf": [Self::Text.to_json(), include] } })
            }
        }
    }
}

/// Above it is `-1`, which the system calls read as "leave it".
const MAX_ID: u32 = u32::MAX - 1;

/// Largest number of things.
const MAX_COUNT: u32 = 1_000_000_000;

/// One key of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute {
    pub(super) name: &'static str,
    shape: Shape,
    doc: &'static str,
}

const fn attribute(name: &'static str, shape: Shape, doc: &'static str) -> Attribute {
    Attribute { name, shape, doc }
}

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
pub(super) const WITH_ABSENT: [&str; 2] = ["state", "system"];

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
        "What a purge leaves alone: names and patterns of names, or with a slash of paths from the directory. `*` and `?` match \
         within a name, `**` any number of directories.",
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

const POLICY: &[Attribute] = &[
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
const INCLUDE_DOC: &str = "Further TOML files of the policy, by path from its root.";
const PROOF: &str = "`endpoint`, `ssh`, or a command as an array of strings";
const INCLUDES: &str = "an array of paths or of { path = …, when = … }";
const INCLUDE: &[Attribute] = &[
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

/// Kinds of the language that this version does not have.
const LATER_KINDS: &[&str] = &[];
/// Attributes of the language that this version does not have.
const LATER_ATTRIBUTES: &[&str] = &["hold", "verify"];

fn own_attributes(kind: Kind) -> (&'static [Attribute], &'static str) {
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
fn attributes(kind: Kind) -> impl Iterator<Item = &'static Attribute> + Clone {
    let own = own_attributes(kind).0;
    own.iter().chain(COMMON.iter().filter(move |common| own.iter().all(|a| a.name != common.name)))
}

/// Whether an attribute is one that every resource has, and not one of the kind's own.
pub(super) fn is_common(kind: Kind, name: &str) -> bool {
    COMMON.iter().any(|a| a.name == name) && own_attributes(kind).0.iter().all(|a| a.name != name)
}

/// An attribute whose value is one short text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Simple {
    /// A string.
    Text,
    /// A number.
    Number,
    /// A name, or a number.
    Account,
    /// `true` or `false`.
    Bool,
}

/// What an attribute looks like; `None` for a list, a table, or one that the kind does not have.
pub(super) fn simple_shape(kind: Kind, name: &str) -> Option<Simple> {
    let attribute = attributes(kind).find(|attribute| attribute.name == name)?;
    match attribute.shape {
        Shape::Text | Shape::Word(_) | Shape::Scalar => Some(Simple::Text),
        Shape::Id | Shape::Count => Some(Simple::Number),
        Shape::Account => Some(Simple::Account),
        Shape::Bool => Some(Simple::Bool),
        Shape::Texts
        | Shape::Table(_)
        | Shape::Values
        | Shape::Names
        | Shape::Proof
        | Shape::Codes
        | Shape::Environment
        | Shape::List
        | Shape::Date
        | Shape::Includes
        | Shape::Switch(_) => None,
    }
}

/// Returns the JSON Schema (2020-12) of a policy's TOML files, for editors.
pub fn json_schema() -> Value {
    let mut properties = Map::new();
    let mut policy = table_to_json(POLICY.iter());
    describe(&mut policy, "The policy as a whole. Only in policy.toml.");
    properties.insert("policy".to_owned(), policy);
    let mut include = Shape::Includes.to_json();
    describe(&mut include, INCLUDE_DOC);
    properties.insert("include".to_owned(), include);
    properties.insert(
        "vars".to_owned(),
        json!({
            "type": "object",
            "description": "Variables. A table in it, `vars.<role>`, overrides them for hosts with that role. Only in policy.toml.",
        }),
    );
    for kind in Kind::ALL {
        let resource = table_to_json(attributes(kind));
        let doc = own_attributes(kind).1;
        properties.insert(
            kind.as_str().to_owned(),
            json!({ "type": "object", "description": doc, "additionalProperties": resource }),
        );
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rekindle policy",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

fn table_to_json<'a>(attributes: impl Iterator<Item = &'a Attribute>) -> Value {
    let properties: Map<String, Value> = attributes
        .map(|attribute| {
            let mut value = attribute.shape.to_json();
            describe(&mut value, attribute.doc);
            (attribute.name.to_owned(), value)
        })
        .collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn describe(schema: &mut Value, doc: &str) {
    if let Some(object) = schema.as_object_mut() {
        object.insert("description".to_owned(), Value::from(doc));
    }
}

/// A value with where it stands.
#[derive(Debug, Clone)]
pub(super) struct Field<'v> {
    pub(super) name: &'v str,
    pub(super) key: Range<usize>,
    pub(super) value: &'v Spanned<DeValue<'v>>,
}

/// The keys of one table that are known and have the right shape.
///
/// A table without mistakes needs nothing on the heap. What is allocated here would lie between the names of 100,000 resources,
/// which stay, and leave holes there when it goes.
#[derive(Debug, Clone)]
pub(super) struct Fields<'v> {
    pub(super) source: Arc<Source>,
    table: &'v DeTable<'v>,
    /// Keys that are unknown or have the wrong shape.
    left_out: Vec<&'v str>,
    /// Whether keys were left out because of errors, so that a missing key must not be reported again.
    pub(super) is_damaged: bool,
}

/// A waiver as it is written.
#[derive(Debug)]
pub(super) struct Waiver {
    /// With where it stands.
    pub(super) until: Option<(String, Place)>,
    pub(super) reason: Option<String>,
    pub(super) owner: Option<String>,
}

/// A text of the policy and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Text<'v> {
    pub(super) text: &'v str,
    pub(super) place: Place,
    /// The same as bytes of the file.
    pub(super) range: Range<usize>,
}

impl<'v> Fields<'v> {
    pub(super) fn iter(&self) -> impl Iterator<Item = Field<'v>> {
        let fields = self.table.iter().map(|(key, value)| Field { name: key.get_ref(), key: key.span(), value });
        fields.filter(|field| !self.left_out.contains(&field.name))
    }

    /// A table has few keys, so that looking at each is faster than a hash.
    pub(super) fn get(&self, name: &str) -> Option<Field<'v>> {
        self.iter().find(|field| field.name == name)
    }

    pub(super) fn place(&self, range: Range<usize>) -> Place {
        Place::new(&self.source, range)
    }

    pub(super) fn text(&self, name: &str) -> Option<Text<'v>> {
        let value = self.get(name)?.value;
        value.get_ref().as_str().map(|text| Text { text, place: self.place(value.span()), range: value.span() })
    }

    pub(super) fn texts(&self, name: &str) -> Option<Vec<Text<'v>>> {
        let array = self.get(name)?.value.get_ref().as_array()?;
        let text = |value: &'v Spanned<DeValue<'v>>| {
            let range = value.span();
            value.get_ref().as_str().map(|text| Text { text, place: self.place(range.clone()), range })
        };
        Some(array.iter().filter_map(text).collect())
    }

    /// The numbers of an array.
    pub(super) fn integers(&self, name: &str) -> Option<Vec<i32>> {
        let array = self.get(name)?.value.get_ref().as_array()?;
        Some(array.iter().filter_map(|value| as_code(value.get_ref())).collect())
    }

    /// The keys of a table and its texts, in the order of the policy.
    pub(super) fn environment(&self, name: &str) -> Vec<(&'v str, Text<'v>)> {
        let Some(table) = self.get(name).and_then(|field| field.value.get_ref().as_table()) else { return Vec::new() };
        let text = |value: &'v Spanned<DeValue<'v>>| {
            let range = value.span();
            value.get_ref().as_str().map(|text| Text { text, place: self.place(range.clone()), range })
        };
        table.iter().filter_map(|(key, value)| Some((&**key.get_ref(), text(value)?))).collect()
    }

    /// A table in it, which has the right shape.
    pub(super) fn nested(&self, name: &str) -> Option<Self> {
        let table = self.get(name)?.value.get_ref().as_table()?;
        Some(Self { source: Arc::clone(&self.source), table, left_out: Vec::new(), is_damaged: false })
    }

    /// The parts of a waiver that are there.
    pub(super) fn waiver(&self, name: &str) -> Option<Waiver> {
        let table = self.get(name)?.value.get_ref().as_table()?;
        let text = |key: &str| table.get(key).and_then(|value| value.get_ref().as_str()).map(str::to_owned);
        let until = table
            .get("until")
            .and_then(|value| value.get_ref().as_datetime().map(|until| (until.to_string(), self.place(value.span()))));
        Some(Waiver { until, reason: text("reason"), owner: text("owner") })
    }

    pub(super) fn boolean(&self, name: &str) -> Option<bool> {
        self.get(name)?.value.get_ref().as_bool()
    }

    /// A number of things.
    pub(super) fn count(&self, name: &str) -> Option<u64> {
        as_id(self.get(name)?.value.get_ref()).map(u64::from)
    }

    /// A table in this one. Its mistakes were reported with those of this one.
    pub(super) fn table(&self, name: &str) -> Option<(Fields<'v>, Place)> {
        let value = self.get(name)?.value;
        let table = value.get_ref().as_table()?;
        let fields = Fields { source: Arc::clone(&self.source), table, left_out: Vec::new(), is_damaged: false };
        Some((fields, self.place(value.span())))
    }

    pub(super) fn id(&self, name: &str) -> Option<(u32, Place)> {
        let value = self.get(name)?.value;
        as_id(value.get_ref()).map(|id| (id, self.place(value.span())))
    }
}

/// The kind that a top-level key names; reports one that names none.
pub(super) fn read_kind(
    source: &Arc<Source>,
    key: &Spanned<toml::de::DeString<'_>>,
    out: &mut Diagnostics,
) -> Option<Kind> {
    let name: &str = key.get_ref();
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == name);
    if kind.is_none() {
        let known = Kind::ALL.iter().map(|kind| kind.as_str()).chain(["policy", "include", "vars"]);
        let diagnostic = Diagnostic::error("unknown-kind", format!("unknown kind `{name}`"));
        out.push(suggest(diagnostic, source, key, name, known, LATER_KINDS, "kind"));
    }
    kind
}

/// Reads one resource's table.
pub(super) fn read_resource<'v>(
    source: &Arc<Source>,
    kind: Kind,
    name: &str,
    value: &'v Spanned<DeValue<'v>>,
    out: &mut Diagnostics,
) -> Option<Fields<'v>> {
    let Some(table) = value.get_ref().as_table() else {
        out.push(wrong_type(source, value, &format_args!("{kind}[{name}]"), "a table with attributes"));
        return None;
    };
    Some(read_table(source, &format_args!("{kind}[{name}]"), table, attributes(kind), out))
}

/// Reads `[policy]`.
pub(super) fn read_policy<'v>(
    source: &Arc<Source>,
    value: &'v Spanned<DeValue<'v>>,
    out: &mut Diagnostics,
) -> Option<Fields<'v>> {
    let Some(table) = value.get_ref().as_table() else {
        out.push(wrong_type(source, value, &"policy", "a table"));
        return None;
    };
    Some(read_table(source, &"policy", table, POLICY.iter(), out))
}

/// One file to include, and on which condition.
#[derive(Debug, Clone)]
pub(super) struct Include<'v> {
    pub(super) path: Text<'v>,
    pub(super) when: Option<Text<'v>>,
}

/// Reads `include`.
pub(super) fn read_include<'v>(
    source: &Arc<Source>,
    value: &'v Spanned<DeValue<'v>>,
    out: &mut Diagnostics,
) -> Vec<Include<'v>> {
    let Some(array) = value.get_ref().as_array() else {
        out.push(wrong_type(source, value, &"include", INCLUDES));
        return Vec::new();
    };
    let mut includes = Vec::new();
    for item in array.iter() {
        match item.get_ref() {
            DeValue::String(path) => {
                let (place, range) = (Place::new(source, item.span()), item.span());
                includes.push(Include { path: Text { text: path, place, range }, when: None });
            }
            DeValue::Table(table) => {
                let fields = read_table(source, &"include", table, INCLUDE.iter(), out);
                match fields.text("path") {
                    Some(path) => includes.push(Include { path, when: fields.text("when") }),
                    None if !fields.is_damaged => out.push(
                        Diagnostic::error("missing-key", "an entry of `include` has no `path`")
                            .at(Place::new(source, item.span()), "here")
                            .expected(INCLUDES),
                    ),
                    None => {}
                }
            }
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_) => out.push(wrong_type(source, item, &"include", INCLUDES)),
        }
    }
    includes
}

fn read_table<'v>(
    source: &Arc<Source>,
    what: &dyn fmt::Display,
    table: &'v DeTable<'v>,
    attributes: impl Iterator<Item = &'static Attribute> + Clone,
    out: &mut Diagnostics,
) -> Fields<'v> {
    let mut left_out: Vec<&'v str> = Vec::new();
    for (key, value) in table.iter() {
        let name: &str = key.get_ref();
        let Some(attribute) = attributes.clone().find(|attribute| attribute.name == name) else {
            let diagnostic = Diagnostic::error("unknown-key", format!("unknown key `{name}` in `{what}`"));
            let known = attributes.clone().map(|attribute| attribute.name);
            out.push(suggest(diagnostic, source, key, name, known, LATER_ATTRIBUTES, "key"));
            left_out.push(name);
            continue;
        };
        if !has_shape(source, what, attribute, value, out) {
            left_out.push(name);
        }
    }
    let is_damaged = !left_out.is_empty();
    Fields { source: Arc::clone(source), table, left_out, is_damaged }
}

fn has_shape(
    source: &Arc<Source>,
    what: &dyn fmt::Display,
    attribute: &Attribute,
    value: &Spanned<DeValue<'_>>,
    out: &mut Diagnostics,
) -> bool {
    let inner = value.get_ref();
    let path = fmt::from_fn(|f| write!(f, "{what}.{}", attribute.name));
    let fits = match attribute.shape {
        Shape::Text => inner.is_str(),
        Shape::Bool => inner.is_bool(),
        Shape::Includes => true,
        Shape::Scalar => inner.is_str() || inner.is_integer(),
        Shape::Values => inner.is_table(),
        Shape::Names => inner.is_array() || inner.is_table(),
        Shape::Proof => match (inner.as_str(), inner.as_array()) {
            (Some(word), _) => matches!(word, "endpoint" | "ssh"),
            (None, Some(words)) => !words.is_empty() && words.iter().all(|word| word.get_ref().is_str()),
            (None, None) => false,
        },
        Shape::Id => as_id(inner).is_some(),
        Shape::Account => inner.is_str() || as_id(inner).is_some(),
        Shape::Count => as_id(inner).is_some_and(|count| (1..=MAX_COUNT).contains(&count)),
        Shape::Switch(_) if inner.is_bool() => true,
        Shape::Texts => match inner.as_array() {
            None => false,
            Some(array) => {
                let wrong: Vec<_> = array.iter().filter(|item| !item.get_ref().is_str()).collect();
                for item in &wrong {
                    out.push(wrong_type(source, item, &path, "a string"));
                }
                return wrong.is_empty();
            }
        },
        Shape::Codes => inner
            .as_array()
            .is_some_and(|codes| !codes.is_empty() && codes.iter().all(|code| as_code(code.get_ref()).is_some())),
        Shape::List => {
            inner.is_str() || inner.as_array().is_some_and(|items| items.iter().all(|item| item.get_ref().is_str()))
        }
        Shape::Date => inner.is_datetime(),
        Shape::Environment => match inner.as_table() {
            None => false,
            Some(table) => {
                let wrong: Vec<_> = table.values().filter(|item| !item.get_ref().is_str()).collect();
                for item in &wrong {
                    out.push(wrong_type(source, item, &path, "a string"));
                }
                return wrong.is_empty();
            }
        },
        Shape::Word(words) | Shape::Switch(words) => match inner.as_str() {
            None => false,
            Some(word) if words.contains(&word) => true,
            Some(word) => {
                let mut diagnostic = Diagnostic::error("unknown-value", format!("unknown value `{word}` of `{path}`"))
                    .at(Place::new(source, value.span()), "not a value of this key")
                    .expected(attribute.shape.describe());
                if let Some(best) = closest(word, words.iter().copied()) {
                    diagnostic = diagnostic.hint(format!("did you mean `{best}`?")).replacement(format!("\"{best}\""));
                }
                out.push(diagnostic);
                return false;
            }
        },
        Shape::Table(attributes) => match inner.as_table() {
            None => false,
            Some(table) => {
                let n_before = out.len();
                read_table(source, &path, table, attributes.iter(), out);
                return out.len() == n_before;
            }
        },
    };
    if !fits {
        let mut diagnostic = wrong_type(source, value, &path, &attribute.shape.describe());
        if inner.is_str() && ["validate", "run", "unless", "onlyif"].contains(&attribute.name) {
            diagnostic =
                diagnostic.hint("write each word as a string: [\"/usr/sbin/sshd\", \"-t\"]; there is no shell");
        }
        if attribute.name.ends_with("mode") {
            diagnostic = diagnostic.hint("write the mode in quotes, as four octal digits");
        }
        out.push(diagnostic);
    }
    fits
}

fn as_code(value: &DeValue<'_>) -> Option<i32> {
    let integer = value.as_integer()?;
    i32::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|code| (0..=255).contains(code))
}

fn as_id(value: &DeValue<'_>) -> Option<u32> {
    let integer = value.as_integer()?;
    u32::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|id| *id <= MAX_ID)
}

fn wrong_type(
    source: &Arc<Source>,
    value: &Spanned<DeValue<'_>>,
    what: &dyn fmt::Display,
    expected: &str,
) -> Diagnostic {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    Diagnostic::error("type", format!("`{what}` has the wrong type"))
        .at(Place::new(source, value.span()), format!("this is {found}"))
        .expected(expected)
}

fn suggest<'k>(
    diagnostic: Diagnostic,
    source: &Arc<Source>,
    key: &Spanned<toml::de::DeString<'_>>,
    name: &str,
    known: impl Iterator<Item = &'k str> + Clone,
    later: &[&str],
    what: &str,
) -> Diagnostic {
    let list = quoted(known.clone());
    let diagnostic = diagnostic.at(Place::new(source, key.span()), format!("not a {what} that is known here"));
    if later.contains(&name) {
        return diagnostic
            .expected(format!("one of {list}"))
            .hint(format!("this version of rekindle does not support `{name}` yet"));
    }
    match closest(name, known) {
        Some(best) => diagnostic
            .expected(format!("one of {list}"))
            .hint(format!("did you mean `{best}`?"))
            .replacement(best.to_owned()),
        None => diagnostic.hint(format!("known {what}s: {list}")),
    }
}

/// The known word that was probably meant.
pub(super) fn closest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    closest_within(word, known, |candidate| candidate.len().max(word.len()) / 3)
}

/// The known path that was probably meant. Equal directories make names of files no more alike.
pub(super) fn closest_path<'k>(path: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let length = path.rsplit('/').next().map_or(0, str::len);
    closest_within(path, known, |_| length / 3)
}

fn closest_within<'k>(
    word: &str,
    known: impl Iterator<Item = &'k str>,
    most: impl Fn(&str) -> usize,
) -> Option<&'k str> {
    // A distance costs the product of the lengths; no real word is this long.
    if word.len() > 256 {
        return None;
    }
    known
        .filter(|candidate| candidate.len() <= 256)
        .map(|candidate| (strsim::damerau_levenshtein(candidate, word), candidate))
        .filter(|(distance, candidate)| *distance <= most(candidate).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

fn quoted<'k>(words: impl Iterator<Item = &'k str>) -> String {
    words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
