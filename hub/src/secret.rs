//! Makes tokens and identifiers, and hashes what is stored of them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rekindle_protocol::{ReimageId, Token};
use sha2::{Digest, Sha256};

use crate::CallError;

/// The kinds of token, told apart by their first letters so that a person who finds one knows what it opens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A join token from an operator.
    Join,
    /// A single-use token for the new system of a reimage.
    Reimage,
    /// A host's bearer token.
    Bearer,
}

/// Returns a new token of 256 random bits.
pub(crate) fn new_token(kind: Kind) -> Result<Token, CallError> {
    let prefix = match kind {
        Kind::Join => "rkj_",
        Kind::Reimage => "rkr_",
        Kind::Bearer => "rkb_",
    };
    let mut bytes = [0_u8; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CallError::Random)?;
    let text = format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes));
    Ok(Token::try_from(text).expect("47 printable characters are a token"))
}

/// Returns a new identifier that sorts by creation.
pub(crate) fn new_reimage_id(now: Timestamp) -> Result<ReimageId, CallError> {
    let mut bytes = [0_u8; 6];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CallError::Random)?;
    let text = format!("ri-{:013}-{}", now.as_millisecond(), hex(&bytes));
    Ok(ReimageId::try_from(text).expect("letters, digits and dashes are an identifier"))
}

/// Returns the SHA-256 of a text, as hexadecimal.
pub(crate) fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes.as_ref()))
}

/// Returns bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string succeeds");
        text
    })
}
