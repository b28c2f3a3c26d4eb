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
            eprintln!("{}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// Returns an error with all its sources on one line, and their hints on lines below.
fn sentence(error: &anyhow::Error) -> String {
    let (mut line, mut hints) = ("error".to_owned(), String::new());
    for cause in error.chain() {
        let text = cause.to_string();
        let (what, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
        line.push_str(": ");
        line.push_str(what.trim_end());
        if !hint.is_empty() {
            hints.push_str("\nhint: ");
            hints.push_str(hint);
        }
    }
    line + &hints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_come_last() {
        let error = anyhow::anyhow!("no such file").context("cannot reach the hub\nhint: is it running?");
        assert_eq!(sentence(&error), "error: cannot reach the hub: no such file\nhint: is it running?");
    }
}
