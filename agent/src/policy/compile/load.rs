//! Text to declarations: TOML, includes, variables, conditions. What a declaration means is decided in [`super::lower`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use minijinja::value::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::policy::diagnostic::{Diagnostic, Diagnostics, Place, Source};
use crate::policy::schema::{self, Fields, Text};
use crate::policy::template::Engine;
use crate::policy::{LockOut, Orphans};
use crate::resource::{AbsPath, GroupName, InvalidName, Kind, PackageName, ResourceId, RuleName, UnitName, UserName};

/// The file that a policy begins with.
const ROOT: &str = "policy.toml";
/// Longest TOML file, in bytes.
const MAX_TOML: usize = 8 * 1024 * 1024;
/// Most resources in a policy.
const MAX_RESOURCES: usize = 200_000;
/// Most syntax errors that are shown for one file.
const MAX_SYNTAX_ERRORS: usize = 100;

/// One TOML file of the policy.
#[derive(Debug)]
pub(super) struct Document<'v> {
    source: Arc<Source>,
    table: Spanned<DeTable<'v>>,
    includes: Vec<Inclusion>,
    /// Whether it has errors that hide declarations, so that a reference into it must not be called dangling.
    damaged: bool,
}

/// A document that another includes, by index, and on which condition: its text, and where it stands.
type Inclusion = (usize, Option<(String, Range<usize>)>);

/// One resource as the policy writes it.
#[derive(Debug)]
pub(super) struct Declaration<'v> {
    pub(super) id: ResourceId,
    /// Where its name stands.
    pub(super) name: Place,
    pub(super) fields: Fields<'v>,
}

/// Everything that the policy declares.
#[derive(Debug)]
pub(super) struct Loaded<'v> {
    pub(super) policy_name: String,
    pub(super) orphans: Orphans,
    pub(super) lock_out: LockOut,
    /// Where accounts that have to keep their way in are named.
    pub(super) break_glass: Vec<Place>,
    /// What exists on this host, in the order of the policy.
    pub(super) active: Vec<Declaration<'v>>,
    /// What does not, because a condition is false.
    pub(super) inactive: HashMap<ResourceId, Place>,
    /// Whether declarations may be missing because of errors already reported.
    pub(super) damaged: bool,
}

/// Parses policy.toml and everything that it includes, whatever the conditions say.
pub(super) fn parse<'v>(files: &'v BTreeMap<String, Vec<u8>>, out: &mut Diagnostics) -> Vec<Document<'v>> {
    let mut documents = Vec::new();
    let Some(bytes) = files.get(ROOT) else {
        let diagnostic = Diagnostic::error("missing-file", format!("the policy has no `{ROOT}` at its root"));
        out.push(diagnostic.hint(format!("create `{ROOT}`, beginning with [policy] and a name")));
        return documents;
    };
    let mut known = HashMap::new();
    if let Some(document) = parse_one(ROOT, bytes, None, out) {
        known.insert(ROOT, Some(0));
        documents.push(document);
    }
    // Breadth first over the files; the order of resources is made later, depth first.
    let mut next = 0;
    while let Some(document) = documents.get(next) {
        let source = Arc::clone(&document.source);
        let table = document.table.get_ref();
        let nested = table.get("policy").filter(|_| next == 0).and_then(|policy| policy.get_ref().get("include"));
        let includes: Vec<_> = table
            .get("include")
            .into_iter()
            .chain(nested)
            .flat_map(|value| schema::read_include(&source, value, out))
            .map(|include| {
                let when = include.when.map(|when| (when.text.to_owned(), when.range));
                (include.path.text.to_owned(), include.path.place, when)
            })
            .collect();
        let mut resolved = Vec::new();
        let mut damaged = false;
        for (path, place, when) in includes {
            let index = match files.get_key_value(&path) {
                Some((path, bytes)) => match known.get(path.as_str()) {
                    Some(index) => *index,
                    None => {
                        let index = parse_one(path, bytes, Some(&place), out).map(|document| {
                            documents.push(document);
                            documents.len() - 1
                        });
                        known.insert(path.as_str(), index);
                        index
                    }
                },
                None => {
                    out.push(missing_file(files, &path, place, "include"));
                    None
                }
            };
            match index {
                Some(index) => resolved.push((index, when)),
                None => damaged = true,
            }
        }
        if let Some(document) = documents.get_mut(next) {
            document.includes = resolved;
            document.damaged |= damaged;
        }
        next += 1;
    }
    documents
}

