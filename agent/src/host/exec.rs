//! Child processes: the only module that starts one.

use std::ffi::OsString;
use std::time::Duration;

/// A foreign program to run.
#[derive(Debug, Clone)]
pub struct Command {
    /// Absolute path of the program, or a bare name looked up in the fixed path `/usr/sbin:/usr/bin:/sbin:/bin`.
    pub program: OsString,
    /// Arguments.
    pub args: Vec<OsString>,
    /// The whole environment, besides `PATH`, `LANG=C.UTF-8` and `HOME=/root`.
    pub env: Vec<(OsString, OsString)>,
    /// Standard input; empty means /dev/null.
    pub stdin: Vec<u8>,
    /// After this long everything that it started is killed.
    pub deadline: Duration,
}

/// What came of a program that ran to its end.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; `None` when a signal or the deadline ended it.
    pub code: Option<i32>,
    /// The end in words: `exit status 1`, `signal 9`, `killed after 600 s`.
    pub status: String,
    /// At most [`MAX_OUTPUT`] last bytes.
    pub stdout: Vec<u8>,
    /// At most [`MAX_OUTPUT`] last bytes.
    pub stderr: Vec<u8>,
}

/// How much of each stream is kept, in bytes.
pub const MAX_OUTPUT: usize = 64 * 1024;

/// A program that could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its output could not be collected.
    #[error("cannot wait for `{program}`")]
    Wait {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Runs a program outside the agent's sandbox and cgroup: as a transient systemd unit where systemd runs, otherwise as a
/// child with a clean environment, a process group of its own and a deadline. Blocks until it has ended.
pub fn run(_command: &Command) -> Result<Output, ExecError> {
    unimplemented!()
}
