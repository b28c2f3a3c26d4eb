//! Templates and conditions: minijinja, strict, with bounded fuel, recursion and output.
//!
//! Memory inside a template is not bounded here: forty lines that each double a string would need a terabyte, and nothing is
//! asked before the library takes them. [`super::compile::compile_after`] has them tried out where a limit can end them.
//!
//! A template reaches `facts`, `roles`, `vars`, `host`, secrets and other templates of the same commit; nothing else: no file of the
//! host, no environment, no clock, no chance. The same inputs give the same bytes.
//! Error texts are made from the kind of error and its place; minijinja's own debug output shows the values of variables and
//! is never used.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::compile::Inputs;
use super::diagnostic::{Diagnostic, Place, Source};
use super::schema::{Text, closest};
use super::secret::Secrets;
use crate::resource::{Content, Mask};

/// Instructions that one template or condition may run.
const FUEL: u64 = 100_000;
/// Depth of includes, macros and blocks.
const RECURSION: usize = 50;
/// Most bytes that one template may render to.
pub(super) const MAX_RENDERED: usize = 8 * 1024 * 1024;
/// Most includes that are shown around an error.
const MAX_CHAIN: usize = 8;
/// Most bytes in the source of one template.
const MAX_SOURCE: usize = 1024 * 1024;

/// Is told what is looked at next.
pub(super) type Trace = Option<fn(&Traced)>;

/// The template or condition that a compilation is about to look at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Traced {
    /// `template` or `when`.
    pub(super) what: String,
    /// The template's name, or the condition.
    pub(super) text: String,
    /// The file of the policy that asks for it.
    pub(super) file: String,
    /// Where in it, in bytes.
    pub(super) start: usize,
    /// Where it ends.
    pub(super) end: usize,
}

/// What a template gives.
#[derive(Debug, Clone)]
pub(super) enum Rendered {
    /// Bytes that everybody may see.
    Plain(Arc<[u8]>),
    /// It asked for a secret, so all of it is one.
    Secret(Content),
}

/// Gives templates the secrets that they ask for, and knows that they did.
#[derive(Debug)]
struct Vault {
    secrets: Secrets,
    files: Arc<BTreeMap<String, Vec<u8>>>,
    is_open: AtomicBool,
    was_asked: AtomicBool,
    /// All that was read, so that it can be kept out of what programs print.
    told: Mutex<Vec<Zeroizing<Vec<u8>>>>,
}

/// What the details of errors about secrets begin with: these are ours, and quote nothing.
const OF_SECRET: &str = "secret: ";

impl Vault {
    /// Decrypts a secret. The error is a sentence and a hint.
    fn tell(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, (String, String)> {
        let secret = self.secrets.read(&self.files, name)?;
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(secret.clone());
        Ok(secret)
    }

    fn read(&self, name: &str) -> Result<String, minijinja::Error> {
        let error = |what: &str, hint: &str| {
            minijinja::Error::new(ErrorKind::InvalidOperation, format!("{OF_SECRET}{what}\n{hint}"))
        };
        if !self.is_open.load(Ordering::Relaxed) {
            return Err(error("`secret` is for templates alone", "a condition decides by facts, roles and variables"));
        }
        // After the first, a name may be made of one.
        let is_nested = self.was_asked.swap(true, Ordering::Relaxed);
        let bytes = self.tell(name).map_err(|(what, hint)| {
            if is_nested
                && matches!(self.secrets, Secrets::With(_))
                && !self.files.keys().any(|path| what.contains(path))
            {
                error("a secret cannot be read", "write its name out")
            } else {
                error(&what, &hint)
            }
        })?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| error("the secret is not text", "make it the `secret` of a file"))?;
        Ok(text.to_owned())
    }
}

/// Renders the templates of one policy for one host.
#[derive(Debug)]
pub(super) struct Engine {
    trace: Trace,
    environment: Environment<'static>,
    context: Value,
    files: Arc<BTreeMap<String, Vec<u8>>>,
    vault: Arc<Vault>,
    conditions: HashMap<String, bool>,
    rendered: HashMap<String, Rendered>,
}