/// Whether a policy has templates or conditions, wherever they stand.
pub(super) fn evaluates(documents: &[Document<'_>]) -> bool {
    fn has(table: &DeTable<'_>) -> bool {
        table.iter().any(|(key, value)| {
            matches!(&**key.get_ref(), "when" | "template") || value.get_ref().as_table().is_some_and(has)
        })
    }
    documents.iter().any(|d| has(d.table.get_ref()) || d.includes.iter().any(|(_, when)| when.is_some()))
}

/// Says that the policy holds no such file, and which was probably meant.
pub(super) fn missing_file(files: &BTreeMap<String, Vec<u8>>, path: &str, place: Place, what: &str) -> Diagnostic {
    let diagnostic = |title: String| {
        Diagnostic::error("missing-file", title)
            .at(place.clone(), format!("named by this `{what}`"))
            .expected("the path of a file of the policy, from its root, without `..`")
    };
    if path.starts_with('/') || path.split('/').any(|part| matches!(part, ".." | "." | "")) {
        return diagnostic(format!("`{path}` is not a path inside the policy")).hint("copy the file into the policy");
    }
    let diagnostic = diagnostic(format!("the policy holds no file `{path}`"));
    // Distances to very many names, for each of very many mistakes, would take too long.
    let few = files.keys().map(String::as_str).filter(|_| files.len() <= 2000);
    match schema::closest_path(path, few) {
        Some(best) => diagnostic.hint(format!("did you mean `{best}`?")).replacement(format!("\"{best}\"")),
        None => diagnostic.hint("add the file to the policy and commit it"),
    }
}

fn parse_one<'v>(path: &str, bytes: &'v [u8], named: Option<&Place>, out: &mut Diagnostics) -> Option<Document<'v>> {
    let refuse = |title: String, out: &mut Diagnostics| {
        let diagnostic = Diagnostic::error("syntax", title).hint("a policy is made of TOML files in UTF-8");
        out.push(match named {
            Some(place) => diagnostic.at(place.clone(), "named here"),
            None => diagnostic,
        });
    };
    if bytes.len() > MAX_TOML {
        refuse(format!("`{path}` is longer than {} MiB", MAX_TOML / 1024 / 1024), out);
        return None;
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        refuse(format!("`{path}` is not UTF-8"), out);
        return None;
    };
    let source = Source::new(path, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    // The table that is defined twice is read as one, so its keys would be called duplicates too.
    let mut repeated = 0..0;
    for error in errors.iter().take(MAX_SYNTAX_ERRORS) {
        let span = error.span().unwrap_or(0..0);
        let place = Place::new(&source, span.clone());
        if error.message() != "duplicate key" {
            out.push(Diagnostic::error("syntax", error.message()).at(place, ""));
            continue;
        }
        if repeated.contains(&span.start) {
            continue;
        }
        if is_in_header(text, span.start) {
            let rest = text.get(span.end..).unwrap_or("");
            repeated = span.end..span.end + rest.find("\n[").unwrap_or(rest.len());
        }
        let key = text.get(span.clone()).unwrap_or("");
        let diagnostic =
            Diagnostic::error("duplicate", format!("`{key}` is defined twice")).at(place, "defined again here");
        let diagnostic = match first_definition(text, &span) {
            Some(first) => diagnostic.also(Place::new(&source, first), "first defined here"),
            None => diagnostic,
        };
        out.push(diagnostic.hint("keep one of the two"));
    }
    if errors.len() > MAX_SYNTAX_ERRORS {
        let n_more = errors.len() - MAX_SYNTAX_ERRORS;
        out.push(Diagnostic::error("syntax", format!("`{path}` has {n_more} more syntax errors")));
    }
    Some(Document { source, table, includes: Vec::new(), damaged: !errors.is_empty() })
}

/// Whether a position stands in a line such as `[file."/etc/motd"]`.
fn is_in_header(text: &str, at: usize) -> bool {
    let before = text.get(..at).unwrap_or("");
    before.get(before.rfind('\n').map_or(0, |at| at + 1)..).is_some_and(|line| line.trim_start().starts_with('['))
}

/// Finds the earlier twin of a key that the parser calls a duplicate: an equal table header, or an equal key under the
/// same header. The parser itself keeps only one of the two places.
fn first_definition(text: &str, again: &Range<usize>) -> Option<Range<usize>> {
    let before = text.get(..again.start)?;
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let in_line = text.get(line_start..again.start)?;
    let key = text.get(again.clone())?;
    let mut found = None;
    let mut offset = 0;
    for line in text.get(..line_start)?.split_inclusive('\n') {
        let is_header = line.trim_start().starts_with('[');
        if is_in_header(text, again.start) {
            // The same header up to and including the key, then its end.
            let rest = line.strip_prefix(in_line).and_then(|rest| rest.strip_prefix(key));
            if found.is_none() && rest.is_some_and(|rest| rest.trim_start().starts_with(']')) {
                found = Some(offset + in_line.len());
            }
        } else if is_header {
            found = None;
        } else if found.is_none()
            && line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', '.']))
        {
            found = Some(offset + line.len() - line.trim_start().len());
        }
        offset += line.len();
    }
    found.map(|start| start..start + key.len())
}

