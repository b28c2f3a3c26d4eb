//! The command line: clap types, one file for each family of commands, text and JSON rendering.
//!
//! Text goes to standard output and may change between versions; `--json` is one object with a `version` and may only grow.
//! Errors go to standard error as `error: …`, with a `hint:` where there is one. Exit codes are [`exit`].

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::config::{self, Settings};
use crate::resource::ResourceId;

mod adopt;
pub(crate) mod against;
pub mod demo;
mod facts;
mod inspect;
mod operate;
mod output;
mod policy;
mod services;
mod undo;
mod why;

pub use output::Out;

/// Exit codes.
pub mod exit {
    /// In sync, or done.
    pub const OK: u8 = 0;
    /// The policy, the configuration or the use is invalid; or something broke.
    pub const INVALID: u8 = 1;
    /// Drift was found (`plan`), or not all could be applied (`apply`).
    pub const DRIFT: u8 = 2;
    /// Something could not be told.
    pub const UNKNOWN: u8 = 3;
    /// Refused: paused, locked, not permitted.
    pub const REFUSED: u8 = 4;
}

/// Keep this host in the state that its policy declares
#[derive(Debug, Parser)]
#[command(name = "rekindle", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Read this configuration file (and FILE.d) instead of the system's
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Validate a policy and print every error and warning in it
    Check(policy::Check),
    /// Show what would change on this host, as diffs
    Plan(policy::Plan),
    /// Converge this host once
    Apply(policy::Apply),
    /// Run the agent service (root, no network)
    Agent(services::Agent),
    /// Run the courier service (network, no privilege)
    Courier(services::Courier),
    /// Show revision, health, drift, debts, pauses, coverage and delivery
    Status(inspect::StatusArgs),
    /// Show what drifted and what was done about it
    History(inspect::History),
    /// Show where something is declared, by whom, and what became of it
    Why(why::Why),
    /// Put back what a step replaced, and pause that resource
    Undo(undo::Undo),
    /// Turn a drift into a patch of the policy
    Adopt(adopt::Adopt),
    /// Stop repairing for a while; drift is still seen and recorded
    Pause(operate::Pause),
    /// End pauses
    Resume(operate::Resume),
    /// Pull the policy now
    Fetch(operate::Fetch),
    /// Ask the endpoint for this host to be reimaged
    Reimage(operate::Reimage),
    /// Show what a policy may ask about this host
    Facts(facts::Facts),
    /// Print the JSON Schema of the policy language
    Schema,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Watch the whole life of a host in a minute, in a sandbox of its own; needs no root
    Demo(demo::Demo),
    /// Have the demo re-create its host; started by the demo's hub
    #[command(name = demo::ENGINE_COMMAND, hide = true)]
    DemoEngine(demo::DemoEngine),
    /// Fetch in a process of its own; started by the courier
    #[command(name = "__fetch", hide = true)]
    FetchChild,
    /// Become a validator that sees candidates in place; started by the agent
    #[command(name = crate::host::exec::view::ENTER_COMMAND, hide = true)]
    Enter,
    /// Try a policy out in a process of its own; started by whoever compiles it
    #[command(name = crate::agent::trial::COMMAND, hide = true)]
    CompileChild,
    /// Write manual pages; used by packaging
    #[command(name = "__man", hide = true)]
    Man {
        /// Directory to write into
        directory: PathBuf,
    },
}

/// An error on its way to the terminal, with its exit code.
#[derive(Debug)]
pub struct CliError {
    code: u8,
    error: anyhow::Error,
}

impl CliError {
    /// An error with an exit code of [`exit`].
    pub fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { code, error: error.into() }
    }

    /// A refusal.
    pub fn refused(text: impl Into<String>) -> Self {
        Self::new(exit::REFUSED, anyhow::Error::msg(text.into()))
    }
}

impl<E: Into<anyhow::Error>> From<E> for CliError {
    fn from(error: E) -> Self {
        Self::new(exit::INVALID, error)
    }
}

/// What a command returns: its exit code.
pub type Outcome = Result<u8, CliError>;

