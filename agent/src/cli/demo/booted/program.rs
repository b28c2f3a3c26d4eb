//! Programs of this host that the demo runs, each to its end, each killed with the demo.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context as _;
use tokio::process::Command;

/// Where programs are, for people whose own search path lacks the directories of administration.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Lines of a failed program's output that an error shows.
const LINES: usize = 20;

/// Returns where a program is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(PATH).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Prepares a program. Ctrl-C on the terminal is for the demo alone, which then ends the program.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", PATH).env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    command
}

/// Prepares a program with processes and mounts of its own, which all end with it, and which ends with the demo.
pub(super) fn contained(program: &str) -> Command {
    let mut command = command("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"]).args([
        "--mount-proc",
        "--propagation",
        "private",
        "--",
        program,
    ]);
    command
}

/// Runs a program and returns what it wrote; anything but success is an error that shows the end of it.
pub(super) async fn run(command: &mut Command) -> anyhow::Result<String> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.output().await.with_context(|| format!("cannot run `{name}`"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let args: Vec<_> = command.as_std().get_args().map(|arg| arg.to_string_lossy()).collect();
    let all = text(&output.stdout) + &text(&output.stderr);
    let lines: Vec<&str> = all.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n");
    anyhow::bail!("`{name} {}` ended with {}:\n{tail}", args.join(" "), output.status)
}