/// The variables of a host with these roles.
pub(super) fn variables(documents: &[Document<'_>], roles: &[String], out: &mut Diagnostics) -> Value {
    let mut values: BTreeMap<&str, Value> = BTreeMap::new();
    let Some(root) = documents.first() else { return Value::from_pairs(values) };
    let Some(vars) = root.table.get_ref().get("vars") else { return Value::from_pairs(values) };
    let Some(vars) = vars.get_ref().as_table() else {
        out.push(
            Diagnostic::error("type", "`vars` has the wrong type")
                .at(Place::new(&root.source, vars.span()), "")
                .expected("a table of variables"),
        );
        return Value::from_pairs(values);
    };
    let mut overrides: HashMap<&str, &DeTable<'_>> = HashMap::new();
    for (key, value) in vars.iter() {
        match value.get_ref().as_table() {
            Some(table) => {
                overrides.insert(key.get_ref(), table);
            }
            None => {
                values.insert(key.get_ref(), to_value(&root.source, value, out));
            }
        }
    }
    // In the order of the policy, so that warnings come in one order; all roles, not only this host's.
    for (role, table) in vars.iter().filter_map(|(key, value)| Some((key, value.get_ref().as_table()?))) {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if values.contains_key(name) {
                continue;
            }
            if let Some(best) = schema::closest(name, values.keys().copied()) {
                out.push(
                    Diagnostic::warning(
                        "unknown-variable",
                        format!("`vars.{}` overrides `{name}`, which [vars] does not declare", role.get_ref()),
                    )
                    .at(Place::new(&root.source, key.span()), "no default to override")
                    .hint(format!("did you mean `{best}`?"))
                    .replacement(best.to_owned()),
                );
            }
        }
    }
    for table in roles.iter().filter_map(|role| overrides.get(role.as_str())) {
        for (key, value) in table.iter() {
            values.insert(key.get_ref(), to_value(&root.source, value, out));
        }
    }
    Value::from_pairs(values)
}

fn to_value(source: &Arc<Source>, value: &Spanned<DeValue<'_>>, out: &mut Diagnostics) -> Value {
    match value.get_ref() {
        DeValue::String(text) => Value::from(&**text),
        DeValue::Boolean(answer) => Value::from(*answer),
        DeValue::Datetime(time) => Value::from(time.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::from(number),
            Err(_) => {
                out.push(
                    Diagnostic::error("type", "the number is too large")
                        .at(Place::new(source, value.span()), "")
                        .expected("a number of at most 63 bits"),
                );
                Value::from(0)
            }
        },
        DeValue::Float(number) => Value::from(number.as_str().parse::<f64>().unwrap_or(f64::NAN)),
        DeValue::Array(items) => items.iter().map(|item| to_value(source, item, out)).collect::<Vec<_>>().into(),
        DeValue::Table(table) => Value::from_pairs(
            table
                .iter()
                .map(|(key, value)| (key.get_ref().to_string(), to_value(source, value, out)))
                .collect::<Vec<_>>(),
        ),
    }
}

/// Reads every resource and decides which exist on this host.
pub(super) fn declarations<'v>(
    documents: &'v [Document<'v>],
    engine: &mut Engine,
    out: &mut Diagnostics,
) -> Loaded<'v> {
    let mut loaded = Loaded {
        policy_name: "policy".to_owned(),
        orphans: Orphans::Report,
        lock_out: LockOut::default(),
        break_glass: Vec::new(),
        active: Vec::new(),
        inactive: HashMap::new(),
        damaged: documents.is_empty() || documents.iter().any(|document| document.damaged),
    };
    let (order, active) = walk(documents, engine, out);
    for index in order {
        let Some(document) = documents.get(index) else { continue };
        read_document(document, index == 0, active.contains(&index), &mut loaded, engine, out);
        if loaded.active.len() + loaded.inactive.len() > MAX_RESOURCES {
            let title = format!("the policy declares more than {MAX_RESOURCES} resources");
            out.push(Diagnostic::error("too-large", title).hint("split it by role"));
            // Nothing else is said of it, and nothing else is done for it.
            loaded.active = Vec::new();
            loaded.damaged = true;
            break;
        }
    }
    loaded
}

