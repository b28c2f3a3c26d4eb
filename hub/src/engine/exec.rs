//! The `exec` engine: a program with the intent on its standard input. The only place that starts processes.
//!
//! The program gets a clean environment, a process group of its own and a deadline, after which the group is killed. Exit
//! status 0 means done, any other means failed; killed at the deadline means that nobody knows.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use super::Outcome;
use crate::config::Engine;
use crate::hub::stopped;

/// Most output that is kept of each stream, in bytes. The rest is read and dropped, so that the program does not block.
const MAX_OUTPUT: usize = 32 * 1024;

/// How long output is awaited after the program ended: what it left running may hold the pipes open for ever.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A started program.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    input: Vec<u8>,
}

/// How a program stopped being waited for.
enum Ended {
    Exited(std::io::Result<ExitStatus>),
    Late,
    HubStopped,
}

/// Starts the program. An error means that nothing was started.
pub(crate) fn start(engine: &Engine, input: Vec<u8>) -> std::io::Result<Running> {
    let mut argv = engine.exec.iter();
    let program = argv.next().ok_or(std::io::ErrorKind::InvalidInput)?;
    let child = Command::new(program)
        .args(argv)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(false)
        .spawn()?;
    Ok(Running { child, input })
}

impl Running {
    /// Waits for the program's end, its deadline, or the hub's stop.
    pub(crate) async fn wait(mut self, timeout: Duration, mut stop: watch::Receiver<bool>) -> Outcome {
        let group = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        // The pipes are served beside the wait and never awaited alone: a program may ignore its input, and what it
        // leaves running may hold its output open.
        let mut pipes = Box::pin({
            let stdin = feed(self.child.stdin.take(), self.input);
            let stdout = collect(self.child.stdout.take(), &mut stdout);
            let stderr = collect(self.child.stderr.take(), &mut stderr);
            async { tokio::join!(stdin, stdout, stderr) }
        });
        let mut deadline = std::pin::pin!(tokio::time::sleep(timeout));
        let mut are_open = true;
        let ended = loop {
            tokio::select! {
                status = self.child.wait() => break Ended::Exited(status),
                _ = &mut pipes, if are_open => are_open = false,
                () = &mut deadline => break Ended::Late,
                () = stopped(&mut stop) => break Ended::HubStopped,
            }
        };
        if let Ended::Late = ended {
            if let Some(group) = group
                && let Err(error) = kill_process_group(group, Signal::KILL)
            {
                tracing::warn!(%error, "cannot kill an engine that took too long");
            }
            if let Err(error) = self.child.wait().await {
                tracing::warn!(%error, "cannot wait for a killed engine");
            }
        }
        let is_over = !matches!(ended, Ended::HubStopped);
        if are_open && is_over && tokio::time::timeout(LAST_WORDS, &mut pipes).await.is_err() {
            tracing::debug!("what the engine left running holds its output open");
        }
        drop(pipes);
        let output = rendered(&stdout, &stderr);
        match ended {
            Ended::Exited(Ok(status)) if status.success() => Outcome::Done { output },
            Ended::Exited(Ok(status)) => Outcome::Failed { how: format!("the engine ended with {status}"), output },
            Ended::Exited(Err(error)) => Outcome::Lost { why: format!("cannot wait for the engine: {error}"), output },
            Ended::Late => {
                let why = format!("the engine did not end within {} s and was killed", timeout.as_secs());
                Outcome::Lost { why, output }
            }
            Ended::HubStopped => Outcome::Lost { why: "the hub was stopped while the engine ran".to_owned(), output },
        }
    }
}

async fn feed(pipe: Option<ChildStdin>, input: Vec<u8>) {
    if let Some(mut pipe) = pipe
        && let Err(error) = pipe.write_all(&input).await
    {
        tracing::debug!(%error, "the engine did not read its intent");
    }
}

/// Keeps the beginning of a stream, and reads the rest so that the program does not block.
async fn collect(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = [0_u8; 4096];
    while let Ok(n @ 1..) = stream.read(&mut chunk).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len()).min(n);
        kept.extend(chunk.iter().take(room));
    }
}

fn rendered(stdout: &[u8], stderr: &[u8]) -> String {
    let mut text = String::new();
    for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
        if !bytes.is_empty() {
            text.push_str(&format!("[{name}]\n{}\n", printable(bytes)));
        }
    }
    text
}

/// Returns text without control characters, which would reach a person's terminal.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(script: &str, timeout: Duration) -> Outcome {
        let exec = vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let (_stop, stopped) = watch::channel(false);
        start(&Engine { exec, timeout }, b"{\"x\":1}".to_vec()).unwrap().wait(timeout, stopped).await
    }

    #[tokio::test]
    async fn outcomes() {
        let long = Duration::from_secs(20);
        let done = run("cat; env | sort | head -1", long).await;
        assert!(matches!(&done, Outcome::Done { output } if output.contains("{\"x\":1}LANG=C.UTF-8")), "{done:?}");
        let failed = run("echo broken >&2; exit 3", long).await;
        assert!(
            matches!(&failed, Outcome::Failed { how, output } if how.contains('3') && output.contains("[stderr]\nbroken")),
            "{failed:?}"
        );
        let lost = run("sleep 100", Duration::from_millis(100)).await;
        assert!(matches!(&lost, Outcome::Lost { why, .. } if why.contains("killed")), "{lost:?}");
    }

    #[tokio::test]
    async fn output_is_bounded_and_a_child_left_behind_blocks_nothing() {
        let done = run("head -c 1000000 /dev/zero | tr '\\0' 'x'; sleep 30 & exit 0", Duration::from_secs(20)).await;
        assert!(matches!(&done, Outcome::Done { output } if output.len() < MAX_OUTPUT + 100), "{done:?}");
    }

    #[test]
    fn a_program_that_does_not_exist_is_not_started() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let engine = Engine { exec: vec!["/nonexistent".to_owned()], timeout: Duration::from_secs(1) };
        assert!(start(&engine, Vec::new()).is_err());
    }
}
