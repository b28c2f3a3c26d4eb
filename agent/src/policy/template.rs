//! Templates and conditions: minijinja, strict, with bounded fuel, recursion and output.
//!
//! A template reaches `facts`, `roles`, `vars`, `host` and other templates of the same commit; nothing else: no file of the
//! host, no environment, no clock, no chance. The same inputs give the same bytes.
//! Error texts are made from the kind of error and its place; minijinja's own debug output shows the values of variables and
//! is never used.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};

use super::diagnostic::{Diagnostic, Place, Source};
use super::facts::Facts;
use super::schema::Text;

/// Instructions that one template or condition may run.
const FUEL: u64 = 100_000;
/// Depth of includes, macros and blocks.
const RECURSION: usize = 50;
/// Most bytes that one template may render to.
pub(super) const MAX_RENDERED: usize = 8 * 1024 * 1024;
/// Most bytes in the source of one template.
const MAX_SOURCE: usize = 1024 * 1024;

/// Renders the templates of one policy for one host.
#[derive(Debug)]
pub(super) struct Engine {
    environment: Environment<'static>,
    context: Value,
    files: Arc<BTreeMap<String, Vec<u8>>>,
    conditions: HashMap<String, bool>,
    rendered: HashMap<String, Arc<[u8]>>,
}

impl Engine {
    pub(super) fn new(files: Arc<BTreeMap<String, Vec<u8>>>, facts: &Facts, roles: &[String], vars: Value) -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        // Jinja writes True and False, which next to no configuration file understands.
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "true" } else { "false" })?),
            _ => minijinja::escape_formatter(out, state, value),
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
        Self { environment, context, files, conditions: HashMap::new(), rendered: HashMap::new() }
    }

    /// Evaluates a `when`.
    pub(super) fn condition(&mut self, source: &Arc<Source>, when: &Text<'_>) -> Result<bool, Diagnostic> {
        if let Some(known) = self.conditions.get(when.text) {
            return Ok(*known);
        }
        let context = self.context.clone();
        let result = self
            .environment
            .compile_expression_owned(when.text.to_owned())
            .and_then(|expression| expression.eval(context));
        let diagnostic = |title: String| Diagnostic::error("when", title);
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
                return Err(diagnostic(format!("`when` cannot be evaluated: {}", describe(&error)))
                    .at(place, "")
                    .expected("an expression over `facts`, `roles`, `vars` and `host` that is true or false")
                    .hint(hint_for(&error)));
            }
        };
        match bool::try_from(value.clone()) {
            Ok(answer) if value.kind() == ValueKind::Bool => {
                self.conditions.insert(when.text.to_owned(), answer);
                Ok(answer)
            }
            Ok(_) | Err(_) => Err(diagnostic(format!("`when` gives {}, not true or false", value.kind()))
                .at(when.place.clone(), "")
                .expected("an expression over `facts`, `roles`, `vars` and `host` that is true or false")
                .hint("compare it with something, such as `facts.os == 'debian'` or `'web' in roles`")),
        }
    }

    /// Renders one template of the policy. `asked` is where a resource names it.
    pub(super) fn render(&mut self, asked: &Text<'_>) -> Result<Arc<[u8]>, Diagnostic> {
        if let Some(known) = self.rendered.get(asked.text) {
            return Ok(Arc::clone(known));
        }
        let mut output = Bounded(Vec::new());
        let result = self
            .environment
            .get_template(asked.text)
            .and_then(|template| template.render_captured_to(self.context.clone(), &mut output).map(drop));
        match result {
            Ok(()) => {
                let bytes: Arc<[u8]> = output.0.into();
                self.rendered.insert(asked.text.to_owned(), Arc::clone(&bytes));
                Ok(bytes)
            }
            Err(error) => Err(self.explain(asked, &error)),
        }
    }

    fn explain(&self, asked: &Text<'_>, error: &minijinja::Error) -> Diagnostic {
        // The innermost error that has a place says most: an include wraps what went wrong inside it.
        let mut innermost = error;
        let mut cause = std::error::Error::source(error);
        while let Some(next) = cause {
            if let Some(next) = next.downcast_ref::<minijinja::Error>() {
                innermost = next;
            }
            cause = next.source();
        }
        let title = format!("the template `{}` cannot be rendered: {}", asked.text, describe(innermost));
        let diagnostic = Diagnostic::error("template", title).hint(hint_for(innermost));
        let file = innermost.name().and_then(|name| self.files.get_key_value(name));
        match file.and_then(|(name, bytes)| std::str::from_utf8(bytes).ok().map(|text| (name, text))) {
            Some((name, text)) => {
                let source = Source::new(name, text);
                let range = innermost.range().unwrap_or_else(|| line_range(text, innermost.line().unwrap_or(1)));
                diagnostic.at(Place::new(&source, range), "").also(asked.place.clone(), "the template is named here")
            }
            None => diagnostic.at(asked.place.clone(), ""),
        }
    }
}

fn line_range(text: &str, line: usize) -> std::ops::Range<usize> {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let rest = text.get(start..).unwrap_or("");
    start..start + rest.find('\n').unwrap_or(rest.len())
}

/// What went wrong, in words that hold no value of a variable.
fn describe(error: &minijinja::Error) -> String {
    match error.kind() {
        ErrorKind::UndefinedError => "a name is unknown".to_owned(),
        ErrorKind::OutOfFuel => format!("it runs longer than {FUEL} steps"),
        ErrorKind::WriteFailure => format!("its output is longer than {} MiB", MAX_RENDERED / 1024 / 1024),
        // These details quote the template alone.
        ErrorKind::SyntaxError
        | ErrorKind::TemplateNotFound
        | ErrorKind::UnknownFilter
        | ErrorKind::UnknownTest
        | ErrorKind::UnknownFunction
        | ErrorKind::UnknownMethod
        | ErrorKind::UnknownBlock
        | ErrorKind::MissingArgument
        | ErrorKind::TooManyArguments
        | ErrorKind::BadInclude => match error.detail() {
            Some(detail) => format!("{}: {detail}", error.kind()),
            None => error.kind().to_string(),
        },
        kind => kind.to_string(),
    }
}

fn hint_for(error: &minijinja::Error) -> &'static str {
    match error.kind() {
        ErrorKind::UndefinedError => {
            "declare it under [vars], or look for a misspelling; `is defined` and `default` cope with what may be missing"
        }
        ErrorKind::OutOfFuel | ErrorKind::WriteFailure => "make the template do less",
        ErrorKind::TemplateNotFound => "templates are named by their path from the root of the policy",
        _ => "see the template language: https://docs.rs/minijinja/latest/minijinja/syntax/",
    }
}

/// Output with a limit.
struct Bounded(Vec<u8>);

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
