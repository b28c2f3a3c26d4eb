//! `gpgv`, which checks OpenPGP signatures against a keyring and knows nothing of private keys, of the web of trust or of the
//! network. What it says is judged by [`crate::policy::trust`].

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::exec::{self, Command, ExecError};
use crate::policy::trust::Question;

/// It takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(30);

/// gpgv could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum GpgvError {
    /// It is not there.
    #[error("`gpgv` is not installed\nhint: install the package gpgv (Debian, Ubuntu) or gnupg2 (RHEL, Fedora, SUSE)")]
    Missing,
    /// It could not be run.
    #[error("cannot run `gpgv`")]
    Exec(#[source] ExecError),
    /// It could not be given what it needs.
    #[error("cannot write what `gpgv` reads")]
    Write(#[source] io::Error),
    /// It ended without a word.
    #[error("`gpgv` ended without an answer ({status}): {stderr}")]
    Silent {
        /// How it ended.
        status: String,
        /// What it said otherwise.
        stderr: String,
    },
}

/// Asks `gpgv`, and returns its status lines. Whether it succeeded is not asked: it does for revoked and expired keys.
pub fn ask(question: &Question<'_>) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    run(question).map_err(Into::into)
}

fn run(question: &Question<'_>) -> Result<Vec<u8>, GpgvError> {
    let program = exec::find_program("gpgv").ok_or(GpgvError::Missing)?;
    // Only readable by us, and empty but for these: gpgv looks for a configuration where its home is.
    let home = tempfile::Builder::new().prefix("rekindle-gpgv-").tempdir().map_err(GpgvError::Write)?;
    let keyring = home.path().join("keyring");
    let signature = home.path().join("signature");
    write(&keyring, question.keyring)?;
    write(&signature, question.signature)?;
    let mut command = Command::new(program).args(["--homedir".into(), home.path().as_os_str().to_owned()]);
    command = command.args(["--status-fd", "1", "--keyring"]);
    command = command.args([keyring.into_os_string(), signature.into_os_string(), "-".into()]);
    command.stdin = question.message.to_vec();
    command.deadline = DEADLINE;
    let output = exec::run_direct(&command).map_err(GpgvError::Exec)?;
    if output.stdout.is_empty() {
        return Err(GpgvError::Silent { status: output.status, stderr: exec::escape(&output.stderr) });
    }
    Ok(output.stdout)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), GpgvError> {
    use std::io::Write as _;
    std::fs::File::create_new(path).and_then(|mut file| file.write_all(bytes)).map_err(GpgvError::Write)
}