impl Engine {
    pub(super) fn new(files: Arc<BTreeMap<String, Vec<u8>>>, inputs: &Inputs<'_>, vars: Value, trace: Trace) -> Self {
        let Inputs { facts, roles, .. } = *inputs;
        let vault = Arc::new(Vault {
            secrets: inputs.secrets.clone(),
            files: Arc::clone(&files),
            told: Mutex::default(),
            is_open: AtomicBool::new(false),
            was_asked: AtomicBool::new(false),
        });
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        // Jinja writes True and False, which next to no configuration file understands.
        environment.set_formatter(|out, state, value| {
            if value.kind() == ValueKind::Bool {
                Ok(out.write_str(if value.is_true() { "true" } else { "false" })?)
            } else {
                minijinja::escape_formatter(out, state, value)
            }
        });
        // Needed for the byte range of an error.
        environment.set_debug(true);
        // Namespaces let a loop grow a string without bound and without fuel.
        environment.remove_global("namespace");
        environment.remove_global("debug");
        // A line that holds a block tag alone leaves no line, as people expect of configuration files.
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .keep_trailing_newline(true)
                .build()
                .expect("the delimiters are the default ones, which are valid"),
        );
        let asked = Arc::clone(&vault);
        environment.add_function("secret", move |name: &str| asked.read(name));
        let templates = Arc::clone(&files);
        environment.set_loader(move |name| match templates.get(name) {
            None => Ok(None),
            Some(bytes) if bytes.len() > MAX_SOURCE => Err(minijinja::Error::new(
                ErrorKind::BadInclude,
                format!("the template `{name}` is longer than {MAX_SOURCE} bytes"),
            )),
            Some(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => {
                    Err(minijinja::Error::new(ErrorKind::BadInclude, format!("the template `{name}` is not UTF-8")))
                }
            },
        });
        // Not `facts` once more under another name: these are what tells one host from the next.
        let host = Value::from_pairs([
            ("name", facts.hostname.as_str()),
            ("fqdn", facts.fqdn.as_str()),
            ("machine_id", facts.machine_id.as_str()),
            ("instance_id", facts.instance_id.as_str()),
        ]);
        let context = Value::from_pairs([
            ("facts", Value::from(Serde(facts))),
            ("roles", roles.iter().map(String::as_str).collect::<Value>()),
            ("vars", vars),
            ("host", host),
        ]);
        let (conditions, rendered) = (HashMap::new(), HashMap::new());
        Self { trace, environment, context, files, vault, conditions, rendered }
    }

    /// How secrets are read.
    pub(super) fn secrets(&self) -> &Secrets {
        &self.vault.secrets
    }

    /// Decrypts a secret of the policy by its name. The error is a sentence and a hint; neither quotes a secret.
    pub(super) fn secret(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, (String, String)> {
        self.vault.tell(name)
    }

    /// What hides all secrets that were read so far.
    pub(super) fn mask(&self) -> Mask {
        let told = self.vault.told.lock().unwrap_or_else(PoisonError::into_inner);
        Mask::of(told.iter().map(|secret| secret.as_slice()))
    }

    fn tell(&self, what: &str, asked: &Text<'_>) {
        if let Some(trace) = self.trace {
            let (file, range) = (asked.place.location().file.to_string(), asked.range.clone());
            trace(&Traced { what: what.into(), text: asked.text.into(), file, start: range.start, end: range.end });
        }
    }

    /// Evaluates a `when`.
    pub(super) fn condition(&mut self, source: &Arc<Source>, when: &Text<'_>) -> Result<bool, Box<Diagnostic>> {
        if let Some(known) = self.conditions.get(when.text) {
            return Ok(*known);
        }
        self.tell("when", when);
        let context = self.context.clone();
        let result = self
            .environment
            .compile_expression_owned(when.text.to_owned())
            .and_then(|expression| expression.eval(context));
        const EXPECTED: &str = "an expression over `facts`, `roles`, `vars` and `host` that is true or false";
        let value = match result {
            Ok(value) => value,
            Err(error) => {
                // The position inside the expression is that in the file only where nothing is escaped.
                let inner = when.range.start + 1;
                let place = match error.range() {
                    Some(at) if source.text().get(inner..inner + when.text.len()) == Some(when.text) => {
                        Place::new(source, inner + at.start..inner + at.end)
                    }
                    Some(_) | None => when.place.clone(),
                };
                let (what, hint) = self.describe(&error, self.names_in_condition(when.text), when.text);
                let diagnostic = Diagnostic::error("when", format!("`when` cannot be evaluated: {what}"));
                return Err(Box::new(diagnostic.at(place, "").expected(EXPECTED).hint(hint)));
            }
        };
        let kind = value.kind();
        if kind == ValueKind::Bool {
            let answer = value.is_true();
            self.conditions.insert(when.text.to_owned(), answer);
            return Ok(answer);
        }
        let (title, hint) = if kind == ValueKind::Undefined {
            let error = minijinja::Error::from(ErrorKind::UndefinedError);
            let (what, hint) = self.describe(&error, self.names_in_condition(when.text), when.text);
            (format!("`when` cannot be evaluated: {what}"), hint)
        } else {
            let hint = "compare it with something, such as `facts.os == 'debian'` or `'web' in roles`";
            (format!("`when` gives a {kind}, not true or false"), hint.to_owned())
        };
        Err(Box::new(Diagnostic::error("when", title).at(when.place.clone(), "").expected(EXPECTED).hint(hint)))
    }

    fn names_in_condition(&self, text: &str) -> HashSet<String> {
        let expression = self.environment.compile_expression_owned(text.to_owned());
        expression.map(|expression| expression.undeclared_variables(true)).unwrap_or_default()
    }

    /// Renders one template of the policy. `asked` is where a resource names it.
    pub(super) fn render(&mut self, asked: &Text<'_>) -> Result<Rendered, Box<Diagnostic>> {
        if let Some(known) = self.rendered.get(asked.text) {
            return Ok(known.clone());
        }
        self.tell("template", asked);
        let mut output = Bounded(Zeroizing::new(Vec::new()));
        self.vault.was_asked.store(false, Ordering::Relaxed);
        self.vault.is_open.store(true, Ordering::Relaxed);
        let result = self
            .environment
            .get_template(asked.text)
            .and_then(|template| template.render_captured_to(self.context.clone(), &mut output).map(drop));
        self.vault.is_open.store(false, Ordering::Relaxed);
        match result {
            Ok(()) => {
                let rendered = if self.vault.was_asked.load(Ordering::Relaxed) {
                    Rendered::Secret(self.vault.secrets.conceal(&output.0))
                } else {
                    Rendered::Plain(output.0.as_slice().into())
                };
                self.rendered.insert(asked.text.to_owned(), rendered.clone());
                Ok(rendered)
            }
            Err(error) => Err(Box::new(self.explain(asked, &error))),
        }
    }

    fn explain(&self, asked: &Text<'_>, error: &minijinja::Error) -> Diagnostic {
        // The innermost error that has a place says most: an include wraps what went wrong inside it.
        let mut chain = vec![error];
        let mut cause = std::error::Error::source(error);
        while let Some(next) = cause {
            chain.extend(next.downcast_ref::<minijinja::Error>());
            cause = next.source();
        }
        let innermost = chain.pop().unwrap_or(error);
        let names = innermost.name().and_then(|name| self.environment.get_template(name).ok());
        let names = names.map(|template| template.undeclared_variables(true)).unwrap_or_default();
        let at = innermost.template_source().zip(innermost.range()).and_then(|(text, range)| text.get(range));
        let (what, hint) = self.describe(innermost, names, at.unwrap_or_default());
        let title = format!("the template `{}` cannot be rendered: {what}", asked.text);
        let diagnostic = Diagnostic::error("template", title).hint(hint);
        let Some(place) = self.place_of(innermost) else { return diagnostic.at(asked.place.clone(), "") };
        let mut diagnostic = diagnostic.at(place, "");
        // From the inside out; of a cycle its first turns say enough.
        for place in chain.iter().rev().filter_map(|error| self.place_of(error)).take(MAX_CHAIN) {
            diagnostic = diagnostic.also(place, "included here");
        }
        diagnostic.also(asked.place.clone(), "the template is named here")
    }

    /// Where in a template something went wrong.
    fn place_of(&self, error: &minijinja::Error) -> Option<Place> {
        let (name, bytes) = self.files.get_key_value(error.name()?)?;
        let text = std::str::from_utf8(bytes).ok()?;
        let range = error.range().unwrap_or_else(|| line_range(text, error.line().unwrap_or(1)));
        Some(Place::new(&Source::new(name, text), range))
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "minijinja's kinds of errors, which it may add to")]
    /// What went wrong, in words that hold no value of a variable, and what to do about it.
    ///
    /// `names` are all that the text asks for; `at` is the part of it that failed.
    fn describe(&self, error: &minijinja::Error, names: HashSet<String>, at: &str) -> (String, String) {
        const SYNTAX: &str = "templates are written in the language of Jinja, as minijinja understands it";
        match error.kind() {
            ErrorKind::UndefinedError => {
                let mut unknown: Vec<String> = names.into_iter().filter(|name| !self.knows(name)).collect();
                // Those in the part that failed come first; the alphabet makes the choice the same every time.
                unknown.sort_by_key(|name| (!at.contains(name.as_str()), name.clone()));
                match unknown.first() {
                    Some(name) => {
                        let hint = self.similar(name).map(|best| format!("did you mean `{best}`?"));
                        (format!("`{name}` is unknown"), hint.unwrap_or_else(|| HINT_UNKNOWN.to_owned()))
                    }
                    None => ("a name is unknown".to_owned(), HINT_UNKNOWN.to_owned()),
                }
            }
            ErrorKind::OutOfFuel => (format!("it runs longer than {FUEL} steps"), HINT_LESS.to_owned()),
            ErrorKind::WriteFailure => {
                (format!("its output is longer than {} MiB", MAX_RENDERED / 1024 / 1024), HINT_LESS.to_owned())
            }
            // Whatever was asked for may have been made of a secret.
            ErrorKind::TemplateNotFound if self.vault.was_asked.load(Ordering::Relaxed) => (
                "a template was not found".to_owned(),
                "templates are named by their path from the root of the policy".to_owned(),
            ),
            ErrorKind::TemplateNotFound => (
                error.detail().unwrap_or("a template was not found").to_owned(),
                "templates are named by their path from the root of the policy".to_owned(),
            ),
            // These details quote the template alone.
            ErrorKind::SyntaxError
            | ErrorKind::UnknownFilter
            | ErrorKind::UnknownTest
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownMethod
            | ErrorKind::UnknownBlock
            | ErrorKind::MissingArgument
            | ErrorKind::TooManyArguments
            | ErrorKind::BadInclude => {
                let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
                (format!("{}{detail}", error.kind()), SYNTAX.to_owned())
            }
            ErrorKind::InvalidOperation if error.detail() == Some("recursion limit exceeded") => {
                (format!("it nests deeper than {RECURSION} levels"), HINT_LESS.to_owned())
            }
            ErrorKind::InvalidOperation if error.detail().is_some_and(|detail| detail.starts_with(OF_SECRET)) => {
                let detail = error.detail().unwrap_or_default().strip_prefix(OF_SECRET).unwrap_or_default();
                let (what, hint) = detail.split_once('\n').unwrap_or((detail, HINT_LESS));
                (what.to_owned(), hint.to_owned())
            }
            ErrorKind::InvalidOperation => ("an operation does not fit its values".to_owned(), SYNTAX.to_owned()),
            kind => (kind.to_string(), SYNTAX.to_owned()),
        }
    }

    /// Whether a dotted name leads somewhere.
    fn knows(&self, name: &str) -> bool {
        name.split('.')
            .try_fold(self.context.clone(), |value, part| {
                value.get_attr(part).ok().filter(|value| !value.is_undefined())
            })
            .is_some()
            || self.environment.globals().any(|(global, _)| global == name)
    }

    /// The known name that was probably meant.
    fn similar(&self, name: &str) -> Option<String> {
        let mut value = self.context.clone();
        let mut known = String::new();
        for part in name.split('.') {
            let next = value.get_attr(part).ok().filter(|value| !value.is_undefined());
            match next {
                Some(next) => {
                    value = next;
                    known = format!("{known}{part}.");
                }
                None => {
                    let keys: Vec<String> = value.try_iter().ok()?.map(|key| key.to_string()).collect();
                    return closest(part, keys.iter().map(String::as_str)).map(|best| format!("{known}{best}"));
                }
            }
        }
        None
    }
}

const HINT_UNKNOWN: &str = "declare it under [vars], or write `is defined` or `default` for what may be missing";
const HINT_LESS: &str = "make the template do less";

fn line_range(text: &str, line: usize) -> std::ops::Range<usize> {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let rest = text.get(start..).unwrap_or("");
    start..start + rest.find('\n').unwrap_or(rest.len())
}

/// Output with a limit.
struct Bounded(Zeroizing<Vec<u8>>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the output is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
