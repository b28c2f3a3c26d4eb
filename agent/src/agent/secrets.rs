//! The key with which this host reads the secrets of its policy.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::{self, ConfigError, Settings};
use crate::policy::secret::{Keys, Secrets};
use crate::resource::chain;

/// The name of the systemd credential that is preferred: `LoadCredentialEncrypted=age.key`.
const CREDENTIAL: &str = "age.key";

/// Reads the key: the credential that systemd hands over, or else the configured file.
pub fn load(settings: &Settings) -> Secrets {
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| PathBuf::from(dir).join(CREDENTIAL));
    let path = credential.filter(|path| path.exists()).unwrap_or_else(|| settings.paths.age_identity(settings));
    match read(&path) {
        Ok(keys) => Secrets::With(keys),
        Err(why) => Secrets::Missing(why),
    }
}

fn read(path: &Path) -> Result<Keys, String> {
    let text = match config::read_guarded(path) {
        Ok(text) => Zeroizing::new(text),
        Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!(
                "there is no `{0}`: make one with `age-keygen -o {0}`, and encrypt secrets for the recipient that it prints",
                path.display()
            ));
        }
        Err(error) => return Err(chain(&error)),
    };
    config::refuse_readable(path).map_err(|error| chain(&error))?;
    Keys::parse(&text).map_err(|error| format!("`{}` cannot be used: {error}", path.display()))
}
