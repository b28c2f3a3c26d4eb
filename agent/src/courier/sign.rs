//! Standard Webhooks signatures: HMAC-SHA-256 over `id.timestamp.body`, one for each secret, so that secrets can be rotated.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The secrets of one receiver.
#[derive(Clone)]
pub(super) struct Secrets(Vec<hmac::Key>);

/// Why a text holds no usable secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SecretError {
    #[error("it is not text")]
    NotText,
    #[error("line {line}: what follows `whsec_` is not base64")]
    NotBase64 { line: usize },
    #[error("line {line}: the secret is shorter than 16 bytes")]
    TooShort { line: usize },
    #[error("it holds no secret")]
    Empty,
}

impl Secrets {
    /// Reads one secret a line, newest first: `whsec_` and base64, or any other text as it is. Empty lines are skipped.
    pub(super) fn parse(content: &[u8]) -> Result<Self, SecretError> {
        let text = std::str::from_utf8(content).map_err(|_| SecretError::NotText)?;
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let (line, word) = (index + 1, line.trim());
            if word.is_empty() {
                continue;
            }
            let secret = match word.strip_prefix("whsec_") {
                Some(encoded) => STANDARD.decode(encoded).map_err(|_| SecretError::NotBase64 { line })?,
                None => word.as_bytes().to_vec(),
            };
            if secret.len() < 16 {
                return Err(SecretError::TooShort { line });
            }
            keys.push(hmac::Key::new(hmac::HMAC_SHA256, &secret));
        }
        if keys.is_empty() { Err(SecretError::Empty) } else { Ok(Self(keys)) }
    }

    /// The value of the `webhook-signature` header.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signatures = self.0.iter().map(|key| {
            let mut context = hmac::Context::with_key(key);
            context.update(format!("{id}.{timestamp}.").as_bytes());
            context.update(body);
            format!("v1,{}", STANDARD.encode(context.sign()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that the Standard Webhooks libraries share in their tests.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn signatures_match_the_published_example() {
        let check = |secrets: &str, expected: &str| {
            assert_eq!(Secrets::parse(secrets.as_bytes()).unwrap().sign(ID, TIMESTAMP, BODY), expected, "{secrets}");
        };
        check(SECRET, SIGNATURE);
        check(&format!("\n {SECRET} \r\n\n"), SIGNATURE);
        check(&format!("{SECRET}\n{SECRET}"), &format!("{SIGNATURE} {SIGNATURE}"));
        let raw = Secrets::parse(b"just-sixteen-bytes").unwrap().sign(ID, TIMESTAMP, BODY);
        assert_ne!(raw, SIGNATURE);
    }

    #[test]
    fn bad_secrets_are_refused_with_their_line() {
        let check = |content: &[u8], expected: SecretError| assert_eq!(Secrets::parse(content).err(), Some(expected));
        check(b"", SecretError::Empty);
        check(b"\n\n", SecretError::Empty);
        check(b"whsec_***", SecretError::NotBase64 { line: 1 });
        check(b"\nshort", SecretError::TooShort { line: 2 });
        check(b"whsec_MTIz", SecretError::TooShort { line: 1 });
        check(b"\xff\xff", SecretError::NotText);
    }
}
