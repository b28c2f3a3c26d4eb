//! The `rekindle` command: parse, dispatch, exit code; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    rekindle::cli::main()
}
