//! The `rekindle-hub` command: parse, start logging, dispatch, exit code; nothing else.
//!
//! `serve` runs the hub; every other command asks a running hub over its control socket.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