/// The documents depth first, and those that count on this host.
fn walk(documents: &[Document<'_>], engine: &mut Engine, out: &mut Diagnostics) -> (Vec<usize>, HashSet<usize>) {
    let mut active = HashSet::from([0]);
    // Conditions hold or not whatever the order, so a file counts if any way to it does.
    let mut pending = vec![0];
    let mut reported = HashSet::new();
    while let Some(index) = pending.pop() {
        let Some(document) = documents.get(index) else { continue };
        for (target, when) in &document.includes {
            let holds = match when {
                None => true,
                Some((text, range)) => {
                    let place = Place::new(&document.source, range.clone());
                    let when = Text { text, place, range: range.clone() };
                    engine.condition(&document.source, &when).unwrap_or_else(|diagnostic| {
                        if reported.insert((index, range.start)) {
                            out.push(*diagnostic);
                        }
                        false
                    })
                }
            };
            if holds && active.insert(*target) {
                pending.push(*target);
            }
        }
    }
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    let mut stack = vec![0];
    while let Some(index) = stack.pop() {
        if let Some(document) = documents.get(index).filter(|_| seen.insert(index)) {
            order.push(index);
            stack.extend(document.includes.iter().rev().map(|(target, _)| *target));
        }
    }
    (order, active)
}

fn read_document<'v>(
    document: &'v Document<'v>,
    is_root: bool,
    is_active: bool,
    loaded: &mut Loaded<'v>,
    engine: &mut Engine,
    out: &mut Diagnostics,
) {
    let source = &document.source;
    let mut declarations = Vec::new();
    for (key, value) in document.table.get_ref().iter() {
        let name: &str = key.get_ref();
        match name {
            "include" => {}
            "policy" | "vars" if !is_root => out.push(
                Diagnostic::error("misplaced", format!("`{name}` stands outside policy.toml"))
                    .at(Place::new(source, key.span()), "not here")
                    .hint("move it to policy.toml"),
            ),
            "vars" => {}
            "policy" => {
                if let Some(fields) = schema::read_policy(source, value, out) {
                    read_policy(&fields, loaded, out);
                }
            }
            // What the parser makes of a line without a key, which it has reported.
            "" if document.damaged => {}
            _ => {
                let Some(kind) = schema::read_kind(source, key, out) else {
                    loaded.damaged = true;
                    continue;
                };
                let Some(table) = value.get_ref().as_table() else {
                    loaded.damaged = true;
                    out.push(
                        Diagnostic::error("type", format!("`{kind}` has the wrong type"))
                            .at(Place::new(source, value.span()), "")
                            .expected(format!("a table of resources, such as [{kind}.\"name\"]")),
                    );
                    continue;
                };
                for (name, value) in table.iter() {
                    let place = Place::new(source, name.span());
                    let id = resource_id(kind, name.get_ref(), &place, out);
                    let fields = schema::read_resource(source, kind, name.get_ref(), value, out);
                    match (id, fields) {
                        (Some(id), Some(fields)) => {
                            declarations.push((name.span().start, Declaration { id, name: place, fields }));
                        }
                        (None, _) | (_, None) => loaded.damaged = true,
                    }
                }
            }
        }
    }
    // The order of the file, not that of kinds.
    declarations.sort_by_key(|(start, _)| *start);
    for (_, declaration) in declarations {
        // A condition in a file that does not count here may ask for variables that only its roles have.
        let exists = is_active
            && match declaration.fields.text("when") {
                None => true,
                Some(when) => engine.condition(source, &when).unwrap_or_else(|diagnostic| {
                    out.push(*diagnostic);
                    false
                }),
            };
        if exists {
            loaded.active.push(declaration);
        } else {
            loaded.inactive.insert(declaration.id, declaration.name);
        }
    }
}

