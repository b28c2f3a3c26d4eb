//! HTTP clients, and what is bounded about every answer.
//!
//! No client follows a redirect: a receiver or endpoint that moved is a change of configuration, and a redirect must not
//! carry a token or a signature elsewhere. A client with certificate authorities of its own trusts only those.

use std::error::Error;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

/// Longest answer that is read, in bytes.
pub(super) const MAX_ANSWER: usize = 256 * 1024;

/// Longest wait that a `Retry-After` may impose.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The file with certificate authorities.
    #[error("cannot use the certificate authorities in `{}`", path.display())]
    Authorities {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The client itself; usually because the host has no certificate authorities at all.
    #[error("cannot make an HTTPS client: is the package ca-certificates installed, or `ca` set?")]
    Build {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
}

/// Makes aws-lc the process's cryptography; a second call does nothing.
pub(super) fn install_crypto() {
    // An error says that a provider is installed already, which is all that is wanted.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
}

/// A client that trusts `ca` alone, or the system's authorities.
pub(super) fn client(ca: Option<&Path>, timeout: Duration) -> Result<reqwest::Client, ClientError> {
    install_crypto();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("rekindle/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10).min(timeout))
        .timeout(timeout);
    if let Some(path) = ca {
        let read = certificates(path);
        let authorities = read.map_err(|source| ClientError::Authorities { path: path.to_owned(), source })?;
        builder = builder.tls_certs_only(authorities);
    }
    builder.build().map_err(|source| ClientError::Build { source })
}

/// Reads a PEM file with at least one certificate.
pub(super) fn certificates(path: &Path) -> io::Result<Vec<reqwest::Certificate>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let pem = read_small(path)?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| invalid(&chain(&error)))?;
    if certificates.is_empty() { Err(invalid("it holds no PEM certificate")) } else { Ok(certificates) }
}

/// Reads a file that holds one token.
pub(super) fn read_token(path: &Path) -> io::Result<String> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let text = String::from_utf8(read_small(path)?).map_err(|_| invalid("it is not text"))?;
    let token = text.trim();
    let printable = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if printable { Ok(token.to_owned()) } else { Err(invalid("it does not hold one word of printable characters")) }
}

/// Reads a credential or certificate file: at most 1 MiB.
pub(super) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    const LIMIT: u64 = 1024 * 1024;
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(LIMIT + 1).read_to_end(&mut content)?;
    let fits = u64::try_from(content.len()).is_ok_and(|n| n <= LIMIT);
    if fits { Ok(content) } else { Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB")) }
}

/// Reads an answer's body up to [`MAX_ANSWER`]; `Err` holds the sentence for a person.
pub(super) async fn body(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| format!("the answer broke off: {}", chain(&error)))?
    {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("the answer is longer than {MAX_ANSWER} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The wait that an answer asks for, in seconds or as a date, at most an hour.
pub(super) fn retry_after(headers: &reqwest::header::HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
            Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO)
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// The whole chain of an error in one line. reqwest's own text hides the cause.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = source.source();
    }
    text
}

/// Makes text from a stranger fit for one line of a log or a status.
pub(super) fn excerpt(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text.get(..400).unwrap_or(text)).into_owned();
    let visible: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    visible.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_and_bounded() {
        let now: Timestamp = "2025-11-21T22:00:00Z".parse().unwrap();
        let check = |value: &str, expected: Option<u64>| {
            let mut headers = reqwest::header::HeaderMap::new();
            headers.insert(reqwest::header::RETRY_AFTER, value.parse().unwrap());
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{value}");
        };
        check("0", Some(0));
        check(" 17 ", Some(17));
        check("99999999999", Some(3600));
        check("Fri, 21 Nov 2025 22:00:30 GMT", Some(30));
        check("Fri, 21 Nov 2025 21:00:00 GMT", Some(0));
        check("soon", None);
        check("-5", None);
        check("99999999999999999999999999", None);
    }

    #[test]
    fn an_excerpt_is_one_bounded_line() {
        assert_eq!(excerpt(b"a\x1b[31m\n\n b\xff"), "a [31m b\u{fffd}");
        assert!(excerpt(&[b'x'; 10_000]).len() <= 400);
    }
}