/// Parses the arguments of the process and runs the command.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(std::env::args_os().collect::<Vec<OsString>>()) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { exit::INVALID } else { exit::OK };
            // A closed terminal cannot be told anything.
            drop(error.print());
            return code.into();
        }
    };
    if matches!(cli.command, Command::FetchChild) {
        return crate::courier::fetch::child_main();
    }
    if matches!(cli.command, Command::Enter) {
        return crate::host::exec::view::enter::main();
    }
    if matches!(cli.command, Command::CompileChild) {
        return crate::agent::trial::child_main();
    }
    let mut out = Out::new(cli.global.json);
    match dispatch(cli, &mut out).and_then(|code| out.flush().map(|()| code).map_err(CliError::from)) {
        Ok(code) => code.into(),
        // `rekindle history | head` is no error.
        Err(error) if is_broken_pipe(&error.error) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error.error);
            error.code.into()
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints the whole chain once: `error: outer: inner: innermost`, then every `hint:` of it on a line of its own.
fn report(error: &anyhow::Error) {
    let (text, hints) = explain(error.chain().map(ToString::to_string));
    let red = anstyle::Style::new().bold().fg_color(Some(anstyle::AnsiColor::Red.into()));
    drop(writeln!(anstream::stderr(), "{red}error:{red:#} {text}"));
    for hint in hints {
        drop(writeln!(anstream::stderr(), "{}hint:{:#} {hint}", output::BOLD, output::BOLD));
    }
}

/// Joins the texts of a chain and takes the hints out of them.
fn explain(chain: impl Iterator<Item = String>) -> (String, Vec<String>) {
    let (mut texts, mut hints) = (Vec::new(), Vec::new());
    for link in chain {
        let mut parts = link.split("\nhint: ");
        texts.extend(parts.next().map(str::to_owned));
        hints.extend(parts.map(str::to_owned));
    }
    (texts.join(": "), hints)
}

fn dispatch(cli: Cli, out: &mut Out) -> Outcome {
    let global = cli.global;
    match cli.command {
        Command::Check(args) => policy::check(&args, out),
        Command::Plan(args) => policy::plan(&global, &args, out),
        Command::Apply(args) => policy::apply(&global, &args, out),
        Command::Agent(args) => services::agent(&global, &args, out),
        Command::Courier(args) => services::courier(&global, &args, out),
        Command::Status(args) => inspect::status(&global, &args, out),
        Command::History(args) => inspect::history(&global, &args, out),
        Command::Why(args) => why::why(&global, &args, out),
        Command::Undo(args) => undo::undo(&global, &args, out),
        Command::Adopt(args) => adopt::adopt(&global, &args, out),
        Command::Pause(args) => operate::pause(&global, &args, out),
        Command::Resume(args) => operate::resume(&global, &args, out),
        Command::Fetch(args) => operate::fetch(&global, &args, out),
        Command::Reimage(args) => operate::reimage(&global, &args, out),
        Command::Facts(args) => facts::facts(&global, &args, out),
        Command::Schema => {
            out.text(&format!("{:#}\n", crate::policy::json_schema()))?;
            Ok(exit::OK)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rekindle", &mut script);
            out.text(&String::from_utf8_lossy(&script))?;
            Ok(exit::OK)
        }
        Command::Demo(args) => demo::run(&args, out),
        Command::DemoEngine(args) => demo::run_engine(&args),
        // Answered in `main`, before anything is written.
        Command::FetchChild | Command::Enter | Command::CompileChild => Ok(exit::OK),
        Command::Man { directory } => {
            clap_mangen::generate_to(Cli::command(), directory)?;
            Ok(exit::OK)
        }
    }
}

/// Reads the configuration of this host.
fn settings(global: &Global) -> Result<Settings, CliError> {
    Ok(config::load_from(global.config.as_deref())?)
}

/// Parses `kind[name]` for clap.
fn resource_id(text: &str) -> Result<ResourceId, String> {
    text.parse().map_err(|e: crate::resource::InvalidResourceId| e.to_string())
}

/// Parses a duration such as `90s`, `15m`, `2h` or `1d` for clap.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    config::parse_duration(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn hints_come_last() {
        let chain = ["cannot ask\nhint: start it", "no such file"].map(str::to_owned);
        assert_eq!(explain(chain.into_iter()), ("cannot ask: no such file".to_owned(), vec!["start it".to_owned()]));
    }

    #[test]
    fn help_reads_as_reviewed() {
        let mut command = Cli::command();
        command.build();
        let mut pages = command.clone().term_width(100).render_help().to_string();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            pages.push_str(&format!("\n==== {}\n", sub.get_name()));
            pages.push_str(&sub.clone().term_width(100).render_help().to_string());
        }
        insta::assert_snapshot!("help", pages);
    }
}