fn read_policy(fields: &Fields<'_>, loaded: &mut Loaded<'_>, out: &mut Diagnostics) {
    if let Some(name) = fields.text("name") {
        if name.text.is_empty() || name.text.len() > 100 || name.text.chars().any(char::is_control) {
            out.push(
                Diagnostic::error("value", "the name of the policy cannot be used")
                    .at(name.place, "")
                    .expected("1 to 100 characters without control characters"),
            );
        } else {
            name.text.clone_into(&mut loaded.policy_name);
        }
    }
    if fields.text("orphans").is_some_and(|word| word.text == "remove") {
        loaded.orphans = Orphans::Remove;
    }
    loaded.lock_out.is_meant = fields.text("lock_out").is_some_and(|word| word.text == "allow");
    for account in fields.texts("break_glass").unwrap_or_default() {
        match UserName::new(account.text) {
            Ok(name) => {
                loaded.lock_out.break_glass.push(name);
                loaded.break_glass.push(account.place);
            }
            Err(error) => out.push(
                Diagnostic::error("value", format!("`{}` cannot be a user", account.text))
                    .at(account.place, error.why)
                    .expected("the name of an account"),
            ),
        }
    }
    let Some(requires) = fields.text("requires") else { return };
    let version = env!("CARGO_PKG_VERSION");
    match (semver::VersionReq::parse(requires.text), semver::Version::parse(version)) {
        (Ok(wanted), Ok(version)) if wanted.matches(&version) => {}
        (Ok(_), _) => out.push(
            Diagnostic::error("agent-version", format!("the policy wants another version of rekindle than {version}"))
                .at(requires.place, format!("this is {version}"))
                .hint("upgrade the agent, or take back the requirement"),
        ),
        (Err(error), _) => out.push(
            Diagnostic::error("value", format!("`policy.requires` cannot be read: {error}"))
                .at(requires.place, "")
                .expected("a version requirement such as \">=0.1\""),
        ),
    }
}

/// Checks a resource's name and brings it to its one spelling.
pub(super) fn resource_id(kind: Kind, name: &str, place: &Place, out: &mut Diagnostics) -> Option<ResourceId> {
    let checked = match kind {
        // They would forge lines of plans, histories and journals.
        _ if name.chars().any(char::is_control) => {
            let text = name.escape_debug().to_string();
            Err(InvalidName { what: "name", text, why: "it has control characters" })
        }
        Kind::File | Kind::Directory | Kind::Symlink | Kind::Mount => AbsPath::new(name).map(|path| path.shared()),
        Kind::User => UserName::new(name).map(|name| name.as_str().into()),
        Kind::Group => GroupName::new(name).map(|name| name.as_str().into()),
        Kind::Package => PackageName::new(name).map(|name| name.as_str().into()),
        Kind::Repository => crate::resource::repository::Name::new(name).map(|name| name.as_str().into()),
        Kind::Command | Kind::Check | Kind::Sweep => RuleName::new(name).map(|name| name.as_str().into()),
        Kind::Service => UnitName::with_default_suffix(name).map(|unit| service_name(&unit).into()),
        Kind::Setting if name.starts_with('/') => AbsPath::new(name).map(|path| path.shared()),
        Kind::Setting => label(name).map(Arc::from),
        Kind::Sysctl => crate::resource::sysctl::Key::new(name).map(|key| key.name().into()),
        Kind::KernelModule => crate::resource::kernel_module::Name::new(name).map(|name| name.as_str().into()),
    };
    match checked {
        Ok(name) => Some(ResourceId::new(kind, name)),
        Err(error) => {
            let is_path =
                matches!(kind, Kind::File | Kind::Directory | Kind::Symlink | Kind::Mount) || name.starts_with('/');
            let what = if is_path { "path" } else { "name" };
            let expected = match kind {
                Kind::File | Kind::Directory | Kind::Symlink | Kind::Mount => {
                    "an absolute path without `.`, `..` or a trailing slash"
                }
                Kind::Setting => "the path of a file, or any name with a `path`",
                Kind::Sysctl => "a name such as `net.ipv4.ip_forward`",
                Kind::KernelModule => "the name of a kernel module, without `.ko`",
                Kind::User | Kind::Group => "a name of lower-case letters, digits, `_`, `-` and `.`",
                Kind::Package => "the name of a package",
                Kind::Repository => "a name of letters, digits, `_`, `.` and `-`",
                Kind::Service => "the name of a systemd unit",
                Kind::Command | Kind::Check | Kind::Sweep => "a name of letters, digits and `-_.:@+`",
            };
            out.push(Diagnostic::error(what, error.to_string()).at(place.clone(), error.why).expected(expected));
            None
        }
    }
}

/// A name that only people read.
fn label(name: &str) -> Result<&str, InvalidName> {
    let invalid = |why| InvalidName { what: "name", text: name.to_owned(), why };
    if name.is_empty() || name.len() > 255 {
        return Err(invalid("it is empty or longer than 255 bytes"));
    }
    if name.chars().any(char::is_control) || name.trim() != name {
        return Err(invalid("it has control characters, or blanks at its ends"));
    }
    Ok(name)
}

/// A service's name as resources spell it: without `.service`.
pub(super) fn service_name(unit: &UnitName) -> String {
    unit.as_str().strip_suffix(".service").unwrap_or(unit.as_str()).to_owned()
}
