//! The `exec` engine: a program with the intent on its standard input. The only place that starts processes.
//!
//! The program gets a clean environment, a process group of its own and a deadline, after which the group is killed. Exit
//! status 0 means done, any other means failed; killed at the deadline means that nobody knows.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

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
    stdout: Collected,
    stderr: Collected,
    stdin: JoinHandle<()>,
}

/// Starts the program. An error means that nothing was started.
pub(crate) fn start(engine: &Engine, input: Vec<u8>) -> std::io::Result<Running> {
    let mut argv = engine.exec.iter();
    let program = argv.next().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program)
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
    let stdout = Collected::new(child.stdout.take());
    let stderr = Collected::new(child.stderr.take());
    let pipe = child.stdin.take();
    // A program that does not read its input must not block the wait for its end.
    let stdin = tokio::task::spawn(async move {
        if let Some(mut pipe) = pipe
            && let Err(error) = pipe.write_all(&input).await
        {
            tracing::debug!(%error, "the engine did not read its intent");
        }
    });
    Ok(Running { child, stdout, stderr, stdin })
}

impl Running {
    /// Waits for the program's end, its deadline, or the hub's stop.
    pub(crate) async fn wait(mut self, timeout: Duration, mut stop: watch::Receiver<bool>) -> Outcome {
        let group = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let ended = tokio::select! {
            ended = tokio::time::timeout(timeout, self.child.wait()) => ended,
            () = stopped(&mut stop) => {
                self.stdin.abort();
                let why = "the hub was stopped while the engine ran".to_owned();
                return Outcome::Lost { why, output: self.output(Duration::ZERO).await };
            }
        };
        match ended {
            Ok(Ok(status)) => {
                self.stdin.abort();
                let output = self.output(LAST_WORDS).await;
                if status.success() {
                    Outcome::Done { output }
                } else {
                    Outcome::Failed { how: format!("the engine ended with {status}"), output }
                }
            }
            Ok(Err(error)) => {
                let why = format!("cannot wait for the engine: {error}");
                Outcome::Lost { why, output: self.output(LAST_WORDS).await }
            }
            Err(_) => {
                if let Some(group) = group
                    && let Err(error) = kill_process_group(group, Signal::KILL)
                {
                    tracing::warn!(%error, "cannot kill an engine that took too long");
                }
                if let Err(error) = self.child.wait().await {
                    tracing::warn!(%error, "cannot wait for a killed engine");
                }
                self.stdin.abort();
                let why = format!("the engine did not end within {} s and was killed", timeout.as_secs());
                Outcome::Lost { why, output: self.output(LAST_WORDS).await }
            }
        }
    }

    async fn output(self, patience: Duration) -> String {
        let mut text = String::new();
        for (name, stream) in [("stdout", self.stdout), ("stderr", self.stderr)] {
            let bytes = stream.take(patience).await;
            if !bytes.is_empty() {
                text.push_str(&format!("[{name}]\n{}\n", printable(&bytes)));
            }
        }
        text
    }
}

/// The beginning of a stream, collected while the program runs.
#[derive(Debug)]
struct Collected {
    reader: JoinHandle<()>,
    bytes: watch::Receiver<Vec<u8>>,
}

impl Collected {
    fn new(stream: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let (sender, bytes) = watch::channel(Vec::new());
        let reader = tokio::task::spawn(async move {
            let Some(mut stream) = stream else { return };
            let mut chunk = [0_u8; 4096];
            while let Ok(n) = stream.read(&mut chunk).await {
                if n == 0 {
                    return;
                }
                sender.send_modify(|bytes| {
                    let room = MAX_OUTPUT.saturating_sub(bytes.len()).min(n);
                    bytes.extend(chunk.iter().take(room));
                });
            }
        });
        Self { reader, bytes }
    }

    async fn take(mut self, patience: Duration) -> Vec<u8> {
        if tokio::time::timeout(patience, &mut self.reader).await.is_err() {
            self.reader.abort();
        }
        self.bytes.borrow().clone()
    }
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
