//! Compiles a policy in a process of its own before it is compiled in this one.
//!
//! A template can ask for any amount of memory within its few steps, and the allocation that fails ends the process. The agent
//! must not end because of what a policy says: so a policy with templates or conditions is first compiled by a child that may
//! use less memory and time. Compiling is a pure function, so what the child survives we survive. Of the child's result only
//! its end counts, and what it was about when it came too early.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::host::exec::{self, Command, ExecError};
use crate::policy::compile::{self, Compiled, Inputs, Traced};
use crate::policy::diagnostic::Diagnostics;
use crate::policy::facts::{Facts, HostView};
use crate::policy::secret::{Keys, Secrets};
use crate::policy::trust::{self, Trust, Verified};
use crate::policy::{Revision, candidate};
use crate::resource::chain;

/// Most address space of the child, in bytes.
const MEMORY: u64 = 512 * 1024 * 1024;
/// Longest time of the child. A policy of 100 000 files takes a few seconds.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// The code of the diagnostic of a trial that came to no end.
const LIMIT: &str = "limit";
/// The hidden command that runs [`child_main`].
pub const COMMAND: &str = "__compile";
/// The last line of a child that came to its end.
const END: &str = "done";

/// What the child is told, before the files themselves.
#[derive(Serialize, Deserialize)]
struct Order {
    revision: Revision,
    facts: Facts,
    roles: Vec<String>,
    host: Option<HostView>,
    secrets: OrderedSecrets,
    /// Names and lengths of the files that follow.
    files: Vec<(String, usize)>,
}

/// [`Secrets`], with the text of the key: the child renders what we shall render. It goes through memory alone.
#[derive(Serialize, Deserialize)]
enum OrderedSecrets {
    Unread,
    With(Zeroizing<Vec<u8>>),
    Missing(String),
}

/// Whether a policy was compiled on this host before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It was: that no trial can be made is no reason to do without it.
    Before,
    /// It was not.
    New,
}

/// Compiles a policy after its trial by `program`, which is this one.
pub fn compile(
    program: &Path,
    verified: &Verified,
    inputs: &Inputs<'_>,
    known: Known,
) -> Result<Compiled, Diagnostics> {
    compile::compile_after(verified, inputs, &|| try_out(program, DEADLINE, verified, inputs, known))
}

/// As [`compile`] of a policy that is new, with the deadline named.
pub fn compile_with(
    program: &Path,
    deadline: Duration,
    verified: &Verified,
    inputs: &Inputs<'_>,
) -> Result<Compiled, Diagnostics> {
    compile::compile_after(verified, inputs, &|| try_out(program, deadline, verified, inputs, Known::New))
}

/// Whether a policy was refused because its trial came to no end: trying it again would only cost as much again.
pub fn is_limit(diagnostics: &Diagnostics) -> bool {
    diagnostics.iter().any(|diagnostic| diagnostic.code() == LIMIT)
}

fn try_out(
    program: &Path,
    deadline: Duration,
    verified: &Verified,
    inputs: &Inputs<'_>,
    known: Known,
) -> Result<(), Diagnostics> {
    let refuse = |last: Option<&Traced>, how: &str| Err(compile::cut_short(verified, last, how));
    let output = match run(program, deadline, verified, inputs) {
        Ok(output) => output,
        Err(error) if known == Known::Before => {
            tracing::warn!("a policy that was tried out before is compiled without another trial: {}", chain(&error));
            return Ok(());
        }
        Err(error) => return refuse(None, &format!("cannot be tried out first: {}", chain(&error))),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().next_back().unwrap_or_default();
    if output.success() && last == END {
        return Ok(());
    }
    let last = serde_json::from_str(last).ok();
    let said = exec::escape(&output.stderr);
    if said.contains("memory allocation of") || said.contains("capacity overflow") {
        refuse(last.as_ref(), &format!("needs more than {} MiB of memory", MEMORY / 1024 / 1024))
    } else if said.contains("overflowed its stack") {
        refuse(last.as_ref(), "nests too deeply")
    } else if output.status.starts_with("killed after") {
        refuse(last.as_ref(), &format!("takes longer than {} s", deadline.as_secs()))
    } else {
        refuse(last.as_ref(), &format!("ended its trial with {}: {said}", output.status))
    }
}

fn run(
    program: &Path,
    deadline: Duration,
    verified: &Verified,
    inputs: &Inputs<'_>,
) -> Result<exec::Output, ExecError> {
    let order = Order {
        revision: verified.revision().clone(),
        facts: inputs.facts.clone(),
        roles: inputs.roles.to_vec(),
        host: inputs.host.cloned(),
        secrets: match inputs.secrets {
            Secrets::Unread => OrderedSecrets::Unread,
            Secrets::With(keys) => OrderedSecrets::With(Zeroizing::new(keys.text().to_vec())),
            Secrets::Missing(why) => OrderedSecrets::Missing(why.clone()),
        },
        files: verified.files().iter().map(|(path, content)| (path.clone(), content.len())).collect(),
    };
    let mut stdin = serde_json::to_vec(&order).expect("strings, numbers and lists of them are JSON");
    stdin.push(b'\n');
    for content in verified.files().values() {
        stdin.extend_from_slice(content);
    }
    let mut command = Command { stdin, deadline, ..Command::new(program).args([COMMAND]) };
    let result = exec::run_direct(&command);
    command.stdin.zeroize();
    result
}

/// Runs the hidden command: the order and the files on standard input, what is looked at on standard output.
pub fn child_main() -> ExitCode {
    match try_here() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever started this reads it, or is gone.
            writeln!(io::stderr(), "cannot try a policy out: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

fn try_here() -> io::Result<()> {
    let bound = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    rustix::process::setrlimit(Resource::As, bound(MEMORY))?;
    // What fails here fails on purpose, and may hold what is secret.
    rustix::process::setrlimit(Resource::Core, bound(0))?;
    let mut input = BufReader::new(io::stdin().lock());
    let mut header = Vec::new();
    input.read_until(b'\n', &mut header)?;
    let order: Order = serde_json::from_slice(&header)?;
    let mut files = BTreeMap::new();
    for (path, length) in order.files {
        let mut content = vec![0; length];
        input.read_exact(&mut content)?;
        files.insert(path, content);
    }
    let candidate = candidate::from_memory(order.revision, files);
    let verified = trust::verify(candidate, &Trust::Operator, Timestamp::UNIX_EPOCH).map_err(io::Error::other)?;
    let secrets = match order.secrets {
        OrderedSecrets::Unread => Secrets::Unread,
        OrderedSecrets::With(text) => Secrets::With(Keys::parse(&text).map_err(io::Error::other)?),
        OrderedSecrets::Missing(why) => Secrets::Missing(why),
    };
    let inputs = Inputs { facts: &order.facts, roles: &order.roles, host: order.host.as_ref(), secrets: &secrets };
    // A refusal is found, and told, by whoever compiles it next.
    drop(compile::compile_traced(&verified, &inputs, say));
    writeln!(io::stdout(), "{END}")
}

fn say(traced: &Traced) {
    let line = serde_json::to_string(traced).unwrap_or_default();
    // Standard output is a buffer of lines: this one is out before anything can go wrong.
    writeln!(io::stdout(), "{line}").ok();
}
