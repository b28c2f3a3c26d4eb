//! `tests/bench/run`: what to measure, and the other parts of this program that a measurement starts.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum as _};
use rekindle_bench::actors::Actors;
use rekindle_bench::compile::{self, Compile};
use rekindle_bench::foreign::{self, Kind};
use rekindle_bench::idle::Idle;
use rekindle_bench::latency::Latency;
use rekindle_bench::reload::Reload;
use rekindle_bench::scan::Scan;
use rekindle_bench::storm::Storm;
use rekindle_bench::table::{Row, Table, machine};
use rekindle_bench::{Bench, floor};

/// Measure rekindle against the physical floor, in one run
#[derive(Debug, Parser)]
#[command(name = "tests/bench/run", max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    /// Write here, on the file system to measure on
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/tmp")]
    base: PathBuf,
    /// Measure this program instead of the one that was built beside this one
    #[arg(long, global = true, value_name = "FILE")]
    rekindle: Option<PathBuf>,
    /// End with an error when a goal is missed
    #[arg(long, global = true)]
    check: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Latency(Latency),
    Scan(Scan),
    Storm(Storm),
    Idle(Idle),
    Reload(Reload),
    Actors(Actors),
    Compile(Compile),
    /// Measures everything that README.md's table shows
    All,
    #[command(name = "__drift", hide = true)]
    Drift,
    #[command(name = "__flood", hide = true)]
    Flood,
    #[command(name = "__read", hide = true)]
    Read,
    #[command(name = "__guard", hide = true)]
    Guard,
    #[command(name = "__compile", hide = true)]
    CompileRounds,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match &cli.what {
        What::Drift => foreign::drift_main().map(|()| ExitCode::SUCCESS),
        What::Flood => foreign::flood_main().map(|()| ExitCode::SUCCESS),
        What::Read => foreign::read_main().map(|()| ExitCode::SUCCESS),
        What::Guard => floor::guard::main().map(|()| ExitCode::SUCCESS),
        What::CompileRounds => compile::main().map(|()| ExitCode::SUCCESS),
        What::Latency(_)
        | What::Scan(_)
        | What::Storm(_)
        | What::Idle(_)
        | What::Reload(_)
        | What::Actors(_)
        | What::Compile(_)
        | What::All => measure(cli),
    }
}

fn measure(cli: Cli) -> Result<ExitCode> {
    let exe = std::env::current_exe().context("cannot find this program")?;
    let rekindle = cli.rekindle.unwrap_or_else(|| exe.with_file_name("rekindle"));
    ensure!(rekindle.exists(), "there is no `{}`: run tests/bench/run, which builds it", rekindle.display());
    let base = std::fs::canonicalize(&cli.base).with_context(|| format!("no directory `{}`", cli.base.display()))?;
    let bench = Bench { exe, rekindle: std::fs::canonicalize(rekindle)?, base };
    let before = machine(&bench.base, &bench.rekindle)?;
    let mut table = Table::default();
    let mut errors = Vec::new();
    let command = format!("tests/bench/run {}", std::env::args().skip(1).collect::<Vec<_>>().join(" "));
    if matches!(cli.what, What::All) {
        for line in everything() {
            let command = format!("tests/bench/run {line}");
            eprintln!("==> {command}");
            match parse(&line).and_then(|cli| one(&cli.what, &bench)) {
                Ok(rows) => table.add(&command, rows),
                // The rest is measured all the same.
                Err(error) => errors.push(format!("{command}: {error:#}")),
            }
        }
    } else {
        table.add(&command, one(&cli.what, &bench)?);
    }
    println!("{}", table.to_markdown());
    println!("Machine: {before}.");
    for error in &errors {
        eprintln!("error: {error}");
    }
    let n_missed = table.n_missed();
    if n_missed > 0 {
        eprintln!("{n_missed} goals were missed");
    }
    let failed = !errors.is_empty() || (cli.check && n_missed > 0);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn one(what: &What, bench: &Bench) -> Result<Vec<Row>> {
    match what {
        What::Latency(latency) => latency.run(bench),
        What::Scan(scan) => scan.run(bench),
        What::Storm(storm) => storm.run(bench),
        What::Idle(idle) => idle.run(bench),
        What::Reload(reload) => reload.run(bench),
        What::Actors(actors) => actors.run(bench),
        What::Compile(compile) => compile.run(bench),
        What::All | What::Drift | What::Flood | What::Read | What::Guard | What::CompileRounds => Ok(Vec::new()),
    }
}

/// Every measurement with its defaults, as the arguments that repeat it alone.
fn everything() -> Vec<String> {
    let kinds: Vec<String> =
        Kind::ALL.iter().filter_map(|kind| Some(kind.to_possible_value()?.get_name().to_owned())).collect();
    let mut lines = vec![format!("latency --kinds {}", kinds.join(","))];
    lines.extend(
        [
            "latency --among 300",
            "latency --files 1000",
            "scan",
            "storm",
            "idle",
            "idle --contents 64",
            "reload",
            "actors",
            "compile",
        ]
        .map(str::to_owned),
    );
    lines
}

fn parse(line: &str) -> Result<Cli> {
    Ok(Cli::try_parse_from(std::iter::once("run").chain(line.split(' ')))?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_is_made_of_commands_that_exist() {
        for line in everything() {
            parse(&line).unwrap();
        }
        assert!(everything().iter().any(|line| line.ends_with("content,mode,delete,rename-over")));
    }
}
